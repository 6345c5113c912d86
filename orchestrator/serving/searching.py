"""Find in a gallery what is near to images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.gallery import Gallery
from retrieval.index import FaissIndex, HammingIndex, Hits, Index

Engine: TypeAlias = Literal["exact", "faiss", "faiss-ivf"]
ENGINES: tuple[Engine, ...] = ("exact", "faiss", "faiss-ivf")


def index_of(
    gallery: Gallery,
    engine: Engine = "exact",
    *,
    nprobe: int = 8,
    threads: int = 1,
    lasting: bool = False,
) -> Index:
    """Return what searches in a gallery.

    Args:
        gallery: to search in.
        engine: "exact" looks at every code; "faiss" does too; "faiss-ivf" clusters the codes into
            about 4 sqrt(N) cells and looks at ``nprobe`` of them.
        nprobe: see above; not more than there are cells.
        threads: that share the work; they change no result of "exact" and "faiss".
        lasting: whether many searches are to come.

    Raises:
        InputError: faiss is asked for and not installed.
    """
    bits = gallery.trained.bits
    if engine == "exact":
        return HammingIndex(gallery.codes, bits, threads=threads, lasting=lasting)
    codes = np.concatenate(gallery.codes)
    if engine == "faiss":
        return FaissIndex(codes, bits, threads=threads)
    cells = min(len(codes), max(1, round(4 * math.sqrt(len(codes)))))
    nprobe = min(nprobe, cells)
    return FaissIndex(codes, bits, cells=cells, nprobe=nprobe, threads=threads)


@dataclass(frozen=True)
class Match:
    """One item that was found.

    Attributes:
        rank: from 1; items at one distance are in the order of their rows.
        row: of the gallery.
        distance: in bits.
        name: of the item.
        classes: names of its classes, where they are known.
    """

    rank: int
    row: int
    distance: int
    name: str
    classes: list[str] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def matches(gallery: Gallery, hits: Hits) -> list[Match]:
    """Return what was found, with names."""
    pairs = zip(hits.rows.tolist(), hits.distances.tolist(), strict=True)
    return [
        Match(rank, row, distance, gallery.name(row), gallery.classes(row))
        for rank, (row, distance) in enumerate(pairs, start=1)
    ]


def beyond(index: Index, code: NDArray[np.uint8], hits: Hits, k: int | None) -> int | None:
    """Return how many items are as near as the last match and not among the k; None: not known.

    Args:
        index: that was searched; only one that finds all within a radius can tell.
        code: (1, ceil(B / 8)) what was searched.
        hits: found.
        k: asked for.
    """
    if not isinstance(index, HammingIndex):
        return None
    if k is None or len(hits.rows) < k:
        return 0
    return len(index.search(code, None, radius=int(hits.distances[-1]))[0].rows) - k


def bits_text(code: NDArray[np.uint8], bits: int) -> str:
    """Return a packed code as ``0110...``, B characters, the first bit first."""
    return "".join(map(str, np.unpackbits(code, count=bits).tolist()))
