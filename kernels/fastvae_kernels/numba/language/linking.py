"""How a kernel and the functions that it calls become machine code: linked and optimised once, for the kernel.

Numba links and optimises each function with all that it calls, and makes machine code of it, before its caller does so
again with the whole: a function that lies six calls deep went through LLVM six times. Nobody but kernels calls these
functions. So a helper stays as it was lowered, and the kernel links all that it reaches, directly or through others,
and is optimised. Where Numba has other names for what this builds on, it is left to itself.
"""

from contextlib import suppress
from typing import Any

from numba.core import compiler
from numba.core.codegen import JITCodeLibrary


class _NoEnvironments:
    """A code generator to whom nobody tells the environment of a function that is no machine code yet."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, *_: Any) -> None:
        """Helpers raise nothing and call nothing of Python: they need none."""


class HelperLibrary(JITCodeLibrary):
    """A function as it was lowered, and the libraries that it calls."""

    @property
    def codegen(self) -> Any:
        """Asked by whoever would make it callable from Python."""
        return _NoEnvironments(self._codegen)

    def finalize(self) -> None:
        """Nothing is linked nor optimised."""
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """It has no address."""
        return 0

    def alone(self) -> Any:
        """Its own functions."""
        return super()._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        """With all that it calls, for a caller that is no kernel, as tests have them."""
        whole = self.alone().clone()
        link_all(whole, self)
        return whole


class KernelLibrary(JITCodeLibrary):
    """A kernel, with all that it reaches."""

    def finalize(self) -> None:
        """Link the helpers of helpers as well."""
        link_all(self._final_module, self)
        for called in callers_first(self)[1:]:
            self._reload_init.update(called._reload_init)
        self._linking_libraries: list[Any] = []
        super().finalize()

    def _verify_declare_only_symbols(self) -> None:
        """What is called and not there would be a jump to nowhere."""
        missing = [f.name for f in self._final_module.functions if f.is_declaration and f.name.startswith("_ZN")]
        if missing:
            raise AssertionError(f"not linked: {', '.join(missing)}")


def link_all(module: Any, library: Any) -> None:
    """Link all that a library reaches into its module."""
    for called in callers_first(library)[1:]:
        own = called.alone() if isinstance(called, HelperLibrary) else called._get_module_for_linking()
        module.link_in(own, preserve=True)


def callers_first(library: Any) -> list[Any]:
    """A library and all that it reaches, each before those that it calls: LLVM leaves out what nothing calls so far."""
    done: dict[Any, None] = {}

    def visit(one: Any) -> None:
        for called in one._linking_libraries if isinstance(one, HelperLibrary | KernelLibrary) else ():
            if called not in done:
                visit(called)
        done[one] = None

    visit(library)
    return list(reversed(done))


class _Compiler(compiler.Compiler):
    library_class: Any = JITCodeLibrary

    def compile_extra(self, func: Any) -> Any:
        """As Numba does, into a library of ours."""
        if self.state.library is None:
            with suppress(AttributeError):
                self.state.library = self.library_class(self.state.targetctx.codegen(), func.__qualname__)
                self.state.library.enable_object_caching()
        return super().compile_extra(func)


class HelperCompiler(_Compiler):
    """Of `math_jit` and `loop_jit`."""

    library_class = HelperLibrary


class KernelCompiler(_Compiler):
    """Of `kernel`."""

    library_class = KernelLibrary
