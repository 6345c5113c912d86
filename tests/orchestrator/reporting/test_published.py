"""Published numbers: beside the trials that they are about, and beside no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import plan as planning
from orchestrator.plan import Plan, build_plan
from orchestrator.reporting.published import Conditions, conditions_of, find_published
from orchestrator.study import load_study
from search_spaces.presets import presets
from tests.orchestrator.scored import OfSizes

SIZES = {
    "cifar10": {"query": 1_000, "gallery": 59_000, "train": 5_000},
    "imagenet100": {"query": 5_000, "gallery": 128_503, "train": 13_000},
    "coco": {"query": 5_000, "gallery": 117_218, "train": 10_000},
}
AT = {"cifar10": "all", "imagenet100": 1_000, "coco": 5_000}
BITS = (12, 24, 32, 48)

# Copied out of the paper's tables by hand.
TABLE_2 = {
    ("mnv3s-rn50", "csch", "cifar10"): (0.8665, 0.8792, 0.8870, 0.8924),
    ("mnv3s-rn50", "daph", "imagenet100"): (0.0577, 0.4065, 0.6591, 0.7331),
    ("mnv3s-rn50", "csq", "coco"): (0.6944, 0.7926, 0.8132, 0.8333),
    ("mnv3l-rn101", "orthohash", "coco"): (0.7695, 0.8389, 0.8546, 0.8754),
    ("mnv3l-rn101", "mdsh", "cifar10"): (0.8594, 0.8735, 0.8678, 0.8749),
    ("rn101-rn101", "csch", "imagenet100"): (0.8638, 0.8986, 0.9018, 0.9088),
}
TABLE_8 = {
    "mnv3s-rn50-160": 0.8134,
    "mnv3s-rn50-196": 0.8337,
    "mnv3s-rn50-224": 0.8440,
    "mnv3s-rn50-256": 0.8494,
    "mnv3l-rn101-160": 0.8452,
    "mnv3l-rn101-196": 0.8638,
    "mnv3l-rn101-224": 0.8705,
    "mnv3l-rn101-256": 0.8792,
}


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Plan a study on datasets of which only the counts are there."""

    def opened(given: Any, home: Path) -> OfSizes:
        name = given["name"]
        return OfSizes(name, SIZES[name], AT[name], multi_label=name == "coco")

    def plan(text: str, *overrides: str) -> Plan:
        monkeypatch.setattr(planning, "open_dataset", opened)
        study, _ = load_study(text, "study.yaml", tmp_path, overrides)
        return build_plan(study, folder=tmp_path, home=tmp_path)

    return plan


def preset(number: int) -> str:
    return presets()[f"table{number}"].read_text()


def published(plan: Plan, score: str = "map_orthohash"):
    return {
        (trial.pair, trial.method, trial.setting, trial.dataset, trial.bits): find_published(
            conditions_of(plan, trial), score
        )
        for trial in plan.trials
    }


@pytest.fixture
def cifar(planned) -> Conditions:
    """CSCH at 12 bits on CIFAR-10, as the paper has it."""
    plan = planned(preset(2))
    (trial,) = (
        t
        for t in plan.trials
        if (t.method, t.dataset, t.pair, t.bits) == ("csch", "cifar10", "mnv3s-rn50", 12)
    )
    return conditions_of(plan, trial)


def test_every_trial_of_table_2_has_the_number_that_the_paper_prints(planned):
    found = published(planned(preset(2)))
    # 2 pairs x 5 methods and 2 upper bounds, 3 datasets, 4 code lengths
    assert len(found) == 144
    assert all(one is not None and one.differs == () for one in found.values())
    assert all("2" in one.tables and one.paper == "CSCH" for one in found.values())
    for (pair, method, dataset), values in TABLE_2.items():
        for bits, value in zip(BITS, values, strict=True):
            (one,) = (
                v
                for k, v in found.items()
                if (k[0], k[1], k[3], k[4]) == (pair, method, dataset, bits)
            )
            assert one.value == value
            assert one.dagger == (method != "csch")


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_every_trial_of_an_ablation_has_the_number_of_its_table(planned, number):
    found = published(planned(preset(number)))
    assert all(one is not None and one.differs == () for one in found.values())
    tables = [one.tables.split(" ", 1)[1].split(", ") for one in found.values()]
    assert all(str(number) in listed for listed in tables)


def test_ablations_by_hand(planned):
    table4 = published(planned(preset(4)))
    by_instance = {
        k[2].removeprefix("instance="): v.value for k, v in table4.items() if k[4] == 12
    }
    assert by_instance == {
        "none": 0.7568,
        "released_code": 0.7675,
        "contr_grad": 0.6910,
        "cont_sg": 0.7744,
        "contr_sg": 0.6985,
        "binary_sg": 0.7798,
    }
    table6 = published(planned(preset(6)))
    at_48 = {k[2]: v.value for k, v in table6.items() if k[3] == "imagenet100" and k[4] == 48}
    assert at_48 == {
        "assign=A_r": 0.8015,
        "assign=A_q": 0.8073,
        "assign=A_g": 0.8016,
        "assign=A_b": 0.8050,
    }


def test_image_sizes_are_told_apart(planned):
    found = published(planned(preset(8)))
    assert {key[0]: one.value for key, one in found.items()} == TABLE_8
    at_224 = found["mnv3s-rn50-224", "csch", "", "coco", 32]
    assert at_224.tables == "Tables 2, 4, 5, 6, 7, 8"


def test_a_network_that_the_paper_leaves_open_is_not_compared(planned):
    found = published(planned(preset(3)))
    for (pair, *_), one in found.items():
        assert one.comparable == (pair == "vitb16-vitb16")
        assert one.differs == () or "not clear" in one.differs[0]
    assert found["mvitxs-vitb16", "mdsh", "", "coco", 24].value == 0.8323


def test_the_score_must_be_counted_as_the_paper_counts_it(cifar):
    assert find_published(cifar, "map_orthohash").comparable
    plain = find_published(cifar, "map")
    assert (plain.value, plain.comparable) == (0.8665, False)
    assert "evaluate.legacy" in plain.differs[0]


def changed(own: Conditions, **changes: Any) -> Conditions:
    return replace(own, **changes)


def of_side(own: Conditions, side: str, **changes: Any) -> Conditions:
    return replace(own, sides={**own.sides, side: {**own.sides[side], **changes}})


def of_recipe(own: Conditions, side: str, **changes: Any) -> Conditions:
    return replace(own, recipes={**own.recipes, side: {**own.recipes[side], **changes}})


@pytest.mark.parametrize(
    "other",
    [
        lambda own: changed(own, dataset="digits"),
        lambda own: changed(own, at="1000"),
        lambda own: changed(own, bits=16),
        lambda own: changed(own, method="ssp"),
        lambda own: changed(own, sizes={**own.sizes, "gallery": 54_000}),
        lambda own: changed(own, sizes={**own.sizes, "query": 10_000}),
        lambda own: changed(own, sizes={**own.sizes, "train": 2_000}),
        lambda own: changed(own, params={**own.params, "instance": "contr_sg"}),
        lambda own: changed(own, params={**own.params, "quantizer": {"name": "caq"}}),
        lambda own: of_side(own, "query", size=64),
        lambda own: of_side(own, "gallery", size=64),
        lambda own: of_side(own, "query", backbone="resnet18.a1_in1k"),
        lambda own: of_side(own, "gallery", backbone="resnet18.a1_in1k"),
    ],
)
def test_nothing_is_said_of_another_protocol_network_size_method_or_code_length(cifar, other):
    assert find_published(cifar, "map_orthohash") is not None
    assert find_published(other(cifar), "map_orthohash") is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda own: of_recipe(own, "query", epochs=8), "query: epochs 8, not 150"),
        (lambda own: of_recipe(own, "gallery", batch_size=32), "gallery: batch_size 32, not 64"),
        (lambda own: of_recipe(own, "query", lr_head=0.003), "query: lr_head 0.003, not 0.0001"),
        (
            lambda own: of_recipe(own, "query", schedule="cosine"),
            "query: schedule cosine, not constant",
        ),
        (lambda own: of_recipe(own, "query", clip_norm=1.0), "query: clip_norm 1, not None"),
        (
            lambda own: of_side(own, "query", weights="random"),
            "query: weights random, not pretrained:lamb_in1k",
        ),
        (
            lambda own: of_side(own, "gallery", weights=f"sha256:{'a' * 64}"),
            "gallery: weights sha256:aaaaaaa..., not pretrained:a1_in1k",
        ),
        (lambda own: of_side(own, "query", drop_rate=0.0), "query: drop_rate 0, not 0.2"),
        (lambda own: changed(own, params={**own.params, "gamma": 10.0}), "gamma 10, not 100"),
        (lambda own: changed(own, params={**own.params, "tau": 1.0}), "tau 1, not 0.125"),
        (lambda own: changed(own, augmentation=False), "another augmentation"),
    ],
)
def test_what_differs_otherwise_is_said_and_no_difference_is_given(cifar, other, said):
    found = find_published(other(cifar), "map_orthohash")
    assert found.value == 0.8665
    assert (found.differs, found.comparable) == ((said,), False)


def test_learning_rates_are_those_of_the_dataset_and_the_query_network(planned):
    only = "where=[{pair: [rn50-rn50, rn101-rn101], only: [csch]}]"
    found = published(planned(preset(2), only, "datasets=[{name: coco}]"))
    small = found["mnv3s-rn50", "csch", "", "coco", 12]
    assert small.differs == (
        "query: lr_backbone 1e-05, not 2e-05",
        "query: lr_head 0.0001, not 0.0002",
    )
    assert found["mnv3l-rn101", "csch", "", "coco", 12].differs == ()


def test_a_study_of_other_data_has_none(tmp_path):
    text = yaml.safe_dump(
        {"study": "s", "datasets": ["digits"], "pairs": ["tiny"], "methods": ["csch"], "bits": 16}
    )
    study, _ = load_study(text, "s.yaml", tmp_path)
    plan = build_plan(study, folder=tmp_path, home=tmp_path)
    assert [conditions_of(plan, trial) for trial in plan.trials] == [None]
