"""Image files of a folder or a zip: listed, fingerprinted and read without unpacking anything.

A folder and a zip of the same files have the same fingerprint: the SHA-256 of the sorted names,
sizes and CRC-32 of the files, which a zip's directory already holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from retrieval.errors import DatasetError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))


@dataclass(frozen=True)
class Entry:
    """One file: its path below the root, size in bytes, and CRC-32."""

    path: str
    size: int
    crc: int


@dataclass
class ImageFiles:
    """The image files below a root.

    Attributes:
        root: the folder or zip.
        entries: sorted by path.
        folders: every folder below the root, to notice those without an image.
        ignored: files that are no images.
    """

    root: Path
    entries: list[Entry]
    folders: set[str] = field(default_factory=set)
    ignored: int = 0
    _local: threading.local = field(default_factory=threading.local, repr=False)

    @cached_property
    def _top(self) -> int:
        """Characters of the folder that holds all images, which zips often have and roots not."""
        folders = {e.path.rpartition("/")[0] for e in self.entries}
        common = posixpath.commonpath(folders) if len(folders) > 1 else ""
        return len(common) + 1 if common else 0

    def keys(self) -> list[str]:
        """Return the images' names below the folder that holds them all."""
        return [e.path[self._top :] for e in self.entries]

    def folders_below(self) -> set[str]:
        """Return the folders below the folder that holds all images, as in :meth:`keys`."""
        top = self.entries[0].path[: self._top]
        return {f[self._top :] for f in self.folders if f.startswith(top) and f[self._top :]}

    def fingerprint(self) -> str:
        """Return the SHA-256 of names, sizes and checksums."""
        listed = zip(self.keys(), self.entries, strict=True)
        text = "".join(f"{key}\0{e.size}\0{e.crc:08x}\n" for key, e in listed)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, number: int) -> bytes:
        """Return the bytes of one file; safe from several threads.

        Raises:
            DatasetError: the file is gone or damaged.
        """
        entry = self.entries[number]
        try:
            if self.root.is_dir():
                return (self.root / entry.path).read_bytes()
            if not hasattr(self._local, "zip"):
                self._local.zip = zipfile.ZipFile(self.root)
            data: bytes = self._local.zip.read(entry.path)
            return data
        except (OSError, zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise DatasetError(f"{entry.path} ({error})") from None


def list_images(root: Path, cache: Path) -> ImageFiles:
    """List the images of a folder or zip; hidden files and folders are passed over.

    Args:
        root: a folder or a .zip.
        cache: folder in which checksums of folders' files are kept, so that a plan of an unchanged
            dataset reads no image.

    Raises:
        DatasetError: no such folder or zip, no image in it, or a path that leads out of it.
    """
    if not root.exists():
        raise DatasetError("no such file or folder", key="root", value=str(root))
    files = _list_folder(root, cache) if root.is_dir() else _list_zip(root)
    if not files.entries:
        raise DatasetError("there is no image in it", key="root", value=str(root))
    return files


def _list_zip(root: Path) -> ImageFiles:
    try:
        with zipfile.ZipFile(root) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DatasetError(f"no folder and no zip: {error}", key="root", value=str(root)) from None
    entries, folders, ignored = [], set[str](), 0
    for member in members:
        name = member.filename
        parts = name.split("/")
        if parts[0] == "" or ".." in parts or "\\" in name:
            raise DatasetError(
                f"the member {name!r} leads out of the archive",
                key="root",
                value=str(root),
            )
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if member.is_dir():
            folders.add(name.rstrip("/"))
        elif posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            entries.append(Entry(name, member.file_size, member.CRC))
        else:
            ignored += 1
    return ImageFiles(root, sorted(entries, key=lambda e: e.path), folders, ignored)


def _list_folder(root: Path, cache: Path) -> ImageFiles:
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    memory = cache / f"files-{name}.json"
    known = _load_memory(memory)
    entries, folders, ignored, fresh = [], set[str](), 0, {}
    changed = False
    prefix = f"{root}{os.sep}"
    for path, stat in _walk(str(root), root.resolve(), prefix, folders):
        if posixpath.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
            ignored += 1
            continue
        relative = path[len(prefix) :]
        mark = [stat.st_size, stat.st_mtime_ns]
        old = known.get(relative)
        if old is not None and old[:2] == mark:
            crc = int(old[2])
        else:
            crc, changed = _crc(Path(path)), True
        fresh[relative] = [*mark, crc]
        entries.append(Entry(relative, stat.st_size, crc))
    if changed or len(fresh) != len(known):
        _save_memory(memory, fresh)
    return ImageFiles(root, sorted(entries, key=lambda e: e.path), folders, ignored)


def _walk(
    folder: str, root: Path, prefix: str, folders: set[str]
) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda entry: entry.name)
    for entry in children:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            raise DatasetError(
                f"the link {entry.path!r} leads out of the dataset's folder", key="root"
            )
        if entry.is_dir():
            folders.add(entry.path[len(prefix) :])
            yield from _walk(entry.path, root, prefix, folders)
        elif entry.is_file():
            yield entry.path, entry.stat()


def _crc(path: Path) -> int:
    crc = 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                crc = zlib.crc32(chunk, crc)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}", key="root") from None
    return crc


def _load_memory(path: Path) -> dict[str, list[int]]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # nothing known, or torn: the checksums are computed again
    if not isinstance(raw, dict):
        return {}
    return {k: v for k, v in raw.items() if isinstance(v, list) and len(v) == 3}


def _save_memory(path: Path, known: dict[str, list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_text(json.dumps(known))
    temporary.replace(path)
