"""Bootstrap, sign flips and Holm's adjustment by enumeration."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction


def bootstrap_means(scores: Sequence[Fraction]) -> dict[Fraction, Fraction]:
    """Probability of each mean of a resample of the same size with replacement."""
    size = len(scores)
    means = Counter(sum(drawn) / size for drawn in itertools.product(scores, repeat=size))
    return {mean: Fraction(count, size**size) for mean, count in sorted(means.items())}


def sign_flip_p_value(differences: Sequence[Fraction]) -> Fraction:
    """Fraction of all assignments of signs with a sum at least as far from 0 as the one found."""
    found = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return Fraction(sum(value >= found for value in sums), len(sums))


def closed_bonferroni(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of the closed test of all intersections by Bonferroni.

    A hypothesis is rejected if every set of hypotheses that holds it is: Holm's procedure is the
    short way to the same.
    """
    indices = range(len(p_values))
    adjusted = []
    for i in indices:
        sets = [
            chosen
            for size in range(1, len(p_values) + 1)
            for chosen in itertools.combinations(indices, size)
            if i in chosen
        ]
        adjusted.append(
            max(min(1.0, min(p_values[j] for j in chosen) * len(chosen)) for chosen in sets)
        )
    return adjusted
