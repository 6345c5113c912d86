"""Several workers do what one does: statistics, dropout, gradients, losses, memory, encoding.

Four processes are started once for all of this file; what they do is in ``ranks.py``.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from methods.parallel import ALONE, Workers, arrived, joined
from methods.recipe import Recipe
from retrieval.errors import InputError
from tests.methods import ranks

TIGHT = 1e-10
"""float64, six steps: rounding."""

LOOSE = 1e-4
"""float32, six steps of SGD at a rate of 0.01: rounding, of which each step magnifies some."""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the ranks found, by experiment."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.run_first(str(folder))
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ranks.EXPERIMENTS}


# ---- trainings -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("title", ranks.cases())
def test_workers_train_what_one_trains(told, title):
    stages = ranks.stages_of(*ranks.cases()[title])
    assert stages
    for stage in stages:
        found = told["compare_trainings"][f"{title} / {stage}"]
        assert set(found) == ({"2", "4"} if title.endswith("single") else {"2"})
        for workers, gaps in found.items():
            assert max(gaps.values()) <= TIGHT, (stage, workers, gaps)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_steps_as_with_one_worker(told, optimizer):
    for gaps in told["compare_optimizers"][optimizer].values():
        assert max(gaps.values()) <= 1e-8  # those that divide by the gradient magnify rounding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rkd", "csch", "daph"])
def test_float32_agrees_but_for_rounding(told, name):
    for gaps in told["compare_optimizers"][f"float32 {name}"].values():
        assert 0 < max(gaps.values()) <= LOOSE


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rkd", "daph"])
@pytest.mark.parametrize("wrong", ranks.WRONG)
def test_the_comparison_fails_for_groups_that_are_wrong(told, method, wrong):
    assert told["compare_wrong"][f"{method}: {wrong}"] > 1e6 * TIGHT


@pytest.mark.slow
def test_a_worker_that_drifts_away_stops_all_and_is_named(told):
    assert told["drift"]["raised by all"] == [1, 1, 1, 1]
    assert "worker 4 of 4" in told["drift"]["raised"]
    assert "gallery.network." in told["drift"]["raised"]


# ---- the parts -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("title", ranks.norms())
def test_batch_normalisation_takes_the_global_batch(told, title):
    found = dict(told["compare_norms"][title])
    one, two, four = found.pop("layouts")
    assert one == two == four  # of memory, from the second dimension on
    assert set(found) == {"1", "2", "4"}
    assert max(found.values()) < 1e-12


@pytest.mark.slow
def test_the_variance_does_not_suffer_from_a_large_mean(told):
    found = told["compare_norms"]["offset"]
    for workers in ("2", "4"):  # a difference of squares would be off by more than the variance
        assert found[workers] == pytest.approx(found["exact"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("title", ranks.DRAWS)
def test_random_draws_are_rows_of_those_of_one_worker(told, title):
    assert told["compare_draws"][title] == [True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("images", ["26", "21", "8", "3"])
def test_encoding_gives_the_bytes_of_one_worker(told, images):
    assert told["compare_encoding"][images] == [True, True, True]


@pytest.mark.slow
def test_sums_are_added_in_rank_order(told):
    found = told["add_up"]
    # ((1e16 + 1) - 1e16) + 1 = 1 in float64; other orders give 0 or 2
    assert found["sum"] == [1.0] * 7
    assert found["gradients"][0] == [1.0] * 7
    assert found["gradients"][1] == [2.0]  # (2e16 + 2) - 2e16 + 2: 2e16 + 2 rounds to even 2e16
    assert found["gradients"][4] is None


@pytest.mark.slow
def test_every_gradient_is_summed_whatever_its_type_and_size(told):
    third, fourth = told["add_up"]["gradients"][2:4]
    thrice = [3e16, 3.0, -3e16, 3.0]
    assert third == [((thrice[0] + thrice[1]) + thrice[2]) + thrice[3]] * 2
    single = [np.float32(4 * v) for v in (1e16, 1.0, -1e16, 1.0)]
    assert fourth == [((single[0] + single[1]) + single[2]) + single[3]] * 3


@pytest.mark.slow
def test_what_the_first_worker_has_reaches_all(told):
    found = told["add_up"]
    assert found["received"] == {"a": [[0, 1, 2], "torch.int64"], "b": [2.5, "torch.float64"]}
    assert found["received by all"] == [1, 1, 1, 1]
    assert found["nothing"] is None
    assert found["shares"] == [[0, 1], [2, 3], [4, 5], [6, 7]]


# ---- refusals ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "why"),
    [
        ("noise", "draws random numbers with aten.randn"),
        ("one draw", "one random number for the whole batch"),
        ("batch mean", "its outputs would differ"),
        ("dropout across", "its outputs would differ"),
        ("batch buffer", "backbone.6.seen would differ"),
    ],
)
def test_a_network_that_cannot_be_divided_is_refused(told, title, why):
    found = told["refuse"][title]
    assert why in found
    assert "train.workers" in found
    assert "query network" in found
    assert "workers: 1" in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.BACKBONES)
def test_backbones_with_dropout_and_stochastic_depth_can_be_divided(told, name):
    assert told["refuse"][name] is True  # it draws random numbers, and can be divided
    assert told["refuse"][f"{name} without"] is False


def test_shares_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="7 images cannot be divided over 2 workers"):
        Workers(0, 2).share(np.arange(7))


def test_workers_with_and_without_a_gpu_are_refused():
    store = torch.distributed.HashStore()
    store.set("device/1", "GPU-0123")
    with pytest.raises(InputError, match="1 of 2 workers of one stage have no GPU"):
        with joined(store, 0, 2, "cpu"):
            raise AssertionError("they were connected")


def test_all_workers_have_come_when_each_has_named_its_device():
    store = torch.distributed.HashStore()
    assert not arrived(store, 3)
    store.set("device/1", "cpu")
    assert not arrived(store, 3)
    store.set("device/2", "cpu")
    assert arrived(store, 3)


def test_a_network_that_begins_to_draw_while_it_trains_is_stopped():
    group = Workers(0, 2)
    with group.spread(draws=False):
        torch.ones(4).mul_(2)
    with pytest.raises(RuntimeError, match="drew random numbers in training"):
        with group.spread(draws=False):
            torch.rand(4)


def test_one_worker_alone_is_untouched():
    h = torch.ones(3, 2, requires_grad=True)
    batch = np.arange(3)
    assert ALONE.gather(h) is h
    assert ALONE.share(batch) is batch
    assert ALONE.deal(range(3)) == [0, 1, 2]
    assert ALONE.leads
    state = torch.get_rng_state()
    with ALONE.spread():
        pass
    assert torch.equal(state, torch.get_rng_state())


# ---- the recipe ----------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers"), [(64, 5), (4, 4), (6, 4)])
def test_a_batch_that_cannot_be_divided_is_refused_by_both_names(batch_size, workers):
    with pytest.raises(ValidationError) as caught:
        Recipe(batch_size=batch_size, workers=workers)
    assert f"batch_size is {batch_size} and workers is {workers}" in str(caught.value)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_workers_are_a_whole_number_from_1(workers):
    with pytest.raises(ValidationError, match="workers"):
        Recipe(workers=workers)


def test_one_worker_is_no_setting_of_the_recipe_and_two_are():
    without = Recipe.model_fields.keys() - {"workers"}
    assert Recipe().model_dump(mode="json").keys() == without
    assert Recipe(workers=1).model_dump() == Recipe().model_dump()
    assert Recipe(workers=2).model_dump(mode="json") == {**Recipe().model_dump(), "workers": 2}
    assert Recipe(**Recipe(workers=4).model_dump(mode="json")).workers == 4
    assert "workers" not in Recipe().model_dump_json()
    assert "workers" in Recipe(workers=2).model_dump_json()


def test_methods_and_recipes_need_no_torch():
    code = "import sys, methods.recipe, methods.base; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
