from __future__ import annotations

import itertools
import re

import pytest

from orchestrator.reporting.charts import (
    COLOURS,
    Axis,
    Frame,
    Series,
    axis,
    cloud_chart,
    histogram_chart,
    line_chart,
    scatter_chart,
    short,
    swatch,
)
from orchestrator.reporting.efficiency import EfficiencyPoint, Latency
from orchestrator.reporting.leaderboard import Column
from orchestrator.reporting.tradeoffs import front, tradeoffs_section

ATTACK = '</title><script>alert(1)</script>"&$'
UNIT = Frame(Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0))


def test_a_point_lies_where_its_value_says() -> None:
    # 66 px are left of the axes, 12 right and above, 44 below, of 420 by 290.
    assert UNIT.at(0.5, 0.25) == ("237", "187.5")
    assert UNIT.at(0.0, 0.0) == ("66", "246")
    assert UNIT.at(1.0, 1.0) == ("408", "12")


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    one = Axis("K", 1.0, 100.0, log=True)
    assert one.place(10.0) == pytest.approx(0.5)
    assert [text for _, text in one.ticks()] == ["1", "3", "10", "30", "100"]


@pytest.mark.parametrize(
    "one",
    [
        Axis("a", 0.1034, 0.5234),
        Axis("b", 1.0, 1000.0, log=True),
        Axis("c", 11_017_000, 11_050_000),
        Axis("d", 0.0, 2.0),
        Axis("e", 3.0, 5.0, log=True),
        Axis("f", 11_000_000, 11_000_100),
    ],
)
def test_ticks_lie_on_the_axis_in_order_and_have_different_texts(one: Axis) -> None:
    values = [value for value, _ in one.ticks()]
    texts = [text for _, text in one.ticks()]
    assert values == sorted(values)
    assert len(values) >= 2
    assert all(-1e-6 <= one.place(value) <= 1 + 1e-6 for value in values)
    assert len(set(texts)) == len(texts)
    assert not any("e+" in text for text in texts)


@pytest.mark.parametrize("last", [1, 2, 3, 8, 50])
def test_what_is_counted_has_no_marks_between_two_numbers(last: int) -> None:
    marks = [value for value, _ in Axis("epoch", 0.0, float(last), whole=True).ticks()]
    assert len(marks) >= 2
    assert all(mark == int(mark) and 0 <= mark <= last for mark in marks)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0], [0.2, 0.8], [-3.0, 4.0]])
@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("zero", [True, False])
def test_an_axis_has_room_for_its_values(values, log, zero) -> None:
    made = axis("x", values, log=log, zero=zero)
    assert made.low < made.high
    assert all(0 <= made.place(value) <= 1 for value in values)
    if zero and min(values) >= 0 and not made.log:
        assert made.low == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5312, "0.5312"), (512, "512"), (1500, "1.5k"), (11_050_496, "11.05M"), (3e9, "3G"),
     (2e12, "2T"), (0, "0")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_a_line_goes_through_its_points_and_says_their_values() -> None:
    one = Series("csch", 0, ((0.0, 0.0), (0.5, 0.25), (1.0, 1.0)))
    drawn = line_chart("Precision", "told", [one], UNIT)
    assert 'd="M66 246L237 187.5L408 12"' in drawn
    assert 'data-v="0,0 0.5,0.25 1,1"' in drawn


def test_a_histogram_has_a_bar_a_number_and_stands_on_zero() -> None:
    frame = Frame(Axis("distance", -0.5, 1.5), Axis("share", 0.0, 1.0), 420, 290)
    drawn = histogram_chart("h", "told", [Series("same", 0, ((0, 0.5), (1, 1.0)))], frame)
    assert 'd="M66 129H237L237 12H408V246H66Z"' in drawn


def test_the_front_is_a_staircase() -> None:
    one = Series("csch", 0, ((0.0, 0.0), (1.0, 1.0)), ("16 bit", "32 bit"))
    drawn = scatter_chart("s", "told", [one], UNIT, [(0.0, 0.0), (1.0, 1.0)])
    assert 'class="front" d="M66 246H408V12H408"' in drawn
    assert 'data-n="16 bit\n32 bit"' in drawn


def test_the_front_has_what_nothing_beats_by_enumeration() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (3.0, 0.7), (4.0, 0.9), (1.0, 0.5), (4.0, 0.1)]
    kept = [
        (x, y)
        for x, y in set(points)
        if not any((a <= x and b >= y) and (a < x or b > y) for a, b in points)
    ]
    assert front(points) == sorted(kept) == [(1.0, 0.5), (2.0, 0.7), (4.0, 0.9)]


def test_forty_series_all_look_different() -> None:
    looks = {str(swatch(i)) for i in range(4 * COLOURS)}
    assert len(looks) == 4 * COLOURS
    marks = {str(swatch(i, mark=True)) for i in range(4 * COLOURS)}
    assert len(marks) == 4 * COLOURS


def test_names_cannot_leave_their_place() -> None:
    hostile = Series(ATTACK, 0, ((0.0, 0.0), (1.0, 1.0)), (ATTACK, ATTACK))
    frame = Frame(Axis(ATTACK, 0.0, 1.0), Axis(ATTACK, 0.0, 1.0))
    for drawn in (
        line_chart(ATTACK, ATTACK, [hostile], frame),
        scatter_chart(ATTACK, ATTACK, [hostile], frame),
        histogram_chart(ATTACK, ATTACK, [hostile], frame),
        cloud_chart(ATTACK, ATTACK, [hostile]),
    ):
        assert "<script" not in drawn
        assert "&lt;script&gt;" in drawn


def test_a_cloud_fits_its_square_and_no_name_lies_on_another() -> None:
    classes = [
        Series(f"a long name {i}", i, ((0.0 + i / 1e3, 0.0), (100.0, 40.0))) for i in range(8)
    ]
    drawn = cloud_chart("codes", "told", classes)
    places = [tuple(map(float, place)) for place in re.findall(r"M([\d.-]+) ([\d.-]+)h0", drawn)]
    assert len(places) == 16
    assert all(0 <= value <= 290 for place in places for value in place)
    texts = [
        (float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', drawn)
    ]
    assert len(texts) == 8
    ys = sorted(y for _, y in texts)
    assert all(after - before >= 12.9 for before, after in itertools.pairwise(ys))


def test_points_that_are_all_one_are_drawn() -> None:
    drawn = cloud_chart("codes", "told", [Series("a", 0, ((1.0, 2.0), (1.0, 2.0)))])
    assert "M145 145h0M145 145h0" in drawn


def test_warnings_of_a_latency_stand_beside_it() -> None:
    def point(bits: int, *warnings: str) -> EfficiencyPoint:
        return EfficiencyPoint(
            "pair", "csch", Column("digits", "p", "all", bits), "q", "g", 0.5,
            10, 20, 30, 40, bits // 8, (Latency(4.0, "cpu", "Xeon", 1, 64, warnings),),
        )  # fmt: skip

    noisy = tradeoffs_section([point(16, "others use <the> cores"), point(32)], {"csch": 0})
    assert "latency: others use &lt;the&gt; cores." in str(noisy.body)
    quiet = tradeoffs_section([point(16), point(32)], {"csch": 0})
    assert "Warnings" not in str(quiet.body)
