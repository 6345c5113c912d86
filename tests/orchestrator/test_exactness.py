"""Replay equals live, joint equals apart, resumed equals undisturbed: bit for bit, on digits."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from methods.base import METHODS, Schedule, Task
from orchestrator.listener import Listener
from orchestrator.store import open_store
from tests.orchestrator.conftest import Lab

NOISY_PAIR = {
    "name": "noisy",
    "query": {
        "backbone": "test_efficientnet",
        "size": 32,
        "drop_rate": 0.2,
        "drop_path_rate": 0.2,
    },
    "gallery": {
        "backbone": "test_resnet",
        "size": 32,
        "drop_rate": 0.3,
        "drop_path_rate": 0.1,
    },
}

TASK = Task(bits=16, n_classes=10, n_train=1197, multi_label=False)


def independent_methods() -> list[tuple[str, dict]]:
    """Every registered method that says its gallery does not depend on its query."""
    found = []
    for name in METHODS.names():
        cls = METHODS.get(name)
        if cls(cls.Params(), TASK).schedule is not Schedule.JOINT:
            found.append((name, {}))
    assert found
    return [
        *found,
        ("csch", {"instance": "cont_sg", "gamma": 1.0}),
        ("csch", {"instance": "contr_sg", "gamma": 1.0}),
        ("csch", {"instance": "none", "assign": "A_b"}),
        ("csq", {"head": "mlp3_tanh", "distill_target": "binary"}),
        ("l2", {"teacher": "csch", "target": "binary"}),
        ("l2", {"teacher": "mdsh", "quantizer": {"name": "caq"}}),
        ("csd", {"form": "offline", "k": 200}),
        ("aml_contr", {"form": "tuples"}),
    ]


def final(lab, plan):
    """Return weights, codes and scores of the plan's only trial."""
    (trial,) = plan.trials
    store = open_store(lab.home)
    stage = trial.stages.get("joint") or trial.stages["query"]
    weights = load_file(store.read(stage, "weights.safetensors"))
    codes = np.load(store.read(stage, "query_codes.npy"))
    gallery = trial.stages.get("joint") or trial.stages["gallery"]
    gallery_codes = np.load(store.read(gallery, "gallery_codes.npy"))
    evaluation = json.loads(store.read(trial.id, "evaluation.json").read_text())
    history = json.loads(store.read(stage, "history.json").read_text())
    validation = [entry["validation/map"] for entry in history]
    return weights, codes, gallery_codes, evaluation, validation


def assert_same(one, other):
    weights, codes, gallery_codes, evaluation, validation = one
    assert weights.keys() == other[0].keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, other[0][name], err_msg=name)
    np.testing.assert_array_equal(codes, other[1])
    np.testing.assert_array_equal(gallery_codes, other[2])
    assert evaluation == other[3]
    assert validation == other[4]


@pytest.mark.parametrize(
    ("method", "params"),
    independent_methods(),
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_replay_ends_with_the_bits_of_live_training(shared_lab, method, params):
    changes = {"methods": {method: params}, "pairs": [NOISY_PAIR]}
    replayed, _ = shared_lab.run(**changes, replay=True)
    live, _ = shared_lab.run(**changes, replay=False)
    assert replayed.trials[0].id != live.trials[0].id
    assert_same(final(shared_lab, replayed), final(shared_lab, live))


def test_dropout_of_one_side_does_not_move_the_other(shared_lab):
    quiet = {**NOISY_PAIR, "name": "quiet", "query": {"backbone": "test_efficientnet", "size": 32}}
    changes = {"methods": {"csch": {"assign": "A_r"}}, "replay": False}
    noisy, _ = shared_lab.run(**changes, pairs=[NOISY_PAIR])
    other, _ = shared_lab.run(**changes, pairs=[quiet])
    store = shared_lab.store
    stages = [plan.trials[0].stages["joint"] for plan in (noisy, other)]
    galleries = [load_file(store.read(i, "gallery_weights.safetensors")) for i in stages]
    for name, value in galleries[0].items():
        np.testing.assert_array_equal(value, galleries[1][name], err_msg=name)
    queries = [load_file(store.read(i, "weights.safetensors")) for i in stages]
    assert any((queries[0][name] != queries[1][name]).any() for name in queries[0])


def test_gradient_to_the_gallery_changes_the_gallery(shared_lab):
    plan, _ = shared_lab.run(methods={"csch": {"instance": "released_code", "assign": "A_r"}})
    assert set(plan.trials[0].stages) == {"centers", "joint", "metrics"}
    apart, _ = shared_lab.run(methods={"csch": {"instance": "cont_sg", "assign": "A_r"}})
    store = shared_lab.store
    mutual = np.load(store.read(plan.trials[0].stages["joint"], "gallery_codes.npy"))
    alone = np.load(store.read(apart.trials[0].stages["gallery"], "gallery_codes.npy"))
    assert (mutual != alone).any()


class _StopAfter(Listener):
    """Raises in mid-stage, as a kill would stop it, after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def stage_progressed(self, stage, note):
        if note.get("event") == "epoch":
            self.epochs -= 1
            if self.epochs == 0:
                raise KeyboardInterrupt

    def stage_failed(self, stage, failure):
        raise AssertionError(failure["detail"])


@pytest.mark.parametrize("method", ["csch", "csq", "mdsh", "daph", "adsq", "ssp"])
def test_interrupted_at_every_epoch_ends_with_the_bits_of_an_undisturbed_run(
    lab, shared_lab, method
):
    given = {"mdsh": {"epoch_change": 1}, "adsq": {"label_hidden": 64}}.get(method, {})
    changes = {"methods": {method: given}, "pairs": [NOISY_PAIR]}
    interruptions = 0
    while True:
        try:
            broken, board = lab.run(_StopAfter(1), **changes)
        except KeyboardInterrupt:
            interruptions += 1
            assert interruptions < 20
            continue
        break
    assert interruptions >= (2 if "joint" in broken.trials[0].stages else 4)
    assert not board.failed
    whole, _ = shared_lab.run(**changes)
    assert [t.id for t in broken.trials] == [t.id for t in whole.trials]
    for stage_id in whole.trials[0].stages.values():
        one, other = lab.store.manifest(stage_id), shared_lab.store.manifest(stage_id)
        assert one.files == other.files, one.kind
        assert one.result == other.result, one.kind


def test_bf16_trial_trains_and_replays_exactly(shared_lab):
    changes = {
        "pairs": [NOISY_PAIR],
        "train": {"epochs": 1, "precision": "bf16", "lr_backbone": 3e-3, "lr_head": 3e-3},
    }
    replayed, board = shared_lab.run(**changes, replay=True)
    live, _ = shared_lab.run(**changes, replay=False)
    assert not board.failed
    assert_same(final(shared_lab, replayed), final(shared_lab, live))


def test_sides_of_different_input_sizes_train_and_replay_exactly(shared_lab):
    pair = {
        "name": "sizes",
        "query": {"backbone": "test_efficientnet", "size": 24},
        "gallery": {"backbone": "test_resnet", "size": 32},
    }
    replayed, board = shared_lab.run(pairs=[pair], replay=True)
    live, _ = shared_lab.run(pairs=[pair], replay=False)
    assert not board.failed
    assert_same(final(shared_lab, replayed), final(shared_lab, live))


class FlipsBits(Listener):
    """Changes a recording on the disk once the query that reads it has trained an epoch."""

    def __init__(self, home):
        self.home = home
        self.retried = []

    def stage_progressed(self, stage, note):
        if stage.kind == "query" and note.get("event") == "epoch" and not self.retried:
            (path,) = (self.home / "store/stages").glob("*/recording/epoch-00001.npy")
            content = bytearray(path.read_bytes())
            content[-1] ^= 0xFF
            path.write_bytes(content)

    def stage_retried(self, stage, failure, delay):
        self.retried.append((stage.kind, failure["kind"]))


def test_a_recording_that_changes_while_a_query_trains_on_it_is_noticed_and_made_again(tmp_path):
    quiet, disturbed = Lab(tmp_path / "quiet"), Lab(tmp_path / "disturbed")
    flips = FlipsBits(disturbed.home)
    expected = final(quiet, quiet.run()[0])
    got = final(disturbed, disturbed.run(flips)[0])
    assert flips.retried == [("query", "damaged")]
    for name, value in expected[0].items():
        np.testing.assert_array_equal(got[0][name], value, err_msg=name)
    for value, other in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(value, other)
