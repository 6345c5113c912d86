"""Encode, index and search as people call them."""

import io
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from orchestrator.serving.trained import open_trial
from orchestrator.session import open_session
from retrieval.codes import pack

FILES = 12


@pytest.fixture(scope="module")
def photos(served_home, tmp_path_factory) -> Path:
    """Some test queries as lossless files, in folders; hidden and other files beside them."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMBENCH_HOME", str(served_home))
        trained = open_trial(None, "served:csch")
    stored, rows = trained.dataset.images(), trained.rows("query")[:FILES]
    for place, row in enumerate(rows):
        path = folder / ("b" if place % 2 else "a") / f"{place:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.array(stored.array[row])).save(path)
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(b"")
    return folder


def order(folder: Path) -> list[Path]:
    """Return the files as they are listed below a folder."""
    return [*sorted((folder / "a").glob("*.png")), *sorted((folder / "b").glob("*.png"))]


def expected(side: str = "query", method: str = "csch") -> tuple[np.ndarray, np.ndarray]:
    """Return the scored codes of the photos in the listing's order, and their places."""
    trained = open_trial(open_session("served", ran=True), method)
    places = [*range(0, FILES, 2), *range(1, FILES, 2)]
    kept = {"query": "query_codes.npy", "gallery": "gallery_network_query_codes.npy"}[side]
    stages = trained.trial.stages
    stage = stages.get("joint") or stages[side]
    codes = np.load(trained.session.store.read(stage, kept))
    return codes[places], np.array(places)


# ---- encode --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize("method", ["csch", "daph"])
def test_files_of_the_dataset_get_the_codes_that_were_scored(
    in_home, asymbench, photos, tmp_path, side, method
) -> None:
    out = tmp_path / "codes.npy"
    told = asymbench("encode", f"served:{method}", str(photos), "--side", side, "-o", str(out))
    assert told.code == 0, told.err
    codes, _ = expected(side, method)
    assert np.array_equal(np.load(out, allow_pickle=False), codes)
    note = json.loads(out.with_suffix(".json").read_text())
    assert note["images"] == [str(path) for path in order(photos)]
    assert (note["bits"], note["side"], note["kind"]) == (16, side, "codes")
    assert note["trial"]["label"].startswith(method)
    assert note["skipped"] == []


def test_floats_have_the_signs_of_the_codes_and_batches_change_no_bit_here(
    in_home, asymbench, photos, tmp_path
) -> None:
    out, few = tmp_path / "h.npy", tmp_path / "few.npy"
    args = ("encode", "csch", str(photos), "--device", "cpu", "--threads", "1", "-o")
    told = asymbench(*args, str(out), "--float", "--json")
    shown = json.loads(told.out)
    assert shown["codes"] == str(out) and shown["images"] == FILES and shown["bits"] == 16
    h = np.load(out)
    assert h.dtype == np.float32 and h.shape == (FILES, 16)
    assert np.array_equal(pack(h), expected()[0])
    assert asymbench(*args, str(few), "--float", "--batch-size", "5").code == 0
    assert np.allclose(np.load(few), h, atol=1e-5)
    assert json.loads(out.with_suffix(".json").read_text())["kind"] == "embeddings"


def test_files_patterns_zips_and_folders_are_taken_in_the_order_given(
    in_home, asymbench, photos, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(photos)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(photos / "b" / "03.png", "x/3.png")
        archive.write(photos / "a" / "00.png", "x/0.png")
        archive.writestr("__MACOSX/0.png", b"")
    out = tmp_path / "codes.npy"
    given = ["b/01.png", "a/*.png", str(tmp_path / "some.zip"), "a", "b/0?.png"]
    assert asymbench("encode", "csch", *given, "-o", str(out)).code == 0
    names = json.loads(out.with_suffix(".json").read_text())["images"]
    evens = [f"a/{place:02d}.png" for place in range(0, FILES, 2)]
    odds = [f"b/{place:02d}.png" for place in range(3, 10, 2)]
    inside = [f"{tmp_path}/some.zip/x/{place}.png" for place in (0, 3)]
    assert names == ["b/01.png", *evens, *inside, *odds]
    codes, places = expected()
    of = dict(zip(places.tolist(), codes, strict=True))
    wanted = [of[int(re.findall(r"(\d+)\.png$", name)[0])] for name in names]
    assert np.array_equal(np.load(out), wanted)


def test_an_unreadable_image_is_named_or_skipped_and_listed(
    in_home, asymbench, photos, tmp_path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image at all")
    given = (str(bad), str(photos / "a" / "00.png"), "-o", str(tmp_path / "codes.npy"))
    told = asymbench("encode", "csch", *given)
    assert told.code == 2 and str(bad) in told.err and "--skip-unreadable" in told.err
    assert not (tmp_path / "codes.npy").exists()
    told = asymbench("encode", "csch", *given, "--skip-unreadable")
    assert told.code == 0 and f"skipped {bad}: " in told.err
    note = json.loads((tmp_path / "codes.json").read_text())
    assert note["images"] == [str(photos / "a" / "00.png")]
    assert [entry["image"] for entry in note["skipped"]] == [str(bad)]
    assert len(np.load(tmp_path / "codes.npy")) == 1
    told = asymbench("encode", "csch", str(bad), "-o", given[-1], "--skip-unreadable")
    assert told.code == 2 and "none of the images" in told.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["csch", "nowhere", "-o", "c.npy"], "no such file or folder"),
        (["csch", "*.nothing", "-o", "c.npy"], "no such file or folder"),
        (["csch", ".", "-o", "c.npy"], "there is no image in it"),
        (["csch", "broken.zip", "-o", "c.npy"], "is no whole zip"),
        (["csch", "x.png", "-o", "c.txt"], "must end with .npy"),
        (["csch", "x.png", "-o", "none/c.npy"], "no such folder"),
        (["csch", "x.png", "-o", "c.npy", "--side", "qery"], "did you mean 'query'"),
        (["csch", "x.png", "-o", "c.npy", "--device", "cud"], "did you mean 'cuda'"),
        (["csch", "x.png", "-o", "c.npy", "--batch-size", "0"], "--batch-size"),
        (["csch", "x.png", "-o", "c.npy", "--threads", "0"], "--threads"),
        (["cscj", "x.png", "-o", "c.npy"], "TRIAL"),
        (["csch", "x.png"], "--output"),
    ],
)
def test_mistakes_end_with_2_and_one_message(
    in_home, asymbench, tmp_path, monkeypatch, args, says
) -> None:
    monkeypatch.chdir(tmp_path)
    if "x.png" in args:
        Image.new("RGB", (8, 8)).save("x.png")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    told = asymbench("encode", *args)
    assert told.code == 2 and says in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "c.npy").exists()


# ---- index ---------------------------------------------------------------------------------


def test_the_studys_own_gallery_is_indexed_without_encoding(
    in_home, asymbench, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.serving.building.encode_photos", lambda *a, **k: pytest.fail("it encodes")
    )
    told = asymbench("index", "csch", "-o", str(tmp_path / "own"), "--json")
    trained = open_trial(open_session("served", ran=True), "csch")
    assert json.loads(told.out)["images"] == len(trained.rows("gallery"))
    codes = np.load(tmp_path / "own" / "codes-0000.npy", allow_pickle=False)
    assert np.array_equal(codes, trained.codes("gallery"))
    table = pyarrow.parquet.read_table(tmp_path / "own" / "names-0000.parquet")
    keys = trained.dataset.index().keys
    assert table["name"].to_pylist() == [keys[row] for row in trained.rows("gallery")]
    again = asymbench("index", "csch", "-o", str(tmp_path / "own"))
    assert again.code == 0 and "nothing to add" in again.out


def built(asymbench, folder: Path, *images: str, code: int = 0):
    told = asymbench("index", "csch", *images, "-o", str(folder))
    assert told.code == code, told.err
    return told


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_images_of_ones_own_are_encoded_by_the_gallery_network(
    in_home, asymbench, photos, tmp_path
) -> None:
    told = built(asymbench, tmp_path / "own", str(photos))
    assert "12 added" in told.out
    assert np.array_equal(np.load(tmp_path / "own" / "codes-0000.npy"), expected("gallery")[0])
    table = pyarrow.parquet.read_table(tmp_path / "own" / "names-0000.parquet")
    assert table["name"].to_pylist() == [str(path) for path in order(photos)]
    assert sorted(contents(tmp_path / "own")) == [
        "codes-0000.npy",
        "index.json",
        "names-0000.parquet",
    ]


def test_an_index_grows_by_what_it_does_not_have(in_home, asymbench, photos, tmp_path) -> None:
    folder = tmp_path / "own"
    built(asymbench, folder, str(photos / "a"))
    refused = built(asymbench, folder, str(photos), code=2)
    assert "--add" in refused.err
    for said in ("6 added", "nothing to add"):
        told = asymbench("index", "csch", str(photos), "-o", str(folder), "--add")
        assert told.code == 0 and said in told.out
    parts = [np.load(folder / f"codes-000{n}.npy") for n in (0, 1)]
    assert np.array_equal(np.concatenate(parts), expected("gallery")[0])
    assert "changed" not in told.err
    lonely = asymbench("index", "csch", "-o", str(folder), "--add")
    assert lonely.code == 2 and "name the images to add" in lonely.err


def test_a_stopped_building_goes_on_to_the_same_bytes(
    in_home, asymbench, photos, tmp_path, monkeypatch
) -> None:
    import orchestrator.serving.building as module

    monkeypatch.setattr(module, "_CHUNK", 4)
    args = ("index", "csch", str(photos), "--batch-size", "4", "-o")
    assert asymbench(*args, str(tmp_path / "whole")).code == 0
    real, calls = module.encode_photos, []

    def dying(side, some, *rest, **options):
        calls.append(len(some))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(side, some, *rest, **options)

    monkeypatch.setattr(module, "encode_photos", dying)
    told = asymbench(*args, str(tmp_path / "stopped"))
    assert told.code == 130 and "goes on from here" in told.err
    unfinished = asymbench(
        "search", "csch", str(photos / "a" / "00.png"), "--index", str(tmp_path / "stopped")
    )
    assert unfinished.code == 2 and "not finished" in unfinished.err
    assert asymbench(*args, str(tmp_path / "stopped")).code == 0
    assert calls == [4, 4, 4, 4]  # one chunk was done, one was lost, and two were to do
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_unreadable_images_are_left_out_of_an_index_and_listed(
    in_home, asymbench, photos, tmp_path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    given = (str(photos / "a" / "00.png"), str(bad), str(photos / "b" / "01.png"))
    args = ("index", "csch", *given, "-o", str(tmp_path / "own"))
    assert asymbench(*args).code == 2
    told = asymbench(*args, "--skip-unreadable", "--json")
    shown = json.loads(told.out)
    assert shown["images"] == 2 and [entry["image"] for entry in shown["skipped"]] == [str(bad)]
    codes, places = expected("gallery")
    of = dict(zip(places.tolist(), codes, strict=True))
    assert np.array_equal(np.load(tmp_path / "own" / "codes-0000.npy"), [of[0], of[1]])


def test_an_addition_lists_what_it_cannot_read_and_what_has_changed(
    in_home, asymbench, photos, tmp_path
) -> None:
    """Codes that an index has stay; what they are no longer codes of is said."""
    mine, folder = tmp_path / "mine", tmp_path / "own"
    shutil.copytree(photos / "a", mine)
    built(asymbench, folder, str(mine))
    kept = contents(folder)
    (mine / "bad.png").write_bytes(b"")
    shutil.copy(photos / "b" / "01.png", mine / "00.png")
    args = ("index", "csch", str(mine), "-o", str(folder), "--add")
    stopped = asymbench(*args)
    assert stopped.code == 2 and "bad.png" in stopped.err
    told = asymbench(*args, "--skip-unreadable")
    assert told.code == 0 and "6 images of 16 bits, nothing to add" in told.out
    assert f"skipped {mine / 'bad.png'}: no image that can be decoded" in told.err
    assert f"changed {mine / '00.png'}: the index keeps what it was" in told.err
    assert contents(folder) == kept
    shutil.copy(photos / "b" / "03.png", mine)
    shown = json.loads(asymbench(*args, "--skip-unreadable", "--json").out)
    assert (shown["images"], shown["added"]) == (7, 1)
    assert shown["changed"] == [str(mine / "00.png")]
    assert [entry["image"] for entry in shown["skipped"]] == [str(mine / "bad.png")]


def test_a_folder_with_other_files_is_left_alone(in_home, asymbench, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    told = built(asymbench, tmp_path / "mine", code=2)
    assert "other files" in told.err
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    assert "is no folder" in built(asymbench, tmp_path / "file", code=2).err
    assert "no such folder" in built(asymbench, tmp_path / "no" / "where", code=2).err


@pytest.mark.parametrize("name", ["codes-0000.npy", "names-0000.parquet", "index.json"])
def test_a_damaged_index_is_refused(in_home, asymbench, photos, tmp_path, name) -> None:
    built(asymbench, tmp_path / "own", str(photos / "a"))
    path = tmp_path / "own" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-3] if name == "index.json" else data)
    query = str(photos / "a" / "00.png")
    told = asymbench("search", "csch", query, "--index", str(tmp_path / "own"))
    assert told.code == 2 and "is damaged" in told.err


def test_an_index_of_another_network_is_refused(in_home, asymbench, photos, tmp_path) -> None:
    built(asymbench, tmp_path / "own", str(photos / "a"))
    query = str(photos / "a" / "00.png")
    for args in (
        ("search", "daph", query, "--index", str(tmp_path / "own")),
        ("index", "daph", str(photos), "--add", "-o", str(tmp_path / "own")),
    ):
        told = asymbench(*args)
        assert told.code == 2 and "another gallery network" in told.err
    told = asymbench("search", "csch", query, "--index", str(tmp_path))
    assert told.code == 2 and "there is no index" in told.err


# ---- search --------------------------------------------------------------------------------


def oracle(query: np.ndarray, codes: np.ndarray) -> list[tuple[int, int]]:
    """Return (distance, row) of all, nearest first, counted bit by bit."""
    apart = np.unpackbits(codes ^ query, axis=1).sum(axis=1)
    return sorted(zip(apart.tolist(), range(len(codes)), strict=True))


@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize(
    ("asked", "most", "radius"),
    [([], 10, 16), (["-k", "3"], 3, 16), (["--radius", "2"], None, 2),
     (["-k", "4", "--radius", "3"], 4, 3)],
)  # fmt: skip
def test_what_is_found_is_what_a_sort_of_all_distances_finds(
    in_home, asymbench, photos, side, asked, most, radius
) -> None:
    trained = open_trial(open_session("served", ran=True), "csch")
    told = asymbench("search", "csch", str(photos), "--side", side, *asked, "--json")
    assert told.code == 0, told.err
    shown = json.loads(told.out)
    codes, keys = trained.codes("gallery"), trained.dataset.index().keys
    rows, labels = trained.rows("gallery"), trained.dataset.index().labels
    assert shown["gallery"] == len(rows) and shown["side"] == side
    for query, answer in zip(expected(side)[0], shown["queries"], strict=True):
        wanted = [pair for pair in oracle(query, codes) if pair[0] <= radius][:most]
        found = answer["matches"]
        assert [(match["distance"], match["row"]) for match in found] == wanted
        assert [match["name"] for match in found] == [keys[rows[row]] for _, row in wanted]
        assert [match["classes"] for match in found] == [[str(labels[rows[r]])] for _, r in wanted]
        assert answer["code"] == "".join(map(str, np.unpackbits(query)))
        # Ties that the number cuts off are counted.
        reach = wanted[-1][0] if len(wanted) == most else -1
        as_near = sum(distance <= reach for distance, _ in oracle(query, codes))
        assert answer["equally_near_beyond"] == max(0, as_near - len(wanted))


def test_an_index_of_ones_own_is_searched_with_its_names(
    in_home, asymbench, photos, tmp_path
) -> None:
    built(asymbench, tmp_path / "own", str(photos / "a"))
    assert asymbench(
        "index", "csch", str(photos / "b"), "--add", "-o", str(tmp_path / "own")
    ).code == 0  # fmt: skip
    query = str(order(photos)[3])
    told = asymbench("search", "csch", query, "--index", str(tmp_path / "own"), "-k", "12")
    wanted = oracle(expected()[0][3], expected("gallery")[0])
    lines = told.out.splitlines()
    assert lines[0] == query and lines[1].split() == ["rank", "distance", "row", "name"]
    assert [line.split() for line in lines[2:]] == [
        [str(rank), str(distance), str(row), str(order(photos)[row])]
        for rank, (distance, row) in enumerate(wanted, start=1)
    ]
    few = asymbench("search", "csch", query, "--index", str(tmp_path / "own"), "-k", "1")
    tied = sum(distance == wanted[0][0] for distance, _ in wanted) - 1
    assert few.out.splitlines()[3:] == (
        [f"and {tied} more at {wanted[0][0]} bit{'' if wanted[0][0] == 1 else 's'}"] * bool(tied)
    )


def test_pages_and_pictures_show_the_query_and_what_was_found(
    in_home, asymbench, photos, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "<b>&quot;\u202e.png"
    odd.write_bytes((photos / "a" / "00.png").read_bytes())
    built(asymbench, tmp_path / "own", str(photos), str(odd))
    gone = order(photos)[1]
    kept = gone.read_bytes()
    gone.unlink()
    try:
        told = asymbench(
            "search", "csch", odd.name, str(photos / "b" / "01.png"), "--index", "own", "-k", "13",
            "--html", "page.html", "--picture", "page.png",
        )  # fmt: skip
    finally:
        gone.write_bytes(kept)
    assert told.code == 0 and "\u202e" not in told.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + 2 * 12
    assert page.count("unreadable") == 2
    assert "<b>" not in page and "&lt;b&gt;&amp;quot;" in page and "\u202e" not in page
    assert "http" not in page
    picture = Image.open(io.BytesIO((tmp_path / "page.png").read_bytes()))
    assert picture.format == "PNG" and picture.width > 1000


@pytest.mark.parametrize("engine", ["exact", "faiss", "faiss-ivf"])
def test_engines_that_look_at_all_find_the_same_distances(
    in_home, asymbench, photos, engine
) -> None:
    if engine != "exact":
        pytest.importorskip("faiss")
    args = ["search", "csch", str(photos / "a"), "-k", "20", "--engine", engine, "--json"]
    told = asymbench(*args, *(["--nprobe", "100000"] if engine == "faiss-ivf" else []))
    assert told.code == 0, told.err
    codes = open_trial(open_session("served", ran=True), "csch").codes("gallery")
    for query, answer in zip(expected()[0][:6], json.loads(told.out)["queries"], strict=True):
        wanted = [distance for distance, _ in oracle(query, codes)[:20]]
        assert [match["distance"] for match in answer["matches"]] == wanted


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--engine", "fais"], "did you mean 'faiss'"),
        (["--nprobe", "3"], "is of --engine faiss-ivf"),
        (["--engine", "faiss", "--radius", "3"], "--radius: needs -k too"),
        (["-k", "0"], "-k"),
        (["--radius", "-1"], "--radius"),
        (["--html", "no/where.html"], "no such folder"),
        (["--picture", "."], "must name a file"),
    ],
)
def test_questions_without_sense_end_with_2(in_home, asymbench, photos, args, says) -> None:
    told = asymbench("search", "csch", str(photos / "a" / "00.png"), *args)
    assert told.code == 2 and says in told.err


def test_without_faiss_the_message_says_what_to_install(
    in_home, asymbench, photos, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    told = asymbench("search", "csch", str(photos / "a" / "00.png"), "--engine", "faiss")
    assert told.code == 2 and "pip install faiss-cpu" in told.err


def test_queries_that_cannot_be_read_are_left_out_and_listed(
    in_home, asymbench, photos, tmp_path
) -> None:
    bad, good = tmp_path / "bad.png", photos / "a" / "00.png"
    bad.write_bytes(b"")
    args = ("search", "csch", str(bad), str(good), "--skip-unreadable")
    told = asymbench(*args)
    assert told.code == 0 and told.out.startswith(f"{good}\nrank")
    assert told.err == f"skipped {bad}: no image that can be decoded\n"
    shown = json.loads(asymbench(*args, "--json").out)
    assert [query["query"] for query in shown["queries"]] == [str(good)]
    assert [entry["image"] for entry in shown["skipped"]] == [str(bad)]
    assert asymbench(*args[:-1]).code == 2
    none = asymbench("search", "csch", str(bad), "--skip-unreadable")
    assert none.code == 2 and "none of the images can be read" in none.err


def test_nothing_within_a_radius_is_said(in_home, asymbench, photos, tmp_path) -> None:
    built(asymbench, tmp_path / "own", str(photos / "b"))
    told = asymbench(
        "search", "csch", str(photos), "--index", str(tmp_path / "own"), "--radius", "0"
    )
    codes = expected("gallery")[0][6:]
    alone = [oracle(query, codes)[0][0] > 0 for query in expected()[0]]
    sections = told.out.split("\n\n")
    assert ["nothing is within the radius" in section for section in sections] == alone
