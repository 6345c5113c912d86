"""What networks cost: operations worked out by hand, latency, memory, and a pair's ratios."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods import efficiency
from methods.efficiency import (
    NetworkCost,
    PairEfficiency,
    PeakMemory,
    Protocol,
    SideEfficiency,
    build_encoder,
    check_pair,
    encoder_cost,
    measure_pair,
    peak_memory,
    resolve_device,
    time_network,
)
from methods.pairs import PAIRS, PairSpec, SideSpec
from retrieval.efficiency import GalleryMemory, Machine, SearchTiming, Timing
from retrieval.errors import InputError, UnknownNameError

IDLE = Machine("some cpu", 4, 4, "Linux x86_64", "3.11", "2.1", load=0.0)
TINY = PAIRS.get("tiny")


class Tokens(nn.Module):
    """Makes an image (n, 3, S, S) into S * S tokens of a width, without arithmetic."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        return x[:, :1].flatten(2).transpose(1, 2).expand(-1, -1, self.width)


class Attention(nn.Module):
    """Four heads on given tokens, without projections; one parameter, which is not used."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        q = tokens.unflatten(2, (4, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q)


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, tokens):
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


# ---- operations ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "macs"),
    [
        # Each of 8 x 8 outputs of 4 channels sums over 3 channels and 9 places.
        ([nn.Conv2d(3, 4, 3, stride=2, padding=1)], 8 * 8 * 4 * 3 * 9),
        ([nn.Conv2d(3, 4, 3, bias=False)], 14 * 14 * 4 * 3 * 9),
        # Depthwise: each output channel sees one input channel.
        ([nn.Conv2d(3, 3, 3, groups=3, padding=1)], 16 * 16 * 3 * 9),
        ([nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2)], 256 * (6 * 3 + 4 * 3)),
        ([nn.Flatten(), nn.Linear(768, 10)], 768 * 10),
        # 256 tokens: queries by keys, then weights by values, 4 heads of 4.
        ([Tokens(16), Attention()], 2 * 256 * 256 * 16),
        # Three projections before and one behind.
        ([Tokens(16), FusedAttention()], 256 * 16 * 48 + 2 * 256 * 256 * 16 + 256 * 16 * 16),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)], 256 * 12),
    ],
    ids=["conv", "unpadded", "depthwise", "grouped", "linear", "attention", "multihead", "rest"],
)
def test_operations_of_a_layer_are_twice_the_multiply_adds_worked_out_by_hand(layers, macs):
    cost = encoder_cost(nn.Sequential(*layers), 16)
    assert cost.macs == macs
    assert cost.flops == 2 * macs


def test_operations_that_are_not_counted_are_named_and_views_are_not():
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten()]
    names = encoder_cost(nn.Sequential(*layers), 8).uncounted
    assert names == tuple(sorted(names))
    assert "hardswish" in names
    assert any("batch_norm" in name for name in names)
    assert not {"convolution", "view", "zeros", "empty"} & set(names)
    assert encoder_cost(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2).uncounted == ()


def test_fused_attention_is_enabled_again_after_it_was_counted():
    assert torch.backends.mha.get_fastpath_enabled()
    encoder_cost(nn.Sequential(Tokens(16), FusedAttention()), 4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_parameters_and_bytes_are_those_worked_out_by_hand():
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    conv.weight.requires_grad_(False)
    cost = encoder_cost(nn.Sequential(conv, norm), 8)
    assert cost.parameters == 3 * 4 * 9 + 4 + 2 * 4
    assert cost.trainable == 4 + 2 * 4
    # Means and variances are saved too; the count of batches is no weight.
    assert cost.weight_bytes == 4 * (cost.parameters + 2 * 4)


def test_bytes_of_a_network_are_those_of_its_file():
    from safetensors.torch import save

    network = build_encoder(TINY.query, "fc_bn", 16, "query")
    floats = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    file = save(floats)
    header = 8 + int.from_bytes(file[:8], "little")
    assert encoder_cost(network, 32).weight_bytes == len(file) - header


@pytest.mark.parametrize(
    ("head", "bits", "parameters", "macs"),
    [
        ("fc_bn", 16, 16 * 256 + 2 * 16, 16 * 256),
        ("fc_tanh", 16, 16 * 256 + 16, 16 * 256),
        ("fc_bn_tanh", 24, 24 * 256 + 24 + 2 * 24, 24 * 256),
        ("mlp3_tanh", 16, 2 * (256 * 256 + 256) + 16 * 256 + 16, 2 * 256 * 256 + 16 * 256),
    ],
)
def test_the_hash_head_is_counted(head, bits, parameters, macs):
    network = build_encoder(TINY.query, head, bits, "query")
    assert next(m for m in network[1] if isinstance(m, nn.Linear)).in_features == 256
    backbone = encoder_cost(network[0], 32)
    whole = encoder_cost(network, 32)
    assert whole.parameters - backbone.parameters == parameters
    assert whole.macs - backbone.macs == macs


def test_mobilenetv3_costs_what_its_paper_says():
    # "Searching for MobileNetV3", table 3: V3-Small 1.0 has 56 M MAdds and 2.5 M parameters with
    # its classifier of 1000 classes, 1024 * 1000 multiply-adds and a bias more.
    network = build_encoder(SideSpec(backbone="mobilenetv3_small_100"), "fc_tanh", 1000, "query")
    cost = encoder_cost(network, 224)
    assert round(cost.macs / 1e6) in (56, 57)
    assert round(cost.parameters / 1e6, 1) == 2.5


# ---- the network that is measured ----------------------------------------------------


def test_published_weights_are_never_fetched(monkeypatch):
    from methods import networks

    monkeypatch.setattr(networks, "_published_file", lambda name: pytest.fail("fetched"))
    side = SideSpec(backbone="test_resnet", size=32, pretrained=True)
    network = build_encoder(side, "fc_bn", 16, "gallery")
    assert not network.training
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 16)


def test_local_weights_are_not_read():
    side = SideSpec(backbone="test_resnet", size=32, weights="nowhere.safetensors")
    build_encoder(side, "fc_bn", 16, "gallery")


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_a_pair_that_cannot_be_built_is_refused_before_it_is_timed(side):
    other = SideSpec(backbone="test_resnet", size=32)
    bad = SideSpec(backbone="test_vit", size=30)
    pair = PairSpec(**{"query": other, "gallery": other, side: bad})
    with pytest.raises(InputError, match="cannot take images of 30 px") as caught:
        check_pair(pair, 16, ("fc_bn", "fc_bn"))
    assert caught.value.key == "size"


def test_devices_are_resolved_and_others_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cpu") == resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        resolve_device("cudda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda") == resolve_device("auto") == "cuda"
    assert resolve_device("cpu") == "cpu"


# ---- latency -------------------------------------------------------------------------


class Spy(nn.Module):
    """Notes how it is run."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.scale = scale
        self.seen = []

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.seen.append((x, torch.get_num_threads(), self.conv.weight))
        return self.conv(x) * self.scale


@pytest.mark.parametrize(("batch", "warmup", "repeats"), [(1, 2, 11), (4, 0, 3)])
def test_a_network_runs_the_batches_that_were_asked_for_in_eval_mode(batch, warmup, repeats):
    spy = Spy().train()
    timing, ordinary = time_network(spy, (3, 8, 8), batch, warmup=warmup, repeats=repeats)
    assert ordinary
    assert (timing.runs, timing.warmup, timing.items) == (repeats, warmup, batch)
    assert 0 < timing.minimum <= timing.median <= timing.p99
    images = [x for x, _, _ in spy.seen[:-1]]  # the last run only looks at the outputs
    assert len(images) == warmup + repeats
    assert {tuple(x.shape) for x in images} == {(batch, 3, 8, 8)}
    assert {x.dtype for x in images} == {torch.float32}
    # Queries one by one are not always the same image, which could stay in a cache.
    assert len({x.data_ptr() for x in images}) == (8 if batch == 1 else 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_has_the_threads_that_were_asked_for_and_others_keep_theirs(threads):
    before = torch.get_num_threads()
    spy = Spy()
    time_network(spy, (3, 8, 8), 1, warmup=0, repeats=1, threads=threads)
    assert {n for _, n, _ in spy.seen} == {threads}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_and_weights_are_laid_out_as_asked(channels_last):
    spy = Spy()
    time_network(spy, (3, 8, 8), 2, warmup=0, repeats=1, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for x, _, weight in spy.seen:
        assert x.is_contiguous(memory_format=layout)
        assert weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("scale", [0.0, 1e-38, math.inf, math.nan])
def test_outputs_that_are_no_ordinary_numbers_are_told(scale):
    _, ordinary = time_network(Spy(scale), (3, 8, 8), 1, warmup=0, repeats=1)
    assert not ordinary


# ---- memory --------------------------------------------------------------------------


def test_a_network_with_100_mb_more_weights_takes_100_mb_more():
    def build(width):
        return partial(nn.Linear, width, width, bias=False)

    large = peak_memory(build(5000), (5000,), batches=(1,))
    small = efficiency._measure_memory(build(16), (16,), (1,), "cpu", 1, False)
    assert large.loaded - large.process == pytest.approx(100e6, abs=3e6)
    assert large.network(1) - small.network(1) == pytest.approx(100e6, abs=3e6)
    assert 0 <= small.network(1) < 3e6


@pytest.mark.skipif(not efficiency._ResidentMeter()._resets, reason="needs Linux's clear_refs")
def test_the_highest_is_that_since_the_start_and_not_the_process_s():
    meter = efficiency._ResidentMeter()
    assert "while running" in meter.how
    before = meter.start()
    block = torch.ones(16 * 2**20)  # 64 MiB
    assert meter.peak() - before == pytest.approx(2**26, abs=4e6)
    del block
    after = meter.start()
    assert meter.peak() - after < 4e6
    assert after - before < 4e6


def test_where_the_mark_cannot_be_reset_it_is_that_of_the_process_and_said_so(tmp_path):
    meter = efficiency._ResidentMeter(tmp_path / "none")
    assert "since the process began" in meter.how
    first = meter.start()
    block = torch.ones(16 * 2**20)
    del block
    assert meter.start() >= first > 0
    assert meter.peak() >= meter.start()


def test_every_batch_has_a_peak_and_larger_batches_a_higher_one():
    found = efficiency._measure_memory(
        partial(nn.Conv2d, 3, 64, 3, padding=1), (3, 64, 64), (1, 32), "cpu", 1, False
    )
    assert list(found.peak) == [1, 32]
    # 32 images and their 64 channels, float32.
    assert found.network(32) >= 32 * 64 * 64 * (3 + 64) * 4
    assert found.network(1) < found.network(32) / 4
    assert found.to_json()["network"]["32"] == found.peak[32] - found.process


def test_a_process_that_is_killed_is_one_message(monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    class Future:
        def result(self):
            raise BrokenProcessPool

    class Pool:
        def __init__(self, *args, **kwargs): ...
        def __enter__(self):
            return self

        def __exit__(self, *args): ...
        def submit(self, *args):
            return Future()

    monkeypatch.setattr(efficiency, "ProcessPoolExecutor", Pool)
    with pytest.raises(InputError, match="batches of 32 images") as caught:
        peak_memory(partial(nn.Linear, 2, 2), (2,))
    assert caught.value.key == "memory"


# ---- a pair --------------------------------------------------------------------------


def timing(seconds, items=1):
    return Timing(10, 1, items, *[seconds] * 6)


def side(factor):
    return SideEfficiency(
        backbone="some",
        size=32,
        head="fc_bn",
        cost=NetworkCost(100 * factor, 50 * factor, 400 * factor, 2000 * factor, ("relu",)),
        latency={1: timing(0.1 * factor), 32: timing(1.6 * factor, 32)},
        memory=PeakMemory("how", 1000, 1400, {1: 1000 + 8 * factor, 32: 1000 + 100 * factor}),
    )


def pair_of(query, gallery):
    return PairEfficiency(
        pair="some-pair",
        protocol=Protocol(),
        query=query,
        gallery=gallery,
        galleries=(GalleryMemory(10, 64),),
        search=(SearchTiming(10, 64, 5, "numpy", timing(0.1), timing(0.2)),),
        machine=IDLE,
        torch={"torch": "2"},
        warnings=(),
    )


def test_a_ratio_is_the_query_s_figure_by_the_gallery_s():
    ratio = pair_of(side(1), side(4)).ratio()
    assert list(ratio) == [
        "parameters",
        "trainable",
        "weight_bytes",
        "flops",
        "macs",
        "latency_batch_1",
        "latency_batch_32",
        "memory_batch_1",
        "memory_batch_32",
    ]
    assert all(value == pytest.approx(0.25) for value in ratio.values())


def test_a_ratio_to_nothing_is_none_and_the_json_stays_valid():
    found = pair_of(side(1), side(0))
    assert set(found.ratio().values()) == {None}
    json.dumps(found.to_json(), allow_nan=False)


def test_figures_of_latency_are_those_of_one_image():
    figures = side(1).figures()
    assert figures["latency_batch_1"] == 0.1
    assert figures["latency_batch_32"] == pytest.approx(0.05)
    assert figures["memory_batch_32"] == 100


@pytest.fixture
def memory_asked(monkeypatch):
    """Replace the measurement of memory, which needs a process of its own."""
    asked = []

    def stand_in(build, shape, **options):
        asked.append((build, shape, options))
        return PeakMemory("how", 0, 10, dict.fromkeys(options["batches"], 20))

    monkeypatch.setattr(efficiency, "peak_memory", stand_in)
    monkeypatch.setenv("ASYMBENCH_ENGINE", "numpy")
    return asked


def test_a_pair_is_measured_as_its_protocol_says(memory_asked):
    protocol = Protocol(
        bits=24,
        heads=("mlp3_tanh", "fc_bn"),
        batches=(1, 3),
        queries=3,
        warmup=1,
        channels_last=True,
        galleries=(50, 70),
        k=10,
    )
    said = []
    found = measure_pair(TINY, protocol, machine=IDLE, say=said.append).to_json()
    assert found["pair"] == "tiny"
    assert found["heads"] == {"query": "mlp3_tanh", "gallery": "fc_bn"}
    assert found["warnings"] == []
    for name, spec, head in (
        ("query", TINY.query, "mlp3_tanh"),
        ("gallery", TINY.gallery, "fc_bn"),
    ):
        side = found[name]
        want = encoder_cost(build_encoder(spec, head, 24, name), 32)
        assert (side["parameters"], side["macs"]) == (want.parameters, want.macs)
        assert side["head"] == head
        assert {b: t["items"] for b, t in side["latency"].items()} == {"1": 1, "3": 3}
        assert {(t["runs"], t["warmup"]) for t in side["latency"].values()} == {(3, 2)}
    assert [g["items"] for g in found["galleries"]] == [50, 70]
    assert [(s["items"], s["bits"], s["k"]) for s in found["search"]] == [
        (50, 24, 10),
        (70, 24, 10),
    ]
    assert found["machine"]["torch"] == torch.__version__
    assert len(said) == 2 * 3 + 2
    for (build, shape, options), spec in zip(
        memory_asked, (TINY.query, TINY.gallery), strict=True
    ):
        assert build.args[0] == spec
        assert shape == (3, 32, 32)
        assert options == {
            "batches": (1, 3),
            "device": "cpu",
            "threads": 1,
            "channels_last": True,
        }
    json.dumps(found, allow_nan=False)


def test_a_busy_machine_and_faded_outputs_are_warned_of(memory_asked, monkeypatch):
    monkeypatch.setattr(efficiency, "time_network", lambda *_, **__: (timing(0.1), False))
    busy = Machine(**{**IDLE.to_json(), "load": 3.0})
    protocol = Protocol(bits=8, queries=1, galleries=(5,))
    warnings = measure_pair(TINY, protocol, machine=busy).warnings
    assert "busy before the run" in warnings[0]
    assert [w.split()[1] for w in warnings[1:]] == ["query", "gallery"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pair_is_measured_on_a_gpu():
    found = measure_pair(TINY, Protocol(device="cuda", queries=3, galleries=(50,)), machine=IDLE)
    assert found.torch["gpu"]
    # The allocator rounds weights up to blocks of 512 bytes.
    memory = found.query.memory
    assert memory.loaded - memory.process >= found.query.cost.weight_bytes
    assert found.query.memory.network(32) > found.query.memory.network(1)


@pytest.mark.parametrize(
    ("queries", "batch", "runs"),
    [(100, 1, 100), (100, 32, 10), (1000, 32, 32), (1000, 64, 16), (3, 1, 3), (3, 32, 3)],
)
def test_runs_are_as_many_as_the_queries_take_and_ten_to_tell_a_spread(queries, batch, runs):
    assert Protocol(queries=queries).runs(batch) == runs


def test_a_network_is_warmed_up_with_ten_images_and_two_runs():
    assert [Protocol().warmups(batch) for batch in (1, 4, 32)] == [10, 3, 2]
