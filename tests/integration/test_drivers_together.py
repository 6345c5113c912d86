"""Two drivers on one study at the same time share its work, and both print its table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STUDY = """\
study: together
datasets: [{name: digits, protocol: {train_per_class: 40}}]
pairs:
  - name: effnet-resnet
    query: {backbone: test_efficientnet, size: 32}
    gallery: {backbone: test_resnet, size: 32}
methods: {csch: {gamma: [1.0, 10.0]}, csq: {}, orthohash: {}}
bits: [8]
train: {epochs: 3, lr_backbone: 3e-3, lr_head: 3e-3}
"""


def start(home: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "run", "study.yaml", "--cpus", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, "ASYMBENCH_HOME": str(home / "runs"), "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )


@pytest.mark.ray
@pytest.mark.mlflow
@pytest.mark.slow
def test_each_stage_is_done_by_one_of_two_drivers_and_both_end_with_the_table(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    one = start(tmp_path)
    time.sleep(1)
    two = start(tmp_path)
    (out, err), (out_two, err_two) = one.communicate(timeout=400), two.communicate(timeout=400)
    assert one.returncode == 0, err
    assert two.returncode == 0, err_two
    assert out == out_two
    assert out.count("csch") == 2
    done: Counter[str] = Counter()
    for path in (tmp_path / "runs/store/logs").glob("*.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        done[path.stem] = sum(event["event"] == "placed" for event in events)
    finished = {path.parent.name for path in (tmp_path / "runs/store/stages").glob("*/*.json")}
    assert finished == set(done)
    assert set(done.values()) == {1}, "a stage was begun twice"
    import sqlite3

    with sqlite3.connect(tmp_path / "runs/mlflow.db") as database:
        runs = database.execute(
            "SELECT value, COUNT(*) FROM tags JOIN runs USING (run_uuid) "
            "WHERE key = 'trial_id' AND lifecycle_stage = 'active' GROUP BY value"
        ).fetchall()
    assert sorted(count for _, count in runs) == [1, 1, 1, 1]
