"""How kernels use threads: units of work, handed out chunk by chunk to the caller and the other threads of its team.

The team is torch's own OpenMP one, through the library that torch has loaded: its threads are awake from the matrix
products before and after, so that a call shared among them costs 3 us (50 where they sleep) and no second set of
threads competes with them for the cores. Where there is no such library, sleeping Python threads stand in, at 70 us a
call; for forked children see `openmp`.

    me = worker(block)               # in a kernel, first of all: a number of one's own, the same in each call
    start, stop = take(block, me)    # the next chunk of units, an empty one when all are given out
    if finished(block, stop - start): ...     # true once: for whoever did the last, when all results are written

Each thread begins at a share of its own, as torch's threads do, and helps the others when that is done: what it reads
and writes again in the next call is then mostly in its own cache. Handed out in one row, chunks changed hands from call
to call: at 512 x 784 the log-likelihood took 37 to 70 us, in each process something else, and takes 35 to 42.
Still, which thread does a unit varies, so a kernel writes each unit's results to a place of the unit's own, and the
last to finish adds them up in index order.
"""

import ctypes
import os
import queue
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...openmp import openmp
from .jit import HEADER, Kernel, loop_jit, math_jit, outlined

# Nanoseconds on one thread, as the launcher estimates them.
SERIAL_BELOW = 20_000
LEAST_CHUNK = 2_000
# Words of a block's header.
ARRIVED, DONE, UNITS, CHUNK, THREADS, NUMBER_OF, TAKEN = range(7)
MOST_SHARES = struct.calcsize(HEADER) // 8 - TAKEN  # counts of chunks; more threads than that have some in common
CHUNKS_A_THREAD = 8  # more leave a shorter wait for the last; each costs two atomic additions


def run(kernel: Kernel, args: Sequence[Any], units: int, work: float) -> None:
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
        kernel.call(kernel.pack(0, 0, units, units, 1, 0, *args))
        return
    chunk = max(1, units // (threads * CHUNKS_A_THREAD), int(units * LEAST_CHUNK / work))
    if _team is not None:
        _team(kernel.address, kernel.pack(0, 0, units, chunk, threads, _team_number, *args), threads, 0)
    else:
        _pool.run(kernel, kernel.pack(0, 0, units, chunk, threads, 0, *args), threads)


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
        pointer = builder.gep(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), [args[1]])
        return builder.load_atomic(pointer, "monotonic", 8)

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def _call(typingctx, function):
    """What the C function of no arguments at an address says, an int."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.FunctionType(ir.IntType(32), []).as_pointer())
        return builder.sext(builder.call(pointer, []), ir.IntType(64))

    return types.intp(types.intp), codegen


@math_jit
def worker(block):
    """A number of one's own among those who work at a call, below their number; to be asked for once."""
    number_of = _word(block, NUMBER_OF)
    return _call(number_of) if number_of else _count(block, ARRIVED, 1)


@loop_jit
def take(block, me):
    """The next chunk of units, ``(start, stop)``: of one's own share, then of the others'; then an empty one."""
    outlined()
    units, chunk, shares = _word(block, UNITS), _word(block, CHUNK), min(_word(block, THREADS), MOST_SHARES)
    chunks = (units + chunk - 1) // chunk
    for i in range(shares):
        share = (me + i) % shares
        first, end = share * chunks // shares, (share + 1) * chunks // shares
        if first + _word(block, TAKEN + share) < end:  # to look is cheap; what is added to goes to and fro
            at = first + _count(block, TAKEN + share, 1)
            if at < end:
                return at * chunk, min((at + 1) * chunk, units)
    return units, units


@math_jit
def finished(block, n):
    """Whether these n units were the last of all to be done; what the others wrote is then there to read."""
    return _count(block, DONE, n) + n == _word(block, UNITS)


@math_jit
def last_of(counter, n):
    """True for the n-th to come to the counter at an address, which is then 0 again; what the others wrote is there."""
    if _count(counter, 0, 1) + 1 < n:
        return False
    _count(counter, 0, -n)
    return True


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


_pool = _Pool()
_team: Any = None
_team_number = 0


def _begin() -> None:
    """In a new process: it has none of its parent's threads, and perhaps a lock that nobody will release."""
    global _pool, _team, _team_number
    _pool = _Pool()
    library = openmp()
    _team = library and library.GOMP_parallel
    _team_number = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p).value or 0 if library else 0


_begin()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)
