"""From image files to codes: python encode.py IMAGE...; prints each file's code as hex digits.

Needs numpy, Pillow, and what network.py beside it needs.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def read_image(path, side):
    """Return an image file as (side, side, 3) uint8, as the images of the training were stored."""
    image = Image.open(path)
    if image.mode[0] in "IF":  # made RGB, these would be cut off at 255
        raise ValueError(f"{path}: pixels of mode {image.mode}, 8 bits are needed")
    image = ImageOps.exif_transpose(image).convert("RGB")
    keep = 16 * min(image.size)  # of a very long image the ends are cut off first
    left, top = (max(0, n - keep) // 2 for n in image.size)
    image = image.crop((left, top, image.width - left, image.height - top))
    if image.size != (side, side):
        scale = side / min(image.size)
        image = image.resize([max(side, round(n * scale)) for n in image.size], Image.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def to_tensor(images, size):
    """Return squares (N, side, side, 3) uint8 as (N, 3, size, size) float32 in [0, 1]."""
    channels = images.transpose(0, 3, 1, 2).astype(np.float32).reshape(-1, *images.shape[1:3])
    resized = [Image.fromarray(c).resize((size, size), Image.BILINEAR) for c in channels]
    stacked = np.stack([np.asarray(c) for c in resized]) / np.float32(255)
    return stacked.clip(0, 1).reshape(-1, 3, size, size)


def prepare(squares, config):
    """Return squares (N, side, side, 3) uint8 as the network takes them."""
    return to_tensor(squares, config["size"]) if config["input"] == "tensor" else squares


if __name__ == "__main__":
    from network import load

    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    network = load(HERE)
    for name in sys.argv[1:]:
        squares = read_image(name, config["stored_size"])[None]
        codes, h = network(prepare(squares, config))
        sys.stdout.write(f"{codes[0].tobytes().hex()}  {name}\n")
