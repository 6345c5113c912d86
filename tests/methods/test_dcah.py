"""DCAH: published values, its ablations, and the two Pearson variants against loops."""

from __future__ import annotations

import typing

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from asymbench.testing import MethodContract
from methods.base import METHODS, Batch, Schedule, Task, build_method
from methods.dcah import cross_correlation, row_correlation
from methods.losses import sgn
from retrieval.errors import InputError
from tests.oracles import csd as csd_oracle
from tests.oracles import dcah as oracle
from tests.oracles import quantizers as caq_oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5], [1, 1, -0.5, -1.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25], [0.5, 1.5, -1, -1]]
VARIANTS = ["published", "cross_correlation", "similarity_correlation"]
CAQ = {"name": "caq"}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tensor(rows, dtype=torch.float64):
    return torch.tensor(np.asarray(rows), dtype=dtype)


def build(bits=4, **params):
    return build_method("dcah", params, Task(bits=bits, n_classes=3, n_train=9, multi_label=False))


def batch(n, bits):
    return Batch(
        rows=torch.arange(n),
        labels=torch.zeros(n, 3),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )


def terms(h_q=Q, g=G, dtype=torch.float64, **params):
    n, bits = np.shape(h_q)
    method = build(bits, **params)
    found = method.query_terms(tensor(h_q, dtype), tensor(g, dtype), batch(n, bits), {})
    assert all(value.dtype == dtype and value.shape == () for value in found.values())
    return {name: float(value) for name, value in found.items()}


def test_published_variant_has_the_published_value(dtype):
    """With the temperatures of 32 bits, t0 0.5 and t1 0.05."""
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    found = terms(dtype=dtype, k=3, t0=0.5, t1=0.05)
    assert sum(found.values()) == pytest.approx(0.708665, abs=limit)
    assert found["quant"] == pytest.approx(0.147135, abs=limit)
    two = terms(Q[:2], G[:2], dtype=dtype, t0=0.5, t1=0.05)
    assert two["quant"] == pytest.approx(0.051784, abs=limit)


def test_cross_correlation_has_the_published_values(dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    q, b = tensor(Q, dtype), sgn(tensor(G, dtype))
    for lam, expected in ((0.0, 0.008602), (1.0, 0.082197), (0.1, 0.008602 + 0.1 * 0.073595)):
        got = cross_correlation(q, b, lam=lam)
        assert got.dtype == dtype
        assert float(got.detach()) == pytest.approx(expected, abs=limit)
        found = terms(dtype=dtype, variant="cross_correlation", lam=lam)
        assert found["quant"] == pytest.approx(expected, abs=limit)


def test_similarity_correlation_has_the_published_values(dtype):
    limit = 1e-6 if dtype == torch.float64 else 1e-4
    found = terms(dtype=dtype, variant="similarity_correlation")
    assert found == pytest.approx({"distill": 0.150292, "quant": 0.092137}, abs=limit)


def expected(variant, h_q, g, *, k=96, t_q=1.0, t_g=0.01, t0=0.5, t1=0.1, lam=0.005):
    """The two terms by loops."""
    if variant == "similarity_correlation":
        distill, quant = oracle.similarity_correlation(h_q, g)
        return {"distill": distill, "quant": quant}
    distill = csd_oracle.contextual(h_q, g, k, t_q, t_g)
    if variant == "cross_correlation":
        same, different = oracle.cross_correlation(h_q, g)
        return {"distill": distill, "quant": same + lam * different}
    kl, apart = caq_oracle.caq(h_q, oracle.signs(g), t0, t1)
    return {"distill": distill, "quant": kl + 0.01 * apart}


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.integers(3, 9),
    st.sampled_from([3, 12]),
    st.sampled_from(VARIANTS),
)
def test_all_variants_agree_with_loops(seed, n, bits, variant):
    rng = np.random.default_rng(seed)
    h_q, g = rng.normal(size=(2, n, bits))
    want = expected(variant, h_q, g)
    assert terms(h_q, g, variant=variant) == pytest.approx(want, abs=1e-6)
    # Where all codes are equally far, float32 leaves a row of rounding errors to be correlated.
    rough = 1e-3 if variant == "similarity_correlation" else 1e-4
    assert terms(h_q, g, torch.float32, variant=variant) == pytest.approx(want, abs=rough)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("teacher", ["orthohash", "csq"])
def test_everything_is_in_the_teachers_output_space(variant, teacher):
    squash = np.tanh if teacher == "csq" else np.asarray
    want = expected(variant, squash(Q), squash(G))
    assert terms(variant=variant, teacher=teacher) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("variant", "given"),
    [
        ("published", {"k": 2}),
        ("published", {"t_q": 0.1}),
        ("published", {"t_g": 0.1}),
        ("published", {"t0": 0.1}),
        ("published", {"t1": 0.005}),
        ("cross_correlation", {"lam": 1.0}),
        ("cross_correlation", {"k": 2}),
    ],
)
def test_each_hyperparameter_reaches_its_term(variant, given):
    got = terms(variant=variant, **given)
    assert got == pytest.approx(expected(variant, Q, G, **given), abs=1e-6)
    plain = expected(variant, Q, G)
    assert any(abs(got[name] - plain[name]) > 1e-5 for name in got)


@pytest.mark.parametrize(
    ("bits", "t1"), [(12, 0.1), (16, 0.1), (32, 0.05), (48, 0.05), (64, 0.005)]
)
def test_temperatures_of_caq_follow_the_code_length(bits, t1):
    h_q, g = np.random.default_rng(bits).normal(size=(2, 4, bits))
    kl, apart = caq_oracle.caq(h_q, oracle.signs(g), 0.5, t1)
    assert terms(h_q, g)["quant"] == pytest.approx(kl + 0.01 * apart, abs=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_scale_their_terms_and_0_leaves_them_out(variant):
    plain = terms(variant=variant)
    scaled = terms(variant=variant, distill_weight=10.0, quant_weight=0.1)
    assert scaled == pytest.approx(
        {"distill": 10 * plain["distill"], "quant": plain["quant"] / 10}
    )
    assert terms(variant=variant, distill_weight=0.0) == {"quant": plain["quant"]}
    assert terms(variant=variant, quant_weight=0.0) == {"distill": plain["distill"]}


def test_without_quantisation_it_is_csd():
    mine = terms(k=2, t_q=0.1, t_g=0.05, quant_weight=0.0)["distill"]
    csd = build_method(
        "csd",
        {"k": 2, "t_q": 0.1, "t_g": 0.05},
        Task(bits=4, n_classes=3, n_train=9, multi_label=False),
    )
    theirs = csd.query_loss(tensor(Q), tensor(G), batch(3, 4), {})["context"]
    assert mine == float(theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantisation_reads_only_the_gallerys_signs(variant):
    given = {"variant": variant, "distill_weight": 0.0}
    assert build(**given).recording == "sign"
    assert build(variant=variant).recording == "float"
    assert terms(**given) == terms(g=np.sign(G), **given)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_the_batch_does_not_matter(variant):
    rng = np.random.default_rng(1)
    h_q, g = rng.normal(size=(2, 9, 12))
    order = rng.permutation(9)
    one, other = (terms(q, x, variant=variant) for q, x in ((h_q, g), (h_q[order], g[order])))
    assert one == pytest.approx(other, rel=1e-9)


def test_cross_correlation_does_not_see_the_scale_and_shift_of_a_bit():
    rng = np.random.default_rng(2)
    h_q, g = rng.normal(size=(2, 12, 5))
    moved = h_q * rng.uniform(0.1, 5, 5) + rng.normal(size=5)
    b = sgn(tensor(g))
    one, other = (float(cross_correlation(tensor(x), b, lam=1.0)) for x in (h_q, moved))
    assert one == pytest.approx(other, abs=1e-9)
    assert float(cross_correlation(b, b, lam=1.0)) == pytest.approx(0, abs=1e-9)
    assert float(cross_correlation(-b, b, lam=0.0)) == pytest.approx(4, abs=1e-9)


def test_bits_that_are_constant_in_the_gallery_are_left_out(dtype):
    rng = np.random.default_rng(3)
    h_q, g = rng.normal(size=(2, 10, 6))
    g[:, 1], g[:, 4] = 1.0, -2.0
    kept = [0, 2, 3, 5]
    h, b = tensor(h_q, dtype).requires_grad_(), sgn(tensor(g, dtype))
    got = cross_correlation(h, b, lam=1.0)
    got.backward()
    assert float(got.detach()) == pytest.approx(
        float(cross_correlation(tensor(h_q, dtype)[:, kept], b[:, kept], lam=1.0)), abs=1e-6
    )
    assert float(got.detach()) == pytest.approx(sum(oracle.cross_correlation(h_q, g)), abs=1e-4)
    assert (h.grad[:, [1, 4]] == 0).all()
    assert (h.grad[:, kept].abs().sum(dim=0) > 0).all()


def test_a_gallery_of_one_code_has_no_cross_correlation(dtype):
    h = tensor(Q, dtype).requires_grad_()
    got = cross_correlation(h, torch.ones(3, 4, dtype=dtype), lam=1.0)
    got.backward()
    assert got.dtype == dtype
    assert got == 0
    assert (h.grad == 0).all()


def test_one_varying_bit_has_no_pairs():
    b = sgn(tensor(G))
    b[:, 1:] = 1
    got = float(cross_correlation(tensor(Q), b, lam=1.0))
    assert got == pytest.approx(oracle.cross_correlation(Q, b.tolist())[0], abs=1e-9)


def test_constant_bits_of_the_query_correlate_with_nothing(dtype):
    h = tensor(np.random.default_rng(4).normal(size=(6, 3)), dtype)
    h[:, 0] = 0.5
    b = sgn(tensor(np.random.default_rng(5).normal(size=(6, 3)), dtype))
    h.requires_grad_()
    got = cross_correlation(h, b, lam=1.0)
    got.backward()
    same, different = oracle.cross_correlation(h.tolist(), b.tolist())
    assert float(got.detach()) == pytest.approx(same + different, abs=1e-4)
    assert torch.isfinite(h.grad).all()


def test_row_correlation_does_not_see_shift_and_scale_of_a_row():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 5, 7))
    one = float(row_correlation(tensor(a), tensor(b)))
    moved = a * rng.uniform(0.1, 5, (5, 1)) + rng.normal(size=(5, 1))
    assert float(row_correlation(tensor(moved), tensor(b))) == pytest.approx(one, abs=1e-6)
    assert float(row_correlation(tensor(b), tensor(b))) == pytest.approx(0, abs=1e-6)
    assert float(row_correlation(tensor(-b), tensor(b))) == pytest.approx(2, abs=1e-6)
    constant = row_correlation(torch.ones(5, 7, dtype=torch.float64), tensor(b))
    assert float(constant) == pytest.approx(1, abs=1e-6)


def test_row_correlation_quantises_towards_the_continuous_similarities():
    """Their gradient is stopped: it is the sign that has to follow."""
    from methods.losses import cosine

    b = sgn(tensor(G))
    h = tensor(Q).requires_grad_()
    method = build(variant="similarity_correlation", distill_weight=0.0)
    (whole,) = torch.autograd.grad(method.query_loss(h, tensor(G), batch(3, 4), {})["quant"], h)
    s = sgn(tensor(Q)).requires_grad_()
    (by_sign,) = torch.autograd.grad(row_correlation(cosine(s, b), cosine(tensor(Q), b)), s)
    torch.testing.assert_close(whole, by_sign, rtol=0, atol=1e-12)
    assert (whole.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_row_and_no_gallery(variant):
    rng = np.random.default_rng(7)
    h, g = (tensor(x).requires_grad_() for x in rng.normal(size=(2, 8, 12)))
    found = build(12, variant=variant).query_loss(h, g.detach(), batch(8, 12), {})
    for value in found.values():
        (gradient,) = torch.autograd.grad(value, h, retain_graph=True)
        assert (gradient.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("params", "through"),
    [
        ({}, True),
        ({"variant": "similarity_correlation"}, True),
        ({"variant": "cross_correlation"}, False),
        ({"quant_weight": 0.0}, False),
        ({"variant": "cross_correlation", "quantizer": CAQ}, True),
    ],
)
def test_it_says_whether_gradients_pass_through_a_sign(params, through):
    assert build(**params).straight_through is through


def test_gradients_without_a_sign_in_between_are_the_losses_own():
    rng = np.random.default_rng(8)
    h, g = (tensor(x) for x in rng.normal(size=(2, 6, 4)))
    h.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_correlation(x, sgn(g), lam=0.5), (h,))
    for variant in VARIANTS:
        method = build(variant=variant, quant_weight=0.0, t_g=0.1)
        assert torch.autograd.gradcheck(
            lambda x, m=method: m.query_loss(x, g, batch(6, 4), {})["distill"], (h,)
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("bits", [12, 64])
def test_rough_outputs_of_any_size_give_finite_loss_and_gradient(variant, scale, bits):
    rng = np.random.default_rng(9)
    h, g = (
        torch.tensor(x * scale, dtype=torch.float32).bfloat16().float()
        for x in rng.normal(size=(2, 8, bits))
    )
    h.requires_grad_()
    found = build(bits, variant=variant, t_g=0.005).query_loss(h, g, batch(8, bits), {})
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert torch.isfinite(h.grad).all()


def test_one_image_has_a_loss_by_cosines_and_none_by_correlation():
    kl, apart = caq_oracle.caq(Q[:1], np.sign(G[:1]), 0.5, 0.1)
    assert kl == pytest.approx(0, abs=1e-12)
    assert terms(Q[:1], G[:1]) == pytest.approx({"distill": 0, "quant": 0.01 * apart}, abs=1e-9)
    for variant in VARIANTS[1:]:
        with pytest.raises(ValueError, match="two images or more, the batch has 1"):
            terms(Q[:1], G[:1], variant=variant)


def test_rows_of_two_images_correlate_fully_or_not_at_all():
    rng = np.random.default_rng(10)
    for _ in range(5):
        h_q, g = rng.normal(size=(2, 2, 6))
        distill = terms(h_q, g, variant="similarity_correlation", quant_weight=0.0)["distill"]
        assert min(abs(distill - whole) for whole in (0, 1, 2)) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_of_another_length_are_refused(variant):
    method = build(variant=variant)
    with pytest.raises(ValueError, match="5"):
        method.query_loss(torch.ones(3, 5), tensor(G), batch(3, 4), {})


def test_unlike_shapes_are_refused_by_cross_correlation():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        cross_correlation(torch.ones(3, 4), torch.ones(2, 4), lam=1.0)


# ---- combinations --------------------------------------------------------------------


def test_a_query_without_any_loss_is_refused():
    with pytest.raises(InputError, match="no loss") as caught:
        build(distill_weight=0.0, quant_weight=0.0)
    assert caught.value.key == "distill_weight"


def test_caq_beside_caq_is_refused():
    with pytest.raises(InputError, match="count twice") as caught:
        build(quantizer=CAQ)
    assert caught.value.key == "quantizer"
    assert "quant_weight" in caught.value.hint


def test_caq_in_place_of_the_own_quantisation_is_counted_once():
    own = terms()
    for given in (
        {"quantizer": {**CAQ, "mode": "replace"}},
        {"quantizer": CAQ, "quant_weight": 0.0},
        {"quantizer": {**CAQ, "mode": "replace"}, "variant": "cross_correlation"},
    ):
        found = terms(**given)
        assert found == pytest.approx({"distill": own["distill"], "caq": own["quant"]}, abs=1e-12)


def test_caq_may_stand_beside_the_other_variants():
    for variant in VARIANTS[1:]:
        assert set(terms(variant=variant, quantizer=CAQ)) == {"distill", "quant", "caq"}


def test_declarations():
    method = build()
    assert method.schedule is Schedule.FROZEN
    assert not method.labels_needed
    assert not method.embeddings
    assert method.params.teacher == "orthohash"
    assert build(teacher="csch").gallery_method().name == "csch"
    source = METHODS.get("dcah").source
    assert source.status == "published"
    for word in ("not public", "cross_correlation", "similarity_correlation", "reconstructions"):
        assert word in source.note


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("variant", "pearson"),
        ("distill_weight", -1.0),
        ("quant_weight", -0.1),
        ("k", 0),
        ("k", 1.5),
        ("t_q", 0.0),
        ("t_g", 0.0),
        ("t0", 0.0),
        ("t1", -0.1),
        ("t1", float("nan")),
        ("lam", -0.005),
    ],
)
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        build(**{key: value})
    assert caught.value.key == key


class TestCrossCorrelation(MethodContract):
    """The reconstruction by bits keeps every promise too."""

    method = "dcah"
    params: typing.ClassVar = {"variant": "cross_correlation"}


class TestSimilarityCorrelation(MethodContract):
    """So does that by similarities."""

    method = "dcah"
    params: typing.ClassVar = {"variant": "similarity_correlation"}
