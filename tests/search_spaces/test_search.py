"""Searches of a known function: interrupted anywhere, they go on as if they had not been."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from retrieval.errors import InputError
from search_spaces import samplers, storages
from search_spaces.options import Tuning
from search_spaces.search import Search
from search_spaces.space import Space

NUMBERS = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "gamma": {"type": "log_float", "low": 0.1, "high": 1000.0},
    "layers": {"type": "int", "low": 0, "high": 3},
}
MIXED = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "kind": ["plain", "margin"],
    "margin": {"type": "float", "low": 0.0, "high": 0.5, "when": {"kind": ["margin"]}},
    "layers": {"type": "int", "low": 0, "high": 3},
    "tau": 0.5,
}
FINITE = {"x": [0.1, 0.2, 0.3], "gamma": [1, 10], "layers": {"type": "int", "low": 0, "high": 1}}
EPOCHS = 3
SAMPLERS = ["random", "grid", "tpe", "gp", "cmaes", "nsga2"]


def score(point):
    """A smooth function of what the spaces have in common, the best at x = 0.3, layers = 2."""
    return 0.9 - (point["x"] - 0.3) ** 2 - 0.1 * abs(point["layers"] - 2) / 2


def objectives(options, point):
    return [{"map": score(point), "bits": float(point["layers"])}[o] for o in options.objectives]


def make(folder, *, space=NUMBERS, name="search", storage=None, **given):
    names = ("first", "earlier", "about", "feasible", "shared")
    more = {"shared": frozenset({"layers"})} | {k: given.pop(k) for k in names if k in given}
    given = {"trials": 8, "parallel": 3, "startup": 3, "seed": 7, **given}
    if given.get("sampler") == "nsga2":
        given = {**given, "objectives": ["map", "bits"], "pruner": "none", "startup": 4}
    return Search(
        Space.parse(space),
        Tuning(**given),
        name=name,
        storage=storage or folder / "journal.log",
        epochs=EPOCHS,
        **more,
    )


def work_on(search, tried, options=None):
    """Train one point: report every epoch, until it is stopped."""
    for epoch in range(1, EPOCHS + 1):
        if search.report(tried.number, epoch, score(tried.point) * epoch / EPOCHS):
            return
    search.complete(tried.number, objectives(search._options, tried.point))


def drive(search, order=lambda batch: batch):
    while batch := search.next_batch():
        for tried in order(batch):
            work_on(search, tried)
    return search.tried()


def space_for(sampler):
    return FINITE if sampler == "grid" else NUMBERS


# ---- the sequence ------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch, writes):
    """Let that many more lines into the journal, and end the process at the next."""
    from optuna.storages.journal import JournalFileBackend

    append, left = JournalFileBackend.append_logs, [writes]

    def dies(self, logs):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", dies)


def lines(folder):
    return len((folder / "journal.log").read_text().splitlines())


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ({"sampler": "tpe", "pruner": "asha"}, 3),
        ({"sampler": "random", "pruner": "hyperband"}, 5),
        ({"sampler": "grid", "space": FINITE}, 5),
        ({"sampler": "tpe", "space": MIXED, "pruner": "median", "trials": 12}, 11),
        ({"sampler": "gp", "pruner": "asha", "trials": 5, "startup": 4}, 20),
        ({"sampler": "cmaes", "per_gallery": 2, "trials": 12}, 9),
        ({"sampler": "nsga2", "trials": 12}, 9),
        ({"sampler": "tpe", "per_gallery": 3}, 7),
    ],
    ids=lambda value: "-".join(map(str, value.values()))[:30] if isinstance(value, dict) else "",
)
def test_a_search_killed_at_any_write_goes_on_as_the_undisturbed_one(
    tmp_path, monkeypatch, given, step
):
    whole = tmp_path / "whole"
    expected = drive(make(whole, **given))
    assert len(expected) == given.get("trials", 8)
    for kill in range(2, lines(whole), step):
        folder = tmp_path / str(kill)
        with monkeypatch.context() as patch:
            kill_after(patch, kill)
            with pytest.raises(Killed):
                drive(make(folder, **given))
        again = make(folder, **given)
        assert drive(again) == expected, f"killed after {kill} writes"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_sequence_does_not_depend_on_the_order_in_which_a_batch_ends(tmp_path, sampler):
    given = {"sampler": sampler, "space": space_for(sampler), "trials": 9, "startup": 7}
    forward = drive(make(tmp_path / "one", **given))
    backward = drive(make(tmp_path / "two", **given), order=lambda batch: batch[::-1])
    assert forward == backward


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_alone_decides_and_it_does(tmp_path, sampler):
    def points(folder, seed):
        search = make(
            tmp_path / folder, sampler=sampler, space=space_for(sampler), trials=4, seed=seed
        )
        return [tried.point for tried in drive(search)]

    assert points("a", 1) == points("b", 1)
    assert (points("c", 2) == points("a", 1)) == (sampler == "grid")


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 24), ("gp", 10), ("cmaes", 24)])
def test_a_model_finds_better_points_than_its_startup(tmp_path, sampler, trials):
    tried = drive(make(tmp_path, sampler=sampler, trials=trials, startup=6, parallel=2))
    ahead, after = tried[:6], tried[8:]
    mean = lambda part: sum(score(t.point) for t in part) / len(part)  # noqa: E731
    assert mean(after) > mean(ahead)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_points_in_one_batch_are_kept_apart(tmp_path, sampler):
    search = make(
        tmp_path, sampler=sampler, space=space_for(sampler), trials=8, parallel=4, startup=4
    )
    while batch := search.next_batch():
        texts = {json.dumps(tried.point) for tried in batch}
        assert len(texts) == len(batch)
        for tried in batch:
            work_on(search, tried)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_model_proposes_no_point_twice_as_long_as_there_are_others(tmp_path, sampler):
    tried = drive(make(tmp_path, sampler=sampler, space=FINITE, trials=15, startup=4))
    texts = [json.dumps(t.point) for t in tried]
    assert len(set(texts[:12])) == 12  # all points of the space; then they come again
    assert len(texts) == 15


def test_a_batch_is_returned_until_all_of_it_is_told(tmp_path):
    search = make(tmp_path)
    batch = search.next_batch()
    assert [tried.number for tried in batch] == [0, 1, 2]
    work_on(search, batch[1])
    assert [tried.number for tried in search.next_batch()] == [0, 2]
    work_on(search, batch[0])
    work_on(search, batch[2])
    assert [(t.number, t.batch) for t in search.next_batch()] == [(3, 1), (4, 1), (5, 1)]


def test_a_process_that_is_killed_is_succeeded(tmp_path):
    """With a real SIGKILL, of a process that is at the fourth of eight points."""
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_search import make, work_on
search = make(Path({str(tmp_path / "killed")!r}), sampler="tpe")
count = 0
while batch := search.next_batch():
    for tried in batch:
        count += 1
        if count == 4:
            search.report(tried.number, 1, 0.1 * tried.point["x"])
            print("here", flush=True)
            time.sleep(600)
        work_on(search, tried)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    watcher = make(tmp_path / "killed", sampler="tpe")
    held = [tried.number for tried in watcher.tried() if tried.state == "running"]
    assert held == [3, 4, 5]
    fresh = watcher.next_batch()  # its owner lives: other points are asked for
    assert [tried.number for tried in fresh] == [6, 7]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [tried.number for tried in watcher.next_batch()] == [3, 4, 5, 6, 7]


# ---- telling -----------------------------------------------------------------------------


def test_what_is_told_again_changes_nothing(tmp_path):
    search = make(tmp_path, pruner="asha", sampler="random", parallel=2, trials=6)
    first = search.next_batch()
    for tried, level in zip(first, (0.9, 0.8), strict=True):
        for epoch in (1, 2, 3):
            assert not search.report(tried.number, epoch, level)
        search.complete(tried.number, [level])
        search.complete(tried.number, [level])
        assert not search.report(tried.number, 3, level)
        search.fail(tried.number, "late")
    worse, better = search.next_batch()
    assert search.report(worse.number, 1, 0.1)  # of 0.9, 0.8, 0.1 one goes on
    assert search.report(worse.number, 1, 0.1)
    search.complete(worse.number, [0.1])
    search.fail(worse.number, "late")
    assert not search.report(better.number, 1, 0.95)
    assert not search.report(better.number, 1, 0.95)
    states = [(t.state, t.reason) for t in search.tried()]
    assert states == [("complete", ""), ("complete", ""), ("pruned", ""), ("running", "")]
    with pytest.raises(ValueError, match=r"trial 0 is \(0.9,\) already"):
        search.complete(0, [0.7])


def test_a_pruned_trial_keeps_its_last_report(tmp_path):
    search = make(tmp_path, pruner="asha", sampler="random", parallel=1)
    first = search.next_batch()[0]
    for epoch, value in enumerate((0.3, 0.6, 0.9), start=1):
        search.report(first.number, epoch, value)
    search.complete(first.number, [0.9])
    second = search.next_batch()[0]
    assert search.report(second.number, 1, 0.2)
    tried = search.tried()[1]
    assert (tried.state, tried.values, tried.reports) == ("pruned", None, {1: 0.2})
    frozen = search._study.get_trials()[1]
    assert (frozen.state, frozen.value) == (optuna.trial.TrialState.PRUNED, 0.2)


def test_a_verdict_does_not_look_at_trials_of_the_same_batch(tmp_path):
    search = make(tmp_path, pruner="asha", sampler="random", parallel=4)
    batch = search.next_batch()
    for tried in batch[:3]:
        assert not search.report(tried.number, 1, 0.9)
        search.complete(tried.number, [0.9])
    assert not search.report(batch[3].number, 1, 0.1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails_the_trial(tmp_path, wrong):
    search = make(tmp_path, trials=2, parallel=2)
    reported, completed = search.next_batch()
    assert search.report(reported.number, 1, wrong)
    search.complete(completed.number, [wrong])
    for tried in search.tried():
        assert tried.state == "failed" and tried.values is None
        assert str(wrong) in tried.reason
    assert search.best() == []


def test_as_many_values_as_objectives_are_told(tmp_path):
    search = make(tmp_path)
    with pytest.raises(ValueError, match="2 values for 1 objectives"):
        search.complete(search.next_batch()[0].number, [0.1, 0.2])


def test_failed_trials_are_replaced(tmp_path):
    search = make(tmp_path, trials=4, parallel=2)
    seen = 0
    while batch := search.next_batch():
        for tried in batch:
            seen += 1
            if tried.number in (0, 3):
                search.fail(tried.number, "out of memory")
            else:
                work_on(search, tried)
    assert Counter(t.state for t in search.tried()) == {"complete": 4, "failed": 2}
    assert seen == 6 and search.tried()[3].reason == "out of memory"


def test_more_failures_than_trials_end_the_search(tmp_path):
    search = make(tmp_path, trials=3, parallel=1)
    while batch := search.next_batch():
        search.fail(batch[0].number, "always")
    assert [t.state for t in search.tried()] == ["failed"] * 4


def test_pruned_trials_count(tmp_path):
    tried = drive(make(tmp_path, sampler="random", pruner="asha", trials=10))
    states = Counter(t.state for t in tried)
    assert states["pruned"] > 0 and states["pruned"] + states["complete"] == 10


# ---- points ------------------------------------------------------------------------------


def test_first_points_come_first_and_once(tmp_path):
    first = [
        {"x": 0.5, "gamma": 1.0, "layers": 1},
        {"x": 0.5, "gamma": 1.0, "layers": 1},
        {"x": 0.25, "gamma": 10.0, "layers": 3},
    ]
    tried = drive(make(tmp_path, first=first))
    assert [t.point for t in tried[:2]] == [first[0], first[2]]
    assert len(tried) == 8
    assert all(t.point not in first for t in tried[2:])


def test_first_points_that_are_given_later_are_tried_next_and_none_again(tmp_path):
    given = {"trials": 6, "parallel": 2, "startup": 6}
    one, two, three = ({"x": x, "gamma": 1, "layers": 1} for x in (0.25, 0.5, 0.75))
    search = make(tmp_path, first=[two], **given)
    for tried in search.next_batch():
        work_on(search, tried)
    own = search.tried()[1].point
    tried = drive(make(tmp_path, first=[one, two, own, three], **given))
    assert [t.point for t in tried[:4]] == [two, own, one, three]
    texts = {json.dumps(t.point) for t in tried}
    assert len(texts) == len(tried) == 6


def test_earlier_studies_are_asked_once(tmp_path):
    points = [{"x": x, "gamma": 1.0, "layers": 1} for x in (0.25, 0.5)]
    given = {"trials": 4, "parallel": 1, "warm_start": {"studies": ["one"]}}

    def other():
        raise AssertionError("asked again")

    search = make(tmp_path, earlier=lambda: points, **given)
    work_on(search, search.next_batch()[0])
    tried = drive(make(tmp_path, earlier=other, **given))
    assert [t.point for t in tried[:2]] == points
    more = {**given, "trials": 6, "warm_start": {"studies": ["one", "two"]}}
    third = {"x": 0.75, "gamma": 1.0, "layers": 1}
    tried = drive(make(tmp_path, earlier=lambda: [*points, third], **more))
    assert tried[4].point == third


def test_points_of_earlier_studies_that_are_not_of_the_space_are_left_out(tmp_path):
    points = [{"x": 2.0, "gamma": 1.0, "layers": 1}, {"x": 0.5, "gamma": 1.0, "layers": 1}]
    given = {"trials": 2, "parallel": 1, "warm_start": {"studies": ["one"]}}
    assert drive(make(tmp_path, earlier=lambda: points, **given))[0].point == points[1]


def test_a_first_point_that_is_not_of_the_space_is_refused(tmp_path):
    with pytest.raises(InputError, match="not of the space") as error:
        make(tmp_path, first=[{"x": 2.0, "gamma": 1.0, "layers": 1}])
    assert error.value.key == "tuning.warm_start"


def test_conditions_and_fixed_values_are_in_the_points(tmp_path):
    space = Space.parse(MIXED)
    for sampler in ("tpe", "random", "gp"):
        tried = drive(make(tmp_path / sampler, sampler=sampler, space=MIXED, trials=10, startup=8))
        assert all(t.point in space for t in tried)
        assert all(t.point["tau"] == 0.5 for t in tried)
        assert {("margin" in t.point) == (t.point["kind"] == "margin") for t in tried} == {True}
        assert {t.point["kind"] for t in tried} == {"plain", "margin"}


def test_mappings_and_null_are_choices_like_others(tmp_path):
    choices = [None, {"name": "caq", "mode": "add"}, "plain"]
    space = {**NUMBERS, "quantizer": choices}
    tried = drive(make(tmp_path, space=space, trials=12, startup=8))
    assert all(t.point["quantizer"] in choices for t in tried)
    assert any(t.point["quantizer"] == choices[1] for t in tried)
    again = make(tmp_path, space=space, trials=12)
    assert again.tried() == tried


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "nsga2"])
def test_points_of_a_group_share_what_changes_the_gallery(tmp_path, sampler):
    tried = drive(make(tmp_path, sampler=sampler, trials=12, per_gallery=3, startup=10))
    groups = [tried[start : start + 3] for start in range(0, 12, 3)]
    for group in groups:
        assert len({t.point["layers"] for t in group}) == 1
        assert len({json.dumps(t.point) for t in group}) == 3
    assert len({group[0].point["layers"] for group in groups}) > 1


def test_a_group_whose_first_failed_is_given_up(tmp_path):
    search = make(tmp_path, sampler="random", trials=6, per_gallery=3, parallel=1)
    first = search.next_batch()[0]
    search.fail(first.number, "no gallery")
    drive(search)
    tried = search.tried()
    assert tried[0].state == "failed"
    assert [len({t.point["layers"] for t in tried[i : i + 3]}) for i in (1, 4)] == [1, 1]


def test_a_space_of_gallery_dimensions_alone_has_no_groups(tmp_path):
    with pytest.raises(InputError, match="every dimension") as error:
        make(tmp_path, space={"layers": NUMBERS["layers"]}, per_gallery=2)
    assert error.value.key == "tuning.per_gallery"


def test_a_grid_is_tried_once_by_galleries_and_then_ends(tmp_path):
    tried = drive(make(tmp_path, sampler="grid", space=FINITE, trials=100))
    every = [(x, g, n) for n in (0, 1) for x in (0.1, 0.2, 0.3) for g in (1, 10)]
    assert [(t.point["x"], t.point["gamma"], t.point["layers"]) for t in tried] == every


def test_a_grid_skips_what_was_given_and_what_failed(tmp_path):
    first = [{"x": 0.2, "gamma": 10, "layers": 1}]
    search = make(tmp_path, sampler="grid", space=FINITE, trials=100, first=first)
    batch = search.next_batch()
    search.fail(batch[1].number, "broken")
    for tried in (batch[0], batch[2]):
        work_on(search, tried)
    tried = drive(search)
    texts = [json.dumps(t.point) for t in tried]
    assert len(texts) == 12 and len(set(texts)) == 12 and tried[0].point == first[0]


def test_a_grid_stops_at_the_budget(tmp_path):
    assert len(drive(make(tmp_path, sampler="grid", space=FINITE, trials=5))) == 5


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsga2"])
def test_points_beyond_a_constraint_are_noted_and_not_returned(tmp_path, sampler):
    def feasible(point):
        return None if point["x"] <= 0.4 else f"x is {point['x']:.2f}, at most 0.4"

    tried = drive(make(tmp_path, sampler=sampler, feasible=feasible))
    good = [t for t in tried if t.state == "complete"]
    beyond = [t for t in tried if t.state == "infeasible"]
    assert len(good) == 8 and len(beyond) > 0
    assert all(feasible(t.point) is None for t in good)
    assert all(t.reason == feasible(t.point) and t.values is None for t in beyond)


def test_a_point_of_the_grid_beyond_a_constraint_does_not_count(tmp_path):
    search = make(
        tmp_path,
        sampler="grid",
        space=FINITE,
        trials=8,
        feasible=lambda point: "too slow" if point["x"] == 0.1 else None,
    )
    tried = drive(search)
    assert Counter(t.state for t in tried) == {"complete": 8, "infeasible": 4}


def test_a_space_without_a_feasible_point_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("search_spaces.search.TRIES", 30)
    search = make(tmp_path, feasible=lambda point: "no network is that small")
    for _ in range(2):  # and is at once when asked again
        with pytest.raises(InputError, match="no network is that small") as error:
            search.next_batch()
        assert error.value.key == "tuning.constraints"
        assert len(search.tried()) == 30


def test_a_search_that_was_astray_goes_on_when_its_limits_are_loosened(tmp_path, monkeypatch):
    monkeypatch.setattr("search_spaces.search.TRIES", 30)
    with pytest.raises(InputError, match="too small"):
        make(tmp_path, feasible=lambda point: "too small").next_batch()
    tried = drive(make(tmp_path, feasible=lambda p: "odd" if p["layers"] % 2 else None))
    assert Counter(t.state for t in tried)["complete"] == 8
    assert all(t.point["layers"] % 2 == 0 for t in tried if t.state == "complete")


def test_a_model_that_is_always_astray_gives_way_to_a_spread(tmp_path, monkeypatch):
    """The best x is 0.3, which a limit excludes: the search must come to the other end still."""
    asked = []
    propose = samplers.Model.propose
    monkeypatch.setattr(
        samplers.Model, "propose", lambda self, h: asked.append(h) or propose(self, h)
    )
    search = make(tmp_path, trials=5, feasible=lambda p: None if p["x"] > 0.95 else "x")
    tried = drive(search)
    assert Counter(t.state for t in tried)["complete"] == 5
    assert len(tried) > samplers.ASTRAY + 5
    # after 20 infeasible points in a row the model is handed points of the sequence
    assert {h.told is None for h in asked if h.astray >= samplers.ASTRAY} == {False}


# ---- the best ----------------------------------------------------------------------------


def test_the_best_is_the_highest_and_of_equal_ones_the_first(tmp_path):
    search = make(tmp_path, trials=4, parallel=4)
    assert search.best() == []
    for tried, value in zip(search.next_batch(), (0.3, 0.8, 0.8, 0.1), strict=True):
        search.complete(tried.number, [value])
    assert [tried.number for tried in search.best()] == [1]


def test_several_objectives_have_a_front(tmp_path):
    search = make(tmp_path, sampler="nsga2", trials=5, parallel=5)
    told = [(0.9, 32.0), (0.8, 16.0), (0.7, 32.0), (0.9, 32.0), (0.5, 8.0)]
    for tried, values in zip(search.next_batch(), told, strict=True):
        search.complete(tried.number, values)
    # by hand: (0.7, 32) is beaten by (0.9, 32); equal ones beat each other not
    assert [tried.number for tried in search.best()] == [0, 1, 3, 4]


# ---- the storage -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_optuna_reads_the_storage(tmp_path, kind):
    path = tmp_path / "search"
    storage = path if kind == "journal" else f"sqlite:///{path}"
    given = {"sampler": "random", "pruner": "asha", "space": MIXED, "trials": 5}
    search = make(tmp_path, storage=storage, **given)
    tried = drive(search)
    if kind == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="search", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert len(study.trials) == len(tried) == 5
    for frozen, one in zip(study.trials, tried, strict=True):
        assert frozen.params == {n: v for n, v in one.point.items() if n != "tau"}
        assert frozen.intermediate_values == one.reports
        assert frozen.user_attrs["state"] == one.state
        assert frozen.user_attrs["batch"] == one.batch
        assert frozen.user_attrs["reason"] == ""
    assert study.best_trial.number == search.best()[0].number
    again = make(tmp_path, storage=storage if kind == "sqlite" else path, space=MIXED)
    assert again.tried() == tried


def test_two_searches_share_a_storage_under_their_names(tmp_path):
    one, two = (make(tmp_path, name=name, seed=3) for name in ("one", "two"))
    assert [t.point for t in one.next_batch()] == [t.point for t in two.next_batch()]
    assert [t.number for t in two.tried()] == [0, 1, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_unpickled_and_nothing_reaches_the_terminal(
    tmp_path, monkeypatch, capfd, recwarn, sampler
):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    for _ in range(2):
        drive(make(tmp_path, sampler=sampler, space=space_for(sampler), trials=4, per_gallery=2))
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn if "optuna" in str(w.filename)] == []


def test_optuna_is_as_loud_as_before(tmp_path):
    before = optuna.logging.get_verbosity()
    drive(make(tmp_path, trials=2))
    assert optuna.logging.get_verbosity() == before


def test_a_line_that_was_torn_off_is_dropped(tmp_path):
    given = {"sampler": "tpe", "trials": 6}
    expected = drive(make(tmp_path / "whole", **given))
    folder = tmp_path / "torn"
    search = make(folder, **given)
    for tried in search.next_batch():
        work_on(search, tried)
    with (folder / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "worker')
    assert drive(make(folder, **given)) == expected


def test_another_space_or_other_objectives_under_the_name_are_refused(tmp_path):
    make(tmp_path)
    wider = {**NUMBERS, "x": {"type": "float", "low": 0.0, "high": 2.0}}
    for what, other in (("space", {"space": wider}), ("objectives", {"sampler": "nsga2"})):
        with pytest.raises(InputError, match=f"of the name 'search' with other {what};") as error:
            make(tmp_path, **other)
        assert error.value.key == "tuning.storage" and "another name" in error.value.hint


def test_a_foreign_study_under_the_name_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'foreign.db'}"
    study = optuna.create_study(storage=url, study_name="search", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(InputError, match="of the name 'search' that is no search"):
        make(tmp_path, storage=url)


def test_what_was_told_of_other_measurements_is_refused_and_said(tmp_path):
    given = {"seeds": [0, 1], "data": "digits"}
    make(tmp_path, about=given)
    make(tmp_path, about=dict(given))
    for what in given:
        with pytest.raises(InputError, match=f"with other {what};"):
            make(tmp_path, about={**given, what: "something else"})


def test_where_a_range_is_from_does_not_matter(tmp_path):
    sourced = {**NUMBERS, "x": {**NUMBERS["x"], "source": "a paper"}}
    make(tmp_path)
    assert make(tmp_path, space=sourced).tried() == []


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (1, lambda study, trial: study.enqueue_trial({"x": 0.5})),
        (1, lambda study, trial: study.ask()),
        (
            0,
            lambda study, trial: study._storage.set_trial_user_attr(trial._trial_id, "batch", "x"),
        ),
    ],
    ids=["one that waits", "one that runs", "an attribute that is none"],
)
def test_a_trial_that_somebody_else_made_is_refused_with_its_number(tmp_path, number, change):
    search = make(tmp_path, trials=1, parallel=1)
    search.next_batch()
    change(search._study, search._study.get_trials()[0])
    with pytest.raises(InputError, match=f"trial {number} was not made by a search") as error:
        make(tmp_path).tried()
    assert error.value.key == "tuning.storage"


def test_a_database_in_memory_is_refused(tmp_path):
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite+pysqlite:///:memory:"):
        with pytest.raises(InputError, match="ends with its process"):
            make(tmp_path, storage=url)


def test_it_is_known_without_opening_whether_a_storage_is_there(tmp_path):
    journal, database = tmp_path / "journal.log", tmp_path / "search.db"
    url = f"sqlite:///{database}"
    assert not storages.is_there(journal) and not storages.is_there(url)
    assert not journal.exists() and not database.exists()
    make(tmp_path)
    make(tmp_path, storage=url)
    assert storages.is_there(journal) and storages.is_there(url)
    assert storages.is_there("postgresql://host/searches")  # nobody was asked


def test_a_larger_budget_goes_on(tmp_path):
    short = drive(make(tmp_path, trials=4, parallel=2))
    long = drive(make(tmp_path, trials=8, parallel=2))
    assert long[:4] == short and len(long) == 8


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("redis://localhost", "must be a journal file, or a URL of sqlite, postgresql, mysql"),
        ("nonsense://x:y:z", "no URL|must be a journal file"),
        ("sqlite:////no/such/folder/x.db", "cannot be opened"),
        ("mysql+nodriver://u:secret@h/db", "cannot be opened|not installed"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(tmp_path, storage, message):
    with pytest.raises(InputError, match=message) as error:
        make(tmp_path, storage=storage)
    assert error.value.key == "tuning.storage" and "secret" not in str(error.value)


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    for text in ("my notes\nand more", "my notes\n", '{"a": 1}\n'):
        path.write_text(text)
        with pytest.raises(InputError, match="no Optuna journal"):
            make(tmp_path, storage=path)
        assert path.read_text() == text
    with pytest.raises(InputError, match="cannot be opened"):
        make(tmp_path, storage=tmp_path)


# ---- several drivers ---------------------------------------------------------------------


def hand_over(search, name):
    for tried in search.tried():
        search._note(tried.number, driver=name)


def test_trials_of_a_live_driver_are_left_to_it_and_of_a_dead_one_taken_over(tmp_path):
    machine = storages._machine()
    parent = os.getppid()
    alive = f"{machine} {parent} {storages._started(parent):.2f}"
    other_life = f"{machine} {parent} {storages._started(parent) - 1000:.2f}"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    zombie = f"{machine} {ended.pid} {storages._started(ended.pid):.2f}"
    ended.wait()
    for number, (name, mine) in enumerate([(alive, 0), (other_life, 3), (zombie, 3), ("odd", 3)]):
        search = make(tmp_path / str(number), trials=6)
        search.next_batch()
        hand_over(search, name)
        taken = [t.number for t in search.next_batch()]
        assert taken == ([0, 1, 2] if mine else [3, 4, 5])


def test_a_driver_elsewhere_is_dead_when_it_gave_no_sign_for_half_an_hour(tmp_path):
    name = "elsewhere 17 1000.00"
    search = make(tmp_path, trials=9)
    search.next_batch()
    hand_over(search, name)
    search._study.set_user_attr(f"driver {name}", time.time() - 60)
    assert [t.number for t in search.next_batch()] == [3, 4, 5]
    search._study.set_user_attr(f"driver {name}", time.time() - storages.SILENCE - 60)
    assert [t.number for t in search.next_batch()] == [0, 1, 2, 3, 4, 5]


def test_a_number_that_another_driver_took_meanwhile_is_asked_again(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one = make(tmp_path, storage=url, sampler="random", trials=6)
    two = make(tmp_path, storage=url, sampler="random", trials=6)
    propose, once = one._sampler.propose, []

    def slow(history):
        if not once:
            once.append(True)
            two._driver.name = "elsewhere 17 1000.00"
            two._driver.beat()
            two._study.set_user_attr("driver elsewhere 17 1000.00", time.time())
            two.next_batch()
        return propose(history)

    monkeypatch.setattr(one._sampler, "propose", slow)
    mine = one.next_batch()
    tried = one.tried()
    lost = [t for t in tried if t.state == "infeasible"]
    assert [t.reason for t in lost] == ["another driver asked at the same moment"]
    texts = [json.dumps(t.point) for t in tried if t.state == "running"]
    assert len(mine) == 3 and len(texts) == 6 and len(set(texts)) == 6
