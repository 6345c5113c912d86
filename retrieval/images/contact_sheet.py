"""A picture of a dataset: some images of some classes, split by split."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval import streams
from retrieval.datasets import Dataset
from retrieval.describe import class_sizes, labels_an_image
from retrieval.errors import DatasetError
from retrieval.images.decoding import Decoder, square

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SHOWN = ("query", "gallery", "train")
"""Splits that the picture shows, from left to right."""

_EACH = 3
"""Images of a class and split."""

_SIDE, _GAP, _BAND, _CAPTION, _TITLE = 96, 6, 18, 210, 34
"""Pixels: an image, between images, between splits, the captions' width, the titles' height."""

_INK, _PALE, _PAPER, _EMPTY = (20, 20, 20), (110, 110, 110), (255, 255, 255), (238, 238, 238)


def choose(dataset: Dataset, classes: int) -> list[tuple[str, dict[str, list[int]]]]:
    """Choose what the picture shows; the split's seed decides.

    Args:
        dataset: whose splits are drawn.
        classes: at most so many.

    Returns:
        For each class shown its name, and rows of the index by split. Images without a label
        stand together under an empty name.
    """
    index, splits = dataset.index(), dataset.splits()
    seed = dataset.protocol.split_seed
    labels = np.asarray(index.labels)
    present = np.flatnonzero(class_sizes(index, np.arange(len(labels))))
    order = streams.permutation(seed, "classes shown", len(present))[:classes]
    shown = np.sort(present[order])
    wanted = [
        (index.classes[n], labels[:, n] != 0 if index.multi_label else labels == n)
        for n in shown.tolist()
    ]
    unlabelled = labels_an_image(index) == 0
    if unlabelled.any():
        wanted.append(("", unlabelled))
    # One order of all images: another class or split shows the same ones again.
    place = np.empty(len(index.keys), dtype=np.int64)
    place[streams.permutation(seed, "images shown", len(index.keys))] = np.arange(len(place))
    trained = np.zeros(len(index.keys), dtype=bool)
    trained[splits.train] = True

    def some(mask: NDArray[np.bool_], role: str) -> list[int]:
        rows = getattr(splits, role)
        rows = rows[mask[rows]]
        # Of the gallery rather images that are not seen among the training images.
        last = trained[rows] if role == "gallery" else np.zeros(len(rows), dtype=bool)
        chosen: list[int] = rows[np.lexsort((place[rows], last))[:_EACH]].tolist()
        return chosen

    return [(name, {role: some(mask, role) for role in SHOWN}) for name, mask in wanted]


def draw(dataset: Dataset, *, classes: int = 12) -> bytes:
    """Return the picture as a PNG; decodes the images that it shows and no others.

    Args:
        dataset: to show.
        classes: at most so many are shown.

    Raises:
        DatasetError: the dataset is missing, damaged, or cannot be split as asked.
    """
    from PIL import Image, ImageDraw

    chosen = choose(dataset, classes)
    index = dataset.index()
    sizes = class_sizes(index, np.arange(len(index.keys)))
    counts = dict(zip(index.classes, sizes.tolist(), strict=True))
    step = _SIDE + _GAP
    width = _GAP + _CAPTION + len(SHOWN) * (_EACH * step + _BAND)
    picture = Image.new("RGB", (width, 2 * _TITLE + len(chosen) * step + _GAP), _PAPER)
    pen = ImageDraw.Draw(picture)
    large, small = _font(16), _font(13)
    title = f"{dataset.label}: {len(index.keys):,} images, {len(index.classes):,} classes"
    pen.text((_GAP, 8), _fitted(pen, title, large, width - 2 * _GAP), _INK, large)
    for place, role in enumerate(SHOWN):
        pen.text((_left(place), _TITLE + 8), role, _INK, large)
    with dataset.open_decoder() as decode:
        for line, (name, rows) in enumerate(chosen):
            top = 2 * _TITLE + line * step
            caption = _fitted(pen, name or "without a label", large, _CAPTION - _GAP)
            pen.text((_GAP, top + 30), caption, _INK, large)
            if name:
                pen.text((_GAP, top + 54), f"{counts[name]:,} images", _PALE, small)
            for place, role in enumerate(SHOWN):
                for number in range(_EACH):
                    corner = (_left(place) + number * step, top)
                    if number >= len(rows[role]):
                        pen.rectangle((*corner, corner[0] + _SIDE - 1, top + _SIDE - 1), _EMPTY)
                    elif (image := _decoded(decode, rows[role][number])) is not None:
                        picture.paste(Image.fromarray(image), corner)
                    else:
                        pen.rectangle((*corner, corner[0] + _SIDE - 1, top + _SIDE - 1), _EMPTY)
                        pen.text((corner[0] + 8, top + 38), "unreadable", _INK, small)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _left(place: int) -> int:
    return _GAP + _CAPTION + place * (_EACH * (_SIDE + _GAP) + _BAND)


def _decoded(decode: Decoder, row: int) -> NDArray[np.uint8] | None:
    try:
        return square(decode(row), _SIDE)
    except DatasetError:
        return None


def _font(size: int) -> Font:
    """Return matplotlib's DejaVu, which has most alphabets."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """Return the text, cut where it is too wide."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"
