"""A gallery to search in: the study's own, or one that was built from anybody's images.

    index.json           what it is of, and the digest of every other file; written last
    codes-0000.npy       packed codes (n, ceil(B / 8)) of a part
    names-0000.parquet   what each row is: name, container, member, bytes, stamp of a photo; row of
                         a member of the dataset
    building/            a part in work, chunk by chunk; what is done of it is not done again

Parts are added and never changed, so that whoever reads it has all of a state or none. It is built
by `orchestrator.serving.building`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import StoreCorrupt
from orchestrator.serving.photos import Photo, PhotoReader
from orchestrator.serving.trained import TrainedTrial
from orchestrator.store import file_digest, read_json
from retrieval.errors import InputError
from retrieval.images import square
from retrieval.ranking import check_packed

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
"""Version of the files."""

KEY = "--index"

MANIFEST, BUILDING, PLAN = "index.json", "building", "plan.json"

_LARGEST_SHOWN = 512
"""Pixels of the longer side of an image that is shown."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Strict):
    """A file of an index."""

    name: str = Field(pattern=r"^(codes|names)-\d{4}\.(npy|parquet)$")
    sha256: str
    bytes: int


class Part(_Strict):
    """What was added at a time.

    Attributes:
        codes: packed.
        names: of the same rows.
        images: that there are.
        plan: digest of what was asked for.
        skipped: name and reason of the images that could not be read.
    """

    codes: File
    names: File
    images: int = Field(ge=0)
    plan: str
    skipped: list[dict[str, str]]


class Network(_Strict):
    """What made the codes; sizes in pixels."""

    backbone: str
    size: int
    stored_size: int
    weights: str


class Manifest(_Strict):
    """What a gallery's index.json says.

    Attributes:
        format: version of the files.
        bits: B.
        images: in all parts.
        trial: that it was built with; others whose gallery network is the same search in it too.
        network: of the gallery's side.
        parts: in the order of their rows.
    """

    format: int
    bits: int
    images: int
    trial: dict[str, str]
    network: Network
    parts: list[Part]


# ---- reading -----------------------------------------------------------------------------------


class Gallery:
    """Codes, names and images of what is searched in.

    Args:
        trained: a trial whose gallery network made the codes.
        codes: packed, part after part.
        names: of the same rows; None is the study's own gallery.

    Attributes:
        codes: as given.
    """

    def __init__(
        self,
        trained: TrainedTrial,
        codes: list[NDArray[np.uint8]],
        names: pyarrow.Table | None = None,
    ) -> None:
        self.trained = trained
        self.codes = codes
        self._names = names

    def __len__(self) -> int:
        return sum(map(len, self.codes))

    @functools.cached_property
    def _rows(self) -> NDArray[np.int64]:
        return self.trained.rows("gallery")

    def member(self, row: int) -> int | None:
        """Return the row of the dataset that an item is; None of one's own image."""
        if self._names is None:
            return int(self._rows[row])
        found: int | None = self._names["row"][row].as_py()
        return found

    def name(self, row: int) -> str:
        """Return what an item is called: the image's path as it was given, or the dataset's key.

        Raises:
            IndexError: there is no such row.
        """
        if self._names is not None:
            return str(self._names["name"][row].as_py())
        return self.trained.dataset.index().keys[int(self._rows[row])]

    def code(self, row: int) -> NDArray[np.uint8]:
        """Return an item's packed code (ceil(B / 8),)."""
        for part in self.codes:
            if row < len(part):
                code: NDArray[np.uint8] = part[row]
                return code
            row -= len(part)
        raise IndexError(row)

    def classes(self, row: int) -> list[str] | None:
        """Return the names of an item's classes, where they are known."""
        member = self.member(row)
        return None if member is None else classes_of(self.trained, member)

    def relevant(self, rows: NDArray[np.int64], classes: list[str] | None) -> int | None:
        """Return how many items have one of the classes; None where theirs are not known.

        Args:
            rows: (n,) of the gallery.
            classes: names; None, and names that its dataset does not have, are not known either.
        """
        if self._names is None:
            members = self._rows[rows]
        else:
            column = self._names["row"].take(rows)
            if column.null_count:
                return None
            members = column.to_numpy()
        index = self.trained.dataset.index()
        wanted = [index.classes.index(name) for name in classes or () if name in index.classes]
        if not wanted:
            return None
        labels = np.asarray(index.labels)[members]
        has = labels[:, wanted].any(axis=1) if index.multi_label else np.isin(labels, wanted)
        return int(has.sum())

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return an item's image (H, W, 3) uint8, not longer than 512 pixels.

        Raises:
            DatasetError: it is gone or cannot be read any more.
        """
        member = self.member(row)
        if member is not None:
            return dataset_image(self.trained, member)
        assert self._names is not None
        values = {name: self._names[name][row].as_py() for name in ("name", "container", "member")}
        with PhotoReader() as reader:
            return shrunk(reader.read(Photo(**values, bytes=0, stamp=0)))


def study_gallery(trained: TrainedTrial) -> Gallery:
    """Return the gallery that the trial was scored with; nothing is encoded."""
    return Gallery(trained, [trained.codes("gallery")])


def open_gallery(folder: Path, trained: TrainedTrial) -> Gallery:
    """Open a gallery that was built, after checking the digest of every file.

    Args:
        folder: where it lies.
        trained: a trial with the gallery network that it was built with.

    Raises:
        InputError: there is none, it is unfinished, or of another network.
        StoreCorrupt: a file is not what was written.
    """
    import pyarrow
    import pyarrow.parquet

    found = read_manifest(folder)
    if found is None:
        unfinished = (folder / BUILDING / PLAN).is_file()
        raise InputError(
            "this index is not finished; the command that was building it goes on from there"
            if unfinished
            else "there is no index in this folder",
            key=KEY,
            value=str(folder),
            hint=None if unfinished else "asymbench index TRIAL IMAGES... -o FOLDER builds one",
        )
    check_network(found, trained, folder, KEY)
    codes, names = [], []
    for part in found.parts:
        some = np.load(checked_file(folder, part.codes), mmap_mode="r", allow_pickle=False)
        try:
            check_packed(some, found.bits, "the codes")
        except ValueError as error:
            raise _corrupt(folder, str(error)) from None
        table = pyarrow.parquet.read_table(checked_file(folder, part.names))
        if not len(some) == len(table) == part.images:
            raise _corrupt(folder, "codes and names are not equally many")
        codes.append(some)
        names.append(table)
    if sum(map(len, codes)) != found.images:
        raise _corrupt(folder, "parts are missing")
    return Gallery(trained, codes, pyarrow.concat_tables(names))


def read_manifest(folder: Path) -> Manifest | None:
    """Return what a folder's index.json says; None where there is none.

    Raises:
        StoreCorrupt: it is not what was written.
        InputError: it was written by another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("format") != FORMAT and "parts" in raw:
        raise InputError(
            f"this index has format {raw.get('format')!r}, and this version reads {FORMAT}",
            key=KEY,
            value=str(folder),
            hint="build it again",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _corrupt(folder, f"{MANIFEST}: {where}: {first['msg']}") from None


def checked_file(folder: Path, file: File) -> Path:
    """Return where a file of an index lies.

    Raises:
        StoreCorrupt: it is not what was written.
    """
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.bytes or file_digest(path) != file.sha256:
        raise _corrupt(folder, f"{file.name} does not have the bytes that were written")
    return path


def _corrupt(folder: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(f"the index {folder} is damaged: {why}; remove it and build it again")


def check_network(found: Manifest, trained: TrainedTrial, folder: Path, key: str) -> None:
    """Refuse an index of another gallery network than the trial's.

    Raises:
        InputError: it is.
    """
    side = trained.side("gallery")
    same = found.network.weights == side.weights_digest and found.bits == trained.bits
    if not same:
        raise InputError(
            f"this index is of {found.trial.get('label')}; {trained.trial.label} has another "
            "gallery network, whose codes mean something else",
            key=key,
            value=str(folder),
        )


# ---- images that are shown ---------------------------------------------------------------------


def dataset_image(trained: TrainedTrial, row: int) -> NDArray[np.uint8]:
    """Return an image of the dataset as it is stored, (S, S, 3) uint8."""
    return np.array(trained.dataset.images().array[row])


def classes_of(trained: TrainedTrial, row: int) -> list[str]:
    """Return the names of the classes of an image of the dataset."""
    index = trained.dataset.index()
    label = np.asarray(index.labels[row])
    numbers = np.flatnonzero(label) if index.multi_label else [int(label)]
    # Ground truth of landmarks is no class; its labels are -1 or beyond the names.
    return [index.classes[n] for n in numbers if 0 <= n < len(index.classes)]


def shrunk(image: NDArray[np.uint8], largest: int = _LARGEST_SHOWN) -> NDArray[np.uint8]:
    """Return an image with its longer side at most ``largest`` pixels."""
    height, width = image.shape[:2]
    scale = largest / max(height, width)
    if scale >= 1:
        return image
    if min(height, width) * scale < 1:  # a line; shown as a square of its middle
        return square(image, min(height, width))
    from PIL import Image

    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BICUBIC))
