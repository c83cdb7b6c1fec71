"""Launch Triton kernels through a driver that only records calls: ``python -m tests.kernels.launch_triton``.

It compares first and later launches of `launch.launch`, with Triton's own compiler and without a GPU. Later launches
bypass Triton's lookup of the kernel, and must call the driver with the same arguments as the first.
"""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

torch._C._cuda_getCurrentRawStream = lambda device: 7  # taken from torch when the launcher is imported
from fastvae_kernels.triton.elbo import log_likelihood, reparameterize
from fastvae_kernels.triton.language import launch

from .compile_triton import density, latent

calls: list[Any] = []


class Utils:
    """Utilities of the driver, which load kernels without a GPU."""

    def load_binary(self, *args):
        return "module", "function", 32, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 200_000}


class Driver:
    """A driver of a GPU with one stream, 7."""

    utils = Utils()

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source, metadata):
        return lambda *args: calls.append((source, args))


searches: list[Any] = []


def handed_over(args):
    """The grid, stream, function, and all arguments except tensors; arguments for profilers are omitted."""
    return [a for a in (*args[:6], *args[9:]) if not isinstance(a, torch.Tensor)]


def count_searches(kernel):
    """Record Triton's own lookups of a kernel."""
    run = kernel.run

    def noted(*args, **how):
        searches.append(kernel)
        return run(*args, **how)

    kernel.run = noted


def main():
    triton.runtime.driver.set_active(Driver())
    torch.cuda.current_device = lambda: None  # type: ignore[assignment,return-value]  # tensors are on the CPU
    torch.cuda.get_device_capability = lambda device: (9, 0)  # type: ignore
    count_searches(log_likelihood.log_likelihood_fwd_kernel)
    count_searches(reparameterize.reparameterize_fwd_kernel)
    count_searches(reparameterize.reparameterize_bwd_kernel)
    for run in (density, latent):
        calls.clear()
        run()
        count, known, searched = len(calls), len(launch._bound), len(searches)
        run()
        assert len(searches) == searched == known > 0
        assert len(calls) == 2 * count > 0
        assert len(launch._bound) == known
        for (source, first), (same, second) in zip(calls[:count], calls[count:], strict=True):
            assert source is same
            assert handed_over(first) == handed_over(second)
            assert [type(a) for a in first[9:]] == [type(a) for a in second[9:]]
            types = dict(source.signature)
            assert types["N"] == types["mu_row" if "mu_row" in types else "x_row"] == "i64"
            assert types["mean"] == "fp64"
            attributes = {names for names, given in source.attrs.items() if given}
            pointers = {(i,) for i, kind in enumerate(types.values()) if kind.startswith("*")}
            assert attributes == pointers  # attributes of addresses only, not of numbers
    calls.clear()
    misaligned()
    another_triton()


def misaligned():
    """A first row that does not start at a multiple of 16 bytes requires another kernel."""
    memory = torch.ones(8 * 64 + 1)
    for offset in (0, 1):
        x = memory[offset : offset + 8 * 64].view(8, 64)
        plan = log_likelihood.Density(
            x, x, None, likelihood="gaussian", link="identity", num_samples=None, reduction="mean", x_scale=None,
            elbo_dtype=torch.float32,
        )  # fmt: skip
        plan.evaluate(x, x, 0.0, torch.empty_like(plan.elbo), -1.0)
    (aligned, _), (other, _) = calls
    assert [bool(source.attrs.get((0,))) for source in (aligned, other)] == [True, False]


def another_triton():
    """If compiled kernels have another interface, each launch uses Triton's own path, exactly once."""
    launch._bound.clear()
    names: Any = launch.BOUND
    launch.BOUND = (*names, "no such name")
    before = len(calls)
    density()
    density()
    assert not launch._bound
    once = (len(calls) - before) // 2
    launch.BOUND = names
    density()
    for key in launch._bound:
        launch._bound[key] = Changed()
    before = len(calls)
    density()
    assert not launch.BIND
    assert len(calls) - before == once


class Changed:
    """A compiled kernel with another interface."""

    function = packed_metadata = None

    def run(self, only_one):
        """A method with other arguments."""


if __name__ == "__main__":
    main()
