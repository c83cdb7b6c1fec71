"""How the Numba kernels address the rows of a tensor."""

import pytest
import torch

from fastvae_kernels.rows import Rows, in_order, memory_order


def images(*shape):
    return torch.rand(shape).to(memory_format=torch.channels_last)


rand = torch.rand
# tensors [N, ...], and whether their rows can be read in place
ROWS = {
    "contiguous": (rand(3, 4), True),
    "no event dims": (rand(3), True),
    "every other row": (rand(6, 4)[::2], True),
    "left half": (rand(3, 8)[:, :4], True),
    "right half": (rand(3, 8)[:, 4:], True),
    "expanded row": (rand(1, 4).expand(3, 4), True),
    "expanded column": (rand(3, 1).expand(3, 4), False),
    "expanded number": (rand(()).expand(3, 4), False),
    "transposed": (rand(4, 3).T, False),
    "every other column": (rand(3, 8)[:, ::2], False),
    "one row": (rand(1, 4), True),
    "one row, transposed": (rand(4, 1).T, True),
    "one row of many": (rand(4, 3).T[:1], False),
    "one column of many": (rand(3, 5)[:, 2:3], True),
    "dims of size 1": (rand(3, 4, 1, 2).transpose(1, 2), True),
    "images": (rand(2, 3, 4, 5), True),
    "cropped": (rand(2, 3, 4, 5)[..., :3], False),
    "channels_last": (images(4, 3, 4, 5), True),
    "channels_last, every other image": (images(4, 3, 4, 5)[::2], True),
    "channels_last, cropped": (images(4, 3, 4, 5)[..., :3], False),
    "channels_last, one channel": (images(4, 1, 4, 5), True),
    "channels_last, some channels": (images(4, 3, 4, 5)[:, :2], False),
    "no rows": (rand(0, 4), True),
    "empty rows": (rand(3, 0), True),
    "uint8": (torch.arange(12, dtype=torch.uint8).view(3, 4), True),
}
DRAWS = {  # tensors [K, N, ...]
    "contiguous": (rand(2, 3, 4), True),
    "no event dims": (rand(2, 3), True),
    "every other row": (rand(2, 6, 4)[:, ::2], True),
    "the first rows": (rand(2, 6, 4)[:, :3], False),
    "every other draw": (rand(4, 3, 4)[::2], False),
    "transposed": (rand(3, 2, 4).transpose(0, 1), False),
    "expanded draw": (rand(1, 3, 4).expand(2, 3, 4), False),
    "expanded number": (rand(()).expand(2, 3, 4), False),
    "one draw": (rand(1, 3, 8)[..., :4], True),
    "one row": (rand(2, 1, 4), True),
    "one row of many": (rand(2, 6, 4)[:, 3:4], None),  # copied or not: strides of dims of size 1 are arbitrary
    "channels_last": (images(6, 3, 4, 5).view(2, 3, 3, 4, 5), True),
    "no draws": (rand(0, 3, 4), True),
    "no rows": (rand(2, 0, 4), True),
}
LAYOUTS = [
    *[pytest.param(*case, 0, id=name) for name, case in ROWS.items()],
    *[pytest.param(*case, 1, id=f"{name}, draws") for name, case in DRAWS.items()],
]


def order_of(t, draws):
    return memory_order(t, t.dim() - 1 - draws)


@pytest.mark.parametrize(("t", "as_it_is", "draws"), LAYOUTS)
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=["its dtype", "converted"])
def test_rows_are_found_at_their_stride(t, as_it_is, draws, dtype):
    order, dtype = order_of(t, draws), dtype or t.dtype
    rows = Rows(t, dtype, order, bool(draws))
    made = rows.of(t)
    assert as_it_is is None or (made is t) == (as_it_is and dtype == t.dtype)
    expected = in_order(t, order).reshape(t.shape[: 1 + draws].numel(), t.shape[1 + draws :].numel())
    found = made.as_strided(expected.shape, (rows.stride, 1), made.storage_offset())
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_bool_rows_are_taken_as_bytes():
    t = (rand(3, 8) > 0.5)[:, :4]
    rows = Rows(t, torch.uint8)
    assert rows.of(t) is t
    assert rows.stride == 8


def test_memory_order_of_event_dims():
    assert memory_order(rand(2, 3, 4, 5), 3) is None
    assert memory_order(rand(4, 3, 8)[..., :4], 2) is None
    assert memory_order(images(2, 3, 4, 5), 3) == (1, 2, 0)
    assert memory_order(images(6, 3, 4, 5).view(2, 3, 3, 4, 5), 3) == (1, 2, 0)
    assert memory_order(rand(2, 3, 4).transpose(1, 2), 2) == (1, 0)
    order = (2, 0, 1)
    t = rand(7, 3, 4, 5)
    assert in_order(t, order).shape == (7, 5, 3, 4)
    assert torch.equal(in_order(in_order(t, order), order, back=True), t)
