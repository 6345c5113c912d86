"""What a search may be asked for."""

from typing import get_args

import pytest
from pydantic import ValidationError

from search_spaces.options import (
    Design,
    Limit,
    Objective,
    PrunerName,
    SamplerName,
    Sensitivity,
    Tuning,
    WarmStart,
)


@pytest.mark.parametrize("sampler", [s for s in get_args(SamplerName) if s != "nsga2"])
@pytest.mark.parametrize("pruner", get_args(PrunerName))
def test_every_sampler_of_one_objective_goes_with_every_pruner(sampler, pruner):
    options = Tuning(sampler=sampler, pruner=pruner)
    assert (options.sampler, options.pruner) == (sampler, pruner)


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_several_objectives_go_with_every_sampler_but_cmaes(sampler):
    if sampler != "cmaes":
        assert Tuning(sampler=sampler, objectives=["map", "bits"]).sampler == sampler
        return
    with pytest.raises(ValidationError, match="one objective; take nsga2, tpe, gp, random or"):
        Tuning(sampler=sampler, objectives=["map", "bits"])


@pytest.mark.parametrize("objective", [o for o in get_args(Objective) if o != "map"])
def test_every_objective_is_traded_and_limited(objective):
    options = Tuning(objectives=["map", objective], constraints={objective: Limit(max=2.0)})
    assert options.objectives == ["map", objective]
    assert options.constraints[objective].max == 2.0


@pytest.mark.parametrize("design", get_args(Design))
def test_every_design_has_its_name(design):
    assert Sensitivity(design=design).design == design


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objectives": ["bits"]}, "must contain 'map'"),
        ({"objectives": ["map", "map"]}, "must not repeat"),
        ({"objectives": []}, "at least 1"),
        ({"objectives": ["map", "bits"], "pruner": "asha"}, "pruner: none"),
        ({"sampler": "nsga2"}, "wants several objectives"),
        ({"constraints": {"map": {"min": 0.5}}}, "not known before training"),
        ({"constraints": {"bits": {}}}, "give min, max or both"),
        ({"constraints": {"bits": {"min": 3.0, "max": 2.0}}}, "min 3 is above max 2"),
        ({"sampler": "magic"}, "tpe"),
        ({"pruner": "magic"}, "asha"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"parallel": 0}, "greater than or equal to 1"),
        ({"per_gallery": 0}, "greater than or equal to 1"),
        ({"startup": -1}, "greater than or equal to 0"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"samplers": "tpe"}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        Tuning(**given)


def test_the_defaults_are_tpe_from_the_published_values_without_stopping():
    options = Tuning()
    assert (options.sampler, options.pruner, options.objectives) == ("tpe", "none", ["map"])
    assert (options.trials, options.parallel, options.startup) == (50, 4, 10)
    assert (options.per_gallery, options.constraints, options.storage) == (1, {}, None)
    assert options.warm_start == WarmStart(defaults=True, studies=[], best=5, points=[])
