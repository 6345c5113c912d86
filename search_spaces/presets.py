"""Studies that ship with the package, found by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def presets() -> dict[str, Path]:
    """Return preset name -> its YAML file."""
    folder = Path(str(files("search_spaces")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
