"""Memory that a launch writes to: tensors given away, kept for the next call once nobody else holds them, and scratch.

    empty = allocator(x_hat, x_hat.dtype)    # once a layout
    dx_hat = empty(x_hat)                    # like torch.empty_like: anybody's to keep, to change and to drop
    address = scratch(100)                   # of 100 float64 numbers, good for one launch

The system maps fresh memory at its first touch, page by page, filled with zeros: at 10 MB that takes as long as a
kernel that streams through it, at 50 MB longer. A training loop drops its gradients after each step and asks for as
many again, so the last `MOST_KEPT` large buffers, of at most `KEPT_BYTES` together, are remembered. One is given out
again when nobody else can see its storage: no tensor, view or Python object, no other process, no weak reference. To
find it takes 2 us more than malloc does. At 1.6 MB, a step that took 121 to 126 us in several processes with them took
123 to 161 with malloc's memory: by its place in a page, and a fault now and then.
"""

import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...private import find
from ...rows import in_order

LARGE = 1 << 20  # bytes; smaller ones come from memory that malloc has at hand
MOST_KEPT = 16
KEPT_BYTES = 256 << 20
PAGE = mmap.PAGESIZE
# Where in a page buffers begin. A load waits for a store just before it to the same place of another page, which cost
# backward of the sampling a tenth to a third; large tensors of torch's begin 64 bytes into a page.
START = PAGE // 2 + 64
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_HUGEPAGE") else None


class Layout(NamedTuple):
    """What a buffer is given out as."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    room: int  # bytes, of a page more than it takes

    def on(self, storage: Any) -> Tensor:
        """A tensor there, good for autograd wherever it was made."""
        offset = (START - storage.data_ptr()) % PAGE // self.dtype.itemsize
        with torch.inference_mode(False):
            return torch.empty(0, dtype=self.dtype, device="cpu").set_(storage, offset, self.shape, self.stride)


class _Buffers:
    """Tensors with their storages and layouts, the last used at the end; aliases of them are given out."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Any, Layout]] = []
        self.lock = threading.Lock()

    def empty(self, layout: Layout) -> Tensor:
        """``torch.empty_strided`` on the CPU, in memory touched before if there is any."""
        kept = self.kept
        with self.lock:  # up to where the alias holds the storage
            for i in range(len(kept) - 1, -1, -1):  # the last used may still be in a cache
                t, storage, given = kept[i]
                if storage.nbytes() == layout.room and holders(storage) == ALONE:
                    if seen_outside(storage):
                        del kept[i]
                        continue
                    if given is not layout:
                        t = layout.on(storage)
                    elif i == len(kept) - 1:
                        return t.data
                    del kept[i]
                    break
            else:
                storage = _huge_pages(torch.UntypedStorage(layout.room))
                forget_when_watched(storage)
                t = layout.on(storage)
            kept.append((t, storage, layout))
            while len(kept) > MOST_KEPT or sum(storage.nbytes() for _, storage, _ in kept) > KEPT_BYTES:
                del kept[0]  # whoever holds it as well is not concerned
            return t.data


def forget_when_watched(storage: Any) -> None:
    """Forget a storage when a `StorageWeakRef` of it is made, so that it ends with its last tensor."""
    myself = weakref.ref(storage)

    def watched() -> Any:
        storage = myself()
        with _buffers.lock:
            _buffers.kept[:] = [entry for entry in _buffers.kept if entry[1] is not storage]
        return weak_ref(storage)

    storage._weak_ref = watched


def seen_outside(storage: Any) -> bool:
    """Whether a former owner shared it with other processes, pinned it, or, by `Tensor.numpy`, fixed its size."""
    return storage.is_shared() or not storage.resizable() or (torch.cuda.is_initialized() and storage.is_pinned())


def holders(storage: Any) -> tuple[int, int]:
    """How many tensors and storages refer to that memory, and how many names and objects to this storage."""
    return use_count(storage._cdata), sys.getrefcount(storage)


def _alone() -> tuple[int, int]:
    """What `holders` says in `_Buffers.empty` where nobody else holds any."""
    storage = torch.UntypedStorage(1 + PAGE)
    layout = Layout((1,), (1,), torch.uint8, 1 + PAGE)
    kept = [(layout.on(storage), storage, layout)]
    t, storage, given = kept[0]  # as many names as there, and all of them in use
    return holders(storage) if given is layout and t.numel() else (0, 0)


use_count, weak_ref = find("torch._C._storage_Use_Count"), find("torch.UntypedStorage._weak_ref")
CAN_TELL = None not in (use_count, weak_ref, find("torch.UntypedStorage._cdata"))
ALONE = _alone() if CAN_TELL else None
_buffers = _Buffers()


def _forked() -> None:
    global _buffers
    _buffers = _Buffers()  # the parent's lock may be held by a thread that the child has not


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def forget() -> None:
    """Give back to the system what is kept for the next calls."""
    with _buffers.lock:
        _buffers.kept.clear()


def _huge_pages(storage: Any) -> Any:
    """That storage, on huge pages where the system has them: fewer to map."""
    start = -(-storage.data_ptr() // PAGE) * PAGE
    size = storage.data_ptr() + storage.nbytes() - start
    if _madvise is not None and size > 0:
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)  # advice only
    return storage


def allocator(
    like: Tensor, dtype: torch.dtype, order: tuple[int, ...] | None = None, draws: int | None = None
) -> Callable[[Tensor], Tensor]:
    """A function that makes for each tensor of that layout one of its shape, dense, with nothing in it.

    ``order`` is the `memory_order` of its event dims, in which it is laid out; ``draws`` are K leading blocks of rows.
    """
    shape = in_order(like, order).shape if draws is None else (draws, *like.shape)
    dense = in_order(torch.empty(shape, dtype=dtype, device="meta"), order, back=True)
    if dense.nbytes >= LARGE and CAN_TELL:
        layout = Layout(dense.shape, dense.stride(), dtype, dense.nbytes + PAGE)
        return lambda t: _buffers.empty(layout)
    if like.dtype == dtype and like.stride() == dense.stride() and draws is None:
        return torch.empty_like  # by far the fastest
    return lambda t: torch.empty_strided(dense.shape, dense.stride(), dtype=dtype, device="cpu")


class _Scratch(threading.local):
    """Room for the partial sums of one launch at a time in each thread, kept from call to call."""

    def __init__(self) -> None:
        self.make(4096)

    def make(self, length: int) -> None:
        """Room for as many."""
        self.room = torch.empty(length, dtype=torch.float64, device="cpu")
        self.length, self.address = length, self.room.data_ptr()


_scratch = _Scratch()


def scratch(length: int) -> int:
    """The address of ``length`` float64 numbers that the next launch in this thread may overwrite."""
    if _scratch.length < length:
        _scratch.make(length)
    return _scratch.address


def address(array: Any) -> int:
    """The address of the first element of a NumPy array; by its buffer, in 1 us, where it has one to write to."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # it is read-only, not contiguous, or empty
        return array.__array_interface__["data"][0]
