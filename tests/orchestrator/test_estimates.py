"""Estimates: guesses from operation counts, replaced by what was measured."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from cluster.accelerators import ACCELERATORS, cpu_model
from orchestrator.estimates import Estimate, Estimator, device_key
from orchestrator.plan import Plan, Stage
from orchestrator.store import Manifest

RECIPE = {"batch_size": 50, "precision": "fp32", "optimizer": "adam"}


def stage(
    kind="query", backbone="resnet18", size=224, images=(100, 0), threads=1, **setup
) -> Stage:
    if backbone:
        setup["side"] = {"backbone": backbone, "size": size}
    setup["threads"] = threads
    return Stage(f"{kind}-{backbone}", kind, {}, {}, setup, None, kind, images)


def measured(seconds: object, **cost: object) -> Manifest:
    return Manifest("", "", {}, {}, {}, {"seconds": seconds, **cost})


# ---- guesses -------------------------------------------------------------------------


def test_a_guess_counts_operations():
    # 100 training images are 300 passes of 1.8136 GMACs at 15 GMACs/s, and 0.2 s beside
    assert Estimator().seconds(stage()) == pytest.approx(300 * 1.8136 / 15 + 0.2)
    assert Estimator().seconds(stage(images=(0, 100), size=112, threads=2)) == pytest.approx(
        100 * 1.8136 / 4 / 30 + 0.2
    )


def test_stages_without_networks_cost_their_overhead():
    assert Estimator().seconds(stage("metrics", "", images=(0, 0))) == 0.5
    assert Estimator().seconds(stage("centers", "", images=(0, 0))) == 1.0


def test_a_guess_for_a_gpu_counts_operations_and_steps():
    # 40 % of 19.5 TFLOP/s, and 20 ms for each of 100 / 50 steps
    work = 300 * 1.8136e9 * 2 / (0.4 * 19.5e12)
    found = Estimator().estimate(stage(recipe=RECIPE), "gpu:A100")
    assert found.seconds == pytest.approx(work + 2 * 0.02 + 0.2)
    assert found.text() == "guess"


def test_workers_share_the_images_of_a_guess():
    given = stage(recipe={**RECIPE, "workers": 4})
    assert Estimator().seconds(given) == pytest.approx(75 * 1.8136 / 15 + 0.2)


def test_a_gallery_that_answers_live_is_counted():
    given = stage(recipe=RECIPE, live=True, gallery_side={"backbone": "resnet50", "size": 224})
    work = 300 * 1.8136 + 100 * 4.0871
    assert Estimator().seconds(given) == pytest.approx(work / 15 + 0.2)


# ---- measurements --------------------------------------------------------------------


def test_what_was_measured_replaces_the_guess_for_its_like_alone():
    estimator, other = Estimator(), stage(backbone="resnet50")
    guess = estimator.seconds(other)
    estimator.learn(stage(), measured(60.0))
    assert estimator.estimate(stage()) == Estimate(
        60.0, "measured", device_key(cpu_model(), "cpu")
    )
    assert estimator.seconds(stage(images=(200, 0))) == pytest.approx(120.0)
    assert estimator.seconds(other) == guess
    estimator.learn(stage(), measured(30.0))
    assert estimator.seconds(stage()) == pytest.approx(45.0)


def test_the_median_counts_so_that_one_slow_stage_does_not():
    estimator = Estimator()
    for seconds in (10.0, 900.0, 11.0, 9.0, 10.5):
        estimator.learn(stage(), measured(seconds))
    assert estimator.seconds(stage()) == pytest.approx(10.5)


def test_what_another_thread_may_be_reading_is_replaced_and_not_changed():
    estimator = Estimator()
    estimator.learn(stage(), measured(60.0))
    (known,) = estimator.samples.values()
    (kept,) = known.values()
    before = list(kept)
    estimator.learn(stage(), measured(30.0))
    estimator.learn(stage(), replace(measured(20.0), cost={"seconds": 20.0, "device": "A100"}))
    assert kept == before
    assert len(known) == 1
    (now,) = estimator.samples.values()
    assert [len(samples) for samples in now.values()] == [2, 1]


def test_the_last_nine_measurements_count():
    estimator = Estimator()
    for seconds in [1.0] * 20 + [5.0] * 9:
        estimator.learn(stage(), measured(seconds))
    assert estimator.seconds(stage()) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gallery"},
        {"backbone": "resnet34"},
        {"size": 112},
        {"threads": 2},
        {"recipe": {**RECIPE, "workers": 2}},
        {"recipe": {**RECIPE, "precision": "bf16"}},
        {"recipe": {**RECIPE, "batch_size": 10}},
        {"recipe": RECIPE, "live": True, "gallery_side": {"backbone": "resnet50", "size": 32}},
    ],
)
def test_what_a_rate_hangs_on_tells_measurements_apart(change):
    estimator = Estimator()
    estimator.learn(stage(recipe=RECIPE), measured(60.0))
    changed = stage(**{"recipe": RECIPE, **change})
    assert estimator.estimate(changed).basis == "guess"
    assert estimator.estimate(stage(recipe=RECIPE)).basis == "measured"


def test_scores_are_measured_by_dataset_and_code_length():
    def scores(dataset, bits=32):
        return stage("metrics", "", images=(0, 0), dataset=dataset, bits=bits)

    estimator = Estimator()
    estimator.learn(scores({"name": "cifar10", "root": "/data"}), measured(7.0))
    assert estimator.seconds(scores("cifar10")) == 7.0
    assert estimator.estimate(scores("digits")).basis == "guess"
    assert estimator.estimate(scores("cifar10", 64)).basis == "guess"


@pytest.mark.parametrize("seconds", [None, "long", 0.0, -1.0, float("nan"), True])
def test_what_is_no_measurement_is_not_learnt(seconds):
    estimator = Estimator()
    estimator.learn(stage(), measured(seconds))
    assert estimator.samples == {}


@pytest.mark.parametrize("cost", [{"resumed": True}, {"attempt": 2}])
def test_stages_that_were_interrupted_or_tried_again_are_not_learnt(cost):
    estimator = Estimator()
    estimator.learn(stage(), measured(60.0, **cost))
    assert estimator.samples == {}
    estimator.learn(stage(), measured(60.0, resumed=False, attempt=1))
    assert estimator.seconds(stage()) == 60.0


# ---- devices -------------------------------------------------------------------------


@pytest.fixture
def on_a100():
    estimator = Estimator()
    estimator.learn(stage(recipe=RECIPE), measured(60.0, device="NVIDIA A100-SXM4-40GB"))
    return estimator


def test_measurements_are_of_their_device(on_a100):
    assert on_a100.estimate(stage(recipe=RECIPE), "gpu:A100-40G") == Estimate(
        60.0, "measured", "gpu:A100-40G"
    )
    assert on_a100.estimate(stage(recipe=RECIPE), "cpu:any").basis == "guess"
    assert on_a100.seconds(stage(recipe=RECIPE)) == 60.0  # no device: where it was measured last


@pytest.mark.parametrize(("precision", "peak"), [("fp32", "fp32"), ("bf16", "bf16")])
def test_another_gpus_measurements_are_scaled_by_peak_throughput_and_say_so(precision, peak):
    estimator, given = Estimator(), stage(recipe={**RECIPE, "precision": precision})
    estimator.learn(given, measured(60.0, device="NVIDIA A100-SXM4-40GB"))
    ratio = getattr(ACCELERATORS["A100"], peak) / getattr(ACCELERATORS["H100"], peak)
    found = estimator.estimate(given, "gpu:H100")
    assert found.seconds == pytest.approx(60.0 * ratio)
    assert found.text() == "scaled from A100-40G"


def test_gpus_that_nobody_knows_are_guessed(on_a100):
    assert on_a100.estimate(stage(recipe=RECIPE), "gpu:Foo 9000").basis == "guess"
    other = Estimator()
    other.learn(stage(), measured(60.0, device="Foo 9000"))
    assert other.estimate(stage(), "gpu:Foo 9000").basis == "measured"
    assert other.estimate(stage(), "gpu:A100").basis == "guess"


def test_another_processors_measurements_stand_for_this_ones_and_say_so():
    estimator = Estimator()
    estimator.learn(stage(), measured(60.0, device="cpu", cpu="Old CPU"))
    found = estimator.estimate(stage(), device_key("New CPU", "cpu"))
    assert (found.seconds, found.text()) == (60.0, "scaled from Old CPU")
    assert estimator.estimate(stage(), "gpu:A100").basis == "guess"


def test_the_device_that_was_measured_last_goes_first():
    estimator = Estimator()
    estimator.learn(stage(), measured(60.0, device="cpu", cpu="Old CPU"))
    estimator.learn(stage(), measured(20.0, device="Tesla T4"))
    assert estimator.seconds(stage()) == 20.0
    assert Estimator(estimator.samples, device="cpu:Old CPU").seconds(stage()) == 60.0


# ---- the home ------------------------------------------------------------------------


def test_measurements_are_kept_in_the_home(tmp_path):
    home = tmp_path / "home"
    assert Estimator.load(home).samples == {}
    estimator = Estimator()
    estimator.learn(stage(), measured(60.0))
    estimator.save(home)
    estimator.save(home)  # what was added once is not added again
    (devices,) = Estimator.load(home).samples.values()
    assert [len(samples) for samples in devices.values()] == [1]
    assert Estimator.load(home).seconds(stage()) == 60.0


def _add(home, backbone):
    estimator = Estimator.load(home)
    estimator.learn(stage(backbone=backbone), measured(60.0))
    estimator.save(home)


def test_processes_that_save_at_once_lose_nothing(tmp_path):
    names = [f"resnet{n}" for n in range(12)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(tmp_path, name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = Estimator.load(tmp_path)
    assert {found.estimate(stage(backbone=name)).basis for name in names} == {"measured"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        '{"a": 2.0}',
        '{"format": 1, "rates": {"a": {"cpu:x": [[1.0, 1.0]]}}}',
        '{"format": 2, "rates": [1]}',
        '{"format": 2, "rates": {"a": 3, "b": {"cpu:x": 4}, "c": {"cpu:x": [5, [6], [7, "x"]]}}}',
        '{"format": 2, "rates": {"a": {"cpu:x": [[-1, 1], [true, 1], [NaN, 1]]}}}',
    ],
)
def test_damaged_measurements_are_passed_over(tmp_path, text):
    (tmp_path / "rates.json").write_text(text)
    assert Estimator.load(tmp_path).samples == {}


def test_what_is_whole_beside_damage_is_kept(tmp_path):
    rates = {"a": {"cpu:x": [[2.0, 1.0], [float("nan"), 2.0]]}, "b": 1}
    (tmp_path / "rates.json").write_text(json.dumps({"format": 2, "rates": rates}))
    (sample,) = Estimator.load(tmp_path).samples["a"]["cpu:x"]
    assert sample.rate == 2.0


def test_a_chain_is_a_stage_and_the_longest_that_waits_for_it():
    gallery = replace(stage("gallery"), id="g")
    short = replace(stage("metrics", "", images=(0, 0)), id="m", inputs={"gallery": "g"})
    long = replace(stage("query"), id="q", inputs={"gallery": "g"})
    plan = Plan("s", stages={s.id: s for s in (gallery, long, short)})
    estimator = Estimator()
    chains = estimator.chains(plan)
    assert chains["m"] == 0.5
    assert chains["g"] == pytest.approx(estimator.seconds(gallery) + estimator.seconds(long))
