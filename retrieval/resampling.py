"""Views of one image compiled by numba: the same bits as by torch, without its passes over memory.

`retrieval.augmentation` says what a view is. Here a line of the view is made from the box's lines,
then its pixels from that line, then the colours are changed, all within the first caches. Products
and sums are single-precision and in the same order; the compiler is not allowed to fuse or reorder
them. Filter taps of weight zero are left out: what they would add is zero.

Machine code is cached beside this file, or where NUMBA_CACHE_DIR says, or in the user's cache;
where none can be written it is compiled anew in each process.
"""

# mypy: disable-error-code="untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_FIXED = np.float32(1 << 20)


def _jit(function: Callable[..., Any]) -> Any:
    """Compile at first call, cached where anything can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place for a cache
        return njit(nogil=True)(function)


@_jit
def _clamped(value):  # type: ignore[no-untyped-def]
    return min(max(value, _ZERO), _ONE)


@_jit
def _columns(left, width, flip, first, weights, w, places, used_weights):  # type: ignore[no-untyped-def]
    """Write where in a line each pixel of a view looks, (T, size), and the weights.

    Returns:
        The first and the last column that is looked at, and the number of taps in use.
    """
    taps, size = places.shape
    lowest, highest, used = w, 0, 1
    for x in range(size):
        source = size - 1 - x if flip else x
        start = left + first[width, source]
        for t in range(taps):
            weight = weights[width, source, t]
            place = min(max(start + t, 0), w - 1)
            if weight != _ZERO:
                used = max(used, t + 1)
                lowest, highest = min(lowest, place), max(highest, place)
            else:  # nothing is added; any place that is made will do
                place = min(max(start, 0), w - 1)
            places[t, x] = 3 * place
            used_weights[t, x] = weight
    return lowest, highest, used


@_jit
def _line(rows, numbers, weights, count, begin, end, line):  # type: ignore[no-untyped-def]
    """Write the weighted sum of stored rows; the usual numbers of taps in one pass."""
    a, u = rows[numbers[0]], weights[0]
    if count == 1:
        for k in range(begin, end):
            line[k] = np.float32(a[k]) * u
        return
    b, v = rows[numbers[1]], weights[1]
    if count == 2:
        for k in range(begin, end):
            line[k] = np.float32(a[k]) * u + np.float32(b[k]) * v
        return
    c, z = rows[numbers[2]], weights[2]
    for k in range(begin, end):
        line[k] = (np.float32(a[k]) * u + np.float32(b[k]) * v) + np.float32(c[k]) * z
    for t in range(3, count):
        a, u = rows[numbers[t]], weights[t]
        for k in range(begin, end):
            line[k] += np.float32(a[k]) * u


@_jit
def _pixels(line, places, weights, used, c, out):  # type: ignore[no-untyped-def]
    """Write one colour of a view's line, resized from a whole line."""
    size = len(out)
    line = line[c:]
    if used == 1:
        for x in range(size):
            out[x] = line[places[0, x]] * weights[0, x]
        return
    if used == 2:
        for x in range(size):
            out[x] = line[places[0, x]] * weights[0, x] + line[places[1, x]] * weights[1, x]
        return
    for x in range(size):
        out[x] = (line[places[0, x]] * weights[0, x] + line[places[1, x]] * weights[1, x]) + line[
            places[2, x]
        ] * weights[2, x]
    for t in range(3, used):
        for x in range(size):
            out[x] += line[places[t, x]] * weights[t, x]


@_jit
def _resample(pixels, box, flip, down, down_weights, across, across_weights, view):  # type: ignore[no-untyped-def]
    """Write the box's lines and columns, resized, to ``view`` (3, size, size)."""
    top, left, height, width = box
    h, w, _ = pixels.shape
    size = view.shape[1]
    taps = across_weights.shape[2]
    # Unsigned: a negative place would count from the end, which costs a test for each.
    places = np.empty((taps, size), dtype=np.uint32)
    weights = np.empty((taps, size), dtype=np.float32)
    lowest, highest, used = _columns(left, width, flip, across, across_weights, w, places, weights)
    rows = pixels.reshape(h, 3 * w)
    line = np.zeros(3 * w, dtype=np.float32)
    numbers = np.empty(down_weights.shape[2], dtype=np.int64)
    shares = np.empty(down_weights.shape[2], dtype=np.float32)
    for y in range(size):
        count = 0
        for t in range(down_weights.shape[2]):
            weight = down_weights[height, y, t]
            if weight != _ZERO:
                numbers[count] = min(max(top + down[height, y] + t, 0), h - 1)
                shares[count] = weight
                count += 1
        _line(rows, numbers, shares, count, 3 * lowest, 3 * highest + 3, line)
        for c in range(3):
            _pixels(line, places, weights, used, c, view[c, y])


@_jit
def _grey(view, y, x):  # type: ignore[no-untyped-def]
    return (view[0, y, x] * _RED + view[1, y, x] * _GREEN) + view[2, y, x] * _BLUE


@_jit
def _jitter(view, factors, given):  # type: ignore[no-untyped-def]
    """Scale brightness, then blend with the mean grey, then with the grey image."""
    size = view.shape[1]
    brightness, contrast, saturation = factors
    for c in range(3):
        for y in range(size):
            row = view[c, y]
            if given[0]:
                for x in range(size):
                    row[x] = _clamped(_clamped(row[x]) * brightness)
            else:
                for x in range(size):
                    row[x] = _clamped(row[x])
    if given[1]:
        total = np.int64(0)
        for y in range(size):
            for x in range(size):
                total += np.int32(np.rint(_grey(view, y, x) * _FIXED))
        mean = np.float32(np.float64(total) / np.float64((1 << 20) * size * size))
        for c in range(3):
            for y in range(size):
                row = view[c, y]
                for x in range(size):
                    row[x] = _clamped((row[x] - mean) * contrast + mean)
    if given[2]:
        for y in range(size):
            for x in range(size):
                grey = _grey(view, y, x)
                for c in range(3):
                    view[c, y, x] = _clamped((view[c, y, x] - grey) * saturation + grey)


@_jit
def make_views(  # type: ignore[no-untyped-def]
    pixels, boxes, flip, down, down_weights, across, across_weights, factors, given, views
):
    """Make the views of some images.

    Args:
        pixels: (n, H, W, 3) uint8.
        boxes: (n, 4) int64 top, left, height, width, which may reach beyond the image.
        flip: (n,) bool.
        down: (H + 1, size) int64 first line of a box that an output line reads, by its height.
        down_weights: (H + 1, size, T) float32, in units of 1 / 255.
        across: (W + 1, size) int64, like ``down`` for columns.
        across_weights: (W + 1, size, T) float32.
        factors: (n, 3) float32 brightness, contrast, saturation.
        given: (3,) bool, which of them apply.
        views: (n, 3, size, size) float32, written.
    """
    for n in range(len(pixels)):
        _resample(
            pixels[n], boxes[n], flip[n], down, down_weights, across, across_weights, views[n]
        )
        _jitter(views[n], factors[n], given)
