"""stdin, stdout and stderr that may be closed, full, or a pipe that is not read."""

import io
import os
import sys
from typing import Any

from .storage import CommandError, error_text


def open_streams() -> bool:
    """Open the null device for closed streams, so that no file gets their descriptors; False if stdout was closed.

    Characters that stdout cannot encode are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return True
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - open until the process ends
    if sys.stdout is not None:
        return True
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    return False


def redirect_to_null(stream: Any) -> None:
    """Redirect a stream that cannot be written to the null device, or flushing its buffer would fail again at exit."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, io.UnsupportedOperation):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def write_stdout(text: str) -> None:
    """Print to stdout and flush, since an error at exit could not be handled."""
    try:
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
    except BrokenPipeError:
        redirect_to_null(sys.stdout)
        raise
    except OSError as error:
        redirect_to_null(sys.stdout)
        raise CommandError(f"cannot write to stdout: {error_text(error)}") from error


def write_stderr(line: str) -> None:
    """Print a line to stderr, if it can be written."""
    print(line, file=IgnoreWriteErrors(sys.stderr), flush=True)


class IgnoreWriteErrors:
    """A stream, such as stderr, whose write errors are ignored."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write; after an error, redirect the stream to the null device."""
        try:
            self.stream.write(text)
        except OSError:
            redirect_to_null(self.stream)

    def flush(self) -> None:
        """Flush; after an error, redirect the stream to the null device."""
        try:
            self.stream.flush()
        except OSError:
            redirect_to_null(self.stream)

    def __getattr__(self, name: str) -> Any:
        """All other attributes of the stream."""
        return getattr(self.stream, name)
