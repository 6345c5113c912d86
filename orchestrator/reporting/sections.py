"""A part of the report's page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A part with a heading.

    Attributes:
        id: its anchor.
        title: its heading.
        body: its content; None where there is nothing to show.
        why: why there is nothing, one line.
    """

    id: str
    title: str
    body: Markup | None = None
    why: str = ""
