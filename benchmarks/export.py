"""What exporting costs and gives, by backbone: size, equality, and the time of one image.

Networks have random weights, with batch statistics from one pass, so that nothing is fetched;
images are noise at the networks' size. Equality and time do not need trained weights; what
quantization does to retrieval does: `asymbench export TRIAL --int8` says it of a trained network.

    python -m benchmarks.export [BACKBONE:SIZE:HEAD ...] [--bits 64] [--images 100] [--int8]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from methods.networks import HashNetwork, build_network
from methods.pairs import SideSpec
from orchestrator.serving.export_graph import Encoder
from orchestrator.serving.export_onnx import write_onnx
from orchestrator.serving.parity import compare, outputs
from orchestrator.serving.parity_speed import latency
from orchestrator.serving.quantize import quantize
from retrieval.augmentation import Augmentation, Views
from retrieval.streams import generator

NETWORKS = (
    "test_efficientnet:32:fc_bn",
    "test_resnet:32:mlp3_tanh",
    "mobilenetv3_small_100:64:fc_bn",
    "mobilenetv3_small_100:224:fc_bn",
    "mobilenetv3_large_100:224:fc_bn_tanh",
    "mobilevit_xs:256:fc_bn",
    "resnet18:64:fc_tanh",
    "resnet18:224:fc_bn",
)


def network(backbone: str, size: int, head: Any, bits: int) -> HashNetwork:
    """Return a network whose outputs have the spread of a trained one's, about 1."""
    made = build_network(SideSpec(backbone=backbone, size=size), head, bits, 0, "query")
    for layer in made.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0  # statistics of one batch instead of those it is built with
    with torch.no_grad():
        spread = made(torch.from_numpy(noise(32, size)).permute(0, 3, 1, 2) / 255).std()
        if not isinstance(made.head[-1], torch.nn.BatchNorm1d):
            made.head[-1].weight.div_(spread)
    return made.eval()


def noise(n: int, size: int) -> np.ndarray:
    """Return (n, size, size, 3) uint8: blocks of noise, on which filters of any size answer."""
    coarse = generator(0, "benchmark", "export").integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    places = np.arange(size) * 8 // size
    return np.ascontiguousarray(coarse[:, places][:, :, places])


def session(path: Path) -> Any:
    """Return a network of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(made.run(["codes", "h"], {"images": images}))


def measured(spec: str, bits: int, n: int, int8: bool, folder: Path) -> dict[str, Any]:
    """Export one network; return its row."""
    backbone, size, head = spec.split(":")
    net = network(backbone, int(size), head, bits)
    encoder = Encoder(net, bits, "pixels")
    path = folder / "model.onnx"
    began = time.perf_counter()
    write_onnx(encoder, path, {})
    seconds = time.perf_counter() - began
    images = noise(n, int(size))
    with torch.inference_mode():
        views = Views(images, int(size), Augmentation(), seed=0)
        h = [net(views.eval(np.arange(i, min(n, i + 16)))).numpy() for i in range(0, n, 16)]
        reference = np.concatenate(h)
        torch_time = latency(partial(encoder, torch.from_numpy(images[:1])))
    exported = session(path)
    parity = compare(*outputs(exported, n, lambda part: images[part]), reference)
    row = {
        "network": spec,
        "seconds": round(seconds, 1),
        "mb": round(path.stat().st_size / 1e6, 2),
        "bits": n * bits,
        "differing": parity.differing,
        "flipped_up_to": parity.flipped_up_to,
        "largest_difference": parity.largest_difference,
        "largest": parity.largest,
        "torch_ms": _milliseconds(torch_time),
        "onnx_ms": _milliseconds(latency(partial(exported, images[:1]))),
    }
    if int8:
        small = folder / "int8.onnx"
        quantize(path, small, images[:64])
        row["int8_mb"] = round(small.stat().st_size / 1e6, 2)
        row["int8_ms"] = _milliseconds(latency(partial(session(small), images[:1])))
    return row


def _milliseconds(timing: Any) -> list[float]:
    """Return the least and the median of the runs: the least is what other work cannot raise."""
    return [round(1e3 * timing.minimum, 3), round(1e3 * timing.median, 3)]


def main() -> None:
    """Print one line a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--int8", action="store_true", help="quantize too")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for spec in given.networks:
            rows.append(measured(spec, given.bits, given.images, given.int8, Path(folder)))
            if not given.json:
                print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
