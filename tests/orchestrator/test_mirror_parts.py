"""What the mirror makes of a trial before anything is sent: names, numbers, words, versions."""

import json
import re
import shlex
from dataclasses import replace

import pytest

from orchestrator.checkpoints import epochs_so_far
from orchestrator.mirror_numbers import latencies, read_efficiency, stage_metrics, trial_metrics
from orchestrator.mirror_texts import again, escape, model_card, run_name, study_note, trial_row
from orchestrator.mirror_versions import versions
from orchestrator.store import Manifest, write_json
from tests.orchestrator.synthetic import synthetic_plan


@pytest.fixture
def trial():
    return synthetic_plan(1).trials[0]


@pytest.mark.parametrize(
    ("pair", "shown"),
    [
        ("mnv3s-rn50", "mnv3s→rn50"),
        ("v3s→rn50", "v3s→rn50"),
        ("v3s->rn50", "v3s->rn50"),
        ("small", "small"),
        ("a-b-c", "a-b-c"),  # which of the two joins the sides cannot be known
        ("-rn50", "-rn50"),
    ],
)
def test_name_of_a_run_has_an_arrow_where_the_pair_joins_two_names(trial, pair, shown):
    named = replace(trial, pair=pair)
    assert run_name(named) == f"csch gamma=0 · {shown} · 16 bit · d · s0"
    assert f" · {pair} · " in named.label  # tables keep the study's name


def test_an_arrow_replaces_the_pair_and_nothing_else(trial):
    named = replace(trial, pair="a-b", method="a-b", dataset="a-b", setting="")
    assert run_name(named) == "a-b · a→b · 16 bit · a-b · s0"


# ---- numbers ---------------------------------------------------------------------------------


def test_circumstances_and_the_last_epoch_are_no_results_of_a_stage():
    result = {"final": {"loss/gallery/center": 1.0}, "parameters": 5, "centers": {"min": 7}}
    cost = {"seconds": 2.5, "device": "cpu", "attempt": 1, "threads": 1, "resumed": False}
    found = stage_metrics(result, cost)
    assert found == {"parameters": 5.0, "centers/min": 7.0, "seconds": 2.5}


class _Store:
    """Holds manifests in memory."""

    def __init__(self, manifests):
        self.manifests = manifests

    def is_done(self, stage_id):
        return stage_id in self.manifests

    def manifest(self, stage_id):
        return self.manifests[stage_id]

    def read(self, stage_id, name):
        raise KeyError(name)


def manifest(result=None, cost=None, kind="query"):
    return Manifest(id="i", kind=kind, identity={}, result=result or {}, cost=cost or {}, files={})


def test_final_metrics_are_grouped_and_leave_out_what_is_a_setting(trial):
    scores = {"map": 0.5, "bits": 16, "bootstrap": 1000, "gallery": 9, "queries": 3, "at": 100}
    scores |= {"gallery_codes": {"dead_bits": 2, "bit_balance": 0.1}, "precision_at_k": {"5": 0.4}}
    store = _Store(
        {
            trial.id: manifest(scores),
            trial.stages["query"]: manifest(
                {"final": {"validation/map": 0.25}, "parameters": 7, "flops": 8},
                {"seconds": 1.5, "peak_memory_mb": 10.0, "images_per_second": 99.0},
            ),
            trial.stages["gallery"]: manifest({"parameters": 70, "flops": 80}, {"seconds": 3.0}),
        }
    )
    assert trial_metrics(trial, store) == {
        "map": 0.5,
        "codes/gallery/dead_bits": 2.0,
        "codes/gallery/bit_balance": 0.1,
        "precision_at_k/5": 0.4,
        "validation/map": 0.25,
        "seconds/query": 1.5,
        "peak_memory_mb/query": 10.0,
        "images_per_second/query": 99.0,
        "parameters/query": 7.0,
        "flops/query": 8.0,
        "seconds/gallery": 3.0,
        "parameters/gallery": 70.0,
        "flops/gallery": 80.0,
    }


def side(backbone, size, head="fc_bn", **seconds):
    timings = {batch.strip("b"): {"per_item": value} for batch, value in seconds.items()}
    return {"backbone": backbone, "size": size, "head": head, "latency": timings}


def test_latency_is_that_of_the_same_network_at_the_same_size(lab):
    plan = lab.plan()
    query, gallery = side("test_efficientnet", 32, b1=0.002), side("test_resnet", 32, b1=0.004)
    entry = {"bits": 64, "device": "cpu", "query": query, "gallery": gallery}
    found = latencies(plan, plan.trials[0], [entry])
    assert found == {"latency_ms/query_cpu_batch_1": 2.0, "latency_ms/gallery_cpu_batch_1": 4.0}
    own = {**entry, "bits": 16, "query": side("test_efficientnet.r160_in1k", 32, b1=0.003)}
    for order in ([entry, own], [own, entry]):  # the trial's own code length holds
        found = latencies(plan, plan.trials[0], order)
        assert found["latency_ms/query_cpu_batch_1"] == 3.0
    for other in (side("test_efficientnet", 64, b1=1.0), side("test_vit", 32, b1=1.0)):
        found = latencies(plan, plan.trials[0], [{**entry, "query": other}])
        assert list(found) == ["latency_ms/gallery_cpu_batch_1"]
    other = side("test_efficientnet", 32, "fc_tanh", b1=1.0)
    assert "latency_ms/query_cpu_batch_1" not in latencies(
        plan, plan.trials[0], [{**entry, "query": other}]
    )


def test_damaged_measurements_are_none(tmp_path):
    (tmp_path / "efficiency").mkdir()
    good = {"bits": 1, "device": "cpu", "query": {}, "gallery": {}}
    write_json(tmp_path / "efficiency" / "a.json", good)
    write_json(tmp_path / "efficiency" / "b.json", [1])
    (tmp_path / "efficiency" / "c.json").write_text("{")
    assert read_efficiency(tmp_path) == [good]


# ---- words -----------------------------------------------------------------------------------


def test_row_of_a_trial_has_its_place_and_its_scores(trial):
    head, rule, row = trial_row(trial, {"map": 0.25, "validation/map": 0.5}).splitlines()
    assert head == "| method | dataset | pair | bits | seed | mAP | validation |"
    assert rule == "| --- | --- | --- | --- | --- | --- | --- |"
    assert row == "| csch gamma=0 | d | v3s→rn50 | 16 | 0 | 0.2500 | 0.5000 |"


@pytest.mark.parametrize("text", ["<script>x</script>", "a|b", "[x](javascript:1)", "`code` *b*"])
def test_names_cannot_become_markup(trial, text):
    named = replace(trial, dataset=text)
    for shown in (
        trial_row(named, {}),
        model_card(named, text, {"backbone": "b", "head": "h", "size": 8}, {}),
        study_note("s", "") + escape(text),
    ):
        assert "<script>" not in shown
        assert not re.search(r"(?<!\\)\]\(javascript", shown)
        assert " a|b " not in shown


def test_the_command_of_a_description_plans_that_trial_alone(tmp_path, monkeypatch):
    import yaml

    from orchestrator.session import open_session, remember
    from tests.orchestrator.conftest import BASE

    study = {
        **BASE,
        "pairs": [*BASE["pairs"], "small"],
        "methods": [{"csch": {"gamma": [1.0, 10.0]}}, "csq"],
        "bits": [16, 32],
        "seeds": [0, 1],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    session = open_session(str(path), home=tmp_path)
    remember(session)
    picked = [session.plan.trials[0], session.plan.trials[-1], session.plan.trials[13]]
    for trial in picked:
        words = shlex.split(again(trial, "small", session.study, session.plan))
        assert words[:3] == ["asymbench", "run", "small"]
        overrides = tuple(word for word in words[3:] if word != "--set")
        alone = open_session("small", overrides, home=tmp_path, ran=True)
        assert [t.id for t in alone.plan.trials] == [trial.id]
        assert alone.plan.study == "small-one"  # the runs of the study stay current


# ---- versions --------------------------------------------------------------------------------


def cells(scores):
    """Return a plan with a cell of three settings and two seeds each, and its store.

    Args:
        scores: validation mAP by (setting, seed); None is a trial without one, and a pair that is
            missing is not done.
    """
    plan = synthetic_plan(6, share=3)
    manifests = {}
    for trial in plan.trials:
        place = (trial.params["gamma"], trial.seed)
        if place in scores:
            value = scores[place]
            final = {} if value is None else {"validation/map": value}
            manifests[trial.stages["query"]] = manifest({"final": final})
            manifests[trial.id] = manifest({"map": 1.0 - (value or 0.0)}, kind="metrics")
    return plan, _Store(manifests)


def test_best_is_the_setting_with_the_highest_mean_on_validation_and_its_first_seed():
    scores = {(0, 0): 0.9, (0, 1): 0.1, (1, 0): 0.4, (1, 1): 0.8, (2, 0): 0.5, (2, 1): 0.5}
    plan, store = cells(scores)  # means: 0.5, 0.6, 0.5; the tests' mAP is the reverse
    (version,) = versions(plan, store)
    wanted = next(t for t in plan.trials if (t.params["gamma"], t.seed) == (1, 0))
    assert (version.key, version.alias) == (wanted.id, "best")
    assert version.name == "synthetic · d · v3s→rn50 · 16 bit"
    assert "3 settings" in version.description and "0.6000" in version.description


def test_first_of_the_study_wins_a_tie_and_incomplete_settings_are_not_compared():
    plan, store = cells({(1, 0): 0.5, (1, 1): 0.5, (2, 0): 0.5, (2, 1): 0.5, (0, 0): 1.0})
    (version,) = versions(plan, store)
    first = next(t for t in plan.trials if (t.params["gamma"], t.seed) == (1, 0))
    assert version.key == first.id
    assert "2 of 3 settings" in version.description


def test_without_validation_nothing_is_chosen_among_several_and_the_only_one_is_taken():
    plan, store = cells({(g, s): None for g in range(3) for s in range(2)})
    assert versions(plan, store) == ()
    plan.trials = [trial for trial in plan.trials if trial.params["gamma"] == 2]
    (version,) = versions(plan, store)
    assert (version.key, version.alias) == (plan.trials[0].id, "only")


def test_nothing_is_registered_of_a_study_that_has_nothing_done():
    assert versions(*cells({})) == ()


# ---- epochs of a training in work ------------------------------------------------------------


def checkpoint(folder, epochs, history):
    head = json.dumps({"stage": "s", "files": {}, "notes": {"history": history}})
    header = json.dumps({"__metadata__": {"head": head}}).encode()
    path = folder / f"checkpoint-{epochs:05d}-{'0' * 64}.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_epochs_so_far_are_those_of_the_newest_checkpoint_that_reads(tmp_path):
    assert epochs_so_far(tmp_path) == []
    checkpoint(tmp_path, 1, [{"epoch": 0}])
    newest = checkpoint(tmp_path, 2, [{"epoch": 0}, {"epoch": 1}])
    assert epochs_so_far(tmp_path) == [{"epoch": 0}, {"epoch": 1}]
    for damaged in (b"", b"\xff" * 16, newest.read_bytes()[:-3]):
        newest.write_bytes(damaged)
        assert epochs_so_far(tmp_path) == [{"epoch": 0}]


def test_epochs_so_far_of_a_real_checkpoint(tmp_path):
    import torch

    from orchestrator.checkpoints import Checkpoints

    history = [{"epoch": 0, "validation/map": 0.5}]
    saved = Checkpoints(tmp_path, stage="s")
    saved.save(1, {"w": torch.zeros(2)}, {"history": history, "seconds": 1.0})
    assert epochs_so_far(tmp_path) == history
