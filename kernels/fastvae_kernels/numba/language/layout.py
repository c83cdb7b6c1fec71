"""What a launch hands to its kernel: numbers with names, in groups, laid out once for the packer and for the kernel.

    ROWS = Layout("x x_code x_row x_problem N D")                  # integers: addresses, sizes, strides, codes
    PASS = Layout("first_tile last_tile tol:float", rows=ROWS)     # and floats; a group is a layout as well

    @kernel(PASS, family=FULL)               # constants of the compiled code
    def mixture_pass(f):                     # f.tol, f.rows.N, f.family: read where they are used
        load(f.rows, ...)                    # a group is handed on as one address

    rows = ROWS.pack(x=..., N=..., ...)      # by name: a missing or a strange one is an error
    run(make_pass(FULL), PASS.pack(first_tile=0, ..., rows=rows), units, work)

A name is an attribute of the block, and its place is known when the kernel is compiled: reading one is an instruction,
and as nothing writes to a block, LLVM reads it once or as often as it likes.
"""

from collections import namedtuple
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import models, register_model

KINDS = {"int": ("q", types.intp), "float": ("d", types.float64)}  # their letters of `struct`, their types
WORD = 8  # bytes of either


class Layout:
    """Names and kinds of the numbers of a block, in their order: first its own, then those of its groups."""

    def __init__(self, own: str, **groups: "Layout") -> None:
        pairs = [(name, kind or "int") for name, _, kind in (word.partition(":") for word in own.split())]
        names = [name for name, _ in pairs] + list(groups)
        if strange := [kind for _, kind in pairs if kind not in KINDS]:
            raise ValueError(f"a kind of number is one of {', '.join(KINDS)}, got {strange[0]}")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"names of a layout must differ, got twice: {', '.join(sorted(twice))}")
        self.members: dict[str, tuple[int, str | Layout]] = {}  # the word that each begins at; its kind, or its layout
        self.own, self.size = len(pairs), 0
        members: list[tuple[str, str | Layout]] = [*pairs, *groups.items()]
        for name, kind in members:
            self.members[name] = self.size, kind
            self.size += kind.size if isinstance(kind, Layout) else 1
        letters = [KINDS[kind][0] for _, kind in pairs]
        self.letters: str = "".join([*letters, *(group.letters for group in groups.values())])
        self._in_order = _in_order(names)

    def pack(self, **numbers: Any) -> tuple[Any, ...]:
        """All numbers in their order, groups given as packed."""
        values = self._in_order(**numbers)
        flat = values[: self.own]
        for group in values[self.own :]:
            flat += group
        return flat

    def places(self, names: str) -> list[int]:
        """Where these numbers and groups begin in a packed block; a number of a group is ``group.name``.

        A launch that changes a few numbers of a block that is packed already writes them there.
        """
        return [self._place(*name.split(".")) for name in names.split()]

    def _place(self, name: str, *rest: str) -> int:
        at, kind = self.members[name]
        return at + kind._place(*rest) if rest and isinstance(kind, Layout) else at


def _in_order(names: list[str]) -> Any:
    return namedtuple("Numbers", names)


class Block(types.Type):
    """The address of numbers that are laid out so, and constants that go with it."""

    def __init__(self, layout: Layout, constants: tuple[tuple[str, int], ...] = (), first: int = 0) -> None:
        self.first = first  # words before it, of the block's header
        self.members = {
            name: (at, Block(kind, constants) if isinstance(kind, Layout) else kind)
            for name, (at, kind) in layout.members.items()
        }
        self.constants = dict(constants)
        if clash := self.constants.keys() & self.members.keys():
            raise ValueError(f"names of a layout and constants must differ, got twice: {', '.join(sorted(clash))}")
        shown = [f"{name}:{kind}" for name, (_, kind) in self.members.items()]
        super().__init__(name=f"Block({first}, {' '.join(shown)}, {constants})")


@register_model(Block)
class BlockModel(models.OpaqueModel):
    """In LLVM it is a pointer."""


@infer_getattr
class BlockTemplate(AttributeTemplate):
    """Types of its members; ``header`` is the address of the block itself, of a kernel's own argument."""

    key = Block

    def generic_resolve(self, block: Block, name: str) -> Any:
        """None for a name that it has not, which Numba says then."""
        if name in block.constants:
            return types.literal(block.constants[name])
        if name == "header":
            return types.intp
        kind = block.members[name][1] if name in block.members else None
        return kind if isinstance(kind, Block) or kind is None else KINDS[kind][1]


@lower_getattr_generic(Block)
def read_member(context: Any, builder: Any, block: Block, pointer: Any, name: str) -> Any:
    """A constant, an address, or a number from memory that nobody writes to."""
    if name in block.constants:
        return context.get_constant(types.intp, block.constants[name])
    if name == "header":
        return builder.ptrtoint(pointer, ir.IntType(64))
    at, kind = block.members[name]
    address = builder.gep(pointer, [ir.IntType(64)(WORD * (block.first + at))])
    if isinstance(kind, Block):
        return address
    number = context.get_value_type(KINDS[kind][1])
    value = builder.load(builder.bitcast(address, number.as_pointer()), align=WORD)
    value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value
