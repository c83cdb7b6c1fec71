"""Triton's interpreter, twice as fast: for the tests, and for the dry run of `make gpu`."""

import functools
from typing import Any


@functools.cache
def patch_once() -> None:
    """Have Triton's interpreter replace the builtins of `triton.language` once in a launch.

    It looks through all of them at each call of a function within a kernel, which is half of its time.
    """
    try:
        import triton.language as tl
        from triton.runtime import interpreter

        patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
        nothing = interpreter._LangPatchScope
    except (ImportError, AttributeError):
        return
    patched: set[bool] = set()  # of those who see `tl`, and of those who see `tl.core`

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
