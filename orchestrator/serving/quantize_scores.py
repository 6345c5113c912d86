"""What quantization of the query network costs in mAP, against the gallery codes of the study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.parity_images import Sample, split_sample
from retrieval.metrics import expected_map

if TYPE_CHECKING:
    from orchestrator.serving.trained import TrainedSide, TrainedTrial

Encode = Callable[[Sample], NDArray[np.uint8]]
"""Images to packed codes (n, ceil(B / 8))."""


def quantized_scores(side: TrainedSide, before: Encode, after: Encode) -> dict[str, Any]:
    """Score two query networks on the validation split and on the test queries.

    The validation split is what a choice may look at. The test queries' score is for the report:
    nothing in an export depends on it. A trial whose test queries its study does not score, as
    the points of a search, has none here either.

    Args:
        side: the query side of a trial.
        before: the network in float32.
        after: the quantized one.

    Returns:
        "validation" and "test": each "before" and "after", mAP in [0, 1]; "test" may be None.
    """
    trial, splits = side.of, side.of.dataset.splits()
    queries = split_sample(side, "validation queries", splits.validation_query)
    scores: dict[str, Any] = {
        "validation": {
            "before": _validation(trial, before(queries)),
            "after": _validation(trial, after(queries)),
        },
        "test": None,
    }
    if trial.trial.scored:
        queries = split_sample(side, "test queries", trial.rows("query"))
        scores["test"] = {
            "before": _test(trial, before(queries)),
            "after": _test(trial, after(queries)),
        }
    return scores


def _validation(trial: TrainedTrial, codes: NDArray[np.uint8]) -> float:
    """Return mAP as a query's training logs it, against the trained gallery's codes."""
    stages = trial.trial.stages
    store = trial.session.store
    path = store.read(stages.get("joint") or stages["gallery"], "validation_gallery.npy")
    splits, labels = trial.dataset.splits(), trial.dataset.index().labels
    return expected_map(
        codes,
        np.load(path, allow_pickle=False),
        labels[splits.validation_query],
        labels[splits.validation_gallery],
        bits=trial.bits,
    )


def _test(trial: TrainedTrial, codes: NDArray[np.uint8]) -> float:
    """Return mAP as the study's table has it."""
    gallery = np.asarray(trial.codes("gallery"))
    own = trial.dataset.score(codes, gallery, trial.bits)
    if own is not None:
        return float(own.to_json()["map"])
    labels = trial.dataset.index().labels
    truth = (labels[trial.rows("query")], labels[trial.rows("gallery")])
    at = trial.trial.at
    return expected_map(codes, gallery, *truth, bits=trial.bits, at=at)
