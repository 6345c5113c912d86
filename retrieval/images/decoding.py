"""From an image file's bytes to pixels, and from pixels to a stored square."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DatasetError

LARGEST = 178_956_970
"""Pixels of the largest image that is decoded: half a gigabyte as red, green and blue."""

_LONGEST = 16
"""Longer side over shorter side from which on an image's ends are cut off before resizing."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
"""What a file may be whatever its name. Others are left out because Pillow starts programs on
them: Ghostscript, which is a language, for EPS."""

Decoder = Callable[[int], NDArray[np.uint8]]
"""Image number -> (H, W, 3) uint8; raises DatasetError; called from threads."""


@cache
def _formats() -> tuple[str, ...]:
    """Return those of the formats that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's bytes to (H, W, 3) uint8, upright.

    Raises:
        DatasetError: the bytes are no whole 8-bit image, or one of more than :data:`LARGEST`
            pixels; ``name`` is in the message.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > LARGEST:
                # Pillow's own limit is a global that any import may have lifted.
                raise DatasetError(
                    f"{name} (Image size ({image.width * image.height} pixels) exceeds limit of "
                    f"{LARGEST} pixels)"
                )
            if image.mode[0] in "IF":
                # convert("RGB") would clip these to white instead of scaling them.
                raise DatasetError(f"{name} (pixels of mode {image.mode}, 8 bits are needed)")
            if image.format in ("JPEG", "MPO") and _ends_in_zeros(data):
                raise DatasetError(f"{name} (zeros instead of the end of the image)")
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = "no image that can be decoded" if "BytesIO" in str(error) else str(error)
        raise DatasetError(f"{name} ({reason})") from None


def _ends_in_zeros(data: bytes) -> bool:
    """Whether a JPEG's end was never written, though the file has its length.

    So are files whose space was reserved before they were fetched. To the decoder zeros are
    pixels; only the mark of the end is missing, which a thumbnail in the header has too.
    """
    if not data.endswith(bytes(16)):
        return False
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return b"\xff\xd9" not in data[place:]


def square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) to a shorter side of ``size``; cut out the centre square."""
    image = _shortened(image)
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    from PIL import Image

    scale = size / min(height, width)
    new = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = Image.fromarray(image).resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _shortened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the ends off a very long image: resized whole, a line of 1 x 30,000 fills gigabytes."""
    height, width = image.shape[:2]
    keep = _LONGEST * min(height, width)
    top, left = max(0, height - keep) // 2, max(0, width - keep) // 2
    return image[top : height - top, left : width - left]
