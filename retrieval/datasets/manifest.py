"""manifest: one's own images, listed in a CSV, TSV or Parquet file with their labels."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from retrieval.datasets.base import DATASETS
from retrieval.datasets.files import Tree, copies, is_plain
from retrieval.datasets.lists import (
    Listed,
    ListedDataset,
    ListOptions,
    class_names,
    clean_paths,
    is_single,
    read_text,
    shown,
)
from retrieval.errors import DatasetError, UnknownNameError
from retrieval.protocols import APART, ROLES, Protocol

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""Ending of a text file -> what separates its columns."""

PARQUET = frozenset({".parquet", ".pq"})
"""Endings of Parquet files."""


class Columns(BaseModel):
    """Names of a manifest's columns.

    Attributes:
        path: where each image lies; "path" by default.
        labels: its classes; "labels" by default, or "label".
        split: the splits that it is in; "split" by default, if there is such a column.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    path: str = Field("path", min_length=1)
    labels: str | None = Field(None, min_length=1)
    split: str | None = Field(None, min_length=1)


class ManifestOptions(ListOptions):
    """Options of a manifest.

    Attributes:
        root: the manifest: .csv, .tsv (UTF-8) or .parquet, with columns path, labels (or label)
            and perhaps split.
        images: the folder or zip that the paths are relative to; the manifest's folder by default.
        columns: names of the columns, where they are others: {path: file, labels: tags, split:
            part}.
        separator: what stands between several labels, or several splits, of an image.
        classes: class names in their order, or a text file with one a line; by default those that
            are there, in the order of the alphabet, or of their values if all are whole numbers.
        unlabelled: what to do with images without a label: "refuse", or "drop" them, counted.
        duplicates: what to do with images of equal content. "refuse": refuse those that could be,
            or are, on two sides of a split, or have different labels. "first": keep one of them,
            a query if there is one, else the first in the order of paths. "keep": all.
    """

    columns: Columns = Columns()
    separator: str = Field("|", min_length=1, max_length=1)
    unlabelled: Literal["refuse", "drop"] = "refuse"
    duplicates: Literal["refuse", "first", "keep"] = "refuse"


@DATASETS.register("manifest")
class Manifest(ListedDataset):
    """Images that a CSV, TSV or Parquet file lists with their labels, and perhaps their splits.

    One row an image: its path, and its class or several, as in ``cat|dog``; a column of lists in
    Parquet. Labels are names, numbers too.

    The column of splits, where there is one, has ``query``, ``gallery`` (or ``database``),
    ``train``, ``validation_query`` and ``validation_gallery``, several for an image as in
    ``gallery|train``. Queries and a gallery are needed. Without ``train`` the gallery is trained
    on, except for the ten per cent that are validation queries. With ``train`` alone, validation
    images are drawn from the gallery images that are not trained on, if these suffice, and from
    the training images otherwise.

    Without that column the splits are drawn: ten per cent (of each class, where images have one
    label) are queries, the rest is the gallery, of which as many are validation queries; what
    remains is trained on.
    """

    Options = ManifestOptions
    options: ManifestOptions
    what = "your own images, listed with their labels in a CSV, TSV or Parquet file"
    source = "yours"
    licence = "yours"
    obtain = "give {manifest: PATH}; a file with columns path and labels, and split if you like"

    @property
    def image_root(self) -> Path:
        """The manifest's folder."""
        return self.options.path.parent

    def default_protocol(self) -> Protocol:
        """The manifest's splits, or ten per cent query and ten per cent validation queries."""
        listed = self.listed_splits()
        if listed is None:
            return Protocol(
                id="manifest-10", query_fraction=0.1, validation_fraction=0.1, uneven=True
            )
        if "train" in listed:
            return Protocol(id="manifest", listed=True, train_apart=self.trains_apart)
        return Protocol(id="manifest", listed=True, validation_fraction=0.1, uneven=True)

    # ---- what the rows say -------------------------------------------------------------------

    @cached_property
    def _table(self) -> _Table:
        path = self.options.path
        suffix = path.suffix.lower()
        if not path.is_file():
            hint = "a folder of images, one folder a class, is opened with {folder: PATH}"
            what = "is no file" if path.exists() else "does not exist"
            raise self.refused(f"its root {what}", hint=hint if path.is_dir() else None)
        if suffix in PARQUET:
            return self._of_parquet(path)
        if suffix in DELIMITERS:
            return self._of_text(path, DELIMITERS[suffix])
        endings = ", ".join(sorted({*DELIMITERS, *PARQUET}))
        raise self.refused(f"a manifest ends in one of {endings}")

    def read_lists(self) -> Listed:
        """Read the rows.

        Raises:
            DatasetError: the file is damaged; or a row has no path, no label, a label or split
                that does not exist, the path of another row, or splits that exclude each other.
        """
        table = self._table
        if not table.paths:
            raise self.refused(f"{self.options.path.name} lists no image")
        splits = self._membership(table)
        paths = clean_paths(
            table.paths,
            strip=self.options.strip,
            folder=str(self.image_place.absolute()),
            refuse=self._at,
        )
        if len(set(paths)) < len(paths):
            self._refuse_repeated(paths, table)
        sets, kind = self._distinct(table)
        counts = np.array([len(names) for names in sets], dtype=np.int64)[kind]
        without = np.flatnonzero(counts == 0)
        if len(without) and self.options.unlabelled == "refuse":
            error = self._at(int(without[0]), f"has no label{_such(without)}")
            error.hint = "drop such images with unlabelled: drop"
            raise error
        single = is_single(counts, self.options.single_label, self._at)
        labels, classes = self._labels(sets, kind, single)
        listed = Listed(paths, table.paths, labels, classes, splits)
        return listed.only(np.flatnonzero(counts), "without a label")

    def _at(self, row: int, problem: str) -> DatasetError:
        """Return an error about a row."""
        return self.refused(f"{self._table.place(row)}: {problem}")

    def _refuse_repeated(self, paths: Sequence[str], table: _Table) -> None:
        seen: dict[str, int] = {}
        for row, path in enumerate(paths):
            if path in seen:
                before, more = seen[path], len(paths) - len(set(paths)) - 1
                problem = f"{path!r} is in {table.place(before)} too"
                if table.splits is not None and table.splits[row] != table.splits[before]:
                    problem += (
                        f", as {table.splits[before]!r} there and {table.splits[row]!r} here"
                    )
                problem += f" ({more} more such rows)" if more else ""
                error = self._at(row, problem)
                error.hint = (
                    "an image has one row, with all its labels and splits: gallery"
                    f"{self.options.separator}train"
                )
                raise error
            seen[path] = row

    # ---- labels ------------------------------------------------------------------------------

    def _labels(
        self, sets: Sequence[tuple[str, ...]], kind: NDArray[np.int64], single: bool
    ) -> tuple[NDArray[np.generic], list[str]]:
        """Return labels and class names."""
        named = class_names(self.options.classes)
        classes = _ordered({name for names in sets for name in names}) if named is None else named
        number = {name: place for place, name in enumerate(classes)}
        for place, names in enumerate(sets):
            for name in names:
                if name not in number:
                    raise UnknownNameError(
                        "class",
                        name,
                        classes,
                        key="classes",
                        where=self._table.place(int(np.flatnonzero(kind == place)[0])),
                    )
        if len(classes) < 2:
            raise self.refused(f"at least two classes are needed, found {classes}")
        if single:
            one = [number[names[0]] if names else 0 for names in sets]
            return np.array(one, dtype=np.int64)[kind], classes
        hot = np.zeros((len(sets), len(classes)), dtype=np.uint8)
        for place, names in enumerate(sets):
            hot[place, [number[name] for name in names]] = 1
        return hot[kind], classes

    def _distinct(self, table: _Table) -> tuple[list[tuple[str, ...]], NDArray[np.int64]]:
        """Return the distinct sets of labels, and which of them each row has."""
        numbers: dict[str | tuple[str, ...], int] = {}
        kind = np.array([numbers.setdefault(cell, len(numbers)) for cell in table.labels])
        sets = []
        for place, cell in enumerate(numbers):
            names = [name.strip() for name in self._parts(cell)]
            if problem := _wrong_names(names):
                row = int(np.flatnonzero(kind == place)[0])
                raise self._at(row, f"the labels {shown(cell)} have {problem}")
            sets.append(tuple(sorted(set(names))))
        return sets, kind

    def _parts(self, cell: str | tuple[str, ...]) -> Iterable[str]:
        if isinstance(cell, str):
            return cell.split(self.options.separator) if cell.strip() else ()
        return cell

    # ---- splits ------------------------------------------------------------------------------

    def _membership(self, table: _Table) -> dict[str, NDArray[np.bool_]]:
        """Return which rows are in which split; nothing where there is no column of splits."""
        if table.splits is None:
            return {}
        numbers: dict[str, int] = {}
        kind = np.array([numbers.setdefault(cell, len(numbers)) for cell in table.splits])
        roles = []
        for place, cell in enumerate(numbers):
            first = int(np.flatnonzero(kind == place)[0])
            roles.append(self._roles(cell, first, int((kind == place).sum())))
        splits = {
            role: np.array([role in found for found in roles], dtype=bool)[kind] for role in ROLES
        }
        splits = {role: inside for role, inside in splits.items() if inside.any()}
        for role in ("query", "gallery"):
            if role not in splits:
                there = " and ".join(splits)
                raise self.refused(
                    f"{self.options.path.name}: no image has the split {role!r}, only {there}",
                    hint="images that are ranked and trained on have gallery"
                    f"{self.options.separator}train",
                )
        for role, needed in (
            ("validation_query", "train"),
            ("validation_gallery", "validation_query"),
        ):
            if role in splits and needed not in splits:
                raise self.refused(
                    f"{self.options.path.name}: images have the split {role!r}, none has "
                    f"{needed!r}; a manifest that has the one has the other"
                )
        return splits

    def _roles(self, cell: str, row: int, count: int) -> set[str]:
        """Return the splits that a cell names."""
        such = f" ({count} such rows)" if count > 1 else ""
        if not cell.strip():
            raise self._at(row, f"is in no split{such}")
        found = set()
        for part in cell.split(self.options.separator):
            role = "gallery" if part.strip() == "database" else part.strip()
            if role not in ROLES:
                raise UnknownNameError(
                    "split",
                    role,
                    (*ROLES, "database"),
                    key="root",
                    where=self._table.place(row),
                )
            found.add(role)
        for one, other in APART:
            if {one, other} <= found:
                raise self._at(row, f"an image is both in {one} and in {other}{such}")
        return found

    # ---- copies ------------------------------------------------------------------------------

    def kept(self, tree: Tree, listed: Listed) -> tuple[NDArray[np.integer[Any]], str]:
        """Return rows of the images to keep.

        Raises:
            DatasetError: images have equal content, and are to be refused.
        """
        reason = "a copy of another image"
        everything = np.arange(len(listed.paths))
        if self.options.duplicates == "keep":
            return everything, reason
        groups = list(copies(self._files, tree))
        torn = [g for g in groups if (listed.labels[g] != listed.labels[g[0]]).any()]
        if torn:
            raise self._copied(torn, listed, "with different labels", "")
        if self.options.duplicates == "refuse":
            leaking = groups if not listed.splits else [g for g in groups if _leaks(listed, g)]
            if leaking:
                where = "on both sides of a split" if listed.splits else "and would be split"
                raise self._copied(leaking, listed, where, "set duplicates: first, or ")
            return everything, reason
        if "query" in listed.splits:
            groups = [sorted(g, key=lambda n: (not listed.splits["query"][n], n)) for g in groups]
        dropped = [number for group in groups for number in group[1:]]
        return np.setdiff1d(everything, np.array(dropped, dtype=np.int64)), reason

    def _copied(
        self, groups: list[list[int]], listed: Listed, where: str, first: str
    ) -> DatasetError:
        one, other = _telling(groups[0], listed)
        return self.refused(
            f"{len(groups)} images are there more than once {where}, with equal content, the "
            f"first: {listed.paths[one]!r} and {listed.paths[other]!r}",
            key="duplicates",
            value=self.options.duplicates,
            hint=f"remove copies, {first}keep all with duplicates: keep",
        )

    # ---- the file ----------------------------------------------------------------------------

    def _of_text(self, path: Path, delimiter: str) -> _Table:
        """Read a CSV or TSV file.

        Raises:
            DatasetError: not UTF-8, badly quoted, or rows differ in length; with the line.
        """
        text = read_text(path, self.refused)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows, lines, line = [], [], 1
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1  # of what follows: a quoted cell may have many lines
        except csv.Error as error:
            raise self.refused(f"{path.name}:{line}: {error}") from None
        if not rows:
            raise self.refused(f"{path.name} is empty")
        names = [name.strip() for name in rows[0]]
        rows, lines = rows[1:], lines[1:]
        ragged = [place for place, row in enumerate(rows) if len(row) != len(names)]
        if ragged:
            raise self.refused(
                f"{path.name}:{lines[ragged[0]]}: has {len(rows[ragged[0]])} columns, the first "
                f"line has {len(names)}{_such(ragged)}"
            )
        chosen = {role: names.index(name) for role, name in self._chosen(names).items()}
        cells = {role: [row[column] for row in rows] for role, column in chosen.items()}
        labels: list[str | tuple[str, ...]] = [*cells["labels"]]
        return _Table(cells["path"], labels, cells.get("split"), path.name, lines)

    def _of_parquet(self, path: Path) -> _Table:
        """Read a Parquet file.

        Raises:
            DatasetError: damaged, or a column holds neither text nor whole numbers.
        """
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as file:
                chosen = self._chosen(list(file.schema_arrow.names))
                table = file.read(columns=list(chosen.values()))
            columns = {role: table.column(name) for role, name in chosen.items()}
            cells = {role: self._cells(role, columns[role], chosen[role]) for role in chosen}
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise self.refused(f"{path.name} cannot be read: {reason}") from None
        texts = {role: [str(cell) for cell in cells[role]] for role in cells if role != "labels"}
        return _Table(texts["path"], cells["labels"], texts.get("split"), path.name, None)

    def _cells(self, role: str, column: Any, name: str) -> list[str | tuple[str, ...]]:
        """Return a Parquet column as text, or tuples of text; nothing is an empty text."""
        from pyarrow import types

        kind = column.type
        nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if nested and role == "labels" and _is_textual(kind.value_type):
            lists = (() if cell is None else cell for cell in column.to_pylist())
            return [tuple("" if part is None else str(part) for part in cell) for cell in lists]
        if not _is_textual(kind):
            raise self.refused(
                f"{self.options.path.name}: the column {name!r} holds {kind}, needed is text"
                + (", whole numbers, or lists of these" if role == "labels" else "")
            )
        return ["" if cell is None else str(cell) for cell in column.to_pylist()]

    def _chosen(self, names: list[str]) -> dict[str, str]:
        """Return the columns' names by what they hold.

        Raises:
            DatasetError: one is missing or there twice.
            UnknownNameError: there is none of the name that the options give.
        """
        given, where = self.options.columns, self.options.path.name
        chosen = {"path": given.path, "labels": given.labels, "split": given.split}
        if given.split is None and "split" in names:
            chosen["split"] = "split"
        if given.labels is None:
            there = [name for name in ("labels", "label") if name in names]
            if len(there) > 1:
                raise DatasetError(
                    f"dataset {self.name!r}: {where} has columns 'labels' and 'label'",
                    key="columns.labels",
                    hint="say which to take: columns: {labels: ...}",
                )
            chosen["labels"] = there[0] if there else "labels"
        found = {role: name for role, name in chosen.items() if name is not None}
        for role, name in found.items():
            if name not in names:
                raise UnknownNameError(
                    "column",
                    name,
                    names,
                    key=f"columns.{role}",
                    where=where,
                    hint=f"say what it is called: columns: {{{role}: ...}}",
                )
            if names.count(name) > 1:
                raise self.refused(f"{where} has two columns {name!r}")
        if len(set(found.values())) < len(found):
            raise DatasetError(
                "path, labels and split are columns of their own", key="columns", value=found
            )
        return found


@dataclass(frozen=True)
class _Table:
    """A manifest's rows.

    Attributes:
        paths: (N,) as written.
        labels: (N,) each a cell, or the names in a list.
        splits: (N,) cells; None without such a column.
        name: of the file.
        lines: (N,) numbers of lines; None in a file without lines.
    """

    paths: list[str]
    labels: list[str | tuple[str, ...]]
    splits: list[str] | None
    name: str
    lines: list[int] | None

    def place(self, row: int) -> str:
        """Return file and line, or file and row, counted from 1."""
        if self.lines is None:
            return f"{self.name}, row {row + 1}"
        return f"{self.name}:{self.lines[row]}"


def _is_textual(kind: Any) -> bool:
    """Whether a Parquet column holds text or whole numbers."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in (*texts, types.is_integer, types.is_null))


def _ordered(names: Iterable[str]) -> list[str]:
    """Return class names in order; by value where all are whole numbers."""
    found = sorted(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in found):
        found.sort(key=int)
    return found


def _wrong_names(names: list[str]) -> str | None:
    if not all(names):
        return "an empty name"
    return None if all(map(is_plain, names)) else "control characters"


def _leaks(listed: Listed, group: list[int]) -> bool:
    """Whether copies are in splits that must have no image in common."""
    inside = {role for role, rows in listed.splits.items() if rows[group].any()}
    return any({one, other} <= inside for one, other in APART)


def _telling(group: list[int], listed: Listed) -> tuple[int, int]:
    """Return two images of a group: of different labels, or splits, if there are."""
    marks = [
        (listed.labels[number].tolist(), [rows[number] for rows in listed.splits.values()])
        for number in group
    ]
    other = next((n for n, mark in zip(group, marks, strict=True) if mark != marks[0]), group[1])
    return group[0], other


def _such(rows: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    return f" ({len(rows)} such rows)" if len(rows) > 1 else ""
