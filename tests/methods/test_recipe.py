"""Learning-rate schedules are pure functions of the step."""

import math

import pytest
from pydantic import ValidationError

from methods.recipe import Recipe


def test_constant_schedule_is_one():
    recipe = Recipe(epochs=3)
    assert [recipe.lr_factor(step, 10) for step in (0, 15, 29)] == [1.0, 1.0, 1.0]


def test_cosine_schedule_at_start_middle_and_end():
    recipe = Recipe(epochs=4, schedule="cosine")
    assert recipe.lr_factor(0, 10) == 1.0
    assert recipe.lr_factor(20, 10) == pytest.approx(0.5)  # cos(pi / 2) = 0
    assert recipe.lr_factor(10, 10) == pytest.approx((1 + math.sqrt(0.5)) / 2)  # cos(pi / 4)
    assert recipe.lr_factor(40, 10) == pytest.approx(0.0)


def test_warmup_ramps_linearly_then_hands_over():
    recipe = Recipe(epochs=4, warmup_epochs=0.5, schedule="cosine")
    # 5 warm-up steps of 10 in an epoch: 1/5, 2/5, ..., 1; the cosine spans the 35 steps left
    ramp = [recipe.lr_factor(step, 10) for step in range(5)]
    assert ramp == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert recipe.lr_factor(5, 10) == 1.0
    assert recipe.lr_factor(5 + 35, 10) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr_head", -1e-4),
        ("momentum", 1.0),
        ("clip_norm", 0.0),
        ("schedule", "step"),
        ("optimizer", "lion"),
        ("precision", "fp16"),
        ("lr_head", float("nan")),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValidationError, match=field):
        Recipe(**{field: value})
