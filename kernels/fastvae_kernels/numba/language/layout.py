"""The arguments of a launch: named numbers, in groups, declared once for the packer and for the kernel.

    ROWS = Layout("x x_code x_row x_problem N D")                  # integers: addresses, sizes, strides, codes
    PASS = Layout("first_tile last_tile tol:float", rows=ROWS)     # and floats; a group is a layout itself

    @kernel(PASS, family=FULL)               # constants of the compiled code
    def mixture_pass(f):                     # f.tol, f.rows.N, f.family: read where they are used
        load(f.rows, ...)                    # a group is passed on as one address

    rows = ROWS.pack(x=..., N=..., ...)      # by name: a missing or an unknown one is an error
    run(make_pass(FULL), PASS.pack(first_tile=0, ..., rows=rows), units, work)

A name is an attribute of the block, and its offset is known when the kernel is compiled. Reading it is one instruction;
as nothing writes to a block, LLVM may load it once or several times.
"""

from collections.abc import Callable
from keyword import iskeyword
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

KINDS = {"int": ("q", types.intp), "float": ("d", types.float64)}  # letter of `struct`, Numba type
WORD = 8  # bytes of a number of either kind


class Layout:
    """Names and kinds of the numbers of a block, in order: first its own numbers, then those of its groups."""

    def __init__(self, own: str, **groups: "Layout") -> None:
        pairs = [(name, kind or "int") for name, _, kind in (word.partition(":") for word in own.split())]
        names = [name for name, _ in pairs] + list(groups)
        if unknown := [kind for _, kind in pairs if kind not in KINDS]:
            raise ValueError(f"a kind of number is one of {', '.join(KINDS)}, got {unknown[0]}")
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"names of a layout must differ, got twice: {', '.join(sorted(duplicates))}")
        self.members: dict[str, tuple[int, str | Layout]] = {}  # offset in words; kind of a number, layout of a group
        self.size = 0
        members: list[tuple[str, str | Layout]] = [*pairs, *groups.items()]
        for name, kind in members:
            self.members[name] = self.size, kind
            self.size += kind.size if isinstance(kind, Layout) else 1
        letters = [KINDS[kind][0] for _, kind in pairs]
        self.letters: str = "".join([*letters, *(group.letters for group in groups.values())])
        self.pack = _packer([name for name, _ in pairs], list(groups))

    def places(self, names: str) -> list[int]:
        """Where these numbers and groups begin in a packed block; a number of a group is ``group.name``.

        A launch that changes a few numbers of a block that is packed already writes them there.
        """
        return [self._place(*name.split(".")) for name in names.split()]

    def blank(self, **groups: tuple[Any, ...]) -> list[Any]:
        """Return a packed block of zeros, with these groups filled in."""
        block: list[Any] = [0] * self.size
        for name, numbers in groups.items():
            at = self.members[name][0]
            block[at : at + len(numbers)] = numbers
        return block

    def _place(self, name: str, *rest: str) -> int:
        at, kind = self.members[name]
        return at + kind._place(*rest) if rest and isinstance(kind, Layout) else at


def _packer(own: list[str], groups: list[str]) -> Callable[..., tuple[Any, ...]]:
    """Return a function that takes all numbers by name, groups as packed tuples, and returns them in order.

    Its code is generated: it takes a third of the time of a generic function.
    """
    if invalid := [name for name in own + groups if not name.isidentifier() or iskeyword(name)]:
        raise ValueError(f"a name of a layout must be an identifier, got {invalid[0]!r}")
    values = "".join([*(f"{name}, " for name in own), *(f"*{name}, " for name in groups)])
    return eval(f"lambda {', '.join(['*', *own, *groups]) if own or groups else ''}: ({values})")


class Block(types.Type):
    """The Numba type of the address of a block with a given layout, together with the kernel's constants."""

    def __init__(self, layout: Layout, constants: tuple[tuple[str, int], ...] = (), first: int = 0) -> None:
        self.layout, self.first = layout, first  # first: words of the header before the numbers
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
    """Represented in LLVM as a pointer."""


@infer_getattr
class BlockTemplate(AttributeTemplate):
    """Types of the members of a block. ``header`` is the address of the block itself, for the argument of a kernel."""

    key = Block

    def generic_resolve(self, block: Block, name: str) -> Any:
        """Return the type of a member, or None for an unknown name, which Numba then reports."""
        if name in block.constants:
            return types.literal(block.constants[name])
        if name == "header":
            return types.intp
        kind = block.members[name][1] if name in block.members else None
        return kind if isinstance(kind, Block) or kind is None else KINDS[kind][1]


@lower_getattr_generic(Block)
def read_member(context: Any, builder: Any, block: Block, pointer: Any, name: str) -> Any:
    """Generate the value of a member: a constant, the address of a group, or a number loaded from read-only memory."""
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


@intrinsic
def without_constants(typingctx, block):
    """Return the same address without constants; a function that takes it is compiled once for all kernels."""
    result = Block(block.layout, (), block.first)
    return result(block), lambda context, builder, signature, args: args[0]
