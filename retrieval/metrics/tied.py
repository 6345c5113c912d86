"""Rankings with ties, as counts: what every metric of a Hamming ranking is computed from.

A Hamming ranking of N items has at most B + 1 distinct places, so most items are tied, and the
order in which ties happen to be listed moves AP by more than most methods differ. `TiedRankings`
holds, for each query, how many items and how many relevant ones share each place, and from that
gives the expectation of AP, precision and recall over uniformly random orders of equal distances,
in closed form (McSherry and Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", ECIR 2008; extended below to the normaliser of the
hashing literature).

AP@K of a ranking is ``(sum over ranks i <= K of P@i * rel_i) / (relevant items within the top
K)``, 0 where the top K holds none. Throughout, ``n`` and ``r`` are (Q, B + 1) integers: items and
relevant items at each distance; in formulas a group of ties has n items of which r are relevant,
after N items of which R are relevant. H is the harmonic number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Values by rank, summed from rank 1 to 0, 1, 2, ...: an unevaluated sum of two doubles.
Table = tuple[Floats, Floats]

#: Each tail of a hypergeometric sum is cut where its mass is at most exp(-70) < 1e-30.
_TAIL = 70.0


def mean(values: Iterable[float] | Floats) -> float:
    """Return the correctly rounded sum over the count: no order of the values can move it."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return math.fsum(listed) / len(listed)


def column_sums(values: Floats) -> list[float]:
    """Return the correctly rounded sum of each column, as `math.fsum`, all columns at once.

    28 bits of every value are summed at a time: such sums are whole numbers that doubles hold, in
    any order, for up to 2^25 rows. Whole numbers of any length put them together.

    Args:
        values: (Q, M) in [0, 1].
    """
    totals, shift = [0] * values.shape[1], 0
    rest = values
    while rest.any():
        rest = rest * 2.0**28
        whole = np.floor(rest)
        rest -= whole
        shift += 28
        parts = whole.sum(axis=0).tolist()
        totals = [(total << 28) + int(part) for total, part in zip(totals, parts, strict=True)]
    # A quotient of whole numbers is correctly rounded.
    return [total / (1 << shift) for total in totals]


def resolve_cutoff(at: int | str, items: int, *, key: str = "at") -> int:
    """Return the cut-off K in ranks, at most the number of gallery items.

    Args:
        at: a positive integer, or "all".
        items: gallery size N.
        key: the option to name in the message.

    Raises:
        InputError: ``at`` is neither.
    """
    if isinstance(at, str) and at == "all":
        return items
    if isinstance(at, bool | np.bool_) or not isinstance(at, int | np.integer):
        raise InputError(
            "a cut-off is a positive whole number of ranks or 'all'", key=key, value=at
        )
    if at < 1:
        raise InputError(
            "not a cut-off; write 'all' to rank the whole gallery, or a number of at least 1",
            key=key,
            value=int(at),
        )
    return min(int(at), items)


class Cut(NamedTuple):
    """Where rank K falls: in one group of ties a query, each (Q,)."""

    cutoff: int
    group: Ints  # index of the group
    items: Ints  # N, items before the group
    hits: Ints  # R, relevant ones among them
    n: Ints  # items of the group
    r: Ints  # relevant ones among them
    seen: Ints  # k = K - N, items of the group within the top K, 1..n


class TiedRankings:
    """The rankings of one gallery by Q queries, known up to the order of ties.

    Args:
        n: (Q, B + 1) items at each distance; every row sums to the gallery size.
        r: (Q, B + 1) relevant items at each distance.

    Attributes:
        n: as given.
        r: as given.
        items: gallery size N.
        upto: (Q, B + 1) items up to and at each distance.
        found: (Q, B + 1) relevant items up to and at each distance.
        before: (Q, B + 1) items nearer than each distance.
        hits: (Q, B + 1) relevant items nearer than each distance.
        relevant: (Q,) relevant items.

    Raises:
        ValueError: the counts are no histograms of one gallery.
    """

    def __init__(self, n: Ints, r: Ints) -> None:
        if n.shape != r.shape or n.ndim != 2 or np.any(r < 0) or np.any(r > n):
            raise ValueError(
                f"n and r must be (Q, B + 1) counts with 0 <= r <= n; got {n.shape} and {r.shape}"
            )
        self.n, self.r = n, r
        self.upto, self.found = np.cumsum(n, axis=1), np.cumsum(r, axis=1)
        self.items = int(self.upto[0, -1]) if len(n) else 1
        if self.items < 1 or np.any(self.upto[:, -1] != self.items):
            raise ValueError("every query must be ranked against the same, non-empty gallery")
        self.before, self.hits = self.upto - n, self.found - r
        self.relevant: Ints = self.found[:, -1]

    def cut(self, at: int | str) -> Cut:
        """Return where the cut-off falls.

        Raises:
            InputError: ``at`` is not a cut-off.
        """
        cutoff = resolve_cutoff(at, self.items)
        group = np.argmax(self.upto >= cutoff, axis=1)
        rows = np.arange(len(self.n))
        items = self.before[rows, group]
        return Cut(
            cutoff=cutoff,
            group=group,
            items=items,
            hits=self.hits[rows, group],
            n=self.n[rows, group],
            r=self.r[rows, group],
            seen=cutoff - items,
        )

    def expected_average_precision(self, at: int | str = "all") -> Floats:
        """Return the exact expectation of AP@K over uniformly random orders of ties, (Q,).

        A group that the top K holds entirely adds, in expectation,
        ``(r / n) * ((R + 1) * A + (r - 1) / (n - 1) * S)`` with ``A = H(N + n) - H(N)`` and
        ``S = n - (N + 1) * A`` (McSherry and Najork 2008). Of the group that K cuts, k = K - N
        items are seen; the hits j among them are hypergeometric, and they are in the denominator
        too: ``E[AP@K] = sum_j P(j) * (full + (j / k) * ((R + 1) * A_k + (j - 1) / (k - 1) * S_k))
        / (R + j)``, the outcome R + j = 0 counting 0.

        Raises:
            InputError: ``at`` is not a cut-off.
        """
        cut = self.cut(at)
        total = _sum_before(self._expected_sums, cut.group)
        return np.minimum(_expect_over_hits(cut, total, self._harmonics), 1.0)

    def average_precision_bounds(self, at: int | str = "all") -> tuple[Floats, Floats]:
        """Return the lowest and the highest AP@K that any order of ties gives, each (Q,).

        Within a group the hits come last or first: ``r - (N + n - r - R) * (H(N + n) -
        H(N + n - r))`` or ``r - (N - R) * (H(N + r) - H(N))``. In the group that K cuts, the
        number j of hits seen is free as well, and as it is also in the denominator, more hits can
        lower AP. As a function of j, both extremes are running means to which growing terms are
        added, so they fall and then rise: the highest is at one end of the range of j, the lowest
        where the next term first reaches the mean, found by bisection.

        Raises:
            InputError: ``at`` is not a cut-off.
        """
        cut = self.cut(at)
        table, before, hits = self._harmonics, cut.items, cut.hits
        fewest = np.maximum(0, cut.seen - (cut.n - cut.r))
        most = np.minimum(cut.seen, cut.r)

        worst_sums, best_sums = self._extreme_sums
        highest = _sum_before(best_sums, cut.group)

        def best(j: Ints) -> Floats:
            last = j - (before - hits) * between(table, before, before + j)
            return ratio(highest + last, hits + j)

        lowest = _sum_before(worst_sums, cut.group)
        end = before + cut.seen

        def worst(j: Ints) -> Floats:
            last = j - (end - j - hits) * between(table, end - j, end)
            return ratio(lowest + last, hits + j)

        low, high = fewest.copy(), most.copy()
        while np.any(low < high):
            middle = (low + high) // 2
            # One more hit ahead of the others: its own precision, and 1 / rank more for each.
            step = (hits + 1) / np.maximum(end - middle, 1) + between(table, end - middle, end)
            rising = step >= worst(middle)
            high = np.where(rising, middle, high)
            low = np.where(rising, low, np.minimum(middle + 1, high))
        return np.minimum(worst(low), 1.0), np.minimum(np.maximum(best(fewest), best(most)), 1.0)

    def expected_hits(self, at: int | str) -> Floats:
        """Return the expected number of relevant items within the top K, (Q,).

        ``R + k * r / n`` of the group that K cuts, of which k items are seen.
        """
        cut = self.cut(at)
        hits: Floats = cut.hits + cut.seen * cut.r / cut.n
        return hits

    @functools.cached_property
    def ball_precision(self) -> Floats:
        """Precision within each Hamming radius, (Q, B + 1); 0 where the ball is empty."""
        return ratio(self.found, self.upto)

    @functools.cached_property
    def _harmonics(self) -> Table:
        return _harmonic_table(self.items)

    @functools.cached_property
    def _expected_sums(self) -> Floats:
        """Expected sum of P@rank over the hits of each group in random order, (Q, B + 1)."""
        n, r = self.n, self.r
        a = between_neighbours(self._harmonics, self.upto)
        s = n - (self.before + 1) * a
        inner = (self.hits + 1) * a + (r - 1) / np.maximum(n - 1, 1) * np.where(n > 1, s, 0.0)
        return r / np.maximum(n, 1) * inner

    @functools.cached_property
    def _extreme_sums(self) -> tuple[Floats, Floats]:
        """Sum of P@rank over the hits of each group where they end it, and where they start it."""
        r, table = self.r, self._harmonics
        others = self.upto - r
        worst = r - (others - self.hits) * between(table, others, self.upto)
        best = r - (self.before - self.hits) * between(table, self.before, self.before + r)
        return worst, best


def ratio(numerator: Floats | Ints, denominator: Floats | Ints) -> Floats:
    """Divide what is not negative, with 0 where the denominator is 0."""
    out: Floats = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def accumulate(terms: Floats) -> Table:
    """Return the sums of the first 0, 1, 2, ... of falling terms > 0 as two doubles each.

    Differences of single doubles lose up to five digits at the far end of a large gallery. The
    second double holds what the first lost: the error of each rounded addition, which is an exact
    difference of doubles.
    """
    high = np.concatenate([[0.0], np.cumsum(terms)])
    lost = (high[:-1] - high[1:]) + terms
    return high, np.concatenate([[0.0], np.cumsum(lost)])


def between(table: Table, start: Ints, stop: Ints) -> Floats:
    """Return the sum over the ranks start + 1 .. stop, to the last digit or so."""
    high, low = table
    difference: Floats = (high[stop] - high[start]) + (low[stop] - low[start])
    return difference


def between_neighbours(table: Table, upto: Ints) -> Floats:
    """Return `between` of each entry of a row and the one before it, the first after rank 0."""
    high, low = (part[upto] for part in table)
    out: Floats = np.diff(high, axis=1, prepend=0.0)
    out += np.diff(low, axis=1, prepend=0.0)
    return out


@functools.lru_cache(maxsize=8)
def _harmonic_table(size: int) -> Table:
    """Return H(0..size) as an unevaluated sum of two doubles, the rounding of each 1 / i too."""
    i = np.arange(1, size + 1, dtype=np.float64)
    inverse = 1.0 / i
    # Split 1 / i into halves whose products with i are exact for i < 2^27.
    scaled = inverse * 134217729.0
    upper = scaled - (scaled - inverse)
    lost = ((1.0 - upper * i) - (inverse - upper) * i) / i
    high = np.concatenate([[0.0], np.cumsum(inverse)])
    lost += (high[:-1] - high[1:]) + inverse
    low = np.concatenate([[0.0], np.cumsum(lost)])
    high.setflags(write=False)
    low.setflags(write=False)
    return high, low


def _sum_before(terms: Floats, group: Ints) -> Floats:
    """Add the terms of the groups before ``group``, from the nearest on, one after another."""
    running = np.cumsum(terms, axis=1)
    before = running[np.arange(len(terms)), np.maximum(group - 1, 0)]
    total: Floats = np.where(group > 0, before, 0.0)
    return total


def _expect_over_hits(cut: Cut, total: Floats, table: Table) -> Floats:
    """Expectation of AP over the hypergeometric number of hits in the seen part of a cut group.

    P(j + 1) / P(j) is a ratio of small integers, so the weights are products from the lower end
    of the range, normalised by their sum: no factorial, no logarithm, nothing to cancel. The
    range is cut where Bernstein's inequality, which holds for drawing without replacement too
    (Hoeffding 1963), leaves a mass below exp(-70) on either side; AP being at most 1, that is
    below the last digit. Steps run over j for all queries at once, widest range first.
    """
    n, r, k = (value.astype(np.float64) for value in (cut.n, cut.r, cut.seen))
    before, hits = cut.items.astype(np.float64), cut.hits.astype(np.float64)
    expected = k * r / n
    variance = expected * (1.0 - r / n)
    reach = _TAIL / 3 + np.sqrt(_TAIL * _TAIL / 9 + 2 * _TAIL * variance)
    low = np.maximum(np.maximum(0.0, k - (n - r)), np.floor(expected - reach))
    high = np.minimum(np.minimum(k, r), np.ceil(expected + reach))

    widths = (high - low).astype(np.int64)
    order = np.argsort(-widths, kind="stable")
    n, r, k, before, hits, low, total = (
        value[order] for value in (n, r, k, before, hits, low, total)
    )
    a = between(table, cut.items, cut.items + cut.seen)[order]
    first = (hits + 1) * a / k
    second = (k - (before + 1) * a) / (k * np.maximum(k - 1, 1))
    active = np.cumsum(np.bincount(widths)[::-1])[::-1]  # queries whose range is that wide

    weight, mass, value = np.ones(len(n)), np.zeros(len(n)), np.zeros(len(n))
    for step, count in enumerate(active.tolist()):
        head = slice(count)
        j = low[head] + step
        weighted = weight[head]
        numerator = total[head] + j * (first[head] + (j - 1) * second[head])
        # R + j = 0 has numerator 0: no hits, so nothing to sum.
        value[head] += weighted * (numerator / np.maximum(hits[head] + j, 1.0))
        mass[head] += weighted
        odds = (r[head] - j) * (k[head] - j) / ((j + 1) * (n[head] - r[head] - k[head] + j + 1))
        weight[head] = weighted * odds
    out = np.empty(len(n))
    out[order] = value / mass
    return out
