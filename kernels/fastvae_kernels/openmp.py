"""Access to torch's OpenMP thread team, which the kernels share, and its handling across a fork.

A forked child has a single thread. If it used the team of the thread that forked, it would wait forever for threads
that do not exist; this affects torch operations (a large ``exp`` is enough) as well as kernels. Once fastvae has been
imported, the team is therefore released before each fork. The next parallel call forms a new team, in 0.1 ms, in the
parent and in the child.

torch has a second thread pool. In a child, the first operation in a new thread replaces the parent's pool, and two such
operations at once may fail with "Invalid thread pool!": 29 of 120 times with joblib's threads inside its processes. The
child therefore runs one operation in one thread before there are others.
"""

import ctypes
import os
import threading
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from .private import find

PAUSE_HARD = 2  # omp_pause_hard
_released = False  # whether the team was released for the fork in progress
_lost = False  # whether this is a forked child whose team was not released


@cache
def _library() -> Any:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(find("torch._C.__file__", ""))  # symbols are searched in all libraries torch has loaded
        library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint
        library.GOMP_parallel.restype = None
        return library
    return None


def openmp() -> Any:
    """Return the OpenMP library that torch has loaded, or None if there is none or if a call on its team would hang."""
    return None if _lost else _library()


def _before_fork() -> None:
    global _released
    pause = getattr(openmp(), "omp_pause_resource_all", None)
    _released = pause is not None and pause(PAUSE_HARD) == 0


def _after_fork_in_parent() -> None:
    global _released
    _released = False


def _after_fork_in_child() -> None:
    global _released, _lost
    _released, _lost = False, not _released  # a server that forks in C may run only this handler
    with suppress(RuntimeError):  # no more threads can be started
        first = threading.Thread(target=torch.get_num_threads)
        first.start()
        first.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
