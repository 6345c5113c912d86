"""Complaints of pydantic in the words of whoever wrote the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from retrieval.errors import InputError
from retrieval.validation import explain_validation


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Side(Strict):
    backbone: str
    size: int | None = Field(None, ge=8)


class Fixed(Strict):
    gamma: float


class Swept(Strict):
    low: float
    high: float = 1.0


class Named(Strict):
    float: str = ""


class Study(Strict):
    crop: Literal["none", "random_resized", "random"] = "none"
    bits: Literal[16, 32] = 16
    at: Literal["all"] | int | None = None
    rate: float = 0.1
    epochs: int = 1
    pair: Side | None = None
    pairs: list[Side] = []
    sides: dict[str, Side] = {}
    noted: list[Annotated[Side, "noted"]] = []
    arm: Fixed | Swept | None = None
    scale: tuple[float, float] = (0.0, 1.0)

    @field_validator("epochs")
    @classmethod
    def _epochs(cls, value: Any) -> Any:
        if value < 1:
            raise ValueError("Must be at least 1")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Study:
        if self.epochs == 7:
            raise ValueError("epochs and rate do not agree")
        if self.epochs == 8:
            raise ValueError
        return self


def explain(given: Mapping[Any, Any], model: type[BaseModel] = Study) -> InputError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(given)
    return explain_validation(caught.value, model)


def test_unknown_key_says_the_nearest_and_all_known_names():
    error = explain({"crops": "none"})
    assert error.key == "crops"
    assert not error.has_value
    assert error.problem.startswith("unknown key; did you mean 'crop'? known: crop, bits, at")


def test_unknown_key_with_no_name_near_it_says_what_is_known():
    assert explain({"zzzzzz": 1}).problem.startswith("unknown key; known: crop, bits")


@pytest.mark.parametrize("name", ["str", "bool", "float", "dict[x]", "function-x", "literal[1]"])
def test_unknown_key_that_looks_like_a_type_is_still_a_key(name):
    error = explain({name: 1})
    assert error.key == name
    assert error.problem.startswith("unknown key;")


def test_field_that_is_named_like_a_type_keeps_its_key():
    error = explain({"float": 1}, Named)
    assert error.key == "float"
    assert error.problem == "input should be a valid string"
    assert error.value == 1


def test_unknown_key_comes_before_the_one_that_it_leaves_missing():
    error = explain({"backbon": "resnet18"}, Side)
    assert str(error) == "backbon: unknown key; did you mean 'backbone'? known: backbone, size"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"pair": {"backbone": "a", "sise": 1}}, "pair.sise"),
        ({"pairs": [{"backbone": "a"}, {"backbone": "a", "sise": 1}]}, "pairs.1.sise"),
        ({"sides": {"query": {"backbone": "a", "sise": 1}}}, "sides.query.sise"),
        ({"noted": [{"backbone": "a", "sise": 1}]}, "noted.0.sise"),
    ],
)
def test_unknown_key_of_a_nested_model_names_that_models_keys(given, key):
    error = explain(given)
    assert error.key == key
    assert error.problem == "unknown key; did you mean 'size'? known: backbone, size"


def test_key_inside_a_union_of_models_has_no_class_name_in_its_path():
    error = explain({"arm": {"low": 0.0, "hihg": 2.0}})
    assert error.key == "arm.hihg"
    assert "Swept" not in str(error)
    assert "Fixed" not in str(error)


def test_missing_key_is_required():
    assert str(explain({"pair": {"size": 32}})) == "pair.backbone: this key is required"


def test_list_that_is_too_short_is_not_called_a_key():
    error = explain({"scale": (0.5,)})
    assert error.key == "scale.1"
    assert error.problem == "a value is missing here, the list is too short"


def test_value_inside_a_tuple_has_its_place_in_the_key():
    error = explain({"scale": (0.5, "x")})
    assert (error.key, error.value) == ("scale.1", "x")
    assert error.problem == "input should be a valid number"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            "randon",
            "must be one of none, random_resized, random; did you mean 'random'?",
        ),
        ("zzzz", "must be one of none, random_resized, random"),
        (3, "must be one of none, random_resized, random"),
    ],
)
def test_choice_lists_what_is_allowed_and_the_nearest(given, problem):
    error = explain({"crop": given})
    assert (error.key, error.value) == ("crop", given)
    assert error.problem == problem


def test_choice_of_numbers_lists_them():
    assert explain({"bits": 24}).problem == "must be one of 16, 32"


@pytest.mark.parametrize("given", ["al", True, 2.5, []])
def test_union_of_a_word_and_a_number_says_both(given):
    error = explain({"at": given})
    assert error.key == "at"
    assert error.problem.startswith("must be all or a valid integer")
    assert ("did you mean 'all'?" in error.problem) == (given == "al")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("1e-4", "YAML reads it as text, write 1.0e-4"),
        ("2.5E3", "YAML reads it as text, write 2.5e+3"),
        ("0.5", "it is text, write it without quotes"),
    ],
)
def test_number_that_arrives_as_text_says_how_to_write_it(given, advice):
    assert explain({"rate": given}).problem == f"input should be a valid number; {advice}"


@pytest.mark.parametrize("given", ["fast", "nan"])
def test_text_that_is_no_finite_number_is_not_told_how_to_write_one(given):
    assert "YAML" not in explain({"rate": given}).problem


def test_validator_of_a_value_speaks_in_its_own_words():
    error = explain({"epochs": 0})
    assert str(error) == "epochs: must be at least 1 (given: 0)"


def test_validator_of_the_whole_does_not_repeat_all_that_was_given():
    error = explain({"epochs": 7})
    assert str(error) == "epochs and rate do not agree"
    assert not error.has_value


def test_validator_without_words_still_gives_a_message():
    assert str(explain({"epochs": 8})) == "is refused"


def test_key_that_is_no_text_is_explained():
    error = explain({7: 1})
    assert error.key == "7"
    assert "string" in error.problem


def test_mapping_where_a_list_is_due_is_shown_as_given():
    error = explain({"pairs": {"a": 1}})
    assert (error.key, error.value) == ("pairs", {"a": 1})
    assert error.problem == "input should be a valid list"
