"""Which methods of a column are more than by chance below its best: tests over test queries.

As `asymbench compare` tests: query by query, each query's score its mean over the seeds that both
methods have, by the sign-flip test. The best of a column was chosen by the same numbers, so every
pair of its methods counts as one of the comparisons that p-values are adjusted for (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.reporting.results import TrialResult
from retrieval.metrics.significance import holm, sign_flip_p_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_SCORES = "average_precision.npy"

ALPHA, STRICT = 0.05, 0.01
"""Levels of significance that tables have marks for."""

_DECIDED = 1e-6
"""An adjusted p-value of which no digit is of interest."""

_FEWEST, _MOST = 10_000, 100_000
"""Random assignments of signs; enough that the smallest p-value, adjusted, can be below 0.01."""


def p_values(trials: Mapping[str, Sequence[TrialResult]], best: str) -> dict[str, float]:
    """Return the adjusted p-value of each method's difference from the best, or a bound of it.

    Args:
        trials: method -> trials of one column, one a seed.
        best: the method that the others are tested against.

    Returns:
        Without the best itself, and without methods that share no seed with it.

    Raises:
        StoreCorrupt: a file of the store is damaged.
    """
    scores = {name: _by_seed(here) for name, here in trials.items()}
    scores = {name: seeds for name, seeds in scores.items() if seeds}
    if best not in scores:
        return {}
    pairs = math.comb(len(scores), 2)
    draws = min(_MOST, max(_FEWEST, 200 * pairs))
    lenient = pairs - len(scores) + 2  # the least that Holm's method multiplies by
    found: dict[str, float] = {}
    for name, seeds in scores.items():
        common = sorted(set(seeds) & set(scores[best]))
        if name == best or not common:
            continue
        ours, theirs = (_mean([scores[n][seed] for seed in common]) for n in (name, best))
        found[name] = sign_flip_p_value(
            ours, theirs, draws=draws, enough=_DECIDED / pairs, hopeless=ALPHA / lenient
        )
    return dict(zip(found, holm(list(found.values()), of=pairs), strict=True))


def _by_seed(trials: Sequence[TrialResult]) -> dict[int, Floats]:
    """Return seed -> (Q,) scores of the queries that have an answer."""
    found = {}
    for one in trials:
        metrics = one.manifests.get("metrics")
        if metrics is not None and _SCORES in metrics.files:
            scores = np.load(one.store.read(metrics.id, _SCORES), allow_pickle=False)
            # Queries to which a dataset's ground truth has no answer are the same in all trials.
            found[one.trial.seed] = scores[~np.isnan(scores)]
    return found


def _mean(scores: Sequence[Floats]) -> Floats:
    mean: Floats = np.mean(scores, axis=0)
    return mean
