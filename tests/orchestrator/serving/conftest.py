"""A small study that was run: one trial trained in stages, one jointly, on real digits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import cli, guarded
from orchestrator.session import Session, open_session
from tests.once import made_once
from tests.orchestrator.conftest import BASE

STUDY = {
    **BASE,
    "study": "served",
    "methods": ["csch", "daph"],
    "train": {**BASE["train"], "epochs": 1},
}


def _run(home: Path) -> None:
    file = home / "served.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMBENCH_HOME", str(home))
        args = ["run", str(file), "--executor", "inline"]
        assert guarded(lambda: cli(args, prog_name="asymbench", standalone_mode=False)) == 0


@pytest.fixture(scope="session")
def served_home(tmp_path_factory) -> Path:
    """A home in which the study was run; other processes of the tests read it too."""
    return made_once(tmp_path_factory, "served", _run)


@pytest.fixture
def in_home(served_home, monkeypatch) -> Path:
    """The home, as this process' own."""
    monkeypatch.setenv("ASYMBENCH_HOME", str(served_home))
    return served_home


@pytest.fixture
def session(in_home) -> Iterator[Session]:
    """The study."""
    yield open_session("served", ran=True)
