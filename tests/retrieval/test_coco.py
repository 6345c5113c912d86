"""MS-COCO's format: what is a label, what is left out, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.datasets import coco, open_dataset
from retrieval.errors import DatasetError, InputError

CATEGORIES = [
    {"supercategory": "thing", "id": 90, "name": "book"},
    {"supercategory": "animal", "id": 3, "name": "cat"},
    {"supercategory": "animal", "id": 17, "name": "dog"},
]
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (20, 20, 20)]

#: Categories of each image's annotations; one image has none, one has an object twice.
SEEN = {
    "train": [[90], [3, 17], [], [17, 17, 90], [3]],
    "val": [[17], [3, 17, 90], [90], [3, 90]],
}


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format="JPEG")
    return stream.getvalue()


def instances(part: str, year: int = 2017) -> dict:
    """One part's annotations as its authors write them, in no particular order."""
    images, annotations = [], []
    for place, seen in reversed(list(enumerate(SEEN[part]))):
        number = 100 * place + 7
        name = f"{number:012d}.jpg" if year == 2017 else f"COCO_{part}2014_{number:012d}.jpg"
        images.append({"license": 1, "file_name": name, "id": number, "height": 16, "width": 24})
        for category in seen:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": len(annotations) % 2,
                    "bbox": [0.5, 1.0, 2.5, 3.0],
                    "segmentation": {"counts": [1, 2], "size": [16, 24]},
                }
            )
    return {
        "info": {"year": year},
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }


def build(root: Path, *, year: int = 2017, parts=("train", "val"), edit=None) -> Path:
    """Write a data set in COCO's format; ``edit`` changes the annotations of the first part."""
    for part in parts:
        content = instances(part, year)
        folder = root / f"{part}{year}"
        folder.mkdir(parents=True)
        for image in content["images"]:
            colour = COLOURS[image["id"] // 100]
            (folder / image["file_name"]).write_bytes(jpeg(colour))
        if edit is not None and part == parts[0]:
            content = edit(copy.deepcopy(content))
        write(root, part, content, year)
    return root


def write(root: Path, part: str, content, year: int = 2017) -> Path:
    path = root / "annotations" / f"instances_{part}{year}.json"
    path.parent.mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    return path


def zipped(root: Path, target: Path, around: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, f"{around}{path.relative_to(root).as_posix()}")
    return target


def opened(root: Path, home: Path, **options):
    return open_dataset({"name": "coco", "root": root, **options}, home=home)


def refusal(root: Path, home: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(root, home, **options).splits()
    return caught.value


# ---- what is listed --------------------------------------------------------------------------


def test_labels_are_the_categories_of_an_images_annotations(tmp_path):
    root = build(tmp_path / "coco")
    (root / "train2017" / "unlisted.jpg").write_bytes(jpeg((1, 2, 3)))
    (root / "train2017" / "readme.txt").write_text("x")
    (root / "annotations" / "captions_train2017.json").write_text("{")
    (root / "test2017").mkdir()
    (root / "test2017" / "000000000001.jpg").write_bytes(b"no image")
    index = opened(root, tmp_path / "home").index()
    assert index.multi_label
    assert index.classes == ["cat", "dog", "book"]  # by category number: 3, 17, 90
    assert index.labels.dtype == np.uint8
    assert dict(zip(index.keys, index.labels.tolist(), strict=True)) == {
        "train2017/000000000007.jpg": [0, 0, 1],
        "train2017/000000000107.jpg": [1, 1, 0],
        "train2017/000000000307.jpg": [0, 1, 1],
        "train2017/000000000407.jpg": [1, 0, 0],
        "val2017/000000000007.jpg": [0, 1, 0],
        "val2017/000000000107.jpg": [1, 1, 1],
        "val2017/000000000207.jpg": [0, 0, 1],
        "val2017/000000000307.jpg": [1, 0, 1],
    }
    assert index.keys == sorted(index.keys)
    assert index.ignored == {"without a label": 1, "not in the annotations": 1}


def test_pixels_are_those_of_the_image_of_that_name(tmp_path):
    dataset = opened(build(tmp_path / "coco"), tmp_path / "home", store_size=8)
    store = dataset.images()
    assert store.array.shape == (8, 8, 8, 3)
    assert store.keys == dataset.index().keys
    assert np.array_equal(store.labels, dataset.index().labels)
    for key, image in zip(store.keys, store.array, strict=True):
        colour = COLOURS[int(key[-7:-4]) // 100]
        assert np.abs(image.reshape(-1, 3).mean(axis=0) - colour).max() < 4


@pytest.mark.parametrize("around", ["", "coco/"])
def test_a_zip_is_the_same_dataset_as_its_folder(tmp_path, around):
    root = build(tmp_path / "data" / "coco")
    packed = zipped(root, tmp_path / "coco.zip", around)
    folder = opened(root if not around else root.parent, tmp_path / "home")
    archive = opened(packed, tmp_path / "home")
    assert archive.identity() == folder.identity()
    assert archive.identity() == opened(root, tmp_path / "other").identity()
    assert archive.index().keys == folder.index().keys
    assert np.array_equal(archive.images().array, opened(root, tmp_path / "b").images().array)
    assert str(tmp_path) not in json.dumps(folder.identity())


def test_names_of_2014_are_read_too(tmp_path):
    dataset = opened(build(tmp_path / "coco", year=2014), tmp_path / "home")
    assert dataset.index().keys[0] == "train2014/COCO_train2014_000000000007.jpg"
    assert len(dataset.index().keys) == 8


def test_one_part_is_taken_alone_on_request(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    both, train = opened(root, home), opened(root, home, parts=["train"])
    val = opened(root, home, parts=["val"])
    assert train.index().keys + val.index().keys == both.index().keys
    assert len({d.index().fingerprint for d in (both, train, val)}) == 3
    assert opened(root, home, parts=["val", "train"]).identity() == both.identity()
    assert opened(root, home, year=2017).identity() == both.identity()
    alone = build(tmp_path / "alone", parts=("val",))
    assert opened(alone, home, parts=["val"]).identity() == val.identity()


def test_the_fingerprint_is_of_files_and_labels_and_not_of_their_notation(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"

    def now() -> str:
        return opened(root, home).index().fingerprint

    first = now()
    content = instances("train")
    for key in ("images", "annotations", "categories"):
        content[key] = content[key][::-1]
    write(root, "train", json.dumps(content, indent=3).encode("utf-8-sig"))
    assert now() == first
    seen = [first]
    content["annotations"][0]["category_id"] = 3
    write(root, "train", content)
    seen.append(now())
    content["categories"] = [{**c, "name": f"{c['name']}s"} for c in CATEGORIES]
    write(root, "train", content)
    write(root, "val", {**instances("val"), "categories": content["categories"]})
    seen.append(now())
    path = root / "val2017" / "000000000107.jpg"
    path.write_bytes(jpeg((9, 9, 9)))
    seen.append(now())
    path.rename(root / "val2017" / "x.jpg")
    renamed = instances("val")
    renamed["categories"] = content["categories"]
    image = next(image for image in renamed["images"] if image["id"] == 107)
    image["file_name"] = "x.jpg"
    write(root, "val", renamed)
    seen.append(now())
    assert len(set(seen)) == 5
    assert opened(root, tmp_path / "new").index().fingerprint == seen[-1]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_annotations_are_parsed_once(tmp_path, monkeypatch, kind):
    from retrieval.datasets import files

    root, home = build(tmp_path / "coco"), tmp_path / "home"
    given = root if kind == "folder" else zipped(root, tmp_path / "coco.zip")
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**12))  # as if the files were old
    index = opened(given, home).index()
    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_instances", None)  # parsing would fail
        again = opened(given, home).index()
        assert (again.keys, again.classes, again.fingerprint) == (
            index.keys,
            index.classes,
            index.fingerprint,
        )
        assert np.array_equal(again.labels, index.labels)
        if kind == "folder":
            (root / "annotations" / "instances_val2017.json").touch()
            with pytest.raises(TypeError):
                opened(given, home).index()


def test_annotations_within_a_clock_tick_of_their_change_are_not_kept(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    opened(root, home).index()
    assert len(list((home / "datasets").iterdir())) == 1  # the images' listing
    for path in (root / "annotations").iterdir():
        os.utime(path, (1, 1))  # the time of change stays now
    opened(root, home).index()
    assert len(list((home / "datasets").iterdir())) == 1


# ---- protocol --------------------------------------------------------------------------------


def test_a_sample_is_split_by_fractions(tmp_path):
    dataset = opened(build(tmp_path / "coco"), tmp_path / "home")
    sizes = {name: len(rows) for name, rows in vars(dataset.splits()).items()}
    assert sizes == {
        "train": 6,
        "validation_query": 1,
        "validation_gallery": 6,
        "query": 1,
        "gallery": 7,
    }
    assert (dataset.protocol.id, dataset.protocol.at) == ("coco-10", "all")
    augmentation = dataset.default_augmentation
    assert (augmentation.crop, augmentation.flip, augmentation.brightness) == ("random", True, 0)


def test_a_study_sets_totals(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    totals = {
        "query_total": 2,
        "train_total": 3,
        "validation_total": 2,
        "validation_gallery_total": 1,
        "at": 4,
    }
    plain, dataset = opened(root, home), opened(root, home, protocol=totals)
    sizes = {name: len(rows) for name, rows in vars(dataset.splits()).items()}
    assert sizes == {
        "train": 3,
        "validation_query": 2,
        "validation_gallery": 1,
        "query": 2,
        "gallery": 6,
    }
    protocol = dataset.protocol
    assert (protocol.at, protocol.query_fraction, protocol.validation_fraction) == (4, None, None)
    assert protocol.id.startswith("coco-10-")
    identities = [plain.identity(), dataset.identity()]
    for name in totals.keys() - {"at"}:
        identities.append(opened(root, home, protocol={name: 1}).identity())
    identities.append(opened(root, home, protocol={"split_seed": 1}).identity())
    assert len({json.dumps(identity) for identity in identities}) == 7
    assert len({identity["protocol"]["id"] for identity in identities}) == 7
    assert json.loads(json.dumps(identities)) == identities


def test_more_than_there_is_is_refused(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    message = str(refusal(root, home, protocol={"query_total": 4, "train_total": 5}))
    assert "has 8 images, the protocol needs 9 (4 query, 5 train)" in message


@pytest.mark.parametrize(
    "name",
    [
        "query_per_class",
        "train_per_class",
        "validation_per_class",
        "validation_gallery_per_class",
    ],
)
def test_quotas_of_classes_are_refused(tmp_path, name):
    error = refusal(build(tmp_path / "coco"), tmp_path / "home", protocol={name: 1})
    assert error.key == f"protocol.{name}"
    assert "'coco' has several labels an image" in str(error)
    assert f"give {name.replace('_per_class', '_total')} instead (given: 1)" in str(error)


def test_a_split_file_fixes_the_splits(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    keys = opened(root, home).index().keys
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"query": keys[:2], "gallery": keys[2:], "train": keys[3:]}))
    dataset = opened(root, home, protocol={"split_file": str(path)})
    assert dataset.splits().query.tolist() == [0, 1]
    assert "query_total" not in dataset.identity()["protocol"]


def test_the_literatures_counts_come_out(tmp_path):
    # The real size without real images: a listing reads checksums, never pixels.
    packed = tmp_path / "coco.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for part, labelled, listed in (("train", 117_266, 118_287), ("val", 4_952, 5_000)):
            names = [f"{number:012d}.jpg" for number in range(listed)]
            for name in names:
                archive.writestr(zipfile.ZipInfo(f"{part}2017/{name}"), b"")
            content = {
                "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
                "annotations": [
                    {"image_id": n, "category_id": (90, 3, 17)[n % 3]} for n in range(labelled)
                ],
                "categories": CATEGORIES,
            }
            archive.writestr(f"annotations/instances_{part}2017.json", json.dumps(content))
    dataset = opened(packed, tmp_path / "home")
    splits = dataset.splits()
    assert {name: len(rows) for name, rows in vars(splits).items()} == {
        "query": 5_000,
        "gallery": 117_218,
        "train": 10_000,
        "validation_query": 1_000,
        "validation_gallery": 4_000,
    }
    held_out = np.union1d(splits.validation_query, splits.validation_gallery)
    assert not np.intersect1d(held_out, splits.train).size
    assert dataset.index().ignored == {"without a label": 1_069}
    assert (dataset.protocol.id, dataset.protocol.at) == ("coco-5000", 5_000)
    one = opened(packed, tmp_path / "home", parts=["val"])
    assert (one.protocol.id, len(one.splits().query)) == ("coco-10", 495)


# ---- what is refused -------------------------------------------------------------------------


def test_images_that_are_listed_and_not_there_are_counted(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    (root / "val2017" / "000000000307.jpg").unlink()
    (root / "val2017" / "000000000107.jpg").unlink()
    error = refusal(root, home)
    assert isinstance(error, DatasetError)
    assert error.key == "root"
    assert (
        "2 of the 9 images that the annotations list are missing, the first: "
        "'val2017/000000000107.jpg'" in str(error)
    )
    for path in (root / "train2017").iterdir():
        path.unlink()
    (root / "train2017").rmdir()
    assert "7 of the 9 images" in str(refusal(root, home))
    packed = zipped(root, tmp_path / "coco.zip", around="a/")
    assert "7 of the 9 images" in str(refusal(packed, home))
    assert "the first: 'a/train2017/000000000007.jpg'" in str(refusal(packed, home))


def changed(key: str, place: int, **values):
    def edit(content: dict) -> dict:
        entry = content[key][place]
        content[key][place] = {k: v for k, v in {**entry, **values}.items() if v != "gone"}
        return content

    return edit


def without(key: str):
    return lambda content: {k: v for k, v in content.items() if k != key}


BAD = [
    (lambda _: b"{", "is no JSON: "),
    (lambda _: b"", "is no JSON: "),
    (lambda _: b"\xff\xfe\x00\xd8", "is no JSON: "),
    (lambda _: b"[" * 100_000, "is no JSON: "),
    (lambda _: [1], "must be an object with 'images', 'annotations' and 'categories'"),
    (without("images"), "'images' must be a list of objects, found nothing"),
    (without("annotations"), "'annotations' must be a list of objects, found nothing"),
    (without("categories"), "'categories' must be a list of objects, found nothing"),
    (lambda c: {**c, "images": {"a": 1}}, "'images' must be a list of objects, found {}"),
    (lambda c: {**c, "annotations": [3]}, "annotations[0] must be an object, found 3"),
    (lambda c: {**c, "annotations": [[1] * 999]}, "found [1, 1, 1, 1, 1,"),
    (changed("images", 1, id="7"), "images[1]: 'id' must be a whole number, found '7'"),
    (changed("images", 1, id=True), "images[1]: 'id' must be a whole number, found True"),
    (changed("images", 2, id="gone"), "images[2]: 'id' must be a whole number, found nothing"),
    (changed("images", 0, file_name=5), "images[0]: 'file_name' must be printable text, found 5"),
    (changed("images", 0, file_name=""), "images[0]: 'file_name' must be printable text"),
    (changed("images", 0, file_name="\ud800"), "images[0]: 'file_name' must be printable text"),
    (changed("images", 0, file_name="a\0b"), "images[0]: 'file_name' must be printable text"),
    (changed("images", 1, id=407), "images[1]: two images have the id 407"),
    (
        changed("images", 1, file_name="000000000407.jpg"),
        "images[1]: two images have the file name '000000000407.jpg'",
    ),
    (changed("annotations", 2, image_id=5), "annotations[2]: there is no image 5"),
    (changed("annotations", 2, image_id=7.0), "'image_id' must be a whole number, found 7.0"),
    (changed("annotations", 0, category_id=1), "annotations[0]: there is no category 1"),
    (changed("annotations", 0, category_id=None), "'category_id' must be a whole number, found n"),
    (changed("categories", 0, id=3), "categories[1]: two categories have the id 3"),
    (changed("categories", 0, name=["x"]), "categories[0]: 'name' must be printable text, found"),
    (changed("categories", 0, name="dog"), "two categories are called 'dog'"),
    *(
        (changed("images", 0, file_name=name), f"images[0]: the file name {name!r} leads out of")
        for name in (
            "../val2017/000000000007.jpg",
            "/etc/passwd",
            "a/../../x.jpg",
            "./000000000407.jpg",
            "a//b.jpg",
            "C:x.jpg",
            "a\\b.jpg",
            "..",
        )
    ),
]


@pytest.mark.parametrize(("edit", "part"), BAD)
def test_annotations_that_are_wrong_are_refused(tmp_path, edit, part):
    error = refusal(build(tmp_path / "coco", edit=edit), tmp_path / "home")
    assert isinstance(error, DatasetError)
    assert error.key == "root"
    assert "'coco': annotations/instances_train2017.json: " in str(error)
    assert part in str(error)
    assert len(error.problem) < 400


def test_parts_that_call_a_category_differently_are_refused(tmp_path):
    edit = changed("categories", 0, name="magazine")
    message = str(refusal(build(tmp_path / "coco", edit=edit), tmp_path / "home"))
    assert "val2017.json: category 90 is 'book' here and 'magazine' in another part" in message


def test_a_part_may_list_only_its_own_categories(tmp_path):
    def edit(content):
        kept = [a for a in content["annotations"] if a["category_id"] != 90]
        return {**content, "annotations": kept, "categories": CATEGORIES[1:]}

    index = opened(build(tmp_path / "coco", edit=edit), tmp_path / "home").index()
    assert index.classes == ["cat", "dog", "book"]
    assert index.labels.sum(axis=0).tolist() == [4, 4, 3]


def test_without_labels_or_with_one_class_there_is_nothing_to_retrieve(tmp_path):
    def empty(content):
        return {**content, "annotations": []}

    root = build(tmp_path / "coco", edit=empty)
    assert len(opened(root, tmp_path / "home").index().keys) == 4
    message = str(refusal(root, tmp_path / "home", parts=["train"]))
    assert "none of the 5 images has a label" in message

    def one(content):
        return {**content, "annotations": [], "categories": CATEGORIES[:1]}

    message = str(refusal(build(tmp_path / "one", edit=one), tmp_path / "home", parts=["train"]))
    assert "at least two categories are needed, found ['book']" in message


def test_the_year_must_be_clear(tmp_path):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    build(root, year=2014, parts=("val",))
    error = refusal(root, home)
    assert error.key == "year"
    assert "has annotations of 2014 and 2017" in str(error)
    assert opened(root, home, year=2017).index().keys[-1].startswith("val2017/")
    assert len(opened(root, home, year=2014, parts=["val"]).index().keys) == 4
    message = str(refusal(root, home, year=2014))
    assert "'annotations/instances_train2014.json' is missing; there is " in message
    assert "parts: [val]" in message


def test_annotations_that_are_not_there_are_asked_for(tmp_path):
    home = tmp_path / "home"
    (tmp_path / "empty").mkdir()
    message = "there is no annotations/instances_train2017.json"
    assert message in str(refusal(tmp_path / "empty", home))
    alone = build(tmp_path / "alone", parts=("val",))
    assert "'annotations/instances_train2017.json' is missing; there is 'annotations/inst" in str(
        refusal(alone, home)
    )
    assert "is missing" in str(refusal(alone, home, year=2014, parts=["val"]))
    assert "its root does not exist" in str(refusal(tmp_path / "nowhere", home))
    for name in ("one", "two"):
        build(tmp_path / "several" / name)
    message = str(refusal(tmp_path / "several", home))
    assert "has annotations in 'one/' and in 'two/'; give one of them as root" in message
    build(tmp_path / "several")
    assert len(opened(tmp_path / "several", home).index().keys) == 8


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"year": 2015}, "year: must be one of 2014, 2017"),
        ({"parts": []}, "parts: list should have at least 1 item"),
        ({"parts": ["train", "train"]}, "parts: names a part twice"),
        ({"parts": ["test"]}, "must be one of train, val"),
        ({"store_size": 4}, "store_size: "),
        ({"duplicates": "keep"}, "duplicates: unknown key"),
        ({"protocol": {"query_total": 0}}, "protocol.query_total: "),
    ],
)
def test_a_wrong_option_is_explained(tmp_path, options, part):
    assert part in str(refusal(tmp_path, tmp_path / "home", **options))


@pytest.mark.parametrize("name", ["train2017", "annotations", "train2017/000000000007.jpg"])
def test_links_out_of_the_folder_are_refused_unless_meant(tmp_path, name):
    root, home = build(tmp_path / "coco"), tmp_path / "home"
    plain = opened(root, home).identity()
    moved = (root / name).rename(tmp_path / f"moved{Path(name).suffix}")
    (root / name).symlink_to(moved)
    message = str(refusal(root, home))
    assert "leads out of the folder" in message
    assert "set follow_links: true" in message
    assert opened(root, home, follow_links=True).identity() == plain


def test_a_damaged_image_is_named(tmp_path):
    root = build(tmp_path / "coco")
    (root / "val2017" / "000000000007.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"1 image of 8 .*: val2017/000000000007\.jpg"):
        opened(root, tmp_path / "home").images()


def test_a_damaged_zip_is_refused(tmp_path):
    root = build(tmp_path / "coco")
    packed = zipped(root, tmp_path / "coco.zip")
    data = bytearray(packed.read_bytes())
    data[data.index(b'"images"')] ^= 1
    packed.write_bytes(data)
    error = refusal(packed, tmp_path / "home")
    assert error.key == "root"
    assert "annotations cannot be read: annotations/instances_train2017.json (Bad" in str(error)


@pytest.mark.parametrize("name", ["../x.jpg", "annotations/../../instances_val2017.json"])
def test_a_hostile_zip_is_refused(tmp_path, name):
    packed = zipped(build(tmp_path / "coco"), tmp_path / "coco.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, b"x")
    assert "leads out of it" in str(refusal(packed, tmp_path / "home"))


# ---- real images -----------------------------------------------------------------------------

MINI = Path(__file__).parents[3] / "shared" / "data" / "coco-mini.zip"


@pytest.mark.skipif(not MINI.is_file(), reason="no sample of real images")
def test_a_sample_of_the_real_format_is_read(tmp_path):
    dataset = opened(MINI, tmp_path / "home", store_size=32)
    index = dataset.index()
    assert len(index.keys) == 159
    assert {key.partition("/")[0] for key in index.keys} == {"train2017", "val2017"}
    assert index.labels.shape == (159, 80)
    assert (index.classes[0], index.classes[79]) == ("person", "toothbrush")
    with zipfile.ZipFile(MINI) as archive:
        for part in ("train", "val"):
            content = json.loads(archive.read(f"coco-mini/annotations/instances_{part}2017.json"))
            titles = {c["id"]: c["name"] for c in content["categories"]}
            seen = {image["id"]: set() for image in content["images"]}
            for annotation in content["annotations"]:
                seen[annotation["image_id"]].add(titles[annotation["category_id"]])
            for image in content["images"]:
                row = index.labels[index.keys.index(f"{part}2017/{image['file_name']}")]
                assert {index.classes[c] for c in np.flatnonzero(row)} == seen[image["id"]]
    store = dataset.images()
    assert store.array.shape == (159, 32, 32, 3)
    assert store.array.std(axis=(1, 2, 3)).min() > 5
    sizes = {name: len(rows) for name, rows in vars(dataset.splits()).items()}
    assert (sizes["query"], sizes["validation_query"], sizes["train"]) == (16, 16, 127)
