"""Files that appear whole or not at all, and that a loss of power leaves where they were put."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV}
"""What a file system without hard links answers to one."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new, whatever dies when.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    with open_atomic(path, size=len(data)) as stream:
        stream.write(data)


@contextmanager
def open_atomic(path: Path, *, size: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when the block ends without an error.

    Args:
        path: the file.
        size: bytes that are going to be written, for the message of a disk that is full.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise full_disk(error, path, size) from error
        raise


def create_atomic(path: Path, data: bytes) -> None:
    """Create a file of which there must be none, whole or not at all; one of several callers wins.

    Raises:
        FileExistsError: there is such a file.
        OSError: the disk is full or not writable.
    """
    temporary = temporary_name(path)
    try:
        _write(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Over a network a link can be made and its answer be lost, and the call repeated.
            if temporary.stat().st_nlink != 2:
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write(path, data)
        sync(path.parent)
    except OSError as error:
        raise full_disk(error, path, len(data)) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return a name beside a file that no other writer of it has, on any machine."""
    # Machines that share a folder can have equal process ids.
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def full_disk(error: OSError, path: Path, needed: int) -> OSError:
    """Return an error of a disk that is full as one that says where and by how much.

    Args:
        error: any error of writing; another than of a full disk or quota is returned as it is.
        path: what was written.
        needed: bytes that it has; 0 where that is not known.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
        return error
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} are free"
    except OSError:
        free = "how many are free cannot be told"
    need = f"{needed:,} bytes are needed" if needed else "more bytes are needed"
    return OSError(error.errno, f"{os.strerror(error.errno)}; {need}, {free}", str(path))


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a folder of a network file system
            raise
    finally:
        os.close(descriptor)
