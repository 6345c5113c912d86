"""Estimates: guesses from operation counts, replaced by what was measured."""

import json
from dataclasses import replace

import pytest

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Stage
from orchestrator.store import Manifest


def stage(kind="query", backbone="resnet18", size=224, images=(100, 0), threads=1) -> Stage:
    side = {"backbone": backbone, "size": size}
    setup = {"side": side, "threads": threads} if backbone else {"threads": threads}
    return Stage(f"{kind}-{backbone}", kind, {}, {}, setup, None, kind, images)


def measured(seconds: object) -> Manifest:
    return Manifest("", "", {}, {}, {}, {"seconds": seconds})


def test_a_guess_counts_operations():
    # 100 training images are 300 passes of 1.8136 GMACs at 15 GMACs/s, and 0.2 s beside
    assert Estimator().seconds(stage()) == pytest.approx(300 * 1.8136 / 15 + 0.2)
    assert Estimator().seconds(stage(images=(0, 100), size=112, threads=2)) == pytest.approx(
        100 * 1.8136 / 4 / 30 + 0.2
    )


def test_stages_without_networks_cost_their_overhead():
    assert Estimator().seconds(stage("metrics", "", images=(0, 0))) == 0.5
    assert Estimator().seconds(stage("centers", "", images=(0, 0))) == 1.0


def test_what_was_measured_replaces_the_guess_for_its_like_alone():
    estimator, other = Estimator(), stage(backbone="resnet50")
    guess = estimator.seconds(other)
    estimator.learn(stage(), measured(60.0))
    assert estimator.seconds(stage()) == pytest.approx(60.2)
    assert estimator.seconds(stage(images=(200, 0))) == pytest.approx(120.2)
    assert estimator.seconds(other) == guess
    estimator.learn(stage(), measured(30.0))  # the mean of what was known and this
    assert estimator.seconds(stage()) == pytest.approx(45.2)


@pytest.mark.parametrize("seconds", [None, "long", 0.0, -1.0, float("nan"), True])
def test_what_is_no_measurement_is_not_learnt(seconds):
    estimator = Estimator()
    estimator.learn(stage(), measured(seconds))
    assert estimator.rates == {}


def test_measurements_are_kept_in_the_home(tmp_path):
    home = tmp_path / "home"
    assert Estimator.load(home).rates == {}
    estimator = Estimator()
    estimator.learn(stage(), measured(60.0))
    estimator.save(home)
    assert Estimator.load(home).rates == estimator.rates


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": "b", "c": null, "d": true, "e": -1}'])
def test_damaged_measurements_are_passed_over(tmp_path, text):
    (tmp_path / "rates.json").write_text(text)
    assert Estimator.load(tmp_path).rates == {}


def test_not_a_number_is_passed_over(tmp_path):
    (tmp_path / "rates.json").write_text(json.dumps({"a": float("nan"), "b": 2}))
    assert Estimator.load(tmp_path).rates == {"b": 2.0}


def test_a_chain_is_a_stage_and_the_longest_that_waits_for_it():
    gallery = replace(stage("gallery"), id="g")
    short = replace(stage("metrics", "", images=(0, 0)), id="m", inputs={"gallery": "g"})
    long = replace(stage("query"), id="q", inputs={"gallery": "g"})
    plan = Plan("s", stages={s.id: s for s in (gallery, long, short)})
    estimator = Estimator()
    chains = estimator.chains(plan)
    assert chains["m"] == 0.5
    assert chains["g"] == pytest.approx(estimator.seconds(gallery) + estimator.seconds(long))
