"""MDSH: published values, explicit loops, the memory bank, and what its hyperparameters move."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods.base import Batch, Schedule, Task, TrainingSplit, build_method
from methods.mdsh import bank_attraction, center_softmax
from retrieval.errors import InputError
from tests.oracles import losses as plain
from tests.oracles import mdsh as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
T = [[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]]
ONE = [[1, 0, 0], [0, 1, 0]]
Y = [[1, 0, 1], [0, 1, 1]]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def rows(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def tanh(values):
    return [[math.tanh(v) for v in row] for row in values]


def method(*, multi=False, n_train=2, bits=4, n_classes=3, **params):
    task = Task(bits=bits, n_classes=n_classes, n_train=n_train, multi_label=multi)
    return build_method("mdsh", params, task)


def batch(labels=ONE, *, epoch=0, dtype=torch.float64, images=None):
    images = list(range(len(labels))) if images is None else images
    single = all(sum(row) == 1 for row in labels)
    return Batch(
        rows=torch.tensor(images),
        labels=rows(labels, dtype),
        classes=rows(labels).argmax(dim=1) if single else None,
        tie_bits=torch.ones(len(labels), 4, dtype=dtype),
        epoch=epoch,
    )


def split(labels=ONE, seed=0):
    return TrainingSplit(labels=rows(labels, torch.float32), classes=None, seed=seed)


def prepared(mdsh, labels=ONE, *, g=G, dtype=torch.float64):
    """Return the state with the momentum encoder's outputs g of all images in the bank."""
    state = {"centers": torch.tensor(T, dtype=torch.int8)}
    state |= mdsh.initial_state("gallery", split(labels))
    mdsh.remember("gallery", {"momentum": rows(g, dtype)}, batch(labels, dtype=dtype), state)
    return state


# ---- values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "center", "pairwise"), [(ONE, 0.103311, 0.715241), (Y, 1.026571, 0.876223)]
)
def test_terms_have_the_published_values(labels, center, pairwise, dtype):
    u, bank = rows(tanh(Q), dtype), rows(tanh(G), dtype)
    y = rows(labels, dtype)
    first = center_softmax(u, rows(T, dtype), y)
    second = bank_attraction(u, y, bank, y)
    for loss, expected in ((first, center), (second, pairwise)):
        assert loss.dtype == dtype
        assert loss.shape == ()
        assert float(loss) == pytest.approx(expected, abs=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("labels", "center", "pairwise"), [(ONE, 0.103311, 0.715241), (Y, 1.026571, 0.876223)]
)
def test_gallery_loss_has_the_published_values(labels, center, pairwise, dtype):
    mdsh = method(multi=labels is Y)
    state = prepared(mdsh, labels, dtype=dtype)
    terms = mdsh.gallery_loss(rows(Q, dtype), batch(labels, epoch=9, dtype=dtype), state)
    total = center + pairwise + 1e-4 * 0.204793
    if labels is ONE:
        assert total == pytest.approx(0.818572, abs=1e-6)
    assert float(terms["center"]) == pytest.approx(center, abs=TOLERANCE[dtype])
    assert float(terms["pairwise"]) == pytest.approx(pairwise, abs=TOLERANCE[dtype])
    assert float(terms["quantization"]) == pytest.approx(1e-4 * 0.204793, abs=1e-9)
    assert float(sum(terms.values())) == pytest.approx(total, abs=2 * TOLERANCE[dtype])


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.1, 1.0, 30.0]))
def test_terms_equal_explicit_loops(seed, multi, scale):
    rng = np.random.default_rng(seed)
    n, kept, bits, classes = rng.integers(1, 7, 4) + np.array([0, 3, 1, 1])
    u = np.tanh(scale * rng.normal(size=(n, bits)))
    bank = rng.normal(size=(kept, bits))
    centers = rng.choice([-1.0, 1.0], (classes, bits))
    if multi:
        labels = rng.integers(0, 2, (n + kept, classes)).astype(float)  # some without any label
    else:
        labels = np.eye(classes)[rng.integers(0, classes, n + kept)]
    y, other = labels[:n], labels[n:]
    given = [torch.from_numpy(a) for a in (u, centers, y, bank, other)]
    got = center_softmax(given[0], given[1], given[2])
    expected = oracle.center_softmax(u.tolist(), centers.tolist(), y.tolist())
    assert float(got) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    got = bank_attraction(given[0], given[2], given[3], given[4])
    expected = oracle.bank_attraction(*(a.tolist() for a in (u, y, bank, other)))
    assert float(got) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bits", [4, 48, 4096])
@pytest.mark.parametrize("label", [0, 1])
def test_a_certain_output_has_the_loss_of_the_loops_in_float32(bits, label):
    # On its center: p rounds to 1 in float32 at 4096 bits, and 1 - p to 0.
    center = [1.0] * bits
    far = [-1.0] * bits
    y = [1.0, 0.0] if label == 0 else [0.0, 1.0]
    u = torch.tensor([center], requires_grad=True)
    loss = center_softmax(u, torch.tensor([center, far]), torch.tensor([y]))
    loss.backward()
    expected = oracle.center_softmax([center], [center, far], [y])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("labels", [ONE, Y, [[0, 0, 0], [1, 1, 1]]])
def test_loss_and_gradient_are_finite_on_any_output(scale, labels, dtype):
    mdsh = method(multi=True)
    state = prepared(mdsh, labels, dtype=dtype)
    h = (scale * rows(Q, dtype)).bfloat16().to(dtype).requires_grad_()
    terms = mdsh.gallery_loss(h, batch(labels, epoch=9, dtype=dtype), state)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(h.grad).all()


def test_a_single_class_has_no_center_loss():
    u = rows(Q).requires_grad_()
    loss = center_softmax(u, rows(T[:1]), rows([[1], [0]]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (u.grad == 0).all()


def test_nothing_to_be_drawn_to_costs_nothing():
    u = rows(Q).requires_grad_()
    for y, kept in ((ONE, [[0, 0, 1], [0, 0, 1]]), ([[0, 0, 0]] * 2, ONE)):
        loss = bank_attraction(u, rows(y), rows(G), rows(kept))
        loss.backward()
        assert float(loss.detach()) == 0
        assert (u.grad == 0).all()


def test_codes_of_another_length_are_refused():
    short = rows(Q)[:, :3]
    with pytest.raises(ValueError, match="3 bits"):
        center_softmax(short, rows(T), rows(ONE))
    with pytest.raises(ValueError, match="3 bits"):
        bank_attraction(short, rows(ONE), rows(G), rows(ONE))


def test_descending_the_center_loss_turns_outputs_to_their_own_center():
    h = rows([[0.1, 0.2, -0.1, 0.3], [0.2, -0.1, 0.1, 0.2]]).requires_grad_()
    (gradient,) = torch.autograd.grad(center_softmax(h.tanh(), rows(T), rows(ONE)), h)
    before = (rows(T[:2]) * h.detach()).sum(dim=1)
    after = (rows(T[:2]) * (h.detach() - gradient)).sum(dim=1)
    assert (after > before).all()


def test_descending_the_pairwise_loss_turns_outputs_to_their_class_in_the_bank():
    h, bank = rows(Q).requires_grad_(), rows(G[::-1])
    loss = bank_attraction(h.tanh(), rows(ONE), bank, rows(ONE))
    (gradient,) = torch.autograd.grad(loss, h)
    after = h.detach() - 0.1 * gradient
    for i in range(2):
        near = plain.cosine(after.tanh()[i].tolist(), bank[i].tolist())
        assert near > plain.cosine(tanh(Q)[i], bank[i].tolist())


# ---- the bank ------------------------------------------------------------------------


def test_bank_starts_as_noise_of_the_splits_own_stream():
    mdsh = method(n_train=400, n_classes=3)
    labels = ONE * 200
    state = mdsh.initial_state("gallery", split(labels))
    again = mdsh.initial_state("gallery", split(labels))
    other = mdsh.initial_state("gallery", split(labels, seed=1))
    assert state["bank"].shape == (400, 4)
    assert state["bank"].dtype == torch.float32
    assert torch.equal(state["bank"], again["bank"])
    assert not torch.equal(state["bank"], other["bank"])
    assert abs(float(state["bank"].mean())) < 0.1  # 1600 values: 4 standard errors
    assert abs(float(state["bank"].std()) - 1) < 0.1
    assert not state["written"].any()
    assert set(mdsh.memory) == {"bank", "written"}
    assert mdsh.initial_state("query", split(labels)) == {}


def test_momentum_outputs_are_written_squashed_at_the_images_own_rows():
    mdsh = method(n_train=5)
    labels = [*ONE, [0, 0, 1], *ONE]
    state = mdsh.initial_state("gallery", split(labels))
    before = {name: value.clone() for name, value in state.items()}
    given = batch([labels[3], labels[1]], images=[3, 1])
    outputs = {"gallery": rows(Q), "momentum": rows(G)}
    mdsh.remember("query", outputs, given, state)
    assert torch.equal(state["bank"], before["bank"])
    mdsh.remember("gallery", outputs, given, state)
    np.testing.assert_allclose(state["bank"][[3, 1]], tanh(G), rtol=1e-6)
    assert torch.equal(state["bank"][[0, 2, 4]], before["bank"][[0, 2, 4]])
    assert state["written"].flatten().tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(state["bank_labels"], rows(labels, torch.float32))


def test_rows_that_were_never_written_draw_nothing():
    mdsh = method(n_train=5, epoch_change=0)
    labels = [[1, 0, 0]] * 5
    state = mdsh.initial_state("gallery", split(labels))
    state["centers"] = rows(T)
    given = batch([labels[3], labels[1]], images=[3, 1])
    mdsh.remember("gallery", {"momentum": rows(G)}, given, state)
    terms = mdsh.gallery_loss(rows(Q), given, state)
    y = [[1, 0, 0]] * 2
    expected = oracle.bank_attraction(tanh(Q), y, tanh(G), y)
    assert float(terms["pairwise"]) == pytest.approx(expected, abs=1e-6)


def test_pairwise_term_sees_images_of_earlier_batches():
    mdsh = method(n_train=4)
    labels = [*ONE, *ONE]
    state = mdsh.initial_state("gallery", split(labels))
    state["centers"] = rows(T)
    first, second = batch(ONE, epoch=9), batch(ONE, epoch=9, images=[2, 3])
    for given, outputs in ((first, G), (second, Q)):
        mdsh.remember("gallery", {"momentum": rows(outputs)}, given, state)
    terms = mdsh.gallery_loss(rows(Q), second, state)
    expected = oracle.bank_attraction(tanh(Q), ONE, tanh([*G, *Q]), labels)
    assert float(terms["pairwise"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("epoch_change", [0, 1, 9])
def test_pairwise_term_is_zero_before_its_epoch(epoch_change):
    mdsh = method(epoch_change=epoch_change)
    state = prepared(mdsh)
    for epoch in range(12):
        terms = mdsh.gallery_loss(rows(Q), batch(epoch=epoch), state)
        assert (float(terms["pairwise"]) > 0) is (epoch >= epoch_change)


def test_losses_do_not_depend_on_the_order_of_the_batch():
    mdsh = method(multi=True)
    state = prepared(mdsh, Y)
    given = batch(Y, epoch=9)
    turned = replace(given, rows=given.rows.flip(0), labels=given.labels.flip(0))
    one = mdsh.gallery_loss(rows(Q), given, state)
    other = mdsh.gallery_loss(rows(Q).flip(0), turned, state)
    for name, value in one.items():
        assert float(other[name]) == pytest.approx(float(value), rel=1e-12)


# ---- hyperparameters -----------------------------------------------------------------


def test_defaults_are_the_released_codes():
    mdsh = method()
    p = mdsh.params
    assert (p.beta, p.lambda_q, p.momentum, p.epoch_change) == (1.0, 1e-4, 0.9, 9)
    assert mdsh.head == "fc_bn_tanh"
    assert mdsh.momentum == 0.9
    assert mdsh.centers().kind == "mds"
    assert mdsh.schedule is Schedule.FROZEN
    assert not mdsh.labels_needed


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_beta_weighs_the_pairwise_term(beta):
    mdsh = method(beta=beta)
    terms = mdsh.gallery_loss(rows(Q), batch(epoch=9), prepared(mdsh))
    assert float(terms["pairwise"]) == pytest.approx(beta * 0.715241, abs=3e-6)


def test_without_pairwise_term_there_is_neither_bank_nor_encoder():
    mdsh = method(beta=0.0)
    assert mdsh.momentum is None
    assert mdsh.initial_state("gallery", split()) == {}
    state = {"centers": rows(T)}
    mdsh.remember("gallery", {"gallery": rows(G)}, batch(), state)
    terms = mdsh.gallery_loss(rows(Q), batch(epoch=9), state)
    assert float(sum(terms.values())) == pytest.approx(0.103311 + 1e-4 * 0.204793, abs=1e-6)


@pytest.mark.parametrize("lambda_q", [0.0, 1e-3, 1.0])
def test_lambda_weighs_the_quantisation_term(lambda_q):
    mdsh = method(lambda_q=lambda_q)
    terms = mdsh.gallery_loss(rows(Q), batch(), prepared(mdsh))
    expected = lambda_q * plain.tanh_quantization(Q)
    assert float(terms["quantization"]) == pytest.approx(expected, abs=1e-12)


def test_a_quantizer_in_its_place_takes_the_quantisation_term_away():
    assert method(quantizer={"name": "caq", "mode": "replace"}).params.lambda_q == 0


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_momentum_is_what_the_encoder_keeps(momentum):
    assert method(momentum=momentum).momentum == momentum


@pytest.mark.parametrize("kind", ["mds", "hadamard", "hadamard_ext", "greedy", "bernoulli"])
def test_centers_are_a_hyperparameter_of_the_centers_alone(kind):
    mdsh = method(centers=kind)
    assert mdsh.centers().kind == kind
    assert mdsh.params.read_by("centers") == {"centers": kind}


def test_the_gallery_reads_its_own_hyperparameters_and_the_query_the_distillations():
    p = method().params
    gallery = {"beta": 1.0, "lambda_q": 1e-4, "momentum": 0.9, "epoch_change": 9}
    assert p.read_by("gallery") == gallery
    assert p.read_by("query") == {"distill_weight": 1.0, "distill_target": "continuous"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": -0.1},
        {"lambda_q": -1e-4},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"epoch_change": -1},
        {"epoch_change": 1.5},
        {"centers": "coding table"},
    ],
)
def test_wrong_hyperparameters_are_refused_by_name(wrong):
    with pytest.raises(InputError) as caught:
        method(**wrong)
    assert caught.value.key == next(iter(wrong))


def test_impossible_centers_are_refused_by_the_bits():
    with pytest.raises(InputError, match="at least 4 bits") as caught:
        method(bits=3, n_classes=9)
    assert caught.value.key == "bits"


# ---- the query -----------------------------------------------------------------------


@pytest.mark.parametrize("target", ["continuous", "binary"])
@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_query_learns_tanh_outputs_or_their_signs(target, weight):
    mdsh = method(distill_target=target, distill_weight=weight)
    binary = target == "binary"
    assert mdsh.recording == ("sign" if binary else "float")
    aim = [[plain.sign(v) for v in row] for row in G] if binary else tanh(G)
    terms = mdsh.query_loss(rows(Q), rows(G), batch(), {})
    assert list(terms) == ["distill"]
    assert float(terms["distill"]) == pytest.approx(weight * plain.l2(tanh(Q), aim), abs=1e-12)
