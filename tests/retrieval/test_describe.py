"""What is said of a dataset, and the picture of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.datasets import Dataset, DatasetIndex, open_dataset
from retrieval.datasets.base import DatasetOptions
from retrieval.describe import ROLES, describe, to_text
from retrieval.errors import DatasetError
from retrieval.images.contact_sheet import SHOWN, choose, draw
from retrieval.protocols import Protocol

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "eel": (30, 30, 200)}


def tree(root: Path, sizes: dict[str, int]) -> Path:
    """Images of one colour a class, each a little different, 30 pixels high and wider."""
    for title, n in sizes.items():
        (root / title).mkdir(parents=True)
        for number in range(n):
            colour = tuple(c + number % 50 for c in COLOURS[title])
            image = Image.new("RGB", (30 + number, 30), colour)
            image.save(root / title / f"{number:03d}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    root = tree(tmp_path / "photos", {"cat": 20, "dog": 30, "eel": 40})
    (root / "notes.txt").write_text("no image")
    return open_dataset({"folder": str(root)}, home=tmp_path / "home")


class Listed(Dataset):
    """Six images, named and split by the test."""

    name = "listed"
    keys = tuple(f"k{i}" for i in range(6))
    classes = ("a", "b", "c")
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]], np.uint8)
    unreadable = frozenset()

    def load_index(self):
        return DatasetIndex(list(self.keys), self.labels, list(self.classes), "f" * 64, {"odd": 2})

    def decoder(self):
        from contextlib import nullcontext

        def decode(number):
            if number in self.unreadable:
                raise DatasetError(f"{self.keys[number]} (damaged)")
            return np.full((9, 12, 3), 10 * number, dtype=np.uint8)

        return nullcontext(decode)

    def default_protocol(self):
        return Protocol(id="listed")


def listed(tmp_path: Path, **splits) -> Listed:
    splits = {
        "query": ["k0", "k1"],
        "gallery": ["k2", "k3", "k4", "k5"],
        "train": ["k3", "k5"],
        "validation_query": ["k2"],
        "validation_gallery": ["k3", "k4"],
        **splits,
    }
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(splits))
    options = DatasetOptions.model_validate({"protocol": {"split_file": str(path)}})
    return Listed(options, tmp_path / "home")


def test_images_of_each_split_and_class_are_counted(folder):
    found = describe(folder)
    index, splits = folder.index(), folder.splits()
    assert found["images"] == 90
    assert found["classes"] == 3
    assert not found["several_labels"]
    assert found["ignored"] == {"not an image": 1}
    assert set(found["splits"]) == set(ROLES)
    for role in ROLES:
        counts = [0, 0, 0]
        for row in getattr(splits, role):
            counts[index.labels[row]] += 1
        figures = found["splits"][role]
        assert figures["images"] == sum(counts)
        assert figures["images_a_class"] == {
            "min": min(counts),
            "median": sorted(counts)[1],
            "mean": sum(counts) / 3,
            "max": max(counts),
        }
        assert figures["imbalance"] == max(counts) / min(counts)
    # Worked out by hand of 20, 30 and 40 in 90.
    entropy = -sum(n / 90 * math.log(n / 90) for n in (20, 30, 40))
    assert found["all"]["effective_classes"] == pytest.approx(math.exp(entropy), rel=1e-12)
    json.dumps(found, allow_nan=False)


def test_sizes_are_those_of_the_images(folder):
    found = describe(folder)
    widths = sorted([30 + n for total in (20, 30, 40) for n in range(total)])
    assert found["sizes"] == {
        "looked_at": 90,
        "unreadable": 0,
        "width": {
            "min": 30,
            "median": float(np.median(widths)),
            "mean": sum(widths) / 90,
            "max": 69,
        },
        "height": {"min": 30, "median": 30.0, "mean": 30.0, "max": 30},
    }
    assert "sizes" not in describe(folder, sizes=False)


def test_at_most_128_images_are_looked_at_and_no_store_is_built(tmp_path):
    root = tree(tmp_path / "photos", {"cat": 80, "dog": 80})
    dataset = open_dataset({"folder": str(root)}, home=tmp_path / "home")
    assert describe(dataset)["sizes"]["looked_at"] == 128
    assert not (tmp_path / "home" / "images").exists()


def test_several_labels_an_image_are_counted_by_hand(tmp_path):
    found = describe(listed(tmp_path))
    assert found["several_labels"]
    # Labels: k0 a, k1 ab, k2 b, k3 ab, k4 none, k5 a.
    assert found["all"]["labels_an_image"] == {"min": 0, "median": 1.0, "mean": 7 / 6, "max": 2}
    assert found["all"]["without_a_label"] == 1
    assert found["all"]["images_a_class"]["max"] == 4
    assert found["all"]["images_a_class"]["min"] == 3
    assert found["all"]["classes_without_images"] == 1
    query = found["splits"]["query"]
    assert query["images_a_class"] == {"min": 1, "median": 1.5, "mean": 1.5, "max": 2}
    assert found["splits"]["validation_query"]["first_without_images"] == ["a", "c"]
    assert "without_a_label" not in query
    text = to_text(found)
    assert "validation_query: 2 classes without images: a, c\n" in text
    assert "gallery: 1 images without a label" in text
    assert "labels an image: 0 to 2, median 1, mean 1.17" in text
    assert "ignored: 2 odd" in text


def test_images_without_any_label_have_no_figures_of_classes(tmp_path):
    dataset = listed(tmp_path)
    dataset.labels = np.full(6, -1, dtype=np.int64)
    dataset.classes = ()
    found = describe(dataset)
    assert found["all"] == {"images": 6, "without_a_label": 6}
    assert "query" in to_text(found)


def test_unreadable_images_are_counted_among_those_looked_at(tmp_path):
    dataset = listed(tmp_path)
    dataset.unreadable = {2, 5}
    assert describe(dataset)["sizes"]["unreadable"] == 2
    assert "; 2 unreadable" in to_text(describe(dataset))
    dataset.unreadable = set(range(6))
    assert "sizes: none of 6 images looked at can be read" in to_text(describe(dataset))


def test_the_text_has_the_sizes_of_all_splits(folder):
    lines = to_text(describe(folder)).splitlines()
    assert lines[0] == "folder: 90 images, 3 classes, one label an image"
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(ROLES)}
    for role in ROLES:
        assert table[role][:2] == [str(len(getattr(folder.splits(), role))), "3"]


# ---- the picture -----------------------------------------------------------------------------


def test_images_shown_are_of_the_class_and_of_the_split(folder):
    index, splits = folder.index(), folder.splits()
    chosen = choose(folder, 12)
    assert [name for name, _ in chosen] == ["cat", "dog", "eel"]
    for number, (_, rows) in enumerate(chosen):
        assert set(rows) == set(SHOWN)
        for role in SHOWN:
            assert (
                len(rows[role])
                == len(set(rows[role]))
                == min(3, sum(index.labels[getattr(splits, role)] == number))
            )
            assert all(index.labels[row] == number for row in rows[role])
            assert set(rows[role]) <= set(getattr(splits, role).tolist())
        # The gallery has images that are not trained on: those of the validation.
        assert not set(rows["gallery"][:2]) & set(splits.train.tolist())


def test_the_splits_seed_decides_what_is_shown(tmp_path):
    root = tree(tmp_path / "photos", {"cat": 30, "dog": 30, "eel": 30})

    def chosen(seed):
        given = {"folder": str(root), "protocol": {"split_seed": seed}}
        return choose(open_dataset(given, home=tmp_path / "home"), 2)

    assert chosen(0) == chosen(0)
    assert len({json.dumps(chosen(seed)) for seed in range(6)}) == 6
    assert len({tuple(name for name, _ in chosen(seed)) for seed in range(6)}) > 1
    assert all(len(chosen(seed)) == 2 for seed in range(6))


def test_images_without_a_label_are_shown_together(tmp_path):
    chosen = choose(listed(tmp_path), 12)
    assert [name for name, _ in chosen] == ["a", "b", ""]
    assert chosen[2][1] == {"query": [], "gallery": [4], "train": []}
    assert sorted(chosen[0][1]["query"]) == [0, 1]


def test_the_picture_has_the_colours_of_the_classes_in_their_places(folder):
    data = draw(folder)
    assert data == draw(folder)
    picture = np.asarray(Image.open(io.BytesIO(data)))
    for line, title in enumerate(COLOURS):
        centre = 2 * 34 + line * 102 + 48
        for role in range(3):
            left = 6 + 210 + role * (3 * 102 + 18)
            pixel = picture[centre, left + 48].astype(int)
            assert np.argmax(pixel) == np.argmax(COLOURS[title])
        # A caption stands to the left.
        assert (picture[centre - 20 : centre + 20, 6:200].min(axis=(1, 2)) < 60).any()
    assert not (tmp_home := folder.home / "images").exists(), tmp_home


def test_an_unreadable_image_and_an_absent_one_leave_the_others_in_place(tmp_path):
    dataset = listed(tmp_path)
    dataset.unreadable = {0, 1}
    picture = np.asarray(Image.open(io.BytesIO(draw(dataset))))
    left = 6 + 210
    field = picture[2 * 34 : 2 * 34 + 96, left : left + 96]
    assert tuple(field[0, 0]) == (238, 238, 238)
    assert field.min() < 60  # says so
    absent = picture[2 * 34 : 2 * 34 + 96, left + 2 * 102 : left + 2 * 102 + 96]
    assert (absent == 238).all()


def test_a_long_class_name_is_cut_and_one_that_cannot_be_printed_is_replaced(tmp_path):
    dataset = listed(tmp_path)
    dataset.classes = ("a" * 200, "b\n\x00", "c")
    picture = np.asarray(Image.open(io.BytesIO(draw(dataset))))
    assert (picture[2 * 34 : 2 * 34 + 96, 211:216] == 255).all()
