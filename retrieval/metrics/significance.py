"""How sure a mean over queries is, and whether two rankings of the same queries differ.

The queries are the sample: intervals and tests say what other queries of the same kind would have
given, and nothing about other seeds or splits. Scores are rounded to whole multiples of a power of
two of 2^-50 or so and summed as integers, so that no order of queries, resamples or threads can
move a bit, and sums that should be equal are. Every result is a function of the multiset of scores
(or of pairs of scores) alone: queries may come in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval import streams
from retrieval.errors import InputError
from retrieval.metrics.tied import Floats, Ints, mean

#: Coverage of the intervals.
LEVEL = 0.95
#: Two scores of one query that differ by less are equal: what the rounding of an AP may move.
EQUAL = 2.0**-40
#: Up to this number of queries every assignment of signs is tried.
EXACT_QUERIES = 12

#: Random assignments of signs for each resample: they cost a tenth, and a p-value that decides
#: among many pairs needs more digits than the end of an interval.
FLIPS = 10

#: Draws after which a p-value that is far too large is left as it is, and how often a sum must
#: have been as far from 0 by then. With these the chance that one at the limit, or below it, is
#: taken for three times the limit is less than 1e-6.
_LOOKS = (1_000, 10_000)
_SEEN = 20

#: Draws that are held at once.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Comparison:
    """Two rankings of the same queries, query by query: a minus b.

    Attributes:
        queries: number of queries.
        mean_a: mean score of a.
        mean_b: mean score of b.
        difference: mean of the differences a - b.
        low: lower end of the interval of the difference.
        high: upper end of it.
        level: coverage of the interval.
        standard_error: of the mean difference; None for one query.
        p_value: two-sided, of the hypothesis that a and b are exchangeable query by query.
        exact: whether the p-value comes from all assignments of signs, not from draws.
        draws: resamples of the interval; where the p-value is not exact, `FLIPS` times as many
            assignments of signs are drawn.
        better: queries on which a scores higher.
        equal: queries on which the two differ by less than `EQUAL`.
        worse: queries on which a scores lower.
    """

    queries: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    level: float
    standard_error: float | None
    p_value: float
    exact: bool
    draws: int
    better: int
    equal: int
    worse: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain Python types."""
        return asdict(self)


def bootstrap_interval(
    scores: Floats, resamples: int = 1000, *, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean score over queries.

    The ends are the k-th smallest and the k-th largest mean of resamples of Q queries with
    replacement, ``k = floor((resamples + 1) * (1 - level) / 2)`` (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13): order statistics, nothing interpolated.

    Args:
        scores: (Q,) in [0, 1].
        resamples: enough that k is at least 1: 39 for a level of 0.95.
        level: coverage, in (0, 1).
        seed: of the draws.

    Raises:
        InputError: no scores, or some that are not finite or beyond [0, 1]; ``resamples`` or
            ``level`` out of range.
    """
    rank = _tail_rank(resamples, level)
    whole, scale = _whole(_checked(scores, "scores"))
    sums = _resampled_sums(np.sort(whole), resamples, seed)
    sums.partition([rank - 1, resamples - rank])
    total = scale * len(whole)
    return int(sums[rank - 1]) / total, int(sums[resamples - rank]) / total


def check_resamples(resamples: int, key: str = "bootstrap") -> int:
    """Return the number of resamples, 0 for none.

    Raises:
        InputError: neither 0 nor enough for an interval of level `LEVEL`; names the ``key``.
    """
    if isinstance(resamples, bool) or resamples != 0:
        _tail_rank(resamples, LEVEL, key=key, off=", or 0 for no interval")
    return int(resamples)


def check_draws(draws: int, key: str = "draws") -> int:
    """Return the number of draws.

    Raises:
        InputError: not enough for an interval of level `LEVEL`; names the ``key``.
    """
    _tail_rank(draws, LEVEL, key=key)
    return int(draws)


def compare(
    a: Floats, b: Floats, *, draws: int = 10_000, level: float = LEVEL, seed: int = 0
) -> Comparison:
    """Compare two rankings by their scores on the same queries.

    The p-value is that of the sign-flip permutation test (Fisher 1935; Smucker, Allan and
    Carterette, "A comparison of statistical significance tests for information retrieval
    evaluation", CIKM 2007): were the two exchangeable, each difference could as well have the
    other sign. It is the fraction of assignments of signs whose sum is at least as far from 0 as
    the sum found: of all 2^Q for up to `EXACT_QUERIES` queries, else ``(1 + count) / (1 + draws)``
    of random ones. Queries without a difference count like any others.

    Args:
        a: (Q,) scores in [0, 1], for example the AP of each query.
        b: (Q,) scores of the same queries in the same order.
        draws: resamples of the interval, and a tenth of the random assignments of signs.
        level: coverage of the interval, in (0, 1).
        seed: of the draws.

    Raises:
        InputError: no scores, lengths that differ, scores that are not finite or beyond [0, 1];
            ``draws`` or ``level`` out of range.
    """
    rank = _tail_rank(draws, level, key="draws")
    first, second = _checked(a, "a"), _checked(b, "b")
    if len(first) != len(second):
        raise InputError(
            f"a has {len(first)} queries, b has {len(second)}: both must score the same queries",
            key="b",
        )
    queries = len(first)
    whole_a, scale = _whole(first)
    difference = np.sort(whole_a - _whole(second)[0])
    exact = queries <= EXACT_QUERIES
    sums = _resampled_sums(difference, draws, seed)
    sums.partition([rank - 1, draws - rank])
    total = scale * queries
    margin = EQUAL * scale
    return Comparison(
        queries=queries,
        mean_a=mean(first),
        mean_b=mean(second),
        difference=int(difference.sum()) / total,
        low=int(sums[rank - 1]) / total,
        high=int(sums[draws - rank]) / total,
        level=level,
        standard_error=_standard_error(difference, scale),
        p_value=_all_signs(difference)
        if exact
        else _random_signs(difference, FLIPS * draws, seed),
        exact=exact,
        draws=draws,
        better=int(np.count_nonzero(difference > margin)),
        equal=int(np.count_nonzero(np.abs(difference) <= margin)),
        worse=int(np.count_nonzero(difference < -margin)),
    )


def sign_flip_p_value(
    a: Floats,
    b: Floats,
    *,
    draws: int = 10_000,
    seed: int = 0,
    enough: float = 0.0,
    hopeless: float = 1.0,
) -> float:
    """Return the p-value of `compare` alone, with no more work than a decision takes.

    Of all assignments of signs the part whose sum is as far from 0 as the sum S that was found is
    at most ``2 exp(-S^2 / (2 sum d^2))`` (Hoeffding, "Probability inequalities for sums of bounded
    random variables", JASA 58, 1963). Where this bound is at most ``enough`` it is returned, and
    nothing is drawn. Where the first thousand draws, or the first ten thousand, put the p-value
    at three times ``hopeless`` or more, it is theirs.

    Args:
        a: (Q,) scores in [0, 1].
        b: (Q,) scores of the same queries in the same order.
        draws: random assignments of signs.
        seed: of the draws.
        enough: a p-value is not needed exactly from there down.
        hopeless: nor from there up.

    Raises:
        InputError: as `compare`.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if len(first) != len(second):
        raise InputError(
            f"a has {len(first)} queries, b has {len(second)}: both must score the same queries",
            key="b",
        )
    whole, scale = _whole(first)
    difference = np.sort(whole - _whole(second)[0])
    if len(difference) <= EXACT_QUERIES:
        return _all_signs(difference)
    values = difference / scale
    squares = float(values @ values)
    if squares > 0.0:
        bound = 2.0 * math.exp(-(float(values.sum()) ** 2) / (2.0 * squares))
        if bound <= enough:
            return bound
    for early_draws in (look for look in _LOOKS if look < draws):
        early = _random_signs(difference, early_draws, seed)
        if early >= max(_SEEN / early_draws, 3.0 * hopeless):
            return early
    return _random_signs(difference, draws, seed)


def holm(p_values: Sequence[float], *, of: int | None = None) -> list[float]:
    """Return the p-values of several comparisons, adjusted together.

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at
    or below alpha, whatever the dependence between the tests (Holm, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: in [0, 1].
        of: m, the comparisons among which the data chose these; by default these are all. Taking
            the others to come last in Holm's order never rejects more than with their values.

    Returns:
        The adjusted values in the order given: the i-th smallest times m - i + 1, at least the
        adjusted values before it, at most 1.

    Raises:
        ValueError: a value is no probability, or ``of`` is less than their number.
    """
    family = len(p_values) if of is None else of
    if family < len(p_values):
        raise ValueError(f"{len(p_values)} comparisons cannot be chosen of {family}")
    for p in p_values:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"a p-value lies in [0, 1], got {p!r}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (family - step)))
        adjusted[index] = largest
    return adjusted


def _resampled_sums(values: Ints, resamples: int, seed: int) -> Ints:
    """Return the sum of Q of the values, drawn with replacement, for each resample.

    An index is the upper half of a 32-bit word times Q, so that the chances of two queries differ
    by less than one part in 2^32 / Q.
    """
    queries = len(values)
    raw = streams.generator(seed, "bootstrap").bit_generator
    # Pairs of resamples share words, so that a chunk is a whole number of them for any Q.
    step = max(1, _CHUNK // (2 * queries)) * 2
    out = np.empty(resamples + resamples % 2, dtype=np.int64)
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        words = raw.random_raw((stop - start) // 2 * queries)
        index = np.empty((2, len(words)), dtype=np.uint64)
        np.bitwise_and(words, np.uint64(0xFFFFFFFF), out=index[0])
        np.right_shift(words, np.uint64(32), out=index[1])
        index *= np.uint64(queries)
        index >>= np.uint64(32)
        drawn = values.take(index.view(np.int64)).reshape(2, -1, queries)
        out[start:stop] = drawn.sum(axis=2).T.reshape(-1)
    return out[:resamples]


def _all_signs(difference: Ints) -> float:
    """Return the fraction of all assignments of signs whose sum is as far from 0, or farther."""
    queries = len(difference)
    sums = np.zeros(1, dtype=np.int64)
    for value in difference:
        sums = np.concatenate([sums + value, sums - value])
    return int(np.count_nonzero(_as_far(sums, difference))) / (1 << queries)


def _random_signs(difference: Ints, draws: int, seed: int) -> float:
    """Return (1 + assignments as far from 0, or farther) / (1 + draws).

    One bit is one sign. The 256 signed sums of each eight differences are tabulated, so that a
    draw looks up one sum for eight queries.
    """
    observed = difference
    # Only sizes and drawn signs decide, in one order: b against a has the p-value of a against b.
    difference = np.sort(np.abs(difference))
    groups = -(-len(difference) // 64) * 8
    padded = np.zeros(groups * 8, dtype=np.int64)
    padded[: len(difference)] = difference
    signs = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int64)
    table = (padded.reshape(groups, 8) @ signs.T).reshape(-1)
    offsets = np.arange(groups, dtype=np.int64) * 256
    raw = streams.generator(seed, "sign flips").bit_generator
    step = min(draws, max(1, (_CHUNK >> 2) // groups))
    index = np.empty((step, groups), dtype=np.int64)  # used again: fresh memory costs more
    drawn = np.empty_like(index)
    count = 0
    for start in range(0, draws, step):
        size = min(step, draws - start)
        words = raw.random_raw(size * groups // 8).astype("<u8")
        patterns = words.view(np.uint8).reshape(size, groups)
        np.add(patterns, offsets, out=index[:size])
        table.take(index[:size], out=drawn[:size], mode="clip")
        count += int(np.count_nonzero(_as_far(drawn[:size].sum(axis=1), observed)))
    return (1 + count) / (1 + draws)


def _as_far(sums: Ints, difference: Ints) -> NDArray[np.bool_]:
    """Return which sums are as far from 0 as that of the differences, or farther.

    Each score may be a few units off by its own rounding: sums that close count as equal, which
    can only raise a p-value.
    """
    return np.abs(sums) >= abs(int(difference.sum())) - 8 * len(difference)


def _standard_error(difference: Ints, scale: int) -> float | None:
    """Return the sample standard deviation over the square root of the count."""
    queries = len(difference)
    if queries < 2:
        return None
    values = difference.tolist()
    total = sum(values)
    # Q * sum of squares - square of the sum, in whole numbers: nothing cancels.
    spread = queries * sum(value * value for value in values) - total * total
    return math.sqrt(spread / (queries * queries * (queries - 1))) / scale


def _whole(scores: Floats) -> tuple[Ints, int]:
    """Return scores as integers of a scale at which sums of Q differences fit in 63 bits."""
    scale = 1 << min(50, 60 - len(scores).bit_length())
    return np.rint(scores * scale).astype(np.int64), scale


def _checked(scores: Floats, name: str) -> Floats:
    """Return scores as float64.

    Raises:
        InputError: says what is wrong with the array called ``name``.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(f"must hold one score a query, (Q,); got shape {array.shape}", key=name)
    wrong = np.flatnonzero(~((array >= 0.0) & (array <= 1.0)))
    if wrong.size:
        first = int(wrong[0])
        raise InputError(
            f"must be finite and lie in [0, 1]; query {first} has {array[first]}", key=name
        )
    return array


def _tail_rank(resamples: int, level: float, *, key: str = "resamples", off: str = "") -> int:
    """Return k: the k-th smallest and the k-th largest resampled mean are the interval's ends."""
    if not 0.0 < level < 1.0:
        raise InputError("a coverage lies between 0 and 1", key="level", value=level)
    # What is rounded away here is the error of 1 - level in doubles.
    fewest = math.ceil(round(2.0 / (1.0 - level), 9)) - 1
    whole = isinstance(resamples, int | np.integer) and not isinstance(resamples, bool)
    if not whole or resamples < fewest:
        raise InputError(
            f"an interval of coverage {level:g} takes a whole number of at least {fewest} "
            f"resamples{off}",
            key=key,
            value=resamples,
        )
    return math.floor(round((resamples + 1) * (1.0 - level) / 2.0, 9))
