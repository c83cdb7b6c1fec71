"""What every test starts from: a fixed torch seed, one thread, and the same examples of hypothesis in every run."""

import hypothesis
import pytest
import torch

# No deadline: a loaded machine is no fault of the code. Derandomised: a red test is red for everybody.
hypothesis.settings.register_profile("fastvae", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("fastvae")

# Two threads on problems this small only wait for each other, many times slower on a busy machine. Tests of what
# threads change set their own number.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
