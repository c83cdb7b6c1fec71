"""The ELBO in common training loops: mixed precision, gradient accumulation, data-parallel processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastvae

N, D, L = 6, 8, 4


class Model(nn.Module):
    """Two linear maps, always with the same initial weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(D, 2 * L), nn.Linear(L, D)

    def forward(self, x, backend, seed=1):
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return -fastvae.elbo(x, self.decoder, mu, logvar, seed=seed, backend=backend)


def trained(backend, step, steps=5):
    """The weights after some steps of Adam."""
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.rand(N, D)
    for i in range(steps):
        optimizer.zero_grad()
        step(model, optimizer, x, backend, i)
    return [p.detach() for p in model.parameters()]


def plain(model, optimizer, x, backend, i):
    model(x, backend, seed=i).backward()
    optimizer.step()


def scaled(model, optimizer, x, backend, i):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, backend, seed=i)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def accumulated(model, optimizer, x, backend, i):
    for part in x.split(N // 3):
        (model(part, backend, seed=i) / 3).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@pytest.mark.parametrize(("step", "tolerance"), [(plain, 1e-5), (scaled, 2e-2), (accumulated, 1e-5)])
def test_a_loop_trains_to_the_weights_of_the_reference(step, tolerance):
    ours, theirs = trained("numba", step), trained("reference", step)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert not torch.equal(ours[0], next(Model().parameters()))


WORKER = """
import os, sys
sys.path[:0] = PATHS
import torch
from torch.nn.parallel import DistributedDataParallel
from tests.elbo.test_training import Model, N, D

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
x = torch.rand(2 * N, D, generator=torch.Generator().manual_seed(3))
model = DistributedDataParallel(Model())
model(x[rank * N : (rank + 1) * N], "numba", seed=rank).backward()
if rank == 0:
    torch.save([p.grad for p in model.parameters()], sys.argv[3])
torch.distributed.barrier()
os._exit(0)  # gloo's own threads may end a process that takes itself down while its peer does
"""


@pytest.mark.long  # test_examples.test_ddp compares with one process
def test_two_data_parallel_processes_average_their_gradients(tmp_path):
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "kernels")]
    command = [sys.executable, "-W", "ignore", "-c", WORKER.replace("PATHS", repr(paths))]
    out, store = tmp_path / "gradients.pt", tmp_path / "store"
    workers = [subprocess.Popen([*command, str(rank), str(store), str(out)], stderr=subprocess.PIPE) for rank in (0, 1)]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors.decode()
    x = torch.rand(2 * N, D, generator=torch.Generator().manual_seed(3))
    model = Model()
    for rank in (0, 1):
        (model(x[rank * N : (rank + 1) * N], "reference", seed=rank) / 2).backward()
    torch.testing.assert_close(torch.load(out), [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-6)
