"""Compilation, caching and calls of the Numba kernels."""

import functools
import gc
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numba
import numpy as np
import pytest
from numba.core.ccallback import CFunc
from numba.core.compiler import Compiler

from fastvae_kernels.numba.language import jit, linking
from fastvae_kernels.numba.language.jit import kernel, loop_jit, math_jit, outlined
from fastvae_kernels.numba.language.layout import Layout
from fastvae_kernels.numba.language.memory import F64, array_at
from fastvae_kernels.numba.language.threads import run


def test_functions_keep_their_own_flags():
    @math_jit
    def nearest(x):  # with the flags of the caller, which is compiled first, this would be x
        return (x + 1.5 * 2**52) - 1.5 * 2**52

    @numba.njit(fastmath={"reassoc", "nsz"})
    def all_nearest(x, y):
        for i in range(x.size):
            y[i] = nearest(x[i])

    x = np.linspace(-10, 10, 97)
    y = np.empty_like(x)
    all_nearest(x, y)
    np.testing.assert_array_equal(y, np.rint(x))


@loop_jit
def sum_to(n):
    outlined()
    sum_ = 0
    for i in range(n):
        sum_ += i * i
    return sum_


@functools.cache
def make_sums():
    @kernel(Layout("address"))
    def sums(f):
        address = f.address
        out = array_at(address, 2, F64)
        out[0], out[1] = sum_to(10), sum_to(20)

    return sums


def test_a_loop_is_compiled_once_and_called():
    out = np.zeros(2)
    run(make_sums(), (out.ctypes.data,), 1, 0)
    assert out.tolist() == [285, 2470]
    with (
        mock.patch.object(CFunc, "enable_caching", side_effect=RuntimeError),  # code from the cache cannot be read
        mock.patch.object(jit, "warn_once"),
    ):
        code = make_sums.__wrapped__().compiled.inspect_llvm()
    assert len(re.findall(r"= (?:tail )?call .*sum_to", code)) == 2


@loop_jit
def innermost(n):
    outlined()
    return 3 * n


@math_jit
def calls_nothing_in_the_end(n):
    never = n - n
    return innermost(n) if never > 0 else n  # a call that LLVM removes before functions are linked


@math_jit
def calls_it(n):
    return innermost(n) + 1


@functools.cache
def make_calls():
    @kernel(Layout("address"))
    def calls(f):
        address = f.address
        out = array_at(address, 2, F64)
        out[0], out[1] = calls_nothing_in_the_end(10), calls_it(20)

    return calls


def test_what_only_a_later_caller_needs_is_linked():
    out = np.zeros(2)
    run(make_calls(), (out.ctypes.data,), 1, 0)
    assert out.tolist() == [10, 61]
    assert numba.njit(lambda n: calls_it(n))(2) == 7  # of a caller that is no kernel


def test_where_numba_lacks_what_linking_needs_its_own_takes_over():
    with mock.patch.object(linking, "INTERNALS", (*linking.INTERNALS, "no_such_name")):
        own = linking.compiler_for(linking.KernelLibrary)
    assert own is Compiler
    out = np.zeros(2)
    with mock.patch.object(jit, "KernelCompiler", own):
        run(make_calls.__wrapped__(), (out.ctypes.data,), 1, 0)
    assert out.tolist() == [10, 61]


@functools.cache
def make_echo():
    @kernel(Layout("address a b:float c d e f:float g:float"))
    def echo(f):
        address, a, b, c, d, e, f, g = f.address, f.a, f.b, f.c, f.d, f.e, f.f, f.g
        out = array_at(address, 7, F64)
        out[0], out[1], out[2], out[3], out[4], out[5], out[6] = a, b, c, d, e, f, g

    return echo


def test_a_kernel_reads_what_was_packed():
    out, numbers = np.zeros(7), (-1, 2.5, 3, 4, 2**40, -6.25, math.inf)
    run(make_echo(), (out.ctypes.data, *numbers), 1, 0)
    assert out.tolist() == [*numbers]


def test_a_kernel_without_a_source_file_is_not_cached_and_works(monkeypatch):
    monkeypatch.setattr(jit._TolerantCache, "warned", False)
    names = {"array_at": array_at, "F64": F64}
    exec("def three(f):\n    array_at(f.address, 1, F64)[0] = 3", names)
    with pytest.warns(RuntimeWarning, match="each process compiles the kernels for itself"):
        made, out = kernel(Layout("address"))(names["three"]), np.zeros(1)
    assert not made.cached
    run(made, (out.ctypes.data,), 1, 0)
    assert out[0] == 3


@pytest.mark.parametrize("collecting", [False, True])
def test_compiling_leaves_the_garbage_collector_as_it_was(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        make_echo.__wrapped__()
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


EXPONENTIAL = """
import ctypes
from numba import types
from fastvae_kernels.numba.language import math as _math
from fastvae_kernels.numba.language.jit import kernel
from fastvae_kernels.numba.language.layout import Layout

memset = types.ExternalFunction("memset", types.intp(types.intp, types.intc, types.uintp))

def make():
    @kernel(Layout("address x:float"))
    def exponential(f):
        address, x = f.address, f.x
        memset(address, types.intc(_math.exp(x)), 1)
    return exponential

made, out = make(), ctypes.create_string_buffer(1)
made.call(made.pack(0, 0, 1, 1, 1, 0, ctypes.addressof(out), 2.0))
print(made.cached, made.compiled.cache_hits, out.raw[0])
"""


def in_python(script, env=None):
    """The output of the script on stdout and stderr."""
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-B", str(script)]
    done = subprocess.run(command, env=kept | (env or {}), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("kind", "size"),
    [("nbc", 0.5), *(pytest.param(*case, marks=pytest.mark.long) for case in (("nbi", 0), ("nbi", 0.5), ("nbc", 0)))],
)
def test_a_damaged_file_of_the_cache_is_written_anew(tmp_path, kind, size):
    script = tmp_path / "exponential.py"
    script.write_text(EXPONENTIAL)
    assert in_python(script) == ("True 0 7\n", "")
    (file,) = tmp_path.glob(f"__pycache__/*.{kind}")
    os.truncate(file, int(size * file.stat().st_size))
    out, warned = in_python(script)
    assert out == "True 0 7\n"
    assert f"RuntimeWarning: the cache of compiled kernels in {file.parent} cannot be read" in warned
    assert in_python(script) == ("True 1 7\n", "")


def test_where_the_cache_cannot_be_written_kernels_are_compiled_in_each_process(tmp_path):
    script = tmp_path / "exponential.py"
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # as on a full disk
    script.write_text(full + EXPONENTIAL + "print(make().call is not None)\n")
    out, warned = in_python(script)
    assert out == "True 0 7\nTrue\n"
    assert warned.count("RuntimeWarning") == 1
    assert str(tmp_path / "__pycache__") in warned


def test_a_kernel_is_kept_on_disk_until_a_file_of_the_folder_changes(tmp_path):
    folder = tmp_path / "fastvae_kernels" / "numba"
    shutil.copytree(Path(jit.__file__).parents[1], folder, ignore=shutil.ignore_patterns("__pycache__"))
    env = {"PYTHONPATH": str(tmp_path)}
    scripts = [tmp_path / name / "exponential.py" for name in ("writable", "unwritable")]
    for script in scripts:
        script.parent.mkdir()
        script.write_text(EXPONENTIAL)
    assert in_python(scripts[0], env) == ("True 0 7\n", "")
    assert in_python(scripts[0], env) == ("True 1 7\n", "")
    with (folder / "language" / "math.py").open("a") as file:
        file.write("\n\n@math_jit\ndef exp(x):\n    return x\n")
    assert in_python(scripts[0], env) == ("True 0 2\n", "")
    (tmp_path / "unwritable" / "__pycache__").write_text("a file, where a folder would be")
    env["XDG_CACHE_HOME"] = env["HOME"] = "/dev/null/nowhere"  # a folder in which even root cannot write
    out, warned = in_python(scripts[1], env)
    assert out == "False 0 2\n"
    assert warned.count("RuntimeWarning: each process compiles the kernels for itself, unless NUMBA_CACHE_DIR") == 1
