"""What charts and tables call the cases and the libraries, so that a row is understood without a caption."""

import re
from dataclasses import dataclass
from typing import Any

INK, GREY = "#24292f", "#57606a"
COLOURS = {  # of libraries: with a contrast of at least 3 to white
    "PyTorch": "#d55e00",
    "scikit-learn": "#0072b2",
    "oneDAL": "#b03a80",
    "NumPy": "#008f68",
    "statsmodels": "#a67c00",
    "fastvae": INK,
    "other": "#8c959f",
}
SHAPES: dict[str, dict[str, Any]] = {  # markers that look equally large
    "circle": {"marker": "o", "ms": 5.5, "mew": 0},
    "diamond": {"marker": "D", "ms": 4.8, "mew": 0},
    "square": {"marker": "s", "ms": 5.0, "mew": 0},
    "up": {"marker": "^", "ms": 6.0, "mew": 0},
    "down": {"marker": "v", "ms": 6.0, "mew": 0},
}


@dataclass(frozen=True)
class Contender:
    """What is timed beside fastvae. The colour stands for the library, the marker for what is called in it."""

    label: str
    library: str
    marker: str


CONTENDERS = {  # by their names in the history
    "eager": Contender("PyTorch eager", "PyTorch", "circle"),
    "compile": Contender("torch.compile", "PyTorch", "diamond"),
    "bmm": Contender("torch.bmm + Cholesky", "PyTorch", "circle"),
    "lstsq": Contender("torch.linalg.lstsq", "PyTorch", "diamond"),
    "scikit-learn": Contender("scikit-learn", "scikit-learn", "circle"),
    "scikit-learn (1 thread)": Contender("scikit-learn (1 thread)", "scikit-learn", "diamond"),
    "oneDAL": Contender("oneDAL", "oneDAL", "up"),
    "numpy": Contender("NumPy matmul + solve", "NumPy", "circle"),
    "BLAS X'X": Contender("NumPy X.T @ X alone", "NumPy", "diamond"),
    "statsmodels": Contender("statsmodels", "statsmodels", "down"),
    "reference": Contender("fastvae.reference", "fastvae", "square"),
}
DATA = "rows × features, K components"
KINDS = ("full", "tied", "diag", "spherical")
FAMILIES = {  # by how the names of cases begin: a title, what their sizes are, and the name in short
    "elbo": ("ELBO and its gradients", "rows × features, L latents", "ELBO"),
    "sample + KL": ("Sampling and KL in one call", "rows, L latents", "sample + KL"),
    "reparameterize, KL": ("Sampling and KL in two calls", "rows, L latents", "sample, KL"),
    "training step": ("Training step of the demo's VAE", "", "training step"),
    **{f"em {kind}": (f"EM iteration, {kind} covariances", DATA, f"EM {kind}") for kind in KINDS},
    **{f"fit {kind}": (f"Whole fit, {kind} covariances", DATA, f"fit {kind}") for kind in KINDS},
    "mixtures": ("Many mixtures in one call", DATA, "fits"),
    "regressions": ("Many regressions in one call", "rows × features", "regressions"),
    "tall": ("One regression", "rows × features", "regression"),
}


def contender(name: str) -> Contender:
    """By its name in the history; one that is not known keeps its name."""
    return CONTENDERS.get(name, Contender(name, "other", "square"))


def colour(name: str) -> str:
    """That of the contender's library."""
    return COLOURS[contender(name).library]


def order(name: str) -> int:
    """Where a contender stands in a list."""
    return [*CONTENDERS, name].index(name)


def family(case: str) -> str:
    """The words before the numbers in the name of a case."""
    words = case.split()
    return " ".join(words[: next((i for i, word in enumerate(words) if word[0].isdigit()), len(words))]).rstrip(",")


def heading(case: str) -> tuple[str, str]:
    """The title of such cases, and what their sizes are."""
    return FAMILIES.get(family(case), (family(case), "", ""))[:2]


def size(case: str) -> str:
    """``100000x8 K=16`` as ``100k × 8, K = 16``; a batch as ``10k of 64 × 4``."""
    numbers = next((word for word in case.split() if word[0].isdigit()), "")
    sizes = [count(int(number)) for number in re.findall(r"\d+", numbers)]
    batch = f"{sizes.pop(0)} of " if len(sizes) == 3 else ""
    if family(case) in ("sample + KL", "reparameterize, KL"):
        return ", L = ".join(sizes)
    if family(case) == "training step":
        return f"{' × '.join(sizes)} images"
    option = re.search(r"(\w)=(\d+)", case)
    return f"{batch}{' × '.join(sizes)}" + (f", {option[1]} = {option[2]}" if option else "")


def short(case: str) -> str:
    """Family and size in a few words."""
    name = FAMILIES.get(family(case), ("", "", family(case)))[2]
    batch, of, rest = size(case).partition(" of ")
    return f"{batch} {name} {rest}" if of else f"{name} {batch}"


def count(number: int) -> str:
    """Whole thousands from 10,000 on as k, whole millions as M."""
    if number >= 1_000_000 and number % 1_000_000 == 0:
        return f"{number // 1_000_000}M"
    return f"{number // 1000}k" if number >= 10_000 and number % 1000 == 0 else str(number)
