"""The threads of the Numba kernels: the same bits however the work is cut, from any thread, in any process.

What forks or exits does so in a Python of its own: a deadlock is then a failure after a minute, and the warning that
Python gives about forking with threads stays out of this process.
"""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from fastvae_kernels.numba import _threads
from fastvae_kernels.numba._threads import run

MUCH = 10 * _threads.SERIAL_BELOW
LITTLE = _threads.SERIAL_BELOW - 1


@numba.njit(nogil=True)
def kernel(x, out, start, stop):
    for i in range(start, stop):
        out[i] = np.sin(x[i]) * x[i] + i


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ranges(units, work=MUCH, threads=2, meet=False):
    """The ranges that a kernel is called with, and on how many threads; so many wait for each other if they `meet`."""
    torch.set_num_threads(threads)
    seen, idents, barrier = [], set(), threading.Barrier(threads)

    def record(start, stop):
        seen.append((start, stop))
        if meet and threading.get_ident() not in idents:
            idents.add(threading.get_ident())
            barrier.wait(20)
        idents.add(threading.get_ident())

    run(record, (), units, work)
    return sorted(seen), len(idents)


def in_python(code, timeout=60):
    """Run the code in a Python of its own, where ``kernel``, ``run`` and the rest of this file are known."""
    code = (
        "import os, threading, time\nfrom test_numba_threads import *\nfrom test_numba_threads import _threads\n"
        f"torch.set_num_threads(2)\n{code}"
    )
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, str(Path(_threads.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(units=5000, seed=0):
    """One shared call against the formula; it is called in other threads and processes too."""
    x = np.random.default_rng(seed).normal(size=units)
    out = np.full(units, np.nan)
    run(kernel, (x, out), units, MUCH)
    serial = np.empty(units)
    kernel(x, serial, 0, units)
    np.testing.assert_array_equal(out, serial)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("most_chunks", [1, 2, 7, 64, 10**6])
def test_same_bits_however_the_work_is_cut(threads, most_chunks, monkeypatch):
    monkeypatch.setattr(_threads, "MOST_CHUNKS", most_chunks)
    monkeypatch.setattr(_threads, "LEAST_CHUNK", 0)
    torch.set_num_threads(threads)
    for units in (1, 2, 3, 63, 64, 65, 1000):
        check(units)


@pytest.mark.parametrize("units", [2, 3, 63, 64, 65, 127, 1000, 10**9])
@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("work", [_threads.SERIAL_BELOW, MUCH, 1e12, float("inf")])
def test_ranges_make_up_the_whole_in_at_most_64_chunks(units, threads, work):
    seen, used = ranges(units, work, threads)
    assert seen[0][0] == 0
    assert seen[-1][1] == units
    assert all(a < b for a, b in seen)
    assert [b for _, b in seen[:-1]] == [a for a, _ in seen[1:]]
    assert len(seen) <= _threads.MOST_CHUNKS
    assert used <= threads


@pytest.mark.parametrize(
    ("units", "work", "threads"), [(0, MUCH, 2), (1, MUCH, 2), (100, LITTLE, 2), (100, 0, 2), (100, MUCH, 1)]
)
def test_what_is_not_worth_sharing_is_one_call_in_the_calling_thread(units, work, threads):
    calls = []
    torch.set_num_threads(threads)
    run(lambda *given: calls.append((threading.get_ident(), *given)), ("argument",), units, work)
    assert calls == [(threading.get_ident(), "argument", 0, units)]


def test_as_many_threads_as_torch_is_told_also_when_that_changes():
    for threads in (2, 4, 1, 3, 8, 2):
        assert ranges(1000, 100 * MUCH, threads, meet=True)[1] == threads


def test_the_caller_begins_at_once_and_waits_for_no_helper_that_has_not_begun():
    torch.set_num_threads(2)
    check()
    size, release = _threads._pool.size, threading.Event()
    held = threading.Semaphore(0)

    class Busy(_threads._Job):
        def __init__(self):
            pass

        def work(self):
            held.release()
            release.wait(20)

    for _ in range(size):
        _threads._pool.jobs.put(Busy())
    for _ in range(size):
        assert held.acquire(timeout=20)
    try:
        assert not release.is_set()
        _, used = ranges(1000)
        check()
        assert used == 1
        x, out = np.ones(5000), np.ones(5000)
        held_array = weakref.ref(out)
        run(kernel, (x, out), 5000, MUCH)
        del out
        assert held_array() is None, "the job in the queue holds the array"
    finally:
        release.set()


def test_the_pool_holds_no_array_after_the_call():
    torch.set_num_threads(4)
    x, out = np.ones(5000), np.ones(5000)
    held = weakref.ref(out)
    run(kernel, (x, out), 5000, MUCH)
    del out
    deadline = time.monotonic() + 10  # a helper may be between its last chunk and sleep
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert held() is None


@pytest.mark.parametrize("where", ["caller", "helper"])
def test_an_exception_reaches_the_caller_and_ends_the_call(where):
    torch.set_num_threads(2)
    caller, calls = threading.get_ident(), []

    def fail(both, start, stop):
        calls.append(start)
        both.wait(20)
        if (threading.get_ident() == caller) == (where == "caller"):
            raise ZeroDivisionError(where)
        time.sleep(0.05)

    for _ in range(5):
        calls.clear()
        with pytest.raises(ZeroDivisionError, match=where):
            run(fail, (threading.Barrier(2),), 1000, 100 * MUCH)
        assert len(calls) == 2, "went on after the failure"
        check()


def test_an_exception_leaves_no_cycle_that_holds_the_arrays():
    torch.set_num_threads(2)

    def fail(array, start, stop):
        raise ZeroDivisionError

    array = np.ones(10)
    held = weakref.ref(array)
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            run(fail, (array,), 1000, MUCH)
        del array
        deadline = time.monotonic() + 10
        while held() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert held() is None
    finally:
        gc.enable()


@numba.njit(nogil=True)
def raising(x, start, stop):
    for i in range(start, stop):
        if x[i] > 0:
            raise ValueError("positive")


def test_an_exception_of_a_compiled_kernel():
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="positive"):
        run(raising, (np.ones(1000),), 1000, MUCH)


def test_a_kernel_may_call_run_itself():
    torch.set_num_threads(3)
    out = np.zeros((40, 500))
    x = np.linspace(0, 1, 500)

    def outer(start, stop):
        for i in range(start, stop):
            run(kernel, (x, out[i]), 500, MUCH)

    run(outer, (), 40, MUCH)
    expected = np.empty(500)
    kernel(x, expected, 0, 500)
    assert (out == expected).all()


def hammer(callers=8, calls=100):
    """Many Python threads at once, with pools of changing size; gives how many calls came out right."""
    right, errors = [0] * callers, []

    def call(number):
        try:
            torch.set_num_threads(2 + number % 3)
            for k in range(calls):
                check(units=64 + 97 * number + k, seed=k)
                right[number] += 1
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(callers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert not errors
    return sum(right)


def test_eight_python_threads_at_once(monkeypatch):
    monkeypatch.setattr(_threads, "_pool", _threads._Pool())
    assert hammer() == 8 * 100
    assert _threads._pool.size == 3, "they share the helpers of the one that wants most"


def test_a_forked_child_makes_a_pool_of_its_own():
    code = """
check()
assert _threads._pool.size == 1
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert _threads._pool.size == 0
        for seed in range(20):
            check(seed=seed)
        assert _threads._pool.size == 1
        grandchild = os.fork()
        if grandchild == 0:
            check()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
        os._exit(7)
    check()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done")
"""
    assert in_python(code) == "done\n"


def test_a_child_forked_while_other_threads_are_in_a_call():
    code = """
check()  # compiled: a fork while a thread compiles leaves numba's own lock taken in the child
stop = threading.Event()
def busy():
    while not stop.is_set():
        check()
workers = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
[worker.start() for worker in workers]
for _ in range(20):
    child = os.fork()
    if child == 0:
        x, out = np.ones(500), np.zeros(500)
        for _ in range(5):
            run(kernel, (x, out), 500, MUCH)
        os._exit(7 if (out[1:] > out[:-1]).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop.set()
[worker.join() for worker in workers]
print("done")
"""
    assert in_python(code) == "done\n"


class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        before = torch.get_num_threads()
        check(seed=index)
        torch.set_num_threads(2)  # a worker has one; somebody may want more
        check(seed=index)
        return index, before, os.getpid()


def test_in_the_workers_of_a_data_loader():
    code = """
check()
loader = torch.utils.data.DataLoader(Dataset(), num_workers=2, multiprocessing_context="fork", timeout=30)
seen = []
for _ in range(2):
    for index, threads, pid in loader:
        check()
        assert threads == 1 or index >= 2, threads
        assert pid != os.getpid()
        seen.append(int(index))
print(sorted(seen) == sorted([*range(8)] * 2))
"""
    assert in_python(code) == "True\n"


def test_an_idle_pool_does_not_keep_python_from_exiting():
    code = """
import atexit
torch.set_num_threads(4)
check()
atexit.register(lambda: (torch.set_num_threads(8), check(), print(time.time())))
"""
    ended = float(in_python(code))
    assert time.time() - ended < 5


def test_it_wants_no_more_threads_than_the_system_grants(monkeypatch):
    monkeypatch.setattr(_threads, "_pool", _threads._Pool())

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert ranges(1000)[1] == 1
    check()


def test_sleeping_helpers_use_no_time():
    torch.set_num_threads(4)
    check()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
