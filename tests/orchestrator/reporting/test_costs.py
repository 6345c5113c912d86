"""Costs, efficiency points and origins, worked out by hand."""

from __future__ import annotations

import json

import pytest

from orchestrator.reporting.costs import Price, costs
from orchestrator.reporting.efficiency import efficiency_points
from orchestrator.reporting.leaderboard import leaderboards
from orchestrator.reporting.provenance import provenance
from orchestrator.reporting.results import gather
from orchestrator.session import open_session
from orchestrator.store import open_store
from retrieval.errors import InputError
from search_spaces.presets import presets
from tests.orchestrator.scored import finish, planned

SECONDS = {"centers": 10.0, "gallery": 1800.0, "query": 900.0, "metrics": 20.0}


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("2.5", 2.5, ""),
        ("2", 2.0, ""),
        (".5 $", 0.5, "$"),
        ("0", 0.0, ""),
        ("2.5 EUR", 2.5, "EUR"),
        ("2.5EUR", 2.5, "EUR"),
        (" 3 € ", 3.0, "€"),
    ],
)
def test_a_price_is_a_number_and_perhaps_a_currency(text, amount, currency):
    assert Price.parse(text) == Price(amount, currency)


NO_PRICES = ("", "EUR", "-1", "+1", "1e3", "nan", "1,5", "2.5 EUR an hour!", "2 E\nUR", "9" * 400)


@pytest.mark.parametrize("text", NO_PRICES)
def test_what_is_no_price_is_refused(text):
    with pytest.raises(InputError, match=r"--price.*must be a number"):
        Price.parse(text)


def test_hours_money_and_what_sharing_saved(tmp_path):
    store = open_store(tmp_path)
    plan = planned(tmp_path, methods={"csch": {"gamma": [1.0, 2.0]}})
    for stage in plan.stages.values():
        cost = {"device": "H100", "workers": 2} if stage.kind == "gallery" else {"cpu": "Xeon"}
        finish(store, plan, stage.id, {}, SECONDS[stage.kind], **cost)
    found = costs(gather(plan, store), price="4 EUR")
    # One of centers and of gallery, which serve two trials; two each of query and metrics.
    assert {w.kind: (w.stages, w.seconds) for w in found.work} == {
        "centers": (1, 10.0),
        "gallery": (1, 1800.0),
        "query": (2, 1800.0),
        "metrics": (2, 40.0),
    }
    # Two workers for half an hour; 10 + 1800 + 40 seconds of the processor.
    assert found.device_hours == {"H100": 1.0, "Xeon": pytest.approx(1850 / 3600)}
    assert found.money == f"{4 * (1 + 1850 / 3600):.2f} EUR" == "6.06 EUR"
    # The second trial's centers and gallery were not made again: 1810 s.
    assert found.sharing.saved == 1810.0
    assert found.saved == "2.01 EUR"


def test_without_a_price_there_is_no_money(tmp_path):
    plan = planned(tmp_path)
    found = costs(gather(plan, open_store(tmp_path)))
    assert (found.money, found.saved, found.hours, found.work) == ("", "", 0, ())


# ---- efficiency -----------------------------------------------------------------------------


def measured(**changes: object) -> dict[str, object]:
    query = {"backbone": "test_efficientnet", "size": 32, "head": "fc_bn",
             "latency": {"1": {"median": 0.004}, "32": {"median": 0.1}}}  # fmt: skip
    return {
        "pair": "tiny",
        "device": "cpu",
        "threads": 1,
        "bits": 64,
        "query": {**query, **changes},
        "machine": {"processor": "Xeon"},
        "warnings": [],
    }


@pytest.fixture
def scored(tmp_path):
    store = open_store(tmp_path)
    plan = planned(tmp_path, bits=[12])
    (trial,) = plan.trials
    finish(store, plan, trial.stages["query"], {"parameters": 10, "flops": 20})
    finish(store, plan, trial.stages["gallery"], {"parameters": 30, "flops": 40})
    finish(store, plan, trial.id, {"map": 0.5})
    (tmp_path / "efficiency").mkdir()
    return gather(plan, store), tmp_path


def points(scored):
    results, home = scored
    return efficiency_points(results, leaderboards(results), home)


def test_a_point_has_sizes_bytes_and_no_latency_before_one_is_measured(scored):
    (point,) = points(scored)
    assert (point.mean, point.code_bytes, point.latencies) == (0.5, 2, ())
    assert (point.query_parameters, point.query_flops) == (10, 20)
    assert (point.gallery_parameters, point.gallery_flops) == (30, 40)


def test_a_latency_is_that_of_the_same_network_image_size_and_head(scored):
    _, home = scored
    others = {
        "same": measured(),
        "other-size": measured(size=64),
        "other-head": measured(head="mlp3_tanh"),
        "other-network": measured(backbone="test_vit"),
        "without": measured(latency={}),
    }
    for name, value in others.items():
        (home / "efficiency" / f"{name}.json").write_text(json.dumps(value))
    (home / "efficiency" / "torn.json").write_text("{")
    (home / "efficiency" / "list.json").write_text("[]")
    (point,) = points(scored)
    (latency,) = point.latencies
    assert (latency.milliseconds, latency.machine, latency.bits) == (4.0, "Xeon", 64)


# ---- where numbers come from ----------------------------------------------------------------


def test_origins_name_the_command_the_data_and_the_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = open_session("quickstart", ("bits=[16]",), home=tmp_path)
    found = provenance(session, gather(session.plan, session.store))
    assert found.commands == (
        "asymbench run quickstart '--set=bits=[16]'",
        "asymbench report quickstart",
    )
    (data,) = found.data
    # 1,797 digits, 30 queries of each of 10 classes
    assert (data.name, data.protocol, data.at) == ("digits", "digits-30", "all")
    assert (data.sizes["query"], data.sizes["gallery"]) == (300, 1497)
    assert len(data.fingerprint) == 64
    assert found.versions == {}  # nothing ran yet
    assert {"method csch", "method csq", "method l2", "method orthohash"} <= found.code.keys()
    assert found.machines == {}


def test_versions_are_those_that_the_stages_ran_on(tmp_path):
    session = open_session("quickstart", ("bits=[16]", "seeds=[0]"), home=tmp_path)
    store, plan = session.store, session.plan
    centers, *galleries = [*plan.of_kind("centers")[:1], *plan.of_kind("gallery")[:3]]
    finish(store, plan, centers.id, {}, 1.0)  # of a release that did not write them down
    for stage, torch in zip(galleries, ("2.14.0", "2.15.0", "2.15.0"), strict=True):
        finish(store, plan, stage.id, {}, 1.0, versions={"torch": torch, "timm": "1.0"})
    found = provenance(session, gather(plan, store))
    assert found.versions == {
        "torch": "2.14.0 (1 stage), 2.15.0 (2 stages), not recorded (1 stage)",
        "timm": "1.0 (3 stages), not recorded (1 stage)",
    }


def test_a_file_of_ones_own_is_named_even_where_a_preset_has_its_name(tmp_path):
    file = tmp_path / "quickstart.yaml"
    file.write_text(presets()["quickstart"].read_text().replace("seeds: [0]", "seeds: [1]"))
    session = open_session(str(file), home=tmp_path)
    found = provenance(session, gather(session.plan, session.store))
    assert found.commands[0] == "asymbench run quickstart.yaml"


def test_credentials_are_not_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret-word")
    session = open_session("quickstart", ("description=with secret-word",), home=tmp_path)
    found = provenance(session, gather(session.plan, session.store))
    assert "with ***" in found.study and "with ***" in found.commands[0]
    assert "secret-word" not in "".join([*found.commands, found.study])
