"""A tuning whose driver dies ends with the points and the bytes of an undisturbed one."""

import json
import signal
from pathlib import Path

import pytest

from tests.integration.test_interruptions import (
    bury,
    digests,
    family,
    finish,
    start,
    wait_for_epochs,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STUDY = """\
study: tuned
kind: tuning
datasets: [{name: digits, protocol: {train_per_class: 40}}]
pairs:
  - name: effnet-resnet
    query: {backbone: test_efficientnet, size: 32}
    gallery: {backbone: test_resnet, size: 32}
methods: {csch: {assign: A_r}}
search:
  gamma: {type: log_float, low: 0.1, high: 1000}
  margin: [0.0, 0.2, 0.4]
bits: 16
train: {epochs: 4, lr_backbone: 3e-3, lr_head: 3e-3, validate_every: 1}
tuning: {trials: 8, parallel: 2, per_gallery: 2, startup: 2, pruner: median}
tracking: {enabled: false}
"""


def undisturbed(home: Path) -> tuple[list, dict]:
    home.mkdir()
    (home / "study.yaml").write_text(STUDY)
    # One process, one stage at a time: the sequence must not depend on how it is executed either.
    code, out, err = finish(
        start(home, home / "study.yaml", "tune", "--json", "--executor=inline")
    )
    assert code == 0, err
    return json.loads(out), digests(home)


def test_a_driver_killed_in_mid_tuning_changes_no_suggestion_and_repeats_nothing(tmp_path):
    table, stages = undisturbed(tmp_path / "quiet")
    assert {row["state"] for row in table} == {"done", "pruned"}
    home = tmp_path / "killed"
    home.mkdir()
    study = home / "study.yaml"
    study.write_text(STUDY)
    for notes in (3, 9):  # in the middle of the first points, and of later ones
        process = start(home, study, "tune", "--json", "--cpus=2")
        wait_for_epochs(home, notes, process)
        everyone = family(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        bury(everyone)
    code, out, err = finish(start(home, study, "tune", "--json", "--cpus=2"))
    assert code == 0, err
    assert json.loads(out) == table
    assert digests(home) == stages
    code, out, err = finish(start(home, study, "run", "--json"))
    assert (code, json.loads(out)) == (0, table)
    assert "stages that were run now: 0" in err
