"""cifar10: 60,000 images of 32 px in ten classes, in the literature's retrieval protocol."""

from __future__ import annotations

import hashlib
import io
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from retrieval.augmentation import Augmentation
from retrieval.datasets.base import DATASETS, Dataset, DatasetIndex, DatasetOptions
from retrieval.datasets.files import ImageFiles, list_images
from retrieval.errors import DatasetError
from retrieval.images import decode_bytes
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

_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_SIDE = 32


class Cifar10Options(DatasetOptions):
    """Where the images are.

    Attributes:
        root: the torchvision folder (``cifar-10-batches-py`` or its parent), a folder tree with one
            folder a class (also below train/ and test/, which are pooled), or a zip of that.
    """

    root: str = Field(min_length=1)


@DATASETS.register("cifar10")
class Cifar10(Dataset):
    """Both parts pooled; a class gives 100 queries and 5,900 gallery images, 500 of them to train.

    The protocol of CSCH, OrthoHash and DeepHash-pytorch's ``cifar10-1``, with mAP over the whole
    gallery. Each of them draws its own split; ours is drawn once, from the protocol's split seed.
    """

    Options = Cifar10Options
    options: Cifar10Options
    what = "60,000 photographs, 32x32 px, 10 classes; 1,000 query, 59,000 gallery, 5,000 train"
    source = "Krizhevsky, Learning multiple layers of features from tiny images, 2009"
    licence = "for research"
    obtain = "torchvision.datasets.CIFAR10(root, download=True), then root: that folder"

    @property
    def root(self) -> Path:
        """The folder or zip."""
        return Path(self.options.root).expanduser()

    @cached_property
    def _batches_folder(self) -> Path | None:
        for folder in (self.root, self.root / "cifar-10-batches-py"):
            if (folder / _BATCHES[0]).is_file():
                return folder
        return None

    @cached_property
    def _batches(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
        """Images (N, 3, 32, 32), labels (N,) and fingerprint of the torchvision files."""
        assert self._batches_folder is not None
        images, labels, digest = [], [], hashlib.sha256()
        for name in _BATCHES:
            data = _read(self._batches_folder / name)
            digest.update(hashlib.sha256(data).digest())
            batch = read_batch(data, name)
            images.append(batch[0])
            labels.append(batch[1])
        return np.concatenate(images), np.concatenate(labels), digest.hexdigest()

    @cached_property
    def files(self) -> ImageFiles:
        """The image files, where the root is a tree or zip."""
        return list_images(self.root, self.home / "datasets")

    def load_index(self) -> DatasetIndex:
        """List the pool of both parts.

        Raises:
            DatasetError: files are missing, a folder is no CIFAR-10 class, or the counts are not
                6,000 a class while the protocol's quotas are not given either.
        """
        if self._batches_folder is not None:
            _, labels, fingerprint = self._batches
            keys = [f"{_BATCHES[n // 10_000]}/{n % 10_000:04d}" for n in range(len(labels))]
        else:
            keys = self.files.keys()
            labels = np.array([_class_of(key) for key in keys], dtype=np.int64)
            fingerprint = self.files.fingerprint()
        counts = np.bincount(labels, minlength=len(CLASSES))
        given = self.options.protocol
        whole = (counts == 6_000).all()
        if (
            not whole
            and not (given.query_per_class and given.train_per_class)
            and (given.split_file is None)
        ):
            worst = int(np.argmax(counts != 6_000))
            raise DatasetError(
                f"expected 60,000 images, 6,000 a class, found {len(labels)} "
                f"({counts[worst]} of {CLASSES[worst]!r})",
                key="root",
                value=str(self.root),
                hint="for a part of CIFAR-10 give protocol: {query_per_class, train_per_class, "
                "validation_per_class}",
            )
        return DatasetIndex(
            keys=keys, labels=labels, classes=list(CLASSES), fingerprint=fingerprint
        )

    def decode(self, number: int) -> NDArray[np.uint8]:
        """Return one image."""
        if self._batches_folder is not None:
            return np.ascontiguousarray(self._batches[0][number].transpose(1, 2, 0))
        return decode_bytes(self.files.read(number), self.files.entries[number].path)

    def default_protocol(self) -> Protocol:
        """The literature's; validation is cut from gallery images that are not trained on."""
        given = self.options.protocol
        part = given.query_per_class is not None or given.train_per_class is not None
        return Protocol(
            id="cifar10-1",
            query_per_class=100,
            train_per_class=500,
            validation_per_class=100,
            validation_gallery_per_class=None if part else 200,
        )

    @property
    def default_augmentation(self) -> Augmentation:
        """As in the released code of CSCH: flips and slight changes of colour, no crop."""
        return Augmentation()


def _class_of(key: str) -> int:
    folder = key.rpartition("/")[0].rpartition("/")[2]
    if folder not in CLASSES:
        raise DatasetError(
            f"{key!r} is not in a folder named like a CIFAR-10 class ({', '.join(CLASSES)})",
            key="root",
        )
    return CLASSES.index(folder)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"cannot be read: {error.strerror}", key="root", value=str(path)
        ) from None


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the pickles of CIFAR-10 and nothing else: numpy arrays, and no call to anything."""

    _ADMITTED = frozenset(
        (module, name)
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "ndarray", "dtype")
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name == "_reconstruct":
            from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

            return _reconstruct
        return getattr(np, name)


def read_batch(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one file of the torchvision folder without executing anything that is in it.

    Args:
        data: the file's bytes.
        name: for messages.

    Returns:
        Images (n, 3, 32, 32) and class numbers (n,).

    Raises:
        DatasetError: it holds something else than CIFAR-10's arrays.
    """
    try:
        raw = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        images = np.asarray(raw["data"], dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE)
        labels = np.asarray(raw["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle can raise anything; all of it means the same
        raise DatasetError(f"{name} is no file of CIFAR-10: {error}", key="root") from None
    if len(images) != len(labels) or not ((labels >= 0) & (labels < len(CLASSES))).all():
        raise DatasetError(f"{name} is no file of CIFAR-10: images and labels differ", key="root")
    return images, labels
