"""AML-Contr: published values, explicit loops, and the tuples of an epoch."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods import aml_contr
from methods.aml_contr import (
    contrastive_per_type,
    draw_positives,
    hard_negatives,
    tuple_contrastive,
)
from methods.base import Batch, Schedule, Task, TrainingSplit, build_method
from retrieval.errors import InputError
from tests.oracles import aml as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
ONE = [[1, 0, 0], [0, 1, 0]]
OVER = {"all_pairs": oracle.all_pairs, "per_type": oracle.per_type}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(np.asarray(rows), dtype=dtype)


def build(bits=4, n_classes=3, n_train=40, **params):
    task = Task(bits=bits, n_classes=n_classes, n_train=n_train, multi_label=False)
    return build_method("aml_contr", params, task)


def batch(labels, bits, rows=None, dtype=torch.float64):
    n = len(labels)
    return Batch(
        rows=torch.arange(n) if rows is None else torch.as_tensor(rows),
        labels=tensor(labels, dtype),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )


def terms(h_q, g, given, state=None, dtype=torch.float64, **params):
    n_classes = given.labels.shape[1]
    method = build(np.shape(h_q)[1], n_classes, **params)
    found = method.query_loss(tensor(h_q, dtype), tensor(g, dtype), given, state or {})
    assert all(value.dtype == dtype and value.shape == () for value in found.values())
    return {name: float(value) for name, value in found.items()}


def loss(h_q=Q, g=G, labels=ONE, dtype=torch.float64, **params):
    """The only term of the batch form."""
    given = batch(labels, np.shape(h_q)[1], dtype=dtype)
    found = terms(h_q, g, given, dtype=dtype, **params)
    assert set(found) == {"contrast"}
    return found["contrast"]


def draw(seed, n, bits=8, n_classes=3, *, multi=False):
    """Return h_q, g and labels; with several labels some images have none, some have all."""
    rng = np.random.default_rng(seed)
    h_q, g = rng.normal(size=(2, n, bits))
    if multi:
        labels = (rng.random((n, n_classes)) < rng.random((n, 1))).astype(float)
    else:
        labels = np.eye(n_classes)[rng.integers(0, n_classes, n)]
    return h_q, g, labels


# ---- all pairs of the batch ----------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, 0.077007),
        ({"margin": 1.5}, 0.088492),
        ({"weight": 10.0}, 0.770073),
        ({"reduce": "per_type"}, 2 * 0.077007),  # two pairs of each type, of four
        ({"reduce": "per_type", "margin": 1.5}, 2 * 0.088492),
    ],
)
def test_loss_has_the_published_values(params, expected, dtype):
    limit = 2e-6 if dtype == torch.float64 else 1e-4
    assert loss(dtype=dtype, **params) == pytest.approx(expected, abs=limit)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(sorted(OVER)),
    st.sampled_from([0.5, 0.7, 1.5]),
)
def test_loss_agrees_with_loops(seed, n, multi, reduce, margin):
    h_q, g, labels = draw(seed, n, multi=multi)
    want = OVER[reduce](h_q, g, labels, margin)
    params = {"reduce": reduce, "margin": margin}
    assert loss(h_q, g, labels, **params) == pytest.approx(want, abs=1e-9)
    rough = loss(h_q, g, labels, dtype=torch.float32, **params)
    assert rough == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("reduce", sorted(OVER))
def test_a_type_without_pairs_counts_nothing(reduce):
    everyone = np.ones((2, 3))
    squares = [oracle.distance(q, g) ** 2 / 2 for q in Q for g in G]
    assert loss(labels=everyone, reduce=reduce) == pytest.approx(sum(squares) / 4, abs=1e-12)
    alone = oracle.distance(Q[0], G[0]) ** 2 / 2
    assert loss(Q[:1], G[:1], ONE[:1], reduce=reduce) == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("reduce", sorted(OVER))
def test_an_image_without_labels_is_similar_to_itself_alone(reduce):
    assert loss(labels=np.zeros((2, 3)), reduce=reduce) == loss(labels=ONE, reduce=reduce)


def test_rare_similar_pairs_weigh_as_much_as_the_others_where_types_are_averaged():
    h_q, g, _ = draw(3, 8)
    labels = np.eye(8)
    similar = [oracle.distance(a, b) ** 2 / 2 for a, b in zip(h_q, g, strict=True)]
    rest = loss(h_q, g, labels, reduce="per_type") - sum(similar) / 8
    assert rest > 0
    whole = loss(h_q, g, labels, reduce="all_pairs")
    assert whole == pytest.approx((sum(similar) + 56 * rest) / 64, abs=1e-12)


def test_the_output_space_is_the_teachers():
    h_q, g, labels = draw(4, 6)
    want = oracle.all_pairs(np.tanh(h_q), np.tanh(g), labels, 0.7)
    assert loss(h_q, g, labels, teacher="csq") == pytest.approx(want, abs=1e-9)


# ---- tuples: the loss ----------------------------------------------------------------


def split(embeddings, labels, seed=0, *, multi=False):
    labels = np.asarray(labels)
    return TrainingSplit(
        labels=tensor(labels, torch.float32),
        classes=None if multi else torch.from_numpy(labels.argmax(axis=1)),
        seed=seed,
        embeddings=tensor(embeddings, torch.float32),
    )


def prepared(method, given, epoch=0):
    state = method.initial_state("query", given)
    method.begin_epoch(epoch, given, state)
    return state


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]))
def test_loss_of_tuples_agrees_with_loops(seed, multi, reg_weight):
    _, embeddings, labels = draw(seed, 30, multi=multi)
    h_q, g, _ = draw(seed + 1, 5)
    params = {"form": "tuples", "reg_weight": reg_weight, "weight": 2.0, "negatives": 3}
    given = split(embeddings, labels, multi=multi)
    state = prepared(build(8, **params), given)
    rows = np.random.default_rng(seed).permutation(30)[:5]
    found = terms(h_q, g, batch(labels[rows], 8, rows), state, **params)
    want = {"contrast": 2 * oracle.tuple_contrast(
        h_q, embeddings, state["tuples"][rows].tolist(), 0.7
    )}  # fmt: skip
    if reg_weight:
        want["regression"] = 2 * reg_weight * oracle.unit_squared(h_q, g) / 2
    assert found == pytest.approx(want, abs=1e-6)


def test_a_tuple_by_hand(dtype):
    """Along three axes: the positive is at 2 ** 0.5, negatives at 0, 2 and, not there, at 0."""
    h_q = tensor([[5.0, 0, 0]], dtype)
    positive = tensor([[0.0, 1, 0]], dtype)
    negatives = tensor([[[1.0, 0, 0], [-1, 0, 0], [1, 0, 0]]], dtype)
    present = torch.tensor([[True, True, False]])
    value = tuple_contrastive(h_q, positive, negatives, present, margin=0.7)
    assert value.dtype == dtype
    assert float(value) == pytest.approx(2 / 2 + 0.7**2 / 2, abs=1e-5)
    assert float(
        tuple_contrastive(h_q, positive, negatives[:, 1:], present[:, 1:], margin=0.7)
    ) == pytest.approx(1, abs=1e-6)


def test_negatives_beyond_the_margin_have_no_pull():
    """The loss of a released re-implementation grows again where a negative is far."""
    h = tensor([[1.0, 0, 0]]).requires_grad_()
    far = tensor([[[0.0, 0, 1]]])
    value = tuple_contrastive(h, h.detach(), far, torch.tensor([[True]]), margin=0.7)
    value.backward()
    assert value == 0
    assert (h.grad == 0).all()


def test_embeddings_are_in_the_teachers_output_space():
    _, embeddings, labels = draw(5, 20)
    h_q, g, _ = draw(6, 4)
    params = {"form": "tuples", "teacher": "csq"}
    state = prepared(build(8, **params), split(embeddings, labels))
    found = terms(h_q, g, batch(labels[:4], 8), state, **params)
    want = oracle.tuple_contrast(
        np.tanh(h_q), np.tanh(embeddings), state["tuples"][:4].tolist(), 0.7
    )
    assert found["contrast"] == pytest.approx(want, abs=1e-6)
    want = oracle.unit_squared(np.tanh(h_q), np.tanh(g)) / 2
    assert found["regression"] == pytest.approx(want, abs=1e-9)


def test_tuples_do_not_read_the_batchs_codes_but_for_the_regression():
    _, embeddings, labels = draw(7, 20)
    h_q, g, _ = draw(8, 4)
    state = prepared(build(8, form="tuples"), split(embeddings, labels))
    one, other = (
        terms(h_q, codes, batch(labels[:4], 8), state, form="tuples") for codes in (g, -g)
    )
    assert one["contrast"] == other["contrast"]
    assert one["regression"] != other["regression"]


# ---- tuples: how they are drawn ------------------------------------------------------


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.integers(0, 2**32 - 1), st.integers(2, 25), st.integers(1, 6), st.booleans(), st.data()
)
def test_tuples_share_a_label_with_the_positive_and_none_with_the_nearest_negatives(
    seed, n, count, multi, data
):
    _, embeddings, labels = draw(seed, n, n_classes=5, multi=multi)
    size = data.draw(st.integers(1, n))
    method = build(8, 5, n, form="tuples", negatives=count, pool=size)
    given = split(embeddings, labels, multi=multi)
    tuples = prepared(method, given)["tuples"]
    assert tuples.shape == (n, 1 + count)
    assert tuples.dtype == torch.int64
    pool = sorted(given.generator("pool", 0).permutation(n)[:size].tolist())
    for i, (positive, *negatives) in enumerate(tuples.tolist()):
        others = [j for j in range(n) if j != i and oracle.share(labels[i], labels[j])]
        assert positive in (others or [i])
        assert positive not in negatives
        assert negatives == oracle.negatives(
            embeddings, labels, pool, i, count, distinct=not multi
        )


def test_positives_are_drawn_evenly_where_images_have_one_label():
    labels = np.eye(2)[[0, 0, 0, 0, 1, 0]] > 0
    rng = np.random.default_rng(0)
    drawn = np.array([draw_positives(labels, rng) for _ in range(4000)])
    assert (drawn[:, 4] == 4).all()  # alone in its class
    for i in (0, 1, 2, 3, 5):
        shares = np.bincount(drawn[:, i], minlength=6) / 4000
        assert shares[i] == shares[4] == 0
        assert np.abs(shares[[j for j in (0, 1, 2, 3, 5) if j != i]] - 0.25).max() < 0.03


def test_positives_are_drawn_by_label_first_where_images_have_several():
    """Of image 0's labels the first is in four other images, the second in one, the third in 0."""
    labels = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]) > 0
    rng = np.random.default_rng(1)
    drawn = np.array([draw_positives(labels, rng)[0] for _ in range(4000)])
    shares = np.bincount(drawn, minlength=6) / 4000
    assert shares[0] == 0
    assert np.abs(shares[1:] - [0.125, 0.125, 0.125, 0.125, 0.5]).max() < 0.03


def test_images_without_labels_are_their_own_positives():
    assert draw_positives(np.zeros((3, 2), bool), np.random.default_rng(0)).tolist() == [0, 1, 2]


def test_there_are_as_many_negatives_as_other_classes_at_most():
    _, embeddings, labels = draw(9, 20, n_classes=3)
    tuples = prepared(build(8, form="tuples"), split(embeddings, labels))["tuples"]
    assert (tuples[:, 1:3] >= 0).all()
    assert (tuples[:, 3:] == -1).all()


def test_a_split_of_one_class_has_no_negatives_and_a_finite_loss():
    h_q, embeddings, _ = draw(10, 12)
    labels = np.eye(3)[[1] * 12]
    method = build(8, form="tuples")
    state = prepared(method, split(embeddings, labels))
    assert (state["tuples"][:, 1:] == -1).all()
    h = tensor(h_q).requires_grad_()
    value = method.query_loss(h, tensor(embeddings), batch(labels, 8), state)["contrast"]
    value.backward()
    want = oracle.tuple_contrast(h_q, embeddings, state["tuples"].tolist(), 0.7)
    assert float(value.detach()) == pytest.approx(want, abs=1e-6)
    assert torch.isfinite(h.grad).all()


def test_equally_near_negatives_are_the_first_of_the_pool():
    bank = torch.ones(6, 4) / 2
    classes = torch.tensor([0, 1, 1, 2, 2, 0])
    found = hard_negatives(bank, classes, torch.arange(1, 6), 3)
    assert found[0].tolist() == [1, 3, -1]
    assert found[1].tolist() == [3, 5, -1]


def test_negatives_do_not_depend_on_the_chunk(monkeypatch):
    _, embeddings, labels = draw(11, 50, n_classes=8, multi=True)
    bank, pool = tensor(embeddings), torch.arange(0, 50, 2)
    one = hard_negatives(bank, tensor(labels), pool, 4)
    monkeypatch.setattr(aml_contr, "_CHUNK", 70)
    assert torch.equal(hard_negatives(bank, tensor(labels), pool, 4), one)


def test_tuples_are_a_function_of_seed_and_epoch_and_not_kept():
    _, embeddings, labels = draw(12, 40, n_classes=5)
    method = build(8, 5, form="tuples", pool=20)
    given = split(embeddings, labels)
    first = prepared(method, given, epoch=3)
    later = method.initial_state("query", given)
    for epoch in range(4):  # what came before does not matter
        method.begin_epoch(epoch, given, later)
    assert torch.equal(first["tuples"], later["tuples"])
    for other in (prepared(method, given, epoch=4), prepared(method, replace(given, seed=1), 3)):
        assert (first["tuples"][:, 0] != other["tuples"][:, 0]).any()
        assert (first["tuples"][:, 1:] != other["tuples"][:, 1:]).any()
    assert method.memory == ()


def test_a_pool_larger_than_the_split_is_all_of_it():
    _, embeddings, labels = draw(13, 15, n_classes=5)
    one, other = (
        prepared(build(8, 5, form="tuples", pool=pool), split(embeddings, labels))["tuples"]
        for pool in (15, 20000)
    )
    assert torch.equal(one, other)


# ---- gradients and size --------------------------------------------------------------

SETTINGS = [
    {},
    {"reduce": "per_type"},
    {"form": "tuples"},
    {"form": "tuples", "reg_weight": 0.0},
]


@pytest.mark.parametrize("params", SETTINGS, ids=str)
@pytest.mark.parametrize("multi", [False, True], ids=["single", "multi"])
def test_gradients_reach_every_row_and_are_the_losses_own(params, multi):
    h_q, g, labels = draw(14, 12, multi=multi)
    method = build(8, **params)
    given = split(g, labels, multi=multi)
    state = prepared(method, given) if method.reads_embeddings else {}
    own, codes = batch(labels, 8), tensor(g)

    def total(h):
        return sum(method.query_loss(h, codes, own, state).values())

    h = tensor(h_q).requires_grad_()
    (gradient,) = torch.autograd.grad(total(h), h)
    assert (gradient.abs().sum(dim=1) > 0).all()
    assert total(h.detach() - 1e-4 * gradient / gradient.norm()) < total(h)
    assert torch.autograd.gradcheck(total, (h,))


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_order_of_the_batch_does_not_matter(params):
    h_q, g, labels = draw(15, 9, multi=True)
    order = np.random.default_rng(0).permutation(9)
    method = build(8, **params)
    state = prepared(method, split(g, labels, multi=True)) if method.reads_embeddings else {}
    one = terms(h_q, g, batch(labels, 8), state, **params)
    other = terms(h_q[order], g[order], batch(labels[order], 8, order), state, **params)
    assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("params", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15, 1e30])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(params, scale):
    h, g, labels = draw(16, 9)
    h, g = (torch.tensor(x * scale, dtype=torch.float32).bfloat16().float() for x in (h, g))
    h.requires_grad_()
    method = build(8, **params)
    state = prepared(method, split(g, labels)) if method.reads_embeddings else {}
    value = sum(method.query_loss(h, g, batch(labels, 8, dtype=torch.float32), state).values())
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_equal_outputs_give_a_finite_gradient(params):
    h_q, _, labels = draw(17, 8)
    h_q[:] = h_q[0]
    h = tensor(h_q, torch.float32).requires_grad_()
    method = build(8, **params)
    state = prepared(method, split(h_q, labels)) if method.reads_embeddings else {}
    given = batch(labels, 8, dtype=torch.float32)
    sum(method.query_loss(h, h.detach(), given, state).values()).backward()
    assert torch.isfinite(h.grad).all()


# ---- declarations and refusals -------------------------------------------------------


def test_each_form_declares_what_it_reads():
    assert build().recording == "float"
    assert not build().reads_embeddings
    assert build(form="tuples").recording == "float"
    assert build(form="tuples").reads_embeddings
    assert build(form="tuples", reg_weight=0.0).recording == "sign"
    assert build(reg_weight=0.0).recording == "float"
    method = build()
    assert method.labels_needed
    assert method.embeddings
    assert method.schedule is Schedule.FROZEN
    assert method.params.read_by("gallery") == {"teacher": "orthohash", "teacher_params": {}}


def test_the_batch_form_keeps_no_state():
    _, embeddings, labels = draw(18, 10)
    assert prepared(build(8), split(embeddings, labels)) == {}
    assert build(8, form="tuples").initial_state("gallery", split(embeddings, labels)) == {}


def test_missing_embeddings_and_other_lengths_are_refused():
    _, embeddings, labels = draw(19, 10)
    method = build(8, form="tuples")
    bare = replace(split(embeddings, labels), embeddings=None)
    with pytest.raises(ValueError, match="need the gallery's embeddings"):
        method.initial_state("query", bare)
    state = prepared(method, split(embeddings, labels))
    with pytest.raises(ValueError, match="5 bits and their tuples 8"):
        method.query_loss(torch.ones(10, 5), torch.ones(10, 8), batch(labels, 8), state)
    for over in (build(8), build(8, reduce="per_type")):
        with pytest.raises(ValueError, match="5 bits and their targets 8"):
            over.query_loss(torch.ones(10, 5), torch.ones(10, 8), batch(labels, 8), {})
    with pytest.raises(ValueError, match="5 bits"):
        contrastive_per_type(torch.ones(2, 5), torch.ones(2, 4), torch.eye(2), margin=0.7)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("form", "pairs"),
        ("reduce", "sum"),
        ("margin", 0.0),
        ("margin", 2.5),
        ("weight", 0.0),
        ("reg_weight", -0.1),
        ("negatives", 0),
        ("negatives", 5.0),
        ("pool", 0),
    ],
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        build(**{key: value})
    assert caught.value.key == key
