"""Image lists with multi-hot labels: what is read, what is a leak, and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.datasets import files, open_dataset
from retrieval.datasets.hashlist import read_list
from retrieval.errors import DatasetError, InputError

COLOURS = [(20 * n, 250 - 20 * n, 7 * n) for n in range(12)]

#: Labels of twelve images: some have several.
MULTI = ["0010", "1100", "0001", "1000", "0110", "0100", "1111", "0010", "0001", "1001"]
MULTI += ["0100", "1000"]
SINGLE = ["1000", "0100", "0010", "0001"] * 3

QUERY, DATABASE, TRAIN = range(2), range(2, 12), range(2, 8)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format="PNG")
    return stream.getvalue()


def name(number: int) -> str:
    return f"pictures/{number % 2}/{number:03d}.png"


def line(number: int, labels=MULTI, beginning: str = "") -> str:
    return f"{beginning}{name(number)} {' '.join(labels[number])}"


def build(root: Path, labels=MULTI, beginning: str = "", **lists: range) -> Path:
    """Write twelve images and their lists; more lists, or others, by keyword."""
    for number, colour in enumerate(COLOURS):
        path = root / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    for title, numbers in {"test": QUERY, "database": DATABASE, "train": TRAIN, **lists}.items():
        rows = [line(number, labels, beginning) for number in numbers]
        (root / f"{title}.txt").write_text("\n".join(rows) + "\n")
    return root


def opened(root: Path, home: Path, **options):
    return open_dataset({"name": "hashlist", "root": str(root), **options}, home=home)


def refusal(root: Path, home: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(root, home, **options).splits()
    return caught.value


def split_keys(dataset) -> dict[str, set[str]]:
    keys = dataset.index().keys
    return {role: {keys[row] for row in rows} for role, rows in vars(dataset.splits()).items()}


def append(root: Path, title: str, *rows: str) -> None:
    with (root / f"{title}.txt").open("a") as stream:
        stream.writelines(f"{row}\n" for row in rows)


# ---- one list --------------------------------------------------------------------------------


def test_a_list_is_read_line_by_line():
    data = b"a/1.jpg 0 1 0\r\n\n b.jpg\t1  0 0 \n\xc3\xa9.jpg 1 1 1"
    written, labels, lines = read_list(data)
    assert written == ["a/1.jpg", "b.jpg", "é.jpg"]
    assert labels.tolist() == [[0, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert labels.dtype == np.uint8
    assert lines == [1, 3, 4]


def test_a_mark_of_the_encoding_is_no_part_of_the_first_path():
    assert read_list(b"\xef\xbb\xbfa.jpg 0 1\n")[0] == ["a.jpg"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_blanks_between_columns_are_read_as_a_plain_loop_reads_them(data):
    width = data.draw(st.integers(2, 5))
    blank = st.sampled_from([" ", "\t", "  ", " \t "])
    end = st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\n  \n"])
    text = ""
    for number in range(data.draw(st.integers(1, 6))):
        labels = data.draw(st.lists(st.sampled_from("01"), min_size=width, max_size=width))
        text += f"{number}.jpg" + "".join(data.draw(blank) + label for label in labels)
        text += data.draw(end)
    expected = [row.split() for row in text.split("\n") if row.strip()]
    numbers = [n for n, row in enumerate(text.split("\n"), start=1) if row.strip()]
    written, found, lines = read_list(text.encode())
    assert written == [tokens[0] for tokens in expected]
    assert found.tolist() == [[int(token) for token in tokens[1:]] for tokens in expected]
    assert lines == numbers


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1: lists no image"),
        (b" \n\r\n", "1: lists no image"),
        (b"a 0 1\nb 0 1 0\n", "2: has 3 columns of labels, line 1 has 2"),
        (b"\na 0 1\nb 0\n", "3: has 1 columns of labels, line 2 has 2"),
        (b"a 0 1 1\nb 0 1\nc 1 1\n", "2: has 2 columns of labels, line 1 has 3 (2 such lines)"),
        (b"a 0 1\nb\n", "2: has no columns of labels"),
        (b"a\nb\n", "1: has no columns of labels (2 such lines)"),
        (b"a 0 1\nb 0 2\n", "2: labels must be 0 or 1, found '2'"),
        (b"a 0 1\nb 0 -1\n", "2: labels must be 0 or 1, found '-1'"),
        (b"a 0 1\nb 1.0 0.0\n", "2: labels must be 0 or 1, found '1.0'"),
        (b"a 0 1\nb c.jpg 0 1\n", "2: labels must be 0 or 1, found 'c.jpg'"),
        (b"a 0 1\nb 0,1\n", "2: labels must be 0 or 1, found '0,1'"),
        (b"a 0 1\nb 011\n", "2: labels must be 0 or 1, found '011'"),
        (b"a 0 1\nb 0\x001\n", "2: labels must be 0 or 1, found '0\\x001'"),
        (b"a 7\n", "1: has one column of labels; a column of 0 or 1 for each class is needed"),
        (b"a 0 1\n\xff.jpg 0 1\n", "2: is not UTF-8 text"),
        ("a 0 1\n".encode("utf-16"), "1: is not UTF-8 text"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(data, message):
    with pytest.raises(ValueError) as caught:
        read_list(data)
    assert str(caught.value) == message


def test_a_label_that_is_a_megabyte_long_is_not_quoted_in_full():
    with pytest.raises(ValueError) as caught:
        read_list(b"a 0 1\nb 0 " + b"x" * 1_000_000)
    assert len(str(caught.value)) < 200


# ---- what is listed --------------------------------------------------------------------------


def test_labels_and_splits_are_those_of_the_lists(tmp_path):
    dataset = opened(build(tmp_path / "lists"), tmp_path / "home")
    index = dataset.index()
    assert index.multi_label
    assert index.labels.dtype == np.uint8
    assert index.keys == sorted(name(number) for number in range(12))
    for key, row in zip(index.keys, index.labels, strict=True):
        assert "".join(map(str, row)) == MULTI[int(key[-7:-4])]
    assert index.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert index.ignored == {}
    part = split_keys(dataset)
    assert part["query"] == {name(number) for number in QUERY}
    assert part["gallery"] == {name(number) for number in DATABASE}
    # One of the six is a validation query; the four others of the gallery are too few for that.
    assert part["train"] | part["validation_query"] == {name(number) for number in TRAIN}
    assert len(part["validation_query"]) == 1
    assert (dataset.protocol.id, dataset.protocol.at) == ("lists", "all")
    assert not dataset.protocol.train_apart


def test_images_with_one_label_each_have_class_numbers(tmp_path):
    root = build(tmp_path / "lists", SINGLE)
    index = opened(root, tmp_path / "home").index()
    assert not index.multi_label
    assert index.labels.dtype == np.int64
    for key, label in zip(index.keys, index.labels, strict=True):
        assert label == SINGLE[int(key[-7:-4])].index("1")


def test_single_label_is_seen_or_said(tmp_path):
    one, many = build(tmp_path / "one", SINGLE), build(tmp_path / "many")
    home = tmp_path / "home"
    assert opened(one, home, single_label="auto").index().labels.shape == (12,)
    assert opened(one, home, single_label=True).index().labels.shape == (12,)
    assert opened(one, home, single_label=False).index().labels.shape == (12, 4)
    assert opened(many, home, single_label="auto").index().labels.shape == (12, 4)
    assert opened(many, home, single_label=False).index().labels.shape == (12, 4)
    error = refusal(many, home, single_label=True)
    assert error.key == "single_label"
    # train.txt begins with image 2; the first with several labels is image 4.
    assert "train.txt:3: has 4 labels" not in str(error)
    assert "train.txt:3: has 2 labels, single_label allows one (4 such images)" in str(error)
    identities = [
        opened(one, home).identity(),
        opened(one, home, single_label=False).identity(),
    ]
    assert identities[0] != identities[1]


def test_query_images_may_be_listed_in_query_or_test(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    before = opened(root, home).identity()
    (root / "query.txt").write_bytes((root / "test.txt").read_bytes())
    assert "has query.txt and test.txt, which are two lists of query images" in str(
        refusal(root, home)
    )
    (root / "test.txt").unlink()
    assert opened(root, home).identity() == before


def test_training_images_outside_of_the_database_are_trained_on(tmp_path):
    root = build(tmp_path / "lists", database=range(8, 12))
    dataset = opened(root, tmp_path / "home")
    assert dataset.protocol.train_apart
    part = split_keys(dataset)
    assert part["gallery"] == {name(number) for number in range(8, 12)}
    assert part["train"] | part["validation_query"] == {name(number) for number in TRAIN}
    partly = opened(build(tmp_path / "partly", database=range(5, 12)), tmp_path / "home")
    assert partly.protocol.train_apart
    assert split_keys(partly)["gallery"] == {name(number) for number in range(5, 12)}


def test_the_cut_off_is_the_whole_ranking_or_as_given(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    cut = opened(root, home, protocol={"at": 5})
    assert cut.protocol.at == 5
    assert cut.identity() == opened(root, home).identity()


def test_class_names_come_from_a_list_or_a_file(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    names = ["cat", "dog", "eel", "fox"]
    assert opened(root, home, classes=names).index().classes == names
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(names) + "\n\n")
    assert opened(root, home, classes=str(path)).index().classes == names
    assert opened(root, home, classes=names).identity() != opened(root, home).identity()


@pytest.mark.parametrize(
    ("classes", "part"),
    [
        (["a", "b", "c"], "has 3 names, train.txt has 4 columns of labels"),
        (["a", "b", "c", "b"], "names the class 'b' twice"),
        (["a", "b", "", "d"], "class name 3 is '', which is empty"),
        (["a", "b", "c\n", "d"], "class name 3 is 'c\\n', which is no plain text"),
        (["a"], "at least two classes are needed, found ['a']"),
        ("nowhere.txt", "nowhere.txt cannot be read: No such file or directory"),
        (3, "input should be a valid"),
    ],
)
def test_class_names_that_are_wrong_are_refused(tmp_path, classes, part):
    error = refusal(build(tmp_path / "lists"), tmp_path / "home", classes=classes)
    assert error.key == "classes"
    assert part in str(error)


def test_a_file_of_class_names_that_skips_a_line_is_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\n\neel\nfox\n")
    error = refusal(build(tmp_path / "lists"), tmp_path / "home", classes=str(path))
    assert "class name 2 is '', which is empty" in str(error)
    path.write_bytes(b"cat\n\xff\n")
    error = refusal(tmp_path / "lists", tmp_path / "home", classes=str(path))
    assert "classes.txt:2: is not UTF-8 text" in str(error)


def test_pixels_are_those_of_the_image_of_that_name(tmp_path):
    dataset = opened(build(tmp_path / "lists"), tmp_path / "home", store_size=8)
    store = dataset.images()
    for key, image in zip(store.keys, store.array, strict=True):
        assert image.tolist() == np.broadcast_to(COLOURS[int(key[-7:-4])], (8, 8, 3)).tolist()
    small = opened(tmp_path / "lists", tmp_path / "home")
    assert small.image_options() == {"store_size": 256}
    assert dataset.identity()["store_size"] == 8


# ---- where the images lie --------------------------------------------------------------------


@pytest.mark.parametrize("beginning", ["", "./", "/", ".//", "././"])
def test_a_beginning_that_means_here_is_no_part_of_the_path(tmp_path, beginning):
    plain = opened(build(tmp_path / "plain"), tmp_path / "home")
    other = opened(build(tmp_path / "other", beginning=beginning), tmp_path / "home")
    assert other.identity() == plain.identity()


@pytest.mark.parametrize("strip", ["/home/author/data", "/home/author/data/", "../data", "x"])
def test_the_folder_of_the_lists_author_is_cut_off(tmp_path, strip):
    home, plain = tmp_path / "home", build(tmp_path / "plain")
    root = build(tmp_path / "lists", beginning=f"{strip.rstrip('/')}/")
    assert opened(root, home, strip=strip).identity() == opened(plain, home).identity()
    if not strip.startswith(".."):
        hint = strip.rstrip("/") + "/"
        message = str(refusal(root, home))
        assert "12 of the 12 images that are listed are missing" in message
        assert f"set strip: {hint}" in message


def test_a_path_without_the_beginning_that_is_cut_off_is_refused(tmp_path):
    root, home = build(tmp_path / "lists", beginning="/data/coco/"), tmp_path / "home"
    error = refusal(root, home, strip="/data/coc")
    assert (error.key, error.value) == ("strip", "/data/coc")
    assert "train.txt:1: the path '/data/coco/pictures/0/002.png' does not begin with it" in str(
        error
    )
    assert "(6 such images)" in str(error)


def test_paths_that_begin_with_the_images_own_folder_are_relative_to_it(tmp_path):
    plain = build(tmp_path / "plain")
    root = build(tmp_path / "lists", beginning=f"{tmp_path / 'lists'}/")
    home = tmp_path / "home"
    assert opened(root, home).identity() == opened(plain, home).identity()
    assert opened(root, home, images=str(root)).identity() == opened(plain, home).identity()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_may_lie_elsewhere(tmp_path, kind):
    home, root = tmp_path / "home", build(tmp_path / "lists")
    plain = opened(root, home).identity()
    moved = (root / "pictures").rename(tmp_path / "elsewhere")
    images = tmp_path / "archive.zip"
    if kind == "zip":
        with zipfile.ZipFile(images, "w") as archive:
            for path in sorted(moved.rglob("*.png")):
                archive.write(path, f"pictures/{path.relative_to(moved)}")
            archive.writestr("pictures/readme", b"x")
    else:
        images = tmp_path / "images"
        images.mkdir()
        moved.rename(images / "pictures")
    dataset = opened(root, home, images=str(images), store_size=8)
    assert {**dataset.identity(), "store_size": 256} == plain
    assert len(dataset.images()) == 12
    assert str(tmp_path) not in json.dumps(dataset.identity())


def test_images_without_a_usual_ending_are_found_in_a_folder_and_in_a_zip(tmp_path):
    root, home = tmp_path / "lists", tmp_path / "home"
    build(root)
    packed = tmp_path / "images.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for title in ("test", "database", "train"):
            path = root / f"{title}.txt"
            path.write_text(path.read_text().replace(".png", ".img"))
        for number, colour in enumerate(COLOURS):
            target = root / name(number).replace(".png", ".img")
            (root / name(number)).rename(target)
            archive.writestr(name(number).replace(".png", ".img"), png(colour))
    folder, zipped = opened(root, home), opened(root, home, images=str(packed))
    assert zipped.identity() == folder.identity()
    assert len(zipped.images()) == 12


def test_a_place_of_images_that_is_not_there_is_refused(tmp_path):
    error = refusal(build(tmp_path / "lists"), tmp_path / "home", images=str(tmp_path / "no"))
    assert error.key == "images"
    assert "the folder or zip of images does not exist" in str(error)
    (tmp_path / "x.rar").write_bytes(b"x")
    error = refusal(tmp_path / "lists", tmp_path / "home", images=str(tmp_path / "x.rar"))
    assert "the folder or zip of images is neither a folder nor a zip" in str(error)


def test_nothing_but_the_listed_files_is_looked_at(tmp_path, monkeypatch):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    (root / "pictures" / "unlisted.png").symlink_to("/nowhere")
    (root / "huge" / "tree").mkdir(parents=True)
    monkeypatch.setattr(files.os, "scandir", None)  # a walk would fail
    assert len(opened(root, home).index().keys) == 12


def test_only_changed_images_are_read_again(tmp_path, monkeypatch):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**12))  # as if the files were old
    before = opened(root, home).index().fingerprint
    read: list[str] = []
    plain = files._Folder._bytes
    monkeypatch.setattr(
        files._Folder, "_bytes", lambda self, path: (read.append(path), plain(self, path))[1]
    )
    assert opened(root, home).index().fingerprint == before
    assert read == []
    (root / name(5)).write_bytes(png((1, 2, 3)))
    after = opened(root, home).index().fingerprint
    assert read == [name(5)]
    assert after != before
    assert opened(root, tmp_path / "new").index().fingerprint == after


@pytest.mark.parametrize("moved", ["pictures", "pictures/0/002.png"])
def test_links_out_of_the_folder_are_refused_unless_meant(tmp_path, moved):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    plain = opened(root, home).identity()
    target = (root / moved).rename(tmp_path / "moved.png")
    (root / moved).symlink_to(target)
    message = str(refusal(root, home, follow_links=False))
    assert "leads out of the folder" in message
    assert "set follow_links: true" in message
    assert opened(root, home, follow_links=True).identity() == plain


def test_a_folder_in_the_place_of_an_image_is_refused(tmp_path):
    root = build(tmp_path / "lists")
    (root / name(3)).unlink()
    (root / name(3)).mkdir()
    assert "'pictures/1/003.png' is no regular file" in str(refusal(root, tmp_path / "home"))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("../x.png", "the path '../x.png' leads out of the images' folder"),
        ("a/../../x.png", "leads out of the images' folder"),
        ("a\\x.png", "has a backslash; write '/' between folders"),
        ("a\x01.png", "the path 'a\\x01.png' has control characters"),
        ("/", "the path '/' is empty"),
        ("./.", "the path './.' is empty"),
    ],
)
def test_a_path_that_leads_astray_is_refused(tmp_path, path, part):
    root = build(tmp_path / "lists")
    append(root, "database", f"{path} 0 1 0 0")
    message = str(refusal(root, tmp_path / "home"))
    assert "'hashlist': database.txt:11: " in message
    assert part in message


# ---- identity --------------------------------------------------------------------------------


def test_the_fingerprint_is_of_images_labels_and_splits_and_not_of_their_order(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    seen = [opened(root, home).index().fingerprint]
    for title in ("train", "database", "test"):
        path = root / f"{title}.txt"
        path.write_text("\r\n".join(reversed(path.read_text().splitlines())))
    assert opened(root, home).index().fingerprint == seen[0]
    build(root, train=range(2, 7))  # one training image less, and nothing else
    seen.append(opened(root, home).index().fingerprint)
    build(root, test=range(1), train=range(1, 8), database=range(1, 12))  # a query less
    seen.append(opened(root, home).index().fingerprint)
    build(root, ["0011", *MULTI[1:]])
    seen.append(opened(root, home).index().fingerprint)
    build(root)
    (root / name(4)).write_bytes(png((9, 9, 9)))
    seen.append(opened(root, home).index().fingerprint)
    assert len(set(seen)) == 5


def test_an_excluded_image_leaves_its_split(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    left_out = tmp_path / "exclude.txt"
    left_out.write_text(f"# unreadable\n{name(9)}\n")
    dataset = opened(root, home, exclude=str(left_out))
    assert split_keys(dataset)["gallery"] == {name(n) for n in DATABASE if n != 9}
    assert dataset.index().ignored == {"excluded by the study": 1}


# ---- leaks, contradictions, what is missing --------------------------------------------------


def test_a_query_that_is_in_the_database_is_a_leak(tmp_path):
    root, home = (
        build(tmp_path / "lists", database=range(12), train=range(1, 8)),
        tmp_path / "home",
    )
    error = refusal(root, home)
    assert isinstance(error, DatasetError)
    assert error.key == "root"
    message = str(error)
    assert (
        "of the images in test.txt there are 1 in train.txt and 2 in database.txt too" in message
    )
    assert "'pictures/0/000.png', 'pictures/1/001.png'" in message
    assert "leaks: drop" in message
    assert str(refusal(root, home, leaks="refuse")) == message
    dropped = opened(root, home, leaks="drop")
    assert dropped.index().ignored == {"taken out of database or train, being queries": 2}
    assert split_keys(dropped)["gallery"] == {name(number) for number in range(2, 12)}
    assert split_keys(dropped)["query"] == {name(number) for number in QUERY}
    assert dropped.identity() == opened(build(tmp_path / "clean"), home).identity()


def test_a_query_that_is_trained_on_under_another_spelling_is_a_leak(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    append(root, "train", line(0, beginning=".//"))
    message = str(refusal(root, home))
    assert "in test.txt there are 1 in train.txt too" in message
    assert (
        opened(root, home, leaks="drop").identity()
        == opened(build(tmp_path / "clean"), home).identity()
    )


def test_an_image_with_other_labels_in_another_list_is_refused(tmp_path):
    root = build(tmp_path / "lists")
    rows = (root / "database.txt").read_text().splitlines()
    rows[3] = f"{name(5)} 1 1 1 1"  # line 4 of the database, line 4 of train
    rows[4] = f"{name(6)} 0 1 1 1"
    (root / "database.txt").write_text("\n".join(rows))
    message = str(refusal(root, tmp_path / "home"))
    assert (
        "database.txt:4: 'pictures/1/005.png' has other labels than in train.txt:4 "
        "(2 such images)" in message
    )


def test_lists_of_different_width_are_refused(tmp_path):
    root = build(tmp_path / "lists")
    (root / "test.txt").write_text("\n".join(f"{name(n)} 0 1 0" for n in QUERY))
    assert "test.txt has 3 columns of labels, train.txt has 4" in str(
        refusal(root, tmp_path / "home")
    )


def test_a_damaged_list_is_named_with_its_line(tmp_path):
    root = build(tmp_path / "lists")
    append(root, "database", f"{name(0)} 0 1")
    message = str(refusal(root, tmp_path / "home"))
    assert "'hashlist': database.txt:11: has 2 columns of labels, line 1 has 4" in message
    (root / "database.txt").write_text("")
    assert "'hashlist': database.txt:1: lists no image" in str(refusal(root, tmp_path / "home"))


def test_a_path_that_is_twice_in_a_list_is_refused(tmp_path):
    root = build(tmp_path / "lists")
    append(root, "database", line(4), line(4, beginning="./"))
    message = str(refusal(root, tmp_path / "home"))
    assert "database.txt:11: 'pictures/0/004.png' is in line 3 too (2 such lines)" in message


@pytest.mark.parametrize(
    ("title", "shown"),
    [("train", "train.txt"), ("test", "query.txt or test.txt"), ("database", "database.txt")],
)
def test_a_list_that_is_missing_is_named(tmp_path, title, shown):
    root = build(tmp_path / "lists")
    (root / f"{title}.txt").unlink()
    assert f"'hashlist': {shown} is missing" in str(refusal(root, tmp_path / "home"))


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    home = tmp_path / "home"
    assert "its root does not exist; it is the folder of train.txt" in str(
        refusal(tmp_path / "no", home)
    )
    (tmp_path / "x.zip").write_bytes(b"")
    assert "its root is no folder" in str(refusal(tmp_path / "x.zip", home))


def test_missing_images_are_refused_or_dropped_and_counted(tmp_path):
    root, home = build(tmp_path / "lists"), tmp_path / "home"
    (root / name(9)).unlink()
    (root / name(5)).unlink()
    error = refusal(root, home)
    assert (
        "2 of the 12 images that are listed are missing, the first: 'pictures/1/005.png'"
        in str(error)
    )
    assert "missing: drop" in str(error)
    assert str(refusal(root, home, missing="refuse")) == str(error)
    dataset = opened(root, home, missing="drop")
    assert dataset.index().ignored == {"listed and not there": 2}
    assert split_keys(dataset)["gallery"] == {name(n) for n in DATABASE if n not in (5, 9)}
    assert len(dataset.images()) == 10


def test_where_every_image_is_missing_none_is_dropped(tmp_path):
    root = build(tmp_path / "lists")
    (root / "pictures").rename(root / "other")
    for missing in ("refuse", "drop"):
        message = str(refusal(root, tmp_path / "home", missing=missing))
        assert "12 of the 12 images that are listed are missing" in message


def test_an_image_without_a_label_is_dropped_where_images_have_several(tmp_path):
    labels = [*MULTI[:9], "0000", "0000", MULTI[11]]
    root, home = build(tmp_path / "lists", labels), tmp_path / "home"
    for choice in ("auto", "drop"):
        dataset = opened(root, home, unlabelled=choice)
        assert dataset.index().ignored == {"without a label": 2}
        assert split_keys(dataset)["gallery"] == {name(n) for n in (*range(2, 9), 11)}
    message = str(refusal(root, home, unlabelled="refuse"))
    assert (
        "database.txt:8: 'pictures/1/009.png' has no label, all columns are 0 (2 such images)"
        in message
    )
    assert "unlabelled: drop" in message


def test_an_image_without_a_label_is_a_mistake_where_the_others_have_one(tmp_path):
    labels = [*SINGLE[:9], "0000", *SINGLE[10:]]
    root, home = build(tmp_path / "lists", labels), tmp_path / "home"
    for choice in ("auto", "refuse"):
        message = str(refusal(root, home, unlabelled=choice))
        assert "all columns are 0, though every other image has one label (1 such" in message
    dataset = opened(root, home, unlabelled="drop")
    assert dataset.index().ignored == {"without a label": 1}
    assert dataset.index().labels.shape == (11,)


def test_a_damaged_image_is_named(tmp_path):
    root = build(tmp_path / "lists")
    (root / name(7)).write_bytes(png(COLOURS[7], (64, 64))[:-30])
    with pytest.raises(DatasetError, match=r"pictures/1/007\.png"):
        opened(root, tmp_path / "home").images()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"leaks": "keep"}, "leaks: must be one of refuse, drop"),
        ({"missing": "ignore"}, "missing: must be one of refuse, drop"),
        ({"unlabelled": "keep"}, "unlabelled: must be one of auto, refuse, drop"),
        ({"single_label": "yes"}, "single_label: must be one of auto, True, False"),
        ({"strip": ""}, "strip: "),
        ({"store_size": 4}, "store_size: "),
        ({"imags": "x"}, "imags: unknown key; did you mean 'images'?"),
        ({"images": "~nobody-of-this-name/x"}, "images: there is no such user's home"),
        ({"protocol": {"query_total": 3}}, "has files that list its splits; only validation_tot"),
    ],
)
def test_a_wrong_option_is_explained(tmp_path, options, part):
    assert part in str(refusal(build(tmp_path / "lists"), tmp_path / "home", **options))
