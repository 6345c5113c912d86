"""nuswide21: photographs of Flickr with the 21 most frequent of NUS-WIDE's 81 concepts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from retrieval.augmentation import Augmentation
from retrieval.datasets.base import DATASETS, DatasetIndex
from retrieval.datasets.files import (
    FileOptions,
    Files,
    FilesDataset,
    Tree,
    labelled_fingerprint,
    leads_out,
    read_text,
    text_lines,
)
from retrieval.errors import DatasetError, UnknownNameError
from retrieval.protocols import Protocol

_CONCEPTS = 21

_WHOLE = 195_834
"""Images that carry one of the 21 most frequent concepts."""

_LABELS = re.compile(r"Labels_(\w+)\.txt")

_LABEL_FOLDERS = ("Groundtruth/AllLabels", "AllLabels", "GroundTruth/AllLabels")
_LISTS = ("ImageList/Imagelist.txt", "ImageList/ImageList.txt", "Imagelist.txt", "ImageList.txt")
_IMAGE_FOLDERS = ("Flickr", "images", "Images", "")
"""Where the official files and their usual repackagings lie below the root."""

_ZERO, _ONE, _NEWLINE = b"01\n"
_BETWEEN = b" \t,"


class NusWide21Options(FileOptions):
    """Options of NUS-WIDE-21.

    Attributes:
        root: a folder or a zip with ImageList/Imagelist.txt, Groundtruth/AllLabels/Labels_*.txt
            and the photographs in Flickr/, as the authors give it out; one folder around is
            allowed. Or any folder, with image_list and labels.
        image_list: a text file with one image's path a line; below the root, or an absolute path.
        labels: a text file with a line for each image of image_list and a column of 0 and 1 for
            each concept, such as targets_onehot_tc21.txt; below the root, or an absolute path.
        columns: names of the columns of labels, in order; "column 01" and so on by default.
        images: the folder below the root that listed paths are relative to; Flickr, images, or
            the root itself by default.
        concepts: the concepts that are classes; the 21 most frequent by default.
        missing: what to do where listed photographs are not there: "refuse", or "drop" them.
    """

    image_list: str | None = Field(None, min_length=1)
    labels: str | None = Field(None, min_length=1)
    columns: list[str] | None = Field(None, min_length=2)
    images: str | None = Field(None, min_length=1)
    concepts: list[str] | None = Field(None, min_length=2)
    missing: Literal["refuse", "drop"] = "refuse"


@DATASETS.register("nuswide21")
class NusWide21(FilesDataset):
    """NUS-WIDE with its 21 most frequent concepts as classes, several in an image.

    Concepts are counted over the whole list of images; of equally frequent ones that whose name
    comes first is taken. Images with none of the 21 are left out, which leaves 195,834.

    The protocol is that of the hashing literature: 100 queries of each class, 2,100 in all; the
    others are the gallery, of which 500 of each class, 10,500, are trained on; mAP is taken at
    5,000. An image has several classes: in a random order each image counts for the first of its
    classes, by name, that wants more. Queries are chosen first, then training images, then
    validation queries (50 of each class) and what they are ranked against (200 of each).

    Photographs that are gone from Flickr are refused by default. With ``missing: drop`` they are
    left out and counted, and the data set is another one: its numbers are not those of the whole.
    """

    Options = NusWide21Options
    options: NusWide21Options
    what = "195,834 photographs, 21 classes, several an image; 2,100 query, 10,500 train"
    source = "Chua et al., NUS-WIDE: A Real-World Web Image Database, CIVR 2009"
    licence = "for non-commercial research; the photographs have licences of their own"
    obtain = (
        "unpack ImageList.zip, Groundtruth.zip and the photographs (Flickr/) of the authors and "
        "give the folder as root; or give image_list and labels of a repackaged copy"
    )

    @cached_property
    def _tree(self) -> Tree:
        files, options = self._files, self.options
        listed = _read(files, options)
        chosen = _chosen(files, listed, options)
        labels = np.ascontiguousarray(listed.labels[:, [listed.names.index(c) for c in chosen]])
        carried = labels.any(axis=1)
        self._check_count(int(carried.sum()), len(listed.paths))
        places = np.flatnonzero(carried)
        folder = _image_folder(files, listed.around, listed.paths, options)
        rows = {f"{folder}{listed.paths[place]}": place for place in places.tolist()}
        listing = files.listing_of(list(rows), f"nuswide21/{folder}")
        if len(listing.paths) < len(rows):
            self._miss(rows, listing.paths)
        if not listing.paths:
            raise files.error("none of the listed images is there")
        paths = listing.paths
        keys = [path.removeprefix(folder) for path in paths]
        kept = labels[[rows[path] for path in paths]]
        ignored = {
            "without any of the concepts": len(listed.paths) - len(rows),
            "missing": len(rows) - len(paths),
        }
        index = DatasetIndex(
            keys=keys,
            labels=kept,
            classes=chosen,
            fingerprint=labelled_fingerprint(keys, listing.sizes, listing.crcs, kept, chosen),
            ignored={reason: count for reason, count in ignored.items() if count},
        )
        return Tree(index, paths, listing.crcs, listing.sizes)

    def _check_count(self, carried: int, listed: int) -> None:
        """Refuse lists that are not the whole data set's, unless the study says it is a part."""
        options, given = self.options, self.options.protocol
        sized = given.split_file is not None or None not in (
            given.query_per_class,
            given.train_per_class,
        )
        if carried == 0:
            raise self._files.error(f"none of the {listed} listed images has one of the concepts")
        if options.concepts is None and carried != _WHOLE and not sized:
            raise self._files.error(
                f"expected {_WHOLE} images with one of the {_CONCEPTS} most frequent concepts, "
                f"found {carried} among {listed} listed images",
                hint="for a part of NUS-WIDE give protocol.query_per_class and train_per_class, "
                "and for a small one validation_per_class and validation_gallery_per_class too",
            )

    def _miss(self, rows: Mapping[str, int], there: Sequence[str]) -> None:
        """Refuse missing photographs unless they are to be dropped."""
        if self.options.missing == "drop":
            return
        missing = sorted(set(rows) - set(there))
        shown = ", ".join(repr(path) for path in missing[:3])
        raise self._files.error(
            f"{len(missing)} of the {len(rows)} listed images are missing, the first: {shown}",
            hint="photographs vanish from Flickr; with missing: drop the data set is what is "
            "left, and its numbers are not those of the whole",
        )

    def load_index(self) -> DatasetIndex:
        """List the images with one of the concepts in the order of their names.

        Raises:
            DatasetError: lists are missing, damaged or of different lengths, an entry leads out
                of the root, or listed images are missing.
        """
        return self._tree.index

    def default_protocol(self) -> Protocol:
        """The literature's quotas of each class; under another name for other concepts."""
        concepts = self.options.concepts
        known = concepts is None or len(concepts) == _CONCEPTS
        return Protocol(
            id="nuswide21" if known else f"nuswide-{len(concepts or ())}",
            at=5_000,
            greedy=True,
            query_per_class=100,
            train_per_class=500,
            validation_per_class=50,
            validation_gallery_per_class=200,
        )

    @property
    def default_augmentation(self) -> Augmentation:
        """Shifts and mirroring, no change of colour, as the literature's random crops."""
        return Augmentation(crop="random", flip=True, brightness=0.0, contrast=0.0)


@dataclass(frozen=True)
class _Listed:
    """What the lists say.

    Attributes:
        around: the folder around everything, with "/", or nothing.
        paths: (N,) images, with "/".
        names: (C,) concepts.
        labels: (N, C) uint8 multi-hot.
    """

    around: str
    paths: list[str]
    names: list[str]
    labels: NDArray[np.uint8]


def _read(files: Files, options: NusWide21Options) -> _Listed:
    """Read the lists, of the official form or of the combined one.

    Raises:
        DatasetError: one is missing or damaged, or they differ in length.
    """
    if (options.image_list is None) != (options.labels is None):
        given, other = "image_list", "labels"
        if options.image_list is None:
            given, other = other, given
        raise DatasetError(
            f"{given} and {other} belong together: a line of one for a line of the other",
            key=other,
        )
    if options.image_list is not None and options.labels is not None:
        paths = _read_paths(
            read_text(files, options.image_list, "image_list"), options.image_list, "image_list"
        )
        labels = _read_matrix(read_text(files, options.labels, "labels"), options.labels, "labels")
        _same_length(len(labels), options.labels, len(paths), options.image_list, "labels")
        return _Listed("", paths, _column_names(options.columns, labels.shape[1]), labels)
    if options.columns is not None:
        raise DatasetError("names columns of labels, which is not given", key="columns")
    return _read_official(files)


def _column_names(given: list[str] | None, count: int) -> list[str]:
    if given is None:
        return [f"column {number:02d}" for number in range(1, count + 1)]
    if len(given) != count:
        raise DatasetError(
            f"names {len(given)} columns, the label file has {count}", key="columns"
        )
    if twice := [name for name, times in Counter(given).items() if times > 1]:
        raise DatasetError(f"names {twice[0]!r} twice", key="columns")
    return given


def _read_official(files: Files) -> _Listed:
    top = files.children()
    outer = [""] + ([f"{top.folders[0]}/"] if len(top.folders) == 1 else [])
    for around in outer:
        lists = files.contents([f"{around}{name}" for name in _LISTS])
        for folder in (f"{around}{name}" for name in _LABEL_FOLDERS):
            matches = map(_LABELS.fullmatch, files.children(folder).files)
            names = sorted(match[1] for match in matches if match)
            if lists and names:
                source, data = next(iter(sorted(lists.items())))
                paths = _read_paths(data, source, "root")
                return _Listed(around, paths, names, _columns(files, folder, names, paths, source))
    raise files.error(
        "there is no ImageList/Imagelist.txt with Groundtruth/AllLabels/Labels_*.txt beside it",
        hint="of a copy in another form give image_list and labels",
    )


def _columns(
    files: Files, folder: str, names: Sequence[str], paths: Sequence[str], source: str
) -> NDArray[np.uint8]:
    """Read one label file for each concept."""
    sources = [f"{folder}/Labels_{name}.txt" for name in names]
    contents = files.contents(sources)
    labels = np.zeros((len(paths), len(names)), dtype=np.uint8)
    for column, path in enumerate(sources):
        found = _read_matrix(contents[path], path, "root", columns=1)
        _same_length(len(found), path, len(paths), source, "root")
        labels[:, column] = found[:, 0]
    return labels


def _same_length(labels: int, label_file: str, images: int, image_list: str, key: str) -> None:
    if labels != images:
        raise DatasetError(
            f"{label_file} has {labels} lines and {image_list} {images} images; they must be of "
            "the same length",
            key=key,
        )


def _read_paths(data: bytes, source: str, key: str) -> list[str]:
    """Read a list of images.

    Raises:
        DatasetError: it is empty, an entry leads out of the folder, or stands there twice.
    """
    paths: dict[str, str] = {}
    for where, line in text_lines(data, source, key=key):
        path = line.strip().replace("\\", "/").removeprefix("./")
        if leads_out(path) or not path.isprintable():
            raise DatasetError(
                f"{where}: {line.strip()[:80]!r} is no path below the folder of images", key=key
            )
        if path in paths:
            raise DatasetError(f"{where}: {path!r} is listed twice, see {paths[path]}", key=key)
        paths[path] = where
    if not paths:
        raise DatasetError(f"{source} lists no images", key=key)
    return list(paths)


def _read_matrix(
    data: bytes, source: str, key: str, columns: int | None = None
) -> NDArray[np.uint8]:
    """Read lines of 0 and 1.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        key: the option that leads to it.
        columns: how many there must be; by default as many as in the first line.

    Returns:
        (n, C) uint8.

    Raises:
        DatasetError: anything else is in it; the line is named.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip() + b"\n"
    width = text.index(b"\n") + 1
    # The usual form, looked at as a whole: a file may hold twenty million numbers.
    if len(text) % width == 0 and width % 2 == 0 and columns in (None, width // 2):
        table = np.frombuffer(text, dtype=np.uint8).reshape(-1, width)
        values, between = table[:, ::2], table[:, 1:-1:2]
        if (
            ((values == _ZERO) | (values == _ONE)).all()
            and (table[:, -1] == _NEWLINE).all()
            and np.isin(between, np.frombuffer(_BETWEEN, dtype=np.uint8)).all()
        ):
            return values - np.uint8(_ZERO)
    return _read_slowly(text, source, key, columns)


def _read_slowly(text: bytes, source: str, key: str, columns: int | None) -> NDArray[np.uint8]:
    """Read lines with other blanks, or say which line is wrong."""
    rows = []
    allowed = {b"0", b"1"}
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        cells = line.replace(b",", b" ").split()
        wrong = next((cell for cell in cells if cell not in allowed), None)
        if wrong is not None or not cells:
            found = "nothing" if wrong is None else repr(wrong[:40].decode(errors="replace"))
            raise DatasetError(f"{source}:{number}: labels must be 0 or 1, found {found}", key=key)
        columns = columns or len(cells)
        if len(cells) != columns:
            raise DatasetError(
                f"{source}:{number}: has {len(cells)} labels, expected {columns} in each line",
                key=key,
            )
        rows.append(b"".join(cells))
    joined = np.frombuffer(b"".join(rows), dtype=np.uint8)
    return joined.reshape(len(rows), -1) - np.uint8(_ZERO)


def _chosen(files: Files, listed: _Listed, options: NusWide21Options) -> list[str]:
    """Return the concepts that are classes, in the order of names.

    Raises:
        UnknownNameError: a concept that there is not.
        DatasetError: fewer than are needed, one given twice, or one that no image has.
    """
    counts = dict(zip(listed.names, listed.labels.sum(axis=0, dtype=np.int64), strict=True))
    if options.concepts is not None:
        for name, times in Counter(options.concepts).items():
            if name not in counts:
                raise UnknownNameError("concept", name, counts, key="concepts")
            if times > 1:
                raise DatasetError(f"names {name!r} twice", key="concepts")
        chosen = sorted(options.concepts)
    else:
        if len(counts) < _CONCEPTS:
            raise files.error(
                f"has labels of {len(counts)} concepts, {_CONCEPTS} are needed",
                hint="name those to take with concepts",
            )
        frequent = sorted(counts, key=lambda name: (-counts[name], name))
        chosen = sorted(frequent[:_CONCEPTS])
    if empty := [name for name in chosen if not counts[name]]:
        raise files.error(f"no image has the concept {empty[0]!r}", key="concepts")
    return chosen


def _image_folder(
    files: Files, around: str, paths: Sequence[str], options: NusWide21Options
) -> str:
    """Return the folder that listed paths are relative to, with "/", or nothing."""
    if options.images is not None:
        if leads_out(options.images.rstrip("/")):
            raise DatasetError(
                "must be a folder below the root, such as 'Flickr'",
                key="images",
                value=options.images,
            )
        return f"{options.images.rstrip('/')}/"
    tops = {path.partition("/")[0] for path in paths}

    def there(folder: str) -> int:
        children = files.children(f"{around}{folder}".rstrip("/"))
        return len(tops & {*children.folders, *children.files})

    best = max(_IMAGE_FOLDERS, key=there)  # the first of equally good ones
    return f"{around}{best}/" if best else around
