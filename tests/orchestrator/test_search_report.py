from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest
import yaml

from orchestrator.findings import Estimate
from orchestrator.search_axes import axis_of, dimension_ticks, shortened, value_text
from orchestrator.search_report import (
    SEARCH_FORMATS,
    WHY_BOTH,
    cell_names,
    counts_text,
    curve_text,
    how_text,
    interval_text,
    point_table,
    range_text,
    recommendation_text,
    search_results,
    search_rows,
    setting_yaml,
    state_text,
)
from orchestrator.session import open_session
from search_spaces.options import Sensitivity, Tuning
from search_spaces.space import Space
from search_spaces.tried import Tried
from tests.orchestrator.conftest import BASE
from tests.orchestrator.searched import (
    CENTER,
    around,
    cell,
    observed,
    results,
    sensitivity,
    tuning,
)

# ---- axes ----------------------------------------------------------------------------------


def test_values_a_decade_apart_lie_evenly_and_zero_beyond_a_break() -> None:
    axis = axis_of("gamma", [1000, 0, 0.1, 1, 10, 100])
    assert axis.scale == "log"
    assert [axis.place(v) for v in (0.1, 1, 10, 100, 1000)] == pytest.approx([-1, 0, 1, 2, 3])
    assert axis.zero == axis.place(0) == pytest.approx(-2)
    assert [text for _, text in axis.ticks] == ["0", "0.1", "1", "10", "100", "1000"]


def test_two_values_a_decade_apart_and_zero_do_not_lie_on_each_other() -> None:
    axis = axis_of("x", [0, 1e-5, 1e-4])
    assert axis.scale == "log"
    places = [place for place, _ in axis.ticks]
    assert places == pytest.approx([-6, -5, -4])


def test_halves_of_halves_read_as_fractions_and_tenths_as_decimals() -> None:
    halves = axis_of("tau", [0.0625, 0.125, 0.25, 0.5, 1.0])
    assert [text for _, text in halves.ticks] == ["1/16", "1/8", "1/4", "1/2", "1"]
    assert halves.scale == "log"
    tenths = axis_of("margin", [0.0, 0.1, 0.2, 0.3])
    assert [text for _, text in tenths.ticks] == ["0", "0.1", "0.2", "0.3"]
    assert tenths.scale == "linear"
    assert [text for _, text in axis_of("x", [0.5, 1.0]).ticks] == ["0.5", "1"]


def test_negative_values_over_decades_lie_on_both_sides_of_zero() -> None:
    axis = axis_of("x", [-100, -1, 0, 1, 100])
    assert axis.scale == "symlog"
    assert [axis.place(v) for v in (-100, -1, 0, 1, 100)] == pytest.approx([-3, -1, 0, 1, 3])
    assert axis_of("x", [-1, 0, 1]).scale == "linear"


def test_many_negative_values_are_labelled_at_powers_of_ten_only() -> None:
    values = [sign * 10 ** (i / 4) for sign in (-1, 1) for i in range(9)]
    assert [text for _, text in axis_of("x", values).ticks] == [
        "-100", "-10", "-1", "0", "1", "10", "100",
    ]  # fmt: skip


def test_a_range_that_is_searched_evenly_is_drawn_evenly_however_wide() -> None:
    given = {"type": "float", "low": 0.0, "high": 1000.0}
    dimension = Space.parse({"x": given}).dimensions["x"]
    assert axis_of("x", [0.1, 1.0, 10.0, 1000.0], dimension).scale == "linear"
    assert axis_of("x", [0.1, 1.0, 10.0, 1000.0]).scale == "log"
    logarithmic = Space.parse({"x": {"type": "log_float", "low": 1.0, "high": 2.0}})
    assert axis_of("x", [1.0, 2.0], logarithmic.dimensions["x"]).scale == "log"


def test_many_values_are_labelled_at_round_numbers_inside_their_range() -> None:
    linear = axis_of("margin", [i * 0.0131 for i in range(60)])
    assert [text for _, text in linear.ticks] == ["0", "0.2", "0.4", "0.6"]
    log = axis_of("gamma", [10 ** (i / 10) for i in range(-10, 31)])
    assert [text for _, text in log.ticks] == ["0.1", "1", "10", "100", "1000"]


def test_choices_keep_the_order_of_the_space_and_numbers_are_no_booleans() -> None:
    space = Space.parse({"x": ["b", "a", True]})
    axis = axis_of("x", [True, "a", "b"], space.dimensions["x"])
    assert axis.scale == "category"
    assert [text for _, text in axis.ticks] == ["b", "a", "true"]
    assert axis.place("a") == 1
    mixed = axis_of("x", [1, "a"])
    assert mixed.place(1.0) == 0
    with pytest.raises(ValueError):
        mixed.place(True)


def test_a_dimension_is_labelled_where_its_values_lie() -> None:
    space = Space.parse({"x": {"type": "log_float", "low": 0.01, "high": 100.0}, "y": ["a", "b"]})
    ticks = dimension_ticks(space.dimensions["x"])
    assert [place for place, _ in ticks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert [text for _, text in ticks] == ["0.01", "0.1", "1", "10", "100"]
    assert [text for _, text in dimension_ticks(space.dimensions["y"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (1e-5, "1e-05"),
        (12, "12"),
        (True, "true"),
        (False, "false"),
        (None, "none"),
        ("contr_sg", "contr_sg"),
        ({"name": "caq", "mode": "add"}, "caq(add)"),
    ],
)
def test_a_value_reads_as_a_table_has_it(value: object, text: str) -> None:
    assert value_text(value) == text


def test_a_shortened_text_keeps_both_ends_and_the_length_asked_for() -> None:
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abcde", 5) == "abcde"


# ---- rows ----------------------------------------------------------------------------------


def test_json_has_a_row_for_each_trial_and_a_test_map_for_what_was_chosen_only() -> None:
    best = {**CENTER, "margin": 0.0}
    study = sensitivity(failed=(3,), pruned=(4,), missing=(5,), chosen=best)
    rows = json.loads(SEARCH_FORMATS["json"](study))
    assert len(rows) == 3 * len(around()) + 3
    scored = [row for row in rows if row["map"] is not None]
    assert [(row["number"], row["values"]) for row in scored] == [(None, best)] * 3
    assert [row["state"] for row in rows if row["seed"] == 0][3:6] == [
        "failed",
        "pruned",
        "missing",
    ]
    first = rows[0]
    assert {name: first[name] for name in ("method", "dataset", "pair", "bits", "seed")} == {
        "method": "csch", "dataset": "digits", "pair": "effnet-resnet", "bits": 16, "seed": 0,
    }  # fmt: skip
    # 0.8 - 0.02 (1 - 1)^2 - 0.1 * 0.2 - 0.03 (-2 + 2)^2, less 0.01 for the first of three seeds
    assert first["map_validation"] == pytest.approx(0.77)
    assert first["at"] == "all"


def test_bits_and_pair_of_a_row_are_those_of_the_point_where_the_space_has_them() -> None:
    own = cell(space={"bits": [16, 32], "pair": ["a", "b"]}, bits=None, pair="")
    point = {"bits": 32, "pair": "b"}
    (row,) = search_rows(results([own], observed(own, [point], (0,)), center=point))
    assert (row["bits"], row["pair"]) == (32, "b")


def test_csv_has_a_column_for_each_dimension_empty_where_it_does_not_count() -> None:
    own = cell(space={"mode": ["a", "b"], "m": {"type": "float", "low": 0, "high": 1}})
    points = [{"mode": "a"}, {"mode": "b", "m": 0.5}]
    options = Sensitivity(design="latin_hypercube")
    study = results([own], observed(own, points, (0,)), options, center=points[0])
    rows = list(csv.DictReader(io.StringIO(SEARCH_FORMATS["csv"](study))))
    assert [(row["search.mode"], row["search.m"]) for row in rows] == [("a", ""), ("b", "0.5")]
    assert [row["map"] for row in rows] == ["", ""]


@pytest.mark.parametrize("name", sorted(SEARCH_FORMATS))
def test_the_same_results_give_the_same_text(name: str) -> None:
    assert SEARCH_FORMATS[name](sensitivity()) == SEARCH_FORMATS[name](sensitivity())


# ---- tables and sentences ------------------------------------------------------------------


def test_points_are_listed_by_validation_and_those_without_one_last() -> None:
    study = sensitivity(failed=(2,), pruned=(4,))
    heads, lines = point_table(study, study.cells[0], study.findings[0])
    assert heads == ["#", "gamma", "margin", "tau", "validation mAP", "state"]
    shown = [float(line[4].split()[0]) for line, _ in lines[:-2]]
    assert shown == sorted(shown, reverse=True)
    # The best is margin 0: 0.8 over the seeds -0.01, 0 and +0.01, whose sd is 0.01.
    assert lines[0] == (["6", "10", "0", "0.25", "0.8000 ± 0.0100", "done"], True)
    assert [line[0] for line, _ in lines[-2:]] == ["2", "4"]
    assert lines[-2][0][-1] == "failed"
    # gamma 100 has 0.8 - 0.02 - 0.1 * 0.2, the first seed 0.01 less, and 3/4 of it in 2 epochs.
    assert lines[-1][0][-1] == "pruned at epoch 2 (0.5625)"
    assert sum(best for _, best in lines) == 1


def test_a_mean_over_fewer_seeds_says_so_and_stands_after_all_that_have_them() -> None:
    own = cell()
    seen = observed(own, around())
    lost = seen[6 * 3]  # the first seed of the best
    seen[6 * 3] = dataclasses.replace(lost, state="failed", validation=None)
    study = results([own], seen)
    _, lines = point_table(study, own, study.findings[0])
    assert lines[-1][0][4] == "(2 of 3) 0.8050 ± 0.0071"
    assert not lines[-1][1]


def test_text_marks_the_recommended_point_and_has_both_scores_of_what_was_chosen() -> None:
    best = {**CENTER, "margin": 0.0}
    text = SEARCH_FORMATS["text"](sensitivity(chosen=best))
    (line,) = [line for line in text.splitlines() if "*" in line]
    assert line.split()[:4] == ["6", "10", "0", "0.25"]
    (chosen,) = [line for line in text.splitlines() if line.startswith("recommended")]
    assert chosen.endswith("0.8000 ± 0.0100  0.7800 ± 0.0100")
    assert WHY_BOTH in text


def test_without_a_score_on_the_test_queries_no_table_pretends_one() -> None:
    text = SEARCH_FORMATS["text"](sensitivity())
    assert WHY_BOTH not in text
    assert "It is not scored on the test queries yet." in text


def test_markdown_shows_names_as_they_are_and_the_recommended_line_in_bold() -> None:
    own = cell(dataset="my_*data*|x")
    text = SEARCH_FORMATS["md"](results([own], observed(own, around())))
    assert "my\\_\\*data\\*\\|x" in text
    assert "| **6** | **10** | **0** | **0.25** |" in text


def test_failures_are_listed_with_their_reasons() -> None:
    text = SEARCH_FORMATS["text"](sensitivity((0,), failed=(1,)))
    assert "1 trial failed:" in text
    assert "#1 (gamma 0, margin 0.2, tau 0.25) · s0: out of memory: 3 GiB wanted" in text


def test_a_recommendation_says_where_it_is_from_and_that_it_is_optimistic() -> None:
    study = sensitivity(chosen={**CENTER, "margin": 0.0})
    lines = recommendation_text(study.findings[0], study.cells[0])
    # Student's t at 2 degrees of freedom is 4.3027: 0.8 -+ 4.3027 * 0.01 / sqrt(3)
    assert lines[0] == (
        "Recommended: gamma 10, margin 0, tau 0.25, with validation mAP 0.8000 (95 % interval "
        "0.7752 to 0.8248, 3 seeds), the highest of 15 candidates."
    )
    assert lines[1].startswith("That is optimistic")
    assert lines[2].startswith("On the test queries, which did not choose it: mAP 0.7800 ± 0.0100")
    assert any("margin 0 is at the edge of its range" in line for line in lines)


def test_an_interval_of_a_map_ends_where_map_does() -> None:
    wide = Estimate(2, 0.5, 0.4, -0.7, 1.7)
    assert interval_text(wide, 0.95) == "95 % interval 0.0000 to 1.0000"
    assert interval_text(Estimate(2, 0.5, 0.1, 0.25, 0.75), 0.9) == (
        "90 % interval 0.2500 to 0.7500"
    )
    assert interval_text(Estimate(1, 0.5), 0.95) == ""


def test_with_one_seed_nothing_is_said_of_chance() -> None:
    study = sensitivity((0,))
    lines = recommendation_text(study.findings[0], study.cells[0])
    assert "1 seed cannot say which differences between settings are more than chance." in lines
    assert not any("interval" in line or "resamples" in line for line in lines)


def test_nothing_is_recommended_before_a_point_is_complete() -> None:
    own = cell()
    study = results([own], observed(own, around(), missing=range(15)))
    assert recommendation_text(study.findings[0], own) == [
        "No point is complete yet, so nothing is recommended."
    ]
    assert "No point is complete yet" in SEARCH_FORMATS["text"](study)


def test_the_study_s_own_setting_says_what_it_loses() -> None:
    study = sensitivity()
    lines = recommendation_text(study.findings[0], study.cells[0])
    # All seeds differ by the same 0.1 * 0.2, so the interval of the difference is a point.
    assert (
        "Against the study's own setting (gamma 10, margin 0.2, tau 0.25): +0.0200 (95 % interval "
        "+0.0200 to +0.0200) on validation."
    ) in lines


def curve_with(flat, *, best=10, interior=True, matters=True):
    study = sensitivity()
    curve = study.findings[0].curves[0]
    return dataclasses.replace(curve, flat=flat, best=best, interior=interior, matters=matters)


@pytest.mark.parametrize(
    ("flat", "text"),
    [
        ((10,), "gamma: best at 10; every other value can be told from it at 3 seeds."),
        ((10, 1000), "gamma: best at 10; 1000 cannot be told from it at 3 seeds."),
        ((0.1, 10, 1000), "gamma: best at 10; 0.1 and 1000 cannot be told from it at 3 seeds."),
        ((1, 10, 100), "gamma: best at 10; 1 ... 100 cannot be told from it at 3 seeds."),
        (None, "gamma: best at 10; one seed cannot say which differences are more than chance."),
    ],
)
def test_a_curve_says_which_values_cannot_be_told_from_the_best(flat, text) -> None:
    assert curve_text(curve_with(flat), 3) == text


def test_a_curve_says_that_nothing_matters_and_that_the_best_is_an_end() -> None:
    everything = curve_with((0, 0.1, 1, 10, 100, 1000), best=0, interior=False, matters=False)
    assert curve_text(everything, 3) == (
        "gamma: best at 0, an end of what was measured; no value can be told from it at 3 seeds."
    )
    unmeasured = dataclasses.replace(everything, best=None)
    assert curve_text(unmeasured, 3) == "gamma: nothing is measured yet."


def test_a_curve_of_one_measured_value_is_not_told_from_others() -> None:
    curve = curve_with((10,))
    alone = tuple(
        one if one.value == 10 else dataclasses.replace(one, validation=None)
        for one in curve.points
    )
    assert curve_text(dataclasses.replace(curve, points=alone), 3) == (
        "gamma: only 10 is measured yet."
    )


def test_a_curve_under_a_condition_names_it() -> None:
    held = dataclasses.replace(curve_with((10,)), held={"instance": "contr_sg"})
    assert curve_text(held, 3).startswith("gamma (with instance contr_sg): best at 10")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"type": "log_float", "low": 0.1, "high": 1000.0}, "0.1 to 1000, by its logarithm"),
        ({"type": "float", "low": 0.0, "high": 0.5, "step": 0.1}, "0 to 0.5, in steps of 0.1"),
        ({"type": "int", "low": 1, "high": 64, "log": True},
         "1 to 64, by its logarithm, whole numbers"),
        ({"type": "int", "low": 1, "high": 9, "step": 2}, "1 to 9, in steps of 2, whole numbers"),
        (["a", None, 0.25], "one of a, none, 0.25"),
        (3, "always 3"),
    ],
)  # fmt: skip
def test_a_range_reads_as_what_is_searched(given: object, text: str) -> None:
    assert range_text(Space.parse({"x": given}).dimensions["x"]) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Sensitivity(), "one at a time"),
        (Sensitivity(design="factorial"), "factorial"),
        (Sensitivity(design="sobol", samples=32, seed=4), "sobol, 32 samples, seed 4"),
        (Sensitivity(design="latin_hypercube", samples=9), "latin hypercube, 9 samples, seed 0"),
        (Tuning(sampler="gp"), "sampler gp, no pruner, 50 points, seed 0"),
        (Tuning(pruner="asha", trials=8), "sampler tpe, pruner asha, 8 points, seed 0"),
    ],
)
def test_how_points_were_chosen_is_said_of_each_design_and_sampler(options, text) -> None:
    assert how_text(dataclasses.replace(sensitivity((0,)), options=options)) == text


def test_time_says_what_trials_by_themselves_would_have_cost_where_that_is_more() -> None:
    study = dataclasses.replace(sensitivity((0,)), seconds=90.0, naive_seconds=270.0)
    text = SEARCH_FORMATS["text"](study)
    assert text.endswith(
        "1 min 30 s of training and evaluation; the same trials as scripts of their own, which "
        "share no stage: 4 min 30 s\n"
    )
    alone = dataclasses.replace(study, naive_seconds=90.0)
    assert "scripts" not in SEARCH_FORMATS["text"](alone)


def test_time_says_that_stopped_trainings_are_not_in_it() -> None:
    study = dataclasses.replace(sensitivity((0,), pruned=(4,)), seconds=90.0)
    text = SEARCH_FORMATS["text"](study)
    assert text.endswith(
        "1 min 30 s of training and evaluation (those that were stopped not counted)\n"
    )


def test_points_that_were_proposed_again_are_counted() -> None:
    study = dataclasses.replace(sensitivity((0,)), repeated=2)
    assert counts_text(study).endswith(" points done, 2 proposed again")
    assert "again" not in counts_text(dataclasses.replace(study, repeated=0))


def test_the_cut_off_stands_at_the_test_map_alone() -> None:
    """The validation mAP ranks the whole validation gallery, whatever the protocol's cut-off."""
    best = {"gamma": 10, "margin": 0.0, "tau": 0.25}
    study = dataclasses.replace(sensitivity((0,), chosen=best), at={"digits": 1000})
    text = SEARCH_FORMATS["text"](study)
    assert "test mAP@1000" in text
    assert "validation mAP@" not in text


def test_cells_are_told_apart_by_what_differs_between_them() -> None:
    cells = [cell(0, bits=16), cell(1, bits=32, dataset="cifar10")]
    assert cell_names(cells) == ["16 bit · digits", "32 bit · cifar10"]
    assert cell_names(cells[:1]) == [cells[0].name]


def test_a_setting_as_yaml_is_the_part_of_a_study_that_holds_it() -> None:
    own = dataclasses.replace(cell(), base={"gamma": 1.0, "center_loss": True})
    values = {
        "gamma": 10,
        "train.query.lr_head": 0.001,
        "train.epochs": 3,
        "bits": 32,
        "pair": "p",
    }
    assert yaml.safe_load(setting_yaml(own, values)) == {
        "methods": {"csch": {"gamma": 10, "center_loss": True}},
        "train": {"query": {"lr_head": 0.001}, "epochs": 3},
        "bits": [32],
        "pairs": ["p"],
    }


def test_objectives_stand_beside_map_in_the_table_of_points() -> None:
    from orchestrator.findings import pareto

    study = dataclasses.replace(
        tuning(3),
        options=Tuning(objectives=["map", "bits"], sampler="nsga2"),
        pareto={0: pareto({0: (0.7, 16.0), 1: (0.6, 8.0)}, ["maximize", "minimize"])},
    )
    heads, lines = point_table(study, study.cells[0], study.findings[0])
    assert heads[-2:] == ["bits", "state"]
    assert {line[0]: line[-2] for line, _ in lines} == {"0": "16", "1": "8", "2": "-"}


def test_a_pruned_point_without_reports_is_pruned_and_no_more() -> None:
    study = sensitivity((0,), pruned=(1,))
    point = study.findings[0].points[1]
    assert state_text(dataclasses.replace(point, last={})) == "pruned"
    assert state_text(study.findings[0].points[0]) == "done"


# ---- a session -----------------------------------------------------------------------------


def test_results_of_a_session_have_every_cell_point_and_the_reports_of_what_was_stopped(
    tmp_path,
) -> None:
    study = {
        **BASE,
        "kind": "tuning",
        "bits": [16, 32],
        "search": {"gamma": {"type": "log_float", "low": 0.1, "high": 1000}},
        "tuning": {"sampler": "tpe", "startup": 2, "pruner": "median"},
    }
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(study))
    session = open_session(str(path), home=tmp_path / "home")
    first, second = session.planner.cells
    trials = [
        session.planner.add(first, {"gamma": gamma}, [0], number=number)[0]
        for number, gamma in enumerate([10.0, 1.0, 100.0, 5.0])
    ]
    session.search.pruned.add(trials[3].id)
    tried = {
        0: [
            Tried(0, {"gamma": 10.0}, "complete", (0.7,), {1: 0.5}),
            Tried(1, {"gamma": 1.0}, "complete", (0.6,), {1: 0.4}),
            Tried(2, {"gamma": 100.0}, "complete", (0.6,), {1: 0.4}),
            Tried(3, {"gamma": 5.0}, "pruned", None, {1: 0.2}),
        ]
    }
    found = search_results(session, tried, {0: 1})
    assert [cell.name for cell in found.cells] == [first.name, second.name]
    assert found.centers[0] == {"gamma": session.planner.values_of(first)["gamma"]}
    assert [one.state for one in found.observations] == ["missing"] * 3 + ["pruned"]
    assert found.observations[3].by_epoch == {1: 0.2}
    assert (found.warm, found.startup) == ({0: frozenset({0})}, {0: frozenset({1})})
    assert found.pareto == {0: []}
    assert (found.seconds, found.naive_seconds) == (0.0, 0.0)
