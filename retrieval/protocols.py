"""Protocols: how a dataset is split, and at which cut-off mAP is taken."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
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
        query_fraction: the same as a fraction of the class, where no number is given.
        train_per_class: training images of each class, out of the gallery; None takes all that are
            not for validation.
        validation_per_class: validation queries of each class, out of the gallery, not trained on.
        validation_fraction: the same as a fraction of the class, where no number is given.
        validation_gallery_per_class: what they are ranked against; None ranks the training images.
        uneven: classes differ in size by nature: ``train_per_class`` is a limit, not a quota.
        split_digest: SHA-256 of the split file, where one fixes the split.
    """

    id: str
    at: Literal["all"] | int = "all"
    split_seed: int = 0
    query_per_class: int | None = None
    query_fraction: float | None = None
    train_per_class: int | None = None
    validation_per_class: int | None = None
    validation_fraction: float | None = None
    validation_gallery_per_class: int | None = None
    uneven: bool = False
    split_digest: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return all of it as JSON values, without the cut-off, which no training reads."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "at"}


@dataclass(frozen=True)
class Splits:
    """Rows of the image store by role; each array is (n,) int64, increasing.

    Training and validation images are gallery images too, as in the literature.
    """

    train: NDArray[np.int64]
    validation_query: NDArray[np.int64]
    validation_gallery: NDArray[np.int64]
    query: NDArray[np.int64]
    gallery: NDArray[np.int64]

    def check(self, name: str, keys: Sequence[str] | None = None) -> Splits:
        """Return the splits if no image leaks from a query into what is learnt or ranked.

        Args:
            name: the dataset's, for messages.
            keys: the images' names, for messages.

        Raises:
            DatasetError: an empty split, an image in two that must be apart, or a training image
                that is not in the gallery; with counts.
        """
        for field in fields(self):
            rows = getattr(self, field.name)
            if not len(rows):
                raise DatasetError(f"dataset {name!r}: the {field.name} split is empty")
            if rows.dtype != np.int64 or (np.diff(rows) <= 0).any():
                raise DatasetError(
                    f"dataset {name!r}: the {field.name} split is not increasing int64"
                )
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
                    f"dataset {name!r}: {_images(both, keys)} both in {one} and in {other}"
                )
        outside = np.setdiff1d(self.train, self.gallery)
        if len(outside):
            raise DatasetError(
                f"dataset {name!r}: {_images(outside, keys)} in train but not in gallery"
            )
        return self


def _images(rows: NDArray[np.int64], keys: Sequence[str] | None) -> str:
    first = repr(keys[int(rows[0])]) if keys is not None else f"number {rows[0]}"
    return f"{len(rows)} images (first: {first}) are" if len(rows) > 1 else f"the image {first} is"


def draw_splits(
    keys: Sequence[str],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    protocol: Protocol,
    name: str,
) -> Splits:
    """Draw a single-label dataset's splits, class by class.

    Each class' images are put in the order of random numbers, each a function of (split seed,
    dataset, class, key) alone: an image that is added or removed leaves the others in their order.
    Queries come first, then validation queries, validation gallery, training images.

    Args:
        keys: (N,) image names.
        labels: (N,) class numbers.
        classes: class names.
        protocol: the quotas.
        name: the dataset's name, part of the random stream.

    Raises:
        DatasetError: a class has fewer images than its quotas; both numbers are in the message.
    """
    ids = np.frombuffer(b"".join(map(_key_digest, keys)), dtype="<u8")
    parts: dict[str, list[NDArray[np.int64]]] = {f.name: [] for f in fields(Splits)}
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(len(classes) + 1))
    for number, title in enumerate(classes):
        rows = by_class[starts[number] : starts[number + 1]]
        query, validation, beside, train = _quotas(protocol, len(rows), title, name)
        seed = derive(protocol.split_seed, "split", name, title)
        draw = words(seed, "split", ids[rows], 2).astype(np.uint64)
        order = rows[np.argsort((draw[:, 0] << np.uint64(32)) | draw[:, 1], kind="stable")]
        edges = np.cumsum([query, validation, beside, train])
        parts["query"].append(order[: edges[0]])
        parts["gallery"].append(order[edges[0] :])
        parts["validation_query"].append(order[edges[0] : edges[1]])
        parts["train"].append(order[edges[2] : edges[3]])
        ranked = order[edges[1] : edges[2]] if beside else order[edges[2] : edges[3]]
        parts["validation_gallery"].append(ranked)
    joined = {k: np.sort(np.concatenate(v)).astype(np.int64) for k, v in parts.items()}
    return Splits(**joined).check(name, keys)


def _key_digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()


def _quotas(protocol: Protocol, n: int, title: str, name: str) -> tuple[int, int, int, int]:
    """Return how many of a class' ``n`` images are query, validation, beside it, and train."""
    query = _quota(protocol.query_per_class, protocol.query_fraction, n)
    validation = _quota(protocol.validation_per_class, protocol.validation_fraction, n)
    beside = protocol.validation_gallery_per_class or 0
    rest = n - query - validation - beside
    train = protocol.train_per_class
    if train is None:
        train = max(1, rest)
    elif protocol.uneven:
        train = max(1, min(train, rest))
    if train > rest:
        shares = [f"{query} query", f"{validation} validation"]
        shares += [f"{beside} validation gallery"] if beside else []
        raise DatasetError(
            f"dataset {name!r}: class {title!r} has {n} images, the protocol needs "
            f"{n - rest + train} ({', '.join(shares)}, {train} train)",
            key="protocol",
        )
    return query, validation, beside, train


def _quota(number: int | None, fraction: float | None, n: int) -> int:
    if number is None and fraction is not None:
        return max(1, round(fraction * n))
    return number or 0


_SPLIT_KEY = "protocol.split_file"


def read_split_file(path: Path, keys: Sequence[str], name: str) -> Splits:
    """Read splits from a JSON file that lists image keys by split.

    The file has ``query``, ``gallery`` and ``train``; ``validation_query`` and
    ``validation_gallery`` too, if its author chose them. Without them a tenth of the training
    images are validation queries and are not trained on, ranked against the rest.

    Args:
        path: the file.
        keys: the dataset's image keys.
        name: the dataset's name.

    Raises:
        DatasetError: unreadable, no JSON, an unknown key, a key given twice, or a leak.
        UnknownNameError: an unknown split.
    """
    listed = _read_lists(path)
    rows = {key: number for number, key in enumerate(keys)}
    parts: dict[str, NDArray[np.int64]] = {}
    for split, wanted in listed.items():
        unknown = [key for key in wanted if key not in rows]
        if unknown:
            raise DatasetError(
                f"the split {split!r} lists {len(unknown)} images that the dataset does not have, "
                f"the first is {unknown[0]!r}; its keys look like {keys[0]!r}",
                key=_SPLIT_KEY,
            )
        if len(set(wanted)) < len(wanted):
            twice = next(key for key, count in Counter(wanted).items() if count > 1)
            raise DatasetError(
                f"the split {split!r} lists {twice!r} more than once", key=_SPLIT_KEY
            )
        parts[split] = np.sort(np.array([rows[key] for key in wanted], dtype=np.int64))
    for needed in ("query", "gallery", "train"):
        if needed not in parts:
            raise DatasetError(f"the split {needed!r} is missing", key=_SPLIT_KEY)
    if "validation_query" not in parts:
        train = parts["train"]
        order = permutation(0, "validation", len(train))
        cut = max(1, len(train) // 10)
        parts["validation_query"] = np.sort(train[order[:cut]])
        parts["train"] = np.sort(train[order[cut:]])
    parts.setdefault("validation_gallery", parts["train"])
    try:
        return Splits(**parts).check(name, keys)
    except DatasetError as error:
        raise error.located(prefix=_SPLIT_KEY) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice in a JSON object: of two lists the first would be lost."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DatasetError(f"{name!r} is listed twice", key=_SPLIT_KEY)
        found[name] = value
    return found


def _read_lists(path: Path) -> dict[str, list[str]]:
    try:
        # Some editors begin a file with a mark of its encoding.
        raw = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise DatasetError(
            f"the split file cannot be read: {error.strerror}", key=_SPLIT_KEY, value=str(path)
        ) from None
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"the split file is no JSON: {error}", key=_SPLIT_KEY, value=str(path)
        ) from None
    good = isinstance(raw, dict) and all(
        isinstance(wanted, list) and all(isinstance(key, str) for key in wanted)
        for wanted in raw.values()
    )
    if not good:
        raise DatasetError(
            'the split file must map splits to lists of image keys, {"query": ["a/1.jpg", ...]}',
            key=_SPLIT_KEY,
            value=str(path),
        )
    names = [f.name for f in fields(Splits)]
    for split in raw:
        if split not in names:
            raise UnknownNameError("split", split, names, key=_SPLIT_KEY)
    found: dict[str, list[str]] = raw
    return found
