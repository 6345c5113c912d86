"""Designs against enumerations and points worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from retrieval.errors import InputError
from search_spaces.designs import activated, curve, identity, points
from search_spaces.options import Sensitivity
from search_spaces.space import Point, Space

PLAIN = Space.parse({"gamma": [1, 10, 100], "margin": [0.0, 0.2], "kept": 7})
CENTER: Point = {"gamma": 10, "margin": 0.2, "kept": 7}

NESTED = Space.parse(
    {
        "mode": ["plain", "memory", "teacher"],
        "size": {"type": "int", "low": 1, "high": 3, "when": {"mode": ["memory", "teacher"]}},
        "decay": {"type": "float", "low": 0.0, "high": 1.0, "points": 3, "when": {"size": [2, 3]}},
    }
)


def of(design: str, **options: Any) -> Sensitivity:
    return Sensitivity.model_validate({"design": design, **options})


def test_one_at_a_time_has_the_center_and_each_other_value_once() -> None:
    assert points(PLAIN, of("one_at_a_time"), CENTER) == [
        {"gamma": 10, "margin": 0.2, "kept": 7},
        {"gamma": 1, "margin": 0.2, "kept": 7},
        {"gamma": 100, "margin": 0.2, "kept": 7},
        {"gamma": 10, "margin": 0.0, "kept": 7},
    ]


def test_a_center_beside_the_values_is_a_point_of_its_own_and_the_others_keep_it() -> None:
    found = points(PLAIN, of("one_at_a_time"), {"gamma": 20, "margin": 0.1, "kept": 7})
    assert [(p["gamma"], p["margin"]) for p in found] == [
        (20, 0.1), (1, 0.1), (10, 0.1), (100, 0.1), (20, 0.0), (20, 0.2)
    ]  # fmt: skip


def test_a_center_value_written_as_another_kind_of_number_is_no_second_point() -> None:
    found = points(PLAIN, of("one_at_a_time"), {"gamma": 10.0, "margin": 0.2, "kept": 7})
    assert len(found) == 4


def test_points_of_one_gallery_are_neighbours() -> None:
    found = points(PLAIN, of("factorial"), CENTER, shared=frozenset({"margin"}))
    assert [(p["margin"], p["gamma"]) for p in found] == [
        (0.0, 1), (0.0, 10), (0.0, 100), (0.2, 1), (0.2, 10), (0.2, 100)
    ]  # fmt: skip


@pytest.mark.parametrize("design", ["one_at_a_time", "factorial", "sobol", "latin_hypercube"])
def test_grouping_keeps_the_points_and_makes_each_gallery_one_run(design: str) -> None:
    space = Space.parse({"a": [1, 2, 3], "b": [1, 2], "c": ["x", "y"]})
    center = {"a": 2, "b": 1, "c": "x"}
    apart = points(space, of(design, samples=32), center)
    together = points(space, of(design, samples=32), center, shared=frozenset({"b", "c"}))
    assert sorted(map(identity, together)) == sorted(map(identity, apart))
    galleries = [(p["b"], p["c"]) for p in together]
    assert len(list(itertools.groupby(galleries))) == len(set(galleries))


def test_what_does_not_count_at_the_center_is_varied_under_its_condition() -> None:
    found = points(NESTED, of("one_at_a_time"), {"mode": "plain"})
    assert found == [
        {"mode": "plain"},
        # mode, its children in the middle of their ranges
        {"mode": "memory", "size": 2, "decay": 0.5},
        {"mode": "teacher", "size": 2, "decay": 0.5},
        # size, under the first mode with which it counts; decay counts for 2 and 3 only
        {"mode": "memory", "size": 1},
        {"mode": "memory", "size": 3, "decay": 0.5},
        # decay, under the first mode and the first size
        {"mode": "memory", "size": 2, "decay": 0.0},
        {"mode": "memory", "size": 2, "decay": 1.0},
    ]


def test_a_center_may_say_what_counts_elsewhere() -> None:
    center = {"mode": "plain", "size": 3, "decay": 0.25}
    found = points(NESTED, of("one_at_a_time"), center)
    assert found[:2] == [{"mode": "plain"}, {"mode": "memory", "size": 3, "decay": 0.25}]


def test_a_condition_that_the_center_meets_is_left_alone() -> None:
    center = {"mode": "teacher", "size": 1}
    assert activated(NESTED, center, "size") == center
    assert activated(NESTED, center, "decay") == {"mode": "teacher", "size": 2, "decay": 0.5}


def test_two_conditions_on_one_dimension_take_a_value_that_both_allow() -> None:
    space = Space.parse(
        {
            "a": [1, 2, 3],
            "b": {"type": "categorical", "choices": ["x", "y"], "when": {"a": [1, 2]}},
            "c": {"type": "int", "low": 0, "high": 1, "when": {"b": ["y"], "a": [2, 3]}},
        }
    )
    assert activated(space, {"a": 3}, "c") == {"a": 2, "b": "y", "c": 1}


def test_every_point_of_every_design_lies_in_the_space() -> None:
    for design in ("one_at_a_time", "factorial", "sobol", "latin_hypercube"):
        found = points(NESTED, of(design, samples=50), {"mode": "plain"})
        assert found and all(p in NESTED for p in found)
        assert len({identity(p) for p in found}) == len(found)


def test_a_factorial_has_every_active_combination_once() -> None:
    expected: list[Point] = [{"mode": "plain"}]
    for mode in ("memory", "teacher"):
        expected.append({"mode": mode, "size": 1})
        for size, decay in itertools.product((2, 3), (0.0, 0.5, 1.0)):
            expected.append({"mode": mode, "size": size, "decay": decay})
    found = points(NESTED, of("factorial"), {"mode": "plain"})
    assert sorted(map(identity, found)) == sorted(map(identity, expected))


def test_a_latin_hypercube_has_one_point_in_each_slice_of_every_dimension() -> None:
    space = Space.parse(
        {
            "lr": {"type": "log_float", "low": 1e-4, "high": 1e-2},
            "margin": {"type": "float", "low": -1, "high": 1},
        }
    )
    found = points(space, of("latin_hypercube", samples=20), {})
    by_lr = sorted(math.floor(20 * math.log10(p["lr"] / 1e-4) / 2) for p in found)
    by_margin = sorted(math.floor(20 * (p["margin"] + 1) / 2) for p in found)
    assert by_lr == by_margin == list(range(20))


def test_a_sobol_design_of_a_power_of_two_fills_every_elementary_interval() -> None:
    space = Space.parse({n: {"type": "float", "low": 0, "high": 1} for n in "ab"})
    found = points(space, of("sobol", samples=16), {})
    for wide, high in ((16, 1), (4, 4), (1, 16)):  # a (0, 4, 2)-net: one point in each box of 1/16
        boxes = {(int(p["a"] * wide), int(p["b"] * high)) for p in found}
        assert len(boxes) == 16


def test_a_sobol_design_of_another_size_is_the_start_of_the_next_power_of_two() -> None:
    space = Space.parse({n: {"type": "float", "low": 0, "high": 1} for n in "abc"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eleven = points(space, of("sobol", samples=11), {})
    assert eleven == points(space, of("sobol", samples=16), {})[:11]


@pytest.mark.parametrize("design", ["sobol", "latin_hypercube"])
def test_a_spread_follows_from_its_seed(design: str) -> None:
    space = Space.parse({"a": {"type": "float", "low": 0, "high": 1}, "b": [1, 2, 3]})
    first = points(space, of(design, samples=16, seed=3), {})
    assert json.dumps(first) == json.dumps(points(space, of(design, samples=16, seed=3), {}))
    assert first != points(space, of(design, samples=16, seed=4), {})


def test_a_spread_over_few_values_has_no_point_twice() -> None:
    assert len(points(PLAIN, of("sobol", samples=64), CENTER)) == 6


@pytest.mark.parametrize("design", ["one_at_a_time", "factorial"])
def test_a_dimension_without_an_end_of_values_is_refused_by_name(design: str) -> None:
    space = Space.parse({"a": [1, 2], "lr": {"type": "log_float", "low": 0.1, "high": 1}})
    with pytest.raises(InputError) as caught:
        points(space, of(design), {"a": 1, "lr": 0.2})
    assert caught.value.key == "lr"


def test_a_space_in_which_nothing_varies_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to vary") as caught:
        points(Space.parse({"kept": 7}), of("factorial"), {"kept": 7})
    assert caught.value.key == "kept"


def test_too_many_dimensions_for_a_sobol_sequence_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scipy.stats import qmc

    monkeypatch.setattr(qmc.Sobol, "MAXDIM", 1)
    space = Space.parse({"a": [1, 2], "b": [1, 2]})
    with pytest.raises(InputError, match="at most 1 dimensions, the space 2"):
        points(space, of("sobol"), {})


def test_a_curve_has_the_center_before_values_that_lack_it() -> None:
    found = curve(PLAIN, {"gamma": 20, "margin": 0.2, "kept": 7}, "gamma")
    assert [value for value, _ in found] == [20, 1, 10, 100]
    assert all(point["gamma"] == value and point["margin"] == 0.2 for value, point in found)


def test_points_are_the_same_as_numbers_are() -> None:
    assert identity({"a": 1, "b": {"c": [2]}}) == identity({"b": {"c": [2.0]}, "a": 1.0})
    assert identity({"a": 1}) != identity({"a": True})
    assert identity({"a": None}) != identity({})


def test_the_places_of_a_spread_are_even() -> None:
    space = Space.parse({"b": ["x", "y", "z", "w"]})
    wide = Space.parse({"b": ["x", "y", "z", "w"], "a": {"type": "float", "low": 0, "high": 1}})
    assert len(points(space, of("sobol", samples=16), {})) == 4
    counts = np.unique(
        [p["b"] for p in points(wide, of("sobol", samples=16), {})], return_counts=True
    )
    assert counts[1].tolist() == [4, 4, 4, 4]
