"""Search spaces: dimensions, conditions, grids and corners, and what is refused."""

from __future__ import annotations

import datetime
import itertools
import math
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.study import parse_yaml
from retrieval.errors import InputError, UnknownNameError
from search_spaces.space import Space


def dimension(value):
    return Space.parse({"x": value}).dimensions["x"]


def refusal(given: dict) -> InputError:
    with pytest.raises(InputError) as caught:
        Space.parse(given)
    return caught.value


# ---- each type ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ({"type": "float", "low": 0, "high": 1, "points": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"type": "float", "low": 0, "high": 0.5, "step": 0.1}, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"type": "float", "low": 0, "high": 1, "step": 0.3}, [0, 0.3, 0.6, 0.9]),
        ({"type": "log_float", "low": 0.1, "high": 1000, "points": 5}, [0.1, 1, 10, 100, 1000]),
        (
            {"type": "log_float", "low": 0.0625, "high": 1, "points": 5},
            [2**-i for i in range(4, -1, -1)],
        ),
        ({"type": "int", "low": 2, "high": 5}, [2, 3, 4, 5]),
        ({"type": "int", "low": 2, "high": 9, "step": 3}, [2, 5, 8]),
        ({"type": "int", "low": 1, "high": 1000, "log": True, "points": 4}, [1, 10, 100, 1000]),
        ({"type": "int", "low": 0, "high": 100, "points": 3}, [0, 50, 100]),
        ({"type": "int", "low": 0, "high": 2, "points": 9}, [0, 1, 2]),
        (["a", None, 2, True, {"k": [1]}], ["a", None, 2, True, {"k": [1]}]),
        ({"type": "fixed", "value": "a"}, ["a"]),
        (7, [7]),
        (None, [None]),
    ],
)
def test_a_grid_has_the_values_worked_out_by_hand(value, values):
    found = dimension(value)
    assert found.values() == pytest.approx(values) if _numeric(values) else values
    assert all(found.has(one) for one in found.values())


def _numeric(values) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def test_a_grid_has_both_bounds_exactly_where_they_are_no_short_decimals():
    low, high = 1 / 3, 2 / 3  # rounded to twelve digits both lie outside
    for value in (
        {"type": "float", "low": low, "high": high, "points": 4},
        {"type": "float", "low": low, "high": high, "step": 1 / 9},
        {"type": "log_float", "low": low, "high": high, "points": 4},
    ):
        found = dimension(value)
        assert found.values()[0] == low
        assert found.values()[-1] == high == found.ends()[-1]
        assert all(found.has(one) for one in found.values())


@pytest.mark.parametrize(
    ("value", "ends"),
    [
        ({"type": "float", "low": 0, "high": 1}, [0, 1]),
        ({"type": "float", "low": 0, "high": 1, "step": 0.3}, [0, 0.9]),
        ({"type": "log_float", "low": 0.1, "high": 10}, [0.1, 10]),
        ({"type": "int", "low": 1, "high": 6, "step": 2}, [1, 5]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (3, [3]),
    ],
)
def test_ends_are_the_outermost_values_that_can_be_taken(value, ends):
    assert dimension(value).ends() == ends


def test_without_points_or_a_step_a_grid_has_no_end():
    for value in (
        {"type": "float", "low": 0, "high": 1},
        {"type": "log_float", "low": 1, "high": 2},
    ):
        with pytest.raises(InputError, match="give points, a step") as caught:
            list(Space.parse({"a": [1], "x": value}).grid())
        assert caught.value.key == "x"


def test_a_range_of_very_many_whole_numbers_wants_points_in_a_grid():
    with pytest.raises(InputError, match=r"at most 10,000 .* this has 1,000,001: give points"):
        dimension({"type": "int", "low": 0, "high": 1_000_000}).values()


@st.composite
def dimensions(draw):
    """Any dimension, and whether its values are finitely many."""
    low = draw(st.integers(-1000, 1000))
    width = draw(st.integers(1, 1000))
    kind = draw(st.sampled_from(["float", "stepped", "log_float", "int", "int_log", "choices"]))
    if kind == "float":
        return dimension({"type": "float", "low": low / 7, "high": (low + width) / 7})
    if kind == "stepped":
        step = draw(st.floats(width / 200, width))
        return dimension({"type": "float", "low": low, "high": low + width, "step": step})
    if kind == "log_float":
        bottom = draw(st.floats(1e-9, 1e9))
        return dimension({"type": "log_float", "low": bottom, "high": bottom * (1 + width)})
    if kind == "int":
        step = draw(st.integers(1, width))
        return dimension({"type": "int", "low": low, "high": low + width, "step": step})
    if kind == "int_log":
        bottom = abs(low) + 1
        return dimension({"type": "int", "low": bottom, "high": bottom + width, "log": True})
    count = draw(st.integers(1, 7))
    return dimension([["a", None, 1.5, True, 1, {"k": 1}, {"k": True}][i] for i in range(count)])


@settings(deadline=None, max_examples=300)
@given(dimensions(), st.floats(0, 1, exclude_max=True))
def test_the_place_of_a_value_gives_that_value_again(found, unit):
    value = found.at(unit)
    assert found.has(value)
    place = found.place(value)
    assert 0 <= place <= 1
    again = found.at(min(place, math.nextafter(1, 0)))
    if isinstance(value, int | float) and not isinstance(value, bool) and not found.countable:
        assert again == pytest.approx(value, rel=1e-9, abs=1e-9)
        assert place == pytest.approx(unit, abs=1e-6)
    else:
        assert again == value
        assert type(again) is type(value)


@settings(deadline=None, max_examples=100)
@given(dimensions())
def test_every_value_of_a_grid_has_a_place_of_its_own_in_order(found):
    if not found.countable:
        return
    values = found.values()
    places = [found.place(value) for value in values]
    assert places == sorted(set(places))
    assert [found.at(place) for place in places] == values


def test_equal_parts_of_the_places_are_equally_likely():
    units = [(i + 0.5) / 3000 for i in range(3000)]
    for value, wanted in (
        ({"type": "int", "low": 1, "high": 3}, {1: 1000, 2: 1000, 3: 1000}),
        ({"type": "float", "low": 0, "high": 1, "step": 0.5}, {0: 1000, 0.5: 1000, 1.0: 1000}),
        (["a", "b", "c"], {"a": 1000, "b": 1000, "c": 1000}),
    ):
        found = [dimension(value).at(unit) for unit in units]
        assert {one: found.count(one) for one in wanted} == wanted
    # of a log range every decade is a third of the places
    decades = [
        math.floor(math.log10(dimension({"type": "log_float", "low": 1, "high": 1000}).at(u)))
        for u in units
    ]
    assert [decades.count(n) for n in range(3)] == [1000] * 3


@pytest.mark.parametrize(
    ("value", "outside"),
    [
        (
            {"type": "float", "low": 0, "high": 1},
            [-1e-9, 1.1, True, "0.5", None, math.nan, 10**400],
        ),
        ({"type": "float", "low": 0, "high": 1, "step": 0.25}, [0.3, 0.2500001]),
        ({"type": "log_float", "low": 0.1, "high": 10}, [0, 11, False, "1"]),
        ({"type": "int", "low": 0, "high": 9, "step": 3}, [1, 1.5, 12, True, "3", math.nan]),
        ([0, 1, "a"], [False, True, "b", None, [0]]),
        ([True, False], [1, 0, 1.0]),
        ([{"k": 1}], [{"k": True}, {"k": 2}, {}, '{"k": 1}']),
        ([[1, 2]], [[1], [1, True], [2, 1]]),
        (1, [True, 2]),
    ],
)
def test_what_is_outside_is_not_had(value, outside):
    assert [one for one in outside if dimension(value).has(one)] == []


@pytest.mark.parametrize(
    ("value", "inside"),
    [
        ({"type": "float", "low": 0, "high": 1}, [0, 1, 0.5]),
        ({"type": "float", "low": 0, "high": 0.5, "step": 0.1}, [0.3, 0.1 + 0.2]),
        ({"type": "int", "low": 0, "high": 9, "step": 3}, [0, 9, 3.0]),
        ([1, 2.0], [1.0, 2]),
        ([{"k": 1}], [{"k": 1.0}]),
    ],
)
def test_a_whole_number_and_the_same_as_a_float_are_one_value(value, inside):
    assert all(dimension(value).has(one) for one in inside)


# ---- Optuna ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [
        ["a", "b"],
        [None, 1.5, "x"],
        [{"name": "caq"}, None],
        [1, True],
        [0, False, "0", "false"],
        ['{"k": 1}', {"k": 1}],
        [[1, 2], "[1, 2]"],
    ],
)
def test_choices_come_back_from_a_storage_as_they_went(choices, tmp_path):
    found = dimension(choices)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/o.db")
    for choice in choices:
        study.enqueue_trial({"x": found.encode(choice)})
    for choice in choices:
        back = found.suggest(study.ask(), "x")
        assert back == choice
        assert type(back) is type(choice)
    stored = [trial.params["x"] for trial in study.get_trials()]
    assert [found.decode(one) for one in stored] == choices
    with pytest.raises(ValueError, match="none of"):
        found.encode("no such")


@pytest.mark.parametrize(
    "value",
    [
        {"type": "float", "low": -1, "high": 1},
        {"type": "float", "low": 0, "high": 1, "step": 0.3},
        {"type": "float", "low": 0.05, "high": 0.95, "step": 0.1},
        {"type": "log_float", "low": 1e-5, "high": 1e-2},
        {"type": "int", "low": 1, "high": 6, "step": 2},
        {"type": "int", "low": 1, "high": 64, "log": True},
        ["a", "b"],
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_sampler_stays_inside_and_the_distribution_is_what_is_suggested(value):
    found = dimension(value)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        suggested = found.suggest(trial, "x")
        assert found.has(suggested)
        assert trial.distributions["x"] == found.distribution()
        if found.countable:
            assert suggested in found.values()
        study.tell(trial, 0.0)


def test_a_fixed_dimension_is_never_suggested():
    space = Space.parse({"a": 3, "b": ["x", "y"]})
    trial = optuna.create_study().ask()
    point = space.suggest(trial)
    assert point["a"] == 3
    assert set(trial.distributions) == {"b"}
    assert space.searched == ["b"]
    with pytest.raises(TypeError, match="not suggested"):
        space.dimensions["a"].distribution()


def test_what_is_given_is_not_asked_for():
    space = Space.parse({"a": ["x"], "b": {"type": "int", "low": 0, "high": 9}})
    trial = optuna.create_study().ask()
    assert space.suggest(trial, {"b": 4}) == {"a": "x", "b": 4}
    assert set(trial.distributions) == {"a"}


# ---- conditions --------------------------------------------------------------------------------

CHAIN = {
    "leaf": {"type": "float", "low": 0, "high": 1, "points": 2, "when": {"middle": [2, 3]}},
    "middle": {"type": "int", "low": 1, "high": 3, "when": {"root": ["on"]}},
    "root": ["off", "on"],
}


def test_a_dimension_comes_after_what_it_depends_on():
    assert list(Space.parse(CHAIN).dimensions) == ["root", "middle", "leaf"]


def test_a_grid_has_every_active_combination_once():
    points = list(Space.parse(CHAIN).grid())
    assert points == [
        {"root": "off"},
        {"root": "on", "middle": 1},
        {"root": "on", "middle": 2, "leaf": 0},
        {"root": "on", "middle": 2, "leaf": 1},
        {"root": "on", "middle": 3, "leaf": 0},
        {"root": "on", "middle": 3, "leaf": 1},
    ]


def test_a_grid_without_conditions_is_the_product_with_the_last_fastest():
    space = Space.parse({"a": [1, 2], "b": 5, "c": ["x", "y", "z"]})
    assert list(space.grid()) == [
        {"a": a, "b": 5, "c": c} for a, c in itertools.product([1, 2], ["x", "y", "z"])
    ]


def test_a_grid_does_not_walk_through_what_does_not_count():
    axes = {
        f"d{i}": {"type": "int", "low": 0, "high": 99, "when": {"kind": [i]}} for i in range(8)
    }
    points = list(Space.parse({"kind": list(range(8)), **axes}).grid())  # not 8 * 100**8 steps
    assert len(points) == 800


def test_points_belong_to_a_space_if_they_have_what_counts_and_nothing_else():
    space = Space.parse(CHAIN)
    assert {"root": "off"} in space
    assert {"root": "on", "middle": 2, "leaf": 0.5} in space
    assert {"root": "off", "middle": 2} not in space
    assert {"root": "on", "middle": 1, "leaf": 0.5} not in space
    assert {"root": "on", "middle": 2} not in space
    assert {"root": "on", "middle": 7} not in space
    assert {} not in space


def test_places_of_what_does_not_count_are_passed_over():
    space = Space.parse(CHAIN)
    assert space.searched == ["root", "middle", "leaf"]
    assert space.at([0.0, 0.9, 0.9]) == {"root": "off"}
    assert space.at([0.9, 0.0, 0.9]) == {"root": "on", "middle": 1}
    assert space.at([0.9, 0.99, 0.25]) == {"root": "on", "middle": 3, "leaf": 0.25}


def test_corners_reach_the_ends_of_what_counts_only_sometimes():
    corners = list(Space.parse(CHAIN).corners())
    assert {"root": "on", "middle": 2, "leaf": 0} in corners
    assert {"root": "on", "middle": 2, "leaf": 1} in corners
    assert {"root": "on", "middle": 1} in corners
    assert {"root": "off"} in corners
    assert all(corner in Space.parse(CHAIN) for corner in corners)


def test_corners_are_the_bounds_themselves():
    space = Space.parse({"a": {"type": "float", "low": 0, "high": 1}, "b": 3})
    assert list(space.corners()) == [{"a": 0.5, "b": 3}, {"a": 0, "b": 3}, {"a": 1, "b": 3}]


def test_conditions_on_several_hold_together():
    space = Space.parse(
        {
            "a": [1, 2],
            "b": [True, False],
            "c": {"type": "int", "low": 0, "high": 1, "when": {"a": [1.0], "b": [True]}},
        }
    )
    assert [point for point in space.grid() if "c" in point] == [
        {"a": 1, "b": True, "c": 0},
        {"a": 1, "b": True, "c": 1},
    ]


@pytest.mark.parametrize(
    ("given", "key", "problem"),
    [
        (
            {"a": [1], "b": {"type": "fixed", "value": 1, "when": {"aa": [1]}}},
            "b.when.aa",
            "did you mean 'a'",
        ),
        (
            {"a": [1], "b": {"type": "fixed", "value": 1, "when": {"a": []}}},
            "b.when.a",
            "at least one value",
        ),
        (
            {"a": [1], "b": {"type": "fixed", "value": 1, "when": {"a": [2]}}},
            "b.when.a",
            "never has this value",
        ),
        (
            {"a": [1], "b": {"type": "fixed", "value": 1, "when": {"a": [True]}}},
            "b.when.a",
            "never has this value",
        ),
        (
            {"a": [1], "b": {"type": "fixed", "value": 1, "when": {"a": 1}}},
            "b.when.a",
            "valid list",
        ),
        (
            {
                "a": {"type": "float", "low": 0, "high": 1},
                "b": {"type": "fixed", "value": 1, "when": {"a": [0.5]}},
            },
            "b.when.a",
            "hardly ever exactly one value",
        ),
        (
            {
                "a": {"type": "fixed", "value": 1, "when": {"b": [1]}},
                "b": {"type": "fixed", "value": 1, "when": {"a": [1]}},
            },
            "a.when",
            "depend on each other",
        ),
        (
            {"a": {"type": "fixed", "value": 1, "when": {"a": [1]}}},
            "a.when",
            "depend on each other",
        ),
        (
            {
                "root": ["x", "y"],
                "a": {"type": "fixed", "value": 1, "when": {"root": ["x"]}},
                "b": {"type": "fixed", "value": 1, "when": {"root": ["y"], "a": [1]}},
            },
            "b.when",
            "want different values of 'root'",
        ),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(given, key, problem):
    error = refusal(given)
    assert error.key == key
    assert problem in error.problem


# ---- what is refused ---------------------------------------------------------------------------

NUMBER = {"type": "float", "low": 0, "high": 1}


@pytest.mark.parametrize(
    ("value", "key", "problem"),
    [
        ({"type": "flaot", "low": 0}, "x.type", "did you mean 'float'"),
        ({"type": ["float"]}, "x.type", "must be one of float, log_float, int"),
        ({"low": 0, "high": 1}, "x.type", "this key is required"),
        ({**NUMBER, "hihg": 2}, "x.hihg", "did you mean 'high'"),
        ({"type": "float", "low": 0}, "x.high", "this key is required"),
        ({**NUMBER, "low": 1}, "x", "low 1 must be below high 1"),
        ({**NUMBER, "low": True}, "x.low", "valid number"),
        ({**NUMBER, "low": "1e-4"}, "x.low", "YAML reads it as text, write 1.0e-4"),
        ({**NUMBER, "high": math.inf}, "x.high", "finite number"),
        ({**NUMBER, "low": -1e308, "high": 1e308}, "x", "wider than the largest number"),
        ({**NUMBER, "step": 0}, "x.step", "greater than 0"),
        ({**NUMBER, "step": 2}, "x", "step 2 is wider than the range"),
        ({**NUMBER, "step": 1e-9}, "x", "more than 1,000,000 values"),
        ({**NUMBER, "step": 0.1, "points": 3}, "x", "give step or points, not both"),
        ({**NUMBER, "points": 1}, "x.points", "greater than or equal to 2"),
        ({"type": "log_float", "low": 0, "high": 1}, "x.low", "greater than 0"),
        ({"type": "log_float", "low": 2, "high": 1}, "x", "low 2 must be below high 1"),
        ({"type": "int", "low": 0.5, "high": 2}, "x.low", "valid integer"),
        ({"type": "int", "low": 0, "high": True}, "x.high", "valid integer"),
        ({"type": "int", "low": 0, "high": 10**400}, "x.high", "less than or equal to"),
        ({"type": "int", "low": 0, "high": 9, "log": True}, "x", "low of at least 1"),
        ({"type": "int", "low": 1, "high": 9, "log": True, "step": 2}, "x", "no step"),
        ({"type": "int", "low": 1, "high": 9, "step": 9}, "x", "step 9 is wider"),
        ({"type": "int", "low": 1, "high": 9, "step": 2, "points": 2}, "x", "not both"),
        ([], "x", "at least 1 item"),
        ({"type": "categorical", "choices": []}, "x.choices", "at least 1 item"),
        ([1, 1.0], "x", "1.0 is there twice"),
        ([{"k": 1}, {"k": 1.0}], "x", "there twice"),
        ([datetime.date(2024, 1, 2)], "x", "2024-01-02 is a date; write it in quotes"),
        ([{"k": [math.nan]}], "x", "no finite number"),
        (datetime.date(2024, 1, 2), "x", "is a date"),
        (math.inf, "x", "no finite number"),
        ({**NUMBER, "when": {"y": [b"1"]}}, "x.when", "is a bytes"),
        ({"type": "fixed"}, "x.value", "this key is required"),
    ],
)
def test_a_wrong_dimension_is_refused_by_its_key(value, key, problem):
    error = refusal({"x": value})
    assert error.key == key
    assert problem in error.problem


def test_a_rule_about_several_fields_shows_them_as_given():
    assert refusal({"x": {**NUMBER, "low": 3}}).value == {"low": 3, "high": 1}


def test_an_empty_space_is_refused():
    assert "at least one dimension" in refusal({}).problem


def test_an_unknown_type_is_an_unknown_name():
    with pytest.raises(UnknownNameError):
        Space.parse({"x": {"type": "normal"}})


def test_the_spaces_of_the_docstring_read_as_yaml_has_them():
    text = (Path(__file__).parents[2] / "search_spaces" / "space.py").read_text()
    block = text.split("search:\n")[1].split('"""')[0]
    raw, _ = parse_yaml("search:\n" + block, "docstring")
    space = Space.parse(raw["search"])
    assert space.dimensions["train.lr_head"].low == 1e-4
    assert [d.type for d in space.dimensions.values()] == [
        "log_float",
        "float",
        "categorical",
        "categorical",
        "float",
        "log_float",
    ]
