"""Real images to compare networks on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.images import ImageStore
from retrieval.streams import generator

if TYPE_CHECKING:
    from orchestrator.serving.trained import TrainedSide

KEY = "--images"


@dataclass(frozen=True)
class Sample:
    """Images as a dataset stores them.

    Attributes:
        name: what they are, for people.
        source: stored images, or squares (n, S, S, 3) uint8.
        rows: (n,) which of them.
    """

    name: str
    source: ImageStore | NDArray[np.uint8]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def squares(self, part: slice) -> NDArray[np.uint8]:
        """Return some of them, (n, S, S, 3) uint8."""
        if isinstance(self.source, ImageStore):
            return self.source.read(self.rows[part])
        return np.ascontiguousarray(self.source[self.rows[part]])

    def reference(self, side: TrainedSide) -> NDArray[np.float32]:
        """Return the continuous codes h (n, B) that torch gives, computed as at evaluation."""
        return side.embed(self.source, self.rows)


def split_sample(side: TrainedSide, split: str, rows: NDArray[np.int64]) -> Sample:
    """Return images of the trial's dataset.

    Args:
        side: of a trial.
        split: what to call them.
        rows: (n,) of the dataset.
    """
    dataset = side.of.dataset
    return Sample(f"{split} of {dataset.label}", dataset.images(), rows)


def query_sample(side: TrainedSide, count: int) -> Sample:
    """Return test queries of the trial's dataset, all or as many as wanted, drawn with its seed.

    They are encoded and compared, not scored.
    """
    rows = side.of.rows("query")
    if count < len(rows):
        draw = generator(side.of.trial.seed, "export", "check")
        rows = np.sort(draw.choice(rows, size=count, replace=False))
    return split_sample(side, "test queries", rows)


def given_sample(side: TrainedSide, given: str, count: int) -> Sample:
    """Return somebody's own images, as the trial's dataset would store them.

    Args:
        side: of a trial, which says at what size images are stored.
        given: a folder, a zip, a file or a pattern; see `orchestrator.serving.photos`.
        count: how many at most, the first in the order of their paths.

    Raises:
        InputError: there is no such file, no image in it, or one that cannot be read.
    """
    from orchestrator.serving.photos import PhotoReader, find_photos

    try:
        photos = find_photos([given])[:count]
        with PhotoReader() as reader:
            squares = [side.squares([reader.read(photo)]) for photo in photos]
    except InputError as error:
        raise InputError(error.problem, key=KEY, value=given) from None
    images = np.concatenate(squares)
    return Sample(f"images of {given}", images, np.arange(len(images), dtype=np.int64))
