"""Damage that downloads and hand-made lists have: named and refused, or dropped and counted.

A small tree of each kind of dataset is made, damaged in one way, and given to ``asymbench
prepare``: it ends with exit code 2 and one message that names the file, or with a report that
counts what was left out. Nothing damaged gets through unnoticed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.cli import cli, guarded

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
CIFAR10 += ["truck"]
WNIDS = ["n01440764", "n02123045"]

#: Quotas of a class: each has one image or more of all that a protocol wants.
QUOTAS = {
    "protocol.query_per_class": 1,
    "protocol.train_per_class": 1,
    "protocol.validation_per_class": 1,
    "protocol.validation_gallery_per_class": 1,
}


# ---- trees -----------------------------------------------------------------------------------


def jpeg(path: Path, seed: int) -> None:
    """Write a JPEG of noise, no two of them alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def folder(root: Path) -> dict[str, Any]:
    for number in range(24):
        jpeg(root / ["cat", "dog"][number % 2] / f"{number:02d}.jpg", number)
    return {}


def cifar10(root: Path) -> dict[str, Any]:
    for number in range(80):
        jpeg(root / "train" / CIFAR10[number % 10] / f"{number:02d}.jpg", number)
    return QUOTAS


def coco(root: Path) -> dict[str, Any]:
    images, annotations = [], []
    for number in range(1, 25):
        name = f"{number:012d}.jpg"
        jpeg(root / "train2017" / name, number)
        images.append({"id": number, "file_name": name})
        for category in {1 + number % 3, 1 + number % 2}:
            annotations.append({"image_id": number, "category_id": category})
    categories = [{"id": n, "name": f"thing {n}"} for n in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return {"parts": ["train"]}


def hashlist(root: Path) -> dict[str, Any]:
    rows = []
    for number in range(24):
        jpeg(root / "images" / f"{number:02d}.jpg", number)
        labels = [int(number % 3 == 0), int(number % 2 == 0), 1]
        rows.append(f"images/{number:02d}.jpg {' '.join(map(str, labels))}\n")
    for name, some in (("test", rows[:4]), ("database", rows[4:]), ("train", rows[4:14])):
        (root / f"{name}.txt").write_text("".join(some))
    return {}


def manifest(root: Path) -> dict[str, Any]:
    rows = ["path,labels,split\n"]
    for number in range(24):
        jpeg(root / "images" / f"{number:02d}.jpg", number)
        split = "query" if number < 4 else "gallery|train" if number < 14 else "gallery"
        rows.append(f"images/{number:02d}.jpg,{['cat', 'dog|cat'][number % 2]},{split}\n")
    (root / "list.csv").write_text("".join(rows))
    return {}


def nuswide21(root: Path) -> dict[str, Any]:
    paths, labels = [], []
    for number in range(24):
        jpeg(root / "images" / f"{number:02d}.jpg", number)
        paths.append(f"{number:02d}.jpg\n")
        labels.append(f"{int(number % 2 == 0)} {int(number % 6 != 0)} {int(number % 4 == 1)}\n")
    (root / "list.txt").write_text("".join(paths))
    (root / "labels.txt").write_text("".join(labels))
    return {
        "image_list": "list.txt",
        "labels": "labels.txt",
        "columns": ["sky", "water", "people"],
        "concepts": ["sky", "water"],
        **QUOTAS,
    }


def imagenet100(root: Path) -> dict[str, Any]:
    for number in range(20):
        wnid = WNIDS[number % 2]
        if number < 12:
            jpeg(root / "train" / wnid / f"{wnid}_{number}.JPEG", number)
        else:
            jpeg(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    rows = [f"ILSVRC2012_val_{n:08d}.JPEG {WNIDS[n % 2]}\n" for n in range(12, 20)]
    (root / "val.txt").write_text("".join(rows))
    return {
        "classes": WNIDS,
        **{key: value for key, value in QUOTAS.items() if "query" not in key},
    }


TREES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "folder": folder,
    "cifar10": cifar10,
    "coco": coco,
    "hashlist": hashlist,
    "manifest": manifest,
    "nuswide21": nuswide21,
    "imagenet100": imagenet100,
}


# ---- what `asymbench prepare` says of them ---------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What the command came to: exit code, report and message."""

    code: int
    report: dict[str, Any]
    message: str


class Download:
    """A tree of one kind, to be damaged and prepared."""

    def __init__(self, name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.name, self.root = name, root
        root.mkdir()
        self.options = TREES[name](root)
        self._capsys = capsys

    def path(self, relative: str) -> Path:
        return self.root / relative

    def edit(self, relative: str, old: str, new: str) -> None:
        """Replace the one place in a text file."""
        text = self.path(relative).read_text()
        assert text.count(old) == 1
        self.path(relative).write_text(text.replace(old, new))

    def images(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.suffix in (".jpg", ".JPEG"))

    def prepare(self, **options: Any) -> Outcome:
        root = self.root / "list.csv" if self.name == "manifest" else self.root
        arguments = ["prepare", self.name, "--root", str(root), "--json"]
        for key, value in {**self.options, **options}.items():
            arguments += ["--set", f"{key}={json.dumps(value)}"]
        self._capsys.readouterr()
        code = guarded(lambda: cli(arguments, prog_name="asymbench", standalone_mode=False))
        out, err = self._capsys.readouterr()
        return Outcome(code, json.loads(out) if code == 0 else {}, err)

    def refusal(self, **options: Any) -> str:
        """Return the one message of a refusal."""
        outcome = self.prepare(**options)
        assert outcome.code == 2, outcome
        assert outcome.message.count("asymbench: ") == 1
        assert "Traceback" not in outcome.message
        return outcome.message

    def report(self, **options: Any) -> dict[str, Any]:
        outcome = self.prepare(**options)
        assert outcome.code == 0, outcome.message
        return outcome.report


@pytest.fixture
def download(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    return lambda name: Download(name, tmp_path / name, capsys)


@pytest.mark.parametrize("name", TREES)
def test_a_whole_download_is_prepared_and_nothing_is_left_out(download, name):
    tree = download(name)
    report = tree.report()
    assert report["images"] == len(tree.images())
    assert report["ignored"] == {}


# ---- a truncated JPEG ------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_a_truncated_jpeg_is_named_and_can_be_left_out(download, name, tmp_path):
    tree = download(name)
    for path in tree.images()[5:7]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = tree.refusal()
    assert f"2 images of {len(tree.images())} cannot be read" in message
    for path in tree.images()[5:7]:
        assert path.name in message
    left_out = next((tmp_path / "home").rglob("*.exclude.txt"))
    assert str(left_out) in message
    shutil.copy(left_out, tmp_path / "exclude.txt")
    report = tree.report(exclude=str(tmp_path / "exclude.txt"))
    assert report["images"] == len(tree.images()) - 2
    assert report["ignored"] == {"excluded by the study": 2}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
def test_a_file_that_is_no_image_is_named(download, name, content):
    tree = download(name)
    tree.images()[3].write_bytes(content)
    message = tree.refusal()
    assert f"1 image of {len(tree.images())} cannot be read" in message
    assert tree.images()[3].name in message


@pytest.mark.parametrize("name", TREES)
def test_empty_files_are_named_and_not_taken_for_copies(download, name):
    tree = download(name)
    for path in tree.images()[2:4]:
        path.write_bytes(b"")
    message = tree.refusal()
    assert f"2 images of {len(tree.images())} cannot be read" in message
    for path in tree.images()[2:4]:
        assert path.name in message


# ---- a missing file --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "hashlist", "manifest", "nuswide21", "imagenet100"])
def test_a_listed_image_that_is_missing_is_named_and_counted(download, name):
    tree = download(name)
    gone = [path for path in tree.images() if "train/" not in str(path)][-3:]
    listed = 8 if name == "imagenet100" else 24
    for path in gone:
        path.unlink()
    message = tree.refusal()
    assert gone[0].stem in message
    assert "3 " in message
    assert f"{listed} " in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hashlist", "listed and not there"),
        ("manifest", "listed and not there"),
        ("nuswide21", "missing"),
    ],
)
def test_missing_images_are_dropped_only_if_that_is_said_and_counted(download, name, reason):
    tree = download(name)
    for path in tree.images()[-3:]:
        path.unlink()
    tree.refusal(missing="refuse")
    report = tree.report(missing="drop")
    assert report["images"] == 21
    assert report["ignored"] == {reason: 3}


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("hashlist", ["train.txt", "test.txt", "database.txt"]),
        ("manifest", ["list.csv"]),
        ("coco", ["annotations/instances_train2017.json"]),
        ("nuswide21", ["list.txt", "labels.txt"]),
    ],
)
def test_a_list_that_is_missing_is_named(download, name, lists):
    tree = download(name)
    for relative in lists:
        kept = tree.path(relative).rename(tree.root.parent / "kept")
        message = tree.refusal()
        assert Path(relative).name in message
        kept.rename(tree.path(relative))
    tree.report()


# ---- a wrong count ---------------------------------------------------------------------------


def test_a_part_of_cifar10_is_not_taken_for_the_whole(download):
    tree = download("cifar10")
    tree.options = {}
    message = tree.refusal()
    assert "expected 60000 images, 6000 in each of 10 classes; found 80 in 10 classes" in message


def test_a_part_of_imagenet100_is_not_taken_for_the_whole(download):
    tree = download("imagenet100")
    tree.options = {"classes": WNIDS}
    assert "expected 100 classes, found 2" in tree.refusal()


def test_a_part_of_nuswide21_is_not_taken_for_the_whole(download):
    tree = download("nuswide21")
    columns = [f"concept {n}" for n in range(21)]
    rows = [" ".join(str(int(n % 21 == c)) for c in range(21)) for n in range(24)]
    tree.path("labels.txt").write_text("\n".join(rows) + "\n")
    tree.options = {"image_list": "list.txt", "labels": "labels.txt", "columns": columns}
    assert "expected 195834 images" in tree.refusal()
    assert "found 24 among 24 listed images" in tree.refusal()


@pytest.mark.parametrize("name", ["folder", "cifar10", "imagenet100"])
def test_a_class_without_enough_images_is_named(download, name):
    tree = download(name)
    last = tree.images()[0].parent
    for path in tree.images():
        if path.parent == last:
            path.unlink()
    assert last.name in tree.refusal()


def test_a_list_with_other_columns_than_the_others_is_named(download):
    tree = download("hashlist")
    text = tree.path("test.txt").read_text()
    tree.path("test.txt").write_text(text.replace(".jpg ", ".jpg 0 "))
    assert "test.txt has 4 columns of labels, train.txt has 3" in tree.refusal()


# ---- labels that end too early ---------------------------------------------------------------


def test_a_label_file_that_is_shorter_than_the_image_list_is_refused(download):
    tree = download("nuswide21")
    rows = tree.path("labels.txt").read_text().splitlines()
    tree.path("labels.txt").write_text("\n".join(rows[:-2]) + "\n")
    message = tree.refusal()
    assert "labels.txt has 22 lines and list.txt 24 images" in message


def test_validation_images_that_the_labels_leave_out_are_counted(download):
    tree = download("imagenet100")
    rows = tree.path("val.txt").read_text().splitlines()
    tree.path("val.txt").write_text("\n".join(rows[:-2]) + "\n")
    report = tree.report()
    assert report["images"] == 18
    assert report["ignored"] == {"without a label": 2}


@pytest.mark.parametrize(
    ("name", "relative", "row", "cut", "part"),
    [
        (
            "hashlist",
            "database.txt",
            "images/23.jpg 0 0 1\n",
            "images/23.jpg 0 ",
            "database.txt:20: has 1 columns of labels, line 1 has 3",
        ),
        (
            "hashlist",
            "database.txt",
            "images/23.jpg 0 0 1\n",
            "images/2",
            "database.txt:20: has no columns of labels",
        ),
        (
            "manifest",
            "list.csv",
            "images/23.jpg,dog|cat,gallery\n",
            "images/23.jpg,dog|c",
            "list.csv:25: has 2 columns, the first line has 3",
        ),
        ("coco", "annotations/instances_train2017.json", "}]}", "}", "is no JSON"),
        ("nuswide21", "labels.txt", "0 1 0\n", "0 1", "labels.txt:24: has 2 labels, expected 3"),
    ],
)
def test_a_list_that_was_cut_off_is_refused(download, name, relative, row, cut, part):
    tree = download(name)
    text = tree.path(relative).read_text()
    end = text.rindex(row)
    tree.path(relative).write_text(text[:end] + cut)
    assert part in tree.refusal()


# ---- unknown classes -------------------------------------------------------------------------


def test_a_folder_that_is_no_class_is_named(download):
    tree = download("cifar10")
    tree.path("train/ship").rename(tree.path("train/shipp"))
    assert "'shipp' is no class of CIFAR-10; did you mean 'ship'?" in tree.refusal()


def test_a_label_that_is_no_class_is_named_with_its_line(download):
    tree = download("manifest")
    tree.edit("list.csv", "images/07.jpg,dog|cat", "images/07.jpg,dog|cta")
    message = tree.refusal(classes=["cat", "dog"])
    assert "list.csv:9" in message
    assert "unknown class 'cta'; did you mean 'cat'?" in message


def test_an_annotation_of_an_unknown_category_is_named(download):
    tree = download("coco")
    path = tree.path("annotations/instances_train2017.json")
    content = json.loads(path.read_text())
    content["annotations"][5]["category_id"] = 77
    path.write_text(json.dumps(content))
    assert "annotations[5]: there is no category 77" in tree.refusal()


def test_a_concept_that_is_no_column_is_named(download):
    message = download("nuswide21").refusal(concepts=["sky", "watr"])
    assert "unknown concept 'watr'; did you mean 'water'?" in message


def test_a_class_without_a_folder_is_named(download):
    message = download("imagenet100").refusal(classes=[WNIDS[0], "n09999999"])
    assert "n09999999" in message


def test_a_label_that_is_neither_0_nor_1_is_named_with_its_line(download):
    tree = download("hashlist")
    tree.edit("database.txt", "images/12.jpg 1 1 1", "images/12.jpg 1 2 1")
    assert "database.txt:9: labels must be 0 or 1, found '2'" in tree.refusal()


# ---- rows without a label --------------------------------------------------------------------


def unlabelled(tree: Download) -> None:
    """Take the labels of the last image away."""
    if tree.name == "coco":
        path = tree.path("annotations/instances_train2017.json")
        content = json.loads(path.read_text())
        kept = [a for a in content["annotations"] if a["image_id"] != 24]
        path.write_text(json.dumps({**content, "annotations": kept}))
    elif tree.name == "hashlist":
        tree.edit("database.txt", "images/23.jpg 0 0 1", "images/23.jpg 0 0 0")
    elif tree.name == "manifest":
        tree.edit("list.csv", "images/23.jpg,dog|cat", "images/23.jpg,")
    else:
        rows = tree.path("labels.txt").read_text().splitlines()
        tree.path("labels.txt").write_text("\n".join([*rows[:-1], "0 0 0"]) + "\n")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("coco", {}, "without a label"),
        ("hashlist", {}, "without a label"),
        ("hashlist", {"unlabelled": "drop"}, "without a label"),
        ("manifest", {"unlabelled": "drop"}, "without a label"),
        ("nuswide21", {}, "without any of the concepts"),
    ],
)
def test_an_image_without_a_label_is_left_out_and_counted(download, name, options, reason):
    tree = download(name)
    unlabelled(tree)
    report = tree.report(**options)
    assert report["images"] == 23
    assert report["ignored"] == {reason: 1}


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("hashlist", {"unlabelled": "refuse"}, "database.txt:20: 'images/23.jpg' has no label"),
        ("manifest", {}, "list.csv:25: has no label"),
    ],
)
def test_an_image_without_a_label_is_refused_with_its_line(download, name, options, part):
    tree = download(name)
    unlabelled(tree)
    assert part in tree.refusal(**options)


# ---- one image on two sides ------------------------------------------------------------------


def test_a_query_that_is_trained_on_is_refused_or_taken_out_and_counted(download):
    tree = download("hashlist")
    with tree.path("train.txt").open("a") as stream:
        stream.write("images/02.jpg 0 1 1\n")
    message = tree.refusal()
    assert "of the images in test.txt there are 1 in train.txt too" in message
    assert "images/02.jpg" in message
    report = tree.report(leaks="drop")
    assert report["ignored"] == {"taken out of database or train, being queries": 1}
    assert report["images"] == 24


def test_a_path_with_a_row_as_query_and_one_as_gallery_is_refused(download):
    tree = download("manifest")
    with tree.path("list.csv").open("a") as stream:
        stream.write("images/02.jpg,cat,gallery|train\n")
    message = tree.refusal()
    assert "list.csv:26: 'images/02.jpg' is in list.csv:4 too" in message
    assert "as 'query' there and 'gallery|train' here" in message


@pytest.mark.parametrize("name", ["folder", "manifest"])
def test_a_copy_on_the_other_side_is_refused_or_dropped_and_counted(download, name):
    tree = download(name)
    first, other = tree.images()[1], tree.images()[7]
    first.write_bytes(other.read_bytes())
    message = tree.refusal()
    assert first.name in message
    assert other.name in message
    report = tree.report(duplicates="first")
    assert report["images"] == 23
    assert report["ignored"] == {"a copy of another image": 1}


def test_a_file_that_is_listed_twice_is_named(download):
    tree = download("coco")
    path = tree.path("annotations/instances_train2017.json")
    content = json.loads(path.read_text())
    content["images"][8]["file_name"] = content["images"][2]["file_name"]
    path.write_text(json.dumps(content))
    assert "images[8]: two images have the file name '000000000003.jpg'" in tree.refusal()
    tree = download("nuswide21")
    tree.edit("list.txt", "07.jpg\n", "05.jpg\n")
    assert "list.txt:8: '05.jpg' is listed twice, see list.txt:6" in tree.refusal()
