"""Linking of kernels: a kernel and the functions that it calls are linked and optimized once, for the kernel.

Numba links each function with all its callees, optimizes the result and generates machine code, and then repeats this
for each caller: a function six calls deep went through LLVM six times. Helper functions are called by kernels only. So
a helper is kept as lowered, unoptimized LLVM IR; the kernel links all functions that it reaches, directly or
indirectly, and is optimized as a whole. Where a version of Numba lacks one of the internals used here, its own linking
takes over.
"""

from typing import Any

from numba.core import compiler
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target

INTERNALS = (  # of a library of Numba's
    "_final_module", "_finalize_dynamic_globals", "_finalized", "_get_module_for_linking", "_linking_libraries",
    "_verify_declare_only_symbols",
)  # fmt: skip


class _CodegenWithoutEnvironments:
    """A code generator that ignores environments, for functions that have no machine code yet."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, *_: Any) -> None:
        """Do nothing: helpers raise no exceptions and call no Python code, so they need no environment."""


class HelperLibrary(JITCodeLibrary):
    """A function as lowered to LLVM IR, and the libraries that it calls."""

    @property
    def codegen(self) -> Any:
        """Return the code generator, which Numba asks for to make the function callable from Python."""
        return _CodegenWithoutEnvironments(self._codegen)

    def finalize(self) -> None:
        """Finish the library without linking or optimizing."""
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: a helper has no address."""
        return 0

    def own_module(self) -> Any:
        """Return the module of this function alone."""
        return super()._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        """Return the module with all callees linked, for callers that are not kernels, as in tests."""
        whole = self.own_module().clone()
        link_all(whole, self)
        return whole


class KernelLibrary(JITCodeLibrary):
    """A kernel, linked with all functions that it reaches."""

    def finalize(self) -> None:
        """Link the direct and indirect helpers, then optimize."""
        link_all(self._final_module, self)
        if hasattr(self, "_reload_init"):  # what loading from the cache has to initialize; older versions have none
            self._reload_init.update(*(called._reload_init for called in topological_order(self)[1:]))
        self._linking_libraries: list[Any] = []
        super().finalize()

    def _verify_declare_only_symbols(self) -> None:
        """Fail if a called function was not linked: the call would jump to an undefined address."""
        missing = [f.name for f in self._final_module.functions if f.is_declaration and f.name.startswith("_ZN")]
        if missing:
            raise AssertionError(f"not linked: {', '.join(missing)}")


def link_all(module: Any, library: Any) -> None:
    """Link all libraries that a library reaches into its module."""
    for called in topological_order(library)[1:]:
        own = called.own_module() if isinstance(called, HelperLibrary) else called._get_module_for_linking()
        module.link_in(own, preserve=True)


def topological_order(library: Any) -> list[Any]:
    """Return a library and all that it reaches, callers before callees: LLVM omits functions that nothing calls yet."""
    done: dict[Any, None] = {}

    def visit(one: Any) -> None:
        for called in one._linking_libraries if isinstance(one, HelperLibrary | KernelLibrary) else ():
            if called not in done:
                visit(called)
        done[one] = None

    visit(library)
    return list(reversed(done))


def compiler_for(library_class: Any) -> Any:
    """Return the compiler whose functions are libraries of a class, or Numba's own where it lacks what that needs."""
    if not all(hasattr(JITCodeLibrary(cpu_target.target_context.codegen(), "probe"), name) for name in INTERNALS):
        return compiler.Compiler

    class Compiler(compiler.Compiler):
        def compile_extra(self, func: Any) -> Any:
            """Compile as Numba does, into a library of ``library_class``."""
            if self.state.library is None:
                self.state.library = library_class(self.state.targetctx.codegen(), func.__qualname__)
                self.state.library.enable_object_caching()
            return super().compile_extra(func)

    return Compiler


HelperCompiler, KernelCompiler = compiler_for(HelperLibrary), compiler_for(KernelLibrary)
