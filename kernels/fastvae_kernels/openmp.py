"""torch's OpenMP team, for kernels that share it, and what becomes of it at a fork.

A forked child has one thread. A call on the team of the thread that forked, be it of a kernel or of torch (a large
``exp`` is enough), would wait in it for ever for the others. So, from `import fastvae` on, the team is given up before
each fork, and formed anew, in 0.1 ms, by the next call that wants one, in the parent and in the child.

torch has a second pool of threads. It replaces that of the parent at the first operation of a child's next thread, and
two such at once may end in "Invalid thread pool!": 29 of 120 times under joblib's threads within its processes. So one
thread goes first, before there are others.
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
_given_up = False  # the team, for the fork that goes on
_lost = False  # the team: this is a forked child, and it was not given up


@cache
def _library() -> Any:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(find("torch._C.__file__", ""))  # looks through all that torch has loaded
        library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint
        library.GOMP_parallel.restype = None
        return library
    return None


def openmp() -> Any:
    """The library of that team, with its C functions, or None, also where a call on the team would hang."""
    return None if _lost else _library()


def _before_fork() -> None:
    global _given_up
    pause = getattr(openmp(), "omp_pause_resource_all", None)
    _given_up = pause is not None and pause(PAUSE_HARD) == 0


def _after_fork_in_parent() -> None:
    global _given_up
    _given_up = False


def _after_fork_in_child() -> None:
    global _given_up, _lost
    _given_up, _lost = False, not _given_up  # a server that forks in C may call this alone
    with suppress(RuntimeError):  # at the limit of threads
        first = threading.Thread(target=torch.get_num_threads)
        first.start()
        first.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
