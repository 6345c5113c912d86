"""What datasets share whose images are named by lists: paths, the files behind them, splits."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from retrieval.datasets.base import DatasetIndex, expanded
from retrieval.datasets.files import (
    FileOptions,
    Files,
    FilesDataset,
    Listing,
    Tree,
    is_plain,
    labelled_fingerprint,
    open_files,
)
from retrieval.errors import DatasetError

Shape = Literal["auto", True, False]

_ODD = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x09\x0b-\x1f\x7f\\]", re.MULTILINE)
"""A part of a path that is empty, "." or ".."; control characters; backslashes."""


class ListOptions(FileOptions):
    """Options of images that a list names.

    Attributes:
        images: the folder or zip that the listed paths are relative to.
        strip: what the listed paths begin with and is cut off, such as the folder of the list's
            author. Without it "./", "/" and the folder of images itself are cut off.
        classes: class names, or a text file with one a line.
        missing: what to do where a listed image is not there: "refuse", or "drop" it, counted.
        single_label: whether an image has one class. "auto": if every listed image has one; true
            refuses an image with several; false keeps several labels an image in any case.
    """

    images: str | None = Field(None, min_length=1)
    strip: str | None = Field(None, min_length=1)
    classes: str | list[str] | None = None
    missing: Literal["refuse", "drop"] = "refuse"
    single_label: Shape = "auto"


@dataclass(frozen=True)
class Listed:
    """Images as lists name them; the arrays run in parallel.

    Attributes:
        paths: (N,) distinct, relative to the folder or zip of images.
        written: (N,) the same as they are written in the list.
        labels: (N,) int64 class numbers, or (N, C) uint8 multi-hot.
        classes: (C,) class names.
        splits: role -> (N,) whether the image is in that split; empty where none are listed.
        ignored: what was left out: reason -> how many.
    """

    paths: list[str]
    written: list[str]
    labels: NDArray[np.generic]
    classes: list[str]
    splits: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)

    def only(self, rows: NDArray[np.integer[Any]], reason: str) -> Listed:
        """Return these rows, in their order; the others are counted as left out for a reason."""
        dropped = len(self.paths) - len(rows)
        return Listed(
            [self.paths[row] for row in rows],
            [self.written[row] for row in rows],
            self.labels[rows],
            self.classes,
            {role: inside[rows] for role, inside in self.splits.items()},
            {**self.ignored, reason: dropped} if dropped else self.ignored,
        )

    def fingerprint(self, sizes: Sequence[int], crcs: Sequence[int]) -> str:
        """Return the SHA-256 of files, labels, class names and splits."""
        content = labelled_fingerprint(self.paths, sizes, crcs, self.labels, self.classes)
        sha = hashlib.sha256(content.encode())
        for role, inside in sorted(self.splits.items()):
            sha.update(role.encode() + inside.tobytes())
        return sha.hexdigest()


class ListedDataset(FilesDataset):
    """A dataset whose images are those that a list names; no other file is looked at."""

    path_options: ClassVar[tuple[str, ...]] = ("root", "exclude", "images", "classes")
    options: ListOptions

    @abstractmethod
    def read_lists(self) -> Listed:
        """Read what the lists say.

        Raises:
            DatasetError: a list is missing, damaged, or contradicts itself or another.
        """

    @property
    @abstractmethod
    def image_root(self) -> Path:
        """Where images lie if the options do not say."""

    def kept(self, tree: Tree, listed: Listed) -> tuple[NDArray[np.integer[Any]], str]:
        """Return rows of the images to keep, and why the others are left out."""
        return np.arange(len(listed.paths)), ""

    def refused(self, problem: str, **fields: Any) -> DatasetError:
        """Return an error about the list."""
        fields = {"key": "root", "value": self.options.root, **fields}
        return DatasetError(f"dataset {self.name!r}: {problem}", **fields)

    # ---- what a dataset answers --------------------------------------------------------------

    def listed_splits(self) -> Mapping[str, Sequence[str]] | None:
        """Return what the lists say; None where they list no splits."""
        listed = self._found[1]
        if not listed.splits:
            return None
        return {
            role: [listed.paths[row] for row in np.flatnonzero(inside)]
            for role, inside in listed.splits.items()
        }

    @property
    def trains_apart(self) -> bool:
        """Whether the lists have training images that are not in the gallery."""
        splits = self._found[1].splits
        return "train" in splits and bool((splits["train"] & ~splits["gallery"]).any())

    # ---- the files behind the paths ----------------------------------------------------------

    @cached_property
    def image_place(self) -> Path:
        """The folder or zip that the paths are relative to."""
        given = self.options.images
        return self.image_root if given is None else expanded(given, "images")

    @cached_property
    def _files(self) -> Files:
        return open_files(
            self.image_place,
            self.name,
            self.home,
            follow_links=self.options.follow_links,
            key="root" if self.options.images is None else "images",
        )

    @cached_property
    def _tree(self) -> Tree:
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[Tree, Listed]:
        listed = self.read_lists()
        listing = self._files.listing_of(
            listed.paths, f"{self.name}/{self.options.path.resolve()}"
        )
        if len(listing.paths) < len(listed.paths):
            self._miss(listing, listed)
        place = {path: row for row, path in enumerate(listed.paths)}
        order = np.array([place[path] for path in listing.paths], dtype=np.int64)
        listed = listed.only(order, "listed and not there")
        tree = _tree(listed, listing.sizes, listing.crcs)
        rows, reason = self.kept(tree, listed)
        if len(rows) < len(listed.paths):
            listed = listed.only(rows, reason)
            sizes, crcs = ([column[row] for row in rows] for column in (tree.sizes, tree.crcs))
            tree = _tree(listed, sizes, crcs)
        return tree, listed

    def _miss(self, listing: Listing, listed: Listed) -> None:
        """Refuse missing images, unless they are to be dropped and others are there.

        Raises:
            DatasetError: with the count and the first; ``hint`` is a prefix to strip that helps.
        """
        there = set(listing.paths)
        missing = [row for row, path in enumerate(listed.paths) if path not in there]
        if self.options.missing == "drop" and there:
            return
        prefix = _superfluous(self._files, listed.written[missing[0]])
        hint = "drop them with missing: drop" if there else None
        if prefix is not None:
            hint = f"there is one without its beginning: set strip: {prefix}"
        raise self._files.error(
            f"{len(missing)} of the {len(listed.paths)} images that are listed are missing, the "
            f"first: {listed.paths[missing[0]]!r}",
            hint=hint,
        )


def _tree(listed: Listed, sizes: list[int], crcs: list[int]) -> Tree:
    index = DatasetIndex(
        keys=listed.paths,
        labels=listed.labels,
        classes=listed.classes,
        fingerprint=listed.fingerprint(sizes, crcs),
        ignored=listed.ignored,
    )
    return Tree(index, listed.paths, crcs, sizes)


def _superfluous(files: Files, written: str) -> str | None:
    """Return the least beginning of a path without which there is such a file."""
    for match in re.finditer("/", written):
        rest = written[match.end() :]
        if rest and not _ODD.search(rest) and files.holds(rest):
            return written[: match.end()]
    return None


# ---- what lists say --------------------------------------------------------------------------


def clean_paths(
    written: Sequence[str],
    *,
    strip: str | None,
    folder: str,
    refuse: Callable[[int, str], DatasetError],
) -> list[str]:
    """Return paths relative to the images' folder, so that one file has one name.

    Args:
        written: as the list has them.
        strip: what they begin with; see ListOptions.
        folder: of the images; cut off where a path begins with it and ``strip`` is not given.
        refuse: makes an error of a row's number and what is wrong with it.

    Raises:
        DatasetError: a path that does not begin with ``strip``, is empty, leads out of the
            folder, or has backslashes or control characters.
    """
    prefix = f"{(folder if strip is None else strip).rstrip('/')}/"
    if strip is not None:
        others = [row for row, path in enumerate(written) if not path.startswith(prefix)]
        if others:
            first = others[0]
            error = refuse(
                first, f"the path {written[first]!r} does not begin with it{_such(others)}"
            )
            error.key, error.value = "strip", strip
            raise error
    paths = [path.removeprefix(prefix) for path in written]
    whole = "\n".join(paths)
    if not _ODD.search(whole) and whole.count("\n") == len(paths) - 1:
        return paths
    for row, path in enumerate(paths):
        if problem := _wrong_path(path):
            raise refuse(row, f"the path {shown(written[row])} {problem}")
        paths[row] = "/".join(part for part in path.split("/") if part not in ("", "."))
    return paths


def _wrong_path(path: str) -> str | None:
    if not is_plain(path):
        return "has control characters"
    if "\\" in path:
        return "has a backslash; write '/' between folders"
    parts = path.split("/")
    if ".." in parts:
        return "leads out of the images' folder; strip cuts a beginning off"
    if not set(parts) - {"", "."}:
        return "is empty"
    return None


def class_names(given: str | list[str] | None) -> list[str] | None:
    """Return the names that the option ``classes`` gives, or that its file has, one a line.

    Raises:
        DatasetError: the file is unreadable; a name is empty or stands twice; fewer than two.
    """
    if given is None:
        return None
    names = given
    if isinstance(given, str):
        path = expanded(given, "classes")
        lines = read_text(path, lambda problem: DatasetError(problem, key="classes", value=given))
        names = [line.strip() for line in lines.rstrip().split("\n")]
    for place, name in enumerate(names, start=1):
        if not name or not is_plain(name):
            raise DatasetError(
                f"class name {place} is {shown(name)}, which is "
                + ("empty" if not name else "no plain text"),
                key="classes",
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"names the class {twice!r} twice", key="classes")
    if len(names) < 2:
        raise DatasetError(f"at least two classes are needed, found {names}", key="classes")
    return list(names)


def read_text(path: Path, refuse: Callable[[str], DatasetError]) -> str:
    """Return a file as text; a mark of its encoding at the beginning is no part of it.

    Raises:
        DatasetError: unreadable, or not UTF-8; the line is in the message.
    """
    data = read_bytes(path, refuse)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"{path.name}:{line_of(data, error.start)}: is not UTF-8 text") from None


def read_bytes(path: Path, refuse: Callable[[str], DatasetError]) -> bytes:
    """Return a file's bytes.

    Raises:
        DatasetError: unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise refuse(f"{path.name} cannot be read: {error.strerror}") from None


def line_of(data: bytes, place: int) -> int:
    """Return the number of the line that has a byte; the first is 1."""
    return data.count(b"\n", 0, place) + 1


def is_single(
    counts: NDArray[np.integer[Any]], given: Shape, refuse: Callable[[int, str], DatasetError]
) -> bool:
    """Return whether images have one class each; see ListOptions.single_label.

    Args:
        counts: (N,) labels of each image; images without any do not tell.
        given: the option.
        refuse: makes an error of a row's number and what is wrong with it.

    Raises:
        DatasetError: one class each is wanted and an image has several.
    """
    several = np.flatnonzero(counts > 1)
    if given is True and len(several):
        error = refuse(
            int(several[0]),
            f"has {counts[several[0]]} labels, single_label allows one{_such(several)}",
        )
        error.key, error.value = "single_label", True
        raise error
    return given is True or (given == "auto" and not len(several))


def _such(rows: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    return f" ({len(rows)} such images)" if len(rows) > 1 else ""


def shown(value: object) -> str:
    """Return a value for a message, not a megabyte of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_names(names: Iterable[str], limit: int = 3) -> str:
    """Return the first of some names for a message."""
    found = list(names)
    return ", ".join(map(repr, found[:limit])) + (", ..." if len(found) > limit else "")
