"""Files of a run: each is written beside its place and then renamed, so what was there stays whole until the new is."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = "checkpoint.pt"
FORMAT = 1


class CommandError(Exception):
    """A request that can't be carried out: one line for the user, no traceback."""


def make_folder(path: Path) -> None:
    """Create the folder, and find out now, not after the training, that it can be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CommandError(f"--out {path}: there is a file where the folder should be") from error
    except OSError as error:
        raise CommandError(f"--out {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise CommandError(f"--out {path}: the folder cannot be written to")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path in the same folder, then rename: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, one trailing newline."""
    write_whole(path, lambda p: p.write_text(json.dumps(value, indent=1) + "\n"))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain Python values only, so that ``torch.load(path, weights_only=True)`` reads it."""
    write_whole(path, lambda p: torch.save({"format": FORMAT, **state}, p))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote; nothing in the file is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path} is not a fastvae checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CommandError(f"{path} is not a fastvae checkpoint of format {FORMAT}")
    return state
