"""Protocols: how a dataset is split, and at which cut-off mAP is taken."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DatasetError, UnknownNameError
from retrieval.streams import derive, permutation, words


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a dataset is split: by quotas of each class, or by totals where classes overlap.

    Attributes:
        id: short name, shown beside every number.
        at: cut-off of mAP, "all" or a number of ranks.
        split_seed: of the split, independent of any trial's seed.
        query_per_class: test queries of each class.
        query_fraction: the same as a fraction of the class, or of all images where images carry
            several labels; where no number is given.
        train_per_class: training images of each class, out of the gallery; None takes all that are
            not for validation.
        validation_per_class: validation queries of each class, out of the gallery, not trained on.
        validation_fraction: the same as a fraction, like query_fraction.
        validation_gallery_per_class: what they are ranked against; None ranks the training images.
        uneven: classes differ in size by nature: ``train_per_class`` is a limit, not a quota.
        split_digest: SHA-256 of the split file, where one fixes the split.
        query_total, train_total, validation_total, validation_gallery_total: the same four of
            all images together, where images carry several labels; the two of validation also
            where the dataset's files list the splits.
        train_apart: training images are not in the gallery.
        greedy: quotas of each class hold for images with several labels too: in a random order
            each image counts for the first of its classes whose quota is not full.
        listed: the dataset's files say which images are query, gallery and, if they list them,
            training images.
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
    query_total: int | None = None
    train_total: int | None = None
    validation_total: int | None = None
    validation_gallery_total: int | None = None
    train_apart: bool = False
    greedy: bool = False
    listed: bool = False

    def identity(self) -> dict[str, Any]:
        """Return all of it as JSON values, without the cut-off, which no training reads.

        What came later is left out where it is not used: such a protocol keeps its identity.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "at"}
        unused = [name for name in TOTALS if values[name] is None]
        unused += [name for name in ("train_apart", "greedy", "listed") if not values[name]]
        return {name: value for name, value in values.items() if name not in unused}


QUOTAS = tuple(f.name for f in fields(Protocol) if f.name.endswith("_per_class"))
"""What a protocol counts by class: for images with one label each."""

TOTALS = tuple(f.name for f in fields(Protocol) if f.name.endswith("_total"))
"""What a protocol counts over all images: for images with several labels each."""

FRACTIONS = tuple(f.name for f in fields(Protocol) if f.name.endswith("_fraction"))
"""What stands in for either."""


APART = (
    ("query", "gallery"),
    ("query", "train"),
    ("query", "validation_query"),
    ("query", "validation_gallery"),
    ("validation_query", "train"),
    ("validation_query", "validation_gallery"),
)
"""Splits that must not have an image in common, nor a copy of one."""


@dataclass(frozen=True)
class Splits:
    """Rows of the image store by role; each array is (n,) int64, increasing.

    Training images are gallery images too unless the protocol keeps them apart; validation images
    are gallery or training images, and a validation query is never trained on.
    """

    train: NDArray[np.int64]
    validation_query: NDArray[np.int64]
    validation_gallery: NDArray[np.int64]
    query: NDArray[np.int64]
    gallery: NDArray[np.int64]

    def check(
        self, name: str, keys: Sequence[str] | None = None, *, train_apart: bool = False
    ) -> Splits:
        """Return the splits if no image leaks from a query into what is learnt or ranked.

        Args:
            name: the dataset's, for messages.
            keys: the images' names, for messages.
            train_apart: training images need not be in the gallery.

        Raises:
            DatasetError: an empty split, an image in two that must be apart, or a training image
                that is not in the gallery; with counts.
        """
        for role in ROLES:
            rows = getattr(self, role)
            if not len(rows):
                raise DatasetError(f"dataset {name!r}: the {role} split is empty")
            if rows.dtype != np.int64 or (np.diff(rows) <= 0).any():
                raise DatasetError(f"dataset {name!r}: the {role} split is not increasing int64")
        for one, other in APART:
            both = np.intersect1d(getattr(self, one), getattr(self, other))
            if len(both):
                raise DatasetError(
                    f"dataset {name!r}: {_images(both, keys)} both in {one} and in {other}"
                )
        outside = np.setdiff1d(self.train, self.gallery)
        if len(outside) and not train_apart:
            raise DatasetError(
                f"dataset {name!r}: {_images(outside, keys)} in train but not in gallery"
            )
        return self


ROLES = tuple(f.name for f in fields(Splits))
"""Names of the splits."""


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
    ids = _ids(keys)
    parts: dict[str, list[NDArray[np.int64]]] = {role: [] for role in ROLES}
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(len(classes) + 1))
    for number, title in enumerate(classes):
        rows = by_class[starts[number] : starts[number + 1]]
        query, validation, beside, train = _quotas(protocol, len(rows), title, name)
        order = rows[_order(derive(protocol.split_seed, "split", name, title), ids[rows])]
        apart = protocol.train_apart
        for part, chosen in _dealt(order, query, validation, beside, train, apart=apart).items():
            parts[part].append(chosen)
    return _joined(parts).check(name, keys, train_apart=protocol.train_apart)


def _joined(parts: Mapping[str, Sequence[NDArray[np.integer[Any]]]]) -> Splits:
    return Splits(**{k: np.sort(np.concatenate(v)).astype(np.int64) for k, v in parts.items()})


def draw_splits_of_all(keys: Sequence[str], protocol: Protocol, name: str) -> Splits:
    """Draw a multi-label dataset's splits, from all images together.

    Classes overlap, so that quotas of each have no one meaning. All images are put in the order
    of random numbers, each a function of (split seed, dataset, key) alone: an image that is added
    or removed leaves the others in their order, and moves one image at most over each boundary.
    Queries come first, then validation queries, validation gallery, training images; where the
    images do not suffice for all, fewer are trained on, as none is both trained on and validated.

    Args:
        keys: (N,) image names.
        protocol: the totals.
        name: the dataset's name, part of the random stream.

    Raises:
        DatasetError: quotas of classes; or fewer images than the protocol needs, with both
            numbers in the message.
    """
    by_class = [quota for quota in QUOTAS if getattr(protocol, quota) is not None]
    if by_class:
        raise DatasetError(
            f"dataset {name!r} has several labels an image and cannot be split by "
            f"{' and '.join(by_class)}: an image counts for many classes",
            key="protocol",
            hint=f"give {', '.join(TOTALS)}, or a split_file",
        )
    ids = _ids(keys)
    order = _order(derive(protocol.split_seed, "split", name), ids)
    parts = _dealt(order, *_totals(protocol, len(keys), name), apart=protocol.train_apart)
    joined = _joined({part: [rows] for part, rows in parts.items()})
    return joined.check(name, keys, train_apart=protocol.train_apart)


def draw_splits_greedily(
    keys: Sequence[str],
    labels: NDArray[np.generic],
    classes: Sequence[str],
    protocol: Protocol,
    name: str,
) -> Splits:
    """Draw a multi-label dataset's splits by quotas of each class, as NUS-WIDE is split.

    All images are put in a random order, a function of (split seed, dataset, key). Going through
    it, an image becomes a query if one of its classes wants more queries, and counts for the
    first such class in the order of classes. Training images, then validation queries, then what
    these are ranked against are chosen alike among the images that are left; the gallery is all
    that is no query. Taking away an image that none of these chose leaves all choices as they
    were.

    Args:
        keys: (N,) image names.
        labels: (N, C) multi-hot.
        classes: (C,) class names.
        protocol: the quotas; ``query_per_class``, ``train_per_class`` and
            ``validation_per_class`` are needed.
        name: the dataset's name, part of the random stream.

    Raises:
        DatasetError: a class has too few images for a quota; both numbers are in the message.
    """
    ids = _ids(keys)
    order = _order(derive(protocol.split_seed, "split", name), ids)
    left = np.ones(len(keys), dtype=bool)
    places, numbers = np.nonzero(np.asarray(labels)[order])
    starts = np.searchsorted(places, np.arange(len(order) + 1)).tolist()
    carried = numbers.tolist()
    chosen: dict[str, NDArray[np.int64]] = {}
    for role in ("query", "train", "validation", "validation_gallery"):
        quota = getattr(protocol, f"{role}_per_class") or 0
        wanted = [quota] * len(classes)
        missing = quota * len(classes)
        taken = []
        for place, row in enumerate(order.tolist()):
            if not missing:
                break
            if not left[row]:
                continue
            for charged in carried[starts[place] : starts[place + 1]]:
                if wanted[charged]:
                    wanted[charged] -= 1
                    missing -= 1
                    left[row] = False
                    taken.append(row)
                    break
        if missing:
            short = next(number for number, count in enumerate(wanted) if count)
            raise DatasetError(
                f"dataset {name!r}: class {classes[short]!r} has {quota - wanted[short]} images "
                f"left for the {role.replace('_', ' ')} split, the protocol needs {quota}",
                key="protocol",
            )
        chosen[role] = np.sort(np.array(taken, dtype=np.int64))
    gallery = np.setdiff1d(np.arange(len(keys), dtype=np.int64), chosen["query"])
    if protocol.train_apart:
        gallery = np.setdiff1d(gallery, chosen["train"])
    beside = chosen["validation_gallery"]
    return Splits(
        train=chosen["train"],
        validation_query=chosen["validation"],
        validation_gallery=beside if len(beside) else chosen["train"],
        query=chosen["query"],
        gallery=gallery,
    ).check(name, keys, train_apart=protocol.train_apart)


def complete_splits(
    listed: Mapping[str, Sequence[str]],
    keys: Sequence[str],
    labels: NDArray[np.generic],
    classes: Sequence[str],
    protocol: Protocol,
    name: str,
) -> Splits:
    """Complete splits of which a dataset's files list the query and the gallery images.

    Where they list training images too, validation queries and what they are ranked against are
    drawn from the gallery images that are not trained on, so that the training split stays whole;
    where there are too few of these, validation queries are taken from the training images and
    ranked against the others. Where no training images are listed, they are drawn from the
    gallery images that are not for validation, with the protocol's quotas: class by class, or by
    totals where images carry several labels.

    Args:
        listed: image names by split: ``query`` and ``gallery``, perhaps ``train`` and
            ``validation_query``, and with the latter perhaps ``validation_gallery``.
        keys: (N,) image names.
        labels: (N,) class numbers or (N, C) multi-hot.
        classes: (C,) class names.
        protocol: quotas or totals of what is not listed.
        name: the dataset's name, part of the random stream.

    Raises:
        DatasetError: a name that the dataset does not have or that is listed twice, a leak, or
            too few images.
    """
    places = {key: number for number, key in enumerate(keys)}
    parts: dict[str, NDArray[np.int64]] = {}
    for role, wanted in listed.items():
        rows = [places.get(key, -1) for key in wanted]
        if -1 in rows:
            raise DatasetError(
                f"dataset {name!r}: its {role} list has {rows.count(-1)} images that are not "
                f"there, the first is {wanted[rows.index(-1)]!r}"
            )
        parts[role], counts = np.unique(np.array(rows, dtype=np.int64), return_counts=True)
        if len(parts[role]) < len(rows):
            twice = keys[int(parts[role][np.argmax(counts > 1)])]
            raise DatasetError(
                f"dataset {name!r}: its {role} list has {len(rows) - len(parts[role])} images "
                f"more than once, the first is {twice!r}"
            )
    if "validation_gallery" in parts and "validation_query" not in parts:
        raise DatasetError(
            f"dataset {name!r}: its files list a validation gallery and no validation queries"
        )
    if "train" not in parts:
        drawn = _drawn_from(parts, keys, labels, classes, protocol, name)
        parts = drawn | parts  # what is listed comes first
        if protocol.train_apart:
            parts["gallery"] = np.setdiff1d(parts["gallery"], parts["train"])
    if "validation_query" not in parts:
        parts |= _validation_beside(parts, keys, protocol, name)
    parts.setdefault("validation_gallery", parts["train"])
    return Splits(**parts).check(name, keys, train_apart=protocol.train_apart)


def _drawn_from(
    listed: Mapping[str, NDArray[np.int64]],
    keys: Sequence[str],
    labels: NDArray[np.generic],
    classes: Sequence[str],
    protocol: Protocol,
    name: str,
) -> dict[str, NDArray[np.int64]]:
    """Draw training images, and validation images if none are listed, from the gallery."""
    gallery = listed["gallery"]
    if "validation_query" in listed:
        for role in ("validation_query", "validation_gallery"):
            gallery = np.setdiff1d(gallery, listed.get(role, gallery[:0]))
        unused: dict[str, Any] = {
            f.name: None for f in fields(protocol) if f.name.startswith("validation")
        }
        protocol = replace(protocol, **unused)
    ids = _ids(keys[row] for row in gallery)
    parts: dict[str, list[NDArray[np.integer[Any]]]] = {}
    groups: list[tuple[NDArray[np.intp], int, tuple[int, int, int, int]]]
    if labels.ndim == 2:
        seed = derive(protocol.split_seed, "split", name)
        inside = np.arange(len(gallery))
        groups = [(inside, seed, _totals(protocol, len(gallery), name))]
    else:
        groups = []
        for number, title in enumerate(classes):
            inside = np.flatnonzero(labels[gallery] == number)
            seed = derive(protocol.split_seed, "split", name, title)
            groups.append((inside, seed, _quotas(protocol, len(inside), title, name)))
    for inside, seed, (_, validation, beside, train) in groups:
        order = inside[_order(seed, ids[inside])]
        for part, chosen in _dealt(order, 0, validation, beside, train).items():
            parts.setdefault(part, []).append(gallery[chosen])
    drawn = _joined(parts)
    roles = ("train", "validation_query", "validation_gallery")
    found = {role: getattr(drawn, role) for role in roles}
    return found if "validation_query" not in listed else {"train": found["train"]}


def _validation_beside(
    parts: Mapping[str, NDArray[np.int64]], keys: Sequence[str], protocol: Protocol, name: str
) -> dict[str, NDArray[np.int64]]:
    """Draw validation images beside listed training images, or out of them."""
    train = parts["train"]
    validation = protocol.validation_total or max(1, len(train) // 10)
    beside = protocol.validation_gallery_total or 4 * validation
    spare = np.setdiff1d(parts["gallery"], train)
    pool = spare if len(spare) >= validation + beside else train
    if len(train) <= validation and pool is train:
        raise DatasetError(
            f"dataset {name!r}: {len(train)} training images do not suffice for {validation} "
            "validation queries, and the gallery has no others",
            key="protocol.validation_total",
        )
    ids = _ids(keys[row] for row in pool)
    order = pool[_order(derive(protocol.split_seed, "validation", name), ids)]
    drawn = {"validation_query": np.sort(order[:validation])}
    if pool is train:
        drawn["train"] = np.sort(order[validation:])
    else:
        drawn["validation_gallery"] = np.sort(order[validation : validation + beside])
    return drawn


def _order(seed: int, ids: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the images' places in the order of 64 random bits of each."""
    draw = words(seed, "split", ids, 2).astype(np.uint64)
    return np.argsort((draw[:, 0] << np.uint64(32)) | draw[:, 1], kind="stable")


def _dealt(
    order: NDArray[np.intp],
    query: int,
    validation: int,
    beside: int,
    train: int,
    *,
    apart: bool = False,
) -> dict[str, NDArray[np.intp]]:
    """Deal images in this order to the splits; without any beside, training images are ranked."""
    edges = np.cumsum([query, validation, beside, train])
    trained = order[edges[2] : edges[3]]
    return {
        "train": trained,
        "validation_query": order[edges[0] : edges[1]],
        "validation_gallery": order[edges[1] : edges[2]] if beside else trained,
        "query": order[: edges[0]],
        "gallery": np.delete(order, np.s_[edges[2] : edges[3]])[query:]
        if apart
        else order[query:],
    }


def _ids(keys: Iterable[str]) -> NDArray[np.uint64]:
    """Return a number for each key, (n,), whatever other keys there are."""
    digests = (
        hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
        for key in keys
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


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
        counts = (query, validation, beside, train)
        roles = ("query", "validation", "validation gallery", "train")
        shares = (f"{count} {role}" for count, role in zip(counts, roles, strict=True) if count)
        raise DatasetError(
            f"dataset {name!r}: class {title!r} has {n} images, the protocol needs "
            f"{sum(counts)} ({', '.join(shares)})",
            key="protocol",
        )
    return query, validation, beside, train


def _totals(protocol: Protocol, n: int, name: str) -> tuple[int, int, int, int]:
    """Return how many of ``n`` images are query, validation, beside it, and train."""
    query = _quota(protocol.query_total, protocol.query_fraction, n)
    validation = _quota(protocol.validation_total, protocol.validation_fraction, n)
    beside = protocol.validation_gallery_total or 0
    trained = protocol.train_total or 1
    held_out = {"validation": validation, "validation gallery": beside}
    # Validation takes images from the training split if need be, and leaves one of them.
    shares = {"query": query, "train": trained}
    if validation + beside >= trained:
        shares = {"query": query, **held_out, "train": 1}
    needed = sum(shares.values())
    if needed > n:
        listed = ", ".join(f"{count} {role}" for role, count in shares.items() if count)
        raise DatasetError(
            f"dataset {name!r} has {n} images, the protocol needs {needed} ({listed})",
            key="protocol",
        )
    rest = n - query - validation - beside
    return query, validation, beside, min(protocol.train_total or rest, rest)


def _quota(number: int | None, fraction: float | None, n: int) -> int:
    if number is None and fraction is not None:
        return max(1, round(fraction * n))
    return number or 0


_SPLIT_KEY = "protocol.split_file"


def read_split_file(
    path: Path, keys: Sequence[str], name: str, *, train_apart: bool = False
) -> Splits:
    """Read splits from a JSON file that lists image keys by split.

    The file has ``query``, ``gallery`` and ``train``; ``validation_query`` and
    ``validation_gallery`` too, if its author chose them. Without them a tenth of the training
    images are validation queries and are not trained on, ranked against the rest.

    Args:
        path: the file.
        keys: the dataset's image keys.
        name: the dataset's name.
        train_apart: training images need not be in the gallery.

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
        return Splits(**parts).check(name, keys, train_apart=train_apart)
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
    for split in raw:
        if split not in ROLES:
            raise UnknownNameError("split", split, ROLES, key=_SPLIT_KEY)
    found: dict[str, list[str]] = raw
    return found
