"""What is written is the network: compared with numpy and PIL, layer by layer and as a whole."""

import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from methods.networks import HashNetwork, build_network
from methods.pairs import SideSpec
from orchestrator.serving import export_onnx
from orchestrator.serving.export_graph import Encoder, Pack, Resize
from orchestrator.serving.export_onnx import write_onnx
from orchestrator.serving.export_torchscript import write_torchscript
from orchestrator.serving.parity import compare
from retrieval.augmentation import Augmentation, Views
from retrieval.errors import InputError

ASSETS = Path(export_onnx.__file__).parent / "assets"


def network(
    backbone: str = "test_efficientnet", head: str = "fc_bn", bits: int = 20, size: int = 32
) -> HashNetwork:
    """Return a network of which every output depends on the image."""
    made = build_network(SideSpec(backbone=backbone, size=size), head, bits, 0, "query").eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in made.head:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(50)
            if isinstance(layer, torch.nn.BatchNorm1d):
                layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
    return made


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)


# ---- the parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (32, 32), (33, 200), (300, 70), (31, 32)])
@pytest.mark.parametrize("size", [1, 32])
def test_images_are_resized_as_pil_resizes_their_centre(shape, size) -> None:
    images = pixels(2, *shape)
    made = Resize(size)(torch.from_numpy(images)).numpy()
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    for image, view in zip(images, made, strict=True):
        square = image[top : top + side, left : left + side].astype(np.float32)
        for channel in range(3):
            wanted = Image.fromarray(square[:, :, channel]).resize((size, size), Image.BILINEAR)
            assert np.allclose(view[channel], np.asarray(wanted) / 255, atol=2e-6)


def test_images_are_resized_as_in_training() -> None:
    images = pixels(3, 45, 60)
    views = Views(images, 32, Augmentation(), seed=0).eval(np.arange(3))
    assert torch.allclose(Resize(32)(torch.from_numpy(images)), views, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 7, 8, 20])
def test_bits_are_packed_most_significant_first_and_zero_counts_as_one(bits) -> None:
    h = torch.linspace(-1, 1, 3 * bits).view(3, bits).roll(1, dims=1)
    h[0, 0], h[1, 0] = 0.0, -0.0
    digits = ["".join("1" if value >= 0 else "0" for value in row) for row in h.tolist()]
    padded = [text.ljust(-(-bits // 8) * 8, "0") for text in digits]
    wanted = [[int(t[i : i + 8], 2) for i in range(0, len(t), 8)] for t in padded]
    assert Pack(bits)(h).tolist() == wanted
    assert Pack(bits)(h).dtype == torch.uint8


# ---- the files -------------------------------------------------------------------------------


def check(folder: Path, form: str, model: str, net: HashNetwork, images: np.ndarray) -> None:
    """Assert that a file gives the network's codes, by the code that is shipped with it."""
    load = runpy.run_path(str(ASSETS / f"network_{form}.py"))["load"]
    with torch.inference_mode():
        size = net.size
        views = torch.from_numpy(images)
        if images.dtype == np.uint8:
            views = Views(images, size, Augmentation(), seed=0).eval(np.arange(len(images)))
        wanted = net(views).numpy()
    codes, h = load(folder, model)(images)
    assert h.dtype == np.float32 and codes.dtype == np.uint8
    assert np.abs(h - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(wanted).min() > 1e-5, "the test's own images must not be near a sign's change"
    assert np.array_equal(codes, np.packbits(wanted >= 0, axis=1))


@pytest.fixture(scope="module")
def nets() -> dict[str, HashNetwork]:
    return {
        "pixels": network("test_efficientnet", "fc_bn"),
        "tensor": network("test_resnet", "mlp3_tanh", 16),
    }


@pytest.fixture(scope="module")
def written(nets, tmp_path_factory) -> Path:
    """Both inputs as ONNX, and as TorchScript."""
    folder = tmp_path_factory.mktemp("written")
    for kind, net in nets.items():
        encoder = Encoder(net, net.head[-1].weight.shape[0], kind)
        write_onnx(encoder, folder / f"{kind}.onnx", {"trial": "t", "bits": "20"})
        write_torchscript(encoder, folder / f"{kind}.pt")
    return folder


@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("torchscript", "pt")])
@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 40, 30), (3, 32, 32), (2, 33, 97)])
def test_a_file_takes_any_number_of_images_of_any_size(nets, written, form, ending, shape) -> None:
    check(written, form, f"pixels.{ending}", nets["pixels"], pixels(*shape))


@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("torchscript", "pt")])
@pytest.mark.parametrize("n", [1, 5])
def test_a_file_takes_tensors(nets, written, form, ending, n) -> None:
    views = (pixels(n, 32, 32).transpose(0, 3, 1, 2) / 255).astype(np.float32)
    check(written, form, f"tensor.{ending}", nets["tensor"], views)


def test_an_onnx_file_says_what_it_is_and_nothing_of_the_machine(written) -> None:
    data = (written / "pixels.onnx").read_bytes()
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert {p.key: p.value for p in model.metadata_props} == {"trial": "t", "bits": "20"}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    graph = model.graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["codes", "h"]
    dims = graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", "height", "width", 3]
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    parts = {"resize", "normalise", "backbone", "head", "pack", "encoder"}
    assert {name.partition("/")[0] for name in names} == parts
    here = str(Path(__file__).resolve().parents[3])
    for secret in (here, "site-packages", str(Path.home())):
        assert secret.encode() not in data
    assert not any(initial.external_data for initial in graph.initializer)


def test_a_torchscript_file_says_nothing_of_the_machine(written) -> None:
    with zipfile.ZipFile(written / "pixels.pt") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".debug_pkl")]
        everything = b"".join(archive.read(name) for name in archive.namelist())
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
        raw = (written / "pixels.pt").read_bytes()
        for info in tensors:
            local = int.from_bytes(
                raw[info.header_offset + 28 : info.header_offset + 30], "little"
            )
            start = info.header_offset + 30 + len(info.filename.encode()) + local
            assert start % 64 == 0
    assert tensors
    here = str(Path(__file__).resolve().parents[3])
    assert here.encode() not in everything and b"site-packages" not in everything


_AGAIN = """
import sys
from pathlib import Path
from tests.orchestrator.serving.test_export_graph import network
from orchestrator.serving.export_graph import Encoder
from orchestrator.serving.export_onnx import write_onnx
from orchestrator.serving.export_torchscript import write_torchscript
encoder = Encoder(network(), 20, "pixels")
write_torchscript(encoder, Path(sys.argv[1]))
for path in sys.argv[2:]:
    write_onnx(encoder, Path(path), {"trial": "t", "bits": "20"})
"""


def test_other_processes_write_the_same_bytes(written, tmp_path) -> None:
    files = ["first.pt", "other name.pt", "again.onnx"]
    first, second, onnx_file = (tmp_path / name for name in files)
    here = Path(__file__).resolve().parents[3]
    for seed, paths in (("12", [first]), ("13", [second, onnx_file])):
        subprocess.run(
            [sys.executable, "-c", _AGAIN, *map(str, paths)],
            check=True,
            cwd=here,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    assert first.read_bytes() == second.read_bytes()
    assert onnx_file.read_bytes() == (written / "pixels.onnx").read_bytes()


def test_a_network_that_onnx_cannot_hold_is_refused_before_it_is_traced(tmp_path) -> None:
    encoder = Encoder(network(), 20, "pixels")
    encoder.register_parameter(
        "huge", torch.nn.Parameter(torch.empty(1 << 29, device="meta"), requires_grad=False)
    )
    with pytest.raises(InputError, match="an ONNX file at most 2,147,483,648"):
        write_onnx(encoder, tmp_path / "model.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head"),
    [("mobilenetv3_small_050", "fc_tanh"), ("test_vit", "fc_bn_tanh")],
)
def test_other_backbones_and_heads_give_their_codes(tmp_path, backbone, head) -> None:
    net = network(backbone, head, 16, 64)
    write_onnx(Encoder(net, 16, "pixels"), tmp_path / "model.onnx", {})
    check(tmp_path, "onnx", "model.onnx", net, pixels(3, 50, 40))


def test_compare_counts_bits_as_a_loop_does() -> None:
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(40, 20)).astype(np.float32)
    reference[0, :4] = [5e-6, -5e-6, 2e-5, -2e-5]
    h = reference.copy()
    h[0, :4] *= -1  # two within the tolerance, two beyond it
    codes = np.packbits(h >= 0, axis=1)
    found = compare(codes, h, reference, tolerance=1e-5)
    flips = [
        (i, j) for i in range(40) for j in range(20) if (h[i, j] >= 0) != (reference[i, j] >= 0)
    ]
    assert flips == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert (found.differing, found.near_zero, found.mismatches) == (4, 2, 2)
    assert (found.images_differing, found.misplaced, found.equal) == (1, 0, False)
    assert found.flipped_up_to == np.float32(2e-5)
    assert found.largest_difference == pytest.approx(4e-5)
    assert compare(codes, h, reference, tolerance=3e-5).equal


@pytest.mark.parametrize("wrong", ["packing", "scale", "nan"])
def test_compare_refuses_wrong_outputs_though_no_sign_changed(wrong) -> None:
    reference = np.random.default_rng(3).normal(size=(40, 16)).astype(np.float32)
    h, codes = reference.copy(), np.packbits(reference >= 0, axis=1)
    if wrong == "packing":
        codes = codes[:, ::-1].copy()
    elif wrong == "scale":
        h *= 1.01
    else:
        h[3, 3] = np.nan
    found = compare(codes, h, reference)
    assert not found.equal and not found.rounding
    assert compare(np.packbits(reference >= 0, axis=1), reference, reference).equal
