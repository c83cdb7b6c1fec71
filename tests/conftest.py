"""What every test starts from: a fixed torch seed, and examples of hypothesis that are the same in every run."""

import hypothesis
import pytest
import torch

# No deadline: a loaded machine is no fault of the code. Derandomised: a red test is red for everybody.
hypothesis.settings.register_profile("fastvae", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("fastvae")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
