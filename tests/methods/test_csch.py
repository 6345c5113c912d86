"""CSCH: the totals of the paper's terms, what reaches which network, what reads what."""

from __future__ import annotations

import pytest
import torch

from methods.base import Batch, Schedule, Task, build_method
from retrieval.errors import InputError

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
T = [[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]]


def method(*, multi=False, **params):
    return build_method("csch", params, Task(bits=4, n_classes=3, n_train=2, multi_label=multi))


def batch(*, multi=False, dtype=torch.float64):
    labels = [[1, 0, 1], [0, 1, 1]] if multi else [[1, 0, 0], [0, 1, 0]]
    return Batch(
        rows=torch.arange(2),
        labels=torch.tensor(labels, dtype=dtype),
        classes=None if multi else torch.tensor([0, 1]),
        tie_bits=torch.tensor([[1, -1, 1, -1]] * 2, dtype=dtype),
    )


def outputs(dtype=torch.float64):
    return (
        torch.tensor(Q, dtype=dtype, requires_grad=True),
        torch.tensor(G, dtype=dtype, requires_grad=True),
        {"centers": torch.tensor(T, dtype=dtype)},
    )


def value(tensor):
    return float(tensor.detach())


def test_single_label_total_has_the_published_value():
    h_q, h_g, state = outputs()
    csch = method(gamma=10.0)
    gallery = csch.gallery_loss(h_g, batch(), state)
    query = csch.query_loss(h_q, torch.sign(h_g.detach()), batch(), state)
    assert value(gallery["center"]) == pytest.approx(0.001663, abs=1e-6)
    assert value(query["center"]) == pytest.approx(0.006953, abs=1e-6)
    assert value(query["instance"]) == pytest.approx(3.28125, abs=1e-6)
    total = value(sum(gallery.values()) + sum(query.values()))
    assert total == pytest.approx(3.289866, abs=1e-6)


def test_multi_label_center_terms_have_the_published_values():
    h_q, h_g, state = outputs()
    csch = method(multi=True)
    many = batch(multi=True)
    assert value(csch.gallery_loss(h_g, many, state)["center"]) == pytest.approx(
        0.008456, abs=1e-6
    )
    query = csch.query_loss(h_q, h_g.detach(), many, state)
    assert value(query["center"]) == pytest.approx(0.043039, abs=1e-6)


def test_float32_is_close_to_the_published_total():
    h_q, h_g, state = outputs(torch.float32)
    csch = method(gamma=10.0)
    terms = csch.query_loss(h_q, torch.sign(h_g.detach()), batch(dtype=torch.float32), state)
    assert value(sum(terms.values())) == pytest.approx(0.006953 + 3.28125, abs=1e-4)


@pytest.mark.parametrize(
    ("instance", "schedule", "recording", "expected"),
    [
        ("binary_sg", Schedule.SIMULTANEOUS, "sign", 0.328125),
        ("cont_sg", Schedule.SIMULTANEOUS, "float", 0.273438),
        ("contr_sg", Schedule.SIMULTANEOUS, "float", 0.077007),
        ("released_code", Schedule.JOINT, "float", 0.273438),
        ("contr_grad", Schedule.JOINT, "float", 0.077007),
    ],
)
def test_instance_terms_schedules_and_recordings(instance, schedule, recording, expected):
    csch = method(instance=instance, gamma=1.0)
    assert csch.schedule is schedule
    assert csch.recording == recording
    h_q, h_g, state = outputs()
    g = torch.sign(h_g.detach()) if recording == "sign" else h_g.detach()
    terms = csch.query_loss(h_q, g, batch(), state)
    assert value(terms["instance"]) == pytest.approx(expected, abs=1e-6)


def test_no_instance_term_needs_nothing_of_the_gallery():
    csch = method(instance="none")
    assert (csch.schedule, csch.recording) == (Schedule.SIMULTANEOUS, "sign")
    h_q, h_g, state = outputs()
    assert list(csch.query_loss(h_q, h_g.detach(), batch(), state)) == ["center"]


@pytest.mark.parametrize("instance", ["released_code", "contr_grad"])
def test_instance_term_reaches_the_gallery_in_the_gradient_modes(instance):
    h_q, h_g, state = outputs()
    csch = method(instance=instance)
    terms = csch.joint_loss(h_q, h_g, batch(), state)
    assert set(terms) == {"query_center", "query_instance", "gallery_center"}
    terms["query_instance"].backward()
    assert h_g.grad is not None
    assert h_g.grad.abs().sum() > 0


def test_binary_instance_term_never_reaches_the_gallery():
    h_q, h_g, state = outputs()
    terms = method().query_loss(h_q, h_g, batch(), state)  # even if the codes carry a graph
    sum(terms.values()).backward()
    assert h_g.grad is None
    assert h_q.grad.abs().sum() > 0


def test_sign_recording_and_continuous_codes_give_the_same_binary_term():
    h_q, h_g, state = outputs()
    csch = method()
    a = csch.query_loss(h_q, h_g.detach(), batch(), state)["instance"]
    b = csch.query_loss(h_q, torch.sign(h_g.detach()), batch(), state)["instance"]
    assert torch.equal(a, b)


def test_query_center_off_leaves_the_instance_term_and_needs_no_centers():
    csch = method(query_center=False)
    assert not csch.centers_for_query()
    h_q, h_g, _ = outputs()
    assert list(csch.query_loss(h_q, h_g.detach(), batch(), {})) == ["instance"]


def test_a_query_without_any_loss_is_refused():
    with pytest.raises(InputError, match="has no loss") as caught:
        method(query_center=False, instance="none")
    assert caught.value.key == "query_center"


@pytest.mark.parametrize(
    ("center_loss", "expected"),
    [("csch", 0.043039), ("label_smoothing", 5.299415), ("bce", 0.476118)],
)
def test_alternatives_of_the_center_term(center_loss, expected):
    h_q, h_g, state = outputs()
    csch = method(multi=True, center_loss=center_loss)
    terms = csch.query_loss(h_q, h_g.detach(), batch(multi=True), state)
    assert value(terms["center"]) == pytest.approx(expected, abs=1e-6)


def test_gamma_and_instance_leave_the_gallery_stage_shared():
    first = method(gamma=1.0).params.read_by("gallery")
    second = method(gamma=100.0, instance="cont_sg").params.read_by("gallery")
    assert first == second == {"margin": 0.2, "tau": 0.125, "center_loss": "csch"}
    assert method(gamma=1.0).centers() == method(gamma=100.0, instance="cont_sg").centers()


def test_centers_spec_follows_the_hyperparameters():
    spec = method(
        centers="bernoulli", assign="A_b", assign_cost="norm", normalize_first=False
    ).centers()
    assert (spec.kind, spec.assign, spec.cost) == ("bernoulli", "A_b", "norm")
    assert not spec.normalize_first
    assert spec.needs == ("query", "gallery")


def test_a_wrong_hyperparameter_is_named_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'gamma'") as caught:
        method(gama=1.0)
    assert caught.value.key == "gama"
    with pytest.raises(InputError, match="did you mean 'binary_sg'"):
        method(instance="binary")
