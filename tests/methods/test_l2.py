"""L2: published values, and the teacher whose gallery stage it shares."""

from __future__ import annotations

import pytest
import torch

from methods.base import METHODS, Batch, Schedule, Task, build_method
from retrieval.errors import InputError, UnknownNameError

Q = [[0.5, -1, 2, 0.25], [-0.75, 0.5, 1.5, -0.5]]
G = [[1, -0.5, 1.5, 0.5], [-1, 1, 0.5, -0.25]]
TASK = Task(bits=4, n_classes=3, n_train=2, multi_label=False)
BATCH = Batch(
    rows=torch.arange(2),
    labels=torch.zeros(2, 3),
    classes=None,
    tie_bits=torch.ones(2, 4),
)


def method(**params):
    return build_method("l2", params, TASK)


def loss(h_q=Q, h_g=G, **params):
    h_q, h_g = (torch.tensor(h, dtype=torch.float64) for h in (h_q, h_g))
    return float(method(**params).query_loss(h_q, h_g, BATCH, {})["distill"])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, 0.273438),
        ({"reduce": "sum_bits"}, 1.093750),
        ({"target": "binary"}, 0.328125),
        ({"weight": 10.0}, 2.734375),
        ({"normalize": True, "reduce": "sum_bits"}, 0.308029),
    ],
)
def test_query_loss_has_the_published_values(params, expected):
    assert loss(**params) == pytest.approx(expected, abs=1e-6)


def test_output_space_and_head_are_the_teachers():
    csq = method(teacher="csq", teacher_params={"head": "mlp3_tanh"})
    assert csq.head == "mlp3_tanh"
    tanh_q, tanh_g = (torch.tensor(h, dtype=torch.float64).tanh().tolist() for h in (Q, G))
    assert loss(teacher="csq") == pytest.approx(loss(tanh_q, tanh_g), abs=1e-12)
    assert method().head == "fc_bn"


def test_binary_target_needs_signs_only():
    assert method(target="binary").recording == "sign"
    assert method().recording == "float"
    signs = torch.sign(torch.tensor(G)).tolist()
    for teacher in ("orthohash", "csq"):
        a, b = (loss(h_g=g, target="binary", teacher=teacher) for g in (G, signs))
        assert a == pytest.approx(b, abs=1e-12)


@pytest.mark.parametrize("teacher", ["orthohash", "csq", "csch"])
def test_gallery_stage_is_the_teachers_own(teacher):
    own = build_method(teacher, {}, TASK).gallery_method()
    distilled = method(teacher=teacher).gallery_method()
    assert type(distilled) is type(own)
    assert distilled.params.read_by("gallery") == own.params.read_by("gallery")
    assert distilled.centers() == own.centers()
    assert distilled.head == own.head
    assert method(teacher=teacher).schedule is Schedule.FROZEN


def test_teacher_hyperparameters_reach_the_teacher():
    teacher = method(teacher_params={"margin": 0.3, "centers": "greedy"}).gallery_method()
    assert teacher.params.margin == 0.3
    assert teacher.centers().kind == "greedy"


def test_query_reads_its_own_options_only():
    read = method(teacher="csq", weight=2.0).params.read_by("query")
    assert read == {"weight": 2.0, "target": "continuous", "reduce": "mean", "normalize": False}
    assert not method().labels_needed
    assert method().centers() is None


def test_an_unknown_teacher_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'orthohash'") as caught:
        method(teacher="ortohash")
    assert caught.value.key == "teacher"


def test_a_teacher_without_a_gallery_of_its_own_is_refused():
    with pytest.raises(InputError, match="trains no gallery of its own") as caught:
        method(teacher="l2")
    assert caught.value.key == "teacher"


def test_a_teacher_that_trains_both_networks_together_is_refused():
    with pytest.raises(InputError, match="trains both networks together") as caught:
        method(teacher="csch", teacher_params={"instance": "released_code"})
    assert caught.value.key == "teacher"


def test_wrong_teacher_hyperparameters_are_located():
    with pytest.raises(InputError, match="did you mean 'margin'") as caught:
        method(teacher_params={"margn": 0.3})
    assert caught.value.key == "teacher_params.margn"
    with pytest.raises(InputError) as caught:
        method(teacher_params={"scale": -1.0})
    assert caught.value.key == "teacher_params.scale"


def test_teacher_hyperparameters_of_its_query_are_refused():
    with pytest.raises(InputError, match="only the query") as caught:
        method(teacher="csch", teacher_params={"gamma": 1.0})
    assert caught.value.key == "teacher_params.gamma"


def test_the_teachers_own_refusals_are_passed_on():
    task = Task(bits=6, n_classes=100, n_train=2, multi_label=False)
    with pytest.raises(InputError, match="at least 7 bits") as caught:
        build_method("l2", {}, task)
    assert caught.value.key == "bits"


def test_every_method_with_a_gallery_loss_can_teach():
    for name in METHODS.names():
        candidate = build_method(name, {}, TASK)
        if candidate.gallery_method() is candidate and candidate.schedule is not Schedule.JOINT:
            assert method(teacher=name).gallery_method().name == name
