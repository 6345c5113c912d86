"""CSD: published values, explicit loops, ties, and the offline form's bank and lists."""

from __future__ import annotations

import typing

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from asymbench.testing import MethodContract
from methods import csd
from methods.base import Batch, Schedule, Task, TrainingSplit, build_method
from methods.csd import contextual_similarity, nearest
from retrieval.errors import InputError
from tests.oracles import csd as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5], [1, 1, -0.5, -1.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25], [0.5, 1.5, -1, -1]]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(np.asarray(rows), dtype=dtype)


def task(bits=4, n_train=3):
    return Task(bits=bits, n_classes=3, n_train=n_train, multi_label=False)


def batch(rows, bits):
    n = len(rows)
    return Batch(
        rows=torch.as_tensor(rows),
        labels=torch.zeros(n, 3),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )


def split(embeddings):
    n = len(embeddings)
    return TrainingSplit(
        labels=torch.zeros(n, 3),
        classes=None,
        seed=0,
        embeddings=tensor(embeddings, torch.float32),
    )


def loss(h_q, g, rows=None, dtype=torch.float64, state=None, n_train=None, **params):
    """The term of a method with these hyperparameters."""
    n, bits = np.shape(h_q)
    rows = np.arange(n) if rows is None else rows
    method = build_method("csd", params, task(bits, n_train or n))
    terms = method.query_loss(tensor(h_q, dtype), tensor(g, dtype), batch(rows, bits), state or {})
    assert set(terms) == {"context"}
    assert terms["context"].dtype == dtype
    return float(terms["context"])


def offline(h_q, rows, embeddings, dtype=torch.float64, **params):
    given = {"form": "offline", **params}
    method = build_method("csd", given, task(np.shape(embeddings)[1], len(embeddings)))
    state = method.initial_state("query", split(embeddings))
    zeros = np.zeros_like(h_q)
    return loss(h_q, zeros, rows, dtype, state, len(embeddings), **given)


PUBLISHED = [
    ({"k": 2, "t_q": 1.0, "t_g": 0.01}, 0.326559),
    ({"k": 3, "t_q": 0.1, "t_g": 0.1}, 0.002792),
]


@pytest.mark.parametrize(("params", "expected"), PUBLISHED)
def test_loss_in_the_batch_has_the_published_values(params, expected, dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    assert loss(Q, G, dtype=dtype, **params) == pytest.approx(expected, abs=limit)


@pytest.mark.parametrize(("params", "expected"), PUBLISHED)
def test_offline_form_over_the_batch_itself_has_the_same_values(params, expected, dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    got = offline(Q, [0, 1, 2], G, dtype=dtype, **params)
    assert got == pytest.approx(expected, abs=limit)


def test_weight_scales_the_loss():
    assert loss(Q, G, k=2, weight=20.0) == pytest.approx(20 * 0.326559, abs=2e-5)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, 12),
    st.sampled_from([(1.0, 0.01), (0.1, 0.005), (0.01, 0.1)]),
    st.sampled_from(["continuous", "binary"]),
)
def test_loss_in_the_batch_agrees_with_loops(seed, n, k, temperatures, features):
    rng = np.random.default_rng(seed)
    h_q, h_g = rng.normal(size=(2, n, 12))
    t_q, t_g = temperatures
    g = np.where(h_g >= 0, 1.0, -1.0) if features == "binary" else h_g
    want = oracle.contextual(h_q, g, k, t_q, t_g)
    params = {"k": k, "t_q": t_q, "t_g": t_g, "features": features}
    assert loss(h_q, h_g, **params) == pytest.approx(want, abs=1e-9)
    if t_q >= 0.1:  # of float32's rounding, t_q = 0.01 makes a hundred times as much
        rough = loss(h_q, h_g, dtype=torch.float32, **params)
        assert rough == pytest.approx(want, abs=1e-4)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.integers(4, 20),
    st.data(),
    st.sampled_from(["continuous", "binary"]),
)
def test_offline_loss_agrees_with_loops(seed, n, data, features):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, n))
    embeddings = rng.normal(size=(n, 6)).astype(np.float32).astype(float)
    rows = rng.permutation(n)[:4]
    h_q = rng.normal(size=(4, 6))
    bank = np.where(embeddings >= 0, 1.0, -1.0) if features == "binary" else embeddings
    want = oracle.contextual_offline(h_q, list(rows), bank, k, 1.0, 0.05)
    got = offline(h_q, rows, embeddings, k=k, t_g=0.05, features=features)
    assert got == pytest.approx(want, abs=1e-5 if features == "continuous" else 1e-9)


def test_more_neighbours_than_images_in_the_batch_are_all_of_them():
    assert loss(Q, G, k=96) == loss(Q, G, k=3)
    assert loss(Q, G, k=2) != loss(Q, G, k=3)


def test_one_image_has_no_context():
    h = tensor(Q[:1]).requires_grad_()
    value = contextual_similarity(h, tensor(G[:1]), torch.zeros(1, dtype=torch.int64), k=96,
                                  t_q=1.0, t_g=0.01)  # fmt: skip
    value.backward()
    assert value == 0
    assert (h.grad == 0).all()


@pytest.mark.parametrize("features", ["continuous", "binary"])
@pytest.mark.parametrize("bits", [4, 12])
def test_order_of_the_batch_does_not_matter_even_with_ties(features, bits):
    """Codes of 4 bits have five distances: most of the k-th neighbours are tied."""
    rng = np.random.default_rng(5)
    h_q, h_g = rng.normal(size=(2, 24, bits))
    rows = rng.permutation(1000)[:24]
    order = rng.permutation(24)
    params = {"k": 5, "features": features, "n_train": 1000, "t_g": 0.1}
    one = loss(h_q, h_g, rows, **params)
    other = loss(h_q[order], h_g[order], rows[order], **params)
    assert one == pytest.approx(other, rel=1e-12)


def test_tied_neighbours_are_those_of_the_lower_rows():
    g = np.array([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1]])
    h_q = np.random.default_rng(0).normal(size=(4, 4))
    params = {"k": 2, "t_g": 0.5, "n_train": 40}
    # The first image has three neighbours at distance 1; numbered 30, 20, 10, the last is lowest.
    last = oracle.row_divergence(h_q[0], g[0], g, [0, 3], 1.0, 0.5)
    first = oracle.row_divergence(h_q[0], g[0], g, [0, 1], 1.0, 0.5)
    rest = [oracle.row_divergence(h_q[i], g[i], g, [i, 0], 1.0, 0.5) for i in (1, 2, 3)]
    got = loss(h_q, g, rows=[0, 30, 20, 10], **params)
    assert got == pytest.approx((last + sum(rest)) / 4, abs=1e-12)
    got = loss(h_q, g, rows=[0, 10, 20, 30], **params)
    assert got == pytest.approx((first + sum(rest)) / 4, abs=1e-12)
    assert abs(last - first) > 1e-3


def test_lists_are_the_nearest_rows_whatever_the_chunk(monkeypatch):
    rng = np.random.default_rng(6)
    h = rng.normal(size=(50, 5))
    b = np.where(h >= 0, 1.0, -1.0)
    for features in (h, b):
        want = [oracle.neighbours(features, i, 7) for i in range(50)]
        for chunk in (1, 50 * 7, 2**22):
            monkeypatch.setattr(csd, "_CHUNK", chunk)
            got = nearest(tensor(features, torch.float32), 7)
            assert got.dtype == torch.int32
            assert got.tolist() == want


def test_listing_never_holds_all_similarities(monkeypatch):
    seen = []

    def watched(h, other, real=csd._exact_cosine):
        found = real(h, other)
        seen.append(found.shape)
        return found

    monkeypatch.setattr(csd, "_exact_cosine", watched)
    monkeypatch.setattr(csd, "_CHUNK", 600)
    assert nearest(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), 3).shape == (
        200,
        3,
    )
    assert {rows * columns for rows, columns in seen} == {600, 400}  # 66 chunks of 3, one of 2
    assert len(seen) == 67


def test_lists_begin_with_the_image_itself_or_its_equal():
    rng = np.random.default_rng(7)
    h = tensor(rng.normal(size=(30, 8)), torch.float32)
    assert nearest(h, 4)[:, 0].tolist() == list(range(30))
    twice = torch.cat([h, h])
    assert nearest(twice, 1)[:, 0].tolist() == [*range(30), *range(30)]


@pytest.mark.parametrize("teacher", ["orthohash", "csq"])
def test_bank_and_losses_live_in_the_teachers_output_space(teacher):
    rng = np.random.default_rng(8)
    embeddings = rng.normal(size=(10, 4)).astype(np.float32)
    h_q = rng.normal(size=(3, 4))
    rows = [7, 2, 5]
    squash = np.tanh if teacher == "csq" else np.asarray
    bank = squash(embeddings.astype(float))
    want = oracle.contextual_offline(squash(h_q), rows, bank, 6, 1.0, 0.1)
    got = offline(h_q, rows, embeddings, k=6, t_g=0.1, teacher=teacher)
    assert got == pytest.approx(want, abs=1e-5)
    g = embeddings[:3].astype(float)
    want = oracle.contextual(squash(h_q), squash(g), 2, 1.0, 0.1)
    assert loss(h_q, g, k=2, t_g=0.1, teacher=teacher) == pytest.approx(want, abs=1e-9)


def test_offline_reads_the_banks_rows_and_not_the_batchs_codes():
    method = build_method("csd", {"form": "offline", "k": 2}, task())
    state = method.initial_state("query", split(G))
    assert state["bank"].shape == (3, 4)
    assert state["neighbours"].tolist() == [oracle.neighbours(G, i, 2) for i in range(3)]
    assert method.memory == ()  # made anew after a checkpoint, not kept
    h = tensor(Q)
    values = [
        float(method.query_loss(h, g, batch([0, 1, 2], 4), state)["context"])
        for g in (tensor(G), torch.ones(3, 4))
    ]
    assert values[0] == values[1]
    assert build_method("csd", {}, task()).initial_state("query", split(G)) == {}
    assert method.initial_state("gallery", split(G)) == {}


def test_offline_does_not_depend_on_the_order_of_the_batch():
    rng = np.random.default_rng(9)
    embeddings, h_q = rng.normal(size=(20, 4)), rng.normal(size=(6, 4))
    rows, order = rng.permutation(20)[:6], rng.permutation(6)
    one = offline(h_q, rows, embeddings, k=5)
    other = offline(h_q[order], rows[order], embeddings, k=5)
    assert one == pytest.approx(other, rel=1e-12)


def test_each_form_declares_what_it_reads():
    def built(**params):
        return build_method("csd", {"k": 2, **params}, task())

    assert built().recording == "float"
    assert not built().reads_embeddings
    assert built(features="binary").recording == "sign"
    assert built(form="offline").recording == "sign"
    assert built(form="offline").reads_embeddings
    assert built().schedule is Schedule.FROZEN
    assert not built().labels_needed
    assert built().embeddings
    assert built().params.read_by("gallery") == {"teacher": "orthohash", "teacher_params": {}}


def test_binary_features_need_signs_only():
    params = {"features": "binary", "k": 2}
    assert loss(Q, G, **params) == loss(Q, np.sign(G), **params)
    assert loss(Q, G, **params) == pytest.approx(
        oracle.contextual(Q, np.sign(G), 2, 1.0, 0.01), abs=1e-9
    )
    assert loss(Q, G, **params) != loss(Q, G, k=2)


def test_gradient_draws_every_row_and_no_gallery():
    rng = np.random.default_rng(10)
    h, g = (tensor(x).requires_grad_() for x in rng.normal(size=(2, 8, 12)))
    rows = torch.arange(8)
    value = contextual_similarity(h, g, rows, k=4, t_q=0.1, t_g=0.05)
    (gradient,) = torch.autograd.grad(value, h, retain_graph=True)
    assert (gradient.abs().sum(dim=1) > 0).all()
    step = h.detach() - 1e-4 * gradient / gradient.norm()
    assert contextual_similarity(step, g, rows, k=4, t_q=0.1, t_g=0.05) < value
    assert torch.autograd.gradcheck(
        lambda x: contextual_similarity(x, g.detach(), rows, k=4, t_q=0.1, t_g=0.05), (h,)
    )


def test_a_query_equal_to_the_gallery_loses_nothing_at_equal_temperatures():
    assert loss(G, G, t_q=0.05, t_g=0.05) == pytest.approx(0, abs=1e-12)
    assert loss(Q, G, t_q=0.05, t_g=0.05) > 1e-6


@pytest.mark.parametrize("form", ["batch", "offline"])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15, 1e30])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(form, scale):
    rng = np.random.default_rng(11)
    g = torch.tensor(rng.normal(size=(8, 16)) * scale, dtype=torch.float32).bfloat16().float()
    h = torch.tensor(rng.normal(size=(8, 16)) * scale, dtype=torch.float32).bfloat16().float()
    h.requires_grad_()
    method = build_method("csd", {"form": form, "k": 5, "t_g": 0.005, "t_q": 0.01}, task(16, 8))
    state = method.initial_state("query", split(g.numpy()))
    value = method.query_loss(h, g, batch(np.arange(8), 16), state)["context"]
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(h.grad).all()


def test_too_many_neighbours_for_the_split_are_refused():
    with pytest.raises(InputError, match="only 3 training images") as caught:
        build_method("csd", {"form": "offline", "k": 4}, task())
    assert caught.value.key == "k"
    assert build_method("csd", {"form": "offline", "k": 3}, task()).params.k == 3
    assert build_method("csd", {"k": 4}, task()).params.k == 4


def test_offline_without_embeddings_is_refused():
    method = build_method("csd", {"form": "offline", "k": 2}, task())
    bare = TrainingSplit(labels=torch.zeros(3, 3), classes=None, seed=0)
    with pytest.raises(ValueError, match="needs the gallery's embeddings"):
        method.initial_state("query", bare)


@pytest.mark.parametrize("form", ["batch", "offline"])
def test_outputs_of_another_length_are_refused(form):
    method = build_method("csd", {"form": form, "k": 2}, task())
    state = method.initial_state("query", split(G))
    with pytest.raises(ValueError, match="5"):
        method.query_loss(torch.ones(3, 5), tensor(G), batch([0, 1, 2], 4), state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", 0),
        ("k", 2.0),
        ("t_q", 0.0),
        ("t_g", -1.0),
        ("weight", 0.0),
        ("form", "online"),
        ("features", "signs"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        build_method("csd", {key: value}, task())
    assert caught.value.key == key


class TestOffline(MethodContract):
    """The offline form keeps every promise too."""

    method = "csd"
    params: typing.ClassVar = {"form": "offline", "k": 20}


class TestBinaryFeatures(MethodContract):
    """So do codes, whose distances are mostly tied."""

    method = "csd"
    params: typing.ClassVar = {"features": "binary", "k": 4, "teacher": "csq"}
