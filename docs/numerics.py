"""Writes the tables of docs/numerics.md, between their markers: `python docs/numerics.py`, a quarter of a minute.

Points, exact values and NIST's problems are those of the tests, so that a table shows what a test holds.
"""

import datetime
import functools
import importlib.metadata
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
import numpy as np
import statsmodels.api as sm
import torch
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture

import fastvae
from fastvae import Status, gmm, regression

sys.path.insert(0, str(Path(__file__).parents[1]))  # to find tests/
from tests.gmm import mixtures
from tests.kernels import test_math as vector_math
from tests.regression.exact import NIST, certified_problem, in_exact_arithmetic

PAGE = Path(__file__).with_suffix(".md")
NONE = "-"  # where there is nothing to compare


class Table(NamedTuple):
    """A table of the page: its columns, what its rows are called, and a function that fills them."""

    head: list[str]
    labels: list[str]
    rows: Any

    def lines(self) -> list[str]:
        """As Markdown."""
        rows = [[label, *cells] for label, cells in zip(self.labels, self.rows(), strict=True)]
        return ["| " + " | ".join(row) + " |" for row in (self.head, ["---"] * len(self.head), *rows)]


def short(value: float) -> str:
    """Two digits; a whole power of ten as one."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def relative(actual: float, exact: Any) -> str:
    """The relative error."""
    return short(float(abs((mpmath.mpf(actual) - exact) / exact)))


def digits(actual: Any, exact: Any, most: float = 15.0) -> float:
    """The worst -log10 of a relative error, or an absolute one where the exact number is 0, from 0 to `most`."""
    actual, exact = np.atleast_1d(actual), np.atleast_1d(exact)
    error = np.abs(actual - exact) / np.where(exact == 0, 1.0, np.abs(exact))
    worst = np.nan_to_num(error, nan=1.0).max()
    return float(np.clip(-np.log10(max(worst, 1e-300)), 0.0, most))


# KL

LOGVARS = [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, -1e-3, -1.0]


def textbook_kl(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """As most training loops have it."""
    return -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)


def distributions_kl(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """By torch's own."""
    q, p = torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    return torch.distributions.kl_divergence(q, p).sum(1)


def kl_rows() -> Iterator[list[str]]:
    """Of one latent element with mu = 0 in float32: values and derivatives."""
    for number in LOGVARS:
        logvar = torch.full((1, 1), number, requires_grad=True)
        with mpmath.workdps(60):
            t = mpmath.mpf(logvar.item())
            value, slope = vector_math.exact_phi(t) / 2, mpmath.expm1(t) / 2
            cells = [mpmath.nstr(value, 5)]
            for form in (textbook_kl, distributions_kl, fastvae.kl_divergence):
                kl = form(torch.zeros(1, 1), logvar)
                (gradient,) = torch.autograd.grad(kl.sum(), logvar)
                cells += [relative(kl.item(), value), relative(gradient.item(), slope)]
        yield cells


# Vector math

TORCH = {"exp": torch.exp, "expm1": torch.expm1, "log": torch.log, "log1p": torch.log1p}
TORCH |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


def ulps(y: np.ndarray, head: np.ndarray, tail: np.ndarray) -> str:
    """The worst error in units of the last place of the exact values."""
    spacing = np.spacing(np.abs(head).astype(y.dtype)).astype(np.float64)
    worst = np.abs((y.astype(np.float64) - head) / spacing - tail / spacing).max()
    return f"{worst:.2f}" if worst < 1000 else short(worst)


def math_rows() -> Iterator[list[str]]:
    """The kernels' functions and torch's at the points of the tests."""
    for name in vector_math.FUNCTIONS:
        cells = []
        for dtype in (np.float32, np.float64):
            x, exact = vector_math.points(name, dtype), vector_math.exact_values(name, dtype)
            cells.append(ulps(vector_math.evaluate(name, x), *exact))
            cells.append(ulps(TORCH[name](torch.from_numpy(x)).numpy(), *exact) if name in TORCH else NONE)
        yield cells


# EM far from the origin

OFFSETS = {"float64": [1e2, 1e4, 1e6, 1e8], "float32": [1e1, 1e2, 1e3]}
ITERATIONS = 50


def covariances_ours(X: np.ndarray, start: gmm.Mixture) -> np.ndarray:
    """Of our fit."""
    fit = gmm.fit(X, len(start.weights), covariance_type=start.covariance_type, init=start, tol=0, max_iter=ITERATIONS)
    return fit.mixture.covariances.astype(np.float64)


def covariances_theirs(X: np.ndarray, start: gmm.Mixture) -> np.ndarray:
    """Of scikit-learn's."""
    kind, c = start.covariance_type, start.covariances.astype(np.float64)
    precisions = (np.linalg.inv(c) if kind in ("full", "tied") else 1 / c).astype(X.dtype)
    model = GaussianMixture(len(start.weights), covariance_type=kind, tol=0, max_iter=ITERATIONS)
    model.set_params(weights_init=start.weights, means_init=start.means, precisions_init=precisions)
    return model.fit(X).covariances_.astype(np.float64)


def offset_rows(dtype: str) -> Iterator[list[str]]:
    """Covariances of data far from the origin, against those of the same numbers less the offset: that is exact."""
    for kind in mixtures.KINDS:
        for covariances in (covariances_ours, covariances_theirs):
            cells = []
            for offset in OFFSETS[dtype]:
                far = (mixtures.data(N=2000, D=3) + offset).astype(dtype)
                near = far - far.dtype.type(offset)
                weights, means, start = (p.astype(dtype) for p in mixtures.start(near, kind=kind)[:3])
                moved = means + far.dtype.type(offset)
                means = moved - far.dtype.type(offset)  # as rounded as the moved ones are
                try:
                    want = covariances(near, gmm.Mixture(weights, means, start, kind))
                    got = covariances(far, gmm.Mixture(weights, moved, start, kind))
                    cells.append(short(float(np.abs(got - want).max() / np.abs(want).max())))
                except ValueError:
                    cells.append("raises")
            yield cells


# Regression

SETS = {path.stem: path for path in NIST}
OURS = ["exact", "fastvae", "fastvae float64"]
WITH_ERRORS = [*OURS, "statsmodels", "statsmodels qr"]
WITHOUT = ["lstsq", "lstsq rcond=-1", "scikit-learn", "scikit-learn tol=1e-15"]


def ours(X: np.ndarray, y: np.ndarray, intercept: bool, precision: str = "auto") -> regression.RegressionFit:
    """Our fit, without a word on what the status says."""
    return regression.fit(X, y, fit_intercept=intercept, precision=precision, on_singular="ignore")


def how(*fits: regression.RegressionFit) -> str:
    """What their status says of them."""
    names = {" and ".join((Status(fit.status).name or "float64").split("|")) for fit in fits}
    return ", ".join(sorted(names))


@functools.cache
def certified(name: str) -> tuple[np.ndarray, np.ndarray, bool, dict[str, Any]]:
    """One of NIST's problems."""
    return certified_problem(SETS[name])


def solved(solver: str, X: np.ndarray, y: np.ndarray, intercept: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Coefficients, the intercept first, and their standard errors where the solver has some."""
    design = np.c_[np.ones(len(y)), X] if intercept else X
    if solver == "exact":
        coef, inverse, rss = in_exact_arithmetic(X, y, intercept=intercept)
        return coef, np.sqrt(rss / (len(y) - len(coef)) * inverse)
    if solver.startswith("statsmodels"):
        ols = sm.OLS(y, design).fit(method="qr" if solver.endswith("qr") else "pinv")
        return ols.params, ols.bse
    if solver.startswith("lstsq"):
        return np.linalg.lstsq(design, y, rcond=-1 if solver.endswith("-1") else None)[0], None
    if solver.startswith("scikit-learn"):
        model = LinearRegression(fit_intercept=intercept, tol=1e-15 if solver.endswith("15") else 1e-6).fit(X, y)
        return np.r_[model.intercept_, model.coef_] if intercept else model.coef_, None
    fit = ours(X, y, intercept, "float64" if solver.endswith("float64") else "auto")
    if not intercept:
        return fit.coef, fit.standard_errors
    return np.r_[fit.intercept, fit.coef], np.r_[fit.intercept_standard_error, fit.standard_errors]


def nist_rows() -> Iterator[list[str]]:
    """Certified digits of coefficients, and how ours were found."""
    for name in SETS:
        X, y, intercept, values = certified(name)
        found = [solved(solver, X, y, intercept)[0] for solver in WITH_ERRORS + WITHOUT]
        yield [*(f"{digits(coef, values['coef']):.1f}" for coef in found), how(ours(X, y, intercept))]


def nist_error_rows() -> Iterator[list[str]]:
    """Certified digits of standard errors."""
    for name in SETS:
        X, y, intercept, values = certified(name)
        yield [f"{digits(solved(s, X, y, intercept)[1], values['coef_sd']):.1f}" for s in WITH_ERRORS]


EXPONENTS = range(0, 15, 2)
PROBLEMS = 5


def ill_conditioned(exponent: int, seed: int, N: int = 30, P: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Singular values from 1 to 10^-exponent, in no particular directions."""
    rng = np.random.default_rng([exponent, seed])
    (U, _), (V, _) = np.linalg.qr(rng.normal(size=(N, P))), np.linalg.qr(rng.normal(size=(P, P)))
    X = U @ np.diag(np.logspace(0, -exponent, P)) @ V.T
    return X, X @ rng.normal(size=P) + 1e-3 * rng.normal(size=N)


def condition_rows() -> Iterator[list[str]]:
    """The worst digits of several problems, and how ours were solved."""
    for exponent in EXPONENTS:
        problems = [ill_conditioned(exponent, seed) for seed in range(PROBLEMS)]
        exact = [solved("exact", X, y, False) for X, y in problems]
        cells = []
        for solver in ("fastvae", "fastvae float64", "lstsq"):
            found = [solved(solver, X, y, False) for X, y in problems]
            which = (0,) if solver == "lstsq" else (0, 1)  # coefficients, standard errors
            worst = [min(digits(f[i], e[i]) for f, e in zip(found, exact, strict=True)) for i in which]
            cells += [f"{number:.1f}" for number in worst]
        cells += [how(*(ours(X, y, False, precision) for X, y in problems)) for precision in ("auto", "float64")]
        yield cells


def offset_table(dtype: str) -> Table:
    """Of one dtype; a row for each type of covariance and library."""
    labels = [f"{kind}, {name}" for kind in mixtures.KINDS for name in ("fastvae", "scikit-learn")]
    return Table(["offset", *map(short, OFFSETS[dtype])], labels, lambda: offset_rows(dtype))


VERSIONS = ["fastvae-kernels", "torch", "numpy", "numba", "scikit-learn", "statsmodels"]


def versions_row() -> Iterator[list[str]]:
    """What the tables were made with, and when."""
    about = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", about.read_text()) if about.exists() else None
    processor = model[1] if model else platform.processor()
    yield [str(datetime.date.today()), *map(importlib.metadata.version, VERSIONS), processor]


TABLES = {
    "versions": Table(["", "date", *VERSIONS, "processor"], ["made"], versions_row),
    "kl": Table(
        ["logvar", "KL", "textbook", "its gradient", "torch.distributions", "its gradient", "fastvae", "its gradient"],
        [
            f"{number:g}" if abs(number) > 1e-3 else ("-" if number < 0 else "") + short(abs(number))
            for number in LOGVARS
        ],
        kl_rows,
    ),
    "math": Table(
        ["function", "float32", "torch float32", "float64", "torch float64"],
        [*vector_math.FUNCTIONS],
        math_rows,
    ),
    "em float64": offset_table("float64"),
    "em float32": offset_table("float32"),
    "nist": Table(["set", *WITH_ERRORS, *WITHOUT, "status"], [*SETS], nist_rows),
    "nist errors": Table(["set", *WITH_ERRORS], [*SETS], nist_error_rows),
    "condition": Table(
        ["condition", "fastvae", "its s.e.", "fastvae float64", "its s.e.", "lstsq", "status", "status of float64"],
        [short(10.0**exponent) for exponent in EXPONENTS],
        condition_rows,
    ),
}


def between(name: str) -> re.Pattern[str]:
    """What stands between the markers of a table, and they themselves."""
    return re.compile(rf"(<!-- {name} begins -->\n\n).*?(\n\n<!-- {name} ends -->)", re.DOTALL)


def main() -> None:
    """Renew all tables, or those named on the command line."""
    page = PAGE.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no convergence, of ill-conditioned designs: the tables say it
        for name in TABLES if len(sys.argv) == 1 else ["versions", *sys.argv[1:]]:
            lines = TABLES[name].lines()
            page, n = between(name).subn(lambda m, lines=lines: m[1] + "\n".join(lines) + m[2], page)  # type: ignore[misc]
            if n != 1:
                raise SystemExit(f"{PAGE.name} has {n} places for the table {name!r}")
            print(f"\n{name}", *lines, sep="\n", flush=True)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
