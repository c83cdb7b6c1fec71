"""What every test starts from: a fixed torch seed, one thread, and the same examples of hypothesis in every run."""

import os

import hypothesis
import pytest
import torch

from fastvae import _backend

# Before anything imports triton: here its kernels run in the interpreter, on the CPU. `make gpu` runs them on a GPU.
os.environ["TRITON_INTERPRET"] = "1"

# No deadline: a loaded machine is no fault of the code. Derandomised: a red test is red for everybody.
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

# Two threads on problems this small only wait for each other, many times slower on a busy machine. Tests of what
# threads change set their own number.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "auto"])
def each_backend(request, monkeypatch):
    """The public functions twice: by the specification, and by whatever kernels answer here."""
    monkeypatch.setattr(_backend, "DEFAULT", request.param)
    return request.param
