"""The losses and updates of DAPH and ADSQ by explicit loops over lists of floats."""

from __future__ import annotations

import math

from tests.oracles.losses import Row, Rows, cosine, dot, sign


def shared(a: Row, b: Row) -> float:
    """Return 1 where two rows of labels share a class, else 0."""
    for x, y in zip(a, b, strict=True):
        if x > 0 and y > 0:
            return 1.0
    return 0.0


def nll(theta: float, s: float) -> float:
    """Return log(1 + exp theta) - s theta, for a theta that does not overflow."""
    return math.log(1 + math.exp(theta)) - s * theta


def likelihood(u: Rows, v: Rows, labels: Rows) -> float:
    total = 0.0
    for x, a in zip(u, labels, strict=True):
        for y, b in zip(v, labels, strict=True):
            total += nll(dot(x, y) / 2, shared(a, b))
    return total / len(u) / len(v)


def gap(u: Rows, codes: Rows) -> float:
    total = 0.0
    for x, b in zip(u, codes, strict=True):
        for value, bit in zip(x, b, strict=True):
            total += (value - bit) ** 2
    return total / len(u) / len(u[0])


def independence(u: Rows) -> float:
    bits, total = len(u[0]), 0.0
    for k in range(bits):
        for m in range(bits):
            product = sum(row[k] * row[m] for row in u) / len(u)
            total += (product - (1 if k == m else 0)) ** 2
    return total / bits**2


def balance(u: Rows, *, mean: bool) -> float:
    total = 0.0
    for k in range(len(u[0])):
        along = sum(row[k] for row in u)
        total += (along / len(u) if mean else along) ** 2
    return total / len(u[0])


def difference(u: Rows, label_codes: Rows, labels: Rows, dissimilar: float = -1.0) -> float:
    total = 0.0
    for x, a in zip(u, labels, strict=True):
        for code, b in zip(label_codes, labels, strict=True):
            aim = 1.0 if shared(a, b) else dissimilar
            total += (dot(x, code) / len(x) - aim) ** 2
    return total / len(u) / len(label_codes)


def daph_codes(
    u: Rows, z: Rows, h: Rows, alpha: float, gamma: float
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the new B, and the new H that follows from it."""
    new_b, new_h = [], []
    for i in range(len(u)):
        row = [sign(alpha * u[i][k] + gamma * h[i][k]) for k in range(len(u[i]))]
        new_b.append(row)
        new_h.append([sign(alpha * z[i][k] + gamma * row[k]) for k in range(len(row))])
    return new_b, new_h


def adsq_codes(u: Rows, v: Rows, label_codes: Rows, mu: float) -> list[list[int]]:
    return [
        [sign(a + b + mu * c) for a, b, c in zip(x, y, h, strict=True)]
        for x, y, h in zip(u, v, label_codes, strict=True)
    ]


def dissimilar_target(labels: Rows) -> float:
    alike = others = 0
    for a in labels:
        for b in labels:
            if shared(a, b):
                alike += 1
            else:
                others += 1
    return -1.0 if others == 0 else -min(1.0, alike / others)


def label_loss(features: Rows, codes: Rows, labels: Rows, a1: float, a2: float) -> float:
    bits, total = len(codes[0]), 0.0
    for x, a in zip(features, labels, strict=True):
        for y, b in zip(features, labels, strict=True):
            total += nll(bits / 2 * cosine(x, y), shared(a, b))
    total /= len(features) ** 2
    total += likelihood(codes, codes, labels)
    total += a1 * gap(codes, [[sign(value) for value in row] for row in codes])
    return total + a2 * balance(codes, mean=True)
