"""Code written out for its shape: loops whose sums are as many as the registers hold, made in Python, one by one.

    sums = Registers(builder, keys)            # a vector of zeros each
    with loop(builder, T) as (t, _):           # t = 0, LANES_REGISTER, ... below T
        sums.add(key, load(builder, array, t), b)          # sum += a b
    add_totals(builder, [(sums.get(key), array, i), ...])  # array[i] += the sum of the lanes

A vector is one register of float64; pointers are to float64, places counted in elements.
"""

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .math import _fma as fma
from .vector import LANES_REGISTER, Vector, llvm_type, shuffle, splat

WIDE = LANES_REGISTER == 8  # and twice as many registers
VECTOR = Vector(types.float64, LANES_REGISTER)


def pointer(context: Any, builder: Any, array: Any, value: Any) -> Any:
    """To the first element of an array."""
    return context.make_array(array)(context, builder, value).data


def loop(builder: Any, T: Any, step: int = LANES_REGISTER) -> Any:
    """A loop over t."""
    return cgutils.for_range_slice(builder, ir.Constant(T.type, 0), T, ir.Constant(T.type, step), T.type)


def vector_at(builder: Any, base: Any, at: Any) -> Any:
    """A pointer to a vector of elements."""
    return builder.bitcast(builder.gep(base, [at]), llvm_type(VECTOR).as_pointer())


def load(builder: Any, base: Any, at: Any) -> Any:
    """A vector of elements."""
    return builder.load(vector_at(builder, base, at), align=8)


def everywhere(builder: Any, base: Any, at: Any) -> Any:
    """An element in every lane."""
    return splat(builder, builder.load(builder.gep(base, [at])), VECTOR)


class Registers:
    """Vectors that change while a loop runs."""

    def __init__(self, builder: Any, keys: Iterable[Any], first: Callable[[Any], Any] | None = None) -> None:
        self.builder, self.rooms = builder, {}
        zero = ir.Constant(llvm_type(VECTOR), None)
        for key in keys:
            with builder.goto_entry_block():  # a register, once optimised
                self.rooms[key] = builder.alloca(llvm_type(VECTOR))
            self.set(key, first(key) if first else zero)

    def get(self, key: Any) -> Any:
        """As it is."""
        return self.builder.load(self.rooms[key])

    def set(self, key: Any, value: Any) -> None:
        """To another value."""
        self.builder.store(value, self.rooms[key])

    def add(self, key: Any, a: Any, b: Any = None) -> None:
        """A, or a b, to a sum."""
        self.set(key, self.builder.fadd(self.get(key), a) if b is None else fma(self.builder, a, b, self.get(key)))


def halves(builder: Any, x: Any, y: Any, part: int) -> list[Any]:
    """The first and the second halves of groups of 2 ``part`` lanes of x, then of y."""
    n = x.type.count
    return [
        shuffle(
            builder, x, y, [g + k + side for side in (0, n) for g in range(0, n, 2 * part) for k in range(h, h + part)]
        )
        for h in (0, part)
    ]


def in_lanes(values: list[Any], join: Callable[[Any, Any, int], Any]) -> Any:
    """Many values, at most as many as there are lanes, become one, a lane each, in as many steps as one would take.

    ``join`` adds up the halves of the lanes of two, see `halves`; where values are missing, the last stands in.
    """
    values, part = (values + values[-1:] * LANES_REGISTER)[:LANES_REGISTER], LANES_REGISTER // 2
    while part:
        values, part = [join(x, y, part) for x, y in zip(values[::2], values[1::2], strict=True)], part // 2
    return values[0]


def totals(builder: Any, values: list[Any]) -> Any:
    """The sums of the lanes of vectors, a lane each."""
    return in_lanes(values, lambda x, y, part: builder.fadd(*halves(builder, x, y, part)))


def add_totals(builder: Any, entries: list[tuple[Any, Any, Any]]) -> None:
    """Add the sums of the lanes of vectors to elements of arrays: ``(vector, array, element)``."""
    for first in range(0, len(entries), LANES_REGISTER):
        some = entries[first : first + LANES_REGISTER]
        sums = totals(builder, [value for value, *_ in some])
        for k, (_, array, at) in enumerate(some):
            place = builder.gep(array, [at])
            builder.store(builder.fadd(builder.load(place), builder.extract_element(sums, ir.IntType(32)(k))), place)
