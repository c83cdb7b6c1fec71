"""The data of a run: the digits that ship with scikit-learn, or a .npy, .npz or .csv file of yours."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .storage import CommandError

TEST_SHARE = 0.2
FEWEST_ROWS = 10


@dataclass(frozen=True)
class Data:
    """Rows x ``[N, *event]`` in float32, their labels if any, and a fingerprint by which a resumed run knows them."""

    name: str
    x: Tensor
    labels: Tensor | None
    fingerprint: str

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Row numbers of the training and the held-out test part, a function of N and the seed."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        n_test = max(1, round(TEST_SHARE * len(order)))
        return order[n_test:], order[:n_test]


def load_data(path: str | None, likelihood: str) -> Data:
    """Read and check the data; ``None`` is the 1,797 digits of 8 x 8 grey pixels, scaled to [0, 1]."""
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        name, array, labels = "digits", digits.images / 16.0, digits.target
    else:
        name = Path(path).name
        array, labels = read_array(Path(path))
    x = checked_rows(name, array)
    if likelihood == "bernoulli" and not bool(((x >= 0) & (x <= 1)).all()):
        raise CommandError(f"{name}: a Bernoulli likelihood needs values in [0, 1], found [{x.min():g}, {x.max():g}]")
    fingerprint = hashlib.sha256(x.numpy().tobytes() + repr(tuple(x.shape)).encode()).hexdigest()
    return Data(name, x, None if labels is None else torch.as_tensor(labels), fingerprint)


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The array in the file, and labels where an .npz has an array ``y`` of as many rows."""
    try:
        if path.suffix == ".csv":
            return read_csv(path), None
        if path.suffix not in (".npy", ".npz"):
            raise CommandError(f"--data {path}: expected a .npy, .npz or .csv file")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            if "x" not in loaded.files and len(loaded.files) != 1:
                raise CommandError(f"--data {path}: expected an array 'x' or a single one, found {loaded.files}")
            array = loaded["x" if "x" in loaded.files else loaded.files[0]]
            labels = loaded["y"] if "y" in loaded.files else None
            return array, labels if labels is not None and labels.shape == array.shape[:1] else None
    except FileNotFoundError as error:
        raise CommandError(f"--data {path}: no such file") from error
    except OSError as error:
        raise CommandError(f"--data {path}: {error.strerror or 'cannot be read'}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"--data {path}: malformed: {str(error).splitlines()[0]}") from error


def read_csv(path: Path) -> np.ndarray:
    """Numbers separated by commas, ``[N, D]``; the first line may name the columns."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().split(",")
    try:
        [float(cell) for cell in first]
        header = 0
    except ValueError:
        header = 1
    if path.read_text(encoding="utf-8").count("\n") <= header and header:
        raise CommandError(f"--data {path}: no rows of numbers")
    return np.loadtxt(path, delimiter=",", skiprows=header, ndmin=2)


def checked_rows(name: str, array: np.ndarray) -> Tensor:
    """``[N, *event]`` in float32; uint8 becomes [0, 1], anything not finite is an error."""
    if array.dtype.kind not in "fiub":
        raise CommandError(f"{name}: expected numbers, found an array of {array.dtype}")
    if array.ndim < 2 or array.shape[0] < FEWEST_ROWS or array[0].size == 0:
        raise CommandError(f"{name}: expected [N, ...] with N >= {FEWEST_ROWS} rows, found {list(array.shape)}")
    bad = np.argwhere(~np.isfinite(array)) if array.dtype.kind == "f" else np.empty((0,))
    if len(bad):
        raise CommandError(f"{name}: {len(bad)} values are NaN or infinite, the first at {bad[0].tolist()}")
    with np.errstate(over="ignore"):
        x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bool(x.isfinite().all()):
        raise CommandError(f"{name}: values as large as {np.abs(array).max():g} do not fit in float32")
    return x / 255 if array.dtype == np.uint8 else x
