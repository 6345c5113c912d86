"""The command `efficiency`: what it measures, what it writes, and what it refuses."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from methods import efficiency as measuring
from methods.efficiency import PeakMemory
from methods.pairs import PAIRS
from retrieval import efficiency as protocol
from retrieval.efficiency import Machine, SearchTiming, Timing
from search_spaces.presets import presets

QUICK = ("--queries", "2", "--gallery", "60", "--batch", "1")
STUDY = """\
study: mine
datasets: [digits]
pairs: [tiny, {name: other, query: test_resnet, gallery: {backbone: test_vit, size: 48}}]
methods: [METHODS]
bits: [16, 24]
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ASYMBENCH_ENGINE", "numpy")
    return tmp_path / "home"


@pytest.fixture
def asymbench(asymbench, home):
    return asymbench


@pytest.fixture
def refusal(asymbench, home):
    """Run what must be refused; return the message."""

    def refuse(*args):
        found = asymbench("efficiency", *args)
        assert found.code == 2, found.err
        assert found.out == ""
        assert found.err.startswith("asymbench: ")
        assert "Traceback" not in found.err
        assert not (home / "efficiency").exists()
        return found.err

    return refuse


@pytest.fixture
def idle(monkeypatch):
    """An idle machine, and stand-ins for what takes seconds: latency, memory, search."""

    def stand_in(network, shape, batch, **options):
        return Timing(options["repeats"], 10, batch, *[0.3 + 0.01 * batch] * 6), True

    def search(items, bits, *, k, queries):
        one = Timing(queries, 3, 1, *[0.001] * 6)
        return SearchTiming(items, bits, k, "numpy", one, one)

    monkeypatch.setattr(measuring, "time_network", stand_in)
    monkeypatch.setattr(measuring, "time_search", search)
    machine = Machine("Some CPU", 4, 4, "Linux x86_64", "3.11", "2.1", load=0.0)
    monkeypatch.setattr(protocol, "describe_machine", lambda: machine)
    found = PeakMemory("how", 0, 10, {1: 2_000_000, 32: 4_000_000, 3: 5_000_000})
    monkeypatch.setattr(measuring, "peak_memory", lambda *_, **__: found)


@pytest.fixture
def measured(asymbench, idle, home):
    """Run the command; return its JSON and the names of the files that it wrote."""

    def run(*args):
        found = asymbench("efficiency", *args, *QUICK, "--json")
        assert found.code == 0, found.err
        return json.loads(found.out), sorted(p.name for p in (home / "efficiency").iterdir())

    return run


# ---- what is measured ----------------------------------------------------------------


@pytest.mark.slow
def test_a_pair_is_measured_in_every_part_and_written_with_its_machine(asymbench, home):
    result = asymbench("efficiency", "tiny", "--bits", "16", *QUICK)
    assert result.code == 0, result.err
    found = json.loads((home / "efficiency" / "tiny-16-32-cpu.json").read_text())
    assert (found["pair"], found["bits"], found["threads"], found["queries"]) == ("tiny", 16, 1, 2)
    for name, side in (("query", PAIRS.get("tiny").query), ("gallery", PAIRS.get("tiny").gallery)):
        assert found[name]["backbone"] == side.backbone
        backbone = timm.create_model(side.backbone, num_classes=0)
        head = 16 * backbone.num_features + 2 * 16
        assert found[name]["parameters"] == sum(p.numel() for p in backbone.parameters()) + head
        loaded = found[name]["memory"]["loaded"] - found[name]["memory"]["process"]
        assert loaded == pytest.approx(found[name]["weight_bytes"], abs=3e6)
    assert found["ratio"]["macs"] == found["query"]["macs"] / found["gallery"]["macs"]
    assert found["machine"]["torch"] == torch.__version__
    assert found["galleries"][0]["code_bytes_per_item"] == 2
    assert found["search"][0]["items"] == 60
    assert "query/gallery" in result.out
    assert "measuring query test_efficientnet" in result.err


def test_the_table_has_a_column_a_side_and_the_ratio(asymbench, idle, home):
    result = asymbench("efficiency", "tiny", "--bits", "16", "--batch", "32", *QUICK)
    lines = {line.split("  ")[0]: line.split() for line in result.out.splitlines() if line}
    found = json.loads((home / "efficiency" / "tiny-16-32-cpu.json").read_text())
    query, gallery = found["query"]["parameters"], found["gallery"]["parameters"]
    assert lines["parameters M"][2:] == [
        f"{query / 1e6:.3f}",
        f"{gallery / 1e6:.3f}",
        f"{query / gallery:.4f}",
    ]
    assert lines["batch 32: peak memory MB"][5:] == ["4.0", "4.0", "1.0000"]
    assert lines["batch 32: ms/image"][3:] == ["19.375", "19.375", "1.0000"]  # 620 ms of 32
    assert lines["batch 1: ms/image"][3:] == ["310.000", "310.000", "1.0000"]
    assert lines["60"][1:] == ["0.000", "0.004", "1.000", "1.000"]
    assert "cpu (Some CPU), 1 thread, float32, channels first" in result.out
    assert str(home / "efficiency" / "tiny-16-32-cpu.json") in result.out
    assert "warning" not in result.err


def test_two_backbones_are_a_pair(measured):
    found, files = measured("test_efficientnet/test_vit", "tiny")
    assert [f["pair"] for f in found] == ["test_efficientnet-test_vit", "tiny"]
    assert found[0]["gallery"]["backbone"] == "test_vit"
    assert files == ["test_efficientnet-test_vit-64-32-cpu.json", "tiny-64-32-cpu.json"]


def test_a_pair_that_is_named_twice_is_measured_once(measured):
    assert len(measured("tiny", "tiny")[0]) == 1


def test_a_size_holds_for_both_sides(measured):
    (found,), files = measured("tiny", "--size", "48")
    assert found["query"]["size"] == found["gallery"]["size"] == 48
    assert files == ["tiny-64-48-cpu.json"]


@pytest.mark.parametrize(
    ("head", "file"),
    [
        ("fc_bn", "tiny-64-32-cpu.json"),
        ("fc_tanh", "tiny-64-32-cpu-fc_tanh.json"),
        ("fc_bn_tanh", "tiny-64-32-cpu-fc_bn_tanh.json"),
        ("mlp3_tanh", "tiny-64-32-cpu-mlp3_tanh.json"),
    ],
)
def test_a_hash_head_other_than_the_default_is_in_the_name(measured, head, file):
    (found,), files = measured("tiny", "--head", head)
    assert found["heads"] == {"query": head, "gallery": head}
    assert files == [file]


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_machine_without_gpu_measures_on_its_processor(measured, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,), files = measured("tiny", "--device", device)
    assert found["device"] == "cpu"
    assert files == ["tiny-64-32-cpu.json"]


def test_options_of_the_protocol_reach_it(measured):
    options = ["--threads", "2", "--batch", "3", "--batch", "3", "--channels-last"]
    (found,), _ = measured("tiny", *options, "--gallery", "90", "--gallery", "60")
    assert (found["threads"], found["channels_last"]) == (2, True)
    assert found["batches"] == [1, 3]
    assert list(found["query"]["latency"]) == ["1", "3"]
    assert [g["items"] for g in found["galleries"]] == [60, 90]


def test_a_busy_machine_is_warned_of(asymbench, idle, monkeypatch):
    machine = Machine("Some CPU", 4, 4, "Linux x86_64", "3.11", "2.1", load=3.5)
    monkeypatch.setattr(protocol, "describe_machine", lambda: machine)
    result = asymbench("efficiency", "tiny", *QUICK, "--json")
    assert result.code == 0
    assert "warning: the machine was busy before the run: load average 3.50" in result.err
    assert json.loads(result.out)[0]["warnings"]


# ---- studies -------------------------------------------------------------------------


def test_every_pair_of_a_study_is_measured_with_its_longest_code(measured, home):

    (home.parent / "s.yaml").write_text(STUDY.replace("METHODS", "csch"))
    found, files = measured("--study", "s.yaml")
    assert [(f["pair"], f["bits"]) for f in found] == [("tiny", 24), ("other", 24)]
    assert found[1]["query"]["backbone"] == "test_resnet"
    assert found[1]["gallery"]["size"] == 48
    assert files == ["other-24-32_48-cpu.json", "tiny-24-32-cpu.json"]


def test_bits_and_size_of_a_study_can_be_replaced(measured, home):
    (home.parent / "s.yaml").write_text(STUDY.replace("METHODS", "csch"))
    options = ["--bits", "16", "--size", "32"]
    _, files = measured("--study", "s.yaml", *options)
    assert files == ["other-16-32-cpu.json", "tiny-16-32-cpu.json"]


def test_the_heads_of_a_study_are_those_of_its_methods(measured, home):
    # CSQ has heads of its own; DAPH trains both sides in one stage.
    study = STUDY.replace("METHODS", "csch, csq, daph").replace("[16, 24]", "[16]")
    (home.parent / "s.yaml").write_text(study.replace(", {name: other", "] #"))
    found, _ = measured("--study", "s.yaml")
    from methods.base import METHODS, Task

    task = Task(bits=16, n_classes=10, n_train=1000, multi_label=False)
    want = []
    for name in ("csch", "csq", "daph"):
        cls = METHODS.get(name)
        method = cls(cls.Params(), task)
        heads = {"query": method.head, "gallery": method.gallery_method().head}
        want += [heads] if heads not in want else []
    assert [f["heads"] for f in found] == want
    assert len(want) > 1


def test_a_study_stays_as_it_was(measured, home):
    (home.parent / "s.yaml").write_text(STUDY.replace("METHODS", "csch"))
    measured("--study", "s.yaml")
    assert {p.name for p in home.iterdir()} <= {"efficiency", "datasets", "listings"}


# ---- what is refused -----------------------------------------------------------------


def test_unknown_pairs_are_refused_with_the_nearest(refusal):
    message = refusal("tyni")
    assert "PAIR: unknown pair 'tyni'; did you mean 'tiny'?" in message
    assert "QUERY/GALLERY" in message


@pytest.mark.parametrize(
    ("pair", "key"), [("resnte50/resnet18", "PAIR.query"), ("resnet18/resnte50", "PAIR.gallery")]
)
def test_unknown_backbones_are_refused_with_the_nearest(refusal, pair, key):
    message = refusal(pair)
    assert f"{key}.backbone: unknown backbone 'resnte50'; did you mean 'resnet50'" in message


@pytest.mark.parametrize("pair", ["resnet18/", "/resnet18", "a/b/c", "/"])
def test_a_slash_without_two_backbones_is_refused(refusal, pair):
    assert f"must be a pair's name or QUERY/GALLERY (given: {pair!r})" in refusal(pair)


@pytest.mark.parametrize("args", [(), ("tiny", "--study", next(iter(presets())))])
def test_neither_pairs_nor_a_study_or_both_are_refused(refusal, args):
    assert "PAIR: name pairs, or one study" in refusal(*args)


def test_a_size_that_a_backbone_cannot_take_is_refused_before_any_timing(refusal, monkeypatch):
    monkeypatch.setattr(measuring, "measure_pair", lambda *_, **__: pytest.fail("measured"))
    message = refusal("tiny", "test_resnet/test_vit", "--size", "30")
    assert "--size: backbone 'test_vit" in message
    assert "(given: 30)" in message
    assert "divisible by patch size" in message


def test_a_head_for_a_study_is_refused(refusal):
    message = refusal("--study", "quickstart", "--head", "fc_bn")
    assert "--head: the heads of a study are those of its methods" in message


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("--head", "fcbn"), "--head: unknown hash head 'fcbn'; did you mean 'fc_bn'"),
        (("--device", "cdua"), "unknown device 'cdua'; did you mean 'cuda'"),
        (("--bits", "0"), "'--bits': 0 is not in the range"),
        (("--bits", "1025"), "'--bits': 1025 is not in the range"),
        (("--size", "7"), "'--size': 7 is not in the range"),
        (("--threads", "0"), "'--threads': 0 is not in the range"),
        (("--batch", "0"), "'--batch': 0 is not in the range"),
        (("--queries", "0"), "'--queries': 0 is not in the range"),
        (("--gallery", "0"), "'--gallery': 0 is not in the range"),
        (("--gallery", "x"), "'--gallery': 'x' is not a valid integer range"),
    ],
)
def test_options_out_of_range_are_refused(refusal, args, what):
    assert what in refusal("tiny", *args)


def test_a_gpu_that_is_not_there_is_refused(refusal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device: torch has no CUDA device here" in refusal("tiny", "--device", "cuda")


def test_unknown_studies_are_refused_with_the_nearest(refusal):
    assert "STUDY: unknown study 'quickstrat'; did you mean 'quickstart'" in refusal(
        "--study", "quickstrat"
    )


def test_a_home_that_is_no_folder_is_refused(asymbench, home):
    home.write_text("a file")
    result = asymbench("efficiency", "tiny")
    assert result.code == 2
    assert "ASYMBENCH_HOME" in result.err
