"""CAQ by explicit loops over lists of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.oracles.losses import Rows, cosine, log_sum_exp, sign


def divergence(aim: Sequence[float], given: Sequence[float]) -> float:
    """KL(softmax(aim) || softmax(given)) of two lists of logits."""
    top_aim, top_given = log_sum_exp(aim), log_sum_exp(given)
    total = 0.0
    for a, b in zip(aim, given, strict=True):
        log_p, log_q = a - top_aim, b - top_given
        total += math.exp(log_p) * (log_p - log_q)
    return total


def caq(h_q: Rows, b_g: Rows, t0: float, t1: float) -> tuple[float, float]:
    """Return the KL and the absolute difference, not yet summed."""
    kl, apart, n = 0.0, 0.0, len(h_q)
    for row in h_q:
        soft = [cosine(row, other) for other in b_g]
        hard = [cosine([sign(v) for v in row], other) for other in b_g]
        kl += divergence([a / t1 for a in soft], [c / t0 for c in hard]) / n
        for a, c in zip(soft, hard, strict=True):
            apart += abs(a - c) / n / len(b_g)
    return kl, apart
