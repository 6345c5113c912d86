"""Statements against values worked out by hand, enumerations, and scipy's and Optuna's own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import qmc

from orchestrator import variance
from orchestrator.findings import (
    Curve,
    Difference,
    Direction,
    Estimate,
    PointSummary,
    best_probabilities,
    contour,
    curves,
    difference,
    distance,
    estimate,
    find,
    held_out,
    history,
    importances,
    parallel,
    pareto,
    points,
    recommend,
)
from orchestrator.observations import Observation
from orchestrator.plan import SearchCell
from orchestrator.variance import (
    GROUPS,
    complete_table,
    encoded,
    place_of,
    sampled_shares,
    seed_noise,
    table_shares,
)
from search_spaces.designs import identity
from search_spaces.designs import points as design_points
from search_spaces.options import Sensitivity
from search_spaces.space import Point, Space


def cell(space: Mapping[str, Any], number: int = 0) -> SearchCell:
    return SearchCell(
        number=number,
        dataset="digits",
        pair="small-large",
        method="csch",
        bits=16,
        base={},
        space=Space.parse(space),
        key="methods.csch",
        places=(0, 0, 0),
    )


def seen(
    at: SearchCell,
    number: int | None,
    values: Point,
    seed: int,
    validation: float | None,
    **more: Any,
) -> Observation:
    given_state = "missing" if validation is None else "done"
    fields: dict[str, Any] = {
        "state": given_state,
        "by_epoch": {},
        "test": None,
        "seconds": None,
        "reason": "",
        **more,
    }
    trial = f"{at.number}/{number}/{values}/{seed}"
    return Observation(at, number, values, seed, validation=validation, trial=trial, **fields)


def measured(at: SearchCell, table: Sequence[tuple[Point, Sequence[float]]]) -> list[Observation]:
    """Return observations of points in order, one value a seed."""
    return [
        seen(at, number, values, seed, value)
        for number, (values, by_seed) in enumerate(table)
        for seed, value in enumerate(by_seed)
    ]


# ---- estimates and differences -------------------------------------------------------------


def test_an_estimate_has_the_t_interval_that_scipy_gives() -> None:
    found = estimate([0.7, 0.72, 0.77], 0.9)
    assert found is not None
    low, high = stats.t.interval(0.9, 2, loc=0.73, scale=stats.sem([0.7, 0.72, 0.77]))
    assert found.mean == pytest.approx(0.73)
    assert found.sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.standard_error == pytest.approx(stats.sem([0.7, 0.72, 0.77]))


def test_an_interval_of_two_seeds_by_hand() -> None:
    found = estimate([0.4, 0.6])  # half-width 12.7062 * 0.1414214 / sqrt(2) = 1.27062
    assert found is not None and found.low is not None
    assert found.low == pytest.approx(0.5 - 1.27062, abs=1e-5)


def test_one_seed_has_no_spread_and_no_interval() -> None:
    assert estimate([0.7]) == Estimate(1, 0.7, None, None, None)
    assert estimate([]) is None
    assert difference({0: 0.7}, {0: 0.5, 1: 0.6}) == Difference(1, pytest.approx(0.2))


def test_a_difference_is_paired_by_seed() -> None:
    one, other = {0: 0.7, 1: 0.8, 2: 0.9}, {2: 0.86, 1: 0.77, 0: 0.68, 5: 0.0}
    found = difference(one, other)
    test = stats.ttest_rel([0.7, 0.8, 0.9], [0.68, 0.77, 0.86])
    low, high = test.confidence_interval(0.95)
    assert found is not None
    assert (found.n, found.mean) == (3, pytest.approx(0.03))
    assert (found.low, found.high, found.p) == pytest.approx((low, high, test.pvalue))


def test_points_without_a_common_seed_have_no_difference() -> None:
    assert difference({0: 0.7}, {1: 0.7}) is None


def test_differences_that_all_seeds_agree_on_are_certain() -> None:
    same = difference({0: 0.5, 1: 0.25}, {0: 0.5, 1: 0.25})
    more = difference({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})
    assert same is not None and same.p == 1.0 and same.mean == same.low == same.high == 0.0
    assert more is not None and more.p == 0.0 and more.low == more.high == 0.25


# ---- points --------------------------------------------------------------------------------

ONE = cell({"a": [1, 2, 3]})


def test_a_point_is_summed_up_over_its_seeds() -> None:
    made = [
        seen(ONE, 4, {"a": 1}, 1, 0.6, seconds=2.0, by_epoch={1: 0.5, 2: 0.6}),
        seen(ONE, 4, {"a": 1}, 0, 0.8, seconds=3.0),
        seen(ONE, 4, {"a": 1}, 2, None, state="failed", reason="memory: no room"),
    ]
    (found,) = points(made)
    assert (found.number, found.done, found.seeds) == (4, 2, (0, 1, 2))
    assert found.states == {0: "done", 1: "done", 2: "failed"} and found.state == "failed"
    assert found.by_seed == {0: 0.8, 1: 0.6} and found.seconds == 5.0
    assert found.validation is not None and found.validation.mean == pytest.approx(0.7)
    assert found.last == {1: (2, 0.6)} and found.reasons == ("memory: no room",)
    assert found.test is None


def test_what_was_chosen_adds_its_test_map_to_its_point() -> None:
    made = [
        *measured(ONE, [({"a": 1}, [0.5, 0.6]), ({"a": 2}, [0.7, 0.8])]),
        seen(ONE, None, {"a": 2.0}, 0, 0.7, test=0.66),
        seen(ONE, None, {"a": 2.0}, 1, 0.8, test=0.70),
        seen(ONE, None, {"a": 2.0}, 2, 0.1, test=0.71),  # the search did not ask for this seed
    ]
    found = points(made)
    assert [p.number for p in found] == [0, 1]
    assert found[0].test is None
    assert found[1].by_seed == {0: 0.7, 1: 0.8} and found[1].seeds == (0, 1)
    assert found[1].test_by_seed == {0: 0.66, 1: 0.70, 2: 0.71}
    assert found[1].test is not None and found[1].test.mean == pytest.approx(0.69)


def test_a_setting_that_was_only_scored_comes_last_and_has_no_number() -> None:
    made = [seen(ONE, None, {"a": 3}, 0, 0.9, test=0.5), *measured(ONE, [({"a": 1}, [0.5])])]
    found = points(made)
    assert [p.number for p in found] == [0, None]
    assert found[1].by_seed == {0: 0.9} and found[1].state == "done"


def test_cells_are_kept_apart_and_a_point_proposed_twice_is_one() -> None:
    other = cell({"a": [1, 2, 3]}, number=1)
    made = [
        seen(other, 0, {"a": 1}, 0, 0.2),
        seen(ONE, 7, {"a": 1}, 0, 0.3),
        seen(ONE, 3, {"a": 1}, 0, 0.3),
    ]
    assert [(p.cell, p.number) for p in points(made)] == [(0, 3), (1, 0)]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("done", "done"), "done"),
        (("done", "missing"), "missing"),
        (("missing", "failed"), "failed"),
        (("pruned", "failed"), "pruned"),
    ],
)
def test_a_point_is_in_the_state_of_its_worst_trial(
    states: tuple[str, str], expected: str
) -> None:
    made = [
        seen(ONE, 0, {"a": 1}, seed, 0.5 if state == "done" else None, state=state)
        for seed, state in enumerate(states)
    ]
    assert points(made)[0].state == expected


def test_the_order_of_observations_does_not_matter() -> None:
    made = measured(ONE, [({"a": v}, [0.1 * v, 0.2 * v, 0.15 * v]) for v in (1, 2, 3)])
    assert points(made) == points(made[::-1])


# ---- curves --------------------------------------------------------------------------------

AROUND = {"gamma": [0, 1, 10, 100], "mode": ["x", "y"]}
CENTER: Point = {"gamma": 10, "mode": "x"}


def _around() -> list[Curve]:
    at = cell(AROUND)
    made = measured(
        at,
        [
            ({"gamma": 10, "mode": "x"}, [0.80, 0.82, 0.84]),
            ({"gamma": 100, "mode": "x"}, [0.805, 0.815, 0.85]),
            ({"gamma": 0, "mode": "x"}, [0.30, 0.3201, 0.3399]),
            ({"gamma": 1, "mode": "x"}, [0.80, 0.81, 0.84]),
            ({"gamma": 10, "mode": "y"}, [0.70, 0.7201, 0.7399]),
        ],
    )
    return curves(points(made), at.space, CENTER)


def test_a_curve_has_its_values_in_order_with_the_means_of_their_points() -> None:
    gamma, mode = _around()
    assert [p.value for p in gamma.points] == [0, 1, 10, 100]
    assert [p.number for p in gamma.points] == [2, 3, 0, 1]
    assert [p.validation.mean for p in gamma.points if p.validation] == pytest.approx(
        [0.32, 0.81666667, 0.82, 0.82333333]
    )
    assert [p.value for p in mode.points] == ["x", "y"]
    assert (gamma.center, gamma.best, mode.center, mode.best) == (10, 100, "x", "x")


def test_a_curve_says_what_each_value_does_to_the_center_seed_by_seed() -> None:
    gamma, _ = _around()
    at_zero = gamma.points[0].to_center
    test = stats.ttest_rel([0.30, 0.3201, 0.3399], [0.80, 0.82, 0.84])
    assert at_zero is not None and at_zero.mean == pytest.approx(-0.5)
    assert at_zero.p == pytest.approx(test.pvalue)
    assert [p.to_center is None for p in gamma.points] == [False, False, True, False]
    assert [p.to_best is None for p in gamma.points] == [False, False, False, True]


def test_the_flat_range_is_what_cannot_be_told_from_the_best_with_all_pairs_counted() -> None:
    gamma, mode = _around()
    best = [0.805, 0.815, 0.85]
    p_values = {
        value: stats.ttest_rel(other, best).pvalue
        for value, other in (
            (0, [0.30, 0.3201, 0.3399]), (1, [0.80, 0.81, 0.84]), (10, [0.80, 0.82, 0.84])
        )
    }  # fmt: skip
    # Four values make six pairs; Holm multiplies the smallest by 6, the next by 5, then by 4.
    adjusted = [(6 - i) * p for i, p in enumerate(sorted(p_values.values()))]
    assert adjusted[0] < 0.05 < adjusted[1]
    assert gamma.flat == (1, 10, 100) and gamma.matters is True
    assert [p.told for p in gamma.points] == [True, False, False, None]
    assert mode.flat == ("x",) and mode.matters is True


def test_a_difference_that_only_one_comparison_would_find_is_not_called_one() -> None:
    at = cell({"a": [1, 2, 3]})
    made = measured(
        at,
        [
            ({"a": 2}, [0.60, 0.61, 0.62]),
            ({"a": 1}, [0.50, 0.55, 0.48]),
            ({"a": 3}, [0.6, 0.5, 0.6]),
        ],
    )
    found = curves(points(made), at.space, {"a": 2})[0]
    p = stats.ttest_rel([0.50, 0.55, 0.48], [0.60, 0.61, 0.62]).pvalue
    assert p < 0.05 < 3 * p  # three values make three pairs
    assert found.points[0].to_best is not None
    assert found.points[0].to_best.p == pytest.approx(p)
    assert found.points[0].told is False and found.flat == (1, 2, 3) and found.matters is False


@pytest.mark.parametrize(
    ("means", "expected"),
    [([0.1, 0.3, 0.2], True), ([0.3, 0.1, 0.2], False), ([0.1, 0.2, 0.3], False)],
)
def test_a_peak_is_interior_when_values_on_both_sides_are_lower(
    means: list[float], expected: bool
) -> None:
    at = cell({"a": [1, 2, 3]})
    made = measured(at, [({"a": v + 1}, [mean]) for v, mean in enumerate(means)])
    assert curves(points(made), at.space, {"a": 1})[0].interior is expected


def test_choices_without_an_order_have_no_inside() -> None:
    assert _around()[1].interior is None


def test_one_seed_says_nothing_of_what_can_be_told_apart() -> None:
    at = cell({"a": [1, 2]})
    found = curves(
        points(measured(at, [({"a": 1}, [0.5]), ({"a": 2}, [0.9])])), at.space, {"a": 1}
    )
    assert (found[0].best, found[0].flat, found[0].matters) == (2, None, None)
    assert found[0].points[1].to_center == Difference(1, pytest.approx(0.4))


def test_values_that_are_not_measured_yet_are_empty_places_of_the_curve() -> None:
    at = cell({"a": [1, 2, 3]})
    found = curves(points(measured(at, [({"a": 2}, [0.5, 0.6])])), at.space, {"a": 2})[0]
    assert [p.validation is None for p in found.points] == [True, False, True]
    assert found.best == 2 and found.flat == (2,)
    empty = curves([], at.space, {"a": 2})[0]
    assert (empty.best, empty.flat, empty.interior) == (None, None, None)


def test_a_center_beside_the_values_belongs_to_every_curve() -> None:
    at = cell({"a": [1, 2], "b": [1, 2]})
    center = {"a": 1.5, "b": 3}
    made = measured(at, [(p, [0.5]) for p in design_points(at.space, Sensitivity(), center)])
    found = curves(points(made), at.space, center)
    assert [[p.value for p in one.points] for one in found] == [[1, 1.5, 2], [1, 2, 3]]
    assert [[p.number for p in one.points if p.center] for one in found] == [[0], [0]]


def test_a_curve_under_a_condition_says_what_it_holds() -> None:
    at = cell(
        {
            "mode": ["x", "y"],
            "size": {"type": "int", "low": 1, "high": 3, "when": {"mode": ["y"]}},
        }
    )
    center: Point = {"mode": "x"}
    made = measured(at, [(p, [0.5]) for p in design_points(at.space, Sensitivity(), center)])
    mode, size = curves(points(made), at.space, center)
    assert mode.held == {} and [p.number for p in mode.points] == [0, 1]
    assert size.held == {"mode": "y"} and size.center is None
    assert [p.value for p in size.points] == [1, 2, 3]
    assert all(p.number is not None and p.to_center is None for p in size.points)


# ---- importances ---------------------------------------------------------------------------

ROWS, COLUMNS = (0.0, 1.0, 2.0), (0.0, 1.0, 2.0, 3.0)
TABLE = {"r": list(ROWS), "c": list(COLUMNS)}


def _table(function: Callable[[float, float], float]) -> np.ndarray:
    return np.array([[[function(r, c) for c in COLUMNS] for r in ROWS]])


def test_an_additive_table_has_no_interactions() -> None:
    # Var(0, 1, 2) = 2/3, Var(0, 1, 2, 3) = 5/4; together 23/12.
    found = table_shares(["r", "c"], _table(lambda r, c: 0.1 * (r + c)))
    assert found.variances == pytest.approx({"r": 0.02 / 3, "c": 0.0125})
    assert found.first == pytest.approx({"r": 8 / 23, "c": 15 / 23}, abs=1e-6)
    assert found.total == pytest.approx(found.first)


def test_a_multiplicative_table_has_the_interaction_worked_out_by_hand() -> None:
    # f = r c: V_r = E[c]^2 Var r = 9/4 * 2/3 = 3/2; V_c = E[r]^2 Var c = 5/4;
    # V_rc = Var r Var c = 2/3 * 5/4 = 5/6; V = 43/12.
    found = table_shares(["r", "c"], _table(lambda r, c: r * c))
    assert found.variances == pytest.approx({"r": 1.5, "c": 1.25})
    assert found.first == pytest.approx({"r": 18 / 43, "c": 15 / 43}, abs=1e-6)
    assert found.total == pytest.approx({"r": 28 / 43, "c": 25 / 43}, abs=1e-6)


def test_the_errors_of_a_table_leave_out_each_seed_in_turn() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 3, 4))
    found = table_shares(["r", "c"], table)
    assert found.first_errors is not None and found.freedom == 3
    without = []
    for s in range(4):
        mean = np.mean([table[i] for i in range(4) if i != s], axis=0)
        without.append(np.var([np.mean(row) for row in mean]) / np.var(mean))
    expected = math.sqrt(3 / 4 * sum((v - np.mean(without)) ** 2 for v in without))
    assert found.first_errors["r"] == pytest.approx(expected, abs=1e-5)
    assert table_shares(["r", "c"], table[:1]).first_errors is None


def test_a_complete_factorial_is_decomposed_exactly() -> None:
    at = cell(TABLE)
    made = measured(at, [({"r": r, "c": c}, [r * c, r * c + 0.1]) for c in COLUMNS for r in ROWS])
    found = importances(points(made), at.space, design="factorial", center={})
    assert found is not None and found.method == "anova"
    assert [effect.name for effect in found.effects] == ["r", "c"]
    assert found.effects[0].total is not None
    assert found.effects[0].total.value == pytest.approx(28 / 43, abs=1e-6)
    assert (found.points, found.left_out, found.explained) == (12, 0, None)
    # What the second seed adds to all points alike makes no difference between them.
    assert found.noise == pytest.approx(0, abs=1e-12)


def test_a_dimension_that_seldom_counts_has_a_small_part_of_a_factorial() -> None:
    # f = 1 + 3 s under y, 0 under x; s in {0, 1} counts under y only. Over the whole table
    # [[0, 0], [1, 4]]: means by mode 0 and 2.5, by s 0.5 and 2; V = 2.6875.
    at = cell(
        {"mode": ["x", "y"], "s": {"type": "int", "low": 0, "high": 1, "when": {"mode": ["y"]}}}
    )
    made = measured(
        at,
        [({"mode": "x"}, [0.0]), ({"mode": "y", "s": 0}, [1.0]), ({"mode": "y", "s": 1}, [4.0])],
    )
    found = importances(points(made), at.space, design="factorial", center={})
    assert found is not None and found.method == "anova"
    mode, s = found.effects
    assert mode.first is not None and s.first is not None and s.total is not None
    assert mode.variance == pytest.approx(1.5625) and s.variance == pytest.approx(0.5625)
    assert mode.first.value == pytest.approx(1.5625 / 2.6875, abs=1e-6)
    assert s.total.value == pytest.approx(1.125 / 2.6875, abs=1e-6)
    assert s.first.low is None  # one seed


def test_a_factorial_with_a_hole_is_modelled_and_says_so() -> None:
    at = cell(
        {"a": {"type": "int", "low": 0, "high": 4}, "b": {"type": "int", "low": 0, "high": 4}}
    )
    made = measured(
        at, [({"a": a, "b": b}, [0.1 * a, 0.1 * a]) for a in range(5) for b in range(5)]
    )[:-2]
    found = importances(points(made), at.space, design="factorial", center={})
    assert found is not None and found.method in ("gp", "forest")
    assert found.points == 24 and found.explained is not None and found.explained > 0.9
    assert found.effects[0].name == "a" and found.effects[0].first is not None
    assert found.effects[0].first.value > 0.95


def test_one_at_a_time_gives_the_variance_of_each_curve_and_no_parts() -> None:
    at = cell({"a": [1, 2, 3], "b": [1, 2]})
    made = measured(
        at,
        [
            ({"a": 1, "b": 1}, [0.4]),
            ({"a": 2, "b": 1}, [0.7]),
            ({"a": 3, "b": 1}, [0.4]),
            ({"a": 1, "b": 2}, [0.6]),
        ],
    )
    found = importances(points(made), at.space, design="one_at_a_time", center={"a": 1, "b": 1})
    assert found is not None and found.method == "curve"
    # Var(.4, .7, .4) = .02, Var(.4, .6) = .01
    assert [(e.name, pytest.approx(e.variance)) for e in found.effects] == [
        ("a", 0.02),
        ("b", 0.01),
    ]
    assert all(effect.first is None and effect.total is None for effect in found.effects)


def test_noise_is_the_part_of_the_variance_that_seeds_make_up() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(5, 8))
    # The residual mean square of a two-way analysis of variance, by its definition.
    grand = table.mean()
    residual = sum(
        (table[i, j] - table[i].mean() - table[:, j].mean() + grand) ** 2
        for i, j in itertools.product(range(5), range(8))
    ) / (4 * 7)
    expected = residual / 5 / np.var(table.mean(axis=0), ddof=1)
    assert seed_noise(table) == pytest.approx(min(1.0, expected))
    assert seed_noise(table + np.arange(5)[:, None]) == pytest.approx(seed_noise(table))


def _unit(names: str) -> Space:
    return Space.parse({name: {"type": "float", "low": 0, "high": 1} for name in names})


def _ishigami(u: np.ndarray) -> np.ndarray:
    x = -np.pi + 2 * np.pi * u
    value: np.ndarray = (
        np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])
    )
    return value


def test_ishigamis_indices_are_found_from_128_points() -> None:
    # Closed form with a = 7, b = 0.1: S = (.3139, .4424, 0), T = (.5576, .4424, .2437).
    units = qmc.Sobol(3, rng=1).random(128)
    found = sampled_shares(
        _unit("abc"),
        [dict(zip("abc", row, strict=True)) for row in units.tolist()],
        _ishigami(units),
    )
    assert found.method == "gp" and found.explained is not None and found.explained > 0.7
    assert found.first == pytest.approx({"a": 0.3139, "b": 0.4424, "c": 0.0}, abs=0.06)
    assert found.total == pytest.approx({"a": 0.5576, "b": 0.4424, "c": 0.2437}, abs=0.1)
    errors = found.total_errors
    assert errors is not None and found.freedom == GROUPS - 1
    for name, true in {"a": 0.5576, "b": 0.4424, "c": 0.2437}.items():
        assert abs(found.total[name] - true) < stats.t.ppf(0.975, 9) * errors[name]


def test_a_forest_agrees_with_optunas_fanova(monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    monkeypatch.setattr(variance, "SMOOTH_POINTS", 0)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    units = qmc.Sobol(2, rng=1).random(128)
    values = np.where(units[:, 0] < 0.3, 0.1, 0.8) + 0.02 * units[:, 1]
    # V_a = .7^2 * .3 * .7 = .1029; V_b = .02^2 / 12: a explains all but 0.03 %.
    space = _unit("ab")
    rows = [dict(zip("ab", row, strict=True)) for row in units.tolist()]
    found = sampled_shares(space, rows, values)
    study = optuna.create_study(direction="maximize")
    for row, value in zip(rows, values.tolist(), strict=True):
        ranges = {name: space.dimensions[name].distribution() for name in "ab"}
        study.add_trial(
            optuna.trial.create_trial(params=dict(row), distributions=ranges, value=value)
        )
    theirs = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    assert found.method == "forest"
    assert found.first == pytest.approx({"a": 0.9997, "b": 0.0003}, abs=0.01)
    assert found.first == pytest.approx(theirs, abs=0.02)


def test_a_function_with_steps_is_left_to_a_forest() -> None:
    # 0 for a < .3; else .6 for b < .5; else .7 for a < .6, and 1. E = .515, V = .3995 - .515^2;
    # V_a = .3 * .65^2 + .4 * .8^2 - .515^2 = .117525; V_b = ((.61 - .42) / 2)^2 = .009025.
    units = qmc.Sobol(2, rng=1).random(64)
    a, b = units.T
    values = np.where(a < 0.3, 0.0, np.where(b < 0.5, 0.6, np.where(a < 0.6, 0.7, 1.0)))
    rows = [dict(zip("ab", row, strict=True)) for row in units.tolist()]
    found = sampled_shares(_unit("ab"), rows, values)
    assert found.method == "forest" and found.explained is not None and found.explained > 0.9
    assert found.first == pytest.approx({"a": 0.8753, "b": 0.0672}, abs=0.03)
    assert found.total == pytest.approx({"a": 0.9328, "b": 0.1247}, abs=0.03)


def test_a_logarithmic_dimension_counts_in_its_logarithm() -> None:
    # Over log gamma uniform in [-1, 3] and m uniform in [0, 1], V of .1 log gamma is .16 / 12 and
    # that of .4 m the same: half each. On a linear axis gamma would have next to nothing.
    space = Space.parse(
        {
            "gamma": {"type": "log_float", "low": 0.1, "high": 1000.0},
            "m": {"type": "float", "low": 0, "high": 1},
        }
    )
    rows = design_points(space, Sensitivity(design="sobol", samples=64), {})
    values = np.array([0.1 * math.log10(row["gamma"]) + 0.4 * row["m"] for row in rows])
    found = sampled_shares(space, rows, values)
    assert found.first == pytest.approx({"gamma": 0.5, "m": 0.5}, abs=0.03)


def test_choices_and_conditions_are_modelled_as_they_count() -> None:
    # f = 0.4 under y, 0 else, + s under y, s uniform in [0, 1]. Over the cube with P(y) = 1/2:
    # V = E[f^2] - E[f]^2 = (.4^2 + .4 + 1/3) / 2 - .45^2 = .4466667 - .2025 = .2441667;
    # V_mode = (.9 / 2)^2 = .2025; V_s = Var(s / 2) = 1/48; T_s = E[Var(f | mode)] = 1/24.
    space = Space.parse(
        {
            "mode": ["x", "y"],
            "s": {"type": "float", "low": 0, "high": 1, "when": {"mode": ["y"]}},
        }
    )
    rows = design_points(space, Sensitivity(design="sobol", samples=128), {})
    values = np.array([0.4 + row["s"] if row["mode"] == "y" else 0.0 for row in rows])
    found = sampled_shares(space, rows, values)
    assert found.first == pytest.approx({"mode": 0.8294, "s": 0.0853}, abs=0.05)
    assert found.total == pytest.approx({"mode": 0.9147, "s": 0.1706}, abs=0.05)


def test_importances_of_a_search_leave_out_what_was_stopped() -> None:
    at = cell(
        {"a": {"type": "float", "low": 0, "high": 1}, "b": {"type": "float", "low": 0, "high": 1}}
    )
    rows = design_points(at.space, Sensitivity(design="latin_hypercube", samples=24), {})
    made = measured(at, [(row, [row["a"] ** 2 + 0.1 * row["b"]]) for row in rows])
    made += [seen(at, 24, {"a": 0.5, "b": 0.5}, 0, None, state="pruned", by_epoch={1: 0.0})]
    found = importances(points(made), at.space, design=None, center={})
    # Var(a^2) = 4/45, Var(.1 b) = 1/1200: a has .9907 of it.
    assert found is not None and (found.points, found.left_out) == (24, 1)
    assert found.effects[0].name == "a" and found.effects[0].first is not None
    assert found.effects[0].first.value == pytest.approx(0.9907, abs=0.02)
    low, high = found.effects[0].first.low, found.effects[0].first.high
    assert low is not None and high is not None and 0 <= low <= 0.9907 <= high <= 1


def test_importances_want_enough_points_that_differ() -> None:
    at = cell({"a": {"type": "float", "low": 0, "high": 1}})
    nine = measured(at, [({"a": i / 9}, [i / 9]) for i in range(9)])
    assert importances(points(nine), at.space, design="sobol", center={}) is None
    equal = measured(at, [({"a": i / 20}, [0.5]) for i in range(20)])
    assert importances(points(equal), at.space, design="sobol", center={}) is None
    assert importances([], at.space, design="sobol", center={}) is None


def test_a_table_with_a_hole_is_no_table() -> None:
    space = Space.parse({"a": [1, 2], "b": [1, 2], "kept": 5})
    full = {
        identity({"a": a, "b": b, "kept": 5}): np.array([a * 10.0 + b])
        for a in (1, 2)
        for b in (1, 2)
    }
    table = complete_table(space, full)
    assert table is not None and table.tolist() == [[[11.0, 12.0], [21.0, 22.0]]]
    full.popitem()
    assert complete_table(space, full) is None


def test_places_are_those_of_the_space_and_number_choices_have_an_order() -> None:
    space = Space.parse(
        {
            "g": {"type": "log_float", "low": 1.0, "high": 100.0},
            "t": [8, 2, 4],
            "mode": ["x", None],
            "s": {"type": "float", "low": 0, "high": 1, "when": {"mode": ["x"]}},
        }
    )
    rows: list[Point] = [
        {"g": 10.0, "t": 2, "mode": "x", "s": 0.25},
        {"g": 100.0, "t": 8, "mode": None},
    ]
    assert encoded(space, rows).tolist() == [[0.5, 0.0, 1.0, 0.0, 0.25], [1.0, 1.0, 0.0, 1.0, 0.5]]
    assert place_of(space.dimensions["t"], 3) == pytest.approx(0.25)
    assert (
        place_of(space.dimensions["g"], 0) == 0.0 and place_of(space.dimensions["g"], 1e6) == 1.0
    )
    with pytest.raises(ValueError, match="none of"):
        place_of(space.dimensions["mode"], "z")


# ---- what to use ---------------------------------------------------------------------------

LINE = cell({"a": {"type": "int", "low": 0, "high": 4}})


def _line(
    *rows: Sequence[float], chosen: int | None = None, default: int = 0
) -> list[PointSummary]:
    made = measured(LINE, [({"a": a}, row) for a, row in enumerate(rows)])
    for place in {chosen, default} - {None} if chosen is not None else ():
        for seed, value in enumerate(rows[place]):
            made.append(
                seen(LINE, None, {"a": place}, seed, value, test=value - 0.1 * (place + 1))
            )
    return points(made)


def test_the_highest_mean_is_recommended_with_its_test_map_beside_it() -> None:
    found = recommend(
        _line([0.5, 0.6], [0.7, 0.9], [0.75, 0.7], chosen=1), LINE.space, default={"a": 0}
    )
    assert found is not None
    assert (found.number, found.values, found.seeds) == (1, {"a": 1}, (0, 1))
    assert found.validation.mean == pytest.approx(0.8) and found.candidates == 3
    assert found.test is not None and found.test.mean == pytest.approx(0.6)
    own = found.default
    assert own is not None and own.gain is not None and own.test_gain is not None
    assert own.number == 0
    assert own.gain.mean == pytest.approx(0.25)
    assert own.test_gain.mean == pytest.approx(0.15)  # (0.5, 0.7) - (0.4, 0.5)


def test_equal_means_go_to_the_first() -> None:
    found = recommend(_line([0.25, 0.5], [0.5, 0.25], [0.1, 0.1]), LINE.space, default={"a": 4})
    assert found is not None and found.number == 0 and found.default is None


def test_a_default_is_found_by_what_counts_at_it() -> None:
    child = {"type": "float", "low": 0, "high": 1, "when": {"mode": ["y"]}}
    at = cell({"mode": ["x", "y"], "s": child})
    made = measured(at, [({"mode": "x"}, [0.5]), ({"mode": "y", "s": 0.5}, [0.6])])
    found = recommend(points(made), at.space, default={"mode": "x", "s": 0.3})
    assert found is not None and found.default is not None and found.default.number == 0


def test_a_default_that_is_the_best_gains_nothing() -> None:
    found = recommend(_line([0.9, 0.8], [0.5, 0.6]), LINE.space, default={"a": 0})
    assert found is not None and found.default is not None
    assert found.default.gain is None and found.default.number == found.number


def test_what_cannot_be_told_from_the_best_is_listed() -> None:
    found = recommend(
        _line([0.80, 0.82, 0.84], [0.805, 0.815, 0.85], [0.30, 0.3201, 0.3399]),
        LINE.space,
        default={"a": 0},
    )
    assert found is not None and found.equals is not None
    assert found.number == 1 and [one.number for one in found.equals] == [0]
    assert found.equals[0].to_best is not None
    assert found.equals[0].to_best.p == pytest.approx(
        stats.ttest_rel([0.80, 0.82, 0.84], [0.805, 0.815, 0.85]).pvalue
    )


def test_within_one_standard_error_the_nearest_to_the_default_comes_first() -> None:
    # The best, a = 0, has mean 0.8 and standard error sd / sqrt(2) = 0.05: down to 0.75 counts.
    rows = ([0.75, 0.85], [0.76, 0.74], [0.76, 0.76], [0.9, 0.5], [0.7, 0.7])
    found = recommend(_line(*rows), LINE.space, default={"a": 3})
    assert found is not None and found.number == 0
    assert [one.number for one in found.within_error] == [2, 1, 0]
    assert found.conservative.number == 2
    assert found.conservative.distance == pytest.approx(0.25)


def test_of_equally_near_candidates_the_cheapest_comes_first() -> None:
    made = [
        seen(LINE, number, {"a": a}, seed, value, seconds=cost)
        for number, (a, by_seed, cost) in enumerate(
            [(0, (0.7, 0.9), 1.0), (1, (0.79, 0.79), 5.0), (3, (0.79, 0.79), 2.0)]
        )
        for seed, value in enumerate(by_seed)
    ]
    found = recommend(points(made), LINE.space, default={"a": 2})
    assert found is not None and [one.number for one in found.within_error] == [2, 1, 0]


def test_one_seed_recommends_and_says_that_it_does_not_know_how_sure() -> None:
    found = recommend(_line([0.5], [0.7]), LINE.space, default={"a": 0})
    assert found is not None and found.number == 1
    assert found.equals is None and found.probability is None and found.held_out is None
    assert [one.number for one in found.within_error] == [1]
    assert found.validation == Estimate(1, 0.7)


def test_incomplete_and_stopped_points_are_no_candidates() -> None:
    made = measured(LINE, [({"a": 0}, [0.5, 0.5]), ({"a": 1}, [0.6, 0.6])])
    made += [seen(LINE, 2, {"a": 2}, 0, 0.99), seen(LINE, 2, {"a": 2}, 1, None, state="failed")]
    made += [seen(LINE, 3, {"a": 3}, 0, None, state="pruned", by_epoch={1: 0.9})]
    found = recommend(points(made), LINE.space, default={"a": 0})
    assert found is not None
    assert (found.number, found.candidates, found.left_out) == (1, 2, (2, 3))
    assert recommend([], LINE.space, default={"a": 0}) is None


def test_a_setting_that_was_only_scored_is_compared_but_not_recommended() -> None:
    made = measured(LINE, [({"a": 1}, [0.6, 0.7])])
    made += [seen(LINE, None, {"a": 9}, s, v, test=v) for s, v in enumerate((0.8, 0.95))]
    found = recommend(points(made), LINE.space, default={"a": 9})
    assert found is not None and found.number == 0 and found.default is not None
    assert found.default.gain is not None
    assert found.default.gain.mean == pytest.approx(-0.225)


@pytest.mark.parametrize(("best", "expected"), [(0, ("a",)), (2, ()), (4, ("a",))])
def test_a_recommendation_at_the_edge_of_the_space_says_so(
    best: int, expected: tuple[str, ...]
) -> None:
    rows = [[0.9 if a == best else 0.5] for a in range(5)]
    found = recommend(_line(*rows), LINE.space, default={"a": 0})
    assert found is not None and found.at_edge == expected


def test_the_probability_of_being_best_counts_all_resamples_of_the_seeds() -> None:
    table = np.array([[0.5, 0.6, 0.1], [0.7, 0.55, 0.2], [0.6, 0.62, 0.3]])
    wins = [0.0, 0.0, 0.0]
    for drawn in itertools.product(range(3), repeat=3):
        sums = [math.fsum(table[s, j] for s in drawn) for j in range(3)]
        winners = [j for j in range(3) if sums[j] >= max(sums) - 1e-12]
        for j in winners:
            wins[j] += 1 / len(winners) / 27
    assert best_probabilities(table) == pytest.approx(wins)
    assert best_probabilities(table[:1]) is None


def test_equal_points_share_the_probability() -> None:
    table = np.array([[0.5, 0.5, 0.4], [0.3, 0.3, 0.2]])
    assert best_probabilities(table) == pytest.approx([0.5, 0.5, 0.0])


def test_many_seeds_are_resampled_at_random_and_alike_each_time() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(9, 2)) + np.array([0.4, 0.0])
    found = best_probabilities(table)
    assert found is not None and found == best_probabilities(table)
    draws = np.random.default_rng(4).integers(0, 9, size=(40_000, 9))
    sums = table[draws].sum(axis=1)
    assert found[0] == pytest.approx(np.mean(sums[:, 0] > sums[:, 1]), abs=0.02)


def test_held_out_scores_what_the_other_seeds_chose() -> None:
    # Without seed 0 the second is best (1.1 > 1.0), without seed 1 the first, without 2 the first.
    table = np.array([[0.9, 0.2], [0.5, 0.6], [0.5, 0.5]])
    assert held_out(table) == pytest.approx((0.2 + 0.5 + 0.5) / 3)
    assert held_out(table[:1]) is None


def test_held_out_is_free_of_the_optimism_of_choosing_among_equals() -> None:
    """Of many equal points the best is too good by its noise; what is held out is not."""
    rng = np.random.default_rng(5)
    tables = 0.5 + 0.1 * rng.normal(size=(300, 3, 20))
    best = np.mean([table.mean(axis=0).max() for table in tables])
    held = np.mean([held_out(table) for table in tables])
    assert best > 0.59  # 0.1 / sqrt(3) times 1.87, the mean of the highest of 20 normal numbers
    assert held == pytest.approx(0.5, abs=3 * 0.1 / math.sqrt(900))


def test_distances_count_places_choices_and_conditions() -> None:
    space = Space.parse(
        {
            "g": {"type": "log_float", "low": 1.0, "high": 100.0},
            "t": [1, 2, 4],
            "mode": ["x", "y", "z"],
            "s": {"type": "float", "low": 0, "high": 1, "when": {"mode": ["y"]}},
        }
    )
    one: Point = {"g": 10.0, "t": 1, "mode": "x"}
    assert distance(space, one, one) == 0
    assert distance(space, one, {**one, "g": 100.0}) == pytest.approx(0.5)
    assert distance(space, one, {**one, "t": 2}) == pytest.approx(0.5)
    assert distance(space, one, {**one, "mode": "z"}) == 1
    assert distance(space, one, {**one, "mode": "y", "s": 0.0}) == 2


# ---- the search as it went -----------------------------------------------------------------


def test_history_keeps_the_best_of_the_complete_points_so_far() -> None:
    made = [
        seen(LINE, 0, {"a": 0}, 0, None, state="pruned", by_epoch={1: 0.1, 2: 0.9}),
        seen(LINE, 2, {"a": 2}, 0, 0.4),
        seen(LINE, 1, {"a": 1}, 0, 0.5),
        seen(LINE, 3, {"a": 3}, 0, 0.7),
        seen(LINE, 4, {"a": 4}, 0, None, state="failed"),
    ]
    found = history(points(made))
    assert [(h.number, h.best, h.best_number) for h in found] == [
        (0, None, None), (1, 0.5, 1), (2, 0.5, 1), (3, 0.7, 3), (4, 0.7, 3)
    ]  # fmt: skip
    assert [h.stopped for h in found] == [(2, 0.9), None, None, None, None]
    assert [h.validation for h in found] == [None, 0.5, 0.4, 0.7, None]


def test_parallel_rows_have_a_place_for_each_dimension_that_counts() -> None:
    at = cell(
        {
            "g": {"type": "log_float", "low": 1.0, "high": 100.0},
            "mode": ["x", "y"],
            "s": {"type": "float", "low": 0, "high": 2, "when": {"mode": ["y"]}},
        }
    )
    made = measured(
        at, [({"g": 10.0, "mode": "x"}, [0.5]), ({"g": 500.0, "mode": "y", "s": 0.5}, [0.6])]
    )
    found = parallel(points(made), at.space)
    assert [row.places for row in found] == [
        {"g": pytest.approx(0.5), "mode": 0.25, "s": None},
        {"g": 1.0, "mode": 0.75, "s": 0.25},
    ]
    assert [row.validation for row in found] == [0.5, 0.6]


def test_parallel_rows_of_a_center_that_is_no_choice_have_no_place_for_it() -> None:
    at = cell({"mode": ["x", "y"]})
    found = parallel(points(measured(at, [({"mode": "z"}, [0.5])])), at.space)
    assert found[0].places == {"mode": None}


def test_a_contour_of_a_factorial_averages_over_the_same_settings_of_the_others() -> None:
    at = cell({"a": [2, 1], "b": ["y", "x"], "c": [0, 1]})
    made = measured(
        at,
        [
            ({"a": a, "b": b, "c": c}, [0.1 * a + (0.05 if b == "x" else 0) + 0.01 * c])
            for a in (1, 2)
            for b in ("x", "y")
            for c in (0, 1)
        ],
    )
    found = contour(points(made), at.space, "a", "b")
    assert found is not None and found.kind == "grid" and found.others == ("c",)
    assert (found.xs, found.ys) == ((1, 2), ("y", "x"))
    assert found.means == (
        (pytest.approx(0.105), pytest.approx(0.205)),
        (pytest.approx(0.155), pytest.approx(0.255)),
    )
    assert len(found.points) == 8
    incomplete = contour(points(made[:-1]), at.space, "a", "b")
    assert incomplete is not None and incomplete.kind == "scattered" and incomplete.means == ()


def test_a_contour_of_scattered_points_is_linear_between_them_and_ends_with_them() -> None:
    at = cell(
        {
            "g": {"type": "log_float", "low": 1.0, "high": 10_000.0},
            "m": {"type": "float", "low": 0, "high": 1},
        }
    )
    corners = [(10.0, 0.25), (1000.0, 0.25), (10.0, 0.75)]
    made = measured(at, [({"g": g, "m": m}, [0.1 * math.log10(g) + 0.4 * m]) for g, m in corners])
    found = contour(points(made), at.space, "g", "m")
    assert found is not None and found.kind == "scattered"
    inside = 0
    for y, row in zip(found.ys, found.means, strict=True):
        for x, mean in zip(found.xs, row, strict=True):
            across, up = math.log10(x) / 4, y
            within = across >= 0.25 and up >= 0.25 and (across - 0.25) + (up - 0.25) <= 0.5
            edge = min(abs(across - 0.25), abs(up - 0.25), abs(across + up - 1)) < 1e-9
            if not edge:
                assert (mean is not None) == within
            if mean is not None:
                inside += 1
                assert mean == pytest.approx(0.1 * math.log10(x) + 0.4 * y, abs=1e-5)
    assert inside > 100


def test_points_on_one_line_have_no_surface() -> None:
    at = cell({n: {"type": "float", "low": 0, "high": 1} for n in "ab"})
    made = measured(at, [({"a": v, "b": v}, [v]) for v in (0.0, 0.5, 1.0)])
    found = contour(points(made), at.space, "a", "b")
    assert found is not None and found.means == () and len(found.points) == 3
    assert contour([], at.space, "a", "b") is None


# ---- several objectives --------------------------------------------------------------------

OBJECTIVES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12
)
DIRECTIONS = st.lists(st.sampled_from(["maximize", "minimize"]), min_size=3, max_size=3)


@given(values=OBJECTIVES, directions=DIRECTIONS)
def test_the_front_is_what_no_other_point_dominates(
    values: list[tuple[int, int, int]], directions: list[Direction]
) -> None:
    def at_least(one: Sequence[int], other: Sequence[int]) -> list[bool]:
        pairs = zip(one, other, directions, strict=True)
        return [a >= b if way == "maximize" else a <= b for a, b, way in pairs]

    def dominates(one: Sequence[int], other: Sequence[int]) -> bool:
        return all(at_least(one, other)) and tuple(one) != tuple(other)

    found = pareto(dict(enumerate(values)), directions)
    for point in found:
        beaten = any(dominates(other, values[point.number]) for other in values)
        assert point.front is not beaten
    assert [point.number for point in found] == list(range(len(values)))


@pytest.mark.parametrize("wrong", [(0.5,), (0.5, math.nan), (math.inf, 1.0)])
def test_objectives_that_are_not_there_are_an_error(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="point 3 has no 2 finite objectives"):
        pareto({1: (0.5, 1.0), 3: wrong}, ["maximize", "minimize"])


# ---- all of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["one_at_a_time", "factorial", "sobol", None])
def test_all_that_a_cell_says_is_plain_and_the_same_each_time(design: Any) -> None:
    at = cell({"a": {"type": "int", "low": 0, "high": 3}, "b": ["x", "y", None]})
    center: Point = {"a": 1, "b": "x"}
    options = Sensitivity(design=design or "latin_hypercube", samples=16)
    rows = [
        (p, [0.1 * p["a"] + 0.05 * (p["b"] == "y") + 0.001 * s for s in range(2)])
        for p in design_points(at.space, options, center)
    ]
    other = cell({"a": [1]}, number=1)
    made = [*measured(at, rows), *measured(other, [({"a": 1}, [0.99])])]
    found = find(made, at, design=design, center=center)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert text == json.dumps(
        find(made[::-1], at, design=design, center=center).to_json(), allow_nan=False
    )
    assert len(found.points) == len(found.history) == len(found.parallel) == len(rows)
    assert bool(found.curves) is (design == "one_at_a_time")
    assert (found.contour is None) is (design == "one_at_a_time")
    assert found.recommendation is not None and found.recommendation.values["a"] == 3


def test_a_cell_of_which_nothing_is_measured_says_nothing() -> None:
    made = [seen(ONE, n, {"a": n + 1}, 0, None) for n in range(3)]
    for design in ("one_at_a_time", "factorial", None):
        found = find(made, ONE, design=design, center={"a": 1})  # type: ignore[arg-type]
        assert found.importances is None and found.recommendation is None
        assert [p.state for p in found.points] == ["missing"] * 3
        assert all(h.best is None for h in found.history)
