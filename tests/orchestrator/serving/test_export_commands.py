"""The command ``export``: what it leaves, what it finds out, and what it refuses."""

import contextlib
import hashlib
import importlib.util
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from orchestrator.cli import cli, guarded
from orchestrator.serving import export as export_module
from orchestrator.serving import export_onnx, quantize
from orchestrator.serving.export_folder import check_folder, placed
from orchestrator.serving.export_readme import readme
from orchestrator.serving.trained import TrainedTrial, open_trial
from retrieval.augmentation import Augmentation, Views
from retrieval.efficiency import Timing, measure
from retrieval.errors import DatasetError, InputError
from retrieval.images import decode_bytes, square
from tests.once import made_once
from tests.oracles.ranking import expected_average_precision


@pytest.fixture
def trial(in_home) -> TrainedTrial:
    return open_trial(None, "served:csch")


def h_by_hand(trial: TrainedTrial, side: str, rows: np.ndarray) -> np.ndarray:
    """Return h of some of the dataset's images, by torch alone."""
    images = np.array(trial.dataset.images().array[rows])
    views = Views(images, trial.side(side).size, Augmentation(), seed=0).eval(np.arange(len(rows)))
    with torch.inference_mode():
        return trial.side(side).network(views).numpy()


@pytest.fixture(scope="module")
def exported(served_home, tmp_path_factory) -> tuple[Path, dict]:
    """The query network as ONNX, with 8-bit integers beside it, and what the command said."""

    def make(folder: Path) -> None:
        command = ["export", "served:csch", "--int8", "--json", "--count", "90", "-o"]
        command.append(str(folder / "phone"))
        told = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
            patch.setenv("ASYMBENCH_HOME", str(served_home))
            assert guarded(lambda: cli(command, standalone_mode=False)) == 0
        (folder / "told.json").write_text(told.getvalue())

    folder = made_once(tmp_path_factory, "exported", make)
    return folder / "phone", json.loads((folder / "told.json").read_text())


# ---- what it leaves ------------------------------------------------------------------------


def test_the_exported_network_gives_the_codes_that_torch_gives(exported, trial) -> None:
    folder, told = exported
    rows = trial.rows("query")
    wanted = h_by_hand(trial, "query", rows)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    images = np.array(trial.dataset.images().array[rows])
    codes, h = session.run(["codes", "h"], {"images": images})
    sure = np.abs(wanted) > 1e-5
    assert np.array_equal((h >= 0)[sure], (wanted >= 0)[sure])
    assert np.array_equal(codes, np.packbits(h >= 0, axis=1))
    assert np.array_equal(codes, trial.codes("query")) or not sure.all()
    check = told["check"]
    assert (check["images"], check["bits"], check["mismatches"], check["equal"]) == (
        90,
        16,
        0,
        True,
    )
    assert told["config"]["check"]["on"] == "test queries of digits"


def test_the_folder_says_what_is_in_it(exported, trial) -> None:
    folder, told = exported
    config = json.loads((folder / "config.json").read_text())
    assert config == told["config"] and told["folder"] == str(folder)
    names = {path.name for path in folder.iterdir()}
    models = {"model.onnx", "model.int8.onnx"}
    assert names == models | {"config.json", "README.md", "encode.py", "network.py"}
    for name, digest in config["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(config["files"]) == names - {"config.json"}
    assert told["bytes"] == {name: (folder / name).stat().st_size for name in models}
    weights = hashlib.sha256(trial.side("query").weights.read_bytes()).hexdigest()
    assert config["weights_sha256"] == weights
    assert (config["bits"], config["size"], config["stored_size"]) == (16, 32, 8)
    properties = {p.key: p.value for p in onnx.load(folder / "model.onnx").metadata_props}
    assert properties["trial"] == trial.id and properties["weights_sha256"] == weights
    assert properties["bits"] == "16" and properties["backbone"] == "test_efficientnet.r160_in1k"
    assert not any("class" in key for key in properties)


def test_speed_is_told_with_threads_and_machine(exported) -> None:
    _, told = exported
    assert told["latency"]["threads"] == 1 and told["machine"]["cores"] >= 1
    for name in ("torch", "exported", "int8"):
        timing = told["latency"][name]
        assert timing["runs"] == 100 and 0 < timing["p5"] <= timing["median"] <= timing["p95"]


def test_8_bit_integers_are_counted_and_scored_as_by_hand(exported, trial) -> None:
    folder, told = exported
    sessions = [
        onnxruntime.InferenceSession(str(folder / name))
        for name in ("model.onnx", "model.int8.onnx")
    ]
    splits, labels = trial.dataset.splits(), trial.dataset.index().labels
    stored = trial.dataset.images().array

    def codes(session, rows) -> np.ndarray:
        bits = [session.run(["h"], {"images": np.array(stored[r : r + 1])})[0] >= 0 for r in rows]
        return np.concatenate(bits)

    def mean_ap(queries, gallery, of_queries, of_gallery) -> float:
        scores = []
        for code, label in zip(queries, of_queries, strict=True):
            distance = (gallery != code).sum(axis=1)
            n = np.bincount(distance, minlength=17).tolist()
            r = np.bincount(distance[of_gallery == label], minlength=17).tolist()
            scores.append(expected_average_precision(n, r, len(gallery)))
        return float(sum(scores) / len(scores))

    def unpacked(name, stage) -> np.ndarray:
        packed = np.load(trial.session.store.read(trial.trial.stages[stage], name))
        return np.unpackbits(packed, axis=1, count=16) > 0

    config = told["int8"]
    kept = {
        "validation": (
            splits.validation_query,
            splits.validation_gallery,
            "validation_gallery.npy",
        ),
        "test": (splits.query, splits.gallery, "gallery_codes.npy"),
    }
    for name, (queries, gallery, file) in kept.items():
        codes_of_gallery = unpacked(file, "gallery")
        for when, session in zip(("before", "after"), sessions, strict=True):
            by_hand = mean_ap(
                codes(session, queries), codes_of_gallery, labels[queries], labels[gallery]
            )
            assert config["map"][name][when] == pytest.approx(by_hand, abs=1e-12), (name, when)
    manifest = trial.session.store.manifest(trial.id)
    assert config["map"]["test"]["before"] == pytest.approx(manifest.result["map"], abs=1e-12)

    sample = export_module.query_sample(trial.side("query"), 90)
    before, after = (codes(session, sample.rows) for session in sessions)
    assert (config["images"], config["bits"]) == (90, 1440)
    assert config["flipped"] == int((before != after).sum())
    assert config["images_differing"] == int((before != after).any(axis=1).sum())


def test_8_bit_weights_lie_in_the_file_and_the_head_and_resize_stay_float(exported) -> None:
    folder, told = exported
    model = onnx.load(folder / "model.int8.onnx")
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    int8 = {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT8}
    made = {output: node for node in model.graph.node for output in node.output}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]

    def quantized(node) -> bool:
        source = made.get(node.input[1])
        return source is not None and source.op_type == "DequantizeLinear"

    assert {n.name.partition("/")[0] for n in layers if quantized(n)} == {"backbone"}
    convolutions = [n for n in layers if n.op_type == "Conv"]
    assert convolutions and all(quantized(n) for n in convolutions)
    per_channel = [made[n.input[1]] for n in convolutions]
    scales = {i.name: i for i in model.graph.initializer}
    for node in per_channel:
        weight, scale = scales[node.input[0]], scales[node.input[1]]
        assert node.input[0] in int8 and list(scale.dims) == [weight.dims[0]]
    assert told["bytes"]["model.int8.onnx"] < told["bytes"]["model.onnx"] / 2


def test_calibration_sees_training_images_alone(trial, quickly, monkeypatch, tmp_path) -> None:
    splits = trial.dataset.splits()
    rows = quantize.calibration_rows(splits.train, 0)
    assert len(rows) == 256 and len(set(rows.tolist())) == 256
    assert set(rows) <= set(splits.train)
    others = {*splits.query, *splits.validation_query}
    assert not set(rows) & others
    assert np.array_equal(rows, quantize.calibration_rows(splits.train, 0))
    assert not np.array_equal(rows, quantize.calibration_rows(splits.train, 1))
    assert len(quantize.calibration_rows(splits.train[:5], 0)) == 5

    def seen(source, target, images) -> None:
        stored = trial.dataset.images().array
        assert np.array_equal(images, stored[quantize.calibration_rows(splits.train, 0)])
        shutil.copyfile(source, target)

    monkeypatch.setattr(export_module, "quantize", seen)
    wanted = export_module.Wanted("onnx", int8=True, check=False)
    done = export_module.export(trial, wanted, tmp_path / "out", say=lambda line: None)
    assert done.int8 is None and "int8" in done.config


# ---- on its own ----------------------------------------------------------------------------

_ALONE = """
import runpy
import sys

class Blocked:
    names = ()

    def find_spec(self, name, *_):
        if name.partition(".")[0] in self.names:
            raise ImportError(name)

blocked = Blocked()
sys.meta_path.insert(0, blocked)
for folder, blocked.names in JOBS:
    sys.path[0] = folder
    sys.modules.pop("network", None)
    runpy.run_path(folder + "/encode.py", run_name="__main__")
"""

_OURS = {"asymbench", "orchestrator", "retrieval", "methods", "search_spaces", "cluster"}


def encode_alone(jobs: list[tuple[Path, set[str]]], images: list[Path]) -> list[str]:
    """Run encode.py of exports, where some packages cannot be imported; return all lines.

    One process does it, since importing torch takes longer than anything else.
    """
    given = [(str(folder), sorted(_OURS | needless)) for folder, needless in jobs]
    command = [sys.executable, "-c", f"JOBS = {given!r}\n{_ALONE}", *map(str, images)]
    cwd = jobs[0][0]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Photographs of all shapes: large, long, grey, and one that a camera was turned for."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    images = {
        "large.png": Image.fromarray(rng.integers(0, 256, (120, 90, 3), dtype=np.uint8)),
        "long.png": Image.fromarray(rng.integers(0, 256, (3, 130, 3), dtype=np.uint8)),
        "grey.png": Image.fromarray(rng.integers(0, 256, (40, 41), dtype=np.uint8)),
        "small.png": Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)),
        "turned.jpg": Image.fromarray(rng.integers(0, 256, (24, 60, 3), dtype=np.uint8)),
    }
    for name, image in images.items():
        options = {}
        if name == "turned.jpg":
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = 6
        image.save(folder / name, **options)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    "forms",
    [
        {
            ("onnx", "pixels"): {"torch", "timm", "onnx"},
            ("onnx", "tensor"): {"torch", "timm", "onnx"},
        },
        {("torchscript", "pixels"): {"timm", "onnx"}, ("safetensors", "tensor"): set()},
    ],
    ids=["by onnxruntime", "by torch"],
)
def test_files_are_encoded_without_us_to_the_codes_that_we_give(
    exported, trial, pictures, tmp_path, forms, monkeypatch
) -> None:
    monkeypatch.setattr(export_module, "latency", _briefly)
    jobs = []
    for (form, kind), needless in forms.items():
        folder = exported[0] if (form, kind) == ("onnx", "pixels") else tmp_path / form
        if folder != exported[0]:
            wanted = export_module.Wanted(form, input=kind, count=20)
            done = export_module.export(trial, wanted, folder, say=lambda line: None)
            assert done.parity.equal and done.parity.images == 20
            assert (done.speed is None) == (form == "safetensors")
        jobs.append((folder, needless))
    lines = encode_alone(jobs, pictures)
    decoded = [decode_bytes(path.read_bytes(), path.name) for path in pictures]
    h = trial.side("query").embed(decoded)
    assert np.abs(h).min() > 1e-5
    codes = [np.packbits(row >= 0).tobytes().hex() for row in h]
    assert lines == 2 * [f"{code}  {path}" for code, path in zip(codes, pictures, strict=True)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_images_of_any_mode_are_read_as_by_us_or_refused(tmp_path, mode) -> None:
    read_image = runpy.run_path(str(export_module._ASSETS / "encode.py"))["read_image"]
    pixels = np.random.default_rng(4).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    path = tmp_path / "photo.tiff"
    Image.fromarray(pixels).convert("L" if mode[0] in "IF" else "RGB").convert(mode).save(path)
    if mode[0] in "IF":
        with pytest.raises(ValueError, match="8 bits are needed"):
            read_image(path, 8)
        with pytest.raises(DatasetError, match="8 bits are needed"):
            decode_bytes(path.read_bytes(), "photo")
        return
    ours = square(decode_bytes(path.read_bytes(), "photo"), 8)
    assert np.array_equal(read_image(path, 8), ours)


@pytest.mark.parametrize("form", ["onnx", "torchscript", "safetensors"])
def test_the_lines_of_the_readme_encode(exported, trial, tmp_path, monkeypatch, form) -> None:
    folder, _ = exported
    if form != "onnx":
        folder = tmp_path / "out"
        kind = "tensor" if form == "safetensors" else "pixels"
        wanted = export_module.Wanted(form, input=kind, check=False)
        export_module.export(trial, wanted, folder, say=lambda line: None)
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(code.splitlines()) <= 20
    pixels = np.random.default_rng(2).integers(0, 256, (21, 21, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    pixels = np.asarray(Image.open(tmp_path / "photo.jpg"))
    views = Views(pixels[None], 32, Augmentation(), seed=0).eval(np.arange(1))
    for name in ("model.onnx", "model.pt", "model.safetensors"):
        if (folder / name).exists():
            shutil.copy(folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"images": views.numpy()} if form == "safetensors" else {}
    exec(code, names)
    with torch.inference_mode():
        wanted_h = trial.side("query").network(views).numpy()
    assert np.allclose(np.asarray(names["h"]), wanted_h, rtol=1e-4, atol=1e-6)


def test_the_gallery_network_and_a_joint_trial_are_exported_too(session, tmp_path) -> None:
    for method in ("csch", "daph"):
        trial = open_trial(session, method)
        wanted = export_module.Wanted("safetensors", side="gallery", input="tensor", count=30)
        folder = tmp_path / method
        done = export_module.export(trial, wanted, folder, say=lambda line: None)
        assert done.parity.equal
        assert done.config["backbone"]["name"] == "test_resnet.r160_in1k"
        weights = trial.side("gallery").weights.read_bytes()
        assert (folder / "model.safetensors").read_bytes() == weights


# ---- what it finds out ---------------------------------------------------------------------


def damaged(data: bytes, how: str) -> bytes:
    """Return an ONNX file with one thing wrong in it."""
    model = onnx.load_from_string(data)
    weights = {initial.name: initial for initial in model.graph.initializer}

    def change(name: str, how) -> None:
        values = how(onnx.numpy_helper.to_array(weights[name]).copy())
        weights[name].CopyFrom(onnx.numpy_helper.from_array(values, name))

    if how == "weights of one bit":
        gemm = next(n for n in model.graph.node if n.name.startswith("head/Gemm"))
        row = np.arange(16).reshape(-1, 1) == 3
        change(gemm.input[1], lambda w: np.where(row, -w, w).astype(w.dtype))
    elif how == "order of bits":
        change(next(n for n in weights if n.endswith("units")), lambda units: units[::-1].copy())
    else:
        mean = next(n for n in weights if n.endswith("mean"))
        change(mean, lambda values: np.zeros_like(values))
    return model.SerializeToString()


@pytest.mark.parametrize("how", ["weights of one bit", "order of bits", "no normalisation"])
def test_a_broken_graph_is_found_out_and_removed(
    asymbench, monkeypatch, tmp_path, exported, how, in_home
) -> None:
    wrong = damaged((exported[0] / "model.onnx").read_bytes(), how)
    monkeypatch.setattr(export_onnx, "write_onnx", lambda _, path, __: path.write_bytes(wrong))
    target = tmp_path / "phone"
    told = asymbench("export", "served:csch", "--count", "40", "-o", str(target), "--json")
    assert told.code == 1
    assert "does not give the same codes, and was removed" in told.err
    assert list(tmp_path.iterdir()) == []
    answer = json.loads(told.out)
    assert answer["folder"] is None and answer["check"]["equal"] is False
    # Whoever asks for no check gets what there is, and is told so.
    told = asymbench("export", "served:csch", "--no-check", "-o", str(target))
    assert told.code == 0 and "check    not done" in told.out
    assert (target / "model.onnx").read_bytes() == wrong
    assert "## Checked" not in (target / "README.md").read_text()


def _briefly(encode) -> Timing:
    return measure(encode, warmup=1, repeats=3)


@pytest.fixture
def quickly(monkeypatch, exported) -> None:
    """Have the graph written as it was before, and few runs timed: both take seconds."""
    monkeypatch.setattr(export_module, "latency", _briefly)
    data = (exported[0] / "model.onnx").read_bytes()
    monkeypatch.setattr(export_onnx, "write_onnx", lambda _, path, __: path.write_bytes(data))


def test_rounding_may_change_signs_within_the_tolerance_only(
    asymbench, monkeypatch, tmp_path, exported, in_home, trial
) -> None:
    """The bias of one bit is moved so far that the output nearest to zero changes its sign."""
    model = onnx.load(exported[0] / "model.onnx")
    gemm = next(n for n in model.graph.node if n.name.startswith("head/Gemm"))
    bias = next(i for i in model.graph.initializer if i.name == gemm.input[2])
    h = h_by_hand(trial, "query", trial.rows("query"))
    place = np.unravel_index(np.abs(h).argmin(), h.shape)
    moved = onnx.numpy_helper.to_array(bias).copy()
    moved[place[1]] -= 1.05 * h[place]
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
    data = model.SerializeToString()
    monkeypatch.setattr(export_onnx, "write_onnx", lambda _, path, __: path.write_bytes(data))
    nearest = abs(float(h[place]))
    command = ["export", "served:csch", "-o", str(tmp_path / "out"), "--json", "--tolerance"]
    refused = asymbench(*command, f"{nearest * 0.9:.3g}")
    assert refused.code == 1
    check = json.loads(refused.out)["check"]
    assert (check["differing"], check["mismatches"]) == (1, 1)
    assert check["flipped_up_to"] == pytest.approx(nearest, rel=1e-4)
    assert "--tolerance" in refused.err
    allowed = asymbench(*command, f"{nearest * 1.1:.3g}")
    assert allowed.code == 0, allowed.err
    check = json.loads(allowed.out)["check"]
    assert (check["differing"], check["near_zero"], check["equal"]) == (1, 1, True)


def test_images_of_ones_own_are_compared_instead(
    asymbench, quickly, tmp_path, pictures, in_home
) -> None:
    folder = pictures[0].parent
    command = ["export", "served:csch", "--json", "--images", str(folder)]
    told = asymbench(*command, "-o", str(tmp_path / "all"))
    assert told.code == 0, told.err
    answer = json.loads(told.out)
    assert answer["check"]["images"] == len(pictures) == 5
    assert answer["config"]["check"]["on"] == f"images of {folder}"
    told = asymbench(*command, "--count", "2", "--threads", "2", "-o", str(tmp_path / "two"))
    answer = json.loads(told.out)
    assert (answer["check"]["images"], answer["latency"]["threads"]) == (2, 2)


def test_an_image_that_cannot_be_read_is_named(asymbench, quickly, tmp_path, in_home) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    told = asymbench("export", "served:csch", "--images", str(tmp_path), "-o", str(tmp_path / "o"))
    assert told.code == 2 and "--images" in told.err and "torn.png" in told.err
    assert "writing" not in told.err  # seconds before it
    assert not (tmp_path / "o").exists()


def test_what_people_are_told(asymbench, quickly, tmp_path, in_home) -> None:
    target = tmp_path / "phone"
    told = asymbench("export", "served:csch", "-o", str(target))
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    size = (target / "model.onnx").stat().st_size / 1e6
    assert lines[:2] == [f"exported {target}", f"files    model.onnx {size:.2f} MB"]
    start = "check    test queries of digits: 300 images, 4,800 bits: 0 differ; largest difference"
    assert lines[2].startswith(start)
    assert re.fullmatch(r"         torch \d+\.\d\d ms \(\d+\.\d\d-\d+\.\d\d\)", lines[4])
    assert re.fullmatch(r"         onnx \d+\.\d\d ms \(.*\), \d+\.\d times as fast", lines[5])


# ---- what it refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing:csch"], "nothing"),
        (["served:cshc"], "is no id"),
        (["served:csch", "--format", "onyx"], "did you mean 'onnx'"),
        (["served:csch", "--side", "qwery"], "did you mean 'query'"),
        (["served:csch", "--input", "pixel"], "did you mean 'pixels'"),
        (["served:csch", "--format", "safetensors", "--input", "pixels"], "hold no resize"),
        (["served:csch", "--format", "torchscript", "--int8"], "for --format onnx only"),
        (["served:csch", "--format", "safetensors", "--int8"], "for --format onnx only"),
        (["served:csch", "--side", "gallery", "--int8"], "query network alone is quantized"),
        (["served:csch", "--images", "/no/such/folder"], "--images: no such file or folder"),
        (["served:csch", "-o", "/no/such/place/x"], "--output: there is no such folder"),
        (["served:csch", "--count", "0"], "--count"),
        (["served:csch", "--tolerance", "-1"], "--tolerance"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    asymbench, quickly, in_home, tmp_path, monkeypatch, arguments, says
) -> None:
    monkeypatch.chdir(tmp_path)
    told = asymbench("export", *arguments)
    assert told.code == 2 and says in told.err and not told.out
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_are_named(asymbench, in_home, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    told = asymbench("export", "served:csch")
    assert told.code == 2
    assert "needs onnxscript, not installed here" in told.err
    assert "pip install 'asymbench[export]'" in told.err


def test_a_place_is_taken_from_nobody(
    asymbench, quickly, in_home, tmp_path, monkeypatch, trial
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", "served:csch", "--no-check"]
    assert asymbench(*command).code == 0
    default = tmp_path / f"export-{trial.id[:12]}-query-onnx"
    first = {path.name: path.read_bytes() for path in default.iterdir()}
    # Again: the same bytes in the same place, nothing beside it.
    assert asymbench(*command).code == 0
    assert {path.name: path.read_bytes() for path in default.iterdir()} == first
    assert list(tmp_path.iterdir()) == [default]
    # An export of another network, and anybody's files, are not replaced.
    other = asymbench(*command, "--format", "safetensors", "-o", str(default))
    assert other.code == 2 and "--force" in other.err
    (default / "notes.txt").write_text("mine")
    again = asymbench(*command)
    assert again.code == 2 and "holds other things" in again.err
    (default / "model.onnx").write_bytes(b"old")
    assert asymbench(*command, "--force").code == 0
    assert (default / "notes.txt").read_text() == "mine"
    assert (default / "model.onnx").read_bytes() == first["model.onnx"]
    # An empty folder is anybody's; a file is no folder.
    (tmp_path / "empty").mkdir()
    assert asymbench(*command, "-o", "empty").code == 0
    (tmp_path / "file").write_text("")
    told = asymbench(*command, "-o", "file")
    assert told.code == 2 and "must name a folder, this is a file" in told.err


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path) -> None:
    config = {"made_by": "asymbench export", "trial": "t", "side": "query", "format": "onnx"}
    folder = tmp_path / "out"
    with placed(folder, config) as made:
        (made / "config.json").write_text(json.dumps({**config, "files": {"model.onnx": ""}}))
        (made / "model.onnx").write_text("first")
    with pytest.raises(RuntimeError), placed(folder, config) as made:
        (made / "model.onnx").write_text("second")
        raise RuntimeError
    assert (folder / "model.onnx").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]
    check_folder(folder, config, force=False)
    with pytest.raises(InputError):
        check_folder(folder, {**config, "trial": "u"}, force=False)
    check_folder(folder, {**config, "trial": "u"}, force=True)


def test_names_of_a_study_cannot_break_the_readme(exported) -> None:
    config = json.loads((exported[0] / "config.json").read_text())
    config["label"] = config["dataset"] = "<b>|`x`|\n# head"
    text = readme(config, ["model.onnx"], None)
    assert "<b>" not in text.replace("\\<b\\>", "") and "\n# head" not in text
    assert "| dataset | \\<b\\>\\|\\`x\\`\\| \\# head |" in text
