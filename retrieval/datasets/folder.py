"""folder: any tree with one folder a class, or a zip of it."""

from __future__ import annotations

from collections import Counter
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


class FolderOptions(DatasetOptions):
    """Where the images are.

    Attributes:
        root: a folder with one folder a class (deeper levels belong to the class), or a zip of it.
        store_size: side in px at which images of mixed sizes are kept.
    """

    root: str = Field(min_length=1)
    store_size: int | None = Field(None, ge=8, le=2048)


@DATASETS.register("folder")
class Folder(Dataset):
    """Your own images, one folder a class; splits are drawn by class from a seed."""

    Options = FolderOptions
    options: FolderOptions
    what = "any folder (or zip) with one folder a class"
    source = "your own"
    licence = "your own"
    obtain = "dataset: {folder: PATH}"

    @cached_property
    def files(self) -> ImageFiles:
        """The image files."""
        return list_images(Path(self.options.root).expanduser(), self.home / "datasets")

    @staticmethod
    def class_of(key: str) -> str | None:
        """Return the class that an image's key says, its first folder; None where it has none."""
        first, slash, _ = key.partition("/")
        return first if slash else None

    def load_index(self) -> DatasetIndex:
        """List the images by class.

        Raises:
            DatasetError: images outside class folders, fewer than two classes, or an empty class.
        """
        files = self.files
        keys = files.keys()
        named = [self.class_of(key) for key in keys]
        stray = [key for key, name in zip(keys, named, strict=True) if name is None]
        if stray:
            raise DatasetError(
                f"{len(stray)} images are in no class folder, the first is {stray[0]!r}",
                key="root",
            )
        classes = sorted(set(filter(None, named)))
        self._refuse_empty(classes)
        if len(classes) < 2:
            raise DatasetError(
                f"there is only one class, {classes[0]!r}; retrieval needs two or more", key="root"
            )
        number = {name: i for i, name in enumerate(classes)}
        return DatasetIndex(
            keys=keys,
            labels=np.array([number[name] for name in named if name], dtype=np.int64),
            classes=classes,
            fingerprint=files.fingerprint(),
        )

    def _refuse_empty(self, classes: list[str]) -> None:
        for folder in sorted(self.files.folders_below()):
            name = folder.partition("/")[0]
            if name not in classes:
                raise DatasetError(
                    f"class {name!r} has no image; add some or remove the folder", key="root"
                )

    def decode(self, number: int) -> NDArray[np.uint8]:
        """Decode one file."""
        return decode_bytes(self.files.read(number), self.files.entries[number].path)

    def image_options(self) -> dict[str, Any]:
        """Return the stored size, where it is given."""
        return {"store_size": self.options.store_size}

    def default_protocol(self) -> Protocol:
        """A tenth of the smallest class as queries of each class, as many for validation."""
        smallest = min(Counter(self.index().labels.tolist()).values())
        quota = max(1, smallest // 10)
        return Protocol(id=f"folder-{quota}", query_per_class=quota, validation_per_class=quota)

    @property
    def default_augmentation(self) -> Augmentation:
        """Random resized crops and flips, as for natural images."""
        return Augmentation(crop="random_resized", brightness=0.0, contrast=0.0)
