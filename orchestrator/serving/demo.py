"""What the demo answers: the same image asked of two encodings, with what each took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.gallery import Gallery, classes_of, dataset_image
from orchestrator.serving.searching import bits_text, index_of, matches
from orchestrator.serving.trained import SideName, TrainedTrial
from retrieval.codes import pack
from retrieval.index import Hits, Index

_QUERIES = 24
"""Test queries that are offered."""

_WARM = 3
"""Images that are encoded before the first is timed."""


@dataclass(frozen=True)
class Panel:
    """One way of asking a gallery.

    Attributes:
        title: what differs from the other.
        trained: the trial.
        side: whose network encodes what is asked.
        gallery: that is searched.
        index: of it.
    """

    title: str
    trained: TrainedTrial
    side: SideName
    gallery: Gallery
    index: Index

    def facts(self) -> dict[str, Any]:
        """Return what the page says of it."""
        side = self.trained.side(self.side)
        return {
            "title": self.title,
            "trial": self.trained.trial.label,
            "side": self.side,
            "network": f"{side.spec.backbone}, {side.size} px",
            "gallery_network": self.trained.side("gallery").spec.backbone,
            "gallery": len(self.gallery),
            "bits": self.trained.bits,
            "threads": self.trained.threads,
            "device": self.trained.device,
        }

    def warm_up(self) -> None:
        """Load what the first answer would wait for."""
        for _ in range(_WARM):
            self.answer(np.zeros((64, 64, 3), np.uint8), 1, None)

    def answer(
        self, image: NDArray[np.uint8], k: int, classes: list[str] | None
    ) -> dict[str, Any]:
        """Return what is near to an image, and the times that encoding and search took.

        Of the items at the last distance, more than there is room for, those are shown that are
        spread evenly over the gallery: it may be sorted by class, and they are equally near.

        Args:
            image: (H, W, 3) uint8.
            k: so many matches.
            classes: of the image, where they are known.

        Returns:
            "code"; "encode_ms", from pixels to the code, decoding the file not counted;
            "search_ms"; "matches", each with its "code" and "right": whether it has a class of
            the image, None where that is not known; "within", of all items as near as the last
            match: its "distance", how many "items", and how many of them are "right" or None.
        """
        started = time.perf_counter()
        code = pack(self.trained.side(self.side).embed([image]))
        encoded = time.perf_counter()
        hits = self.index.search(code, min(k, len(self.gallery)))[0]
        searched = time.perf_counter()
        bits = self.trained.bits
        reach = int(hits.distances[-1])
        near = self.index.search(code, None, radius=reach)[0]
        right = self.gallery.relevant(near.rows, classes)
        found = []
        for match in matches(self.gallery, _spread(near, len(hits.rows))):
            own = bits_text(self.gallery.code(match.row), bits)
            same = self.gallery.relevant(np.array([match.row]), classes)
            right_too = None if same is None else same > 0
            found.append({**match.to_json(), "code": own, "right": right_too})
        return {
            "code": bits_text(code[0], bits),
            "encode_ms": (encoded - started) * 1e3,
            "search_ms": (searched - encoded) * 1e3,
            "matches": found,
            "within": {"distance": reach, "items": len(near.rows), "right": right},
        }


def _spread(near: Hits, k: int) -> Hits:
    """Return k of what is near, those at the last distance evenly over the rows."""
    first = int(np.searchsorted(near.distances, near.distances[-1]))
    last = np.linspace(first, len(near.rows), k - first, endpoint=False).astype(np.int64)
    kept = np.concatenate([np.arange(first), last])
    return Hits(near.rows[kept], near.distances[kept])


def panels(
    trials: Sequence[TrainedTrial], galleries: Sequence[Gallery], *, threads: int
) -> list[Panel]:
    """Return what stands next to each other.

    Args:
        trials: two, each asked by its query network; or one, asked by its query network and by
            its gallery network.
        galleries: of the same trials.
        threads: that search.
    """
    indices = [index_of(gallery, threads=threads, lasting=True) for gallery in galleries]
    if len(trials) == 1:
        return [
            Panel(f"asked by the {side} network", trials[0], side, galleries[0], indices[0])
            for side in ("query", "gallery")
        ]
    return [
        Panel(trained.trial.label, trained, "query", gallery, index)
        for trained, gallery, index in zip(trials, galleries, indices, strict=True)
    ]


class Queries:
    """Some test queries to click on, evenly over the split; they are shown, nothing is chosen.

    Args:
        trained: the trial whose dataset they are of.
    """

    def __init__(self, trained: TrainedTrial) -> None:
        self._trained = trained
        rows = trained.rows("query")
        places = np.linspace(0, len(rows), min(_QUERIES, len(rows)), endpoint=False)
        self._rows = rows[places.astype(np.int64)]

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return its image (S, S, 3) uint8.

        Raises:
            IndexError: there is no such query.
        """
        return dataset_image(self._trained, int(self._rows[number]))

    def classes(self, number: int) -> list[str]:
        """Return the names of its classes."""
        return classes_of(self._trained, int(self._rows[number]))
