"""CSQ: published values, heads, centers, and the query's distillation in tanh space."""

from __future__ import annotations

import math

import pytest
import torch

from methods.base import Batch, Schedule, Task, build_method
from retrieval.errors import InputError

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
STATE = {
    "centers": torch.tensor([[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]], dtype=torch.int8)
}


def method(*, multi=False, bits=4, n_classes=3, **params):
    task = Task(bits=bits, n_classes=n_classes, n_train=2, multi_label=multi)
    return build_method("csq", params, task)


def batch(*, multi=False):
    labels = [[1, 0, 1], [0, 1, 1]] if multi else [[1, 0, 0], [0, 1, 0]]
    return Batch(
        rows=torch.arange(2),
        labels=torch.tensor(labels, dtype=torch.float64),
        classes=None if multi else torch.tensor([0, 1]),
        tie_bits=torch.tensor([[1, -1, 1, -1]] * 2, dtype=torch.float64),
    )


def rows(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("multi", "center", "total"), [(False, 0.226118, 0.226138), (True, 0.476118, 0.476138)]
)
def test_gallery_loss_has_the_published_values(multi, center, total):
    terms = method(multi=multi).gallery_loss(rows(Q), batch(multi=multi), STATE)
    assert float(terms["center"]) == pytest.approx(center, abs=1e-6)
    assert float(terms["quantization"]) == pytest.approx(1e-4 * 0.204793, abs=1e-9)
    assert float(sum(terms.values())) == pytest.approx(total, abs=1e-6)


def test_query_learns_tanh_outputs():
    csq = method()
    assert csq.schedule is Schedule.FROZEN
    assert csq.recording == "float"
    gaps = [
        (math.tanh(a) - math.tanh(b)) ** 2
        for x, y in zip(Q, G, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    terms = csq.query_loss(rows(Q), rows(G), batch(), {})
    assert float(terms["distill"]) == pytest.approx(sum(gaps) / 8, abs=1e-12)


def test_query_with_binary_target_learns_signs_of_outputs_or_codes():
    csq = method(distill_target="binary")
    assert csq.recording == "sign"
    gaps = [
        (math.tanh(a) - (1 if b >= 0 else -1)) ** 2
        for x, y in zip(Q, G, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    for g in (rows(G), torch.sign(rows(G))):
        terms = csq.query_loss(rows(Q), g, batch(), {})
        assert float(terms["distill"]) == pytest.approx(sum(gaps) / 8, abs=1e-12)


@pytest.mark.parametrize("head", ["fc_tanh", "mlp3_tanh"])
def test_head_is_a_hyperparameter_of_both_networks(head):
    csq = method(head=head)
    assert csq.head == head
    assert csq.params.read_by("gallery")["head"] == csq.params.read_by("query")["head"] == head


def test_centers_follow_the_hyperparameters():
    spec = method().centers()
    assert (spec.kind, spec.row_choice, spec.flip_rows) == ("hadamard_ext", "first", False)
    spec = method(row_choice="random", flip_rows=True).centers()
    assert (spec.row_choice, spec.flip_rows) == ("random", True)


def test_lengths_without_a_hadamard_matrix_are_refused():
    with pytest.raises(InputError, match="16 or 20") as caught:
        method(bits=18)
    assert caught.value.key == "bits"
    method(bits=18, centers="greedy")
