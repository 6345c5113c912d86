"""Studies that ship: named as their files, and every one plans where its data are there."""

from pathlib import Path

import pytest

from orchestrator.plan import build_plan
from orchestrator.study import load_study
from search_spaces.presets import presets


def test_presets_are_found_by_the_names_of_their_files():
    found = presets()
    assert {"quickstart", "cifar10_mini"} <= set(found)
    assert all(path.is_file() and path.name == f"{name}.yaml" for name, path in found.items())


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_presets_header_says_how_to_run_it(name):
    text = presets()[name].read_text(encoding="utf-8")
    assert f"asymbench run {name}" in text


def test_the_quickstart_shares_its_galleries(tmp_path):
    study, _ = load_study(presets()["quickstart"].read_text(), "quickstart.yaml", Path.cwd())
    plan = build_plan(study, folder=Path.cwd(), home=tmp_path)
    # 4 methods x 2 lengths x 2 query networks; by length one gallery of csch, which l2 distils
    # from too, one of orthohash and one of csq, and each serves both query networks
    assert len(plan.trials) == 16
    assert len(plan.of_kind("gallery")) == 6
