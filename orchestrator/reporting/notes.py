"""What the marks in a leaderboard mean, and what stands against its published numbers."""

from __future__ import annotations

from orchestrator.reporting.differences import ALPHA, STRICT
from orchestrator.reporting.leaderboard import MARKS, Leaderboard
from orchestrator.reporting.published import paper_title


def notes_of(board: Leaderboard) -> list[str]:
    """Return a sentence for each thing in a table that has to be explained; none of what has not.

    What bold means is the format's to say.
    """
    cells = [cell for line in board.lines for cell in line.cells if cell is not None]
    notes = []
    if any(cell.n < cell.of for cell in cells):
        notes.append("(2 of 3): mean over the seeds that are done, of those the study asks for.")
    if any(cell.p_value is not None for cell in cells):
        notes.append(
            f"{MARKS[ALPHA]}, {MARKS[STRICT]}: below the best of the column, p < {ALPHA:g} and "
            f"p < {STRICT:g} (sign-flip test, paired over the test queries, Holm-adjusted for all "
            "pairs of the column's methods; what other seeds would give is not in it)."
        )
    return [*notes, *published_notes(board)]


def published_notes(board: Leaderboard) -> list[str]:
    """Return a sentence for each thing to be known of a table's published numbers."""
    cells = [cell for line in board.lines for cell in line.cells if cell is not None]
    printed = [cell.published for cell in cells if cell.published is not None]
    if not printed:
        return []
    sources = sorted({one.source for one in printed})
    notes = [
        f"Published: {'; '.join(sources)} ({paper_title()}); over how many runs it does not say."
    ]
    if any(one.dagger for one in printed):
        notes.append("†: run by that paper's authors, not by the method's own.")
    if any(one.comparable for one in printed):
        notes.append(
            "Δ: ours minus published; protocol, networks, recipe and hyperparameters are the same "
            "as far as the paper tells them."
        )
    apart: dict[tuple[str, ...], list[str]] = {}
    for line in board.lines:
        for cell in line.cells:
            if cell is not None and cell.published is not None and cell.published.differs:
                names = apart.setdefault(cell.published.differs, [])
                if line.method not in names:
                    names.append(line.method)
    notes += [f"No Δ for {', '.join(names)}: {'; '.join(why)}." for why, names in apart.items()]
    return notes
