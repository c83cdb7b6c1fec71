"""Protection of compiler imports and compilations against forks and signal handlers.

A signal handler may raise anywhere, as Python's own does at Ctrl-C. Numba cannot be imported again after a partial
import, and an exception in one of llvmlite's callbacks is lost. A child forked in the meantime would wait forever for
locks held by a thread that it does not have.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run the body in one thread at a time. Forks wait until it ends; signal handlers are deferred until then."""
    with _lock:
        if threading.current_thread() is not threading.main_thread():  # signal handlers run in the main thread only
            yield
            return
        received: list[int] = []
        handlers = {n: handler for n in signal.valid_signals() if callable(handler := signal.getsignal(n))}
        try:
            for number in handlers:
                signal.signal(number, lambda number, frame: received.append(number))
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for signum in dict.fromkeys(received):
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
