"""Grids: a list as a value is an axis."""

import pytest

from retrieval.errors import InputError, UnknownNameError
from search_spaces.grid import expand, setting_text, varied


def points(given: dict) -> list[tuple[float, float]]:
    return [(p.gamma, p.margin) for p in expand("csch", given)]  # type: ignore[attr-defined]


def test_nothing_given_is_one_point_of_defaults():
    assert points({}) == [(100.0, 0.2)]


def test_lists_span_their_product_with_the_last_key_fastest():
    given = {"gamma": [1.0, 2.0], "margin": [0.1, 0.3]}
    assert points(given) == [(1.0, 0.1), (1.0, 0.3), (2.0, 0.1), (2.0, 0.3)]


def test_single_values_are_axes_of_one():
    assert points({"gamma": 5.0, "margin": [0.1]}) == [(5.0, 0.1)]


@pytest.mark.parametrize(
    ("given", "key", "problem"),
    [
        ({"gamma": []}, "gamma", "an empty list spans no trial"),
        ({"gama": 1.0}, "gama", "did you mean 'gamma'"),
        ({"gamma": [1.0, -1.0]}, "gamma", "greater than or equal to 0"),
        ({"assign": "A_x"}, "assign", "must be one of none, A_r, A_q, A_g, A_b"),
    ],
)
def test_wrong_grids_are_refused_by_key(given, key, problem):
    with pytest.raises(InputError) as caught:
        list(expand("csch", given))
    assert caught.value.key == key
    assert problem in caught.value.problem


def test_unknown_methods_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'csch'"):
        list(expand("cshc", {}))


def test_only_what_takes_several_values_is_varied():
    assert varied({"gamma": [1.0, 2.0], "margin": [0.1], "tau": 0.5}) == ["gamma"]


def test_entries_of_one_method_are_told_apart_by_what_they_do_not_share():
    plain, other = {"margin": 0.3}, {"margin": 0.3, "assign": "A_r"}
    assert varied(plain, [other]) == []
    assert varied(other, [plain]) == ["assign"]
    assert varied({"margin": 0.1}, [plain]) == ["margin"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10.0, "x=10.0"),
        ("A_q", "x=A_q"),
        (None, "x=none"),
        ({"name": "caq", "mode": "add", "t0": None}, "x=caq(add)"),
        ({"name": "caq", "mode": "replace", "weight": 0.5}, "x=caq(replace,0.5)"),
        ({"margin": 0.3, "kind": "arc"}, "x={margin=0.3,kind=arc}"),
    ],
)
def test_settings_are_short_text(value, text):
    assert setting_text({"x": value, "y": 1}, ["x"]) == text
