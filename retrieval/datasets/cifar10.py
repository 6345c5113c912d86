"""cifar10: 60,000 images of 32 x 32 pixels in ten classes, under the literature's protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.datasets.base import DATASETS, Dataset, DatasetIndex, RootedOptions
from retrieval.datasets.batches import NAMES, SIDE, Batch, read_binary, read_pickled
from retrieval.datasets.files import (
    Files,
    ListingCache,
    Tree,
    arrange,
    open_files,
    tree_decoder,
)
from retrieval.errors import DatasetError, nearest
from retrieval.images import Decoder
from retrieval.protocols import Protocol

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_A_CLASS = 6_000
"""Images of each class in the whole dataset, both parts pooled."""


@DATASETS.register("cifar10")
class Cifar10(Dataset):
    """CIFAR-10, read from the authors' batches or from image files by class.

    The protocol is that of the hashing literature: both parts are pooled; of each class 100 images
    are queries, the other 5,900 the gallery, and 500 of these are trained on. Validation queries
    (100) and what they are ranked against (200) are gallery images outside of the training split,
    so that the training split stays whole.
    """

    Options = RootedOptions
    options: RootedOptions
    what = "60,000 photographs, 32x32 px, 10 classes; 1,000 query, 59,000 gallery, 5,000 train"
    source = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    licence = "for research"
    obtain = (
        "unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz of its authors and give the "
        "folder as root; or a folder or zip with CLASS/IMAGE, train/ and test/ around or not"
    )

    @cached_property
    def _batches(self) -> _Batches | None:
        return _Batches.find(self.options.path, self.home)

    @cached_property
    def _files(self) -> Files:
        return open_files(self.options.path, self.name, self.home)

    @cached_property
    def _tree(self) -> Tree:
        return arrange(self._files, self._files.listing())

    def load_index(self) -> DatasetIndex:
        """List the images of both parts, and count them.

        Raises:
            DatasetError: a class that CIFAR-10 does not have; or not 60,000 images in 10 classes
                of 6,000, unless the protocol's sizes are given.
        """
        batches = self._batches
        index = self._tree.index if batches is None else batches.index()
        unknown = [title for title in index.classes if title not in CLASSES]
        if unknown:
            close = nearest(unknown[0], CLASSES)
            suggestion = f"; did you mean {close[0]!r}?" if close else ";"
            raise DatasetError(
                f"dataset 'cifar10': {unknown[0]!r} is no class of CIFAR-10{suggestion} "
                f"known: {', '.join(CLASSES)}",
                key="root",
                value=self.options.root,
            )
        given = self.options.protocol
        sized = given.split_file is not None or None not in (
            given.query_per_class,
            given.train_per_class,
        )
        counts = np.bincount(index.labels.astype(np.int64), minlength=len(index.classes))
        if not sized and (len(counts) != len(CLASSES) or (counts != _A_CLASS).any()):
            odd = int(np.argmax(counts != _A_CLASS)) if (counts != _A_CLASS).any() else 0
            raise DatasetError(
                f"dataset 'cifar10': expected {len(CLASSES) * _A_CLASS} images, "
                f"{_A_CLASS} in each of {len(CLASSES)} classes; found {len(index.keys)} in "
                f"{len(counts)} classes, {counts[odd]} of them in {index.classes[odd]!r}",
                key="root",
                value=self.options.root,
                hint="for a part of CIFAR-10 give protocol.query_per_class and "
                "protocol.train_per_class, and for a small one validation_per_class and "
                "validation_gallery_per_class too",
            )
        return index

    def decoder(self) -> AbstractContextManager[Decoder]:
        """Open the batches, the folder or the zip."""
        if self._batches is not None:
            return self._batches.decoder()
        return tree_decoder(self._files, self._tree)

    def default_protocol(self) -> Protocol:
        """The first of the two protocols in use: 1,000 queries, all over the gallery."""
        return Protocol(
            id="cifar10-1",
            query_per_class=100,
            train_per_class=500,
            validation_per_class=100,
            validation_gallery_per_class=200,
        )


class _Batches:
    """The authors' six files, pickled or binary.

    Args:
        paths: of the files, in the order of NAMES.
        home: ASYMBENCH_HOME.
    """

    def __init__(self, paths: list[Path], home: Path) -> None:
        self.paths = paths
        self.home = home

    @classmethod
    def find(cls, root: Path, home: Path) -> _Batches | None:
        """Return the batches in ``root`` or in the folder in it; None where there are none.

        Raises:
            DatasetError: some are missing.
        """
        for folder, ending in (
            (root, ""),
            (root, ".bin"),
            (root / "cifar-10-batches-py", ""),
            (root / "cifar-10-batches-bin", ".bin"),
        ):
            paths = [folder / f"{name}{ending}" for name in NAMES]
            missing = [path.name for path in paths if not path.is_file()]
            if len(missing) == len(NAMES):
                continue
            if missing:
                raise DatasetError(
                    f"dataset 'cifar10': batches are missing: {', '.join(missing)}",
                    key="root",
                    value=str(root),
                )
            return cls(paths, home)
        return None

    def index(self) -> DatasetIndex:
        stamps = [
            [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            for status in (path.stat() for path in self.paths)
        ]
        cache = ListingCache(self.home, self.paths[0].parent, f"batches{self.paths[0].suffix}")
        known = cache.read()
        if known.get("stamps") != stamps:
            known = {"stamps": stamps, **self._digest()}
            cache.write(known)
        labels = np.array([int(digit) for text in known["labels"] for digit in text], np.int64)
        keys = [
            f"{name}/{number:05d}"
            for name, text in zip(NAMES, known["labels"], strict=True)
            for number in range(len(text))
        ]
        return DatasetIndex(keys, labels, list(CLASSES), known["fingerprint"])

    def _digest(self) -> dict[str, Any]:
        """Return labels, a digit an image, and the fingerprint of labels and pixels."""
        sha = hashlib.sha256(b"cifar-10 batches")
        labels = []
        for batch in self._read():
            sha.update(len(batch.labels).to_bytes(8, "little"))
            sha.update(batch.labels.tobytes())
            sha.update(np.ascontiguousarray(batch.pixels).tobytes())
            labels.append("".join(map(str, batch.labels.tolist())))
        return {"labels": labels, "fingerprint": sha.hexdigest()}

    def _read(self) -> Iterator[Batch]:
        for path in self.paths:
            try:
                batch = read_binary(path) if path.suffix == ".bin" else read_pickled(path)
            except (OSError, ValueError) as error:
                raise DatasetError(
                    f"dataset 'cifar10': {path.name}: {error}", key="root", value=str(path.parent)
                ) from None
            if (batch.labels >= len(CLASSES)).any():
                raise DatasetError(
                    f"dataset 'cifar10': {path.name}: class number {batch.labels.max()}, "
                    f"there are {len(CLASSES)} classes",
                    key="root",
                    value=str(path.parent),
                )
            yield batch

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        pixels: NDArray[np.uint8] = np.concatenate([batch.pixels for batch in self._read()])
        planes = pixels.reshape(-1, 3, SIDE, SIDE)
        yield lambda number: planes[number].transpose(1, 2, 0)
