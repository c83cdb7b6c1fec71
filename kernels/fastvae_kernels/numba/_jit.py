"""How kernels are compiled: the one place where Numba options live.

    @jit                       a kernel called from Python: releases the GIL, cached on disk
    @jit(fastmath=REDUCTION)   the same, where plain sums may be split over the lanes of a vector
    @math_jit                  a scalar function for use inside kernels' loops: always inlined, no fastmath of its own

fastmath is a set, never True: "nnan" and "ninf" fold away the tests for NaN and infinity (a log-sum-exp starts at
-inf). The flags sit on each instruction and survive inlining, so a `math_jit` function stays exact inside a loop
compiled with REDUCTION. `inline="always"` would not do: it pastes Python, which then takes the caller's flags, and
"reassoc" simplifies (x + magic) - magic to x.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit

VECTOR = frozenset({"contract", "nsz"})  # elementwise loops, compensated sums
REDUCTION = VECTOR | {"reassoc", "arcp"}  # plain sums

# Numba asks of a cached kernel only whether its own file changed, and would go on using the old `_math.py` inlined
# in it. Here a kernel is fresh while no file of this folder has changed.
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()


def jit(function: Callable | None = None, *, fastmath: frozenset[str] = VECTOR) -> Any:
    """Compile a kernel at its first call; later processes load it from the cache, where a directory is writable.

    The function must stand at module level: one whose closure holds a dispatcher or an intrinsic is never found again.
    """
    if function is None:
        return lambda function: jit(function, fastmath=fastmath)
    dispatcher = njit(nogil=True, error_model="numpy", fastmath=set(fastmath))(function)
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # no directory is writable: "cannot cache function ...: no locator available"
        return dispatcher
    with suppress(AttributeError):  # Numba's own stamp stays if it renames these
        dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher


def math_jit(function: Callable) -> Any:
    """Compile a scalar function into each caller; not cached, since the callers are.

    An option left out is taken from the caller compiled first, so each is spelled out.
    """
    return njit(forceinline=True, error_model="numpy", fastmath=False)(function)
