"""What ``asymbench plan`` foresees, and on what."""

import json

import pytest
import yaml

from cluster import accelerators
from cluster.accelerators import cpu_model
from cluster.resources import ACCELERATOR_LABEL, Node
from orchestrator.cli import cli, guarded
from orchestrator.estimates import Estimator
from orchestrator.plan_commands import foresee, parse_hardware, summarize
from orchestrator.session import open_session
from orchestrator.store import Manifest
from retrieval.errors import InputError

STUDY = {
    "study": "mine",
    "datasets": ["digits"],
    "pairs": ["tiny"],
    "methods": {"csch": {"gamma": [1.0, 10.0, 100.0]}},
    "bits": [16],
    "train": {"epochs": 2},
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def session(tmp_path, home):
    def make(**changes):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return open_session(str(path), home=home)

    return make


# ---- hardware ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nodes", "cpus", "gpus", "gpu"),
    [
        ("8xA100", 1, 96.0, 8.0, "A100"),
        ("2x8xH100", 2, 24 * 8.0, 16.0, "H100"),
        ("1xrtx4090", 1, 12.0, 1.0, "RTX-4090"),
        ("4x4xA100-80G/64cpu", 4, 256.0, 16.0, "A100-80G"),
        ("8xL40S/128CPUs", 1, 128.0, 8.0, "L40S"),
        ("16cpu", 1, 16.0, 0.0, ""),
        ("4x64cpu", 4, 256.0, 0.0, ""),
        (" 8xA100 ", 1, 96.0, 8.0, "A100"),
    ],
)
def test_hardware_is_read_as_written(text, nodes, cpus, gpus, gpu):
    found = parse_hardware(text)
    assert len(found.capacity.nodes) == nodes
    assert (found.capacity.cpus, found.capacity.gpus, found.gpu) == (cpus, gpus, gpu)
    assert {node.accelerator for node in found.capacity.nodes} == {gpu}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "names no hardware; write GPUs of a node"),
        ("A100", "names no hardware"),
        ("8x", "names no hardware"),
        ("eight", "names no hardware"),
        ("-1xA100", "names no hardware"),
        ("8xA100/", "names no hardware"),
        ("2x2x2xA100", "names no hardware"),
        ("0xA100", "1 to 4096 cores and, where it names a type, GPUs"),
        ("0cpu", "1 to 4096 cores"),
        ("9999cpu", "1 to 4096 cores"),
        ("0x8xA100", "1 to 1000 nodes"),
        ("5000x8xA100", "1 to 1000 nodes"),
        ("8xA100s", "unknown type of GPU 'A100s'; did you mean 'A100'"),
        ("8xTPU", "unknown type of GPU 'TPU'; known: P100, V100"),
    ],
)
def test_what_is_no_hardware_is_refused_with_examples(text, match):
    with pytest.raises(InputError, match=match) as caught:
        parse_hardware(text)
    assert (caught.value.key, caught.value.value) == ("--on", text)


@pytest.mark.parametrize(
    ("models", "gpu"),
    [([], ""), (["NVIDIA H200"] * 2, "H200"), (["Something New"], "Something New")],
)
def test_local_is_this_machine(monkeypatch, models, gpu):
    monkeypatch.setattr(accelerators, "visible_gpus", lambda: models)
    found = parse_hardware("local")
    labels = {ACCELERATOR_LABEL: gpu} if gpu else {}
    (node,) = found.capacity.nodes
    assert node == Node(cpus=node.cpus, gpus=float(len(models)), labels=labels)
    assert found.gpu == gpu


# ---- what is foreseen ----------------------------------------------------------------


@pytest.fixture
def measured(session):
    """A session whose stages were measured on this processor: 1, 60, 20 and 2 seconds."""
    seconds = {"centers": 1.0, "gallery": 60.0, "query": 20.0, "metrics": 2.0}

    def make(device: str = "cpu", **changes):
        made = session(**changes)
        made.estimator = Estimator()
        for stage in made.plan.stages.values():
            cost = {"seconds": seconds[stage.kind], "device": device, "cpu": cpu_model()}
            made.estimator.learn(stage, Manifest("", "", {}, {}, {}, cost))
        return made

    return make


def test_one_core_does_one_stage_after_the_other(measured):
    found = foresee(measured(), parse_hardware("1cpu"))
    # one center, one gallery, three queries and scores; alone, each trial does all four
    shared, alone = 1 + 60 + 3 * (20 + 2), 3 * (1 + 60 + 20 + 2)
    assert found["shared"]["seconds"] == found["shared"]["seconds_lower_bound"] == shared
    assert found["without_sharing"]["seconds"] == alone
    assert found["shared"]["cpu_hours"] == pytest.approx(shared / 3600, abs=1e-6)
    assert found["without_sharing"]["cpu_hours"] == pytest.approx(alone / 3600, abs=1e-6)
    assert (found["shared"]["stages"], found["without_sharing"]["stages"]) == (8, 12)
    assert found["shared"]["cpu_utilisation"] == 1.0
    assert found["shared"]["gpu_utilisation"] is None
    assert found["estimates"] == {"measured": shared}


def test_three_cores_share_what_can_be_shared(measured):
    found = foresee(measured(), parse_hardware("3cpu"))
    assert found["shared"]["seconds"] == found["without_sharing"]["seconds"] == 83.0
    assert found["shared"]["cpu_utilisation"] == pytest.approx(127 / (3 * 83), abs=1e-4)
    assert found["without_sharing"]["cpu_utilisation"] == 1.0


def test_hours_of_a_gpu_count_the_share_that_is_held(measured):
    asked = {kind: {"gpus": share} for kind, share in (("gallery", 1.0), ("query", 0.25))}
    made = measured(device="NVIDIA A100-SXM4-40GB", resources=asked)
    found = foresee(made, parse_hardware("1xA100-40G"))
    (gallery,), (query,) = found["stages"]["gallery"], found["stages"]["query"]
    assert gallery["gpu_hours"] == pytest.approx(60 / 3600, abs=1e-6)
    assert query["gpu_hours"] == pytest.approx(3 * 20 * 0.25 / 3600, abs=1e-6)
    assert query["asks_for"].startswith("0.25 GPU, 1 CPU")  # as in `asymbench status`
    assert query["stages"] == 3
    # centers hold an eighth for a second; the three queries share the GPU after the gallery
    ends = found["shared"]["seconds"]
    assert ends >= 60 + 20
    assert found["shared"]["gpu_utilisation"] == pytest.approx((1 / 8 + 60 + 15) / ends, abs=1e-3)


def test_estimates_from_another_gpu_say_so_and_guesses_too(measured):
    made = measured(device="NVIDIA A100-SXM4-40GB")
    on_h100 = foresee(made, parse_hardware("8xH100"))["estimates"]
    assert set(on_h100) == {"scaled from A100-40G", "guess"}  # scores need no GPU: not measured
    assert set(foresee(made, parse_hardware("8cpu"))["estimates"]) == {"guess"}


def test_what_the_hardware_cannot_give_is_refused(session):
    made = session(resources={"gallery": {"gpus": 2.0}})
    with pytest.raises(InputError, match=r"gallery stages ask for 1 cpus, 2 gpus") as caught:
        foresee(made, parse_hardware("1xA100"))
    assert (caught.value.key, caught.value.value) == ("--on", "1xA100")


def test_a_summary_tells_measured_from_guessed_seconds(session, measured):
    assert set(summarize(session())["estimates"]) == {"guess"}
    found = summarize(measured())
    assert found["estimates"] == {"measured": 127.0}
    assert found["seconds_to_run"] == 127.0
    assert found["seconds_longest_chain"] == 83.0
    assert found["seconds_saved_by_sharing"] == 2 * 61.0


# ---- the command ---------------------------------------------------------------------


def run(capsys, *args):
    code = guarded(lambda: cli(["plan", *args], prog_name="asymbench", standalone_mode=False))
    return code, *capsys.readouterr()


def test_the_table_and_json_say_the_same(session, capsys, home):
    session()
    code, text, _ = run(capsys, "s.yaml", "--on", "8xA100")
    assert code == 0
    assert "on 8xA100: 1 node, 96 cores, 8 GPUs A100" in text
    assert "with sharing  every trial by itself" in text
    assert text.count("estimates: 100% guess") == 2
    code, out, _ = run(capsys, "s.yaml", "--on", "8xA100", "--json")
    found = json.loads(out)["on"]
    assert (found["nodes"], found["gpus"], found["accelerator"]) == (1, 8.0, "A100")
    assert f"{found['shared']['gpu_hours']:.3g}" in text
    code, out, _ = run(capsys, "s.yaml", "--json")
    assert "on" not in json.loads(out)
    assert not home.exists()  # nothing is written


def test_hardware_is_refused_before_the_study_is_read(capsys):
    code, out, err = run(capsys, "none.yaml", "--on", "8xA10000")
    assert (code, out) == (2, "")
    assert err.startswith("asymbench: --on: unknown type of GPU 'A10000'; did you mean 'A100'")


def test_planning_imports_neither_torch_nor_ray(session):
    import subprocess
    import sys

    session()
    code = (
        "import sys\nfrom orchestrator.cli import cli\n"
        "cli(['plan', 's.yaml', '--on', '2x8xH100', '--json'], standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'mlflow', 'timm', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
