"""What a dataset is: images listed without decoding, labels, a fingerprint, a protocol."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal
from typing import Protocol as Structural

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from retrieval.augmentation import Augmentation
from retrieval.errors import DatasetError, UnknownNameError
from retrieval.images import (
    DEFAULT_STORE_SIZE,
    Decoder,
    ImageStore,
    Reopening,
    open_images,
)
from retrieval.protocols import (
    FRACTIONS,
    QUOTAS,
    ROLES,
    TOTALS,
    Protocol,
    Splits,
    complete_splits,
    draw_splits,
    draw_splits_greedily,
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
        name: one of the dataset's protocols; its first by default.
        query_per_class, train_per_class, validation_per_class, validation_gallery_per_class:
            quotas, see Protocol; for images with one label each.
        query_total, train_total, validation_total, validation_gallery_total: the same of all
            images together; for images with several labels each.
        split_seed: of the split.
        split_file: JSON that lists the images of each split by key, instead of drawing them.
        at: cut-off of mAP.
    """

    name: str | None = Field(None, min_length=1)
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
        exclude: a text file with one image's key a line; these are left out, as those are that
            ``asymbench prepare`` could not read. Lines that begin with "#" are comments.
    """

    root: str = Field(min_length=1)
    exclude: str | None = Field(None, min_length=1)

    @field_validator("root", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @property
    def path(self) -> Path:
        """The root as a path."""
        return expanded(self.root, "root")


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


class Score(Structural):
    """What is said of a ranking."""

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """(Q,) of each query, NaN where a query has nothing to find."""

    def to_json(self) -> dict[str, Any]:
        """Return all figures, ``map`` first among them, as plain values."""


class Dataset(ABC):
    """Images with labels and a protocol.

    Class attributes:
        name: the registered name; set by the registry.
        version: raised when the same files would give other images, labels or splits.
        Options: the options' class.
        path_options: options that are paths; a study's are found beside its file.
        dataset_options: options that are datasets themselves.
        score_titles: what tables call the figures of `score`, ``map`` first; empty where labels
            tell who matches.
        what, source, licence, obtain: for people.

    Args:
        options: validated.
        home: ASYMBENCH_HOME.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    path_options: ClassVar[tuple[str, ...]] = ("root", "exclude")
    dataset_options: ClassVar[tuple[str, ...]] = ()
    score_titles: ClassVar[Mapping[str, str]] = {}
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

    def other_protocols(self) -> Sequence[Protocol]:
        """Return further protocols, which a study chooses with ``protocol.name``."""
        return ()

    def listed_splits(self) -> Mapping[str, Sequence[str]] | None:
        """Return the keys of query and gallery images, where the dataset's files list them.

        Training and validation images may be listed too; see `complete_splits`. None: all splits
        are drawn. A dataset with several protocols looks at ``base_protocol.id``.
        """
        return None

    @property
    def default_augmentation(self) -> Augmentation:
        """How training images are varied where the study says nothing."""
        return Augmentation()

    # ---- what all share ------------------------------------------------------------------

    @cached_property
    def _whole(self) -> DatasetIndex:
        return self.load_index()

    @cached_property
    def excluded(self) -> frozenset[str]:
        """Keys of the images that the option ``exclude`` leaves out."""
        given = getattr(self.options, "exclude", None)
        return frozenset() if given is None else _read_keys(expanded(given, "exclude"))

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Rows of the whole index that are not excluded; None: all.

        Raises:
            DatasetError: a key that the dataset does not have, or nothing left.
        """
        if not self.excluded:
            return None
        keys = self._whole.keys
        if unknown := sorted(self.excluded - set(keys)):
            raise DatasetError(
                f"lists {len(unknown)} images that dataset {self.name!r} does not have, the "
                f"first is {unknown[0]!r}; its keys look like {keys[0]!r}",
                key="exclude",
                value=getattr(self.options, "exclude", None),
            )
        kept = [row for row, key in enumerate(keys) if key not in self.excluded]
        if not kept:
            raise DatasetError(f"leaves no image of dataset {self.name!r}", key="exclude")
        return np.array(kept, dtype=np.int64)

    @cached_property
    def _index(self) -> DatasetIndex:
        whole, kept = self._whole, self._kept
        if kept is None:
            return whole
        mark = "\n".join([whole.fingerprint, "exclude", *sorted(self.excluded)])
        return DatasetIndex(
            keys=[whole.keys[row] for row in kept],
            labels=whole.labels[kept],
            classes=whole.classes,
            fingerprint=hashlib.sha256(mark.encode()).hexdigest(),
            ignored={**whole.ignored, "excluded by the study": len(whole.keys) - len(kept)},
        )

    def index(self) -> DatasetIndex:
        """Return keys, labels, classes and fingerprint."""
        return self._index

    @contextmanager
    def open_decoder(self) -> Iterator[Decoder]:
        """Open the decoder of the images in `index`, which leaves out excluded ones."""
        kept = self._kept
        with self.decoder() as decode:
            yield decode if kept is None else lambda number: decode(int(kept[number]))

    @cached_property
    def base_protocol(self) -> Protocol:
        """The protocol before the study's changes.

        Raises:
            UnknownNameError: the dataset has no protocol of the name that is given.
        """
        own, wanted = self.default_protocol(), self.options.protocol.name
        known = {protocol.id: protocol for protocol in (own, *self.other_protocols())}
        if wanted is None:
            return own
        if wanted not in known:
            raise UnknownNameError("protocol", wanted, known, key="protocol.name")
        return known[wanted]

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol with the study's changes.

        Raises:
            DatasetError: quotas by class for images with several labels each, or totals for
                images with one, or counts of splits that the dataset's files list.
            UnknownNameError: the dataset has no protocol of the name that is given.
        """
        own, given = self.base_protocol, self.options.protocol
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
            data = _read(expanded(given.split_file, "protocol.split_file"))
            values["split_digest"] = hashlib.sha256(data).hexdigest()
            values |= dict.fromkeys([*counts, *FRACTIONS])
            values |= {"listed": False, "greedy": False}
        if changed or given.split_seed or given.split_file:
            marks = [values[n] for n in (*QUOTAS, "split_seed", "split_digest")]
            totals = {name: values[name] for name in TOTALS if values[name] is not None}
            mark = json.dumps([*marks, totals] if totals else marks)
            values["id"] = f"{own.id}-{hashlib.sha256(mark.encode()).hexdigest()[:8]}"
        return Protocol(**values)

    def _refuse_other_counts(self, changed: Sequence[str]) -> None:
        """Refuse counts that have no meaning for this dataset and protocol."""
        own = self.base_protocol
        listed = self.listed_splits() if own.listed else None
        if listed is not None:
            drawn: dict[str, tuple[str, ...]]
            drawn = {"validation_query": ("validation_total", "validation_gallery_total")}
            if "train" not in listed:
                endings = TOTALS if self.index().multi_label else QUOTAS
                own_roles = ("query", "validation") if "validation_query" in listed else ("query",)
                drawn = {"train": tuple(n for n in endings if not n.startswith(own_roles))}
            allowed = [name for role in drawn if role not in listed for name in drawn[role]]
            for name in changed:
                if name not in allowed:
                    raise DatasetError(
                        f"dataset {self.name!r} has files that list its splits; only "
                        f"{', '.join(allowed) or 'the cut-off'} can be given",
                        key=f"protocol.{name}",
                        value=getattr(self.options.protocol, name),
                        hint="another split can be given with protocol.split_file",
                    )
            return
        if self.index().multi_label and not own.greedy:
            wrong, ending = QUOTAS, ("_per_class", "_total")
            why = "has several labels an image, so that an image counts for many classes"
        else:
            wrong, ending = TOTALS, ("_total", "_per_class")
            one = "has one label an image and " if not self.index().multi_label else ""
            why = f"{one}is split class by class"
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
            path = expanded(given.split_file, "protocol.split_file")
            apart = self.protocol.train_apart
            return read_split_file(path, index.keys, self.name, train_apart=apart)
        protocol = self.protocol
        listed = self.listed_splits() if protocol.listed else None
        if listed is not None:
            kept = {
                role: [key for key in keys if key not in self.excluded] if self.excluded else keys
                for role, keys in listed.items()
            }
            return complete_splits(
                kept, index.keys, index.labels, index.classes, protocol, self.name
            )
        if protocol.greedy and index.multi_label:
            return draw_splits_greedily(
                index.keys, index.labels, index.classes, protocol, self.name
            )
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

    def split_lists(self) -> dict[str, list[str]]:
        """Return the splits as ``protocol.split_file`` takes them: image keys by split."""
        keys, splits = self.index().keys, self.splits()
        return {role: [keys[row] for row in getattr(splits, role)] for role in ROLES}

    def split_text(self) -> str:
        """Return the content of a split file that fixes these splits, to be handed on."""
        return json.dumps(self.split_lists(), indent=1, ensure_ascii=False) + "\n"

    def identity(self) -> dict[str, Any]:
        """Return all that determines images, labels and splits; no path in it."""
        return {
            "name": self.name,
            "version": self.version,
            "fingerprint": self.index().fingerprint,
            "protocol": self.protocol.identity(),
            **self.image_options(),
        }

    def check_study(  # noqa: B027  few datasets refuse any
        self, *, at: int | str | None, legacy: Sequence[str] = ()
    ) -> None:
        """Refuse a study that cannot be run on this dataset.

        Args:
            at: the study's cut-off of mAP; None where it leaves that to the protocol.
            legacy: literature modes of mAP that the study asks for.

        Raises:
            DatasetError: says what is missing, or what has no meaning here.
        """

    def image_options(self) -> dict[str, Any]:
        """Return the options that change stored pixels."""
        return {}

    def score(
        self, query_codes: NDArray[np.uint8], gallery_codes: NDArray[np.uint8], bits: int
    ) -> Score | None:
        """Score a ranking by the dataset's own ground truth, where labels do not tell who matches.

        Args:
            query_codes: (Q, ceil(B / 8)) packed codes of the query split.
            gallery_codes: (N, ceil(B / 8)) packed codes of the gallery split.
            bits: B.

        Returns:
            The figures, ``map`` first among them; None where labels tell.
        """
        return None

    def score_embeddings(
        self,
        query: NDArray[np.floating[Any]],
        gallery: NDArray[np.floating[Any]],
        mode: Literal["cosine", "asymmetric"],
    ) -> float | None:
        """Return what ``map`` of `score` is for a ranking by continuous codes, (Q, B) and (N, B).

        None where labels tell.
        """
        return None

    @property
    def image_folder(self) -> Path:
        """Where the decoded images of this home lie, or will."""
        size = self.image_options().get("store_size", DEFAULT_STORE_SIZE)
        layout = f"{self.name}.{self.version}-{size}"
        return self.home / "images" / f"{self.index().fingerprint[:16]}-{layout}"

    def images(self, *, progress: Callable[[int, int], None] | None = None) -> ImageStore:
        """Open the decoded images, building their store at the first call on this home.

        Args:
            progress: called with the images decoded and all, while the store is built.

        Raises:
            DatasetError: images cannot be read.
        """
        index = self.index()
        size = self.image_options().get("store_size", DEFAULT_STORE_SIZE)
        return open_images(
            self.image_folder,
            self.open_decoder,
            keys=index.keys,
            labels=index.labels,
            classes=index.classes,
            fingerprint=index.fingerprint,
            store_size=size,
            reopening=self._reopening(),
            progress=progress,
        )

    def _reopening(self) -> Reopening:
        """Return how another process opens the same dataset."""
        options = self.options.model_dump(mode="json", exclude_unset=True)
        return Reopening({"name": self.name, **options}, str(self.home))

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
    infrastructure={"base", "batches", "files", "gnd", "landmarks", "pickles"},
    group="asymbench.datasets",
)


SHORTHANDS = ("folder", "manifest")
"""Datasets of one's own, which ``{NAME: PATH}`` opens."""


def open_dataset(given: str | Mapping[str, Any], *, home: Path) -> Dataset:
    """Open a dataset as a study names it.

    Args:
        given: a name; a mapping with ``name`` and options; or ``{folder: PATH}`` or
            ``{manifest: PATH}`` for one's own.
        home: ASYMBENCH_HOME.

    Raises:
        UnknownNameError: no such dataset.
        InputError: an option is unknown or wrong.
        DatasetError: found when the dataset is first looked at.
    """
    if not isinstance(given, (str, Mapping)):
        raise DatasetError(
            "a dataset is a name, {name: ..., and options}, {folder: PATH} or {manifest: PATH}",
            value=given,
        )
    options = {"name": given} if isinstance(given, str) else dict(given)
    for short in SHORTHANDS:
        if short in options and "name" not in options:
            if "root" in options:
                raise DatasetError(
                    f"{short}: PATH says where the images are, a root beside it is one too many",
                    key="root",
                    value=options["root"],
                )
            options = {"name": short, "root": options.pop(short), **options}
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


def expanded(text: str, key: str) -> Path:
    """Return an option as a path; ``~`` is one's home.

    Raises:
        DatasetError: of a user that does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise DatasetError("there is no such user's home", key=key, value=text) from None


def _read_keys(path: Path) -> frozenset[str]:
    """Return the lines of a text file that are neither empty nor comments."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(
            f"the list of excluded images cannot be read: {error.strerror}",
            key="exclude",
            value=str(path),
        ) from None
    except UnicodeDecodeError:
        raise DatasetError("the file is not UTF-8 text", key="exclude", value=str(path)) from None
    lines = (line.strip() for line in text.splitlines())
    return frozenset(line for line in lines if line and not line.startswith("#"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"the split file cannot be read: {error.strerror}",
            key="protocol.split_file",
            value=str(path),
        ) from None
