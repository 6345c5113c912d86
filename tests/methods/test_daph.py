"""DAPH: published values, explicit loops, its updates and its centers."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods import daph, pairwise
from methods.base import Batch, Schedule, Task, TrainingSplit, build_method
from methods.losses import centroid_cross_entropy, margin_cross_entropy
from retrieval.errors import InputError
from tests.oracles import pairwise as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
T = [[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]]
ONE = [[1, 0, 0], [0, 1, 0]]
Y = [[1, 0, 1], [0, 1, 1]]
B = [[1, -1, -1, 1], [-1, 1, -1, -1]]  # sgn(Q), the third column turned
H = [[1, -1, 1, 1], [-1, 1, 1, -1]]  # sgn(G)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def tolerance(dtype):
    return 1e-6 if dtype == torch.float64 else 1e-4


def make(multi=False, bits=4, n_train=2, **params):
    task = Task(bits=bits, n_classes=3, n_train=n_train, multi_label=multi)
    return build_method("daph", params, task)


def make_batch(phase="query", multi=False, dtype=torch.float64):
    return Batch(
        rows=torch.arange(2),
        labels=torch.tensor(Y if multi else ONE, dtype=dtype),
        classes=None if multi else torch.tensor([0, 1]),
        tie_bits=torch.tensor([[1, -1, 1, -1]] * 2, dtype=dtype),
        phase=phase,
    )


def make_state():
    return {
        "U": torch.tensor(Q).tanh(),
        "Z": torch.tensor(G).tanh(),
        "B": torch.tensor(B, dtype=torch.int8),
        "H": torch.tensor(H, dtype=torch.int8),
        "labels": torch.tensor(ONE, dtype=torch.float32),
        "centers": torch.tensor(T, dtype=torch.float32),
    }


def make_split(labels, seed=0):
    return TrainingSplit(labels=torch.tensor(labels, dtype=torch.float32), classes=None, seed=seed)


def terms(phase="query", multi=False, dtype=torch.float64, q=Q, g=G, **params):
    h_q, h_g = (torch.tensor(h, dtype=dtype) for h in (q, g))
    found = make(multi, **params).joint_loss(
        h_q, h_g, make_batch(phase, multi, dtype), make_state()
    )
    assert all(value.dtype == dtype and value.shape == () for value in found.values())
    return {name: float(value) for name, value in found.items()}


# ---- published values ----------------------------------------------------------------


def test_inner_products_have_the_published_values(dtype):
    u, z = (torch.tensor(h, dtype=dtype).tanh() for h in (Q, G))
    expected = [[0.844830, -0.273231], [-0.045768, 0.683569]]
    np.testing.assert_allclose(u @ z.T / 2, expected, atol=tolerance(dtype))


@pytest.mark.parametrize(("multi", "expected"), [(False, 0.500611), (True, 0.580361)])
@pytest.mark.parametrize("phase", ["query", "gallery"])
def test_likelihood_has_the_published_values_in_both_phases(phase, multi, expected, dtype):
    found = terms(phase, multi, dtype)["likelihood"]
    assert found == pytest.approx(expected, abs=tolerance(dtype))


@pytest.mark.parametrize(
    ("phase", "quant", "independence", "balance", "total"),
    [
        ("query", 1.139381, 0.128058, 0.915155, 11.904855),
        ("gallery", 0.202201, 0.142764, 0.501569, 2.529067),
    ],
)
def test_each_phase_has_the_published_terms_and_total(
    phase, quant, independence, balance, total, dtype
):
    found = terms(phase, dtype=dtype, alpha=1.0, lambda_i=1.0, beta=1.0)
    near = tolerance(dtype)
    assert found["quant"] == pytest.approx(quant, abs=near)
    assert found["independence"] == pytest.approx(independence, abs=near)
    assert found["balance"] == pytest.approx(balance, abs=near)
    published = terms(phase, dtype=dtype)
    assert sum(published.values()) == pytest.approx(total, abs=10 * near)


def test_updated_codes_have_the_published_values():
    method, state = make(), make_state()
    method.end_epoch("joint", state)
    for name in ("B", "H"):
        assert state[name].dtype == torch.int8
        assert state[name].tolist() == [[1, -1, 1, 1], [-1, 1, 1, -1]]


# ---- the terms -----------------------------------------------------------------------


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_all_terms_agree_with_loops_on_random_batches(seed, n, multi):
    rng = np.random.default_rng(seed)
    bits, n_train = 5, 12
    h_q, h_g = 2 * rng.normal(size=(2, n, bits))
    labels = np.eye(4)[rng.integers(0, 4, n_train)]
    if multi:
        labels = rng.integers(0, 2, (n_train, 4)).astype(float)  # some without any label
    rows = rng.permutation(n_train)[:n]
    codes = {name: rng.choice([-1, 1], (n_train, bits)).astype(np.int8) for name in "BH"}
    state = {name: torch.from_numpy(value) for name, value in codes.items()}
    batch = Batch(
        rows=torch.from_numpy(rows),
        labels=torch.from_numpy(labels[rows]),
        classes=None,
        tie_bits=torch.ones(n, bits),
    )
    for reduce in ("sum", "mean"):
        task = Task(bits=bits, n_classes=4, n_train=n_train, multi_label=multi)
        given = {"alpha": 3.0, "lambda_i": 0.5, "beta": 0.25, "balance": reduce}
        method = build_method("daph", given, task)
        for phase, h, name in (("query", h_q, "B"), ("gallery", h_g, "H")):
            found = method.joint_loss(
                torch.from_numpy(h_q), torch.from_numpy(h_g),
                Batch(**{**vars(batch), "phase": phase}), state,
            )  # fmt: skip
            u, v, own = (np.tanh(x).tolist() for x in (h_q, h_g, h))
            want = {
                "likelihood": oracle.likelihood(u, v, labels[rows].tolist()),
                "quant": 3 * oracle.gap(own, codes[name][rows].tolist()),
                "independence": 0.5 * oracle.independence(own),
                "balance": 0.25 * oracle.balance(own, mean=reduce == "mean"),
            }
            assert {k: float(x) for k, x in found.items()} == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("phase", "moved"), [("query", (True, False)), ("gallery", (False, True))]
)
@pytest.mark.parametrize("center_weight", [0.0, 1.0])
def test_gradients_reach_the_network_whose_phase_it_is_and_no_other(phase, moved, center_weight):
    h_q, h_g = (torch.tensor(h, requires_grad=True) for h in (Q, G))
    batch = make_batch(phase, dtype=torch.float32)
    found = make(center_weight=center_weight).joint_loss(h_q, h_g, batch, make_state())
    for value in found.values():
        value.backward(retain_graph=True)
    assert (h_q.grad is not None, h_g.grad is not None) == moved


def test_a_batch_of_no_phase_is_refused():
    with pytest.raises(ValueError, match="must be query or gallery"):
        terms("both")


def test_one_image_has_every_term():
    batch = Batch(
        rows=torch.tensor([1]), labels=torch.tensor([[0.0, 1, 0]]), classes=torch.tensor([1]),
        tie_bits=torch.ones(1, 4), phase="query",
    )  # fmt: skip
    state = make_state()
    q, g = torch.tensor(Q[1:]), torch.tensor(G[1:])
    found = make().joint_loss(q, g, batch, state)
    u, z = q.tanh().tolist(), g.tanh().tolist()
    assert float(found["likelihood"]) == pytest.approx(oracle.likelihood(u, z, [[0, 1, 0]]))
    assert float(found["independence"]) == pytest.approx(0.01 * oracle.independence(u), rel=1e-5)


def test_likelihood_has_a_slope_of_one_half_minus_s_at_zero_and_is_finite_far_out():
    u = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    v = torch.ones(1, 2, dtype=torch.float64)
    pairwise.pairwise_likelihood(u, v, torch.zeros(1, 1)).backward()
    assert u.grad.tolist() == [[0.25, 0.25]]  # (1/2 - 0) times v / 2
    far = torch.full((1, 2), 1e4, requires_grad=True)
    loss = pairwise.pairwise_likelihood(far, -far.detach(), torch.ones(1, 1))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e8)
    assert torch.isfinite(far.grad).all()


def test_codes_of_different_lengths_are_refused_with_both():
    with pytest.raises(ValueError, match="5 bits and gallery codes 4"):
        pairwise.pairwise_likelihood(torch.zeros(2, 5), torch.zeros(3, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        terms("query", q=[r[:3] for r in Q], g=[r[:3] for r in G])


def test_doubling_a_batch_leaves_the_means_and_makes_the_summed_balance_four_times_as_large():
    h_q, h_g = (torch.tensor(h, dtype=torch.float64) for h in (Q, G))
    once = make_batch()
    twice = Batch(
        rows=once.rows.repeat(2), labels=once.labels.repeat(2, 1), classes=once.classes.repeat(2),
        tie_bits=once.tie_bits.repeat(2, 1), phase="query",
    )  # fmt: skip
    for reduce, factor in (("sum", 4), ("mean", 1)):
        method = make(balance=reduce)
        a = method.joint_loss(h_q, h_g, once, make_state())
        b = method.joint_loss(h_q.repeat(2, 1), h_g.repeat(2, 1), twice, make_state())
        for name in ("likelihood", "quant", "independence"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-12)
        assert float(b["balance"]) == pytest.approx(factor * float(a["balance"]), rel=1e-12)


def test_terms_of_weight_zero_are_left_out():
    found = terms(alpha=0.0, lambda_i=0.0, beta=0.0)
    assert set(found) == {"likelihood"}


# ---- memory --------------------------------------------------------------------------


def test_initial_memory_is_zeros_and_random_signs_of_the_seed():
    method = make(n_train=100)
    one, same, other = (
        method.initial_state("joint", make_split([[1, 0, 0]] * 100, seed)) for seed in (0, 0, 1)
    )
    for name in ("U", "Z"):
        assert one[name].dtype == torch.float32
        assert one[name].shape == (100, 4)
        assert not one[name].any()
    for name in ("B", "H"):
        assert one[name].dtype == torch.int8
        assert set(one[name].unique().tolist()) == {-1, 1}
        assert abs(float(one[name].float().mean())) < 0.2  # 400 fair coins: four deviations
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])
    assert not torch.equal(one["B"], one["H"])
    assert set(method.memory) == {"U", "Z", "B", "H"}


@pytest.mark.parametrize("phase", ["query", "gallery"])
def test_both_networks_codes_are_kept_by_training_row_in_both_phases(phase):
    method = make(n_train=5)
    state = method.initial_state("joint", make_split([[1, 0, 0]] * 5))
    batch = Batch(
        rows=torch.tensor([4, 1]), labels=torch.tensor(ONE), classes=None,
        tie_bits=torch.ones(2, 4), phase=phase,
    )  # fmt: skip
    method.remember("joint", {"query": torch.tensor(Q), "gallery": torch.tensor(G)}, batch, state)
    for name, h in (("U", Q), ("Z", G)):
        np.testing.assert_allclose(state[name][[4, 1]], np.tanh(h), rtol=1e-6)
        assert not state[name][[0, 2, 3]].any()


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 10.0]))
def test_update_and_monitors_agree_with_loops(seed, gamma):
    rng = np.random.default_rng(seed)
    n, bits = 7, 3
    u, z = np.tanh(3 * rng.normal(size=(2, n, bits))).astype(np.float32)
    b, h = rng.choice([-1, 1], (2, n, bits)).astype(np.int8)
    labels = rng.integers(0, 2, (n, 3)).astype(np.float32)
    state = {k: torch.from_numpy(x) for k, x in zip("UZBH", (u, z, b, h), strict=True)}
    state["labels"] = torch.from_numpy(labels)
    task = Task(bits=bits, n_classes=3, n_train=n, multi_label=True)
    method = build_method("daph", {"gamma": gamma, "alpha": 5.0}, task)
    watched = method.end_epoch("joint", state)
    new_b, new_h = oracle.daph_codes(u.tolist(), z.tolist(), h.tolist(), 5.0, gamma)
    assert state["B"].tolist() == new_b
    assert state["H"].tolist() == new_h
    u, z = u.tolist(), z.tolist()
    want = {
        "likelihood": oracle.likelihood(u, z, labels.tolist()),
        "quant": 5 * (oracle.gap(u, new_b) + oracle.gap(z, new_h)),
        "codes_apart": gamma * oracle.gap(new_b, new_h),
        "independence": 0.01 * (oracle.independence(u) + oracle.independence(z)),
        "balance": 0.01 * (oracle.balance(u, mean=False) + oracle.balance(z, mean=False)),
    }
    assert watched == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_likelihood_of_the_whole_split_is_that_of_one_batch_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    u, v = (torch.from_numpy(np.tanh(rng.normal(size=(23, 4)))) for _ in range(2))
    labels = torch.from_numpy(rng.integers(0, 2, (23, 3)).astype(float))
    want = oracle.likelihood(u.tolist(), v.tolist(), labels.tolist())
    for chunk in (1, 5, 23, 512):
        monkeypatch.setattr(pairwise, "_CHUNK", chunk)
        assert pairwise.full_likelihood(u, v, labels) == pytest.approx(want, abs=1e-12)


def test_a_saturated_output_against_the_other_code_counts_as_plus_one():
    ones = torch.ones(1, 2)
    minus = torch.tensor([[-1, 1]], dtype=torch.int8)
    new = daph.update_codes(ones, minus, alpha=10.0, gamma=10.0)
    assert new.tolist() == [[1, 1]]  # 10 - 10 = 0, and 20
    assert daph.update_codes(-ones, minus, alpha=10.0, gamma=10.0).tolist() == [[-1, 1]]


@pytest.mark.parametrize(
    ("alpha", "gamma", "follow"), [(10.0, 10.0, False), (1.0, 10.0, False), (1.0, 0.1, True)]
)
def test_codes_follow_the_networks_only_where_alpha_is_above_gamma(alpha, gamma, follow):
    rng = np.random.default_rng(0)
    u, z = (torch.from_numpy(rng.choice([-0.9, 0.9], (50, 4))) for _ in range(2))
    state = {"U": u.float(), "Z": z.float(), "labels": torch.eye(50)}
    for name in ("B", "H"):
        state[name] = torch.from_numpy(rng.choice([-1, 1], (50, 4)).astype(np.int8))
    begun = state["H"].clone()
    for _ in range(3):
        make(n_train=50, alpha=alpha, gamma=gamma).end_epoch("joint", state)
    assert torch.equal(state["B"], torch.sign(u) if follow else begun)
    assert torch.equal(state["H"], torch.sign(z) if follow else begun)


def test_without_alpha_codes_stay_and_are_not_read():
    method, state = make(alpha=0.0), make_state()
    before = state["H"].clone()
    method.end_epoch("joint", state)
    assert torch.equal(state["H"], before)
    assert torch.equal(state["B"], before)
    replaced = make(quantizer={"name": "caq", "mode": "replace"})
    assert replaced.params.alpha == 0
    h_q, h_g = (torch.tensor(h) for h in (Q, G))
    phases = {
        phase: set(replaced.joint_terms(h_q, h_g, make_batch(phase), make_state()))
        for phase in replaced.phases
    }
    assert phases["query"] == {"likelihood", "independence", "balance", "caq"}
    assert phases["gallery"] == {"likelihood", "independence", "balance"}


# ---- DAPH + T ------------------------------------------------------------------------


def test_centers_are_asked_for_only_where_they_have_a_weight():
    plain = make(assign="A_r", centers="bernoulli", margin=0.4, tau=1.0)
    assert plain.centers() is None
    assert "center" not in terms(assign="A_r", centers="bernoulli", margin=0.4, tau=1.0)
    spec = make(center_weight=1.0).centers()
    assert (spec.kind, spec.assign, spec.needs) == ("greedy", "A_q", ("query",))
    random = make(center_weight=1.0, assign="A_r", centers="hadamard_ext").centers()
    assert (random.kind, random.assign, random.needs) == ("hadamard_ext", "A_r", ())


@pytest.mark.parametrize(("phase", "h"), [("query", Q), ("gallery", G)])
def test_center_term_is_that_of_csch_on_the_phases_codes(phase, h):
    code = torch.tensor(h, dtype=torch.float64).tanh()
    centers = torch.tensor(T, dtype=torch.float64)
    given = {"center_weight": 2.0, "margin": 0.3, "tau": 0.25}
    single = margin_cross_entropy(code, centers, torch.tensor([0, 1]), margin=0.3, scale=4.0)
    assert terms(phase, **given)["center"] == pytest.approx(2 * float(single), abs=1e-12)
    labels, ties = make_batch(multi=True).labels, make_batch().tie_bits
    multi = centroid_cross_entropy(code, centers, labels, ties, margin=0.3, tau=0.25)
    found = terms(phase, multi=True, **given)["center"]
    assert found == pytest.approx(2 * float(multi), abs=1e-12)


def test_impossible_centers_are_refused_where_there_are_any():
    task = Task(bits=4, n_classes=100, n_train=200, multi_label=False)
    build_method("daph", {}, task)
    with pytest.raises(InputError, match="at least 7 bits") as caught:
        build_method("daph", {"center_weight": 1.0}, task)
    assert caught.value.key == "bits"


# ---- declarations --------------------------------------------------------------------


def test_it_alternates_and_learns_in_the_space_of_tanh():
    method = make()
    assert method.schedule is Schedule.JOINT
    assert method.phases == ("query", "gallery")
    assert method.head == "fc_tanh"
    assert method.gallery_method() is method
    assert torch.equal(method.squash(torch.tensor(Q)), torch.tensor(Q).tanh())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -1.0), ("gamma", -1.0), ("lambda_i", -0.1), ("beta", -0.1),
        ("center_weight", -1.0), ("tau", 0.0), ("margin", 2.5), ("assign", "A_g"),
        ("balance", "max"), ("centers", "grid"),
    ],
)  # fmt: skip
def test_hyperparameters_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(InputError) as caught:
        make(**{name: value})
    assert caught.value.key == name
