"""What ``asymbench list methods`` and the generated page tell of each method."""

import json

import pytest
from click.testing import CliRunner

from methods.base import METHODS, hyperparameter
from orchestrator.catalogue import entries, methods_markdown
from orchestrator.cli import cli

FACTS = {
    "csch": ("query and gallery", "simultaneous", ["fc_bn"], "its gallery"),
    "csq": ("gallery", "frozen gallery", ["fc_tanh", "mlp3_tanh"], "its gallery"),
    "orthohash": ("gallery", "frozen gallery", ["fc_bn"], "its gallery"),
    "mdsh": ("gallery", "frozen gallery", ["fc_bn_tanh"], "its gallery"),
    "daph": ("query and gallery", "joint, 2 phases an epoch", ["fc_tanh"], "nothing"),
    "adsq": ("query and gallery", "joint, 2 phases an epoch", ["fc_tanh"], "nothing"),
    "dcah": ("gallery", "frozen gallery", ["the teacher's"], "the teacher's gallery"),
    "ssp": ("gallery", "frozen gallery", ["the teacher's"], "the teacher's gallery"),
    "aml_reg": ("gallery", "frozen gallery", ["the teacher's"], "the teacher's gallery"),
    "aml_contr": (
        "query and gallery",
        "frozen gallery",
        ["the teacher's"],
        "the teacher's gallery",
    ),
    "csd": ("gallery", "frozen gallery", ["the teacher's"], "the teacher's gallery"),
    "rkd": ("gallery", "frozen gallery", ["the teacher's"], "the teacher's gallery"),
    "l2": ("gallery", "frozen gallery", ["the teacher's"], "the teacher's gallery"),
}
"""By the papers: who reads labels, how the sides depend on each other, heads, what is shared."""


def test_every_method_of_the_literature_is_there():
    assert set(FACTS) == set(METHODS.names())


@pytest.mark.parametrize("name", sorted(FACTS))
def test_facts_are_the_papers(name):
    (entry,) = [entry for entry in entries("methods") if entry["name"] == name]
    facts = tuple(entry[key] for key in ("labels", "schedule", "heads", "shares"))
    assert facts == FACTS[name]
    assert entry["status"] == ("reconstructed" if name == "adsq" else "published")
    assert entry["paper"]
    assert entry["settings_from"]


def test_the_table_shows_what_the_json_holds():
    shown = CliRunner().invoke(cli, ["list", "methods"]).output
    held = json.loads(CliRunner().invoke(cli, ["list", "methods", "--json"]).output)
    header, *lines = shown.splitlines()
    for column in ("labels", "schedule", "heads", "shares", "embeddings", "status", "paper"):
        assert column in header
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in held]


def test_the_page_names_every_method_and_hyperparameter():
    page = methods_markdown()
    for name in METHODS.names():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in METHODS.get(name).Params.model_fields:
            assert f"| `{field}` |" in section or field == "quantizer"


def test_notes_say_what_is_reconstructed():
    notes = {entry["name"]: entry["note"] for entry in entries("methods")}
    assert "reconstruction" in notes["adsq"]
    assert "reconstructions of ours" in notes["dcah"]
    assert "incomplete" in notes["daph"]


def test_the_list_has_the_default_space_and_where_each_range_is_from():
    held = json.loads(CliRunner().invoke(cli, ["list", "methods", "--json"]).output)
    (csch,) = [entry for entry in held if entry["name"] == "csch"]
    gamma = {"type": "log_float", "low": 0.1, "high": 1000.0, "points": 5}
    from_where = "CSCH, Fig. 7, but for its 0, which is no instance term"
    assert csch["default_space"]["gamma"] == {**gamma, "source": from_where}
    assert set(csch["default_space"]) == {"gamma", "margin", "tau"}
    shown = csch["hyperparameters"]
    assert (shown["gamma"]["range"], shown["gamma"]["range_from"]) == (gamma, from_where)
    assert shown["gamma"]["tunable"]
    assert not shown["instance"]["tunable"]
    assert shown["instance"]["range_from"] == "CSCH, Tables 4 and 5"
    assert shown["contrastive_margin"]["read_with"] == {"instance": ["contr_sg", "contr_grad"]}
    assert shown["quantizer"]["range"] is None
    assert not shown["quantizer"]["tunable"]


def test_the_page_says_what_the_default_space_has_and_what_is_not_in_it():
    section = methods_markdown().split("\n## csch\n")[1].split("\n## ")[0]
    rows = {line.split("|")[1].strip(" `"): line for line in section.splitlines() if "| `" in line}
    assert "| 0.0625 to 1, by logarithm; only with" in rows["tau"]
    assert "| 0.5 to 1.5 by 0.2; only with instance contr" in rows["contrastive_margin"]
    assert "| not by default | CSCH, Table 6 |" in rows["assign"]


def test_a_method_without_ranges_is_listed_with_an_empty_space(monkeypatch):
    class Plain(METHODS.get("l2").Params):
        """Declares a hyperparameter, and no values worth trying."""

        weight: float = hyperparameter(1.0, reads=("query",), doc="x")
        target: str = hyperparameter("continuous", reads=("query",), doc="x")

    monkeypatch.setattr(METHODS.get("l2"), "Params", Plain)
    (entry,) = [entry for entry in entries("methods") if entry["name"] == "l2"]
    assert entry["default_space"] == {}
    assert entry["hyperparameters"]["weight"]["range"] is None
