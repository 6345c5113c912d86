"""Manifests: CSV, TSV and Parquet are the same dataset; what is drawn, listed and refused."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from orchestrator.cli import cli, guarded
from retrieval.datasets import open_dataset
from retrieval.errors import InputError

COLOURS = [(8 * n, 250 - 8 * n, 5 * n) for n in range(30)]
ONE = ["cat", "dog", "eel"]

#: Labels of several images: a cycle of six sets.
MANY = ["cat", "dog|cat", "eel", "cat|dog|eel", "dog", "eel|cat"]

#: Three queries, three more for validation, and the gallery.
SPLIT = ["query"] * 3 + ["gallery|validation_query"] * 2 + ["gallery|validation_gallery"] * 4
SPLIT += ["gallery|train"] * 15 + ["database"] * 6


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format="PNG")
    return stream.getvalue()


def name(number: int) -> str:
    return f"img {number % 2}/{number:03d}.png"


def pictures(root: Path) -> Path:
    for number, colour in enumerate(COLOURS):
        path = root / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    return root


def table(labels=ONE, split=None, beginning: str = "") -> dict[str, list]:
    """Columns of a manifest of thirty images; ``labels`` are repeated."""
    columns: dict[str, list] = {"path": [f"{beginning}{name(n)}" for n in range(30)]}
    columns["labels"] = [labels[n % len(labels)] for n in range(30)]
    if split is not None:
        columns["split"] = list(split)
    return columns


def write(path: Path, columns: dict[str, list], **options) -> Path:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as stream:
        writer = csv.writer(stream, delimiter=delimiter, **options)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def build(root: Path, labels=ONE, split=None, **columns) -> Path:
    """Write thirty images and their manifest; ``columns`` replace some of its columns."""
    pictures(root)
    return write(root / "list.csv", {**table(labels, split), **columns})


def opened(path: Path, home: Path, **options):
    return open_dataset({"manifest": str(path), **options}, home=home)


def refusal(path: Path, home: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(path, home, **options).splits()
    return caught.value


def split_keys(dataset) -> dict[str, set[str]]:
    keys = dataset.index().keys
    return {role: {keys[row] for row in rows} for role, rows in vars(dataset.splits()).items()}


def rows_with(split: list[str], part: str) -> set[str]:
    return {name(n) for n, cell in enumerate(split) if part in cell.split("|")}


# ---- what is listed --------------------------------------------------------------------------


def test_one_label_each_makes_class_numbers_in_the_order_of_names(tmp_path):
    index = opened(build(tmp_path, ["eel", "cat", "dog"]), tmp_path / "home").index()
    assert index.keys == sorted(name(n) for n in range(30))
    assert index.classes == ["cat", "dog", "eel"]
    assert index.labels.dtype == np.int64
    for key, label in zip(index.keys, index.labels, strict=True):
        assert index.classes[label] == ["eel", "cat", "dog"][int(key[-7:-4]) % 3]


def test_several_labels_make_columns(tmp_path):
    index = opened(build(tmp_path, MANY), tmp_path / "home").index()
    assert index.multi_label
    assert index.labels.dtype == np.uint8
    for key, row in zip(index.keys, index.labels, strict=True):
        names = {index.classes[column] for column in np.flatnonzero(row)}
        assert names == set(MANY[int(key[-7:-4]) % 6].split("|"))


def test_numbers_are_names_in_the_order_of_their_values(tmp_path):
    index = opened(build(tmp_path, ["10", "9", "-1"]), tmp_path / "home").index()
    assert index.classes == ["-1", "9", "10"]
    index = opened(build(tmp_path, ["10", "9", "x"]), tmp_path / "home").index()
    assert index.classes == ["10", "9", "x"]


def test_single_label_is_seen_or_said(tmp_path):
    one, many = build(tmp_path / "one"), build(tmp_path / "many", MANY)
    home = tmp_path / "home"
    assert opened(one, home, single_label="auto").index().labels.shape == (30,)
    assert opened(one, home, single_label=True).index().labels.shape == (30,)
    assert opened(one, home, single_label=False).index().labels.shape == (30, 3)
    assert opened(many, home, single_label=False).index().labels.shape == (30, 3)
    error = refusal(many, home, single_label=True)
    assert error.key == "single_label"
    assert "list.csv:3: has 2 labels, single_label allows one (15 such images)" in str(error)


def test_a_label_that_is_there_twice_is_one_label(tmp_path):
    plain = opened(build(tmp_path / "a"), tmp_path / "home")
    twice = opened(build(tmp_path / "b", ["cat|cat", "dog", "eel| eel"]), tmp_path / "home")
    assert twice.index().labels.shape == (30,)
    assert twice.identity() == plain.identity()


def test_blanks_around_labels_and_column_names_do_not_count(tmp_path):
    plain = opened(build(tmp_path / "a", MANY), tmp_path / "home")
    spaced = [" cat", "dog | cat", "eel ", "cat|dog |eel", "dog", "eel|cat|eel"]
    columns = table(spaced)
    pictures(tmp_path / "b")
    path = write(
        tmp_path / "b" / "list.csv", {" path": columns["path"], " labels ": columns["labels"]}
    )
    assert opened(path, tmp_path / "home").identity() == plain.identity()


@pytest.mark.parametrize("split", [None, SPLIT])
@pytest.mark.parametrize("labels", [ONE, MANY])
def test_all_formats_are_the_same_dataset(tmp_path, labels, split):
    root, home = pictures(tmp_path / "data"), tmp_path / "home"
    columns = table(labels, split)
    lists = {**columns, "labels": [cell.split("|") for cell in columns["labels"]]}
    paths = [
        write(root / "a.csv", columns),
        write(root / "b.tsv", columns),
        write(root / "c.CSV", columns, encoding="utf-8-sig"),
        write(root / "d.csv", columns, quoting=csv.QUOTE_ALL, lineterminator="\r\n"),
        write(root / "e.csv", dict(reversed({**columns, "more": ["x,\ny"] * 30}.items()))),
        write(root / "f.csv", {k: v[::-1] for k, v in columns.items()}),
    ]
    for title, content in (("g", columns), ("h", lists)):
        frame = pa.table(content)
        if title == "h":
            place = frame.schema.get_field_index("path")
            frame = frame.set_column(place, "path", frame["path"].dictionary_encode())
        paths.append(root / f"{title}.parquet")
        parquet.write_table(frame, paths[-1])
    datasets = [opened(path, home) for path in paths]
    identities = [dataset.identity() for dataset in datasets]
    assert all(identity == identities[0] for identity in identities)
    assert str(tmp_path) not in json.dumps(identities)
    expected = split_keys(datasets[0])
    assert all(split_keys(dataset) == expected for dataset in datasets)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.list_(pa.int32()), pa.large_string()])
def test_numbers_in_parquet_are_names(tmp_path, kind):
    root, home = pictures(tmp_path), tmp_path / "home"
    numbers = [[11, 9, 2][n % 3] for n in range(30)]
    cells = [[n] for n in numbers] if pa.types.is_list(kind) else numbers
    cells = list(map(str, numbers)) if pa.types.is_large_string(kind) else cells
    frame = pa.table({"path": [name(n) for n in range(30)], "label": pa.array(cells, kind)})
    parquet.write_table(frame, root / "list.parquet")
    index = opened(root / "list.parquet", home).index()
    assert index.classes == ["2", "9", "11"]
    assert [index.classes[label] for label in index.labels] == [
        str(numbers[int(key[-7:-4])]) for key in index.keys
    ]


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(
        st.sets(st.text(st.characters(codec="utf-8", exclude_characters="|"), max_size=4)),
        min_size=3,
        max_size=8,
    )
)
def test_any_names_survive_csv_and_parquet(tmp_path_factory, sets):
    tmp_path = tmp_path_factory.mktemp("any")
    sets = [{n.strip() for n in s if n.strip() and n.isprintable()} for s in sets]
    sets = [s or {"x"} for s in sets]
    if len(set().union(*sets)) < 2:
        sets[0] = {"x", "y"}
    columns = {
        "path": [f"{n}.png" for n in range(len(sets))],
        "labels": ["|".join(sorted(s)) for s in sets],
    }
    for number in range(len(sets)):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % number)
    write(tmp_path / "a.csv", columns)
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    for file in ("a.csv", "b.parquet"):
        index = opened(tmp_path / file, tmp_path / "home", single_label=False).index()
        assert [
            {index.classes[column] for column in np.flatnonzero(row)} for row in index.labels
        ] == sets


def test_columns_may_have_other_names(tmp_path):
    root, home = pictures(tmp_path / "data"), tmp_path / "home"
    columns = table(MANY, SPLIT)
    plain = opened(write(root / "plain.csv", columns), home).identity()
    other = write(
        root / "other.csv",
        {
            "file": columns["path"],
            "tags": columns["labels"],
            "part": columns["split"],
            "labels": ["x"] * 30,
        },
    )
    names = {"path": "file", "labels": "tags", "split": "part"}
    assert opened(other, home, columns=names).identity() == plain
    single = write(root / "label.csv", {"path": columns["path"], "label": columns["labels"]})
    assert opened(single, home).index().classes == ["cat", "dog", "eel"]


def test_a_column_that_is_not_there_is_explained(tmp_path):
    path, home = build(tmp_path), tmp_path / "home"
    error = refusal(path, home, columns={"labels": "lables"})
    assert (error.key, error.where) == ("columns.labels", "list.csv")
    assert "unknown column 'lables'; did you mean 'labels'? known: labels, path" in str(error)
    assert refusal(path, home, columns={"split": "part"}).key == "columns.split"
    assert "unknown column 'file'" in str(refusal(path, home, columns={"path": "file"}))
    message = str(refusal(path, home, columns={"pth": "file"}))
    assert "columns.pth: unknown key; did you mean 'path'" in message
    message = str(refusal(path, home, columns={"path": "labels"}))
    assert "path, labels and split are columns of their own" in message
    both = write(tmp_path / "both.csv", {**table(), "label": ONE * 10})
    assert "both.csv has columns 'labels' and 'label'" in str(refusal(both, home))
    bare = write(tmp_path / "bare.csv", {"path": [name(0)], "class": ["cat"]})
    error = refusal(bare, home)
    assert "unknown column 'labels'" in str(error)
    assert "columns: {labels: ...}" in str(error)
    (tmp_path / "twice.csv").write_text("path,labels,path\na,b,c\n")
    assert "twice.csv has two columns 'path'" in str(refusal(tmp_path / "twice.csv", home))


@pytest.mark.parametrize("separator", [";", " ", ",", "+"])
def test_the_separator_may_be_another(tmp_path, separator):
    root, home = pictures(tmp_path / "data"), tmp_path / "home"
    plain = opened(write(root / "plain.csv", table(MANY, SPLIT)), home).identity()
    columns = table([cell.replace("|", separator) for cell in MANY])
    columns["split"] = [cell.replace("|", separator) for cell in SPLIT]
    path = write(root / "other.csv", columns)
    assert opened(path, home, separator=separator).identity() == plain


def test_classes_may_be_given_in_their_order(tmp_path):
    path, home = build(tmp_path, MANY), tmp_path / "home"
    names = ["eel", "fox", "dog", "cat"]
    index = opened(path, home, classes=names).index()
    assert index.classes == names
    assert index.labels.sum(axis=0).tolist() == [15, 0, 15, 20]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    dataset = opened(path, home, classes=str(tmp_path / "classes.txt"))
    assert dataset.identity() == opened(path, home, classes=names).identity()
    assert dataset.identity() != opened(path, home).identity()
    error = refusal(path, home, classes=["cat", "dgo", "eel"])
    assert (error.key, error.where) == ("classes", "list.csv:3")
    assert "unknown class 'dog'; did you mean 'dgo'?" in str(error)


def test_pixels_are_those_of_the_image_of_that_name(tmp_path):
    store = opened(build(tmp_path), tmp_path / "home", store_size=8).images()
    for key, image in zip(store.keys, store.array, strict=True):
        assert image.tolist() == np.broadcast_to(COLOURS[int(key[-7:-4])], (8, 8, 3)).tolist()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_may_lie_elsewhere(tmp_path, kind):
    home, root = tmp_path / "home", pictures(tmp_path / "data")
    plain = opened(write(root / "list.csv", table()), home).identity()
    path = write(tmp_path / "list.csv", table(beginning="/their/disk/"))
    images = root
    if kind == "zip":
        images = tmp_path / "images.zip"
        with zipfile.ZipFile(images, "w") as archive:
            for number in range(30):
                archive.write(root / name(number), name(number))
    dataset = opened(path, home, images=str(images), strip="/their/disk", store_size=8)
    assert {**dataset.identity(), "store_size": 256} == plain
    assert len(dataset.images()) == 30
    message = str(refusal(path, home, images=str(images)))
    assert "30 of the 30 images that are listed are missing" in message
    assert "set strip: /their/disk/" in message


def test_absolute_paths_below_the_manifests_folder_are_relative_to_it(tmp_path):
    root, home = pictures(tmp_path / "data"), tmp_path / "home"
    plain = opened(write(root / "a.csv", table()), home).identity()
    path = write(root / "b.csv", table(beginning=f"{root}/"))
    assert opened(path, home).identity() == plain
    assert str(tmp_path) not in "".join(opened(path, home).index().keys)


def test_links_out_of_the_folder_are_refused_unless_meant(tmp_path):
    path, home = build(tmp_path / "data"), tmp_path / "home"
    plain = opened(path, home).identity()
    target = (tmp_path / "data" / name(4)).rename(tmp_path / "moved.png")
    (tmp_path / "data" / name(4)).symlink_to(target)
    assert "set follow_links: true" in str(refusal(path, home, follow_links=False))
    assert opened(path, home, follow_links=True).identity() == plain


# ---- splits ----------------------------------------------------------------------------------


def test_without_a_column_splits_are_drawn_of_each_class(tmp_path):
    dataset = opened(build(tmp_path), tmp_path / "home")
    assert dataset.protocol.id == "manifest-10"
    part, labels = dataset.splits(), dataset.index().labels
    for label in range(3):  # of ten images each
        assert sum(labels[part.query] == label) == 1
        assert sum(labels[part.validation_query] == label) == 1
        assert sum(labels[part.train] == label) == 8
        assert sum(labels[part.gallery] == label) == 9
    other = opened(tmp_path / "list.csv", tmp_path / "home", protocol={"split_seed": 1})
    assert split_keys(other) != split_keys(dataset)
    assert other.identity() != dataset.identity()


def test_without_a_column_images_with_several_labels_are_drawn_together(tmp_path):
    path, home = build(tmp_path, MANY), tmp_path / "home"
    sizes = {role: len(rows) for role, rows in vars(opened(path, home).splits()).items()}
    assert sizes == {
        "train": 24,
        "validation_query": 3,
        "validation_gallery": 24,
        "query": 3,
        "gallery": 27,
    }
    given = {"query_total": 5, "train_total": 10, "validation_total": 2}
    sizes = {k: len(v) for k, v in split_keys(opened(path, home, protocol=given)).items()}
    assert (sizes["query"], sizes["train"], sizes["validation_query"]) == (5, 10, 2)


def test_splits_are_those_of_the_column(tmp_path):
    dataset = opened(build(tmp_path, split=SPLIT), tmp_path / "home")
    assert dataset.protocol.id == "manifest"
    assert not dataset.protocol.train_apart
    part = split_keys(dataset)
    for role in ("query", "train", "validation_query", "validation_gallery"):
        assert part[role] == rows_with(SPLIT, role)
    assert part["gallery"] == rows_with(SPLIT, "gallery") | rows_with(SPLIT, "database")


def test_without_validation_images_they_are_drawn_from_what_is_not_trained_on(tmp_path):
    split = ["query"] * 5 + ["gallery|train"] * 10 + ["gallery"] * 15
    dataset = opened(build(tmp_path, split=split), tmp_path / "home")
    part = split_keys(dataset)
    assert part["train"] == rows_with(split, "train")
    assert part["gallery"] == rows_with(split, "gallery")
    spare = rows_with(split, "gallery") - rows_with(split, "train")
    assert part["validation_query"] | part["validation_gallery"] <= spare
    assert (len(part["validation_query"]), len(part["validation_gallery"])) == (1, 4)


@pytest.mark.parametrize(("labels", "held_out"), [(ONE, 3), (MANY, 2)])
def test_without_training_images_the_gallery_is_trained_on(tmp_path, labels, held_out):
    split = ["query"] * 6 + ["gallery"] * 24
    part = split_keys(opened(build(tmp_path, labels, split), tmp_path / "home"))
    assert part["query"] == rows_with(split, "query")
    assert part["gallery"] == rows_with(split, "gallery")
    # A tenth of 24 images, or of 8 in each of three classes, at least one.
    assert len(part["validation_query"]) == held_out
    assert part["train"] == part["gallery"] - part["validation_query"]


def test_training_images_may_lie_outside_of_the_gallery(tmp_path):
    split = ["query"] * 4 + ["train"] * 6 + ["gallery|train"] * 2 + ["gallery"] * 18
    dataset = opened(build(tmp_path, split=split), tmp_path / "home")
    assert dataset.protocol.train_apart
    assert split_keys(dataset)["train"] == rows_with(split, "train")
    assert split_keys(dataset)["gallery"] == rows_with(split, "gallery")


def test_the_splits_are_part_of_the_identity(tmp_path):
    path, home = build(tmp_path), tmp_path / "home"
    split = ["query"] * 6 + ["gallery|train"] * 24
    moved = ["query"] * 5 + ["gallery|train"] * 25
    apart = ["query"] * 6 + ["gallery"] * 4 + ["gallery|train"] * 20
    identities = [opened(path, home).identity()]
    identities += [
        opened(build(tmp_path, split=s), home).identity() for s in (split, moved, apart)
    ]
    assert len({json.dumps(identity) for identity in identities}) == 4


@pytest.mark.parametrize(
    "split",
    [None, SPLIT, ["query"] * 4 + ["train"] * 6 + ["gallery"] * 20],
    ids=["drawn", "listed", "apart"],
)
def test_splits_are_written_and_read_as_a_split_file(tmp_path, split):
    dataset = opened(build(tmp_path, MANY, split), tmp_path / "home")
    (tmp_path / "splits.json").write_text(dataset.split_text())
    again = opened(
        tmp_path / "list.csv",
        tmp_path / "home",
        protocol={"split_file": str(tmp_path / "splits.json"), "split_seed": 7},
    )
    assert split_keys(again) == split_keys(dataset)
    assert {k: set(v) for k, v in dataset.split_lists().items()} == split_keys(dataset)


@pytest.mark.parametrize(
    ("row", "cell", "part"),
    [
        (4, "tain", "unknown split 'tain'; did you mean 'train'"),
        (4, "test", "unknown split 'test'"),
        (4, "Query", "unknown split 'Query'; did you mean 'query'"),
        (4, "gallery|", "unknown split ''"),
        (4, "", "list.csv:6: is in no split"),
        (4, " ", "list.csv:6: is in no split"),
        (4, "query|gallery", "list.csv:6: an image is both in query and in gallery"),
        (4, "database|query", "list.csv:6: an image is both in query and in gallery"),
        (4, "train|query", "list.csv:6: an image is both in query and in train"),
        (4, "query|validation_query", "both in query and in validation_query"),
        (4, "query|validation_gallery", "both in query and in validation_gallery"),
        (4, "gallery|train|validation_query", "both in validation_query and in train"),
        (4, "validation_gallery|validation_query", "validation_query and in validation_gallery"),
    ],
)
def test_a_split_that_is_wrong_is_refused_with_its_line(tmp_path, row, cell, part):
    split = [*SPLIT]
    split[row] = cell
    error = refusal(build(tmp_path, split=split), tmp_path / "home")
    assert error.key == "root"
    assert part in str(error)
    assert "list.csv:6" in str(error)


@pytest.mark.parametrize(
    ("split", "part"),
    [
        (
            ["train"] * 15 + ["query"] * 15,
            "no image has the split 'gallery', only train and query",
        ),
        (["gallery|train"] * 30, "no image has the split 'query', only train and gallery"),
        (
            ["query"] * 5 + ["gallery|validation_query"] * 5 + ["gallery"] * 20,
            "images have the split 'validation_query', none has 'train'",
        ),
        (
            ["query"] * 5 + ["gallery|validation_gallery"] * 5 + ["gallery|train"] * 20,
            "images have the split 'validation_gallery', none has 'validation_query'",
        ),
    ],
)
def test_splits_that_do_not_suffice_are_refused(tmp_path, split, part):
    assert part in str(refusal(build(tmp_path, split=split), tmp_path / "home"))


# ---- what is refused or dropped --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "list.csv is empty"),
        (b"\n\r\n", "list.csv is empty"),
        (b"path,labels\n", "list.csv lists no image"),
        (b"path,labels\na,b\nc\n", "list.csv:3: has 1 columns, the first line has 2"),
        (b"path,labels\na,b,c\nd\n", "list.csv:2: has 3 columns, the first line has 2 (2 such"),
        (b'path,labels\na,"b\nc"\nd\n', "list.csv:4: has 1 columns, the first line has 2"),
        (b'path,labels\na,"b\nc\n', "list.csv:2: unexpected end of data"),
        (b'path,labels\na,"b"c\n', "list.csv:2: ',' expected after '\"'"),
        (b"path,labels\na,b\nc,\xff\n", "list.csv:3: is not UTF-8 text"),
        ("path,labels\na,b\n".encode("utf-16"), "list.csv:1: is not UTF-8 text"),
        (b"path,labels\n,b\n", "list.csv:2: the path '' is empty"),
        (b"path,labels\n../a.png,b\n", "list.csv:2: the path '../a.png' leads out of the images'"),
        (b"path,labels\na\\b.png,b\n", "list.csv:2: the path 'a\\\\b.png' has a backslash"),
        (b'path,labels\n"a\nb.png",b\n', "list.csv:2: the path 'a\\nb.png' has control charac"),
        (b"path,labels\na,b\nc,d|\n", "list.csv:3: the labels 'd|' have an empty name"),
        (b"path,labels\na,b||c\n", "list.csv:2: the labels 'b||c' have an empty name"),
        (b"path,labels\na,b\x00c\n", "list.csv:2: the labels 'b\\x00c' have control characters"),
        (b"path,labels\na,b\nc,b\n", "at least two classes are needed, found ['b']"),
        (b"path,labels\nx,b\nx,c\n", "list.csv:3: 'x' is in list.csv:2 too"),
        (b"path;labels\nx;b\n", "unknown column 'path'; did you mean 'path;labels'?"),
    ],
)
def test_a_damaged_text_file_is_refused_with_its_line(tmp_path, content, part):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    message = str(refusal(path, tmp_path / "home"))
    assert part in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"path": [1.5, 2.5], "labels": ["a", "b"]}, "the column 'path' holds double, needed is"),
        ({"path": ["x", "y"], "labels": [0.0, 1.0]}, "'labels' holds double, needed is text, who"),
        ({"path": ["x", "y"], "labels": [True, False]}, "'labels' holds bool"),
        ({"path": ["x", "y"], "labels": [[b"a"], [b"b"]]}, "'labels' holds list<"),
        ({"path": [["x"], ["y"]], "labels": ["a", "b"]}, "the column 'path' holds list<"),
        ({"path": ["x", None], "labels": ["a", "b"]}, "list.parquet, row 2: the path '' is empty"),
        ({"path": ["x", "y"], "labels": ["a", None]}, "list.parquet, row 2: has no label"),
        ({"path": ["x", "y"], "labels": [["a"], None]}, "list.parquet, row 2: has no label"),
        ({"path": ["x", "y"], "labels": [["a"], ["b", None]]}, "row 2: the labels ('b', '') have"),
        ({"path": ["x", "y"], "labels": [["a"], []]}, "list.parquet, row 2: has no label"),
        ({"path": ["x"], "label": ["a"], "split": [None]}, "row 1: is in no split"),
        (
            {"path": [], "label": []},
            "list.parquet lists no image",
        ),
    ],
)
def test_a_parquet_file_with_other_content_is_refused_with_its_row(tmp_path, columns, part):
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert part in str(refusal(tmp_path / "list.parquet", tmp_path / "home"))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    root = pictures(tmp_path / "data")
    path = root / "list.parquet"
    parquet.write_table(pa.table(table()), path)
    data = path.read_bytes()
    for content in (b"", b"PAR1", data[: len(data) // 2], b"x" * 100):
        path.write_bytes(content)
        assert "list.parquet cannot be read: " in str(refusal(path, tmp_path / "home"))


def test_text_in_parquet_that_is_not_utf8_is_refused(tmp_path):
    broken = pa.array([b"\xff", b"y"], pa.binary()).view(pa.string())
    frame = pa.table({"path": broken, "labels": ["a", "b"]})
    parquet.write_table(frame, tmp_path / "list.parquet")
    assert "list.parquet cannot be read: " in str(
        refusal(tmp_path / "list.parquet", tmp_path / "home")
    )


def test_a_root_that_is_no_manifest_is_refused(tmp_path):
    home = tmp_path / "home"
    assert "its root does not exist" in str(refusal(tmp_path / "no.csv", home))
    message = str(refusal(pictures(tmp_path / "data"), home))
    assert "its root is no file" in message
    assert "{folder: PATH}" in message
    (tmp_path / "list.xlsx").write_bytes(b"x")
    message = str(refusal(tmp_path / "list.xlsx", home))
    assert "a manifest ends in one of .csv, .parquet, .pq, .tab, .tsv" in message


def test_missing_images_are_refused_or_dropped_and_counted(tmp_path):
    path, home = build(tmp_path, split=SPLIT), tmp_path / "home"
    (tmp_path / name(29)).unlink()
    (tmp_path / name(12)).unlink()
    error = refusal(path, home, missing="refuse")
    assert "2 of the 30 images that are listed are missing, the first: 'img 0/012.png'" in str(
        error
    )
    dataset = opened(path, home, missing="drop")
    assert dataset.index().ignored == {"listed and not there": 2}
    assert split_keys(dataset)["train"] == rows_with(SPLIT, "train") - {name(12)}


def test_images_without_a_label_are_refused_or_dropped_and_counted(tmp_path):
    home = tmp_path / "home"
    for labels in (["cat", "dog", ""], ["cat|dog", "dog", " "]):
        path = build(tmp_path, labels)
        message = str(refusal(path, home, unlabelled="refuse"))
        assert "list.csv:4: has no label (10 such rows)" in message
        assert "unlabelled: drop" in message
        index = opened(path, home, unlabelled="drop").index()
        assert index.ignored == {"without a label": 10}
        assert index.keys == sorted(name(n) for n in range(30) if n % 3 < 2)
        assert index.multi_label == ("cat|dog" in labels)


def test_a_path_that_is_there_twice_is_refused(tmp_path):
    columns = table(split=SPLIT)
    columns["path"][20], columns["path"][25] = f"./{name(1)}", name(7)
    message = str(refusal(build(tmp_path, **columns), tmp_path / "home"))
    assert (
        "list.csv:22: 'img 1/001.png' is in list.csv:3 too, as 'query' there and 'gallery|train' "
        "here (1 more such rows)" in message
    )
    assert "an image has one row" in message


def copied(root: Path, target: int, source: int) -> None:
    (root / name(target)).write_bytes((root / name(source)).read_bytes())


def test_copies_across_query_and_gallery_are_refused_dropped_or_kept(tmp_path):
    path, home = build(tmp_path, split=SPLIT), tmp_path / "home"
    copied(tmp_path, 12, 0)  # both cats: a query, and an image that is trained on
    copied(tmp_path, 24, 27)  # both in the gallery alone
    error = refusal(path, home)
    assert (error.key, error.value) == ("duplicates", "refuse")
    assert "1 images are there more than once on both sides of a split, with equal content" in str(
        error
    )
    assert "'img 0/000.png' and 'img 0/012.png'" in str(error)
    first = opened(path, home, duplicates="first")
    assert first.index().ignored == {"a copy of another image": 2}
    assert split_keys(first)["query"] == rows_with(SPLIT, "query")
    assert split_keys(first)["train"] == rows_with(SPLIT, "train") - {name(12)}
    kept = opened(path, home, duplicates="keep")
    assert len(kept.index().keys) == 30
    assert kept.index().ignored == {}
    assert split_keys(kept)["train"] == rows_with(SPLIT, "train")


def test_of_copies_the_query_is_kept_whatever_its_name(tmp_path):
    split = [*SPLIT]
    split[0], split[29], split[28] = "gallery", "gallery", "query"
    labels = {"labels": ["cat", *table()["labels"][1:28], "cat", "dog"]}
    path, home = build(tmp_path, split=split, **labels), tmp_path / "home"
    copied(tmp_path, 28, 0)
    part = split_keys(opened(path, home, duplicates="first"))
    assert name(28) in part["query"]
    assert name(0) not in part["gallery"]


def test_copies_within_the_gallery_are_no_leak(tmp_path):
    path, home = build(tmp_path, split=SPLIT), tmp_path / "home"
    copied(tmp_path, 24, 27)
    assert len(opened(path, home, duplicates="refuse").index().keys) == 30


def test_copies_are_refused_where_splits_are_drawn(tmp_path):
    path, home = build(tmp_path), tmp_path / "home"
    copied(tmp_path, 24, 27)
    message = str(refusal(path, home))
    assert "1 images are there more than once and would be split, with equal content" in message
    first = opened(path, home, duplicates="first")
    # In the order of paths "img 0/024" comes before "img 1/027".
    assert set(first.index().keys) == {name(n) for n in range(30) if n != 27}
    assert len(opened(path, home, duplicates="keep").index().keys) == 30


@pytest.mark.parametrize("split", [None, SPLIT])
def test_copies_with_different_labels_are_refused_unless_kept(tmp_path, split):
    path, home = build(tmp_path, split=split), tmp_path / "home"
    copied(tmp_path, 25, 27)  # a dog and a cat
    for choice in ("refuse", "first"):
        error = refusal(path, home, duplicates=choice)
        assert "with different labels, with equal content" in str(error)
        assert "duplicates: first" not in str(error)
    assert len(opened(path, home, duplicates="keep").index().keys) == 30


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"separator": ""}, "separator: "),
        ({"separator": "||"}, "separator: "),
        ({"unlabelled": "auto"}, "unlabelled: must be one of refuse, drop"),
        ({"duplicates": "drop"}, "duplicates: must be one of refuse, first, keep"),
        ({"missing": "x"}, "missing: must be one of refuse, drop"),
        ({"columns": "path"}, "columns: "),
        ({"root": "x"}, "manifest: PATH says where the images are"),
        ({"leaks": "drop"}, "leaks: unknown key"),
    ],
)
def test_a_wrong_option_is_explained(tmp_path, options, part):
    assert part in str(refusal(build(tmp_path), tmp_path / "home", **options))


# ---- in a study ------------------------------------------------------------------------------


def planned(dataset: dict, folder: Path, monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ASYMBENCH_HOME", str(folder / "home"))
    study = {"study": "own", "datasets": [dataset], "pairs": ["tiny"], "methods": ["csch"]}
    study |= {"bits": [16], "train": {"epochs": 2, "batch_size": 4}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    capsys.readouterr()
    code = guarded(
        lambda: cli(["plan", "study.yaml"], prog_name="asymbench", standalone_mode=False)
    )
    return code, *capsys.readouterr()


@pytest.mark.parametrize("absolute", [True, False])
def test_one_line_plans_a_study_of_a_manifest(tmp_path, monkeypatch, capsys, absolute):
    path = build(tmp_path / "data", MANY)
    given = str(path) if absolute else "data/list.csv"
    code, out, err = planned({"manifest": given}, tmp_path, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "study own: 1 trial" in out


@pytest.mark.parametrize("absolute", [True, False])
def test_one_line_plans_a_study_of_a_folder(tmp_path, monkeypatch, capsys, absolute):
    for number, colour in enumerate(COLOURS):
        path = tmp_path / "photos" / ONE[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    given = str(tmp_path / "photos") if absolute else "photos"
    code, out, err = planned({"folder": given}, tmp_path, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "study own: 1 trial" in out


def test_a_mistake_in_a_manifest_ends_a_plan_with_one_message(tmp_path, monkeypatch, capsys):
    build(tmp_path, split=["query", "galery", *SPLIT[2:]])
    code, out, err = planned({"manifest": "list.csv"}, tmp_path, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert "datasets.0.root: unknown split 'galery'; did you mean 'gallery'" in err
    assert "list.csv:3" in err
    assert "Traceback" not in err


def test_a_plan_of_a_manifest_imports_nothing_heavy(tmp_path):
    root = pictures(tmp_path / "data")
    write(root / "list.csv", table())
    code = (
        "import sys; from pathlib import Path; from retrieval.datasets import open_dataset\n"
        f"data = open_dataset({{'manifest': {str(root / 'list.csv')!r}}}, home=Path('.'))\n"
        "data.identity(), data.splits()\n"
        "heavy = {'torch', 'pandas', 'PIL', 'pyarrow', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=60
    )
