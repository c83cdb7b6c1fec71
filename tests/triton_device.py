"""The device of the Triton tests: a GPU with `make gpu`, otherwise CPU tensors, in Triton's interpreter.

Import it before triton, which reads the environment. It needs only torch and pytest.
"""

import os

import pytest
import torch

GPU = torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"

DEVICE = torch.device("cuda" if GPU else "cpu")
on_gpu = pytest.mark.skipif(not GPU, reason="no GPU here")
