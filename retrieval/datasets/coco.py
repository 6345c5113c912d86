"""coco: photographs of everyday scenes with up to 80 classes of objects, several in one image."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from retrieval.augmentation import Augmentation
from retrieval.datasets.base import DATASETS, DatasetIndex
from retrieval.datasets.files import (
    FileOptions,
    Files,
    FilesDataset,
    ListingCache,
    Tree,
    is_settled,
    labelled_fingerprint,
    leads_out,
    read_member,
)
from retrieval.errors import DatasetError
from retrieval.protocols import Protocol

Part = Literal["train", "val"]

_WHOLE = 122_218
"""Images with a label in both parts together, of 2014 as of 2017, which are the same images."""

_INSTANCES = re.compile(r"instances_(train|val)(2014|2017)\.json")


class CocoOptions(FileOptions):
    """Options of MS-COCO.

    Attributes:
        root: a folder or a zip with annotations/instances_train2017.json and the like, and the
            images in train2017/ and val2017/ beside annotations/; or the same of 2014. One
            folder around all that is allowed.
        year: 2014 or 2017; by default the one whose annotations are there.
        parts: which parts are pooled; the literature takes both.
    """

    year: Literal[2014, 2017] | None = None
    parts: list[Part] = Field(["train", "val"], min_length=1)

    @field_validator("parts")
    @classmethod
    def _once(cls, parts: list[Part]) -> list[Part]:
        if len(set(parts)) < len(parts):
            raise ValueError("names a part twice")
        return sorted(parts)


@DATASETS.register("coco")
class Coco(FilesDataset):
    """MS-COCO with the labels of its instances: an image has the classes of what is seen in it.

    The protocol is that of the hashing literature: both parts are pooled, images without a label
    are left out, 5,000 are queries, the others the gallery, of which 10,000 are trained on; mAP is
    taken at 5,000. Validation queries (1,000) and what they are ranked against (4,000) are gallery
    images outside of the training split, so that the training split stays whole. Of any other
    number of images, as of one part or of a sample, ten per cent are queries, ten per cent
    validation queries and the rest is trained on, with mAP over the whole ranking.
    """

    Options = CocoOptions
    options: CocoOptions
    what = "122,218 photographs, 80 classes, several an image; 5,000 query, 10,000 train"
    source = "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014"
    licence = "annotations CC BY 4.0; the photographs have licences of their own"
    obtain = (
        "unpack the images and annotations of 2017 (or 2014) of cocodataset.org and give the "
        "folder as root: annotations/instances_train2017.json, train2017/, and val likewise"
    )

    @cached_property
    def _tree(self) -> Tree:
        sources = _Sources.find(self._files, self.options)
        labelled = sources.read()
        listing = self._files.listing([f"{sources.around}{part}" for part in sources.parts])
        place = {path: number for number, path in enumerate(listing.paths)}
        keys = sorted(labelled.labels)
        paths = [f"{sources.around}{key}" for key in keys]
        missing = [path for path in paths if path not in place]
        if missing:
            raise self._files.error(
                f"{len(missing)} of the {len(paths)} images that the annotations list are "
                f"missing, the first: {missing[0]!r}"
            )
        kept = [number for number, key in enumerate(keys) if labelled.labels[key]]
        if not kept:
            raise self._files.error(f"none of the {len(keys)} images has a label")
        column = {number: place for place, number in enumerate(labelled.classes)}
        labels = np.zeros((len(kept), len(column)), dtype=np.uint8)
        for row, number in enumerate(kept):
            labels[row, [column[label] for label in labelled.labels[keys[number]]]] = 1
        chosen = [place[paths[number]] for number in kept]
        sizes, crcs = [listing.sizes[n] for n in chosen], [listing.crcs[n] for n in chosen]
        classes = list(labelled.classes.values())
        ignored = {
            "without a label": len(keys) - len(kept),
            "not in the annotations": len(listing.paths) - len(keys),
        }
        index = DatasetIndex(
            keys=[keys[number] for number in kept],
            labels=labels,
            classes=classes,
            fingerprint=labelled_fingerprint(
                [keys[n] for n in kept], sizes, crcs, labels, classes
            ),
            ignored={reason: count for reason, count in ignored.items() if count},
        )
        return Tree(index, [paths[number] for number in kept], crcs, sizes)

    def load_index(self) -> DatasetIndex:
        """List the labelled images of the parts in the order of their names.

        Raises:
            DatasetError: annotations are missing, damaged or not of one year; or an image that
                they list is missing.
        """
        return self._tree.index

    def default_protocol(self) -> Protocol:
        """The literature's for the whole dataset, fractions for a part of it."""
        if len(self.index().keys) != _WHOLE:
            return Protocol(id="coco-10", query_fraction=0.1, validation_fraction=0.1)
        return Protocol(
            id="coco-5000",
            at=5_000,
            query_total=5_000,
            train_total=10_000,
            validation_total=1_000,
            validation_gallery_total=4_000,
        )

    @property
    def default_augmentation(self) -> Augmentation:
        """Shifts and mirroring, no change of colour.

        The literature crops at random along the longer side. Stored images are squares already:
        they are shifted by as much, over repeated edges.
        """
        return Augmentation(crop="random", flip=True, brightness=0.0, contrast=0.0)


@dataclass
class _Labelled:
    """What annotations say.

    Attributes:
        classes: class name by category number, in the order of numbers.
        labels: category numbers of what is seen in each image, in order, by key.
    """

    classes: dict[int, str] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sources:
    """The annotation files in use.

    Attributes:
        files: where they lie.
        around: the folder around everything, with "/", or nothing.
        parts: folder of images -> path of its annotations.
        stamps: what tells whether those are still the same.
    """

    files: Files
    around: str
    parts: dict[str, str]
    stamps: list[list[int]]

    @classmethod
    def find(cls, files: Files, options: CocoOptions) -> _Sources:
        """Find the annotations of the parts.

        Raises:
            DatasetError: none, not of all parts, of two years, or at two places.
        """
        documents = files.documents("annotations", ".json")
        found: dict[tuple[str, int], dict[str, str]] = {}
        for path in documents:
            folder, _, name = path.rpartition("/")
            if match := _INSTANCES.fullmatch(name):
                place = folder.removesuffix("annotations"), int(match[2])
                found.setdefault(place, {})[match[1]] = path
        if not found:
            raise files.error(
                "there is no annotations/instances_train2017.json, nor any other of "
                "instances_{train,val}{2014,2017}.json"
            )
        # Copies below do not matter where the place itself has annotations.
        around = min(place for place, _ in found)
        others = {place for place, _ in found} - {around} if around else set()
        if others:
            raise files.error(
                f"has annotations in {around!r} and in {min(others)!r}; give one of them as root"
            )
        years = sorted(year for place, year in found if place == around)
        if options.year is None and len(years) > 1:
            raise DatasetError(
                f"dataset {files.name!r} has annotations of {' and '.join(map(str, years))}",
                key="year",
                hint="say which to take, for example year: 2017",
            )
        year = options.year or years[0]
        named = found.get((around, year), {})
        for part in options.parts:
            if part not in named:
                there = [path for path in documents if _INSTANCES.search(path)]
                raise files.error(
                    f"'{around}annotations/instances_{part}{year}.json' is missing; there is "
                    + ", ".join(map(repr, there)),
                    hint="take one part with parts: [train] or parts: [val], or another year",
                )
        parts = {f"{part}{year}": named[part] for part in options.parts}
        return cls(files, around, parts, [documents[path] for path in parts.values()])

    def read(self) -> _Labelled:
        """Read the annotations, or what was kept of them: the files have hundreds of megabytes.

        Raises:
            DatasetError: one cannot be read, is not such a file, or contradicts the other.
        """
        cache = ListingCache(
            self.files.home, self.files.root, "/".join(["coco", *self.parts.values()])
        )
        known = cache.read()
        if known.get("stamps") == self.stamps:
            classes = {int(number): title for number, title in known["classes"]}
            return _Labelled(classes, known["labels"])
        started = time.time_ns()
        labelled = _Labelled()
        for part, path in self.parts.items():
            self._add(labelled, part, path)
        labelled.classes = dict(sorted(labelled.classes.items()))
        if len(labelled.classes) < 2:
            raise self.files.error(
                f"at least two categories are needed, found {list(labelled.classes.values())}"
            )
        if is_settled(max(map(max, self.stamps)), started):
            kept = {"classes": list(labelled.classes.items()), "labels": labelled.labels}
            cache.write({"stamps": self.stamps, **kept})
        return labelled

    def _add(self, labelled: _Labelled, part: str, path: str) -> None:
        try:
            with self.files.reader() as read:
                data = read_member(read, path)
        except DatasetError as error:
            raise self.files.error(f"annotations cannot be read: {error.problem}") from None
        try:
            found = read_instances(data)
        except ValueError as error:
            raise self.files.error(f"{path}: {error}") from None
        for number, title in found.classes.items():
            if labelled.classes.setdefault(number, title) != title:
                raise self.files.error(
                    f"{path}: category {number} is {title!r} here and "
                    f"{labelled.classes[number]!r} in another part"
                )
        titles = list(labelled.classes.values())
        if twice := next((title for title in titles if titles.count(title) > 1), None):
            raise self.files.error(f"{path}: two categories are called {twice!r}")
        for name, numbers in found.labels.items():
            labelled.labels[f"{part}/{name}"] = numbers


# ---- one annotation file ---------------------------------------------------------------------

_READ = frozenset(
    {"images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"}
)
"""Keys that are kept; outlines of objects are most of a file and would fill gigabytes."""


def read_instances(data: bytes) -> _Labelled:
    """Read an instances file in COCO's format.

    Args:
        data: its bytes.

    Returns:
        Categories, and those of each image by its file name.

    Raises:
        ValueError: not JSON, not of that format, or it contradicts itself; says where.
    """
    try:
        raw = json.loads(data, object_pairs_hook=_kept)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError("must be an object with 'images', 'annotations' and 'categories'")
    found = _Labelled()
    for where, entry in _entries(raw, "categories"):
        number, title = _whole(entry, "id", where), _text(entry, "name", where)
        if number in found.classes:
            raise ValueError(f"{where}: two categories have the id {number}")
        found.classes[number] = title
    seen: dict[int, set[int]] = {}
    names: dict[int, str] = {}
    taken: set[str] = set()
    for where, entry in _entries(raw, "images"):
        number, name = _whole(entry, "id", where), _text(entry, "file_name", where)
        if leads_out(name):
            raise ValueError(f"{where}: the file name {name!r} leads out of the images' folder")
        if number in names or name in taken:
            what = f"the id {number}" if number in names else f"the file name {name!r}"
            raise ValueError(f"{where}: two images have {what}")
        names[number], seen[number] = name, set()
        taken.add(name)
    for where, entry in _entries(raw, "annotations"):
        image, label = _whole(entry, "image_id", where), _whole(entry, "category_id", where)
        if image not in seen:
            raise ValueError(f"{where}: there is no image {image}")
        if label not in found.classes:
            raise ValueError(f"{where}: there is no category {label}")
        seen[image].add(label)
    found.labels = {name: sorted(seen[number]) for number, name in names.items()}
    return found


def _kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _READ}


def _entries(raw: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = raw.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"{key!r} must be a list of objects, found {_shown(entries)}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{key}[{number}] must be an object, found {_shown(entry)}")
        yield f"{key}[{number}]", entry


def _whole(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} must be a whole number, found {_shown(value)}")
    return value


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{where}: {key!r} must be printable text, found {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """Return a value for a message, not a megabyte of it."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
