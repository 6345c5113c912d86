"""What the tuning benchmark counts, against counts by hand."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tuning
from benchmarks.tuning import AXES, EPOCHS, TABLE, Table, Work, ours, plainly

EVERY = list(itertools.product(*(range(len(values)) for values in AXES.values())))


def table(good=(), weight=1.5):
    """A table whose good settings end with 0.9, the others with 0.45."""
    rising = [epoch / EPOCHS for epoch in range(1, EPOCHS + 1)]
    curves = {p: [(0.9 if p in good else 0.45) * part for part in rising] for p in EVERY}
    return Table(curves, weight)


def test_good_is_within_one_percent_of_the_best():
    found = table({EVERY[0], EVERY[5]})
    found.curves[EVERY[7]][-1] = 0.99 * 0.9
    found.curves[EVERY[8]][-1] = 0.98 * 0.9
    assert (found.best, found.good) == (0.9, 3)


def test_a_shared_gallery_is_counted_once_and_a_completed_setting_is_free():
    work = Work(table())
    first, second, other = (0, 0, 0, 0), (3, 0, 0, 0), (0, 1, 0, 0)  # gamma reads no gallery
    expected = 0.0
    for place, added in [(first, 9 * 1.5 + 9), (second, 9), (other, 9 * 1.5 + 9), (first, 0)]:
        work.begin(place, shares=True)
        for epoch in range(1, EPOCHS + 1):
            work.epoch(place, epoch, shares=True)
        work.complete(place)
        expected += added
        assert work.epochs == expected
    assert work.trials == 4


def test_a_stopped_setting_is_counted_again():
    work = Work(table())
    for _ in range(2):
        work.begin((0, 0, 0, 0), shares=True)
        work.epoch((0, 0, 0, 0), 1, shares=True)
    assert work.epochs == 9 * 1.5 + 2


def test_plain_trials_pay_for_both_networks_and_run_side_by_side():
    good = EVERY[100]
    order = [EVERY[0], EVERY[1], good, EVERY[2]]
    work = plainly(
        table({good}), lambda name: order[int(name.split("-")[1])], lambda *heard: False
    )
    # eight rounds of four, and in the ninth the third trial ends: 35 epochs of both networks
    assert work.found and work.trials == 4
    assert work.epochs == pytest.approx(35 * 2.5)


def test_what_is_stopped_makes_room_for_the_next():
    good = EVERY[100]

    def suggest(name):
        return good if name == "trial-4" else EVERY[0]

    def stop_first(name, epoch, value):
        return name == "trial-0" and epoch == 2

    work = plainly(table({good}), suggest, stop_first)
    # two rounds of four, of which one is stopped; seven of the other three and the good one; one
    # of the good one and three new ones; and its last epoch, which is the first of its round
    assert work.epochs == pytest.approx((2 * 4 + 7 * 4 + 4 + 1) * 2.5)
    assert work.trials == 8


def test_ours_pays_a_gallery_for_each_group_and_an_epoch_of_the_query_for_each_epoch():
    work = ours(table(set(EVERY)), 0, {"sampler": "random", "per_gallery": 4})
    assert work.found and work.trials == 4 and len(work.galleries) == 1
    assert work.epochs == pytest.approx(9 * 1.5 + 4 * 9)


@pytest.mark.parametrize("name", [name for name in tuning.WAYS if " gp" not in name])
def test_every_way_finds_what_is_easily_found(name):
    """Half of the settings are good: none needs more than a few trials."""
    found = tuning.measure(table(set(EVERY[::2])), name, range(2))
    assert (found["found"], found["repeats"]) == (2, 2)
    assert 4 <= found["trials"] < 40


def test_the_recorded_table_is_complete():
    recorded = Table.read(TABLE)
    assert set(recorded.curves) == set(EVERY)
    assert all(0 < value <= 1 for curve in recorded.curves.values() for value in curve)
    assert recorded.good >= 1 and recorded.gallery_weight > 0


@pytest.mark.parametrize("options", [["--repeats", "0"], ["--first-seed", "-1"], ["--only", "x"]])
def test_wrong_options_are_refused(options):
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.tuning", *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
