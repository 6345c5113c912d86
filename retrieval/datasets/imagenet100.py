"""imagenet100: a hundred classes of ILSVRC2012, read from its folders as they are unpacked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import Field

from retrieval.augmentation import Augmentation
from retrieval.datasets.base import DATASETS, DatasetIndex
from retrieval.datasets.files import (
    FileOptions,
    Files,
    FilesDataset,
    Listing,
    Tree,
    is_image,
    labelled_fingerprint,
    read_text,
    text_lines,
)
from retrieval.errors import DatasetError
from retrieval.protocols import Protocol

_CLASSES = 100

_QUERIES = 50
"""Validation images of each class of ILSVRC2012."""

_LEAST, _MOST = 732, 1_300
"""Training images of its smallest and its largest classes."""

_ALL = 1_000
"""Classes of ILSVRC2012."""

_WNID = re.compile(r"n\d{8}")

_AROUND = ("", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/")
"""Where train/ and val/ lie below the root: directly, or as Kaggle packs them."""

_TRAIN = ("train", "ILSVRC2012_img_train", "ILSVRC2012_train")
_VAL = ("val", "ILSVRC2012_img_val", "ILSVRC2012_val")

_VAL_LABELS = ("LOC_val_solution.csv", "val.txt", "val_labels.txt", "val_map.txt")
"""Names under which labels of a val/ without class folders are looked for."""

_SYNSETS = ("LOC_synset_mapping.txt", "synsets.txt", "synset_words.txt")
"""Names under which the list of all 1,000 classes is looked for."""

_FIRST = ("ILSVRC2012_val_00000001", "n01751748")
"""The first validation image and its class: they tell in which order a file numbers classes."""

_HINT = (
    "the 100 classes of HashNet and what follows it are the folders named in the lists "
    "that DeepHash-pytorch has as data/imagenet/train.txt"
)

_PART_HINT = (
    "for a part of ImageNet-100 give protocol.train_per_class, and for a small one "
    "validation_per_class and validation_gallery_per_class too"
)


class ImageNet100Options(FileOptions):
    """Options of ImageNet-100.

    Attributes:
        root: a folder or a zip with ILSVRC2012's train/nXXXXXXXX/*.JPEG, and val/ with such
            folders or without any; or as Kaggle packs it. One folder around is allowed.
        classes: which 100 classes: a text file with one WordNet id a line, perhaps followed by
            a blank and a name, or a list of such lines. By default classes.txt in the root, or
            the folders in train/ if they are 100.
        train: the folder of training images below the root, where it has another name.
        val: the folder of validation images below the root, where it has another name.
        val_labels: what tells the classes of a val/ without class folders: Kaggle's
            LOC_val_solution.csv, or lines of an image's name with its WordNet id, or with the
            class' place (from 0) among the sorted ids, as in Caffe's val.txt. Below the root, or
            an absolute path; files of the usual names are found.
    """

    classes: str | list[str] | None = None
    train: str | None = Field(None, min_length=1)
    val: str | None = Field(None, min_length=1)
    val_labels: str | None = Field(None, min_length=1)


@DATASETS.register("imagenet100")
class ImageNet100(FilesDataset):
    """A hundred classes of ILSVRC2012, called by their WordNet ids where no names are given.

    The protocol is that of HashNet: all validation images of the classes (5,000) are queries, all
    their training images (about 128,500) the gallery, of which 130 of each class are trained on;
    mAP is taken at 1,000. Which 130 is drawn with the split seed. Validation queries (10 of each
    class) and what they are ranked against (40 of each) are gallery images outside of the training
    split. Classes are numbered in the order of their WordNet ids, however they are listed.

    Only the folders of these classes are looked at. The counts are checked: 100 classes with 50
    validation images each and 732 to 1,300 training images, as ILSVRC2012 has them.
    """

    Options = ImageNet100Options
    options: ImageNet100Options
    path_options = ("root", "exclude", "classes")
    what = "photographs of 100 classes; 5,000 query, about 128,500 gallery, 13,000 train"
    source = "Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015"
    licence = "for non-commercial research; terms of image-net.org"
    obtain = (
        "unpack ILSVRC2012_img_train.tar (with the archives in it, a folder a class) as train/ "
        "and ILSVRC2012_img_val.tar as val/, or Kaggle's archive, and give the folder as root"
    )

    @cached_property
    def _tree(self) -> Tree:
        files, options = self._files, self.options
        places = _Places.find(files, options)
        names = _class_names(files, places, options)
        self._check_classes(names)  # before 1,000 folders are read where 100 are meant
        train = files.listing([f"{places.train}/{wnid}" for wnid in names])
        ignored = Counter(train.ignored)
        found = [*_in_folders(train, places.train, "train", names)]
        if set(names) & set(files.children(places.val).folders):
            val = files.listing([f"{places.val}/{wnid}" for wnid in names])
            ignored += Counter(val.ignored)
            found += _in_folders(val, places.val, "val", names)
        else:
            flat, unlabelled = _flat(files, places, options, names)
            found += flat
            ignored += Counter({"without a label": unlabelled})
        found.sort()
        self._check_counts(found, names)
        order = {wnid: number for number, wnid in enumerate(sorted(names))}
        labels = np.array([order[image.wnid] for image in found], dtype=np.int64)
        keys = [image.key for image in found]
        sizes, crcs = [image.size for image in found], [image.crc for image in found]
        classes = _titles(names)
        index = DatasetIndex(
            keys=keys,
            labels=labels,
            classes=classes,
            fingerprint=labelled_fingerprint(keys, sizes, crcs, labels, classes),
            ignored=dict(ignored),
        )
        return Tree(index, [image.path for image in found], crcs, sizes)

    @property
    def _sized(self) -> bool:
        """Whether the study gives sizes of its own, as it must for a part of the data set."""
        given = self.options.protocol
        return given.split_file is not None or given.train_per_class is not None

    def _check_classes(self, names: Mapping[str, str]) -> None:
        if len(names) < 2 or (len(names) != _CLASSES and not self._sized):
            wanted = (
                "at least two classes are needed" if len(names) < 2 else "expected 100 classes"
            )
            hint = _PART_HINT if len(names) > 1 else None
            raise self._files.error(f"{wanted}, found {len(names)}", key="classes", hint=hint)

    def _check_counts(self, found: Sequence[_Image], names: Mapping[str, str]) -> None:
        """Refuse classes without images; and other counts than ILSVRC2012's, unless sized."""
        counts = {(part, wnid): 0 for wnid in sorted(names) for part in ("train", "val")}
        for image in found:
            counts[image.part, image.wnid] += 1
        for (part, wnid), count in counts.items():
            least, most = (_LEAST, _MOST) if part == "train" else (_QUERIES, _QUERIES)
            if count == 0 or (not self._sized and not least <= count <= most):
                what = "training" if part == "train" else "validation"
                wanted = f"{least}" if least == most else f"{least} to {most}"
                raise self._files.error(
                    f"class {wnid} has {count} {what} images, ILSVRC2012 has {wanted} of each",
                    hint=_PART_HINT if count else None,
                )

    def load_index(self) -> DatasetIndex:
        """List the images of the classes in the order of their names.

        Raises:
            DatasetError: no or a wrong class list, no labels of validation images, missing images
                or other counts than ILSVRC2012's.
        """
        return self._tree.index

    def default_protocol(self) -> Protocol:
        """HashNet's: validation images ask, training images answer, 130 a class are trained on."""
        return Protocol(
            id="imagenet100",
            at=1_000,
            listed=True,
            train_per_class=130,
            validation_per_class=10,
            validation_gallery_per_class=40,
        )

    def listed_splits(self) -> Mapping[str, Sequence[str]] | None:
        """Return validation images as queries and training images as gallery."""
        keys = self.index().keys
        return {
            "query": [key for key in keys if key.startswith("val/")],
            "gallery": [key for key in keys if key.startswith("train/")],
        }

    @property
    def default_augmentation(self) -> Augmentation:
        """Boxes of random area and shape, and mirroring, as ImageNet networks are trained."""
        return Augmentation(
            crop="random_resized", scale=(0.08, 1.0), flip=True, brightness=0.0, contrast=0.0
        )


@dataclass(frozen=True, order=True)
class _Image:
    """One image: its key tells part, class and name, whatever folders it lies in."""

    key: str
    part: str
    wnid: str
    path: str
    size: int
    crc: int


@dataclass(frozen=True)
class _Places:
    """Where things lie below the root.

    Attributes:
        train, val: folders of the parts.
        beside: folders in which lists may lie, with "/", the root's own first.
    """

    train: str
    val: str
    beside: tuple[str, ...]

    @classmethod
    def find(cls, files: Files, options: ImageNet100Options) -> _Places:
        """Find both parts, in the root or in one folder around everything.

        Raises:
            DatasetError: one is missing, or a given name leads out of the root.
        """
        for key in ("train", "val"):
            given = getattr(options, key)
            if given is not None and {"", ".", ".."} & set(given.split("/")):
                raise DatasetError(
                    "must be a folder below the root, such as 'train'", key=key, value=given
                )
        top = files.children()
        outer = [""] + ([f"{top.folders[0]}/"] if len(top.folders) == 1 else [])
        for around in [f"{first}{inner}" for first in outer for inner in _AROUND]:
            there = files.children(around.rstrip("/")).folders
            found = []
            for given, usual in ((options.train, _TRAIN), (options.val, _VAL)):
                if given is not None:
                    inside = files.children(f"{around}{given}")
                    found += [given] if inside.folders or inside.files else []
                else:
                    found += [name for name in usual if name in there][:1]
            if len(found) == 2:
                train, val = (f"{around}{name}" for name in found)
                return cls(train, val, tuple(dict.fromkeys([*outer, around, f"{val}/"])))
        wanted = [options.train or "train", options.val or "val"]
        shown = ", ".join(top.folders[:8]) or "no folders"
        raise files.error(
            f"there is no {wanted[0]}/ beside a {wanted[1]}/; in the root there is {shown}",
            hint="folders of other names are given with train: NAME and val: NAME",
        )


def _class_names(files: Files, places: _Places, options: ImageNet100Options) -> dict[str, str]:
    """Return WordNet id -> name, or nothing for a name, of the classes that are wanted.

    Raises:
        DatasetError: no list and not 100 folders, a wrong line, or a class without a folder.
    """
    given = options.classes
    folders = [name for name in files.children(places.train).folders if _WNID.fullmatch(name)]
    if isinstance(given, str):
        path = Path(given).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"the class list cannot be read: {error.strerror}", key="classes", value=given
            ) from None
        lines = list(text_lines(data, path.name, key="classes"))
    elif given is not None:
        lines = [(f"entry {number}", line) for number, line in enumerate(given, start=1)]
    else:
        listed = files.contents([f"{around}classes.txt" for around in places.beside])
        if not listed and len(folders) == _CLASSES:
            return dict.fromkeys(folders, "")
        if not listed:
            raise DatasetError(
                f"which {_CLASSES} classes? {places.train}/ has {len(folders)} class folders",
                key="classes",
                hint=f"give a list or a file with one WordNet id a line; {_HINT}",
            )
        path_found, data = min(listed.items(), key=lambda item: (item[0].count("/"), item[0]))
        lines = list(text_lines(data, path_found, key="root"))
    names = _parsed_classes(lines)
    if missing := sorted(set(names) - set(folders)):
        raise files.error(
            f"{len(missing)} of {len(names)} classes have no folder in {places.train}/, "
            f"the first is {missing[0]}"
        )
    return names


def _parsed_classes(lines: Sequence[tuple[str, str]]) -> dict[str, str]:
    names: dict[str, str] = {}
    for where, line in lines:
        wnid, _, title = line.strip().partition(" ")
        if not wnid or wnid.startswith("#"):
            continue
        title = title.strip()
        if not _WNID.fullmatch(wnid) or not title.isprintable():
            raise DatasetError(
                f"{where} must be a WordNet id such as n01440764, perhaps followed by a blank "
                f"and a name; found {line.strip()[:60]!r}",
                key="classes",
            )
        if wnid in names:
            raise DatasetError(f"{where}: class {wnid} is listed twice", key="classes")
        names[wnid] = title
    if not names:
        raise DatasetError("lists no classes", key="classes")
    return names


def _titles(names: Mapping[str, str]) -> list[str]:
    """Return class names in the order of ids; two classes of ImageNet are called crane."""
    titles = list(names.values())
    return [
        wnid if not title else f"{title} ({wnid})" if titles.count(title) > 1 else title
        for wnid, title in sorted(names.items())
    ]


def _in_folders(
    listing: Listing, folder: str, part: str, names: Mapping[str, str]
) -> Iterator[_Image]:
    """Yield the images below FOLDER/WNID/."""
    for path, size, crc in zip(listing.paths, listing.sizes, listing.crcs, strict=True):
        inside = path.removeprefix(f"{folder}/")
        wnid = inside.partition("/")[0]
        if wnid in names:
            yield _Image(f"{part}/{inside}", part, wnid, path, size, crc)


# ---- validation images without class folders -------------------------------------------------


def _flat(
    files: Files, places: _Places, options: ImageNet100Options, names: Mapping[str, str]
) -> tuple[list[_Image], int]:
    """Return the validation images of the classes, as a file says which these are.

    Returns:
        The images, and the number of others of which the file says nothing.

    Raises:
        DatasetError: no such file, a wrong line, or images of the classes are missing.
    """
    class_of = _val_labels(files, places, options)
    there = {PurePosixPath(name).stem: name for name in files.children(places.val).files}
    wanted = sorted(stem for stem, wnid in class_of.items() if wnid in names)
    missing = [stem for stem in wanted if stem not in there or not is_image(there[stem])]
    if missing:
        raise files.error(
            f"{len(missing)} of the {len(wanted)} validation images of the classes are missing in "
            f"{places.val}/, the first: {missing[0]!r}"
        )
    paths = {f"{places.val}/{there[stem]}": class_of[stem] for stem in wanted}
    listing = files.listing_of(sorted(paths), "imagenet100")
    found = []
    for path, size, crc in zip(listing.paths, listing.sizes, listing.crcs, strict=True):
        wnid, name = paths[path], path.rpartition("/")[2]
        found.append(_Image(f"val/{wnid}/{name}", "val", wnid, path, size, crc))
    return found, sum(is_image(name) and stem not in class_of for stem, name in there.items())


def _val_labels(files: Files, places: _Places, options: ImageNet100Options) -> dict[str, str]:
    """Return image name without ending -> WordNet id, of all validation images."""
    if options.val_labels is not None:
        source, data = options.val_labels, read_text(files, options.val_labels, "val_labels")
    else:
        usual = [f"{around}{name}" for around in places.beside for name in _VAL_LABELS]
        found = files.contents(list(dict.fromkeys(usual)))
        if len(found) != 1:
            problem = (
                f"there are {' and '.join(found)} with labels of validation images"
                if found
                else f"{places.val}/ has no class folders, and nothing tells its images' classes"
            )
            raise DatasetError(
                f"dataset {files.name!r}: {problem}",
                key="val_labels",
                hint="give val_labels: FILE, for example Kaggle's LOC_val_solution.csv",
            )
        ((source, data),) = found.items()
    class_of: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for where, line in text_lines(data, source, key="val_labels"):
        cells = line.replace(",", " ").split()
        if not cells or cells[:2] == ["ImageId", "PredictionString"]:
            continue
        stem = PurePosixPath(cells[0]).name
        stem = PurePosixPath(stem).stem if is_image(stem) else stem
        answer = cells[1] if len(cells) > 1 else ""
        if stem in class_of or stem in numbers:
            raise DatasetError(f"{where}: {stem} is listed twice", key="val_labels")
        if _WNID.fullmatch(answer):
            class_of[stem] = answer
        elif answer.isdecimal() and int(answer) < _ALL and len(cells) == 2:
            numbers[stem] = int(answer)
        else:
            raise DatasetError(
                f"{where}: expected an image's name and its WordNet id, or the place of its class "
                f"from 0 to {_ALL - 1} among the sorted ids; found {line.strip()[:60]!r}",
                key="val_labels",
                value=options.val_labels,
            )
    if numbers:
        class_of |= _numbered(files, places, numbers, source)
    return class_of


def _numbered(
    files: Files, places: _Places, numbers: Mapping[str, int], source: str
) -> dict[str, str]:
    """Return the WordNet ids behind class numbers, which count the sorted ids from 0.

    Raises:
        DatasetError: not all 1,000 ids are known, or the numbers have another order.
    """
    ids = [name for name in files.children(places.train).folders if _WNID.fullmatch(name)]
    if len(ids) != _ALL:
        usual = [f"{around}{name}" for around in places.beside for name in _SYNSETS]
        for data in files.contents(usual).values():
            lines = data.decode(errors="replace").splitlines()
            found = {line.split()[0] for line in lines if line.strip()}
            ids = ids if len(ids) == _ALL or len(found) != _ALL else sorted(found)
    if len(ids) != _ALL:
        raise DatasetError(
            f"{source} numbers the classes, which means nothing without all {_ALL} of them: "
            f"neither {places.train}/ nor one of {', '.join(_SYNSETS)} has them",
            key="val_labels",
        )
    class_of = {stem: ids[number] for stem, number in numbers.items()}
    first, known = _FIRST
    if class_of.get(first, known) != known:
        raise DatasetError(
            f"{source} numbers the classes in another order than that of their sorted WordNet "
            f"ids: {first} would be of class {class_of[first]}, it is of {known}",
            key="val_labels",
            hint="numbers of the development kit are in an order of their own; give WordNet ids",
        )
    return class_of
