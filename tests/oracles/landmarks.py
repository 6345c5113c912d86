"""Slow definitions of the landmark benchmarks' metrics: whole rankings, image by image."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

EASY, HARD, JUNK, NEGATIVE = "easy", "hard", "junk", "negative"

COUNTED = {"easy": {EASY}, "medium": {EASY, HARD}, "hard": {HARD}}
LEFT_OUT = {"easy": {JUNK, HARD}, "medium": {JUNK}, "hard": {JUNK, EASY}}


def hits_of(kinds: Sequence[str], level: str) -> list[bool]:
    """Whether each image of a ranking is to be found, without those that are left out."""
    return [kind in COUNTED[level] for kind in kinds if kind not in LEFT_OUT[level]]


def average_precision(hits: Sequence[bool]) -> Fraction | None:
    """Area under the precision-recall curve, trapezoid by trapezoid; None without positives."""
    positives = sum(hits)
    if not positives:
        return None
    area, recall, precision = Fraction(0), Fraction(0), Fraction(1)
    for seen in range(1, len(hits) + 1):
        found = sum(hits[:seen])
        new_recall, new_precision = Fraction(found, positives), Fraction(found, seen)
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


def precision_at(hits: Sequence[bool], k: int) -> Fraction | None:
    """Precision of the top k, or of the ranks up to the last positive where these are fewer."""
    if not any(hits):
        return None
    last = max(rank for rank, hit in enumerate(hits, start=1) if hit)
    considered = min(last, k)
    return Fraction(sum(hits[:considered]), considered)


def orders(scores: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[list[str], Fraction]]:
    """Every ranking by rising score, with its probability when the order of ties is random."""
    groups = []
    for score in sorted(set(scores)):
        tied = [kind for s, kind in zip(scores, kinds, strict=True) if s == score]
        patterns = Counter(itertools.permutations(tied))
        total = sum(patterns.values())
        groups.append([(list(p), Fraction(count, total)) for p, count in patterns.items()])
    for combination in itertools.product(*groups):
        chance = Fraction(1)
        for _, p in combination:
            chance *= p
        yield [kind for pattern, _ in combination for kind in pattern], chance


def stable_order(scores: Sequence[int], kinds: Sequence[str]) -> list[str]:
    """The ranking in which ties are in the order given."""
    return [kinds[i] for i in sorted(range(len(scores)), key=lambda i: scores[i])]
