"""ROxford5k and RParis6k: what is read, how queries are cropped, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.codes import pack
from retrieval.datasets import open_dataset
from retrieval.datasets.gnd import LARGEST, read_ground_truth, write_ground_truth
from retrieval.datasets.pickles import Array, read_pickle
from retrieval.errors import DatasetError, InputError
from retrieval.evaluation import evaluate_landmark_files
from retrieval.images import decode_bytes
from retrieval.metrics.landmarks import evaluate_landmarks

GALLERY = ["tower_000004", "arch_000001", "gate_000007", "tower_000002", "dome_000003"]
QUERIES = ["tower_000009", "arch_000008"]
GND = {
    "imlist": GALLERY,
    "qimlist": QUERIES,
    "gnd": [
        {"bbx": [1.5, 2.0, 20.6, 25.4], "easy": [3, 0], "hard": [4], "junk": []},
        {"bbx": [0.0, 0.0, 40.0, 30.0], "easy": [], "hard": [1], "junk": [2, 0]},
    ],
}


def edited(**changes) -> dict:
    return {**json.loads(json.dumps(GND)), **changes}


def entry(**changes) -> dict:
    """The ground truth with a changed first entry; None removes a key."""
    content = edited()
    kept = {**content["gnd"][0], **changes}
    content["gnd"][0] = {key: value for key, value in kept.items() if value is not None}
    return content


def same(one, other) -> bool:
    return one.to_json() == other.to_json()


def as_read(raw) -> object:
    return read_ground_truth(json.dumps(raw).encode())


# ---- pickles that are data -------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", [None, "<i8", ">i4", "u2", "f8"])
def test_a_pickle_of_any_protocol_says_the_same_as_json(protocol, dtype):
    content = edited()
    if dtype is not None:
        for known in content["gnd"]:
            known["bbx"] = np.array(known["bbx"])
            for kind in ("easy", "hard", "junk"):
                known[kind] = np.array(known[kind], dtype=dtype)
    assert same(read_ground_truth(pickle.dumps(content, protocol=protocol)), as_read(GND))


def test_lists_of_numpy_scalars_and_rows_of_matrices_are_numbers_too():
    content = edited()
    content["gnd"][0]["easy"] = [np.int64(3), np.uint8(0)]
    content["gnd"][0]["bbx"] = tuple(np.float64(x) for x in GND["gnd"][0]["bbx"])
    content["gnd"][1]["junk"] = np.array([[2, 0]])
    content["gnd"][1]["easy"] = np.zeros((0, 0))
    for protocol in (0, 2, 4):
        assert same(read_ground_truth(pickle.dumps(content, protocol)), as_read(GND))


def python2(value, protocol: int) -> bytes:
    """How Python 2 writes a value; names are byte strings, arrays hold their bytes as such."""
    raw = _python2(value, protocol)
    return (b"\x80\x02" if protocol == 2 else b"") + raw + b"."


def _python2(value, protocol: int) -> bytes:
    def text(data: bytes) -> bytes:
        if protocol == 2 and len(data) < 256:
            return b"U" + bytes([len(data)]) + data
        return b"S" + repr(data)[1:].encode("ascii") + b"\n"

    if isinstance(value, str):
        return text(value.encode())
    if isinstance(value, int):
        return b"I%d\n" % value if protocol == 0 else b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"F%r\n" % value if protocol == 0 else b"G" + struct.pack(">d", value)
    if isinstance(value, list):
        return b"(l" + b"".join(_python2(item, protocol) + b"a" for item in value)
    if isinstance(value, np.ndarray):
        kind = value.dtype.str[1:].encode()
        dtype = b"cnumpy\ndtype\n(" + text(kind) + b"I0\nI1\ntR"
        dtype += b"(I3\n" + text(b"<") + b"NNNI-1\nI-1\nI0\ntb"
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b")
        state = b"(I1\n(L%dL\nt" % len(value) + dtype + b"I00\n" + text(value.tobytes())
        return made + b"tR" + state + b"tb"
    items = b"".join(
        _python2(key, protocol) + _python2(item, protocol) + b"s" for key, item in value.items()
    )
    return b"(d" + items


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("arrays", [False, True])
def test_a_pickle_of_python_2_says_the_same(protocol, arrays):
    content = edited()
    if arrays:
        for known in content["gnd"]:
            known["bbx"] = np.array(known["bbx"], dtype="<f8")  # bytes above 127 among them
            for kind in ("easy", "hard", "junk"):
                known[kind] = np.array(known[kind], dtype="<i8")
    data = python2(content, protocol)
    # Python's own reader agrees that these bytes are what they are meant to be.
    assert pickle.loads(data, encoding="latin1")["imlist"] == GALLERY  # noqa: S301
    assert same(read_ground_truth(data), as_read(GND))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.binary(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain, st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_plain_values_are_read_as_python_reads_them(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol=protocol)) == value


@given(
    st.sampled_from(["i1", "<i2", ">i4", "<i8", "u1", ">u2", "u4", "<u8", "f4", ">f8"]),
    st.integers(0, 300),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_arrays_are_read_as_numpy_reads_them(dtype, size, protocol):
    value = np.arange(size).astype(dtype)
    read = read_pickle(pickle.dumps(value, protocol=protocol))
    assert isinstance(read, Array)
    np.testing.assert_array_equal(read.values, value)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_pickle_is_refused_or_read_and_nothing_else_happens(data):
    good = bytearray(pickle.dumps(GND, protocol=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        read_ground_truth(bytes(good[:cut] if data.draw(st.booleans()) else good))
    except ValueError as error:
        assert str(error)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(data):
    assert refused(data)


# ---- pickles that are programs ---------------------------------------------------------------


class Runs:
    """What an attacker puts into a pickle."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(data: bytes) -> str:
    try:
        read_ground_truth(data)
    except ValueError as error:
        return str(error)
    pytest.fail("it was read")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command_runs_nothing(protocol, tmp_path):
    mark = tmp_path / "ran"
    content = {**GND, "gnd": Runs(os.system, f"touch {mark}")}
    message = refused(pickle.dumps(content, protocol=protocol))
    assert f"{os.name}.system" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (eval, ("1",), "eval"),
        (exec, ("1",), "exec"),
        (getattr, ("", "join"), "getattr"),
        (__import__, ("os",), "__import__"),
        (open, ("/etc/hostname",), "open"),
        (np.load, ("x.npy",), "load"),
        (bytearray, (1 << 40,), "bytearray"),
    ],
)
def test_whatever_a_pickle_asks_for_is_named(function, arguments, named):
    assert named in refused(pickle.dumps(Runs(function, *arguments), protocol=2))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"(S'echo'\nios\nsystem\n.", "instruction"),  # INST
        (b"(cos\nsystem\nS'echo'\no.", "os.system"),  # OBJ
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "instruction"),  # NEWOBJ
        (b"\x80\x04cnumpy\nndarray\n)}\x92.", "instruction"),  # NEWOBJ_EX
        (b"\x80\x02\x82\x01.", "instruction"),  # EXT1
        (b"Pelsewhere\n.", "instruction"),  # PERSID
        (b"Nx.", "instruction"),
        (b"cnumpy\nndarray\n(I4\ntR.", "'ndarray', which data do not need"),
        (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "something else than numbers"),
        (b"cnumpy\ndtype\n(S'V9'\ntR.", "something else than numbers"),
        (b"cnumpy\ndtype\n)R.", "does not take"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "encodes something else"),
        (b"c_codecs\nencode\n.", "a name or a type"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(c_codecs\nencode\n(I0\ntS'b'\ntR.", "of a kind"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.", "without"),
        (b"}S'a'\nI1\nb.", "changes something that is no array"),
        (b"](I1\nI2\nu.", "as if it were"),
        (b"}(I1\nI2\nu.", "a key is no text"),
        (b"}(S'a'\nu.", "a key has no value"),
        (b"(I1\n0.", "more from its stack"),
        (b"(0.", "more from its stack"),
        (b"t.", "more from its stack"),
        (b"e.", "more from its stack"),
        (b"h\x07.", "refers to something"),
        (b"\x80\x06N.", "later protocol"),
        (b"I1e5\n.", "no number"),
        (b"Fabc\n.", "no number"),
        (b"\x8a\x09123456789.", "a number of 9 bytes"),
        (b"Sabc\n.", "without quotes"),
        (b"U\x02\xff\xfe.", "found b'"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "not UTF-8"),
        (b"", "ends before its data do"),
        (b"N", "ends before its data do"),
    ],
)
def test_programs_are_refused_with_what_they_do(program, message):
    assert message in refused(program)


EIGHT_TERABYTES = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    b"(I1\n(L1099511627776L\ntcnumpy\ndtype\n(S'i8'\ntRI00\nS''\ntb."
)


def peak_of(data: bytes) -> int:
    tracemalloc.start()
    try:
        refused(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "bomb",
    [
        b"]r\xff\xff\xff\xff.",  # a memo of 2^32 places
        b"]p99999999999999\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",  # 4 EiB of bytes that are not there
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"T\xff\xff\xff\x7f.",
        b"T\xff\xff\xff\xff.",  # a negative size
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        EIGHT_TERABYTES,
        b"]" + b"2" * 40 + b"a" * 40 + b".",  # a list in itself
        b"](lp0\n" + b"(g0\ng0\nlp0\n" * 60 + b".",  # 2^60 lists, if they were written out
    ],
)
def test_bombs_take_no_memory(bomb):
    assert peak_of(bomb) < 1 << 20


def test_deep_nesting_is_refused():
    depth = 200_000
    assert "found a list of 1" in refused(b"]" * depth + b"a" * (depth - 1) + b".")
    assert "found a tuple of 1" in refused(b")" + b"\x85" * depth + b".")
    # Hashing such a tuple would overflow the interpreter's own stack.
    assert "a key is no text" in refused(b"})" + b"\x85" * depth + b"Ns.")
    assert "no JSON" in refused(b'{"gnd": ' + b"[" * depth + b"]" * depth + b"}")


def test_one_long_list_named_for_every_query_is_refused():
    names = [f"g{number}" for number in range(20_000)]
    queries = [f"q{number}" for number in range(600)]
    known = {"bbx": [0, 0, 1, 1], "easy": list(range(20_000)), "hard": [], "junk": []}
    data = pickle.dumps({"imlist": names, "qimlist": queries, "gnd": [known] * 600})
    assert len(data) < 1 << 20
    assert "12,000,000 judgements" in refused(data)


def test_a_file_that_is_too_large_is_refused():
    assert "more than 16 MiB" in refused(b" " * (LARGEST + 1))


# ---- what ground truth must be ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold 'imlist', 'qimlist' and 'gnd', found []"),
        ({"imlist": ["a"]}, "it has no 'qimlist', only 'imlist'"),
        (edited(imlist=[]), "'imlist' must be a list of names, found []"),
        (edited(qimlist="tower"), "'qimlist' must be a list of names"),
        (edited(qimlist=["a", 7]), "qimlist[1] is no name of an image: 7"),
        (edited(qimlist=["a", "../b"]), "qimlist[1] is no name"),
        (edited(qimlist=["a", ".."]), "qimlist[1] is no name"),
        (edited(qimlist=["a", "b\n"]), "qimlist[1] is no name"),
        (edited(qimlist=["a", "a"]), "'qimlist' has 'a' twice"),
        (edited(qimlist=["a", GALLERY[1]]), "1 images are in 'imlist' and in 'qimlist'"),
        (edited(gnd={}), "'gnd' must be a list, found a dict of 0"),
        (edited(gnd=GND["gnd"][:1]), "'gnd' has 1 entries for 2 queries"),
        (edited(gnd=[[], []]), "gnd[0] must hold 'easy', 'hard' and 'junk'"),
        (entry(easy=None), "gnd[0] has no 'easy'"),
        (entry(easy=None, hard=None, ok=[1]), "ground truth of the original Oxford or Paris"),
        (entry(easy=3), "gnd[0].easy must be a list of numbers, found 3"),
        (entry(easy=["0"]), "gnd[0].easy must be a list of whole numbers, it has '0'"),
        (entry(easy=[True]), "must be a list of whole numbers, it has True"),
        (entry(easy=[0.5]), "must be a list of whole numbers, it has 0.5"),
        (entry(easy=[5]), "gnd[0].easy has 5, but there are 5 gallery images"),
        (entry(hard=[-1]), "gnd[0].hard has -1"),
        (entry(junk=[2**62]), "gnd[0].junk has 4611686018427387904, but"),
        (entry(easy=[0, 0]), "gnd[0] lists image 0 twice"),
        (entry(junk=[3]), "gnd[0] lists image 3 twice"),
        (entry(bbx=[1, 2, 3]), "gnd[0].bbx must be left, top, right and lower edge"),
        (entry(bbx=[5, 2, 5, 9]), "gnd[0].bbx must be left, top, right and lower edge"),
        (entry(bbx=["a", 2, 5, 9]), "gnd[0].bbx must be left, top, right and lower edge"),
        (
            edited(gnd=[{"easy": [], "hard": [], "junk": [1]}] * 2),
            "no query has an easy or a hard",
        ),
    ],
)
def test_what_is_wrong_with_ground_truth_is_said_of_pickle_and_json_alike(content, message):
    for data in (json.dumps(content).encode(), pickle.dumps(content, protocol=2)):
        assert message in refused(data)


def test_a_box_that_is_no_number_is_refused():
    assert "gnd[0].bbx" in refused(json.dumps(entry(bbx=[0, 0, float("nan"), 1])).encode())
    assert "gnd[0].bbx" in refused(json.dumps(entry(bbx=[0, 0, float("inf"), 1])).encode())


def test_junk_and_boxes_may_be_left_out():
    truth = as_read(entry(junk=None, bbx=None))
    assert truth.landmarks[0].junk.tolist() == []
    assert truth.landmarks[0].box is None


def test_what_is_written_is_read_back_the_same(tmp_path):
    truth = read_ground_truth(pickle.dumps(GND, protocol=2))
    write_ground_truth(truth, tmp_path / "gnd.json")
    again = read_ground_truth((tmp_path / "gnd.json").read_bytes())
    assert same(again, truth)
    assert again.digest() == truth.digest()
    assert json.loads((tmp_path / "gnd.json").read_text())["gnd"][0]["easy"] == [0, 3]


# ---- the dataset -----------------------------------------------------------------------------


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(stream, format="JPEG")
    return stream.getvalue()


def build(root: Path, content=None, *, folder: str = "jpg/", ending: str = "pkl") -> Path:
    content = GND if content is None else content
    for seed, name in enumerate([*GALLERY, *QUERIES]):
        path = root / f"{folder}{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed))
    data = pickle.dumps(content, 2) if ending == "pkl" else json.dumps(content).encode()
    (root / f"gnd_roxford5k.{ending}").write_bytes(data)
    return root


def trained(root: Path, each: int = 20) -> Path:
    for place, title in enumerate(("arch", "dome")):
        for number in range(each):
            path = root / title / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(100 * place + number + 50))
    return root


def zipped(root: Path, target: Path, around: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, f"{around}{path.relative_to(root).as_posix()}")
    return target


def opened(root: Path, home: Path, **options):
    options = {"expected": "any", **options}
    return open_dataset({"name": "roxford5k", "root": root, **options}, home=home)


def refusal(root: Path, home: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        dataset = opened(root, home, **options)
        dataset.splits()
        dataset.images()
    return caught.value


def test_queries_come_first_then_the_gallery_then_training_images(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train")
    dataset = opened(root, tmp_path / "home", train={"folder": str(train)})
    index, splits = dataset.index(), dataset.splits()
    assert index.keys[:7] == [f"query/{n}" for n in QUERIES] + [f"gallery/{n}" for n in GALLERY]
    assert index.keys[7] == "train/arch/00.jpg"
    assert index.labels.tolist() == [-1] * 7 + [0] * 20 + [1] * 20
    assert index.classes == ["arch", "dome"]
    assert splits.query.tolist() == [0, 1]
    assert splits.gallery.tolist() == [2, 3, 4, 5, 6]
    assert sorted([*splits.train, *splits.validation_query]) == list(range(7, 47))
    assert len(splits.validation_query) == 4
    assert splits.validation_gallery.tolist() == splits.train.tolist()


@pytest.mark.parametrize("folder", ["jpg/", "", "deep/inside/"])
def test_images_are_found_wherever_they_lie_in_the_root(folder, tmp_path):
    plain_one = opened(build(tmp_path / "a"), tmp_path / "home").index()
    other = opened(build(tmp_path / "b", folder=folder), tmp_path / "home").index()
    assert other.fingerprint == plain_one.fingerprint


@pytest.mark.parametrize("around", ["", "roxford5k/"])
def test_a_zip_says_the_same_as_the_folder(around, tmp_path):
    root = build(tmp_path / "a")
    archive = zipped(root, tmp_path / "a.zip", around)
    one, other = (opened(place, tmp_path / "home") for place in (root, archive))
    assert one.index().fingerprint == other.index().fingerprint
    np.testing.assert_array_equal(one.images().array, other.images().array)


def test_ground_truth_is_found_beside_the_images_or_given(tmp_path):
    root = build(tmp_path / "a", ending="json")
    usual = opened(root, tmp_path / "home").index().fingerprint
    assert opened(root / "jpg", tmp_path / "home").index().fingerprint == usual
    (root / "gnd_roxford5k.json").rename(tmp_path / "truth.json")
    error = refusal(root, tmp_path / "home")
    assert "no gnd_roxford5k.pkl (or gnd_roxford5k.json)" in error.problem
    given = opened(root, tmp_path / "home", gnd=str(tmp_path / "truth.json"))
    assert given.index().fingerprint == usual
    archive = zipped(root / "jpg", tmp_path / "jpg.zip")
    (tmp_path / "truth.json").rename(tmp_path / "gnd_roxford5k.json")
    assert opened(archive, tmp_path / "home").index().fingerprint == usual


def test_the_fingerprint_covers_images_ground_truth_cropping_and_training_images(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train")
    home = tmp_path / "home"
    seen = {opened(root, home).index().fingerprint}

    def is_new(**options) -> bool:
        before = len(seen)
        seen.add(opened(root, home, **options).index().fingerprint)
        return len(seen) > before

    assert not is_new()
    assert is_new(crop_queries=False)
    assert is_new(train={"folder": str(train)})
    (train / "dome" / "extra.jpg").write_bytes(jpeg(7))
    assert is_new(train={"folder": str(train)})
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(entry(junk=[2]), 2))
    assert is_new()
    (root / "jpg" / f"{GALLERY[0]}.jpg").write_bytes(jpeg(99))
    assert is_new()


# ---- pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [True, False])
def test_queries_are_cropped_as_pillow_crops_them_and_nothing_else_is(crop, tmp_path):
    root = build(tmp_path / "ox")
    dataset = opened(root, tmp_path / "home", crop_queries=crop)
    names = [*QUERIES, *GALLERY]
    with dataset.open_decoder() as decode:
        for row, name in enumerate(names):
            image = Image.open(root / "jpg" / f"{name}.jpg").convert("RGB")
            if crop and row < 2:
                image = image.crop(GND["gnd"][row]["bbx"])
            np.testing.assert_array_equal(decode(row), np.asarray(image))
    assert dataset.identity()["crop_queries"] is crop


def test_stored_images_have_the_size_asked_for_and_training_images_are_among_them(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train", each=6)
    dataset = opened(root, tmp_path / "home", train={"folder": str(train)}, store_size=24)
    store = dataset.images()
    assert store.array.shape == (7 + 12, 24, 24, 3)
    assert store.keys == dataset.index().keys
    with dataset.open_decoder() as decode:
        image = decode_bytes((train / "dome" / "05.jpg").read_bytes(), "x")
        np.testing.assert_array_equal(decode(18), image)


def test_a_box_outside_of_its_image_is_named(tmp_path):
    root = build(tmp_path / "ox", entry(bbx=[100.0, 40.0, 500.0, 300.0]))
    error = refusal(root, tmp_path / "home")
    assert "1 image of 7 cannot be read" in error.problem
    assert f"jpg/{QUERIES[0]}.jpg (its box 100, 40, 500, 300 does not lie in its 40 x 30" in str(
        error
    )
    opened(root, tmp_path / "home", crop_queries=False).images()


def test_a_box_that_reaches_over_the_edge_by_a_little_is_cut_there(tmp_path):
    root = build(tmp_path / "ox", entry(bbx=[0.0, 0.0, 41.0, 30.6]))
    with opened(root, tmp_path / "home").open_decoder() as decode:
        assert decode(0).shape == (30, 40, 3)


def test_a_truncated_image_is_named(tmp_path):
    root = build(tmp_path / "ox")
    path = root / "jpg" / f"{GALLERY[2]}.jpg"
    path.write_bytes(path.read_bytes()[:300])
    assert f"jpg/{GALLERY[2]}.jpg" in str(refusal(root, tmp_path / "home"))


# ---- splits ----------------------------------------------------------------------------------


def test_validation_images_are_as_many_as_asked_for_and_change_with_the_seed(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train")

    def drawn(**protocol):
        given = {"folder": str(train)}
        return opened(root, tmp_path / "home", train=given, protocol=protocol).splits()

    splits = drawn(validation_total=5, validation_gallery_total=9)
    parts = [splits.train, splits.validation_query, splits.validation_gallery]
    assert [len(part) for part in parts] == [26, 5, 9]
    assert sorted(np.concatenate(parts)) == list(range(7, 47))
    again = drawn(validation_total=5, validation_gallery_total=9)
    assert again.validation_query.tolist() == splits.validation_query.tolist()
    other = drawn(validation_total=5, validation_gallery_total=9, split_seed=1)
    assert other.validation_query.tolist() != splits.validation_query.tolist()
    error = refusal(
        root,
        tmp_path / "home",
        train={"folder": str(train)},
        protocol={"validation_total": 40},
    )
    assert error.key == "protocol.validation_total"
    assert "40 training images do not suffice" in error.problem


@pytest.mark.parametrize("quota", ["query_per_class", "train_per_class", "query_total"])
def test_quotas_of_what_the_ground_truth_fixes_are_refused(quota, tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train")
    given = {"folder": str(train)}
    error = refusal(root, tmp_path / "home", train=given, protocol={quota: 2})
    assert error.key == f"protocol.{quota}"


def test_a_split_file_may_change_training_images_only(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train")
    given = {"folder": str(train)}
    keys = opened(root, tmp_path / "home", train=given).index().keys
    listed = {
        "query": keys[:2],
        "gallery": keys[2:7],
        "train": keys[7:30],
        "validation_query": keys[30:35],
        "validation_gallery": keys[35:],
    }
    path = tmp_path / "split.json"
    path.write_text(json.dumps(listed))
    protocol = {"split_file": str(path)}
    splits = opened(root, tmp_path / "home", train=given, protocol=protocol).splits()
    assert splits.train.tolist() == list(range(7, 30))
    path.write_text(json.dumps({**listed, "gallery": keys[2:6]}))
    error = refusal(root, tmp_path / "home", train=given, protocol=protocol)
    assert error.key == "protocol.split_file"
    assert "its gallery images are not those of the ground truth" in error.problem


def test_training_images_can_be_excluded_and_judged_ones_cannot(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train")
    given, listed = {"folder": str(train)}, tmp_path / "exclude.txt"
    listed.write_text("train/arch/03.jpg\n")
    dataset = opened(root, tmp_path / "home", train=given, exclude=str(listed))
    splits, keys = dataset.splits(), dataset.index().keys
    assert len(splits.train) + len(splits.validation_query) == 39
    assert "train/arch/03.jpg" not in keys
    with dataset.open_decoder() as decode:
        row = keys.index("train/arch/04.jpg")
        image = decode_bytes((train / "arch" / "04.jpg").read_bytes(), "x")
        np.testing.assert_array_equal(decode(row), image)
    listed.write_text(f"gallery/{GALLERY[1]}\n")
    error = refusal(root, tmp_path / "home", train=given, exclude=str(listed))
    assert error.key == "exclude"
    assert f"'gallery/{GALLERY[1]}'" in error.problem


def test_training_images_may_have_several_labels(tmp_path):
    root, train = build(tmp_path / "ox"), trained(tmp_path / "train", each=5)
    lines = [f"{c}/{n:02d}.jpg {int(c == 'arch')} 1" for c in ("arch", "dome") for n in range(5)]
    for name, part in (("train", lines[:8]), ("query", lines[8:9]), ("database", lines[:8])):
        (train / f"{name}.txt").write_text("\n".join(part) + "\n")
    given = {"name": "hashlist", "root": str(train)}
    index = opened(root, tmp_path / "home", train=given).index()
    assert index.multi_label
    assert index.labels[:7].sum() == 0
    assert index.labels[7:].tolist() == [[1, 1]] * 5 + [[0, 1]] * 4


def test_without_training_images_it_can_be_listed_stored_and_scored(tmp_path):
    dataset = opened(build(tmp_path / "ox"), tmp_path / "home")
    splits = dataset.splits()
    assert (len(splits.train), len(splits.validation_query)) == (0, 0)
    assert len(dataset.images()) == 7
    assert dataset.index().labels.tolist() == [-1] * 7
    with pytest.raises(DatasetError) as caught:
        dataset.check_study(at=None)
    assert caught.value.key == "train"


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"), [("roxford5k", "70 and 4,993"), ("rparis6k", "70 and 6,322")]
)
def test_another_number_of_images_needs_to_be_expected(name, wanted, tmp_path):
    root = build(tmp_path / "ox")
    (root / "gnd_roxford5k.pkl").rename(root / f"gnd_{name}.pkl")
    given = {"name": name, "root": root}
    with pytest.raises(DatasetError) as caught:
        open_dataset(given, home=tmp_path / "home").index()
    assert caught.value.key == "gnd"
    assert f"2 queries and 5 gallery images, {'RO' if 'ox' in name else 'RP'}" in str(caught.value)
    assert wanted in caught.value.problem
    assert "expected: any" in (caught.value.hint or "")
    open_dataset({**given, "expected": "any"}, home=tmp_path / "home").index()


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    root = build(tmp_path / "ox")
    for name in (GALLERY[1], QUERIES[1]):
        (root / "jpg" / f"{name}.jpg").unlink()
    error = refusal(root, tmp_path / "home")
    assert (
        f"2 of the 7 images that the ground truth lists are missing, the first: '{QUERIES[1]}"
        in (error.problem)
    )


def test_an_image_that_is_there_twice_is_refused_and_others_are_counted(tmp_path):
    root = build(tmp_path / "ox", folder="")
    (root / "other.jpg").write_bytes(jpeg(1))
    assert opened(root, tmp_path / "home").index().ignored == {"not in the ground truth": 1}
    (root / "copies").mkdir()
    (root / "copies" / f"{GALLERY[0]}.jpg").write_bytes(jpeg(2))
    assert f"there are two images {GALLERY[0]!r}" in refusal(root, tmp_path / "home").problem


def test_a_malicious_ground_truth_is_refused_as_such(tmp_path):
    root, mark = build(tmp_path / "ox"), tmp_path / "ran"
    content = {**GND, "gnd": Runs(os.system, f"touch {mark}")}
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, 2))
    error = refusal(root, tmp_path / "home")
    assert error.key == "gnd"
    assert str(root / "gnd_roxford5k.pkl") == error.value
    assert "it is no pickle that can be read safely" in error.problem
    assert not mark.exists()


def test_ground_truth_without_boxes_serves_uncropped_queries_only(tmp_path):
    root = build(tmp_path / "ox", entry(bbx=None))
    error = refusal(root, tmp_path / "home")
    assert f"1 of 2 queries have no 'bbx', the first is {QUERIES[0]!r}" in error.problem
    opened(root, tmp_path / "home", crop_queries=False).images()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"gnd": "/nowhere/gnd.pkl"}, "gnd"),
        ({"gnd": "/"}, "gnd"),
        ({"train": {"folder": "/nowhere"}}, "train.root"),
        ({"train": "no-such-dataset"}, "train"),
        ({"train": {"folder": "/nowhere", "protocol": {}}}, "train.protocol"),
        ({"train": {"name": "rparis6k", "root": "/nowhere"}}, "train"),
        ({"store_size": 4096}, "store_size"),
        ({"expected": "some"}, "expected"),
        ({"protocol": {"at": 10}}, "protocol.at"),
    ],
)
def test_a_wrong_option_is_named_by_its_key(options, key, tmp_path):
    assert refusal(build(tmp_path / "ox"), tmp_path / "home", **options).key == key


def test_links_that_lead_out_are_followed_when_that_is_meant(tmp_path):
    root = build(tmp_path / "ox")
    path = root / "jpg" / f"{GALLERY[0]}.jpg"
    path.rename(tmp_path / "outside.jpg")
    path.symlink_to(tmp_path / "outside.jpg")
    assert "leads out of the folder" in refusal(root, tmp_path / "home").problem
    assert len(opened(root, tmp_path / "home", follow_links=True).images()) == 7


# ---- codes in files --------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    query, gallery = (np.sign(rng.normal(size=(n, 12))).astype(np.int8) for n in (2, 5))
    np.save(tmp_path / "q.npy", query)
    np.save(tmp_path / "g.npy", gallery)
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(GND, 2))
    return tmp_path, query, gallery


def test_files_of_codes_are_scored_by_a_ground_truth_file(files):
    folder, query, gallery = files
    found = evaluate_landmark_files(folder / "q.npy", folder / "g.npy", folder / "gnd.pkl")
    truth = as_read(GND).landmarks
    expected = evaluate_landmarks(pack(query), pack(gallery), truth, 12)
    assert found.to_json() == expected.to_json()
    for name, codes in (("q", query), ("g", gallery)):
        np.save(folder / f"{name}p.npy", pack(codes))
    (folder / "gnd.json").write_text(json.dumps(GND))
    packed = [folder / name for name in ("qp.npy", "gp.npy", "gnd.json")]
    assert evaluate_landmark_files(*packed, bits=12).to_json() == expected.to_json()


def test_each_mistake_in_files_names_its_option(files):
    folder, _, gallery = files
    good = {"query_codes": "q.npy", "gallery_codes": "g.npy", "gnd": "gnd.pkl"}
    np.save(folder / "short.npy", gallery[:4])
    np.save(folder / "narrow.npy", gallery[:, :8])
    np.save(folder / "object.npy", np.array([{}]), allow_pickle=True)
    (folder / "bad.pkl").write_bytes(pickle.dumps(Runs(os.system, "true"), 2))

    def error(bits=None, **changes) -> InputError:
        paths = {key: folder / name for key, name in {**good, **changes}.items()}
        with pytest.raises(InputError) as caught:
            evaluate_landmark_files(**paths, bits=bits)
        return caught.value

    assert error(gnd="nowhere.pkl").key == "--gnd"
    assert error(gnd=".").key == "--gnd"
    assert f"{os.name}.system" in error(gnd="bad.pkl").problem
    assert error(query_codes="nowhere.npy").key == "--query-codes"
    assert error(query_codes="object.npy").key == "--query-codes"
    assert error(gallery_codes="narrow.npy").key == "--gallery-codes"
    assert error(bits=0).key == "--bits"
    short = error(gallery_codes="short.npy")
    assert short.key == "--gallery-codes"
    assert "has 4 codes; 'imlist' of the ground truth has 5 images" in short.problem
    swapped = error(query_codes="g.npy", gallery_codes="q.npy")
    assert swapped.key == "--query-codes"
