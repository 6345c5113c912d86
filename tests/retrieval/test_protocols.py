"""Splits: quotas, leaks, and what they are a function of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import DatasetError, UnknownNameError
from retrieval.protocols import (
    Protocol,
    Splits,
    complete_splits,
    draw_splits,
    draw_splits_greedily,
    draw_splits_of_all,
    read_split_file,
)
from retrieval.streams import derive, words


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


def test_identities_from_before_there_were_totals_are_what_they_were():
    assert QUOTAS.identity() == {
        "id": "t",
        "split_seed": 0,
        "query_per_class": 2,
        "query_fraction": None,
        "train_per_class": 4,
        "validation_per_class": 1,
        "validation_fraction": None,
        "validation_gallery_per_class": 3,
        "uneven": False,
        "split_digest": None,
    }


# ---- images with several labels --------------------------------------------------------------

TOTALS = Protocol(
    id="t", query_total=5, train_total=12, validation_total=4, validation_gallery_total=6
)


def named(n: int) -> list[str]:
    return [f"part/{i:05d}.jpg" for i in range(n)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), n=st.integers(27, 60))
def test_totals_are_held_and_never_leak(seed, n):
    part = sets(draw_splits_of_all(named(n), replace(TOTALS, split_seed=seed), "toy"))
    sizes = {name: len(rows) for name, rows in part.items()}
    assert sizes == {
        "query": 5,
        "gallery": n - 5,
        "train": 12,
        "validation_query": 4,
        "validation_gallery": 6,
    }
    assert part["query"] | part["gallery"] == set(range(n))
    assert not part["query"] & part["gallery"]
    assert part["train"] | part["validation_query"] | part["validation_gallery"] <= part["gallery"]
    assert not part["validation_query"] & (part["train"] | part["validation_gallery"])
    assert not part["train"] & part["validation_gallery"]


@pytest.mark.parametrize(("n", "trained"), [(27, 12), (26, 11), (20, 5), (17, 2)])
def test_validation_images_are_taken_from_training_ones_where_others_do_not_suffice(n, trained):
    part = sets(draw_splits_of_all(named(n), TOTALS, "toy"))
    assert len(part["train"]) == trained
    assert (len(part["validation_query"]), len(part["validation_gallery"])) == (4, 6)
    assert not part["train"] & (part["validation_query"] | part["validation_gallery"])


@pytest.mark.parametrize(
    ("n", "changes", "part"),
    [
        (16, {}, "has 16 images, the protocol needs 17 (5 query, 12 train)"),
        (
            18,
            {"validation_total": 7, "train_total": None},
            "needs 19 (5 query, 7 validation, 6 validation gallery, 1 train)",
        ),
        (
            9,
            {"validation_gallery_total": None, "train_total": 4},
            "needs 10 (5 query, 4 validation, 1 train)",
        ),
        (30, {"train_per_class": 1}, "cannot be split by train_per_class: an image counts for"),
        (30, {"validation_total": None}, "the validation_query split is empty"),
    ],
)
def test_totals_that_cannot_be_had_are_refused(n, changes, part):
    with pytest.raises(DatasetError) as caught:
        draw_splits_of_all(named(n), replace(TOTALS, **changes), "toy")
    assert part in str(caught.value)
    assert "'toy'" in str(caught.value)


def test_without_totals_all_is_trained_on_and_fractions_are_of_all_images():
    protocol = Protocol(id="t", query_fraction=0.1, validation_fraction=0.2)
    part = sets(draw_splits_of_all(named(50), protocol, "toy"))
    assert (len(part["query"]), len(part["validation_query"]), len(part["train"])) == (5, 10, 35)
    assert part["validation_gallery"] == part["train"]
    part = sets(draw_splits_of_all(named(3), protocol, "toy"))
    assert [len(part[name]) for name in ("query", "validation_query", "train")] == [1, 1, 1]


def test_a_split_of_all_depends_on_seed_name_and_keys_and_on_nothing_else():
    keys = named(60)

    def drawn(keys, protocol=TOTALS, name="toy"):
        splits = draw_splits_of_all(keys, protocol, name)
        return {f: {keys[row] for row in rows} for f, rows in vars(splits).items()}

    first = drawn(keys)
    assert drawn(keys) == first
    assert drawn(keys, replace(TOTALS, split_seed=1))["query"] != first["query"]
    assert drawn(keys, name="other")["query"] != first["query"]
    order = np.random.default_rng(0).permutation(60)
    assert drawn([keys[i] for i in order]) == first


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), gone=st.integers(0, 59))
def test_an_image_more_or_less_moves_one_image_over_each_boundary(seed, gone):
    keys, protocol = named(60), replace(TOTALS, split_seed=seed)
    less = [key for key in keys if key != keys[gone]]

    def drawn(keys):
        splits = draw_splits_of_all(keys, protocol, "toy")
        return {f: {keys[row] for row in rows} for f, rows in vars(splits).items()}

    before, after = drawn(keys), drawn(less)
    for name in ("query", "validation_query", "validation_gallery", "train"):
        stayed = before[name] - {keys[gone]}
        assert len(stayed - after[name]) <= 1
        assert len(after[name] - before[name]) <= 1


def test_every_image_is_as_likely_in_every_split():
    # 400 seeds, 20 images, 5 queries: 100 expected for each, standard deviation below 9.
    counts = np.zeros(20, dtype=int)
    protocol = replace(TOTALS, train_total=4, validation_total=3, validation_gallery_total=2)
    for seed in range(400):
        splits = draw_splits_of_all(named(20), replace(protocol, split_seed=seed), "toy")
        counts[splits.query] += 1
    assert counts.min() > 60
    assert counts.max() < 140


def test_totals_are_in_the_identity_where_they_are_given():
    identity = replace(TOTALS, train_total=None, at=9).identity()
    assert identity["query_total"] == 5
    assert "train_total" not in identity
    assert identity["validation_gallery_total"] == 6
    assert identity == json.loads(json.dumps(identity))


# ---- training images out of the gallery ------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), counts=st.lists(st.integers(10, 20), min_size=2, max_size=4))
def test_training_images_apart_leave_every_other_choice_as_it_is(seed, counts):
    keys, labels, classes = toy(counts)
    protocol = replace(QUOTAS, split_seed=seed)
    pooled = sets(draw_splits(keys, labels, classes, protocol, "toy"))
    apart = sets(draw_splits(keys, labels, classes, replace(protocol, train_apart=True), "toy"))
    assert apart["gallery"] == pooled["gallery"] - pooled["train"]
    assert {k: v for k, v in apart.items() if k != "gallery"} == {
        k: v for k, v in pooled.items() if k != "gallery"
    }


def test_training_images_of_all_together_can_be_apart():
    pooled = sets(draw_splits_of_all(named(40), TOTALS, "toy"))
    apart = sets(draw_splits_of_all(named(40), replace(TOTALS, train_apart=True), "toy"))
    assert apart["gallery"] == pooled["gallery"] - pooled["train"]
    assert apart["train"] == pooled["train"]


def test_a_split_file_may_keep_training_images_apart_where_the_protocol_does(tmp_path):
    path = tmp_path / "splits.json"
    write(path, {**LISTS, "gallery": KEYS[25:], "train": KEYS[5:25]})
    with pytest.raises(DatasetError, match=r"18 images .* are in train but not in gallery"):
        read_split_file(path, KEYS, "toy")
    part = sets(read_split_file(path, KEYS, "toy", train_apart=True))
    assert part["gallery"] == set(range(25, 30))
    assert part["train"] | part["validation_query"] == set(range(5, 25))


# ---- quotas of each class for images with several labels -------------------------------------

GREEDY = Protocol(
    id="t",
    greedy=True,
    query_per_class=2,
    train_per_class=3,
    validation_per_class=1,
    validation_gallery_per_class=2,
)


def labelled(n: int, classes: int, seed: int) -> np.ndarray:
    """Labels of n images; every image has one at least."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < 0.4).astype(np.uint8)
    labels[np.arange(n), rng.integers(0, classes, n)] = 1
    return labels


def drawn_by_loops(keys, labels, protocol, name) -> dict[str, set[str]]:
    """The quotas as a loop over images in the order of their draws, by key."""
    seed = derive(protocol.split_seed, "split", name)

    def draw(key: str) -> int:
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        counter = np.array([int.from_bytes(digest, "little")], dtype=np.uint64)
        high, low = words(seed, "split", counter, 2)[0]
        return (int(high) << 32) | int(low)

    waiting = sorted(range(len(keys)), key=lambda row: draw(keys[row]))
    chosen: dict[str, set[str]] = {}
    for role, quota in (
        ("query", protocol.query_per_class),
        ("train", protocol.train_per_class),
        ("validation_query", protocol.validation_per_class),
        ("validation_gallery", protocol.validation_gallery_per_class),
    ):
        have = [0] * labels.shape[1]
        chosen[role] = set()
        for row in list(waiting):
            for c in range(labels.shape[1]):
                if labels[row, c] and have[c] < quota:
                    have[c] += 1
                    chosen[role].add(keys[row])
                    waiting.remove(row)
                    break
        if min(have) < quota:
            raise ValueError(role)
    chosen["gallery"] = set(keys) - chosen["query"]
    return chosen


def by_key(keys, splits: Splits) -> dict[str, set[str]]:
    return {role: {keys[row] for row in rows} for role, rows in sets(splits).items()}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), n=st.integers(40, 90), classes=st.integers(2, 5))
def test_greedy_quotas_are_those_of_a_plain_loop(seed, n, classes):
    keys, labels = named(n), labelled(n, classes, seed % 2**32)
    titles = [f"c{c}" for c in range(classes)]
    protocol = replace(GREEDY, split_seed=seed)
    try:
        expected = drawn_by_loops(keys, labels, protocol, "toy")
    except ValueError as error:
        role = str(error).removesuffix("_query").replace("_", " ")
        with pytest.raises(DatasetError, match=f"left for the {role} split"):
            draw_splits_greedily(keys, labels, titles, protocol, "toy")
        return
    splits = draw_splits_greedily(keys, labels, titles, protocol, "toy")
    assert by_key(keys, splits) == expected
    sizes = {role: len(rows) for role, rows in expected.items()}
    assert sizes == {
        "query": 2 * classes,
        "train": 3 * classes,
        "validation_query": classes,
        "validation_gallery": 2 * classes,
        "gallery": n - 2 * classes,
    }
    disjoint = [expected[r] for r in ("query", "train", "validation_query", "validation_gallery")]
    assert len(set.union(*disjoint)) == sum(map(len, disjoint))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), gone=st.integers(0, 199))
def test_an_image_that_no_greedy_choice_took_changes_none_when_it_is_removed(seed, gone):
    keys, labels = named(80), labelled(80, 3, 5)
    protocol, titles = replace(GREEDY, split_seed=seed), ["a", "b", "c"]
    before = by_key(keys, draw_splits_greedily(keys, labels, titles, protocol, "toy"))
    taken = set.union(*(rows for role, rows in before.items() if role != "gallery"))
    spare = [key for key in keys if key not in taken]
    lost = spare[gone % len(spare)]
    rows = [row for row, key in enumerate(keys) if key != lost]
    fewer = [keys[row] for row in rows]
    after = by_key(fewer, draw_splits_greedily(fewer, labels[rows], titles, protocol, "toy"))
    assert after == {**before, "gallery": before["gallery"] - {lost}}


def test_greedy_quotas_that_cannot_be_had_name_class_split_and_numbers():
    labels = np.array([[1, 0]] * 9 + [[0, 1]] * 3, dtype=np.uint8)
    with pytest.raises(DatasetError) as caught:
        draw_splits_greedily(named(12), labels, ["much", "little"], GREEDY, "toy")
    assert "class 'little' has 1 images left for the train split, the protocol needs 3" in str(
        caught.value
    )


def test_greedy_training_images_can_be_apart_and_validation_ranks_them_without_others():
    keys, labels = named(60), labelled(60, 3, 1)
    protocol = replace(GREEDY, train_apart=True, validation_gallery_per_class=None)
    part = sets(draw_splits_greedily(keys, labels, ["a", "b", "c"], protocol, "toy"))
    assert part["gallery"] == set(range(60)) - part["query"] - part["train"]
    assert part["validation_gallery"] == part["train"]


# ---- splits that files list ------------------------------------------------------------------

LISTED = Protocol(
    id="t",
    listed=True,
    train_per_class=4,
    validation_per_class=1,
    validation_gallery_per_class=2,
)


def completed(listed, keys, labels, classes, protocol=LISTED) -> dict[str, set[str]]:
    return by_key(keys, complete_splits(listed, keys, labels, classes, protocol, "toy"))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), counts=st.lists(st.integers(9, 20), min_size=2, max_size=4))
def test_training_images_are_drawn_from_a_listed_gallery_by_class(seed, counts):
    keys, labels, classes = toy(counts)
    query = [key for key in keys if key.endswith(("000", "001"))]
    gallery = [key for key in keys if key not in query]
    protocol = replace(LISTED, split_seed=seed)
    part = completed({"query": query, "gallery": gallery}, keys, labels, classes, protocol)
    assert (part["query"], part["gallery"]) == (set(query), set(gallery))
    drawn = [part[r] for r in ("train", "validation_query", "validation_gallery")]
    assert set.union(*drawn) <= part["gallery"]
    assert sum(map(len, drawn)) == len(set.union(*drawn))
    for title in classes:
        inside = [sum(key.startswith(f"{title}/") for key in rows) for rows in drawn]
        assert inside == [4, 1, 2]
    # An image more moves one image at most over each boundary.
    more = completed(
        {"query": query, "gallery": [*gallery, "c0/new"]},
        [*keys, "c0/new"],
        np.append(labels, 0),
        classes,
        protocol,
    )
    for role in ("train", "validation_query", "validation_gallery"):
        assert len(part[role] - more[role]) <= 1


def test_without_a_quota_all_of_a_listed_gallery_is_trained_on_but_validation_queries():
    keys, labels, classes = toy([12, 9])
    protocol = Protocol(id="t", listed=True, validation_per_class=2)
    listed = {"query": [keys[0], keys[12]], "gallery": [*keys[1:12], *keys[13:]]}
    part = completed(listed, keys, labels, classes, protocol)
    assert len(part["validation_query"]) == 4
    assert part["train"] == part["gallery"] - part["validation_query"]
    assert part["validation_gallery"] == part["train"]


def test_totals_are_drawn_from_a_listed_gallery_of_images_with_several_labels():
    keys, labels = named(30), labelled(30, 3, 0)
    protocol = Protocol(
        id="t", listed=True, train_total=9, validation_total=2, validation_gallery_total=5
    )
    part = completed({"query": keys[:4], "gallery": keys[4:]}, keys, labels, list("abc"), protocol)
    assert [len(part[r]) for r in ("train", "validation_query", "validation_gallery")] == [9, 2, 5]
    assert part["train"] | part["validation_query"] | part["validation_gallery"] <= set(keys[4:])


def test_validation_is_drawn_beside_listed_training_images_where_the_gallery_has_enough():
    keys, labels, classes = toy([20, 20])
    listed = {"query": keys[:4], "gallery": keys[4:], "train": keys[30:]}
    protocol = Protocol(id="t", listed=True)
    part = completed(listed, keys, labels, classes, protocol)
    assert part["train"] == set(keys[30:])  # 10 of them: 1 validation query, ranked against 4
    assert (len(part["validation_query"]), len(part["validation_gallery"])) == (1, 4)
    assert part["validation_query"] | part["validation_gallery"] <= set(keys[4:30])
    given = replace(protocol, validation_total=6, validation_gallery_total=20)
    part = completed(listed, keys, labels, classes, given)
    assert part["train"] == set(keys[30:])
    assert part["validation_query"] | part["validation_gallery"] == set(keys[4:30])


def test_validation_is_taken_out_of_listed_training_images_where_the_gallery_has_too_few():
    keys, labels, classes = toy([20, 20])
    listed = {"query": keys[:4], "gallery": keys[4:], "train": keys[4:]}
    protocol = Protocol(id="t", listed=True, validation_total=7)
    part = completed(listed, keys, labels, classes, protocol)
    assert len(part["validation_query"]) == 7
    assert part["train"] == set(keys[4:]) - part["validation_query"]
    assert part["validation_gallery"] == part["train"]
    other = completed(listed, keys, labels, classes, replace(protocol, split_seed=1))
    assert other["validation_query"] != part["validation_query"]
    with pytest.raises(DatasetError, match="36 training images do not suffice for 36 validation"):
        completed(listed, keys, labels, classes, replace(protocol, validation_total=36))


def test_listed_validation_images_are_kept_and_never_trained_on():
    keys, labels, classes = toy([12, 12])
    listed = {"query": keys[:2], "gallery": keys[2:], "validation_query": keys[5:15]}
    part = completed(listed, keys, labels, classes, replace(LISTED, train_per_class=3))
    assert part["validation_query"] == set(keys[5:15])
    assert part["validation_gallery"] == part["train"]
    assert len(part["train"]) == 6
    assert part["train"] <= set(keys[2:]) - set(keys[5:15])
    listed["validation_gallery"] = keys[15:19]
    part = completed(listed, keys, labels, classes, replace(LISTED, train_per_class=3))
    assert part["validation_gallery"] == set(keys[15:19])
    assert part["train"] <= set(keys[2:5]) | set(keys[19:])
    assert len(part["train"]) == 6


def test_drawn_training_images_leave_a_listed_gallery_where_they_are_to_be_apart():
    keys, labels, classes = toy([12, 12])
    listed = {"query": keys[:2], "gallery": keys[2:]}
    pooled = completed(listed, keys, labels, classes)
    apart = completed(listed, keys, labels, classes, replace(LISTED, train_apart=True))
    assert apart["train"] == pooled["train"]
    assert apart["gallery"] == pooled["gallery"] - pooled["train"]
    listed = {"query": keys[:2], "gallery": keys[2:10], "train": keys[10:]}
    with pytest.raises(DatasetError, match=r"14 images .* are in train but not in gallery"):
        completed(listed, keys, labels, classes)
    apart = completed(listed, keys, labels, classes, replace(LISTED, train_apart=True))
    assert apart["gallery"] == set(keys[2:10])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"query": ["c0/000", "gone", "lost"]}, "query list has 2 images that are not there, the"),
        ({"query": ["c0/000", "c0/000"]}, "query list has 1 images more than once, the first is"),
        ({"train": ["c0/000", "c0/005"]}, "the image 'c0/000' is both in query and in train"),
        (
            {"gallery": ["c0/000", "c1/001"], "train": ["c1/001", "c1/002"]},
            "both in query and in gallery",
        ),
        ({"validation_gallery": ["c0/003"]}, "a validation gallery and no validation queries"),
        ({"query": []}, "the query split is empty"),
    ],
)
def test_a_wrong_list_of_a_datasets_files_is_refused(changes, part):
    keys, labels, classes = toy([12, 12])
    listed = {"query": keys[:1], "gallery": keys[1:], **changes}
    with pytest.raises(DatasetError) as caught:
        completed(listed, keys, labels, classes)
    assert part in str(caught.value)
    assert "'toy'" in str(caught.value)


def test_what_came_later_is_in_the_identity_only_where_it_is_used():
    for name in ("train_apart", "greedy", "listed"):
        assert name not in QUOTAS.identity()
        assert replace(QUOTAS, **{name: True}).identity() == {**QUOTAS.identity(), name: True}
