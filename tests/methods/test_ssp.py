"""SSP: published values, explicit loops, the anchors, and what is refused."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods.base import Batch, Schedule, Task, TrainingSplit, build_method
from methods.ssp import default_centroids, default_subspaces, structure_similarity
from retrieval.errors import InputError
from tests.oracles import ssp as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
ANCHORS = [[[1, 0], [0, 1]], [[1, 1], [1, -1]]]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(np.asarray(rows), dtype=dtype)


def build(bits=4, n_train=40, **params):
    task = Task(bits=bits, n_classes=3, n_train=n_train, multi_label=False)
    return build_method("ssp", params, task)


def batch(n, bits):
    return Batch(
        rows=torch.arange(n),
        labels=torch.zeros(n, 3),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )


def split(embeddings, seed=0):
    n = len(embeddings)
    return TrainingSplit(
        labels=torch.zeros(n, 3),
        classes=None,
        seed=seed,
        embeddings=tensor(embeddings, torch.float32),
    )


def loss(h_q=Q, g=G, anchors=ANCHORS, dtype=torch.float64, **params):
    n, bits = np.shape(h_q)
    state = {"anchors": tensor(anchors, torch.float32)}
    terms = build(bits, **params).query_loss(
        tensor(h_q, dtype), tensor(g, dtype), batch(n, bits), state
    )
    assert set(terms) == {"structure"}
    assert terms["structure"].dtype == dtype
    assert terms["structure"].shape == ()
    return float(terms["structure"])


def test_loss_has_the_published_value(dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    assert loss(dtype=dtype) == pytest.approx(0.030954, abs=limit)


def test_weight_and_scale_are_read():
    assert loss(weight=20.0) == pytest.approx(20 * 0.030954, abs=2e-5)
    for scale in (5.0, 20.0):
        assert loss(scale=scale) == pytest.approx(oracle.structure(Q, G, ANCHORS, scale), abs=1e-9)
    assert abs(loss(scale=5.0) - loss(scale=20.0)) > 1e-3


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(2, 4),
    st.sampled_from([1.0, 10.0, 100.0]),
)
def test_loss_agrees_with_loops(seed, n, parts, k, dimensions, scale):
    rng = np.random.default_rng(seed)
    h_q, g = rng.normal(size=(2, n, parts * dimensions))
    anchors = rng.normal(size=(parts, k, dimensions)).astype(np.float32).astype(float)
    want = oracle.structure(h_q, g, anchors, scale)
    assert loss(h_q, g, anchors, scale=scale) == pytest.approx(want, abs=1e-9)
    rough = loss(h_q, g, anchors, dtype=torch.float32, scale=scale)
    assert rough == pytest.approx(want, abs=1e-4, rel=1e-4)


def test_lengths_of_parts_and_of_anchors_do_not_count():
    rng = np.random.default_rng(1)
    h_q, g = rng.normal(size=(2, 5, 6))
    anchors = rng.normal(size=(2, 4, 3))
    stretched = (np.array([3.0, 3, 3, 0.1, 0.1, 0.1]) * h_q, g * 7, anchors * 5)
    assert loss(*stretched) == pytest.approx(loss(h_q, g, anchors), abs=1e-6)


def test_a_part_that_is_zero_is_equally_similar_to_all_anchors(dtype):
    h_q = [[0, 0, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
    g = [[1, -0.5, 1.5, 0.5], [-1, 1, 0, 0]]
    h = tensor(h_q, dtype).requires_grad_()
    value = structure_similarity(h, tensor(g, dtype), tensor(ANCHORS, dtype), scale=10.0)
    value.backward()
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    assert float(value.detach()) == pytest.approx(
        oracle.structure(h_q, g, ANCHORS, 10.0), abs=limit
    )
    assert torch.isfinite(h.grad).all()
    assert (h.grad[0, :2] == 0).all()
    assert (h.grad[0, 2:] != 0).any()


def test_a_query_equal_to_the_gallery_loses_nothing_and_others_do():
    assert loss(G, G) == pytest.approx(0, abs=1e-12)
    assert loss(Q, G) > 1e-3


def test_gradient_draws_every_row_and_no_gallery():
    rng = np.random.default_rng(2)
    h, g = (tensor(x).requires_grad_() for x in rng.normal(size=(2, 6, 12)))
    anchors = tensor(rng.normal(size=(4, 5, 3)))
    value = structure_similarity(h, g, anchors, scale=10.0)
    (gradient,) = torch.autograd.grad(value, h)
    assert (gradient.abs().sum(dim=1) > 0).all()
    step = h.detach() - 1e-4 * gradient / gradient.norm()
    assert structure_similarity(step, g, anchors, scale=10.0) < value
    assert torch.autograd.grad(
        structure_similarity(h, g, anchors, scale=10.0), g, allow_unused=True
    ) == (None,)
    assert torch.autograd.gradcheck(
        lambda x: structure_similarity(x, g.detach(), anchors, scale=10.0), (h,)
    )


def test_order_of_the_batch_does_not_matter_and_one_image_will_do():
    rng = np.random.default_rng(3)
    h_q, g = rng.normal(size=(2, 7, 12))
    anchors = rng.normal(size=(4, 5, 3))
    order = rng.permutation(7)
    assert loss(h_q[order], g[order], anchors) == pytest.approx(loss(h_q, g, anchors), rel=1e-12)
    single = [loss(h_q[i : i + 1], g[i : i + 1], anchors) for i in range(7)]
    assert loss(h_q, g, anchors) == pytest.approx(sum(single) / 7, rel=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15, 1e30])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(scale):
    rng = np.random.default_rng(4)
    h, g = (
        torch.tensor(x * scale, dtype=torch.float32).bfloat16().float()
        for x in rng.normal(size=(2, 8, 16))
    )
    h.requires_grad_()
    method = build(16)
    state = method.initial_state("query", split(rng.normal(size=(40, 16)) * scale))
    value = method.query_loss(h, g, batch(8, 16), state)["structure"]
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(h.grad).all()


# ---- anchors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "parts"), [(12, 4), (16, 4), (24, 8), (32, 8), (48, 12), (64, 16), (13, 1), (2, 1)]
)
def test_parts_are_of_three_or_four_bits(bits, parts):
    assert default_subspaces(bits) == parts


def test_every_length_splits_into_equal_parts():
    for bits in range(1, 200):
        parts = default_subspaces(bits)
        assert bits % parts == 0
        assert bits < 3 or bits // parts >= 3


@pytest.mark.parametrize(
    ("n_train", "k"), [(2, 2), (40, 2), (117, 3), (5000, 128), (9984, 256), (10**6, 256)]
)
def test_anchors_are_at_most_256_and_have_39_images_each(n_train, k):
    assert default_centroids(n_train) == k


@pytest.mark.parametrize("teacher", ["orthohash", "csq"])
def test_anchors_are_means_of_the_gallerys_outputs_in_the_teachers_space(teacher):
    embeddings = np.random.default_rng(5).normal(size=(60, 12)).astype(np.float32)
    method = build(12, 60, centroids=5, teacher=teacher)
    anchors = method.initial_state("query", split(embeddings))["anchors"]
    assert anchors.shape == (4, 5, 3)
    assert anchors.dtype == torch.float32
    outputs = np.tanh(embeddings.astype(float)) if teacher == "csq" else embeddings.astype(float)
    for part in range(4):
        own = outputs[:, 3 * part : 3 * part + 3]
        found = anchors[part].double().numpy()
        np.testing.assert_allclose(found, oracle.lloyd(own, found), atol=1e-6)


def test_parts_and_anchors_can_be_chosen():
    embeddings = np.random.default_rng(6).normal(size=(40, 12))
    for subspaces, centroids, shape in ((None, 7, (4, 7, 3)), (2, None, (2, 2, 6))):
        method = build(12, subspaces=subspaces, centroids=centroids)
        assert method.initial_state("query", split(embeddings))["anchors"].shape == shape


def test_anchors_are_a_function_of_the_seed_and_made_anew_not_kept():
    embeddings = np.random.default_rng(7).normal(size=(40, 12))
    method = build(12, centroids=6)
    one, again, other = (
        method.initial_state("query", split(embeddings, seed))["anchors"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert method.memory == ()
    assert method.initial_state("gallery", split(embeddings)) == {}


def test_outputs_of_a_collapsed_gallery_have_anchors_too():
    method = build(12, centroids=6)
    state = method.initial_state("query", split(np.ones((40, 12))))
    assert (state["anchors"] == 1).all()
    h = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    assert method.query_loss(h, torch.ones(3, 12), batch(3, 12), state)["structure"] == 0


def test_the_loss_lives_in_the_teachers_output_space():
    rng = np.random.default_rng(8)
    h_q, g = rng.normal(size=(2, 5, 12))
    anchors = rng.normal(size=(4, 6, 3)).astype(np.float32).astype(float)
    want = oracle.structure(np.tanh(h_q), np.tanh(g), anchors, 10.0)
    assert loss(h_q, g, anchors, teacher="csq") == pytest.approx(want, abs=1e-9)
    assert abs(loss(h_q, g, anchors) - want) > 1e-3


# ---- declarations and refusals -------------------------------------------------------


def test_it_declares_what_it_reads():
    method = build(12)
    assert method.reads_embeddings
    assert method.recording == "float"
    assert method.schedule is Schedule.FROZEN
    assert not method.labels_needed
    assert method.embeddings
    assert method.params.read_by("gallery") == {"teacher": "orthohash", "teacher_params": {}}


def test_parts_that_are_not_equal_are_refused():
    with pytest.raises(InputError, match="12 bits do not split into 5") as caught:
        build(12, subspaces=5)
    assert caught.value.key == "subspaces"
    assert "1, 2, 3, 4, 6, 12" in caught.value.hint
    assert build(12, subspaces=12).params.subspaces == 12


def test_more_anchors_than_images_are_refused():
    with pytest.raises(InputError, match="40 training images do not make 41") as caught:
        build(12, centroids=41)
    assert caught.value.key == "centroids"
    assert build(12, centroids=40).params.centroids == 40


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subspaces", 0),
        ("subspaces", 2.0),
        ("centroids", 1),
        ("centroids", "256"),
        ("scale", 0.0),
        ("weight", 0.0),
        ("weight", -1.0),
    ],
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        build(12, **{key: value})
    assert caught.value.key == key


def test_missing_embeddings_and_other_lengths_are_refused():
    method = build(4)
    bare = TrainingSplit(labels=torch.zeros(3, 3), classes=None, seed=0)
    with pytest.raises(ValueError, match="need the gallery's embeddings"):
        method.initial_state("query", bare)
    anchors = tensor(ANCHORS)
    with pytest.raises(ValueError, match="5 bits and their anchors 4"):
        structure_similarity(torch.ones(3, 5), torch.ones(3, 5), anchors, scale=10.0)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 5\)"):
        structure_similarity(torch.ones(3, 4), torch.ones(3, 5), anchors, scale=10.0)
