"""Retrieval grids: test queries with the images that each method puts at the top.

The queries are drawn by the split's seed, so that nobody chose them, and are the same for all
methods and code lengths of a dataset. Equal distances, of which short codes give thousands, stand
in an order that the seed draws, too: a gallery is often sorted by class, and its own order would
show one class alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.reporting.panels import Entry, Panel
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render
from retrieval.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.plan import Plan
    from orchestrator.reporting.results import TrialResult
    from retrieval.datasets import Dataset
    from retrieval.images import Decoder

    Image = NDArray[np.uint8]

QUERIES, TOP = 5, 5
"""Queries of a grid, and images that are shown for each."""

IMAGES = 1_200
"""Different images on a page; grids that would need more are left out."""

SIDE = 96
"""Greatest side of an image on the page, in pixels; smaller ones keep theirs."""

_QUALITY = 80


@dataclass(frozen=True)
class Shot:
    """One image of a grid.

    Attributes:
        image: its number on the page.
        label: its classes.
        rank: from 1; 0 for the query itself.
        distance: in bits.
        relevant: whether it shares a class with its query.
    """

    image: int
    label: str
    rank: int = 0
    distance: int = 0
    relevant: bool = True

    @property
    def told(self) -> str:
        """What the image is, for who does not see it."""
        if not self.rank:
            return f"query: {self.label}"
        verdict = "right" if self.relevant else "wrong"
        return f"{verdict}, rank {self.rank}: {self.label}, distance {self.distance}"


@dataclass(frozen=True)
class Grid:
    """One method's answers.

    Attributes:
        entry: the method.
        lines: each query with its images, nearest first.
    """

    entry: Entry
    lines: tuple[tuple[Shot, tuple[Shot, ...]], ...]

    @property
    def hits(self) -> str:
        """How many images are right: "18 of 25 right"."""
        shots = [shot for _, top in self.lines for shot in top]
        return f"{sum(shot.relevant for shot in shots)} of {len(shots)} right"


@dataclass
class Album:
    """The different images of a page.

    Attributes:
        numbers: (dataset, row of its index) -> number on the page.
        images: data of each, base64 of a JPEG.
    """

    numbers: dict[tuple[str, int], int] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)


def grids_section(plan: Plan, panels: Sequence[Panel]) -> tuple[Section, list[str]]:
    """Return the section and the images that it shows, by number: base64 of JPEGs."""
    title = "Retrieved images"
    album = Album()
    shown: list[tuple[Panel, list[Grid]]] = []
    reasons: dict[str, str] = {}
    left = 0
    for dataset in plan.datasets:
        here = [panel for panel in panels if panel.column.dataset == dataset.label]
        if not here:
            continue
        if dataset.score_titles:
            reasons[dataset.label] = "its ground truth is not by labels"
            continue
        try:
            with _decoder(dataset) as decode:
                for panel in here:
                    grids = []
                    for entry in panel.entries:
                        found = _grid(dataset, decode, entry, panel, album) if not left else None
                        left += found is None
                        grids += [found] if found else []
                    if grids:
                        shown.append((panel, grids))
        except (DatasetError, OSError) as error:
            told = error.strerror if isinstance(error, OSError) else str(error)
            reasons[dataset.label] = f"its images cannot be read: {told or error}"
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    if not shown:
        return Section("grids", title, why=why or "no trial is scored yet"), []
    body = render("grids", panels=shown, queries=QUERIES, top=TOP, left=left, why=why)
    return Section("grids", title, body), album.images


def query_places(dataset: Dataset, count: int) -> NDArray[np.int64]:
    """Return places in the query split, drawn by the split's seed, in the order of drawing."""
    from retrieval import streams

    return streams.permutation(dataset.protocol.split_seed, "retrieval grid", count)[:QUERIES]


def retrieved(
    one: TrialResult, places: NDArray[np.int64], bits: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what a trial ranks first: places in the gallery split and distances, (Q, TOP).

    Args:
        one: a trial that is done.
        places: (Q,) of the queries in the query split.
        bits: code length.
        seed: draws the order of equal distances.

    Raises:
        StoreCorrupt: its codes are damaged.
    """
    import numpy as np

    from retrieval import streams
    from retrieval.ranking import nearest

    stages = one.trial.stages
    query = one.store.read(one.trial.trained, "query_codes.npy")
    gallery = one.store.read(stages.get("joint") or stages["gallery"], "gallery_codes.npy")
    codes = np.load(gallery, allow_pickle=False)
    asked = np.load(query, allow_pickle=False)[places]
    order = streams.permutation(seed, "retrieval grid, equal distances", len(codes))
    found, distances = nearest(asked, codes[order], bits, min(TOP, len(codes)), engine="numpy")
    return order[found], distances


def _grid(
    dataset: Dataset, decode: Decoder, entry: Entry, panel: Panel, album: Album
) -> Grid | None:
    """Return a method's grid; None where the page has too many images already."""
    import numpy as np

    index, splits = dataset.index(), dataset.splits()
    places = query_places(dataset, len(splits.query))
    seed = dataset.protocol.split_seed
    found, distances = retrieved(entry.first, places, panel.column.bits, seed)
    queries = splits.query[places]
    tops = splits.gallery[found]
    wanted = dict.fromkeys([*queries.tolist(), *tops.ravel().tolist()])
    fresh = [row for row in wanted if (dataset.label, row) not in album.numbers]
    if len(album.images) + len(fresh) > IMAGES:
        return None
    for row in fresh:
        album.numbers[dataset.label, row] = len(album.images)
        album.images.append(thumbnail(decode(row)))
    labels = np.asarray(index.labels)

    def shot(row: int, rank: int = 0, distance: int = 0, query: int | None = None) -> Shot:
        shared = query is None or bool(np.any(_shared(labels, row, query)))
        number = album.numbers[dataset.label, row]
        return Shot(number, _classes(dataset, labels, row), rank, distance, shared)

    lines = []
    for query, top, apart in zip(queries.tolist(), tops.tolist(), distances.tolist(), strict=True):
        shots = [
            shot(row, rank, far, query)
            for rank, (row, far) in enumerate(zip(top, apart, strict=True), 1)
        ]
        lines.append((shot(query), tuple(shots)))
    return Grid(entry, tuple(lines))


def _shared(labels: NDArray[np.generic], row: int, other: int) -> NDArray[np.bool_] | bool:
    if labels.ndim == 1:
        return bool(labels[row] == labels[other])
    both: NDArray[np.bool_] = (labels[row] != 0) & (labels[other] != 0)
    return both


def _classes(dataset: Dataset, labels: NDArray[np.generic], row: int) -> str:
    classes = dataset.index().classes
    if labels.ndim == 1:
        return classes[int(labels[row])]
    own = [name for name, has in zip(classes, labels[row].tolist(), strict=True) if has]
    return ", ".join(own) or "no class"


@contextmanager
def _decoder(dataset: Dataset) -> Iterator[Decoder]:
    """Open what returns an image of the index: from the image store where there is one."""
    if dataset.image_folder.is_dir():
        store = dataset.images()
        yield lambda row: store.array[row]
    else:
        with dataset.open_decoder() as decode:
            yield decode


def thumbnail(image: Image) -> str:
    """Return a small JPEG in base64.

    Args:
        image: (H, W, 3) uint8.
    """
    import numpy as np
    from PIL import Image as Pictures

    from retrieval.images import square

    side = min(*image.shape[:2], SIDE)
    buffer = io.BytesIO()
    picture = Pictures.fromarray(np.ascontiguousarray(square(image, side)))
    picture.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
