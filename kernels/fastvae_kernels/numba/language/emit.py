"""Code generation for a given shape: loops that keep as many sums as fit the registers, emitted one by one in Python.

    sums = Registers(builder, keys)            # a vector of zeros for each key
    with loop(builder, T) as (t, _):           # t = 0, LANES_REGISTER, ... below T
        sums.add(key, load(builder, array, t), b)          # sum += a b
    add_totals(builder, [(sums.get(key), array, i), ...])  # array[i] += the sum of the lanes

A vector is one register of float64. Pointers point to float64, and offsets count elements.
"""

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .math import _fma as fma
from .vector import LANES_REGISTER, Vector, llvm_type, shuffle, splat

WIDE = LANES_REGISTER == 8  # AVX-512, which also has twice as many registers
VECTOR = Vector(types.float64, LANES_REGISTER)


def pointer(context: Any, builder: Any, array: Any, value: Any) -> Any:
    """Return a pointer to the first element of an array."""
    return context.make_array(array)(context, builder, value).data


def loop(builder: Any, T: Any, step: int = LANES_REGISTER) -> Any:
    """Return a context manager for a loop over t = 0, step, ... below T."""
    return cgutils.for_range_slice(builder, ir.Constant(T.type, 0), T, ir.Constant(T.type, step), T.type)


def vector_at(builder: Any, base: Any, at: Any) -> Any:
    """Return a pointer to the vector of elements that begins at offset ``at``."""
    return builder.bitcast(builder.gep(base, [at]), llvm_type(VECTOR).as_pointer())


def load(builder: Any, base: Any, at: Any) -> Any:
    """Load the vector of elements that begins at offset ``at``."""
    return builder.load(vector_at(builder, base, at), align=8)


def broadcast(builder: Any, base: Any, at: Any) -> Any:
    """Load one element into every lane."""
    return splat(builder, builder.load(builder.gep(base, [at])), VECTOR)


class Registers:
    """Vectors, by key, that a loop updates."""

    def __init__(self, builder: Any, keys: Iterable[Any], first: Callable[[Any], Any] | None = None) -> None:
        self.builder, self.slots = builder, {}
        zero = ir.Constant(llvm_type(VECTOR), None)
        for key in keys:
            with builder.goto_entry_block():  # becomes a register when optimized
                self.slots[key] = builder.alloca(llvm_type(VECTOR))
            self.set(key, first(key) if first else zero)

    def get(self, key: Any) -> Any:
        """Return the current value."""
        return self.builder.load(self.slots[key])

    def set(self, key: Any, value: Any) -> None:
        """Replace the value."""
        self.builder.store(value, self.slots[key])

    def add(self, key: Any, a: Any, b: Any = None) -> None:
        """Add a, or a b, to the value."""
        self.set(key, self.builder.fadd(self.get(key), a) if b is None else fma(self.builder, a, b, self.get(key)))


def halves(builder: Any, x: Any, y: Any, part: int) -> list[Any]:
    """Split groups of 2 ``part`` lanes of x and y: return the first halves, then the second; those of x before y's."""
    n = x.type.count
    return [
        shuffle(
            builder, x, y, [g + k + side for side in (0, n) for g in range(0, n, 2 * part) for k in range(h, h + part)]
        )
        for h in (0, part)
    ]


def in_lanes(values: list[Any], join: Callable[[Any, Any, int], Any]) -> Any:
    """Reduce values, at most as many as there are lanes, to one lane each, in as many steps as a single one takes.

    ``join`` adds the halves of the lanes of two values, see `halves`. Missing values are replaced by the last one.
    """
    values, part = (values + values[-1:] * LANES_REGISTER)[:LANES_REGISTER], LANES_REGISTER // 2
    while part:
        values, part = [join(x, y, part) for x, y in zip(values[::2], values[1::2], strict=True)], part // 2
    return values[0]


def totals(builder: Any, values: list[Any]) -> Any:
    """Return the lane sums of vectors, one vector for each lane of the result."""
    return in_lanes(values, lambda x, y, part: builder.fadd(*halves(builder, x, y, part)))


def add_totals(builder: Any, entries: list[tuple[Any, Any, Any]]) -> None:
    """Add the lane sum of each vector to an element of an array; entries are ``(vector, array, element)``."""
    for first in range(0, len(entries), LANES_REGISTER):
        group = entries[first : first + LANES_REGISTER]
        sums = totals(builder, [value for value, *_ in group])
        for k, (_, array, at) in enumerate(group):
            place = builder.gep(array, [at])
            builder.store(builder.fadd(builder.load(place), builder.extract_element(sums, ir.IntType(32)(k))), place)
