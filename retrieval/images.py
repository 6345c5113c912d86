"""The image store: every image of a dataset decoded once, memory-mapped by all processes."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from retrieval.errors import DatasetError

DEFAULT_STORE_SIZE = 256
"""Side in pixels to which images of mixed sizes are brought."""

_SHOWN = 5
"""Unreadable images that a message names."""

Decoder = Callable[[int], NDArray[np.uint8]]
"""Image number -> (H, W, 3) uint8."""


@dataclass(frozen=True)
class ImageStore:
    """A dataset's images.

    Attributes:
        folder: where they lie.
        array: (N, H, W, 3) uint8, memory-mapped read-only.
    """

    folder: Path
    array: NDArray[np.uint8]


def open_images(
    folder: Path, n: int, decode: Decoder, *, fingerprint: str, store_size: int | None = None
) -> ImageStore:
    """Open a dataset's image store, building it when it is not there.

    Several processes may ask at once: one builds, the others wait. What is built appears by one
    rename, so that a killed build leaves nothing that looks like a store.

    Args:
        folder: where the store lies or will lie.
        n: number of images.
        decode: decodes one image; called from threads.
        fingerprint: of the dataset; checked against what is there.
        store_size: side of the stored squares; None keeps the images' own size where all have the
            same, and otherwise takes DEFAULT_STORE_SIZE.

    Raises:
        DatasetError: images cannot be read; the count and the first ones are in the message.
    """
    if not (folder / "meta.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / "meta.json").is_file():
                _build(folder, n, decode, fingerprint, store_size)
    meta = json.loads((folder / "meta.json").read_text())
    array = np.load(folder / "images.npy", mmap_mode="r")
    if meta["fingerprint"] != fingerprint or len(array) != n:
        raise DatasetError(
            f"the image store {folder} is of another dataset; remove it and run again"
        )
    return ImageStore(folder=folder, array=array)


def _build(
    folder: Path, n: int, decode: Decoder, fingerprint: str, store_size: int | None
) -> None:
    temporary = folder.with_name(f".{folder.name}.building")
    if temporary.exists():  # of a build that died; the lock says that nobody works on it
        shutil.rmtree(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.mkdir()
    try:
        _decode_all(temporary / "images.npy", n, decode, store_size)
        meta = json.dumps({"fingerprint": fingerprint, "images": n})
        (temporary / "meta.json").write_text(meta)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _decode_all(path: Path, n: int, decode: Decoder, store_size: int | None) -> None:
    errors: list[str] = []
    shapes: set[tuple[int, ...]] = set()
    size = store_size

    def attempt(number: int) -> NDArray[np.uint8] | None:
        try:
            return decode(number)
        except DatasetError as error:
            errors.append(error.problem)
            return None

    # Threads are enough: the decoders release the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1)) as pool:
        if size is None:
            for image in pool.map(attempt, range(min(n, 64))):
                if image is not None:
                    shapes.add(image.shape)
            if len(shapes) > 1:
                size = DEFAULT_STORE_SIZE
        shape = (size, size, 3) if size is not None else next(iter(shapes), (1, 1, 3))
        errors.clear()
        mixed = False
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, *shape))
        for first in range(0, n, 512):
            numbers = range(first, min(n, first + 512))
            for number, image in zip(numbers, pool.map(attempt, numbers), strict=True):
                if image is None:
                    continue
                if size is not None:
                    image = square(image, size)
                elif image.shape != shape:
                    mixed = True
                    break
                out[number] = image
            if mixed:
                break
        out.flush()
        del out
    if mixed:  # the first images had one size, a later one has not
        path.unlink()
        _decode_all(path, n, decode, DEFAULT_STORE_SIZE)
        return
    if errors:
        shown = "; ".join(sorted(errors)[:_SHOWN])
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        count = f"{len(errors)} image{'s' if len(errors) > 1 else ''}"
        raise DatasetError(f"{count} cannot be read: {shown}{more}")


def square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image so that its shorter side is ``size``, and cut out the centre square."""
    from PIL import Image

    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    new = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = Image.fromarray(image).resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's bytes to (H, W, 3) uint8.

    Raises:
        DatasetError: the bytes are no whole image; ``name`` is in the message.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{name} ({error})") from None
