"""The network, by torch alone. A TorchScript file holds code: load what you trust."""

import warnings
from pathlib import Path

import torch


def load(folder, model="model.pt"):
    """Return a function from images to packed codes (N, bytes) uint8 and h (N, bits) float32.

    Images are what config.json says under "input": "pixels" are uint8 (N, height, width, 3) of
    any size, "tensor" is float32 (N, 3, size, size) in [0, 1].
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        network = torch.jit.load(str(Path(folder) / model), map_location="cpu")

    def encode(images):
        with torch.inference_mode():
            return tuple(out.numpy() for out in network(torch.tensor(images)))

    return encode
