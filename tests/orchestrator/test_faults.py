"""Every kind of failure, and how often it is tried again."""

import pytest

from methods.training import TrainingDiverged
from orchestrator import faults
from orchestrator.errors import StageBusy, StoreCorrupt
from orchestrator.study import Faults
from retrieval.errors import DatasetError, InputError


class OutOfMemoryError(RuntimeError):
    """Named as torch's and Ray's are."""


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (InputError("bits must fit", key="bits"), "input", "bits: bits must fit"),
        (DatasetError("a.jpg is torn"), "input", "a.jpg is torn"),
        (TrainingDiverged("loss is nan\nmore"), "diverged", "loss is nan"),
        (MemoryError(), "out of memory", "MemoryError"),
        (OutOfMemoryError("CUDA out of memory."), "out of memory", "CUDA out of memory."),
        (
            OSError(12, "Cannot allocate memory"),
            "out of memory",
            "[Errno 12] Cannot allocate memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "out of memory", "CUDA error: out of memory"),
        (OSError(28, "No space left on device"), "system", "[Errno 28] No space left on device"),
        (TimeoutError("no answer"), "system", "no answer"),
        (StoreCorrupt("x has other bytes"), "damaged", "x has other bytes"),
        (StageBusy("somebody"), "busy", "somebody"),
        (ZeroDivisionError("division by zero"), "bug", "ZeroDivisionError: division by zero"),
    ],
)
def test_failures_are_told_by_kind_in_one_line(error, kind, reason):
    try:
        raise error
    except type(error) as caught:
        told = faults.explain_failure(caught)
    assert (told["kind"], told["reason"]) == (kind, reason)
    assert "Traceback" in told["detail"]


def test_main_memory_that_torch_does_not_get_is_out_of_memory():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert faults.classify(caught.value) == "out of memory"


def test_damage_names_the_stage_to_make_again():
    told = faults.explain_failure(StoreCorrupt("x has other bytes", stage_id="ab"))
    assert told["damaged"] == "ab"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("out of memory", "out_of_memory"),
        ("lost worker", "lost_worker"),
        ("lost node", "lost_node"),
        ("timeout", "timeout"),
        ("system", "system"),
        ("diverged", "diverged"),
        ("bug", "bug"),
        ("damaged", "system"),
    ],
)
def test_each_kind_is_tried_again_as_often_as_the_study_says(kind, key):
    retries = faults.Retries(Faults(**{key: 4, "wait_seconds": 3.0}))
    delays = [retries.delay("s", kind) for _ in range(5)]
    assert delays == [3.0, 6.0, 12.0, 24.0, None]


def test_defaults_never_repeat_what_gives_the_same_result_again():
    retries = faults.Retries(Faults())
    assert [retries.delay("s", kind) for kind in ("input", "bug", "diverged")] == [None] * 3
    assert retries.delay("s", "lost worker") is not None


def test_kinds_are_counted_apart_and_the_wait_grows_over_all():
    retries = faults.Retries(Faults(lost_worker=1, lost_node=1, wait_seconds=1.0))
    assert retries.delay("s", "lost worker") == 1.0
    assert retries.delay("s", "lost node") == 2.0
    assert retries.delay("s", "lost worker") is None
    assert retries.delay("other", "lost worker") == 1.0


def test_a_new_epoch_starts_the_count_anew_and_an_old_one_does_not():
    retries = faults.Retries(Faults(lost_worker=1))
    retries.progressed("s", 3)
    assert retries.delay("s", "lost worker") is not None
    retries.progressed("s", 3)  # trained again after the failure: no further than before
    assert retries.delay("s", "lost worker") is None
    retries.progressed("s", 4)
    assert retries.delay("s", "lost worker") is not None


def test_the_wait_is_ten_minutes_at_most():
    retries = faults.Retries(Faults(system=100, wait_seconds=600.0))
    assert [retries.delay("s", "system") for _ in range(3)] == [600.0] * 3


def test_starts_are_counted():
    retries = faults.Retries(Faults())
    assert [retries.started("a"), retries.started("a"), retries.started("b")] == [1, 2, 1]
