"""Compilation of the kernels: the only place where Numba options are set.

    @kernel(LAYOUT)    a C function of one block of numbers, called by `threads.run`; compiled here and cached on disk
    @math_jit          a scalar or vector function for use inside kernels, always inlined
    @loop_jit          a function that contains loops, compiled once for all its callers

A kernel's argument is its block, whose numbers have names: see `layout.py`. The compiled kernel does not use the Python
runtime, so it can run on a thread that Python does not know.

fastmath is a set, never True: "nnan" and "ninf" remove the tests for NaN and infinity (a log-sum-exp starts at -inf),
and "reassoc" simplifies (x + magic) - magic to x. `inline="always"` is not an option for `math_jit`: it inlines at the
level of Python code, which is then compiled with the caller's flags.
"""

import ctypes
import gc
import hashlib
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from ...undisturbed import undisturbed
from .layout import Block, Layout
from .linking import HelperCompiler, KernelCompiler
from .target import LANES_REGISTER

FASTMATH = frozenset({"contract", "nsz"})
# Options of functions that only kernels call. Their Python and C wrappers would take a sixth of the compile time.
HELPER = {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
    "error_model": "numpy",
    "pipeline_class": HelperCompiler,
}
HEADER = "6q512x"  # header of each block, with the counters of `threads.py`

# Numba considers a cached kernel valid as long as its own file is unchanged, and would keep using an old `math.py`
# inlined in it. Here a cached kernel is valid while no file in `numba/` or in the folder above has changed.
_SOURCES = sorted([*Path(__file__).parents[1].rglob("*.py"), *Path(__file__).parents[2].glob("*.py")])
_STAMP = hashlib.sha256(b"".join([*(path.read_bytes() for path in _SOURCES), bytes([LANES_REGISTER])])).hexdigest()


class _TolerantCache:
    """A Numba cache that replaces damaged files, and that does nothing where no file can be written."""

    warned = False

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def load_overload(self, *args: Any) -> Any:
        """Return the cached kernel, or None."""
        try:
            return self.cache.load_overload(*args)
        except Exception as error:  # pickle may raise anything for a truncated file
            self.warn("read: the kernel is compiled anew", error)
            with suppress(OSError):
                self.cache.flush()
        return None

    def save_overload(self, *args: Any) -> None:
        """Save a kernel in the cache, if possible."""
        try:
            self.cache.save_overload(*args)
        except Exception as error:
            self.warn("written: each process compiles the kernels for itself", error)

    def warn(self, what: str, error: Exception) -> None:
        """Warn that the cache cannot be read or written, naming its folder."""
        text = f"the cache of compiled kernels in {self.cache.cache_path} cannot be {what}"
        warn_once(f"{text} ({type(error).__name__}: {error})")


def warn_once(text: str) -> None:
    """Issue a warning about the cache, at most once per process."""
    if not _TolerantCache.warned:
        _TolerantCache.warned = True
        warnings.warn(text, RuntimeWarning, stacklevel=2)


class Kernel:
    """A compiled kernel. ``call(pack(*header, *fields))`` runs it; ``address`` is its entry point for C callers."""

    __slots__ = ("address", "cached", "call", "compiled", "pack")

    def __init__(self, function: Callable, layout: Layout, constants: dict[str, int]) -> None:
        options = {"nopython": True, "_nrt": False, "error_model": "numpy", "fastmath": set(FASTMATH)}
        argument = Block(layout, tuple(constants.items()), struct.calcsize(HEADER) // 8)
        compiled: Any = CFunc(
            function, ((argument,), types.void), locals={}, options=options, pipeline_class=KernelCompiler
        )
        try:
            compiled.enable_caching()
            self.cached = True
        except RuntimeError as error:  # "cannot cache function ...: no locator available": no folder can be written
            self.cached = False
            warn_once(f"each process compiles the kernels for itself, unless NUMBA_CACHE_DIR can be written ({error})")
        with suppress(AttributeError):  # there is no cache; or Numba renamed these, and its own stamp is used alone
            file = compiled._cache._cache_file
            file._source_stamp = f"{_STAMP} {file._source_stamp}"
            compiled._cache = _TolerantCache(compiled._cache)
        collecting = gc.isenabled()
        gc.disable()  # scanning the compiler's many objects took a tenth of the time
        try:
            with undisturbed():
                compiled.compile()
        finally:
            if collecting:
                gc.enable()
        self.compiled = compiled  # keeps the code alive
        self.address = compiled.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self.address)  # releases the GIL
        self.pack = struct.Struct(f"={HEADER}{layout.letters}").pack


def kernel(layout: Layout, **constants: int) -> Callable[[Callable], Kernel]:
    """Compile a function of a block's address. Later processes load it from the cache, if a directory is writable.

    The function must be defined in a factory at module level, and its closure may hold only ints and strings: with a
    compiled function or an intrinsic in the closure, the cache entry is never found again.
    """
    return lambda function: Kernel(function, layout, constants)


def math_jit(function: Callable) -> Any:
    """Compile a function that is inlined into each caller. It is not cached, since its callers are.

    All options are given explicitly: Numba takes a missing one from the first caller that is compiled.
    """
    return njit(forceinline=True, fastmath=False, **HELPER)(function)


def loop_jit(function: Callable) -> Any:
    """Compile a function that contains loops, once for all its callers. It starts with ``outlined()``.

    Inlined in five places of a kernel, such a function would take many seconds to compile.
    """
    return njit(forceinline=False, fastmath=set(FASTMATH), **HELPER)(function)


def by_constant(functions: dict[int, Any]) -> Any:
    """Return a function that calls one of several, selected by its first argument, a constant of the kernel.

    The others are not compiled. The functions are compiled by `math_jit` or `loop_jit`.
    """

    def chosen(*args: Any) -> Any:
        raise NotImplementedError("of kernels alone")

    class Template(AbstractTemplate):
        key, prefer_literal = chosen, True

        def generic(self, args: Any, kwargs: Any) -> Any:
            """Return the signature of the selected function, preceded by the constant."""
            if kwargs or not isinstance(args[0], types.Literal):
                return None
            own = self.context.resolve_function_type(selected(args[0]), tuple(map(types.unliteral, args[1:])), {})
            return own and signature(own.return_type, args[0], *own.args)

    def selected(constant: Any) -> Any:
        return types.Dispatcher(functions[constant.literal_value])

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        own = signature(sig.return_type, *sig.args[1:])
        function = context.get_function(selected(sig.args[0]), own)
        return function(builder, args[1:])

    infer_global(chosen, types.Function(Template))
    lower_builtin(chosen, types.VarArg(types.Any))(codegen)
    return chosen


@intrinsic
def outlined(typingctx):
    """Prevent the calling function from being inlined; Numba has no option for this."""

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen
