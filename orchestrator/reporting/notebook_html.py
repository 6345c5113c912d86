"""Leaderboards as the small HTML that notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from orchestrator.reporting.leaderboard import Cell, Leaderboard
from orchestrator.reporting.notes import notes_of
from orchestrator.reporting.text import published_text


def boards_html(title: str, boards: Sequence[Leaderboard]) -> str:
    """Return tables one below the other, the best of each column in bold; all names escaped."""
    return f"<div><p>{escape(title)}</p>{''.join(map(_board, boards))}</div>"


def _board(board: Leaderboard) -> str:
    groups = "".join(
        f'<th colspan="{len(columns)}" style="text-align:center">{escape(text)}</th>'
        for text, columns in board.groups
    )
    bits = "".join(f"<th>{column.bits} bit</th>" for column in board.columns)
    body = "".join(
        f'<tr><th style="text-align:left">{escape(line.method)}</th>'
        f"{''.join(map(_cell, line.cells))}</tr>"
        for line in board.lines
    )
    notes = "".join(f"<p><small>{escape(note)}</small></p>" for note in notes_of(board))
    return (
        f'<table><caption style="text-align:left">{escape(board.title)}</caption>'
        f"<thead><tr><th></th>{groups}</tr><tr><th></th>{bits}</tr></thead>"
        f"<tbody>{body}</tbody></table>{notes}"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td>-</td>"
    text = escape(cell.text())
    shown = f"<b>{text}</b>" if cell.best else f"{text}{cell.mark}"
    printed = escape(published_text(cell))
    return f"<td>{shown}{f'<br><i>{printed}</i>' if printed else ''}</td>"
