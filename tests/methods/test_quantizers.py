"""CAQ: published values, explicit loops, temperatures by code length, and the plug-in."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods.base import Batch, Quantizer, Task, build_method
from methods.losses import cosine, sgn
from methods.quantizers import caq, caq_temperatures, quantizer_loss, straight_through
from retrieval.errors import InputError
from tests.oracles import quantizers as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5], [1, 1, -0.5, -1.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25], [0.5, 1.5, -1, -1]]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def tolerance(dtype):
    return 1e-6 if dtype == torch.float64 else 1e-4


@pytest.mark.parametrize(("n", "expected"), [(2, 0.051784), (3, 0.147135)])
def test_caq_has_the_published_value(n, expected, dtype):
    loss = caq(tensor(Q[:n], dtype), sgn(tensor(G[:n], dtype)), t0=0.5, t1=0.05)
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, abs=tolerance(dtype))


@pytest.mark.parametrize(
    ("n", "divergence", "difference"), [(2, 0.048586, 0.319805), (3, 0.144867, 0.226741)]
)
def test_both_parts_have_the_published_values(n, divergence, difference):
    b_g = np.sign(G[:n])
    kl, apart = oracle.caq(Q[:n], b_g, 0.5, 0.05)
    assert kl == pytest.approx(divergence, abs=1e-6)
    assert apart == pytest.approx(difference, abs=1e-6)
    total = float(caq(tensor(Q[:n]), tensor(b_g), t0=0.5, t1=0.05))
    assert total == pytest.approx(divergence + 0.01 * difference, abs=1e-6)


def test_binary_similarities_have_the_published_values():
    hard = cosine(straight_through(tensor(Q[:2])), sgn(tensor(G[:2])))
    np.testing.assert_allclose(hard, [[1, -0.5], [-0.5, 1]], atol=1e-12)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.sampled_from([4, 12, 16]),
    st.sampled_from([(0.5, 0.1), (0.5, 0.05), (0.5, 0.005), (0.1, 1.0)]),
)
def test_caq_agrees_with_loops(seed, n, bits, temperatures):
    rng = np.random.default_rng(seed)
    h_q, h_g = rng.normal(size=(2, n, bits))
    b_g = np.where(h_g >= 0, 1.0, -1.0)
    t0, t1 = temperatures
    kl, apart = oracle.caq(h_q, b_g, t0, t1)
    want = kl + 0.01 * apart
    got = [
        float(caq(tensor(h_q, dtype), tensor(b_g, dtype), t0=t0, t1=t1))
        for dtype in (torch.float64, torch.float32)
    ]
    assert got[0] == pytest.approx(want, abs=1e-9)
    assert got[1] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (12, (0.5, 0.1)),
        (16, (0.5, 0.1)),
        (24, (0.5, 0.05)),
        (32, (0.5, 0.05)),
        (48, (0.5, 0.05)),
        (64, (0.5, 0.005)),
        (128, (0.5, 0.005)),
    ],
)
def test_temperatures_follow_the_code_length(bits, expected):
    assert caq_temperatures(bits) == expected


def test_straight_through_is_exactly_the_sign_with_the_gradient_of_the_identity(dtype):
    h = tensor([[0.3, -0.1, 0.0, -0.0, 1e-30, -1e20]], dtype).requires_grad_()
    s = straight_through(h)
    assert s.tolist() == [[1, -1, 1, 1, 1, -1]]
    s.backward(tensor([[1.0, 2, 3, 4, 5, 6]], dtype))
    assert h.grad.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_the_divergence_sends_its_gradient_through_the_sign_alone():
    """Of the continuous similarities only |A - C| carries a gradient."""
    h = tensor(Q).requires_grad_()
    b_g = sgn(tensor(G))
    (whole,) = torch.autograd.grad(caq(h, b_g, t0=0.5, t1=0.05), h)

    s = sgn(tensor(Q)).requires_grad_()  # C by itself, a function of the code s
    soft, hard = cosine(tensor(Q), b_g), cosine(s, b_g)
    p, log_q = torch.softmax(soft / 0.05, dim=1), torch.log_softmax(hard / 0.5, dim=1)
    through_sign = -(p * log_q).sum() / 3 + 0.01 * (soft - hard).abs().mean()
    (by_sign,) = torch.autograd.grad(through_sign, s)

    x = tensor(Q).requires_grad_()  # A by itself
    apart = 0.01 * (cosine(x, b_g) - cosine(sgn(x), b_g)).abs().mean()
    (by_value,) = torch.autograd.grad(apart, x)
    torch.testing.assert_close(whole, by_sign + by_value, rtol=0, atol=1e-12)
    assert (by_value.abs().sum(dim=1) > 0).all()


def test_one_row_has_no_divergence():
    h, b_g = tensor(Q[:1]), sgn(tensor(G[:1]))
    expected = 0.01 * abs(float(cosine(h, b_g)) - float(cosine(sgn(h), b_g)))
    assert float(caq(h, b_g, t0=0.5, t1=0.005)) == pytest.approx(expected, abs=1e-12)


def test_order_of_the_batch_does_not_matter():
    rng = np.random.default_rng(1)
    h, b = tensor(rng.normal(size=(9, 12))), sgn(tensor(rng.normal(size=(9, 12))))
    order = torch.from_numpy(rng.permutation(9))
    one, other = (caq(x, y, t0=0.5, t1=0.1) for x, y in ((h, b), (h[order], b[order])))
    assert float(one) == pytest.approx(float(other), rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("bits", [12, 64])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(scale, bits):
    rng = np.random.default_rng(2)
    h = torch.tensor(rng.normal(size=(8, bits)) * scale, dtype=torch.float32).bfloat16().float()
    h.requires_grad_()
    b = sgn(torch.tensor(rng.normal(size=(8, bits)), dtype=torch.float32))
    t0, t1 = caq_temperatures(bits)
    loss = caq(h, b, t0=t0, t1=t1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(h.grad).all()


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="4 bits and their targets 5"):
        caq(torch.zeros(2, 4), torch.ones(2, 5), t0=0.5, t1=0.1)


def test_plug_in_takes_the_lengths_temperatures_unless_given_its_own():
    h, g = tensor(Q), tensor(G)
    plain = quantizer_loss(Quantizer(name="caq"), h, g, 4)
    assert float(plain) == pytest.approx(float(caq(h, sgn(g), t0=0.5, t1=0.1)), abs=1e-12)
    assert float(quantizer_loss(Quantizer(name="caq"), h, g, 32)) == pytest.approx(
        float(caq(h, sgn(g), t0=0.5, t1=0.05)), abs=1e-12
    )
    for own in ({"t0": 0.2}, {"t1": 0.3}, {"t0": 0.2, "t1": 0.3}):
        want = caq(h, sgn(g), t0=own.get("t0", 0.5), t1=own.get("t1", 0.1))
        got = quantizer_loss(Quantizer(name="caq", **own), h, g, 4)
        assert float(got) == pytest.approx(float(want), abs=1e-12)
    assert not torch.isclose(plain, quantizer_loss(Quantizer(name="caq", t1=0.3), h, g, 4))


def test_plug_in_reads_only_the_gallerys_signs_and_sends_it_no_gradient():
    spec = Quantizer(name="caq")
    g = tensor(G).requires_grad_()
    h = tensor(Q).requires_grad_()
    loss = quantizer_loss(spec, h, g, 4)
    loss.backward()
    assert g.grad is None
    assert (h.grad.abs().sum(dim=1) > 0).all()
    assert loss == quantizer_loss(spec, h, tensor(np.sign(G)), 4)


@pytest.mark.parametrize("teacher", ["orthohash", "csq"])
def test_plug_in_quantises_the_methods_own_output_space_with_its_weight(teacher):
    task = Task(bits=4, n_classes=3, n_train=3, multi_label=False)
    given = {"teacher": teacher, "quantizer": {"name": "caq", "weight": 2.0, "t1": 0.05}}
    method = build_method("l2", given, task)
    batch = Batch(
        rows=torch.arange(3), labels=torch.zeros(3, 3), classes=None, tie_bits=torch.ones(3, 4)
    )
    terms = method.query_terms(tensor(Q), tensor(G), batch, {})
    assert set(terms) == {"distill", "caq"}
    squashed = np.tanh(Q) if teacher == "csq" else Q
    kl, apart = oracle.caq(squashed, np.sign(G), 0.5, 0.05)
    assert float(terms["caq"]) == pytest.approx(2 * (kl + 0.01 * apart), abs=1e-9)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"name": "cqa"}, "quantizer.name"),
        ({"name": "caq", "mode": "instead"}, "quantizer.mode"),
        ({"name": "caq", "weight": 0.0}, "quantizer.weight"),
        ({"name": "caq", "weight": float("nan")}, "quantizer.weight"),
        ({"name": "caq", "t0": 0.0}, "quantizer.t0"),
        ({"name": "caq", "t1": -0.1}, "quantizer.t1"),
        ({"name": "caq", "t1": "0.1"}, "quantizer.t1"),
        ({"name": "caq", "t2": 1.0}, "quantizer.t2"),
        ({}, "quantizer.name"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong, key):
    task = Task(bits=4, n_classes=3, n_train=3, multi_label=False)
    with pytest.raises(InputError) as caught:
        build_method("csd", {"quantizer": wrong}, task)
    assert caught.value.key == key


def test_replacing_a_quantisation_that_there_is_not_is_refused():
    task = Task(bits=4, n_classes=3, n_train=3, multi_label=False)
    with pytest.raises(InputError, match="no quantisation term of its own") as caught:
        build_method("csd", {"quantizer": {"name": "caq", "mode": "replace"}}, task)
    assert caught.value.key == "quantizer.mode"
