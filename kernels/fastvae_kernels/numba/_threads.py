"""How kernels use threads: a range of work units, handed out chunk by chunk to the caller and a few sleeping helpers.

Not numba's own threads: its workqueue layer aborts the process when two Python threads call at once, and a forked child
dies at its first OpenMP launch. A ``nogil`` kernel over ranges in Python threads is as fast and has neither fault.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

# Nanoseconds on one thread, as the launcher estimates them. Measured on two cores: a sleeping helper begins 20 us after
# it is called, and the call ends 40 to 70 us later than half the work would, so two threads beat one from 80 (a stream
# through memory) or 120 us on (arithmetic). While others use the second core, nothing is gained at any size.
SERIAL_BELOW = 120_000
LEAST_CHUNK = 25_000  # 10 lost 10 us a call; more leaves one thread waiting longer for the other's last
MOST_CHUNKS = 64


def run(kernel: Callable[..., object], args: tuple[Any, ...], units: int, work: float) -> None:
    """Call ``kernel(*args, start, stop)`` on ranges that make up ``range(units)``, and return when all are done.

    Little work is one call in the calling thread, and so is no unit at all. More is shared with
    ``torch.get_num_threads() - 1`` helpers; how it is cut then varies from call to call, so a kernel writes each unit's
    results to a place of the unit's own. Any thread may call, several at once, after a fork too.

    Parameters
    ----------
    kernel
        A Numba function compiled with ``nogil=True`` whose last two arguments are a range of units. What it raises, the
        caller gets; chunks not yet begun are then left undone.
    args
        The arguments before these two.
    units
        How many units there are.
    work
        Nanoseconds that all units take on one thread, estimated: a factor of two off does no harm.
    """
    if work < SERIAL_BELOW or units < 2 or (threads := torch.get_num_threads()) < 2:
        kernel(*args, 0, units)
        return
    least = max(1, -(-units // MOST_CHUNKS), int(units * LEAST_CHUNK / work))
    job = _Job(kernel, args, units, least, min(threads, -(-units // least)))
    job.work()
    job.done.acquire()
    # Helpers that come late find no chunk left, but the job may lie in the queue until they do: without the arrays.
    job.args = ()
    if job.error is not None:
        try:
            raise job.error
        finally:
            job.error = None  # its traceback leads back to the job: the arrays would wait for the garbage collector


class _Job:
    """One call of `run`. Whoever works at it, the caller or a helper, takes chunk after chunk until none is left."""

    def __init__(self, kernel: Callable[..., object], args: tuple[Any, ...], units: int, least: int, threads: int):
        self.kernel, self.args, self.units, self.least, self.threads = kernel, args, units, least, threads
        self.pool = _pool
        self.asleep = self.pool.grow(threads - 1)  # helpers that may yet be woken
        self.next = 0  # the first unit not handed out
        self.working = 0
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.done = threading.Lock()  # released by the last to stop working: nobody waits for those that never began
        self.done.acquire()

    def take(self) -> tuple[int, int]:
        """Hand out a chunk: ever smaller ones, so that there are few and still all workers end together."""
        with self.lock:
            start = self.next
            self.next = min(self.units, start + max(self.least, (self.units - start) // (2 * self.threads)))
            return start, self.next

    def work(self) -> None:
        """Take chunks until none is left."""
        with self.lock:
            if self.next >= self.units:
                return
            self.working += 1
            wake = min(2, self.asleep)  # each that wakes up wakes two more: waking costs the caller no more than that
            self.asleep -= wake
        for _ in range(wake):
            self.pool.jobs.put(self)
        try:
            while True:
                start, stop = self.take()
                if start == stop:
                    break
                self.kernel(*self.args, start, stop)
        except BaseException as error:
            with self.lock:
                self.next = self.units
                self.error = self.error or error
        with self.lock:
            self.working -= 1
            if self.working == 0:  # the caller works until nothing is left to take, so nobody starts anew
                self.done.release()


class _Pool:
    """Helper threads, asleep on one queue. They are made when first asked for, and do not keep Python from exiting."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def grow(self, helpers: int) -> int:
        """Have that many helpers, or as many as the system grants; say how many."""
        if self.size < helpers:
            with self.lock, contextlib.suppress(RuntimeError):  # at the limit of threads, or Python is about to exit
                while self.size < helpers:
                    threading.Thread(target=_help, args=(self.jobs,), name="fastvae-helper", daemon=True).start()
                    self.size += 1
        return min(self.size, helpers)


def _help(jobs: "queue.SimpleQueue[_Job]") -> None:
    while True:
        jobs.get().work()  # no name for the job: a sleeping helper must not hold its arrays


def _forked() -> None:
    global _pool
    _pool = _Pool()  # a child has none of its parent's threads, and perhaps a lock that nobody will release


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
