"""Real images to compare networks on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DatasetError, InputError
from retrieval.images import ImageStore, decode_bytes
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


def folder_sample(side: TrainedSide, folder: Path, count: int) -> Sample:
    """Return the first images of a folder, in the order of their paths.

    Args:
        side: of a trial, which says at what size images are stored.
        folder: with image files, however deep; hidden ones are left out.
        count: how many at most.

    Raises:
        InputError: there is no such folder, no file in it, or one that is no image.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", key=KEY, value=str(folder))
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not paths:
        raise InputError("there are no images in this folder", key=KEY, value=str(folder))
    squares = [side.squares([_decoded(path, folder)]) for path in paths[:count]]
    images = np.concatenate(squares)
    return Sample(f"images of {folder}", images, np.arange(len(images), dtype=np.int64))


def _decoded(path: Path, folder: Path) -> NDArray[np.uint8]:
    try:
        return decode_bytes(path.read_bytes(), str(path.relative_to(folder)))
    except DatasetError as error:
        raise InputError(
            f"all files of this folder must be images: {error.problem}",
            key=KEY,
            value=str(folder),
        ) from None
