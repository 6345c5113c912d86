"""What ROxford5k and RParis6k share: ground truth of their own, cropped queries, no labels."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from retrieval.datasets.base import (
    Dataset,
    DatasetIndex,
    open_dataset,
)
from retrieval.datasets.files import (
    FileOptions,
    FilesDataset,
    Tree,
    fingerprint,
    tree_decoder,
)
from retrieval.datasets.gnd import LARGEST, GroundTruth, read_ground_truth
from retrieval.errors import DatasetError, InputError
from retrieval.images import Decoder
from retrieval.metrics.landmarks import (
    LandmarkEvaluation,
    evaluate_landmark_embeddings,
    evaluate_landmarks,
)
from retrieval.protocols import Protocol, Splits
from retrieval.streams import permutation

_VALIDATION = 1_000
"""Validation queries at most, where the study says nothing."""

_INSIDE = 0.9
"""Part of a query's box that must lie in its image; less, and the image was resized."""


class LandmarkOptions(FileOptions):
    """Options of a landmark benchmark.

    Attributes:
        root: a folder with jpg/ and the ground truth in it, the folder of the images, or a zip.
        gnd: the ground truth, ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl`` as given out, or the
            same as JSON; by default it is looked for in the root and beside it.
        train: the dataset to train on, by name or as a mapping like those of a study:
            ``{folder: /data/landmarks}``; all its images are trained on or validated with.
            Without it the dataset can be prepared, described and evaluated, not studied.
        crop_queries: cut queries out of their images by the boxes of the ground truth, as the
            benchmark demands; false takes whole images, as some public code bases do.
        expected: "whole" refuses a ground truth with other numbers of images than the benchmark
            has; "any" takes parts.
    """

    gnd: str | None = Field(None, min_length=1)
    train: str | dict[str, Any] | None = None
    crop_queries: bool = True
    expected: Literal["whole", "any"] = "whole"


class LandmarkDataset(FilesDataset):
    """Query and gallery images without labels, judged by ground truth; trained on other images.

    Class attributes:
        title: what the benchmark is called.
        counts: its numbers of query and gallery images.
    """

    Options = LandmarkOptions
    options: LandmarkOptions
    path_options = ("root", "exclude", "gnd")
    dataset_options = ("train",)
    score_titles: ClassVar = {"map": "Medium", "map_easy": "Easy", "map_hard": "Hard"}
    licence = "the photographs have licences of their own; for research"
    title: ClassVar[str]
    counts: ClassVar[tuple[int, int]]

    # ---- ground truth --------------------------------------------------------------------

    @cached_property
    def truth(self) -> GroundTruth:
        """The ground truth.

        Raises:
            DatasetError: it is missing, cannot be read safely, or is not of this benchmark.
        """
        where, data = self._truth_file()
        try:
            truth = read_ground_truth(data)
        except ValueError as error:
            raise self._truth_error(str(error), where) from None
        found = len(truth.queries), len(truth.gallery)
        if self.options.expected == "whole" and found != self.counts:
            raise self._truth_error(
                f"it has {found[0]:,} queries and {found[1]:,} gallery images, {self.title} has "
                f"{self.counts[0]:,} and {self.counts[1]:,}",
                where,
                hint="set expected: any if a part of the benchmark is meant",
            )
        unboxed = [n for n, known in enumerate(truth.landmarks) if known.box is None]
        if unboxed and self.options.crop_queries:
            raise self._truth_error(
                f"{len(unboxed)} of {found[0]} queries have no 'bbx', the first is "
                f"{truth.queries[unboxed[0]]!r}",
                where,
                hint="set crop_queries: false to take whole images",
            )
        return truth

    def _truth_error(self, problem: str, where: str, **fields: Any) -> DatasetError:
        return DatasetError(
            f"dataset {self.name!r}: the ground truth cannot be used: {problem}",
            key="gnd",
            value=where,
            **fields,
        )

    def _truth_file(self) -> tuple[str, bytes]:
        """Find the ground truth; return where it is and its bytes."""
        if self.options.gnd is not None:
            try:
                path = Path(self.options.gnd).expanduser()
            except RuntimeError:
                raise self._truth_error("there is no such user's home", self.options.gnd) from None
            return str(path), self._read(path)
        names = tuple(f"gnd_{self.name}.{ending}" for ending in ("pkl", "json"))
        root = self._files.root
        if root.is_file():
            found = self._in_zip(root, names)
            if found is not None:
                return found
        places = [root.parent] if root.is_file() else [root, root.parent]
        for path in (place / name for place in places for name in names):
            if path.is_file():
                return str(path), self._read(path)
        raise self._files.error(
            f"there is no {names[0]} (or {names[1]}) in it or beside it",
            hint="give its path as the option gnd",
        )

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as stream:
                return stream.read(LARGEST + 1)
        except OSError as error:
            problem = error.strerror or "it is no file"
            raise self._truth_error(problem, str(path)) from None

    def _in_zip(self, root: Path, names: Sequence[str]) -> tuple[str, bytes] | None:
        """Return a ground truth file of a zip; None where it has none."""
        try:
            with zipfile.ZipFile(root) as archive:
                members = sorted(archive.namelist(), key=lambda path: (path.count("/"), path))
                for name in names:
                    for path in members:
                        if path.rpartition("/")[2] == name:
                            with archive.open(path) as stream:
                                return f"{root}/{path}", stream.read(LARGEST + 1)
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
            raise self._truth_error(str(error), str(root)) from None
        return None

    # ---- images --------------------------------------------------------------------------

    @cached_property
    def _training(self) -> Dataset | None:
        """The dataset that is trained on.

        Raises:
            InputError: there is no such dataset, or it cannot be trained on.
        """
        given = self.options.train
        if given is None:
            return None
        if isinstance(given, Mapping) and "protocol" in given:
            raise DatasetError(
                "all images of this dataset are trained on or validated with; its protocol has "
                "no meaning here",
                key="train.protocol",
                value=given["protocol"],
                hint="protocol: {validation_total: ...} beside train says how many validate",
            )
        try:
            training = open_dataset(given, home=self.home)
            if isinstance(training, LandmarkDataset):
                raise DatasetError("a landmark benchmark has no labels to train on", value=given)
            training.index()
        except InputError as error:
            raise error.located(prefix="train") from None
        return training

    @cached_property
    def _tree(self) -> Tree:
        """Query images, then gallery images, in the order of the ground truth."""
        truth, listing = self.truth, self._files.listing(["jpg"])
        if not listing.paths:
            listing = self._files.listing()
        places: dict[str, list[int]] = {}
        for number, path in enumerate(listing.paths):
            places.setdefault(path.rpartition("/")[2].rpartition(".")[0], []).append(number)
        wanted = [*truth.queries, *truth.gallery]
        if missing := [name for name in wanted if name not in places]:
            raise self._files.error(
                f"{len(missing)} of the {len(wanted)} images that the ground truth lists are "
                f"missing, the first: '{missing[0]}.jpg'"
            )
        if twice := next((name for name in wanted if len(places[name]) > 1), None):
            first, second = (listing.paths[number] for number in places[twice][:2])
            raise self._files.error(
                f"there are two images {twice!r}: {first!r} and {second!r}",
                hint="give the folder of one of them as root",
            )
        chosen = [places[name][0] for name in wanted]
        sizes, crcs = [listing.sizes[n] for n in chosen], [listing.crcs[n] for n in chosen]
        keys = self._keys("query", truth.queries) + self._keys("gallery", truth.gallery)
        unlisted = len(listing.paths) - len(chosen)
        index = DatasetIndex(
            keys=keys,
            labels=np.full(len(keys), -1, dtype=np.int64),
            classes=[],
            fingerprint=fingerprint(keys, sizes, crcs),
            ignored={"not in the ground truth": unlisted} if unlisted else {},
        )
        return Tree(index, [listing.paths[n] for n in chosen], crcs, sizes)

    @staticmethod
    def _keys(role: str, names: Sequence[str]) -> list[str]:
        return [f"{role}/{name}" for name in names]

    def load_index(self) -> DatasetIndex:
        """List query images, gallery images, and those of the dataset that is trained on.

        Query and gallery images have the label -1, or no label where training images have
        several: what they show is in the ground truth alone.

        Raises:
            DatasetError: ground truth or images are missing, damaged, or of another benchmark.
        """
        own, training = self._tree.index, self._training
        trained = None if training is None else training.index()
        marks: list[Any] = [own.fingerprint, self.truth.digest(), self.options.crop_queries]
        if training is not None and trained is not None:
            marks += [training.name, training.version, trained.fingerprint, trained.classes]
        mark = hashlib.sha256(json.dumps(marks).encode()).hexdigest()
        if trained is None:
            return DatasetIndex(own.keys, own.labels, [], mark, own.ignored)
        shape = (len(own.keys), *trained.labels.shape[1:])
        without = np.full(shape, 0 if trained.multi_label else -1, dtype=trained.labels.dtype)
        return DatasetIndex(
            keys=own.keys + self._keys("train", trained.keys),
            labels=np.concatenate([without, trained.labels]),
            classes=trained.classes,
            fingerprint=mark,
            ignored={
                **own.ignored,
                **{f"{why} (train)": count for why, count in trained.ignored.items()},
            },
        )

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """Open root and training dataset; queries are cut out of their images."""
        tree, truth, crop = self._tree, self.truth, self.options.crop_queries
        with ExitStack() as stack:
            whole = stack.enter_context(tree_decoder(self._files, tree))
            trained = (
                None
                if self._training is None
                else stack.enter_context(self._training.open_decoder())
            )

            def decode(number: int) -> NDArray[np.uint8]:
                if number >= len(tree.paths):
                    assert trained is not None
                    return trained(number - len(tree.paths))
                image = whole(number)
                if number < len(truth.queries) and crop:
                    box = truth.landmarks[number].box
                    assert box is not None
                    return _cropped(image, box, tree.paths[number])
                return image

            yield decode

    def image_options(self) -> dict[str, Any]:
        """Return the size of stored images, and whether queries are cropped."""
        return {**super().image_options(), "crop_queries": self.options.crop_queries}

    # ---- protocol ------------------------------------------------------------------------

    def default_protocol(self) -> Protocol:
        """Queries and gallery as the ground truth lists them; training images apart."""
        return Protocol(id=self.name, listed=True, train_apart=True)

    def listed_splits(self) -> Mapping[str, Sequence[str]]:
        """Return the keys of queries, gallery and all training images."""
        training = self._training
        return {
            "query": self._keys("query", self.truth.queries),
            "gallery": self._keys("gallery", self.truth.gallery),
            "train": [] if training is None else self._keys("train", training.index().keys),
        }

    @cached_property
    def _own_splits(self) -> Splits:
        index, given, protocol = self.index(), self.options.protocol, self.protocol
        if protocol.at != "all":
            raise self._refused_cut_off(protocol.at, "protocol.at")
        there = set(index.keys)
        listed = self.listed_splits()
        judged = [*listed["query"], *listed["gallery"]]
        if excluded := [key for key in judged if key not in there]:
            raise DatasetError(
                f"leaves out {len(excluded)} images that the ground truth ranks, the first is "
                f"{excluded[0]!r}; only training images can be left out",
                key="exclude",
                value=self.options.exclude,
            )
        rows = np.arange(len(index.keys), dtype=np.int64)
        query, gallery = rows[: len(listed["query"])], rows[len(listed["query"]) : len(judged)]
        if given.split_file is not None:
            splits = super().splits()
            for role, wanted in (("query", query), ("gallery", gallery)):
                if not np.array_equal(getattr(splits, role), wanted):
                    raise DatasetError(
                        f"its {role} images are not those of the ground truth; a split file can "
                        "change training and validation images only",
                        key="protocol.split_file",
                        value=given.split_file,
                    )
            return splits
        trained = rows[len(judged) :]
        if not len(trained):
            return Splits(trained, trained, trained, query, gallery)
        validation = protocol.validation_total or max(1, min(_VALIDATION, len(trained) // 10))
        beside = protocol.validation_gallery_total or 0
        if validation + beside >= len(trained):
            raise DatasetError(
                f"dataset {self.name!r}: {len(trained)} training images do not suffice for "
                f"{validation + beside} to validate with",
                key="protocol.validation_total",
                value=given.validation_total,
            )
        drawn = permutation(protocol.split_seed, f"validation {self.name}", len(trained))
        order = trained[drawn]
        train = np.sort(order[validation + beside :])
        return Splits(
            train=train,
            validation_query=np.sort(order[:validation]),
            validation_gallery=np.sort(order[validation : validation + beside])
            if beside
            else train,
            query=query,
            gallery=gallery,
        ).check(self.name, index.keys, train_apart=True)

    def splits(self) -> Splits:
        """Return rows by role; those of training and validation are empty without ``train``.

        Validation queries are drawn from the training dataset, a tenth of it and at most 1,000,
        and ranked against the training images, or with ``protocol.validation_gallery_total``
        against that many that are set apart.

        Raises:
            DatasetError: an image of the ground truth is left out, a split file has other
                queries or another gallery, a cut-off is given, or training images are too few.
        """
        return self._own_splits

    def _refused_cut_off(self, at: int | str, key: str | None) -> DatasetError:
        return DatasetError(
            f"{self.title} is scored over the whole ranking; leave out the cut-off or give 'all'",
            key=key,
            value=at,
        )

    def check_study(self, *, at: int | str | None, legacy: Sequence[str] = ()) -> None:
        """Refuse a study without training images, with a cut-off, or with literature modes.

        Raises:
            DatasetError: any of these.
        """
        if legacy:
            raise DatasetError(
                f"{self.title} has its own mAP; leave out evaluate.legacy, whose conventions are "
                "those of datasets with labels",
                value=list(legacy),
            )
        if at not in (None, "all"):
            raise self._refused_cut_off(at or "all", None)
        if self._training is None:
            raise DatasetError(
                f"{self.title} has no training images of its own; a study needs a dataset to "
                "train on",
                key="train",
                value=None,
                hint="for example train: {folder: /data/landmarks}, with a folder a landmark",
            )

    # ---- scores --------------------------------------------------------------------------

    def score(
        self, query_codes: NDArray[np.uint8], gallery_codes: NDArray[np.uint8], bits: int
    ) -> LandmarkEvaluation:
        """Score a Hamming ranking; ``map`` is the expected mAP of Medium.

        Args:
            query_codes: (Q, ceil(B / 8)) packed codes, in the order of the ground truth.
            gallery_codes: (N, ceil(B / 8)) packed codes, likewise.
            bits: B.
        """
        return evaluate_landmarks(query_codes, gallery_codes, self.truth.landmarks, bits)

    def score_embeddings(
        self,
        query: NDArray[np.floating[Any]],
        gallery: NDArray[np.floating[Any]],
        mode: Literal["cosine", "asymmetric"],
    ) -> float:
        """Return the expected mAP of Medium of a ranking by continuous codes."""
        return evaluate_landmark_embeddings(query, gallery, self.truth.landmarks, mode).map


def _cropped(
    image: NDArray[np.uint8], box: tuple[float, float, float, float], path: str
) -> NDArray[np.uint8]:
    """Cut a box out of an image, its edges rounded to whole pixels as Pillow rounds them.

    Raises:
        DatasetError: much of the box is not in the image.
    """
    height, width = image.shape[:2]
    left, top, right, lower = map(round, box)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(lower, height)
    inside = max(x1 - x0, 0) * max(y1 - y0, 0)
    if inside < max(_INSIDE * (right - left) * (lower - top), 1):
        raise DatasetError(
            f"{path} (its box {left}, {top}, {right}, {lower} does not lie in its {width} x "
            f"{height} pixels; was it resized?)"
        )
    return image[y0:y1, x0:x1]
