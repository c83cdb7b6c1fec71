"""Compile every Triton kernel for GPUs, without having one.

    python tests/kernels/compile_triton.py    prints one line of JSON for each kernel

The launch plans run as in a training step, but kernels are compiled instead of launched. A line has the case, the
kernel, the target, registers and spills per thread, and the widest accesses to global memory in bytes. This needs its
own process: with the interpreter enabled, nothing can be compiled.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastvae_kernels.triton.elbo import log_likelihood, reparameterize
from fastvae_kernels.triton.language import launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
NUMBERS = {"int64": "i64", "int32": "i32", "float64": "fp64"}
launched: list[Any] = []


def record(kernel, programs, tensors, numbers, constants):
    launched.append((kernel, tensors, constants))


def density(dtype=torch.float32, D=784, K=None, likelihood="gaussian", link="identity", scale=None, reduction="mean",
            x_dtype=None, N=64):  # fmt: skip
    """The ELBO with its gradient, and a second backward."""
    x = torch.ones(N, D, dtype=x_dtype or dtype)
    x_hat = torch.ones(*(() if K is None else (K,)), N, D, dtype=dtype)
    plan = log_likelihood.Density(
        x, x_hat, scale, likelihood=likelihood, link=link, num_samples=K, reduction=reduction,
        x_scale=1 / 255 if x_dtype is torch.uint8 else None, elbo_dtype=torch.float32,
    )  # fmt: skip
    log_scale, need = (0.0, False) if scale is None else (scale, True)
    plan.evaluate(x, x_hat, log_scale, torch.empty_like(plan.elbo), None if reduction == "none" else -1.0, None, need)
    plan.evaluate(x, x_hat, log_scale, None, torch.empty_like(plan.log_lik), None, need)


def latent(dtype=torch.float32, L=20, K=None, prior=False, free_bits=0.0, reduction="mean", seed=True, N=64):
    """Draws and KL, and their backward."""
    mu, dz = torch.ones(N, L, dtype=dtype), torch.ones(*(() if K is None else (K,)), N, L, dtype=dtype)
    pair = (torch.ones(N, L), torch.ones(L)) if prior else None
    plan = reparameterize.Latent(mu, mu, pair, K, reduction)
    word = torch.zeros((), dtype=torch.int64) if seed else None
    _, _, _, kept, _ = plan.forward(mu, mu, pair, word, 1.0, free_bits, want_gradients=True)
    upstream = torch.empty_like(plan.value)
    plan.backward(mu, mu, pair, word, 1.0, kept, dz if seed else None, upstream, upstream)


def column(*shape):
    return torch.zeros(shape)


CASES = {
    "elbo 784": lambda: density(),
    "elbo 64": lambda: density(D=64),
    "elbo 196608": lambda: density(D=196608),
    "elbo, each row": lambda: density(D=196608, reduction="none"),
    "elbo, float64": lambda: density(torch.float64),
    "elbo, bfloat16": lambda: density(torch.bfloat16),
    "elbo, float16": lambda: density(torch.float16),
    "elbo, bfloat16 and uint8": lambda: density(torch.bfloat16, D=3072, x_dtype=torch.uint8),
    "elbo, odd rows": lambda: density(D=783),
    "elbo, draws": lambda: density(K=8),
    "bernoulli": lambda: density(likelihood="bernoulli"),
    "laplace": lambda: density(likelihood="laplace"),
    "laplace, tanh, scale of features": lambda: density(likelihood="laplace", link="tanh", scale=column(784)),
    "sigmoid": lambda: density(link="sigmoid"),
    "tanh": lambda: density(link="tanh"),
    "scale": lambda: density(scale=column()),
    "scale of features": lambda: density(scale=column(784)),
    "scale of elements": lambda: density(scale=column(64, 784)),
    "latent 20": lambda: latent(),
    "latent 512": lambda: latent(L=512),
    "latent 4096, each row": lambda: latent(L=4096, reduction="none"),
    "latent, float64": lambda: latent(torch.float64, L=512),
    "latent, bfloat16": lambda: latent(torch.bfloat16, L=512),
    "latent, draws": lambda: latent(K=8),
    "prior": lambda: latent(L=512, prior=True),
    "free bits": lambda: latent(L=512, free_bits=0.1),
    "prior, free bits": lambda: latent(L=512, prior=True, free_bits=0.1),
    "kl": lambda: latent(L=512, seed=False),
    "scale_": lambda: log_likelihood.scale_((torch.ones(64, 784), None, torch.ones(64, 20)), torch.ones(()), -1.0),
}

# Each kernel once, and the variants that need the most registers or read memory in a different way.
FEW = {
    *("elbo 784", "elbo, odd rows", "elbo, bfloat16 and uint8", "laplace, tanh, scale of features"),
    *("latent, bfloat16", "prior, free bits", "scale_"),
}


def source(kernel, tensors, constants):
    """The source that Triton compiles for a launch with aligned addresses."""
    names, signature, attributes = kernel.arg_names, {}, {}
    values: dict[Any, Any] = {}
    for i, (name, parameter) in enumerate(zip(names, kernel.params, strict=True)):
        if i < len(tensors):
            if tensors[i] is None:
                signature[name], values[(i,)] = "constexpr", None
            else:
                signature[name] = POINTERS[tensors[i].dtype]
                attributes[(i,)] = [["tt.divisibility", launch.ALIGNMENT]]
        elif parameter.is_constexpr:
            signature[name], values[(i,)] = "constexpr", constants[i - len(names) + len(constants)]
        else:
            signature[name] = parameter.annotation_type or NUMBERS[parameter.annotation]
            signature[name] = NUMBERS.get(signature[name], signature[name])
    return ASTSource(kernel, signature=signature, constexprs=values, attrs=attributes)


def nvidia(compiled):
    """Registers, spilled bytes, and the widest load and store, from the report of the assembler and the PTX."""
    ptx = compiled.asm["ptx"]
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    tool = tools / ("ptxas-blackwell" if target >= "sm_100" and len(target) > 5 and target[3] == "1" else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [str(tool), "-v", "--fmad=false", f"--gpu-name={target}", str(path), "-o", str(path) + ".cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", report))
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    widths = {"ld": [0], "st": [0]}
    for kind, vector, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\b", ptx):
        widths[kind].append(int(vector or 1) * int(bits) // 8)
    return registers, spills, max(widths["ld"]), max(widths["st"])


def amd(compiled):
    """The same from the metadata of the assembly."""
    text = compiled.asm["amdgcn"]
    spills = sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text))
    registers = max(int(n) for n in re.findall(r"\.vgpr_count:\s*(\d+)", text))
    words = {"": 4, "x2": 8, "x3": 12, "x4": 16}
    widths = {}
    for kind in ("load", "store"):
        widths[kind] = max([words[w] for w in re.findall(rf"(?:global|buffer)_{kind}_dword(x\d)?\b", text)], default=0)
    return registers, spills, widths["load"], widths["store"]


def main(targets, cases):
    """Compile the cases for the targets."""
    log_likelihood.launch = reparameterize.launch = record
    for case in cases:
        launched.clear()
        CASES[case]()
        for i, (kernel, tensors, constants) in enumerate(launched):
            for name in targets:
                target = TARGETS[name]
                options = launch.options(divmod(target.arch, 10) if target.backend == "cuda" else (9, 4))
                compiled = triton.compile(source(kernel, tensors, constants), target=target, options=options)
                registers, spills, load, store = (nvidia if target.backend == "cuda" else amd)(compiled)
                line = {"case": case, "launch": i, "kernel": kernel.__name__, "target": name, "registers": registers}
                print(json.dumps({**line, "spills": spills, "load": load, "store": store}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="by default all")
    parser.add_argument("--few", action="store_true", help="only each kernel once, and the dearest variants")
    options = parser.parse_args()
    main(options.targets or [*TARGETS], [case for case in CASES if case in FEW or not options.few])
