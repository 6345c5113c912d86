"""ADSQ: test values of the reconstruction, explicit loops, the label network and the updates."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from methods import adsq
from methods.base import Batch, Schedule, Task, TrainingSplit, build_method
from retrieval.errors import InputError
from tests.oracles import pairwise as oracle

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
T = [[1, -1, 1, 1], [-1, 1, 1, -1]]  # label codes of classes 0 and 1
ONE = [[1, 0, 0], [0, 1, 0]]
Y = [[1, 0, 1], [0, 1, 1]]
SMALL = {"label_hidden": 256, "label_features": 64}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tolerance(dtype):
    return 1e-6 if dtype == torch.float64 else 1e-4


def make(multi=False, bits=4, classes=3, n_train=2, **params):
    task = Task(bits=bits, n_classes=classes, n_train=n_train, multi_label=multi)
    return build_method("adsq", SMALL | params, task)


def make_batch(phase="query", labels=ONE, dtype=torch.float64):
    return Batch(
        rows=torch.arange(2),
        labels=torch.tensor(labels, dtype=dtype),
        classes=None,
        tie_bits=torch.ones(2, 4, dtype=dtype),
        phase=phase,
    )


def make_state(dissimilar=-1.0):
    return {
        "H_l": torch.tensor(T, dtype=torch.float32),
        "U": torch.tensor(Q).tanh(),
        "V": torch.tensor(G).tanh(),
        "b": torch.tensor(T, dtype=torch.int8),
        "labels": torch.tensor(ONE, dtype=torch.float32),
        "dissimilar": torch.tensor(dissimilar, dtype=torch.float64),
    }


def make_split(labels, seed=0):
    return TrainingSplit(labels=torch.tensor(labels, dtype=torch.float32), classes=None, seed=seed)


def terms(phase="query", labels=ONE, dtype=torch.float64, q=Q, g=G, state=None, **params):
    h_q, h_g = (torch.tensor(h, dtype=dtype) for h in (q, g))
    batch = make_batch(phase, labels, dtype)
    found = make(**params).joint_loss(h_q, h_g, batch, state or make_state())
    assert all(value.dtype == dtype and value.shape == () for value in found.values())
    return {name: float(value) for name, value in found.items()}


# ---- values worked out beforehand ----------------------------------------------------


@pytest.mark.parametrize(("phase", "expected"), [("query", 0.441034), ("gallery", 0.355299)])
def test_likelihood_and_difference_of_each_phase(phase, expected, dtype):
    found = terms(phase, dtype=dtype)
    assert found["likelihood"] == pytest.approx(0.500611, abs=tolerance(dtype))
    assert found["difference"] == pytest.approx(expected, abs=tolerance(dtype))


def test_quantisation_of_both_phases(dtype):
    both = sum(terms(phase, dtype=dtype, eta=1.0)["quant"] for phase in ("query", "gallery"))
    assert both == pytest.approx(0.406995, abs=tolerance(dtype))


def test_updated_codes_are_signs_of_the_sum():
    state = make_state()
    make().end_epoch("joint", state)
    assert state["b"].dtype == torch.int8
    assert state["b"].tolist() == [[1, -1, 1, 1], [-1, 1, 1, -1]]


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
    label_codes = np.tanh(rng.normal(size=(n_train, bits)))
    b = rng.choice([-1, 1], (n_train, bits)).astype(np.int8)
    dissimilar = -float(rng.uniform(0, 1))
    state = {
        "H_l": torch.from_numpy(label_codes),
        "b": torch.from_numpy(b),
        "dissimilar": torch.tensor(dissimilar, dtype=torch.float64),
    }
    task = Task(bits=bits, n_classes=4, n_train=n_train, multi_label=multi)
    given = {"likelihood_weight": 2.0, "difference_weight": 3.0, "eta": 0.5, "nu": 0.25}
    method = build_method("adsq", given, task)
    y = labels[rows].tolist()
    for phase, h in (("query", h_q), ("gallery", h_g)):
        batch = Batch(
            rows=torch.from_numpy(rows), labels=torch.from_numpy(labels[rows]), classes=None,
            tie_bits=torch.ones(n, bits), phase=phase,
        )  # fmt: skip
        found = method.joint_loss(torch.from_numpy(h_q), torch.from_numpy(h_g), batch, state)
        u, v, own = (np.tanh(x).tolist() for x in (h_q, h_g, h))
        want = {
            "likelihood": 2 * oracle.likelihood(u, v, y),
            "difference": 3 * oracle.difference(own, label_codes[rows].tolist(), y, dissimilar),
            "quant": 0.5 * oracle.gap(own, b[rows].tolist()),
            "balance": 0.25 * oracle.balance(own, mean=True),
        }
        assert {k: float(x) for k, x in found.items()} == pytest.approx(want, abs=1e-9)


def test_images_that_share_one_of_several_labels_are_similar():
    found = terms(labels=Y)
    assert found["likelihood"] == pytest.approx(0.580361, abs=1e-6)  # DAPH's, S all ones
    u = np.tanh(Q).tolist()
    assert found["difference"] == pytest.approx(oracle.difference(u, T, Y), abs=1e-6)


@pytest.mark.parametrize(
    ("phase", "moved"), [("query", (True, False)), ("gallery", (False, True))]
)
def test_gradients_reach_the_network_whose_phase_it_is_and_no_other(phase, moved):
    h_q, h_g = (torch.tensor(h, requires_grad=True) for h in (Q, G))
    found = make().joint_loss(h_q, h_g, make_batch(phase, dtype=torch.float32), make_state())
    for value in found.values():
        value.backward(retain_graph=True)
    assert (h_q.grad is not None, h_g.grad is not None) == moved


def test_a_batch_of_no_phase_is_refused():
    with pytest.raises(ValueError, match="must be query or gallery"):
        terms("both")


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        ("likelihood_weight", "likelihood"), ("difference_weight", "difference"),
        ("eta", "quant"), ("nu", "balance"),
    ],
)  # fmt: skip
def test_each_weight_scales_its_own_term_and_zero_leaves_it_out(weight, name):
    one, five = terms(**{weight: 1.0}), terms(**{weight: 5.0})
    assert five[name] == pytest.approx(5 * one[name], rel=1e-12)
    assert {k: v for k, v in one.items() if k != name} == {
        k: v for k, v in five.items() if k != name
    }
    assert set(terms(**{weight: 0.0})) == set(one) - {name}


def test_codes_of_different_lengths_are_refused_with_both():
    u, labels = torch.zeros(2, 5), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="images have 5 bits, of labels 4"):
        adsq.semantic_difference(u, labels, torch.zeros(2, 3))


# ---- soft similarity -----------------------------------------------------------------


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 5))
def test_target_of_dissimilar_pairs_agrees_with_a_count(seed, n, n_classes):
    labels = np.random.default_rng(seed).integers(0, 2, (n, n_classes)).astype(np.float32)
    got = adsq.dissimilar_target(torch.from_numpy(labels))
    assert got == pytest.approx(oracle.dissimilar_target(labels.tolist()), abs=1e-12)
    assert -1 <= got <= 0


def test_target_of_dissimilar_pairs_is_counted_in_blocks():
    labels = np.eye(3, dtype=np.float32)[np.arange(1200) % 3]
    got = adsq.dissimilar_target(torch.from_numpy(labels))
    assert got == -0.5  # 400 of 1200 images are of an image's class


def test_soft_similarity_changes_the_target_of_dissimilar_pairs_alone():
    labels = np.eye(5)[np.arange(40) % 5].tolist()
    hard = make(classes=5, n_train=40).initial_state("joint", make_split(labels))
    soft = make(classes=5, n_train=40, soft_similarity=True).initial_state(
        "joint", make_split(labels)
    )
    assert hard["dissimilar"].item() == -1
    assert soft["dissimilar"].item() == -0.25
    one, other = terms(), terms(state=make_state(dissimilar=-0.25))
    assert one["likelihood"] == other["likelihood"]
    u = np.tanh(Q).tolist()
    assert other["difference"] == pytest.approx(oracle.difference(u, T, ONE, -0.25), abs=1e-6)


# ---- the label network ---------------------------------------------------------------


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_loss_of_the_label_network_agrees_with_loops(seed, n):
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(size=(n, 7)), 0)
    features[0] = 0  # a row of which no unit fires
    codes = np.tanh(rng.normal(size=(n, 4)))
    labels = rng.integers(0, 2, (n, 3)).astype(float)
    s = torch.tensor([[oracle.shared(a, b) for b in labels] for a in labels])
    f, h = (torch.from_numpy(x).requires_grad_() for x in (features, codes))
    loss = adsq.label_loss(f, h, s, a1=0.3, a2=0.7)
    want = oracle.label_loss(features.tolist(), codes.tolist(), labels.tolist(), 0.3, 0.7)
    assert float(loss.detach()) == pytest.approx(want, abs=1e-9)
    loss.backward()
    assert torch.isfinite(f.grad).all()
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("n_classes", [10, 80])
@pytest.mark.parametrize("bits", [12, 48])
def test_classes_get_codes_of_their_own(n_classes, bits):
    """Where all rows begin alike, as with torch's own first weights, many classes never part."""
    method = make(bits=bits, classes=n_classes, label_hidden=4096, label_features=512)
    split = make_split(np.eye(n_classes).tolist())
    signs = torch.where(adsq.semantic_codes(split, bits, method.params) >= 0, 1, -1)
    assert len(torch.unique(signs, dim=0)) >= 0.95 * n_classes
    pairs = torch.triu_indices(n_classes, n_classes, 1)
    apart = ((bits - signs @ signs.T) / 2)[pairs[0], pairs[1]]
    assert float(apart.mean()) > 0.45 * bits


def test_training_the_label_network_lowers_its_loss():
    labels = torch.eye(6)
    losses = []
    for epochs in (1, 60):
        params = make(bits=8, classes=6, label_epochs=epochs).params
        codes = adsq.semantic_codes(make_split(labels.tolist()), 8, params)
        assert not codes.requires_grad
        assert codes.dtype == torch.float32
        losses.append(oracle.likelihood(codes.tolist(), codes.tolist(), labels.tolist()))
    assert losses[1] < losses[0] - 0.05


def test_images_with_the_same_labels_have_the_same_code():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 3)).astype(float)
    codes = adsq.semantic_codes(make_split(labels.tolist()), 4, make(multi=True).params)
    assert codes.shape == (50, 4)
    for i in range(50):
        for j in range(50):
            same = bool((labels[i] == labels[j]).all())
            assert bool((codes[i] == codes[j]).all()) is same


def test_codes_depend_on_the_different_label_rows_and_the_seed_alone():
    method = make(classes=4)
    rows = np.eye(4).tolist()
    codes = adsq.semantic_codes(make_split(rows), 4, method.params)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    with torch.no_grad():  # whatever the caller's grad mode
        again = adsq.semantic_codes(make_split(rows[::-1] * 3), 4, method.params)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, codes.flip(0).repeat(3, 1))
    other = adsq.semantic_codes(make_split(rows, seed=1), 4, method.params)
    assert not torch.equal(other, codes)


@pytest.mark.parametrize(
    "change",
    [
        {"a1": 10.0}, {"a2": 10.0}, {"label_hidden": 32}, {"label_features": 16},
        {"label_epochs": 3}, {"label_lr": 1e-2}, {"label_batch": 4},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_of_the_label_network_moves_its_codes(change):
    split = make_split(np.eye(10).tolist())
    plain, other = (
        adsq.semantic_codes(split, 8, make(bits=8, classes=10, **given).params)
        for given in ({}, change)
    )
    assert plain.shape == other.shape
    assert not torch.equal(plain, other)


def test_batches_of_label_rows_may_end_with_a_single_row():
    split = make_split(np.eye(5).tolist())
    codes = adsq.semantic_codes(split, 4, make(classes=5, label_batch=2).params)
    assert torch.isfinite(codes).all()
    assert (codes.abs() <= 1).all()


# ---- memory --------------------------------------------------------------------------


def test_memory_begins_with_the_label_codes_and_their_signs():
    method = make(classes=3, n_train=6)
    split = make_split(np.eye(3)[[0, 1, 2, 2, 1, 0]].tolist())
    state = method.initial_state("joint", split)
    assert torch.equal(state["H_l"], adsq.semantic_codes(split, 4, method.params))
    assert state["b"].dtype == torch.int8
    assert state["b"].tolist() == [[1 if x >= 0 else -1 for x in row] for row in state["H_l"]]
    assert not state["U"].any()
    assert not state["V"].any()
    assert set(method.memory) == {"U", "V", "b", "H_l"}


@pytest.mark.parametrize("phase", ["query", "gallery"])
def test_both_networks_codes_are_kept_by_training_row_in_both_phases(phase):
    state = {"U": torch.zeros(5, 4), "V": torch.zeros(5, 4)}
    batch = Batch(
        rows=torch.tensor([4, 1]), labels=torch.tensor(ONE), classes=None,
        tie_bits=torch.ones(2, 4), phase=phase,
    )  # fmt: skip
    make().remember("joint", {"query": torch.tensor(Q), "gallery": torch.tensor(G)}, batch, state)
    for name, h in (("U", Q), ("V", G)):
        np.testing.assert_allclose(state[name][[4, 1]], np.tanh(h), rtol=1e-6)
        assert not state[name][[0, 2, 3]].any()


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 10.0]))
def test_update_and_monitors_agree_with_loops(seed, mu):
    rng = np.random.default_rng(seed)
    n, bits = 7, 3
    u, v, h = np.tanh(rng.normal(size=(3, n, bits))).astype(np.float32)
    u[0], v[0] = 0, 0  # an image that no batch had yet
    labels = rng.integers(0, 2, (n, 3)).astype(np.float32)
    state = {k: torch.from_numpy(x) for k, x in {"U": u, "V": v, "H_l": h}.items()}
    state |= {"labels": torch.from_numpy(labels), "b": torch.ones(n, bits, dtype=torch.int8)}
    watched = make(multi=True, bits=bits, n_train=n, mu=mu).end_epoch("joint", state)
    u, v, h = u.tolist(), v.tolist(), h.tolist()
    new = oracle.adsq_codes(u, v, h, mu)
    assert state["b"].tolist() == new
    agreeing = sum(
        (x >= 0) == (bit > 0)
        for row, codes in zip(h, new, strict=True)
        for x, bit in zip(row, codes, strict=True)
    )
    want = {
        "likelihood": oracle.likelihood(u, v, labels.tolist()),
        "quant": 0.1 * (oracle.gap(u, new) + oracle.gap(v, new)),
        "label_bits": agreeing / (n * bits),
    }
    assert watched == pytest.approx(want, rel=1e-5, abs=1e-6)


# ---- declarations --------------------------------------------------------------------


def test_it_alternates_and_says_that_it_is_a_reconstruction():
    method = make()
    assert method.schedule is Schedule.JOINT
    assert method.phases == ("query", "gallery")
    assert method.head == "fc_tanh"
    assert method.centers() is None
    assert method.source.status == "reconstructed"
    assert torch.equal(method.squash(torch.tensor(Q)), torch.tensor(Q).tanh())


def test_networks_that_no_label_would_reach_are_refused():
    nothing = {"likelihood_weight": 0.0, "difference_weight": 0.0}
    make(**nothing)  # eta draws them to b, which comes of the label codes
    for more in ({"eta": 0.0}, {"quantizer": {"name": "caq", "mode": "replace"}}):
        with pytest.raises(InputError, match="no loss reads the labels") as caught:
            make(**nothing, **more)
        assert caught.value.key == "likelihood_weight"


def test_a_quantizer_can_replace_the_distance_to_the_codes():
    method = make(quantizer={"name": "caq", "mode": "replace"})
    assert method.params.eta == 0
    h_q, h_g = (torch.tensor(h) for h in (Q, G))
    found = {
        p: set(method.joint_terms(h_q, h_g, make_batch(p), make_state())) for p in method.phases
    }
    assert found["query"] == {"likelihood", "difference", "balance", "caq"}
    assert found["gallery"] == {"likelihood", "difference", "balance"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("likelihood_weight", -1.0), ("difference_weight", -1.0), ("eta", -0.1), ("nu", -0.1),
        ("mu", -1.0), ("a1", -0.1), ("a2", -0.1), ("label_hidden", 0), ("label_features", 0),
        ("label_epochs", 0), ("label_lr", 0.0), ("label_lr", 2.0), ("label_batch", 1),
        ("soft_similarity", 1), ("label_epochs", 1.5),
    ],
)  # fmt: skip
def test_hyperparameters_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(InputError) as caught:
        make(**{name: value})
    assert caught.value.key == name
