"""Forks and signals at bad moments: no call hangs in a forked child, and Ctrl-C leaves no partial import."""

import os

import pytest

from fastvae_kernels import openmp

from ..children import in_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

START = """
import os, signal, sys, threading, time
import numpy as np, torch, fastvae
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
torch.set_num_threads(2)
X = np.random.default_rng(0).normal(size=(200_000, 4))
large, mu = torch.rand(1000, 1000), torch.rand(1000, 20)

def elbo(backend="numba"):
    return fastvae.elbo(large, large, mu, mu, backend=backend).item()

def in_a_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(200)  # a deadlock ends
        os._exit(0 if work() else 1)
    return os.waitpid(child, 0)[1]
"""


def test_a_forked_child_calls_torch_and_kernels_that_its_parent_had_not_loaded():
    code = """
from fastvae.sklearn import LinearRegression
truth = large.exp()  # the parent has an OpenMP team

def work():
    right = torch.equal(large.exp(), truth)
    right &= LinearRegression().fit(X, X[:, 0]).coef_.round(9).tolist() == [1, 0, 0, 0]
    return right and abs(elbo() - elbo("reference")) < 1e-2

print(in_a_child(work), in_a_child(lambda: in_a_child(work) == 0))
print(work(), in_a_child(work))  # and now it has
"""
    assert in_python(START + code, FASTVAE_BACKEND="reference") == ["0", "0", "True", "0"]


def test_joblib_with_processes_that_are_forked():
    code = """
import joblib
from fastvae.sklearn import GaussianMixture
def fit(seed):
    return GaussianMixture(2, random_state=seed).fit(X[:2000]).score(X)
def several(seeds, function=fit, backend="threading"):
    return joblib.Parallel(2, backend=backend)(joblib.delayed(function)(seed) for seed in seeds)
def first_of_torch(_):
    return torch.zeros(1).nonzero().tolist()
def nested(function):
    jobs = [joblib.delayed(several)(seeds, function) for seeds in (range(2), range(2, 4))]
    return joblib.Parallel(2, backend="multiprocessing")(jobs)
alone = [fit(seed) for seed in range(4)]
large.exp()
print(several(range(4), fit, "multiprocessing") == alone)
print(nested(fit) == [alone[:2], alone[2:]])
print(all(nested(first_of_torch) == [[[], []]] * 2 for _ in range(12)))  # one time of five it failed
"""
    assert in_python(START + code, FASTVAE_BACKEND="reference") == ["True"] * 3


@pytest.mark.long  # two new processes with all imports
def test_joblib_with_processes_that_are_spawned():
    code = """
import joblib
from fastvae.sklearn import GaussianMixture
def fit(seed):
    return GaussianMixture(2, random_state=seed).fit(X[:2000]).score(X)
print(joblib.Parallel(2, backend="loky")(joblib.delayed(fit)(seed) for seed in range(4)) == [*map(fit, range(4))])
"""
    assert in_python(START + code) == ["True"]


def test_a_fork_waits_for_what_another_thread_compiles(tmp_path):
    code = """
from fastvae_kernels.numba.elbo import kl_columns, pieces
from fastvae_kernels.numba.language import jit, memory

class Slow(jit.CFunc):
    def compile(self):
        compiling.set()
        super().compile()

compiling, jit.CFunc = threading.Event(), Slow
thread = threading.Thread(target=kl_columns.make_columns, args=(memory.F32, memory.F32, pieces.STANDARD))
thread.start()
compiling.wait()
print(in_a_child(lambda: kl_columns.make_columns(memory.F64, memory.F64, pieces.STANDARD)))
thread.join()
"""
    assert in_python(START + code, NUMBA_CACHE_DIR=str(tmp_path)) == ["0"]


def test_an_interrupt_while_numba_is_imported_or_compiles_comes_later():
    code = """
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.core.typing":  # in the midst of it
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

def interrupt_at_a_line(frame, event, argument):
    if frame.f_code.co_name != "<module>" or not frame.f_code.co_filename.endswith("cpython/unicode.py"):
        return None
    if event == "line" and frame.f_lineno > 400:  # in the midst of what is imported after Numba itself
        sys.settrace(None)
        signal.raise_signal(signal.SIGINT)
    return interrupt_at_a_line

sys.meta_path.insert(0, Interrupt())
sys.settrace(interrupt_at_a_line)
for _ in range(2):
    try:
        elbo()
    except KeyboardInterrupt:
        print("interrupted")
print(sys.gettrace())

from numba.core import caching, codegen
kept, armed = codegen.CPUCodeLibrary._object_compiled_hook, []

def interrupt(cls, *args):  # LLVM calls it
    if armed:
        signal.raise_signal(armed.pop())
    kept(*args)

codegen.CPUCodeLibrary._object_compiled_hook = classmethod(interrupt)
from fastvae_kernels.numba.elbo import kl_columns, pieces
from fastvae_kernels.numba.language import memory
armed.append(signal.SIGINT)
places, caching.CompileResultCacheImpl._locator_classes = caching.CompileResultCacheImpl._locator_classes, []
try:
    kl_columns.make_columns(memory.F32, memory.F32, pieces.STANDARD)
except KeyboardInterrupt:
    print("interrupted")
caching.CompileResultCacheImpl._locator_classes = places
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print(abs(elbo() - elbo("reference")) < 1e-2, armed)
"""
    assert in_python(START + code) == [*2 * ["interrupted"], "None", "interrupted", "True", "True", "[]"]


def test_ctrl_c_ends_a_long_fit_and_the_next_call_is_right():
    code = """
from fastvae import gmm, regression

def mixture(backend, rows, **options):
    return gmm.fit(X[:rows], 8, seed=0, backend=backend, on_degenerate="status", **options).log_likelihood

def groups(rows, number):
    data = np.broadcast_to(X[:rows], (number, rows, 4))
    return regression.fit(data, data[..., 0], backend="numba").coef.sum()

def interrupt(fit, *args, **options):
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    try:
        fit(*args, **options)
    except KeyboardInterrupt:
        return "interrupted"

endless = {"tol": 0, "max_iter": 10**7}
cases = [(mixture, (backend, 500), (backend, 5000)) for backend in ("numba", "reference")]
for fit, small, large in (*cases, (groups, (50, 10), (2000, 10**5))):
    before = fit(*small)
    print(interrupt(fit, *large, **(endless if fit is mixture else {})), fit(*small) == before)
"""
    assert in_python(START + code) == ["interrupted", "True"] * 3


def test_the_team_is_given_up_before_a_fork_only_where_one_can_be_formed_anew(monkeypatch):
    paused = list[int]()
    monkeypatch.setattr(openmp, "_library", lambda: type("", (), {"omp_pause_resource_all": paused.append}))
    monkeypatch.setattr(openmp, "_lost", False)
    for lost in (True, True):  # it returns None, not 0, and is then not called again
        openmp._before_fork()
        openmp._after_fork_in_child()
        assert openmp._lost is lost
        assert openmp.openmp() is None
    assert paused == [openmp.PAUSE_HARD]
