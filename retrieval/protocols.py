"""Protocols: how a dataset is split, and at which cut-off mAP is taken."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DatasetError, UnknownNameError
from retrieval.streams import derive, permutation, words


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a dataset is split.

    Attributes:
        id: short name, shown beside every number.
        at: cut-off of mAP, "all" or a number of ranks.
        split_seed: of the split, independent of any trial's seed.
        query_per_class: test queries of each class.
        train_per_class: training images of each class, out of the gallery; None takes all that are
            not validation queries.
        validation_per_class: validation queries of each class, out of the gallery, not trained on.
        validation_gallery_per_class: what they are ranked against; None ranks the training images.
        split_digest: SHA-256 of the split file, where one fixes the split.
    """

    id: str
    at: Literal["all"] | int = "all"
    split_seed: int = 0
    query_per_class: int | None = None
    train_per_class: int | None = None
    validation_per_class: int | None = None
    validation_gallery_per_class: int | None = None
    split_digest: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return all of it as JSON values, without the cut-off, which no training reads."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "at"}


@dataclass(frozen=True)
class Splits:
    """Rows of the image store by role; each array is sorted int64.

    Training and validation images are gallery images too, as in the literature.
    """

    train: NDArray[np.int64]
    validation_query: NDArray[np.int64]
    validation_gallery: NDArray[np.int64]
    query: NDArray[np.int64]
    gallery: NDArray[np.int64]

    def check(self, name: str) -> Splits:
        """Return the splits if no image leaks from a query into what is learnt or ranked.

        Args:
            name: the dataset's, for messages.

        Raises:
            DatasetError: an empty split, or an image in two that must be apart.
        """
        for field in fields(self):
            if not len(getattr(self, field.name)):
                raise DatasetError(f"dataset {name!r}: the {field.name} split is empty")
        apart = (
            ("query", "gallery"),
            ("query", "train"),
            ("query", "validation_query"),
            ("query", "validation_gallery"),
            ("validation_query", "train"),
            ("validation_query", "validation_gallery"),
        )
        for one, other in apart:
            both = np.intersect1d(getattr(self, one), getattr(self, other))
            if len(both):
                raise DatasetError(
                    f"dataset {name!r}: {len(both)} images are in {one} and in {other}, "
                    f"the first is number {both[0]}"
                )
        outside = np.setdiff1d(self.train, self.gallery)
        if len(outside):
            raise DatasetError(
                f"dataset {name!r}: {len(outside)} training images are not in the gallery"
            )
        return self


def draw_splits(
    labels: NDArray[np.int64], classes: list[str], protocol: Protocol, name: str
) -> Splits:
    """Draw a single-label dataset's splits, class by class.

    Each class' images are put in an order of their own, a function of (split seed, dataset, class,
    place in the class); queries come first, then validation queries, training images, validation
    gallery.

    Args:
        labels: (N,) class numbers.
        classes: class names.
        protocol: the quotas.
        name: the dataset's name, part of the random stream.

    Raises:
        DatasetError: a class has fewer images than its quotas; both numbers are in the message.
    """
    parts: dict[str, list[NDArray[np.int64]]] = {f.name: [] for f in fields(Splits)}
    query, validation = protocol.query_per_class or 0, protocol.validation_per_class or 0
    beside = protocol.validation_gallery_per_class
    for number, title in enumerate(classes):
        rows = np.flatnonzero(labels == number)
        train = protocol.train_per_class
        if train is None:
            train = max(1, len(rows) - query - validation - (beside or 0))
        needed = query + validation + train + (beside or 0)
        if len(rows) < needed:
            raise DatasetError(
                f"dataset {name!r}: class {title!r} has {len(rows)} images, the protocol needs "
                f"{needed} ({query} query, {validation} validation, {train} train"
                + (f", {beside} validation gallery)" if beside else ")"),
                key="protocol",
            )
        seed = derive(protocol.split_seed, "split", name, title) % 2**63
        draw = words(seed, "split", np.arange(len(rows)), 2).astype(np.uint64)
        order = rows[np.argsort((draw[:, 0] << np.uint64(32)) | draw[:, 1], kind="stable")]
        edges = np.cumsum([query, validation, train, beside or 0])
        parts["query"].append(order[: edges[0]])
        parts["gallery"].append(order[edges[0] :])
        parts["validation_query"].append(order[edges[0] : edges[1]])
        parts["train"].append(order[edges[1] : edges[2]])
        chosen = order[edges[2] : edges[3]] if beside is not None else order[edges[1] : edges[2]]
        parts["validation_gallery"].append(chosen)
    joined = {k: np.sort(np.concatenate(v)).astype(np.int64) for k, v in parts.items()}
    return Splits(**joined).check(name)


def read_split_file(path: Path, keys: list[str], name: str) -> Splits:
    """Read splits from a JSON file that lists image keys by split.

    The file has ``query``, ``gallery`` and ``train``; ``validation_query`` and
    ``validation_gallery`` too, if the study validates. Without them a tenth of the training images
    are validation queries and are not trained on, ranked against the rest.

    Args:
        path: the file.
        keys: the dataset's image keys.
        name: the dataset's name.

    Raises:
        DatasetError: no JSON, an unknown split or key, a key given twice, or a leak.
    """
    field = "protocol.split_file"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"no JSON: {error}", key=field, value=str(path)) from None
    names = [f.name for f in fields(Splits)]
    if not isinstance(raw, dict) or not all(isinstance(v, list) for v in raw.values()):
        raise DatasetError("must map splits to lists of image keys", key=field, value=str(path))
    for split in raw:
        if split not in names:
            raise UnknownNameError("split", str(split), names, key=field)
    rows = {key: number for number, key in enumerate(keys)}
    parts: dict[str, NDArray[np.int64]] = {}
    for split, listed in raw.items():
        unknown = [key for key in listed if key not in rows]
        if unknown:
            raise DatasetError(
                f"split {split!r} lists {len(unknown)} images that the dataset has not, "
                f"the first is {unknown[0]!r}",
                key=field,
            )
        if len(set(listed)) < len(listed):
            raise DatasetError(f"split {split!r} lists an image twice", key=field)
        parts[split] = np.sort(np.array([rows[key] for key in listed], dtype=np.int64))
    for needed in ("query", "gallery", "train"):
        if needed not in parts:
            raise DatasetError(f"the split {needed!r} is missing", key=field)
    if "validation_query" not in parts:
        train = parts["train"]
        order = permutation(0, "validation", len(train))
        cut = max(1, len(train) // 10)
        parts["validation_query"] = np.sort(train[order[:cut]])
        parts["train"] = np.sort(train[order[cut:]])
    parts.setdefault("validation_gallery", parts["train"])
    return Splits(**parts).check(name)
