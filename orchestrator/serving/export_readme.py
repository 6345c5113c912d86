"""What the folder of an export says of itself to whoever gets it."""

from __future__ import annotations

import re
from typing import Any

_INPUTS = {
    "pixels": (
        "`images`: uint8 (N, height, width, 3), red, green, blue, 0 to 255, of any size. Of one "
        "that is not square the centre is taken. Resizing and normalisation are part of the "
        "network."
    ),
    "tensor": (
        "`images`: float32 (N, 3, {size}, {size}), red, green, blue, in [0, 1]. Normalisation is "
        "part of the network, resizing is not: an antialiased triangle filter in floating point, "
        "as `to_tensor` in encode.py does it."
    ),
}

_RUNS = {
    "onnx": "pip install numpy Pillow onnxruntime",
    "torchscript": "pip install numpy Pillow torch",
    "safetensors": "pip install numpy Pillow timm safetensors",
}

_FORMATS = {
    "onnx": (
        "`model.onnx` is for onnxruntime, on phones too (onnxruntime-android, onnxruntime-c, "
        "onnxruntime-web); operator set 18. Accelerators that want fixed shapes get them from "
        "`python -m onnxruntime.tools.make_dynamic_shape_fixed`."
    ),
    "torchscript": (
        "`model.pt` is TorchScript, for programs that run it already; torch calls it deprecated. "
        "Such a file holds code: load it only where you trust whom you have it from."
    ),
    "safetensors": (
        "`model.safetensors` are the weights, `config.json` says what timm builds them into: "
        "backbone, hash head, normalisation. `network.py` is all of the code."
    ),
}


_WHAT = (
    "Images become codes of {bits} bits ({width} bytes); images that show the same have codes "
    "that differ in few bits. Queries are encoded by the query network, what is searched by the "
    "gallery network of the same trial."
)

_TENSOR = "# images: float32 (N, 3, {size}, {size}) in [0, 1], as prepare in encode.py makes them"

_OUTPUTS = """\
- `codes`: uint8 (N, {width}), the code: bit 1 where h >= 0, most significant bit first, the last
  byte padded with 0.
- `h`: float32 (N, {bits}), before the sign."""

_STORED = (
    "It was trained on images stored as squares of {stored} px: turned upright, resized with "
    "Pillow's bicubic filter to a shorter side of {stored} px, the centre cut out (`read_image` "
    "in encode.py). Images prepared so get the codes of the study; another way to decode or to "
    "shrink a photo gives nearly the same code, not always the same."
)


def readme(config: dict[str, Any], models: list[str], int8: dict[str, Any] | None) -> str:
    """Return the README of an export, in Markdown.

    Args:
        config: what ``config.json`` says.
        models: names of the files with weights.
        int8: what quantization came to, if it was measured.
    """
    side, bits, stored = config["side"], config["bits"], config["stored_size"]
    width = -(-bits // 8)
    blocks = [
        f"# {bits}-bit {side} network: {_escape(config['label'])}",
        _WHAT.format(bits=bits, width=width),
        f"    {_RUNS[config['format']]}\n    python encode.py photo.jpg",
        "## The network",
        _FORMATS[config["format"]],
        "- "
        + _INPUTS[config["input"]].format(size=config["size"])
        + "\n"
        + _OUTPUTS.format(bits=bits, width=width),
        f"```python\n{snippet(config)}```",
        _STORED.format(stored=stored),
    ]
    if "check" in config:
        blocks += ["## Checked", _checked(config["check"])]
    if len(models) > 1:
        blocks += ["## 8-bit integers", _int8(models[1], config, int8)]
    blocks += ["## Where it comes from", _origin(config)]
    return "\n\n".join(blocks) + "\n"


def snippet(config: dict[str, Any]) -> str:
    """Return a few lines of Python that encode what the graph takes, without asymbench.

    They read the model in the working directory, and the image ``photo.jpg`` or ``images``.
    """
    if config["format"] == "safetensors":
        return _rebuilding(config)
    imports, images = [], _TENSOR.format(size=config["size"])
    if config["input"] == "pixels":
        imports = ["import numpy as np", "from PIL import Image"]
        images = 'images = np.asarray(Image.open("photo.jpg").convert("RGB"))[None]'
    if config["format"] == "onnx":
        imports.insert(1, "import onnxruntime")
        session = 'session = onnxruntime.InferenceSession("model.onnx")'
        call = 'codes, h = session.run(["codes", "h"], {"images": images})'
    else:
        imports.insert(1, "import torch")
        session = 'network = torch.jit.load("model.pt")'
        call = "codes, h = network(torch.tensor(images))"
    return "\n".join([*imports, "", session, images, call]) + "\n"


def _rebuilding(config: dict[str, Any]) -> str:
    """Return how timm and torch build the network from its weights."""
    backbone = config["backbone"]
    arguments = "".join(f", {name}={value!r}" for name, value in backbone["arguments"].items())
    head = "".join(f"    torch.nn.{_layer(layer)},\n" for layer in config["head"])
    return f"""\
import timm
import torch
from safetensors.torch import load_file

network = torch.nn.Module()
network.backbone = timm.create_model({backbone["name"]!r}{arguments})
network.head = torch.nn.Sequential(
{head})
network.load_state_dict(load_file("model.safetensors"))
network.eval()
mean = torch.tensor({config["mean"]!r}).view(1, 3, 1, 1)
std = torch.tensor({config["std"]!r}).view(1, 3, 1, 1)
{_TENSOR.format(size=config["size"])}
with torch.inference_mode():
    h = network.head(network.backbone((torch.tensor(images) - mean) / std))
codes = h >= 0
"""


def _layer(layer: dict[str, Any]) -> str:
    """Return a layer of the hash head as torch.nn builds it."""
    return {
        "linear": "Linear({inputs}, {outputs}, bias={bias})",
        "batch_norm": "BatchNorm1d({features}, eps={eps!r})",
        "relu": "ReLU()",
        "dropout": "Dropout()",
    }[layer["layer"]].format(**layer)


def _checked(check: dict[str, Any]) -> str:
    """Return what the comparison with torch came to."""
    near = f", all of them where |h| <= {check['tolerance']:g}" if check["differing"] else ""
    return (
        f"Against torch, on {check['images']:,} {_escape(check['on'])}: "
        f"{check['differing']:,} of {check['images'] * check['bits']:,} bits differ{near}; "
        f"the largest difference of h is {check['largest_difference']:.2g}."
    )


def _int8(model: str, config: dict[str, Any], int8: dict[str, Any] | None) -> str:
    """Return what the quantized file is and costs."""
    text = (
        f"`{model}` takes and gives the same, with weights and activations of 8 bits (QDQ, one "
        "scale for each output channel; the head's last layer is float32). Ranges are those of "
        f"{config['int8']['calibration_images']} training images."
    )
    if int8 is None:
        return text
    scores, share = int8["map"], int8["flipped"] / int8["bits"]
    lines = [
        f"- {int8['flipped']:,} of {int8['bits']:,} bits flip ({share:.2%}).",
        f"- mAP of validation queries {_change(scores['validation'])}.",
    ]
    if scores["test"] is not None:
        lines.append(
            f"- mAP of test queries {_change(scores['test'])}; reported only, nothing was chosen "
            "by it."
        )
    return text + "\n\n" + "\n".join(lines)


def _change(score: dict[str, float]) -> str:
    return f"{score['before']:.4f} before, {score['after']:.4f} after"


def _origin(config: dict[str, Any]) -> str:
    rows = {
        "trial": config["trial"],
        "method": config["method"],
        "dataset": config["dataset"],
        "backbone": config["backbone"]["name"],
        "SHA-256 of the weights": config["weights_sha256"],
        "asymbench": config["versions"]["asymbench"],
        "torch": config["versions"]["torch"],
    }
    body = "\n".join(f"| {name} | {_escape(str(value))} |" for name, value in rows.items())
    return f"| | |\n| --- | --- |\n{body}"


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]()<>#|!])", r"\\\1", " ".join(text.split()))
