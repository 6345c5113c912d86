"""A study's tables as plain text and as Markdown, a table for each dataset and pair."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from orchestrator.reporting.leaderboard import Cell, Leaderboard, Line, leaderboards, method_of
from orchestrator.reporting.notes import notes_of, published_notes
from orchestrator.reporting.results import StudyResults
from orchestrator.wording import plural

PUBLISHED = "  published"
"""What the line below a method's is called that has a paper's numbers."""


def to_text(results: StudyResults) -> str:
    """Return the tables as plain text; the best of each column is marked with ``*``.

    What is equal in the digits shown is equally best.
    """
    blocks = []
    for board in leaderboards(results, tests=False, apart=True):
        body = [["method", *(f"{column.bits} bit" for column in board.columns)]]
        for line in board.lines:
            body.append([line.method, *map(_mark, line.cells)])
            body += _published(line, lambda text: f"{text}  ")
        title = title_of_one(board)
        lines = aligned(body, left=frozenset({0}))
        rule = "-" * max(len(title), *(len(line) for line in lines))
        told = published_notes(board)
        blocks.append("\n".join([title, rule, lines[0], rule, *lines[1:], rule, *told]))
    failed = failures(results)
    if failed:
        told = [f"  {line}" for line in failed]
        blocks.append("\n".join([f"{plural(len(failed), 'trial')} failed:", *told]))
    return "\n\n".join(blocks) + "\n"


def to_markdown(results: StudyResults) -> str:
    """Return the tables as Markdown, the best of each column in bold."""
    blocks = []
    for board in leaderboards(results, apart=True):
        lines = [
            f"**{escape_markdown(title_of_one(board))}**",
            "",
            "| method | " + " | ".join(f"{column.bits} bit" for column in board.columns) + " |",
            "| --- |" + " ---: |" * len(board.columns),
        ]
        for line in board.lines:
            body = [[escape_markdown(line.method), *map(_bold, line.cells)]]
            body += _published(line, lambda text: f"*{text}*" if text else "")
            lines += ["| " + " | ".join(cells) + " |" for cells in body]
        blocks.append("\n".join(lines))
        blocks += [escape_markdown(note) for note in notes_of(board)]
    failed = failures(results)
    if failed:
        told = [f"- {escape_markdown(line)}" for line in failed]
        blocks.append("\n".join([f"{plural(len(failed), 'trial')} failed:", "", *told]))
    return "\n\n".join(blocks) + "\n"


def title_of_one(board: Leaderboard) -> str:
    """Return what a table of one dataset shows."""
    first = board.columns[0]
    seeds = f", mean ± sd of {board.seeds} seeds" if board.seeds > 1 else ""
    ranked = f" · {board.called}" if board.called else ""
    return f"{first.dataset} · {board.pair} · mAP@{first.at}{ranked}{seeds}"


def failures(results: StudyResults) -> list[str]:
    """Return one line for each failed trial: its name and the reason."""
    return [
        f"{method_of(one)} · {one.trial.pair} · {one.trial.bits} bit · {one.trial.dataset} · "
        f"s{one.trial.seed}: {one.reason}"
        for one in results.trials
        if one.status == "failed"
    ]


def published_text(cell: Cell | None) -> str:
    """Return what a paper printed: ``0.8658† (Δ -0.0012)``; "" where it printed nothing."""
    if cell is None or cell.published is None:
        return ""
    delta = "" if cell.delta is None else f" (Δ {cell.delta:+.4f})"
    return f"{cell.published.value:.4f}{'†' if cell.published.dagger else ''}{delta}"


def _published(line: Line, shown: Callable[[str], str]) -> list[list[str]]:
    """Return the line with a paper's numbers; none where it has no numbers."""
    texts = [published_text(cell) for cell in line.cells]
    return [[PUBLISHED, *map(shown, texts)]] if any(texts) else []


def aligned(body: Sequence[Sequence[str]], left: frozenset[int]) -> list[str]:
    """Return lines whose columns are as wide as their widest cell, some of them flush left."""
    widths = [max(len(line[column]) for line in body) for column in range(len(body[0]))]
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in body
    ]


def _mark(cell: Cell | None) -> str:
    return "-  " if cell is None else f"{cell.text()} {'*' if cell.best else ' '}"


def _bold(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"**{cell.text()}**" if cell.best else f"{cell.text()}{cell.mark}"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is: ``A_q`` must not begin italics."""
    return re.sub(r"([\\`*_|<>\[\]#~$&])", r"\\\1", text)
