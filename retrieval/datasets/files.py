"""Images in a folder or a zip: listed fast, fingerprinted by content, never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import stat
import struct
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from retrieval.datasets.base import Dataset, DatasetIndex, RootedOptions
from retrieval.errors import DatasetError
from retrieval.images import DEFAULT_STORE_SIZE, Decoder, decode_bytes

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""Files with another ending are ignored, and counted."""

_SUFFIXES = tuple(sorted(IMAGE_SUFFIXES))

PARTS = frozenset({"train", "val", "valid", "validation", "test", "query", "gallery"})
"""Names of folders that hold parts of a dataset and not a class; the parts are pooled."""

_LARGEST = 1 << 29
"""Bytes of the largest image file that is read."""

_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read may change again within one clock tick."""

_CACHE_VERSION = 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_ZIP_BEGINS = b"PK\x03\x04"
"""The first bytes of a zip; its directory is at the end, which an unfinished download lacks."""


@dataclass(frozen=True)
class Listing:
    """What lies in a folder or a zip; the lists of files run in parallel, ordered by path.

    Attributes:
        paths: of image files, relative, with "/".
        sizes: in bytes.
        crcs: CRC-32 of the content.
        folders: all folders that are not hidden.
        ignored: reason -> number of files that are no images.
    """

    paths: list[str]
    sizes: list[int]
    crcs: list[int]
    folders: list[str]
    ignored: dict[str, int]


@dataclass(frozen=True)
class Children:
    """Names of what lies directly in a folder and is not hidden, in order.

    Attributes:
        folders: of folders.
        files: of files, images or not.
    """

    folders: list[str]
    files: list[str]


_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,  # a way of compression that Python does not know
    RuntimeError,
)
"""What reading a file or a member of a zip raises where it is gone or damaged."""

Reader = Callable[[str], bytes]
"""Path in a listing -> the file's bytes; raises OSError, or BadZipFile, or DatasetError."""


class Files(ABC):
    """A place with image files.

    Args:
        root: the folder or zip.
        name: the dataset's, for messages.
        home: where listings are kept.
        key: the option that says where it is, for messages.
    """

    def __init__(self, root: Path, name: str, home: Path, key: str = "root") -> None:
        self.root = root
        self.name = name
        self.home = home
        self.key = key

    @abstractmethod
    def listing(self, folders: Sequence[str] | None = None) -> Listing:
        """List the images.

        Args:
            folders: look into these only, as far as they are there; everywhere by default.

        Raises:
            DatasetError: unreadable, or a member that leads out of the place.
        """

    @abstractmethod
    def listing_of(self, paths: Sequence[str], kind: str) -> Listing:
        """List these files, as far as they are there, and look at no others.

        Args:
            paths: without "." and ".."; whatever their endings.
            kind: who asks; each keeps a listing of its own.

        Raises:
            DatasetError: one is unreadable, no regular file, or leads out of the place.
        """

    @abstractmethod
    def holds(self, path: str) -> bool:
        """Whether there is a file of this path."""

    @abstractmethod
    def children(self, folder: str = "") -> Children:
        """Return what lies directly in a folder; nothing where it is absent.

        Raises:
            DatasetError: unreadable, or a member that leads out of the place.
        """

    @abstractmethod
    def contents(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Read files that are no images, such as lists of labels, as far as they are there.

        Args:
            paths: without "." and "..".

        Raises:
            DatasetError: one is unreadable, no regular file, or leads out of the place.
        """

    @abstractmethod
    def documents(self, folder: str, suffix: str) -> dict[str, list[int]]:
        """Find files that are no images: with this suffix, in a folder of this name.

        The folder lies in the place itself or in a folder of it.

        Returns:
            Paths in order; with each what tells whether the file is still the same.

        Raises:
            DatasetError: unreadable, or a member that leads out of the place.
        """

    @abstractmethod
    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the place for reading from several threads."""

    def error(self, problem: str, **fields: Any) -> DatasetError:
        """Return an error about this place."""
        fields = {"key": self.key, "value": str(self.root), **fields}
        return DatasetError(f"dataset {self.name!r}: {problem}", **fields)


def open_files(
    root: Path, name: str, home: Path, *, follow_links: bool = False, key: str = "root"
) -> Files:
    """Return the folder or zip at ``root``, which the option ``key`` gives.

    Raises:
        DatasetError: there is none.
    """
    if root.is_dir():
        return _Folder(root, name, home, follow_links, key)
    if root.is_file() and zipfile.is_zipfile(root):
        return _Zip(root, name, home, key)
    place = "its root" if key == "root" else f"the folder or zip of {key}"
    what = _problem(root) if root.exists() else "does not exist"
    hint = (
        "unpack it first" if root.name.endswith((".tar", ".gz", ".tgz", ".7z", ".rar")) else None
    )
    raise DatasetError(f"dataset {name!r}: {place} {what}", key=key, value=str(root), hint=hint)


def _problem(root: Path) -> str:
    """Return why what is there is no folder or zip that can be read."""
    try:
        with root.open("rb") as stream:
            cut = stream.read(len(_ZIP_BEGINS)) == _ZIP_BEGINS
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "is a zip that is cut off or damaged" if cut else "is neither a folder nor a zip"


def is_settled(changed: int, read: int) -> bool:
    """Whether a file's times, in nanoseconds, tell if it changes again after it was read."""
    return changed + _SETTLED_NS < read


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left alone."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


# ---- a folder --------------------------------------------------------------------------------


class _Folder(Files):
    def __init__(
        self, root: Path, name: str, home: Path, follow_links: bool, key: str = "root"
    ) -> None:
        super().__init__(root.resolve(), name, home, key)
        self.follow_links = follow_links

    def listing(self, folders: Sequence[str] | None = None) -> Listing:
        seen = self._walk(folders)
        kind = f"folder-{self.follow_links}"
        if folders is not None:
            kind = "/".join([kind, *folders])
        return self._summed(seen, kind)

    def listing_of(self, paths: Sequence[str], kind: str) -> Listing:
        return self._summed(self._look_at(paths), f"listed-{self.follow_links}/{kind}")

    def holds(self, path: str) -> bool:
        return (self.root / path).is_file()

    def _summed(self, seen: _Seen, kind: str) -> Listing:
        """Return what was seen with checksums, which are read only of what changed."""
        cache = ListingCache(self.home, self.root, kind)
        known = cache.read()
        if known.get("stamps") == seen.stamps and known["listing"]["folders"] == seen.folders:
            return Listing(**{**known["listing"], "ignored": dict(seen.ignored)})
        old: dict[str, tuple[tuple[int, ...], int]] = {}
        if known:
            kept = known["listing"]
            stamps = zip(*known["stamps"], strict=True)
            old = dict(zip(kept["paths"], zip(stamps, kept["crcs"], strict=True), strict=True))
        started = time.time_ns()
        crcs = self._crcs(seen.paths, list(zip(*seen.stamps, strict=True)), old)
        listing = Listing(seen.paths, seen.stamps[0], crcs, seen.folders, dict(seen.ignored))
        # A file that changed just before it was read may change again within one tick of the
        # clock; its stamp is not kept, so that it is read again the next time.
        good = [is_settled(max(m, c), started) for _, m, c in zip(*seen.stamps, strict=True)]
        trusted = [
            [value if kept else -1 for value, kept in zip(column, good, strict=True)]
            for column in seen.stamps
        ]
        cache.write({"listing": asdict(listing), "stamps": trusted})
        return listing

    def children(self, folder: str = "") -> Children:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if not is_hidden(entry.name):
                        (folders if entry.is_dir() else files).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise self.error(f"cannot be listed: {error.strerror} ({error.filename})") from None
        return Children(sorted(folders), sorted(files))

    def contents(self, paths: Sequence[str]) -> dict[str, bytes]:
        try:
            return {path: self._bytes(path) for path in self._look_at(paths).paths}
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror} ({error.filename})") from None

    def documents(self, folder: str, suffix: str) -> dict[str, list[int]]:
        found = {}
        try:
            for pattern in (f"{folder}/*{suffix}", f"*/{folder}/*{suffix}"):
                for path in self.root.glob(pattern):
                    relative = path.relative_to(self.root).as_posix()
                    if any(map(is_hidden, relative.split("/"))):
                        continue
                    self._check_link(relative, str(path))
                    if path.is_file():
                        status = path.stat()
                        stamps = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
                        found[relative] = stamps
        except OSError as error:
            raise self.error(f"cannot be listed: {error.strerror} ({error.filename})") from None
        return dict(sorted(found.items()))

    def _walk(self, folders: Sequence[str] | None) -> _Seen:
        seen = _Seen()
        pending = [("", str(self.root))]
        if folders is not None:
            there = [folder for folder in folders if (self.root / folder).is_dir()]
            for folder in there:
                self._check_link(folder, f"{self.root}/{folder}")
            pending = [(f"{folder}/", f"{self.root}/{folder}") for folder in there]
        visited = {str(self.root), *(os.path.realpath(folder) for _, folder in pending)}
        while pending:
            relative, folder = pending.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        name = entry.name
                        path = relative + name
                        # The usual case, tested in the cheapest way: there may be 100,000s.
                        if (
                            name.endswith(_SUFFIXES)
                            and name[0] != "."
                            and entry.is_file(follow_symlinks=False)
                        ):
                            seen.add(path, entry.stat())
                            continue
                        if is_hidden(name):
                            seen.ignored["hidden"] += 1
                            continue
                        link = entry.is_symlink()
                        if link:
                            self._check_link(path, entry.path)
                        if entry.is_dir():
                            if link:
                                real = os.path.realpath(entry.path)
                                if real in visited or str(self.root).startswith(f"{real}/"):
                                    raise self.error(f"the link {path!r} leads round in a circle")
                                visited.add(real)
                            seen.folders.append(path)
                            pending.append((f"{path}/", entry.path))
                        elif not is_image(name):
                            seen.ignored["not an image"] += 1
                        elif not entry.is_file():
                            raise self.error(f"{path!r} is no regular file")
                        else:
                            seen.add(path, entry.stat())
            except OSError as error:
                raise self.error(f"cannot be listed: {error.strerror} ({folder})") from None
        seen.sort()
        return seen

    def _look_at(self, paths: Sequence[str]) -> _Seen:
        """Look at these files; absent ones are not among what is seen."""
        for folder in {path.rpartition("/")[0] for path in paths} - {""}:
            full = f"{self.root}/{folder}"
            if os.path.realpath(full) != full and (self.root / folder).is_dir():
                self._check_link(folder, full)

        def status(path: str) -> os.stat_result | None:
            full = f"{self.root}/{path}"
            try:
                found = os.lstat(full)
                if stat.S_ISLNK(found.st_mode):
                    self._check_link(path, full)
                    found = Path(full).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not stat.S_ISREG(found.st_mode):
                raise self.error(f"{path!r} is no regular file")
            return found

        def some(first: int) -> list[tuple[str, os.stat_result]]:
            looked = ((path, status(path)) for path in paths[first : first + 256])
            return [(path, found) for path, found in looked if found is not None]

        seen = _Seen()
        try:
            with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
                for block in pool.map(some, range(0, len(paths), 256)):
                    for path, found in block:
                        seen.add(path, found)
        except OSError as error:
            raise self.error(f"cannot be listed: {error.strerror} ({error.filename})") from None
        seen.sort()
        return seen

    def _check_link(self, path: str, full: str) -> None:
        real = Path(os.path.realpath(full))
        if not self.follow_links and not real.is_relative_to(self.root):
            raise self.error(
                f"the link {path!r} leads out of the folder",
                hint="set follow_links: true if that is meant",
            )
        if not real.exists():
            raise self.error(f"the link {path!r} leads nowhere")

    def _crcs(
        self,
        paths: Sequence[str],
        stamps: Sequence[tuple[int, ...]],
        old: Mapping[str, tuple[tuple[int, ...], int]],
    ) -> list[int]:
        def crc(number: int) -> int:
            stamp, known = old.get(paths[number], ((), 0))
            if stamp == stamps[number]:
                return known
            return zlib.crc32(self._bytes(paths[number]))

        def some(first: int) -> list[int]:
            return [crc(number) for number in range(first, min(len(paths), first + 256))]

        try:
            with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
                return [c for block in pool.map(some, range(0, len(paths), 256)) for c in block]
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror} ({error.filename})") from None

    def _bytes(self, path: str) -> bytes:
        with open(f"{self.root}/{path}", "rb") as stream:  # noqa: PTH123  twice as fast as Path
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise self.error(f"{path!r} is larger than {_LARGEST >> 20} MiB")
        return data

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        yield self._bytes


@dataclass
class _Seen:
    """A walk through a folder; ``stamps`` are sizes, times of modification, times of change."""

    paths: list[str] = field(default_factory=list)
    stamps: list[list[int]] = field(default_factory=lambda: [[], [], []])
    folders: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, path: str, status: os.stat_result) -> None:
        """Note an image file."""
        sizes, modified, changed = self.stamps
        self.paths.append(path)
        sizes.append(status.st_size)
        modified.append(status.st_mtime_ns)
        # The time of change too: it moves when the time of modification is set back.
        changed.append(status.st_ctime_ns)

    def sort(self) -> None:
        """Put everything in the order of paths."""
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        self.paths = [self.paths[number] for number in order]
        self.stamps = [[column[number] for number in order] for column in self.stamps]
        self.folders.sort()


# ---- a zip -----------------------------------------------------------------------------------


class _Zip(Files):
    def listing(self, folders: Sequence[str] | None = None) -> Listing:
        listing = self._whole()
        if folders is None:
            return listing
        inside = tuple(f"{folder}/" for folder in folders)
        kept = [n for n, path in enumerate(listing.paths) if path.startswith(inside)]
        return Listing(
            [listing.paths[n] for n in kept],
            [listing.sizes[n] for n in kept],
            [listing.crcs[n] for n in kept],
            [folder for folder in listing.folders if f"{folder}/".startswith(inside)],
            {},
        )

    def listing_of(self, paths: Sequence[str], kind: str) -> Listing:
        listing = self._whole()
        places = {path: number for number, path in enumerate(listing.paths)}
        found = {
            path: (listing.sizes[places[path]], listing.crcs[places[path]])
            for path in paths
            if path in places
        }
        if len(found) < len(paths):  # what is listed may have any ending
            for member in self._others(set(paths) - found.keys()):
                found[member.filename] = (member.file_size, member.CRC)
        there = sorted(found)
        sizes, crcs = ([found[path][i] for path in there] for i in (0, 1))
        return Listing(there, sizes, crcs, [], {})

    def holds(self, path: str) -> bool:
        return any(self._others({path}))

    def _others(self, paths: set[str]) -> list[zipfile.ZipInfo]:
        """Return the members of these paths, images or not."""
        found = [member for member in self._members() if member.filename in paths]
        names = Counter(member.filename for member in found)
        for member in found:
            self._check_member(member)
            if names[member.filename] > 1:
                raise self.error(f"the zip has two members {member.filename!r}")
        return found

    def children(self, folder: str = "") -> Children:
        folders, files = self._by_folder.get(folder, (set(), set()))
        return Children(sorted(folders), sorted(files))

    @cached_property
    def _by_folder(self) -> dict[str, tuple[set[str], set[str]]]:
        """Names of folders and of files in each folder."""
        found: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for member in self._members():
            self._check_member(member)
            parts = member.filename.rstrip("/").split("/")
            if any(map(is_hidden, parts)):
                continue
            inside = "/".join(parts[:-1])
            if inside not in found:  # folders need no members of their own
                for depth in range(1, len(parts)):
                    found.setdefault("/".join(parts[:depth]), (set(), set()))
                    found["/".join(parts[: depth - 1])][0].add(parts[depth - 1])
            if member.is_dir():
                found.setdefault("/".join(parts), (set(), set()))
                found[inside][0].add(parts[-1])
            else:
                found[inside][1].add(parts[-1])
        return found

    def contents(self, paths: Sequence[str]) -> dict[str, bytes]:
        there = sorted(member.filename for member in self._others(set(paths)))
        try:
            with self.reader() as read:
                return {path: read_member(read, path) for path in there}
        except DatasetError as error:
            raise self.error(f"cannot be read: {error.problem}") from None

    def documents(self, folder: str, suffix: str) -> dict[str, list[int]]:
        found = {}
        for member in self._members():
            self._check_member(member)
            parts = member.filename.split("/")
            placed = len(parts) in (2, 3) and parts[-2] == folder
            if placed and parts[-1].endswith(suffix) and not any(map(is_hidden, parts)):
                if member.filename in found:
                    raise self.error(f"the zip has two members {member.filename!r}")
                found[member.filename] = [member.file_size, member.CRC]
        return dict(sorted(found.items()))

    def _whole(self) -> Listing:
        status = self.root.stat()
        stamps = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        cache = ListingCache(self.home, self.root, "zip")
        known = cache.read()
        if known.get("stamps") == stamps:
            return Listing(**known["listing"])
        started = time.time_ns()
        listing = self._read_directory()
        if is_settled(max(stamps[1:]), started):
            cache.write({"listing": asdict(listing), "stamps": stamps})
        return listing

    def _members(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.root) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self.error(f"the zip cannot be read: {error}") from None

    def _read_directory(self) -> Listing:
        members = self._members()
        ignored: Counter[str] = Counter()
        folders: set[str] = set()
        found: dict[str, tuple[int, int]] = {}
        for member in members:
            path = member.filename
            self._check_member(member)
            if any(map(is_hidden, path.split("/"))):
                ignored["hidden"] += 1
            elif member.is_dir():
                folders.add(path.rstrip("/"))
            elif not is_image(path):
                ignored["not an image"] += 1
            elif path in found:
                raise self.error(f"the zip has two members {path!r}")
            else:
                found[path] = (member.file_size, member.CRC)
        folders |= {
            str(parent)
            for folder in {path.rpartition("/")[0] for path in found} - {""}
            for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)
        } - {"."}
        paths = sorted(found)
        sizes, crcs = ([found[path][i] for path in paths] for i in (0, 1))
        return Listing(paths, sizes, crcs, sorted(folders), dict(ignored))

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        path = member.filename
        parts = path.rstrip("/").split("/")
        if (
            path.startswith("/")
            or "\\" in path
            or path[1:2] == ":"
            or {"", ".", ".."} & set(parts)
        ):
            raise self.error(f"the zip's member {path!r} leads out of it")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise self.error(f"the zip's member {path!r} is a link")
        if member.flag_bits & 1:
            raise self.error(f"the zip's member {path!r} is encrypted")
        if member.file_size > _LARGEST:
            raise self.error(f"the zip's member {path!r} is larger than {_LARGEST >> 20} MiB")

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        try:
            archive = zipfile.ZipFile(self.root)
        except _UNREADABLE as error:  # it was there when it was listed
            raise self.error(f"the zip cannot be read: {error}") from None
        with archive:
            yield archive.read


# ---- what both share -------------------------------------------------------------------------


class ListingCache:
    """What was read from a root the last time, in ``home/datasets``; lost without harm.

    Args:
        home: ASYMBENCH_HOME.
        root: of the dataset.
        kind: what is kept of it; each kind has a file of its own.
    """

    def __init__(self, home: Path, root: Path, kind: str) -> None:
        self.root = str(root.resolve())
        digest = hashlib.sha256(f"{kind}\0{self.root}".encode(errors="surrogateescape"))
        self.path = home / "datasets" / f"{digest.hexdigest()[:24]}.json"

    def read(self) -> dict[str, Any]:
        """Return what was kept; nothing where it is absent or damaged."""
        with suppress(OSError, ValueError, RecursionError):
            head, _, body = self.path.read_bytes().partition(b"\n")
            if head == _head(body):
                content = json.loads(body)
                if content["root"] == self.root:
                    kept: dict[str, Any] = content["kept"]
                    return kept
        return {}

    def write(self, kept: Mapping[str, Any]) -> None:
        """Keep ``kept``, JSON values; a home that cannot be written to keeps nothing."""
        body = json.dumps({"root": self.root, "kept": kept}).encode()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{time.time_ns()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_head(body) + b"\n" + body)
            temporary.replace(self.path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _head(body: bytes) -> bytes:
    """Return the first line of a kept listing: its format and the checksum of the rest."""
    return b"asymbench listing %d %08x" % (_CACHE_VERSION, zlib.crc32(body))


@dataclass(frozen=True)
class Tree:
    """Images by class, as found in a folder or zip.

    Attributes:
        index: keys, labels, classes, fingerprint.
        paths: (N,) where each image lies in the listing.
        crcs: (N,) CRC-32 of each file.
        sizes: (N,) bytes of each file.
    """

    index: DatasetIndex
    paths: list[str]
    crcs: list[int]
    sizes: list[int]


def arrange(files: Files, listing: Listing, *, keep: Sequence[int] | None = None) -> Tree:
    """Return the images of a listing by class.

    The class is the folder, at any depth below ``[PART/]CLASS/``. Folders around the whole tree
    are left out of the keys, so that a zip and what it unpacks to have the same keys. Where all
    images lie in folders named as parts (train, test, ...), the parts are pooled.

    Args:
        files: for messages.
        listing: what was found.
        keep: numbers of the files to keep; all by default.

    Raises:
        DatasetError: no images, a class folder without any, fewer than two classes, or folders of
            parts beside folders of classes.
    """
    _refuse_undecodable(files, [*listing.paths, *listing.folders])
    prefix = _common_prefix(listing.paths)
    cut = len(prefix)
    numbers = range(len(listing.paths)) if keep is None else keep
    chosen = [number for number in numbers if "/" in listing.paths[number][cut:]]
    keys = [listing.paths[number][cut:] for number in chosen]
    if not keys:
        raise files.error(
            f"no images in class folders were found ({len(listing.paths)} images in all); "
            "expected CLASS/IMAGE, with or without train/ and test/ around the classes"
        )
    depth = _class_depth(files, keys)
    folders = [key.rpartition("/")[0] for key in keys]
    class_of = dict.fromkeys(folders, "")
    for folder in class_of:
        parts = folder.split("/")
        class_of[folder] = parts[depth] if len(parts) > depth else ""
    inside = [n for n, folder in enumerate(folders) if class_of[folder]]
    titles = sorted({class_of[folder] for folder in class_of} - {""})
    for folder in listing.folders:
        parts = folder[cut:].split("/") if folder.startswith(prefix) and folder[cut:] else []
        if len(parts) == depth + 1 and parts[depth] not in titles and _is_part(parts, depth):
            raise files.error(f"the class folder {folder!r} has no images")
    if len(titles) < 2:
        # One image beside the class folders makes the folder around them look like a class.
        deepest = max(path.count("/") for path in listing.paths)
        stray = [path for path in listing.paths if path.count("/") < deepest]
        beside = f"; {stray[0]!r} lies beside the folders of other images" if stray else ""
        raise files.error(
            f"at least two classes are needed, found {len(titles)}: {titles}{beside}"
        )
    number_of = {title: number for number, title in enumerate(titles)}
    chosen = [chosen[n] for n in inside]
    ignored = dict(listing.ignored)
    if outside := len(numbers) - len(chosen):
        ignored["outside the class folders"] = outside
    keys = [keys[n] for n in inside]
    sizes, crcs = [listing.sizes[n] for n in chosen], [listing.crcs[n] for n in chosen]
    labels = [number_of[class_of[folders[n]]] for n in inside]
    index = DatasetIndex(
        keys=keys,
        labels=np.array(labels, dtype=np.int64),
        classes=titles,
        fingerprint=fingerprint(keys, sizes, crcs),
        ignored=ignored,
    )
    return Tree(index, [listing.paths[n] for n in chosen], crcs, sizes)


def _refuse_undecodable(files: Files, names: Sequence[str]) -> None:
    """Refuse names that are not UTF-8 or no plain text: no table, label or list holds them."""
    try:
        "".join(names).encode()  # all at once: there may be 100,000s
    except UnicodeEncodeError:
        name = next(name for name in names if not _is_text(name))
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        raise files.error(f"the name {shown!r} is not UTF-8; rename it") from None
    if not is_plain("".join(names)):  # lists of images have one name a line
        name = next(name for name in names if not is_plain(name))
        raise files.error(f"the name {name!r} has control characters; rename it")


def is_plain(text: str) -> bool:
    """Whether a text has no control characters, line ends among them."""
    return not _CONTROL.search(text)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def fingerprint(keys: Sequence[str], sizes: Sequence[int], crcs: Sequence[int]) -> str:
    """Return the SHA-256 over (key, size, CRC-32) of all files, which are ordered by key."""
    lines = (f"{k}\0{s}\0{c}\n" for k, s, c in zip(keys, sizes, crcs, strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def labelled_fingerprint(
    keys: Sequence[str],
    sizes: Sequence[int],
    crcs: Sequence[int],
    labels: NDArray[np.generic],
    classes: Sequence[str],
) -> str:
    """Return the SHA-256 of files, labels and class names: labels that no folder tells."""
    sha = hashlib.sha256(fingerprint(keys, sizes, crcs).encode())
    sha.update(np.ascontiguousarray(labels).tobytes())
    sha.update(json.dumps(list(classes)).encode())
    return sha.hexdigest()


def read_text(files: Files, given: str, key: str) -> bytes:
    """Return the bytes of a text file that an option names.

    Args:
        files: the place.
        given: a path below it, or an absolute one.
        key: the option.

    Raises:
        DatasetError: it is not there, unreadable, or leads out of the place.
    """
    path = Path(given).expanduser()
    if path.is_absolute():
        try:
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"the file cannot be read: {error.strerror}", key=key, value=given
            ) from None
    if leads_out(given):
        raise DatasetError(
            "must be a path below the root, or an absolute one", key=key, value=given
        )
    found = files.contents([given])
    if given not in found:
        raise DatasetError(
            f"dataset {files.name!r}: there is no such file below the root", key=key, value=given
        )
    return found[given]


def leads_out(path: str) -> bool:
    """Whether a path that a file lists may lead out of the folder that it is relative to."""
    return (
        path.startswith("/")
        or "\\" in path
        or "\0" in path
        or path[1:2] == ":"
        or bool({"", ".", ".."} & set(path.split("/")))
    )


def text_lines(data: bytes, name: str, *, key: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text file that are not empty, each with its place (``file:line``).

    Raises:
        DatasetError: it is not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{name} is not UTF-8 text", key=key) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", line


def copies(files: Files, tree: Tree) -> Iterator[list[int]]:
    """Yield groups of images with equal content, as numbers in the tree.

    Raises:
        DatasetError: one of those with equal checksums cannot be read.
    """
    by_sum: dict[tuple[int, int], list[int]] = {}
    for number, mark in enumerate(zip(tree.sizes, tree.crcs, strict=True)):
        if mark[0]:  # empty files are no images, which whoever decodes them will say
            by_sum.setdefault(mark, []).append(number)
    suspects = [group for group in by_sum.values() if len(group) > 1]
    if not suspects:
        return
    with files.reader() as read:
        for group in suspects:  # equal checksums are no proof
            by_content: dict[bytes, list[int]] = {}
            for number in group:
                try:
                    content = read_member(read, tree.paths[number])
                except DatasetError as error:
                    raise files.error(f"an image cannot be read: {error.problem}") from None
                by_content.setdefault(content, []).append(number)
            yield from (same for same in by_content.values() if len(same) > 1)


def read_member(read: Reader, path: str) -> bytes:
    """Return the bytes of a file in a listing.

    Raises:
        DatasetError: it is gone or damaged; ``path`` is in the message.
    """
    try:
        return read(path)
    except _UNREADABLE as error:
        raise DatasetError(f"{path} ({error})") from None


@contextmanager
def tree_decoder(files: Files, tree: Tree) -> Iterator[Decoder]:
    """Yield a decoder of a tree's images, which refuses files that changed since the listing."""
    with files.reader() as read:

        def decode(number: int) -> Any:
            path = tree.paths[number]
            data = read_member(read, path)
            if zlib.crc32(data) != tree.crcs[number]:
                raise DatasetError(f"{path} (changed since it was listed)")
            return decode_bytes(data, path)

        yield decode


class FileOptions(RootedOptions):
    """Options of a dataset that lies in image files.

    Attributes:
        store_size: shorter side of a stored image, in pixels.
        follow_links: read what symbolic links in the folder lead to, outside of it too.
    """

    store_size: int = Field(DEFAULT_STORE_SIZE, ge=8, le=2048)
    follow_links: bool = False


class FilesDataset(Dataset):
    """A dataset of image files in one folder or zip."""

    Options = FileOptions
    options: FileOptions

    @cached_property
    def _files(self) -> Files:
        options = self.options
        return open_files(options.path, self.name, self.home, follow_links=options.follow_links)

    @cached_property
    @abstractmethod
    def _tree(self) -> Tree:
        """The images with where they lie; raises DatasetError."""

    def load_index(self) -> DatasetIndex:
        """List the images in the order of their names.

        Raises:
            DatasetError: something is missing, damaged, or not as the dataset has it.
        """
        return self._tree.index

    def decoder(self) -> AbstractContextManager[Decoder]:
        """Open the folder or zip."""
        return tree_decoder(self._files, self._tree)

    def image_options(self) -> dict[str, Any]:
        """Return the size of stored images."""
        return {"store_size": self.options.store_size}


def _common_prefix(paths: Sequence[str]) -> str:
    """Return the folders that are around all images and leave at least CLASS/IMAGE."""
    if not paths:
        return ""
    # Of sorted names the first and the last have the least in common.
    first, last = paths[0].split("/"), paths[-1].split("/")
    shortest = min(path.count("/") for path in paths)
    depth = 0
    while depth < shortest - 1 and first[depth] == last[depth]:
        depth += 1
    return "".join(f"{part}/" for part in first[:depth])


def _class_depth(files: Files, keys: Sequence[str]) -> int:
    """Return 1 where the outermost folders are parts of the dataset, and 0 where classes."""
    tops = {key.partition("/")[0] for key in keys}
    parts = {top for top in tops if top.lower() in PARTS}
    if parts == tops:
        return 1
    if len(parts) > 1:
        raise files.error(
            f"has folders of parts ({', '.join(sorted(parts))}) beside others "
            f"({', '.join(sorted(tops - parts)[:5])}); move either away"
        )
    return 0


def _is_part(parts: Sequence[str], depth: int) -> bool:
    return depth == 0 or parts[0].lower() in PARTS
