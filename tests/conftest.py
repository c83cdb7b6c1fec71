"""Settings of all tests: a fixed torch seed, one thread, and the same examples of hypothesis in every run.

`pytest tests` runs all tests except the long ones, which ``--long`` adds (`make test-long`). With
``-n 2 --dist loadgroup``, as in `make test`, tests that share kernels run in one process, so that each kernel is
compiled once.
"""

import functools
import os
from importlib.metadata import PackageNotFoundError, version

import hypothesis
import pytest
import torch
from numba.core import event

from bench.gpu import interpreter
from fastvae._core import backend as _backend

if lanes := os.environ.get("FASTVAE_TEST_LANES"):  # see processors.py; before any kernel is imported
    from fastvae_kernels.numba.language import target

    target.LANES_REGISTER = int(lanes)

# Before triton is imported: here its kernels run in the interpreter, on the CPU. `make gpu` runs them on a GPU.
os.environ["TRITON_INTERPRET"] = "1"
os.environ["FASTVAE_GPU_DEVICE"] = "cpu"  # for tests that import bench.gpu
interpreter.patch_once()

# No deadline, since the machine may be busy. Derandomized, so that failures are reproducible.
hypothesis.settings.register_profile(
    "fastvae",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture
    ],  # `each_backend` is the same for all examples
)
hypothesis.settings.load_profile("fastvae")

# On problems this small, two threads mostly wait for each other, which is many times slower on a busy machine. Tests
# that depend on the number of threads set it themselves.
torch.set_num_threads(1)


# Groups of tests that use the same kernels, by folder, with exceptions; in all other folders a file is a group.
GROUPS = {
    "elbo": ("tests/elbo", "tests/demo", "tests/kernels/test_buffers", "tests/kernels/test_noise", "fastvae/_elbo",
             "tests/kernels/test_private", "tests/kernels/test_processes", "fastvae/vae", "fastvae/likelihoods"),
    "mixtures and regression": ("tests/gmm", "tests/regression", "tests/project/test_pickles", "fastvae/gmm",
                                "fastvae/regression", "fastvae/sklearn", "fastvae/reference"),
}  # fmt: skip


RAN_BY: dict[str, set[str]] = {}


def group_of(nodeid):
    """The group of a test: tests of a group run in one process. Each test in Triton's interpreter is its own group."""
    path = nodeid.split("::")[0]
    return nodeid if "[triton" in nodeid else next((g for g, start in GROUPS.items() if path.startswith(start)), path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For ``--dist loadgroup``: pytest 9.2 ignores the names by which xdist 3.8 itself would group tests."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        """The largest group first."""

        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return Groups(config, log)


def pytest_runtest_logreport(report):
    """In the controlling process: record which process ran which group."""
    if node := getattr(report, "node", None):
        RAN_BY.setdefault(group_of(report.nodeid), set()).add(node.gateway.id)


def pytest_sessionfinish(session):
    """Fail if a group ran in two processes, and so compiled its kernels twice."""
    split = sorted(group for group, processes in RAN_BY.items() if len(processes) > 1)
    if split and session.config.getoption("dist") == "loadgroup":
        raise pytest.UsageError(f"ran in more than one process, not as groups: {', '.join(split)}")


INTERPRETED = (
    "elbo/test_triton.py",
    "test_triton_math.py",
    "test_bench_gpu.py",
)  # and what is called [triton


@functools.cache
def interpreter_fails():
    """Whether Triton converts an array of one element to a number, as before 3.7, and NumPy no longer allows that."""
    try:
        triton, numpy = (tuple(map(int, version(p).split(".")[:2])) for p in ("triton", "numpy"))
    except PackageNotFoundError:
        return False
    return triton < (3, 7) and numpy >= (2, 4)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long searches, too: more cases of what the others try")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: more cases of what other tests try; run with --long")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Check that importing test modules compiles nothing: each process collects all tests and would compile it too."""
    with event.install_recorder("numba:compile") as compiled:
        collected = yield
    if compiled.buffer:
        raise pytest.UsageError(
            f"kernels were compiled while collecting tests: {compiled.buffer[0][1].data['dispatcher']}"
        )
    return collected


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        left = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)
    refused = pytest.mark.skip(reason="Triton's interpreter before 3.7 fails with NumPy 2.4 and newer")
    for item in items:
        if interpreter_fails() and ("[triton" in item.name or str(item.path).endswith(INTERPRETED)):
            item.add_marker(refused)


@pytest.fixture(autouse=True)
def _seeded():
    # without a GPU, torch.manual_seed records a traceback for each kind of device, which takes a millisecond
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)


@pytest.fixture(params=["reference", "auto"])
def each_backend(request, monkeypatch):
    """Run a test twice: with the reference, and with the kernels available here."""
    monkeypatch.setattr(_backend, "DEFAULT", request.param)
    return request.param
