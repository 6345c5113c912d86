"""What a dataset is: images listed without decoding, labels, a fingerprint, a protocol."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from retrieval.augmentation import Augmentation
from retrieval.errors import DatasetError
from retrieval.images import DEFAULT_STORE_SIZE, Decoder, ImageStore, open_images
from retrieval.protocols import (
    FRACTIONS,
    QUOTAS,
    TOTALS,
    Protocol,
    Splits,
    draw_splits,
    draw_splits_of_all,
    read_split_file,
)
from retrieval.registry import Registry
from retrieval.validation import explain_validation


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ProtocolOptions(_Strict):
    """What a study may change of a dataset's protocol; null keeps the dataset's own.

    Attributes:
        query_per_class, train_per_class, validation_per_class, validation_gallery_per_class:
            quotas, see Protocol; for images with one label each.
        query_total, train_total, validation_total, validation_gallery_total: the same of all
            images together; for images with several labels each.
        split_seed: of the split.
        split_file: JSON that lists the images of each split by key, instead of drawing them.
        at: cut-off of mAP.
    """

    query_per_class: int | None = Field(None, ge=1)
    train_per_class: int | None = Field(None, ge=1)
    validation_per_class: int | None = Field(None, ge=1)
    validation_gallery_per_class: int | None = Field(None, ge=1)
    query_total: int | None = Field(None, ge=1)
    train_total: int | None = Field(None, ge=1)
    validation_total: int | None = Field(None, ge=1)
    validation_gallery_total: int | None = Field(None, ge=1)
    split_seed: int = Field(0, ge=0)
    split_file: str | None = None
    at: Literal["all"] | int | None = None

    @field_validator("at", mode="before")
    @classmethod
    def _cut_off(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not number and value not in ("all", None):
            raise ValueError("must be 'all' or a whole number of at least 1")
        return value


class DatasetOptions(_Strict):
    """Options that every dataset takes.

    Attributes:
        protocol: changes of the protocol.
        label: what the dataset is called in tables; its name by default.
    """

    protocol: ProtocolOptions = ProtocolOptions()
    label: str | None = Field(None, min_length=1, max_length=40)


class RootedOptions(DatasetOptions):
    """Options of a dataset that lies somewhere on disk.

    Attributes:
        root: the folder or file; ``~`` is one's home.
    """

    root: str = Field(min_length=1)

    @field_validator("root", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @property
    def path(self) -> Path:
        """The root as a path."""
        return _expanded(self.root, "root")


@dataclass(frozen=True)
class DatasetIndex:
    """A dataset's images, without their pixels.

    Attributes:
        keys: (N,) one stable name an image.
        labels: (N,) int64 class numbers, or (N, C) uint8 multi-hot.
        classes: (C,) class names.
        fingerprint: SHA-256 of the content, 64 hex digits.
        ignored: files that are no images of the dataset: reason -> how many.
    """

    keys: list[str]
    labels: NDArray[np.generic]
    classes: list[str]
    fingerprint: str
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether images carry several labels."""
        return self.labels.ndim == 2


class Dataset(ABC):
    """Images with labels and a protocol.

    Class attributes:
        name: the registered name; set by the registry.
        version: raised when the same files would give other images, labels or splits.
        Options: the options' class.
        what, source, licence, obtain: for people.

    Args:
        options: validated.
        home: ASYMBENCH_HOME.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    what: ClassVar[str]
    source: ClassVar[str]
    licence: ClassVar[str]
    obtain: ClassVar[str]

    def __init__(self, options: DatasetOptions, home: Path) -> None:
        self.options = options
        self.home = home

    @property
    def label(self) -> str:
        """What the dataset is called in tables."""
        return self.options.label or self.name

    # ---- what a dataset answers ----------------------------------------------------------

    @abstractmethod
    def load_index(self) -> DatasetIndex:
        """List the images, without decoding any.

        Raises:
            DatasetError: something is missing, unreadable, or empty.
        """

    @abstractmethod
    def decoder(self) -> AbstractContextManager[Decoder]:
        """Open what decoding needs; yield a function from an image's number to its pixels.

        The function returns (H, W, 3) uint8, is called from threads, and raises DatasetError for
        an image that cannot be read, with the image named in ``problem``.
        """

    @abstractmethod
    def default_protocol(self) -> Protocol:
        """Return the dataset's own protocol."""

    @property
    def default_augmentation(self) -> Augmentation:
        """How training images are varied where the study says nothing."""
        return Augmentation()

    # ---- what all share ------------------------------------------------------------------

    @cached_property
    def _index(self) -> DatasetIndex:
        return self.load_index()

    def index(self) -> DatasetIndex:
        """Return keys, labels, classes and fingerprint."""
        return self._index

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol with the study's changes.

        Raises:
            DatasetError: quotas by class for images with several labels each, or totals for
                images with one.
        """
        own, given = self.default_protocol(), self.options.protocol
        values = {name: getattr(own, name) for name in own.__dataclass_fields__}
        counts = (*QUOTAS, *TOTALS)
        changed = [name for name in counts if getattr(given, name) is not None]
        if changed and given.split_file is None:
            self._refuse_other_counts(changed)
        values |= {name: getattr(given, name) for name in changed}
        for name in FRACTIONS:
            role = name.removesuffix("_fraction")
            if {f"{role}_per_class", f"{role}_total"} & set(changed):
                values[name] = None
        values["split_seed"] = given.split_seed
        if given.at is not None:
            values["at"] = given.at
        if given.split_file is not None:
            data = _read(_expanded(given.split_file, "protocol.split_file"))
            values["split_digest"] = hashlib.sha256(data).hexdigest()
            values |= dict.fromkeys([*counts, *FRACTIONS])
        if changed or given.split_seed or given.split_file:
            marks = [values[n] for n in (*QUOTAS, "split_seed", "split_digest")]
            totals = {name: values[name] for name in TOTALS if values[name] is not None}
            mark = json.dumps([*marks, totals] if totals else marks)
            values["id"] = f"{own.id}-{hashlib.sha256(mark.encode()).hexdigest()[:8]}"
        return Protocol(**values)

    def _refuse_other_counts(self, changed: Sequence[str]) -> None:
        """Refuse totals for images with one label each, and quotas for such with several."""
        if self.index().multi_label:
            wrong, ending = QUOTAS, ("_per_class", "_total")
            why = "has several labels an image, so that an image counts for many classes"
        else:
            wrong, ending = TOTALS, ("_total", "_per_class")
            why = "has one label an image and is split class by class"
        for name in changed:
            if name in wrong:
                raise DatasetError(
                    f"dataset {self.name!r} {why}; give {name.replace(*ending)} instead",
                    key=f"protocol.{name}",
                    value=getattr(self.options.protocol, name),
                )

    @cached_property
    def _splits(self) -> Splits:
        index, given = self.index(), self.options.protocol
        if given.split_file is not None:
            path = _expanded(given.split_file, "protocol.split_file")
            return read_split_file(path, index.keys, self.name)
        if index.multi_label:
            return draw_splits_of_all(index.keys, self.protocol, self.name)
        labels = index.labels.astype(np.int64)
        return draw_splits(index.keys, labels, index.classes, self.protocol, self.name)

    def splits(self) -> Splits:
        """Return rows by role.

        Raises:
            DatasetError: the images do not suffice for the protocol, or a split file is wrong.
        """
        return self._splits

    def identity(self) -> dict[str, Any]:
        """Return all that determines images, labels and splits; no path in it."""
        return {
            "name": self.name,
            "version": self.version,
            "fingerprint": self.index().fingerprint,
            "protocol": self.protocol.identity(),
            **self.image_options(),
        }

    def image_options(self) -> dict[str, Any]:
        """Return the options that change stored pixels."""
        return {}

    def images(self) -> ImageStore:
        """Open the decoded images, building their store at the first call on this home.

        Raises:
            DatasetError: images cannot be read.
        """
        index = self.index()
        size = self.image_options().get("store_size", DEFAULT_STORE_SIZE)
        layout = f"{self.name}.{self.version}-{size}"
        return open_images(
            self.home / "images" / f"{index.fingerprint[:16]}-{layout}",
            self.decoder,
            keys=index.keys,
            labels=index.labels,
            classes=index.classes,
            fingerprint=index.fingerprint,
            store_size=size,
        )

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Return what ``asymbench list datasets`` shows."""
        return {
            "name": cls.name,
            "version": cls.version,
            "what": cls.what,
            "source": cls.source,
            "licence": cls.licence,
            "obtain": cls.obtain,
        }


DATASETS: Registry[type[Dataset]] = Registry(
    "dataset",
    package="retrieval.datasets",
    infrastructure={"base", "batches", "files"},
    group="asymbench.datasets",
)


def open_dataset(given: str | Mapping[str, Any], *, home: Path) -> Dataset:
    """Open a dataset as a study names it.

    Args:
        given: a name; a mapping with ``name`` and options; or ``{folder: PATH}`` for one's own.
        home: ASYMBENCH_HOME.

    Raises:
        UnknownNameError: no such dataset.
        InputError: an option is unknown or wrong.
        DatasetError: found when the dataset is first looked at.
    """
    if not isinstance(given, (str, Mapping)):
        raise DatasetError(
            "a dataset is a name, {name: ..., and options} or {folder: PATH}", value=given
        )
    options = {"name": given} if isinstance(given, str) else dict(given)
    if "folder" in options and "name" not in options:
        if "root" in options:
            raise DatasetError(
                "folder: PATH says where the images are, a root beside it is one too many",
                key="root",
                value=options["root"],
            )
        options = {"name": "folder", "root": options.pop("folder"), **options}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise DatasetError("a dataset needs a name", key="name", value=name)
    cls = DATASETS.get(name)
    try:
        return cls(cls.Options.model_validate(options), home)
    except ValidationError as error:
        explained = explain_validation(error, cls.Options)
        if explained.key == "root" and not explained.has_value:
            explained.hint = f"where the images of {name!r} lie; {cls.obtain}"
        raise explained from None


def _expanded(text: str, key: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise DatasetError("there is no such user's home", key=key, value=text) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"the split file cannot be read: {error.strerror}",
            key="protocol.split_file",
            value=str(path),
        ) from None
