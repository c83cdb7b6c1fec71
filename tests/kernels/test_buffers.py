"""The memory that launches write to: contiguous, reused only when nothing else refers to it, limited in size."""

import ctypes
import mmap
import multiprocessing
import threading
import weakref
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import fastvae
from fastvae_kernels.numba.language import buffers
from fastvae_kernels.numba.language.buffers import allocator, scratch
from fastvae_kernels.rows import in_order, memory_order

rand = torch.rand
LIKE = {
    "contiguous": rand(300, 64),
    "transposed": rand(64, 300).T,
    "channels_last": rand(40, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": rand(1, 64).expand(300, 64),
    "no rows": rand(0, 64),
}
HOLDERS = {
    "the tensor": lambda t: t,
    "a view": lambda t: t[3:],
    "a detached alias": lambda t: t.detach(),
    "its storage": lambda t: t.untyped_storage(),
    "another tensor on its storage": lambda t: torch.empty(0).set_(t.untyped_storage()),
}


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """An empty pool in which all tensors of 1000 bytes and more count as large."""
    monkeypatch.setattr(buffers, "LARGE", 1000)
    buffers.forget()
    yield buffers._buffers
    buffers.forget()


def fresh(*shape):
    """A tensor from the pool, and its address."""
    t = allocator(rand(*shape), torch.float32)(rand(*shape))
    return t, t.data_ptr()


@pytest.mark.parametrize("t", LIKE.values(), ids=LIKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [10**9, 1], ids=["small", "large"])
def test_what_is_allocated_is_dense_in_the_given_order(t, dtype, large, monkeypatch):
    monkeypatch.setattr(buffers, "LARGE", large)
    order = memory_order(t, t.dim() - 1)
    empty = allocator(t, dtype, order)
    a = empty(t).fill_(1)
    empty(t).fill_(2)
    assert a.shape == t.shape
    assert a.dtype == dtype
    assert in_order(a, order).is_contiguous()
    assert (a == 1).all()
    drawn = allocator(t, dtype, draws=5)(t)
    assert drawn.shape == (5, *t.shape)
    assert drawn.dtype == dtype
    assert drawn.is_contiguous()


def test_a_buffer_that_was_dropped_is_given_out_again():
    t, address = fresh(100, 8)
    u, other = fresh(100, 8)
    assert other != address
    del t
    assert fresh(100, 9)[1] != address  # a different size
    again, same = fresh(8, 100)
    assert same == address
    assert again.shape == (8, 100)
    del u


def test_a_buffer_begins_half_a_page_from_where_large_tensors_begin():
    made = [fresh(100, size) for size in (8, 9, 100, 1111)]
    assert all((address - 64) % mmap.PAGESIZE == mmap.PAGESIZE // 2 for _, address in made)
    for i, (t, _) in enumerate(made):
        t.fill_(i)
    assert all((t == i).all() for i, (t, _) in enumerate(made))


def test_of_several_the_last_used_is_given_out():
    held = [fresh(300, 64) for _ in range(3)]
    last = held[-1][1]  # may still be in a cache
    held.clear()
    for _ in range(2):
        assert fresh(300, 64)[1] == last


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_buffer_that_anybody_can_see_is_not_given_out(hold):
    t, address = fresh(100, 8)
    holder = hold(t)
    del t
    others = [fresh(100, 8) for _ in range(5)]
    assert address not in [a for _, a in others]
    del holder
    assert fresh(100, 8)[1] == address


MARKS = {
    "shared": lambda t: t.share_memory_(),
    "sent to a process": lambda t: ForkingPickler.dumps(t),
    "given to NumPy": lambda t: t.numpy(),
    "watched": lambda t: StorageWeakRef(t.untyped_storage()),
}


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
def test_a_buffer_that_its_owner_has_marked_is_never_given_out_again(mark):
    t, _ = fresh(100, 8)
    storage = weakref.ref(t.untyped_storage())
    mark(t)
    assert t.fill_(1).sum() == 800
    del t
    t, _ = fresh(100, 8)
    assert storage() is None
    t.resize_(200, 16)


def test_a_weak_reference_to_a_storage_ends_with_its_last_tensor():
    t, _ = fresh(100, 8)
    view, watching = t[3:], StorageWeakRef(t.untyped_storage())
    del t
    assert not watching.expired()
    del view
    assert watching.expired()


def sent(queue, results):
    """Sums of the tensors received, computed after all have arrived."""
    results.put([float(t.sum()) for t in [queue.get() for _ in range(3)]])


def test_what_another_process_was_sent_stays_as_it_was():
    context = torch.multiprocessing.get_context("spawn")
    queue, results = context.SimpleQueue(), context.Queue()  # the former sends immediately
    process = context.Process(target=sent, args=(queue, results), daemon=True)
    process.start()
    for i in range(3):
        t, _ = fresh(100, 8)
        queue.put(t.fill_(i))
        del t
    assert results.get(timeout=300) == [0, 800, 1600]
    process.join(300)


def test_a_buffer_whose_storage_was_resized_is_not_given_out():
    empty, like = allocator(rand(100, 8), torch.float32), rand(100, 8)
    t = empty(like)
    t.untyped_storage().resize_(0)  # as FSDP does to free memory
    del t
    assert empty(like).untyped_storage().nbytes() > 0


def test_a_buffer_made_in_inference_mode_is_good_for_autograd_afterwards():
    empty, like = allocator(rand(100, 8), torch.float32), rand(100, 8)
    with torch.inference_mode():
        address = empty(like).data_ptr()
    t = empty(like)
    assert t.data_ptr() == address
    assert not t.is_inference()
    t.requires_grad_().square().sum().backward()


def test_what_is_done_to_a_buffer_is_not_seen_on_the_next_one_there():
    empty, like = allocator(rand(100, 8), torch.float32), rand(100, 8)
    t = empty(like).fill_(1).requires_grad_()
    address = t.data_ptr()
    del t
    t = empty(like)
    assert t.data_ptr() == address
    assert (t._version, t.requires_grad) == (0, False)
    t.resize_(10, 8)
    del t
    assert empty(like).shape == (100, 8)


def test_small_ones_are_not_kept(pool):
    fresh(10, 8)
    assert pool.kept == []


def test_how_many_are_kept_and_how_large(pool, monkeypatch):
    made = [fresh(100 + i, 8)[0] for i in range(buffers.MOST_KEPT + 3)]
    assert len(pool.kept) == buffers.MOST_KEPT
    assert all(t.fill_(i).eq(i).all() for i, t in enumerate(made))  # tensors that the pool has dropped remain valid
    most = 10_000 + 2 * mmap.PAGESIZE  # two of 3200 and 6400 bytes, each with an extra page
    monkeypatch.setattr(buffers, "KEPT_BYTES", most)
    fresh(100, 8)
    assert sum(storage.nbytes() for _, storage, _ in pool.kept) <= most
    _, address = fresh(1000, 8)  # larger than the limit of the pool
    assert pool.kept == []
    t, address = fresh(100, 8)
    del t
    fresh(200, 8)  # the most recently used one is kept longest
    fresh(100, 8)
    fresh(150, 8)
    assert fresh(100, 8)[1] == address


def test_threads_never_share_a_buffer():
    wrong = []

    def work(number):
        for _ in range(300):
            t, _ = fresh(100, 8)
            t.fill_(number)
            if not t.eq(number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_where_torch_does_not_say_who_holds_a_storage_nothing_is_kept(pool, monkeypatch):
    monkeypatch.setattr(buffers, "CAN_TELL", False)
    assert fresh(100, 8)[0].is_contiguous()
    assert pool.kept == []


def gradients(mu, x, x_hat):
    x_hat.grad = None
    (-fastvae.elbo(x, x_hat, mu, mu, backend="numba")).backward()
    return x_hat.grad


def test_gradients_that_are_kept_keep_their_values_and_others_their_place():
    x, mu = rand(64, 33), rand(64, 2)
    first = gradients(mu, x, rand(64, 33, requires_grad=True))
    copy = first.clone()
    second = gradients(mu, x + 1, rand(64, 33, requires_grad=True))
    assert second.data_ptr() != first.data_ptr()
    assert torch.equal(first, copy)
    address, x_hat = first.data_ptr(), rand(64, 33, requires_grad=True)
    del first
    assert gradients(mu, x, x_hat).data_ptr() == address
    (-fastvae.elbo(x, x_hat, mu, mu, backend="numba")).backward()  # accumulates into the existing gradient
    torch.testing.assert_close(x_hat.grad, 2 * (x_hat - x).detach() / 64)


def in_child(connection):
    x, x_hat, mu = torch.ones(64, 33), torch.zeros(64, 33, requires_grad=True), torch.zeros(64, 2)
    connection.send(float(gradients(mu, x, x_hat).sum()))


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "another thread has the lock"])
def test_a_forked_child_has_its_own(busy, pool):
    x, x_hat, mu = torch.ones(64, 33), torch.zeros(64, 33, requires_grad=True), torch.zeros(64, 2)
    before = gradients(mu, x, x_hat)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=in_child, args=(there,))
    if busy:
        pool.lock.acquire()
    try:
        child.start()
    finally:
        if busy:
            pool.lock.release()
    assert here.poll(60)
    assert here.recv() == pytest.approx(-33)
    child.join()
    assert float(before.sum()) == pytest.approx(-33)


def test_advice_on_huge_pages_is_given_for_new_buffers_from_a_page_on(monkeypatch):
    monkeypatch.setattr(buffers, "LARGE", 10**6)
    advised = []
    monkeypatch.setattr(buffers, "_madvise", lambda start, size, advice: advised.append((start.value, size.value)))
    fresh(4, 100)
    assert advised == []
    made, address = fresh(300, 4096)
    storage = made.untyped_storage()
    ((start, size),) = advised
    assert start % mmap.PAGESIZE == 0
    assert 0 <= start - storage.data_ptr() < mmap.PAGESIZE
    assert start + size == storage.data_ptr() + storage.nbytes()
    del made, storage
    assert fresh(300, 4096)[1] == address
    assert len(advised) == 1
    monkeypatch.setattr(buffers, "_madvise", None)
    assert fresh(301, 4096)[0].shape == (301, 4096)


def test_each_thread_has_a_scratch_of_its_own_that_grows():
    addresses, here = [], scratch(10)
    assert scratch(10) == here
    thread = threading.Thread(target=lambda: addresses.append(scratch(10)))
    thread.start()
    thread.join()
    assert addresses[0] != here
    n = 10**5
    ctypes.memset(scratch(n), 0, 8 * n)
    assert scratch(n) == scratch(1)
