"""Datasets: what is listed, counted, fingerprinted and refused."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from retrieval.datasets import DATASETS, open_dataset
from retrieval.datasets.batches import NAMES
from retrieval.datasets.cifar10 import CLASSES
from retrieval.errors import DatasetError, InputError, UnknownNameError


def picture(seed: int, size: tuple[int, int] = (9, 9), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def tree(root: Path, classes=("cat", "dog", "eel"), n: int = 10, parts=("",)) -> Path:
    seed = 0
    for part in parts:
        for title in classes:
            folder = root / part / title
            folder.mkdir(parents=True)
            for number in range(n):
                (folder / f"{number:03d}.png").write_bytes(picture(seed))
                seed += 1
    return root


def zipped(root: Path, target: Path, *, around: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, f"{around}{path.relative_to(root).as_posix()}")
    return target


def refusal(given, home: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(given, home=home).splits()
    return str(caught.value)


# ---- every dataset ---------------------------------------------------------------------------


def test_every_dataset_describes_itself():
    assert DATASETS.broken() == {}
    assert {"cifar10", "coco", "digits", "folder", "imagenet100", "nuswide21"} <= set(DATASETS)
    for name in DATASETS:
        described = DATASETS.get(name).describe()
        assert described["name"] == name
        assert all(described[key] for key in ("version", "what", "source", "licence", "obtain"))


def test_a_listing_imports_nothing_heavy(tmp_path):
    tree(tmp_path / "photos")
    code = (
        "import sys; from pathlib import Path; from retrieval.datasets import open_dataset\n"
        f"for given in ('digits', {{'folder': {str(tmp_path / 'photos')!r}}}):\n"
        f"    data = open_dataset(given, home=Path({str(tmp_path)!r}))\n"
        "    data.identity(), data.splits()\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'pandas', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("digts", "unknown dataset 'digts'; did you mean 'digits'?"),
        ({"root": "x"}, "a dataset needs a name"),
        ({"name": 3}, "name: a dataset needs a name (given: 3)"),
        ({"name": "digits", 1: 2}, "1: keys should be strings"),
        (5, "and options}, {folder: PATH} or {manifest: PATH} (given: 5)"),
        (None, "and options}, {folder: PATH} or {manifest: PATH} (given: None)"),
        (["digits"], "{manifest: PATH} (given: ['digits'])"),
        ({"folder": None}, "root: input should be a valid string (given: None)"),
        ({"folder": "x", "root": "y"}, "root: folder: PATH says where the images are"),
        ({"folder": "~nobody-of-this-name/x"}, "root: there is no such user's home (given: '~no"),
        (
            {"name": "digits", "protocol": {"split_file": "~nobody-of-this-name/x"}},
            "protocol.split_file: there is no such user's home",
        ),
        ({"name": "digits", "protocl": {}}, "protocl: unknown key; did you mean 'protocol'?"),
        (
            {"name": "digits", "protocol": {"query_per_clas": 3}},
            "protocol.query_per_clas: unknown key; did you mean 'query_per_class'",
        ),
        ({"name": "digits", "protocol": {"split_seed": "1"}}, "protocol.split_seed: "),
        ({"name": "digits", "protocol": {"query_per_class": 0}}, "greater than or equal to 1"),
        ({"name": "digits", "protocol": {"at": -1}}, "protocol.at: must be 'all' or a whole"),
        ({"name": "digits", "protocol": {"at": True}}, "must be 'all' or a whole number"),
        ({"name": "digits", "protocol": {"at": "al"}}, "must be 'all' or a whole number"),
        (
            {"name": "digits", "protocol": {"train_total": 500}},
            "has one label an image and is split class by class; give train_per_class instead",
        ),
        ({"name": "cifar10"}, "root: this key is required"),
        ({"name": "folder", "root": 3}, "root: input should be a valid string (given: 3)"),
        ({"folder": "x", "duplicates": "ignore"}, "must be one of refuse, first, keep"),
        ({"folder": "/nowhere/at/all"}, "its root does not exist (given: '/nowhere/at/all')"),
    ],
)
def test_a_wrong_option_is_explained(given, part, tmp_path):
    assert part in refusal(given, tmp_path)


def test_a_missing_root_says_how_to_get_the_data(tmp_path):
    assert "cifar-10-python.tar.gz" in refusal({"name": "cifar10"}, tmp_path)


def test_identity_tells_apart_all_that_changes_the_splits(tmp_path):
    def identity(**protocol):
        return open_dataset({"name": "digits", "protocol": protocol}, home=tmp_path).identity()

    plain = identity()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["protocol"]["split_seed"] == 0
    assert plain["protocol"]["query_per_class"] == 30
    assert identity(at=100) == plain
    different = [identity(split_seed=1), identity(query_per_class=20), identity(train_per_class=9)]
    different += [identity(validation_per_class=5), identity(validation_gallery_per_class=5)]
    assert len({json.dumps(one) for one in (plain, *different)}) == 6
    ids = [one["protocol"]["id"] for one in (plain, *different)]
    assert ids[0] == "digits-30"
    assert len(set(ids)) == 6


# ---- digits ----------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn(tmp_path):
    reference = load_digits()
    dataset = open_dataset("digits", home=tmp_path)
    index, store = dataset.index(), dataset.images()
    assert index.labels.tolist() == reference.target.tolist()
    assert index.classes == [str(d) for d in range(10)]
    assert store.array.shape == (1797, 8, 8, 3)
    grey = np.round(reference.images * 255 / 16)
    assert all(np.array_equal(store.array[..., c], grey) for c in range(3))
    assert store.labels.tolist() == index.labels.tolist()
    assert dataset.default_augmentation.flip is False


def test_digits_protocol(tmp_path):
    dataset = open_dataset("digits", home=tmp_path)
    splits, labels = dataset.splits(), dataset.index().labels
    assert np.bincount(labels[splits.query]).tolist() == [30] * 10
    assert np.bincount(labels[splits.validation_query]).tolist() == [30] * 10
    assert len(splits.gallery) == 1797 - 300
    assert len(splits.train) == 1797 - 600
    assert np.array_equal(splits.validation_gallery, splits.train)
    assert dataset.protocol.at == "all"


# ---- folder ----------------------------------------------------------------------------------


def test_a_folder_is_listed_by_class(tmp_path):
    root = tree(tmp_path / "photos")
    (root / "notes.txt").write_text("x")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "cat" / "thumbs.db").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "cat" / "young").mkdir()
    (root / "cat" / "young" / "a.PNG").write_bytes(picture(99))
    (root / "loose.png").write_bytes(picture(98))
    dataset = open_dataset({"folder": root}, home=tmp_path / "home")
    index = dataset.index()
    assert index.classes == ["cat", "dog", "eel"]
    assert np.bincount(index.labels).tolist() == [11, 10, 10]
    assert "cat/young/a.PNG" in index.keys
    assert index.ignored == {"hidden": 2, "not an image": 2, "outside the class folders": 1}
    store = dataset.images()
    assert store.keys == index.keys
    for number in (0, 17, 30):
        with Image.open(root / index.keys[number]) as image:
            assert np.array_equal(store.array[number], np.asarray(image))
    splits = dataset.splits()
    assert np.bincount(index.labels[splits.query]).tolist() == [1, 1, 1]
    assert np.bincount(index.labels[splits.validation_query]).tolist() == [1, 1, 1]
    assert np.bincount(index.labels[splits.train]).tolist() == [9, 8, 8]


def test_parts_are_pooled(tmp_path):
    root = tree(tmp_path / "photos", parts=("train", "Test"), n=4)
    index = open_dataset({"folder": str(root)}, home=tmp_path / "home").index()
    assert index.classes == ["cat", "dog", "eel"]
    assert len(index.keys) == 24
    assert index.keys[0] == "Test/cat/000.png"


def test_classes_may_be_called_like_parts(tmp_path):
    root = tree(tmp_path / "vehicles", classes=("car", "plane", "train"))
    index = open_dataset({"folder": str(root)}, home=tmp_path / "home").index()
    assert index.classes == ["car", "plane", "train"]
    tree(root / "test", classes=("car",))
    message = refusal({"folder": str(root)}, tmp_path / "home")
    assert "has folders of parts (test, train) beside others (car, plane)" in message


@pytest.mark.parametrize("around", ["", "photos/", "a/b/"])
def test_a_zip_is_the_same_dataset_as_its_folder(tmp_path, around):
    root = tree(tmp_path / "photos", parts=("train", "test"), n=6)
    packed = zipped(root, tmp_path / "photos.zip", around=around)
    folder = open_dataset({"folder": root}, home=tmp_path / "home")
    archive = open_dataset({"folder": packed}, home=tmp_path / "other")
    assert archive.identity() == folder.identity()
    assert archive.index().keys == folder.index().keys
    assert str(tmp_path) not in json.dumps(folder.identity())
    assert np.array_equal(archive.images().array, folder.images().array)
    assert archive.images().folder.name == folder.images().folder.name


def test_any_change_of_the_files_changes_the_fingerprint(tmp_path):
    root, home = tree(tmp_path / "photos"), tmp_path / "home"

    def now() -> str:
        return open_dataset({"folder": root}, home=home).index().fingerprint

    seen = [now()]
    assert now() == seen[0]
    path = root / "cat" / "003.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # the same size
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.append(now())
    path.rename(root / "cat" / "zzz.png")
    seen.append(now())
    (root / "dog" / "000.png").unlink()
    seen.append(now())
    (root / "eel" / "x.png").write_bytes(picture(77))
    seen.append(now())
    (root / "eel").rename(root / "fox")
    seen.append(now())
    assert len(set(seen)) == 6
    assert open_dataset({"folder": root}, home=tmp_path / "new").index().fingerprint == seen[-1]


def test_a_kept_listing_is_used_and_a_damaged_one_is_not(tmp_path, monkeypatch):
    from retrieval.datasets import files

    root, home = tree(tmp_path / "photos"), tmp_path / "home"
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**12))  # as if the files were old
    fingerprint = open_dataset({"folder": root}, home=home).index().fingerprint
    (kept,) = (home / "datasets").iterdir()

    with monkeypatch.context() as patch:
        patch.setattr(files._Folder, "_bytes", None)  # reading would fail
        assert open_dataset({"folder": root}, home=home).index().fingerprint == fingerprint
        (root / "cat" / "000.png").touch()
        with pytest.raises(TypeError):
            open_dataset({"folder": root}, home=home).index()
    content = kept.read_bytes()
    for damaged in (b"", b"{}", content[:-9], content.replace(b'"crcs": [', b'"crcs": [1')):
        kept.write_bytes(damaged)
        assert open_dataset({"folder": root}, home=home).index().fingerprint == fingerprint
    assert [path.name for path in (home / "datasets").iterdir()] == [kept.name]


def test_a_file_read_within_a_clock_tick_of_its_change_is_read_again(tmp_path):
    from retrieval.datasets.files import ListingCache

    root, home = tree(tmp_path / "photos"), tmp_path / "home"
    open_dataset({"folder": root}, home=home).index()
    kept = ListingCache(home, root, "folder-False").read()
    assert set(kept["stamps"][1]) == {-1}


def test_a_home_that_cannot_be_written_to_does_not_matter_for_a_listing(tmp_path):
    root = tree(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    assert len(open_dataset({"folder": root}, home=tmp_path / "file").index().keys) == 30


def test_an_empty_class_is_named(tmp_path):
    root = tree(tmp_path / "photos")
    (root / "fox" / "young").mkdir(parents=True)
    assert "the class folder 'fox' has no images" in refusal({"folder": root}, tmp_path / "home")
    packed = zipped(root, tmp_path / "photos.zip", around="photos/")
    assert "the class folder 'photos/fox' has no" in refusal({"folder": packed}, tmp_path / "home")


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    assert "no images in class folders were found" in refusal(
        {"folder": tmp_path / "none"}, tmp_path / "home"
    )
    one = tree(tmp_path / "one", classes=("cat",))
    assert "at least two classes are needed, found 1" in refusal(
        {"folder": one}, tmp_path / "home"
    )
    around = tree(tmp_path / "around" / "photos")
    (around / "stray.png").write_bytes(picture(99))
    assert "'photos/stray.png' lies beside the folders of other images" in refusal(
        {"folder": tmp_path / "around"}, tmp_path / "home"
    )
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    message = refusal({"folder": tmp_path / "x.tar.gz"}, tmp_path / "home")
    assert "is neither a folder nor a zip" in message
    assert "unpack it first" in message


def test_a_class_with_too_few_images_is_refused(tmp_path):
    root = tree(tmp_path / "photos")
    (root / "fox").mkdir()
    for number in range(2):
        (root / "fox" / f"{number}.png").write_bytes(picture(500 + number))
    message = refusal({"folder": root}, tmp_path / "home")
    assert "class 'fox' has 2 images, the protocol needs 3" in message


def test_a_corrupt_image_is_named_and_leaves_no_store(tmp_path):
    root, home = tree(tmp_path / "photos"), tmp_path / "home"
    jpeg = picture(3, (60, 60), "JPEG")
    (root / "cat" / "a.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "dog" / "b.png").write_bytes(b"no image")
    dataset = open_dataset({"folder": root}, home=home)
    with pytest.raises(DatasetError) as caught:
        dataset.images()
    message = str(caught.value)
    assert message.startswith("2 images of 32 cannot be read: cat/a.jpg (")
    assert "; dog/b.png (no image that can be decoded)" in message
    assert [path.suffix for path in (home / "images").iterdir()] == [".lock"]


def test_a_file_that_changes_after_the_listing_is_refused(tmp_path):
    root = tree(tmp_path / "photos")
    dataset = open_dataset({"folder": root}, home=tmp_path / "home")
    dataset.identity()
    (root / "cat" / "001.png").write_bytes(picture(55))
    with pytest.raises(DatasetError, match=r"cat/001.png \(changed since it was listed\)"):
        dataset.images()


@pytest.mark.parametrize("duplicates", ["refuse", "first", "keep"])
def test_copies_of_an_image(tmp_path, duplicates):
    root, home = tree(tmp_path / "photos"), tmp_path / "home"
    (root / "cat" / "copy.png").write_bytes((root / "cat" / "004.png").read_bytes())
    given = {"folder": root, "duplicates": duplicates}
    if duplicates == "refuse":
        message = refusal(given, home)
        assert (
            "there twice with equal content, the first: 'cat/004.png' and 'cat/copy.p" in message
        )
        assert "set duplicates: first" in message
    else:
        dataset = open_dataset(given, home=home)
        keys = dataset.index().keys
        assert ("cat/copy.png" in keys) == (duplicates == "keep")
        assert "cat/004.png" in keys
        assert dataset.index().ignored.get("a copy of another image", 0) == 31 - len(keys)
        assert len(dataset.images()) == len(keys)
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "004.png").read_bytes())
    if duplicates == "keep":
        assert len(open_dataset(given, home=home).index().keys) == 32
    else:
        assert "in two classes" in refusal(given, home)


def test_equal_checksums_are_no_proof_of_a_copy(tmp_path, monkeypatch):
    from retrieval.datasets import files

    root = tree(tmp_path / "photos")
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.write_bytes(b"%05d" % number)
    monkeypatch.setattr(files.zlib, "crc32", lambda data: 7)
    assert len(open_dataset({"folder": root}, home=tmp_path / "home").index().keys) == 30


def test_links_out_of_the_folder_are_refused_unless_meant(tmp_path):
    root, home = tree(tmp_path / "photos"), tmp_path / "home"
    elsewhere = tree(tmp_path / "elsewhere", classes=("fox",))
    tree(tmp_path / "more", classes=("cow",), n=1)
    (elsewhere / "fox" / "000.png").write_bytes(picture(1234))
    for number in range(1, 10):
        (elsewhere / "fox" / f"{number:03d}.png").write_bytes(picture(1234 + number))
    (root / "fox").symlink_to(elsewhere / "fox")
    message = refusal({"folder": root}, home)
    assert "the link 'fox' leads out of the folder" in message
    assert "set follow_links: true" in message
    followed = open_dataset({"folder": root, "follow_links": True}, home=home)
    assert followed.index().classes == ["cat", "dog", "eel", "fox"]
    assert len(followed.images()) == 40
    (root / "fox").unlink()
    (root / "cat" / "passwd.png").symlink_to("/etc/passwd")
    assert "the link 'cat/passwd.png' leads out" in refusal({"folder": root}, home)
    (root / "cat" / "passwd.png").unlink()
    (root / "cat" / "gone.png").symlink_to(root / "nothing.png")
    assert "leads nowhere" in refusal({"folder": root}, home)
    (root / "cat" / "gone.png").unlink()
    (root / "cat" / "round").symlink_to(root)
    assert "leads round in a circle" in refusal({"folder": root}, home)


def member(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (member("../evil.png"), "member '../evil.png' leads out of it"),
        (member("cat/../../evil.png"), "leads out of it"),
        (member("/etc/evil.png"), "leads out of it"),
        (member("C:evil.png"), "leads out of it"),
        (member("cat\\evil.png"), "leads out of it"),
        (member("../evil.txt"), "leads out of it"),
        (member("cat/link.png", 0o120777), "member 'cat/link.png' is a link"),
        (member("cat/000.png"), "two members 'cat/000.png'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_zip_is_refused(tmp_path, extra, part):
    packed = zipped(tree(tmp_path / "photos"), tmp_path / "photos.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(extra, b"/etc/passwd")
    assert part in refusal({"folder": packed}, tmp_path / "home")


def test_a_damaged_zip_is_refused(tmp_path):
    packed = zipped(tree(tmp_path / "photos"), tmp_path / "photos.zip")
    data = bytearray(packed.read_bytes())
    data[100] ^= 0xFF
    packed.write_bytes(data)
    with pytest.raises(DatasetError, match="1 image of 30 cannot be read"):
        open_dataset({"folder": packed}, home=tmp_path / "home").images()
    packed.write_bytes(data[: len(data) // 2])
    assert "is a zip that is cut off or damaged" in refusal({"folder": packed}, tmp_path / "home")


@pytest.mark.parametrize("name", ["new\nline.png", "tab\t.png", "del\x7f.png"])
def test_a_name_that_no_list_can_hold_is_refused(tmp_path, name):
    photos = tree(tmp_path / "photos")
    (photos / "cat" / name).write_bytes(picture(99))
    assert f"the name {'cat/' + name!r} has control characters" in refusal(
        {"folder": photos}, tmp_path / "home"
    )


def test_a_zip_that_may_not_be_read_is_not_called_something_else(tmp_path, monkeypatch):
    packed = zipped(tree(tmp_path / "photos"), tmp_path / "photos.zip")
    opened = io.open

    def forbidding(file, *args, **kwargs):  # an administrator may read everything
        if str(file) == str(packed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", forbidding)
    monkeypatch.setattr(builtins, "open", forbidding)
    assert "its root cannot be read: Permission denied" in refusal(
        {"folder": packed}, tmp_path / "home"
    )


def test_a_zip_that_python_cannot_unpack_is_refused(tmp_path):
    packed = zipped(tree(tmp_path / "photos"), tmp_path / "photos.zip")
    data = bytearray(packed.read_bytes())
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = data.index(b"cat/000.png", data.index(signature))
        header = data.rindex(signature, 0, start)
        data[header + place] = 99  # a way of compression that does not exist
    packed.write_bytes(data)
    with pytest.raises(DatasetError, match=r"1 image of 30 .*cat/000\.png \(That compression"):
        open_dataset({"folder": packed}, home=tmp_path / "home").images()


def test_a_damaged_member_that_looks_like_a_copy_is_named(tmp_path):
    root = tree(tmp_path / "photos")
    (root / "cat" / "copy.png").write_bytes((root / "cat" / "000.png").read_bytes())
    packed = zipped(root, tmp_path / "photos.zip")
    data = bytearray(packed.read_bytes())
    data[data.index(b"cat/copy.png") + 30] ^= 0xFF
    packed.write_bytes(data)
    message = refusal({"folder": packed}, tmp_path / "home")
    assert "an image cannot be read: cat/copy.png (Bad CRC-32" in message


@pytest.mark.parametrize("left", [None, b"something else"])
def test_a_zip_that_goes_after_the_listing_is_refused(tmp_path, left):
    packed = zipped(tree(tmp_path / "photos"), tmp_path / "photos.zip")
    dataset = open_dataset({"folder": packed}, home=tmp_path / "home")
    dataset.index()
    packed.unlink()
    if left is not None:
        packed.write_bytes(left)
    with pytest.raises(DatasetError, match="dataset 'folder': the zip cannot be read: "):
        dataset.images()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("where", [b"cat/f\xff.png", b"f\xff/1.png"])
def test_a_name_that_is_no_text_is_refused(tmp_path, where):
    root = tree(tmp_path / "photos")
    path = root / os.fsdecode(where)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(picture(99))
    assert "is not UTF-8; rename it" in refusal({"folder": root}, tmp_path / "home")


def test_class_folders_that_differ_in_case_are_two_classes(tmp_path):
    root = tree(tmp_path / "letters", classes=("A", "B", "a"))
    if len(list(root.iterdir())) < 3:
        pytest.skip("this file system does not tell them apart")
    index = open_dataset({"folder": root}, home=tmp_path / "home").index()
    assert index.classes == ["A", "B", "a"]
    assert np.bincount(index.labels).tolist() == [10, 10, 10]


def test_a_split_file_fixes_the_splits_and_enters_the_identity(tmp_path):
    root, home = tree(tmp_path / "photos"), tmp_path / "home"
    plain = open_dataset({"folder": root}, home=home)
    keys = plain.index().keys
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"query": keys[::10], "gallery": keys[1::2], "train": keys[1::2]}))
    given = {"folder": root, "protocol": {"split_file": str(path)}}
    dataset = open_dataset(given, home=home)
    assert [keys[row] for row in dataset.splits().query] == keys[::10]
    assert dataset.identity() != plain.identity()
    assert str(path) not in json.dumps(dataset.identity())
    assert dataset.identity()["protocol"]["query_fraction"] is None
    path.write_text(
        json.dumps({"query": keys[1::10], "gallery": keys[1::2], "train": keys[3:9:2]})
    )
    assert open_dataset(given, home=home).identity() != dataset.identity()
    assert "3 images (first: 'cat/001.png') are both in query and in gallery" in refusal(
        given, home
    )
    path.unlink()
    assert "protocol.split_file: the split file cannot be read" in refusal(given, home)


# ---- cifar10 ---------------------------------------------------------------------------------

SMALL = {
    "query_per_class": 2,
    "train_per_class": 3,
    "validation_per_class": 1,
    "validation_gallery_per_class": 2,
}


def cifar(root: Path, **options):
    return {"name": "cifar10", "root": root, "protocol": SMALL, **options}


def batches(root: Path, *, binary: bool = False, protocol: int = 2) -> tuple[Path, np.ndarray]:
    root.mkdir(parents=True)
    pixels = np.random.default_rng(2).integers(0, 256, (6, 20, 3072), dtype=np.uint8)
    for name, data in zip(NAMES, pixels, strict=True):
        labels = [i % 10 for i in range(20)]
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (root / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {
                b"data": data,
                b"labels": labels,
                b"batch_label": b"x",
                b"filenames": [b"y"],
            }
            if protocol > 2:
                content = {k.decode(): v for k, v in content.items()}
            (root / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return root, pixels.reshape(120, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_batches_are_read(tmp_path, protocol):
    _, pixels = batches(tmp_path / "data" / "cifar-10-batches-py", protocol=protocol)
    for root in (tmp_path / "data", tmp_path / "data" / "cifar-10-batches-py"):
        dataset = open_dataset(cifar(root), home=tmp_path / f"home-{root.name}")
        index = dataset.index()
        assert index.labels.tolist() == [i % 10 for i in range(20)] * 6
        assert index.classes == list(CLASSES)
        assert index.keys[21] == "data_batch_2/00001"
        assert np.array_equal(dataset.images().array, pixels)
        sizes = {name: len(rows) for name, rows in vars(dataset.splits()).items()}
        assert sizes == {
            "train": 30,
            "validation_query": 10,
            "validation_gallery": 20,
            "query": 20,
            "gallery": 100,
        }


def test_batches_written_by_python_2_are_read(tmp_path):
    # As Python 2 and its numpy wrote them: bytes for text, numpy.core, protocol 2.
    root, pixels = batches(tmp_path / "data")
    for name in NAMES:
        content = (root / name).read_bytes()
        assert b"cnumpy._core.multiarray" in content or b"cnumpy.core.multiarray" in content
        (root / name).write_bytes(content.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert np.array_equal(open_dataset(cifar(root), home=tmp_path / "home").images().array, pixels)


def test_binary_batches_are_the_same_dataset_as_pickled_ones(tmp_path):
    root, pixels = batches(tmp_path / "bin" / "cifar-10-batches-bin", binary=True)
    dataset = open_dataset(cifar(tmp_path / "bin"), home=tmp_path / "home")
    assert np.array_equal(dataset.images().array, pixels)
    pickled, _ = batches(tmp_path / "py")
    assert open_dataset(cifar(pickled), home=tmp_path / "home").identity() == dataset.identity()
    again = open_dataset(cifar(root), home=tmp_path / "home")
    assert again.identity() == dataset.identity()
    with (root / "data_batch_3.bin").open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"?")
    changed = open_dataset(cifar(root), home=tmp_path / "home")
    assert changed.identity() != dataset.identity()


class Evil:
    """What a hostile pickle runs when it is loaded."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "call", [os.system, eval, exec, os.mkdir, getattr, np.load, np.frombuffer]
)
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, call, protocol):
    root, _ = batches(tmp_path / "data")
    trace = tmp_path / "trace"
    argument = {
        os.system: f"touch {trace}",
        eval: f"open({str(trace)!r}, 'w')",
        exec: f"open({str(trace)!r}, 'w')",
    }.get(call, str(trace))
    content = {b"data": Evil(call, argument), b"labels": [0]}
    (root / "data_batch_4").write_bytes(pickle.dumps(content, protocol=protocol))
    message = refusal(cifar(root), tmp_path / "home")
    assert "data_batch_4: no batch that can be read safely: it asks for " in message
    assert "which is not allowed" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no batch that can be read safely"),
        (b"\x80\x04garbage", "no batch that can be read safely"),
        (pickle.dumps([1]), "it holds no mapping"),
        (pickle.dumps({b"data": [1], b"labels": [0]}), "'data' is no array (n, 3072) of bytes"),
        (
            pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 0]}),
            "'data' is no array",
        ),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 0]}, 2),
            "an array is not made of bytes",
        ),
        (
            pickle.dumps({b"data": np.array([[None] * 3072]), b"labels": [0]}, 2),
            "an array is not made of bytes",
        ),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}),
            "'labels' are not 2 class numbers",
        ),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
            "class number 10, there are 10 classes",
        ),
    ],
)
def test_a_damaged_batch_is_refused(tmp_path, content, part):
    root, _ = batches(tmp_path / "data")
    (root / "test_batch").write_bytes(content)
    message = refusal(cifar(root), tmp_path / "home")
    assert "dataset 'cifar10': test_batch: " in message
    assert part in message


def test_missing_batches_are_named(tmp_path):
    root, _ = batches(tmp_path / "data")
    (root / "data_batch_2").unlink()
    (root / "test_batch").unlink()
    message = refusal(cifar(root), tmp_path / "home")
    assert "batches are missing: data_batch_2, test_batch" in message


def test_wrong_counts_are_refused_unless_sizes_are_given(tmp_path):
    root = tree(tmp_path / "cifar10", ("cat", "deer", "dog"), parts=("train", "test"), n=5)
    given = {"name": "cifar10", "root": str(root)}
    message = refusal(given, tmp_path / "home")
    assert "expected 60000 images, 6000 in each of 10 classes" in message
    assert "found 30 in 3 classes, 10 of them in 'cat'" in message
    assert "give protocol.query_per_class and protocol.train_per_class" in message
    assert "expected 60000" in refusal({**given, "protocol": {"at": 100}}, tmp_path / "home")
    assert len(open_dataset(cifar(root), home=tmp_path / "home").splits().query) == 6
    large = {**SMALL, "train_per_class": 9}
    message = refusal({**given, "protocol": large}, tmp_path / "home")
    assert "class 'cat' has 10 images, the protocol needs 14" in message


@pytest.mark.parametrize(
    ("title", "part"),
    [("Cat", "'Cat' is no class of CIFAR-10; did you mean 'cat'?"), ("eel", "'eel' is no class")],
)
def test_a_class_that_cifar_does_not_have_is_named(tmp_path, title, part):
    root = tree(tmp_path / "cifar10", ("bird", "dog", title))
    message = refusal(cifar(root), tmp_path / "home")
    assert part in message
    assert "known: airplane, automobile, bird" in message


def test_the_literatures_counts_come_out(tmp_path):
    # The real size without real images: a listing reads checksums, never pixels.
    packed = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for part, n in (("train", 5000), ("test", 1000)):
            for title in CLASSES:
                for number in range(n):
                    archive.writestr(f"cifar10/{part}/{title}/{number:04d}.jpg", b"")
    dataset = open_dataset({"name": "cifar10", "root": str(packed)}, home=tmp_path / "home")
    splits, labels = dataset.splits(), dataset.index().labels
    expected = {
        "query": 100,
        "gallery": 5900,
        "train": 500,
        "validation_query": 100,
        "validation_gallery": 200,
    }
    for name, per_class in expected.items():
        assert np.bincount(labels[getattr(splits, name)]).tolist() == [per_class] * 10
    held_out = np.union1d(splits.validation_query, splits.validation_gallery)
    assert not np.intersect1d(held_out, splits.train).size
    assert np.isin(held_out, splits.gallery).all()
    assert dataset.protocol.id == "cifar10-1"
    assert dataset.protocol.at == "all"


def test_unknown_dataset_is_an_unknown_name(tmp_path):
    with pytest.raises(UnknownNameError):
        open_dataset("imagenet", home=tmp_path)
