"""Augmented views: each a function of (seed, epoch, image) alone, made batch by batch.

Crop, resize and flip are one separable resampling with PIL's antialiased triangle filter. It is
computed as a sum over filter taps of gathered rows times weights, with single additions and
multiplications only. Each is rounded as IEEE 754 says, whatever the batch, the number of threads
or the device, so that an image gives the same bits alone and in any batch. Batched matrix products
would be as fast and promise nothing of the kind. On a CPU `retrieval.resampling` does the same
sums in compiled code, with the same bits, once there is enough to do for loading it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

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
            Boxes have whole pixels of the stored image as corners.
        scale: least and greatest area of a "random_resized" box, as a fraction of the image.
        ratio: least and greatest width / height of such a box.
        padding: for "random", on each side, as a fraction of the image's side; edges are repeated.
        flip: mirror left and right with probability 1/2.
        brightness: x, for a factor drawn from [1 - x, 1 + x].
        contrast: x, for a factor of the distance to the image's mean grey, likewise.
        saturation: x, for a factor of the distance to the pixel's grey, likewise.
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
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two numbers with 0 < low <= high, got {self.ratio}")
        return self


_DRAWS = 6
"""Random numbers an image: flip, brightness, contrast, saturation, top, left."""

_ATTEMPTS = 10
"""Boxes drawn for a "random_resized" crop (an area and a shape each) until one fits."""

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma (ITU-R BT.601)."""

_AT_ONCE = 1 << 18
"""Numbers in an intermediate result on a CPU: what stays in its cache."""

_FIXED = 1 << 20
"""Units of grey in fixed point, of which sums are exact in any order."""


_WORTH_LOADING = 1 << 27
"""Numbers in views made by torch, some 900 images of 224 pixels, before numba is loaded."""

_TASK = 4
"""Images that a thread makes views of at a time."""

_SPARE = 2
"""Arrays of a size that are kept to be used again, and no more."""

Engine = Literal["auto", "numba", "torch"]


class PixelSource(Protocol):
    """Stored images that are read by rows, as `retrieval.images.ImageStore` is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""

    def read(
        self, rows: NDArray[np.integer], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return (n, H, W, 3) uint8: ``out`` if it is given, else an array of its own."""


@dataclass(frozen=True)
class _Array:
    """Images in an array, read like a store."""

    array: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(
        self, rows: NDArray[np.integer], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        if out is None:
            return np.ascontiguousarray(self.array[rows])
        for place, row in enumerate(rows):
            out[place] = self.array[row]
        return out


class _Buffers:
    """Memory that is used again: touching fresh pages would cost as much as making the views.

    An array that is lent comes back when nothing refers to it any more, be it through a tensor or
    a view of one.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}

    def lend(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """Return an array with anything in it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = bytearray(size)
        # Views of this array refer to it, since its memory belongs to no array.
        lent: NDArray[Any] = np.ndarray(shape, dtype, buffer=memory)
        weakref.finalize(lent, _take_back, free, memory).atexit = False
        return lent


def _take_back(free: list[bytearray], memory: bytearray) -> None:
    if len(free) < _SPARE:
        free.append(memory)


class Views:
    """Training and evaluation views of stored images.

    Only the rows of a batch are read: what is in memory does not grow with the store.

    Args:
        images: the image store, or an array (N, H, W, 3) uint8.
        size: side of a view, in pixels.
        augmentation: how training views vary.
        seed: the trial's seed.
        device: where views are made.
        engine: what makes them on a CPU: "torch"; "numba", which is faster; "auto" is torch for
            the first images and then numba where it can be imported. The bits are the same.

    Raises:
        ValueError: there is no such engine.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | PixelSource,
        size: int,
        augmentation: Augmentation,
        seed: int,
        device: str = "cpu",
        engine: Engine = "auto",
    ) -> None:
        if engine not in get_args(Engine):
            known = ", ".join(get_args(Engine))
            raise ValueError(f"engine must be one of {known}, got {engine!r}")
        self.images: PixelSource = _Array(images) if isinstance(images, np.ndarray) else images
        self.size = size
        self.augmentation = augmentation
        self.seed = seed
        self.device = device
        self.engine = engine
        self._made = 0
        self._buffers = _Buffers()
        self._filters: dict[int, _Filter] = {}

    def train(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Return augmented views of these rows in this epoch.

        Args:
            rows: (n,) rows of the store.
            epoch: 0-based.

        Returns:
            (n, 3, size, size) float32 in [0, 1] on the device.
        """
        options = self.augmentation
        wanted = _DRAWS + (2 * _ATTEMPTS if options.crop == "random_resized" else 0)
        draws = streams.uniform(self.seed, "augmentation", rows, wanted, epoch=epoch)
        flip = (draws[:, 0] < 0.5) & options.flip
        strengths = (options.brightness, options.contrast, options.saturation)
        factors = [
            (1 + strength * (2 * draws[:, column] - 1)).astype(np.float32) if strength else None
            for column, strength in enumerate(strengths, start=1)
        ]
        return self._make(rows, np.stack(self._boxes(draws), axis=1), flip, factors)

    def eval(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the whole images, resized with antialiasing.

        Args:
            rows: (n,) rows of the store.

        Returns:
            (n, 3, size, size) float32 in [0, 1] on the device; of an image that is not square the
            centre.
        """
        n = len(rows)
        h, w = self.images.shape[1:3]
        side = min(h, w)
        boxes = np.tile(np.array([(h - side) // 2, (w - side) // 2, side, side], np.int64), (n, 1))
        return self._make(rows, boxes, np.zeros(n, dtype=bool), [None, None, None])

    def _make(
        self,
        rows: NDArray[np.int64],
        boxes: NDArray[np.int64],
        flip: NDArray[np.bool_],
        factors: Sequence[NDArray[np.float32] | None],
    ) -> Tensor:
        import torch

        rows = np.asarray(rows)
        shape = (len(rows), 3, self.size, self.size)
        kernel = self._kernel()
        self._made += math.prod(shape)
        if kernel is None:
            views = torch.empty(shape, device=self.device)
            self._by_torch(rows, boxes, flip, factors, views)
            return views
        made = self._buffers.lend(shape, np.float32)
        self._by_numba(kernel, rows, boxes, flip, factors, made)
        return torch.from_numpy(made)

    def _kernel(self) -> Callable[..., None] | None:
        """Return the compiled kernel where it is to be used now."""
        if self.device != "cpu" or self.engine == "torch":
            return None
        if self.engine == "auto" and self._made < _WORTH_LOADING:
            return None
        try:
            from retrieval.resampling import make_views
        except ImportError:
            if self.engine == "numba":
                raise
            self.engine = "torch"
            return None
        kernel: Callable[..., None] = make_views
        return kernel

    def _by_torch(
        self,
        rows: NDArray[np.int64],
        boxes: NDArray[np.int64],
        flip: NDArray[np.bool_],
        factors: Sequence[NDArray[np.float32] | None],
        views: Tensor,
    ) -> None:
        import torch

        top, left, height, width = boxes.T
        h, w = self.images.shape[1:3]
        down = self._taps(top, height, h, np.zeros_like(flip))
        across = self._taps(left, width, w, flip)
        # The bits do not depend on how many images are worked on at once, only the speed does.
        largest = 3 * self.size * max(w, self.size)
        step = max(1, _AT_ONCE // largest) if views.device.type == "cpu" else max(1, len(rows))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            pixels = torch.from_numpy(self.images.read(rows[part]))
            made = _resample(pixels.to(self.device), down.of(part), across.of(part))
            scaled = [
                None if f is None else torch.from_numpy(f[part]).to(self.device).view(-1, 1, 1, 1)
                for f in factors
            ]
            views[part] = _jitter(made, *scaled)

    def _by_numba(
        self,
        kernel: Callable[..., None],
        rows: NDArray[np.int64],
        boxes: NDArray[np.int64],
        flip: NDArray[np.bool_],
        factors: Sequence[NDArray[np.float32] | None],
        views: NDArray[np.float32],
    ) -> None:
        """Make views a few images at a time, in as many threads as torch has."""
        import torch

        h, w = self.images.shape[1:3]
        down, across = self._filter(h), self._filter(w)
        given = np.array([f is not None for f in factors])
        none = np.zeros(len(rows), dtype=np.float32)
        scales = np.stack([none if f is None else f for f in factors], axis=1)

        def work(first: int) -> None:
            part = slice(first, first + _TASK)
            some = rows[part]
            pixels = self._buffers.lend((len(some), *self.images.shape[1:]), np.uint8)
            kernel(
                self.images.read(some, pixels),
                boxes[part],
                flip[part],
                down.first,
                down.scaled,
                across.first,
                across.weights,
                scales[part],
                given,
                views[part],
            )

        tasks = range(0, len(rows), _TASK)
        threads = min(torch.get_num_threads(), len(tasks))
        if threads <= 1:
            for first in tasks:
                work(first)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, tasks):
                pass

    def _boxes(self, draws: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """Return top, left, height and width of each image's box, in pixels of the store."""
        options, n = self.augmentation, len(draws)
        h, w = self.images.shape[1:3]
        if options.crop == "random_resized":
            height, width = self._shapes(draws[:, _DRAWS:])
            return [_below(draws[:, 4], h - height), _below(draws[:, 5], w - width), height, width]
        height, width = np.full(n, h), np.full(n, w)
        if options.crop == "random":
            pads = round(options.padding * h), round(options.padding * w)
            top, left = (_below(draws[:, 4 + i], 2 * pads[i]) - pads[i] for i in (0, 1))
            return [top, left, height, width]
        return [np.zeros(n, np.int64), np.zeros(n, np.int64), height, width]

    def _shapes(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return height and width of the first box that fits into the image, of several drawn.

        Where none fits it is the largest box of the nearest shape that is allowed.
        """
        options = self.augmentation
        h, w = self.images.shape[1:3]
        low, high = options.scale
        area = (low + (high - low) * draws[:, 0::2]) * h * w
        narrow, wide = np.log(options.ratio[0]), np.log(options.ratio[1])
        shape = np.exp(narrow + (wide - narrow) * draws[:, 1::2])
        widths = np.round(np.sqrt(area * shape)).astype(np.int64)
        heights = np.round(np.sqrt(area / shape)).astype(np.int64)
        fits = (widths >= 1) & (widths <= w) & (heights >= 1) & (heights <= h)
        first = np.argmax(fits, axis=1)[:, None]
        height = np.take_along_axis(heights, first, axis=1)[:, 0]
        width = np.take_along_axis(widths, first, axis=1)[:, 0]
        nearest = min(max(w / h, options.ratio[0]), options.ratio[1])
        fallback = (max(1, min(h, round(w / nearest))), max(1, min(w, round(h * nearest))))
        none = ~fits.any(axis=1)
        return np.where(none, fallback[0], height), np.where(none, fallback[1], width)

    def _filter(self, side: int) -> _Filter:
        if side not in self._filters:
            self._filters[side] = _Filter.of(side, self.size)
        return self._filters[side]

    def _taps(
        self,
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        side: int,
        flip: NDArray[np.bool_],
    ) -> _Taps:
        """Return which stored pixels make each output pixel along one side, and their weights."""
        table = self._filter(side)
        used = int(table.taps[length].max()) if len(length) else 1
        places = table.first[length][:, :, None] + np.arange(used)
        # Outside of the box the weight is zero; outside of the image its edge is repeated.
        places = np.clip(places + start[:, None, None], 0, side - 1)
        weights = table.weights[length][:, :, :used]
        places[flip], weights[flip] = places[flip, ::-1], weights[flip, ::-1]
        return _Taps(places, weights)


def _below(draw: NDArray[np.float64], bound: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return whole numbers in [0, bound], from draws in [0, 1)."""
    whole: NDArray[np.int64] = np.floor(draw * (np.asarray(bound) + 1)).astype(np.int64)
    return whole


@dataclass(frozen=True)
class _Filter:
    """Weights of an antialiased triangle filter, for each length L of a box up to a side.

    The filter is as wide as an output pixel covers box pixels, at least one, and ends with the box
    (PIL's bilinear; torchvision's with antialias=True).

    Attributes:
        first: (side + 1, size) first pixel of the box that output pixel i reads.
        weights: (side + 1, size, T) float32, zero from the box's last pixel on.
        scaled: the same for stored pixels, which are in units of 1 / 255.
        taps: (side + 1,) number of weights in use.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.float32]
    scaled: NDArray[np.float32]
    taps: NDArray[np.int64]

    @classmethod
    def of(cls, side: int, size: int) -> _Filter:
        length = np.arange(side + 1, dtype=np.float64)[:, None]
        scale = length / size
        support = np.maximum(scale, 1.0)
        center = (np.arange(size) + 0.5) * scale
        first = np.maximum(np.floor(center - support - 0.5).astype(np.int64) + 1, 0)
        reach = int(np.ceil(2 * support.max()))
        pixels = first[:, :, None] + np.arange(reach)
        distance = np.abs(pixels + 0.5 - center[:, :, None]) / support[:, :, None]
        weights = np.where(pixels < length[:, :, None], np.maximum(0.0, 1.0 - distance), 0.0)
        weights[0, :, 0] = 1.0  # there is no box of length 0
        weights /= weights.sum(axis=2, keepdims=True)
        used: NDArray[np.bool_] = np.any(weights > 0, axis=1)
        taps = reach - np.argmax(used[:, ::-1], axis=1)
        single = weights.astype(np.float32)
        return cls(first, single, single * np.float32(1 / 255), taps.astype(np.int64))


@dataclass(frozen=True)
class _Taps:
    """What each output pixel reads along one side.

    Attributes:
        places: (n, size, T) stored pixels.
        weights: (n, size, T) float32.
    """

    places: NDArray[np.int64]
    weights: NDArray[np.float32]

    def of(self, part: slice) -> _Taps:
        """Return those of some images."""
        return _Taps(self.places[part], self.weights[part])


def _resample(pixels: Tensor, down: _Taps, across: _Taps) -> Tensor:
    """Return (n, 3, size, size) in [0, 1] of pixels (n, H, W, 3) uint8."""
    n, h, w, channels = pixels.shape
    size = down.places.shape[1]
    tall = _along(pixels.reshape(n, h, w * channels), down, 1 / 255)  # (n, size, W * 3)
    # Columns become rows, so that the second side is gathered in whole rows too.
    turned = tall.view(n, size, w, channels).permute(0, 2, 3, 1).reshape(n, w, channels * size)
    views = _along(turned, across, 1.0)  # (n, size, 3 * size)
    return views.view(n, size, channels, size).permute(0, 2, 3, 1).contiguous()


def _along(lines: Tensor, taps: _Taps, unit: float) -> Tensor:
    """Return the weighted sums (n, size, K) of lines (n, H, K), in units of ``unit``."""
    import torch

    n, h, k = lines.shape
    _, size, used = taps.places.shape
    flat = lines.reshape(n * h, k)
    places = torch.from_numpy(taps.places + (np.arange(n) * h)[:, None, None]).to(lines.device)
    weights = torch.from_numpy(taps.weights * np.float32(unit)).to(lines.device)
    total: Tensor | None = None
    for tap in range(used):
        rows = flat.index_select(0, places[:, :, tap].reshape(-1)).float()
        # Never fused into one multiply-add: that rounds once where these round twice.
        rows.mul_(weights[:, :, tap].reshape(-1, 1))
        total = rows if total is None else total.add_(rows)
    assert total is not None
    return total.view(n, size, k)


def _jitter(
    views: Tensor, brightness: Tensor | None, contrast: Tensor | None, saturation: Tensor | None
) -> Tensor:
    """Scale brightness, then blend with the mean grey, then with the grey image."""
    views = views.clamp_(0.0, 1.0)
    if brightness is not None:
        views = views.mul_(brightness).clamp_(0.0, 1.0)
    if contrast is not None:
        mean = _mean(_grey(views))
        views = views.sub_(mean).mul_(contrast).add_(mean).clamp_(0.0, 1.0)
    if saturation is not None:
        grey = _grey(views)
        views = views.sub_(grey).mul_(saturation).add_(grey).clamp_(0.0, 1.0)
    return views


def _mean(grey: Tensor) -> Tensor:
    """Return each image's mean (n, 1, 1, 1): summed as whole numbers, exact in any order."""
    import torch

    fixed = grey.mul(_FIXED).round_().to(torch.int64).sum(dim=(1, 2, 3), keepdim=True)
    return (fixed.double() / (_FIXED * grey[0].numel())).float()


def _grey(views: Tensor) -> Tensor:
    r, g, b = _GREY
    return (views[:, :1] * r).add_(views[:, 1:2] * g).add_(views[:, 2:] * b)
