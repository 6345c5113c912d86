"""The image store: built once, whole or not at all."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from retrieval.errors import DatasetError
from retrieval.images import decode_bytes, open_images, square

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
    message = str(caught.value)
    assert message.startswith("10 images of 200 cannot be read: 3.jpg (damaged); 23.jpg")
    assert message.endswith("; and 5 more")
    assert left(tmp_path / "x") == []


def test_all_images_unreadable_is_an_error_too(tmp_path):
    def decode(number):
        raise DatasetError(f"{number}.jpg (damaged)")

    with pytest.raises(DatasetError, match="200 images of 200 cannot be read"):
        build(tmp_path / "x", decode)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interrupted_build_leaves_nothing(tmp_path, error):
    def decode(number):
        if number == 150:
            raise error
        return PIXELS[number]

    with pytest.raises(error):
        build(tmp_path / "x", decode)
    assert left(tmp_path / "x") == []
    assert np.array_equal(build(tmp_path / "x").array, PIXELS)


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
    def decode(number):
        if number == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return PIXELS[number]

    build(folder, decode)


def test_a_killed_build_leaves_no_store_and_the_next_one_cleans_up(tmp_path):
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "images" / "x"
    for name in ("x", "other"):
        process = context.Process(target=_build_until_killed, args=(folder.with_name(name),))
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert left(folder) == [f".{name}.building"]  # the second build swept the first's
    assert np.array_equal(build(folder).array, PIXELS)
    assert left(folder) == ["x"]


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
