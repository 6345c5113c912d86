"""The benchmarks' own arithmetic."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import images, reporting


def test_every_batch_that_is_made_while_the_clock_runs_is_counted(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(images.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(images.time, "process_time", lambda: 0.0)
    made = []

    def epoch(number):
        for _ in range(9):
            made.append(number)
            yield torch.zeros(4, 1)

    rate, cost = images.rate(epoch, batches=3, repeats=1)
    # The clock ticks once between start and end: 3 batches of 4 images in one second.
    assert (rate, cost) == (12.0, 0.0)
    # In each run one batch before the clock starts, and no more than the three that count.
    assert made == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    "options", [["--batches", "0"], ["--repeats", "0"], ["--cores", "0"], ["--images", "1"]]
)
def test_wrong_options_of_the_images_benchmark_are_refused(options):
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.images", *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "at least" in found.stderr and "Traceback" not in found.stderr


def test_the_reporting_benchmark_fills_a_store_and_times_every_format(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(reporting, "seconds", lambda command, *_: made.append(command) or 1.0)
    found = reporting.measure(50, 1, tmp_path)
    # one setting, 10 code lengths, 5 seeds; each with centers, gallery, query and metrics
    assert (found["trials"], found["stages"]) == (50, 200)
    assert [c[3] for c in made if c[0] == "report"] == list(reporting.FORMATS)
