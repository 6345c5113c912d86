"""A gallery to search in: the study's own, or one that was built from anybody's images.

    index.json           what it is of, and the digest of every other file; written last
    codes-0000.npy       packed codes (n, ceil(B / 8)) of a part
    names-0000.parquet   what each row is: name, container, member, row of the dataset
    building/            a part in work, chunk by chunk; what is done of it is not done again

Parts are added and never changed, so that whoever reads it has all of a state or none.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import StoreCorrupt
from orchestrator.serving.encoding import encode_photos, save_array, trial_note
from orchestrator.serving.photos import Photo, PhotoReader
from orchestrator.serving.trained import BATCH_SIZE, TrainedTrial
from orchestrator.store import digest, file_digest, read_json, write_json
from retrieval.atomic import open_atomic
from retrieval.codes import pack
from retrieval.errors import InputError
from retrieval.images import square
from retrieval.ranking import check_packed

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
"""Version of the files."""

KEY = "--index"

_CHUNK = 2 * BATCH_SIZE
"""Images from one saved state of a building to the next."""

_MANIFEST, _BUILDING, _PLAN = "index.json", "building", "plan.json"

_LARGEST_SHOWN = 512
"""Pixels of the longer side of an image that is shown."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _File(_Strict):
    name: str = Field(pattern=r"^(codes|names)-\d{4}\.(npy|parquet)$")
    sha256: str
    bytes: int


class _Part(_Strict):
    """What was added at a time: ``plan`` is the digest of what was asked for."""

    codes: _File
    names: _File
    images: int = Field(ge=0)
    plan: str
    skipped: list[dict[str, str]]


class _Network(_Strict):
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
    network: _Network
    parts: list[_Part]


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
        unfinished = (folder / _BUILDING / _PLAN).is_file()
        raise InputError(
            "this index is not finished; the command that was building it goes on from there"
            if unfinished
            else "there is no index in this folder",
            key=KEY,
            value=str(folder),
            hint=None if unfinished else "asymbench index TRIAL IMAGES... -o FOLDER builds one",
        )
    _check_network(found, trained, folder, KEY)
    codes, names = [], []
    for part in found.parts:
        some = np.load(_checked(folder, part.codes), mmap_mode="r", allow_pickle=False)
        try:
            check_packed(some, found.bits, "the codes")
        except ValueError as error:
            raise _corrupt(folder, str(error)) from None
        table = pyarrow.parquet.read_table(_checked(folder, part.names))
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
    path = folder / _MANIFEST
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
        raise _corrupt(folder, f"{_MANIFEST}: {where}: {first['msg']}") from None


def _checked(folder: Path, file: _File) -> Path:
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.bytes or file_digest(path) != file.sha256:
        raise _corrupt(folder, f"{file.name} does not have the bytes that were written")
    return path


def _corrupt(folder: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(f"the index {folder} is damaged: {why}; remove it and build it again")


def _check_network(found: Manifest, trained: TrainedTrial, folder: Path, key: str) -> None:
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


# ---- building ----------------------------------------------------------------------------------


def build_gallery(
    trained: TrainedTrial,
    photos: Sequence[Photo] | None,
    folder: Path,
    *,
    add: bool = False,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Manifest, int]:
    """Build a gallery, or go on with building it; killed at any time it loses a chunk at most.

    Args:
        trained: whose gallery network encodes.
        photos: the images; None takes the study's own gallery and encodes nothing.
        folder: where to; made, with the same bytes whatever was interrupted.
        add: add what is not in it yet, by name, to one that is there.
        batch_size: images in a forward pass.
        threads: of torch.
        skip_unreadable: go on without images that cannot be read, and list them.
        progress: called with the images done and all.

    Returns:
        What the index says now, and how many images were added.

    Raises:
        InputError: there is another index or are other files in the folder, the index is of
            another network, an image cannot be read, or another process is at it.
    """
    asked = _asked(trained, photos, batch_size)
    with _alone(folder):
        before = read_manifest(folder)
        if before is not None:
            _check_network(before, trained, folder, "--output")
            if any(part.plan == asked for part in before.parts):
                shutil.rmtree(folder / _BUILDING, ignore_errors=True)
                return before, 0
            if not add:
                raise InputError(
                    f"there is an index of {before.images} images already; --add adds others to "
                    "it",
                    key="--output",
                    value=str(folder),
                )
            photos = _new(photos, before, folder)
            if not photos:
                return before, 0
        number = len(before.parts) if before is not None else 0
        part = _Builder(trained, folder, asked, batch_size, threads, skip_unreadable, progress)
        made = part.build(photos, number)
        manifest = _manifest(trained, [*(before.parts if before else ()), made])
        write_json(folder / _MANIFEST, manifest.model_dump())
        shutil.rmtree(folder / _BUILDING, ignore_errors=True)
        return manifest, made.images


def _asked(trained: TrainedTrial, photos: Sequence[Photo] | None, batch_size: int) -> str:
    """Return the digest of what determines a part's bytes."""
    listed = None
    if photos is not None:
        listed = [[p.name, p.container, p.member, p.bytes, p.stamp] for p in photos]
    side = trained.side("gallery")
    return digest(
        {
            "format": FORMAT,
            "weights": side.weights_digest,
            "stage": side.stage.id,
            "bits": trained.bits,
            "batch_size": batch_size,
            "photos": listed,
        }
    )


def _new(photos: Sequence[Photo] | None, before: Manifest, folder: Path) -> list[Photo]:
    """Return the photos whose names are not in the index."""
    import pyarrow.parquet

    if photos is None:
        raise InputError("the study's own gallery is no addition; name images", key="--add")
    known: set[str] = set()
    for part in before.parts:
        path = _checked(folder, part.names)
        known.update(pyarrow.parquet.read_table(path, columns=["name"])["name"].to_pylist())
    return [photo for photo in photos if photo.name not in known]


def _manifest(trained: TrainedTrial, parts: list[_Part]) -> Manifest:
    side = trained.side("gallery")
    return Manifest(
        format=FORMAT,
        bits=trained.bits,
        images=sum(part.images for part in parts),
        trial=trial_note(trained),
        network=_Network(
            backbone=side.spec.backbone,
            size=side.size,
            stored_size=trained.stored_size,
            weights=side.weights_digest,
        ),
        parts=parts,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder that is an index, is becoming one, or is empty."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is no folder", key="--output", value=str(folder))
    if not folder.parent.is_dir():
        raise InputError(
            "there is no such folder to make one in", key="--output", value=str(folder)
        )
    folder.mkdir(exist_ok=True)
    ours = {_MANIFEST, _BUILDING, ".lock"}
    names = {path.name for path in folder.iterdir()}
    if names - ours and not names & {_MANIFEST, _BUILDING}:
        raise InputError(
            "there are other files in this folder; name one that is empty or does not exist",
            key="--output",
            value=str(folder),
        )
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            "another process is building this index", key="--output", value=str(folder)
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Builder:
    """One part in work."""

    def __init__(
        self,
        trained: TrainedTrial,
        folder: Path,
        asked: str,
        batch_size: int,
        threads: int | None,
        skip_unreadable: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.trained = trained
        self.folder = folder
        self.asked = asked
        self.batch_size = batch_size
        self.threads = threads
        self.skip_unreadable = skip_unreadable
        self.progress = progress
        self.building = folder / _BUILDING

    def build(self, photos: Sequence[Photo] | None, number: int) -> _Part:
        """Make a part's two files under the number; return what the manifest says of it."""
        skipped: list[dict[str, str]] = []
        if photos is None:
            codes = [self.trained.codes("gallery")]
            table = self._members()
        else:
            chunks = list(self._chunks(photos))
            codes = [np.load(self._path(n, "npy"), allow_pickle=False) for n, _ in chunks]
            kept = []
            for n, some in chunks:
                unread: list[dict[str, str]] = json.loads(self._path(n, "json").read_text())
                skipped += unread
                missing = {entry["image"] for entry in unread}
                kept += [photo for photo in some if photo.name not in missing]
            table = _table(kept)
        if not len(table):
            raise InputError("none of the images can be read", key="IMAGES")
        paths = [
            self.folder / f"codes-{number:04d}.npy",
            self.folder / f"names-{number:04d}.parquet",
        ]
        save_array(paths[0], np.concatenate(codes))
        _write_table(paths[1], table)
        files = [
            _File(name=path.name, sha256=file_digest(path), bytes=path.stat().st_size)
            for path in paths
        ]
        return _Part(
            codes=files[0],
            names=files[1],
            images=len(table),
            plan=self.asked,
            skipped=skipped,
        )

    def _path(self, chunk: int, ending: str) -> Path:
        return self.building / f"{chunk:06d}.{ending}"

    def _chunks(self, photos: Sequence[Photo]) -> Iterator[tuple[int, Sequence[Photo]]]:
        """Encode what is not done yet; yield each chunk when it is on the disk."""
        step = max(self.batch_size, _CHUNK // self.batch_size * self.batch_size)
        plan = {"asked": self.asked, "images": len(photos), "step": step}
        if read_json(self.building / _PLAN) != plan:
            shutil.rmtree(self.building, ignore_errors=True)
            self.building.mkdir()
            write_json(self.building / _PLAN, plan)
        with PhotoReader() as reader:
            for number, first in enumerate(range(0, len(photos), step)):
                some = photos[first : first + step]
                # The note is written last: where it is, the codes are.
                if not self._path(number, "json").is_file():
                    self._encode(number, some, reader, first, len(photos))
                elif self.progress is not None:
                    self.progress(first + len(some), len(photos))
                yield number, some

    def _encode(
        self, number: int, photos: Sequence[Photo], reader: PhotoReader, before: int, total: int
    ) -> None:
        def progress(done: int, _: int) -> None:
            if self.progress is not None:
                self.progress(before + done, total)

        encoded = encode_photos(
            self.trained.side("gallery"),
            photos,
            reader,
            batch_size=self.batch_size,
            threads=self.threads,
            skip_unreadable=self.skip_unreadable,
            progress=progress,
        )
        save_array(self._path(number, "npy"), pack(encoded.h))
        skipped = [{"image": name, "reason": why} for name, why in encoded.skipped]
        write_json(self._path(number, "json"), skipped)

    def _members(self) -> pyarrow.Table:
        """Return the names of the study's own gallery."""
        import pyarrow

        rows = self.trained.rows("gallery")
        keys = self.trained.dataset.index().keys
        return pyarrow.table(
            {
                "name": pyarrow.array([keys[row] for row in rows], pyarrow.string()),
                "container": pyarrow.nulls(len(rows), pyarrow.string()),
                "member": pyarrow.nulls(len(rows), pyarrow.string()),
                "row": pyarrow.array(rows, pyarrow.int64()),
            }
        )


def _table(photos: Sequence[Photo]) -> pyarrow.Table:
    import pyarrow

    columns: dict[str, Any] = {
        name: pyarrow.array([getattr(photo, name) for photo in photos], pyarrow.string())
        for name in ("name", "container", "member")
    }
    return pyarrow.table({**columns, "row": pyarrow.nulls(len(photos), pyarrow.int64())})


def _write_table(path: Path, table: pyarrow.Table) -> None:
    import pyarrow.parquet

    with open_atomic(path) as stream:
        pyarrow.parquet.write_table(table, stream)
