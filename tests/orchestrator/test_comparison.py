"""Comparisons of a study's methods, from scores that are made up here."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator import cli as command
from orchestrator.comparison import compare_study, to_text
from retrieval.errors import InputError, UnknownNameError

NAN = float("nan")


class Store:
    """A store that holds only what the tests put into it."""

    def __init__(self, folder, scores):
        self.folder, self.scores = folder, scores

    def is_done(self, stage):
        return stage in self.scores

    def read(self, stage, name):
        assert name == "average_precision.npy"
        path = self.folder / f"{stage}.npy"
        np.save(path, np.array(self.scores[stage]))
        return path


def study(tmp_path, scores):
    """Return a plan and a store of {(method, setting, bits, seed): scores or None}."""
    trials = []
    held = {}
    for number, ((method, setting, bits, seed), values) in enumerate(scores.items()):
        trials.append(
            SimpleNamespace(
                id=str(number),
                method=method,
                setting=setting,
                bits=bits,
                seed=seed,
                dataset="d",
                pair="p",
                at="all",
                scored=True,
            )
        )
        if values is not None:
            held[str(number)] = values
    return SimpleNamespace(trials=trials), Store(tmp_path, held)


A, B, C = [0.9, 0.8, 0.7, 0.6], [0.8, 0.6, 0.4, 0.2], [0.9, 0.8, 0.7, 0.5]


def test_the_best_of_each_column_is_the_reference(tmp_path):
    plan, store = study(
        tmp_path,
        {
            ("a", "", 16, 0): A,
            ("b", "", 16, 0): B,
            ("a", "", 32, 0): B,
            ("b", "", 32, 0): A,
        },
    )
    short, long = compare_study(plan, store, draws=200)
    assert (short.bits, short.reference, long.bits, long.reference) == (16, "a", 32, "b")
    first, second = short.lines
    assert first.against is None
    assert first.map == pytest.approx(0.75)
    assert second.against.difference == pytest.approx(-0.25)
    assert (second.against.better, second.against.equal, second.against.worse) == (0, 0, 4)
    # Of the 16 assignments of signs only all plus and all minus are as far from 0.
    assert second.against.p_value == second.p_holm == 2 / 16


@pytest.mark.parametrize(("to", "comparisons"), [("a", 2), (None, 3)])
def test_p_values_are_adjusted_for_all_comparisons_that_could_have_been_shown(
    tmp_path, to, comparisons
):
    plan, store = study(tmp_path, {("a", "", 16, 0): A, ("b", "", 16, 0): B, ("c", "", 16, 0): C})
    (found,) = compare_study(plan, store, to=to, draws=200)
    assert found.reference == "a"
    by_method = {line.method: line for line in found.lines}
    # A and c differ in one query: every assignment of signs is as far from 0.
    assert by_method["c"].against.p_value == 1.0
    assert by_method["b"].p_holm == comparisons * by_method["b"].against.p_value
    assert by_method["c"].p_holm == 1.0


def test_the_best_of_many_equal_methods_seldom_seems_better(tmp_path):
    # Twelve methods that differ by chance alone. Adjusted for the 11 comparisons shown, 15 of
    # these 60 tables would have a difference from the best at 0.05.
    random = np.random.default_rng(0)
    false = 0
    for _ in range(60):
        common = random.normal(0.5, 0.05, (1, 40))
        scores = np.clip(common + random.normal(0, 0.1, (12, 40)), 0, 1)
        plan, store = study(tmp_path, {(f"m{i}", "", 16, 0): s for i, s in enumerate(scores)})
        (found,) = compare_study(plan, store, draws=1999)
        false += min(line.p_holm for line in found.lines if line.against is not None) <= 0.05
    assert false <= 6  # at most 3 in expectation


@pytest.mark.parametrize("to", ["b", "b x=1"])
def test_any_method_can_be_the_reference(tmp_path, to):
    plan, store = study(tmp_path, {("a", "", 16, 0): A, ("b", "x=1", 16, 0): B})
    (found,) = compare_study(plan, store, to=to, draws=200)
    assert found.reference == "b x=1"
    assert found.lines[0].against.difference == pytest.approx(0.25)


def test_a_method_with_several_settings_must_be_named_with_one(tmp_path):
    plan, store = study(tmp_path, {("b", "x=1", 16, 0): A, ("b", "x=2", 16, 0): B})
    with pytest.raises(InputError, match="2 settings of it: 'b x=1', 'b x=2'"):
        compare_study(plan, store, to="b")
    with pytest.raises(UnknownNameError, match="did you mean 'b x=2'"):
        compare_study(plan, store, to="b x=3x2")


def test_scores_are_means_over_the_seeds_that_both_have(tmp_path):
    other = [0.0, 0.0, 0.0, 0.0]
    plan, store = study(
        tmp_path,
        {
            ("a", "", 16, 0): A,
            ("a", "", 16, 1): C,
            ("b", "", 16, 0): B,
            ("b", "", 16, 1): B,
            ("b", "", 16, 2): other,
            ("c", "", 16, 2): other,
        },
    )
    (found,) = compare_study(plan, store, draws=200)
    a, b, c = found.lines
    assert (a.seeds, b.seeds, c.seeds) == ([0, 1], [0, 1, 2], [2])
    assert a.map == pytest.approx((0.75 + 0.725) / 2)
    # Over seeds 0 and 1: a has the means of A and C, b has B.
    assert b.against.difference == pytest.approx(0.5 - (0.75 + 0.725) / 2)
    assert c.against is None, "no seed in common"
    assert c.p_holm is None


def test_what_is_not_done_is_shown_and_compared_with_nothing(tmp_path):
    plan, store = study(tmp_path, {("a", "", 16, 0): A, ("b", "", 16, 0): None})
    (found,) = compare_study(plan, store, draws=200)
    assert found.lines[1].map is None
    assert found.rows()[1]["p_value"] is None
    (none,) = compare_study(plan, store, to="b", draws=200)
    assert none.reference is None
    assert none.lines[0].against is None
    plan, store = study(tmp_path, {("a", "", 16, 0): None})
    (empty,) = compare_study(plan, store)
    assert (empty.reference, empty.lines[0].map) == (None, None)


def test_queries_that_nothing_answers_are_left_out(tmp_path):
    plan, store = study(
        tmp_path, {("a", "", 16, 0): [0.5, NAN, 1.0], ("b", "", 16, 0): [0.25, NAN, 0.25]}
    )
    (found,) = compare_study(plan, store, draws=200)
    assert found.lines[0].map == 0.75
    assert found.lines[1].against.queries == 2


def test_the_text_names_the_reference_and_every_method(tmp_path):
    plan, store = study(
        tmp_path, {("a", "", 16, 0): A, ("b", "", 16, 0): B, ("c", "", 16, 0): None}
    )
    text = to_text(compare_study(plan, store, draws=200))
    title, _, head, _, first, second, third, *_ = text.splitlines()
    assert title == "d · p · 16 bit · mAP@all, against a"
    assert head.split()[:2] == ["method", "mAP"]
    assert first.split()[:2] == ["a", "0.7500"] and "reference" in first
    assert "-0.2500" in second and second.split()[-4:] == ["0.1250", "0.1250", "0", "4"]
    assert third.split() == ["c", "-"]


def test_rows_are_plain_values(tmp_path):
    plan, store = study(tmp_path, {("a", "", 16, 0): A, ("b", "", 16, 0): B})
    (found,) = compare_study(plan, store, draws=200)
    rows = json.loads(json.dumps(found.rows()))
    assert rows[1]["reference"] == "a"
    assert rows[1]["difference_low"] <= rows[1]["difference"] <= rows[1]["difference_high"]
    assert all(set(one) == set(other) for one, other in itertools.pairwise(rows))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", "home")
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "study: tiny\n"
        "datasets: [{name: digits, protocol: {query_per_class: 2, train_per_class: 4, "
        "validation_per_class: 2}}]\n"
        "pairs: [{name: t, query: {backbone: test_vit, size: 32}, "
        "gallery: {backbone: test_resnet, size: 32}}]\n"
        "methods: [csq, {l2: {teacher: csq}}]\n"
        "bits: [16]\n"
        "train: {epochs: 1, batch_size: 20}\n"
        "tracking: {enabled: false}\n"
    )
    return str(path)


def test_the_command_compares_a_study_that_ran(tiny):
    runner = CliRunner()
    ran = runner.invoke(command.cli, ["run", tiny, "--executor", "inline"])
    assert ran.exit_code == 0, ran.output
    (kept,) = Path("home/studies/tiny/splits").iterdir()
    assert kept.name.startswith("digits-")
    assert {role: len(keys) for role, keys in json.loads(kept.read_text()).items()} == {
        "train": 40,
        "validation_query": 20,
        "validation_gallery": 40,
        "query": 20,
        "gallery": 1777,
    }
    found = runner.invoke(command.cli, ["compare", tiny, "--to", "csq", "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    scores = json.loads(runner.invoke(command.cli, ["report", tiny, "--json"]).stdout)
    assert [row["map"] for row in rows] == pytest.approx([row["map"] for row in scores])
    assert rows[1]["difference"] == pytest.approx(scores[1]["map"] - scores[0]["map"], abs=1e-9)
    shown = runner.invoke(command.cli, ["compare", tiny, "--draws", "100"])
    assert "paired over the test queries" in shown.stdout
    wrong = runner.invoke(command.cli, ["compare", tiny, "--draws", "5"])
    assert "at least 39 resamples" in str(wrong.exception)
    assert wrong.exception.key == "--draws"


# ---- files -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, scores in (("a", A), ("b", B), ("c", [*A[:2], NAN, NAN])):
        np.save(f"{name}.npy", np.array(scores))
    np.save("short.npy", np.array(A[:3]))
    np.save("square.npy", np.zeros((2, 2)))
    np.save("percent.npy", np.array([90.0, 80.0, 70.0, 60.0]))
    np.save("none.npy", np.full(4, NAN))
    Path("text.npy").write_text("no array")


@pytest.mark.parametrize(("options", "reference"), [((), "a.npy"), (("--to", "b.npy"), "b.npy")])
def test_files_of_scores_are_compared(files, options, reference):
    found = CliRunner().invoke(command.cli, ["compare", "a.npy", "b.npy", "--json", *options])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [row["method"] for row in rows] == ["a.npy", "b.npy"]
    assert {row["reference"] for row in rows} == {reference}
    (compared,) = [row for row in rows if row["method"] != reference]
    sign = -1 if reference == "a.npy" else 1
    assert compared["difference"] == pytest.approx(sign * 0.25)
    assert compared["p_value"] == 2 / 16
    shown = CliRunner().invoke(command.cli, ["compare", "a.npy", "b.npy"]).stdout
    assert shown.startswith("mean score, against a.npy\n")


def test_queries_without_an_answer_in_both_files_are_left_out(files):
    np.save("d.npy", np.array([0.5, 0.5, NAN, NAN]))
    found = CliRunner().invoke(command.cli, ["compare", "c.npy", "d.npy", "--json"])
    rows = json.loads(found.stdout)
    assert [row["map"] for row in rows] == pytest.approx([0.85, 0.5])
    assert rows[1]["queries"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.npy"], "at least two files are needed"),
        (["a.npy", "a.npy"], "names a file twice"),
        (["a.npy", "gone.npy"], "gone.npy  FILES: no such file"),
        (["a.npy", "text.npy"], "not a .npy file"),
        (["a.npy", "short.npy"], "scores 3 queries, a.npy 4"),
        (["a.npy", "square.npy"], "one a query"),
        (["a.npy", "percent.npy"], "query 0 has 90"),
        (["a.npy", "c.npy"], "no score of other queries than a.npy"),
        (["none.npy", "none2.npy"], "has no scores"),
        (["a.npy", "b.npy", "--to", "a.np"], "did you mean 'a.npy'"),
        (["a.npy", "b.npy", "--set", "bits=8"], "--set: is for studies"),
    ],
)
def test_wrong_files_are_refused(files, args, message):
    np.save("none2.npy", np.full(4, NAN))
    found = CliRunner().invoke(command.cli, ["compare", *args])
    assert isinstance(found.exception, InputError)
    assert message in str(found.exception)
