"""Portable standard-normal noise: Philox-4x32-10 and Box-Muller, a pure function of (seed, row, draw, latent element).

    key     = (seed mod 2^32, seed div 2^32)
    counter = (l div 4, k, n mod 2^32, n div 2^32)  ->  words w0 w1 w2 w3;  element l takes word l mod 4
    u = fl32(w) 2^-32 + 2^-33,   t = fl32(int32(w')) 2^-32       for (w, w') = (w0, w1) and (w2, w3)
    eps = sqrt(-2 log u) (cos 2 pi t, sin 2 pi t)                so |eps| <= 6.77

The words are the same on every device and in every backend, for any batch split or block size; eps agrees to 2e-6.
u and t are float32 numbers for every dtype, so float64 noise is the float32 noise, computed more accurately.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import math

import torch
from torch import Tensor

ROUNDS = 10
MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox-4x32-10: four 32-bit words for each counter.

    Parameters
    ----------
    counter : int64 tensor ``[4, ...]``, each entry in [0, 2^32)
    key : int64 tensor ``[2]``, each entry in [0, 2^32)

    Returns
    -------
    int64 tensor ``[4, ...]``, each entry in [0, 2^32)

    Examples
    --------
    >>> words = philox(torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    >>> [f"{int(w):08x}" for w in words]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    r = torch.arange(ROUNDS, device=key.device)
    keys = ((key[i] + r * WEYL[i]) & MASK for i in (0, 1))  # two [ROUNDS]
    for k0, k1 in zip(*(k.unbind() for k in keys), strict=True):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # int64 wraps modulo 2^64: the same bits as uint64
        c0, c1 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK
        c2, c3 = ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
    return torch.stack((c0, c1, c2, c3))


def standard_normal(
    shape: tuple[int, ...], seed: Tensor, *, num_samples: int | None = None, first_row: int = 0, dtype: torch.dtype
) -> Tensor:
    """Noise for ``shape = (N, *latent)``: ``[N, *latent]``, or ``[K, N, *latent]`` for ``num_samples = K``.

    Parameters
    ----------
    shape : tuple of ints
        (N, *latent); l numbers the latent elements of a row in row-major order.
    seed : 0-d int64 tensor
        Not negative; the result is on its device.
    num_samples : int
        Number of draws K per row.
    first_row : int
        Index n of the first row.
    dtype : torch.dtype
        torch.float32 or torch.float64, in which eps is computed from u and t.

    Examples
    --------
    >>> seed = torch.tensor(7)
    >>> whole = standard_normal((5, 3), seed, dtype=torch.float32)
    >>> torch.equal(whole[3:], standard_normal((2, 3), seed, first_row=3, dtype=torch.float32))
    True
    """
    N, L, K, device = shape[0], math.prod(shape[1:]), num_samples or 1, seed.device
    n = torch.arange(first_row, first_row + N, device=device).view(1, N, 1)
    k = torch.arange(K, device=device).view(K, 1, 1)
    block = torch.arange(-(-L // 4), device=device)  # l // 4
    counter = torch.stack(torch.broadcast_tensors(block, k, n & MASK, n >> 32))  # [4, K, N, ceil(L / 4)]
    words = philox(counter, torch.stack((seed & MASK, (seed >> 32) & MASK)))

    w, w_signed = words[0::2], words[1::2]  # [2, K, N, ceil(L / 4)]
    w_signed = torch.where(w_signed < 2**31, w_signed, w_signed - 2**32)
    u = (w.to(torch.float32) * 2**-32 + 2**-33).to(dtype)
    t = (w_signed.to(torch.float32) * 2**-32).to(dtype)
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * t
    eps = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)  # [2, K, N, ceil(L / 4), 2]
    eps = eps.permute(1, 2, 3, 0, 4).reshape(K, N, 4 * block.numel())[..., :L]
    return eps.reshape(shape if num_samples is None else (K, *shape))
