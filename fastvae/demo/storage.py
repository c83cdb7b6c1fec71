"""Files of a run. Each is written to a temporary file and renamed, so that an existing file is replaced atomically."""

import csv
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported in functions, so that `fastvae --help` does not import torch and NumPy
    import numpy as np

CHECKPOINT = "checkpoint.pt"
FORMAT = 1


class CommandError(Exception):
    """An error reported to the user as one line, without a traceback."""


def error_text(error: BaseException) -> str:
    """The message of an error in one line; that of the operating system for an OSError."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def make_folder(path: Path) -> None:
    """Create the folder, and check that it is writable before the training starts."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CommandError(f"--out {path}: there is a file where the folder should be") from error
    except OSError as error:
        raise CommandError(f"--out {path}: {error_text(error)}") from error
    if not os.access(path, os.W_OK):
        raise CommandError(f"--out {path}: the folder cannot be written to")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path in the same folder, then rename: readers see the old or the new file."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may be reported only here
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error_text(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with a trailing newline."""
    write_whole(path, lambda p: p.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_array(path: Path, array: "np.ndarray") -> None:
    """Write a .npy file."""
    import numpy as np

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    write_whole(path, write)


def write_table(path: Path, array: "np.ndarray", names: list[str] | None) -> None:
    """Write a .csv file: the column names, if any, and the rows with all digits of their dtype."""
    import numpy as np

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if names is not None:
                csv.writer(file, lineterminator="\n").writerow(names)
            np.savetxt(file, array, delimiter=",", fmt="%.9g" if array.dtype.itemsize <= 4 else "%.17g")

    write_whole(path, write)


def checksum(state: Any) -> str:
    """SHA-256 of the contents of nested dicts, lists, numbers, strings and tensors, independent of the file format."""
    import torch

    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict | list | tuple):
            digest.update(f"{'dict' if isinstance(value, dict) else 'list'} {len(value)}".encode())
            for item in value.items() if isinstance(value, dict) else value:
                add(item)
        else:
            text = repr(value).encode()
            digest.update(b"%d " % len(text) + text)

    add(state)
    return digest.hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain Python values, which ``torch.load(path, weights_only=True)`` can read."""
    import torch

    buffer = io.BytesIO()  # writing to a file, torch.save would raise RuntimeError on a full disk
    torch.save({"format": FORMAT, "checksum": checksum(state), **state}, buffer)
    write_whole(path, lambda p: p.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load the state that `save_checkpoint` wrote, without executing anything in the file."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other file formats
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CommandError(f"{path}: {error_text(error)}") from error
    except Exception as error:  # a file in another format can raise anything in torch's readers
        raise CommandError(f"{path} is not a fastvae checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CommandError(f"{path} is not a fastvae checkpoint of format {FORMAT}")
    if "checksum" not in state:
        raise CommandError(f"{path} was not written by this version of fastvae train")
    content = {name: value for name, value in state.items() if name not in ("format", "checksum")}
    try:
        intact = checksum(content) == state["checksum"]
    except (TypeError, ValueError, RuntimeError):  # kinds of tensors that are never saved here
        intact = False
    if not intact:
        raise CommandError(f"{path} is damaged: its contents do not match its checksum")
    return content
