"""What runs where neither a fork nor the handler of a signal may meet it: imports of compilers, and compilations.

A handler may raise anywhere, as Python's own does at Ctrl-C. Numba cannot be imported again where a part of it was, and
an exception in one of llvmlite's callbacks is dropped. A child that is forked meanwhile would wait for ever for locks
of a thread that it has not.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """In one thread at a time; forks wait, and so do the handlers of signals, which run at the end."""
    with _lock:
        if threading.current_thread() is not threading.main_thread():  # no handler runs here
            yield
            return
        came: list[int] = []
        handlers = {n: handler for n in signal.valid_signals() if callable(handler := signal.getsignal(n))}
        try:
            for number in handlers:
                signal.signal(number, lambda number, frame: came.append(number))
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for signum in dict.fromkeys(came):
                signal.raise_signal(signum)


def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
