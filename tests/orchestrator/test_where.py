"""Settings that differ from cell to cell of one study, as papers have them."""

from pathlib import Path

import pytest
import yaml

from orchestrator.plan import Plan, Planner
from orchestrator.study import load_study
from retrieval.errors import InputError
from tests.orchestrator.conftest import BASE

PAIR = BASE["pairs"][0]
STUDY = {
    **BASE,
    "datasets": [
        {"name": "digits", "label": "few", "protocol": {"train_per_class": 20}},
        {"name": "digits", "label": "many", "protocol": {"train_per_class": 40}},
    ],
    "pairs": [PAIR, {**PAIR, "name": "upper", "query": PAIR["gallery"]}],
    "methods": ["csch", "csq"],
    "bits": [16, 32],
}


def planned(home: Path, *where: dict, **changes: object) -> Plan:
    text = yaml.safe_dump({**STUDY, "where": list(where), **changes})
    study, _ = load_study(text, "s.yaml", home)
    return Planner(study, folder=home, home=home).plan


def without(home: Path) -> Plan:
    text = yaml.safe_dump(STUDY)
    return Planner(load_study(text, "s.yaml", home)[0], folder=home, home=home).plan


def test_hyperparameters_differ_where_it_is_said_and_nowhere_else(tmp_path):
    plan = planned(tmp_path, {"dataset": "many", "methods": {"csch": {"gamma": 10.0}}})
    gammas = {(t.dataset, t.params["gamma"]) for t in plan.trials if t.method == "csch"}
    assert gammas == {("few", 100.0), ("many", 10.0)}
    same = {t.id for t in without(tmp_path).trials}
    changed = {t.id for t in plan.trials} - same
    # Of sixteen cells those of one method on one dataset: two pairs, two code lengths.
    assert len(plan.trials) == 16
    assert changed == {t.id for t in plan.trials if (t.method, t.dataset) == ("csch", "many")}
    assert len(changed) == 4
    assert {t.setting for t in plan.trials} == {""}


def test_recipes_differ_by_pair_and_bits(tmp_path):
    plan = planned(
        tmp_path,
        {"pair": "upper", "train": {"query": {"lr_head": 1e-4}}},
        {"pair": ["upper"], "bits": [32], "train": {"query": {"lr_backbone": 1e-5}}},
    )
    rates = {}
    for trial in plan.trials:
        recipe = plan.stages[trial.stages["query"]].setup["recipe"]
        rates.setdefault((trial.pair, trial.bits), set()).add(
            (recipe["lr_backbone"], recipe["lr_head"])
        )
    assert rates == {
        ("effnet-resnet", 16): {(3e-3, 3e-3)},
        ("effnet-resnet", 32): {(3e-3, 3e-3)},
        ("upper", 16): {(3e-3, 1e-4)},
        ("upper", 32): {(1e-5, 1e-4)},
    }


def test_only_some_methods_are_run_in_a_cell(tmp_path):
    plan = planned(tmp_path, {"pair": "upper", "only": ["csch"]})
    found = {(t.pair, t.method) for t in plan.trials}
    assert found == {("effnet-resnet", "csch"), ("effnet-resnet", "csq"), ("upper", "csch")}


def test_of_two_that_say_otherwise_the_later_holds(tmp_path):
    plan = planned(
        tmp_path,
        {"methods": {"csch": {"gamma": 1.0, "margin": 0.4}}, "train": {"lr_head": 1e-4}},
        {"dataset": "many", "methods": {"csch": {"gamma": 2.0}}, "train": {"lr_head": 2e-4}},
    )
    found = {
        (t.dataset, t.params["gamma"], t.params["margin"])
        for t in plan.trials
        if t.method == "csch"
    }
    assert found == {("few", 1.0, 0.4), ("many", 2.0, 0.4)}
    heads = {
        (t.dataset, plan.stages[t.stages["query"]].setup["recipe"]["lr_head"]) for t in plan.trials
    }
    assert heads == {("few", 1e-4), ("many", 2e-4)}


def test_a_cell_that_says_what_holds_anyway_changes_no_trial(tmp_path):
    plan = planned(
        tmp_path,
        {"methods": {"csch": {"gamma": 100.0}}, "train": {"query": {"lr_head": 3e-3}}},
    )
    same = without(tmp_path)
    assert [t.id for t in plan.trials] == [t.id for t in same.trials]


def test_a_search_starts_from_what_holds_in_its_cell(tmp_path):
    text = yaml.safe_dump(
        {
            **STUDY,
            "kind": "sensitivity",
            "methods": ["csch"],
            "search": {"gamma": [1.0, 100.0]},
            "where": [
                {
                    "dataset": "many",
                    "methods": {"csch": {"gamma": 1.0, "margin": 0.4}},
                    "train": {"lr_head": 1e-4},
                },
                {"pair": "upper", "only": ["csch"]},
            ],
        }
    )
    planner = Planner(load_study(text, "s.yaml", tmp_path)[0], folder=tmp_path, home=tmp_path)
    centers = {(c.dataset, planner.values_of(c)["gamma"]) for c in planner.cells}
    assert centers == {("few", 100.0), ("many", 1.0)}
    cell = next(cell for cell in planner.cells if cell.dataset == "many")
    (trial,) = planner.add(cell, {"gamma": 100.0}, [0])
    assert (trial.params["gamma"], trial.params["margin"]) == (100.0, 0.4)
    assert planner.plan.stages[trial.stages["query"]].setup["recipe"]["lr_head"] == 1e-4


@pytest.mark.parametrize(
    ("where", "key", "part"),
    [
        ({"dataset": "mny"}, "where.0.dataset", "did you mean 'many'"),
        ({"pair": ["upper", "uper"]}, "where.0.pair", "did you mean 'upper'"),
        ({"bits": 24}, "where.0.bits", "the study has 16, 32"),
        ({"only": ["cshc"]}, "where.0.only", "did you mean 'csch'"),
        ({"methods": {"dcah": {}}}, "where.0.methods", "method of this study"),
        ({"methods": {"csch": {"gama": 1.0}}}, "where.0.methods.csch.gama", "gamma"),
        ({"methods": {"csch": {"gamma": -1.0}}}, "where.0.methods.csch.gamma", "greater than"),
        ({"methods": {"csch": {"gamma": [1.0]}}}, "where.0.methods.csch.gamma", "one value"),
        ({"train": {"lr_haed": 1.0}}, "where.0.train.lr_haed", "did you mean 'lr_head'"),
        ({"train": {"query": {"lr_head": -1.0}}}, "where.0.train.query.lr_head", "greater than"),
        ({"train": {"query": 3}}, "where.0.train.query", "mapping"),
        ({"datset": "many"}, "where.0.datset", "did you mean 'dataset'"),
        ({"train": {"epochs": 0}}, "where.0.train.epochs", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, where, key, part):
    with pytest.raises(InputError) as caught:
        planned(tmp_path, where)
    assert caught.value.key == key
    assert part in str(caught.value)
