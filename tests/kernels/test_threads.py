"""The threads of the Numba kernels: the same bits however the work is split, from any thread, in any process.

Tests that fork or exit run in a separate Python process: a deadlock then fails after a minute, and Python's warning
about forking with threads does not reach this process. More than 400 lines: those processes import this file, for its
kernels and checks.
"""

import functools
import os
import struct
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from fastvae_kernels.numba.language import threads as _threads
from fastvae_kernels.numba.language.jit import HEADER, kernel
from fastvae_kernels.numba.language.layout import Layout
from fastvae_kernels.numba.language.memory import F64, array_at
from fastvae_kernels.numba.language.threads import _fetch_add, finished, run, take, worker

from ..children import in_python

MUCH = 10 * _threads.SERIAL_BELOW
LITTLE = _threads.SERIAL_BELOW - 1

pthread_self = types.ExternalFunction("pthread_self", types.intp())
usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@functools.cache
def make_squares():
    """x^2 of each unit, in its place, and their sum."""

    @kernel(Layout("x_address out_address sum_address n"))
    def squares(f):
        x_address, out_address, sum_address, n = f.x_address, f.out_address, f.sum_address, f.n
        x, out = array_at(x_address, n, F64), array_at(out_address, n, F64)
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for i in range(start, stop):
                out[i] = x[i] * x[i]
            if finished(f.header, stop - start):
                sum_ = 0.0
                for i in range(n):
                    sum_ += out[i]
                array_at(sum_address, 1, F64)[0] = sum_
            start, stop = take(f.header, me)

    return squares


@functools.cache
def make_record():
    """Count how often each unit runs, on which thread, and how often the end is reached; units wait for `meet`."""

    @kernel(Layout("times who numbers ends here meet"))
    def record(f):
        times, who, numbers, ends, here, meet = f.times, f.who, f.numbers, f.ends, f.here, f.meet
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for i in range(start, stop):
                _fetch_add(times, i, 1)
                _fetch_add(who, i, pthread_self())
                _fetch_add(numbers, i, me)
                _fetch_add(here, 0, 1)
                patience = 10_000
                while _fetch_add(here, 0, 0) < meet and patience > 0:
                    usleep(1000)
                    patience -= 1
            if finished(f.header, stop - start):
                _fetch_add(ends, 0, 1)
            start, stop = take(f.header, me)

    return record


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def helpers(monkeypatch):
    """Share work only with sleeping Python threads, none of which exists yet."""
    monkeypatch.setattr(_threads, "_team", None)
    monkeypatch.setattr(_threads, "_pool", _threads._Pool())


@pytest.fixture(params=["openmp", "helpers"])
def each_way(request):
    """Share work with torch's OpenMP team, and with the sleeping threads."""
    if request.param == "helpers":
        request.getfixturevalue("helpers")
    elif _threads._team is None:
        pytest.skip("torch runs on no OpenMP library here")
    return request.param


@pytest.fixture
def shared(monkeypatch):
    """Record shared work as (threads, units, chunk), without doing it."""
    calls = []

    def team(address, block, threads, flags):
        arrived, done, units, chunk, shares, _ = struct.unpack_from(HEADER, block)
        assert arrived == done == 0
        assert shares == threads
        calls.append((threads, units, chunk))

    monkeypatch.setattr(_threads, "_team", team)
    monkeypatch.setattr(_threads, "_pool", None)
    return calls


def check(units=5000, seed=0):
    """Compare one shared call with NumPy; also called in other threads and processes."""
    x = np.random.default_rng(seed).normal(size=units)
    out, sum_ = np.full(units, np.nan), np.full(1, np.nan)
    run(make_squares(), (x.ctypes.data, out.ctypes.data, sum_.ctypes.data, units), units, MUCH)
    np.testing.assert_array_equal(out, x * x)
    assert sum_[0] == np.cumsum(x * x)[-1], "not added up in index order"


def record(units, work=MUCH, meet=0):
    """How often each unit runs, how often the end is reached, and the threads that did any work."""
    times, ends, who, _ = recorded(units, meet, lambda args: run(make_record(), args, units, work))
    return times, ends, set(who.tolist())


def recorded(units, meet, launch):
    """How often each unit runs, how often the end is reached, and the thread of each unit and its number."""
    times, who, numbers = np.zeros((3, units), np.int64)
    ends, here = np.zeros((2, 1), np.int64)
    launch((*[a.ctypes.data for a in (times, who, numbers, ends, here)], meet))
    return times, int(ends[0]), who, numbers


def in_both_ways(code):
    """Run code in a separate Python process that can import this file: with torch's team, then only with helpers."""
    return in_python(
        "import os, threading, time\nfrom tests.kernels.test_threads import *\n"
        "from tests.kernels.test_threads import _threads\n"
        f"torch.set_num_threads(2)\n{code}\n"
        f"_threads._team, _threads._pool = None, _threads._Pool()\n{code}"
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("chunks", "least"), [(1, 0), (2, 0), (8, 5_000), (64, 0), (10**6, 0), (10**6, 1e5), (8, 1e12)]
)
def test_same_bits_however_the_work_is_cut(each_way, threads, chunks, least, monkeypatch):
    monkeypatch.setattr(_threads, "CHUNKS_A_THREAD", chunks)
    monkeypatch.setattr(_threads, "LEAST_CHUNK", least)
    torch.set_num_threads(threads)
    for units in (1, 2, 3, 63, 64, 65, 1000):
        check(units)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, _threads.MOST_SHARES + 3])
@pytest.mark.parametrize("work", [0, MUCH, 1e12])
def test_each_unit_is_done_once_and_the_end_is_seen_once(each_way, threads, work):
    torch.set_num_threads(threads)
    for units in (1, 2, 3, 63, 64, 65, 127, 1000, 10_001):
        times, ends, who = record(units, work)
        assert (times == 1).all()
        assert ends == 1
        assert len(who) <= threads


@pytest.mark.parametrize("units", [2, 3, 63, 64, 65, 127, 1000, 10**9])
@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("work", [_threads.SERIAL_BELOW, MUCH, 1e12, float("inf")])
def test_chunks_are_some_for_each_thread_and_worth_a_hand_over(units, threads, work, shared):
    torch.set_num_threads(threads)
    run(make_record(), (0,) * 6, units, work)
    ((used, handed_out, chunk),) = shared
    assert used == min(threads, units)
    assert handed_out == units
    assert chunk >= 1
    assert -(-units // chunk) < 2 * used * _threads.CHUNKS_A_THREAD
    assert (chunk + 1) * work / units > _threads.LEAST_CHUNK
    if work == float("inf"):
        assert -(-units // chunk) >= min(units, used * _threads.CHUNKS_A_THREAD)


@pytest.mark.parametrize(
    ("units", "work", "threads"), [(1, MUCH, 2), (100, LITTLE, 2), (100, 0, 2), (100, MUCH, 1), (1, 1e12, 8)]
)
def test_what_is_not_worth_sharing_is_done_by_the_calling_thread(units, work, threads, shared):
    torch.set_num_threads(threads)
    times, ends, who = record(units, work)
    assert shared == []
    assert (times == 1).all()
    assert (ends, who) == (1, {threading.get_ident()})


@given(units=st.integers(1, 300), chunk=st.integers(1, 310), threads=st.integers(1, 80))
def test_whoever_comes_alone_does_all_shares(units, chunk, threads):
    kernel = make_record()
    times, ends, _, numbers = recorded(
        units, 0, lambda args: kernel.call(kernel.pack(0, 0, units, chunk, threads, 0, *args))
    )
    assert (times == 1).all()
    assert ends == 1
    assert (numbers == 0).all()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_each_thread_begins_at_a_share_of_its_own_and_has_it_in_each_call(each_way, threads):
    torch.set_num_threads(threads)
    chunks = threads * _threads.CHUNKS_A_THREAD
    of_number: dict[int, int] = {}
    units = 2 * chunks  # two per chunk; all threads wait at their first unit
    for _ in range(5):
        _, _, who, numbers = recorded(units, threads, lambda args: run(make_record(), args, units, 1e12))
        for number in range(threads):
            first = number * chunks // threads * 2
            assert numbers[first] == number
            assert numbers[first + 1] == number
            if each_way == "openmp":
                assert of_number.setdefault(number, who[first]) == who[first]
    assert each_way == "helpers" or of_number[0] == threading.get_ident()


def test_as_many_threads_as_torch_is_told_also_when_that_changes(each_way):
    for threads in (2, 4, 1, 3, 8, 2):
        torch.set_num_threads(threads)
        times, ends, who = record(100, 100 * MUCH, meet=threads)
        assert len(who) == threads
        assert threading.get_ident() in who
        assert (times == 1).all()
        assert ends == 1


def test_the_caller_begins_at_once_and_waits_for_no_helper_that_has_not_begun(helpers):
    torch.set_num_threads(2)
    check()
    size, release, held = _threads._pool.size, threading.Event(), threading.Semaphore(0)

    class Busy(_threads._Job):
        def __init__(self):
            pass

        def help(self):
            held.release()
            release.wait(300)

    for _ in range(size):
        _threads._pool.jobs.put(Busy())
    for _ in range(size):
        assert held.acquire(timeout=300)
    try:
        assert record(1000)[2] == {threading.get_ident()}
        check()
        assert not release.is_set()
        assert _threads._pool.jobs.qsize() == 2 * size
    finally:
        release.set()
    check()


def test_a_job_in_the_queue_holds_no_tensors(helpers, monkeypatch):
    torch.set_num_threads(4)
    monkeypatch.setattr(_threads._pool, "grow", lambda requested: requested)  # nobody is there to take it out
    x = torch.ones(5000, dtype=torch.float64)
    held = weakref.ref(x)
    run(make_squares(), (x.data_ptr(), x.data_ptr(), x.data_ptr(), 5000), 5000, MUCH)
    del x
    assert _threads._pool.jobs.qsize() == 3
    assert held() is None


def hammer(callers=8, calls=100):
    """Many Python threads at once, with teams of different sizes; returns the number of correct calls."""
    right, errors = [0] * callers, []

    def call(number):
        try:
            torch.get_num_threads()  # at the first call in a thread, torch adopts the last setting of another thread
            torch.set_num_threads(2 + number % 3)
            for k in range(calls):
                check(units=64 + 97 * number + k, seed=k)
                right[number] += 1
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(callers)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(30)
    assert not errors
    return sum(right)


def test_eight_python_threads_at_once(each_way):
    assert hammer() == 8 * 100
    assert each_way == "openmp" or _threads._pool.size == 3, "they share the helpers of the one that wants most"


def test_a_forked_child_has_a_team_or_helpers_of_its_own():
    code = """
check()
size = 0 if _threads._team else 1
assert _threads._pool.size == size
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert _threads._pool.size == 0
        if size:
            _threads._team = None
        for seed in range(20):
            check(seed=seed)
        assert len(record(100, meet=2)[2]) == 2
        assert _threads._pool.size == size
        grandchild = os.fork()
        if grandchild == 0:
            assert _threads._pool.size == 0
            check()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
        os._exit(7)
    check()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert _threads._pool.size == size
print("done")
"""
    assert in_both_ways(code) == ["done", "done"]


def test_a_child_forked_while_other_threads_are_in_a_call():
    code = """
check()
stop = threading.Event()
def busy():
    while not stop.is_set():
        check()
workers = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
[worker.start() for worker in workers]
for _ in range(20):
    child = os.fork()
    if child == 0:
        for seed in range(5):
            check(500, seed)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop.set()
[worker.join() for worker in workers]
print("done")
"""
    assert in_both_ways(code) == ["done", "done"]


class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        before = torch.get_num_threads()
        check(seed=index)
        torch.set_num_threads(2)  # a worker has one by default; users may set more
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
    assert in_both_ways(code) == ["True", "True"]


def test_idle_threads_do_not_keep_python_from_exiting():
    code = """
import atexit
torch.set_num_threads(4)
check()
def at_exit(team=_threads._team):
    _threads._team = team
    torch.set_num_threads(8)
    check()
    print(time.time())
atexit.register(at_exit)
"""
    ended = map(float, in_both_ways(code))
    assert time.time() - min(ended) < 60  # a thread that prevents exiting would wait forever


def test_it_wants_no_more_helpers_than_the_system_grants(helpers, monkeypatch):
    start, left = threading.Thread.start, [1]

    def refuse(self):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    torch.set_num_threads(8)
    check()
    assert len(record(100, meet=2)[2]) == 2
    monkeypatch.setattr(_threads, "_pool", _threads._Pool())  # and now not a single one
    assert record(100)[2] == {threading.get_ident()}


def test_sleeping_helpers_use_no_time(helpers):
    torch.set_num_threads(4)
    check()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
