"""Training in turn: who learns in a phase, what is kept of it, and going on after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import METHODS, Schedule, Task, build_method
from methods.networks import HashNetwork, hash_head, parameter_groups
from methods.recipe import Recipe
from methods.training import Learner, Trainer, TrainingData
from retrieval.augmentation import Augmentation, Views
from retrieval.streams import torch_stream
from tests.oracles import pairwise as oracle

BITS, CLASSES, N, BATCH = 8, 4, 40, 16
RECIPE = Recipe(epochs=3, batch_size=BATCH, lr_backbone=1e-2, lr_head=1e-2)
SETTINGS = {
    "daph": {},
    "daph_t": {"center_weight": 1.0, "assign": "A_r"},
    "adsq": {"label_hidden": 64, "label_features": 16},
}
MEMORY = {"daph": ("U", "Z"), "daph_t": ("U", "Z"), "adsq": ("U", "V")}
"""Under which names the query's and the gallery's codes are kept."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=list(SETTINGS))
def setting(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["single", "multi"])
def multi(request):
    return request.param


def make_data(multi=False):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, N)
    if multi:
        labels = np.eye(CLASSES, dtype=np.uint8)[labels] | rng.integers(
            0, 2, (N, CLASSES), dtype=np.uint8
        )
    views = Views(images, 8, Augmentation(), 0)
    return TrainingData(views, np.arange(N), labels, n_classes=CLASSES, bits=BITS, seed=0)


def make_learner(side):
    """A network with batch statistics and dropout, so that train and eval mode differ."""
    width = {"query": 6, "gallery": 8}[side]
    with torch_stream(0, side, "init"):
        backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3),
        )  # fmt: skip
        head = hash_head("fc_tanh", width, BITS)
        nn.init.normal_(head[0].weight)  # far from the zero of the usual first weights
    grey = (0.5, 0.5, 0.5)
    network = HashNetwork(backbone, head, grey, grey, 8).train()
    return Learner(
        side, network, parameter_groups(network), RECIPE, steps_per_epoch=N // BATCH, seed=0
    )


def make_trainer(setting, multi=False, phases=None):
    """Return a trainer; ``phases`` puts other phases in the place of the method's own."""
    task = Task(bits=BITS, n_classes=CLASSES, n_train=N, multi_label=multi)
    method = build_method(setting.split("_")[0], SETTINGS[setting], task)
    if phases is not None:
        method.__class__ = type("Part", (type(method),), {"phases": phases})
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (CLASSES, BITS)).astype(np.float32)
    state = {} if method.centers() is None else {"centers": torch.from_numpy(signs)}
    return Trainer(
        method, make_data(multi), query=make_learner("query"), gallery=make_learner("gallery"),
        state=state,
    )  # fmt: skip


def one_epoch(trainer):
    return next(iter(trainer.run()))


def copied(tensors):
    return {name: value.clone() for name, value in tensors.items()}


def differing(one, other):
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


class Spy:
    """Looks on: the mode of both networks, the batches and the outputs, at every step."""

    def __init__(self, trainer):
        self.trainer, self.seen = trainer, []
        inner = trainer.method.remember

        def remember(stage, outputs, batch, state):
            inner(stage, outputs, batch, state)
            modes = {side.side: side.network.training for side in trainer.learners}
            self.seen.append((batch.phase, batch.rows.clone(), copied(outputs), modes))

        trainer.method.remember = remember


# ---- who learns ----------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["query", "gallery"])
def test_in_a_phase_only_its_own_network_changes(setting, phase):
    trainer = make_trainer(setting, phases=(phase,))
    before = {side.side: copied(side.tensors()) for side in trainer.learners}
    one_epoch(trainer)
    for side in trainer.learners:
        after = side.tensors()
        if side.side != phase:  # neither weights nor batch statistics nor the optimiser
            assert differing(before[side.side], after) == set()
            continue
        networks = {k: v for k, v in after.items() if k.startswith("network.")}
        moved = differing({k: before[phase][k] for k in networks}, networks)
        learned = {f"network.{k}" for k, _ in side.network.named_parameters()}
        statistics = {k for k in networks if "running_" in k or "num_batches" in k}
        assert learned - moved <= {"network.backbone.0.bias"}  # before a batch norm, no gradient
        assert statistics
        assert statistics <= moved


def test_each_epoch_is_one_pass_for_the_query_then_one_for_the_gallery(setting, multi):
    trainer = make_trainer(setting, multi)
    spy = Spy(trainer)
    report = one_epoch(trainer)
    steps = N // BATCH
    assert [phase for phase, *_ in spy.seen] == ["query"] * steps + ["gallery"] * steps
    assert report.images == 2 * steps * BATCH
    for phase, _, _, modes in spy.seen:
        assert modes == {"query": phase == "query", "gallery": phase == "gallery"}
    for first, second in zip(spy.seen[:steps], spy.seen[steps:], strict=True):
        assert torch.equal(first[1], second[1])  # the same batches again
    for phase in ("query", "gallery"):
        assert f"loss/{phase}/likelihood" in report.metrics
    assert "monitor/likelihood" in report.metrics


def test_the_network_at_rest_answers_in_eval_mode(setting):
    trainer = make_trainer(setting)
    spy = Spy(trainer)
    resting = make_learner("gallery").network.eval()  # as it is before its first phase
    one_epoch(trainer)
    data = make_data()
    with torch.no_grad():
        for phase, rows, outputs, _ in spy.seen:
            if phase == "query":
                views = data.view(rows.numpy(), 0)
                assert torch.equal(outputs["gallery"], resting(views))
            else:  # the query has had its phase and does not change any more
                views = data.view(rows.numpy(), 0)
                query = trainer.query.network.eval()
                assert torch.equal(outputs["query"], query(views))


def test_two_phases_in_one_epoch_are_the_two_phases_one_after_the_other(setting):
    """The gallery's phase sees the query network that the query's phase made."""
    whole = make_trainer(setting)
    one_epoch(whole)
    first = make_trainer(setting, phases=("query",))
    start = copied({name: first.state[name] for name in first.method.memory})
    one_epoch(first)
    second = make_trainer(setting, phases=("gallery",))
    second.query.load(copied(first.query.tensors()))
    second.state |= start  # the codes of the epoch's beginning, not those updated in between
    one_epoch(second)
    assert differing(whole.query.tensors(), first.query.tensors()) == set()
    assert differing(whole.gallery.tensors(), second.gallery.tensors()) == set()


# ---- what is kept --------------------------------------------------------------------


def test_memory_rows_hold_the_last_tanh_outputs_by_training_id(setting, multi):
    trainer = make_trainer(setting, multi)
    spy = Spy(trainer)
    reports = trainer.run()
    for _ in range(2):
        next(reports)
        last = {side: np.zeros((N, BITS)) for side in ("query", "gallery")}
        for _, rows, outputs, _ in spy.seen:
            for side, h in outputs.items():
                for row, values in zip(rows.tolist(), h.tolist(), strict=True):
                    last[side][row] = np.tanh(values)
        for side, name in zip(("query", "gallery"), MEMORY[setting], strict=True):
            np.testing.assert_allclose(trainer.state[name], last[side], atol=1e-6)


def test_images_that_no_batch_had_keep_empty_rows(setting):
    trainer = make_trainer(setting)
    spy = Spy(trainer)
    one_epoch(trainer)
    seen = {row for _, rows, *_ in spy.seen for row in rows.tolist()}
    assert len(seen) == N // BATCH * BATCH < N
    unseen = sorted(set(range(N)) - seen)
    for name in MEMORY[setting]:
        assert not trainer.state[name][unseen].any()
        assert trainer.state[name][sorted(seen)].any(dim=1).all()


@pytest.mark.parametrize("name", ["daph", "daph_t"])
def test_b_and_then_h_are_updated_at_the_end_of_each_epoch_with_the_new_b(name, multi):
    trainer = make_trainer(name, multi)
    reports = trainer.run()
    moved = 0
    for _ in range(RECIPE.epochs):
        old_b, old_h = trainer.state["B"].clone(), trainer.state["H"].clone()
        next(reports)
        u, z = trainer.state["U"].tolist(), trainer.state["Z"].tolist()
        new_b, new_h = oracle.daph_codes(u, z, old_h.tolist(), 10.0, 10.0)
        assert trainer.state["B"].tolist() == new_b
        assert trainer.state["H"].tolist() == new_h
        moved += int((old_b != trainer.state["B"]).sum()) + int(
            (old_h != trainer.state["H"]).sum()
        )
    assert moved


def test_label_codes_stay_and_b_is_updated_at_the_end_of_each_epoch(multi):
    trainer = make_trainer("adsq", multi)
    label_codes = trainer.state["H_l"].clone()
    for _ in trainer.run():
        state = trainer.state
        assert torch.equal(state["H_l"], label_codes)
        u, v, h = (state[name].tolist() for name in ("U", "V", "H_l"))
        assert state["b"].tolist() == oracle.adsq_codes(u, v, h, 1.0)


def test_codes_change_between_epochs_only(setting):
    trainer = make_trainer(setting)
    kept = {name for name in trainer.method.memory if name not in MEMORY[setting]}
    before = copied({name: trainer.state[name] for name in kept})
    inner = trainer.method.end_epoch
    calls = []

    def end_epoch(stage, state):
        assert differing(before, {name: state[name] for name in kept}) == set()
        calls.append(stage)
        return inner(stage, state)

    trainer.method.end_epoch = end_epoch
    one_epoch(trainer)
    assert calls == ["joint"]  # once for both phases


# ---- going on ------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(1, RECIPE.epochs))
def test_stopped_after_any_epoch_and_resumed_ends_with_the_same_bits(setting, multi, stop):
    whole = make_trainer(setting, multi)
    reports = [report.metrics for report in whole.run()]
    broken = make_trainer(setting, multi)
    steps = broken.run()
    for _ in range(stop):
        next(steps)
    saved = copied(broken.tensors())
    assert {name for name in saved if name.startswith("state.")} == {
        f"state.{name}" for name in whole.method.memory
    }
    resumed = make_trainer(setting, multi)
    resumed.load(saved, epoch=stop)
    assert [report.metrics for report in resumed.run()] == reports[stop:]
    assert differing(whole.tensors(), resumed.tensors()) == set()


def test_without_its_memory_a_resumed_run_would_end_elsewhere(setting):
    """The memory matters, so that the test above says something."""
    whole = make_trainer(setting)
    for _ in whole.run():
        pass
    broken = make_trainer(setting)
    one_epoch(broken)
    saved = copied(broken.tensors())
    resumed = make_trainer(setting)
    fresh = copied({f"state.{name}": resumed.state[name] for name in resumed.method.memory})
    resumed.load(saved | fresh, epoch=1)
    for _ in resumed.run():
        pass
    assert differing(whole.gallery.tensors(), resumed.gallery.tensors())


def test_every_method_that_alternates_is_tested_here():
    task = Task(bits=BITS, n_classes=CLASSES, n_train=N, multi_label=False)
    alternating = set()
    for name in METHODS.names():
        method = build_method(name, {}, task)
        if method.schedule is Schedule.JOINT and len(method.phases) > 1:
            alternating.add(name)
    assert alternating <= {setting.split("_")[0] for setting in SETTINGS}
