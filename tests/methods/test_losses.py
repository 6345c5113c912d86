"""The losses against the published test values, explicit loops, and their own properties."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods import losses
from tests.oracles import losses as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
T = [[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]]
Y = [[1, 0, 1], [0, 1, 1]]
ONE = [[1, 0, 0], [0, 1, 0]]
TIES = [[1, -1, 1, -1]] * 2
CLASSES = torch.tensor([0, 1])


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def check(loss, expected, dtype):
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert float(loss.detach()) == pytest.approx(
        expected, abs=1e-6 if dtype == torch.float64 else 1e-4
    )


def tensor(rows, dtype):
    return torch.tensor(rows, dtype=dtype)


def test_sgn_of_zero_is_plus_one_and_keeps_the_dtype(dtype):
    result = losses.sgn(tensor([[-2.0, -0.0, 0.0, 3.0]], dtype))
    assert result.dtype == dtype
    assert result.tolist() == [[-1, 1, 1, 1]]


def test_cosines_have_the_published_values(dtype):
    expected_q = [[0.813489, 0.054233, -0.596559], [-0.068680, 0.892844, -0.343401]]
    expected_g = [[0.903696, -0.129099, -0.387298], [-0.575396, 0.904194, -0.082199]]
    for h, expected in ((Q, expected_q), (G, expected_g)):
        got = losses.cosine(tensor(h, dtype), tensor(T, dtype))
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_cosine_of_a_zero_row_is_zero_with_finite_gradient(dtype):
    h = torch.zeros(1, 4, dtype=dtype, requires_grad=True)
    value = losses.cosine(h, tensor(T, dtype)).sum()
    value.backward()
    assert value == 0
    assert torch.isfinite(h.grad).all()


def test_centroids_take_the_majority_and_the_tie_bits_where_votes_are_even(dtype):
    z = losses.centroids(tensor(Y, dtype), tensor(T, dtype), tensor(TIES, dtype))
    # t0 + t2 = [2, 0, 0, 0], t1 + t2 = [0, 2, 0, -2]; zeros take [1, -1, 1, -1]
    assert z.tolist() == [[1, -1, 1, -1], [1, 1, 1, -1]]
    other = losses.centroids(tensor(Y, dtype), tensor(T, dtype), -tensor(TIES, dtype))
    assert other.tolist() == [[1, 1, -1, 1], [-1, 1, -1, -1]]


def test_centroid_of_one_label_is_its_center(dtype):
    z = losses.centroids(tensor(ONE, dtype), tensor(T, dtype), tensor(TIES, dtype))
    assert z.tolist() == T[:2]


@pytest.mark.parametrize(("h", "expected"), [(Q, 0.006953), (G, 0.001663)])
def test_margin_cross_entropy_has_the_published_value(h, expected, dtype):
    loss = losses.margin_cross_entropy(
        tensor(h, dtype), tensor(T, dtype), CLASSES, margin=0.2, scale=8.0
    )
    check(loss, expected, dtype)


def test_margin_lowers_the_true_class_only():
    h, centers = tensor(Q, torch.float64), tensor(T, torch.float64)
    logits = 8 * losses.cosine(h, centers)
    logits[0, 0] -= 8 * 0.2
    logits[1, 1] -= 8 * 0.2
    expected = torch.nn.functional.cross_entropy(logits, CLASSES)
    loss = losses.margin_cross_entropy(h, centers, CLASSES, margin=0.2, scale=8.0)
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    # Eq. 9 as printed has the margin in every term, where it cancels: 0.001409 for any margin.
    plain = losses.margin_cross_entropy(h, centers, CLASSES, margin=0.0, scale=8.0)
    assert float(plain) == pytest.approx(0.001409, abs=1e-6)
    assert float(loss) > float(plain)


@pytest.mark.parametrize("kind", ["cos", "arc"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_both_margins_agree_with_loops(kind, margin):
    got = losses.margin_cross_entropy(
        tensor(Q, torch.float64), tensor(T, torch.float64), CLASSES,
        margin=margin, scale=8.0, kind=kind,
    )  # fmt: skip
    want = oracle.margin_cross_entropy(Q, T, [0, 1], margin, 8.0, kind)
    assert float(got) == pytest.approx(want, abs=1e-9)


def test_arc_and_cos_agree_without_margin_and_differ_with_it():
    arguments = (tensor(Q, torch.float64), tensor(T, torch.float64), CLASSES)
    same = [
        float(losses.margin_cross_entropy(*arguments, margin=0.0, scale=8.0, kind=kind))
        for kind in ("cos", "arc")
    ]
    assert same[0] == pytest.approx(same[1], abs=1e-9)
    different = [
        float(losses.margin_cross_entropy(*arguments, margin=0.2, scale=8.0, kind=kind))
        for kind in ("cos", "arc")
    ]
    assert abs(different[0] - different[1]) > 1e-3


def test_arc_margin_has_a_finite_gradient_on_the_center_itself():
    h = tensor(T, torch.float32).requires_grad_()
    classes = torch.arange(3)
    loss = losses.margin_cross_entropy(h, h.detach(), classes, margin=0.2, scale=8.0, kind="arc")
    loss.backward()
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize(("h", "expected"), [(Q, 5.299415), (G, 4.555637)])
def test_label_smoothing_has_the_published_value(h, expected, dtype):
    loss = losses.margin_label_smoothing(
        tensor(h, dtype), tensor(T, dtype), tensor(Y, dtype), margin=0.2, scale=8.0
    )
    check(loss, expected, dtype)


def test_label_smoothing_of_one_label_is_the_cross_entropy(dtype):
    arguments = (tensor(Q, dtype), tensor(T, dtype))
    one = losses.margin_label_smoothing(*arguments, tensor(ONE, dtype), margin=0.2, scale=8.0)
    check(one, 0.006953, dtype)


def test_label_smoothing_of_an_image_without_label_counts_zero(dtype):
    labels = tensor([[1, 0, 0], [0, 0, 0]], dtype)
    loss = losses.margin_label_smoothing(
        tensor(Q, dtype), tensor(T, dtype), labels, margin=0.2, scale=8.0
    )
    check(loss, oracle.label_smoothing(Q, T, [[1, 0, 0], [0, 0, 0]], 0.2, 8.0), dtype)


@pytest.mark.parametrize(("h", "expected"), [(Q, 0.043039), (G, 0.008456)])
def test_centroid_cross_entropy_has_the_published_value(h, expected, dtype):
    loss = losses.centroid_cross_entropy(
        tensor(h, dtype), tensor(T, dtype), tensor(Y, dtype), tensor(TIES, dtype),
        margin=0.2, tau=0.125,
    )  # fmt: skip
    check(loss, expected, dtype)


def test_centroid_cross_entropy_of_an_image_of_every_class_is_zero(dtype):
    h = tensor(Q, dtype).requires_grad_()
    loss = losses.centroid_cross_entropy(
        h, tensor(T, dtype), torch.ones(2, 3, dtype=dtype), tensor(TIES, dtype),
        margin=0.2, tau=0.125,
    )  # fmt: skip
    loss.backward()
    check(loss, 0.0, dtype)
    assert torch.isfinite(h.grad).all()


def test_binary_center_loss_and_quantisation_have_the_published_values(dtype):
    h, centers = tensor(Q, dtype), tensor(T, dtype)
    single = losses.binary_center_loss(h, centers[CLASSES])
    z = losses.centroids(tensor(Y, dtype), centers, tensor(TIES, dtype))
    quantisation = losses.tanh_quantization(h)
    check(single, 0.226118, dtype)
    check(losses.binary_center_loss(h, z), 0.476118, dtype)
    check(quantisation, 0.204793, dtype)
    check(single + 1e-4 * quantisation, 0.226138, dtype)


def test_binary_center_loss_keeps_its_gradient_where_the_tanh_saturates():
    h = torch.full((1, 4), -30.0, requires_grad=True)  # float32 tanh(-30) is exactly -1
    losses.binary_center_loss(h, torch.ones(1, 4)).backward()
    assert torch.allclose(h.grad, torch.full((1, 4), -0.5))  # 2 * (sigmoid - 1) / 4 bits


def test_sign_gap_kinds():
    h = tensor([[3.0, -0.5]], torch.float64)
    assert float(losses.sign_gap(h, "l1")) == pytest.approx((2 + 0.5) / 2)
    assert float(losses.sign_gap(h, "l2")) == pytest.approx((4 + 0.25) / 2)
    assert float(losses.sign_gap(h, "cos")) == pytest.approx(
        1 - oracle.cosine([3.0, -0.5], [1.0, -1.0])
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.273438),
        ({"reduce": "sum_bits"}, 1.093750),
        ({"target": "binary"}, 0.328125),
        ({"target": "binary", "reduce": "sum_bits"}, 1.3125),
        ({"normalize": True, "reduce": "sum_bits"}, 0.308029),
    ],
)
def test_l2_has_the_published_values(options, expected, dtype):
    check(losses.l2(tensor(Q, dtype), tensor(G, dtype), **options), expected, dtype)


def test_l2_of_unlike_shapes_is_refused_with_both():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 1\)"):
        losses.l2(torch.zeros(2, 4), torch.zeros(2, 1))


@pytest.mark.parametrize(("margin", "expected"), [(0.7, 0.077007), (1.5, 0.088492)])
def test_contrastive_has_the_published_value(margin, expected, dtype):
    similarity = losses.similar(tensor(ONE, dtype))
    loss = losses.contrastive(tensor(Q, dtype), tensor(G, dtype), similarity, margin=margin)
    check(loss, expected, dtype)


def test_contrastive_of_equal_outputs_has_a_finite_gradient(dtype):
    h = tensor(Q, dtype).requires_grad_()
    labels = tensor([[1, 0, 0], [0, 1, 0]], dtype)
    losses.contrastive(h, h.detach().flip(0), losses.similar(labels), margin=0.7).backward()
    assert torch.isfinite(h.grad).all()


def test_similar_is_one_where_a_label_is_shared():
    labels = tensor([[1, 0, 1], [0, 1, 1], [0, 1, 0]], torch.float32)
    assert losses.similar(labels).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


def test_different_numbers_of_bits_are_refused_with_both():
    with pytest.raises(ValueError, match="4 bits and their targets 5"):
        losses.cosine(torch.zeros(2, 4), torch.zeros(3, 5))


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 6))
def test_all_losses_agree_with_loops_on_random_batches(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    bits = 6
    h, g = rng.normal(size=(2, n, bits))
    centers = rng.choice([-1.0, 1.0], size=(n_classes, bits))
    labels = rng.integers(0, 2, size=(n, n_classes)).astype(float)
    labels[np.arange(n), rng.integers(0, n_classes, n)] = 1
    classes = rng.integers(0, n_classes, n)
    ties = rng.choice([-1.0, 1.0], size=(n, bits))
    margin, scale = float(rng.uniform(0, 0.5)), float(rng.uniform(1, 16))
    th, tg, tc, tl, tt = (torch.from_numpy(a) for a in (h, g, centers, labels, ties))

    z = oracle.centroids(labels, centers, ties)
    assert losses.centroids(tl, tc, tt).tolist() == z
    pairs = [
        (losses.binary_center_loss(th, losses.centroids(tl, tc, tt)), oracle.binary_center(h, z)),
        (
            losses.centroid_cross_entropy(th, tc, tl, tt, margin=margin, tau=1 / scale),
            oracle.centroid_cross_entropy(h, centers, labels, ties, margin, 1 / scale),
        ),
        (losses.tanh_quantization(th), oracle.tanh_quantization(h)),
        (losses.l2(th, tg), oracle.l2(h, g)),
        (losses.l2(th, tg, target="binary"), oracle.l2(h, np.where(g >= 0, 1.0, -1.0))),
        (
            losses.l2(th, tg, normalize=True, reduce="sum_bits"),
            oracle.l2(h, g, sum_bits=True, normalize=True),
        ),
        (
            losses.contrastive(th, tg, losses.similar(tl), margin=margin + 0.5),
            oracle.contrastive(h, g, labels, margin + 0.5),
        ),
    ]
    for kind in ("cos", "arc"):
        pairs.append(
            (
                losses.margin_cross_entropy(
                    th, tc, torch.from_numpy(classes), margin=margin, scale=scale, kind=kind
                ),
                oracle.margin_cross_entropy(h, centers, list(classes), margin, scale, kind),
            )
        )
        pairs.append(
            (
                losses.margin_label_smoothing(th, tc, tl, margin=margin, scale=scale, kind=kind),
                oracle.label_smoothing(h, centers, labels, margin, scale, kind),
            )
        )
    for got, want in pairs:
        assert float(got) == pytest.approx(want, abs=1e-9)
