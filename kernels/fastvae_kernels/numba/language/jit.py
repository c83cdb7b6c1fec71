"""How kernels are compiled: the one place where Numba options live.

    @kernel(FIELDS)    a C function of one block of numbers, called by `threads.run`; compiled here and cached on disk
    @math_jit          a scalar or vector function for use inside kernels, always inlined
    @loop_jit          a function that holds loops, compiled once for all its callers

A kernel opens with ``a, b, ... = unpack(block, FIELDS)``; FIELDS says what they are, in the letters of `struct`:
"12q 3d" is twelve integers (addresses, sizes, strides), then three float64. Nothing of Python is left in it: it can run
on a thread that Python does not know.

fastmath is a set, never True: "nnan" and "ninf" fold away the tests for NaN and infinity (a log-sum-exp starts at
-inf), and "reassoc" simplifies (x + magic) - magic to x. `inline="always"` would not do for `math_jit`: it pastes
Python, which then takes the caller's flags.
"""

import ctypes
import gc
import hashlib
import re
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from ...undisturbed import undisturbed
from .layout import Block, Layout
from .linking import HelperCompiler, KernelCompiler
from .target import LANES_REGISTER

FASTMATH = frozenset({"contract", "nsz"})
# Of functions that only kernels call: without ways in for Python and C, which took a sixth of the time to compile.
HELPER = {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
    "error_model": "numpy",
    "pipeline_class": HelperCompiler,
}
HEADER = "6q512x"  # of each block: `threads.py` counts in it

# Numba asks of a cached kernel only whether its own file changed, and would go on using the old `math.py` inlined
# in it. Here a kernel is fresh while no file of `numba/`, nor of the folder above, has changed.
_SOURCES = sorted([*Path(__file__).parents[1].rglob("*.py"), *Path(__file__).parents[2].glob("*.py")])
_STAMP = hashlib.sha256(b"".join([*(path.read_bytes() for path in _SOURCES), bytes([LANES_REGISTER])])).hexdigest()


class _Forgiving:
    """A cache of Numba's whose damaged files are written anew; where no file can be written, there is none."""

    warned = False

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def load_overload(self, *args: Any) -> Any:
        """What is kept, or None."""
        try:
            return self.cache.load_overload(*args)
        except Exception as error:  # whatever pickle raises for a file that is cut short
            self.warn("read: the kernel is compiled anew", error)
            with suppress(OSError):
                self.cache.flush()
        return None

    def save_overload(self, *args: Any) -> None:
        """Keep it, if that can be."""
        try:
            self.cache.save_overload(*args)
        except Exception as error:
            self.warn("written: each process compiles the kernels for itself", error)

    def warn(self, what: str, error: Exception) -> None:
        """Name the folder."""
        text = f"the cache of compiled kernels in {self.cache.cache_path} cannot be {what}"
        warn_once(f"{text} ({type(error).__name__}: {error})")


def warn_once(text: str) -> None:
    """Of the cache, once in a process."""
    if not _Forgiving.warned:
        _Forgiving.warned = True
        warnings.warn(text, RuntimeWarning, stacklevel=2)


class Kernel:
    """A compiled kernel: ``call(pack(*header, *fields))`` runs it, and so does whoever jumps to ``address``."""

    __slots__ = ("address", "cached", "call", "compiled", "pack")

    def __init__(self, function: Callable, fields: str | Layout, constants: dict[str, int]) -> None:
        options = {"nopython": True, "_nrt": False, "error_model": "numpy", "fastmath": set(FASTMATH)}
        argument: Any = types.intp
        if isinstance(fields, Layout):
            argument, fields = Block(fields, tuple(constants.items()), struct.calcsize(HEADER) // 8), fields.letters
        compiled: Any = CFunc(
            function, ((argument,), types.void), locals={}, options=options, pipeline_class=KernelCompiler
        )
        try:
            compiled.enable_caching()
            self.cached = True
        except RuntimeError as error:  # "cannot cache function ...: no locator available", as no folder can be written
            self.cached = False
            warn_once(f"each process compiles the kernels for itself, unless NUMBA_CACHE_DIR can be written ({error})")
        with suppress(AttributeError):  # where there is no cache; and Numba's own stamp stays alone if it renames these
            file = compiled._cache._cache_file
            file._source_stamp = f"{_STAMP} {file._source_stamp}"
            compiled._cache = _Forgiving(compiled._cache)
        collecting = gc.isenabled()
        gc.disable()  # a tenth of the time went into looking through the compiler's many objects
        try:
            with undisturbed():
                compiled.compile()
        finally:
            if collecting:
                gc.enable()
        self.compiled = compiled  # keeps the code alive
        self.address = compiled.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self.address)  # releases the GIL
        self.pack = struct.Struct(f"={HEADER}{fields.replace(' ', '')}").pack


def kernel(fields: str | Layout, **constants: int) -> Callable[[Callable], Kernel]:
    """Compile a function of a block's address; later processes load it from the cache, where a directory is writable.

    The function must stand in a factory at module level, one whose closure holds ints and strings only: one that holds
    a compiled function or an intrinsic is never found again.
    """
    return lambda function: Kernel(function, fields, constants)


def math_jit(function: Callable) -> Any:
    """Compile a function into each caller; not cached, since the callers are.

    An option left out is taken from the caller compiled first, so each is spelled out.
    """
    return njit(forceinline=True, fastmath=False, **HELPER)(function)


def loop_jit(function: Callable) -> Any:
    """Compile a function that holds loops for all its callers: pasted into five places of a kernel, it would take
    many seconds to compile. It opens with ``outlined()``.
    """
    return njit(forceinline=False, fastmath=set(FASTMATH), **HELPER)(function)


def by_constant(functions: dict[int, Any]) -> Any:
    """A function that is, call by call, one of these: the one that its first argument names, a constant of the kernel.

    The others are not compiled. The functions are of `math_jit` or `loop_jit`.
    """

    def chosen(*args: Any) -> Any:
        raise NotImplementedError("of kernels alone")

    class Template(AbstractTemplate):
        key, prefer_literal = chosen, True

        def generic(self, args: Any, kwargs: Any) -> Any:
            """The signature of the one, behind the constant."""
            if kwargs or not isinstance(args[0], types.Literal):
                return None
            own = self.context.resolve_function_type(one_of(args[0]), tuple(map(types.unliteral, args[1:])), {})
            return own and signature(own.return_type, args[0], *own.args)

    def one_of(constant: Any) -> Any:
        return types.Dispatcher(functions[constant.literal_value])

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        own = signature(sig.return_type, *sig.args[1:])
        function = context.get_function(one_of(sig.args[0]), own)
        return function(builder, args[1:])

    infer_global(chosen, types.Function(Template))
    lower_builtin(chosen, types.VarArg(types.Any))(codegen)
    return chosen


@intrinsic(prefer_literal=True)
def unpack(typingctx, block, fields):
    """The numbers behind the header of the block at an address, as a tuple."""
    letters = "".join(letter * int(count or 1) for count, letter in re.findall(r"(\d*)([qd])", fields.literal_value))
    members = types.Tuple([types.float64 if letter == "d" else types.intp for letter in letters])
    first = struct.calcsize(HEADER) // 8

    def codegen(context, builder, signature, args):
        values = []
        for i, t in enumerate(members, first):
            pointer = builder.inttoptr(args[0], context.get_value_type(t).as_pointer())
            values.append(builder.load(builder.gep(pointer, [ir.IntType(64)(i)])))
        return context.make_tuple(builder, members, values)

    return members(block, fields), codegen


@intrinsic
def outlined(typingctx):
    """Keep the function that this is called in from being inlined: Numba has no option for it."""

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen
