"""A study's tables in LaTeX, as papers print them: one for each pair, datasets side by side."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.reporting.latex import TexTable, escape, tex_file
from orchestrator.reporting.leaderboard import Cell, Leaderboard, leaderboards
from orchestrator.reporting.notes import notes_of
from orchestrator.reporting.results import StudyResults
from orchestrator.reporting.text import failures
from orchestrator.wording import plural

_COLUMNS = 6
"""Columns with deviations or differences that a page holds in letters of a size to be read."""

_GREY = r"\textcolor{gray}"


def to_tex(results: StudyResults, *, standalone: bool = False) -> str:
    """Return the tables in LaTeX: the best in bold, published numbers in grey italics.

    Args:
        results: of the study.
        standalone: whether to return a document of its own, not what a paper takes in.
    """
    boards = [part for board in leaderboards(results) for part in _legible(board)]
    parts = [_table(board).text() for board in boards]
    failed = failures(results)
    if failed:
        told = [f"%   {escape(line)}" for line in failed]
        parts.append("\n".join([f"% {plural(len(failed), 'trial')} failed:", *told]))
    return tex_file(parts, standalone=standalone)


def _legible(board: Leaderboard) -> list[Leaderboard]:
    """Return a table, or one for each dataset where deviations or differences make it too wide."""
    cells = [cell for line in board.lines for cell in line.cells if cell is not None]
    wide = any(cell.sd is not None or cell.delta is not None for cell in cells)
    if not wide or len(board.columns) <= _COLUMNS:
        return [board]
    parts = []
    for _, columns in board.groups:
        places = [board.columns.index(column) for column in columns]
        lines = [replace(one, cells=tuple(one.cells[i] for i in places)) for one in board.lines]
        kept = tuple(line for line in lines if any(line.cells))
        parts.append(replace(board, columns=columns, lines=kept))
    return [part for part in parts if part.lines]


def _table(board: Leaderboard) -> TexTable:
    body = []
    for line in board.lines:
        body.append([escape(line.method), *map(_cell, line.cells)])
        printed = [_published(cell) for cell in line.cells]
        if any(printed):
            body.append([rf"\quad {_GREY}{{\textit{{published}}}}", *printed])
    bold = "Bold: the best of its column; what is equal in the digits shown is equally best."
    return TexTable(
        caption=escape(f"{board.title}."),
        heads=["Method", *(f"{column.bits} bit" for column in board.columns)],
        body=body,
        align="l" + "r" * len(board.columns),
        groups=[("", 1), *((escape(text), len(columns)) for text, columns in board.groups)],
        notes=[escape(note) for note in (bold, *notes_of(board))],
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    mean = rf"\textbf{{{cell.mean:.4f}}}" if cell.best else f"{cell.mean:.4f}"
    part = f"({cell.n} of {cell.of}) " if cell.n < cell.of else ""
    spread = "" if cell.sd is None else rf" {{\scriptsize$\pm$\,{cell.sd:.4f}}}"
    mark = f"\\textsuperscript{{{escape(cell.mark)}}}" if cell.mark else ""
    return f"{part}{mean}{mark}{spread}"


def _published(cell: Cell | None) -> str:
    if cell is None or cell.published is None:
        return ""
    dagger = r"\textsuperscript{\dag}" if cell.published.dagger else ""
    delta = "" if cell.delta is None else rf" ($\Delta${cell.delta:+.4f})".replace("-", "$-$")
    return rf"{_GREY}{{\textit{{{cell.published.value:.4f}}}{dagger}{delta}}}"
