"""Quantisation terms that plug into any method: CAQ, the correlation-aware quantisation of DCAH.

Not the gallery's bits are the query's target, but the query's own continuous similarities to the
gallery's codes: taking the sign must preserve them.
"""

from __future__ import annotations

from methods.base import Quantizer
from methods.losses import cosine, sgn
from methods.tensors import F, Tensor

__all__ = ["caq", "caq_temperatures", "quantizer_loss", "straight_through"]

_ABSOLUTE = 0.01  # weight of the absolute difference in CAQ, as in the authors' code


def straight_through(h: Tensor) -> Tensor:
    """Return sgn(h), exactly -1 or +1, whose gradient is passed to h as it is."""
    return sgn(h) + (h - h.detach())  # h + (sgn(h) - h) would round, to 0 for large h


def caq_temperatures(bits: int) -> tuple[float, float]:
    """Return (t0, t1), of the binary and of the continuous similarities, for a code length.

    The authors' code has them for 16, 32, 48 and 64 bits. The rest is ours: shorter codes take
    those of 16, lengths between take those of the next longer one, and longer codes those of 64.
    """
    return 0.5, 0.1 if bits <= 16 else 0.05 if bits <= 48 else 0.005


def caq(h_q: Tensor, b_g: Tensor, *, t0: float, t1: float) -> Tensor:
    """Correlation-aware quantisation of h_q (n, B) against the gallery's codes b_g (n, B).

    With A = cos(h_q, b_g), C = cos(sgn h_q, b_g), both (n, n), and a straight-through sign: the
    mean over rows of KL(softmax(A / t1) || softmax(C / t0)), the first without gradient, plus
    0.01 times the mean of |A - C|, with gradient to both (DCAH, released code). One row alone has
    a KL of 0; that of several stays above 0, since C takes few values.

    Args:
        h_q: continuous codes of the query network.
        b_g: {-1, +1}, codes of the gallery network for the same images.
        t0: temperature of the binary similarities C, dimensionless.
        t1: temperature of the continuous similarities A, dimensionless.

    Raises:
        ValueError: the two have different numbers of bits.
    """
    soft = cosine(h_q, b_g)
    hard = cosine(straight_through(h_q), b_g)
    # Of logarithms: at t1 = 0.005 a probability underflows in float32.
    aim = F.log_softmax(soft.detach() / t1, dim=1)
    given = F.log_softmax(hard / t0, dim=1)
    divergence = F.kl_div(given, aim, log_target=True, reduction="batchmean")
    return divergence + _ABSOLUTE * (soft - hard).abs().mean()


def quantizer_loss(spec: Quantizer, h_q: Tensor, g: Tensor, bits: int) -> Tensor:
    """Return the unweighted term that ``spec`` asks for.

    Args:
        spec: which, and its temperatures.
        h_q: (n, B) continuous codes of the query, in the method's output space.
        g: (n, B) the gallery's codes, continuous or binary; only their signs are read.
        bits: B.
    """
    t0, t1 = caq_temperatures(bits)
    return caq(h_q, sgn(g), t0=spec.t0 or t0, t1=spec.t1 or t1)
