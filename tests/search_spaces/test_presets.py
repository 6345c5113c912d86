"""Studies that ship: named as their files, planned on datasets of the real sizes, as published."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from methods.base import METHODS
from methods.pairs import SideSpec
from orchestrator.plan import Plan, Planner, Trial, build_plan
from orchestrator.study import Study, load_study
from retrieval.datasets.base import DatasetIndex
from retrieval.datasets.cifar10 import CLASSES, Cifar10
from retrieval.datasets.coco import Coco
from retrieval.datasets.imagenet100 import ImageNet100
from search_spaces.designs import points
from search_spaces.presets import presets

SEARCHES = {"csch_sensitivity", "csch_sensitivity_digits", "csch_tuning", "digits_tuning"}
BITS = [12, 24, 32, 48]
BASELINES = ["daph", "csq", "orthohash", "mdsh"]


@cache
def loaded(name: str) -> Study:
    study, _ = load_study(presets()[name].read_text("utf-8"), f"{name}.yaml", Path.cwd())
    return study


# ---- datasets of the real sizes ----------------------------------------------------------------


@cache
def _cifar10() -> DatasetIndex:
    labels = np.repeat(np.arange(10), 6_000)
    keys = [f"{CLASSES[label]}/{n:05}.png" for n, label in enumerate(labels)]
    return DatasetIndex(keys, labels, list(CLASSES), "c" * 64)


@cache
def _imagenet100() -> DatasetIndex:
    classes = [f"n{number:08}" for number in range(100)]
    train = [(f"train/{c}/{n}.JPEG", k) for k, c in enumerate(classes) for n in range(1_285)]
    val = [(f"val/{c}/{n}.JPEG", k) for k, c in enumerate(classes) for n in range(50)]
    keys, labels = zip(*train, *val, strict=True)
    return DatasetIndex(list(keys), np.array(labels), classes, "i" * 64)


@cache
def _coco() -> DatasetIndex:
    labels = np.zeros((122_218, 80), dtype=np.uint8)
    rows = np.arange(len(labels))
    for shift in (0, 7, 31):  # three labels an image
        labels[rows, (rows + shift) % 80] = 1
    keys = [f"train2017/{row:012}.jpg" for row in rows]
    return DatasetIndex(keys, labels, [f"class {n}" for n in range(80)], "o" * 64)


@pytest.fixture
def real_sizes(monkeypatch):
    """Datasets that need files have their real number of images and classes, and no pixels."""
    for cls, index in ((Cifar10, _cifar10), (ImageNet100, _imagenet100), (Coco, _coco)):
        monkeypatch.setattr(cls, "load_index", lambda self, index=index: index())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@cache
def planned(name: str, home: Path) -> Plan:
    return build_plan(loaded(name), folder=Path.cwd(), home=home)


# ---- all of them -------------------------------------------------------------------------------


def test_presets_are_found_by_the_names_of_their_files():
    found = presets()
    assert {"quickstart", "cifar10_mini", "all_methods", *SEARCHES} <= set(found)
    assert all(path.is_file() and path.name == f"{name}.yaml" for name, path in found.items())


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_is_named_and_described_and_its_header_says_how_to_run_it(name):
    study = loaded(name)
    command = "tune" if study.kind == "tuning" else "run"
    assert f"# Command:  asymbench {command} {name}" in presets()[name].read_text("utf-8")
    assert study.study == name
    assert study.description


@pytest.mark.parametrize("name", sorted(set(presets()) - SEARCHES))
def test_every_benchmark_plans(name, home, real_sizes):
    study, plan = loaded(name), planned(name, home)
    assert {trial.bits for trial in plan.trials} == set(study.bits)
    assert len({trial.id for trial in plan.trials}) == len(plan.trials)


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_every_search_plans_up_to_the_ends_of_its_space(name, tmp_path, real_sizes):
    planner = Planner(loaded(name), folder=Path.cwd(), home=tmp_path)
    assert [cell.method for cell in planner.cells] == ["csch"]
    (cell,) = planner.cells
    assert planner.values_of(cell) in cell.space  # it begins at the published setting


def _counts(name: str) -> dict[str, int]:
    """Return what the header says a study costs: trials, and trainings by kind."""
    text = presets()[name].read_text("utf-8").split("study:")[0]
    cost = " ".join(text.split("# Cost:")[1].split("# Command:")[0].replace("#", " ").split())
    found = {"trials": int(re.match(r"(\d+) trials", cost)[1])}
    for kind, words in (
        ("gallery", "of a gallery"),
        ("query", "of a query"),
        ("joint", "of both"),
    ):
        # "16 trainings of a gallery, which 12 of a query share, and 8 of both"
        matches = re.findall(rf"(\d+) (?:trainings )?{words}", cost)
        found[kind] = int(matches[0]) if matches else 0
        assert len(matches) <= 1
    return found


TABLES = [f"table{number}" for number in range(2, 9)]
COUNTED = [*TABLES, "all_methods"]


@pytest.mark.parametrize("name", COUNTED)
def test_the_cost_in_a_tables_header_is_that_of_its_plan(name, home, real_sizes):
    plan = planned(name, home)
    kinds = Counter(stage.kind for stage in plan.stages.values())
    assert _counts(name) == {
        "trials": len(plan.trials),
        "gallery": kinds["gallery"],
        "query": kinds["query"],
        "joint": kinds["joint"],
    }


def test_the_quickstart_shares_its_galleries(home):
    plan = planned("quickstart", home)
    # 4 methods x 2 lengths x 2 query networks; by length one gallery of csch, which l2 distils
    # from too, one of orthohash and one of csq, and each serves both query networks
    assert len(plan.trials) == 16
    assert len(plan.of_kind("gallery")) == 6


# ---- the published tables ----------------------------------------------------------------------


def row(data: str, pair: str, method: str, given: dict, bits: int) -> tuple:
    """Return what a cell of a table is of; hyperparameters that are not given are the defaults."""
    params = METHODS.get(method).Params.parse(given).model_dump(mode="json")
    return data, pair, method, json.dumps(params, sort_keys=True), bits


def rows(plan: Plan) -> set[tuple]:
    """Return the rows of a plan's trials."""
    return {row(t.dataset, t.pair, t.method, t.params, t.bits) for t in plan.trials}


CSCH = {
    "cifar10": {"gamma": 100.0, "margin": 0.3},
    "imagenet100": {"gamma": 10.0, "margin": 0.2},
    "coco": {"gamma": 100.0, "margin": 0.2},
}
"""Section 4.3 of the paper; tau is 1/8 and the assignment A_q, which are the defaults."""


def csch(data: str, **more: object) -> dict:
    return {**CSCH[data], **more}


def baseline(method: str, data: str) -> dict:
    """OrthoHash's margin is that of its code: 0.3 on CIFAR-10, else 0.2."""
    return {"margin": 0.3 if data == "cifar10" else 0.2} if method == "orthohash" else {}


def test_there_is_one_file_for_each_table():
    assert sorted(name for name in presets() if name.startswith("table")) == TABLES


def test_table_2_has_every_row_and_column(home, real_sizes):
    expected = set()
    for data, bits in itertools.product(CSCH, BITS):
        for pair in ("mnv3s-rn50", "mnv3l-rn101"):
            expected |= {row(data, pair, m, baseline(m, data), bits) for m in BASELINES}
            expected.add(row(data, pair, "csch", csch(data), bits))
        for pair in ("rn50-rn50", "rn101-rn101"):
            expected.add(row(data, pair, "csch", csch(data), bits))
    assert len(expected) == 12 * 12  # 12 rows, 3 datasets x 4 lengths
    assert rows(planned("table2", home)) == expected


def test_table_3_has_every_row_and_column_with_both_readings_of_its_query_network(
    home, real_sizes
):
    expected = set()
    for bits in BITS:
        for pair in ("mvitxxs-vitb16", "mvitxs-vitb16"):
            expected |= {row("coco", pair, m, baseline(m, "coco"), bits) for m in BASELINES}
            expected.add(row("coco", pair, "csch", csch("coco"), bits))
        expected.add(row("coco", "vitb16-vitb16", "csch", csch("coco"), bits))
    assert rows(planned("table3", home)) == expected


def _on(data: str, given: dict, bits: list[int] = BITS, pair: str = "mnv3s-rn50") -> set[tuple]:
    return {row(data, pair, "csch", given, length) for length in bits}


def test_table_4_has_every_instance_term_with_and_without_a_gradient_to_the_gallery(
    home, real_sizes
):
    terms = ["none", "released_code", "contr_grad", "cont_sg", "contr_sg", "binary_sg"]
    expected = set().union(*(_on("coco", csch("coco", instance=term)) for term in terms))
    assert rows(planned("table4", home)) == expected


def test_the_gradient_reaches_the_gallery_in_two_rows_of_table_4(home, real_sizes):
    trials = planned("table4", home).trials
    joint = {trial.params["instance"] for trial in trials if "joint" in trial.stages}
    assert joint == {"released_code", "contr_grad"}


def test_table_5_has_the_querys_two_terms_alone_and_together(home, real_sizes):
    expected = set()
    for data in ("imagenet100", "coco"):
        expected |= _on(data, csch(data, instance="none"))
        expected |= _on(data, csch(data, query_center=False))
        expected |= _on(data, csch(data))
    assert rows(planned("table5", home)) == expected


def test_table_6_has_every_assignment(home, real_sizes):
    expected = set()
    for data, assign in itertools.product(("imagenet100", "coco"), ("A_r", "A_q", "A_g", "A_b")):
        expected |= _on(data, csch(data, assign=assign))
    assert rows(planned("table6", home)) == expected


def test_table_7_has_every_center_loss_at_three_lengths(home, real_sizes):
    losses = ("bce", "label_smoothing", "csch")
    expected = set().union(
        *(_on("coco", csch("coco", center_loss=loss), [12, 24, 32]) for loss in losses)
    )
    assert rows(planned("table7", home)) == expected


def test_table_8_has_every_crop_of_both_pairs(home, real_sizes):
    expected = set()
    for pair, size in itertools.product(("mnv3s-rn50", "mnv3l-rn101"), (160, 196, 224, 256)):
        expected |= _on("coco", csch("coco"), [32], f"{pair}-{size}")
    assert rows(planned("table8", home)) == expected
    for pair in loaded("table8").pairs:
        size = int(pair["name"].rpartition("-")[2])
        assert pair["query"]["size"] == pair["gallery"]["size"] == size


def test_table_8_has_the_columns_of_table_2_at_its_size(home, real_sizes):
    eight = {trial.id: trial.pair for trial in planned("table8", home).trials}
    two = {trial.id: trial.pair for trial in planned("table2", home).trials}
    common = eight.keys() & two.keys()
    assert {(eight[i], two[i]) for i in common} == {
        ("mnv3s-rn50-224", "mnv3s-rn50"),
        ("mnv3l-rn101-224", "mnv3l-rn101"),
    }


def _recipe(plan: Plan, trial: Trial, side: str) -> dict:
    """Return the recipe that trains one side of a trial."""
    if "joint" in trial.stages:
        return plan.stages[trial.stages["joint"]].setup["recipes"][side]
    return plan.stages[trial.stages[side]].setup["recipe"]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_trained_as_section_4_3_says(name, home, real_sizes):
    plan = planned(name, home)
    for trial in plan.trials:
        assert trial.at == {"cifar10": "all", "imagenet100": 1000, "coco": 5000}[trial.dataset]
        small = trial.query_backbone == "mobilenetv3_small_100.lamb_in1k"
        for side in ("query", "gallery"):
            recipe = _recipe(plan, trial, side)
            fixed = ("epochs", "batch_size", "optimizer", "weight_decay", "schedule")
            assert [recipe[part] for part in fixed] == [150, 64, "adam", 5e-4, "constant"]
            twice = small and side == "query" and trial.dataset != "cifar10"
            rate = 2e-5 if twice else 1e-5
            assert (recipe["lr_backbone"], recipe["lr_head"]) == (rate, pytest.approx(10 * rate))
        if trial.method == "csch":
            assert trial.params["tau"] == 0.125
    sides = {
        (side["backbone"], side["size"], side["weights"].split(":")[0])
        for stage in plan.stages.values()
        for side in stage.identity.values()
        if isinstance(side, dict) and "backbone" in side
    }
    assert {weights for _, _, weights in sides} == {"pretrained"}
    assert {size for _, size, _ in sides} == ({160, 196, 224, 256} if name == "table8" else {224})


TITLES = {"cifar10": "CIFAR-10", "imagenet100": "ImageNet-100", "coco": "MS-COCO"}


@pytest.mark.parametrize("name", TABLES)
def test_a_tables_header_says_which_dataset_is_which_and_how_to_point_at_each(name):
    header = presets()[name].read_text("utf-8").split("study:")[0]
    data = header[header.index("# Data:") : header.index("# Cost:")]
    command = header[header.index("# Command:") :]
    for place, dataset in enumerate(loaded(name).datasets):
        assert f"datasets.{place} is {TITLES[dataset['name']]}" in data
        assert f"--set datasets.{place}.root=..." in command
    for part in ("Protocol", "Shows", "Networks", "Settings", "Departs"):
        assert f"# {part}:" in header


def _part(name: str, home: Path, *overrides: str) -> set[str]:
    """Return the ids of a table's trials that are left with ``--set``."""
    study, _ = load_study(
        presets()[name].read_text("utf-8"), f"{name}.yaml", Path.cwd(), overrides
    )
    return {trial.id for trial in build_plan(study, folder=Path.cwd(), home=home).trials}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("table2", "cifar10"),
        ("table2", "imagenet100"),
        ("table2", "coco"),
        ("table5", "imagenet100"),
        ("table5", "coco"),
        ("table6", "imagenet100"),
        ("table6", "coco"),
    ],
)
def test_one_dataset_of_a_table_is_what_the_table_has_of_it(name, data, home, real_sizes):
    whole = {trial.id for trial in planned(name, home).trials if trial.dataset == data}
    assert whole
    assert _part(name, home, f"datasets=[{{name: {data}, root: data/{data}}}]") == whole


@pytest.mark.parametrize("pair", ["mnv3s-rn50", "mnv3l-rn101", "rn50-rn50", "rn101-rn101"])
def test_one_pair_of_table_2_is_what_the_table_has_of_it(pair, home, real_sizes):
    whole = {trial.id for trial in planned("table2", home).trials if trial.pair == pair}
    assert _part("table2", home, f"pairs=[{pair}]") == whole


def test_one_method_of_table_2_has_the_settings_of_the_table(home, real_sizes):
    whole = {trial.id for trial in planned("table2", home).trials if trial.method == "csch"}
    assert _part("table2", home, "methods=[csch]") == whole
    assert len(whole) == 48


def test_all_methods_has_every_method_at_its_default(home, real_sizes):
    assert rows(planned("all_methods", home)) == {
        row("cifar10", "mnv3s-rn50", name, {}, bits) for name in METHODS.names() for bits in BITS
    }


# ---- sensitivity and tuning --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["csch_sensitivity", "csch_sensitivity_digits"])
def test_sensitivity_has_the_values_of_figure_7(name):
    study = loaded(name)
    assert study.search == {
        "gamma": [0.0, 0.1, 1.0, 10.0, 100.0, 1000.0],
        "margin": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        "tau": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0],
    }
    assert study.sensitivity.design == "one_at_a_time"
    assert study.bits == [32]
    assert len(study.seeds) == 3


def test_sensitivity_varies_around_the_published_setting_of_its_dataset():
    (grid,) = loaded("csch_sensitivity").method_grids()
    assert grid.given == {**CSCH["cifar10"], "tau": 0.125}


@pytest.mark.parametrize("name", ["csch_sensitivity", "csch_sensitivity_digits"])
def test_sensitivity_trains_as_many_networks_as_its_header_says(name, tmp_path, real_sizes):
    study = loaded(name)
    planner = Planner(study, folder=Path.cwd(), home=tmp_path)
    (cell,) = planner.cells
    made = points(cell.space, study.sensitivity, planner.values_of(cell))
    assert len(made) == 1 + 5 + 5 + 4  # the center, and the other values of each
    for number, point in enumerate(made):
        planner.add(cell, point, study.seeds, number=number)
    kinds = Counter(stage.kind for stage in planner.plan.stages.values())
    # of a seed: one gallery for all gammas, one for each other margin and tau
    assert (kinds["query"], kinds["gallery"]) == (45, 3 * (1 + 5 + 4))
    text = " ".join(presets()[name].read_text("utf-8").replace("#", " ").split())
    assert "15 points under 3 seeds" in text
    assert "45 trainings of a query, and 30 of a gallery in place of 45" in text


@pytest.mark.parametrize("name", ["csch_tuning", "digits_tuning"])
def test_points_that_share_a_gallery_differ_in_what_only_the_query_reads(
    name, tmp_path, real_sizes
):
    planner = Planner(loaded(name), folder=Path.cwd(), home=tmp_path)
    (cell,) = planner.cells
    center = planner.values_of(cell)
    shared = {}
    for dimension, found in cell.space.dimensions.items():
        for value in found.ends():
            planner.add(cell, {**center, dimension: value}, [0])
        galleries = {trial.stages["gallery"] for trial in planner.plan.trials}
        shared[dimension] = len(galleries) == 1
        planner.plan.trials.clear()
    of_query = {name for name in cell.space.dimensions if name.startswith("train.query.")}
    assert {dimension for dimension, one in shared.items() if one} == {"gamma", *of_query}
    assert {dimension for dimension, one in shared.items() if not one} == {"margin", "tau"}


def test_backbones_of_the_tables_are_the_published_ones_with_pinned_tags():
    named = {
        side["backbone"]
        for name in TABLES
        for pair in loaded(name).pairs
        if isinstance(pair, dict)
        for side in (pair["query"], pair["gallery"])
    }
    assert named == {
        "mobilenetv3_small_100.lamb_in1k",
        "mobilenetv3_large_100.ra_in1k",
        "resnet50.a1_in1k",
        "resnet101.a1h_in1k",
    }
    for backbone in named:
        SideSpec(backbone=backbone, size=224).check()


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("bits", [12, 16, 24, 32, 48, 64])
def test_every_methods_default_space_can_be_tuned_on_digits(name, bits, tmp_path):
    text = presets()["digits_tuning"].read_text("utf-8")
    study, _ = load_study(
        text,
        "digits_tuning.yaml",
        Path.cwd(),
        ["search=default", f"methods=[{name}]", f"bits={bits}"],
    )
    planner = Planner(study, folder=Path.cwd(), home=tmp_path)
    (cell,) = planner.cells
    assert planner.values_of(cell) in cell.space
