"""The ELBO on a GPU against eager torch, `torch.compile`, and a device copy of the fewest bytes: `make gpu`.

    PYTHONPATH=.:kernels python bench/gpu.py [--seconds 300] [--out bench/history/gpu.json]

Each case is checked against the reference before it is timed. Rivals take turns; a time is the median over rounds of
events around some calls, after a write that clears the caches. The copy moves as many bytes as one pass does: x and
x_hat read, the gradient written. It needs torch and triton alone, so that it runs from a bare checkout, and
writes its table into kernels/README.md.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastvae

# N, D, L: MNIST; CIFAR; a wide table; images of 256 x 256 x 3; 64 million elements; a billion
SIZES = [
    *((128, 784, 20), (4096, 784, 32), (512, 3072, 128), (1024, 20000, 10), (64, 196608, 256)),
    *((4096, 16384, 32), (65536, 16384, 32)),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICE = "cuda"
BEGIN, END = "<!-- bench/gpu.py begins -->", "<!-- bench/gpu.py ends -->"  # in kernels/README.md
HEAD = "| case | us | eager | compile | TB/s | of copy |\n|---|---|---|---|---|---|"
FLUSH = 1 << 28  # bytes written between calls: more than any cache holds
LARGEST = 60e9  # bytes of device memory a case may take, eager's temporaries included


def textbook(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """What most training loops write."""
    log_likelihood = -0.5 * (x - x_hat).float().square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    return (log_likelihood - kl).mean()


def fused(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return fastvae.elbo(x, x_hat, mu, logvar, backend="triton")


def forward(function: Any, x: Tensor, leaves: list[Tensor]) -> Any:
    def run() -> None:
        with torch.no_grad():
            function(x, *leaves)

    return run


def forward_backward(function: Any, x: Tensor, leaves: list[Tensor]) -> Any:
    def run() -> None:
        torch.autograd.grad(-function(x, *leaves), leaves)

    return run


def training_step(backend: str, N: int, D: int, L: int, compiled: bool) -> Any:
    """A whole step of a one-layer encoder and decoder, Adam included."""
    model = fastvae.VAE.mlp((D,), latent=L, hidden=512).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    x = torch.rand(N, D, device=DEVICE)

    def loss() -> Tensor:
        return -model.elbo(x, backend=backend)

    loss = torch.compile(loss, dynamic=False) if compiled else loss

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def elapsed(run: Any, calls: int) -> float:
    """Seconds of so many calls: by events on a GPU; by the clock on a CPU, where this file can only be tried."""
    if DEVICE == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def race(contenders: dict[str, Any], seconds: float, flush: Tensor) -> dict[str, float]:
    """Median seconds of a call of each."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = {}
    for name, run in contenders.items():
        for _ in range(5):
            run()
        calls[name] = max(1, round(1e-3 / elapsed(run, 1)))
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 5:
        for name, run in contenders.items():
            flush.zero_()
            times[name].append(elapsed(run, calls[name]) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def copies(read: int, written: int) -> Any:
    """A device copy that moves as many bytes."""
    source = torch.empty((read + written) // 2, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def case(N: int, D: int, L: int, dtype: str, seconds: float, flush: Tensor) -> list[dict[str, Any]]:
    """The lines of one size: forward, and forward and backward."""
    torch._dynamo.reset()
    x, x_hat = (torch.randn(N, D, device=DEVICE).to(DTYPES[dtype]) for _ in range(2))
    leaves = [x_hat.requires_grad_(), *(torch.randn(N, L, device=DEVICE, requires_grad=True) for _ in range(2))]
    compiled = torch.compile(textbook, dynamic=False)
    few = [t[:64].detach().requires_grad_() for t in leaves]
    ours = torch.autograd.grad(fused(x[:64], *few), few)
    theirs = torch.autograd.grad(textbook(x[:64].double(), *[t.double() for t in few]), few)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=2e-2 if dtype == "bf16" else 1e-4, atol=1e-6)
    lines = []
    for what, make, written in (("fwd", forward, 0), ("fwd+bwd", forward_backward, x_hat.nbytes)):
        contenders = {
            "fastvae": make(fused, x, leaves),
            "eager": make(textbook, x, leaves),
            "compile": make(compiled, x, leaves),
            "copy": copies(x.nbytes + x_hat.nbytes, written),
        }
        times = race(contenders, seconds, flush)
        moved = x.nbytes + x_hat.nbytes + written
        lines.append({"case": f"{what} {N}x{D},{L} {dtype}", "seconds": times, "bytes": moved})
    return lines


def show(line: dict[str, Any]) -> str:
    """A row of the table."""
    times, ours = line["seconds"], line["seconds"]["fastvae"]
    rivals = [f"{times[name] / ours:.2f}" if name in times else "" for name in ("eager", "compile")]
    rate = (
        [f"{line['bytes'] / ours / 1e12:.2f}", f"{100 * times['copy'] / ours:.0f} %"] if "copy" in times else ["", ""]
    )
    return "| " + " | ".join([line["case"], f"{1e6 * ours:.1f}", *rivals, *rate]) + " |"


def name_of_device() -> str:
    return "CPU" if DEVICE == "cpu" else torch.cuda.get_device_name()


def write_table(rows: list[str], path: Path) -> None:
    """Put the table between its markers in kernels/README.md."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    machine = f"{name_of_device()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    about = f"{machine}. Rivals' times as multiples of ours."
    path.write_text("\n".join([before + BEGIN, "", about, "", HEAD, *rows, "", END + after]))


def main() -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="The ELBO on a GPU.", formatter_class=formatter)
    parser.add_argument("--seconds", type=float, default=300, help="for all cases together")
    parser.add_argument("--out", type=Path, default=Path("bench/history/gpu.json"))
    parser.add_argument("--readme", type=Path, default=Path("kernels/README.md"), help="where the table stands")
    options = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured")
        return
    cases = [(*size, dtype) for size in SIZES for dtype in DTYPES]
    cases = [c for c in cases if 8 * c[0] * c[1] * DTYPES[c[3]].itemsize < LARGEST]
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=DEVICE)
    share = options.seconds / (3 * len(cases))
    torch.manual_seed(0)
    lines = []
    print(HEAD)
    for N, D, L, dtype in cases:
        for line in case(N, D, L, dtype, share, flush):
            lines.append(line)
            print(show(line), flush=True)
    for N, D, L in SIZES[:2]:
        contenders = {
            "fastvae": training_step("triton", N, D, L, False),
            "eager": training_step("reference", N, D, L, False),
            "compile": training_step("reference", N, D, L, True),
        }
        lines.append({"case": f"training step {N}x{D},{L}", "seconds": race(contenders, share, flush)})
        print(show(lines[-1]), flush=True)
    write_table([show(line) for line in lines], options.readme)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"device": name_of_device(), "torch": torch.__version__, "python": platform.python_version()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "commit": commit, "time": time.time(), "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
