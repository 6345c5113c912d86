"""ImageNet-100: folder trees as people have them, class lists, labels of validation images."""

from __future__ import annotations

import io
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.datasets import open_dataset
from retrieval.errors import InputError
from retrieval.protocols import Splits

WNIDS = ["n01440764", "n01751748", "n02012849", "n03126707"]
SIZES = {"train_per_class": 3, "validation_per_class": 1, "validation_gallery_per_class": 2}


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="JPEG")
    return stream.getvalue()


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def val_class(number: int) -> str:
    """The first validation image is of n01751748 in ILSVRC2012, the others go round."""
    return WNIDS[number % 4]


def build(root: Path, *, flat: bool = False, train: str = "train", val: str = "val") -> Path:
    """Four classes with seven training and two validation images each."""
    for wnid in WNIDS:
        folder = root / train / wnid
        folder.mkdir(parents=True)
        for number in range(7):
            (folder / f"{wnid}_{number}.JPEG").write_bytes(jpeg(int(wnid[1:]) + number))
    (root / val).mkdir(parents=True)
    for number in range(1, 9):
        folder = root / val if flat else root / val / val_class(number)
        folder.mkdir(exist_ok=True)
        (folder / val_name(number)).write_bytes(jpeg(number))
    return root


def opened(root: Path, home: Path, **options):
    given = {"name": "imagenet100", "root": str(root), "classes": WNIDS, "protocol": SIZES}
    return open_dataset({**given, **options}, home=home)


def refusal(root: Path, home: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(root, home, **options).splits()
    return caught.value


def solution(*, boxes: bool = True) -> str:
    """Kaggle's LOC_val_solution.csv."""
    more = " 85 1 499 272 n01440764 3 4 5 6" if boxes else ""
    rows = [f"{val_name(n).removesuffix('.JPEG')},{val_class(n)}{more}" for n in range(8, 0, -1)]
    return "\n".join(["ImageId,PredictionString", *rows, ""])


def pairs(separator: str = " ") -> str:
    """Lines of an image and its class."""
    return "".join(f"{val_name(n)}{separator}{val_class(n)}\n" for n in range(1, 9))


# ---- what is listed --------------------------------------------------------------------------


def test_training_and_validation_images_are_listed_by_class(tmp_path):
    root = build(tmp_path / "ILSVRC2012")
    (root / "train" / WNIDS[0] / "notes.txt").write_text("x")
    (root / "val" / WNIDS[0] / ".hidden.JPEG").write_bytes(b"x")
    index = opened(root, tmp_path / "home").index()
    assert index.classes == WNIDS
    assert index.keys == sorted(index.keys)
    expected = {f"train/{w}/{w}_{n}.JPEG": c for c, w in enumerate(WNIDS) for n in range(7)}
    expected |= {f"val/{val_class(n)}/{val_name(n)}": n % 4 for n in range(1, 9)}
    assert dict(zip(index.keys, index.labels.tolist(), strict=True)) == expected
    assert index.ignored == {"not an image": 1, "hidden": 1}


def test_validation_images_ask_and_training_images_answer(tmp_path):
    dataset = opened(build(tmp_path / "data"), tmp_path / "home")
    keys, labels, splits = dataset.index().keys, dataset.index().labels, dataset.splits()
    counts = {
        f.name: np.bincount(labels[getattr(splits, f.name)]).tolist() for f in fields(Splits)
    }
    assert counts == {
        "train": [3] * 4,
        "validation_query": [1] * 4,
        "validation_gallery": [2] * 4,
        "query": [2] * 4,
        "gallery": [7] * 4,
    }
    assert all(keys[row].startswith("val/") for row in splits.query)
    assert all(keys[row].startswith("train/") for row in splits.gallery)
    held_out = np.union1d(splits.validation_query, splits.validation_gallery)
    assert not np.intersect1d(held_out, splits.train).size
    assert np.isin(held_out, splits.gallery).all()
    assert dataset.protocol.at == 1000
    other = opened(tmp_path / "data", tmp_path / "home", protocol={**SIZES, "split_seed": 1})
    assert other.splits().train.tolist() != splits.train.tolist()
    assert other.splits().query.tolist() == splits.query.tolist()


def test_pixels_are_those_of_the_image_of_that_name(tmp_path):
    root = build(tmp_path / "data", flat=True)
    (root / "val.txt").write_text(pairs())
    dataset = opened(root, tmp_path / "home", store_size=8)
    plain = opened(build(tmp_path / "sorted"), tmp_path / "home", store_size=8)
    assert dataset.images().array.shape == (36, 8, 8, 3)
    assert np.array_equal(dataset.images().array, plain.images().array)
    row = dataset.index().keys.index(f"val/{val_class(3)}/{val_name(3)}")
    with Image.open(root / "val" / val_name(3)) as image:
        middle = np.asarray(image.resize((11, 8), Image.Resampling.BILINEAR), dtype=float)
    assert abs(middle.mean() - dataset.images().array[row].mean()) < 12
    assert dataset.default_augmentation.crop == "random_resized"
    assert dataset.default_augmentation.scale == (0.08, 1.0)
    assert dataset.default_augmentation.flip


@pytest.mark.parametrize("layout", ["sorted", "wnids", "tabs", "kaggle", "kaggle plain", "paths"])
def test_every_layout_of_validation_images_is_the_same_data_set(tmp_path, layout):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    root = build(tmp_path / "other", flat=layout != "sorted")
    files = {
        "sorted": {},
        "wnids": {"val.txt": pairs()},
        "tabs": {"val_labels.txt": pairs("\t")},
        "kaggle": {"LOC_val_solution.csv": solution()},
        "kaggle plain": {"LOC_val_solution.csv": solution(boxes=False)},
        "paths": {"val_map.txt": pairs().replace("ILSVRC", "val/ILSVRC")},
    }[layout]
    for name, text in files.items():
        (root / name).write_text(text)
    dataset = opened(root, tmp_path / "home")
    assert dataset.identity() == plain.identity()
    assert dataset.index().keys == plain.index().keys
    assert dataset.splits().train.tolist() == plain.splits().train.tolist()


@pytest.mark.parametrize("around", ["", "imagenet/", "ILSVRC/Data/CLS-LOC/"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_around_a_zip_and_kaggles_layout_are_the_same_data_set(tmp_path, around, packed):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    root = tmp_path / "other"
    build(root / around, flat=True)
    (root / "LOC_val_solution.csv").write_text(solution())
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{w} name\n" for w in WNIDS))
    if packed:
        target = tmp_path / "other.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root).as_posix())
        root = target
    assert opened(root, tmp_path / "home").identity() == plain.identity()


def test_folders_of_other_names_can_be_given(tmp_path):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    usual = build(tmp_path / "usual", train="ILSVRC2012_img_train", val="ILSVRC2012_img_val")
    assert opened(usual, tmp_path / "home").identity() == plain.identity()
    root = build(tmp_path / "other", train="a/learn", val="exam")
    assert "there is no train/ beside a val/; in the root there is a, exam" in str(
        refusal(root, tmp_path / "home")
    )
    given = {"train": "a/learn", "val": "exam"}
    assert opened(root, tmp_path / "home", **given).identity() == plain.identity()
    for wrong in ("../learn", "/learn", "a//learn"):
        error = refusal(root, tmp_path / "home", train=wrong, val="exam")
        assert (error.key, error.value) == ("train", wrong)
        assert "must be a folder below the root" in str(error)


def test_other_classes_are_never_read(tmp_path, monkeypatch):
    root = build(tmp_path / "data")
    (root / "train" / "n09999999").mkdir()
    (root / "train" / "n09999999" / "a.JPEG").write_bytes(b"x" * 1000)
    flat = build(tmp_path / "flat", flat=True)
    (flat / "val" / val_name(9)).write_bytes(b"x" * 1000)
    (flat / "val.txt").write_text(pairs() + f"{val_name(9)} n09999999\n")
    from retrieval.datasets import files

    read = []
    original = files._Folder._bytes
    monkeypatch.setattr(
        files._Folder, "_bytes", lambda self, path: read.append(path) or original(self, path)
    )
    first = opened(root, tmp_path / "home").identity()
    assert opened(flat, tmp_path / "home").identity() == first
    assert f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG" in read
    assert not [path for path in read if "n09999999" in path or val_name(9) in path]


# ---- class lists -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["list", "file", "in the root", "beside the parts"])
def test_classes_come_from_a_list_or_a_file(tmp_path, way):
    root = build(tmp_path / "data")
    lines = ["# two of them", "", "n02012849  crane", "n01440764 tench, Tinca tinca"]
    options: dict = {}
    if way == "list":
        options["classes"] = lines[2:]
    elif way == "file":
        path = tmp_path / "mine.txt"
        path.write_text("\n".join(lines), encoding="utf-8-sig")
        options["classes"] = str(path)
    else:
        options["classes"] = None
        place = root if way == "in the root" else root / "val"
        (place / "classes.txt").write_text("\n".join(lines))
    index = opened(root, tmp_path / "home", **options).index()
    assert index.classes == ["tench, Tinca tinca", "crane"]  # by WordNet id
    assert set(index.labels.tolist()) == {0, 1}
    assert {key.split("/")[1] for key in index.keys} == {"n01440764", "n02012849"}


def test_two_classes_of_one_name_are_told_apart(tmp_path):
    root = build(tmp_path / "data")
    classes = ["n03126707 crane", "n02012849 crane", "n01440764"]
    index = opened(root, tmp_path / "home", classes=classes).index()
    assert index.classes == ["n01440764", "crane (n02012849)", "crane (n03126707)"]


def test_names_and_classes_are_in_the_fingerprint(tmp_path):
    root = build(tmp_path / "data")
    given = [WNIDS, WNIDS[:3], [*WNIDS[:3], f"{WNIDS[3]} crane"]]
    prints = [opened(root, tmp_path / "home", classes=c).index().fingerprint for c in given]
    assert len(set(prints)) == 3
    same = opened(root, tmp_path / "home", classes=WNIDS[::-1])
    assert same.index().fingerprint == prints[0]
    (root / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").write_bytes(jpeg(99))
    assert opened(root, tmp_path / "home").index().fingerprint != prints[0]


@pytest.mark.parametrize(
    ("classes", "part"),
    [
        (["n0144076", WNIDS[1]], "entry 1 must be a WordNet id such as n01440764"),
        ([WNIDS[0], "tench n01440764"], "entry 2 must be a WordNet id"),
        ([WNIDS[0], f"{WNIDS[1]} a\tb"], "entry 2 must be a WordNet id"),
        ([WNIDS[0], WNIDS[0]], "entry 2: class n01440764 is listed twice"),
        ([], "lists no classes"),
        (["# none"], "lists no classes"),
        ([WNIDS[0]], "at least two classes are needed, found 1"),
        ([*WNIDS, "n09999999"], "1 of 5 classes have no folder in train/, the first is n09999999"),
        (5, "classes: "),
        ([5], "classes: "),
        ("/nowhere.txt", "the class list cannot be read: No such file"),
    ],
)
def test_a_wrong_class_list_is_refused(tmp_path, classes, part):
    error = refusal(build(tmp_path / "data"), tmp_path / "home", classes=classes)
    assert part in str(error)
    assert error.key.startswith("classes") or "no folder" in part


def test_a_wrong_line_of_a_class_file_is_named(tmp_path):
    root = build(tmp_path / "data")
    path = tmp_path / "mine.txt"
    path.write_text("n01440764\n\ntench\n")
    assert "mine.txt:3 must be a WordNet id" in str(
        refusal(root, tmp_path / "home", classes=str(path))
    )
    path.write_bytes(b"\xff\xfe")
    assert "mine.txt is not UTF-8" in str(refusal(root, tmp_path / "home", classes=str(path)))


def test_without_a_list_the_question_which_classes_is_asked(tmp_path):
    error = refusal(build(tmp_path / "data"), tmp_path / "home", classes=None)
    assert error.key == "classes"
    assert "which 100 classes? train/ has 4 class folders" in str(error)
    assert "the 100 classes of HashNet" in str(error)


# ---- the real size ---------------------------------------------------------------------------

HUNDRED = [f"n{10_000_000 + place}" for place in range(100)]


def counted(path: Path, train: dict[str, int], val: dict[str, int]) -> Path:
    """Write a zip with so many images of each class, without pixels."""
    with zipfile.ZipFile(path, "w") as archive:
        for part, counts in (("train", train), ("val", val)):
            for wnid, count in counts.items():
                for number in range(count):
                    archive.writestr(zipfile.ZipInfo(f"{part}/{wnid}/{number}.JPEG"), b"")
    return path


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """A hundred classes with as few images as ILSVRC2012's smallest have."""
    path = tmp_path_factory.mktemp("hundred") / "imagenet.zip"
    return counted(path, dict.fromkeys(HUNDRED, 732), dict.fromkeys(HUNDRED, 50))


def test_the_literatures_counts_come_out_without_any_option(hundred, tmp_path):
    given = {"name": "imagenet100", "root": str(hundred)}
    dataset = open_dataset(given, home=tmp_path)
    labels, splits = dataset.index().labels, dataset.splits()
    assert dataset.index().classes == HUNDRED
    expected = {
        "query": 50,
        "gallery": 732,
        "train": 130,
        "validation_query": 10,
        "validation_gallery": 40,
    }
    for role, per_class in expected.items():
        assert np.bincount(labels[getattr(splits, role)]).tolist() == [per_class] * 100
    assert dataset.protocol.id == "imagenet100"
    with pytest.raises(InputError, match="expected 100 classes, found 99"):
        open_dataset({**given, "classes": HUNDRED[1:]}, home=tmp_path).index()
    fewer = {**given, "classes": HUNDRED[1:], "protocol": {"train_per_class": 130}}
    assert len(open_dataset(fewer, home=tmp_path).splits().query) == 99 * 50


@pytest.mark.parametrize(
    ("train", "val", "part"),
    [
        (731, 50, "has 731 training images, ILSVRC2012 has 732 to 1300 of each"),
        (1301, 50, "has 1301 training images, ILSVRC2012 has 732 to 1300 of each"),
        (732, 49, "has 49 validation images, ILSVRC2012 has 50 of each"),
        (1300, 51, "has 51 validation images, ILSVRC2012 has 50 of each"),
        (0, 50, "1 of 100 classes have no folder in train/"),
        (732, 0, "has 0 validation images"),
    ],
)
def test_other_counts_are_refused(tmp_path, train, val, part):
    ones = dict.fromkeys(HUNDRED, 1)  # the first class is looked at first
    first = HUNDRED[0]
    path = counted(tmp_path / "imagenet.zip", {**ones, first: train}, {**ones, first: val})
    given = {"name": "imagenet100", "root": str(path), "classes": HUNDRED}
    with pytest.raises(InputError) as caught:
        open_dataset(given, home=tmp_path).index()
    assert part in str(caught.value)
    if train and val:
        assert f"class {first} has" in str(caught.value)
        assert "for a part of ImageNet-100 give protocol.train_per_class" in str(caught.value)


def test_the_last_class_is_counted_too(hundred, tmp_path):
    path = tmp_path / "imagenet.zip"
    path.write_bytes(hundred.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"val/{HUNDRED[-1]}/50.JPEG", b"")
    with pytest.raises(InputError, match=f"class {HUNDRED[-1]} has 51 validation images"):
        open_dataset({"name": "imagenet100", "root": str(path)}, home=tmp_path).index()


def test_a_part_is_refused_unless_its_sizes_are_given(tmp_path):
    root = build(tmp_path / "data")
    assert "expected 100 classes, found 4" in str(
        refusal(root, tmp_path / "home", protocol={"at": 10})
    )
    error = refusal(root, tmp_path / "home", protocol={"train_per_class": 9})
    assert "class 'n01440764' has 7 images, the protocol needs" in str(error)


# ---- labels of validation images -------------------------------------------------------------


def numbered(root: Path, numbers: dict[int, int]) -> Path:
    """Write Caffe's val.txt."""
    text = "".join(f"{val_name(n)} {place}\n" for n, place in numbers.items())
    (root / "val.txt").write_text(text)
    return root


def thousand() -> list[str]:
    """All ids that a file may number; the four classes lie at known places."""
    others = [f"n{4_000_000 + n:08d}" for n in range(1000 - len(WNIDS))]
    return [*WNIDS, *others]


@pytest.mark.parametrize("where", ["folders", "LOC_synset_mapping.txt", "synsets.txt"])
def test_class_numbers_are_places_among_all_sorted_ids(tmp_path, where):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    root = numbered(build(tmp_path / "data", flat=True), {n: n % 4 for n in range(1, 9)})
    assert thousand() == sorted(thousand())
    if where == "folders":
        for wnid in thousand():
            (root / "train" / wnid).mkdir(exist_ok=True)
    else:
        (root / where).write_text("".join(f"{w} a name, another\n" for w in thousand()[::-1]))
    assert opened(root, tmp_path / "home").identity() == plain.identity()


def test_class_numbers_mean_nothing_without_all_classes(tmp_path):
    root = numbered(build(tmp_path / "data", flat=True), {n: n % 4 for n in range(1, 9)})
    error = refusal(root, tmp_path / "home")
    assert error.key == "val_labels"
    assert "val.txt numbers the classes, which means nothing without all 1000 of them" in str(
        error
    )


def test_class_numbers_in_another_order_are_refused(tmp_path):
    root = numbered(build(tmp_path / "data", flat=True), {n: (n + 1) % 4 for n in range(1, 9)})
    (root / "synsets.txt").write_text("\n".join(thousand()))
    message = str(refusal(root, tmp_path / "home"))
    assert "ILSVRC2012_val_00000001 would be of class n02012849, it is of n01751748" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"{val_name(1)}\n", "val.txt:1: expected an image's name and its WordNet id"),
        (f"{val_name(1)} {WNIDS[1]}\n{val_name(2)} tench\n", "val.txt:2: expected an image's"),
        (f"{val_name(1)} 1000\n", "from 0 to 999 among the sorted ids; found 'ILSVRC2012_val"),
        (f"{val_name(1)} -1\n", "val.txt:1: expected"),
        (f"{val_name(1)} 3 4\n", "val.txt:1: expected"),
        (pairs() + pairs()[:40], "val.txt:9: ILSVRC2012_val_00000001 is listed twice"),
        (
            pairs() + f"{val_name(77)} {WNIDS[0]}\n{val_name(88)} {WNIDS[0]}\n",
            "2 of the 10 validation images of the classes are missing in val/, the first: 'ILSVRC",
        ),
        ("\n".join(pairs().split("\n")[:3]), "class n01440764 has 0 validation images"),
    ],
)
def test_a_wrong_label_file_is_refused(tmp_path, text, part):
    root = build(tmp_path / "data", flat=True)
    (root / "val.txt").write_text(text)
    assert part in str(refusal(root, tmp_path / "home"))


def test_validation_images_that_the_label_file_leaves_out_are_counted(tmp_path):
    root = build(tmp_path / "data", flat=True)
    (root / "val.txt").write_text("".join(pairs().splitlines(keepends=True)[:6]))
    dataset = opened(root, tmp_path / "home")
    assert len(dataset.splits().query) == 6
    assert dataset.index().ignored == {"without a label": 2}


def test_labels_of_a_flat_folder_are_asked_for(tmp_path):
    root = build(tmp_path / "data", flat=True)
    error = refusal(root, tmp_path / "home")
    assert error.key == "val_labels"
    assert "val/ has no class folders, and nothing tells its images' classes" in str(error)
    (root / "val.txt").write_text(pairs())
    (root / "LOC_val_solution.csv").write_text(solution())
    message = str(refusal(root, tmp_path / "home"))
    assert "there are LOC_val_solution.csv and val.txt with labels" in message
    assert opened(root, tmp_path / "home", val_labels="val.txt").splits()


@pytest.mark.parametrize("way", ["below", "absolute"])
def test_the_label_file_can_be_given(tmp_path, way):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    root = build(tmp_path / "data", flat=True)
    folder = root / "lists" if way == "below" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "mine.txt").write_text(pairs())
    given = "lists/mine.txt" if way == "below" else str(folder / "mine.txt")
    assert opened(root, tmp_path / "home", val_labels=given).identity() == plain.identity()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("../mine.txt", "must be a path below the root, or an absolute one"),
        ("mine.txt", "there is no such file below the root"),
        ("/nowhere/mine.txt", "the file cannot be read: No such file"),
    ],
)
def test_a_label_file_that_is_not_there_is_refused(tmp_path, given, part):
    error = refusal(build(tmp_path / "data", flat=True), tmp_path / "home", val_labels=given)
    assert (error.key, error.value) == ("val_labels", given)
    assert part in str(error)


def test_links_out_of_the_root_are_followed_only_where_that_is_meant(tmp_path):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    root = tmp_path / "linked"
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        for wnid in WNIDS:
            (root / part / wnid).symlink_to(tmp_path / "plain" / part / wnid)
    error = refusal(root, tmp_path / "home")
    assert "leads out of the folder" in str(error)
    assert "follow_links: true" in str(error)
    followed = opened(root, tmp_path / "home", follow_links=True)
    assert followed.identity() == plain.identity()
