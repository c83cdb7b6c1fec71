"""A sweep over warps, bytes per tile and programs: the log-likelihood and its gradient for rows of three lengths.

Each point is checked against the closed form, captured in a graph, and timed in replays. The best for all lengths, in
both dtypes, is written into `launch.OPTIONS`, `TILE_BYTES` and `MOST_PROGRAMS` by hand: nothing is tuned at run time.
"""

import argparse
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvae_kernels.triton.elbo import log_likelihood
from fastvae_kernels.triton.language import launch

from . import results
from .timing import DEVICE, ON_GPU, ROUNDS, captured, copies, race

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS: tuple[int, ...]
WARPS: tuple[int, ...]
TILE_BYTES: tuple[int, ...]
PROGRAMS: tuple[int, ...]
if ON_GPU:
    ELEMENTS, LAUNCHES = 1 << 26, 10  # elements of x; launches per graph
    ROWS, WARPS, TILE_BYTES = (784, 16384, 196608), (8, 4), (8192, 16384, 4096)
    PROGRAMS = (4096, 1056, 2112, 1 << 20)  # 1056: 8 per multiprocessor of an H200
else:
    ELEMENTS, LAUNCHES = 64, 1
    ROWS, WARPS, TILE_BYTES, PROGRAMS = (37,), (8,), (4096,), (4096, 1)


class Point(NamedTuple):
    """The first columns of the table."""

    D: int
    dtype: str
    warps: int
    tile_bytes: int
    programs: int


def set_to(warps: int, tile_bytes: int, programs: int) -> None:
    """Use these options from now on; cached launch plans are discarded, since they hold the old ones."""
    launch.OPTIONS["num_warps"] = warps
    log_likelihood.TILE_BYTES, log_likelihood.MOST_PROGRAMS = tile_bytes, programs
    launch._bound.clear()
    from fastvae._elbo.call import CACHE

    CACHE.clear()


class Data:
    """x and x_hat with rows of one length, and the exact gradient of -ELBO."""

    def __init__(self, D: int, dtype: str) -> None:
        torch.manual_seed(0)
        N = max(1, ELEMENTS // D)
        self.x, self.x_hat = (torch.randn(N, D, device=DEVICE).to(DTYPES[dtype]) for _ in range(2))
        self.neg_kl = torch.zeros((), device=DEVICE)
        self.copy = copies(self.x.nbytes + self.x_hat.nbytes, self.x_hat.nbytes)

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """The ELBO and the gradient, with the current options."""
        plan = log_likelihood.Density(
            self.x, self.x_hat, None, likelihood="gaussian", link="identity", num_samples=None, reduction="mean",
            x_scale=None, elbo_dtype=torch.float32,
        )  # fmt: skip
        elbo, _, gradient, _ = plan.evaluate(self.x, self.x_hat, 0.0, self.neg_kl, -1.0, None, False, False)
        assert elbo is not None
        assert gradient is not None
        return elbo, gradient

    def check(self) -> None:
        """Check every element of the gradient, and the value of the ELBO."""
        elbo, gradient = self.evaluate()
        residual = self.x_hat.float() - self.x.float()
        torch.testing.assert_close(gradient.float() * len(self.x), residual, rtol=1e-2, atol=1e-5)
        D = self.x.shape[1]
        truth = -0.5 * residual.double().square().sum() / len(self.x) - 0.918938533204673 * D
        torch.testing.assert_close(elbo.double(), truth, rtol=1e-5, atol=0)


def case(data: Data, point: Point, seconds: float) -> dict[str, Any]:
    """Measure a line of the table."""
    set_to(*point[2:])
    data.check()

    def launches() -> None:
        for _ in range(LAUNCHES):
            data.evaluate()

    times = race(
        {"fastvae": captured(launches).replay, "copy": data.copy}, seconds if ON_GPU else 0, rounds=min(3, ROUNDS)
    )
    return {"point": point, "seconds": {**times, "fastvae": times["fastvae"] / LAUNCHES}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=70, help="for all points together")
    parser.add_argument("--each", type=float, default=0.15, help="seconds of timing a point")
    options = parser.parse_args()
    held: dict[tuple[int, str], Data] = {}

    def run(point: Point) -> dict[str, Any]:
        key = point.D, point.dtype
        if key not in held:
            held[key] = Data(*key)
        return case(held[key], point, options.each)

    # All row lengths with the first options before the next options, because time may run out.
    ways = [(warps, size, programs) for programs in PROGRAMS for warps, size in product(WARPS, TILE_BYTES)]
    points = [Point(D, dtype, *way) for way in ways for dtype, D in product(DTYPES, ROWS)]
    named = [("/".join(map(str, point)), lambda point=point: run(point)) for point in points]
    return results.run("tuning", named, options.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
