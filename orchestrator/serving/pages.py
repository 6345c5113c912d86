"""What a search found, to look at: one HTML page that needs nothing beside it, or one PNG."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.gallery import Gallery, shrunk
from orchestrator.serving.searching import Match
from orchestrator.wording import plural, printable
from retrieval.errors import DatasetError
from retrieval.images import square

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_THUMBNAIL = 160
"""Pixels of the longer side of an image in a page."""

_SIDE, _GAP, _LINE = 112, 10, 18
"""Pixels in a picture: an image, between images, a line of text."""

_ACROSS = 11
"""Images in a row of a picture, the query among them."""

_INK, _PALE, _PAPER, _EMPTY = (20, 20, 20), (95, 95, 95), (255, 255, 255), (232, 232, 232)


@dataclass(frozen=True)
class Answer:
    """What was found for one image.

    Attributes:
        name: of the query.
        image: (H, W, 3) uint8; None where nothing is drawn.
        code: its bits as text.
        found: nearest first.
        beyond: how many more are as near as the last; None where that is not known.
    """

    name: str
    image: NDArray[np.uint8] | None
    code: str
    found: list[Match]
    beyond: int | None


def assets() -> Path:
    """Return the folder of the pages' templates, styles and scripts."""
    return Path(__file__).parent / "assets"


def jpeg(image: NDArray[np.uint8], *, quality: int = 90) -> bytes:
    """Return an image (H, W, 3) uint8 as a JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def search_page(gallery: Gallery, answers: list[Answer], title: str, caption: str) -> str:
    """Return a page with images inside.

    Args:
        gallery: that was searched in.
        answers: to show.
        title: of the page.
        caption: how it was searched.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def url(image: NDArray[np.uint8]) -> str:
        data = base64.b64encode(jpeg(shrunk(image, _THUMBNAIL))).decode()
        return f"data:image/jpeg;base64,{data}"

    def picture(row: int) -> str:
        image = _image(gallery, row)
        return "" if image is None else url(image)

    loader = FileSystemLoader(assets())
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"url": url, "picture": picture, "printable": printable}
    return environment.get_template("search.html").render(
        title=title, caption=caption, answers=answers, style=(assets() / "style.css").read_text()
    )


def _image(gallery: Gallery, row: int) -> NDArray[np.uint8] | None:
    try:
        return gallery.image(row)
    except DatasetError:  # it was there when it was encoded; its code still is
        return None


def search_picture(gallery: Gallery, answers: list[Answer], title: str) -> bytes:
    """Return a PNG: a row for each query, its image first; long lists go on in rows below."""
    from PIL import Image, ImageDraw

    rows = [max(1, -(-len(answer.found) // (_ACROSS - 1))) for answer in answers]
    height = _SIDE + 2 * _LINE + _GAP
    across = min(_ACROSS, 1 + max((len(answer.found) for answer in answers), default=0))
    width = max(_GAP + across * (_SIDE + _GAP), 5 * (_SIDE + _GAP))
    picture = Image.new("RGB", (width, 2 * _GAP + _LINE + sum(rows) * height), _PAPER)
    pen, (large, small) = ImageDraw.Draw(picture), (_font(13), _font(11))
    pen.text((_GAP, _GAP), _fitted(pen, title, large, width - 2 * _GAP), _INK, large)
    top = 2 * _GAP + _LINE
    for answer, lines in zip(answers, rows, strict=True):
        _cell(picture, pen, (_GAP, top), answer.image, ("query", answer.name), small)
        for place, match in enumerate(answer.found):
            line, column = divmod(place, _ACROSS - 1)
            corner = (_GAP + (column + 1) * (_SIDE + _GAP), top + line * height)
            what = ", ".join(match.classes) if match.classes else match.name
            texts = (f"{match.rank}: {plural(match.distance, 'bit')}", what)
            _cell(picture, pen, corner, _image(gallery, match.row), texts, small)
        top += lines * height
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _cell(
    picture: object,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    image: NDArray[np.uint8] | None,
    texts: tuple[str, str],
    font: Font,
) -> None:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    left, top = corner
    if image is None:
        pen.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), _EMPTY)
        pen.text((left + 8, top + _SIDE // 2 - 8), "unreadable", _INK, font)
    else:
        picture.paste(Image.fromarray(square(image, _SIDE)), corner)
    for line, (text, ink) in enumerate(zip(texts, (_INK, _PALE), strict=True)):
        pen.text(
            (left, top + _SIDE + 2 + line * _LINE), _fitted(pen, text, font, _SIDE), ink, font
        )


def _font(size: int) -> Font:
    """Return matplotlib's DejaVu, which has most alphabets."""
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """Return the text, its beginning left out where it is too wide: names differ at the end."""
    text = printable(text)
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"…{text}", font) > width:
        text = text[1:]
    return f"…{text}"
