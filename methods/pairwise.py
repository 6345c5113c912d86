"""What methods that alternate between two networks share: the likelihood of pairs of images.

Shapes: n images in a batch, N in the training split, B bits, C classes. Codes u of the query and v
of the gallery are tanh outputs, S is 1 where two images share a label, else 0.
"""

from __future__ import annotations

from typing import Literal

from methods.base import Batch, HashMethod, HeadKind, Phase, Schedule
from methods.tensors import F, Tensor

__all__ = [
    "Alternating",
    "bit_balance",
    "full_likelihood",
    "pairwise_likelihood",
    "phase_codes",
    "remember_codes",
]

_CHUNK = 512  # rows of the N x N matrix at a time: 27 MB in float32 for N = 13 000


class Alternating(HashMethod):
    """Base of methods whose networks train in turn, a pass over the split each, on tanh codes."""

    @property
    def schedule(self) -> Schedule:
        """Each network learns from the other's codes."""
        return Schedule.JOINT

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The query first (DAPH's top network), then the gallery (the bottom one)."""
        return ("query", "gallery")

    @property
    def head(self) -> HeadKind:
        """A linear layer; the losses apply tanh."""
        return "fc_tanh"

    def squash(self, h: Tensor) -> Tensor:
        """Return tanh of h (n, B)."""
        return h.tanh()


def pairwise_likelihood(u: Tensor, v: Tensor, similarity: Tensor) -> Tensor:
    """Negative log-likelihood of the similarities, where codes agree on a logistic scale.

    With theta_ij = u_i . v_j / 2: the mean over all pairs of log(1 + exp theta_ij) - S_ij theta_ij
    (Li et al., "Feature learning based deep supervised hashing with pairwise labels", IJCAI 2016,
    between two networks).

    Args:
        u: (n, B) codes.
        v: (m, B) codes.
        similarity: S (n, m), 1 where images share a label, else 0.

    Raises:
        ValueError: the two have different numbers of bits.
    """
    if u.shape[1] != v.shape[1]:
        raise ValueError(f"query codes have {u.shape[1]} bits and gallery codes {v.shape[1]}")
    theta = u @ v.T / 2
    # The cross-entropy on logits is the same number, without overflow, and its slope at theta = 0
    # is 1/2 - S, which log(1 + exp(-|theta|)) + max(theta, 0) does not give.
    return F.binary_cross_entropy_with_logits(theta, similarity.to(theta.dtype))


def bit_balance(u: Tensor, reduce: Literal["sum", "mean"]) -> Tensor:
    """Return the mean over bits of the squared sum, or the squared mean, of each bit of u (n, B).

    It is 0 where every bit is +1 as often as -1. The sum grows with the square of the batch.
    """
    total = u.sum(dim=0) if reduce == "sum" else u.mean(dim=0)
    return total.square().mean()


def phase_codes(h_q: Tensor, h_g: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return u = tanh h_q and v = tanh h_g, (n, B), a gradient only on the side whose phase it is.

    Raises:
        ValueError: the batch is of no phase.
    """
    if batch.phase == "both":
        raise ValueError(
            "this method trains one network at a time: the batch's phase must be query or gallery"
        )
    u, v = h_q.tanh(), h_g.tanh()
    return (u, v.detach()) if batch.phase == "query" else (u.detach(), v)


def remember_codes(memory: Tensor, h: Tensor, rows: Tensor) -> None:
    """Put tanh of the outputs h (n, B) into the rows (n,) of ``memory`` (N, B)."""
    memory[rows] = h.tanh().to(memory.dtype)


def full_likelihood(u: Tensor, v: Tensor, labels: Tensor) -> float:
    """Return :func:`pairwise_likelihood` of the whole split, all N x N pairs.

    In chunks of rows, so that memory grows with N alone: for N = 13 000 and 48 bits about 3 s of
    one CPU core, and nothing noticeable on a GPU.

    Args:
        u: (N, B) codes, without gradient.
        v: (N, B) codes, without gradient.
        labels: (N, C) multi-hot.
    """
    total = 0.0
    for first in range(0, len(u), _CHUNK):
        part = slice(first, first + _CHUNK)
        theta = u[part] @ v.T / 2
        similarity = (labels[part] @ labels.T > 0).to(theta.dtype)
        total += float(F.binary_cross_entropy_with_logits(theta, similarity, reduction="sum"))
    return total / len(u) ** 2
