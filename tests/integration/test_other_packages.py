"""A method of another package: found by its entry point, under the contract, in a study."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_method"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The example as an installer leaves it, outside the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    site = folder / "site"
    information = site / "own_method-0.1.0.dist-info"
    information.mkdir(parents=True)
    shutil.copy(EXAMPLE / "own_method.py", site)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: own-method\nVersion: 0.1.0\n"
    )
    (information / "entry_points.txt").write_text(
        "[asymbench.methods]\nangle = own_method:Angle\n"
    )
    for name in ("test_own_method.py", "study.yaml"):
        shutil.copy(EXAMPLE / name, folder)
    return folder


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "ASYMBENCH_HOME": str(folder / "runs"),
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_entry_point_of_the_example_is_what_is_installed_here():
    text = (EXAMPLE / "pyproject.toml").read_text()
    assert '[project.entry-points."asymbench.methods"]\nangle = "own_method:Angle"' in text


def test_it_is_listed(elsewhere):
    done = call(elsewhere, "orchestrator.cli", "list", "methods", "--json")
    assert done.returncode == 0, done.stderr
    (entry,) = [entry for entry in json.loads(done.stdout) if entry["name"] == "angle"]
    assert entry["shares"] == "the teacher's gallery"


def test_it_passes_the_contract_tests_that_are_shipped(elsewhere):
    done = call(elsewhere, "pytest", "-q", "-p", "no:cacheprovider", "test_own_method.py")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_a_broken_method_fails_the_contract(elsewhere, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(elsewhere / "site", site)
    module = site / "own_method.py"
    whole = module.read_text()
    # A loss that reads the batch by its order, as a slip with an index would.
    module.write_text(whole.replace(".mean()}", "[0]}"))
    assert module.read_text() != whole
    shutil.copy(elsewhere / "test_own_method.py", tmp_path)
    done = call(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_own_method.py")
    assert done.returncode == 1
    assert "order_of_the_batch" in done.stdout
    assert "gradients_reach" in done.stdout


def test_it_runs_in_a_study_on_the_gallery_of_its_teacher(elsewhere):
    arguments = ("run", "study.yaml", "--executor", "inline", "--json")
    tracking = ("--set", "tracking.enabled=false", "--set", "train.epochs=1")
    done = call(elsewhere, "orchestrator.cli", *arguments, *tracking)
    assert done.returncode == 0, done.stderr
    scores = {row["method"]: row["map"] for row in json.loads(done.stdout)}
    assert set(scores) == {"orthohash", "l2", "angle"}
    assert 0.1 < scores["angle"] <= 1
    assert "1 gallery training served 3 trials" in done.stderr
