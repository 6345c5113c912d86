"""What stages ask for, and what no machine can give."""

import os

import pytest

from cluster.resources import (
    Request,
    ResourceError,
    check_feasible,
    default_request,
    visible_cpus,
)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"cpus": -1.0}, "cannot be negative, got -1 cpus and 0 gpus"),
        ({"gpus": -0.5}, "cannot be negative, got 1 cpus and -0.5 gpus"),
        ({"cpus": 0.0}, "needs some cpus or gpus, got 0 of both"),
        ({"gpus": 1.5}, "more than one gpu must be a whole number, got 1.5"),
    ],
)
def test_impossible_requests_are_refused(given, match):
    with pytest.raises(ResourceError, match=match):
        Request(**given)


def test_bundles_name_gpus_only_where_some_are_asked_for():
    assert Request(cpus=2.0).to_ray() == {"CPU": 2.0}
    assert Request(cpus=0.0, gpus=0.25).to_ray() == {"CPU": 0.0, "GPU": 0.25}
    assert Request(gpus=2.0).to_ray() == {"CPU": 1.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("kind", "share"),
    [("gallery", 1.0), ("joint", 1.0), ("recording", 0.5), ("query", 0.25), ("metrics", 0.0)],
)
def test_defaults_share_gpus_by_kind_where_there_are_any(kind, share):
    assert default_request(kind, threads=2, gpus=4.0) == Request(cpus=2.0, gpus=share)
    assert default_request(kind, threads=2, gpus=0.0) == Request(cpus=2.0)


def test_what_can_never_be_met_is_refused_with_both_numbers():
    check_feasible([Request(cpus=2.0), Request(gpus=1.0)], cpus=2.0, gpus=1.0)
    with pytest.raises(ResourceError, match="asks for 3 cpus and 0 gpus, but there are 2 cpus"):
        check_feasible([Request(), Request(cpus=3.0)], cpus=2.0, gpus=1.0)
    with pytest.raises(ResourceError, match=r"and 1 gpus, but there are 2 cpus and 0 gpus"):
        check_feasible([Request(gpus=1.0)], cpus=2.0, gpus=0.0)


def test_visible_cpus_are_those_of_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert visible_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert visible_cpus() == 1
