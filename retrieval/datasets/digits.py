"""digits: scikit-learn's 1,797 scans of handwritten digits; they come with the installation."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.augmentation import Augmentation
from retrieval.datasets.base import DATASETS, Dataset, DatasetIndex
from retrieval.errors import DatasetError
from retrieval.images import Decoder
from retrieval.protocols import Protocol

_SIDE = 8
_WHITE = 16
"""Pixels are counts from 0 to 16."""


@DATASETS.register("digits")
class Digits(Dataset):
    """Real scans, 8 x 8 pixels, 10 classes, about 180 images each."""

    what = "1,797 scans of handwritten digits, 8x8 px, 10 classes"
    source = "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998"
    licence = "CC BY 4.0"
    obtain = "comes with scikit-learn; nothing to fetch"

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        """(N, 65): 64 pixels and the digit."""
        found = importlib.util.find_spec("sklearn")  # located, not imported: that takes a second
        folders = list(found.submodule_search_locations or ()) if found else []
        for folder in folders:
            path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
            if path.is_file():
                with gzip.open(path, "rt", encoding="ascii") as stream:
                    return np.loadtxt(stream, delimiter=",").astype(np.uint8)
        raise DatasetError("scikit-learn's digits.csv.gz is not installed; install scikit-learn")

    def load_index(self) -> DatasetIndex:
        """List the scans in scikit-learn's order."""
        table = self._table
        return DatasetIndex(
            keys=[f"{number:04d}" for number in range(len(table))],
            labels=table[:, -1].astype(np.int64),
            classes=[str(digit) for digit in range(10)],
            fingerprint=hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest(),
        )

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """Yield scans as grey RGB, white ink on black."""
        pixels = self._table[:, :-1].reshape(-1, _SIDE, _SIDE, 1)
        grey = np.round(pixels * (255.0 / _WHITE)).astype(np.uint8)
        yield lambda number: np.repeat(grey[number], 3, axis=2)

    def default_protocol(self) -> Protocol:
        """30 queries a class; the rest is the gallery, of which 30 a class are for validation."""
        return Protocol(id="digits-30", query_per_class=30, validation_per_class=30)

    @property
    def default_augmentation(self) -> Augmentation:
        """Small shifts; a mirrored digit is no digit."""
        return Augmentation(crop="random", flip=False)
