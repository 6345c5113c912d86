"""Samplers against the sequences and distributions that they are made of."""

import numpy as np
import pytest
from cmaes import CMA
from scipy.stats import qmc

from retrieval.errors import InputError
from retrieval.streams import derive
from search_spaces import samplers
from search_spaces.options import Tuning
from search_spaces.samplers import Cma, Grid, History, Model, Startup, Uniform, sampler_of
from search_spaces.space import Space
from search_spaces.tried import Tried

SQUARE = Space.parse(
    {
        "x": {"type": "float", "low": 0.0, "high": 1.0},
        "y": {"type": "float", "low": 0.0, "high": 1.0},
    }
)
NOTHING = frozenset()


def history(trials=(), **given):
    return History(
        trials=list(trials), **{"place": len(trials), "group": len(trials), "kept": {}, **given}
    )


def complete(number, x, y, value, notes=None):
    return Tried(number, {"x": x, "y": y}, "complete", (value,), {}, notes=notes or {})


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        ("random", Uniform, None),
        ("grid", Grid, None),
        ("tpe", Startup, Model),
        ("gp", Startup, Model),
        ("cmaes", Startup, Cma),
        ("nsga2", Startup, Model),
    ],
)
def test_each_sampler_has_its_name(name, kind, model):
    space = Space.parse({"x": [1, 2]}) if name == "grid" else SQUARE
    objectives = ["map", "bits"] if name == "nsga2" else ["map"]
    found = sampler_of(space, Tuning(sampler=name, objectives=objectives), NOTHING)
    assert type(found) is kind
    assert model is None or type(found._model) is model


@pytest.mark.parametrize(
    ("name", "optuna_class"),
    [("tpe", "TPESampler"), ("gp", "GPSampler"), ("nsga2", "NSGAIISampler")],
)
def test_a_model_is_optunas_sampler_of_that_name(name, optuna_class):
    objectives = ["map", "bits"] if name == "nsga2" else ["map"]
    model = Model(SQUARE, Tuning(sampler=name, objectives=objectives))
    assert type(model._sampler(history())).__name__ == optuna_class
    kept = model._sampler(history(kept={"x": 0.5}))
    assert type(kept).__name__ == "PartialFixedSampler"


def test_the_startup_is_a_scrambled_sobol_sequence():
    options = Tuning(sampler="tpe", startup=8, seed=5)
    sampler = sampler_of(SQUARE, options, NOTHING)
    engine = qmc.Sobol(2, scramble=True, rng=derive(5, "search/sobol") % 2**32)
    expected = engine.random(8)
    trials = []
    for row in expected:
        point = sampler.propose(history(trials)).point
        assert (point["x"], point["y"]) == tuple(row)
        trials.append(complete(len(trials), point["x"], point["y"], 0.5))
    # each half of each axis has four of the eight, each quarter two
    quarters = np.floor(expected * 4)
    assert all((np.bincount(axis.astype(int)) == 2).all() for axis in quarters.T)


def test_galleries_follow_the_sequence_by_themselves():
    sampler = sampler_of(SQUARE, Tuning(startup=9, seed=5, per_gallery=2), frozenset({"y"}))
    rows = qmc.Sobol(2, scramble=True, rng=derive(5, "search/sobol") % 2**32).random(4)
    asked = history([complete(n, 0.1 * n, 0.1, 0.5) for n in range(2)], group=1)
    point = sampler.propose(asked).point
    assert (point["x"], point["y"]) == (rows[2][0], rows[1][1])
    follower = sampler.propose(
        history([complete(n, 0.1 * n, 0.1, 0.5) for n in range(3)], group=1, kept={"y": 0.25})
    )
    assert follower.point == {"x": rows[3][0], "y": 0.25}


def test_uniform_points_are_uniform_and_of_their_number():
    sampler = Uniform(SQUARE, 3)
    trials = []
    for number in range(400):
        point = sampler.propose(history(trials)).point
        trials.append(complete(number, point["x"], point["y"], 0.0))
    xs = np.array([[t.point["x"], t.point["y"]] for t in trials])
    # 400 draws: a mean of 1/2 with a deviation of 0.29 / 20, none the same
    assert np.abs(xs.mean(axis=0) - 0.5).max() < 4 * 0.29 / 20
    assert len({tuple(row) for row in xs}) == 400
    assert sampler.propose(history(trials[:7])).point == trials[7].point


def test_cmaes_has_the_state_that_telling_it_everything_in_order_leads_to():
    options = Tuning(sampler="cmaes", seed=1)
    model = Cma(SQUARE, options)
    by_hand = CMA(mean=np.array([0.25, 0.75]), sigma=0.25, bounds=np.array([[0.0, 1.0]] * 2))
    size = by_hand.population_size
    rng = np.random.default_rng(0)
    told = [complete(0, 0.9, 0.9, 0.1), complete(1, 0.25, 0.75, 0.6)]  # the second is the better
    drawn = rng.random((2 * size + 1, 2))
    values = rng.random(2 * size + 1)
    for number, (row, value) in enumerate(zip(drawn, values, strict=True), start=2):
        told.append(complete(number, *row.tolist(), float(value), {samplers.EVOLVED: True}))
    for start in (0, size):
        by_hand.tell(
            [(x, -v) for x, v in zip(drawn[start:][:size], values[start:][:size], strict=True)]
        )
    optimizer = model._optimizer(history(told))
    assert optimizer.generation == 2
    np.testing.assert_allclose(optimizer.mean, by_hand.mean, rtol=0, atol=1e-15)
    np.testing.assert_allclose(optimizer._C, by_hand._C, rtol=0, atol=1e-15)
    assert optimizer._sigma == pytest.approx(by_hand._sigma, abs=1e-15)


def test_cmaes_ranks_a_stopped_point_behind_all_complete_ones():
    model = Cma(SQUARE, Tuning(sampler="cmaes"))
    stopped = Tried(0, {"x": 0.1, "y": 0.1}, "pruned", None, {1: 0.2, 3: 0.9})
    earlier = Tried(1, {"x": 0.1, "y": 0.1}, "pruned", None, {1: 0.3})
    poor, good = complete(2, 0.5, 0.5, 0.1), complete(3, 0.5, 0.5, 0.8)
    ranked = sorted([earlier, stopped, poor, good], key=model._loss)
    assert [t.number for t in ranked] == [3, 2, 0, 1]


@pytest.mark.parametrize(
    ("space", "key"),
    [
        ({"kind": ["a", "b"]}, "search.kind"),
        (
            {
                "n": {"type": "int", "low": 0, "high": 3},
                "x": {"type": "float", "low": 0, "high": 1, "when": {"n": [1]}},
            },
            "search.x.when",
        ),
    ],
)
def test_cmaes_refuses_what_is_no_number_or_may_be_left_out(space, key):
    with pytest.raises(InputError, match="cmaes") as error:
        sampler_of(Space.parse(space), Tuning(sampler="cmaes"), NOTHING)
    assert error.value.key == key


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes"])
def test_a_space_of_fixed_values_has_one_point(name):
    sampler = sampler_of(Space.parse({"tau": 0.5}), Tuning(sampler=name, startup=1), NOTHING)
    trials = []
    for number in range(4):
        assert sampler.propose(history(trials)).point == {"tau": 0.5}
        trials.append(Tried(number, {"tau": 0.5}, "complete", (0.5,), {}))


def test_a_grid_without_an_end_is_refused():
    with pytest.raises(InputError) as error:
        sampler_of(SQUARE, Tuning(sampler="grid"), NOTHING)
    assert error.value.key == "search.x"


def test_a_gaussian_process_is_told_a_stopped_point_as_it_would_have_ended():
    whole = [
        Tried(0, {}, "complete", (0.9,), {1: 0.5, 3: 0.8}),
        Tried(1, {}, "complete", (0.7,), {1: 0.5, 3: 0.6}),
        Tried(2, {}, "complete", (0.8,), {1: 0.2, 3: 0.5}),
        Tried(3, {}, "complete", (0.6,), {2: 0.2}),  # has nothing at epoch 1
    ]
    stopped = Tried(4, {}, "pruned", None, {1: 0.1})
    # gains from epoch 1: 0.4, 0.2, 0.6; their median is 0.4
    found = samplers._extrapolated(stopped, whole)
    assert (found.state, found.values) == ("complete", (pytest.approx(0.5),))
    assert samplers._extrapolated(stopped, whole[3:]) == stopped


def test_what_was_told_is_what_optuna_sees_and_running_points_are_running():
    trials = [
        complete(0, 0.1, 0.2, 0.3),
        Tried(1, {"x": 0.4, "y": 0.5}, "pruned", None, {1: 0.2}),
        Tried(2, {"x": 0.6, "y": 0.7}, "failed", None, {}, reason="broken"),
        Tried(3, {"x": 0.8, "y": 0.9}, "running", None, {}),
    ]
    with samplers.quiet():
        study = Model(SQUARE, Tuning(sampler="tpe"))._replica(trials)
    seen = [(t.state.name, t.params, t.values, t.intermediate_values) for t in study.trials]
    assert seen == [
        ("COMPLETE", {"x": 0.1, "y": 0.2}, [0.3], {}),
        ("PRUNED", {"x": 0.4, "y": 0.5}, None, {1: 0.2}),
        ("FAIL", {"x": 0.6, "y": 0.7}, None, {}),
        ("RUNNING", {"x": 0.8, "y": 0.9}, None, {}),
    ]
    assert [d.name for d in study.directions] == ["MAXIMIZE"]


def test_map_is_maximised_and_everything_else_minimised():
    options = Tuning(
        sampler="nsga2",
        objectives=["gallery_bytes", "map", "bits", "query_flops", "query_parameters"],
    )
    assert samplers.directions(options) == [
        "minimize",
        "maximize",
        "minimize",
        "minimize",
        "minimize",
    ]
