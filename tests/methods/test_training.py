"""The trainer by itself: streams, optimisers, recordings, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import Schedule, Task, build_method
from methods.networks import build_network, parameter_groups
from methods.pairs import SideSpec
from methods.recipe import Recipe
from methods.training import (
    Learner,
    LiveTeacher,
    Trainer,
    TrainingData,
    TrainingDiverged,
    binarize,
    encode,
    record,
)
from retrieval.augmentation import Augmentation, Views

BITS, CLASSES, N = 8, 4, 40


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_data(multi_label: bool = False, seed: int = 0) -> TrainingData:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, N)
    if multi_label:
        labels = np.eye(CLASSES, dtype=np.uint8)[labels]
    views = Views(images, 32, Augmentation(), seed)
    return TrainingData(views, np.arange(N), labels, n_classes=CLASSES, bits=BITS, seed=seed)


def make_method(name: str = "csch", **params):
    task = Task(bits=BITS, n_classes=CLASSES, n_train=N, multi_label=False)
    return build_method(name, params, task)


def make_learner(side: str, recipe: Recipe, drop: float = 0.0) -> Learner:
    spec = SideSpec(backbone="test_efficientnet", size=32, drop_rate=drop)
    network = build_network(spec, "fc_bn", BITS, 0, side)
    return Learner(side, network, parameter_groups(network), recipe, steps_per_epoch=2, seed=0)


def state():
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (CLASSES, BITS))
    return {"centers": torch.from_numpy(signs.astype(np.float32))}


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in learner.network.state_dict().items()}


RECIPE = Recipe(epochs=2, batch_size=16, lr_backbone=1e-2, lr_head=1e-2)


def test_batches_cover_the_split_once_and_drop_the_remainder():
    data = make_data()
    for epoch in range(3):
        batches = list(data.batches(epoch, 16))
        assert [len(batch) for batch in batches] == [16, 16]  # 40 = 2 * 16 + 8 dropped
        assert len(np.unique(np.concatenate(batches))) == 32
    orders = [np.concatenate(list(data.batches(epoch, 20))) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


def test_tie_bits_belong_to_the_image_and_the_seed():
    one = make_data().batch(np.array([5, 3]), epoch=0)
    two = make_data().batch(np.array([3]), epoch=7)
    assert torch.equal(one.tie_bits[1], two.tie_bits[0])
    assert set(one.tie_bits.unique().tolist()) == {-1.0, 1.0}
    other = make_data(seed=1).batch(np.array([5, 3]), epoch=0)
    assert not torch.equal(one.tie_bits, other.tie_bits)


def test_multi_label_batches_have_no_classes():
    batch = make_data(multi_label=True).batch(np.array([0, 1]), epoch=0)
    assert batch.classes is None
    assert batch.labels.shape == (2, CLASSES)


def test_dropout_draws_depend_on_side_epoch_and_step_alone():
    views = make_data().view(np.arange(16), 0)
    recipe = RECIPE
    query = make_learner("query", recipe, drop=0.5)
    first = query.forward(views, 0, 0)
    torch.manual_seed(99)  # whatever else draws in between
    torch.rand(7)
    twin = make_learner("query", recipe, drop=0.5)
    assert torch.equal(first, twin.forward(views, 0, 0))
    assert not torch.equal(first, make_learner("query", recipe, drop=0.5).forward(views, 0, 1))
    assert not torch.equal(first, make_learner("query", recipe, drop=0.5).forward(views, 1, 0))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_resumes_to_the_same_bits(optimizer):
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "epochs": 3, "clip_norm": 1.0})

    def trainer():
        return Trainer(
            make_method(), make_data(), gallery=make_learner("gallery", recipe), state=state()
        )

    whole = trainer()
    reports = list(whole.run())
    assert [report.epoch for report in reports] == [0, 1, 2]
    broken = trainer()
    next(iter(broken.run()))
    saved = {name: value.clone() for name, value in broken.tensors().items()}
    resumed = trainer()
    resumed.load(saved, epoch=1)
    rest = list(resumed.run())
    assert [report.epoch for report in rest] == [1, 2]
    assert [r.metrics for r in rest] == [r.metrics for r in reports[1:]]
    for name, value in weights(whole.gallery).items():
        assert torch.equal(value, weights(resumed.gallery)[name]), name


def test_gradient_clipping_bounds_the_step():
    recipe = Recipe(
        epochs=1, batch_size=16, optimizer="sgd", lr_backbone=1.0, lr_head=1.0, momentum=0.0,
        weight_decay=0.0, clip_norm=1e-3,
    )  # fmt: skip
    learner = make_learner("gallery", recipe)
    before = {k: v.clone() for k, v in learner.network.named_parameters()}
    views = make_data().view(np.arange(16), 0)
    learner.step(1000 * learner.forward(views, 0, 0).pow(2).mean(), 0, 0)
    moved = sum(
        float((v - before[k]).detach().pow(2).sum()) for k, v in learner.network.named_parameters()
    )
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-3)  # lr 1 times a gradient of norm 1e-3


def test_backbone_and_head_have_their_own_rates():
    recipe = Recipe(epochs=1, batch_size=16, lr_backbone=0.0, lr_head=1e-2, weight_decay=0.0)
    learner = make_learner("gallery", recipe)
    before = {k: v.clone() for k, v in learner.network.named_parameters()}
    learner.step(learner.forward(make_data().view(np.arange(16), 0), 0, 0)[:, 0].mean(), 0, 0)
    moved = {k for k, v in learner.network.named_parameters() if not torch.equal(v, before[k])}
    assert moved
    assert all(name.startswith("head.") for name in moved)


class _Memory:
    """A recording in memory, and what was asked of it."""

    def __init__(self) -> None:
        self.epochs: dict[int, torch.Tensor] = {}

    def begin(self, epoch):
        self.now = torch.full((N, BITS), float("nan"))

    def write(self, positions, h_g):
        self.now[torch.from_numpy(positions)] = h_g

    def end(self, epoch):
        self.epochs[epoch] = self.now

    def codes(self, epoch, positions, views):
        return self.epochs[epoch][torch.from_numpy(positions)]


def test_query_on_a_recording_equals_query_beside_its_gallery():
    method = make_method(instance="cont_sg", gamma=1.0)
    assert method.schedule is Schedule.SIMULTANEOUS
    memory = _Memory()
    gallery = Trainer(
        method, make_data(), gallery=make_learner("gallery", RECIPE, 0.3), sink=memory,
        state=state(),
    )  # fmt: skip
    list(gallery.run())
    query = Trainer(
        method, make_data(), query=make_learner("query", RECIPE, 0.5), source=memory, state=state()
    )
    list(query.run())
    both = Trainer(
        method,
        make_data(),
        query=make_learner("query", RECIPE, 0.5),
        gallery=make_learner("gallery", RECIPE, 0.3),
        state=state(),
    )
    list(both.run())
    for name, value in weights(query.query).items():
        assert torch.equal(value, weights(both.query)[name]), name
    for name, value in weights(gallery.gallery).items():
        assert torch.equal(value, weights(both.gallery)[name]), name


def test_recorded_frozen_codes_are_those_of_the_live_teacher():
    network = make_learner("gallery", RECIPE).network
    teacher = LiveTeacher(network, "sign")
    memory = _Memory()
    data = make_data()
    assert list(record(teacher, data, RECIPE, memory, start=1)) == [1]
    positions = next(iter(data.batches(1, 16)))
    live = teacher.codes(1, positions, data.view(positions, 1))
    assert torch.equal(memory.codes(1, positions, torch.empty(0)), live)
    assert not any(p.requires_grad for p in network.parameters())


def test_binarize_takes_zero_for_plus_one():
    h = torch.tensor([[0.0, -0.0, -1e-9, 2.0]], requires_grad=True)
    signs = binarize(h)
    assert signs.tolist() == [[1.0, 1.0, -1.0, 1.0]]
    assert not signs.requires_grad


def test_encode_is_the_eval_network_on_whole_images_whatever_the_batch_edges():
    learner = make_learner("gallery", RECIPE, drop=0.5)
    data = make_data()
    learner.network.train()
    done = []
    codes = encode(learner.network, data.views, np.arange(N), batch_size=16, progress=done.append)
    assert done == [16, 32, 40]
    assert codes.shape == (N, BITS)
    assert codes.dtype == np.float32
    with torch.no_grad():
        alone = learner.network.eval()(data.views.eval(np.arange(4))).numpy()
    np.testing.assert_allclose(codes[:4], alone, rtol=1e-4, atol=1e-5)


def test_encoding_nothing_is_refused():
    with pytest.raises(ValueError, match="rows is empty"):
        encode(nn.Identity(), make_data().views, np.arange(0))


def test_divergence_names_the_term_and_the_epoch():
    trainer = Trainer(
        make_method(), make_data(), gallery=make_learner("gallery", RECIPE),
        state={"centers": torch.full((CLASSES, BITS), float("nan"))},
    )  # fmt: skip
    with pytest.raises(TrainingDiverged, match=r"loss/gallery/center is nan in epoch 1 of 2"):
        list(trainer.run())


def test_a_query_needs_a_gallery_or_codes_and_not_both():
    learner = make_learner("query", RECIPE)
    with pytest.raises(ValueError, match="exactly one"):
        Trainer(make_method(), make_data(), query=learner)
    with pytest.raises(ValueError, match="exactly one"):
        Trainer(
            make_method(), make_data(), query=learner, gallery=make_learner("gallery", RECIPE),
            source=_Memory(),
        )  # fmt: skip
    with pytest.raises(ValueError, match="a side to train"):
        Trainer(make_method(), make_data())
