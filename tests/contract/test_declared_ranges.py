"""The contract's promise on ranges: what breaks it is named with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from asymbench.testing import MethodContract
from methods.base import METHODS, Hyperparameters, hyperparameter
from retrieval.errors import InputError


class _Contract(MethodContract):
    method = "l2"


def broken(monkeypatch: pytest.MonkeyPatch, **declared: Any) -> str:
    class Params(Hyperparameters):
        weight: float = hyperparameter(1.0, gt=0, le=9, reads=("query",), doc="x", **declared)

    monkeypatch.setattr(METHODS.get("l2"), "Params", Params)
    with pytest.raises((AssertionError, InputError)) as caught:
        _Contract().test_ranges_say_where_they_are_from_and_hold_the_default()
    return str(caught.value)


def test_values_without_a_source_say_how_to_give_one(monkeypatch):
    text = broken(monkeypatch, search=(1.0, 2.0))
    assert "weight has values worth trying, and no range_from" in text


def test_a_default_outside_of_its_range_is_named_with_the_range(monkeypatch):
    text = broken(monkeypatch, search=(2.0, 4.0), range_from="ours")
    assert "the default of weight, 1.0, is not in its range" in text


def test_a_range_beyond_the_limit_is_refused(monkeypatch):
    space = {"type": "float", "low": 0.5, "high": 10.0, "points": 3}
    text = broken(monkeypatch, space=space, range_from="ours")
    assert "less than or equal to 9 (given: 10.0)" in text


def test_a_range_that_no_grid_can_take_is_refused(monkeypatch):
    space = {"type": "float", "low": 0.5, "high": 2.0}
    assert "give points, a step" in broken(monkeypatch, space=space, range_from="ours")


def test_a_condition_on_no_hyperparameter_is_named(monkeypatch):
    text = broken(monkeypatch, search=(1.0, 2.0), range_from="ours", when={"form": ("a",)})
    assert "weight: when names no hyperparameter" in text


def test_a_condition_that_its_hyperparameter_cannot_meet_is_refused(monkeypatch):
    text = broken(monkeypatch, search=(1.0, 2.0), range_from="ours", when={"weight": (20.0,)})
    assert "less than or equal to 9" in text


def test_a_declaration_in_order_passes(monkeypatch):
    class Params(Hyperparameters):
        weight: float = hyperparameter(
            1.0, gt=0, reads=("query",), doc="x", search=(1.0, 2.0), range_from="ours"
        )

    monkeypatch.setattr(METHODS.get("l2"), "Params", Params)
    _Contract().test_ranges_say_where_they_are_from_and_hold_the_default()
