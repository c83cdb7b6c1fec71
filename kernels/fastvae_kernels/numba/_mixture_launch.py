"""How passes over many mixtures are launched: where each problem's rows, parameters and sums lie."""

import math

import numpy as np
import torch
from torch import Tensor

from . import _mixture_pass as passes
from ._buffers import scratch
from ._memory import CODES
from ._mixture_pass import CENTERS, LINEAR, NEAREST
from ._mixture_start import BLOCK, make_seeds
from ._mixture_tiles import DIAG, FULL, PANEL, SPHERICAL, TIED
from ._threads import run

SLOTS, SLOT_ELEMENTS = 32, 1 << 22  # partial sums of a problem, of at most so many numbers
SEED_ROWS, SEED_ELEMENTS = 1 << 14, 1 << 20  # rows that seeds are drawn from


def tile_rows(D: int, K: int) -> int:
    """Rows of a tile: as many as let it and its logits stay in the second cache."""
    most = min(512, 16384 // K, max(128, 4096 // D) if D <= 128 else 64)
    return max(32, most // 16 * 16)


class Mixtures:
    """B problems of one shape, ``restarts`` times each: where they lie, and the parameters and sums of each."""

    def __init__(
        self,
        X: Tensor,
        sample_weight: Tensor | None,
        K: int,
        family: int,
        restarts: int = 1,
        ids: np.ndarray | None = None,
        shift: np.ndarray | None = None,
        seed: int = 0,
        reg_covar: float = 0.0,
    ) -> None:
        self.X = X = X if X.stride(2) == 1 or X.shape[2] == 1 else X.contiguous()
        self.w = None if sample_weight is None else sample_weight.double()
        self.B, self.N, self.D = B, N, D = X.shape
        self.K, self.family, self.restarts, self.seed, self.reg_covar = K, family, restarts, seed, reg_covar
        self.P, self.T = B * restarts, tile_rows(D, K)
        self.tiles = max(1, -(-N // self.T))
        full = family in (FULL, TIED)
        self.matrices, self.shape = 1 if family == TIED else K, (D, D) if full else (D,) if family == DIAG else ()
        self.factor = math.prod(self.shape)
        self.kernel_family = FULL if full else family
        self.size = 2 * K + K * D + 2 * self.matrices * self.factor
        self.F = K * (D + 1) + self.matrices * ((-(-D // 4) * 4) ** 2 if full else self.factor) + 1
        self.slots = max(1, min(SLOTS, self.tiles, SLOT_ELEMENTS // self.F))
        self.room = ((2 * D + 3 + K + 2 + PANEL) * (self.T + 8) + 2 * K + D * D + 7) // 8 * 8  # whole cache lines
        self.ids = np.arange(B) if ids is None else ids
        self.shift = np.zeros((B, D)) if shift is None else shift
        self.statistics = np.empty((self.P, self.slots, self.F))
        self.done, self.flags = np.zeros(self.P, np.int64), np.zeros((self.P, K), np.int64)
        self.result = np.zeros((self.P, 3))
        per_row = {FULL: D * (D + 1), TIED: D * (D + 1), DIAG: 7 * D, SPHERICAL: 5 * D}[family]
        self.ns = K * (0.06 * per_row + 2.0) * N

    def parameters(self) -> np.ndarray:
        """Room for those of all problems."""
        return np.zeros((self.P, self.size))

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Views of weights, c, means, factors and covariances."""
        K, D, P, last = self.K, self.D, len(theta), self.matrices * self.factor
        at = np.cumsum([K, K, K * D, last])
        w, c, means, factors, covariances = np.split(theta, at, axis=1)
        shape = (P, *([] if self.family == TIED else [K]), *self.shape)
        return w, c, means.reshape(P, K, D), factors.reshape(shape), covariances.reshape(shape)

    def sweep(
        self,
        active: np.ndarray,
        old: np.ndarray,
        new: np.ndarray,
        centers: np.ndarray,
        source: int,
        wanted: int,
        after: int,
        *,
        rescue: bool = False,
        step: int = 1,
        resp: Tensor | None = None,
    ) -> np.ndarray:
        """One pass over the rows of the active problems, or every ``step``-th; their results, ``[len(active), 3]``."""
        X, w = self.X, self.w
        N = -(-self.N // step)
        tiles = max(1, -(-N // self.T))
        slots = min(self.slots, tiles)
        threads = torch.get_num_threads()
        args = (
            0, X.data_ptr(), CODES[X.dtype], X.stride(1) * step, X.stride(0), self.restarts,
            0 if w is None else w.data_ptr(), 0 if w is None else w.stride(1) * step, 0 if w is None else w.stride(0),
            0 if resp is None else resp.data_ptr(), 0 if resp is None else CODES[resp.dtype], self.seed,
            N, self.D, self.K, self.T, 0, tiles, slots, address(active), address(self.ids), address(self.shift),
            address(old), address(new), address(centers), self.size, address(self.statistics), self.F,
            address(self.done), address(self.flags), address(self.result), scratch(self.room * threads), self.room,
            self.matrices, source, wanted, after, 1, int(rescue), self.reg_covar,
        )  # fmt: skip
        run(passes.make_pass(self.kernel_family), args, len(active) * slots, self.ns / step * len(active))
        return self.result[active]

    def seeds(self, active: np.ndarray, centers: np.ndarray, spread: bool) -> None:
        """Rows to start from, as means of the parameters ``centers``: spread as k-means++ does, or any."""
        most = min(SEED_ROWS, max(SEED_ELEMENTS // self.D, 4 * self.K))
        step = stride_of(self.N, most)
        X, w, N = self.X, self.w, -(-self.N // step)
        M = -(-N // BLOCK) * BLOCK + 8
        room, threads = ((self.D + 5) * M + self.D + 7) // 8 * 8, torch.get_num_threads()
        args = (
            0, X.data_ptr(), CODES[X.dtype], X.stride(1) * step, X.stride(0), self.restarts,
            0 if w is None else w.data_ptr(), 0 if w is None else w.stride(1) * step, 0 if w is None else w.stride(0),
            self.seed, N, self.D, self.K, address(active), address(self.ids), address(self.shift), address(centers),
            self.size, scratch(room * threads), room, int(spread),
        )  # fmt: skip
        trials = 3 + int(math.log(self.K))
        run(make_seeds(), args, len(active), len(active) * N * self.K * trials * (0.4 * self.D + 1.0))


def address(array: np.ndarray) -> int:
    """Of its first element."""
    return array.__array_interface__["data"][0]


def stride_of(N: int, most: int) -> int:
    """Every which row to take for at most so many, or a few more: no multiple of a small prime, of which the data may
    have a period.
    """
    step = N // most
    while step > 1 and math.gcd(step, 210) > 1:
        step -= 1
    return max(step, 1)


def moments(X: Tensor, sample_weight: Tensor | None, family: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sum of weights [B], weighted mean [B, D] and mean squared distance from it [B] of each problem's rows."""
    shift = np.zeros((X.shape[0], X.shape[2]))
    for _ in range(2):  # the first mean carries the rounding of large offsets
        m = Mixtures(X, sample_weight, 1, family, shift=shift)
        zero = m.parameters()
        squares = m.sweep(np.arange(m.B), zero, m.parameters(), zero, NEAREST, LINEAR, CENTERS)[:, 0]
        linear = m.statistics[:, 0, : m.D + 1]
        total = linear[:, m.D].copy()
        shift = shift + linear[:, : m.D] / total[:, None]
    return total, shift, -2 * squares / total
