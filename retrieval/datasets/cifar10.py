"""cifar10: 60,000 images of 32 x 32 pixels in ten classes, under the literature's protocols."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
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

_A_CLASS = {"train": 5_000, "test": 1_000}
"""Images of each class in the authors' two parts."""

_WHOLE_CLASS = sum(_A_CLASS.values())


@DATASETS.register("cifar10")
class Cifar10(Dataset):
    """CIFAR-10, read from the authors' batches or from image files by class.

    The protocols are those of the hashing literature, under the names that DeepHash-pytorch gives
    them. ``cifar10-1``, the default: both parts are pooled; of each class 100 images are queries,
    the other 5,900 the gallery, and 500 of these are trained on. Validation queries (100) and what
    they are ranked against (200) are gallery images outside of the training split, so that the
    training split stays whole. ``cifar10``: the same images, but those trained on are not in the
    gallery, which has 5,400 of each class then. ``cifar10-2``: the authors' 10,000 test images are
    queries, their 50,000 training images the gallery, all of which is trained on; but for the
    validation queries, 100 of each class, which leave 49,000 to train on and are ranked against
    these.
    """

    Options = RootedOptions
    options: RootedOptions
    what = (
        "60,000 photographs, 32x32 px, 10 classes; 1,000 query, 59,000 gallery, 5,000 train; "
        "two more protocols"
    )
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
                of 6,000 (under ``cifar10-2``, of 5,000 and 1,000), unless the protocol's sizes
                are given.
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
        if not self._sized:
            self._check_counts(index)
        return index

    @property
    def _sized(self) -> bool:
        """Whether the study gives sizes of its own, as it must for a part of CIFAR-10."""
        given = self.options.protocol
        listed = self.base_protocol.listed  # there are no queries to count then
        sizes = (0 if listed else given.query_per_class, given.train_per_class)
        return given.split_file is not None or None not in sizes

    def _check_counts(self, index: DatasetIndex) -> None:
        """Refuse all but the whole data set."""
        classes, labels = index.classes, index.labels.astype(np.int64)
        listed = self.base_protocol.listed
        sizes = "protocol.train_per_class"
        sizes = sizes if listed else f"protocol.query_per_class and {sizes}"
        beside = "validation_per_class"
        beside = beside if listed else f"{beside} and validation_gallery_per_class"
        hint = f"for a part of CIFAR-10 give {sizes}, and for a small one {beside} too"
        counts = np.bincount(labels, minlength=len(classes))
        if len(counts) != len(CLASSES) or (counts != _WHOLE_CLASS).any():
            odd = int(np.argmax(counts != _WHOLE_CLASS)) if (counts != _WHOLE_CLASS).any() else 0
            raise DatasetError(
                f"dataset 'cifar10': expected {len(CLASSES) * _WHOLE_CLASS} images, "
                f"{_WHOLE_CLASS} in each of {len(CLASSES)} classes; found {len(index.keys)} in "
                f"{len(counts)} classes, {counts[odd]} of them in {classes[odd]!r}",
                key="root",
                value=self.options.root,
                hint=hint,
            )
        if not listed:
            return
        parts = np.array(self._parts(index.keys))
        for part, expected in _A_CLASS.items():
            counts = np.bincount(labels[parts == part], minlength=len(classes))
            if (counts != expected).any():
                odd = int(np.argmax(counts != expected))
                raise DatasetError(
                    f"dataset 'cifar10': protocol 'cifar10-2' expects {expected} images of each "
                    f"class in the {part} part; found {counts[odd]} of {classes[odd]!r}",
                    key="root",
                    value=self.options.root,
                    hint=hint,
                )

    def _parts(self, keys: Sequence[str]) -> list[str]:
        """Return whether each image is of the "train" or of the "test" part.

        Raises:
            DatasetError: the files do not say so.
        """
        if self._batches is not None:
            return ["test" if key.startswith("test_batch/") else "train" for key in keys]
        parts = [key.partition("/")[0].lower() for key in keys]
        if set(parts) != set(_A_CLASS):
            found = sorted({key.partition("/")[0] for key in keys})
            raise DatasetError(
                "protocol 'cifar10-2' needs to know the authors' two parts: folders train/ and "
                f"test/ around the classes, or their batches; found folders {', '.join(found)}",
                key="root",
                value=self.options.root,
                hint="protocols 'cifar10-1' and 'cifar10' pool both parts and need no folders",
            )
        return parts

    def decoder(self) -> AbstractContextManager[Decoder]:
        """Open the batches, the folder or the zip."""
        if self._batches is not None:
            return self._batches.decoder()
        return tree_decoder(self._files, self._tree)

    def default_protocol(self) -> Protocol:
        """The most common of the protocols in use: 1,000 queries, all others the gallery."""
        return Protocol(
            id="cifar10-1",
            query_per_class=100,
            train_per_class=500,
            validation_per_class=100,
            validation_gallery_per_class=200,
        )

    def other_protocols(self) -> Sequence[Protocol]:
        """Training images out of the gallery; and the official parts."""
        return (
            replace(self.default_protocol(), id="cifar10", train_apart=True),
            Protocol(id="cifar10-2", listed=True, validation_per_class=100),
        )

    def listed_splits(self) -> Mapping[str, Sequence[str]] | None:
        """Return the official parts under ``cifar10-2``: test asks, train answers."""
        if not self.base_protocol.listed:
            return None
        keys = self._whole.keys  # those that the study leaves out tell parts, too
        named = dict(zip(keys, self._parts(keys), strict=True))
        return {
            "query": [key for key, part in named.items() if part == "test"],
            "gallery": [key for key, part in named.items() if part == "train"],
        }


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
