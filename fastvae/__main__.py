"""The command line, `python -m fastvae` or `fastvae`: train, sample, info."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ._backend import package_version, show_config
from .demo.storage import CHECKPOINT, CommandError, make_folder, write_whole
from .likelihoods import LIKELIHOODS

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it was done, 2 with one line on stderr if it can't be, 130 after Ctrl-C."""
    parser = build_parser()
    args = vars(parser.parse_args(argv))
    command: Callable[..., int] = args.pop("command")
    try:
        return command(**args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "tqdm", "sklearn"):
            raise
        message = f"{error.name} is not installed: pip install 'fastvae-kernels[demo]'"
    except CommandError as error:
        message = str(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return 2


def train(*, out: Path, resume: bool, overwrite: bool, **given: Any) -> int:
    """Train a VAE; write checkpoint, history and pictures."""
    from .demo import pictures, training

    checkpoint = out / CHECKPOINT
    if resume:
        run = training.Run.resume(out, given)
        if run.epoch >= run.options.epochs:
            raise CommandError(f"the run in {out} has finished its {run.epoch} epochs: --epochs N goes on to N")
    else:
        if checkpoint.exists() and not overwrite:
            raise CommandError(
                f"{checkpoint} exists: --resume goes on with it, --overwrite starts anew; or another --out"
            )
        if given.get("likelihood") == "bernoulli" and "scale" in given:
            raise CommandError("--scale belongs to a Gaussian or Laplace likelihood, a Bernoulli has none")
        run = training.Run(training.Options(**given), out)
        make_folder(out)
    finished = run.train()
    if not finished:
        print(
            f"stopped in epoch {run.epoch + 1} of {run.options.epochs}, and saved; to go on:\n"
            f"  {shlex.join([sys.executable, '-m', 'fastvae', 'train', '--out', str(out), '--resume'])}"
        )
        return INTERRUPTED
    log_p = run.log_likelihood()
    paths = pictures.draw_run(run, log_p)
    first, last = run.history[0]["test"], run.history[-1]["test"]
    print(
        f"test ELBO {first['elbo']:.2f} nats a row after epoch 1, {last['elbo']:.2f} after epoch {run.epoch}"
        f" (log-likelihood {last['log_likelihood']:.2f} - KL {last['kl']:.2f});"
        f" log p(x), estimated with {training.LOG_P_SAMPLES} draws a row: {log_p:.2f}"
    )
    print("\n".join(f"  {path}" for path in [*paths, out / "history.json", checkpoint]))
    return 0


def sample(*, checkpoint: Path, num: int, out: Path | None, seed: int, mean: bool) -> int:
    """Draw x ~ p(x) from a trained model."""
    from .demo import pictures, training

    out = checkpoint.with_name("draws.png") if out is None else out
    if out.suffix not in (".png", ".npy"):
        raise CommandError(f"--out {out}: expected a .png or .npy file")
    model, bounds = training.load_model(checkpoint)
    x = model.sample(num, mean=mean, generator=torch.Generator().manual_seed(seed))
    make_folder(out.parent)
    if out.suffix == ".npy":
        import numpy as np

        write_whole(out, lambda path: np.save(path, x.numpy()))
    else:
        title = "E[x | z], z ~ N(0, I)" if mean else "x ~ p(x)"
        pictures.save(pictures.draw_draws(x, title, bounds), out)
    print(f"  {out}")
    return 0


def info() -> int:
    """Print `fastvae.show_config()`."""
    show_config()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Options that are not given are left out, so that --resume can tell them from the stored ones."""
    parser = argparse.ArgumentParser(prog="fastvae", description="Train and sample variational autoencoders.")
    parser.add_argument("--version", action="version", version=package_version("fastvae-kernels"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train a VAE and draw what it learned", argument_default=argparse.SUPPRESS)
    p.set_defaults(command=train)
    p.add_argument("--data", metavar="FILE", help=".npy, .npz or .csv of rows [N, ...]; default: scikit-learn's digits")
    p.add_argument("--likelihood", choices=tuple(LIKELIHOODS), help="p(x|z); default gaussian")
    p.add_argument("--scale", type=scale, metavar="1|learned", help="that of the Gaussian or Laplace; default learned")
    p.add_argument("--latent", type=positive_int, metavar="L", help="latent elements; default 8")
    p.add_argument("--hidden", type=positive_int, metavar="H", help="width of the two networks; default 256")
    p.add_argument("--epochs", type=positive_int, metavar="N", help="default 100")
    p.add_argument("--batch-size", type=positive_int, metavar="N", help="default 64")
    p.add_argument("--lr", type=positive_float, metavar="RATE", help="Adam's step size; default 0.002")
    p.add_argument("--beta", type=weight, metavar="BETA", help="weight of the KL; default 1")
    p.add_argument("--seed", type=seed_number, metavar="SEED", help="of everything random; default 0")
    p.add_argument("--device", type=device, metavar="DEVICE", help="cpu or cuda; default cpu")
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/digits"), help="default runs/digits")
    p.add_argument("--resume", action="store_true", default=False, help="go on with the run in --out")
    p.add_argument("--overwrite", action="store_true", default=False, help="replace the run in --out")

    p = commands.add_parser("sample", help="draw from a trained VAE")
    p.set_defaults(command=sample)
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run")
    p.add_argument("--num", type=positive_int, default=64, metavar="N", help="how many; default 64")
    p.add_argument("--out", type=Path, metavar="FILE", help=".png or .npy; default draws.png beside the checkpoint")
    p.add_argument("--seed", type=seed_number, default=0, metavar="SEED", help="default 0")
    p.add_argument("--mean", action="store_true", help="E[x|z] of a drawn z, without the noise of p(x|z)")

    p = commands.add_parser("info", help="versions, devices, threads, and which backend each op takes here")
    p.set_defaults(command=info)
    return parser


def number(text: str, kind: Callable[[str], Any], allowed: Callable[[Any], bool], expected: str) -> Any:
    """A number of a kind that meets a condition, or argparse's error with what was expected."""
    try:
        if allowed(value := kind(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    return number(text, int, lambda v: v >= 1, "a whole number from 1 on")


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return number(text, float, lambda v: 0 < v < math.inf, "a positive number")


def weight(text: str) -> float:
    """A finite number from 0 on."""
    return number(text, float, lambda v: 0 <= v < math.inf, "a number from 0 on")


def seed_number(text: str) -> int:
    """A whole number that fits the high word of a noise seed."""
    return number(text, int, lambda v: 0 <= v < 2**31, "a whole number from 0 to 2147483647")


def scale(text: str) -> float | str:
    """A positive number, or the word "learned"."""
    return (
        text if text == "learned" else number(text, float, lambda v: 0 < v < math.inf, "a positive number or 'learned'")
    )


def device(text: str) -> str:
    """A device that torch knows and this machine has."""
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return text


if __name__ == "__main__":
    sys.exit(main())
