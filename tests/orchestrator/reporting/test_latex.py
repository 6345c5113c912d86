"""LaTeX: compiled where there is pdflatex, and checked by hand where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.reporting import latex_tables
from orchestrator.reporting.latex import TexTable, escape, tex_file
from orchestrator.reporting.latex_tables import to_tex
from orchestrator.reporting.leaderboard import Cell, Column, Leaderboard, Line
from orchestrator.reporting.published import Published
from orchestrator.reporting.results import gather
from orchestrator.search_report import search_bytes
from orchestrator.store import open_store
from tests.orchestrator.scored import finish, planned, score
from tests.orchestrator.searched import sensitivity

NASTY = r"50%_of {A} & B #1 $x$ ~^\ <é> γ→'' `` -- [*] 数"


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "home")


def compiles(text: str, folder: Path) -> None:
    """Compile a document; where there is no pdflatex there is nothing to find out."""
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex")
    (folder / "x.tex").write_text(text, encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "x.pdf").stat().st_size > 1000


def balanced(text: str) -> None:
    """Check what LaTeX stops at: braces, environments, columns, special characters."""
    text.encode("ascii")
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    plain = re.sub(r"\\[\\{}$&#_%~^]", "", "\n".join(lines))  # escaped ones
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert "#" not in plain
    begun = re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(begun) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    for tabular in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", plain, re.S):
        columns, body = len(tabular[0]), tabular[1]
        for row in (r for r in body.split("\n") if "&" in r):
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert row.count("&") + 1 + spanned == columns


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A_q", r"A\_q"),
        ("50 % & more", r"50 \% \& more"),
        ("a{b}$c#d", r"a\{b\}\$c\#d"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("0.5 ± 0.1 · x", r"0.5 $\pm$ 0.1 $\cdot$ x"),
        ("mnv3s→rn50", r"mnv3s$\rightarrow$rn50"),
        ("é ü ç ñ", r"\'{e} \"{u} \c{c} \~{n}"),
        ("γ λ", r"$\gamma$ $\lambda$"),
        ("a--b", "a-{}-b"),
        ("[x] *", "{[}x] {*}"),
        ("数", r"\texttt{U+6570}"),
        ("a\nb\tc\x1b", "a b c "),
    ],
)
def test_characters_are_written_as_latex_prints_them(text, shown):
    assert escape(text) == shown
    escape(text).encode("ascii")


def test_the_table_by_hand(tmp_path, store):
    plan = planned(tmp_path, methods=["csch", "csq"], bits=[16, 32], seeds=[0, 1])
    maps = {("csch", 16): 0.5, ("csq", 16): 0.4, ("csch", 32): 0.6}
    score(store, plan, lambda t: None if (t.method, t.bits) not in maps
          else maps[t.method, t.bits] + t.seed / 10)  # fmt: skip
    text = to_tex(gather(plan, store))
    sd = r"{\scriptsize$\pm$\,0.0707}"
    # mean 0.55, deviations 0.05, squares sum 0.005, / 1, root 0.0707
    wanted = [
        r"    \toprule",
        r"     & \multicolumn{2}{c}{digits, mAP@all} \\",
        r"    \cmidrule(lr){2-3}",
        r"    Method & 16 bit & 32 bit \\",
        r"    \midrule",
        rf"    csch & \textbf{{0.5500}} {sd} & 0.6500 {sd} \\",
        rf"    csq & 0.4500 {sd} & -- \\",
        r"    \bottomrule",
    ]
    lines = text.splitlines()
    start = lines.index(wanted[0])
    assert lines[start : start + len(wanted)] == wanted
    assert lines[:5] == [
        "% Needs in the preamble:",
        r"%   \usepackage{amssymb}",
        r"%   \usepackage{booktabs}",
        r"%   \usepackage{graphicx}",
        r"%   \usepackage{xcolor}",
    ]
    assert r"\documentclass" not in text
    balanced(text)


def board_of(name: str) -> Leaderboard:
    printed = Published(0.8665, "Table 2", "CSCH", dagger=True)
    other = replace(printed, dagger=False, differs=("query: epochs 8, not 150",))
    columns = (Column(name, "p", "all", 12), Column(name, "p", "all", 24))
    best = Cell(0.87, 0.01, 2, 3, best=True, published=printed)
    worse = Cell(0.85, None, 1, 1, p_value=0.001, published=other)
    lines = (Line(name, (best, None)), Line("csq", (worse, worse)))
    return Leaderboard(name, "map", "", columns, lines, 3)


def test_published_numbers_are_grey_italics_with_a_difference_only_where_alike(monkeypatch):
    monkeypatch.setattr(latex_tables, "leaderboards", lambda results: (board_of("x"),))
    results = type("None", (), {"trials": ()})()
    text = to_tex(results)
    assert (
        r"\textcolor{gray}{\textit{0.8665}\textsuperscript{\dag} ($\Delta$+0.0035)} &  \\" in text
    )
    assert r"& \textcolor{gray}{\textit{0.8665}} & \textcolor{gray}{\textit{0.8665}} \\" in text
    assert r"(2 of 3) \textbf{0.8700} {\scriptsize$\pm$\,0.0100}" in text
    assert r"0.8500\textsuperscript{$\blacktriangledown$}" in text
    assert r"No $\Delta$ for csq: query: epochs 8, not 150." in text
    balanced(text)


def test_a_document_with_every_kind_of_mark_and_name_compiles(monkeypatch, tmp_path):
    boards = tuple(board_of(NASTY) for _ in range(20))  # floats that need more than a page
    monkeypatch.setattr(latex_tables, "leaderboards", lambda results: boards)
    text = to_tex(type("None", (), {"trials": ()})(), standalone=True)
    balanced(text)
    compiles(text, tmp_path)


def test_a_study_compiles_as_a_document_and_inside_of_one(tmp_path, store):
    label = NASTY[:40]
    plan = planned(
        tmp_path,
        datasets=[{"name": "digits", "label": label}],
        methods={"csch": {"assign": ["A_r", "A_g"]}, "csq": {}},
    )
    rng = np.random.default_rng(0)
    for trial in plan.trials[:2]:
        queries = rng.uniform(0.4, 0.6, size=50)
        finish(store, plan, trial.id, {"map": float(queries.mean())}, queries=queries)
    store.note_failure(plan.trials[2].stages["gallery"], {"kind": "lost", "reason": "50%\nof_it"})
    results = gather(plan, store)
    fragment = to_tex(results)
    assert "% 1 trial failed:" in fragment and "%   csq" in fragment
    balanced(fragment)
    own = to_tex(results, standalone=True)
    balanced(own)
    compiles(own, tmp_path)
    packages = re.findall(r"%   (\\usepackage\{\w+\})", fragment)
    head = [r"\documentclass{article}", *packages, r"\begin{document}"]
    compiles("\n".join([*head, fragment, r"\end{document}"]), tmp_path)


def test_a_search_compiles_and_its_recommended_point_is_bold(tmp_path):
    text = search_bytes(sensitivity(), "tex", standalone=True).decode()
    assert r"\textbf{" in text and r"\begin{itemize}" in text
    balanced(text)
    compiles(text, tmp_path)


@pytest.mark.parametrize(("sd", "tables"), [(None, 1), (0.01, 3)])
def test_datasets_stand_side_by_side_unless_deviations_take_the_room(monkeypatch, sd, tables):
    columns = tuple(Column(d, "p", "all", b) for d in ("a", "b", "c") for b in (12, 24, 32))
    cells = tuple(Cell(0.1 * n, sd, 1, 1) for n in range(9))
    only_c = (*(None,) * 6, *cells[6:])
    lines = (Line("csch", cells), Line("csq", only_c))
    board = Leaderboard("pair", "map", "", columns, lines, 1)
    monkeypatch.setattr(latex_tables, "leaderboards", lambda results: (board,))
    text = to_tex(type("None", (), {"trials": ()})())
    balanced(text)
    assert text.count(r"\begin{tabular}") == tables
    assert [text.count(f"0.{n}000") for n in range(9)] == [1] * 6 + [2] * 3
    assert text.count("csq") == 1


def test_a_table_that_is_too_wide_is_scaled_to_the_line(tmp_path):
    wide = TexTable("c", [f"head {n}" for n in range(60)], [["1"] * 60], "r" * 60).text()
    text = tex_file([wide], standalone=True)
    compiles(text, tmp_path)
    assert "Overfull" not in (tmp_path / "x.log").read_text()
