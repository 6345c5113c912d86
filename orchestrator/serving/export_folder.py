"""The folder of an export: it appears whole or not at all, and takes nobody else's place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.store import read_json
from retrieval.atomic import temporary_name
from retrieval.errors import InputError

CONFIG = "config.json"
MADE_BY = "asymbench export"

_KEY = "--output"


def check_folder(folder: Path, config: dict[str, Any], *, force: bool) -> None:
    """Refuse a folder that an export would take from somebody.

    Args:
        folder: where the export is to lie.
        config: of the export; one of the same trial, side and format may be replaced.
        force: write into it all the same.

    Raises:
        InputError: it is a file, there is no folder to make it in, or other things lie in it.
    """
    if folder.is_dir():
        if not force and any(folder.iterdir()) and not _replaceable(folder, config):
            raise InputError(
                "this folder holds other things than an earlier export of the same network",
                key=_KEY,
                value=str(folder),
                hint="name another, or write into it with --force",
            )
    elif folder.exists():
        raise InputError("must name a folder, this is a file", key=_KEY, value=str(folder))
    elif not folder.parent.is_dir():
        raise InputError("there is no such folder to write into", key=_KEY, value=str(folder))


def _replaceable(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a folder holds an export of the same network and nothing else."""
    found = read_json(folder / CONFIG)
    if not isinstance(found, dict) or found.get("made_by") != MADE_BY:
        return False
    same = all(found.get(key) == config[key] for key in ("trial", "side", "format"))
    known = {CONFIG, *(found.get("files") or ())}
    return same and {path.name for path in folder.iterdir()} <= known


@contextmanager
def placed(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder that takes its place when the block ends without an error.

    A folder of an earlier export is replaced; into another, which :func:`check_folder` let pass,
    the files are moved one by one.

    Args:
        folder: the place.
        config: of the export.
    """
    folder = folder.resolve()
    made = temporary_name(folder)
    made.mkdir()
    try:
        yield made
        if not folder.exists():
            made.rename(folder)
        elif any(folder.iterdir()) and not _replaceable(folder, config):
            for path in sorted(made.iterdir(), key=lambda p: p.name == CONFIG):
                path.replace(folder / path.name)
        else:
            earlier = temporary_name(folder)
            folder.rename(earlier)
            made.rename(folder)
            shutil.rmtree(earlier)
    finally:
        shutil.rmtree(made, ignore_errors=True)
