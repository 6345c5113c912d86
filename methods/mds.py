"""Minimal-distance-separated hash centers: the distance MDSH asks for, and its optimisation.

Written from the released code of MDSH (Wang et al., CVPR 2023; github.com/Wangld5/Center-Hashing,
``optimizeAccel.py``); the paper itself was not at hand. Only numpy here; ``methods.centers`` says
where to start from and what to do when the distance is not reached.
"""

from __future__ import annotations

from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["plotkin_distance", "separate", "target_distance"]

Codes = NDArray[np.int8]
Floats = NDArray[np.float64]

_SWEEPS = 50  # over all centers, at most
_FIRST_RHO, _LAST_RHO, _GROWTH = 1e-5, 1e7, 1.09  # penalty, and its factor at each round
_INNER = 10  # iterations in a round
_CAPPED_ROUNDS = 100  # rounds at the last penalty
_STEP = (1 + sqrt(5)) / 2  # of the multipliers
_TOLERANCE = 1e-6  # of all residuals
_TINY = 1e-12


def target_distance(n_classes: int, bits: int) -> int:
    """Return the smallest d with C V(d - 1) >= 2^B, V(r) being the size of a Hamming ball.

    This is the Gilbert-Varshamov distance plus one (or itself, where C V(d - 1) is 2^B exactly):
    codes of this distance may exist without the bound saying so. In integers, since 2^64 / C has
    more digits than a float.
    """
    ball, distance = 1, 1
    while n_classes * ball < 2**bits:
        ball += comb(bits, distance)
        distance += 1
    return distance


def plotkin_distance(n_classes: int, bits: int) -> int:
    """Return an upper bound on the smallest distance between C >= 2 codes of B bits.

    The mean over the pairs cannot be larger: in each bit at most floor(C / 2) ceil(C / 2) of the
    C (C - 1) / 2 pairs differ (Plotkin).
    """
    half = n_classes // 2
    return 2 * bits * half * (n_classes - half) // (n_classes * (n_classes - 1))


def _score(distances: Floats) -> float:
    """Return what is maximised: far on average, far at least, and evenly so."""
    return float(distances.mean() + distances.min() - distances.var())


def _rank(codes: Floats, distance: int) -> tuple[float, float]:
    """Return by what centers (C, B) compare: the distance asked for, then the score."""
    products = codes @ codes.T
    distances = (codes.shape[1] - products[np.triu_indices(len(codes), 1)]) / 2
    return min(float(distances.min()), float(distance)), _score(distances)


def _move(row: Floats, others: Floats, distance: int, rng: np.random.Generator) -> Floats:
    """Return a better place for one center, or the one it has, by alternating directions.

    Minimise x . mean(H) over x in {-1, +1}^B with H x <= B - 2 d, H being the other centers. The
    signs are the common points of a box (z1) and a sphere (z2), the inequality has a slack
    z3 >= 0, and y1, y2, y3 are the multipliers of the three; the penalty rho grows to a cap. From
    then on the signs of x are tried, and kept where score or smallest distance improve.

    Args:
        row: (B,) the center to move, in {-1, +1}.
        others: H (C - 1, B), C > 1.
        distance: d, in bits.
        rng: draws the first multipliers.
    """
    bits = len(row)
    bound = bits - 2 * distance
    mean = others.mean(axis=0)
    # Divided by rho, the system that x solves is the same in every iteration.
    inverse = np.linalg.inv(2 * np.eye(bits) + others.T @ others)  # (B, B)
    inverse_others = inverse @ others.T  # (B, C - 1)
    z1, z2, z3 = row, row, bound - others @ row
    y1, y2, y3 = rng.random(bits), rng.random(bits), rng.random(len(others))
    distances = (bits - others @ row) / 2
    best, best_score, best_least = row, _score(distances), distances.min()
    rho, capped = _FIRST_RHO, 0
    while capped < _CAPPED_ROUNDS:
        for _ in range(_INNER):
            x = inverse @ (z1 + z2 - (y1 + y2 + mean) / rho)
            x += inverse_others @ (bound - z3 - y3 / rho)
            products = others @ x
            z1 = np.clip(x + y1 / rho, -1, 1)
            z2 = x + y2 / rho
            z2 *= sqrt(bits) / max(sqrt(z2 @ z2), _TINY)
            z3 = np.maximum(bound - products - y3 / rho, 0)
            off_box, off_sphere, off_bound = x - z1, x - z2, products + z3 - bound
            y1 = y1 + _STEP * rho * off_box
            y2 = y2 + _STEP * rho * off_sphere
            y3 = y3 + _STEP * rho * off_bound
        rho = min(_GROWTH * rho, _LAST_RHO)
        solved = all(np.abs(off).max() < _TOLERANCE for off in (off_box, off_sphere, off_bound))
        if not solved and rho < _LAST_RHO:
            continue
        signs = np.where(x >= 0, 1.0, -1.0)
        distances = (bits - others @ signs) / 2
        score, least = _score(distances), distances.min()
        if score > best_score + _TINY or least > best_least:
            best, best_score, best_least = signs, score, least
        if solved:
            break
        capped += 1
    return best


def separate(
    codes: Codes, distance: int, rng: np.random.Generator, *, most: int
) -> tuple[Codes, int]:
    """Move the centers one after another until all pairs have the distance asked for.

    A sweep over all centers is repeated until it reaches the distance or finds nothing better. The
    released code goes on for up to 50 sweeps, and keeps the best by its score alone.

    Args:
        codes: (C, B) in {-1, +1} to start from, C > 1.
        distance: d, in bits.
        rng: of the multipliers.
        most: how many single moves may be tried.

    Returns:
        The best centers (C, B) seen between sweeps, the start included, by smallest distance up
        to d and then by score; and how many moves were tried.
    """
    current = codes.astype(np.float64)
    best, best_rank = codes, _rank(current, distance)
    tried = 0
    for _ in range(_SWEEPS):
        before = best_rank
        for index in range(min(len(codes), most - tried)):
            others = np.delete(current, index, axis=0)
            current[index] = _move(current[index], others, distance, rng)
            tried += 1
        rank = _rank(current, distance)
        if rank > best_rank:
            best, best_rank = current.astype(np.int8), rank
        if best_rank[0] >= distance or best_rank == before or tried == most:
            break
    return best, tried
