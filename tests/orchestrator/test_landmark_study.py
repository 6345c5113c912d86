"""A study on a landmark benchmark, from end to end: trained elsewhere, scored by ground truth."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from methods.base import METHODS, Task
from orchestrator.comparison import compare_study
from orchestrator.mirror import Mirror, trial_metrics
from orchestrator.plan import build_plan
from orchestrator.report import rows
from orchestrator.reporting.leaderboard import leaderboards
from orchestrator.reporting.results import gather
from orchestrator.scheduling import Options, execute
from orchestrator.store import StageStore, open_store
from orchestrator.study import load_study
from retrieval.datasets import open_dataset
from retrieval.datasets.gnd import read_ground_truth
from retrieval.errors import InputError
from retrieval.metrics.landmarks import evaluate_landmark_embeddings, evaluate_landmarks

GALLERY = [f"tower_{number:06d}" for number in range(14)]
QUERIES = ["tower_900000", "bridge_900001", "gate_900002"]
GND = {
    "imlist": GALLERY,
    "qimlist": QUERIES,
    "gnd": [
        {"bbx": [1.5, 2.0, 30.0, 28.4], "easy": [0, 3], "hard": [5], "junk": [7]},
        {"bbx": [0, 0, 40, 30], "easy": [], "hard": [1, 9], "junk": [0, 2]},
        {"bbx": [4, 4, 20, 20], "easy": [], "hard": [], "junk": [4]},  # nothing to find
    ],
}


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(path, quality=90)


def build(root: Path) -> Path:
    for seed, name in enumerate([*GALLERY, *QUERIES]):
        picture(root / "jpg" / f"{name}.jpg", seed)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(GND, protocol=2))
    for place, title in enumerate(("arch", "dome", "spire")):
        for number in range(40):
            picture(root / "landmarks" / title / f"{number}.jpg", 1_000 * place + number)
    return root


def text_of(root: Path, *, evaluate: dict | None = None, **options: object) -> str:
    dataset = {"name": "roxford5k", "root": str(root), "expected": "any", **options}
    return yaml.safe_dump(
        {
            "study": "landmarks",
            "datasets": [dataset],
            "pairs": [
                {
                    "name": "effnet-resnet",
                    "query": {"backbone": "test_efficientnet", "size": 32},
                    "gallery": {"backbone": "test_resnet", "size": 32},
                }
            ],
            "methods": ["csch"],
            "bits": [16],
            "seeds": [0, 1],
            "train": {"epochs": 1, "validate_every": 1, "batch_size": 32},
            "evaluate": evaluate or {},
            "tracking": {"enabled": False},
        }
    )


def planned(root: Path, home: Path, **options: object):
    study, _ = load_study(text_of(root, **options), "landmarks.yaml", root)
    return build_plan(study, folder=root, home=home)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = build(tmp_path_factory.mktemp("roxford5k"))
    home = tmp_path_factory.mktemp("home")
    # A path relative to the study's file is found beside it.
    plan = planned(
        root,
        home,
        train={"folder": "landmarks"},
        evaluate={"retrieval": ["hamming", "cosine", "asymmetric"]},
    )
    execute(plan, Options(home=home, executor="inline"), [])
    store = open_store(home)
    assert all(store.is_done(trial.id) for trial in plan.trials)
    return plan, store


def truth():
    return read_ground_truth(json.dumps(GND).encode()).landmarks


def stored(store: StageStore, stage: str, name: str) -> np.ndarray:
    return np.load(store.read(stage, name))


def test_scores_are_those_of_the_ground_truth_applied_to_the_stages_codes(ran):
    plan, store = ran
    for trial in plan.trials:
        query = stored(store, trial.stages["query"], "query_codes.npy")
        gallery = stored(store, trial.stages["gallery"], "gallery_codes.npy")
        assert (len(query), len(gallery)) == (3, 14)
        expected = evaluate_landmarks(query, gallery, truth(), 16)
        result = store.manifest(trial.id).result
        for name in ("map", "map_stable", "map_best", "map_worst", "map_easy", "map_hard"):
            assert result[name] == expected.to_json()[name]
        both = stored(store, trial.stages["gallery"], "gallery_network_query_codes.npy")
        assert result["map_symmetric"] == evaluate_landmarks(both, gallery, truth(), 16).map
        written = json.loads(store.read(trial.id, "evaluation.json").read_text())
        assert written == expected.to_json()
        per_query = stored(store, trial.id, "average_precision.npy")
        np.testing.assert_array_equal(per_query, expected.average_precision)
        assert np.isnan(per_query).tolist() == [False, False, True]


def test_scores_by_continuous_codes_are_those_of_the_embeddings(ran):
    import torch

    plan, store = ran
    for trial in plan.trials:
        cls = METHODS.get("csch")
        task = Task(bits=16, n_classes=3, n_train=108, multi_label=False)
        method = cls(cls.Params.parse(trial.params), task)
        query, gallery = (
            method.squash(torch.from_numpy(stored(store, trial.stages[side], name))).numpy()
            for side, name in (
                ("query", "query_embeddings.npy"),
                ("gallery", "gallery_embeddings.npy"),
            )
        )
        result = store.manifest(trial.id).result
        for mode in ("cosine", "asymmetric"):
            expected = evaluate_landmark_embeddings(query, gallery, truth(), mode).map
            assert result[f"map_{mode}"] == expected


def test_what_is_trained_on_is_in_no_ranking(ran):
    plan, _ = ran
    [dataset] = plan.datasets
    splits, index = dataset.splits(), dataset.index()
    assert [index.keys[row] for row in splits.query] == [f"query/{name}" for name in QUERIES]
    assert [index.keys[row] for row in splits.gallery] == [f"gallery/{name}" for name in GALLERY]
    assert len(splits.train) == 108
    assert len(splits.validation_query) == 12
    assert all(index.keys[row].startswith("train/") for row in splits.train)


def test_the_table_is_by_medium_map(ran):
    plan, store = ran
    found = rows(plan, store)
    assert [row["at"] for row in found] == ["all", "all"]
    assert [row["map"] for row in found] == [
        store.manifest(t.id).result["map"] for t in plan.trials
    ]
    [table] = [one for one in leaderboards(gather(plan, store)) if one.score == "map"]
    assert table.lines[0].cells[0].n == 2
    assert table.called == "Medium"


@pytest.mark.parametrize(("score", "title"), [("map_easy", "Easy"), ("map_hard", "Hard")])
def test_easy_and_hard_have_tables_of_their_own(ran, score, title):
    plan, store = ran
    [table] = [one for one in leaderboards(gather(plan, store)) if one.score == score]
    assert table.called == title
    values = [store.manifest(trial.id).result[score] for trial in plan.trials]
    assert table.lines[0].cells[0].mean == pytest.approx(sum(values) / 2, abs=1e-15)
    assert [row[score] for row in rows(plan, store)] == values


def test_datasets_with_labels_have_no_tables_of_landmarks(ran):
    plan, store = ran
    labelled = SimpleNamespace(label="digits", name="digits", score_titles={})
    other = [replace(trial, dataset="digits") for trial in plan.trials]
    mixed = SimpleNamespace(
        trials=[*plan.trials, *other],
        datasets=[*plan.datasets, labelled],
        stages=plan.stages,
        of_kind=plan.of_kind,
    )
    boards = leaderboards(gather(mixed, store), tests=False)
    shown = [(column.dataset, board.score) for board in boards for column in board.columns]
    assert ("digits", "map") in shown
    assert not {("digits", "map_easy"), ("digits", "map_hard")} & set(shown)


def test_queries_without_an_answer_do_not_disturb_what_reads_the_scores(ran):
    plan, store = ran
    [table] = compare_study(plan, store, draws=200)
    [line] = table.lines
    medium = [store.manifest(trial.id).result["map"] for trial in plan.trials]
    assert line.map == pytest.approx(sum(medium) / 2, abs=1e-12)
    metrics = trial_metrics(plan.trials[0], store)
    assert metrics["medium/mp_at_k/5"] >= 0
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.mlflow
def test_trials_are_mirrored_with_their_scores_and_without_curves(ran, tmp_path):
    from orchestrator.tracking import MlflowTracker

    plan, store = ran
    tracker = MlflowTracker(None, None, tmp_path, roots=[store.root])
    mirror = Mirror(plan, store, tracker, tmp_path, "benchmark")
    mirror.complete()
    report = tracker.close(60)
    assert report.ok, report.failures
    [folder, _] = sorted((tmp_path / "artifacts").glob("*/*/artifacts/curves"))
    assert [path.name for path in folder.iterdir()] == ["evaluation.json"]


# ---- what a study is refused -----------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build(tmp_path_factory.mktemp("refused"))


def refusal(root: Path, home: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        planned(root, home, **options)
    return caught.value


def test_a_study_without_images_to_train_on_is_refused_before_anything_runs(root, tmp_path):
    error = refusal(root, tmp_path)
    assert error.key == "datasets.0.train"
    assert "has no training images of its own" in error.problem
    assert "train: {folder:" in (error.hint or "")


def test_a_cut_off_is_refused_wherever_it_is_given(root, tmp_path):
    train = {"folder": str(root / "landmarks")}
    error = refusal(root, tmp_path, train=train, evaluate={"at": 100})
    assert (error.key, error.value) == ("datasets.0", 100)
    assert "scored over the whole ranking" in error.problem
    error = refusal(root, tmp_path, train=train, protocol={"at": 5})
    assert (error.key, error.value) == ("datasets.0.protocol.at", 5)
    planned(root, tmp_path, train=train, evaluate={"at": "all"})


def test_literature_modes_of_labelled_datasets_are_refused(root, tmp_path):
    train = {"folder": str(root / "landmarks")}
    error = refusal(root, tmp_path, train=train, evaluate={"legacy": ["orthohash"]})
    assert (error.key, error.value) == ("datasets.0", ["orthohash"])


def test_a_mistake_in_the_training_dataset_is_named_by_its_key(root, tmp_path):
    error = refusal(root, tmp_path, train={"folder": str(root / "nowhere")})
    assert error.key == "datasets.0.train.root"
    error = refusal(root, tmp_path, train={"name": "fodler", "root": "x"})
    assert error.key == "datasets.0.train"
    assert "'folder'" in error.problem


def test_without_training_images_codes_can_still_be_scored(root, tmp_path):
    dataset = open_dataset({"name": "roxford5k", "root": root, "expected": "any"}, home=tmp_path)
    codes = np.zeros((14, 2), dtype=np.uint8)
    found = dataset.score(codes[:3], codes, 16)
    assert found.map == evaluate_landmarks(codes[:3], codes, truth(), 16).map
