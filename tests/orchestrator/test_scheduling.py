"""The board hands out stages in the right order, and failures stay with their trials."""

import pytest

from orchestrator.board import Board, needed_stages
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.scheduling import Options, execute
from orchestrator.store import StageStore, digest
from retrieval.errors import InputError


def make_plan(edges: dict[str, list[str]], trials: dict[str, list[str]]) -> Plan:
    """Build a plan of fake stages; ``edges`` maps a stage to its inputs, in topological order."""
    plan = Plan(study="fake")
    ids = {name: digest({"stage": name}) for name in edges}
    for name, inputs in edges.items():
        plan.stages[ids[name]] = Stage(
            id=ids[name],
            kind="query",
            identity={"stage": name},
            inputs={parent: ids[parent] for parent in inputs},
            setup={},
            request=None,
            label=name,
        )
    for last, path in trials.items():
        plan.trials.append(
            Trial(
                id=ids[last],
                method="m",
                dataset="d",
                pair="p",
                bits=8,
                seed=0,
                params={},
                setting="",
                query_backbone="q",
                gallery_backbone="g",
                protocol="p",
                at="all",
                stages={name: ids[name] for name in path},
            )
        )
    return plan


DIAMOND = {"c": [], "g": ["c"], "q1": ["g"], "q2": ["g"], "m1": ["q1", "g"], "m2": ["q2", "g"]}
TRIALS = {"m1": ["c", "g", "q1", "m1"], "m2": ["c", "g", "q2", "m2"]}


def finish(store: StageStore, name: str) -> None:
    identity = {"stage": name}
    with store.lease(digest(identity)):
        store.commit(digest(identity), "query", identity, {}, {"seconds": 1.0})


@pytest.fixture
def board(tmp_path):
    plan = make_plan(DIAMOND, TRIALS)
    return Board(plan, StageStore(tmp_path), priority={})


def take(board: Board) -> str | None:
    stage = board.next()
    return stage.label if stage else None


def test_board_waits_for_inputs(board):
    assert take(board) == "c"
    assert take(board) is None
    assert not board.exhausted
    board.finish(digest({"stage": "c"}))
    assert take(board) == "g"
    board.finish(digest({"stage": "g"}))
    assert {take(board), take(board)} == {"q1", "q2"}
    assert take(board) is None


def test_board_hands_out_each_stage_once_and_ends(board):
    order = []
    while (stage := board.next()) is not None:
        order.append(stage.label)
        board.finish(stage.id)
    assert sorted(order) == sorted(DIAMOND)
    assert board.exhausted
    for name, inputs in DIAMOND.items():
        assert all(order.index(parent) < order.index(name) for parent in inputs)


def test_board_takes_the_longest_chain_first(tmp_path):
    plan = make_plan({"a": [], "b": [], "c": []}, {n: [n] for n in "abc"})
    seconds = {
        digest({"stage": name}): value for name, value in zip("abc", (1, 3, 2), strict=True)
    }
    board = Board(plan, StageStore(tmp_path), priority=seconds)
    assert [take(board), take(board), take(board)] == ["b", "c", "a"]


def test_failure_blocks_what_consumes_it_and_nothing_else(board):
    for _ in range(2):
        stage = board.next()
        board.finish(stage.id)
    one, two = board.next(), board.next()
    board.fail(one.id)
    board.finish(two.id)
    assert take(board) == {"q1": "m2", "q2": "m1"}[one.label]
    assert take(board) is None


def test_finished_stages_are_not_handed_out(tmp_path):
    store = StageStore(tmp_path)
    for name in ("c", "g", "q1"):
        finish(store, name)
    board = Board(make_plan(DIAMOND, TRIALS), StageStore(tmp_path), priority={})
    assert {take(board), take(board)} == {"m1", "q2"}


def test_finished_trial_needs_no_stage_before_it(tmp_path):
    plan = make_plan(DIAMOND, TRIALS)
    done = {digest({"stage": "m1"})}
    labels = {plan.stages[i].label for i in needed_stages(plan, done)}
    assert labels == {"c", "g", "q2", "m2"}
    assert needed_stages(plan, done | {digest({"stage": "m2"})}) == set()


def test_failing_trial_does_not_stop_the_others(lab):
    """One trial diverges (its rate is absurd); the other ends, and the reason is kept."""
    wild = {"epochs": 1, "lr_backbone": 1e30, "lr_head": 1e30, "optimizer": "sgd"}
    failed, board = lab.run(methods=["csq"], train=wild)
    assert len(board.failed) == 1
    (stage_id,) = board.failed
    assert lab.store.failure(stage_id)["kind"] == "diverged"
    assert not lab.store.is_done(failed.trials[0].id)
    fine, board = lab.run(methods=["csq"], train={"epochs": 1, "lr_head": 1e-3})
    assert not board.failed
    assert lab.store.is_done(fine.trials[0].id)


def test_everything_done_returns_before_anything_starts(lab, monkeypatch):
    plan, _ = lab.run(train={"epochs": 1})
    monkeypatch.setattr("orchestrator.scheduling._run_ray", lambda *a: pytest.fail("Ray started"))
    board = execute(plan, Options(home=lab.home, executor="ray"), [])
    assert board.exhausted


def test_added_gamma_trains_only_its_query(lab):
    one, _ = lab.run(methods={"csch": {"gamma": [1.0]}}, train={"epochs": 1})
    before = {i: lab.store.manifest(i).cost for i in one.stages}
    two, board = lab.run(methods={"csch": {"gamma": [1.0, 10.0]}}, train={"epochs": 1})
    assert [two.stages[i].kind for i in board.needed].count("gallery") == 0
    assert sorted(two.stages[i].kind for i in board.needed) == ["metrics", "query"]
    assert {i: lab.store.manifest(i).cost for i in one.stages} == before


def test_workers_cannot_share_a_store_in_memory(tmp_path, board):
    options = Options(home=tmp_path, store="memory://alone", executor="ray")
    with pytest.raises(InputError, match="memory of one process cannot be shared"):
        execute(board.plan, options, [])


def test_a_home_that_is_full_hides_no_result(tmp_path, board, monkeypatch, caplog):
    def full(estimator, home):
        raise OSError(28, "No space left on device")

    def finish_all(dispatch):
        while (stage := dispatch.board.next()) is not None:
            dispatch.board.finish(stage.id)

    monkeypatch.setattr("orchestrator.scheduling.Estimator.save", full)
    monkeypatch.setattr("orchestrator.scheduling._run_ray", finish_all)
    monkeypatch.setattr("orchestrator.scheduling.Estimator.chains", lambda self, plan: {})
    assert execute(board.plan, Options(home=tmp_path), []).exhausted
    assert "No space left" in caplog.text
