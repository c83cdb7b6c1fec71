"""How kernels use threads: units of work, handed out chunk by chunk to the caller and the other threads of its team.

The team is torch's own OpenMP one, through the library that torch has loaded: its threads are awake from the matrix
products before and after, so that a call shared among them costs 3 us (50 where they sleep) and no second set of
threads competes with them for the cores. Where torch has no such library, and in a forked child, where the first launch
on a team of the parent's would hang, sleeping Python threads stand in, at 70 us a call.

    start, stop = take(block)        # in a kernel: the next chunk of units, an empty one when all are given out
    if finished(block, stop - start): ...     # true once: for whoever did the last, when all results are written

Which thread does a unit varies from call to call, so a kernel writes each unit's results to a place of the unit's own,
and the last to finish adds them up in index order.
"""

import ctypes
import os
import queue
import threading
from contextlib import suppress
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._jit import HEADER, Kernel, math_jit

# Nanoseconds on one thread, as the launcher estimates them.
SERIAL_BELOW = 20_000
LEAST_CHUNK = 5_000
FIRST_FIELD = int(HEADER[:-1])  # the words of a block before it
CHUNKS_A_THREAD = 8  # more leave a shorter wait for the last; each costs two atomic additions


def run(kernel: Kernel, args: tuple[Any, ...], units: int, work: float) -> None:
    """Call ``kernel`` on the fields ``args`` for all its units, and return when all are done.

    Little work is done by the calling thread alone, more by ``torch.get_num_threads()`` threads. Any thread may call,
    several at once, after a fork too.

    Parameters
    ----------
    kernel
        A function that takes its units by `take` and `finished`.
    args
        The numbers that it unpacks; what they are addresses of must live until this returns.
    units
        How many units there are, at least one.
    work
        Nanoseconds that all units take on one thread, estimated: a factor of two off does no harm.
    """
    # The block is a new bytes object that nobody else has seen: the kernel may count in it.
    if work < SERIAL_BELOW or units < 2 or (threads := min(torch.get_num_threads(), units)) < 2:
        kernel.call(kernel.pack(0, 0, units, units, *args))
        return
    chunk = max(1, units // (threads * CHUNKS_A_THREAD), int(units * LEAST_CHUNK / work))
    block = kernel.pack(0, 0, units, chunk, *args)
    if _team is not None:
        _team(kernel.address, block, threads, 0)
    else:
        _pool.run(kernel, block, threads)


@intrinsic
def _count(typingctx, block, i, n):
    """Add n to word i of a block, in one step for all threads, and give what was there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), [args[1]])
        return builder.atomic_rmw("add", pointer, args[2], "acq_rel")

    return types.intp(types.intp, types.intp, types.intp), codegen


@intrinsic
def _word(typingctx, block, i):
    """Word i of a block."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), [args[1]]))

    return types.intp(types.intp, types.intp), codegen


@math_jit
def take(block):
    """The next chunk of units, ``(start, stop)``; an empty one when all are given out."""
    units, chunk = _word(block, 2), _word(block, 3)
    start = min(_count(block, 0, chunk), units)
    return start, min(start + chunk, units)


@math_jit
def finished(block, n):
    """Whether these n units were the last of all to be done; what the others wrote is then there to read."""
    return _count(block, 1, n) + n == _word(block, 2)


@math_jit
def worker(block):
    """A number of one's own among those who work at a call, from 0 on; the first field of the block must be a 0."""
    return _count(block, FIRST_FIELD, 1)


@math_jit
def last_of(counter, n):
    """True for the n-th to come to the counter at an address, which is then 0 again; what the others wrote is there."""
    if _count(counter, 0, 1) + 1 < n:
        return False
    _count(counter, 0, -n)
    return True


def _openmp() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the library that torch runs on, or None."""
    with suppress(OSError, AttributeError):
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # looks through all that torch has loaded
        parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint), None
        return parallel
    return None


class _Job:
    """One call on the pool. The caller waits for the helpers that have begun, not for those that still sleep."""

    def __init__(self, kernel: Kernel, block: bytes) -> None:
        self.kernel, self.block = kernel, block
        self.working, self.over = 0, False
        self.lock = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()

    def help(self) -> None:
        """Work at it, if it is not over."""
        with self.lock:
            if self.over:
                return
            self.working += 1
        self.kernel.call(self.block)
        with self.lock:
            self.working -= 1
            if self.over and self.working == 0:
                self.done.release()

    def finish(self) -> None:
        """Work at it to the end."""
        self.kernel.call(self.block)
        with self.lock:
            self.over = True
            if self.working == 0:
                return
        self.done.acquire()


class _Pool:
    """Helper threads, asleep on one queue. They are made when first asked for, and do not keep Python from exiting."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def run(self, kernel: Kernel, block: bytes, threads: int) -> None:
        """Share a call with as many helpers as there are, up to ``threads - 1``."""
        job = _Job(kernel, block)
        for _ in range(self.grow(threads - 1)):
            self.jobs.put(job)
        job.finish()

    def grow(self, helpers: int) -> int:
        """Have that many helpers, or as many as the system grants; say how many."""
        if self.size < helpers:
            with self.lock, suppress(RuntimeError):  # at the limit of threads, or Python is about to exit
                while self.size < helpers:
                    threading.Thread(target=_help, args=(self.jobs,), name="fastvae-helper", daemon=True).start()
                    self.size += 1
        return min(self.size, helpers)


def _help(jobs: "queue.SimpleQueue[_Job]") -> None:
    while True:
        jobs.get().help()


def _forked() -> None:
    global _pool, _team
    _team = None  # its threads are the parent's
    _pool = _Pool()  # a child has none of its parent's threads, and perhaps a lock that nobody will release


_team = _openmp()
_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
