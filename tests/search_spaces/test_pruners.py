"""Verdicts worked out by hand."""

import pytest

from search_spaces.pruners import Asha, Hyperband, Median, Never, pruner_of, rungs
from search_spaces.tried import Tried


def past(number, reports, state="complete"):
    values = (max(reports.values()),) if state == "complete" else None
    return Tried(number, {}, state, values, dict(reports))


def ended(*curves, state="complete"):
    return [past(number, dict(enumerate(c, start=1)), state) for number, c in enumerate(curves)]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, []), (2, [1]), (3, [1]), (8, [1, 3]), (9, [1, 3]), (27, [1, 3, 9]), (150, [6, 17, 50])],
)
def test_rungs_are_at_a_third_a_ninth_and_a_27th_of_a_training(epochs, expected):
    assert rungs(epochs) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [("none", Never), ("asha", Asha), ("hyperband", Hyperband), ("median", Median)],
)
def test_each_pruner_has_its_name(name, kind):
    assert type(pruner_of(name, 9)) is kind


def test_none_stops_nothing():
    assert not Never().stops(9, 1, {1: 0.0}, ended([0.9] * 9, [0.8] * 9))


def test_asha_keeps_the_best_third_of_all_that_came_to_a_rung():
    others = ended([0.1], [0.2], [0.3], [0.4], [0.5])  # with the new one six, of which two go on
    asha = Asha(9)
    assert not asha.stops(5, 1, {1: 0.6}, others)
    assert not asha.stops(5, 1, {1: 0.45}, others)
    assert asha.stops(5, 1, {1: 0.39}, others)


def test_asha_lets_ties_and_the_best_of_few_go_on():
    asha = Asha(9)
    assert not asha.stops(0, 1, {1: 0.1}, [])
    assert not asha.stops(1, 1, {1: 0.5}, ended([0.5]))
    assert asha.stops(1, 1, {1: 0.4}, ended([0.5]))


def test_asha_compares_at_rungs_only_and_never_at_the_end():
    others = ended(*([0.9] * 9 for _ in range(6)))
    own = dict.fromkeys(range(1, 10), 0.1)
    verdicts = {
        epoch: Asha(9).stops(6, epoch, {e: own[e] for e in range(1, epoch + 1)}, others)
        for epoch in own
    }
    assert [epoch for epoch, stopped in verdicts.items() if stopped] == [1, 3]
    sparse = [past(number, {9: 0.9}) for number in range(6)]  # validated once, at the end
    assert not Asha(9).stops(6, 9, {9: 0.1}, sparse)


def test_asha_counts_those_that_were_stopped_later_and_not_those_that_never_came_to_the_rung():
    stopped = ended([0.9, 0.9, 0.9], [0.8, 0.8, 0.8], state="pruned")
    early = past(7, {1: 0.95}, "pruned")
    own = {1: 0.5, 2: 0.5, 3: 0.85}
    # 0.9, 0.85, 0.8 came to epoch 3: the best one of three goes on
    assert Asha(9).stops(8, 3, own, [*stopped, early])
    assert not Asha(9).stops(8, 3, {**own, 3: 0.95}, [*stopped, early])


def test_a_rung_is_judged_by_the_first_validation_after_it():
    others = [past(number, {5: 0.9, 10: 0.9}) for number in range(3)]
    asha = Asha(27)  # rungs 1, 3, 9; validated every 5 epochs: at 5 and 10
    assert asha.stops(3, 5, {5: 0.1}, others)
    assert asha.stops(3, 10, {5: 0.95, 10: 0.1}, others)
    assert not asha.stops(3, 15, {5: 0.95, 10: 0.95, 15: 0.1}, others)


def test_hyperband_fills_its_brackets_in_turn_with_the_published_numbers_of_trials():
    # R = 9, eta = 3: n_s = ceil(3 / (s + 1) * 3^s), that is 9, 5, 3 for s = 2, 1, 0
    band = Hyperband(9)
    found = [band.bracket(number) for number in range(34)]
    assert found == ([2] * 9 + [1] * 5 + [0] * 3) * 2


def test_hyperband_compares_inside_a_bracket_and_passes_its_last_rungs():
    band = Hyperband(9)
    good = [past(number, dict.fromkeys(range(1, 10), 0.9)) for number in range(17)]
    low = {1: 0.1, 2: 0.1, 3: 0.1}
    assert band.stops(18, 1, {1: 0.1}, good)  # bracket 2: rungs 1 and 3
    assert not band.stops(27, 1, {1: 0.1}, good)  # bracket 1: rung 3
    assert band.stops(27, 3, low, good)
    assert not band.stops(31, 3, low, good)  # bracket 0: none
    assert not band.stops(18, 1, {1: 0.1}, good[9:])  # none of its own bracket has been there
    assert not band.stops(18, 9, {9: 0.1}, good)


def test_median_stops_what_is_below_the_median_of_the_means_of_complete_ones():
    # means up to epoch 2: 0.15, 0.25, 0.35, 0.45, 0.55; their median is 0.35
    others = ended(*([x, x + 0.1, 0.99] for x in (0.1, 0.2, 0.3, 0.4, 0.5)))
    median = Median(9)
    assert median.stops(5, 2, {1: 0.34, 2: 0.3}, others)
    assert not median.stops(5, 2, {1: 0.36, 2: 0.3}, others)  # its best so far counts
    assert not median.stops(5, 2, {1: 0.35, 2: 0.3}, others)


def test_median_waits_for_five_complete_ones_and_stops_none_at_the_end():
    four = ended(*([0.9] * 9 for _ in range(4)))
    pruned = past(4, {1: 0.9}, "pruned")
    assert not Median(9).stops(5, 1, {1: 0.0}, [*four, pruned])
    five = [*four, past(5, dict.fromkeys(range(1, 10), 0.9))]
    assert Median(9).stops(6, 1, {1: 0.0}, five)
    assert not Median(9).stops(6, 9, {9: 0.0}, five)
