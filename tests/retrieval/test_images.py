"""The image store: built once, whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from retrieval import images
from retrieval.datasets import open_dataset
from retrieval.errors import DatasetError
from retrieval.images import build as image_build
from retrieval.images import decode_bytes, open_images, square
from retrieval.images.build import BLOCK, Reopening, UnreadableImagesError

N = 200
PIXELS = np.random.default_rng(1).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)


def build(folder: Path, decode=None, *, n: int = N, fingerprint: str = "f", **options):
    @contextmanager
    def decoder():
        yield decode or (lambda number: PIXELS[number])

    return open_images(
        folder,
        decoder,
        keys=[f"k{i}" for i in range(n)],
        labels=np.arange(n) % 3,
        classes=["a", "b", "c"],
        fingerprint=fingerprint,
        **options,
    )


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock")


def test_a_store_holds_pixels_labels_and_names(tmp_path):
    store = build(tmp_path / "images" / "x")
    assert np.array_equal(store.array, PIXELS)
    assert isinstance(store.array, np.memmap)
    assert store.size == 6
    assert store.labels.tolist() == [i % 3 for i in range(N)]
    assert store.classes == ["a", "b", "c"]
    assert store.keys[7] == "k7"
    assert not store.array.flags.writeable
    assert left(tmp_path / "images" / "x") == ["x"]

    def never(number):
        raise AssertionError("decoded twice")

    assert np.array_equal(build(tmp_path / "images" / "x", never).array, PIXELS)


def test_mixed_sizes_are_resized_by_the_shorter_side_and_cut_square(tmp_path):
    shapes = [(40, 60), (80, 40), (20, 20)]
    images = [np.random.default_rng(i).integers(0, 256, (*s, 3), dtype=np.uint8)
              for i, s in enumerate(shapes)]  # fmt: skip
    store = build(tmp_path / "x", lambda number: images[number], n=3, store_size=32)
    for number, (new, box) in enumerate(
        [((48, 32), (8, 0, 40, 32)), ((32, 64), (0, 16, 32, 48)), ((32, 32), (0, 0, 32, 32))]
    ):
        image = Image.fromarray(images[number]).resize(new, Image.Resampling.BICUBIC).crop(box)
        assert np.array_equal(store.array[number], np.asarray(image))


def test_a_size_that_differs_late_still_makes_all_squares(tmp_path):
    def decode(number):
        return np.full((6, 6, 3) if number < N - 1 else (9, 7, 3), 50, dtype=np.uint8)

    store = build(tmp_path / "x", decode, store_size=16)
    assert store.array.shape == (N, 16, 16, 3)
    assert (store.array == 50).all()


def test_one_common_oblong_size_loses_its_ends_and_large_images_shrink(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (4, 10, 14, 3), dtype=np.uint8)
    store = build(tmp_path / "x", lambda number: wide[number], n=4)
    assert np.array_equal(store.array, wide[:, :, 2:12])
    small = build(tmp_path / "y", lambda number: wide[number], n=4, store_size=8)
    assert small.array.shape == (4, 8, 8, 3)


def test_square_leaves_a_square_of_the_size_alone():
    assert square(PIXELS[0], 6) is not None
    assert np.array_equal(square(PIXELS[0], 6), PIXELS[0])


@pytest.mark.parametrize("upright", [False, True])
def test_a_very_long_image_is_cut_before_it_is_resized(monkeypatch, upright):
    made = []
    resize = Image.Image.resize

    def recording(self, size, *args, **options):
        made.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", recording)
    image = np.zeros((2, 30_000, 3), dtype=np.uint8)
    image[:, 15_000:] = 255
    image[:, [0, -1]] = 128
    result = square(image.transpose(1, 0, 2) if upright else image, 64)
    lines = result.transpose(1, 0, 2) if upright else result
    assert result.shape == (64, 64, 3)
    assert (lines[:, :16] == 0).all()
    assert (lines[:, -16:] == 255).all()
    # Resized whole it would be 64 x 960,000: 180 MB for 180 kB.
    assert [width * height for width, height in made] == [64 * 64 * 16]


def test_unreadable_images_are_counted_and_named_and_nothing_is_left(tmp_path):
    def decode(number):
        if number % 20 == 3:
            raise DatasetError(f"{number}.jpg (damaged)")
        return PIXELS[number]

    with pytest.raises(DatasetError) as caught:
        build(tmp_path / "x", decode)
    message = caught.value.problem
    assert message.startswith("10 images of 200 cannot be read: 3.jpg (damaged); 23.jpg")
    assert message.endswith("; and 5 more")
    assert left(tmp_path / "x") == []


def test_all_images_unreadable_is_an_error_too(tmp_path):
    def decode(number):
        raise DatasetError(f"{number}.jpg (damaged)")

    with pytest.raises(DatasetError, match="200 images of 200 cannot be read"):
        build(tmp_path / "x", decode)


def test_all_unreadable_images_are_in_the_error(tmp_path):
    def decode(number):
        if number % 20 == 3:
            raise DatasetError(f"{number}.jpg (damaged)")
        return PIXELS[number]

    with pytest.raises(UnreadableImagesError) as caught:
        build(tmp_path / "x", decode)
    assert caught.value.problems == {n: f"{n}.jpg (damaged)" for n in range(3, N, 20)}
    assert "asymbench prepare" in str(caught.value.hint)


@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_end_is_zeros_is_refused(thumbnail, progressive):
    def jpeg(**options) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(PIXELS[0]).resize((64, 64)).save(stream, "JPEG", **options)
        return stream.getvalue()

    # An APP13 segment, as picture editors write it, with a whole JPEG inside.
    inside = b"thumbnail" + jpeg()
    segment = b"\xff\xed" + (len(inside) + 2).to_bytes(2, "big") + inside
    data = jpeg(progressive=progressive)
    data = data[:2] + segment * thumbnail + data[2:]
    whole = decode_bytes(data, "a.jpg")
    begins = data.rfind(b"\xff\xda")
    half = begins + (len(data) - begins) // 2
    with pytest.raises(DatasetError, match=r"a.jpg \(zeros instead of the end of the image\)"):
        decode_bytes(data[:half] + bytes(len(data) - half), "a.jpg")
    # What follows the end is no part of the image.
    np.testing.assert_array_equal(decode_bytes(data + bytes(512), "a.jpg"), whole)


def failing(error, at: int = 150, log: list[int] | None = None):
    """A decoder that fails at an image."""

    def decode(number):
        if number == at:
            raise error
        if log is not None:
            log.append(number)
        return PIXELS[number]

    return decode


def one_core(monkeypatch):
    """Blocks are decoded in order."""
    monkeypatch.setattr(image_build, "cores", lambda: 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch, error):
    one_core(monkeypatch)
    folder = tmp_path / "x"
    with pytest.raises(error):
        build(folder, failing(error))
    assert left(folder) == [".x.building"]
    again: list[int] = []
    store = build(folder, failing(None, -1, again))
    # Image 150 is in the block of 128 to 159; those before it were done.
    assert sorted(again) == list(range(128, N))
    assert np.array_equal(store.array, PIXELS)
    assert left(folder) == ["x"]
    whole = build(tmp_path / "whole" / "x")
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["images.npy", "labels.npy", "meta.json"]
    for name in files:
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_build_stopped_before_its_first_block_leaves_nothing(tmp_path, monkeypatch):
    one_core(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "x", failing(KeyboardInterrupt, 5))
    assert left(tmp_path / "x") == []


@pytest.mark.parametrize("number", [0, 150])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, number):
    def full(*args):
        if len(calls) * BLOCK >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        calls.append(args)
        return write(*args)

    calls: list = []
    write = os.pwrite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            build(tmp_path / "x")
    assert left(tmp_path / "x") == []
    assert np.array_equal(build(tmp_path / "x").array, PIXELS)


def test_a_store_that_cannot_fit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = [3 * 36 * N - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, free[0]))
    seen: list[int] = []
    with pytest.raises(OSError, match=r"No space left on device, 0\.00 GB") as caught:
        build(tmp_path / "x", failing(None, -1, seen))
    assert caught.value.errno == errno.ENOSPC
    assert seen == [0]  # looked at for its size
    assert left(tmp_path / "x") == []
    free[0] += 1
    build(tmp_path / "x")


def interrupted(folder: Path, monkeypatch) -> Path:
    """Return the folder of a build that was stopped after four blocks of seven."""
    with monkeypatch.context() as patch:
        one_core(patch)
        with pytest.raises(KeyboardInterrupt):
            build(folder, failing(KeyboardInterrupt))
    return folder.with_name(f".{folder.name}.building")


FIRST, SECOND, THIRD, FOURTH = (list(range(BLOCK * k, BLOCK * k + BLOCK)) for k in range(4))


@pytest.mark.parametrize(
    ("damage", "redone"),
    [
        ("nothing", []),
        ("a byte of a pixel", SECOND),
        ("the last line cut", FOURTH),
        ("the last line without its end", FOURTH),
        ("a byte of a line", SECOND + THIRD + FOURTH),
        ("pixels cut", FOURTH),
        ("pixels gone", FIRST + SECOND + THIRD + FOURTH),
        ("the header", FIRST + SECOND + THIRD + FOURTH),
        ("journal gone", FIRST + SECOND + THIRD + FOURTH),
        ("journal of something else", FIRST + SECOND + THIRD + FOURTH),
        ("journal no text", FIRST + SECOND + THIRD + FOURTH),
    ],
)
def test_only_blocks_that_are_what_the_journal_says_are_kept(
    tmp_path, monkeypatch, damage, redone
):
    folder = tmp_path / "x"
    building = interrupted(folder, monkeypatch)
    pixels, journal = building / "images.npy", building / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    if damage == "a byte of a pixel":
        with pixels.open("rb+") as stream:
            stream.seek(128 + 108 * 40)
            stream.write(bytes([PIXELS[40, 0, 0, 0] ^ 1]))
    elif damage == "the last line cut":
        journal.write_bytes(b"".join(lines)[:-10])
    elif damage == "the last line without its end":
        journal.write_bytes(b"".join(lines)[:-1])
    elif damage == "a byte of a line":
        journal.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"crc": ', b'"crc": 1'),
                                      *lines[3:]]))  # fmt: skip
    elif damage == "pixels cut":
        os.truncate(pixels, 128 + 108 * 120)
    elif damage == "pixels gone":
        pixels.unlink()
    elif damage == "the header":
        pixels.write_bytes(b"\x93NUMPX" + pixels.read_bytes()[6:])
    elif damage == "journal gone":
        journal.unlink()
    elif damage == "journal of something else":
        monkeypatch.setattr("PIL.__version__", "0.0.1")
    elif damage == "journal no text":
        journal.write_bytes(bytes(range(256)))
    seen: list[int] = []
    store = build(folder, failing(None, -1, seen))
    assert np.array_equal(store.array, PIXELS)
    anew = damage in ("pixels gone", "the header") or damage.startswith("journal ")
    looked_at = [0] if anew else []  # for its size
    assert sorted(seen) == sorted(looked_at + redone + list(range(128, N)))


@pytest.mark.parametrize("change", ["fingerprint", "keys", "store_size"])
def test_an_interrupted_build_of_something_else_is_not_gone_on_with(tmp_path, monkeypatch, change):
    folder = tmp_path / "x"
    interrupted(folder, monkeypatch)
    other = PIXELS[::-1]
    options = {"fingerprint": {"fingerprint": "g"}, "store_size": {"store_size": 5}}
    n = N - 1 if change == "keys" else N
    store = build(folder, lambda number: other[number], n=n, **options.get(change, {}))
    size = 5 if change == "store_size" else 6
    assert np.array_equal(store.array, [square(image, size) for image in other[:n]])


def test_what_other_interrupted_builds_left_is_kept_for_a_week(tmp_path, monkeypatch):
    building = interrupted(tmp_path / "old", monkeypatch)
    recent = interrupted(tmp_path / "recent", monkeypatch)
    (tmp_path / ".empty.building").mkdir()
    week = time.time() - 7 * 24 * 3600
    os.utime(building / "journal", (week - 60, week - 60))
    os.utime(recent / "journal", (week + 600, week + 600))
    build(tmp_path / "x")
    assert left(tmp_path / "x") == [".recent.building", "x"]


def test_progress_counts_what_was_done_before(tmp_path, monkeypatch):
    interrupted(tmp_path / "x", monkeypatch)
    told: list[tuple[int, int]] = []
    build(tmp_path / "x", progress=lambda done, n: told.append((done, n)))
    assert told[0] == (128, N)
    assert told[-1] == (N, N)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("damage", ["cut", "no_labels", "manifest", "fingerprint", "keys"])
def test_a_damaged_or_foreign_store_is_built_anew(tmp_path, damage):
    folder = tmp_path / "x"
    build(folder)
    meta = json.loads((folder / "meta.json").read_text())
    if damage == "cut":
        os.truncate(folder / "images.npy", 1000)
    elif damage == "no_labels":
        (folder / "labels.npy").unlink()
    elif damage == "manifest":
        (folder / "meta.json").write_text("{")
    elif damage == "fingerprint":
        (folder / "meta.json").write_text(json.dumps({**meta, "fingerprint": "g"}))
    else:
        (folder / "meta.json").write_text(json.dumps({**meta, "keys": meta["keys"][::-1]}))
    assert np.array_equal(build(folder).array, PIXELS)


def _build_slowly(folder: Path, log: Path) -> None:
    def decode(number):
        if number == 5:
            with log.open("a") as stream:
                stream.write(f"{os.getpid()}\n")
        time.sleep(0.002)
        return PIXELS[number]

    build(folder, decode)


def test_two_processes_that_ask_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    folder, log = tmp_path / "images" / "x", tmp_path / "log"
    both = [context.Process(target=_build_slowly, args=(folder, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    assert len(set(log.read_text().split())) == 1
    assert left(folder) == ["x"]
    assert np.array_equal(build(folder).array, PIXELS)


def _build_until_killed(folder: Path) -> None:
    def progress(done, n):
        if done >= 64:
            os.kill(os.getpid(), signal.SIGKILL)

    build(folder, progress=progress)


def test_a_killed_build_leaves_no_store_and_the_next_one_goes_on(tmp_path):
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "images" / "x"
    process = context.Process(target=_build_until_killed, args=(folder,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert left(folder) == [".x.building"]
    seen: list[int] = []
    assert np.array_equal(build(folder, failing(None, -1, seen)).array, PIXELS)
    assert len(seen) <= N - 64
    assert left(folder) == ["x"]


# ---- processes -------------------------------------------------------------------------------


def photographs(root: Path, n: int = 100) -> Path:
    rng = np.random.default_rng(2)
    for number in range(n):
        folder = root / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (int(rng.integers(20, 40)), int(rng.integers(20, 40)), 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root


def build_folder(root: Path, home: Path, *, reopening=None, **options):
    """Build the store of a folder of images as `Dataset.images` does."""
    given = {"folder": str(root), "store_size": 16}
    dataset = open_dataset(given, home=home)
    index = dataset.index()
    return open_images(
        home / "images" / "x",
        dataset.open_decoder,
        keys=index.keys,
        labels=index.labels,
        classes=index.classes,
        fingerprint=index.fingerprint,
        store_size=16,
        reopening=reopening or Reopening(given, str(home)),
        **options,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture
def started(monkeypatch):
    """Decoding processes that were started."""
    made = []
    start = subprocess.Popen

    def popen(*args, **options):
        made.append(start(*args, **options))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return made


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_processes_makes_the_same_bytes(photos, tmp_path, started, workers):
    expected = []
    for path in sorted(photos.rglob("*.png")):
        expected.append(square(np.asarray(Image.open(path)), 16))
    store = build_folder(photos, tmp_path, workers=workers)
    assert np.array_equal(store.array, expected)
    # The first size is not all images' size: a worker that finds out ends the first try.
    assert len(started) == 2 * workers
    assert all(process.returncode is not None for process in started)
    assert left(tmp_path / "images" / "x") == ["x"]


def test_processes_are_started_only_where_they_are_worth_it(
    photos, tmp_path, monkeypatch, started
):
    build_folder(photos, tmp_path / "small")
    assert not started
    monkeypatch.setattr(image_build, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(image_build, "_WORTH_SECONDS", 0.0)
    one_core(monkeypatch)
    store = build_folder(photos, tmp_path / "large")
    assert started
    small = (tmp_path / "small" / "images" / "x" / "images.npy").read_bytes()
    assert (store.folder / "images.npy").read_bytes() == small


@pytest.mark.parametrize(
    "other", ["no such dataset", "another folder", "an option gone", "no JSON", "no program"]
)
def test_what_no_other_process_can_open_is_decoded_by_threads(
    photos, tmp_path, monkeypatch, started, other
):
    elsewhere = photographs(tmp_path / "photos", 12)
    dataset = {
        "no such dataset": {"name": "fodler"},
        "another folder": {"folder": str(elsewhere)},
        "an option gone": {"folder": str(photos), "gone": 1},
        "no JSON": {"folder": photos},
        "no program": {"folder": str(photos)},
    }[other]
    if other == "no program":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    reopening = Reopening(dataset, str(tmp_path / "home"))
    store = build_folder(photos, tmp_path / "home", reopening=reopening, workers=2)
    whole = build_folder(photos, tmp_path / "other", workers=0)
    assert np.array_equal(store.array, whole.array)
    assert all(process.returncode is not None for process in started)


def test_processes_name_unreadable_images_as_threads_do(tmp_path):
    root = photographs(tmp_path / "photos", 70)
    (root / "a" / "000.png").write_bytes(b"no image")
    (root / "c" / "065.png").write_bytes((root / "c" / "065.png").read_bytes()[:90])
    found = []
    for workers in (0, 2):
        with pytest.raises(UnreadableImagesError) as caught:
            build_folder(root, tmp_path / str(workers), workers=workers)
        found.append(caught.value.problems)
        assert left(tmp_path / str(workers) / "images" / "x") == []
    assert found[0] == found[1]
    assert list(found[0]) == [0, 68]
    assert found[0][0] == "a/000.png (no image that can be decoded)"
    assert found[0][68].startswith("c/065.png (")


def test_interrupted_processes_are_ended_and_their_blocks_are_kept(photos, tmp_path, started):
    def progress(done, n):
        # The first try, with one size of all images, ends before it has done any.
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_folder(photos, tmp_path, workers=2, progress=progress)
    assert all(process.returncode is not None for process in started)
    told = []
    build_folder(photos, tmp_path, workers=2, progress=lambda done, n: told.append(done))
    assert told[0] >= 4
    assert told[-1] == 100
    whole = build_folder(photos, tmp_path / "other", workers=0)
    name = "images/x/images.npy"
    assert (tmp_path / name).read_bytes() == (whole.folder / "images.npy").read_bytes()


def test_a_process_that_dies_is_an_error_and_the_build_goes_on_later(photos, tmp_path, started):
    def progress(done, n):
        if done:
            for process in started[-2:]:
                psutil.Process(process.pid).kill()

    with pytest.raises(DatasetError, match=r"that decoded images \d+ to \d+ ended with exit"):
        build_folder(photos, tmp_path, workers=2, progress=progress)
    assert left(tmp_path / "images" / "x") == [".x.building"]
    assert len(build_folder(photos, tmp_path, workers=2)) == 100


def test_decoding_processes_end_with_the_one_that_started_them(photos, tmp_path):
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import psutil
import test_images
def progress(done, n):
    if done:
        print(*[child.pid for child in psutil.Process().children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
test_images.build_folder(Path({str(photos)!r}), Path({str(tmp_path)!r}), workers=2,
                         progress=progress)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    children = [int(pid) for pid in ran.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, children))
    assert len(build_folder(photos, tmp_path, workers=2)) == 100


# ---- reading ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    return build(tmp_path_factory.mktemp("mapped") / "x")


@pytest.mark.parametrize("limit", [0, 1 << 24])
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, N - 1), max_size=40), run=st.integers(0, N - 1))
def test_reading_rows_gives_the_pixels_of_the_array(mapped, limit, rows, run):
    rows = np.array([*rows, *range(run, min(N, run + 9))], dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_MAPPED", limit)
        pixels = mapped.read(rows)
    assert np.array_equal(pixels, PIXELS[rows])
    assert pixels.flags.writeable
    assert not np.shares_memory(pixels, mapped.array)
    assert mapped.shape == (N, 6, 6, 3)


def test_no_rows_are_read_as_no_images(mapped):
    assert mapped.read(np.empty(0, dtype=np.int64)).shape == (0, 6, 6, 3)


@pytest.mark.parametrize("row", [-1, N])
def test_a_row_that_is_not_there_is_refused(mapped, row):
    with pytest.raises(IndexError, match=f"rows must be in \\[0, {N}\\), got 0..{N}|got -1..0"):
        mapped.read(np.array([0, row]))


def test_a_store_cut_short_while_it_is_read_is_refused(tmp_path, monkeypatch):
    store = build(tmp_path / "x")
    monkeypatch.setattr(images, "_MAPPED", 0)
    os.truncate(tmp_path / "x" / "images.npy", 128 + 108 * 50)
    assert np.array_equal(store.read(np.arange(50)), PIXELS[:50])
    with pytest.raises(DatasetError, match=r"the image store .*images.npy was cut short"):
        store.read(np.arange(51))


# ---- decoding --------------------------------------------------------------------------------


def encoded(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(mode):
    image = Image.fromarray(PIXELS[0]).convert(mode)
    data = encoded(image, format="TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(decode_bytes(data, "x"), np.asarray(image.convert("RGB")))


def test_an_image_that_unpacks_to_gigabytes_is_named():
    # A 1-bit image of 20,000 x 20,000 is 50 kB as a file.
    data = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DatasetError, match=r"^a\.png \(Image size \(400000000 pixels\) exceeds"):
        decode_bytes(data, "a.png")


def test_the_largest_image_does_not_depend_on_what_others_set(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DatasetError, match=r"^a\.png \(Image size \(400000000 pixels\) exceeds"):
        decode_bytes(data, "a.png")


def test_no_program_is_started_to_decode_an_image(started):
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, format="EPS")
    assert Image.open(io.BytesIO(stream.getvalue())).format == "EPS"
    with pytest.raises(DatasetError, match=r"^a\.jpg \(no image that can be decoded\)"):
        decode_bytes(stream.getvalue(), "a.jpg")
    assert not started


def test_half_an_image_is_never_filled_up_with_grey():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    whole = encoded(Image.fromarray(np.tile(PIXELS[0], (20, 20, 1))), format="JPEG")
    with pytest.raises(DatasetError, match=r"^a\.jpg \(image file is truncated"):
        decode_bytes(whole[: len(whole) // 2], "a.jpg")


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    data = encoded(Image.fromarray(PIXELS[0, :4]), exif=exif)
    assert np.array_equal(decode_bytes(data, "x"), np.rot90(PIXELS[0, :4], k=-1))


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "a.jpg (no image that can be decoded)"),
        (b"GIF89a", "a.jpg ("),
        (encoded(Image.fromarray(PIXELS[0]), format="JPEG")[:-300], "a.jpg ("),
        (encoded(Image.fromarray(np.zeros((4, 4), np.uint16))), "a.jpg (pixels of mode I;16"),
    ],
)
def test_a_damaged_image_is_named(data, part):
    with pytest.raises(DatasetError) as caught:
        decode_bytes(data, "a.jpg")
    assert part in str(caught.value)
