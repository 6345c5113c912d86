"""RKD: published values, explicit loops, its invariances, and batches without relations."""

from __future__ import annotations

import typing

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from asymbench.testing import MethodContract
from methods.base import Batch, Schedule, Task, build_method
from methods.rkd import angle_loss, distance_loss
from retrieval.errors import InputError
from tests.oracles import losses as plain
from tests.oracles import rkd as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5], [1, 1, -0.5, -1.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25], [0.5, 1.5, -1, -1]]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(np.asarray(rows), dtype=dtype)


def build(bits=4, **params):
    return build_method("rkd", params, Task(bits=bits, n_classes=3, n_train=9, multi_label=False))


def terms(h_q=Q, g=G, dtype=torch.float64, **params):
    n, bits = np.shape(h_q)
    batch = Batch(
        rows=torch.arange(n),
        labels=torch.zeros(n, 3),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )
    found = build(bits, **params).query_loss(tensor(h_q, dtype), tensor(g, dtype), batch, {})
    assert all(value.dtype == dtype and value.shape == () for value in found.values())
    return {name: float(value) for name, value in found.items()}


def test_losses_have_the_published_values(dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    both = terms(dtype=dtype)
    assert both == pytest.approx({"distance": 0.010053, "angle": 2 * 0.002297}, abs=2 * limit)
    assert sum(both.values()) == pytest.approx(0.014647, abs=limit)
    one = terms(dtype=dtype, w_angle=1.0)
    assert one == pytest.approx({"distance": 0.010053, "angle": 0.002297}, abs=limit)


def test_each_weight_scales_its_term_and_0_leaves_it_out():
    assert terms(w_distance=25.0, w_angle=0.0) == pytest.approx(
        {"distance": 25 * oracle.distance(Q, G)}, abs=1e-9
    )
    assert terms(w_distance=0.0, w_angle=50.0) == pytest.approx(
        {"angle": 50 * oracle.angle(Q, G)}, abs=1e-9
    )
    with_l2 = terms(l2_weight=10.0)
    assert with_l2["l2"] == pytest.approx(10 * plain.l2(Q, G), abs=1e-9)
    assert set(with_l2) == {"distance", "angle", "l2"}
    assert set(terms(w_distance=0.0, w_angle=0.0, l2_weight=1.0)) == {"l2"}
    two = {"h_q": Q[:2], "g": G[:2], "w_distance": 0.0, "w_angle": 0.0, "l2_weight": 1.0}
    assert terms(**two)["l2"] == pytest.approx(0.273438, abs=1e-6)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(2, 12), st.booleans())
def test_losses_agree_with_loops(seed, n, bits, coincident):
    rng = np.random.default_rng(seed)
    h_q, g = rng.normal(size=(2, n, bits))
    if coincident:
        h_q[-1], g[0] = h_q[0], g[-1]
    want = {"distance": oracle.distance(h_q, g), "angle": 2 * oracle.angle(h_q, g)}
    assert terms(h_q, g) == pytest.approx(want, abs=1e-9)
    assert terms(h_q, g, torch.float32) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("teacher", ["orthohash", "csq"])
def test_relations_are_those_of_the_teachers_output_space(teacher):
    squash = np.tanh if teacher == "csq" else np.asarray
    want = {
        "distance": oracle.distance(squash(Q), squash(G)),
        "angle": 2 * oracle.angle(squash(Q), squash(G)),
        "l2": plain.l2(squash(Q), squash(G)),
    }
    assert terms(teacher=teacher, l2_weight=1.0) == pytest.approx(want, abs=1e-9)


def test_relations_do_not_see_rotation_reflection_shift_or_scale():
    rng = np.random.default_rng(0)
    h_q, g = rng.normal(size=(2, 7, 6))
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    moved = 3.7 * h_q @ turn + rng.normal(size=6)
    assert terms(moved, g) == pytest.approx(terms(h_q, g), abs=1e-12)
    # A mirrored copy of the gallery loses nothing, and its codes are all wrong.
    assert sum(terms(-g, g).values()) == pytest.approx(0, abs=1e-12)
    assert terms(-g, g, l2_weight=1.0)["l2"] == pytest.approx(4 * np.mean(g**2))


def test_order_of_the_batch_does_not_matter():
    rng = np.random.default_rng(1)
    h_q, g = rng.normal(size=(2, 9, 5))
    order = rng.permutation(9)
    assert terms(h_q[order], g[order]) == pytest.approx(terms(h_q, g), rel=1e-12)


def test_two_images_have_neither_distances_nor_angles_to_compare():
    one = terms(Q[:2], G[:2])
    assert one == pytest.approx({"distance": 0, "angle": 0}, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_refused(n):
    for function in (distance_loss, angle_loss):
        with pytest.raises(ValueError, match=f"two images or more, the batch has {n}"):
            function(torch.zeros(n, 4), torch.zeros(n, 4))
    assert terms(Q[:1], G[:1], w_distance=0.0, w_angle=0.0, l2_weight=1.0)["l2"] > 0


def test_gradients_are_the_losses_own_and_reach_every_row():
    rng = np.random.default_rng(2)
    h, g = (tensor(x) for x in rng.normal(size=(2, 6, 5)))
    g.requires_grad_()
    for function in (distance_loss, angle_loss):
        x = h.clone().requires_grad_()
        value = function(x, g)
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        assert (gradient.abs().sum(dim=1) > 0).all()
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(value, g)
        assert torch.autograd.gradcheck(lambda y, f=function: f(y, g.detach()), (x,))


def test_the_students_mean_distance_carries_a_gradient():
    """Scale does not matter, so that the gradient has no part along h about its mean."""
    rng = np.random.default_rng(3)
    h, g = (tensor(x) for x in rng.normal(size=(2, 6, 5)))
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(distance_loss(h, g), h)
    assert float((gradient * h.detach()).sum()) == pytest.approx(0, abs=1e-12)
    assert float(gradient.abs().sum()) > 1e-3


@pytest.mark.parametrize("side", ["query", "gallery", "both", "all"])
def test_images_at_one_place_give_finite_losses_and_gradients(side, dtype):
    rng = np.random.default_rng(4)
    h, g = (tensor(x, dtype) for x in rng.normal(size=(2, 6, 5)))
    if side in ("query", "both"):
        h[1] = h[2] = h[0]
    if side in ("gallery", "both"):
        g[1] = g[0]
    if side == "all":
        h, g = torch.ones_like(h), torch.ones_like(g)
    h.requires_grad_()
    total = distance_loss(h, g) + angle_loss(h, g)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(h.grad).all()
    # The undefined direction is not multiplied up to dominate those that are defined.
    assert float(h.grad.abs().max()) < 10
    if side in ("query", "both"):
        assert (h.grad[:3].abs().sum(dim=1) > 0).all()  # other images still draw these


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(scale):
    rng = np.random.default_rng(5)
    h, g = (
        torch.tensor(x * scale, dtype=torch.float32).bfloat16().float()
        for x in rng.normal(size=(2, 8, 16))
    )
    h.requires_grad_()
    total = distance_loss(h, g) + angle_loss(h, g)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(h.grad).all()


def test_declarations():
    method = build()
    assert method.schedule is Schedule.FROZEN
    assert method.recording == "float"
    assert not method.labels_needed
    assert method.embeddings
    assert method.params.read_by("query") == {
        "w_distance": 1.0,
        "w_angle": 2.0,
        "l2_weight": 0.0,
    }


def test_a_query_without_any_loss_is_refused():
    with pytest.raises(InputError, match="no loss") as caught:
        build(w_distance=0.0, w_angle=0.0)
    assert caught.value.key == "w_distance"
    assert build(w_distance=0.0, w_angle=0.0, l2_weight=0.1).params.l2_weight == 0.1


@pytest.mark.parametrize("key", ["w_distance", "w_angle", "l2_weight"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), "1"])
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        build(**{key: value})
    assert caught.value.key == key


def test_outputs_of_another_shape_are_refused():
    for function in (distance_loss, angle_loss):
        with pytest.raises(ValueError, match=r"\(3, 5\).*\(3, 4\)"):
            function(torch.zeros(3, 5), torch.zeros(3, 4))


class TestWithL2(MethodContract):
    """Relations beside L2 keep every promise too."""

    method = "rkd"
    params: typing.ClassVar = {"l2_weight": 1.0, "teacher": "csq"}
