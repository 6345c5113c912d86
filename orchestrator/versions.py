"""The software that a stage ran on, kept beside its costs: no part of its identity."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("asymbench", "torch", "timm", "numpy", "ray")
"""What can move the last bit of a result, or says how it was run."""


@cache
def installed() -> dict[str, str]:
    """Return name -> version of Python and of the packages that are here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that nobody installed
            continue
    return found
