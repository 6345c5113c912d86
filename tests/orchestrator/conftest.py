"""A small study on real digits, run in this process."""

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from orchestrator.board import Board
from orchestrator.cli import cli, guarded
from orchestrator.plan import Plan, build_plan
from orchestrator.scheduling import Options, execute
from orchestrator.store import open_store
from orchestrator.study import load_study

BASE = {
    "study": "small",
    "datasets": [{"name": "digits", "protocol": {"train_per_class": 40}}],
    "pairs": [
        {
            "name": "effnet-resnet",
            "query": {"backbone": "test_efficientnet", "size": 32},
            "gallery": {"backbone": "test_resnet", "size": 32},
        }
    ],
    "methods": ["csch"],
    "bits": [16],
    "train": {
        "epochs": 2,
        "lr_backbone": 3e-3,
        "lr_head": 3e-3,
        "schedule": "cosine",
        "validate_every": 1,
    },
    "tracking": {"enabled": False},
}


class Lab:
    """Plans and runs variations of the small study in one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = open_store(home)

    def plan(self, **changes: object) -> Plan:
        text = yaml.safe_dump({**BASE, **changes})
        study, _ = load_study(text, "small.yaml", Path.cwd())
        return build_plan(study, folder=Path.cwd(), home=self.home)

    def run(self, *listeners, **changes: object) -> tuple[Plan, Board]:
        plan = self.plan(**changes)
        options = Options(home=self.home, executor="inline")
        board = execute(plan, options, list(listeners))
        self.store = open_store(self.home)
        return plan, board


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory):
    """A home that tests share, so that a gallery is trained once for all of them."""
    return Lab(tmp_path_factory.mktemp("shared"))


class Result(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def asymbench(capsys):
    """Call the command in this process, as its entry point does."""

    def run(*args: str) -> Result:
        capsys.readouterr()
        code = guarded(lambda: cli(list(args), prog_name="asymbench", standalone_mode=False))
        return Result(code, *capsys.readouterr())

    return run
