"""A training step captured in a CUDA graph: forward, backward and Adam, checked against eager steps and timed.

The seed is a tensor that each step reads, so that a replay draws the same noise as an eager step with that seed.
"""

import argparse
import gc
from typing import Any

import torch
from torch import Tensor

import fastvae

from . import results
from .timing import DEVICE, ON_GPU, captured, compiled, race, replays

SIZES = [(128, 784, 20, 512), (4096, 784, 32, 512), (1024, 3072, 128, 1024)] if ON_GPU else [(2, 8, 4, 8)]
STEPS = 5 if ON_GPU else 2  # compared with eager steps


class Step:
    """One step of a VAE of two-layer perceptrons, as in a training loop."""

    def __init__(self, backend: str, N: int, D: int, L: int, hidden: int, *, compile: bool = False) -> None:
        torch.manual_seed(0)  # the same parameters and data in all steps
        self.model = fastvae.VAE.mlp((D,), latent=L, hidden=hidden).to(DEVICE)
        self.x, self.seed = torch.rand(N, D, device=DEVICE), torch.zeros((), dtype=torch.int64, device=DEVICE)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, capturable=ON_GPU)
        self.start = [p.detach().clone() for p in self.model.parameters()]

        def loss() -> Tensor:
            return -self.model.elbo(self.x, seed=self.seed, backend=backend)

        self.loss = compiled(loss) if compile else loss

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    @torch.no_grad()
    def rewind(self) -> None:
        """Reset to the first step, in place, in the tensors that a graph uses."""
        for p, start in zip(self.model.parameters(), self.start, strict=True):
            p.copy_(start)
            for value in self.optimizer.state[p].values():
                value.zero_()

    def train(self, step: Any) -> list[Tensor]:
        """The parameters after several steps from the start, each with its own seed."""
        self.rewind()
        for seed in range(STEPS):
            self.seed.fill_(seed)
            step()
        return [p.detach().clone() for p in self.model.parameters()]


def case(size: tuple[int, int, int, int], seconds: float) -> dict[str, Any]:
    """Measure a line of the table, for N, D, L and the width of the layers."""
    gc.collect()  # a Step is part of a reference cycle, and must not be collected during a capture
    ours, graphed, rival, graphed_rival = (Step(b, *size) for b in ("triton", "triton", *["reference"] * 2))
    graph = captured(graphed)
    ours()  # so that Adam has a state to reset
    eager, replayed = ours.train(ours), graphed.train(graph.replay)
    assert any(not torch.equal(p, start) for p, start in zip(replayed, graphed.start, strict=True))
    # cuBLAS may choose another algorithm in a graph, and Adam can turn the rounding error of a gradient into a full
    # step, so parameters are compared in norm, relative to their total change. Other noise would differ far more.
    for a, b, start in zip(replayed, eager, graphed.start, strict=True):
        far, moved = float((a - b).norm()), float((b - start).norm())
        assert far <= 2e-2 * moved + 1e-6, f"replayed steps end {far:.3g} from eager ones, which moved {moved:.3g}"
    contenders = {
        "fastvae": ours,
        "eager": rival,
        "compile": Step("reference", *size, compile=True),
        "captured": graph.replay,
        "eager, captured": replays(graphed_rival),
    }
    return {"seconds": race(contenders, seconds if ON_GPU else 0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="for all cases together")
    parser.add_argument("--each", type=float, default=2.0, help="seconds of timing a case")
    options = parser.parse_args()
    named = [(f"{N}x{D},{L}", lambda size=(N, D, L, hidden): case(size, options.each)) for N, D, L, hidden in SIZES]
    return results.run("step", named, options.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
