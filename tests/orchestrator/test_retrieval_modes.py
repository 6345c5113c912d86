"""Ranking by continuous codes, chosen by the study, on what its stages kept."""

import numpy as np
import pytest

from orchestrator.report import rows
from orchestrator.reporting.results import gather
from orchestrator.reporting.text import to_text
from retrieval.codes import pack


def cosine_map(query, gallery, query_labels, gallery_labels):
    """Mean AP over the whole gallery by explicit sorting; there are no ties."""
    found = []
    for q, y in zip(query, query_labels, strict=True):
        scores = [float(q @ g) / float(np.linalg.norm(g)) for g in gallery]
        assert len(set(scores)) == len(scores)
        hits, total = 0, 0.0
        for rank, n in enumerate(sorted(range(len(gallery)), key=lambda n: -scores[n]), start=1):
            if gallery_labels[n] == y:
                hits += 1
                total += hits / rank
        found.append(total / hits)
    return float(np.mean(found))


@pytest.mark.parametrize("method", ["csch", "csq", "daph"])
def test_a_study_may_rank_by_continuous_codes_too(shared_lab, method):
    plain, _ = shared_lab.run(methods=[method])
    retrieval = {"retrieval": ["hamming", "cosine", "asymmetric"]}
    plan, board = shared_lab.run(methods=[method], evaluate=retrieval)
    assert not board.failed
    (before,), (trial,) = plain.trials, plan.trials
    changed = {kind for kind in trial.stages if trial.stages[kind] != before.stages[kind]}
    assert changed == {"metrics"}  # nothing is trained or encoded anew

    store = shared_lab.store
    asked, answered = (
        trial.stages.get("joint", trial.stages.get(s)) for s in ("query", "gallery")
    )
    query = np.load(store.read(asked, "query_embeddings.npy"))
    gallery = np.load(store.read(answered, "gallery_embeddings.npy"))
    codes = np.load(store.read(answered, "gallery_codes.npy"))
    np.testing.assert_array_equal(pack(gallery), codes)
    if method in ("csq", "daph"):  # its output space
        query, gallery = np.tanh(query), np.tanh(gallery)
    (dataset,) = plan.datasets
    splits, labels = dataset.splits(), dataset.index().labels
    result = store.manifest(trial.id).result
    expected = cosine_map(
        query.astype(float), gallery.astype(float), labels[splits.query], labels[splits.gallery]
    )
    assert result["map_cosine"] == pytest.approx(expected, abs=1e-6)
    assert result["map"] == store.manifest(before.id).result["map"]
    assert 0.1 < result["map_asymmetric"] <= 1
    assert result["map_asymmetric"] != result["map"]


def test_a_study_may_count_as_public_code_does_too(shared_lab):
    plain, _ = shared_lab.run(methods=["csq"])
    both = ["orthohash", "deephash_pytorch"]
    plan, board = shared_lab.run(methods=["csq"], evaluate={"legacy": both})
    assert not board.failed
    (before,), (trial,) = plain.trials, plan.trials
    changed = {kind for kind in trial.stages if trial.stages[kind] != before.stages[kind]}
    assert changed == {"metrics"}
    store = shared_lab.store
    result = store.manifest(trial.id).result
    assert result["map_orthohash"] == result["map_stable"]
    # Without the last item of each ranking.
    (dataset,) = plan.datasets
    splits, labels = dataset.splits(), dataset.index().labels
    query = np.load(store.read(trial.stages["query"], "query_codes.npy"))
    gallery = np.load(store.read(trial.stages["gallery"], "gallery_codes.npy"))
    found = []
    for code, label in zip(query, labels[splits.query], strict=True):
        distances = [int(np.bitwise_count(code ^ other).sum()) for other in gallery]
        ranking = sorted(range(len(gallery)), key=lambda n: (distances[n], n))[:-1]
        ranks = [r for r, n in enumerate(ranking, 1) if labels[splits.gallery[n]] == label]
        found.append(np.mean([hit / rank for hit, rank in enumerate(ranks, 1)]))
    assert result["map_deephash_pytorch"] == pytest.approx(np.mean(found), abs=1e-12)
    assert result["map_deephash_pytorch"] != result["map_orthohash"]
    text = to_text(gather(plan, store))
    assert "as DeepHash-pytorch counts" in text
    assert f"{result['map_deephash_pytorch']:.4f}" in text
    row = rows(plan, store)[0]
    assert row["map_ci_low"] < row["map"] < row["map_ci_high"]
