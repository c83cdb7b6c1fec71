"""Every Triton kernel compiles for several GPUs, within a budget of registers and with wide memory accesses.

The cases are in `compile_triton.py`, which runs in separate processes, since the interpreter is enabled here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia")
SCRIPT = Path(__file__).with_name("compile_triton.py")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HALVES = (("sm_80", "gfx942"), ("sm_90", "sm_100"))  # one process each
MEASURED = ("sm_90", "gfx942")  # one GPU of each vendor, with the most expensive kernels; with --long, all kernels
# A block has 256 threads with 64 bytes of loads in flight each. Two blocks on a multiprocessor have 32 KB in flight,
# which 3 TB/s of a GPU with 130 multiprocessors require at a memory latency of 1 us.
REGISTERS = 128
# (loads, stores) in bytes, where they are not 16, and why
NARROW = {
    "elbo, odd rows": (4, 4),  # rows of 783 elements are not aligned
    "elbo, each row": (16, 4),  # the forward pass for reduction="none" writes only values
    "free bits": (8, 8),  # column sums: two elements of a tile for each thread
    "prior, free bits": (8, 8),
}


ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

each_target = pytest.mark.parametrize(
    "target", [pytest.param(t, marks=() if t in MEASURED else pytest.mark.long) for t in TARGETS]
)


@pytest.fixture(scope="module")
def compiled(request):
    commands = HALVES if request.config.getoption("--long") else [("--few", target) for target in MEASURED]
    runs = [
        subprocess.Popen([sys.executable, SCRIPT, *command], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
        for command in commands
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    return [json.loads(line) for output in outputs for line in output.splitlines()]


@each_target
def test_every_kernel_compiles_within_its_budget(compiled, target):
    lines = [line for line in compiled if line["target"] == target]
    kernels = {"log_likelihood_fwd_kernel", "reparameterize_fwd_kernel", "reparameterize_bwd_kernel"}
    assert {line["kernel"] for line in lines} == kernels | {"kl_columns_kernel", "scale_kernel"}
    for line in lines:
        assert line["registers"] <= REGISTERS, line
        assert line["spills"] == 0, line


@each_target
def test_the_big_operands_are_read_and_written_16_bytes_at_a_time(compiled, target):
    for line in compiled:
        if line["target"] == target:
            load, store = NARROW.get(line["case"], (16, 16))
            if target == "gfx942" and line["case"] == "latent, bfloat16":  # 512 threads share the tile
                load, store = 8, 8
            assert line["load"] >= load, line
            assert line["store"] >= store, line


def test_a_later_launch_hands_over_what_the_first_did():
    command = [sys.executable, "-m", "tests.kernels.launch_triton"]
    subprocess.run(command, cwd=SCRIPT.parents[2], env=ENVIRONMENT, check=True)
