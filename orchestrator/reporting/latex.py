"""Tables in LaTeX: what a paper takes in, or a document that is complete.

What is written is ASCII whatever names there are in it: characters that LaTeX has commands for are
written as these, and others as their code point, so that pdflatex never stops at one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

PACKAGES = ("amssymb", "booktabs", "graphicx", "xcolor")
"""What a table needs in the preamble of the document that it is put in."""

_COMMANDS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after the end of a line it would begin an argument, and the next one too
    "*": "{*}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "−": "$-$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\ldots{}",
    "†": r"\dag{}",
    "Δ": r"$\Delta$",
    "▽": r"$\triangledown$",
    "▼": r"$\blacktriangledown$",
    "ß": r"\ss{}",
    "\N{NO-BREAK SPACE}": "~",
}
_LIGATURES = re.compile(r"([-'])(?=\1)")
"""Two of these in a row print as one other character."""

_ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": r"\`",
    "\N{COMBINING ACUTE ACCENT}": r"\'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": r"\^",
    "\N{COMBINING TILDE}": r"\~",
    "\N{COMBINING DIAERESIS}": r"\"",
    "\N{COMBINING CEDILLA}": r"\c",
    "\N{COMBINING CARON}": r"\v",
    "\N{COMBINING RING ABOVE}": r"\r",
}
_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega".split()
)


def escape(text: str) -> str:
    """Return text that LaTeX prints as it is, in ASCII."""
    plain = "".join(map(_escaped, text))
    return _LIGATURES.sub(r"\1{}", plain)


def _escaped(character: str) -> str:
    if character in _COMMANDS:
        return _COMMANDS[character]
    if character.isascii():
        return character if character.isprintable() else " "
    parts = unicodedata.normalize("NFD", character)
    letter, mark = parts[0], parts[1:]
    if mark in _ACCENTS and letter.isascii() and letter.isalpha():
        return f"{_ACCENTS[mark]}{{{letter}}}"
    name = unicodedata.name(character, "").removeprefix("GREEK SMALL LETTER ").lower()
    name = {"lamda": "lambda"}.get(name, name)
    if name in _GREEK:
        return f"$\\{name}$"
    return f"\\texttt{{U+{ord(character):04X}}}"


@dataclass(frozen=True)
class TexTable:
    """A table whose texts are LaTeX already.

    Attributes:
        caption: above it.
        heads: of the columns.
        body: lines of cells; a line of no cells is a rule.
        align: a letter a column, as of ``tabular``.
        groups: heads over the heads, each with the columns that it spans.
        notes: below it, a sentence each.
    """

    caption: str
    heads: Sequence[str]
    body: Sequence[Sequence[str]]
    align: str
    groups: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return the ``table`` environment; one that is too wide is scaled down to the line."""
        lines = [
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{self.caption}}}",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{self.align}}}",
            r"    \toprule",
            *self._grouped(),
            f"    {_line(self.heads)}",
            r"    \midrule",
            *(f"    {_line(cells)}" if cells else r"    \midrule" for cells in self.body),
            r"    \bottomrule",
            r"  \end{tabular}}",
        ]
        if self.notes:
            told = r" \\ ".join(self.notes)
            lines += [rf"  \\[2pt] \parbox{{\linewidth}}{{\footnotesize {told}}}"]
        return "\n".join([*lines, r"\end{table}"])

    def _grouped(self) -> list[str]:
        if not self.groups:
            return []
        cells, rules, start = [], [], 1
        for text, span in self.groups:
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{text}}}" if text else "")
            if text:
                rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
            start += span
        return [f"    {_line(cells)}", f"    {' '.join(rules)}"]


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def tex_file(parts: Sequence[str], *, standalone: bool) -> str:
    """Return tables and texts one after another, as a file.

    Args:
        parts: in LaTeX.
        standalone: whether the file is a document of its own; else its first lines are comments
            that say which packages the document needs that takes it in.
    """
    packages = [rf"\usepackage{{{name}}}" for name in PACKAGES]
    if not standalone:
        needs = ["% Needs in the preamble:", *(f"%   {line}" for line in packages)]
        return "\n\n".join(["\n".join(needs), *parts]) + "\n"
    head = [
        r"\documentclass{article}",
        r"\usepackage[margin=2cm]{geometry}",
        *packages,
        r"\begin{document}",
    ]
    # Tables float; many of them need pages of their own before LaTeX runs out of room.
    body = "\n\n\\clearpage\n\n".join(parts)
    return "\n\n".join(["\n".join(head), body, r"\end{document}"]) + "\n"
