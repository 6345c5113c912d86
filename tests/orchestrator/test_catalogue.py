"""What ``asymbench list methods`` and the generated page tell of each method."""

import json

import pytest
from click.testing import CliRunner

from methods.base import METHODS
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
