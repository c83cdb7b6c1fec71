"""Data-parallel training: two processes on the CPU, each with half of the rows, get the gradients of one process.

The noise of a row is a function of (seed, row within the call), so each rank has a seed of its own, and one process can
repeat the noise of all. DDP averages the ranks' gradients: those of the mean of all rows where ranks have equally many.
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
    """All of them, in one row."""
    return torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])


def worker(rank: int, folder: str) -> None:
    """The first step's gradients, with this rank's rows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    x, vae = start()
    parallel = DistributedDataParallel(vae)  # calls vae.elbo
    (-parallel(x.chunk(RANKS)[rank], seed=rank)).backward()  # in a loop: seed=step * RANKS + rank
    torch.save(gradients(vae), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main() -> tuple[float, float]:
    """The largest difference between gradients of many processes and of one, and the largest gradient."""
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
    print(f"gradients of {RANKS} processes and of one differ by {difference:.1e} at most; the largest is {largest:.2f}")
    return difference, largest


if __name__ == "__main__":
    main()
