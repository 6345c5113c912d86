"""Searches on real digits, run in this process: what is tried, told, chosen and scored."""

import json
import statistics
from pathlib import Path

import pytest
import yaml

from orchestrator.best import best_studies, write_best
from orchestrator.observations import VALIDATION
from orchestrator.reports import report_text
from orchestrator.run_commands import _as_search
from orchestrator.search_report import search_results
from orchestrator.session import Place, Session, open_session, remember
from orchestrator.session import run as run_session
from orchestrator.stages import _Runner
from orchestrator.store import open_store
from retrieval.errors import InputError
from tests.orchestrator.conftest import BASE

SENSITIVITY = {
    **BASE,
    "study": "how_sensitive",
    "kind": "sensitivity",
    "methods": [{"csch": {"assign": "A_r"}}],
    "search": {"gamma": [0.0, 1.0, 100.0], "margin": [0.2, 0.4]},
    "seeds": [0, 1],
}


def write(folder: Path, study: dict, /, **changes: object) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, **changes}))
    return str(path)


def opened(home: Path, study: dict, /, **changes: object) -> Session:
    home.mkdir(parents=True, exist_ok=True)
    return open_session(write(home, study, **changes), home=home)


def ran(home: Path, study: dict, /, **changes: object) -> Session:
    session = opened(home, study, **changes)
    run_session(session, Place(executor="inline"))
    return session


@pytest.fixture(scope="module")
def sensitivity(tmp_path_factory) -> Session:
    return ran(tmp_path_factory.mktemp("sensitivity"), SENSITIVITY)


def scored(session: Session) -> dict[tuple[float, float], list[float]]:
    """Return the test mAP of what was chosen, by its point."""
    found: dict[tuple[float, float], list[float]] = {}
    for trial in session.plan.trials:
        if trial.scored:
            point = (trial.values["gamma"], trial.values["margin"])
            found.setdefault(point, []).append(session.store.manifest(trial.id).result["map"])
    return found


def test_the_plan_of_a_search_scores_no_test_query(tmp_path):
    plan = opened(tmp_path, SENSITIVITY).plan
    assert plan.of_kind("metrics") == []
    assert {trial.scored for trial in plan.trials} == {False}
    # The center (100, 0.2), two more gammas and one more margin, under two seeds.
    assert len(plan.trials) == 8


def test_points_that_only_the_query_reads_share_their_gallery(tmp_path):
    session = opened(tmp_path, SENSITIVITY)
    assert session.planner.shared(session.planner.cells[0]) == {"margin"}
    assert len(session.plan.of_kind("gallery")) == 4  # two margins, two seeds
    assert len(session.plan.of_kind("query")) == 8


def test_what_is_chosen_is_the_best_on_validation_and_the_given_values(sensitivity):
    means: dict[tuple[float, float], list[float]] = {}
    for trial in sensitivity.plan.trials:
        if not trial.scored:
            final = sensitivity.store.manifest(trial.stages["query"]).result["final"]
            point = (trial.values["gamma"], trial.values["margin"])
            means.setdefault(point, []).append(final[VALIDATION])
    assert len(means) == 4
    best = max(means, key=lambda point: statistics.fmean(means[point]))
    assert set(scored(sensitivity)) == {best, (100.0, 0.2)}
    assert [len(values) for values in scored(sensitivity).values()] == [2, 2]


def test_a_search_has_the_numbers_of_separate_trials(sensitivity, tmp_path):
    for gamma, margin in ((1.0, 0.2), (100.0, 0.4)):
        alone = ran(
            tmp_path / f"{gamma}-{margin}",
            BASE,
            methods=[{"csch": {"assign": "A_r", "gamma": gamma, "margin": margin}}],
            seeds=[1],
        )
        (trial,) = alone.plan.trials
        (same,) = [
            t
            for t in sensitivity.plan.trials
            if not t.scored
            and (t.values["gamma"], t.values["margin"], t.seed) == (gamma, margin, 1)
        ]
        one, other = (
            home.store.manifest(t.stages["query"])
            for home, t in ((alone, trial), (sensitivity, same))
        )
        assert one.result == other.result
        assert one.files["weights.safetensors"] == other.files["weights.safetensors"]


def test_a_search_that_is_over_starts_nothing_again(sensitivity):
    session = open_session(str(sensitivity.home / "study.yaml"), home=sensitivity.home)
    assert session.search is not None and session.search.over
    assert [t.id for t in session.plan.trials] == [t.id for t in sensitivity.plan.trials]
    assert run_session(session, Place(executor="inline")).ran == 0


def test_a_point_that_fails_is_left_out_of_what_is_chosen(tmp_path, monkeypatch):
    real = _Runner.query

    def breaks(self):
        if self.setup["params"]["gamma"] == 1.0:
            raise RuntimeError("no such gamma")
        return real(self)

    monkeypatch.setattr(_Runner, "query", breaks)
    session = opened(tmp_path, SENSITIVITY, seeds=[0], search={"gamma": [1.0, 100.0]})
    result = run_session(session, Place(executor="inline"))
    assert result.failed == 1
    assert {t.values["gamma"] for t in session.plan.trials if t.scored} == {100.0}
    monkeypatch.setattr(_Runner, "query", real)
    session = open_session(str(tmp_path / "study.yaml"), home=tmp_path)
    assert run_session(session, Place(executor="inline")).failed == 0
    observed = [o for o in session.search.observations() if o.number is not None]
    assert {o.state for o in observed} == {"done"}


def test_the_best_is_written_as_a_study_that_needs_no_training(sensitivity, tmp_path):
    (path,) = write_best(sensitivity, tmp_path / "best.yaml")
    again = open_session(str(path), home=sensitivity.home)
    assert again.study.kind == "benchmark"
    assert run_session(again, Place(executor="inline")).ran == 0
    best = {t.id for t in sensitivity.search.best}
    assert {t.id for t in again.plan.trials} == best


def test_settings_of_several_cells_that_a_benchmark_would_cross_are_studies_of_their_own(
    tmp_path,
):
    session = ran(
        tmp_path,
        SENSITIVITY,
        bits=[12, 16],
        seeds=[0],
        search={"gamma": [1.0, 100.0]},
        train={**BASE["train"], "epochs": 1},
    )
    assert [study["bits"] for study in best_studies(session)] == [[12], [16]]
    names = [path.name for path in write_best(session, tmp_path / "best.yaml")]
    assert names == ["best-1.yaml", "best-2.yaml"]


@pytest.mark.parametrize(
    ("changes", "key", "part"),
    [
        ({"search": None}, "search", "nothing is given"),
        ({"search": {"gama": [1.0, 2.0]}}, "search.gama", "did you mean 'gamma'"),
        ({"search": {"gamma": [-1.0, 2.0]}}, "search.gamma", "greater than or equal to 0"),
        ({"kind": "benchmark"}, "search", "only a study of kind sensitivity or tuning"),
        ({"tuning": {"trials": 5}}, "tuning", "only a study of kind tuning"),
        ({"methods": [{"csch": {"gamma": [1.0, 2.0]}}]}, "gamma", "stands under 'search'"),
        ({"methods": ["csch", {"csch": {"gamma": 1.0}}]}, "methods", "searched 2 times"),
        (
            {"train": {**BASE["train"], "validate_every": 0}},
            "train.validate_every",
            "is told the validation mAP",
        ),
        ({"search": {"dcah": {"k": [1, 2]}}}, "search", "none of csch"),
        ({"search": {"train.lr_head": [-1.0, 1e-3]}}, "train.lr_head", "greater than or equal"),
        ({"search": {"pair": ["nobody"]}}, "search.pair", "effnet-resnet"),
        ({"search": {"bits": [0, 16]}}, "search.bits", "1 to 1024"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_runs(tmp_path, changes, key, part):
    with pytest.raises(InputError) as caught:
        opened(tmp_path, SENSITIVITY, **changes)
    assert key in (caught.value.key or "")
    assert part in str(caught.value)


def test_recipes_and_bits_and_pairs_can_be_searched(tmp_path):
    pairs = [
        BASE["pairs"][0],
        {**BASE["pairs"][0], "name": "other", "query": {"backbone": "test_resnet", "size": 32}},
    ]
    session = opened(
        tmp_path,
        SENSITIVITY,
        pairs=pairs,
        sensitivity={"design": "factorial"},
        search={
            "pair": ["effnet-resnet", "other"],
            "bits": [12, 16],
            "train.query.lr_head": [1e-3, 3e-3],
            "gamma": 10.0,
        },
        seeds=[0],
    )
    (cell,) = session.planner.cells
    assert (cell.pair, cell.bits) == ("", None)
    trials = session.plan.trials
    assert len(trials) == 8
    assert {(t.pair, t.bits) for t in trials} == {
        (pair, bits) for pair in ("effnet-resnet", "other") for bits in (12, 16)
    }
    rates = {session.plan.stages[t.stages["query"]].setup["recipe"]["lr_head"] for t in trials}
    assert rates == {1e-3, 3e-3}
    # With random assignment the gallery depends on the bits alone.
    assert len(session.plan.of_kind("gallery")) == 2
    assert session.planner.shared(cell) == {"bits"}
    assert {t.params["gamma"] for t in trials} == {10.0}


def test_validation_trials_are_kept_in_the_store_only_once(sensitivity):
    store = open_store(sensitivity.home)
    trained = [t.stages["query"] for t in sensitivity.plan.trials]
    assert len(set(trained)) == 8 < len(trained)
    assert all(store.is_done(stage_id) for stage_id in trained)


# ---- tuning ------------------------------------------------------------------------------

TUNING = {
    **BASE,
    "study": "tuned",
    "kind": "tuning",
    "methods": [{"csch": {"assign": "A_r"}}],
    "search": {
        "gamma": {"type": "log_float", "low": 0.1, "high": 1000.0},
        "margin": [0.0, 0.2, 0.4],
    },
    "seeds": [0, 1],
    "train": {**BASE["train"], "epochs": 3},
    "tuning": {
        "trials": 8,
        "parallel": 2,
        "per_gallery": 2,
        "startup": 2,
        "pruner": "median",
        "seed": 3,
    },
}


def tried(session: Session) -> list[tuple]:
    """Return all that a search remembers of its trials."""
    (search,) = session.search._searches.values()
    return [(t.number, t.point, t.state, t.values, t.reports, t.batch) for t in search.tried()]


@pytest.fixture(scope="module")
def tuning(tmp_path_factory) -> Session:
    return ran(tmp_path_factory.mktemp("tuning"), TUNING)


def test_a_tuning_tries_as_many_points_as_it_is_given(tuning):
    states = [state for _, _, state, *_ in tried(tuning)]
    assert len(states) == 8
    assert set(states) == {"complete", "pruned"}
    assert tuning.search.over


def test_a_sampler_hears_the_mean_validation_over_seeds(tuning):
    for number, point, state, values, reports, _ in tried(tuning):
        trials = [t for t in tuning.plan.trials if t.values == point and not t.scored]
        if state == "pruned":
            assert [t.seed for t in trials] == [0]
            assert number in {t.number for t in trials}
            assert not tuning.store.is_done(trials[0].id)
            assert set(reports) < {1, 2, 3}
            continue
        finals = [
            tuning.store.manifest(t.stages["query"]).result["final"][VALIDATION] for t in trials
        ]
        assert len(finals) == 2
        assert values == (statistics.fmean(finals),)
        assert set(reports) == {1, 2, 3}


def test_points_of_a_group_share_a_gallery(tuning):
    margins = [point["margin"] for _, point, *_ in tried(tuning)]
    assert margins[0::2] == margins[1::2]


def test_the_first_point_is_the_given_one(tuning):
    assert tried(tuning)[0][1] == {"gamma": 100.0, "margin": 0.2}


def test_only_the_best_and_the_given_values_meet_the_test_queries(tuning):
    complete = [
        (values, -n, point) for n, point, s, values, *_ in tried(tuning) if s == "complete"
    ]
    best = max(complete, key=lambda entry: entry[:2])[2]
    wanted = {(best["gamma"], best["margin"]), (100.0, 0.2)}
    assert set(scored(tuning)) == wanted
    assert len(tuning.plan.of_kind("metrics")) == 2 * len(wanted)


def test_a_search_is_the_same_where_test_queries_cannot_be_scored(tuning, tmp_path, monkeypatch):
    def refuses(self):
        raise RuntimeError("the test queries are out of reach")

    monkeypatch.setattr(_Runner, "metrics", refuses)
    session = ran(tmp_path, TUNING)
    assert tried(session) == tried(tuning)
    assert {t.id for t in session.search.best} == {t.id for t in tuning.search.best}
    assert not any(session.store.is_done(t.id) for t in session.search.chosen)


def test_a_search_of_which_the_store_has_every_training_goes_the_same_way(tuning, tmp_path):
    session = opened(tmp_path, TUNING)
    (tmp_path / "store").symlink_to(tuning.home / "store")
    before = {p.name for p in (tuning.home / "store").rglob("manifest.json")}
    run_session(session, Place(executor="inline"))
    assert tried(session) == tried(tuning)
    assert before  # the store is the one that was filled
    assert run_session(session, Place(executor="inline")).ran == 0


class Stop(BaseException):
    """Stands for a kill: nothing in the way handles it."""


@pytest.mark.parametrize("every", [2, 5])
def test_a_search_that_is_killed_goes_on_as_if_nothing_had_happened(
    tuning, tmp_path, monkeypatch, every
):
    """Each run is stopped when so many epochs, or ends of stages, were told."""
    from orchestrator.mirror import Mirror

    left = every
    killed = 0

    def count(*_):
        nonlocal left
        left -= 1
        if not left:
            raise Stop

    trained: list[str] = []

    def finished(self, stage):
        trained.append(stage.id)
        count()

    # The mirror is the first to hear; dispatch lets only Exceptions of listeners pass.
    monkeypatch.setattr(
        Mirror, "stage_progressed", lambda self, s, note: note["event"] == "epoch" and count()
    )
    monkeypatch.setattr(Mirror, "stage_finished", finished)
    session = opened(tmp_path, TUNING)
    while True:
        left = every
        try:
            run_session(session, Place(executor="inline"))
            break
        except Stop:
            killed += 1
            assert killed < 200
            session = open_session(str(tmp_path / "study.yaml"), home=tmp_path)
    assert killed > 2
    assert tried(session) == tried(tuning)
    assert [t.id for t in session.search.best] == [t.id for t in tuning.search.best]
    done = {t.id for t in tuning.plan.trials if tuning.store.is_done(t.id)}
    assert {t.id for t in session.plan.trials if session.store.is_done(t.id)} == done
    for trial_id in done:
        one, other = session.store.manifest(trial_id), tuning.store.manifest(trial_id)
        assert one.result == other.result
        assert one.files == other.files or trial_id in {t.id for t in tuning.search.chosen}


def test_a_search_whose_storage_goes_away_ends_with_a_reason_and_goes_on_later(
    tmp_path, monkeypatch
):
    from search_spaces.search import Search

    real = Search.complete

    def gone(self, number, values):
        raise InputError("the database does not answer", key="tuning.storage")

    small = {**TUNING, "tuning": {"trials": 2, "parallel": 1}, "seeds": [0]}
    monkeypatch.setattr(Search, "complete", gone)
    session = opened(tmp_path, small)
    with pytest.raises(InputError, match="does not answer"):
        run_session(session, Place(executor="inline"))
    monkeypatch.setattr(Search, "complete", real)
    session = open_session(str(tmp_path / "study.yaml"), home=tmp_path)
    run_session(session, Place(executor="inline"))
    assert [state for _, _, state, *_ in tried(session)] == ["complete", "complete"]


def test_a_point_that_fails_is_told_as_failed_named_and_replaced(tmp_path, monkeypatch, capsys):
    real = _Runner.query

    def breaks(self):
        if self.setup["params"]["gamma"] == 100.0:
            raise RuntimeError("no such gamma")
        return real(self)

    monkeypatch.setattr(_Runner, "query", breaks)
    small = {**TUNING, "tuning": {"trials": 2, "parallel": 1, "startup": 2}, "seeds": [0]}
    session = opened(tmp_path, small)
    assert run_session(session, Place(executor="inline")).failed == 1
    states = [(number, state) for number, _, state, *_ in tried(session)]
    assert states == [(0, "failed"), (1, "complete"), (2, "complete")]
    again = open_session(str(tmp_path / "study.yaml"), home=tmp_path)
    result = run_session(again, Place(executor="inline"))
    assert (result.ran, result.failed) == (0, 1)  # it is not tried again, and not forgotten
    (failed,) = [o for o in again.search.observations() if o.state == "failed"]
    assert "no such gamma" in failed.reason
    assert {t.number for t in again.plan.trials if t.values["gamma"] == 100.0} == {0}


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("bits", lambda cell: 16.0),
        ("gallery_bytes", lambda cell: 2.0 * cell),
        ("query_flops", None),
        ("query_parameters", None),
        ("query_latency", None),
    ],
)
def test_objectives_beside_map_are_told(tmp_path, objective, value):
    session = ran(
        tmp_path,
        TUNING,
        seeds=[0],
        train={**BASE["train"], "epochs": 1},
        tuning={"trials": 1, "parallel": 1, "objectives": ["map", objective], "sampler": "random"},
    )
    ((_, _, state, values, *_),) = tried(session)
    assert state == "complete"
    trial = next(t for t in session.plan.trials if t.scored)
    manifest = session.store.manifest(trial.stages["query"])
    assert values[0] == manifest.result["final"][VALIDATION]
    if objective == "query_flops":
        assert values[1] == manifest.result["flops"]
    elif objective == "query_parameters":
        assert values[1] == manifest.result["parameters"]
    elif objective == "query_latency":
        assert 0 < values[1] < 10_000
    else:
        gallery = len(session.plan.datasets[0].splits().gallery)
        assert values[1] == value(gallery)


def test_a_point_beyond_a_constraint_is_not_trained(tmp_path):
    session = ran(
        tmp_path,
        TUNING,
        seeds=[0],
        train={**BASE["train"], "epochs": 1},
        search={"bits": [12, 16, 32], "gamma": [1.0, 100.0]},
        tuning={
            "trials": 3,
            "parallel": 1,
            "sampler": "random",
            "constraints": {"bits": {"max": 16.0}},
        },
    )
    assert {t.bits for t in session.plan.trials} <= {12, 16}
    assert [state for _, _, state, *_ in tried(session) if state != "infeasible"] == [
        "complete"
    ] * 3


def test_an_earlier_search_gives_its_best_points_first(sensitivity):
    """What was tried under one name is tried again under another, and costs nothing."""
    study = {
        **{key: value for key, value in SENSITIVITY.items() if key != "sensitivity"},
        "study": "after",
        "kind": "tuning",
        "tuning": {
            "trials": 3,
            "parallel": 1,
            "sampler": "random",
            "warm_start": {"defaults": True, "studies": ["how_sensitive"], "best": 2},
        },
    }
    path = sensitivity.home / "after.yaml"
    path.write_text(yaml.safe_dump(study))
    session = open_session(str(path), home=sensitivity.home)
    run_session(session, Place(executor="inline"))
    best = {(t.values["gamma"], t.values["margin"]) for t in sensitivity.search.best}
    points = [(p["gamma"], p["margin"]) for _, p, *_ in tried(session)]
    assert points[0] == (100.0, 0.2)
    assert best <= set(points)


# ---- what changes under a search -----------------------------------------------------------

SMALL = {
    **TUNING,
    "study": "few",
    "seeds": [0],
    "train": {**BASE["train"], "epochs": 1},
    "tuning": {"trials": 2, "parallel": 1, "startup": 2},
}


def begun(home: Path, /, **changes: object) -> Session:
    """Return a search that has asked for points, and trained none."""
    session = opened(home, SMALL, **changes)
    session.search.advance(lambda trial: "open", True)
    return session


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": [0, 1]}, "seeds"),
        ({"search": {"margin": [0.0, 0.2]}}, "space"),
        ({"tuning": {"objectives": ["map", "bits"]}}, "objectives"),
        ({"train": {**SMALL["train"], "epochs": 2}}, "data, recipe"),
        ({"train": {**SMALL["train"], "gallery": {"lr_head": 1e-3}}}, "data, recipe"),
        ({"datasets": [{"name": "digits", "protocol": {"train_per_class": 30}}]}, "data, recipe"),
        ({"methods": [{"csch": {"assign": "A_r", "tau": 0.5}}]}, "not searched"),
    ],
)
def test_what_was_told_does_not_count_for_other_measurements(tmp_path, changes, what):
    begun(tmp_path)
    with pytest.raises(InputError, match=f"of the name 'few.*with other .*{what}") as caught:
        opened(tmp_path, SMALL, **changes)
    assert caught.value.key == "tuning.storage"
    assert "another name" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": {"trials": 5, "sampler": "random", "pruner": "asha", "parallel": 2}},
        {"methods": [{"csch": {"assign": "A_r", "gamma": 10.0}}]},  # it is searched
        {"resources": {"device": "cpu"}, "description": "another text"},
        {"evaluate": {"at": 10}},  # of the test queries alone
    ],
)
def test_what_changes_no_measurement_may_change_under_a_search(tmp_path, changes):
    before = [point for _, point, *_ in tried(begun(tmp_path))]
    assert [point for _, point, *_ in tried(opened(tmp_path, SMALL, **changes))] == before


@pytest.mark.parametrize(
    ("changes", "key", "part"),
    [
        ({"tuning": {"sampler": "cmaes"}}, "search.margin", "moves numbers only"),
        ({"tuning": {"sampler": "grid"}}, "search.gamma", "an end of values"),
        (
            {"tuning": {"per_gallery": 2}, "search": {"margin": [0.0, 0.2]}},
            "tuning.per_gallery",
            "changes the gallery",
        ),
        (
            {"tuning": {"warm_start": {"points": [{"gamma": 1.0}]}}},
            "tuning.warm_start.points.0",
            "a value of each of gamma, margin",
        ),
        (
            {"tuning": {"warm_start": {"studies": ["digits_tunin"]}}},
            "tuning.warm_start.studies",
            "did you mean 'digits_tuning'",
        ),
        ({"tuning": {"warm_start": {"studies": ["few"]}}}, "warm_start.studies", "study itself"),
        (
            {"tuning": {"warm_start": {"studies": ["quickstart"]}}},
            "tuning.warm_start.studies",
            "no tuning or sensitivity study",
        ),
        ({"tuning": {"storage": " "}}, "tuning.storage", "must be a journal file"),
        ({"tuning": {"storage": "a\0b"}}, "tuning.storage", "must be a journal file"),
        ({"tuning": {"storage": "~nobody-of-that-name/j"}}, "tuning.storage", "no such user"),
        (
            {"tuning": {"storage": "postgresql://me:hush@host/db"}},
            "tuning.storage",
            "set PGPASSWORD",
        ),
        ({"tuning": {"storage": "mysql://me:hush@host/db"}}, "tuning.storage", "default_file"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused_before_it_has_a_storage(tmp_path, changes, key, part):
    with pytest.raises(InputError) as caught:
        opened(tmp_path, SMALL, **changes)
    assert key in caught.value.key and part in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.where.startswith(str(tmp_path / "study.yaml:"))
    assert not (tmp_path / "studies").exists()


def test_a_range_that_no_design_can_cross_is_told_where_it_stands(tmp_path):
    space = {"gamma": {"type": "log_float", "low": 0.1, "high": 10.0}}
    with pytest.raises(InputError, match="an end of values") as caught:
        opened(tmp_path, SENSITIVITY, search=space)
    assert caught.value.key == "search.gamma"
    line = (tmp_path / "study.yaml").read_text().splitlines().index("  gamma:") + 1
    assert caught.value.where.endswith(f"study.yaml:{line}")


def test_a_relative_storage_is_found_from_another_folder(tmp_path, monkeypatch):
    for name, storage in (("few", "here.journal"), ("also", "sqlite:///here.db")):
        (tmp_path / "one").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "one")
        changes = {"study": name, "tuning": {**SMALL["tuning"], "storage": storage}}
        session = begun(tmp_path, **changes)
        remember(session)
        assert (tmp_path / "one" / storage.rpartition("/")[2]).exists()
        monkeypatch.chdir(tmp_path)
        assert tried(open_session(name, home=tmp_path, ran=True)) == tried(session) != []


def test_a_plan_makes_no_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    opened(tmp_path, SMALL, tuning={**SMALL["tuning"], "storage": url})
    assert not (tmp_path / "search.db").exists()


def test_two_searches_that_start_from_each_other_come_to_an_end(tmp_path):
    def start(name: str, other: list[str]) -> dict:
        return {
            "study": name,
            "tuning": {
                **SMALL["tuning"],
                "storage": f"sqlite:///{tmp_path / 'both.db'}",
                "warm_start": {"studies": other},
            },
        }

    remember(begun(tmp_path, **start("one", [])))
    remember(begun(tmp_path, **start("two", ["one"])))
    session = begun(tmp_path, **start("one", ["two"]))
    assert len(tried(session)) == 1


def test_a_point_that_was_stopped_is_told_as_stopped_though_others_trained_it(tmp_path):
    """One seed: were it taken for done, it could be recommended without a test mAP."""
    home, other = tmp_path / "one", tmp_path / "other"
    session = ran(home, TUNING, seeds=[0])
    stopped = [point for _, point, state, *_ in tried(session) if state == "pruned"]
    assert stopped
    before = report_text(session, "csv")
    other.mkdir()
    (other / "store").symlink_to(home / "store")
    all_of_them = {"pruner": "none", "warm_start": {"points": stopped}, "parallel": 1}
    whole = ran(
        other, TUNING, seeds=[0], study="whole", tuning={**all_of_them, "trials": 1 + len(stopped)}
    )
    assert {state for _, _, state, *_ in tried(whole)} == {"complete"}
    (home / "studies" / "tuned" / "search.journal").unlink()
    again = ran(home, TUNING, seeds=[0])
    assert report_text(again, "csv") == before
    opened_again = open_session(str(home / "study.yaml"), home=home)
    assert report_text(opened_again, "csv") == before


def test_a_driver_reports_what_others_tried_too(tmp_path):
    """Both are of this process, so that each takes the other for itself and looks at all."""
    first = ran(tmp_path, SMALL)
    second = opened(tmp_path, SMALL)
    assert report_text(second, "csv") == report_text(first, "csv")
    late = opened(tmp_path, SMALL)
    late.planner.plan.trials.clear()
    late.planner.plan._known.clear()
    late.search.over = False
    late.search.advance(lambda trial: "done", True)
    assert late.search.over
    numbered = {trial.id for trial in first.plan.trials if trial.number is not None}
    assert numbered <= {trial.id for trial in late.plan.trials}


def test_several_searches_of_one_study_are_reported_alike_while_and_after_they_run(tmp_path):
    changes = {"bits": [12, 16], "tuning": {"trials": 2, "parallel": 1, "sampler": "random"}}
    session = ran(tmp_path, SMALL, **changes)
    cells = [trial.cell for trial in session.plan.trials]
    assert cells != sorted(cells)  # they took turns
    again = open_session(str(tmp_path / "study.yaml"), home=tmp_path)
    for form in ("csv", "json", "text"):
        assert report_text(again, form) == report_text(session, form)
    rows = json.loads(report_text(again, "json"))
    assert [(row["bits"], row["number"]) for row in rows if row["number"] is not None] == [
        (12, 0),
        (12, 1),
        (16, 0),
        (16, 1),
    ]


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        ((), ("study=small_tuning", "kind=tuning", "search=default")),
        (("tuning.trials=3",), ("study=small_tuning", "kind=tuning", "search=default")),
        (("search.gamma=[1.0, 2.0]", "study=mine"), ("kind=tuning",)),
        (("kind=sensitivity", "search.gamma=[1.0, 2.0]"), ()),
    ],
)
def test_a_benchmark_is_tuned_under_a_name_of_its_own(tmp_path, monkeypatch, overrides, more):
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path))
    given = _as_search(write(tmp_path, BASE), overrides)
    assert given == (*overrides, *more)
    assert open_session(str(tmp_path / "study.yaml"), given, home=tmp_path).search is not None


def test_a_search_is_tuned_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path))
    assert _as_search(write(tmp_path, SMALL), ("tuning.trials=3",)) == ("tuning.trials=3",)


def test_points_proposed_again_are_known(tmp_path):
    """Four points of a space of two: two of them again."""
    given = {"trials": 4, "parallel": 4, "sampler": "random"}
    session = begun(tmp_path, search={"margin": [0.0, 0.2]}, tuning=given)
    assert {p["margin"] for _, p, *_ in tried(session)} == {0.0, 0.2}
    assert search_results(session).repeated == 2


@pytest.mark.parametrize("pruner", ["none", "asha"])
def test_a_point_that_failed_under_one_seed_has_failed_when_looked_at_later_too(
    tmp_path, monkeypatch, pruner
):
    real = _Runner.query

    def breaks(self):
        if self.setup["seed"] == 1 and self.setup["params"]["gamma"] == 10.0:
            raise RuntimeError("no luck")
        return real(self)

    monkeypatch.setattr(_Runner, "query", breaks)
    session = ran(
        tmp_path,
        SMALL,
        seeds=[0, 1, 2],
        search={"gamma": [10.0, 100.0]},
        tuning={"trials": 2, "parallel": 2, "sampler": "grid", "pruner": pruner},
    )
    assert {state for *_, state, _, _, _ in tried(session)} == {"complete", "failed"}
    again = open_session(str(tmp_path / "study.yaml"), home=tmp_path)
    assert report_text(again, "csv") == report_text(session, "csv")
    rows = json.loads(report_text(again, "json"))
    states = {row["seed"]: row["state"] for row in rows if row["values"]["gamma"] == 10.0}
    assert states == {0: "done", 1: "failed", 2: "done"}
    (point,) = [
        p for f in search_results(again).findings for p in f.points if p.values == {"gamma": 10.0}
    ]
    assert point.state == "failed"
