"""OrthoHash: published values, both margins, and the query's distillation."""

from __future__ import annotations

import pytest
import torch

from methods.base import Batch, Schedule, Task, build_method
from tests.oracles import losses as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
T = [[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]]
STATE = {"centers": torch.tensor(T, dtype=torch.int8)}


def method(*, multi=False, **params):
    task = Task(bits=4, n_classes=3, n_train=2, multi_label=multi)
    return build_method("orthohash", params, task)


def batch(*, multi=False):
    labels = [[1, 0, 1], [0, 1, 1]] if multi else [[1, 0, 0], [0, 1, 0]]
    return Batch(
        rows=torch.arange(2),
        labels=torch.tensor(labels, dtype=torch.float64),
        classes=None if multi else torch.tensor([0, 1]),
        tie_bits=torch.ones(2, 4, dtype=torch.float64),
    )


def rows(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("h", "single", "multi"), [(Q, 0.006953, 5.299415), (G, 0.001663, 4.555637)]
)
def test_gallery_loss_has_the_published_values(h, single, multi):
    one = method().gallery_loss(rows(h), batch(), STATE)
    assert set(one) == {"center"}
    assert float(one["center"]) == pytest.approx(single, abs=1e-6)
    many = method(multi=True).gallery_loss(rows(h), batch(multi=True), STATE)
    assert float(many["center"]) == pytest.approx(multi, abs=1e-6)


def test_arc_margin_agrees_with_loops():
    params = {"kind": "arc", "margin": 0.3, "scale": 16.0}
    one = method(**params).gallery_loss(rows(Q), batch(), STATE)["center"]
    assert float(one) == pytest.approx(
        oracle.margin_cross_entropy(Q, T, [0, 1], 0.3, 16.0, "arc"), abs=1e-9
    )
    many = method(multi=True, **params).gallery_loss(rows(Q), batch(multi=True), STATE)["center"]
    want = oracle.label_smoothing(Q, T, [[1, 0, 1], [0, 1, 1]], 0.3, 16.0, "arc")
    assert float(many) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("quant", ["cos", "l1", "l2"])
def test_quantisation_term_is_weighted_and_only_there_with_weight(quant):
    terms = method(quant_weight=0.5, quant=quant).gallery_loss(rows(Q), batch(), STATE)
    signs = [[oracle.sign(v) for v in row] for row in Q]
    gaps = [
        abs(v - s)
        for row, sign in zip(Q, signs, strict=True)
        for v, s in zip(row, sign, strict=True)
    ]
    want = {
        "cos": sum(1 - oracle.cosine(a, b) for a, b in zip(Q, signs, strict=True)) / 2,
        "l1": sum(gaps) / 8,
        "l2": sum(g * g for g in gaps) / 8,
    }[quant]
    assert float(terms["quantization"]) == pytest.approx(0.5 * want, abs=1e-9)


def test_query_learns_raw_outputs_without_labels():
    ortho = method(distill_weight=2.0)
    assert ortho.schedule is Schedule.FROZEN
    assert not ortho.labels_needed
    assert ortho.recording == "float"
    terms = ortho.query_loss(rows(Q), rows(G), batch(), {})
    assert float(terms["distill"]) == pytest.approx(2 * 0.2734375, abs=1e-9)


def test_query_with_binary_target_needs_signs_only():
    ortho = method(distill_target="binary")
    assert ortho.recording == "sign"
    for g in (rows(G), torch.sign(rows(G))):
        terms = ortho.query_loss(rows(Q), g, batch(), {})
        assert float(terms["distill"]) == pytest.approx(0.328125, abs=1e-6)


def test_distillation_options_leave_the_gallery_stage_shared():
    plain = method().params.read_by("gallery")
    assert method(distill_weight=3.0, distill_target="binary").params.read_by("gallery") == plain
    assert method(margin=0.3).params.read_by("query") == method().params.read_by("query")


def test_centers_are_coin_flips_in_their_own_order():
    spec = method().centers()
    assert (spec.kind, spec.assign) == ("bernoulli", "none")
    assert method(centers="greedy").centers().kind == "greedy"
