"""CIFAR-10's three protocols: counts, leaks, parts, what a study may change, excluded images."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.datasets import open_dataset
from retrieval.datasets.batches import NAMES
from retrieval.datasets.cifar10 import CLASSES
from retrieval.errors import InputError, UnknownNameError
from retrieval.protocols import Splits

SIZES = {
    "query_per_class": 2,
    "train_per_class": 3,
    "validation_per_class": 1,
    "validation_gallery_per_class": 2,
}
LISTED_SIZES = {key: value for key, value in SIZES.items() if key != "query_per_class"}


def small(name: str, **changes) -> dict:
    """A part of CIFAR-10 under one of the protocols, with sizes of its own."""
    sizes = LISTED_SIZES if name == "cifar10-2" else SIZES
    return {"name": name, **sizes, **changes}


def opened(root: Path, home: Path, protocol: dict | None = None, **options):
    given = {"name": "cifar10", "root": str(root), "protocol": protocol or {}, **options}
    return open_dataset(given, home=home)


def refusal(root: Path, home: Path, protocol: dict | None = None, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(root, home, protocol, **options).splits()
    return caught.value


def keys_of(dataset) -> dict[str, set[str]]:
    keys, splits = dataset.index().keys, dataset.splits()
    return {f.name: {keys[row] for row in getattr(splits, f.name)} for f in fields(Splits)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The real size without real images: a listing reads checksums, never pixels."""
    path = tmp_path_factory.mktemp("whole") / "cifar10.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part, n in (("train", 5000), ("test", 1000)):
            for title in CLASSES:
                for number in range(n):
                    archive.writestr(f"{part}/{title}/{number:04d}.jpg", b"")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Twelve training and four test images of three classes, as small JPEGs."""
    root = tmp_path_factory.mktemp("part") / "cifar10"
    rng = np.random.default_rng(0)
    for folder, n in (("train", 12), ("test", 4)):
        for title in ("bird", "cat", "dog"):
            (root / folder / title).mkdir(parents=True)
            for number in range(n):
                stream = io.BytesIO()
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(stream, format="JPEG")
                (root / folder / title / f"{number:04d}.jpg").write_bytes(stream.getvalue())
    return root


WHOLE = {
    "cifar10-1": {
        "query": 100,
        "gallery": 5_900,
        "train": 500,
        "validation_query": 100,
        "validation_gallery": 200,
    },
    "cifar10": {
        "query": 100,
        "gallery": 5_400,
        "train": 500,
        "validation_query": 100,
        "validation_gallery": 200,
    },
    "cifar10-2": {
        "query": 1_000,
        "gallery": 5_000,
        "train": 4_900,
        "validation_query": 100,
        "validation_gallery": 4_900,
    },
}
"""Images of each class."""


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_data_set_has_the_literatures_counts_in_every_class(whole, home, name):
    dataset = opened(whole, home, {"name": name})
    labels, splits = dataset.index().labels, dataset.splits()
    for role, per_class in WHOLE[name].items():
        assert np.bincount(labels[getattr(splits, role)]).tolist() == [per_class] * 10, role
    assert dataset.protocol.id == name
    assert dataset.protocol.at == "all"
    part = keys_of(dataset)
    assert not part["query"] & (part["gallery"] | part["train"] | part["validation_query"])
    assert not part["validation_query"] & (part["train"] | part["validation_gallery"])
    assert part["validation_query"] <= part["gallery"]


def test_the_first_protocol_is_the_default_and_its_identity_is_what_it_was(whole, home):
    plain = opened(whole, home)
    named = opened(whole, home, {"name": "cifar10-1"})
    assert named.identity() == plain.identity()
    # As it was written when there was but one protocol.
    assert plain.identity()["protocol"] == {
        "id": "cifar10-1",
        "split_seed": 0,
        "query_per_class": 100,
        "query_fraction": None,
        "train_per_class": 500,
        "validation_per_class": 100,
        "validation_fraction": None,
        "validation_gallery_per_class": 200,
        "uneven": False,
        "split_digest": None,
    }


def test_training_images_apart_are_those_of_the_first_protocol(whole, home):
    first, apart = keys_of(opened(whole, home)), keys_of(opened(whole, home, {"name": "cifar10"}))
    assert apart["gallery"] == first["gallery"] - first["train"]
    assert {k: v for k, v in apart.items() if k != "gallery"} == {
        k: v for k, v in first.items() if k != "gallery"
    }


def test_the_official_parts_ask_and_answer(whole, home):
    part = keys_of(opened(whole, home, {"name": "cifar10-2"}))
    assert all(key.startswith("test/") for key in part["query"])
    assert all(key.startswith("train/") for key in part["gallery"])
    assert part["train"] == part["gallery"] - part["validation_query"]
    assert part["validation_gallery"] == part["train"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_of_cifar10_can_be_split_under_every_protocol(part, tmp_path, name):
    dataset = opened(part, tmp_path, small(name))
    labels, splits = dataset.index().labels, dataset.splits()
    counts = {f.name: np.bincount(labels[getattr(splits, f.name)]) for f in fields(Splits)}
    expected = {
        "cifar10-1": {"query": 2, "gallery": 14},
        "cifar10": {"query": 2, "gallery": 11},
        "cifar10-2": {"query": 4, "gallery": 12},
    }[name]
    expected |= {"train": 3, "validation_query": 1, "validation_gallery": 2}
    assert {role: count.tolist() for role, count in counts.items()} == {
        role: [count] * 3 for role, count in expected.items()
    }
    assert dataset.protocol.id.startswith(f"{name}-")
    assert len(dataset.images()) == 48


@pytest.mark.parametrize("name", WHOLE)
def test_a_split_is_a_function_of_its_seed(part, tmp_path, name):
    first = keys_of(opened(part, tmp_path, small(name)))
    assert keys_of(opened(part, tmp_path, small(name))) == first
    other = keys_of(opened(part, tmp_path, small(name, split_seed=1)))
    assert other["train"] != first["train"]
    assert (other["query"] == first["query"]) == (name == "cifar10-2")


def test_identities_of_the_protocols_differ(part, tmp_path):
    identities = [opened(part, tmp_path, small(name)).identity()["protocol"] for name in WHOLE]
    assert len({str(identity) for identity in identities}) == 3
    assert len({identity["id"] for identity in identities}) == 3


def batches(root: Path) -> Path:
    root.mkdir()
    pixels = np.random.default_rng(2).integers(0, 256, (6, 40, 3072), dtype=np.uint8)
    for name, data in zip(NAMES, pixels, strict=True):
        content = {b"data": data, b"labels": [i % 10 for i in range(40)]}
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.mark.parametrize("name", WHOLE)
def test_batches_are_split_under_every_protocol(tmp_path, name):
    part = keys_of(opened(batches(tmp_path / "data"), tmp_path, small(name)))
    assert len(part["query"]) == (40 if name == "cifar10-2" else 20)
    assert len(part["train"]) == 30
    if name == "cifar10-2":
        assert all(key.startswith("test_batch/") for key in part["query"])
        assert not any(key.startswith("test_batch/") for key in part["gallery"])


def test_batches_of_a_part_are_refused_under_the_official_parts_without_sizes(tmp_path):
    message = str(refusal(batches(tmp_path / "data"), tmp_path, {"name": "cifar10-2"}))
    assert "expected 60000 images, 6000 in each of 10 classes; found 240 in 10 classes" in message
    assert "give protocol.train_per_class, and for a small one validation_per_class too" in message


def test_parts_of_other_sizes_are_refused_though_the_sum_is_right(tmp_path):
    path = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, n in (("train", 5000), ("test", 1000)):
            for title in CLASSES:
                moved = {"train": -1, "test": 1}[folder] if title == "frog" else 0
                for number in range(n + moved):
                    archive.writestr(f"{folder}/{title}/{number:04d}.jpg", b"")
    error = refusal(path, tmp_path, {"name": "cifar10-2"})
    assert "expects 5000 images of each class in the train part; found 4999 of 'frog'" in str(
        error
    )
    assert len(opened(path, tmp_path).splits().query) == 1000


@pytest.mark.parametrize(
    ("folders", "found"),
    [(("",), "bird, cat"), (("train", "val"), "train, val"), (("train",), "bird, cat")],
)
def test_the_official_parts_are_asked_for_where_the_tree_has_none(tmp_path, folders, found):
    root = tmp_path / "cifar10"
    for folder in folders:
        for title in ("bird", "cat"):
            (root / folder / title).mkdir(parents=True)
            for number in range(8):
                data = f"{folder}{title}{number}".encode()
                (root / folder / title / f"{number}.png").write_bytes(data)
    message = str(refusal(root, tmp_path, small("cifar10-2")))
    assert "protocol 'cifar10-2' needs to know the authors' two parts" in message
    assert f"found folders {found}" in message
    assert "protocols 'cifar10-1' and 'cifar10' pool both parts" in message
    opened(root, tmp_path, small("cifar10")).splits()


@pytest.mark.parametrize(
    ("name", "known"), [("cifar10_2", "'cifar10-2'"), ("CIFAR10-1", "'cifar10-1'")]
)
def test_an_unknown_protocol_is_answered_with_the_nearest(part, tmp_path, name, known):
    with pytest.raises(UnknownNameError) as caught:
        opened(part, tmp_path, {"name": name}).identity()
    assert caught.value.key == "protocol.name"
    assert f"unknown protocol {name!r}; did you mean {known}" in str(caught.value)
    assert "known: cifar10, cifar10-1, cifar10-2" in str(caught.value)


@pytest.mark.parametrize("key", ["query_per_class", "query_total", "train_total"])
def test_counts_that_the_official_parts_fix_are_refused(part, tmp_path, key):
    error = refusal(part, tmp_path, small("cifar10-2", **{key: 2}))
    assert error.key == f"protocol.{key}"
    assert error.value == 2
    allowed = "train_per_class, validation_per_class, validation_gallery_per_class"
    assert f"has files that list its splits; only {allowed} can be given" in str(error)


def test_a_split_file_goes_with_the_protocol_it_is_given_under(part, tmp_path):
    keys = opened(part, tmp_path, small("cifar10")).index().keys
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"query": keys[:1], "gallery": keys[1:3], "train": keys[3:6]}))
    message = str(refusal(part, tmp_path, {"split_file": str(path)}))
    assert "2 images (first: " in message  # the third is the validation query
    assert "are in train but not in gallery" in message
    apart = opened(part, tmp_path, {"name": "cifar10", "split_file": str(path)})
    assert keys_of(apart)["gallery"] == {keys[1], keys[2]}
    assert apart.identity()["protocol"]["train_apart"]
    assert apart.protocol.id.startswith("cifar10-")


# ---- excluded images -------------------------------------------------------------------------


def listing(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", WHOLE)
def test_excluded_images_are_in_no_split_and_change_the_fingerprint(part, tmp_path, name):
    plain = opened(part, tmp_path, small(name))
    drawn = keys_of(plain)
    gone = {min(rows) for rows in drawn.values()}  # one of each split
    path = listing(tmp_path / "bad.txt", "# could not be read", "", *sorted(gone), "  ")
    dataset = opened(part, tmp_path, small(name), exclude=path)
    assert not set.union(*keys_of(dataset).values()) & gone
    assert dataset.index().keys == [key for key in plain.index().keys if key not in gone]
    assert dataset.index().ignored == {"excluded by the study": len(gone)}
    assert dataset.index().fingerprint != plain.index().fingerprint
    again = listing(tmp_path / "again.txt", *sorted(gone, reverse=True))
    assert opened(part, tmp_path, small(name), exclude=again).identity() == dataset.identity()
    # Labels and pixels go with their keys.
    rows = [plain.index().keys.index(key) for key in dataset.index().keys]
    assert np.array_equal(dataset.index().labels, plain.index().labels[rows])
    assert np.array_equal(dataset.images().array, plain.images().array[rows])


def test_a_list_of_comments_excludes_nothing(part, tmp_path):
    path = listing(tmp_path / "none.txt", "# nothing", "   ", "#test/bird/0000.jpg")
    plain = opened(part, tmp_path, small("cifar10-1"))
    assert opened(part, tmp_path, small("cifar10-1"), exclude=path).identity() == plain.identity()


def test_an_excluded_image_that_does_not_exist_is_named(part, tmp_path):
    path = listing(tmp_path / "bad.txt", "test/bird/0000.jpg", "test/bird/9.jpg", "x.jpg")
    error = refusal(part, tmp_path, small("cifar10-1"), exclude=path)
    assert error.key == "exclude"
    assert error.value == path
    assert (
        "lists 2 images that dataset 'cifar10' does not have, the first is 'test/bird/9.jpg'"
        in (str(error))
    )


def test_excluding_everything_is_refused(part, tmp_path):
    keys = opened(part, tmp_path, small("cifar10-1")).index().keys
    path = listing(tmp_path / "all.txt", *keys)
    error = refusal(part, tmp_path, small("cifar10-1"), exclude=path)
    assert error.key == "exclude"
    assert "leaves no image of dataset 'cifar10'" in str(error)


def test_excluding_all_queries_of_listed_splits_is_refused(part, tmp_path):
    keys = opened(part, tmp_path, small("cifar10-2")).index().keys
    path = listing(tmp_path / "test.txt", *[key for key in keys if key.startswith("test/")])
    message = str(refusal(part, tmp_path, small("cifar10-2"), exclude=path))
    assert "the query split is empty" in message


@pytest.mark.parametrize("kind", ["absent", "folder", "binary"])
def test_a_list_of_excluded_images_that_cannot_be_read_is_refused(part, tmp_path, kind):
    path = tmp_path / "bad.txt"
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    error = refusal(part, tmp_path, small("cifar10-1"), exclude=str(path))
    assert error.key == "exclude"
    assert error.value == str(path)
    problem = "is not UTF-8 text" if kind == "binary" else "excluded images cannot be read: "
    assert problem in str(error)
