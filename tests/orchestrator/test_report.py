"""The table, from a store made by hand: means, marks, missing and failed trials, sharing."""

import csv
import io
import json

import pytest

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan
from orchestrator.report import Sharing, failure_text, rows, sharing
from orchestrator.reporting.formats import FORMATS, study_bytes
from orchestrator.reporting.leaderboard import leaderboards
from orchestrator.reporting.results import gather
from orchestrator.reporting.text import title_of_one
from orchestrator.store import StageStore, open_store
from tests.orchestrator.scored import finish, planned, score


@pytest.fixture
def plan(tmp_path):
    return lambda **changes: planned(tmp_path, **changes)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


def formatted(form: str, plan: Plan, store: StageStore) -> str:
    return study_bytes(gather(plan, store), form).decode()


def to_text(plan: Plan, store: StageStore) -> str:
    return formatted("text", plan, store)


def to_markdown(plan: Plan, store: StageStore) -> str:
    return formatted("md", plan, store)


def boards_of(plan: Plan, store: StageStore):
    return leaderboards(gather(plan, store), apart=True)


def table(plan: Plan, store: StageStore) -> dict[str, list[str | None]]:
    (board,) = boards_of(plan, store)
    return {line.method: [cell and cell.text() for cell in line.cells] for line in board.lines}


def test_rows_hold_coordinates_scores_and_status(plan, store):
    made = plan(methods=["csch", "csq"], seeds=[3])
    score(store, made, lambda trial: 0.5 if trial.method == "csch" else None)
    done, missing = rows(made, store)
    wanted = {"method": "csch", "dataset": "digits", "pair": "tiny", "bits": 16, "seed": 3}
    assert {key: done[key] for key in wanted} == wanted
    assert (done["map"], done["map_stable"], done["status"], done["at"]) == (
        0.5,
        0.49,
        "done",
        "all",
    )
    assert (missing["map"], missing["status"], missing["reason"]) == (None, "missing", None)
    assert done["params"]["gamma"] == 100.0


def test_mean_and_sample_deviation_over_seeds(plan, store):
    made = plan(seeds=[0, 1, 2])
    score(store, made, lambda trial: [0.5, 0.6, 0.8][trial.seed])
    # mean 1.9 / 3 = 0.63333; deviations -0.13333, -0.03333, 0.16667; squares 0.017778, 0.001111,
    # 0.027778, sum 0.046667; / 2 = 0.023333; root 0.152753
    assert table(made, store) == {"csch": ["0.6333 ± 0.1528"]}
    assert "digits · tiny · mAP@all, mean ± sd of 3 seeds" in to_text(made, store)


def test_a_mean_over_some_of_the_seeds_says_so(plan, store):
    made = plan(seeds=[0, 1, 2], methods=["csch", "csq"])
    maps = {("csch", 0): 0.5, ("csch", 2): 0.7, ("csq", 1): 0.25}
    score(store, made, lambda trial: maps.get((trial.method, trial.seed)))
    # mean 0.6, deviations -0.1 and 0.1, squares sum 0.02, / 1, root 0.141421
    assert table(made, store) == {"csch": ["(2 of 3) 0.6000 ± 0.1414"], "csq": ["(1 of 3) 0.2500"]}


def test_text_is_aligned_and_marks_the_best(plan, store):
    made = plan(methods=["csch", "orthohash", "csq"], bits=[16, 32, 48])
    maps = {
        ("csch", 16): 0.9,
        ("orthohash", 16): 0.8,
        ("csch", 32): 0.7,
        ("orthohash", 32): 0.70001,
        ("csq", 48): 0.6,
    }
    score(store, made, lambda trial: maps.get((trial.method, trial.bits)))
    assert to_text(made, store) == (
        "digits · tiny · mAP@all\n"
        "---------------------------------------\n"
        "method       16 bit    32 bit    48 bit\n"
        "---------------------------------------\n"
        "csch       0.9000 *  0.7000 *       -\n"
        "orthohash  0.8000    0.7000 *       -\n"
        "csq             -         -    0.6000\n"
        "---------------------------------------\n"
    )


def test_columns_keep_their_edges_whatever_is_in_them(plan, store):
    made = plan(methods={"csch": {"gamma": [1.0, 10.0]}, "csq": {}}, bits=[16, 1024], seeds=[0, 1])
    score(store, made, lambda trial: None if trial.seed and trial.bits == 16 else trial.seed / 3)
    lines = to_text(made, store).splitlines()[4:-1]
    assert [line.split("  ")[0] for line in lines] == ["csch gamma=1.0", "csch gamma=10.0", "csq"]
    ends = [[i for i in range(len(line) - 3) if line[i] == "." and line[i + 1 : i + 5].isdigit()]
            for line in (line[16:] for line in lines)]  # fmt: skip
    assert ends[0] == ends[1] == ends[2]


def test_settings_that_vary_are_shown_and_others_are_not(plan, store):
    made = plan(methods={"csch": {"gamma": [1.0, 10.0], "margin": 0.3}})
    assert list(table(made, store)) == ["csch gamma=1.0", "csch gamma=10.0"]


def test_a_method_given_twice_has_a_row_for_each_setting(plan, store):
    made = plan(methods=["csch", {"csch": {"assign": "A_r"}}, {"csch": {"margin": 0.3}}])
    assert list(table(made, store)) == ["csch", "csch assign=A_r", "csch margin=0.3"]


def test_quantizers_are_shown_by_name_and_mode(plan, store):
    caq = {"name": "caq", "mode": "replace"}
    made = plan(methods={"csch": {"quantizer": [None, "caq", caq]}})
    assert list(table(made, store)) == [
        "csch quantizer=none",
        "csch quantizer=caq(add,1.0)",
        "csch quantizer=caq(replace,1.0)",
    ]
    assert [trial.params["gamma"] for trial in made.trials] == [100.0, 100.0, 0.0]


def test_scores_by_continuous_codes_have_tables_of_their_own(plan, store):
    made = plan(evaluate={"retrieval": ["hamming", "asymmetric", "cosine"]})
    (trial,) = made.trials
    finish(store, made, trial.id, {"map": 0.5, "map_cosine": 0.7, "map_asymmetric": 0.6})
    shown = [(title_of_one(one), one.lines[0].cells[0].text()) for one in boards_of(made, store)]
    assert shown == [
        ("digits · tiny · mAP@all", "0.5000"),
        ("digits · tiny · mAP@all · cosine of continuous codes", "0.7000"),
        ("digits · tiny · mAP@all · continuous query, binary gallery", "0.6000"),
    ]
    (row,) = rows(made, store)
    assert (row["map"], row["map_cosine"], row["map_asymmetric"]) == (0.5, 0.7, 0.6)
    (plain,) = rows(plan(), store)
    assert "map_cosine" not in plain


def test_one_table_for_each_dataset_and_pair(plan, store):
    made = plan(datasets=["digits", {"name": "digits", "label": "again"}], pairs=["tiny", "small"])
    assert [(one.columns[0].dataset, one.pair) for one in boards_of(made, store)] == [
        ("digits", "tiny"),
        ("digits", "small"),
    ]  # the same dataset under another label has the same trials


def test_failed_trials_give_the_reason_of_the_stage_that_failed(plan, store):
    made = plan(methods=["csch", "csq"])
    csch = made.trials[0]
    store.note_failure(
        csch.stages["gallery"], {"kind": "diverged", "reason": "loss is not finite"}
    )
    failed, missing = rows(made, store)
    assert (failed["status"], failed["reason"]) == ("failed", "diverged: loss is not finite")
    assert missing["status"] == "missing"
    text = to_text(made, store)
    told = "1 trial failed:\n  csch · tiny · 16 bit · digits · s0: diverged: loss is not finite\n"
    assert text.endswith(told)
    assert "- csch · tiny · 16 bit · digits · s0: diverged" in to_markdown(made, store)


def test_a_failure_that_was_mended_is_not_told(plan, store):
    made = plan()
    (trial,) = made.trials
    store.note_failure(trial.stages["gallery"], {"kind": "lost", "reason": "the worker died"})
    finish(store, made, trial.stages["gallery"], {})
    score(store, made, lambda trial: 0.5)
    assert rows(made, store)[0]["status"] == "done"
    assert "failed" not in to_text(made, store)


def test_markdown_marks_the_best_and_escapes_names(plan, store):
    made = plan(
        methods={"csch": {"assign": ["A_r", "A_g"]}},
        datasets=[{"name": "digits", "label": "a|b*"}],
    )
    maps = {"assign=A_r": 0.25, "assign=A_g": 0.5}
    score(store, made, lambda trial: maps[trial.setting])
    assert to_markdown(made, store) == (
        "**a\\|b\\* · tiny · mAP@all**\n\n"
        "| method | 16 bit |\n"
        "| --- | ---: |\n"
        "| csch assign=A\\_r | 0.2500 |\n"
        "| csch assign=A\\_g | **0.5000** |\n"
    )


def test_csv_and_json_hold_the_same_rows(plan, store):
    made = plan(methods=["csch", "csq"], bits=[16, 32])
    score(store, made, lambda trial: trial.bits / 64 if trial.method == "csq" else None)
    by_json = json.loads(formatted("json", made, store))
    by_csv = list(csv.DictReader(io.StringIO(formatted("csv", made, store))))
    assert len(by_json) == len(by_csv) == 4
    for one, other in zip(by_json, by_csv, strict=True):
        assert list(one) == list(other)
        assert {"method", "dataset", "pair", "bits", "seed", "map"} <= set(one)
        assert other["map"] == ("" if one["map"] is None else str(one["map"]))
        assert json.loads(other["params"]) == one["params"]


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_the_same_results_give_the_same_bytes(plan, store, form, tmp_path):
    made = plan(methods=["csch", "csq"], seeds=[0, 1])
    other = StageStore(tmp_path / "other")
    for place in (store, other):
        score(place, made, lambda trial: 0.5 + trial.seed / 7)
    for trial in made.trials:  # what it cost differs from machine to machine
        finish(other, made, trial.stages["gallery"], {}, seconds=99.0) if trial.seed else None
    again = plan(methods=["csch", "csq"], seeds=[0, 1])
    assert study_bytes(gather(made, store), form) == study_bytes(gather(again, other), form)


def test_sharing_by_hand(plan, store):
    made = plan(methods={"csch": {"gamma": [1.0, 2.0, 3.0]}, "csq": {}})
    seconds = {"centers": 1.0, "gallery": 10.0, "recording": 4.0, "query": 3.0, "metrics": 0.5}
    for stage in made.stages.values():
        finish(store, made, stage.id, {"map": 0.5}, seconds[stage.kind])
    found = sharing(made, store)
    assert (found.galleries, found.users, found.avoided) == (2, 4, 2)
    # distinct: 2 centers, 2 galleries, 1 recording, 4 queries, 4 metrics: 2 + 20 + 4 + 12 + 2
    assert found.seconds == 40.0
    # csch's centers and gallery serve three trials: 2 x (1 + 10)
    assert found.saved == 22.0
    assert found.text() == (
        "2 gallery trainings served 4 trials: 2 were shared instead of repeated, which saved "
        "22 s of 1 min 02 s, 35% of the work"
    )


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Sharing(2, 2, 0, 40.0, 0.0), "2 gallery trainings served 2 trials: none was shared"),
        (
            Sharing(2, 2, 0, 30.0, 10.0),
            (
                "2 gallery trainings served 2 trials: none was shared; sharing other stages saved "
                "10 s of 40 s, 25% of the work"
            ),
        ),
        (
            Sharing(1, 2, 1, 30.0, 10.0),
            (
                "1 gallery training served 2 trials: 1 was shared instead of repeated, "
                "which saved 10 s of 40 s, 25% of the work"
            ),
        ),
    ],
)
def test_sharing_says_no_more_than_was_shared(found, text):
    assert found.text() == text


def test_a_reason_is_one_line_without_credentials_or_codes_of_a_terminal():
    said = "bad\n at\thttps://me:secret@host/ \x1b[2J\u202eend"
    assert failure_text({"kind": "bug", "reason": said}) == (
        "bug: bad at https://***@host/ [2J end"
    )


def test_sharing_counts_what_was_done_unless_it_may_estimate(plan, store):
    made = plan(methods={"csch": {"gamma": [1.0, 2.0]}})
    assert sharing(made, store).text() == "no gallery training was shared"
    estimated = sharing(made, store, Estimator())
    assert (estimated.galleries, estimated.users) == (1, 2)
    one = {kind: Estimator().seconds(made.of_kind(kind)[0]) for kind in ("centers", "gallery")}
    assert estimated.saved == pytest.approx(sum(one.values()))
