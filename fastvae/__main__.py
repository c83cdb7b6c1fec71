"""The command line, `python -m fastvae` or `fastvae`: train, sample, info."""

import argparse
import contextlib
import io
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .demo.storage import CHECKPOINT, CommandError, error_text, make_folder, write_array, write_table
from .demo.streams import IgnoreWriteErrors, open_streams, write_stderr, write_stdout

# torch, which takes seconds to import, is imported only when a command needs it.

INTERRUPTED = 130  # exit status that a shell reports after Ctrl-C
BROKEN_PIPE = 141  # exit status after a broken pipe
LIKELIHOODS = ("gaussian", "laplace", "bernoulli")
MAX_TILES = 10_000  # in a picture
MAX_INT = 2**31 - 1
# parts of the messages, since torch has no error class for it on a CPU
OUT_OF_MEMORY = ("allocate memory", "out of memory", "multiplication overflow", "size calculation overflow")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 on success, 2 after an error, reported in one line on stderr, 130 after Ctrl-C, and 141 after a broken pipe.
    """
    has_stdout = open_streams()
    parser = build_parser()
    try:
        if not has_stdout:
            raise CommandError("stdout is closed; to print nothing, use > /dev/null")
        args = vars(parser.parse_args(argv))
        command: Callable[..., tuple[int, str]] = args.pop("command")
        status, text = command(**args)
        write_stdout(text)
        return status
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "tqdm", "sklearn"):
            raise
        message = f"{error.name} is not installed: pip install 'fastvae-kernels[demo]'"
    except CommandError as error:
        message = str(error)
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:
        message = f"{error.filename}: {error_text(error)}" if error.filename else error_text(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        message = f"not enough memory: {error_text(error).rpartition('memory: ')[2]}"
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        IgnoreWriteErrors(sys.stderr).flush()  # at exit, an error here would change the exit status
    write_stderr(f"{parser.prog}: error: {message}")
    return 2


def train(*, out: Path, resume: bool, overwrite: bool, **options: Any) -> tuple[int, str]:
    """Train a VAE; write checkpoint, history and pictures."""
    from .demo import pictures, training

    checkpoint = out / CHECKPOINT
    if resume:
        run = training.Run.resume(out, options)
        if run.epoch >= run.options.epochs:
            raise CommandError(f"the run in {out} has finished its {run.epoch} epochs: use --epochs N to train up to N")
    else:
        if checkpoint.exists() and not overwrite:
            raise CommandError(
                f"{checkpoint} exists: use --resume to continue, --overwrite to start again, or another --out"
            )
        if options.get("likelihood") == "bernoulli" and "scale" in options:
            raise CommandError("--scale is for a Gaussian or Laplace likelihood; a Bernoulli has no scale")
        if options.get("likelihood") == "bernoulli" and "standardize" in options:
            raise CommandError("--standardize is for a Gaussian or Laplace likelihood; a Bernoulli needs x in [0, 1]")
        run = training.Run(training.Options(**options), out)
        make_folder(out)
    finished = run.train()
    if not finished:
        return INTERRUPTED, (
            f"stopped in epoch {run.epoch + 1} of {run.options.epochs}, and saved; to continue:\n"
            f"  {shlex.join([sys.executable, '-m', 'fastvae', 'train', '--out', str(out), '--resume'])}"
        )
    log_p = run.log_likelihood()
    paths = pictures.draw_run(run, log_p)
    first, last = run.history[0]["test"], run.history[-1]["test"]
    return 0, (
        f"test ELBO {first['elbo']:.2f} nats per row after epoch 1, {last['elbo']:.2f} after epoch {run.epoch}"
        f" (log-likelihood {last['log_likelihood']:.2f} - KL {last['kl']:.2f});"
        f" log p(x), estimated with {training.LOG_P_SAMPLES} draws per row: {log_p:.2f}\n"
        + "\n".join(f"  {path}" for path in [*paths, out / "history.json", checkpoint])
    )


def sample(*, checkpoint: Path, num: int, out: Path | None, seed: int, mean: bool) -> tuple[int, str]:
    """Draw x ~ p(x) from a trained model."""
    from .demo import pictures, training

    out = checkpoint.parent / "draws.png" if out is None else out
    kind = out.suffix.lower()
    if kind not in (".png", ".npy", ".csv"):
        raise CommandError(f"--out {out}: expected a .png or .npy file, or a .csv for a table")
    if kind == ".png" and num > MAX_TILES:
        raise CommandError(f"--num {num}: a picture has room for {MAX_TILES} draws; for more, use --out FILE.npy")
    trained = training.load_model(checkpoint)
    if kind == ".csv" and len(trained.event) != 1:
        shape = " x ".join(map(str, trained.event))
        raise CommandError(
            f"--out {out}: a table has rows of numbers, but these draws are {shape} each: use a .npy file"
        )
    x = trained.sample(num, seed, mean)
    make_folder(out.parent)
    if kind == ".npy":
        write_array(out, x.numpy())
    elif kind == ".csv":
        write_table(out, x.numpy(), trained.names)
    else:
        title = "E[x | z], z ~ N(0, I)" if mean else "x ~ p(x)"
        pictures.save(pictures.draw_draws(x, title, trained.bounds, trained.names), out)
        if not mean:
            return (
                0,
                f"  {out}\nwith the noise of p(x|z), which can look like static; use --mean for E[x|z], without it",
            )
    return 0, f"  {out}"


def info() -> tuple[int, str]:
    """Print the output of `fastvae.show_config()`."""
    from ._core.backend import show_config

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show_config()
    return 0, printed.getvalue()


class Parser(argparse.ArgumentParser):
    """A parser whose help raises an error if stdout cannot be written; that of argparse ignores it."""

    def print_help(self, file: Any = None) -> None:
        """Print the help to stdout."""
        write_stdout(self.format_help())


class Version(argparse.Action):
    """Print the version and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version with `write_stdout`."""
        try:
            write_stdout(version("fastvae-kernels"))
        except PackageNotFoundError:
            write_stdout("not installed")
        parser.exit()


STANDARDIZE = (
    "for tables whose columns have different scales: train on (x - mean) / std, with the mean and std of each feature"
    " over the training rows. Draws and log-likelihoods are still in the units of the data: log p(x) ="
    " log p(standardized x) - sum log std"
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser. Options that are not passed have no default here, so that --resume can use the stored ones."""
    parser = Parser(
        prog="fastvae",
        description="Train and sample variational autoencoders.",
        epilog="Exit status: 0 on success, 2 after an error (reported in one line on stderr), 130 after Ctrl-C, 141"
        " after a broken pipe.",
    )
    parser.add_argument(
        "--version", action=Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train a VAE and draw what it learned", argument_default=argparse.SUPPRESS)
    p.set_defaults(command=train)
    p.add_argument("--data", metavar="FILE", help=".npy, .npz or .csv of rows [N, ...]; default: scikit-learn's digits")
    p.add_argument("--standardize", action="store_true", help=STANDARDIZE)
    p.add_argument("--likelihood", choices=LIKELIHOODS, help="p(x|z); default gaussian")
    p.add_argument("--scale", type=scale, metavar="1|learned", help="scale of the Gaussian or Laplace; default learned")
    p.add_argument("--latent", type=positive_int, metavar="L", help="number of latent elements; default 8")
    p.add_argument("--hidden", type=positive_int, metavar="H", help="width of the two networks; default 256")
    p.add_argument("--epochs", type=positive_int, metavar="N", help="default 100")
    p.add_argument("--batch-size", type=positive_int, metavar="N", help="default 64")
    p.add_argument("--lr", type=step_size, metavar="RATE", help="Adam's step size; default 0.002")
    p.add_argument("--beta", type=weight, metavar="BETA", help="weight of the KL; default 1")
    p.add_argument("--seed", type=seed_number, metavar="SEED", help="seed of all random numbers; default 0")
    p.add_argument("--device", type=device, metavar="DEVICE", help="cpu or cuda; default cpu")
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/digits"), help="default runs/digits")
    p.add_argument("--resume", action="store_true", default=False, help="continue the run in --out")
    p.add_argument("--overwrite", action="store_true", default=False, help="replace the run in --out")

    p = commands.add_parser("sample", help="draw from a trained VAE")
    p.set_defaults(command=sample)
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run")
    p.add_argument("--num", type=positive_int, default=64, metavar="N", help="number of draws; default 64")
    p.add_argument(
        "--out", type=Path, metavar="FILE", help=".png, .npy or .csv; default draws.png beside the checkpoint"
    )
    p.add_argument("--seed", type=seed_number, default=0, metavar="SEED", help="default 0")
    p.add_argument(
        "--mean", action="store_true", help="draw E[x|z], the mean of the decoder, without the noise of p(x|z)"
    )

    p = commands.add_parser("info", help="print versions, devices, threads, and which backend each operation uses")
    p.set_defaults(command=info)
    return parser


def number(text: str, kind: Callable[[str], Any], allowed: Callable[[Any], bool], expected: str) -> Any:
    """Convert text to a number that meets a condition, or raise argparse's error with what was expected."""
    try:
        if allowed(value := kind(text)):
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


def positive_int(text: str) -> int:
    """An integer from 1 to 2147483647."""
    value = number(text, int, lambda v: v >= 1, "an integer of at least 1")
    return number(text, lambda _: value, lambda v: v <= MAX_INT, f"an integer of at most {MAX_INT}")


def step_size(text: str) -> float:
    """A number above 0, and small enough for Adam's products in float32."""
    value = number(text, float, lambda v: 0 < v < math.inf, "a positive number")
    return number(text, lambda _: value, lambda v: v <= 1e30, "a number of at most 1e30")


def weight(text: str) -> float:
    """A finite number that is not negative."""
    return number(text, float, lambda v: 0 <= v < math.inf, "a nonnegative number")


def seed_number(text: str) -> int:
    """An integer that fits in the high word of a noise seed."""
    return number(text, int, lambda v: 0 <= v <= MAX_INT, f"an integer from 0 to {MAX_INT}")


def scale(text: str) -> float | str:
    """A positive number, or the word "learned"."""
    return (
        text if text == "learned" else number(text, float, lambda v: 0 < v < math.inf, "a positive number or 'learned'")
    )


def device(text: str) -> str:
    """A device that torch supports, this machine has, and whose numbers can be read."""
    if text == "cpu":
        return text
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=text).item()
    except Exception as error:  # each kind of missing device raises its own
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {error_text(error)}") from error
    return text


if __name__ == "__main__":
    sys.exit(main())
