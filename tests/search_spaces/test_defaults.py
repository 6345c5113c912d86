"""Spaces that methods declare, and what a study may name in a space of its own."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from methods.base import METHODS, Hyperparameters, hyperparameter
from methods.recipe import Recipe
from retrieval.errors import InputError, UnknownNameError
from search_spaces.defaults import (
    declared_range,
    default_ranges,
    default_space,
    read_with,
    space_of,
)

PAIRS = ["small", "tiny"]


def refusal(given: Any, method: str = "csch", **more: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        space_of(method, given, pairs=PAIRS, **more)
    return caught.value


# ---- what methods declare ----------------------------------------------------------------------

SETTINGS = {
    "csch": {"gamma", "margin", "tau"},
    "csq": {"distill_weight", "lambda_q"},
    "orthohash": {"distill_weight", "scale", "margin"},
    "mdsh": {"distill_weight", "beta", "lambda_q", "momentum", "epoch_change"},
    "daph": {"alpha", "gamma", "lambda_i", "beta"},
    "adsq": {
        "likelihood_weight",
        "difference_weight",
        "eta",
        "nu",
        "mu",
        "a1",
        "a2",
        "label_epochs",
        "label_lr",
    },
    "dcah": {"distill_weight", "quant_weight", "k", "t_q", "t_g", "t0", "t1"},
    "csd": {"k", "t_q", "t_g", "weight"},
    "rkd": {"w_distance", "w_angle"},
    "ssp": {"subspaces", "centroids", "scale", "weight"},
    "aml_reg": {"weight"},
    "aml_contr": {"margin", "weight"},
    "l2": {"weight"},
}
"""Numbers that weigh, scale or bound something in the method as it is by default."""


def test_every_method_has_a_default_space_of_its_settings():
    assert {name: set(default_ranges(name)) for name in METHODS.names()} == SETTINGS


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_the_published_setting_is_a_point_of_the_default_space(method):
    space = default_space(method)
    values = METHODS.get(method).Params().model_dump(mode="json")
    assert {name: values[name] for name in space.dimensions} in space


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_every_default_range_says_where_it_is_from(method):
    assert all(dimension.source for dimension in default_space(method).dimensions.values())


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_every_default_range_is_one_that_a_study_may_give(method):
    given = default_ranges(method)
    assert space_of(method, given, pairs=PAIRS, base={}) == default_space(method)
    assert space_of(method, "default", pairs=PAIRS) == default_space(method)


def test_the_default_grid_of_csch_is_that_of_its_papers_figure_7():
    dimensions = default_space("csch").dimensions
    assert {name: found.values() for name, found in dimensions.items()} == {
        "gamma": pytest.approx([0.1, 1, 10, 100, 1000]),
        "margin": pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        "tau": pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]),
    }
    assert all("Fig. 7" in found.source for found in dimensions.values())


@pytest.mark.parametrize(
    ("method", "base", "more", "less"),
    [
        ("csch", {"instance": "contr_sg"}, {"contrastive_margin"}, set()),
        ("csch", {"instance": "none"}, set(), {"gamma"}),
        ("csch", {"center_loss": "bce"}, set(), {"margin", "tau"}),
        ("aml_contr", {"form": "tuples"}, {"negatives", "pool", "reg_weight"}, set()),
        ("dcah", {"variant": "cross_correlation"}, {"lam"}, {"t0", "t1"}),
        ("dcah", {"variant": "similarity_correlation"}, set(), {"k", "t_q", "t_g", "t0", "t1"}),
    ],
)
def test_what_is_not_read_with_the_studys_values_is_left_out(method, base, more, less):
    assert set(default_ranges(method, base)) == SETTINGS[method] - less | more
    assert set(space_of(method, "default", pairs=PAIRS, base=base).dimensions) == set(
        default_ranges(method, base)
    )


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_what_a_hyperparameter_is_read_with_is_a_hyperparameter_that_can_have_it(method):
    params = METHODS.get(method).Params
    for name in params.model_fields:
        for parent, values in read_with(params, name).items():
            for value in values:
                assert getattr(params.parse({parent: value}), parent) == value


class Declared(Hyperparameters):
    """Every way to declare a range."""

    plain: float = hyperparameter(1.0, reads=("query",), doc="x")
    linear: float = hyperparameter(
        1.0, reads=("query",), search=(0.0, 2.0, 1.0), range_from="a", doc="x"
    )
    ratio: float = hyperparameter(
        1.0, reads=("query",), search=(0.5, 4.0), range_from="a", doc="x"
    )
    below: float = hyperparameter(
        1.0, reads=("query",), search=(0.5, 3.9), range_from="a", doc="x"
    )
    whole: int = hyperparameter(8, reads=("query",), search=(1, 8), range_from="a", doc="x")
    mixed: float = hyperparameter(1.0, reads=("query",), search=(1, 2.5), range_from="a", doc="x")
    maybe: float | None = hyperparameter(
        None, reads=("query",), search=(None, 1.0), range_from="a", doc="x"
    )
    switch: bool = hyperparameter(
        True, reads=("query",), search=(True, False), range_from="a", doc="x"
    )
    name: Literal["a", "b"] = hyperparameter(
        "a", reads=("query",), search=("a", "b"), range_from="a", doc="x"
    )
    one: float = hyperparameter(1.0, reads=("query",), search=(1.0,), range_from="a", doc="x")
    given: float = hyperparameter(
        1.0,
        reads=("query",),
        search=(1.0, 2.0),
        space={"type": "float", "low": 0.0, "high": 9.0},
        range_from="a",
        doc="x",
    )


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("plain", None),
        ("linear", {"type": "float", "low": 0.0, "high": 2.0, "points": 3}),
        ("ratio", {"type": "log_float", "low": 0.5, "high": 4.0, "points": 2}),
        ("below", {"type": "float", "low": 0.5, "high": 3.9, "points": 2}),
        ("whole", {"type": "int", "low": 1, "high": 8, "points": 2, "log": True}),
        ("mixed", {"type": "float", "low": 1, "high": 2.5, "points": 2}),
        ("maybe", {"type": "categorical", "choices": [None, 1.0]}),
        ("switch", {"type": "categorical", "choices": [True, False]}),
        ("name", {"type": "categorical", "choices": ["a", "b"]}),
        ("one", {"type": "categorical", "choices": [1.0]}),
        ("given", {"type": "float", "low": 0.0, "high": 9.0}),
    ],
)
def test_a_range_is_the_declared_one_or_follows_from_the_values_worth_trying(name, given):
    expected = None if given is None else {**given, "source": "a"}
    assert declared_range(Declared, name) == expected


@pytest.mark.parametrize("key", ["when", "source"])
def test_a_declared_range_does_not_say_twice_when_it_counts_or_where_it_is_from(key):
    space = {"type": "float", "low": 0, "high": 1, key: {}}
    with pytest.raises(TypeError, match="stand beside space"):
        hyperparameter(0.5, reads=("query",), doc="x", space=space)


def test_a_method_without_ranges_says_what_to_name(monkeypatch):
    class Nothing(Hyperparameters):
        weight: float = hyperparameter(1.0, reads=("query",), doc="x")

    monkeypatch.setattr(METHODS.get("l2"), "Params", Nothing)
    assert default_ranges("l2") == {}
    assert "declares no range" in refusal("default", "l2").problem


def test_the_space_of_an_unknown_method_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'csch'"):
        default_space("cshc")


# ---- what studies give -------------------------------------------------------------------------

RATE = {"type": "log_float", "low": 1e-5, "high": 1e-2}
RANGES = {
    "epochs": {"type": "int", "low": 1, "high": 3},
    "batch_size": [16, 32],
    "optimizer": ["adam", "sgd"],
    "lr_backbone": RATE,
    "lr_head": RATE,
    "weight_decay": RATE,
    "momentum": {"type": "float", "low": 0, "high": 0.99},
    "schedule": ["constant", "cosine"],
    "warmup_epochs": {"type": "int", "low": 0, "high": 2},
    "precision": ["fp32", "bf16"],
    "clip_norm": [None, 5.0],
}


def test_every_field_of_the_recipe_but_workers_has_a_range_here():
    assert set(RANGES) == set(Recipe.model_fields) - {"workers"}


@pytest.mark.parametrize("field", sorted(RANGES))
@pytest.mark.parametrize("prefix", ["train", "train.query", "train.gallery"])
def test_a_field_of_the_recipe_can_be_searched_on_both_sides_or_one(prefix, field):
    name = f"{prefix}.{field}"
    assert space_of("csch", {name: RANGES[field]}, pairs=PAIRS).searched == [name]


@pytest.mark.parametrize("name", ["train.workers", "train.query.workers", "train.gallery.workers"])
def test_workers_are_nothing_to_search(name):
    error = refusal({name: [1, 2]})
    assert error.key == name
    assert "where a training runs" in error.problem


def test_a_nested_field_of_the_recipe_is_told_how_it_is_written():
    error = refusal({"train": {"query": {"lr_head": RATE}}})
    assert error.key == "train"
    assert "one key with dots, as train.lr_head or train.query.lr_head" in error.problem


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gama", "gamma"),
        ("train.lr_haed", "train.lr_head"),
        ("train.querry.epochs", "train.query.epochs"),
        ("bit", "bits"),
        ("pairs", "pair"),
        ("lr_head", "train.lr_head"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    error = refusal({name: [1, 2]})
    assert isinstance(error, UnknownNameError)
    assert error.key == name
    assert nearest in error.problem


def test_hyperparameters_are_those_of_the_method():
    assert space_of("csq", {"lambda_q": [0.0, 0.1]}, pairs=PAIRS).searched == ["lambda_q"]
    with pytest.raises(UnknownNameError, match="unknown name to search 'gamma'"):
        space_of("csq", {"gamma": [1.0, 2.0]}, pairs=PAIRS)


@pytest.mark.parametrize(
    ("given", "key", "problem"),
    [
        (
            {"margin": {"type": "float", "low": 0, "high": 3}},
            "margin.high",
            "less than or equal to 2",
        ),
        (
            {"margin": {"type": "float", "low": -1, "high": 1}},
            "margin.low",
            "greater than or equal to 0",
        ),
        ({"tau": {"type": "float", "low": 0, "high": 1}}, "tau.low", "greater than 0"),
        ({"gamma": [1.0, -1.0]}, "gamma.1", "greater than or equal to 0"),
        (
            {"gamma": {"type": "categorical", "choices": [1.0, "x"]}},
            "gamma.choices.1",
            "valid number",
        ),
        ({"gamma": [1.0, True]}, "gamma.1", "valid number"),
        ({"gamma": -1.0, "tau": [0.1, 0.2]}, "gamma", "greater than or equal to 0"),
        (
            {"gamma": {"type": "fixed", "value": -1}, "tau": [0.1, 0.2]},
            "gamma.value",
            "greater than or equal to 0",
        ),
        ({"instance": ["binary_sg", "contr_gs"]}, "instance.1", "did you mean 'contr_sg'"),
        (
            {"instance": {"type": "int", "low": 0, "high": 2}},
            "instance.type",
            "give a list of values, of binary_sg, cont_sg",
        ),
        (
            {"query_center": {"type": "float", "low": 0, "high": 1}},
            "query_center.type",
            "give a list of values, of false, true",
        ),
        ({"query_center": [0, 1]}, "query_center.0", "valid boolean"),
        (
            {"quantizer": [None, {"name": "caq", "weight": 0}]},
            "quantizer.1.weight",
            "greater than 0",
        ),
        (
            {"train.lr_head": {"type": "float", "low": -1, "high": 1}},
            "train.lr_head.low",
            "greater than or equal to 0",
        ),
        (
            {"train.momentum": {"type": "float", "low": 0, "high": 1}},
            "train.momentum.high",
            "less than 1",
        ),
        (
            {"train.epochs": {"type": "float", "low": 1, "high": 9}},
            "train.epochs.type",
            "takes whole numbers, so its type is int",
        ),
        ({"train.epochs": [1.5, 2]}, "train.epochs.0", "valid integer"),
        (
            {"train.query.optimizer": ["adam", "sdg"]},
            "train.query.optimizer.1",
            "did you mean 'sgd'",
        ),
        (
            {"bits": {"type": "int", "low": 8, "high": 2048}},
            "bits.high",
            "whole numbers from 1 to 1024",
        ),
        (
            {"bits": {"type": "log_float", "low": 8, "high": 64}},
            "bits.type",
            "takes whole numbers",
        ),
        ({"bits": [16, True]}, "bits.1", "whole numbers from 1 to 1024"),
        ({"bits": [16, 32.0]}, "bits.1", "whole numbers from 1 to 1024"),
        ({"pair": ["small", "tinny"]}, "pair.1", "did you mean 'tiny'"),
        ({"pair": ["small", 3]}, "pair.1", "must be one of small, tiny"),
        (
            {"pair": {"type": "int", "low": 0, "high": 1}},
            "pair.type",
            "give a list of values, of small, tiny",
        ),
        ({"gamma": 3.0, "bits": 16}, None, "nothing to search"),
        ([1, 2], None, "'default', or a mapping"),
        ("defualt", None, "'default', or a mapping"),
        ({"gamma": {"type": "log_float", "low": 5, "high": 1}}, "gamma", "must be below"),
    ],
)
def test_values_that_their_owner_refuses_are_refused_by_key(given, key, problem):
    error = refusal(given)
    assert error.key == key
    assert problem in error.problem


@pytest.mark.parametrize(
    "given",
    [
        {"gamma": {"type": "int", "low": 1, "high": 1000, "log": True}},
        {"quantizer": [None, "caq", {"name": "caq", "mode": "replace"}]},
        {"bits": {"type": "int", "low": 16, "high": 48, "step": 16}, "pair": ["tiny", "small"]},
        {"gamma": 10, "tau": [0.1, 0.2]},
        {"assign": ["A_q", "A_g"], "query_center": [True, False]},
    ],
)
def test_what_has_a_place_for_it_takes_it(given):
    assert set(space_of("csch", given, pairs=PAIRS, base={}).dimensions) == set(given)


def test_a_fraction_of_anchors_is_none_even_where_null_is_allowed():
    error = refusal({"centroids": {"type": "float", "low": 16, "high": 64}}, "ssp")
    assert error.key == "centroids.type"
    found = space_of("ssp", {"centroids": {"type": "int", "low": 16, "high": 64}}, pairs=PAIRS)
    assert found.searched == ["centroids"]


# ---- what is not read --------------------------------------------------------------------------

MARGINS = {"type": "float", "low": 0.5, "high": 1.5}


def test_searching_what_is_not_read_is_refused_with_what_would_read_it():
    error = refusal({"contrastive_margin": MARGINS}, base={})
    assert error.key == "contrastive_margin"
    assert "read only with instance: contr_sg or contr_grad, here it is binary_sg" in error.problem


def test_a_wrong_value_of_the_study_is_left_to_whoever_reads_it():
    base = {"gama": 1.0, "instance": "contr_gs"}
    assert set(default_ranges("csch", base)) == {"margin", "tau"}
    assert space_of("csch", {"tau": [0.1, 0.2]}, pairs=PAIRS, base=base).searched == ["tau"]


def test_it_is_searched_where_the_study_has_what_reads_it():
    given = {"contrastive_margin": MARGINS}
    assert space_of("csch", given, pairs=PAIRS, base={"instance": "contr_sg"}).searched


def test_it_is_searched_where_the_space_has_what_reads_it():
    given = {
        "instance": ["binary_sg", "contr_sg"],
        "contrastive_margin": {**MARGINS, "when": {"instance": ["contr_sg"]}},
    }
    assert len(space_of("csch", given, pairs=PAIRS, base={}).searched) == 2
    without = {**given, "instance": ["binary_sg", "cont_sg"], "contrastive_margin": MARGINS}
    assert refusal(without, base={}).key == "contrastive_margin"
