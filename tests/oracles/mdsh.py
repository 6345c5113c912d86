"""MDSH's losses and distances by explicit loops over lists, floats and integers."""

from __future__ import annotations

import math

from tests.oracles.losses import Row, Rows, cosine, log_sum_exp


def binomial(n: int, k: int) -> int:
    return math.factorial(n) // (math.factorial(k) * math.factorial(n - k))


def ball(bits: int, radius: int) -> int:
    """Return how many codes differ from one code in at most ``radius`` bits."""
    return sum(binomial(bits, i) for i in range(radius + 1))


def gilbert_varshamov(n_classes: int, bits: int) -> int:
    """Return the largest d with C V(d - 1) <= 2^B."""
    return max(d for d in range(1, bits + 1) if n_classes * ball(bits, d - 1) <= 2**bits)


def target(n_classes: int, bits: int) -> int:
    """Return the smallest d with V(d - 1) >= 2^B / C."""
    return min(d for d in range(1, bits + 2) if n_classes * ball(bits, d - 1) >= 2**bits)


def plotkin(n_classes: int, bits: int) -> int:
    """Return the mean distance, rounded down, when every bit splits the classes in half."""
    split = sum(
        1 for i in range(n_classes) for j in range(i) if (i % 2) != (j % 2)
    )  # pairs that one bit tells apart
    pairs = sum(1 for i in range(n_classes) for j in range(i))
    return bits * split // pairs


def center_softmax(u: Rows, centers: Rows, labels: Rows) -> float:
    total = 0.0
    for row, y in zip(u, labels, strict=True):
        logits = [math.sqrt(len(row)) * cosine(row, t) for t in centers]
        for c, logit in enumerate(logits):
            if y[c] > 0:
                total -= logit - log_sum_exp(logits)
            else:
                others = [other for k, other in enumerate(logits) if k != c]
                total -= log_sum_exp(others) - log_sum_exp(logits)
    return total / (len(u) * len(centers))


def share(a: Row, b: Row) -> bool:
    return any(x > 0 and y > 0 for x, y in zip(a, b, strict=True))


def bank_attraction(u: Rows, labels: Rows, bank: Rows, bank_labels: Rows) -> float:
    total, count = 0.0, 0
    for row, y in zip(u, labels, strict=True):
        for kept, other in zip(bank, bank_labels, strict=True):
            if share(y, other):
                total += math.log(1 + math.exp((1 - cosine(row, kept)) / 2))
                count += 1
    return total / count if count else 0.0
