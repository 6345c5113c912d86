"""Code that goes along to a cluster: packages, modules, wheels and projects in one zip."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from retrieval.errors import InputError

LIMIT = 64 * 2**20
"""Bytes that may go along: code. Data belongs on the cluster's own disks."""

_LEFT_OUT = {"__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PROJECT = ("pyproject.toml", "setup.py")


def pack(ships: Iterable[str], folders: Iterable[str] = ()) -> bytes:
    """Return a zip of importable code; the same code is the same bytes.

    Args:
        ships: packages (folders with ``__init__.py``), modules (``.py``), wheels, and projects
            (folders with ``pyproject.toml``), which are built into a wheel here, so that their
            entry points are found there.
        folders: whose contents go along as they are.

    Raises:
        InputError: a path is none of these, two bring the same file, or it is too much.
    """
    content: dict[str, bytes] = {}
    origin: dict[str, str] = {}
    size = 0
    for given, name, data in _files(ships, folders):
        if name in content and content[name] != data:
            raise InputError(
                f"brings {name}, and so does {origin[name]}", key="--ship", value=given
            )
        content[name], origin[name] = data, given
        size += len(data)
        if size > LIMIT:
            raise InputError(
                f"more than {LIMIT // 2**20} MiB: ship code, and keep data and weights on the "
                "cluster",
                key="--ship",
                value=given,
            )
    if not content:
        return b""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _files(ships: Iterable[str], folders: Iterable[str]) -> Iterator[tuple[str, str, bytes]]:
    for given in ships:
        for name, data in _shipped(given):
            yield given, name, data
    for given in folders:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise InputError("there is no such folder", key="working_dir", value=given)
        for name, data in _tree(folder, PurePosixPath()):
            yield given, name, data


def _shipped(given: str) -> Iterator[tuple[str, bytes]]:
    path = Path(given).expanduser().absolute()
    if path.is_file() and path.suffix == ".whl":
        return _wheel(path, given)
    if path.is_file() and path.suffix == ".py":
        return iter([(path.name, path.read_bytes())])
    if path.is_dir() and (path / "__init__.py").is_file():
        return _tree(path, PurePosixPath(path.name))
    if path.is_dir() and any((path / name).is_file() for name in _PROJECT):
        return _project(path, given)
    problem = (
        "must be a package (a folder with __init__.py), a module (.py), a wheel (.whl) or a "
        "project (a folder with pyproject.toml)"
    )
    raise InputError(
        problem if path.exists() else f"there is no such path; {problem}",
        key="--ship",
        value=given,
    )


def _tree(folder: Path, prefix: PurePosixPath) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not _LEFT_OUT & set(relative.parts) and path.suffix != ".pyc":
            yield str(prefix / relative.as_posix()), path.read_bytes()


def _wheel(path: Path, given: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise InputError(f"holds the unsafe name {name!r}", key="--ship", value=given)
                if not name.endswith("/"):
                    yield name, archive.read(name)
    except zipfile.BadZipFile:
        raise InputError("is no wheel that can be read", key="--ship", value=given) from None


def _project(folder: Path, given: str) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as scratch:
        copy, wheels = Path(scratch, "project"), Path(scratch, "wheels")
        for name, data in _tree(folder, PurePosixPath()):  # building writes beside the sources
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(wheels)]
        # first with the build tools that are here: that needs no network
        for extra in (["--no-build-isolation"], []):
            done = subprocess.run([*build, *extra, str(copy)], capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise InputError(
                f"cannot be built into a wheel: {last}",
                key="--ship",
                value=given,
                hint="build one with `pip wheel --no-deps` and ship that",
            )
        for path in wheels.glob("*.whl"):
            yield from _wheel(path, given)
