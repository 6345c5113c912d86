"""Anybody's images: files, folders and zips, in one order, by names that stay the same."""

from __future__ import annotations

import glob
import lzma
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.datasets.files import is_hidden, is_image
from retrieval.errors import DatasetError, InputError
from retrieval.images import decode_bytes

KEY = "IMAGES"

_LARGEST = 1 << 29
"""Bytes of the largest image file that is read."""

_OTHERS = (RuntimeError, NotImplementedError, KeyError, EOFError, ValueError)


@dataclass(frozen=True)
class Photo:
    """One image file.

    Attributes:
        name: what it is called in results: the path as given, with what lies below it.
        container: the file, or the zip that it lies in; absolute.
        member: its path in the zip, "" of a file.
        bytes: its length.
        stamp: when it was changed, in nanoseconds; of a zip's member its CRC-32.
    """

    name: str
    container: str
    member: str
    bytes: int
    stamp: int


def find_photos(given: Sequence[str]) -> list[Photo]:
    """List images in the order given, and by path within a folder, pattern or zip.

    Args:
        given: files, whatever their names end with; folders, with all that lies below, and zips,
            of which files with an image's ending are taken and hidden ones are not; patterns with
            ``*``, ``?``, ``[`` and ``**``.

    Returns:
        One of each name.

    Raises:
        InputError: there is no such file, or no image in it.
    """
    found: dict[str, Photo] = {}
    for text in given:
        some = list(_expand(text))
        if not some:
            raise InputError("there is no image in it", key=KEY, value=text)
        for photo in some:
            if not _is_text(photo.name) or not _is_text(photo.container):
                raise InputError("this file's name is no UTF-8 text", key=KEY, value=photo.name)
            found.setdefault(photo.name, photo)
    return list(found.values())


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expand(text: str) -> Iterator[Photo]:
    path = Path(text).expanduser()
    try:
        there = path.exists()
    except OSError:  # a name that is too long
        there = False
    if there:
        yield from _at(path)
        return
    # Path.glob takes no absolute pattern.
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(text) else []  # noqa: PTH207
    if not matches:
        raise InputError("no such file or folder", key=KEY, value=text)
    for match in matches:
        # A pattern names folders beside the images in them.
        if Path(match).is_file() and is_image(match):
            yield from _at(Path(match))


def _at(path: Path) -> Iterator[Photo]:
    if path.is_dir():
        yield from _below(path)
    elif path.suffix.lower() == ".zip":
        yield from _members(path)
    elif path.is_file():
        yield _file(path)
    else:
        raise InputError("is no file and no folder", key=KEY, value=str(path))


def _file(path: Path) -> Photo:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", key=KEY, value=str(path)) from None
    return Photo(str(path), str(path.absolute()), "", status.st_size, status.st_mtime_ns)


def _below(folder: Path) -> Iterator[Photo]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"cannot be listed: {error.strerror}", key=KEY, value=str(error.filename)
        ) from None

    paths = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        paths += [Path(here) / name for name in files if is_image(name) and not is_hidden(name)]
    for path in sorted(paths, key=lambda path: path.relative_to(folder).parts):
        if path.is_file():  # a broken link is none
            yield _file(path)


def _members(path: Path) -> Iterator[Photo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"is no whole zip: {error}", key=KEY, value=str(path)) from None
    for member in sorted(members, key=lambda member: member.filename.split("/")):
        parts = member.filename.split("/")
        if is_image(member.filename) and not any(map(is_hidden, parts)):
            name = f"{path}/{member.filename}"
            where = str(path.absolute())
            yield Photo(name, where, member.filename, member.file_size, member.CRC)


class PhotoReader:
    """Reads photos, from several threads; a context manager that closes the zips it opened."""

    def __init__(self) -> None:
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._open = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def read(self, photo: Photo) -> NDArray[np.uint8]:
        """Return an image (H, W, 3) uint8, upright.

        Raises:
            DatasetError: it cannot be read or decoded; its name is in the message.
        """
        return decode_bytes(self._bytes(photo), photo.name)

    def _bytes(self, photo: Photo) -> bytes:
        if photo.bytes > _LARGEST:
            raise DatasetError(f"{photo.name} ({photo.bytes:,} bytes, at most {_LARGEST:,})")
        try:
            if not photo.member:
                with Path(photo.container).open("rb") as stream:
                    return stream.read(_LARGEST)
            with self._zip(photo.container).open(photo.member) as member:
                return member.read(_LARGEST)
        except OSError as error:
            raise DatasetError(f"{photo.name} ({error.strerror or error})") from None
        # Of a damaged, encrypted or missing member; each way of packing has its own errors.
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, *_OTHERS) as error:
            raise DatasetError(f"{photo.name} ({error})") from None

    def _zip(self, path: str) -> zipfile.ZipFile:
        with self._lock:
            if path not in self._zips:
                self._zips[path] = self._open.enter_context(zipfile.ZipFile(path))
            return self._zips[path]
