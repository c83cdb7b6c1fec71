"""The data of a run: the digits that ship with scikit-learn, or your own .npy, .npz or .csv file.

Errors in a file name the position: in a .csv file line and column, both from 1; in an array the NumPy index, from 0.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .storage import CommandError, error_text
from .tables import Table

TEST_SHARE = 0.2
MIN_ROWS = 10


@dataclass(frozen=True)
class Units:
    """Mean and scale of each feature, ``[*event]`` in float64: x = mean + scale u, where the model is trained on u."""

    mean: Tensor
    scale: Tensor

    def restore(self, u: Tensor) -> Tensor:
        """Convert standardized rows u to the units of the data, float64 on the CPU."""
        return self.mean + self.scale * u.cpu().double()

    @property
    def log_jacobian(self) -> float:
        """The difference log p(x) - log p(u) = -sum log scale of log densities, in nats."""
        return -float(self.scale.log().sum())


@dataclass(frozen=True)
class Data:
    """Rows x ``[N, *event]`` in float32, with metadata.

    ``names`` are the names of the columns, ``units`` the units before standardization, and ``fingerprint`` identifies
    the data when a run is resumed.
    """

    name: str
    x: Tensor
    labels: np.ndarray | None
    names: list[str] | None
    units: Units | None
    fingerprint: str

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Row indices of the training set and the held-out test set, a function of N and the seed."""
        return split_rows(len(self.x), seed)


def split_rows(N: int, seed: int) -> tuple[Tensor, Tensor]:
    """Row indices of the training set and the held-out test set."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    n_test = max(1, round(TEST_SHARE * N))
    return order[n_test:], order[:n_test]


class Source:
    """An array that was read, with what error messages need: the file name, and the position of each element."""

    def __init__(self, name: str, array: np.ndarray, labels: np.ndarray | None = None, table: Table | None = None):
        self.name, self.array, self.labels, self.table = name, array, labels, table

    def place(self, chosen: np.ndarray) -> str:
        """Position of the first True of a mask: ``line 5, column 2 (weight)`` of a .csv file, or an array index."""
        index = [int(i) for i in np.unravel_index(chosen.argmax(), chosen.shape)]
        return str(index) if self.table is None else self.table.place(*index)


def load_data(path: str | None, likelihood: str, standardize: bool = False, seed: int = 0) -> Data:
    """Read and check the data; ``None`` means the 1,797 digits of 8 x 8 grey pixels, scaled to [0, 1].

    Standardization uses the mean and standard deviation of the training rows, which ``seed`` selects, in float64.
    """
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        source = Source("digits", digits.images / 16.0, digits.target)
    else:
        source = read_array(Path(path))
    x, units = checked_rows(source), None
    if likelihood == "bernoulli" and bool((outside := (x < 0) | (x > 1)).any()):
        raise CommandError(
            f"{source.name}: a Bernoulli likelihood needs values in [0, 1], found [{x.min():g}, {x.max():g}],"
            f" the first of them at {source.place(outside.numpy())}"
        )
    digest = hashlib.sha256(x.numpy().tobytes() + repr(tuple(x.shape)).encode())
    if standardize:
        x, units = standardized(source, split_rows(len(x), seed)[0].numpy())
        digest.update(units.mean.numpy().tobytes() + units.scale.numpy().tobytes())
    names = None if source.table is None else source.table.names
    return Data(source.name, x, source.labels, names, units, digest.hexdigest())


def standardized(source: Source, train_rows: np.ndarray) -> tuple[Tensor, Units]:
    """Standardize each feature to mean 0 and standard deviation 1, in float32; a constant feature has scale 1."""
    x = source.array.astype(np.float64) / (255 if source.array.dtype == np.uint8 else 1)
    train = x[train_rows]
    low, span = train.min(0), np.ptp(train, 0)
    varies = span > 0
    mean = np.where(varies, train.mean(0), low)
    unit = np.where(varies, span, 1.0)  # so that no square underflows
    scale = np.where(varies, unit * np.sqrt((((train - mean) / unit) ** 2).mean(0)), 1.0)
    with np.errstate(over="ignore"):
        u = ((x - mean) / scale).astype(np.float32)
    if not (finite := np.isfinite(u)).all():
        raise CommandError(
            f"{source.name}: standardized, values do not fit in float32, the first at {source.place(~finite)}"
        )
    return torch.from_numpy(u), Units(torch.from_numpy(mean), torch.from_numpy(scale))


def read_array(path: Path) -> Source:
    """Read the array from a file, and labels if an .npz file has an array ``y`` of N numbers or strings."""
    try:
        if path.suffix.lower() == ".csv":
            table = Table(path)
            return Source(path.name, table.array, table=table)
        if path.suffix.lower() not in (".npy", ".npz"):
            raise CommandError(f"--data {path}: expected a .npy, .npz or .csv file")
        with path.open("rb") as file:  # given a path, NumPy would leave the file open after an error
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return Source(path.name, loaded)
            if "x" not in loaded.files and len(loaded.files) != 1:
                raise CommandError(f"--data {path}: expected an array 'x' or a single one, found {loaded.files}")
            name = "x" if "x" in loaded.files else loaded.files[0]
            array, labels = loaded[name], loaded["y"] if "y" in loaded.files else None
            if not isinstance(array, np.ndarray):  # NumPy returns bytes for a member that is not an array
                raise CommandError(f"--data {path}: malformed: its member {name!r} is not an array")
            usable = isinstance(labels, np.ndarray) and labels.shape == array.shape[:1] and labels.dtype.kind in "fiubU"
            return Source(path.name, array, labels if usable else None)
    except CommandError:
        raise
    except FileNotFoundError as error:
        raise CommandError(f"--data {path}: no such file") from error
    except OSError as error:
        raise CommandError(f"--data {path}: {error_text(error)}") from error
    except Exception as error:  # invalid bytes can raise anything in the readers of zip, zlib and NumPy
        raise CommandError(f"--data {path}: malformed: {error_text(error)}") from error


def checked_rows(source: Source) -> Tensor:
    """Check and convert to ``[N, *event]`` in float32; uint8 is scaled to [0, 1], inf and NaN are errors."""
    name, array = source.name, source.array
    if array.dtype.kind not in "fiub":
        raise CommandError(f"{name}: expected numbers, found an array of {array.dtype}")
    if array.ndim < 2 or array.shape[0] < MIN_ROWS or array[0].size == 0:
        raise CommandError(f"{name}: expected [N, ...] with N >= {MIN_ROWS} rows, found {list(array.shape)}")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        count = array.size - np.count_nonzero(finite)
        raise CommandError(f"{name}: {count} values are NaN or infinite, the first at {source.place(~finite)}")
    with np.errstate(over="ignore"):
        x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bool((finite := x.isfinite().numpy()).all()):
        raise CommandError(
            f"{name}: values as large as {np.abs(array).max():g} do not fit in float32,"
            f" the first at {source.place(~finite)}"
        )
    return x / 255 if array.dtype == np.uint8 else x
