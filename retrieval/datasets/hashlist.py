"""hashlist: image lists with multi-hot labels, as the code bases of deep hashing share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.datasets.base import DATASETS
from retrieval.datasets.lists import (
    Listed,
    ListedDataset,
    ListOptions,
    class_names,
    clean_paths,
    first_names,
    is_single,
    read_bytes,
    shown,
)
from retrieval.errors import DatasetError
from retrieval.protocols import Protocol

FILES = {"train": ("train.txt",), "query": ("query.txt", "test.txt"), "gallery": ("database.txt",)}
"""Role -> the names that its list may have."""

_ZERO, _BLANK, _TAB = b"0 \t"


class HashlistOptions(ListOptions):
    """Options of image lists.

    Attributes:
        root: the folder with train.txt, query.txt (or test.txt) and database.txt.
        images: the folder or zip that the listed paths are relative to; the root by default.
        classes: the columns' names in their order, or a text file with one a line; "class 0",
            "class 1", ... by default.
        leaks: what to do with images that are listed as query and in database or train too:
            "refuse", or "drop" them from database and train, counted.
        unlabelled: what to do with images without a label: "refuse", "drop" them, counted;
            "auto" refuses in lists whose other images have one label each, where a row of zeros
            is a mistake, and drops in others, as the literature does with MS-COCO and NUS-WIDE.
    """

    leaks: Literal["refuse", "drop"] = "refuse"
    unlabelled: Literal["auto", "refuse", "drop"] = "auto"


@DATASETS.register("hashlist")
class Hashlist(ListedDataset):
    """Image lists of HashNet, DeepHash-pytorch, CSQ and many others, used as they are.

    ``train.txt``, ``query.txt`` (or ``test.txt``) and ``database.txt``; each line is the path of
    an image and, separated by blanks, 0 or 1 for each class. The lists are the splits. Training
    images may lie in the database, as usual, or outside of it; which of both is seen from the
    lists. Validation images are drawn from the database images that are not trained on, if these
    suffice, and from the training images otherwise. An image that is a query and in the database
    or trained on would be found in itself, and is refused. An image has the same labels in all
    lists, and its path is there once in each. Paths are compared as written; copies of an image
    under another name are not looked for.

    mAP is taken over the whole ranking. Set ``protocol: {at: 5000}`` (or ``at: 1000`` for
    ImageNet-100) for the cut-off that the lists' authors report.
    """

    Options = HashlistOptions
    options: HashlistOptions
    what = "image lists as HashNet has them, with a column of 0 or 1 for each class"
    source = "the format of Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017"
    licence = "that of the images"
    obtain = (
        "give the folder of train.txt, test.txt (or query.txt) and database.txt as root, and "
        "where the images lie as images"
    )

    @property
    def image_root(self) -> Path:
        """The folder of the lists."""
        return self.options.path

    def default_protocol(self) -> Protocol:
        """The lists', with mAP over the whole ranking."""
        return Protocol(id="lists", listed=True, train_apart=self.trains_apart)

    def read_lists(self) -> Listed:
        """Read the three lists.

        Raises:
            DatasetError: one is missing, empty or damaged, they contradict each other, or an
                image leaks.
        """
        if not self.options.path.is_dir():
            what = "is no folder" if self.options.path.exists() else "does not exist"
            raise self.refused(
                f"its root {what}; it is the folder of train.txt, query.txt (or test.txt) and "
                "database.txt, and may be another than the folder or zip of images"
            )
        merged = self._merged([self._read(role) for role in FILES])
        counts = merged.labels.sum(axis=1, dtype=np.int64)
        single = is_single(
            counts,
            self.options.single_label,
            lambda row, problem: self.refused(f"{merged.place(row)}: {problem}"),
        )
        labels = merged.labels.argmax(axis=1).astype(np.int64) if single else merged.labels
        listed = Listed(
            merged.paths,
            merged.written,
            labels,
            self._classes(merged.lists[0]),
            *self._without_leaks(merged),
        )
        return self._labelled(listed, counts, merged)

    def _read(self, role: str) -> _List:
        """Read one list.

        Raises:
            DatasetError: it is missing or damaged; file and line are in the message.
        """
        folder, names = self.options.path, FILES[role]
        there = [name for name in names if (folder / name).exists()]
        if not there:
            raise self.refused(f"{' or '.join(names)} is missing")
        if len(there) > 1:
            raise self.refused(f"has {' and '.join(there)}, which are two lists of {role} images")
        name = there[0]
        data = read_bytes(folder / name, self.refused)
        try:
            written, labels, lines = read_list(data)
        except ValueError as error:
            raise self.refused(f"{name}:{error}") from None
        paths = clean_paths(
            written,
            strip=self.options.strip,
            folder=str(self.image_place.absolute()),
            refuse=lambda row, problem: self.refused(f"{name}:{lines[row]}: {problem}"),
        )
        found = _List(role, name, paths, written, labels, lines)
        if len(set(paths)) < len(paths):
            raise self.refused(found.repeated())
        return found

    def _classes(self, first: _List) -> list[str]:
        """Return the columns' names."""
        columns = first.labels.shape[1]
        names = class_names(self.options.classes)
        if names is None:
            return [f"class {number}" for number in range(columns)]
        if len(names) != columns:
            raise DatasetError(
                f"has {len(names)} names, {first.name} has {columns} columns of labels",
                key="classes",
            )
        return names

    def _merged(self, lists: list[_List]) -> _Merged:
        """Return the images of all lists.

        Raises:
            DatasetError: the lists have different numbers of columns, or an image has other
                labels in another list.
        """
        first = lists[0]
        for other in lists[1:]:
            if other.labels.shape[1] != first.labels.shape[1]:
                raise self.refused(
                    f"{other.name} has {other.labels.shape[1]} columns of labels, {first.name} "
                    f"has {first.labels.shape[1]}"
                )
        numbers: dict[str, int] = {}
        rows = [
            np.array([numbers.setdefault(path, len(numbers)) for path in one.paths])
            for one in lists
        ]
        labels = np.empty((len(numbers), first.labels.shape[1]), dtype=np.uint8)
        written = [""] * len(numbers)
        known = 0  # images are numbered in the order in which lists name them first
        merged = _Merged(lists, rows, list(numbers), written, labels)
        for one, place in zip(lists, rows, strict=True):
            new = place >= known
            labels[place[new]] = one.labels[new]
            for row in np.flatnonzero(new).tolist():
                written[place[row]] = one.written[row]
            differ = np.flatnonzero((labels[place] != one.labels).any(axis=1))
            if len(differ):
                row = int(differ[0])
                count = f" ({len(differ)} such images)" if len(differ) > 1 else ""
                raise self.refused(
                    f"{one.name}:{one.lines[row]}: {one.paths[row]!r} has other labels than in "
                    f"{merged.place(int(place[row]))}{count}"
                )
            known = max(known, int(place.max()) + 1)
        return merged

    def _without_leaks(
        self, merged: _Merged
    ) -> tuple[dict[str, NDArray[np.bool_]], dict[str, int]]:
        """Return the splits, and how many images were taken out of database and train.

        Raises:
            DatasetError: queries are in the database or trained on, and are not to be dropped.
        """
        splits = {}
        for one, rows in zip(merged.lists, merged.rows, strict=True):
            splits[one.role] = np.zeros(len(merged.paths), dtype=bool)
            splits[one.role][rows] = True
        leaks = splits["query"] & (splits["train"] | splits["gallery"])
        if not leaks.any():
            return splits, {}
        if self.options.leaks == "refuse":
            counts = " and ".join(
                f"{int((leaks & splits[one.role]).sum())} in {one.name}"
                for one in merged.lists
                if one.role != "query" and (leaks & splits[one.role]).any()
            )
            query = next(one.name for one in merged.lists if one.role == "query")
            names = first_names(sorted(merged.paths[row] for row in np.flatnonzero(leaks)))
            raise self.refused(
                f"of the images in {query} there are {counts} too, where each would be found in "
                f"itself: {names}",
                hint="take them out of database and train with leaks: drop",
            )
        for role in ("train", "gallery"):
            splits[role] &= ~leaks
        return splits, {"taken out of database or train, being queries": int(leaks.sum())}

    def _labelled(self, listed: Listed, counts: NDArray[np.int64], merged: _Merged) -> Listed:
        """Return the images that have a label.

        Raises:
            DatasetError: some have none and are not to be dropped.
        """
        without = np.flatnonzero(counts == 0)
        if not len(without):
            return listed
        given, one_each = self.options.unlabelled, not (counts > 1).any()
        if given == "refuse" or (given == "auto" and one_each):
            why = ", though every other image has one label" if one_each else ""
            raise self.refused(
                f"{merged.place(int(without[0]))}: {listed.paths[without[0]]!r} has no label, all "
                f"columns are 0{why} ({len(without)} such images)",
                hint="drop such images with unlabelled: drop",
            )
        return listed.only(np.flatnonzero(counts), "without a label")


@dataclass(frozen=True)
class _List:
    """One list; ``lines`` are the numbers of its lines, the first is 1."""

    role: str
    name: str
    paths: list[str]
    written: list[str]
    labels: NDArray[np.uint8]
    lines: list[int]

    def repeated(self) -> str:
        """Return what to say of a path that is there twice."""
        seen: dict[str, int] = {}
        for path, line in zip(self.paths, self.lines, strict=True):
            if path in seen:
                more = len(self.paths) - len(set(self.paths))
                return f"{self.name}:{line}: {path!r} is in line {seen[path]} too" + (
                    f" ({more} such lines)" if more > 1 else ""
                )
            seen[path] = line
        raise AssertionError("no path is there twice")


@dataclass(frozen=True)
class _Merged:
    """The images of all lists, in the order in which these name them.

    Attributes:
        lists: in the order of FILES.
        rows: of each list, (n,) numbers of its images.
        paths, written: (N,) of each image.
        labels: (N, C) multi-hot.
    """

    lists: list[_List]
    rows: list[NDArray[np.int64]]
    paths: list[str]
    written: list[str]
    labels: NDArray[np.uint8]

    def place(self, row: int) -> str:
        """Return file and line that name an image first."""
        for one, rows in zip(self.lists, self.rows, strict=True):
            found = np.flatnonzero(rows == row)
            if len(found):
                return f"{one.name}:{one.lines[found[0]]}"
        raise AssertionError(f"no list names image {row}")


# ---- one list --------------------------------------------------------------------------------


def read_list(data: bytes) -> tuple[list[str], NDArray[np.uint8], list[int]]:
    """Read a list of images with multi-hot labels.

    Args:
        data: the file's bytes; blank lines do not count.

    Returns:
        Paths as written (n), labels (n, C) and line numbers (n).

    Raises:
        ValueError: not such a list; begins with the number of the line and a colon.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    # Parted once: lists have 100,000s of lines with a 100 columns, a token each would take long.
    parted = [line.split(None, 1) for line in data.split(b"\n")]
    lines = [number for number, parts in enumerate(parted, start=1) if parts]
    parted = [parts for parts in parted if parts]
    if not parted:
        raise ValueError("1: lists no image")
    written = _texts([parts[0] for parts in parted], lines)
    bare = [line for line, parts in zip(lines, parted, strict=True) if len(parts) < 2]
    if bare:
        raise ValueError(f"{bare[0]}: has no columns of labels{_such(bare)}")
    columns = [parts[1].rstrip() for parts in parted]
    width = len(columns[0].split())
    if width < 2:
        raise ValueError(
            f"{lines[0]}: has one column of labels; a column of 0 or 1 for each class is needed"
        )
    return written, _multi_hot(columns, width, lines), lines


def _texts(raw: list[bytes], lines: Sequence[int]) -> list[str]:
    """Return paths as text."""
    try:
        return b"\n".join(raw).decode().split("\n")
    except UnicodeDecodeError:
        for line, path in zip(lines, raw, strict=True):
            try:
                path.decode()
            except UnicodeDecodeError:
                raise ValueError(f"{line}: is not UTF-8 text") from None
        raise


def _multi_hot(columns: list[bytes], width: int, lines: Sequence[int]) -> NDArray[np.uint8]:
    """Return labels, (n, width); rows with one separator between columns are read together."""
    lengths = np.fromiter(map(len, columns), dtype=np.int64, count=len(columns))
    usual = lengths == 2 * width - 1
    labels = np.zeros((len(columns), width), dtype=np.uint8)
    text = b"".join(row for row, plain in zip(columns, usual, strict=True) if plain)
    block = np.frombuffer(text, dtype=np.uint8).reshape(-1, 2 * width - 1)
    values = block[:, ::2] - np.uint8(_ZERO)
    between = block[:, 1::2]
    parted = (between == _BLANK) | (between == _TAB)
    good = (values < 2).all(axis=1) & parted.all(axis=1)
    labels[usual] = values
    usual[usual] = good
    wrong: list[tuple[int, str]] = []
    for row in np.flatnonzero(~usual).tolist():
        tokens = columns[row].split()
        if problem := _problem(tokens, width, lines[0]):
            wrong.append((lines[row], problem))
        else:
            labels[row] = [token == b"1" for token in tokens]
    if wrong:
        line, problem = wrong[0]
        raise ValueError(f"{line}: {problem}{_such(wrong)}")
    return labels


def _problem(tokens: list[bytes], width: int, first: int) -> str | None:
    """Return what is wrong with a row of labels."""
    strange = [token for token in tokens if token not in (b"0", b"1")]
    if strange:
        text = strange[0].decode(errors="replace")
        return f"labels must be 0 or 1, found {shown(text)}"
    if len(tokens) != width:
        return f"has {len(tokens)} columns of labels, line {first} has {width}"
    return None


def _such(rows: Sequence[object]) -> str:
    return f" ({len(rows)} such lines)" if len(rows) > 1 else ""
