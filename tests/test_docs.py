"""What the documents show is what the program takes."""

import re
from pathlib import Path

import pytest

from orchestrator.catalogue import datasets_markdown, entries, methods_markdown
from orchestrator.cli import cli
from orchestrator.study import load_study

ROOT = Path(__file__).parents[1]


def test_the_study_in_the_readme_is_valid():
    (text,) = re.findall(r"```yaml\n(study:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    study, _ = load_study(text, "README.md", ROOT)
    assert study.method_grids()[0].given["gamma"] == [0.0, 1.0, 10.0, 100.0]


DOCUMENTS = [
    "README.md",
    "docs/data.md",
    "docs/metrics.md",
    "docs/search.md",
    "docs/mlflow.md",
    "docs/use.md",
    "docs/export.md",
    "docs/results/export.md",
    "docs/results/cifar10_mini.md",
    "docs/results/cifar10_methods.md",
    "examples/own_method/README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_documents_exist(document):
    text = (ROOT / document).read_text()
    named = set(re.findall(r"(?:^    |`)asymbench ([a-z]+)", text, re.MULTILINE))
    assert named, "the document shows no command"
    assert named <= set(cli.commands), document


def test_make_targets_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"`?make ([a-z]+)", (ROOT / document).read_text()):
            assert f"\n{target}:" in makefile, (document, target)


def test_the_page_of_methods_is_what_the_methods_declare():
    assert (ROOT / "docs" / "methods.md").read_text() == methods_markdown(), "run: make docs"


def test_the_page_of_datasets_is_what_the_datasets_declare():
    assert (ROOT / "docs" / "datasets.md").read_text() == datasets_markdown(), "run: make docs"


def test_every_option_of_a_dataset_says_what_it_means():
    for dataset in entries("datasets"):
        for name, option in dataset["options"].items():
            assert option["doc"], (dataset["name"], name)
