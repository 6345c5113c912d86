"""The graph that is exported: pixels in, packed code and continuous code out.

What a phone would have to do around the network is part of the graph, since it is where ports go
wrong: the resize, the normalisation and the packing of bits.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from methods.networks import HashNetwork

InputKind: TypeAlias = Literal["pixels", "tensor"]
"""What the graph takes: "pixels" is uint8 (N, H, W, 3) of any size, "tensor" is float32
(N, 3, S, S) in [0, 1], resized by whoever calls it."""


class Resize(nn.Module):
    """Images (N, H, W, 3) uint8 to (N, 3, S, S) in [0, 1], as `retrieval.augmentation.Views.eval`.

    The centre square, by PIL's antialiased triangle filter. The filter is a matrix for each side,
    made of elementary operations, so that H and W may change from call to call.

    Args:
        size: S.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        places = torch.arange(size, dtype=torch.float64) + 0.5
        self.register_buffer("places", places.view(-1, 1), persistent=False)
        self.register_buffer("one", torch.ones((), dtype=torch.float64), persistent=False)

    places: Tensor
    one: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return the resized images."""
        rows = torch.arange(images.shape[1], dtype=torch.float64)
        columns = torch.arange(images.shape[2], dtype=torch.float64)
        height, width = rows[-1] + 1, columns[-1] + 1
        side = torch.minimum(height, width)
        down, across = self._filter(rows, height, side), self._filter(columns, width, side)
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return torch.matmul(torch.matmul(down, x), across.t()).clamp(0.0, 1.0)

    def _filter(self, pixels: Tensor, length: Tensor, side: Tensor) -> Tensor:
        """Return the weights (S, L) of pixels 0..L-1, zero outside of the centre's ``side``."""
        inside = pixels - torch.floor((length - side) / 2)
        scale = side / self.size
        distance = torch.abs(inside + 0.5 - self.places * scale) / torch.maximum(scale, self.one)
        weights = torch.clamp(1 - distance, min=0)
        weights = weights * ((inside >= 0) & (inside < side))
        return (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)


class Normalise(nn.Module):
    """Subtract the mean and divide by the deviation of the backbone's own preprocessing.

    Args:
        network: has both.
    """

    def __init__(self, network: HashNetwork) -> None:
        super().__init__()
        self.register_buffer("mean", network.mean.clone(), persistent=False)
        self.register_buffer("std", network.std.clone(), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, views: Tensor) -> Tensor:
        """Return (N, 3, S, S), laid out as the network had it in training."""
        normalised = (views - self.mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)


class Pack(nn.Module):
    """Continuous codes (N, B) to bytes (N, ceil(B / 8)), as `retrieval.codes.pack`.

    Args:
        bits: B.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.padding = -bits % 8
        units = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32)
        self.register_buffer("units", units, persistent=False)

    units: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """Return the bytes: bit 1 where h >= 0, most significant bit first."""
        bits = (h >= 0).to(torch.int32)
        if self.padding:
            bits = nn.functional.pad(bits, (0, self.padding))
        octets = bits.reshape(bits.shape[0], -1, 8)
        return (octets * self.units).sum(dim=2, dtype=torch.int32).to(torch.uint8)


class Encoder(nn.Module):
    """The whole way from an image to its code; the layers are those of the trained network.

    Args:
        network: trained; is used, not copied.
        bits: B.
        kind: what the graph takes.
    """

    def __init__(self, network: HashNetwork, bits: int, kind: InputKind) -> None:
        super().__init__()
        assert network.size is not None
        self.kind = kind
        self.size = network.size
        self.resize = Resize(network.size) if kind == "pixels" else nn.Identity()
        self.normalise = Normalise(network)
        self.backbone, self.head = network.backbone, network.head
        self.pack = Pack(bits)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: uint8 (N, H, W, 3), or float32 (N, 3, S, S) in [0, 1]; see `InputKind`.

        Returns:
            The packed codes (N, ceil(B / 8)) uint8, and h (N, B) float32.
        """
        h = self.head(self.backbone(self.normalise(self.resize(images))))
        return self.pack(h), h

    def example(self) -> Tensor:
        """Return an input of two images to trace the graph with; H, W and S are all different."""
        if self.kind == "pixels":
            pixels = torch.arange(2 * 48 * 40 * 3) % 251
            return pixels.to(torch.uint8).view(2, 48, 40, 3)
        return torch.linspace(0, 1, 2 * 3 * self.size**2).view(2, 3, self.size, self.size)
