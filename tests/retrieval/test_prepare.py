"""Preparing a dataset: once, whole, and with everything that is wrong named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval import prepare as module
from retrieval.datasets import Dataset, DatasetIndex, open_dataset
from retrieval.datasets.base import DatasetOptions
from retrieval.errors import DatasetError
from retrieval.images import open_images
from retrieval.prepare import equal_images, prepare, report_text
from retrieval.protocols import Protocol, Splits


def tree(root: Path, n: int = 30) -> Path:
    for title in ("cat", "dog"):
        (root / title).mkdir(parents=True)
        for number in range(n):
            rng = np.random.default_rng(number + 1000 * (title == "dog"))
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / title / f"{number:03d}.png")
    return root


def opened(root: Path, tmp_path: Path, **options) -> Dataset:
    return open_dataset({"folder": str(root), **options}, home=tmp_path / "home")


def test_a_sound_dataset_is_decoded_and_reported_once(tmp_path):
    root = tree(tmp_path / "photos")
    told = []
    done = prepare(opened(root, tmp_path), progress=lambda *now: told.append(now))
    assert done.fresh
    assert told[-1] == (60, 60)
    assert done.report["ready"]
    assert done.report["images"] == 60
    assert done.report["unreadable"] == []
    assert done.report["equal_images"]["groups"] == 0
    assert done.report["store"]["bytes"] == 60 * 12 * 12 * 3
    assert Path(done.report["store"]["folder"]).is_dir()
    assert json.loads(done.path.read_text()) == done.report
    assert done.path.with_suffix(".txt").read_text() == report_text(done.report)
    assert "ready: 60 images decoded to 12 x 12 pixels" in report_text(done.report)
    assert "no two images are equal" in report_text(done.report)
    assert done.path.parent == tmp_path / "home" / "prepared"

    told.clear()
    again = prepare(opened(root, tmp_path), progress=lambda *now: told.append(now))
    assert not again.fresh
    assert told == []
    assert again.report == done.report


@pytest.mark.parametrize("gone", ["store", "splits", "report", "report's end", "report's version"])
def test_what_is_gone_is_made_again(tmp_path, gone):
    root = tree(tmp_path / "photos")
    done = prepare(opened(root, tmp_path))
    if gone == "store":
        shutil.rmtree(done.report["store"]["folder"])
    elif gone == "splits":
        Path(done.report["splits_file"]).unlink()
    elif gone == "report":
        done.path.unlink()
    elif gone == "report's end":
        done.path.write_text(done.path.read_text()[:-20])
    else:
        done.path.write_text(json.dumps({**done.report, "report": 0}))
    again = prepare(opened(root, tmp_path))
    assert again.fresh
    assert again.report == done.report
    assert json.loads(done.path.read_text()) == done.report
    assert Path(done.report["store"]["folder"]).is_dir()
    assert Path(done.report["splits_file"]).is_file()


def test_the_splits_that_were_drawn_are_kept_and_can_be_handed_on(tmp_path):
    dataset = opened(tree(tmp_path / "photos"), tmp_path, protocol={"split_seed": 3})
    kept = prepare(dataset).report["splits_file"]
    again = opened(tmp_path / "photos", tmp_path, protocol={"split_file": kept})
    for role in ROLES:
        rows = getattr(dataset.splits(), role)
        assert np.array_equal(getattr(again.splits(), role), rows)
        assert json.loads(Path(kept).read_text())[role] == [dataset.index().keys[r] for r in rows]


def test_another_split_has_a_report_of_its_own_and_the_same_store(tmp_path):
    root = tree(tmp_path / "photos")
    one = prepare(opened(root, tmp_path))
    told = []
    two = prepare(
        opened(root, tmp_path, protocol={"split_seed": 3}),
        progress=lambda *now: told.append(now),
    )
    assert one.path != two.path
    assert one.report["store"] == two.report["store"]
    assert told == []


def test_unreadable_images_are_all_listed_and_can_be_excluded(tmp_path):
    root = tree(tmp_path / "photos")
    broken = [f"dog/{number:03d}.png" for number in range(3, 12)]
    for key in broken:
        (root / key).write_bytes(f"no image {key}".encode())
    with pytest.raises(DatasetError) as caught:
        prepare(opened(root, tmp_path))
    message = str(caught.value)
    assert "9 images of 60 cannot be read: dog/003.png (no image that can be decoded)" in message
    assert "; and 4 more" in message
    (path,) = (tmp_path / "home" / "prepared").glob("*.json")
    report = json.loads(path.read_text())
    assert not report["ready"]
    assert [entry["key"] for entry in report["unreadable"]] == broken
    text = path.with_suffix(".txt").read_text()
    assert "NOT READY: 9 images cannot be read" in text
    assert all(key in text for key in broken)
    exclude = path.with_suffix(".exclude.txt")
    assert str(exclude) in message
    assert exclude.read_text().splitlines()[1:] == broken

    done = prepare(opened(root, tmp_path, exclude=str(exclude)))
    assert done.report["images"] == 51
    assert done.report["ignored"]["excluded by the study"] == 9
    # More break later: the new list has the old ones too.
    (root / "cat" / "000.png").write_bytes(b"gone")
    with pytest.raises(DatasetError, match="1 image of 51 cannot be read"):
        prepare(opened(root, tmp_path, exclude=str(exclude)))
    lists = {p: p.read_text() for p in path.parent.glob("*.exclude.txt")}
    assert sorted(len(text.splitlines()) for text in lists.values()) == [10, 11]
    (newest,) = [p for p, text in lists.items() if "cat/000.png" in text]
    assert prepare(opened(root, tmp_path, exclude=str(newest))).report["images"] == 50


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(opened(tree(tmp_path / "photos"), tmp_path))
    assert list((tmp_path / "home" / "prepared").iterdir()) == []


def test_mended_images_make_the_dataset_ready(tmp_path):
    root = tree(tmp_path / "photos")
    good = (root / "cat" / "004.png").read_bytes()
    (root / "cat" / "004.png").write_bytes(good[:60])
    with pytest.raises(DatasetError, match=r"cat/004\.png"):
        prepare(opened(root, tmp_path))
    (root / "cat" / "004.png").write_bytes(good)
    assert prepare(opened(root, tmp_path)).report["ready"]


def test_an_interrupted_preparation_goes_on(tmp_path):
    root = tree(tmp_path / "photos", 100)

    def stop(done, n):
        if done > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(opened(root, tmp_path), progress=stop)
    assert not list((tmp_path / "home").glob("prepared/*"))
    told = []
    assert prepare(opened(root, tmp_path), progress=lambda *now: told.append(now)).fresh
    assert told[0][0] >= 64
    assert told[-1] == (200, 200)


def test_a_split_that_is_impossible_is_refused_before_anything_is_decoded(tmp_path):
    root = tree(tmp_path / "photos")
    with pytest.raises(DatasetError, match="class 'cat' has 30 images"):
        prepare(opened(root, tmp_path, protocol={"query_per_class": 40}))
    assert not (tmp_path / "home" / "images").exists()


# ---- an index that contradicts itself --------------------------------------------------------


class Odd(Dataset):
    """A dataset of one's own, with a mistake."""

    name = "odd"
    index_of_it: DatasetIndex

    def load_index(self):
        return self.index_of_it

    def decoder(self):
        return nullcontext(lambda number: np.zeros((4, 4, 3), np.uint8))

    def default_protocol(self):
        return Protocol(id="odd")


@pytest.mark.parametrize(
    ("keys", "labels", "part"),
    [
        ([], np.empty(0, np.int64), "has no images"),
        (["a", "b"], np.array([0]), "has 2 images and 1 labels"),
        (["a", "a", "b"], np.array([0, 1, 0]), "has 1 keys that more than one image has"),
        (["a", "b"], np.array([0, 2]), "has class numbers from 0 to 2, and 2 classes"),
        (["a", "b"], np.array([-2, 1]), "has class numbers from -2 to 1, and 2 classes"),
        (["a", "b"], np.ones((2, 3), np.uint8), "has 2 classes and 3 columns of labels"),
        (["a", "b"], np.full((2, 2), 2, np.uint8), "has labels other than 0 and 1"),
    ],
)
def test_labels_that_contradict_the_images_are_refused(tmp_path, keys, labels, part):
    dataset = Odd(DatasetOptions(), tmp_path)
    dataset.index_of_it = DatasetIndex(keys, labels, ["x", "y"], "f" * 64)
    with pytest.raises(DatasetError) as caught:
        prepare(dataset)
    assert str(caught.value) == f"dataset 'odd' {part}"


# ---- equal images ----------------------------------------------------------------------------

ROLES = ("train", "validation_query", "validation_gallery", "query", "gallery")


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    marks=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=30, max_size=30),
    labels=st.lists(st.integers(0, 2), min_size=30, max_size=30),
    at_once=st.integers(1, 9),
)
def test_equal_images_are_those_a_comparison_of_all_pairs_finds(
    tmp_path_factory, contents, marks, labels, at_once
):
    n = len(contents)
    images = np.random.default_rng(0).integers(0, 256, (13, 3, 3, 3), dtype=np.uint8)
    images[1] = images[0]
    images[1, 2, 2, 2] ^= 1  # one bit is another image
    keys = [f"k{i}" for i in range(n)]
    store = open_images(
        tmp_path_factory.mktemp("equal") / "x",
        lambda: nullcontext(lambda number: images[contents[number]]),
        keys=keys,
        labels=np.array(labels[:n]),
        classes=["a", "b", "c"],
        fingerprint="f",
    )
    rows = {
        role: np.array([i for i in range(n) if marks[i][k]], dtype=np.int64)
        for k, role in enumerate(ROLES)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", at_once)
        found = equal_images(store, Splits(**rows))
    repeated = [c for c in set(contents) if contents.count(c) > 1]
    assert found["groups"] == len(repeated)
    assert found["images"] == sum(contents.count(c) for c in repeated)
    assert found["labels_differ"] == sum(
        len({labels[i] for i in range(n) if contents[i] == c}) > 1 for c in repeated
    )
    for title, across in found["across"].items():
        one, other = title.split(" and ")
        expected = {
            i
            for i in rows[one].tolist()
            if any(i != j and contents[i] == contents[j] for j in rows[other].tolist())
        }
        assert across["images"] == len(across["pairs"]) == len(expected)
        assert {keys.index(first) for first, _ in across["pairs"]} == expected
        for first, second in across["pairs"]:
            i, j = keys.index(first), keys.index(second)
            assert i != j
            assert j in rows[other]
            assert contents[i] == contents[j]


def test_a_copy_in_query_and_gallery_is_a_leak_in_the_report(tmp_path):
    root = tree(tmp_path / "photos")
    dataset = opened(root, tmp_path)
    query = dataset.index().keys[dataset.splits().query[0]]
    other = dataset.index().keys[dataset.splits().train[0]]
    (root / other).write_bytes((root / query).read_bytes())
    split = {
        role: [dataset.index().keys[row] for row in getattr(dataset.splits(), role)]
        for role in ROLES
    }
    (tmp_path / "split.json").write_text(json.dumps(split))
    protocol = {"split_file": str(tmp_path / "split.json")}
    done = prepare(opened(root, tmp_path, duplicates="keep", protocol=protocol))
    found = done.report["equal_images"]
    assert found["groups"] == 1
    assert found["across"]["query and gallery"] == {"images": 1, "pairs": [[query, other]]}
    assert found["across"]["query and train"] == {"images": 1, "pairs": [[query, other]]}
    assert found["across"]["validation_query and train"] == {"images": 0, "pairs": []}
    text = report_text(done.report)
    assert "LEAK between query and gallery: 1 image, the first:" in text
    assert f"    {query}  =  {other}" in text
    assert "LEAK between validation" not in text
