"""AML-Reg: published values, explicit loops, and how its forms differ."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods.aml_reg import unit_distance
from methods.base import Batch, Schedule, Task, build_method
from retrieval.errors import InputError
from tests.oracles import aml as oracle
from tests.oracles import losses as plain

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
FORMS = {"unit": oracle.unit_squared, "squared": plain.l2, "norm": oracle.unit_distance}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(np.asarray(rows), dtype=dtype)


def build(bits=4, name="aml_reg", **params):
    return build_method(name, params, Task(bits=bits, n_classes=3, n_train=9, multi_label=False))


def term(h_q, g, name="aml_reg", **params):
    n, bits = h_q.shape
    batch = Batch(
        rows=torch.arange(n),
        labels=torch.zeros(n, 3),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )
    (value,) = build(bits, name, **params).query_loss(h_q, g, batch, {}).values()
    assert value.dtype == h_q.dtype
    assert value.shape == ()
    return value


def loss(h_q=Q, g=G, dtype=torch.float64, name="aml_reg", **params):
    return float(term(tensor(h_q, dtype), tensor(g, dtype), name, **params))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"form": "squared"}, 0.273438),
        ({"form": "unit"}, 0.308029),
        ({"form": "norm"}, 0.535444),
        ({}, 0.308029),
        ({"weight": 0.5}, 0.154015),
    ],
)
def test_loss_has_the_published_values(params, expected, dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    assert loss(dtype=dtype, **params) == pytest.approx(expected, abs=limit)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from(sorted(FORMS)))
def test_loss_agrees_with_loops(seed, n, form):
    h_q, g = np.random.default_rng(seed).normal(size=(2, n, 12))
    want = FORMS[form](h_q, g)
    assert loss(h_q, g, form=form) == pytest.approx(want, abs=1e-9)
    assert loss(h_q, g, torch.float32, form=form) == pytest.approx(want, abs=1e-4)
    assert loss(h_q, g, form=form, weight=3.0) == pytest.approx(3 * want, abs=1e-9)


def test_the_squared_form_is_the_default_of_l2_and_the_unit_form_one_of_its_options():
    assert loss(form="squared") == loss(name="l2")
    assert loss(form="unit") == loss(name="l2", normalize=True, reduce="sum_bits")


@pytest.mark.parametrize("form", sorted(FORMS))
def test_only_the_squared_form_compares_lengths(form):
    same = loss(np.multiply(Q, 3.0), np.multiply(G, 0.5), form=form) == pytest.approx(
        loss(form=form), abs=1e-12
    )
    assert same is (form != "squared")


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_output_space_is_the_teachers(form):
    want = FORMS[form](np.tanh(Q).tolist(), np.tanh(G).tolist())
    assert loss(form=form, teacher="csq") == pytest.approx(want, abs=1e-12)
    assert build(teacher="csq", teacher_params={"head": "mlp3_tanh"}).head == "mlp3_tanh"


def test_equal_outputs_have_no_gradient_and_no_infinite_one(dtype):
    h = tensor(Q, dtype).requires_grad_()
    value = unit_distance(h, tensor(Q, dtype))
    value.backward()
    assert float(value.detach()) == pytest.approx(1e-3, abs=1e-9)
    assert (h.grad == 0).all()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_gradient_draws_each_row_towards_its_own_gallery_output(form):
    rng = np.random.default_rng(1)
    h_q, g = (tensor(x) for x in rng.normal(size=(2, 6, 8)))
    h = h_q.clone().requires_grad_()
    value = term(h, g, form=form)
    value.backward()
    assert (h.grad.abs().sum(dim=1) > 0).all()
    for i in range(6):
        moved = h_q.clone()
        moved[i] -= 1e-3 * h.grad[i] / h.grad[i].norm()
        assert term(moved, g, form=form) < value
    assert torch.autograd.gradcheck(lambda x: term(x, g, form=form), (h,))


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(form, scale):
    rng = np.random.default_rng(2)
    h, g = (
        torch.tensor(x * scale, dtype=torch.float32).bfloat16().float()
        for x in rng.normal(size=(2, 8, 16))
    )
    h.requires_grad_()
    value = term(h, g, form=form)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_order_of_the_batch_does_not_matter(form):
    rng = np.random.default_rng(3)
    h_q, g = rng.normal(size=(2, 7, 12))
    order = rng.permutation(7)
    assert loss(h_q[order], g[order], form=form) == pytest.approx(
        loss(h_q, g, form=form), rel=1e-12
    )


def test_it_declares_what_it_reads():
    method = build()
    assert method.recording == "float"
    assert method.schedule is Schedule.FROZEN
    assert not method.labels_needed
    assert not method.reads_embeddings
    assert method.embeddings
    assert method.params.read_by("query") == {"form": "unit", "weight": 1.0}
    assert method.params.read_by("gallery") == {"teacher": "orthohash", "teacher_params": {}}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_outputs_of_other_shapes_are_refused_with_both(form):
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 1\)"):
        term(torch.zeros(2, 4), torch.zeros(2, 1), form=form)


@pytest.mark.parametrize(
    ("key", "value"), [("form", "cosine"), ("weight", 0.0), ("weight", -1.0), ("weight", "1")]
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        build(**{key: value})
    assert caught.value.key == key
