"""The tables as papers print them, from stores made by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.errors import StoreCorrupt
from orchestrator.plan import Plan
from orchestrator.reporting.leaderboard import Cell, Column, Leaderboard, leaderboards
from orchestrator.reporting.notes import notes_of
from orchestrator.reporting.published import Published
from orchestrator.reporting.results import gather
from orchestrator.store import StageStore, open_store
from tests.orchestrator.scored import finish, planned, score


@pytest.fixture
def plan(tmp_path):
    return lambda **changes: planned(tmp_path, **changes)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


def boards(plan: Plan, store: StageStore, **how: bool) -> tuple[Leaderboard, ...]:
    return leaderboards(gather(plan, store), **how)


def texts(board: Leaderboard) -> dict[str, list[str | None]]:
    return {line.method: [cell and cell.text() for cell in line.cells] for line in board.lines}


def test_datasets_and_code_lengths_stand_side_by_side_for_each_pair(plan, store):
    two = ["digits", {"name": "digits", "label": "other", "protocol": {"split_seed": 1}}]
    made = plan(datasets=two, pairs=["tiny", "small"], methods=["csch", "csq"], bits=[32, 16])
    place = {"digits": 0.0, "other": 0.4}
    score(store, made, lambda t: place[t.dataset] + t.bits / 100 + (t.method == "csq") / 1000)
    first, second = boards(made, store)
    assert (first.pair, second.pair) == ("tiny", "small")
    assert [(c.dataset, c.bits) for c in first.columns] == [
        ("digits", 16),
        ("digits", 32),
        ("other", 16),
        ("other", 32),
    ]
    assert texts(first) == {
        "csch": ["0.1600", "0.3200", "0.5600", "0.7200"],
        "csq": ["0.1610", "0.3210", "0.5610", "0.7210"],
    }
    assert [text for text, _ in first.groups] == ["digits, mAP@all", "other, mAP@all"]
    assert [[c.bits for c in columns] for _, columns in first.groups] == [[16, 32], [16, 32]]


def test_a_column_never_holds_trials_of_two_protocols_even_under_one_label(plan, store):
    made = plan(seeds=[0, 1])
    score(store, made, lambda trial: 0.5 + trial.seed / 10)
    # No study can say this: both are labelled "digits", and only one is of the other protocol.
    made.trials[1] = replace(made.trials[1], protocol="digits-other")
    (board,) = boards(made, store)
    assert board.columns == (
        Column("digits", "digits-30", "all", 16),
        Column("digits", "digits-other", "all", 16),
    )
    assert texts(board) == {"csch": ["0.5000", "0.6000"]}
    assert [(c.n, c.of) for c in board.lines[0].cells] == [(1, 1), (1, 1)]
    assert len(boards(made, store, apart=True)) == 2


def test_a_column_never_holds_two_cut_offs(plan, store):
    made = plan(seeds=[0, 1])
    score(store, made, lambda trial: 0.5)
    made.trials[1] = replace(made.trials[1], at=10)
    (board,) = boards(made, store)
    assert [column.at for column in board.columns] == ["all", "10"]


def test_mean_deviation_and_count_are_over_the_seeds_that_are_done(plan, store):
    made = plan(seeds=[0, 1, 2], methods=["csch", "csq"])
    maps = {("csch", 0): 0.5, ("csch", 2): 0.7, ("csq", 1): 0.25}
    score(store, made, lambda trial: maps.get((trial.method, trial.seed)))
    (board,) = boards(made, store)
    csch, csq = (line.cells[0] for line in board.lines)
    # mean 0.6, deviations -0.1 and 0.1, squares sum 0.02, / 1, root 0.141421
    assert (csch.n, csch.of, csch.mean) == (2, 3, pytest.approx(0.6))
    assert csch.sd == pytest.approx(0.1414213562)
    assert (csq.n, csq.of, csq.sd) == (1, 3, None)
    assert (csch.best, csq.best) == (True, False)
    assert any(note.startswith("(2 of 3)") for note in notes_of(board))


def test_what_is_equal_in_the_digits_shown_is_equally_best_and_one_method_is_no_best(plan, store):
    made = plan(methods=["csch", "csq", "orthohash"], bits=[16, 32])
    maps = {("csch", 16): 0.70004, ("csq", 16): 0.69996, ("orthohash", 16): 0.69994,
            ("csch", 32): 0.9}  # fmt: skip
    score(store, made, lambda trial: maps.get((trial.method, trial.bits)))
    (board,) = boards(made, store)
    shown = {line.method: [cell and cell.best for cell in line.cells] for line in board.lines}
    assert shown == {"csch": [True, False], "csq": [True, None], "orthohash": [False, None]}


def test_missing_cells_are_none_and_a_study_without_results_is_all_none(plan, store):
    (board,) = boards(plan(methods=["csch", "csq"]), store)
    assert texts(board) == {"csch": [None], "csq": [None]}


# ---- significance ---------------------------------------------------------------------------


def with_queries(store: StageStore, plan: Plan, queries) -> None:
    for trial in plan.trials:
        values = queries(trial)
        if values is not None:
            result = {"map": float(np.mean(values))}
            finish(store, plan, trial.id, result, queries=values)


def all_signs(difference: list[float]) -> float:
    """The sign-flip test by enumeration."""
    found = abs(sum(difference))
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(difference))
    ]
    return sum(one >= found - 1e-12 for one in sums) / len(sums)


def test_p_values_are_those_of_the_sign_flip_test_adjusted_for_all_pairs(plan, store):
    made = plan(methods=["csch", "csq", "orthohash"])
    values = {
        "csch": [0.9, 0.8, 0.7, 0.95, 0.85, 0.75, 0.9, 0.8],
        "csq": [0.7, 0.65, 0.72, 0.6, 0.8, 0.7, 0.65, 0.75],
        "orthohash": [0.2, 0.1, 0.3, 0.25, 0.1, 0.2, 0.15, 0.05],
    }
    with_queries(store, made, lambda trial: values[trial.method])
    (board,) = boards(made, store)
    raw = {
        name: all_signs([a - b for a, b in zip(values[name], values["csch"], strict=True)])
        for name in ("csq", "orthohash")
    }
    assert raw["orthohash"] == 2 / 2**8
    # Three methods are three pairs, of which these two were tested: the smaller p-value counts
    # three times, the other one twice and not below the first.
    first = 3 * raw["orthohash"]
    expected = {"orthohash": first, "csq": max(first, 2 * raw["csq"])}
    cells = {line.method: line.cells[0] for line in board.lines}
    assert {name: cells[name].p_value for name in expected} == pytest.approx(expected)
    assert cells["csch"].p_value is None
    assert [cells[name].mark for name in values] == ["", "▽", "▽"]
    (note,) = notes_of(board)
    assert note.startswith("▽, ▼: below the best of the column, p < 0.05 and p < 0.01")


def test_a_difference_that_chance_explains_has_no_mark(plan, store):
    made = plan(methods=["csch", "csq"])
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.2, 0.8, size=200)
    with_queries(store, made, lambda t: noise if t.method == "csch" else np.roll(noise, 1) - 0.001)
    (board,) = boards(made, store)
    csq = board.lines[1].cells[0]
    assert not csq.best and csq.p_value > 0.5 and csq.mark == ""


def test_a_difference_on_every_query_is_marked_at_the_strict_level(plan, store):
    made = plan(methods=["csch", "csq"])
    with_queries(store, made, lambda t: np.full(100, 0.9 if t.method == "csch" else 0.8))
    (board,) = boards(made, store)
    # Hoeffding: 2 exp(-(100 d)^2 / (2 * 100 d^2)) = 2 exp(-50); one pair.
    assert board.lines[1].cells[0].p_value == pytest.approx(2 * np.exp(-50.0), rel=1e-6)
    assert board.lines[1].cells[0].mark == "▼"


def test_queries_are_compared_over_the_seeds_that_both_have(plan, store):
    made = plan(methods=["csch", "csq"], seeds=[0, 1])
    values = {
        ("csch", 0): [0.9] * 8,
        ("csch", 1): [0.9] * 8,
        ("csq", 0): [0.8] * 8,  # its seed 1 is not done
    }
    with_queries(store, made, lambda t: values.get((t.method, t.seed)))
    (board,) = boards(made, store)
    assert board.lines[1].cells[0].p_value == 2 / 2**8
    other = {("csch", 0): [0.9] * 8, ("csq", 1): [0.8] * 8}
    apart = open_store(store.root.parent / "apart")
    with_queries(apart, made, lambda t: other.get((t.method, t.seed)))
    (board,) = boards(made, apart)
    assert board.lines[1].cells[0].p_value is None
    assert board.lines[1].cells[0].mark == ""


def test_queries_without_an_answer_are_left_out(plan, store):
    made = plan(methods=["csch", "csq"])
    values = {"csch": [0.9, np.nan, 0.9, 0.9], "csq": [0.8, np.nan, 0.8, 0.8]}
    for trial in made.trials:
        finish(store, made, trial.id, {"map": 0.5}, queries=values[trial.method])
    (board,) = boards(made, store)
    assert board.lines[1].cells[0].p_value == 2 / 2**3


def test_scores_that_are_not_what_was_written_are_refused_and_no_test_reads_none(plan, store):
    made = plan(methods=["csch", "csq"])
    with_queries(store, made, lambda t: [0.9] * 8 if t.method == "csch" else [0.8] * 8)
    file = store.folder(made.trials[0].id) / "average_precision.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreCorrupt):
        boards(made, store)
    (board,) = boards(made, store, tests=False)
    assert [line.cells[0].p_value for line in board.lines] == [None, None]


# ---- published numbers ----------------------------------------------------------------------


def test_a_difference_to_a_published_number_is_ours_minus_theirs_and_only_of_like_numbers():
    printed = Published(value=0.8665, tables="Table 2", paper="CSCH")
    assert Cell(0.8700, None, 1, 1, published=printed).delta == pytest.approx(0.0035)
    other = replace(printed, differs=("query: epochs 8, not 150",))
    assert Cell(0.8700, None, 1, 1, published=other).delta is None
    assert Cell(0.8700, None, 1, 1).delta is None


def test_no_study_on_digits_has_published_numbers(plan, store):
    made = plan(evaluate={"legacy": ["orthohash"]})
    finish(store, made, made.trials[0].id, {"map": 0.5, "map_orthohash": 0.5})
    every = boards(made, store)
    assert [board.score for board in every] == ["map", "map_orthohash"]
    assert all(cell.published is None for b in every for line in b.lines for cell in line.cells)
