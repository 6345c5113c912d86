"""Augmented views: each a function of (seed, epoch, image) alone, made batch by batch.

Crop, resize and flip are one separable resampling: two small matrices an image, applied as batched
products. The same image gives the same bits alone and in any batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval import streams

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(BaseModel):
    """How training images are varied.

    Attributes:
        crop: "none" takes the whole image; "random_resized" a box of random area and shape, as in
            Inception training; "random" a box of the image's own size out of the padded image.
        scale: least and greatest area of a "random_resized" box, as a fraction of the image.
        ratio: least and greatest width / height of such a box.
        padding: for "random", on each side, as a fraction of the image's side; edges are repeated.
        flip: mirror left and right with probability 1/2.
        brightness, contrast, saturation: a factor drawn from [1 - x, 1 + x].
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    crop: Literal["none", "random_resized", "random"] = "none"
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: float = Field(0.125, ge=0, le=1)
    flip: bool = True
    brightness: float = Field(0.05, ge=0, le=1)
    contrast: float = Field(0.05, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _pairs(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    @model_validator(mode="after")
    def _ranges(self) -> Augmentation:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale must be two numbers with 0 < low <= high <= 1, got {self.scale}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two numbers with 0 < low <= high, got {self.ratio}")
        return self


_DRAWS = 8
"""Random numbers an image: area, shape, top, left, flip, brightness, contrast, saturation."""

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma (ITU-R BT.601)."""


class Views:
    """Training and evaluation views of stored images.

    Args:
        array: (N, H, W, 3) uint8, the image store.
        size: side of a view, in pixels.
        augmentation: how training views vary.
        seed: the trial's seed.
        device: where views are made.
    """

    def __init__(
        self,
        array: NDArray[np.uint8],
        size: int,
        augmentation: Augmentation,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.array = array
        self.size = size
        self.augmentation = augmentation
        self.seed = seed
        self.device = device
        self._whole: tuple[Tensor, Tensor] | None = None

    def train(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Return augmented views (n, 3, size, size) of these rows in this epoch, in [0, 1]."""
        import torch

        options = self.augmentation
        draws = streams.uniform(self.seed, "augmentation", rows, _DRAWS, epoch=epoch)
        top, left, height, width = self._boxes(draws)
        flip = (draws[:, 4] < 0.5) if options.flip else np.zeros(len(rows), dtype=bool)
        h, w = self.array.shape[1:3]
        down = self._weights(top, height, h, np.zeros(len(rows), dtype=bool))
        across = self._weights(left, width, w, flip)
        views = self._resample(self._load(rows), down, across)
        factors = [
            torch.from_numpy((1 + strength * (2 * draws[:, column] - 1)).astype(np.float32))
            .to(self.device)
            .view(-1, 1, 1, 1)
            if strength
            else None
            for column, strength in (
                (5, options.brightness),
                (6, options.contrast),
                (7, options.saturation),
            )
        ]
        return _jitter(views, *factors)

    def eval(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the whole images (n, 3, size, size), resized with antialiasing, in [0, 1]."""
        if self._whole is None:
            h, w = self.array.shape[1:3]
            side = float(min(h, w))
            one, no = np.ones(1), np.zeros(1, dtype=bool)
            down = self._weights((h - side) / 2 * one, side * one, h, no)
            across = self._weights((w - side) / 2 * one, side * one, w, no)
            self._whole = (down, across)
        down, across = self._whole
        n = len(rows)
        return self._resample(self._load(rows), down.expand(n, -1, -1), across.expand(n, -1, -1))

    def _load(self, rows: NDArray[np.int64]) -> Tensor:
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(self.array[np.asarray(rows)]))
        return pixels.to(self.device).permute(0, 3, 1, 2).float() / 255.0

    def _boxes(
        self, draws: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return top, left, height and width of each image's box, in pixels of the store."""
        options, n = self.augmentation, len(draws)
        h, w = (float(side) for side in self.array.shape[1:3])
        if options.crop == "random_resized":
            low, high = options.scale
            area = (low + (high - low) * draws[:, 0]) * h * w
            shapes = np.log(options.ratio[0]), np.log(options.ratio[1])
            shape = np.exp(shapes[0] + (shapes[1] - shapes[0]) * draws[:, 1])
            width = np.minimum(np.sqrt(area * shape), w)
            height = np.minimum(np.sqrt(area / shape), h)
            return draws[:, 2] * (h - height), draws[:, 3] * (w - width), height, width
        if options.crop == "random":
            top = (2 * draws[:, 2] - 1) * options.padding * h
            left = (2 * draws[:, 3] - 1) * options.padding * w
            return top, left, np.full(n, h), np.full(n, w)
        return np.zeros(n), np.zeros(n), np.full(n, h), np.full(n, w)

    def _weights(
        self,
        start: NDArray[np.float64],
        length: NDArray[np.float64],
        side: int,
        flip: NDArray[np.bool_],
    ) -> Tensor:
        """Return resampling weights (n, size, side): a triangle filter, antialiased.

        Row i of an image's matrix are the weights of the stored pixels in output pixel i. The
        filter is as wide as an output pixel covers stored pixels, at least one (PIL's bilinear).
        """
        import torch

        scale = length / self.size
        support = np.maximum(scale, 1.0)
        center = start[:, None] + (np.arange(self.size) + 0.5) * scale[:, None]
        pixels = np.arange(side) + 0.5
        # Positions outside the image count for its edge, so that padding repeats it.
        distance = np.abs(pixels[None, None, :] - np.clip(center, 0.5, side - 0.5)[:, :, None])
        weights = np.maximum(0.0, 1.0 - distance / support[:, None, None])
        weights /= weights.sum(axis=2, keepdims=True)
        weights[flip] = weights[flip, ::-1]
        return torch.from_numpy(weights.astype(np.float32)).to(self.device)

    def _resample(self, pixels: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """Apply down (n, S, H) and across (n, S, W) to pixels (n, 3, H, W)."""
        import torch

        n, channels, h, w = pixels.shape
        size = self.size
        wide = torch.bmm(pixels.reshape(n, channels * h, w), across.transpose(1, 2))
        wide = wide.view(n, channels, h, size).permute(0, 2, 1, 3).reshape(n, h, channels * size)
        tall = torch.bmm(down, wide)
        return tall.view(n, size, channels, size).permute(0, 2, 1, 3).clamp(0.0, 1.0).contiguous()


def _jitter(
    views: Tensor, brightness: Tensor | None, contrast: Tensor | None, saturation: Tensor | None
) -> Tensor:
    """Scale brightness, then blend with the mean grey, then with the grey image."""
    if brightness is not None:
        views = (views * brightness).clamp(0.0, 1.0)
    if contrast is not None:
        mean = _grey(views).mean(dim=(2, 3), keepdim=True)
        views = (mean + contrast * (views - mean)).clamp(0.0, 1.0)
    if saturation is not None:
        grey = _grey(views)
        views = (grey + saturation * (views - grey)).clamp(0.0, 1.0)
    return views


def _grey(views: Tensor) -> Tensor:
    r, g, b = _GREY
    return r * views[:, :1] + g * views[:, 1:2] + b * views[:, 2:]
