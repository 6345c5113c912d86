"""Grids: a list as a value is an axis."""

import pytest

from retrieval.errors import InputError, UnknownNameError
from search_spaces.grid import expand, varied


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
