from __future__ import annotations

import pytest

from retrieval.errors import DatasetError, InputError, UnknownNameError, nearest


def test_message_holds_place_key_problem_value_and_hint():
    error = InputError(
        "must be positive", key="train.lr", value=-1, where="study.yaml:4", hint="write 0.001"
    )
    assert str(error) == ("study.yaml:4  train.lr: must be positive (given: -1)\n    write 0.001")


def test_message_without_fields_is_the_problem_alone():
    error = InputError("no space left")
    assert str(error) == "no space left"
    assert not error.has_value


def test_none_is_a_value_and_is_shown():
    error = InputError("must be a number", key="k", value=None)
    assert error.has_value
    assert str(error) == "k: must be a number (given: None)"


def test_located_fills_in_what_is_missing_and_keeps_what_is_known():
    error = InputError("bad", key="gamma")
    assert error.located(where="a.yaml", prefix="methods.csch") is error
    assert (error.where, error.key) == ("a.yaml", "methods.csch.gamma")
    error.located(where="b.yaml")
    assert error.where == "a.yaml"
    assert InputError("bad").located(prefix="methods").key == "methods"


def test_unknown_name_suggests_the_nearest_and_lists_the_known():
    error = UnknownNameError("method", "cschh", ["dcah", "csch"], key="methods")
    assert str(error) == (
        "methods: unknown method 'cschh'; did you mean 'csch'? known: csch, dcah"
    )
    assert (error.name, error.known) == ("cschh", ["csch", "dcah"])


def test_unknown_name_far_from_all_suggests_nothing():
    error = UnknownNameError("method", "zzzzzz", ["csch"])
    assert str(error) == "unknown method 'zzzzzz'; known: csch"


def test_unknown_name_cuts_a_long_list():
    shown = str(UnknownNameError("pair", "x", [f"name{i:02}" for i in range(30)]))
    assert "name23" in shown
    assert "name24" not in shown
    assert shown.endswith(", ...")


def test_nearest_ignores_case_and_ranks_the_best_first():
    assert nearest("CSCH", ["Csch", "csq", "dcah"])[0] == "Csch"
    assert nearest("gama", ["gamma", "margin"], n=1) == ["gamma"]


@pytest.mark.parametrize("kind", [UnknownNameError, DatasetError])
def test_every_user_error_is_an_input_error(kind):
    assert issubclass(kind, InputError)
    assert issubclass(kind, ValueError)
