"""Embeddings of the training images, whether these are in the gallery or apart from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from methods.networks import build_network
from methods.pairs import SideSpec
from orchestrator.stages import Work, _Runner
from retrieval.datasets import open_dataset

SIZES = {
    "query_per_class": 4,
    "train_per_class": 12,
    "validation_per_class": 2,
    "validation_gallery_per_class": 3,
}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "cifar10"
    rng = np.random.default_rng(0)
    for title in ("bird", "cat", "dog"):
        (root / title).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / title / f"{number:03d}.png")
    return root


@pytest.mark.parametrize("name", ["cifar10-1", "cifar10"])
def test_embeddings_of_training_images_are_the_gallery_networks_outputs(lab, cifar, name):
    given = {"name": "cifar10", "root": str(cifar), "protocol": {"name": name, **SIZES}}
    plan, board = lab.run(
        datasets=[given],
        methods=[{"csd": {"form": "offline", "k": 5}}],
        train={"epochs": 1, "batch_size": 12, "lr_backbone": 1e-3, "lr_head": 1e-3},
    )
    assert not board.failed
    (trial,) = plan.trials
    stage = plan.stages[trial.stages["query"]]
    work = Work(
        id="0" * 64,
        kind="query",
        identity=stage.identity,
        inputs=stage.inputs,
        setup=stage.setup,
        home=str(lab.home),
        device="cpu",
    )
    runner = _Runner(work, lab.store, lambda _: None)
    embeddings = runner.training_embeddings()

    dataset = open_dataset(given, home=lab.home)
    splits = dataset.splits()
    inside = np.isin(splits.train, splits.gallery)
    assert inside.all() == (name == "cifar10-1")
    assert inside.any() == (name == "cifar10-1")

    side = SideSpec(**stage.setup["gallery_side"])
    network = build_network(side, stage.setup["gallery_head"], 16, 0, "gallery")
    weights = lab.store.read(trial.stages["gallery"], "weights.safetensors")
    network.load_state_dict(load_file(weights))
    network.eval()
    views = runner.views(side.size)
    with torch.inference_mode():  # one by one, so that no other image can be mistaken for it
        alone = [network(views.eval(splits.train[n : n + 1])) for n in range(len(splits.train))]
    expected = torch.cat(alone).numpy()
    assert embeddings.shape == (36, 16)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.round(expected, 3), axis=0)) == 36  # images can be told apart by it

    if name == "cifar10-1":  # the very bytes that the gallery stage keeps
        kept = np.load(lab.store.read(trial.stages["gallery"], "gallery_embeddings.npy"))
        by_row = dict(zip(splits.gallery.tolist(), kept, strict=True))
        same = np.stack([by_row[row] for row in splits.train.tolist()])
        np.testing.assert_array_equal(embeddings, same)
