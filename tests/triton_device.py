"""Where the tests of Triton kernels run: on a GPU, by `make gpu`; elsewhere in Triton's interpreter, on CPU tensors.

To be imported before triton, which reads the environment. torch and pytest are all that it needs.
"""

import os

import pytest
import torch

GPU = torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"

DEVICE = torch.device("cuda" if GPU else "cpu")
on_gpu = pytest.mark.skipif(not GPU, reason="no GPU here")
