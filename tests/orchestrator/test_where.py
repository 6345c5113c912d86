"""Settings that differ from cell to cell of one study, as papers have them."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.plan import Plan, Planner
from orchestrator.study import Study, load_study
from retrieval.datasets import open_dataset
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
        ({"only": []}, "where", "leaves no method in any cell"),
        ({"train": {"epochs": 0}}, "where.0.train.epochs", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, where, key, part):
    with pytest.raises(InputError) as caught:
        planned(tmp_path, where)
    assert caught.value.key == key
    assert part in str(caught.value)


# ---- a part of a study, by --set ---------------------------------------------------------------

SETTINGS = [
    {"dataset": "few", "methods": {"csch": {"gamma": 1.0}}},
    {
        "dataset": ["few", "many"],
        "bits": [16, 32],
        "methods": {"csch": {"margin": 0.3}, "csq": {}},
    },
    {"pair": ["upper"], "only": ["csch"]},
    {"dataset": "many", "pair": "effnet-resnet", "bits": 32, "train": {"lr_head": 1e-4}},
]


def of(home: Path, *overrides: str, where: list[dict] = SETTINGS, **changes: object) -> Study:
    text = yaml.safe_dump({**STUDY, "where": where, **changes})
    return load_study(text, "s.yaml", home, overrides)[0]


def cells_of(study: Study, home: Path) -> dict[str, tuple]:
    plan = Planner(study, folder=home, home=home).plan
    return {t.id: (t.dataset, t.pair, t.method, t.bits) for t in plan.trials}


MANY = json.dumps(STUDY["datasets"][1])
UPPER = json.dumps(STUDY["pairs"][1])


@pytest.mark.parametrize(
    ("override", "place", "name"),
    [
        (f"datasets=[{MANY}]", 0, "many"),
        (f"datasets={MANY}", 0, "many"),
        (f"pairs=[{UPPER}]", 1, "upper"),
        ("methods=[csch]", 2, "csch"),
        ("methods={csq: {}}", 2, "csq"),
        ("bits=32", 3, 32),
        ("bits=[16]", 3, 16),
    ],
)
def test_a_part_by_set_is_what_the_whole_study_has_of_it(tmp_path, override, place, name):
    whole = cells_of(of(tmp_path), tmp_path)
    expected = {i: cell for i, cell in whole.items() if cell[place] == name}
    assert 0 < len(expected) < len(whole)
    assert cells_of(of(tmp_path, override), tmp_path) == expected


def test_an_entry_that_takes_the_place_of_one_is_another(tmp_path):
    study = of(tmp_path, "datasets.1={name: digits, label: other}")
    assert {cell[0] for cell in cells_of(study, tmp_path).values()} == {"few", "other"}


@pytest.mark.parametrize(
    ("alias", "other", "told"),
    [
        ("dataset", "{name: digits, label: other}", ["where.0 (dataset digits)"]),
        ("pair", "small", ["where.0 (pair tiny)"]),
        ("method", "csq", []),
    ],
)
def test_a_single_key_is_replaced_as_a_list_is(tmp_path, alias, other, told):
    given = {"study": "s", "dataset": "digits", "pair": "tiny", "method": "csch", "bits": 16}
    given["where"] = [{"dataset": "digits", "pair": "tiny", "only": ["csch"]}]
    study, _ = load_study(yaml.safe_dump(given), "s.yaml", tmp_path, [f"{alias}={other}"])
    assert study.idle() == told
    with pytest.raises(InputError, match=f"unknown {alias} of this study"):
        load_study(yaml.safe_dump({**given, alias: yaml.safe_load(other)}), "s.yaml", tmp_path)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["datasets.1.label=mine"], "where.1.dataset: unknown dataset of this study 'many'"),
        (["pairs.1.name=mine"], "where.2.pair: unknown pair of this study 'upper'"),
        (["train.epochs=1", "where.0.dataset=fwe"], "did you mean 'few'"),
        (["datasets=[digits]", "where.0.dataset=fwe"], "did you mean 'few'"),
        (["bits=16", "where.3.bits=24"], "the study has 16, 32 (given: 24)"),
        (["pairs=[tiny]", "where.0.dataset=upper"], "unknown dataset of this study 'upper'"),
    ],
)
def test_a_name_that_neither_the_file_nor_set_has_is_refused(tmp_path, overrides, part):
    with pytest.raises(InputError) as caught:
        of(tmp_path, *overrides)
    assert part in str(caught.value).replace("  ", " ")


def test_a_wrong_name_in_the_file_is_refused_with_set_as_well(tmp_path):
    with pytest.raises(InputError, match="unknown dataset of this study 'mny'"):
        of(tmp_path, "datasets=[digits]", where=[{"dataset": "mny"}])


def test_what_holds_nowhere_is_told(tmp_path):
    assert of(tmp_path).idle() == []
    assert of(tmp_path, f"datasets=[{MANY}]").idle() == ["where.0 (dataset few)"]
    assert of(tmp_path, "datasets=[digits]", "pairs=[tiny]").idle() == [
        "where.0 (dataset few)",
        "where.1 (dataset few or many)",
        "where.2 (pair upper)",
        "where.3 (dataset many)",
    ]
    assert of(tmp_path, "bits=16").idle() == ["where.3 (bits 32)"]


@pytest.mark.parametrize("command", ["plan", "run"])
def test_plan_and_run_say_what_holds_nowhere(tmp_path, monkeypatch, asymbench, command):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "where": SETTINGS}))
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))

    def stop(*_):
        raise InputError("nothing is trained here")

    monkeypatch.setattr("orchestrator.session.run", stop)
    result = asymbench(command, str(path), "--set", f"datasets=[{MANY}]")
    printed = result.out if command == "plan" else result.err
    assert "where.0 (dataset few) holds nowhere in this study\n" in printed
    assert "where.1" not in printed
    assert "holds nowhere" not in "".join(asymbench(command, str(path))[1:])


@pytest.mark.parametrize(
    "override",
    [
        f"datasets=[{MANY}]",
        "methods=[csch]",
        "methods=[csq]",
        "bits=16",
        "pairs=[tiny]",
        "seeds=1",
    ],
)
def test_a_part_that_is_written_out_is_that_part(tmp_path, override):
    part = of(tmp_path, override)
    again, _ = load_study(yaml.safe_dump(part.as_written()), "again.yaml", tmp_path)
    assert cells_of(again, tmp_path) == cells_of(part, tmp_path)
    assert again.idle() == []


def test_an_empty_only_leaves_a_cell_out(tmp_path):
    plan = planned(tmp_path, {"dataset": "many", "pair": "upper", "only": []})
    cells = {(t.dataset, t.pair) for t in plan.trials}
    assert cells == {("few", "effnet-resnet"), ("few", "upper"), ("many", "effnet-resnet")}


def test_a_search_of_which_nothing_is_left_is_refused(tmp_path):
    changes = {"kind": "sensitivity", "methods": ["csch"], "search": {"gamma": [1.0, 100.0]}}
    with pytest.raises(InputError, match="leaves no method in any cell"):
        planned(tmp_path, {"only": []}, **changes)


def test_where_calls_datasets_and_pairs_as_the_plan_does(tmp_path):
    (tmp_path / "photos").mkdir()
    sides = {"query": "test_byobnet", "gallery": {"backbone": "test_resnet", "size": 32}}
    study, _ = load_study(
        yaml.safe_dump(
            {
                **STUDY,
                "datasets": [
                    "digits",
                    {**STUDY["datasets"][0], "label": "mine"},
                    {"folder": "photos"},
                    {"folder": "photos", "label": "own"},
                ],
                "pairs": ["tiny", STUDY["pairs"][1], sides],
            }
        ),
        "s.yaml",
        tmp_path,
    )
    names = study.names()
    assert names["datasets"] == ["digits", "mine", "folder", "own"]
    assert names["pairs"] == ["tiny", "upper", "test_byobnet-test_resnet"]
    assert names["methods"] == ["csch", "csq"]
    assert names["bits"] == [16, 32]
    home = {"folder": tmp_path, "home": tmp_path}
    shown = study.model_copy(update={"datasets": study.datasets[:2], "bits": [16]})
    plan = Planner(shown, **home).plan
    assert {t.dataset for t in plan.trials} == set(names["datasets"][:2])
    assert {t.pair for t in plan.trials} == set(names["pairs"])
    for place, label in ((2, "folder"), (3, "own")):
        assert open_dataset(study.datasets[place], home=tmp_path).label == label
