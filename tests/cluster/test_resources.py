"""What stages ask for, and what no machine can give."""

import os
from fractions import Fraction

import pytest

from cluster.resources import (
    ACCELERATOR_LABEL,
    SHARES,
    Capacity,
    Node,
    Request,
    ResourceError,
    Selector,
    check_feasible,
    gpu_share,
    memory_text,
    parse_memory,
    visible_cpus,
)


@pytest.mark.parametrize(
    ("given", "match", "key"),
    [
        ({"cpus": -1.0}, "cannot be negative, got -1 cpus and 0 gpus", ""),
        ({"gpus": -0.5}, "cannot be negative, got 1 cpus and -0.5 gpus", ""),
        ({"cpus": float("nan")}, "must be numbers, got nan cpus", ""),
        ({"gpus": float("inf")}, "must be numbers, got 1 cpus and inf gpus", ""),
        ({"cpus": 0.0}, "needs some cpus or gpus, got 0 of both", ""),
        ({"gpus": 1.5}, "more than one gpu must be a whole number, got 1.5", "gpus"),
        ({"memory": -1}, "memory cannot be negative, got -1", "memory"),
        ({"workers": 0}, "at least one worker, got 0", "workers"),
        (
            {"custom": {"GPU": 1.0}},
            "'GPU' is no custom resource; it has a key of its own: gpus",
            "custom",
        ),
        ({"custom": {"object_store_memory": 1.0}}, "it cannot be asked for", "custom"),
        ({"custom": {"": 1.0}}, "'' is no name of a resource", "custom"),
        ({"custom": {"nvme": 0.0}}, "0.0 of 'nvme' cannot be asked for; write a number", "custom"),
        ({"custom": {"nvme": True}}, "True of 'nvme' cannot be asked for", "custom"),
        ({"custom": {"nvme": float("inf")}}, "inf of 'nvme' cannot be asked for", "custom"),
        ({"labels": {"-zone": "a"}}, "'-zone' is no label's name", "labels"),
        ({"labels": {"zone": "!!a"}}, "'!!a' selects no label; write a value", "labels"),
    ],
)
def test_impossible_requests_are_refused(given, match, key):
    with pytest.raises(ResourceError, match=match) as caught:
        Request(**given)
    assert caught.value.key == key


# ---- memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        ("16GB", 16_000_000_000),
        ("16 GB", 16_000_000_000),
        ("512 MiB", 536_870_912),
        ("1.5TB", 1_500_000_000_000),
        ("2GiB", 2_147_483_648),
        ("1TiB", 1_099_511_627_776),
        ("2000kB", 2_000_000),
        ("1024 KiB", 1_048_576),
        ("5000000B", 5_000_000),
        ("3gb", 3_000_000_000),
        (8_000_000_000, 8_000_000_000),
    ],
)
def test_memory_is_read_in_decimal_and_binary_units(given, amount):
    assert parse_memory(given) == amount


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("16", "'16' is no amount of memory; write a number with a unit"),
        ("16G", "'16G' is no amount of memory; did you mean '16GB'"),
        ("16Gi", "did you mean '16GiB'"),
        ("GB", "'GB' is no amount of memory"),
        ("-1GB", "'-1GB' is no amount of memory"),
        ("1e3GB", "'1e3GB' is no amount of memory"),
        ("16 gigs", "'16 gigs' is no amount of memory"),
        ("nan GB", "'nan GB' is no amount of memory"),
        (True, "True is no amount of memory"),
        (None, "None is no amount of memory"),
        (1.5, "1.5 is no amount of memory"),
        (16, "16 is less than 1 MB of memory; write a number with a unit"),
        ("0GB", "'0GB' is less than 1 MB"),
    ],
)
def test_what_is_no_amount_of_memory_is_refused_with_the_forms_that_are(given, match):
    with pytest.raises(ResourceError, match=match) as caught:
        parse_memory(given)
    assert caught.value.key == "memory"
    assert "'16GB'" in str(caught.value)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(16e9, "16 GB"), (1.5e12, "1.5 TB"), (999.9e6, "1 GB"), (5e8, "500 MB"), (12, "12 bytes")],
)
def test_memory_is_told_with_three_digits(amount, text):
    assert memory_text(amount) == text


# ---- labels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "admitted", "refused"),
    [
        ("A100", ["A100"], ["H100", None]),
        ("!A100", ["H100", None], ["A100"]),
        ("in(A100, H100)", ["A100", "H100"], ["T4", None]),
        ("!in(A100,H100)", ["T4", None], ["A100", "H100"]),
        ("in", ["in"], ["A100"]),  # a value like any other
    ],
)
def test_selectors_admit_what_they_say(text, admitted, refused):
    selector = Selector.parse(text)
    assert all(selector.admits(value) for value in admitted)
    assert not any(selector.admits(value) for value in refused)
    assert Selector.parse(str(selector)) == selector


@pytest.mark.parametrize(
    "text", ["", "-a", "a-", "in()", "in(a", "(a,b)", "a,b", "in(a;b)", "x" * 64, 3, None, "a b"]
)
def test_what_selects_no_label_is_refused(text):
    with pytest.raises(ResourceError, match="selects no label; write a value"):
        Selector.parse(text)


def test_ray_accepts_every_selector_that_we_do():
    label_utils = pytest.importorskip("ray._private.label_utils")
    for text in ("A100", "!A100", "in(A100, H100)", "!in( A100 ,H100 )", "a_b.c-d"):
        (selector,) = Request(labels={"example.org/zone": text}).label_selectors()
        assert label_utils.validate_label_selector(selector) is None


# ---- bundles -------------------------------------------------------------------------


def test_bundles_name_gpus_only_where_some_are_asked_for():
    assert Request(cpus=2.0).bundles() == [{"CPU": 2.0}]
    assert Request(cpus=0.0, gpus=0.25).bundles() == [{"CPU": 0.0, "GPU": 0.25}]
    assert Request(gpus=2.0).bundles() == [{"CPU": 1.0, "GPU": 2.0}]


def test_each_worker_has_a_bundle_and_a_selector_of_its_own():
    request = Request(
        gpus=1.0,
        memory=8_000_000_000,
        custom={"nvme": 0.5},
        labels={"zone": "in(a, b)"},
        workers=3,
    )
    bundle = {"CPU": 1.0, "GPU": 1.0, "memory": 8e9, "nvme": 0.5}
    assert request.bundles() == [bundle] * 3
    assert request.label_selectors() == [{"zone": "in(a,b)"}] * 3
    assert Request(workers=2).label_selectors() == [{}, {}]


def test_equal_requests_are_one_key():
    one = Request(custom={"nvme": 1.0}, labels={"zone": "a"})
    assert {one: 1}[Request(custom={"nvme": 1.0}, labels={"zone": "a"})] == 1
    assert one != Request(custom={"nvme": 2.0}, labels={"zone": "a"})


# ---- growing -------------------------------------------------------------------------


def test_a_share_of_a_gpu_grows_to_the_whole_and_then_to_more_memory():
    node = Node(cpus=8.0, gpus=1.0, memory=30_000_000_000)
    steps = [Request(gpus=0.25, memory=8_000_000_000)]
    while (larger := steps[-1].grown(node)) is not None:
        steps.append(larger)
    assert [(r.gpus, r.memory // 10**9) for r in steps] == [(0.25, 8), (1, 8), (1, 16), (1, 30)]


def test_a_request_without_memory_starts_at_half_a_nodes_and_cannot_grow_without_a_node():
    assert Request().grown(Node(cpus=1.0, memory=6_000_000_000)).memory == 3_000_000_000
    assert Request().grown() is None
    assert Request(gpus=2.0).grown() is None
    assert Request().grown(Node(cpus=1.0)) is None
    assert Request(memory=2_000_000).grown().memory == 4_000_000


# ---- nodes ---------------------------------------------------------------------------


def test_a_node_is_read_from_what_ray_says_of_it():
    described = {
        "Resources": {
            "CPU": 16.0,
            "GPU": 8.0,
            "memory": 64e9,
            "object_store_memory": 1e9,
            "node:10.0.0.1": 1.0,
            "node:__internal_head__": 1.0,
            "accelerator_type:A100": 1.0,
            "nvme": 2.0,
        },
        "Labels": {"zone": "a"},
    }
    node = Node.from_ray(described)
    assert (node.cpus, node.gpus, node.memory) == (16.0, 8.0, 64_000_000_000)
    assert node.custom == {"accelerator_type:A100": 1.0, "nvme": 2.0}
    assert node.labels == {"zone": "a", ACCELERATOR_LABEL: "A100"}
    assert node.accelerator == "A100"


@pytest.mark.parametrize(
    ("request_", "times"),
    [
        (Request(), 16),
        (Request(cpus=3.0), 5),
        (Request(gpus=0.25), 8),
        (Request(gpus=0.4), 4),  # two on each GPU: a share never lies on two
        (Request(gpus=2.0), 1),
        (Request(gpus=3.0), 0),
        (Request(memory=20_000_000_000), 3),
        (Request(custom={"nvme": 0.5}), 4),
        (Request(custom={"other": 0.5}), 0),
        (Request(labels={"zone": "a"}), 16),
        (Request(labels={"zone": "b"}), 0),
    ],
)
def test_a_node_holds_as_many_workers_as_its_scarcest_resource(request_, times):
    node = Node(
        cpus=16.0, gpus=2.0, memory=64_000_000_000, custom={"nvme": 2.0}, labels={"zone": "a"}
    )
    assert node.holds(request_) == times


def test_memory_that_is_not_known_holds_back_nobody():
    assert Node(cpus=2.0).holds(Request(memory=10**12)) == 2


@pytest.mark.parametrize("n", range(1, 9))
def test_n_default_shares_of_an_nth_fit_one_gpu(n):
    share = SHARES[n - 1]
    assert abs(Fraction(share) - Fraction(1, n)) < Fraction(1, 10_000)
    assert Node(cpus=100.0, gpus=1.0).holds(Request(gpus=share)) == n


# ---- what cannot be met --------------------------------------------------------------

TWO_KINDS = Capacity(
    (
        Node(cpus=64.0, memory=256_000_000_000, labels={"zone": "a"}),
        Node(cpus=8.0, gpus=2.0, memory=32_000_000_000, labels={ACCELERATOR_LABEL: "T4"}),
        Node(cpus=8.0, gpus=2.0, memory=32_000_000_000, labels={ACCELERATOR_LABEL: "T4"}),
    )
)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (
            Request(cpus=16.0, gpus=1.0),  # the cores of one node and the GPUs of another
            "ask for 16 cpus, 1 gpus, but the largest node has 8 cpus, 2 T4 gpus, 32 GB of",
        ),
        (
            Request(gpus=3.0),
            r"largest node has 8 cpus, 2 T4 gpus.*\(on any node: gpus at most 2\)",
        ),
        (Request(memory=10**12), r"\(on any node: memory at most 256 GB\)"),
        (Request(labels={ACCELERATOR_LABEL: "A100"}), r"no node has such labels \(.*-type: T4\)"),
        (Request(labels={"rack": "1"}), r"no node has a label 'rack'"),
        (Request(custom={"nvme": 1.0}), r"no node has a resource 'nvme'; there are none"),
        (
            Request(gpus=1.0, workers=5),
            r"5 workers of 1 cpus, 1 gpus, but only 4 of them fit on .* `train.workers` or",
        ),
    ],
)
def test_what_no_node_can_give_is_refused_with_what_there_is(request_, match):
    with pytest.raises(ResourceError, match=match):
        check_feasible([("gallery", request_)], TWO_KINDS)


@pytest.mark.parametrize(
    "request_",
    [
        Request(cpus=64.0),
        Request(gpus=2.0, workers=2),
        Request(gpus=0.5, workers=8),
        Request(labels={ACCELERATOR_LABEL: "in(A100,T4)"}, gpus=1.0),
        Request(labels={ACCELERATOR_LABEL: "!T4"}, cpus=64.0),
    ],
)
def test_what_some_nodes_can_give_is_admitted(request_):
    check_feasible([("query", request_)], TWO_KINDS)


def test_one_machine_is_told_without_a_word_on_the_largest():
    machine = Capacity((Node(cpus=2.0),))
    with pytest.raises(
        ResourceError, match=r"ask for 3 cpus, 0 gpus, but there are 2 cpus, 0 gpus"
    ):
        check_feasible([("query", Request()), ("query", Request(cpus=3.0))], machine)


# ---- defaults ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "share"),
    [
        (17e9, 1.0),  # more than there is: the whole GPU is all that one can have
        (9e9, 1.0),
        (8e9, 0.5),
        (5.3e9, 0.3333),
        (4e9, 0.25),
        (2.6e9, 0.1666),
        (2e9, 0.125),
        (1e6, 0.125),
    ],
)
def test_a_share_is_the_smallest_that_holds_what_is_needed(needed, share):
    assert gpu_share(needed, 16e9) == share


def test_visible_cpus_are_those_of_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert visible_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert visible_cpus() == 1
