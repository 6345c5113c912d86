"""Getting a dataset ready: everything that would fail a study later is looked for now.

Images are listed, split and decoded; unreadable ones are all named. Images with the same stored
pixels are looked for across the splits: what no method can tell apart must not be on both sides of
an evaluation unnoticed. A report is written beside the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.atomic import write_atomic
from retrieval.datasets import Dataset
from retrieval.describe import describe, to_text
from retrieval.errors import DatasetError
from retrieval.images import ImageStore, UnreadableImagesError
from retrieval.protocols import Splits

VERSION = 2
"""Of the report; one of another version is written anew."""

_AT_ONCE = 64
"""Images that are read at a time to be compared."""

_NAMED = 5
"""Pairs of equal images that the text names."""


@dataclass(frozen=True)
class Preparation:
    """A dataset that is ready.

    Attributes:
        report: JSON values.
        path: of the report; beside it lies the same as text, and the splits by image key.
        fresh: whether anything was done now.
    """

    report: dict[str, Any]
    path: Path
    fresh: bool


def prepare(
    dataset: Dataset, *, progress: Callable[[int, int], None] | None = None
) -> Preparation:
    """List, split, decode and check a dataset, once; go on where an earlier try was interrupted.

    Args:
        dataset: to prepare in its home.
        progress: called with the images decoded and all.

    Raises:
        DatasetError: it is missing, damaged or cannot be split, or images cannot be read. Of
            those the first are named, and all are in the report and in a list for ``exclude``.
        OSError: the disk is full.
    """
    _check_labels(dataset)
    dataset.splits()
    path = report_path(dataset)
    known = _read(path)
    splits = path.with_suffix(".splits.json")
    if (
        known is not None
        and known["ready"]
        and splits.is_file()
        and Path(known["store"]["folder"]).is_dir()
    ):
        store = dataset.images(progress=progress)  # what is not whole is built again
        if str(store.folder) == known["store"]["folder"]:
            return Preparation(known, path, fresh=False)
    report: dict[str, Any] = {"report": VERSION, "ready": False, **describe(dataset, sizes=False)}
    try:
        store = dataset.images(progress=progress)
    except UnreadableImagesError as error:
        raise _refuse(dataset, path, report, error) from None
    report["unreadable"] = []
    report["store"] = {
        "folder": str(store.folder),
        "side": store.size,
        "bytes": int(store.array.nbytes),
    }
    report["equal_images"] = equal_images(store, dataset.splits())
    report["ready"] = True
    report["splits_file"] = str(splits)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(splits, dataset.split_text().encode())
    _write(path, report)
    return Preparation(report, path, fresh=True)


def report_path(dataset: Dataset) -> Path:
    """Return where the report of a dataset with its protocol lies."""
    identity = json.dumps(dataset.identity(), sort_keys=True, default=str)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return dataset.home / "prepared" / f"{dataset.name}-{digest}.json"


def _check_labels(dataset: Dataset) -> None:
    """Refuse an index that contradicts itself, as a dataset of one's own might."""
    index = dataset.index()
    labels, n, c = np.asarray(index.labels), len(index.keys), len(index.classes)
    problem = None
    if not n:
        problem = "has no images"
    elif len(labels) != n:
        problem = f"has {n} images and {len(labels)} labels"
    elif len(set(index.keys)) != n:
        problem = f"has {n - len(set(index.keys))} keys that more than one image has"
    elif index.multi_label and labels.shape[1] != c:
        problem = f"has {c} classes and {labels.shape[1]} columns of labels"
    elif index.multi_label and not np.isin(labels, (0, 1)).all():
        problem = "has labels other than 0 and 1"
    elif not index.multi_label and not (-1 <= labels.min() <= labels.max() < c):
        problem = f"has class numbers from {labels.min()} to {labels.max()}, and {c} classes"
    if problem is not None:
        raise DatasetError(f"dataset {dataset.name!r} {problem}")


def _refuse(
    dataset: Dataset, path: Path, report: dict[str, Any], error: UnreadableImagesError
) -> DatasetError:
    """Write the report and the list of unreadable images; return the error that names both."""
    keys = dataset.index().keys
    report["unreadable"] = [
        {"key": keys[number], "problem": problem} for number, problem in error.problems.items()
    ]
    _write(path, report)
    exclude = path.with_suffix(".exclude.txt")
    before = dataset.excluded
    lines = [f"# images of {dataset.label} that cannot be read, and those excluded before"]
    lines += sorted({*before, *(keys[number] for number in error.problems)})
    write_atomic(exclude, ("\n".join(lines) + "\n").encode())
    hint = f"all of them: {path.with_suffix('.txt')}"
    if "exclude" in type(dataset.options).model_fields:
        hint += f"\n    mend them, or leave them out with exclude: {exclude}"
    return DatasetError(f"dataset {dataset.name!r}: {error.problem}", hint=hint)


# ---- images that are equal -------------------------------------------------------------------

_ACROSS = (
    ("query", "gallery"),
    ("query", "train"),
    ("validation_query", "train"),
    ("validation_query", "validation_gallery"),
)
"""Splits between which an equal image makes an evaluation too good."""


def equal_images(store: ImageStore, splits: Splits) -> dict[str, Any]:
    """Find images with the same stored pixels.

    Args:
        store: of all images.
        splits: rows of it.

    Returns:
        ``groups`` and ``images`` that are in one; ``labels_differ``, the groups with more than
        one label; and ``across`` splits, for each two of them the number of images of the first
        that have an equal one in the second, with the pairs of keys.
    """
    digests = _digests(store)
    by_digest: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        by_digest.setdefault(digest, []).append(row)
    groups = [rows for rows in by_digest.values() if len(rows) > 1]
    labels = np.asarray(store.labels)
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "labels_differ": sum(len(np.unique(labels[rows], axis=0)) > 1 for rows in groups),
        "across": {
            f"{one} and {other}": _across(
                groups, getattr(splits, one), getattr(splits, other), store.keys
            )
            for one, other in _ACROSS
        },
    }


def _digests(store: ImageStore) -> list[bytes]:
    """Return a digest of each image's pixels, read a few at a time."""

    def some(first: int) -> list[bytes]:
        rows = np.arange(first, min(len(store), first + _AT_ONCE))
        return [hashlib.blake2b(image, digest_size=16).digest() for image in store.read(rows)]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = pool.map(some, range(0, len(store), _AT_ONCE))
        return [digest for part in parts for digest in part]


def _across(
    groups: Sequence[Sequence[int]],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    keys: Sequence[str],
) -> dict[str, Any]:
    left, right = set(one.tolist()), set(other.tolist())
    pairs = []
    for rows in groups:
        there = [row for row in rows if row in right]
        pairs += [
            [keys[row], keys[next(r for r in there if r != row)]]
            for row in rows
            if row in left and any(r != row for r in there)
        ]
    return {"images": len(pairs), "pairs": pairs}


# ---- the report ------------------------------------------------------------------------------


def report_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = []
    if unreadable := report["unreadable"]:
        count = "1 image" if len(unreadable) == 1 else f"{len(unreadable):,} images"
        lines.append(f"NOT READY: {count} cannot be read")
        lines += [f"    {entry['problem']}" for entry in unreadable]
    else:
        store = report["store"]
        lines.append(
            f"ready: {report['images']:,} images decoded to {store['side']} x {store['side']} "
            f"pixels, {store['bytes'] / 1e6:,.1f} MB in {store['folder']}"
        )
        lines += _equal_lines(report["equal_images"])
        lines.append(f"splits, for protocol.split_file: {report['splits_file']}")
    return to_text(report) + "\n" + "\n".join(lines) + "\n"


def _equal_lines(equal: dict[str, Any]) -> list[str]:
    if not equal["groups"]:
        return ["no two images are equal"]
    groups = "1 group" if equal["groups"] == 1 else f"{equal['groups']:,} groups"
    differ = f"in {equal['labels_differ']:,} of them labels differ"
    return [f"equal images: {equal['images']:,} in {groups}; {differ}", *leak_lines(equal)]


def leak_lines(equal: dict[str, Any]) -> list[str]:
    """Return what to say of equal images on both sides of an evaluation; nothing without any."""
    lines = []
    for splits, found in equal["across"].items():
        if found["images"]:
            count = "1 image" if found["images"] == 1 else f"{found['images']:,} images"
            lines.append(f"LEAK between {splits}: {count}, the first:")
            lines += [f"    {one}  =  {other}" for one, other in found["pairs"][:_NAMED]]
    return lines


def _read(path: Path) -> dict[str, Any] | None:
    """Return the report of an earlier time; None where there is none of this version."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = report["report"] == VERSION and (not report["ready"] or "store" in report)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if known else None


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path.with_suffix(".txt"), report_text(report).encode())
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode())
