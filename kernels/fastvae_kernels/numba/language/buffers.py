"""Memory that a launch writes to: result tensors, whose buffers are reused once nobody else holds them, and scratch.

    empty = allocator(x_hat, x_hat.dtype)    # once for each layout
    dx_hat = empty(x_hat)                    # like torch.empty_like: the caller may keep, modify or drop it
    address = scratch(100)                   # address of 100 float64 numbers, valid for one launch

The system maps fresh memory at its first touch, page by page, filled with zeros: at 10 MB that takes as long as a
kernel that streams through it, at 50 MB longer. A training loop drops its gradients after each step and allocates the
same sizes again. The last `MOST_KEPT` large buffers, of at most `KEPT_BYTES` together, are therefore kept. A buffer is
reused when nobody else can see its storage: no tensor, view or Python object, no other process, no weak reference.
Finding one takes 2 us longer than malloc. At 1.6 MB, a step took 121 to 126 us in several processes with kept buffers,
and 123 to 161 with memory from malloc, because of its offset within a page and occasional page faults.
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

LARGE = 1 << 20  # bytes; smaller buffers come from memory that malloc holds ready
MOST_KEPT = 16
KEPT_BYTES = 256 << 20
PAGE = mmap.PAGESIZE
# The offset of a buffer within a page. A load waits for a recent store to the same offset of another page (aliasing),
# which made the backward pass of sampling a tenth to a third slower. torch's large tensors begin 64 bytes into a page.
START = PAGE // 2 + 64
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_HUGEPAGE") else None


class Layout(NamedTuple):
    """The layout of the tensors made from a buffer."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    room: int  # bytes of the storage: the size of the tensor plus one page

    def on(self, storage: Any) -> Tensor:
        """Return a tensor of this layout on a storage, usable by autograd even if it is made in inference mode."""
        offset = (START - storage.data_ptr()) % PAGE // self.dtype.itemsize
        with torch.inference_mode(False):
            return torch.empty(0, dtype=self.dtype, device="cpu").set_(storage, offset, self.shape, self.stride)


class _Buffers:
    """Kept tensors with their storages and layouts, the most recently used last. Callers receive aliases of them."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Any, Layout]] = []
        self.lock = threading.Lock()

    def empty(self, layout: Layout) -> Tensor:
        """Return an uninitialized CPU tensor, in a kept buffer if one is free."""
        kept = self.kept
        with self.lock:  # held until the alias refers to the storage
            for i in range(len(kept) - 1, -1, -1):  # the most recently used one may still be in a cache
                t, storage, given = kept[i]
                if storage.nbytes() == layout.room and reference_counts(storage) == UNSHARED:
                    if is_exposed(storage):
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
                forget_when_observed(storage)
                t = layout.on(storage)
            kept.append((t, storage, layout))
            while len(kept) > MOST_KEPT or sum(storage.nbytes() for _, storage, _ in kept) > KEPT_BYTES:
                del kept[0]  # the storage lives on if others refer to it
            return t.data


def forget_when_observed(storage: Any) -> None:
    """Stop keeping a storage once a `StorageWeakRef` of it is made, so that it is freed with its last tensor."""
    myself = weakref.ref(storage)

    def observed() -> Any:
        storage = myself()
        with _buffers.lock:
            _buffers.kept[:] = [entry for entry in _buffers.kept if entry[1] is not storage]
        return weak_ref(storage)

    storage._weak_ref = observed


def is_exposed(storage: Any) -> bool:
    """Whether a former owner shared it with other processes, pinned it, or fixed its size by calling `Tensor.numpy`."""
    return storage.is_shared() or not storage.resizable() or (torch.cuda.is_initialized() and storage.is_pinned())


def reference_counts(storage: Any) -> tuple[int, int]:
    """Return the number of tensors and storages that refer to the memory, and of Python references to the storage."""
    return use_count(storage._cdata), sys.getrefcount(storage)


def _unshared_counts() -> tuple[int, int]:
    """Return the value of `reference_counts` in `_Buffers.empty` for a storage that nobody else holds."""
    storage = torch.UntypedStorage(1 + PAGE)
    layout = Layout((1,), (1,), torch.uint8, 1 + PAGE)
    kept = [(layout.on(storage), storage, layout)]
    t, storage, given = kept[0]  # as many references as there, all of them in use
    return reference_counts(storage) if given is layout and t.numel() else (0, 0)


use_count, weak_ref = find("torch._C._storage_Use_Count"), find("torch.UntypedStorage._weak_ref")
CAN_TELL = None not in (use_count, weak_ref, find("torch.UntypedStorage._cdata"))
UNSHARED = _unshared_counts() if CAN_TELL else None
_buffers = _Buffers()


def _forked() -> None:
    global _buffers
    _buffers = _Buffers()  # the parent's lock may be held by a thread that does not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def forget() -> None:
    """Return all kept buffers to the system."""
    with _buffers.lock:
        _buffers.kept.clear()


def _huge_pages(storage: Any) -> Any:
    """Request huge pages for a storage, where the system supports them: fewer pages to map. Return the storage."""
    start = -(-storage.data_ptr() // PAGE) * PAGE
    size = storage.data_ptr() + storage.nbytes() - start
    if _madvise is not None and size > 0:
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)  # advice only
    return storage


def allocator(
    like: Tensor, dtype: torch.dtype, order: tuple[int, ...] | None = None, draws: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function that allocates, for a tensor of the given layout, a dense uninitialized tensor of its shape.

    ``order`` is the `memory_order` of the event dims, which the result has as well. ``draws``, if not None, is the
    number K of leading blocks of rows of the result.
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
    """Scratch memory of each thread, kept from call to call, for the partial sums of one launch at a time."""

    def __init__(self) -> None:
        self.make(4096)

    def make(self, length: int) -> None:
        """Allocate ``length`` numbers."""
        self.room = torch.empty(length, dtype=torch.float64, device="cpu")
        self.length, self.address = length, self.room.data_ptr()


_scratch = _Scratch()


def scratch(length: int) -> int:
    """Return the address of ``length`` float64 numbers that the next launch in this thread may overwrite."""
    if _scratch.length < length:
        _scratch.make(length)
    return _scratch.address


def address(array: Any) -> int:
    """Return the address of a NumPy array's first element: from its buffer, in 1 us, if the buffer is writable."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # the array is read-only, not contiguous, or empty
        return array.__array_interface__["data"][0]
