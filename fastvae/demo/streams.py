"""stdin, stdout and stderr as a shell hands them over: closed, full, or a pipe that nobody reads."""

import io
import os
import sys
from typing import Any

from .storage import CommandError, reason


def open_streams() -> bool:
    """Put the null device where the caller has closed a stream, lest a file of ours gets its number.

    False if that is stdout: what was to be printed is lost then. Characters that stdout does not have are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return True
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is not None:
        return True
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    return False


def silence(stream: Any) -> None:
    """Point a stream that cannot be written at the null device: what it still holds would fail again at exit."""
    try:
        number = stream.fileno()
    except (OSError, ValueError, io.UnsupportedOperation):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def put(text: str) -> None:
    """Print to stdout now, not at exit, where an error would have no handler."""
    try:
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
    except BrokenPipeError:
        silence(sys.stdout)
        raise
    except OSError as error:
        silence(sys.stdout)
        raise CommandError(f"cannot write to stdout: {reason(error)}") from error


def say(line: str) -> None:
    """A line on stderr, if it can be written."""
    print(line, file=Unfailing(sys.stderr), flush=True)


class Unfailing:
    """stderr for what need not be read: where it cannot be written, that is no reason to end."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write, or fall silent."""
        try:
            self.stream.write(text)
        except OSError:
            silence(self.stream)

    def flush(self) -> None:
        """Flush, or fall silent."""
        try:
            self.stream.flush()
        except OSError:
            silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream has."""
        return getattr(self.stream, name)
