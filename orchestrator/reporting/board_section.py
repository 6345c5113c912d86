"""The leaderboards of the report's page, which can be sorted and filtered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.reporting.leaderboard import Cell, Leaderboard
from orchestrator.reporting.notes import notes_of
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render

_CHOICES = 60
"""Checkboxes of a filter; the text does where there are more names."""


def board_section(boards: Sequence[Leaderboard]) -> Section:
    """Return the tables of a study, with filters where there is something to choose."""
    title = "Leaderboard"
    cells = [cell for board in boards for line in board.lines for cell in line.cells if cell]
    if not cells:
        return Section("leaderboard", title, why="no trial is scored on the test queries")
    columns = [column for board in boards for column in board.columns]
    filters = [
        ("method", "Methods", _names(line.method for board in boards for line in board.lines)),
        ("dataset", "Datasets", _names(column.dataset for column in columns)),
        ("pair", "Pairs", _names(board.pair for board in boards)),
        ("bits", "Bits", [str(bits) for bits in sorted({column.bits for column in columns})]),
    ]
    body = render(
        "leaderboard",
        boards=boards,
        filters=[f for f in filters if 1 < len(f[2]) <= _CHOICES],
        delta=delta_text,
        notes=notes_of,
        tested=any(cell.mark for cell in cells),
        published=any(cell.published for cell in cells),
        seeds=max(board.seeds for board in boards),
    )
    return Section("leaderboard", title, body)


def delta_text(cell: Cell) -> str:
    """Return what stands beside a number that a paper printed too: ``+0.0120`` or ``0.8530``."""
    if cell.published is None:
        return ""
    if cell.delta is None:
        return f"{cell.published.value:.4f}"
    return f"{cell.delta:+.4f}".replace("-", "\N{MINUS SIGN}")


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
