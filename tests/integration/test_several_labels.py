"""Every method on images with several labels, in MS-COCO's format, through whole stages."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from methods.base import METHODS
from orchestrator.plan import build_plan
from orchestrator.scheduling import Options, execute
from orchestrator.store import open_store
from orchestrator.study import load_study

COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 20)]
REAL = Path(__file__).parents[3] / "shared" / "data" / "coco-mini.zip"
PAIR = {
    "name": "effnet-resnet",
    "query": {"backbone": "test_efficientnet", "size": 32},
    "gallery": {"backbone": "test_resnet", "size": 32},
}
SMALL = {"adsq": {"label_hidden": 64}, "mdsh": {"epoch_change": 1}}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """96 images, each with one to three of four patches of colour, which are its labels."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (root / "train2017").mkdir()
    (root / "annotations").mkdir()
    for number in range(1, 97):
        pixels = rng.integers(90, 160, (32, 32, 3), dtype=np.uint8)
        for label in rng.choice(4, size=rng.integers(1, 4), replace=False):
            top, left = 16 * (label // 2), 16 * (label % 2)
            pixels[top : top + 14, left : left + 14] = COLOURS[label]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": int(label) + 1}
            )
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels).save(root / "train2017" / name, quality=95)
        images.append({"id": number, "file_name": name})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"patch {i}"} for i in range(4)],
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def run(home, dataset, methods, **changes):
    study = {
        "study": "labels",
        "datasets": [dataset],
        "pairs": [PAIR],
        "methods": methods,
        "bits": 12,
        "train": {
            "epochs": 2,
            "batch_size": 16,
            "lr_backbone": 3e-3,
            "lr_head": 3e-3,
            "validate_every": 2,
        },
        "tracking": {"enabled": False},
        **changes,
    }
    loaded, _ = load_study(yaml.safe_dump(study, sort_keys=False), "labels.yaml", Path.cwd())
    plan = build_plan(loaded, folder=Path.cwd(), home=home)
    board = execute(plan, Options(home=home, executor="inline"), [])
    assert not board.failed
    (trial,) = plan.trials
    return open_store(home), trial


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_trains_and_retrieves(home, coco, method):
    dataset = {"name": "coco", "root": str(coco), "parts": ["train"], "store_size": 32}
    store, trial = run(home, dataset, {method: SMALL.get(method, {})})
    result = store.manifest(trial.id).result
    # An image shares a label with most others, so that any order scores; what is shown is that
    # whole stages run on several labels, to a number between the bounds of its ties.
    assert 0.3 < result["map_worst"] <= result["map"] <= result["map_best"] <= 1
    history = store.read(trial.stages.get("joint") or trial.stages["query"], "history.json")
    losses = [value for epoch in json.loads(history.read_text()) for value in epoch.values()]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("center_loss", ["csch", "label_smoothing", "bce"])
def test_every_center_loss_of_csch_trains_on_several_labels(home, coco, center_loss):
    dataset = {"name": "coco", "root": str(coco), "parts": ["train"], "store_size": 32}
    store, trial = run(home, dataset, {"csch": {"center_loss": center_loss}})
    assert 0.3 < store.manifest(trial.id).result["map"] <= 1


@pytest.mark.skipif(not REAL.is_file(), reason="no sample of real images")
@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_runs_on_a_sample_of_real_photographs(tmp_path_factory, method):
    home = tmp_path_factory.getbasetemp() / "real"
    dataset = {"name": "coco", "root": str(REAL), "store_size": 32}
    # 80 classes ask for more bits, and some of them have no training image in so small a sample.
    given = {**SMALL.get(method, {}), **({"assign": "A_r"} if method == "csch" else {})}
    train = {"epochs": 1, "batch_size": 32, "lr_backbone": 1e-3, "lr_head": 1e-3}
    store, trial = run(home, dataset, {method: given}, bits=24, train=train)
    assert 0.1 < store.manifest(trial.id).result["map"] <= 1
