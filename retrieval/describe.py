"""What a dataset holds: its splits, its labels, its classes and the sizes of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval import streams
from retrieval.datasets import Dataset, DatasetIndex
from retrieval.errors import DatasetError
from retrieval.protocols import ROLES

_SAMPLED = 128
"""Images whose size is looked at, unless there are fewer."""

_NAMED = 5
"""Classes without images that are named."""


def describe(dataset: Dataset, *, sizes: bool = True) -> dict[str, Any]:
    """Return figures of a dataset as JSON values; builds no store.

    Args:
        dataset: whose splits are drawn.
        sizes: decode a sample of the images for their sizes.

    Raises:
        DatasetError: the dataset is missing, damaged, or cannot be split as asked.
    """
    index, splits, protocol = dataset.index(), dataset.splits(), dataset.protocol
    found: dict[str, Any] = {
        "name": dataset.name,
        "label": dataset.label,
        "version": dataset.version,
        "fingerprint": index.fingerprint,
        "protocol": {"id": protocol.id, "at": protocol.at, "split_seed": protocol.split_seed},
        "images": len(index.keys),
        "classes": len(index.classes),
        "several_labels": index.multi_label,
        "all": _figures(index, np.arange(len(index.keys))),
        "splits": {role: _figures(index, getattr(splits, role)) for role in ROLES},
        "ignored": dict(sorted(index.ignored.items())),
    }
    if sizes:
        found["sizes"] = _sizes(dataset)
    return found


def class_sizes(index: DatasetIndex, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of some images each class has, (C,)."""
    labels = np.asarray(index.labels)[rows].astype(np.int64)
    if index.multi_label:
        return np.asarray(labels.sum(axis=0))
    return np.bincount(labels[labels >= 0], minlength=len(index.classes))


def labels_an_image(index: DatasetIndex) -> NDArray[np.int64]:
    """Return how many labels each image has, (N,)."""
    labels = np.asarray(index.labels)
    return np.asarray(labels.sum(axis=1, dtype=np.int64) if index.multi_label else labels >= 0)


def _figures(index: DatasetIndex, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the figures of some images."""
    figures: dict[str, Any] = {"images": len(rows)}
    labels = labels_an_image(index)[rows]
    if without := int((labels == 0).sum()):
        figures["without_a_label"] = without
    counts = class_sizes(index, rows)
    if not counts.sum():
        return figures
    figures["images_a_class"] = _spread(counts[counts > 0])
    figures["imbalance"] = float(counts.max() / counts[counts > 0].min())
    shares = counts[counts > 0] / counts.sum()
    # As many equally large classes have the same entropy.
    figures["effective_classes"] = float(np.exp(-(shares * np.log(shares)).sum()))
    empty = np.flatnonzero(counts == 0)
    figures["classes_without_images"] = len(empty)
    figures["first_without_images"] = [index.classes[number] for number in empty[:_NAMED]]
    if index.multi_label:
        figures["labels_an_image"] = _spread(labels)
    return figures


def _spread(values: NDArray[np.int64]) -> dict[str, float]:
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": int(values.max()),
    }


def _sizes(dataset: Dataset) -> dict[str, Any]:
    """Return width and height of a sample that the split's seed draws, in pixels."""
    n = len(dataset.index().keys)
    order = streams.permutation(dataset.protocol.split_seed, "sizes looked at", n)
    rows = order[:_SAMPLED]
    shapes, unreadable = [], 0
    with dataset.open_decoder() as decode:
        for row in rows.tolist():
            try:
                shapes.append(decode(row).shape[:2])
            except DatasetError:
                unreadable += 1
    found: dict[str, Any] = {"looked_at": len(rows), "unreadable": unreadable}
    if shapes:
        heights, widths = np.array(shapes).T
        found |= {"width": _spread(widths), "height": _spread(heights)}
    return found


# ---- as text ---------------------------------------------------------------------------------


def to_text(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    several = "several labels an image" if found["several_labels"] else "one label an image"
    protocol = found["protocol"]
    lines = [
        f"{found['label']}: {found['images']:,} images, {found['classes']:,} classes, {several}",
        f"protocol {protocol['id']}, mAP at {protocol['at']}, split seed {protocol['split_seed']}",
        f"fingerprint {found['fingerprint'][:16]}",
        "",
    ]
    lines += _splits_table(found)
    for role, figures in found["splits"].items():
        if empty := figures.get("classes_without_images"):
            named = ", ".join(figures["first_without_images"])
            more = ", ..." if empty > _NAMED else ""
            lines.append(f"{role}: {_classes(empty)} without images: {named}{more}")
        if without := figures.get("without_a_label"):
            lines.append(f"{role}: {without:,} images without a label")
    if "labels_an_image" in found["all"]:
        labels = found["all"]["labels_an_image"]
        lines.append(
            f"labels an image: {labels['min']} to {labels['max']}, median {labels['median']:g}, "
            f"mean {labels['mean']:.2f}"
        )
    if "imbalance" in found["all"]:
        lines.append(
            f"largest class over smallest: {found['all']['imbalance']:.2f}; as uneven as "
            f"{found['all']['effective_classes']:.1f} equal classes"
        )
    if sizes := found.get("sizes"):
        lines.append(_sizes_line(sizes))
    for reason, count in found["ignored"].items():
        lines.append(f"ignored: {count:,} {reason}")
    return "\n".join(lines) + "\n"


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"


def _sizes_line(sizes: dict[str, Any]) -> str:
    if "width" not in sizes:
        return f"sizes: none of {sizes['looked_at']} images looked at can be read"
    ranges = [
        f"{side} {sizes[side]['min']} to {sizes[side]['max']}, median {sizes[side]['median']:g}"
        for side in ("width", "height")
    ]
    unread = f"; {sizes['unreadable']} unreadable" if sizes["unreadable"] else ""
    return f"sizes of {sizes['looked_at']} images looked at, px: {'; '.join(ranges)}{unread}"


def _splits_table(found: dict[str, Any]) -> list[str]:
    header = ["split", "images", "classes", "images a class: min", "median", "max"]
    rows: list[Sequence[str]] = [header]
    for role, figures in [*found["splits"].items(), ("all", found["all"])]:
        row = [role, f"{figures['images']:,}"]
        if spread := figures.get("images_a_class"):
            present = found["classes"] - figures["classes_without_images"]
            row += [f"{present:,}", f"{spread['min']:,}", f"{spread['median']:,g}"]
            row += [f"{spread['max']:,}"]
        rows.append(row + [""] * (len(header) - len(row)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
