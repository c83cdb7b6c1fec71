"""The training loop: Adam on -ELBO, a progress bar, evaluation on held-out rows, stopping and resuming.

Everything random is a function of the seed and the step: initial weights depend on the seed, the order of the rows in
an epoch on (seed, epoch), and the noise of a step on (seed, step). So a resumed run matches an uninterrupted one.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..vae import VAE
from .data import Data, Units, load_data
from .storage import CHECKPOINT, CommandError, load_checkpoint, save_checkpoint, write_json
from .streams import IgnoreWriteErrors

TEST_SAMPLES = 10  # draws per test row: less noise than with one
TEST_SEEDS = 2**31  # first noise seed of tests; those of training are below
LOG_P_SAMPLES = 200  # draws per test row for the estimate of log p(x)
BAR_STEPS = 20  # steps between updates of the bar's text, which synchronize a GPU
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Options:
    """Options of `python -m fastvae train`; with the defaults, training on the digits takes seconds."""

    data: str | None = None
    likelihood: str = "gaussian"
    scale: float | str = "learned"
    latent: int = 8
    hidden: int = 256
    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    beta: float = 1.0
    seed: int = 0
    device: str = "cpu"
    standardize: bool = False


class Run:
    """A training run: its options, data, model, optimizer and progress."""

    def __init__(self, options: Options, out: Path) -> None:
        self.options, self.out = options, out
        self.data: Data = load_data(options.data, options.likelihood, options.standardize, options.seed)
        self.train_rows, self.test_rows = self.data.split(options.seed)
        torch.manual_seed(options.seed)
        self.model = VAE.mlp(
            tuple(self.data.x.shape[1:]),
            latent=options.latent,
            hidden=options.hidden,
            likelihood=options.likelihood,
            scale=options.scale,
        ).to(options.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), options.lr)
        self.x = self.data.x.to(options.device)
        x = self.own_units(self.data.x)
        self.bounds = [float(x.min()), float(x.max())]
        self.step = 0  # steps taken, over all epochs
        self.sums = self.zero_sums()
        self.history: list[dict[str, Any]] = []

    @classmethod
    def resume(cls, out: Path, overrides: dict[str, Any]) -> "Run":
        """Resume the run whose checkpoint is in ``out``; only the options epochs and device may differ from it."""
        state = load_checkpoint(out / CHECKPOINT)
        try:
            stored = Options(**state["options"])
        except (KeyError, TypeError) as error:
            raise CommandError(f"{out / CHECKPOINT} was not written by this version of fastvae train") from error
        for name, value in overrides.items():
            if name not in ("epochs", "device") and value != getattr(stored, name):
                raise CommandError(
                    f"--{name.replace('_', '-')} {value} differs from the run to resume, which has"
                    f" {getattr(stored, name)}: omit it, or choose another --out"
                )
        run = cls(Options(**{**asdict(stored), **overrides}), out)
        if run.data.fingerprint != state["fingerprint"]:
            raise CommandError(f"the data ({run.data.name}) have changed since the run in {out} started")
        try:
            run.model.load_state_dict(state["model"])
            run.optimizer.load_state_dict(state["optimizer"])
            run.step, run.history = state["step"], state["history"]
            run.sums = state["sums"].to(run.x.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CommandError(f"{out / CHECKPOINT} was not written by this version of fastvae train") from error
        return run

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch; the last may be smaller."""
        return -(-len(self.train_rows) // self.options.batch_size)

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.step // self.steps_per_epoch

    def own_units(self, u: Tensor) -> Tensor:
        """Convert rows from the units of the model to those of the data."""
        return u if self.data.units is None else self.data.units.restore(u)

    def means(self, sums: Tensor) -> dict[str, float]:
        """Means per row, by name, in the units of the data: comparable with and without standardization.

        The ELBO is that with beta = 1, whatever the beta used in training.
        """
        log_likelihood, kl = (sums[:2] / sums[2]).tolist()
        log_likelihood += self.log_jacobian
        return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}

    @property
    def log_jacobian(self) -> float:
        """The log density of a row in the units of the data, minus that in the units of the model."""
        return 0.0 if self.data.units is None else self.data.units.log_jacobian

    def zero_sums(self) -> Tensor:
        """Zeros for the sums of log-likelihood and KL over the rows of an epoch, and the number of rows."""
        return torch.zeros(3, dtype=torch.float64, device=self.options.device)

    def train(self) -> bool:
        """Train to the last epoch or until Ctrl-C; True if finished. In both cases the run is saved in ``out``."""
        start, total = self.step, self.options.epochs * self.steps_per_epoch
        last_saved = time.monotonic()
        with (
            interruptible() as interrupted,
            tqdm(
                total=total,
                initial=self.step,
                unit="step",
                desc=self.data.name,
                dynamic_ncols=True,
                file=IgnoreWriteErrors(sys.stderr),
            ) as bar,
        ):
            while self.step < total and not interrupted():
                order = torch.Generator().manual_seed((self.options.seed << 32) + self.epoch)
                rows = self.train_rows[torch.randperm(len(self.train_rows), generator=order)]
                for batch in rows.split(self.options.batch_size)[self.step % self.steps_per_epoch :]:
                    with self.exclude_compilation(bar) if self.step == start else nullcontext():
                        self.take_step(self.x[batch.to(self.x.device)])
                    bar.update(self.step - bar.n)
                    if self.step % BAR_STEPS == 0 or self.step == total:
                        bar.set_postfix_str(self.epoch_means(), refresh=False)
                    if interrupted():
                        break
                self.check_finite(self.sums)
                if self.step % self.steps_per_epoch == 0:
                    with self.exclude_compilation(bar) if self.step - start <= self.steps_per_epoch else nullcontext():
                        self.end_epoch()
                if time.monotonic() - last_saved > SAVE_SECONDS:
                    self.save()
                    last_saved = time.monotonic()
        self.save()
        return self.step >= total

    @contextmanager
    def exclude_compilation(self, bar: tqdm) -> Iterator[None]:
        """Show on the bar that kernels are compiled in a first call, and exclude its time from the step rate."""
        began = time.time()
        bar.set_description(f"{self.data.name}: compiling kernels")
        yield
        steps, seconds = self.step - bar.n, time.time() - began
        bar.n += steps
        if not bar.disable:  # by TQDM_DISABLE=1 in the environment
            bar.initial += steps
            bar.last_print_n += steps
            bar.start_t += seconds
            bar.last_print_t += seconds
        bar.set_description(self.data.name)

    def take_step(self, x: Tensor) -> None:
        """One step of Adam on the ELBO of a batch."""
        terms = self.model.elbo_terms(x, beta=self.options.beta, seed=self.noise_seed(self.step))
        self.optimizer.zero_grad()
        (-terms.elbo).backward()
        self.optimizer.step()
        self.step += 1
        means = torch.stack((terms.log_likelihood, terms.kl, torch.ones_like(terms.kl)))
        self.sums += len(x) * means.detach()

    def end_epoch(self) -> None:
        """Append the training means of the epoch and the test means to the history."""
        test = self.evaluate()
        self.check_finite(test)
        log_scale = getattr(self.model, "log_scale", None)
        self.history.append(
            {
                "epoch": self.epoch,
                "train": self.means(self.sums),
                "test": self.means(test),
                "scale": None if log_scale is None else float(log_scale.detach().exp()),
            }
        )
        self.sums = self.zero_sums()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """The sums of `zero_sums` over the test rows, with each term averaged over `TEST_SAMPLES` draws."""
        x = self.x[self.test_rows.to(self.x.device)]
        seed = self.noise_seed(TEST_SEEDS + self.epoch)
        terms = self.model.elbo_terms(x, num_samples=TEST_SAMPLES, seed=seed, reduction="sum")
        return torch.stack((terms.log_likelihood, terms.kl, torch.full_like(terms.kl, len(x)))).double()

    def log_likelihood(self, rows: Tensor | None = None) -> float:
        """Estimate of log p(x), which the ELBO bounds: the mean over these rows, by default the test rows, in nats."""
        x = self.x[(self.test_rows if rows is None else rows).to(self.x.device)]
        log_p = self.model.log_likelihood(x, LOG_P_SAMPLES, seed=self.noise_seed(2 * TEST_SEEDS - 1)).mean()
        return float(log_p) + self.log_jacobian

    def check_finite(self, sums: Tensor) -> None:
        """Stop a run that has diverged before its checkpoint is overwritten."""
        if not bool(sums.isfinite().all()):
            hint = "" if self.options.standardize or self.options.likelihood == "bernoulli" else " by --standardize"
            raise CommandError(
                f"the ELBO is no longer finite in epoch {-(-self.step // self.steps_per_epoch)}: try a smaller --lr,"
                f" or data nearer to unit scale{hint}; nothing in {self.out} was overwritten"
            )

    def noise_seed(self, number: int) -> int:
        """The noise seed of a step: the run's seed in the high word of the Philox key, the number in the low word."""
        return (self.options.seed << 32) + number

    def epoch_means(self) -> str:
        """Means over the epoch so far, as text for the progress bar."""
        return "ELBO {elbo:.2f} = log-likelihood {log_likelihood:.2f} - KL {kl:.2f} nats".format(
            **self.means(self.sums)
        )

    def save(self) -> None:
        """Save the checkpoint and the history."""
        state = {
            "options": asdict(self.options),
            "event": list(self.data.x.shape[1:]),
            "names": self.data.names,
            "units": None if self.data.units is None else asdict(self.data.units),
            "bounds": self.bounds,
            "fingerprint": self.data.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
        }
        save_checkpoint(self.out / CHECKPOINT, state)
        write_json(self.out / "history.json", {"options": asdict(self.options), "epochs": self.history})


@dataclass(frozen=True)
class Trained:
    """The model of a checkpoint, on the CPU, for sampling, with column names, units and range of its data."""

    model: VAE
    event: tuple[int, ...]
    names: list[str] | None
    units: Units | None
    bounds: tuple[float, float]

    def sample(self, num: int, seed: int, mean: bool) -> Tensor:
        """Draw x, or E[x|z], ``[num, *event]`` in the units of the data."""
        u = self.model.sample(num, mean=mean, generator=torch.Generator().manual_seed(seed))
        return u if self.units is None else self.units.restore(u)


def load_model(path: Path) -> Trained:
    """Load what sampling needs from a checkpoint."""
    state = load_checkpoint(path)
    try:
        options, event = Options(**state["options"]), tuple(state["event"])
        model = VAE.mlp(
            event,
            latent=options.latent,
            hidden=options.hidden,
            likelihood=options.likelihood,
            scale=options.scale,
        )
        model.load_state_dict(state["model"])
        low, high = state["bounds"]
        units = None if state["units"] is None else Units(**state["units"])
        return Trained(model, event, state["names"], units, (low, high))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"{path} was not written by this version of fastvae train") from error


@contextmanager
def interruptible() -> Iterator[Any]:
    """Defer the first Ctrl-C: the yielded function returns True after it. A second one interrupts immediately."""
    pressed = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
