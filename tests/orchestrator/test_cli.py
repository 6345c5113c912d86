"""The command line: exit codes, one message for a mistake, JSON, and what must not be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.cli import cli, guarded
from orchestrator.measure_commands import parse_bytes
from orchestrator.store import open_store

STUDY = "study: mine\ndatasets: [digits]\npairs: [tiny]\nmethods: [csch]\nbits: [16]\n"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def refusal(asymbench, home):
    """Run what must be refused; return the message."""

    def refuse(*args: str) -> str:
        found = asymbench(*args)
        assert found.code == 2, found.err
        assert found.out == ""
        assert found.err.startswith("asymbench: ")
        assert found.err.count("asymbench: ") == 1
        assert "Traceback" not in found.err
        assert not home.exists()
        return found.err.removeprefix("asymbench: ").rstrip("\n")

    return refuse


@pytest.fixture
def study_refusal(refusal):
    """Plan a study that must be refused: STUDY with keys replaced."""

    def refuse(**keys: str) -> str:
        lines = {line.partition(":")[0]: line for line in STUDY.splitlines()}
        lines |= {key: f"{key}: {value}" for key, value in keys.items()}
        Path("s.yaml").write_text("\n".join(lines.values()) + "\n")
        return refusal("plan", "s.yaml")

    return refuse


# ---- bad studies ---------------------------------------------------------------------

SIDE = "{backbone: resnet18}"


@pytest.mark.parametrize(
    ("key", "value", "where", "what"),
    [
        ("methods", "[cshc]", "4  methods.0", "unknown method 'cshc'; did you mean 'csch'"),
        ("methods", "{csch: {gama: 1}}", "4  methods.csch.gama", "did you mean 'gamma'"),
        ("methods", "{csch: {gamma: []}}", "4  methods.csch.gamma", "spans no trial"),
        ("methods", "{csch: 3}", "4  methods.csch", "mapping of hyperparameters to values"),
        ("methods", "{csch: [1]}", "4  methods.csch", "mapping of hyperparameters to values"),
        ("methods", "[{csch: {gama: 3}}]", "4  methods.0.csch.gama", "did you mean 'gamma'"),
        ("methods", "[{csch: 3, csq: 4}]", "4  methods.0", "write - csch: {gamma: 10.0}"),
        (
            "methods",
            "{csch: {quantizer: {name: cq}}}",
            "4  methods.csch.quantizer.name",
            "did you mean 'caq'",
        ),
        ("methods", "{l2: {quantizer: cq}}", "4  methods.l2.quantizer.name", "did you mean 'caq'"),
        (
            "methods",
            "{l2: {quantizer: 3}}",
            "4  methods.l2.quantizer",
            "must be a name or a mapping",
        ),
        (
            "methods",
            "{l2: {quantizer: {name: caq, mode: replace}}}",
            "4  methods.l2.quantizer.mode",
            "set mode: add",
        ),
        ("methods", "[csch, csch]", "4  methods.1", "'csch' is there twice"),
        ("methods", "{csch: {3: 4}}", "4  methods.csch", "every key must be text, 3 is not"),
        ("methods", "{}", "4  methods", "nothing is given; it must be a list: names of methods"),
        ("methods", "null", "4  methods", "nothing is given"),
        ("bits", "null", "5  bits", "nothing is given"),
        ("bits", "[0]", "5  bits", "whole numbers from 1 to 1024, got 0"),
        ("bits", "[x]", "5  bits.0", "valid integer"),
        ("bits", "[3]", "5  bits", "at least 4 bits are needed (method 'csch' on 'digits')"),
        ("train", "null", "6  train", "nothing is given; it must be a mapping"),
        ("train", "3", "6  train", "must be a mapping of keys to values (given: 3)"),
        (
            "train",
            "{query: 3}",
            "6  train.query",
            "must be a mapping of keys to values (given: 3)",
        ),
        ("train", "{augmentation: {crp: x}}", "6  train.augmentation.crp", "did you mean 'crop'"),
        ("train", "{batch_size: 5000}", "6  train.batch_size", "1197 images, which is less than"),
        ("train", "{query: {epochs: 3}}", "6  train.query.epochs", "epochs must be equal"),
        ("seeds", "[]", "6  seeds", "nothing is given; it must be a list: whole numbers"),
        ("evaluate", "{at: 1.5}", "6  evaluate.at", "'all' or a whole number of at least 1"),
        ("evaluate", "{at: true}", "6  evaluate.at", "'all' or a whole number of at least 1"),
        ("tracking", "none", "6  tracking", "must be a mapping of keys to values (given: 'none')"),
        ("resources", "{query: 3}", "6  resources.query", "must be a mapping of keys to values"),
        ("datasets", "[digts]", "2  datasets.0", "did you mean 'digits'"),
        ("datasets", "[3]", "2  datasets.0", "the name of a dataset, or a mapping"),
        ("datasets", "null", "2  datasets", "names of datasets, or mappings"),
        ("datasets", "[{name: digits, prtocol: {}}]", "2  datasets.0.prtocol", "'protocol'"),
        ("datasets", "[{name: digits, protocol: 3}]", "2  datasets.0.protocol", "a mapping"),
        (
            "datasets",
            "[{name: digits, protocol: {query_per_class: 500}}]",
            "2  datasets.0.protocol",
            "class '0' has 178 images",
        ),
        ("datasets", "[{folder: nowhere}]", "2  datasets.0.root", "root does not exist"),
        ("datasets", "[digits, digits]", "2  datasets", "'digits' is there 2 times"),
        ("pairs", "[tinny]", "3  pairs.0", "did you mean 'tiny'"),
        ("pairs", "[3]", "3  pairs.0", "the name of a pair, or a mapping"),
        ("pairs", "[{query: x}]", "3  pairs.0.gallery", "this key is required"),
        ("pairs", f"[{{query: 3, gallery: {SIDE}}}]", "3  pairs.0.query", "a backbone's name"),
        (
            "pairs",
            f"[{{query: {{backbone: 3}}, gallery: {SIDE}}}]",
            "3  pairs.0.query.backbone",
            "valid string (given: 3)",
        ),
        (
            "pairs",
            f"[{{query: {{backbone: 'resnet18.'}}, gallery: {SIDE}}}]",
            "3  pairs.0.query.backbone",
            "unknown backbone 'resnet18.'; did you mean 'resnet18'",
        ),
        (
            "pairs",
            f"[{{query: {{backbone: resnet18, sise: 3}}, gallery: {SIDE}}}]",
            "3  pairs.0.query.sise",
            "did you mean 'size'",
        ),
        (
            "pairs",
            f"[{{query: {{backbone: resnet18, weights: no.safetensors}}, gallery: {SIDE}}}]",
            "3  pairs.0.query.weights",
            "no such file",
        ),
        ("pairs", "[tiny, tiny]", "3  pairs", "'tiny' is there 2 times"),
        ("pair", "tiny", "6  pair", "give 'pair' or 'pairs', not both"),
        ("study", "x" * 500, "1  study", "1 to 64 letters"),
    ],
)
def test_a_mistake_in_a_study_gets_line_key_and_rule(study_refusal, key, value, where, what):
    message = study_refusal(**{key: value})
    assert message.startswith(f"s.yaml:{where}: ")
    assert what in message


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("w.pth", b"x", "weights must be a .safetensors file"),
        ("w.safetensors", b"junkjunkjunkjunk", "no safetensors file, or it is cut short"),
    ],
)
def test_weights_that_are_no_safetensors_are_refused(study_refusal, name, content, what):
    Path(name).write_bytes(content)
    query = f"{{backbone: resnet18, weights: {name}}}"
    message = study_refusal(pairs=f"[{{query: {query}, gallery: {SIDE}}}]")
    assert message.startswith("s.yaml:3  pairs.0.query.weights: ")
    assert what in message


def test_errors_under_singular_keys_have_their_line(refusal):
    text = STUDY.replace(
        "pairs: [tiny]", "pair:\n  query: resnet18\n  gallery: {backbone: x, y: 1}"
    )
    Path("s.yaml").write_text(text)
    assert refusal("plan", "s.yaml").startswith("s.yaml:5  pairs.0.gallery.y: unknown key")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "a study is a mapping"),
        (bytes(range(256)), "no UTF-8 text"),
        (b"study: x\ntrain:\n\tepochs: 3\n", "s.yaml:3: not valid YAML"),
        (b"study: [&a [*b]]\n", "s.yaml:1: not valid YAML: found undefined alias"),
        (b"study: &a [*a]\n", "nested too deeply, or an alias of itself"),
        (b"study: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (b"study: 2001-99-99\n", "not valid YAML: month must be in 1..12"),
        (STUDY.encode() + b"seeds: [" + b"9" * 5000 + b"]\n", "not valid YAML"),
        (
            STUDY.encode() + b'description: "\\ud800"\n',
            "s.yaml:6  description: half of a surrogate",
        ),
        (STUDY.encode() + b"---\nstudy: two\n", "s.yaml:6: not valid YAML"),
        (STUDY.encode() + b"2020: x\n", "every key must be text, 2020 is not"),
    ],
)
def test_files_that_are_no_study_are_refused(refusal, content, what):
    Path("s.yaml").write_bytes(content)
    assert what in refusal("plan", "s.yaml")


def test_merge_keys_of_yaml_work(asymbench):
    Path("s.yaml").write_text(STUDY + "train: {query: &q {lr_head: 1e-3}, gallery: {<<: *q}}\n")
    assert asymbench("plan", "s.yaml").code == 0


@pytest.mark.parametrize(
    ("assignment", "what"),
    [
        ("bits", "write --set key=value"),
        ("train..epochs=3", "a part of the key is empty"),
        ("bits.²=3", "'²' is no place in a list of 1"),
        ("bits=[", "--set bits:1: not valid YAML"),
        ("bits=[0]", "s.yaml with --set  bits: must be whole numbers from 1 to 1024"),
        ("pairs.0=x", "s.yaml with --set  pairs.0: unknown pair 'x'"),
        ("methods.csch.gamma=1", "'csch' is no place in a list of 1"),
    ],
)
def test_wrong_settings_are_refused(refusal, assignment, what):
    Path("s.yaml").write_text(STUDY)
    assert what in refusal("plan", "s.yaml", "--set", assignment)


# ---- bad commands --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["paln"], "unknown command 'paln'; did you mean 'plan'"),
        (["list", "method"], "unknown list 'method'; did you mean 'methods'"),
        (["plan"], "Missing argument 'STUDY'"),
        (["plan", "a", "b"], "unexpected extra argument"),
        (["plan", "--jsn", "quickstart"], "--json"),
        (["plan", "quickstart", "--set"], "requires an argument"),
        (["run", "quickstart", "--cpus", "0"], "0 is not in the range"),
        (["run", "quickstart", "--executor", "inlin"], "did you mean 'inline'"),
        (["report", "quickstart", "--format", "jsn"], "did you mean 'json'"),
        (["plan", "quickstrat"], "unknown study 'quickstrat'; did you mean 'quickstart'"),
        (["plan", "none.yaml"], "no such study file (given: 'none.yaml')"),
        (["plan", "."], "this is a folder; name the YAML file in it (given: '.')"),
        (["plan", "x" * 5000], "no name of a study: File name too long"),
        (["plan", "~nobody-of-that-name/x.yaml"], "no name of a study"),
        (["plan", ""], "unknown study ''"),
        (["report", "quickstart", "-o", "."], "--output: must name a file"),
        (["report", "quickstart", "-o", ""], "--output: must name a file"),
        (["report", "quickstart", "-o", "nowhere/x"], "--output: there is no such folder"),
    ],
)
def test_wrong_commands_are_refused_with_one_message(refusal, args, what):
    message = refusal(*args)
    assert what in message
    assert len(message.splitlines()) <= 2


def test_no_command_prints_the_help_and_refuses(asymbench):
    found = asymbench()
    assert found.code == 2
    assert "Compare asymmetric image-retrieval" in found.err


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
@pytest.mark.parametrize(
    ("variable", "given", "part"),
    [
        ("ASYMBENCH_HOME", "~no.such.user/runs", "there is no such user's folder"),
        ("ASYMBENCH_STORE", "~no.such.user/store", "there is no such user's folder"),
        ("ASYMBENCH_STORE", "/dev/null/store", "/dev/null is no folder"),
        ("ASYMBENCH_STORE", "/dev/null", "/dev/null is no folder"),
        ("ASYMBENCH_STORE", "s3:/bucket/store", "did you mean s3://bucket/store ?"),
        ("ASYMBENCH_STORE", "GS:bucket", "did you mean gs://bucket ?"),
        ("ASYMBENCH_STORE", "memory://store", "is gone with the process"),
    ],
)
def test_a_place_that_cannot_be_is_refused(asymbench, monkeypatch, command, variable, given, part):
    monkeypatch.setenv(variable, given)
    found = asymbench(command, "quickstart")
    assert found.code == 2
    assert found.err.startswith(f"asymbench: {variable}: ")
    assert part in found.err


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_home_that_cannot_be_a_folder_is_refused(asymbench, monkeypatch, command, place):
    Path("file").write_text("x")
    monkeypatch.setenv("ASYMBENCH_HOME", str(Path(place).absolute()))
    found = asymbench(command, "quickstart")
    assert found.code == 2
    assert found.err.startswith("asymbench: ASYMBENCH_HOME: ")
    assert "file is no folder" in found.err
    assert Path("file").read_text() == "x"


# ---- exit codes ----------------------------------------------------------------------


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.exceptions.Abort(), 130, "interrupted\n"),
        (click.exceptions.Exit(3), 3, ""),
        (SystemExit(1), 1, ""),
        (SystemExit(None), 0, ""),
        (
            PermissionError(13, "Permission denied", "a/b"),
            2,
            "asymbench: a/b: Permission denied\n",
        ),
        (OSError(28, "No space left", "a/b"), 1, "asymbench: a/b: no space left; free some"),
        (OSError(30, "Read-only file system", "a"), 2, "asymbench: a: Read-only file system\n"),
    ],
)
def test_what_ends_a_command_has_its_code(capsys, error, code, message):
    assert guarded(raising(error)) == code
    assert capsys.readouterr().err.startswith(message)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))


def test_a_damaged_store_is_told_and_not_traced(asymbench, home):
    Path("s.yaml").write_text(STUDY)
    (trial,) = json.loads(asymbench("plan", "s.yaml", "--json").out)["list"]
    folder = open_store(home).folder(trial["trial"])
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"id": "other", "identity": {}}')
    found = asymbench("report", "s.yaml")
    assert found.code == 2
    assert "the manifest is of another stage" in found.err


# ---- what they print -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "names", "keys"),
    [
        ("methods", {"csch", "csq", "l2", "orthohash"}, {"labels", "schedule", "hyperparameters"}),
        ("datasets", {"digits", "cifar10", "folder"}, {"what", "licence", "obtain"}),
        ("pairs", {"tiny", "mnv3s-rn50"}, {"query backbone", "gallery backbone"}),
        ("studies", {"quickstart", "cifar10_mini"}, {"kind", "what"}),
    ],
)
def test_lists_as_table_and_json(asymbench, what, names, keys):
    entries = json.loads(asymbench("list", what, "--json").out)
    assert names <= {entry["name"] for entry in entries}
    assert all(keys <= set(entry) for entry in entries)
    table = asymbench("list", what)
    assert (table.code, table.err) == (0, "")
    assert len(table.out.splitlines()) == len(entries) + 1


def test_list_says_which_sides_read_labels(asymbench):
    entries = json.loads(asymbench("list", "methods", "--json").out)
    labels = {entry["name"]: entry["labels"] for entry in entries}
    assert labels["csch"] == "query and gallery"
    assert labels["csq"] == labels["orthohash"] == labels["l2"] == "gallery"


def test_plan_counts_and_writes_nothing(asymbench, home):
    found = json.loads(asymbench("plan", "quickstart", "--json").out)
    assert (found["study"], found["trials"], found["trials_done"]) == ("quickstart", 16, 0)
    kinds = {"centers": 6, "gallery": 6, "recording": 6, "query": 16, "metrics": 16}
    assert {kind: row["stages"] for kind, row in found["stages"].items()} == kinds
    assert found["stages_to_run"] == 50
    assert found["seconds_to_run"] >= found["seconds_longest_chain"] > 0
    assert len(found["list"]) == 16
    assert set(found["list"][0]["to_run"]) == {"centers", "gallery", "query", "metrics"}
    table = asymbench("plan", "quickstart", "--trials")
    assert "study quickstart: 16 trials, 0 done, 50 stages to run" in table.out
    assert table.out.count("needs centers, gallery") == 16
    assert not home.exists()


def test_report_before_any_run_shows_dashes(asymbench, home):
    found = asymbench("report", "quickstart")
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[4].split() == ["csch", "-", "-"]
    rows = json.loads(asymbench("report", "quickstart", "--json").out)
    assert {row["map"] for row in rows} == {None}
    assert {"method", "dataset", "pair", "bits", "seed", "map"} <= set(rows[0])
    assert not home.exists()


def test_status_before_any_run_waits(asymbench):
    found = json.loads(asymbench("status", "quickstart", "--json").out)
    assert found["trials"] == {"done": 0, "running": 0, "waiting": 16, "failed": 0}
    assert {"label", "state", "reason", "trial"} <= set(found["list"][0])
    assert (
        "study quickstart: 0 done, 0 running, 16 waiting" in asymbench("status", "quickstart").out
    )


def test_output_goes_to_the_file(asymbench):
    printed = asymbench("report", "quickstart", "--format", "csv")
    written = asymbench("report", "quickstart", "--format", "csv", "-o", "table.csv")
    assert (written.code, written.out) == (0, "")
    assert Path("table.csv").read_text() == printed.out


# ---- a real, small run ---------------------------------------------------------------

TINY = ["train.epochs=1", "bits=8", "datasets.0.protocol.train_per_class=10"]
SMALL = STUDY.replace("[digits]", "[{name: digits}]") + "tracking: {enabled: false}\n"


def test_a_study_runs_once_and_is_found_by_path_name_and_settings(asymbench, home):
    Path("s.yaml").write_text(SMALL)
    settings = [part for assignment in TINY for part in ("--set", assignment)]
    ran = asymbench("run", "s.yaml", "--executor", "inline", *settings)
    assert ran.code == 0, ran.err
    assert "stages that were run now: 4" in ran.err
    again = asymbench("run", "s.yaml", "--executor", "inline", *settings)
    assert (again.code, again.out) == (0, ran.out)
    assert "stages that were run now: 0" in again.err
    by_name = asymbench("report", "mine")  # with the settings that it was run with
    assert by_name.out == ran.out
    (row,) = json.loads(asymbench("report", "mine", "--json").out)
    assert (row["bits"], row["status"]) == (8, "done")
    assert 0 < row["map"] <= 1
    assert "1 done, 0 running" in asymbench("status", "mine").out
    assert json.loads(asymbench("plan", "mine", "--json").out)["stages_to_run"] == 0
    assert asymbench("report", "s.yaml").out.splitlines()[4].split() == ["csch", "-"]
    assert "did you mean 'mine'" in asymbench("plan", "mime").err


def test_a_run_in_which_a_trial_fails_names_it_and_exits_1(asymbench, monkeypatch):
    from orchestrator import scheduling

    def fail(work, report, wait):
        raise FloatingPointError("the loss was eaten")

    monkeypatch.setattr(scheduling, "run_stage", fail)
    Path("s.yaml").write_text(SMALL)
    ran = asymbench("run", "s.yaml", "--executor", "inline")
    assert ran.code == 1
    assert (
        "1 trial failed:\n  csch · tiny · 16 bit · digits · s0: bug: FloatingPointError" in ran.out
    )
    assert "1 trial failed; `asymbench status` has the reasons" in ran.err
    (row,) = json.loads(asymbench("report", "mine", "--json").out)
    assert row["reason"] == "bug: FloatingPointError: the loss was eaten"
    assert "the loss was eaten" in asymbench("status", "mine").out


def test_an_interrupted_run_says_how_to_go_on(asymbench, monkeypatch):
    from orchestrator import session

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", interrupt)
    Path("s.yaml").write_text(SMALL)
    ran = asymbench("run", "s.yaml", "--executor", "inline", "--set", "bits=[8, 16]")
    assert ran.code == 130
    assert "To go on: asymbench run s.yaml '--set=bits=[8, 16]'" in ran.err


def make_images(root: Path) -> None:
    from PIL import Image

    for number in range(2):
        (root / f"class{number}").mkdir(parents=True)
        for image in range(12):
            shade = (100 * number, 20 * image, 40)
            Image.new("RGB", (16, 16), shade).save(root / f"class{number}" / f"{image}.png")


def test_a_damaged_image_is_refused_before_anything_trains(asymbench, home):
    make_images(Path("photos"))
    Path("photos/class1/3.png").write_bytes(b"no image")
    text = SMALL.replace("[{name: digits}]", "[{folder: photos}]") + "train: {batch_size: 4}\n"
    Path("s.yaml").write_text(text)
    found = asymbench("run", "s.yaml", "--executor", "inline")
    assert found.code == 2
    lines = [line for line in found.err.splitlines() if not line.startswith("decoded ")]
    assert lines[0].startswith("asymbench: s.yaml:2  datasets.0: 1 image of 24 cannot be read: ")
    assert found.err.count("asymbench: ") == 1
    assert "class1/3.png" in found.err
    assert not (home / "store").exists()
    assert not (home / "studies").exists()


def test_an_empty_class_is_refused(asymbench):
    make_images(Path("photos"))
    Path("photos/class2").mkdir()
    Path("s.yaml").write_text(STUDY.replace("[digits]", "[{folder: photos}]"))
    found = asymbench("plan", "s.yaml")
    assert found.code == 2
    assert found.err.startswith("asymbench: s.yaml:2  datasets.0.root: ")
    assert "class2" in found.err


# ---- evaluate ------------------------------------------------------------------------


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    for name, rows in (("q", 5), ("g", 9)):
        np.save(f"{name}.npy", np.where(rng.standard_normal((rows, 16)) >= 0, 1, -1))
        np.save(f"{name}l.npy", np.arange(rows) % 3)
    return {
        "--query-codes": "q.npy",
        "--gallery-codes": "g.npy",
        "--query-labels": "ql.npy",
        "--gallery-labels": "gl.npy",
    }


def test_evaluate_prints_a_table_or_json(asymbench, arrays):
    args = [part for item in arrays.items() for part in item]
    found = json.loads(asymbench("evaluate", *args, "--json").out)
    assert 0 < found["map"] < 1
    table = asymbench("evaluate", *args)
    assert f"{found['map']:.6f}" in table.out


@pytest.mark.parametrize("option", ["--query-codes", "--gallery-codes", "--query-labels"])
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("none.npy", None, "no such file"),
        ("junk.npy", b"junk", "not a .npy file"),
        ("folder.npy", "folder", "is a folder"),
        ("empty.npy", np.ones((0, 16), np.int64), "the array is empty"),
        ("text.npy", np.array(["a"] * 5), "must hold numbers"),
    ],
)
def test_evaluate_names_the_wrong_file(refusal, arrays, option, name, content, what):
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif isinstance(content, str):
        Path(name).mkdir()
    elif content is not None:
        np.save(name, content)
    args = [part for item in (arrays | {option: name}).items() for part in item]
    message = refusal("evaluate", *args)
    assert message.startswith(f"{name}  {option}: ")
    assert what in message


@pytest.mark.parametrize("at", ["0", "-1", "x", "²", "--5", "1.5"])
def test_evaluate_refuses_what_is_no_cut_off(refusal, arrays, at):
    args = [part for item in arrays.items() for part in item]
    assert refusal("evaluate", *args, f"--at={at}").startswith("--at: ")


# ---- processes -----------------------------------------------------------------------

HEAVY = ("ray", "mlflow", "torch", "timm", "sklearn", "pandas", "optuna", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["list", "methods"],
        ["list", "datasets"],
        ["list", "pairs"],
        ["list", "studies"],
        ["plan", "quickstart"],
        ["status", "quickstart"],
        ["report", "quickstart"],
    ],
    ids=" ".join,
)
def test_answers_that_must_be_quick_import_nothing_heavy(args):
    code = (
        "import sys; from orchestrator.cli import cli, guarded\n"
        f"code = guarded(lambda: cli({args!r}, standalone_mode=False))\n"
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr == "0 []\n"


def test_messages_go_to_stderr_and_results_to_stdout():
    runner = CliRunner()
    result = runner.invoke(cli, ["list", "studies", "--json"])
    assert json.loads(result.stdout)
    assert result.stderr == ""


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "from orchestrator.cli import main; import sys; sys.argv[1:] = ['list', 'pairs']; main()"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def flat(arrays):
    return [part for item in arrays.items() for part in item]


@pytest.mark.parametrize("missing", ["--query-labels", "--gallery-labels"])
def test_evaluate_needs_labels_or_a_ground_truth(refusal, arrays, missing):
    given = {option: name for option, name in arrays.items() if option != missing}
    assert refusal("evaluate", *flat(given)).startswith(f"{missing}: is needed; or --gnd")


@pytest.mark.parametrize("engine", ["auto", "numba", "numpy", "torch"])
def test_evaluate_gives_the_same_by_every_engine_and_number_of_threads(asymbench, arrays, engine):
    given = [*flat(arrays), "--json"]
    usual = asymbench("evaluate", *given)
    options = ["--engine", engine, "--threads", "2", "--memory-limit", "64 MiB"]
    assert asymbench("evaluate", *given, *options).out == usual.out


def test_evaluate_counts_as_public_code_does_on_request(asymbench, arrays):
    given = [*flat(arrays), "--json", "--legacy", "deephash_pytorch", "--legacy", "orthohash"]
    found = json.loads(asymbench("evaluate", *given).out)
    assert found["legacy"]["orthohash"] == pytest.approx(found["map_stable"], abs=1e-12)
    assert set(found["legacy"]) == {"deephash_pytorch", "orthohash"}


def test_evaluate_without_a_bootstrap_has_no_interval(asymbench, arrays):
    with_one = json.loads(asymbench("evaluate", *flat(arrays), "--json").out)
    assert with_one["map_ci_low"] <= with_one["map"] <= with_one["map_ci_high"]
    without = json.loads(asymbench("evaluate", *flat(arrays), "--json", "--bootstrap", "0").out)
    assert without["map_ci_low"] is without["map_ci_high"] is None


def test_evaluate_writes_each_querys_average_precision(asymbench, arrays):
    found = json.loads(asymbench("evaluate", *flat(arrays), "--json", "-o", "ap.npy").out)
    scores = np.load("ap.npy", allow_pickle=False)
    assert scores.shape == (5,)
    assert scores.mean() == pytest.approx(found["map"], abs=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--legacy", "orthohsh"], "did you mean 'orthohash'"),
        (["--engine", "nunpy"], "did you mean 'numpy'"),
        (["--bootstrap", "3"], "--bootstrap: "),
        (["--threads", "0"], "--threads: "),
        (["--memory-limit", "2 apples"], "--memory-limit: a size is a number above 0"),
        (["--memory-limit", "0"], "--memory-limit: a size is a number above 0"),
        (["--memory-limit", "1"], "--memory-limit: "),
        (["--memory-limit", "9" * 400], "--memory-limit: a size is a number above 0"),
        (["-o", "nowhere/ap.npy"], "--output: there is no such folder"),
        (["--gnd", "gnd.pkl"], "--query-labels: --gnd says what is relevant"),
    ],
)
def test_evaluate_refuses_wrong_options(refusal, arrays, options, message):
    assert message in refusal("evaluate", *flat(arrays), *options)


@pytest.mark.parametrize(
    "option", [["--legacy", "orthohash"], ["--at", "10"], ["--bootstrap", "500"]]
)
def test_evaluate_refuses_what_landmarks_do_not_have(refusal, arrays, option):
    codes = flat({key: name for key, name in arrays.items() if key.endswith("codes")})
    said = refusal("evaluate", *codes, "--gnd", "gnd.pkl", *option)
    assert said.startswith(f"{option[0]}: the landmarks' protocol has no such option")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5", 5), ("2GiB", 2**31), ("1.5 KiB", 1536), ("3mb", 3_000_000), ("7 B", 7)],
)
def test_sizes_may_have_units(text, size):
    assert parse_bytes(text, "--memory-limit") == size
