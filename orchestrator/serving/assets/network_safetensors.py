"""The network, built by timm from config.json, with the weights of model.safetensors."""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file


def layer(given):
    """Return a layer of the hash head."""
    if given["layer"] == "linear":
        return torch.nn.Linear(given["inputs"], given["outputs"], bias=given["bias"])
    if given["layer"] == "batch_norm":
        return torch.nn.BatchNorm1d(given["features"], eps=given["eps"])
    return {"relu": torch.nn.ReLU, "dropout": torch.nn.Dropout}[given["layer"]]()


def load(folder, model="model.safetensors"):
    """Return a function from images to packed codes (N, bytes) uint8 and h (N, bits) float32.

    Images are float32 (N, 3, size, size) in [0, 1].
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    network = torch.nn.Module()
    network.backbone = timm.create_model(
        config["backbone"]["name"], pretrained=False, **config["backbone"]["arguments"]
    )
    network.head = torch.nn.Sequential(*map(layer, config["head"]))
    network.load_state_dict(load_file(Path(folder) / model))
    network.eval()
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    def encode(images):
        with torch.inference_mode():
            h = network.head(network.backbone((torch.tensor(images) - mean) / std)).numpy()
        return np.packbits(h >= 0, axis=1), h

    return encode
