"""Make Triton's interpreter three times as fast, for the tests and for the dry run of `make gpu`.

The interpreter computes with NumPy arrays, but spends most of its time elsewhere: it replaces the builtins of
`triton.language` at each call of a function within a kernel, and recreates types, shapes and tables at each operation.
"""

import functools
from typing import Any


@functools.cache
def patch_once() -> None:
    """Replace builtins once per launch, and cache types. A Triton without these names is left unchanged."""
    for patch in (_patch_builtins, _patch_dtypes, _patch_types, _patch_overflow):
        try:
            patch()
        except (ImportError, AttributeError):
            continue


def _patch_builtins() -> None:
    """Replace the builtins of `triton.language` once per launch, not at each call of a function."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    nothing = interpreter._LangPatchScope
    patched: set[bool] = set()  # for functions that use `tl`, and for those that use `tl.core`

    def patch_unless_patched(function: Any) -> Any:
        sees = any(value is tl for value in function.__globals__.values())
        if sees in patched:
            return nothing()
        patched.add(sees)
        return patch(function)

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_unless_patched, launch_afresh


def _patch_dtypes() -> None:
    """Create the table of NumPy dtypes once."""
    from triton.runtime import interpreter

    find = interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def remember(dtype: Any) -> Any:
        if dtype.name not in found:
            found[dtype.name] = find(dtype)
        return found[dtype.name]

    interpreter._get_np_dtype = remember


def _patch_types() -> None:
    """Initialize types of blocks with the same shape and element type once, and shapes of tensors too."""
    from triton.language import core, semantic

    fill_type, fill_tensor = core.block_type.__init__, core.tensor.__init__
    broadcast = semantic.TritonSemantic.broadcast_impl_value
    types: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}

    def fill_type_once(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in types:
            fill_type(self, element_ty, shape)
            types[key] = dict(self.__dict__)
        self.__dict__.update(types[key])

    def fill_tensor_once(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tensors:
            fill_tensor(self, handle, type)
            tensors[type.name] = dict(self.__dict__)
        self.__dict__.update(tensors[type.name], handle=handle, type=type)

    def broadcast_unless_alike(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape.values == rhs.shape.values else broadcast(self, lhs, rhs)

    core.block_type.__init__, core.tensor.__init__ = fill_type_once, fill_tensor_once
    semantic.TritonSemantic.broadcast_impl_value = broadcast_unless_alike


def _patch_overflow() -> None:
    """Do not compute integer overflow: Triton checks it only in debug mode, and our hashes wrap around."""
    from triton.language import semantic

    if hasattr(semantic.TritonSemantic, "binary_op_sanitize_overflow_impl"):
        semantic.TritonSemantic.binary_op_sanitize_overflow_impl = lambda self, lhs, rhs, binary_op: None
