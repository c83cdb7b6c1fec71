"""Data-parallel training: two processes on the CPU, each with half of the rows, get the same gradients as one process.

The noise of a row is a function of (seed, row within the call), so each rank uses its own seed, and one process can
reproduce the noise of all ranks. DDP averages the gradients of the ranks; if all ranks have the same number of rows,
this is the gradient of the mean over all rows.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import fastvae

RANKS = 2


def start() -> tuple[torch.Tensor, fastvae.VAE]:
    """The same rows and the same weights in every process."""
    torch.manual_seed(0)
    return torch.rand(256, 64), fastvae.VAE.mlp(64, latent=8, hidden=128)


def gradients(vae: fastvae.VAE) -> torch.Tensor:
    """The gradients of all parameters, concatenated."""
    return torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])


def worker(rank: int, folder: str) -> None:
    """Save the gradients of the first step for the rows of this rank."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    x, vae = start()
    parallel = DistributedDataParallel(vae)  # calls vae.elbo
    (-parallel(x.chunk(RANKS)[rank], seed=rank)).backward()  # in a loop: seed=step * RANKS + rank
    torch.save(gradients(vae), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main() -> tuple[float, float]:
    """Return the largest difference between the gradients of the ranks and of one process, and the largest gradient."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=RANKS)
        many = torch.stack([torch.load(f"{folder}/{rank}.pt") for rank in range(RANKS)])
    x, vae = start()
    mu, logvar = vae.encode(x)
    parts = enumerate(zip(mu.chunk(RANKS), logvar.chunk(RANKS), strict=True))
    z = torch.cat([fastvae.reparameterize(*part, seed=rank) for rank, part in parts])
    (-fastvae.elbo(x, vae.decoder(z), mu, logvar, likelihood=vae.likelihood)).backward()
    one = gradients(vae)
    difference, largest = (many - one).abs().max().item(), one.abs().max().item()
    print(f"gradients of {RANKS} processes and of one differ by at most {difference:.1e}; the largest is {largest:.2f}")
    return difference, largest


if __name__ == "__main__":
    main()
