"""NUS-WIDE-21: the authors' lists and repackaged ones, concepts, greedy quotas, missing images."""

from __future__ import annotations

import io
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as given_that
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.datasets import nuswide21, open_dataset
from retrieval.errors import InputError, UnknownNameError
from retrieval.protocols import Splits

NAMES = [f"concept{c:02d}" for c in range(24)]
N = 240
SIZES = {
    "query_per_class": 1,
    "train_per_class": 2,
    "validation_per_class": 1,
    "validation_gallery_per_class": 1,
}


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="JPEG")
    return stream.getvalue()


PICTURES = [jpeg(seed) for seed in range(8)]


def path_of(row: int) -> str:
    return f"{'actor' if row % 2 else 'zebra'}/{row:04d}_{7 * row}.jpg"


def truth() -> np.ndarray:
    """Labels: concept c is in every (c % 5 + 3)th image, the last three in few, some rows in none.

    Rows that are a multiple of 40 have no label at all, and row 1 the rarest only.
    """
    rows = np.arange(N)[:, None]
    concepts = np.arange(24)[None, :]
    labels = ((rows + concepts) % (concepts % 5 + 3) == 0).astype(np.uint8)
    labels[:, 21:] = rows % 50 == 1
    labels[::40] = 0
    labels[1] = 0
    labels[1, 23] = 1
    return labels


def build(root: Path, *, images: str = "Flickr", around: str = "", ending: str = "\r\n") -> Path:
    """Write the authors' files."""
    labels, base = truth(), root / around
    (base / "ImageList").mkdir(parents=True)
    lines = [path_of(row).replace("/", "\\") for row in range(N)]
    (base / "ImageList" / "Imagelist.txt").write_bytes(
        "".join(f"{line}{ending}" for line in lines).encode()
    )
    folder = base / "Groundtruth" / "AllLabels"
    folder.mkdir(parents=True)
    for column, name in enumerate(NAMES):
        text = "".join(f"{value}{ending}" for value in labels[:, column])
        (folder / f"Labels_{name}.txt").write_bytes(text.encode())
    pictures(base / images)
    return root


def combined(root: Path, *, separator: str = " ", images: str = "images") -> Path:
    """Write one list and one file with a column for each concept."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "img.txt").write_text("".join(f"{path_of(row)}\n" for row in range(N)))
    lines = (separator.join(map(str, row)) for row in truth())
    (root / "onehot.txt").write_text("".join(f"{line}\n" for line in lines))
    pictures(root / images)
    return root


def pictures(folder: Path) -> None:
    for row in range(N):
        path = folder / path_of(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURES[row % 8] + b"\0" * (row // 8))  # each of its own length


LISTS = {"image_list": "img.txt", "labels": "onehot.txt", "columns": NAMES}


def opened(root: Path, home: Path, **options):
    given = {"name": "nuswide21", "root": str(root), "protocol": SIZES}
    return open_dataset({**given, **options}, home=home)


def refusal(root: Path, home: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(root, home, **options).splits()
    return caught.value


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return build(tmp_path_factory.mktemp("official") / "NUS-WIDE")


@pytest.fixture(scope="module")
def repackaged(tmp_path_factory):
    return combined(tmp_path_factory.mktemp("combined") / "nus")


# ---- what is listed --------------------------------------------------------------------------


def test_the_21_most_frequent_concepts_are_the_classes(official, tmp_path):
    labels = truth()
    index = opened(official, tmp_path).index()
    frequent = sorted(range(24), key=lambda c: (-int(labels[:, c].sum()), NAMES[c]))[:21]
    assert {21, 22, 23}.isdisjoint(frequent)
    assert index.classes == [NAMES[c] for c in sorted(frequent)]
    expected = {
        path_of(row): labels[row, sorted(frequent)].tolist()
        for row in range(N)
        if labels[row, frequent].any()
    }
    assert dict(zip(index.keys, index.labels.tolist(), strict=True)) == expected
    assert index.keys == sorted(index.keys)
    assert index.labels.dtype == np.uint8
    assert index.ignored == {"without any of the concepts": N - len(expected)}
    assert N - len(expected) >= 4  # the rows without a label, and that with the rarest only


def test_equally_frequent_concepts_are_taken_by_name(tmp_path):
    root = build(tmp_path / "nus")
    everywhere = "1\n" * N
    for name in ("aaa", *NAMES):  # 25 concepts, each in all images
        (root / "Groundtruth" / "AllLabels" / f"Labels_{name}.txt").write_text(everywhere)
    index = opened(root, tmp_path / "home").index()
    assert index.classes == ["aaa", *NAMES[:20]]


@pytest.mark.parametrize("way", ["zip", "around", "zip around", "images", "root", "line ends"])
def test_every_form_of_the_authors_files_is_the_same_data_set(official, tmp_path, way):
    around = "NUS-WIDE/" if "around" in way else ""
    images = {"images": "images", "root": "."}.get(way, "Flickr")
    ending = "\n" if way == "line ends" else "\r\n"
    root = build(tmp_path / "other", images=images, around=around, ending=ending)
    if "zip" in way:
        target = tmp_path / "nus.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root).as_posix())
        root = target
    dataset, plain = opened(root, tmp_path / "home"), opened(official, tmp_path / "home")
    assert dataset.identity() == plain.identity()
    assert dataset.index().keys == plain.index().keys
    assert np.array_equal(dataset.images().array, plain.images().array)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  "])
def test_a_list_with_a_column_for_each_concept_is_the_same_data_set(official, tmp_path, separator):
    root = combined(tmp_path / "other", separator=separator)
    dataset = opened(root, tmp_path / "home", **LISTS)
    assert dataset.identity() == opened(official, tmp_path / "home").identity()
    absolute = {**LISTS, "image_list": str(root / "img.txt"), "labels": str(root / "onehot.txt")}
    assert opened(root, tmp_path / "home", **absolute).identity() == dataset.identity()


def test_columns_without_names_are_numbered(repackaged, tmp_path):
    lists = {**LISTS, "columns": None}
    index = opened(repackaged, tmp_path, **lists).index()
    assert set(index.classes) <= {f"column {c:02d}" for c in range(1, 25)}
    assert len(index.classes) == 21
    named = opened(repackaged, tmp_path, **LISTS).index()
    assert np.array_equal(index.labels, named.labels)
    assert index.fingerprint != named.fingerprint


def test_listed_paths_may_name_the_folder_of_images(repackaged, tmp_path):
    root = combined(tmp_path / "other")
    text = (root / "img.txt").read_text()
    (root / "img.txt").write_text("".join(f"./images/{line}\n" for line in text.split()))
    index = opened(root, tmp_path / "home", **LISTS).index()
    assert index.keys[0].startswith("images/actor/")
    plain = opened(repackaged, tmp_path / "home", **LISTS).index()
    assert np.array_equal(index.labels, plain.labels)


def test_the_folder_of_images_can_be_given(official, tmp_path):
    root = build(tmp_path / "other", images="photos/all")
    message = str(refusal(root, tmp_path / "home"))
    assert "listed images are missing" in message
    plain = opened(official, tmp_path / "home").identity()
    for given in ("photos/all", "photos/all/"):
        assert opened(root, tmp_path / "home", images=given).identity() == plain
    for wrong in ("../photos", "/photos", "photos//all"):
        error = refusal(root, tmp_path / "home", images=wrong)
        assert (error.key, error.value) == ("images", wrong)


def test_concepts_can_be_chosen(official, tmp_path):
    concepts = ["concept23", "concept05", "concept00"]
    dataset = opened(official, tmp_path, concepts=concepts, protocol={"query_per_class": 1})
    labels = truth()[:, [0, 5, 23]]
    index = dataset.index()
    assert index.classes == sorted(concepts)
    rows = [row for row in range(N) if labels[row].any()]
    assert len(index.keys) == len(rows)
    assert index.ignored == {"without any of the concepts": N - len(rows)}
    assert dataset.protocol.id.startswith("nuswide-3-")
    same = opened(official, tmp_path, concepts=concepts[::-1], protocol={"query_per_class": 1})
    assert same.identity() == dataset.identity()
    unknown = opened(official, tmp_path, concepts=["concept05", "concpt06"])
    with pytest.raises(UnknownNameError, match="unknown concept 'concpt06'; did you mean 'conce"):
        unknown.index()
    error = refusal(official, tmp_path, concepts=["concept05", "concept05"])
    assert (error.key, "names 'concept05' twice" in str(error)) == ("concepts", True)


def test_files_labels_and_names_are_in_the_fingerprint(tmp_path):
    root, home = build(tmp_path / "nus"), tmp_path / "home"
    prints = [opened(root, home).index().fingerprint]
    assert opened(root, home).index().fingerprint == prints[0]
    (root / "Flickr" / path_of(3)).write_bytes(PICTURES[0])
    prints.append(opened(root, home).index().fingerprint)
    labels = root / "Groundtruth" / "AllLabels" / "Labels_concept00.txt"
    text = labels.read_bytes()
    labels.write_bytes(b"1" + text[1:] if text[:1] == b"0" else b"0" + text[1:])
    prints.append(opened(root, home).index().fingerprint)
    labels.rename(labels.with_name("Labels_aconcept.txt"))
    prints.append(opened(root, home).index().fingerprint)
    assert len(set(prints)) == 4


def test_images_without_a_concept_and_unlisted_ones_are_never_read(tmp_path, monkeypatch):
    from retrieval.datasets import files

    root = build(tmp_path / "nus")
    (root / "Flickr" / "actor" / "unlisted.jpg").write_bytes(b"x")
    read = []
    original = files._Folder._bytes
    monkeypatch.setattr(
        files._Folder, "_bytes", lambda self, path: read.append(path) or original(self, path)
    )
    index = opened(root, tmp_path / "home").index()
    assert {path for path in read if path.startswith("Flickr/")} == {
        f"Flickr/{key}" for key in index.keys
    }


# ---- the protocol ----------------------------------------------------------------------------


def test_quotas_hold_for_every_class_and_nothing_leaks(official, tmp_path):
    dataset = opened(official, tmp_path)
    splits = {f.name: set(getattr(dataset.splits(), f.name).tolist()) for f in fields(Splits)}
    assert {role: len(rows) for role, rows in splits.items()} == {
        "query": 21,
        "train": 42,
        "validation_query": 21,
        "validation_gallery": 21,
        "gallery": len(dataset.index().keys) - 21,
    }
    assert not splits["query"] & splits["gallery"]
    drawn = [splits[r] for r in ("train", "validation_query", "validation_gallery")]
    assert set.union(*drawn) <= splits["gallery"]
    assert len(set.union(*drawn)) == 84
    for role, quota in (("query", 1), ("train", 2), ("validation_query", 1)):
        carried = dataset.index().labels[sorted(splits[role])].sum(axis=0)
        assert (carried >= quota).all()
    assert dataset.protocol.at == 5000
    assert dataset.default_augmentation.crop == "random"


def test_the_literatures_counts_come_out(tmp_path, monkeypatch):
    # As many images of each concept as quotas ask for, twice over, and no pixels.
    monkeypatch.setattr(nuswide21, "_WHOLE", 21 * 1000)
    root = tmp_path / "nus.zip"
    per_class = 1000
    with zipfile.ZipFile(root, "w") as archive:
        paths = [f"{c:02d}/{n:04d}.jpg" for c in range(21) for n in range(per_class)]
        archive.writestr("ImageList/Imagelist.txt", "\n".join(paths))
        for c in range(21):
            column = ["0"] * len(paths)
            column[c * per_class : (c + 1) * per_class] = ["1"] * per_class
            archive.writestr(f"Groundtruth/AllLabels/Labels_c{c:02d}.txt", "\n".join(column))
        for path in paths:
            archive.writestr(zipfile.ZipInfo(f"Flickr/{path}"), b"")
    dataset = open_dataset({"name": "nuswide21", "root": str(root)}, home=tmp_path / "home")
    labels, splits = dataset.index().labels, dataset.splits()
    expected = {
        "query": 100,
        "gallery": 900,
        "train": 500,
        "validation_query": 50,
        "validation_gallery": 200,
    }
    for role, count in expected.items():
        assert labels[getattr(splits, role)].sum(axis=0).tolist() == [count] * 21
    assert dataset.protocol.id == "nuswide21"


def test_a_part_is_refused_unless_its_sizes_or_concepts_are_given(official, tmp_path):
    error = refusal(official, tmp_path, protocol={"at": 100})
    assert "expected 195834 images with one of the 21 most frequent concepts, found" in str(error)
    assert f"among {N} listed images" in str(error)
    assert "give protocol.query_per_class and train_per_class" in str(error)
    assert opened(official, tmp_path, concepts=NAMES[:5], protocol=SIZES).splits()
    message = str(refusal(official, tmp_path, protocol={**SIZES, "train_per_class": 90}))
    assert "left for the train split, the protocol needs 90" in message


def test_totals_are_refused_as_the_split_is_by_class(official, tmp_path):
    error = refusal(official, tmp_path, protocol={**SIZES, "train_total": 9})
    assert error.key == "protocol.train_total"
    assert "is split class by class; give train_per_class instead" in str(error)


# ---- missing images --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["refuse", "drop"])
def test_missing_photographs(tmp_path, missing):
    root, home = build(tmp_path / "nus"), tmp_path / "home"
    plain = opened(root, home, missing=missing)
    assert plain.identity() == opened(root, home).identity()  # while nothing is missing
    for row in (7, 11, 40):  # the last has no label and is not missed
        (root / "Flickr" / path_of(row)).unlink()
    if missing == "refuse":
        error = refusal(root, home, missing=missing)
        total = len(plain.index().keys)
        first = f"'Flickr/{path_of(7)}', 'Flickr/{path_of(11)}'"
        assert f"2 of the {total} listed images are missing, the first: {first}" in str(error)
        assert "with missing: drop" in str(error)
        return
    dataset = opened(root, home, missing=missing)
    assert set(plain.index().keys) - set(dataset.index().keys) == {path_of(7), path_of(11)}
    assert dataset.index().ignored == {**plain.index().ignored, "missing": 2}
    assert dataset.index().fingerprint != plain.index().fingerprint
    rows = [plain.index().keys.index(key) for key in dataset.index().keys]
    assert np.array_equal(dataset.index().labels, plain.index().labels[rows])


def test_an_unknown_answer_to_missing_photographs_is_refused(official, tmp_path):
    assert "missing: must be one of refuse, drop" in str(refusal(official, tmp_path, missing="x"))


def test_a_root_without_any_photograph_is_refused_even_if_they_may_be_dropped(tmp_path):
    root = build(tmp_path / "nus", images="elsewhere")
    message = str(refusal(root, tmp_path / "home", missing="drop"))
    assert "none of the listed images is there" in message


# ---- damaged lists ---------------------------------------------------------------------------


def edited(root: Path, name: str, edit) -> Path:
    path = root / name
    path.write_bytes(edit(path.read_bytes()))
    return root


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda data: data[:-3], f"has {N - 1} lines and ImageList/Imagelist.txt {N} images"),
        (
            lambda data: data + b"1\r\n",
            f"has {N + 1} lines and ImageList/Imagelist.txt {N} images",
        ),
        (lambda data: b"2" + data[1:], "Labels_concept03.txt:1: labels must be 0 or 1, found '2'"),
        (lambda data: data[:6] + b"\r\n" + data[6:], ".txt:3: labels must be 0 or 1, found nothi"),
        (
            lambda data: data[:3] + b"10\r\n" + data[6:],
            ".txt:2: labels must be 0 or 1, found '10'",
        ),
        (
            lambda data: data[:3] + b"1 0\r\n" + data[6:],
            ".txt:2: has 2 labels, expected 1 in each",
        ),
        (lambda data: data[:3] + b"\xff\r\n" + data[6:], ".txt:2: labels must be 0 or 1, found"),
        (lambda data: b"", ".txt:1: labels must be 0 or 1, found nothing"),
    ],
)
def test_a_damaged_label_file_is_named_with_its_line(tmp_path, edit, part):
    root = build(tmp_path / "nus")
    edited(root, "Groundtruth/AllLabels/Labels_concept03.txt", edit)
    message = str(refusal(root, tmp_path / "home"))
    assert part in message
    assert "Groundtruth/AllLabels/Labels_concept03.txt" in message


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda data: data[:-48], f"onehot.txt has {N - 1} lines and img.txt {N} images"),
        (lambda data: data[:-2] + b"\n", f"onehot.txt:{N}: has 23 labels, expected 24"),
        (lambda data: data[:48] + b"x" + data[49:], "onehot.txt:2: labels must be 0 or 1, fou"),
        (
            lambda data: data.replace(b"0", b"0.0"),
            "onehot.txt:1: labels must be 0 or 1, found '0.",
        ),
    ],
)
def test_a_damaged_matrix_of_labels_is_named_with_its_line(tmp_path, edit, part):
    root = edited(combined(tmp_path / "nus"), "onehot.txt", edit)
    error = refusal(root, tmp_path / "home", **LISTS)
    assert error.key == "labels"
    assert part in str(error)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("..\\..\\etc\\passwd.jpg", "is no path below the folder of images"),
        ("actor/../../x.jpg", "is no path below"),
        ("\\\\server\\share\\x.jpg", "is no path below"),
        ("C:\\x.jpg", "is no path below"),
        ("/etc/x.jpg", "is no path below"),
        ("actor//x.jpg", "is no path below"),
        ("actor/x\x07.jpg", "is no path below"),
        (path_of(5), f"'{path_of(5)}' is listed twice, see ImageList/Imagelist.txt:6"),
        ("./" + path_of(5), f"'{path_of(5)}' is listed twice"),
    ],
)
def test_a_wrong_entry_of_the_image_list_is_named_with_its_line(tmp_path, line, part):
    root = build(tmp_path / "nus")
    path = root / "ImageList" / "Imagelist.txt"
    lines = path.read_bytes().split(b"\r\n")
    lines[9] = line.encode()
    path.write_bytes(b"\r\n".join(lines))
    message = str(refusal(root, tmp_path / "home"))
    assert "ImageList/Imagelist.txt:10: " in message
    assert part in message


def test_lists_that_are_missing_or_incomplete_are_named(tmp_path, official, repackaged):
    root = build(tmp_path / "nus")
    for name in NAMES[3:]:
        (root / "Groundtruth" / "AllLabels" / f"Labels_{name}.txt").unlink()
    error = refusal(root, tmp_path / "home")
    assert "has labels of 3 concepts, 21 are needed" in str(error)
    assert "name those to take with concepts" in str(error)
    assert opened(root, tmp_path / "home", concepts=NAMES[:3]).splits()
    (root / "ImageList" / "Imagelist.txt").write_bytes(b"\r\n")
    assert "lists no images" in str(refusal(root, tmp_path / "home"))
    (root / "ImageList" / "Imagelist.txt").unlink()
    message = str(refusal(root, tmp_path / "home"))
    assert "there is no ImageList/Imagelist.txt with Groundtruth/AllLabels/" in message
    assert "give image_list and labels" in message
    for given, other in (("image_list", "labels"), ("labels", "image_list")):
        error = refusal(repackaged, tmp_path / "home", **{given: LISTS[given]})
        assert error.key == other
        assert f"{given} and {other} belong together" in str(error)
    error = refusal(official, tmp_path / "home", columns=NAMES)
    assert (error.key, "names columns of labels, which is not given" in str(error)) == (
        "columns",
        True,
    )


@pytest.mark.parametrize(
    ("options", "key", "part"),
    [
        ({"columns": NAMES[:-1]}, "columns", "names 23 columns, the label file has 24"),
        ({"columns": [*NAMES[:-1], NAMES[0]]}, "columns", "names 'concept00' twice"),
        ({"labels": "none.txt"}, "labels", "there is no such file below the root"),
        ({"image_list": "../img.txt"}, "image_list", "must be a path below the root"),
    ],
)
def test_wrong_lists_of_the_combined_form_are_refused(repackaged, tmp_path, options, key, part):
    error = refusal(repackaged, tmp_path, **{**LISTS, **options})
    assert error.key == key
    assert part in str(error)


def test_a_concept_that_no_image_has_is_no_class(tmp_path):
    root = build(tmp_path / "nus")
    (root / "Groundtruth" / "AllLabels" / "Labels_zeppelin.txt").write_text("0\n" * N)
    assert opened(root, tmp_path / "home").splits()
    message = str(refusal(root, tmp_path / "home", concepts=["concept00", "zeppelin"]))
    assert "no image has the concept 'zeppelin'" in message


def test_lists_without_any_label_are_refused(tmp_path):
    root = combined(tmp_path / "nus")
    edited(root, "onehot.txt", lambda data: data.replace(b"1", b"0"))
    message = str(refusal(root, tmp_path / "home", **LISTS))
    assert "no image has the concept" in message


# ---- numbers in text -------------------------------------------------------------------------

BLANKS = st.sampled_from([" ", "  ", "\t", ",", ", "])


@settings(max_examples=60, deadline=None)
@given_that(
    rows=st.lists(st.integers(0, 1), min_size=1, max_size=24),
    columns=st.integers(1, 4),
    between=st.lists(BLANKS, min_size=1, max_size=3),
    ending=st.sampled_from(["\n", "\r\n", " \n"]),
    mark=st.sampled_from(["", "\ufeff"]),
    last=st.booleans(),
)
def test_labels_are_read_whatever_is_between_them(rows, columns, between, ending, mark, last):
    rows = rows * columns
    table = [rows[first : first + columns] for first in range(0, len(rows), columns)]
    lines = []
    for number, row in enumerate(table):
        lines.append(between[number % len(between)].join(map(str, row)))
    text = mark + ending.join(lines) + (ending if last else "")
    found = nuswide21._read_matrix(text.encode(), "x.txt", "labels")
    assert found.dtype == np.uint8
    assert found.tolist() == table
