"""Codes of anybody's images, batch by batch, and the file that says which row is which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.photos import KEY, Photo, PhotoReader
from orchestrator.serving.trained import BATCH_SIZE, TrainedSide, TrainedTrial
from orchestrator.store import file_digest, write_json
from retrieval.atomic import open_atomic
from retrieval.codes import pack
from retrieval.errors import DatasetError, InputError

FORMAT = 1
"""Version of the file beside the codes."""

_DECODERS = 4
"""Images that are decoded at a time."""

Progress = Callable[[int, int], None]
"""Called with the images done and all."""


@dataclass(frozen=True)
class Encoded:
    """Images that were encoded.

    Attributes:
        h: (n, B) continuous codes, float32.
        photos: (n,) the images.
        skipped: name and reason of those that could not be read.
    """

    h: NDArray[np.float32]
    photos: list[Photo]
    skipped: list[tuple[str, str]]


def encode_photos(
    side: TrainedSide,
    photos: Sequence[Photo],
    reader: PhotoReader,
    *,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Encoded:
    """Encode images.

    Args:
        side: whose network.
        photos: the images.
        reader: reads them.
        batch_size: images in a forward pass, and in memory.
        threads: of torch; by default those that the trial was trained with.
        skip_unreadable: go on without images that cannot be read.
        progress: called after each batch.

    Raises:
        InputError: an image cannot be read, and is not to be skipped.
    """
    blocks: list[NDArray[np.float32]] = []
    kept: list[Photo] = []
    skipped: list[tuple[str, str]] = []
    with ThreadPoolExecutor(_DECODERS, "decode") as pool:
        for first in range(0, len(photos), batch_size):
            some = photos[first : first + batch_size]
            squares = []
            for photo, square in zip(some, _squares(side, some, reader, pool), strict=True):
                if isinstance(square, DatasetError):
                    if not skip_unreadable:
                        raise _unreadable(square) from None
                    skipped.append((photo.name, _reason(square, photo)))
                    continue
                kept.append(photo)
                squares.append(square)
            if squares:
                batch = np.stack(squares)
                blocks.append(side.embed(batch, batch_size=batch_size, threads=threads))
            if progress is not None:
                progress(first + len(some), len(photos))
    h = np.concatenate(blocks) if blocks else np.empty((0, side.of.bits), np.float32)
    return Encoded(h, kept, skipped)


def _squares(
    side: TrainedSide, photos: Sequence[Photo], reader: PhotoReader, pool: ThreadPoolExecutor
) -> Iterator[NDArray[np.uint8] | DatasetError]:
    def square(photo: Photo) -> NDArray[np.uint8] | DatasetError:
        try:
            made: NDArray[np.uint8] = side.squares([reader.read(photo)])[0]
            return made
        except DatasetError as error:
            return error

    side.of.stored_size  # noqa: B018  once, before threads ask for it
    return pool.map(square, photos)


def _unreadable(error: DatasetError) -> InputError:
    return InputError(
        f"cannot be read: {error.problem}",
        key=KEY,
        hint="--skip-unreadable goes on without such images, and lists them",
    )


def _reason(error: DatasetError, photo: Photo) -> str:
    return error.problem.removeprefix(f"{photo.name} (").removesuffix(")")


# ---- files -----------------------------------------------------------------------------------


def beside(codes: Path) -> Path:
    """Return where the file is that says which row of ``codes`` is which image."""
    return codes.with_suffix(".json")


def write_codes(path: Path, side: TrainedSide, encoded: Encoded, *, as_float: bool) -> None:
    """Write codes, and beside them what they are of; each file whole or not at all.

    Args:
        path: ``.npy``: packed codes (n, ceil(B / 8)) uint8, or h (n, B) float32.
        side: that encoded.
        encoded: by it.
        as_float: whether to write h.
    """
    save_array(path, encoded.h if as_float else pack(encoded.h))
    note = {
        "format": FORMAT,
        "bits": side.of.bits,
        "kind": "embeddings" if as_float else "codes",
        "sha256": file_digest(path),
        "images": [photo.name for photo in encoded.photos],
        "skipped": [{"image": name, "reason": why} for name, why in encoded.skipped],
        **described(side),
    }
    write_json(beside(path), note)


def described(side: TrainedSide) -> dict[str, Any]:
    """Return what made codes: trial, side, network."""
    return {
        "trial": trial_note(side.of),
        "side": side.name,
        "network": {
            "backbone": side.spec.backbone,
            "size": side.size,
            "stored_size": side.of.stored_size,
            "weights": side.weights_digest,
        },
    }


def trial_note(trained: TrainedTrial) -> dict[str, str]:
    """Return how a trial is called."""
    study = trained.session.plan.study
    return {"id": trained.id, "label": trained.trial.label, "study": study}


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array as ``.npy``, whole or not at all."""
    with open_atomic(path, size=array.nbytes) as stream:
        np.save(stream, array, allow_pickle=False)
