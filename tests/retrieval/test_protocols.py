"""Splits: quotas, leaks, and what they are a function of."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import DatasetError, UnknownNameError
from retrieval.protocols import Protocol, Splits, draw_splits, read_split_file


def toy(counts: list[int]) -> tuple[list[str], np.ndarray, list[str]]:
    keys = [f"c{c}/{i:03d}" for c, n in enumerate(counts) for i in range(n)]
    labels = np.repeat(np.arange(len(counts)), counts)
    return keys, labels, [f"c{c}" for c in range(len(counts))]


def sets(splits: Splits) -> dict[str, set[int]]:
    return {f.name: set(getattr(splits, f.name).tolist()) for f in fields(Splits)}


QUOTAS = Protocol(
    id="t",
    query_per_class=2,
    train_per_class=4,
    validation_per_class=1,
    validation_gallery_per_class=3,
)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), counts=st.lists(st.integers(10, 25), min_size=2, max_size=5))
def test_splits_hold_their_quotas_and_never_leak(seed, counts):
    keys, labels, classes = toy(counts)
    splits = draw_splits(keys, labels, classes, replace(QUOTAS, split_seed=seed), "toy")
    part = sets(splits)
    assert part["query"] | part["gallery"] == set(range(len(keys)))
    assert not part["query"] & part["gallery"]
    assert part["train"] | part["validation_query"] | part["validation_gallery"] <= part["gallery"]
    assert not part["validation_query"] & (part["train"] | part["validation_gallery"])
    assert not part["train"] & part["validation_gallery"]
    for c, n in enumerate(counts):
        inside = {name: sum(labels[row] == c for row in rows) for name, rows in part.items()}
        assert inside == {
            "query": 2,
            "gallery": n - 2,
            "train": 4,
            "validation_query": 1,
            "validation_gallery": 3,
        }


def test_without_a_validation_gallery_the_training_images_are_ranked():
    keys, labels, classes = toy([12, 12])
    protocol = Protocol(id="t", query_per_class=3, validation_per_class=2)
    part = sets(draw_splits(keys, labels, classes, protocol, "toy"))
    assert part["validation_gallery"] == part["train"]
    assert part["train"] == part["gallery"] - part["validation_query"]
    assert len(part["train"]) == 2 * (12 - 3 - 2)


def test_fractions_are_of_each_class_and_at_least_one():
    keys, labels, classes = toy([40, 3])
    protocol = Protocol(id="t", query_fraction=0.1, validation_fraction=0.1, uneven=True)
    part = sets(draw_splits(keys, labels, classes, protocol, "toy"))
    assert [sum(labels[r] == c for r in part["query"]) for c in (0, 1)] == [4, 1]
    assert [sum(labels[r] == c for r in part["train"]) for c in (0, 1)] == [32, 1]
    limited = draw_splits(keys, labels, classes, replace(protocol, train_per_class=5), "toy")
    assert [sum(labels[r] == c for r in limited.train) for c in (0, 1)] == [5, 1]


def test_a_class_too_small_for_its_quotas_is_refused_with_both_numbers():
    keys, labels, classes = toy([10, 9])
    with pytest.raises(DatasetError) as caught:
        draw_splits(keys, labels, classes, QUOTAS, "toy")
    message = str(caught.value)
    assert "class 'c1' has 9 images, the protocol needs 10" in message
    assert "2 query, 1 validation, 3 validation gallery, 4 train" in message
    with pytest.raises(DatasetError, match="has 2 images, the protocol needs 3"):
        few = Protocol(id="t", query_fraction=0.1, validation_fraction=0.1, uneven=True)
        draw_splits(*toy([9, 2]), few, "toy")


def test_splits_depend_on_seed_name_class_and_key_and_on_nothing_else():
    keys, labels, classes = toy([30, 30])

    def queries(keys, labels, classes, protocol=QUOTAS, name="toy"):
        rows = draw_splits(keys, labels, classes, protocol, name).query
        return {keys[row] for row in rows}

    first = queries(keys, labels, classes)
    assert queries(keys, labels, classes) == first
    assert queries(keys, labels, classes, replace(QUOTAS, split_seed=1)) != first
    assert queries(keys, labels, classes, name="other") != first
    order = np.random.default_rng(0).permutation(60)
    assert queries([keys[i] for i in order], labels[order], classes) == first
    # An image that is added can push out one query at most.
    more = queries([*keys, "c0/new"], np.append(labels, 0), classes)
    assert len(first - more) <= 1
    # A class is drawn for itself.
    assert {k for k in first if k.startswith("c0")} == queries(keys[:30], labels[:30], ["c0"])


def arrays(**rows: list[int]) -> Splits:
    base = {
        "train": [1, 2],
        "validation_query": [3],
        "validation_gallery": [1, 2],
        "query": [0],
        "gallery": [1, 2, 3],
    }
    return Splits(**{k: np.array(v, dtype=np.int64) for k, v in {**base, **rows}.items()})


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ({"query": []}, "the query split is empty"),
        ({"validation_gallery": []}, "the validation_gallery split is empty"),
        ({"query": [0, 1]}, "the image number 1 is both in query and in gallery"),
        ({"query": [1, 2, 9]}, "2 images (first: number 1) are both in query and in gallery"),
        ({"query": [5], "train": [1, 5]}, "both in query and in train"),
        ({"query": [5], "validation_query": [5]}, "both in query and in validation_query"),
        ({"query": [5], "validation_gallery": [5]}, "both in query and in validation_gallery"),
        ({"validation_query": [1]}, "both in validation_query and in train"),
        (
            {"validation_query": [3], "validation_gallery": [3]},
            "both in validation_query and in validation_gallery",
        ),
        ({"train": [1, 8, 9]}, "2 images (first: number 8) are in train but not in gallery"),
        ({"train": [2, 1]}, "the train split is not increasing"),
    ],
)
def test_every_leak_is_found(rows, part):
    assert arrays().check("toy")
    with pytest.raises(DatasetError) as caught:
        arrays(**rows).check("toy")
    assert part in str(caught.value)
    assert "'toy'" in str(caught.value)


def write(path, content) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


KEYS = [f"k{i}" for i in range(30)]
LISTS = {"query": KEYS[:2], "gallery": KEYS[2:], "train": KEYS[5:25]}


def test_a_split_file_fixes_the_splits(tmp_path):
    path = tmp_path / "splits.json"
    write(path, {**LISTS, "validation_query": ["k2"], "validation_gallery": ["k4", "k3"]})
    splits = read_split_file(path, KEYS, "toy")
    assert splits.query.tolist() == [0, 1]
    assert splits.train.tolist() == list(range(5, 25))
    assert splits.validation_query.tolist() == [2]
    assert splits.validation_gallery.tolist() == [3, 4]


def test_a_split_file_without_validation_gives_up_a_tenth_of_the_training_images(tmp_path):
    path = tmp_path / "splits.json"
    write(path, LISTS)
    part = sets(read_split_file(path, KEYS, "toy"))
    assert len(part["validation_query"]) == 2
    assert part["validation_query"] | part["train"] == set(range(5, 25))
    assert part["validation_gallery"] == part["train"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "no JSON"),
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (
            '{"query": ["k0"], "query": ["k1"], "gallery": [], "train": []}',
            "'query' is listed twice",
        ),
        ([1], "must map splits to lists of image keys"),
        ({**LISTS, "train": [{}]}, "must map splits to lists of image keys"),
        ({**LISTS, "quary": []}, "unknown split 'quary'; did you mean 'query'"),
        ({**LISTS, "train": ["k5", "kX", "kY"]}, "lists 2 images that the dataset does not have"),
        ({**LISTS, "train": ["k5", "k5"]}, "'train' lists 'k5' more than once"),
        ({"query": ["k0"], "train": ["k5"]}, "the split 'gallery' is missing"),
        ({**LISTS, "train": ["k0", "k5"], "validation_query": ["k9"]}, "in query and in train"),
        ({**LISTS, "query": []}, "the query split is empty"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, content, part):
    path = tmp_path / "splits.json"
    write(path, content)
    with pytest.raises((DatasetError, UnknownNameError)) as caught:
        read_split_file(path, KEYS, "toy")
    assert part in str(caught.value)
    assert "protocol.split_file" in str(caught.value)


def test_a_split_file_may_begin_with_a_mark_of_its_encoding(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(LISTS), encoding="utf-8-sig")
    assert read_split_file(path, KEYS, "toy").query.tolist() == [
        KEYS.index(key) for key in LISTS["query"]
    ]


@pytest.mark.parametrize("kind", ["folder", "absent", "binary"])
def test_a_split_file_that_cannot_be_read_is_refused(tmp_path, kind):
    path = tmp_path / "splits.json"
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError) as caught:
        read_split_file(path, KEYS, "toy")
    problem = "no JSON: 'utf-8' codec" if kind == "binary" else "cannot be read: "
    assert f"protocol.split_file: the split file {'is ' * (kind == 'binary')}{problem}" in str(
        caught.value
    )
    assert caught.value.value == str(path)


def test_identity_is_json_without_the_cut_off():
    identity = replace(QUOTAS, at=5).identity()
    assert identity == json.loads(json.dumps(replace(QUOTAS, at="all").identity()))
    assert identity["split_seed"] == 0
    assert identity["query_per_class"] == 2
