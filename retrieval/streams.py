"""Counter-based random streams: every draw is a function of (seed, purpose, counters) alone.

Nothing here has a state. The same call gives the same numbers in any process, in any order, on
any number of workers, which is what makes a replayed query stage equal joint training bit for
bit. Per-sample draws use Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), vectorised over samples; module-level draws (dropout, initialisation) seed
torch's generator once for each (side, epoch, step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def derive(*parts: str | int) -> int:
    """Return 64 bits derived from the parts by SHA-256; order and type matter."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def philox4x32(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint32]:
    """Philox4x32-10 on many counters at once.

    Args:
        counter: (n, 4), each entry in [0, 2^32).
        key: 64 bits; the low word is key 0, the high word key 1.

    Returns:
        (n, 4) uniformly distributed 32-bit words.
    """
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) & _MASK for i in range(4))
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _MASK,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(
    seed: int, purpose: str, ids: NDArray[np.integer], n: int, *, epoch: int = 0
) -> NDArray[np.uint32]:
    """Return (len(ids), n) random 32-bit words, a function of (seed, purpose, epoch, id)."""
    ids64 = np.asarray(ids).astype(np.uint64)
    key = derive(seed, purpose)
    counter = np.empty((len(ids64), 4), dtype=np.uint64)
    counter[:, 0] = ids64 & _MASK
    counter[:, 1] = ids64 >> _SHIFT
    counter[:, 2] = np.uint64(epoch)
    blocks = []
    for block in range(-(-n // 4)):
        counter[:, 3] = np.uint64(block)
        blocks.append(philox4x32(counter, key))
    if not blocks:
        return np.empty((len(ids64), 0), np.uint32)
    return np.concatenate(blocks, axis=1)[:, :n]


def uniform(
    seed: int, purpose: str, ids: NDArray[np.integer], n: int, *, epoch: int = 0
) -> NDArray[np.float64]:
    """Return (len(ids), n) floats in [0, 1), a function of (seed, purpose, epoch, id)."""
    return words(seed, purpose, ids, n, epoch=epoch) / 2.0**32


def signs(seed: int, purpose: str, ids: NDArray[np.integer], n: int) -> NDArray[np.int8]:
    """Return (len(ids), n) values in {-1, +1}, a function of (seed, purpose, id): tie bits."""
    low = words(seed, purpose, ids, n) & np.uint32(1)
    return (low.astype(np.int8) * 2 - 1).astype(np.int8)


def permutation(seed: int, purpose: str, n: int, *, epoch: int = 0) -> NDArray[np.int64]:
    """Return a permutation of range(n): samples in the order of their own 64 random bits."""
    draw = words(seed, purpose, np.arange(n), 2, epoch=epoch).astype(np.uint64)
    return np.argsort((draw[:, 0] << _SHIFT) | draw[:, 1], kind="stable").astype(np.int64)


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a numpy generator for (seed, purpose), for draws that are not by sample."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *purpose)))


@contextmanager
def torch_stream(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed torch's global generators with (seed, purpose); put the previous state back after.

    Dropout, stochastic depth and initialisation draw from torch's global generator. Entering
    this context for each (side, epoch, step) gives each side draws that the other cannot move.
    """
    import torch

    previous = torch.get_rng_state()
    cuda = torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    previous_cuda = torch.cuda.get_rng_state_all() if cuda else []
    torch.manual_seed(derive(seed, *purpose) & 0x7FFFFFFFFFFFFFFF)
    try:
        yield
    finally:
        torch.set_rng_state(previous)
        if cuda:
            torch.cuda.set_rng_state_all(previous_cuda)
