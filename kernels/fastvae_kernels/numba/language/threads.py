"""Multithreading of kernels: work units, distributed in chunks among the calling thread and the others of its team.

The team is torch's own OpenMP team, used through the library that torch has loaded. Its threads are still awake from
the matrix products before and after, so that a shared call costs 3 us (50 if they sleep), and no second set of threads
competes for the cores. Without such a library, sleeping Python threads are used, at 70 us a call. For forked children
see `openmp`.

    me = worker(block)               # first statement of a kernel: the number of this thread, the same in each call
    start, stop = take(block, me)    # the next chunk of units, empty when all have been taken
    if finished(block, stop - start): ...     # true once, for the thread that completes the last unit

Each thread starts with its own share, as torch's threads do, and then helps the others: what it reads and writes again
in the next call is then mostly in its own cache. With a single shared queue, chunks moved between threads from call to
call: the log-likelihood at 512 x 784 took 37 to 70 us, depending on the process; with shares it takes 35 to 42.
Which thread processes a unit still varies. A kernel therefore writes the results of each unit to a separate place, and
the thread that finishes last adds them in index order.
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

# Nanoseconds on one thread, as estimated by the launcher.
SERIAL_BELOW = 20_000
LEAST_CHUNK = 2_000
# Words of the header of a block.
ARRIVED, DONE, UNITS, CHUNK, THREADS, NUMBER_OF, TAKEN = range(7)
MOST_SHARES = struct.calcsize(HEADER) // 8 - TAKEN  # counters of taken chunks; with more threads, some share a counter
CHUNKS_A_THREAD = 8  # more chunks shorten the wait for the last thread; each costs two atomic additions


def run(kernel: Kernel, args: Sequence[Any], units: int, work: float) -> None:
    """Call ``kernel`` on the fields ``args`` for all its units, and return when all are done.

    Small work runs in the calling thread alone, larger work in ``torch.get_num_threads()`` threads. Any thread may call
    this, several may at once, and it works after a fork.

    Parameters
    ----------
    kernel
        A kernel that processes its units by `take` and `finished`.
    args
        The numbers that it unpacks; memory whose addresses are among them must stay alive until this returns.
    units
        Number of work units, at least one.
    work
        Estimated nanoseconds that all units take on one thread; a factor of two off does no harm.
    """
    # The block is a new bytes object without other references, so the kernel may count in it.
    if work < SERIAL_BELOW or units < 2 or (threads := min(torch.get_num_threads(), units)) < 2:
        kernel.call(kernel.pack(0, 0, units, units, 1, 0, *args))
        return
    chunk = max(1, units // (threads * CHUNKS_A_THREAD), int(units * LEAST_CHUNK / work))
    if _team is not None:
        _team(kernel.address, kernel.pack(0, 0, units, chunk, threads, _team_number, *args), threads, 0)
    else:
        _pool.run(kernel, kernel.pack(0, 0, units, chunk, threads, 0, *args), threads)


@intrinsic
def _fetch_add(typingctx, block, i, n):
    """Atomically add n to word i of a block and return its previous value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), [args[1]])
        return builder.atomic_rmw("add", pointer, args[2], "acq_rel")

    return types.intp(types.intp, types.intp, types.intp), codegen


@intrinsic
def _load(typingctx, block, i):
    """Return word i of a block."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), [args[1]])
        return builder.load_atomic(pointer, "monotonic", 8)

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def _call_int(typingctx, function):
    """Call the C function at an address, without arguments, and return its int."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.FunctionType(ir.IntType(32), []).as_pointer())
        return builder.sext(builder.call(pointer, []), ir.IntType(64))

    return types.intp(types.intp), codegen


@math_jit
def worker(block):
    """Return the number of this thread, unique among the threads of a call and less than their count. Call it once."""
    number_of = _load(block, NUMBER_OF)
    return _call_int(number_of) if number_of else _fetch_add(block, ARRIVED, 1)


@loop_jit
def take(block, me):
    """Return the next chunk of units, ``(start, stop)``: of the own share, then of others; empty if none is left."""
    outlined()
    units, chunk, shares = _load(block, UNITS), _load(block, CHUNK), min(_load(block, THREADS), MOST_SHARES)
    chunks = (units + chunk - 1) // chunk
    for i in range(shares):
        share = (me + i) % shares
        first, end = share * chunks // shares, (share + 1) * chunks // shares
        if first + _load(block, TAKEN + share) < end:  # a load is cheap; an addition moves the cache line
            at = first + _fetch_add(block, TAKEN + share, 1)
            if at < end:
                return at * chunk, min((at + 1) * chunk, units)
    return units, units


@math_jit
def finished(block, n):
    """Return whether these n units were the last to finish; the results of all others are then visible."""
    return _fetch_add(block, DONE, n) + n == _load(block, UNITS)


@math_jit
def is_last(counter, n):
    """Return True for the n-th call on the counter at an address, and reset it; the others' writes are then visible."""
    if _fetch_add(counter, 0, 1) + 1 < n:
        return False
    _fetch_add(counter, 0, -n)
    return True


class _Job:
    """One call on the pool. The caller waits for the helpers that have started, not for those that still sleep."""

    def __init__(self, kernel: Kernel, block: bytes) -> None:
        self.kernel, self.block = kernel, block
        self.working, self.over = 0, False
        self.lock = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()

    def help(self) -> None:
        """Take part in the call, unless it is over."""
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
        """Run the call in the calling thread and wait for the helpers."""
        self.kernel.call(self.block)
        with self.lock:
            self.over = True
            if self.working == 0:
                return
        self.done.acquire()


class _Pool:
    """Helper threads that wait on one queue. They are started on demand, and do not keep Python from exiting."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def run(self, kernel: Kernel, block: bytes, threads: int) -> None:
        """Run a call in this thread and up to ``threads - 1`` helpers."""
        job = _Job(kernel, block)
        for _ in range(self.grow(threads - 1)):
            self.jobs.put(job)
        job.finish()

    def grow(self, helpers: int) -> int:
        """Start helpers until there are ``helpers``, or as many as the system allows; return how many can be used."""
        if self.size < helpers:
            with self.lock, suppress(RuntimeError):  # no more threads can be started, or Python is about to exit
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


def _initialize() -> None:
    """Initialize a process. A forked child has none of its parent's threads, and may have inherited a held lock."""
    global _pool, _team, _team_number
    _pool = _Pool()
    library = openmp()
    _team = library and library.GOMP_parallel
    _team_number = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p).value or 0 if library else 0


_initialize()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_initialize)
