"""CIFAR-10 as its authors give it out: pickled or binary batches, read without running anything.

A pickle is a program. The one that reads the batches here knows six names, all of which lead to
stand-ins that only keep what they are given; numpy's own classes are never built from a pickle.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 32
PIXELS = 3 * SIDE * SIDE
"""Bytes of an image: a plane each of red, green and blue."""

NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
"""Batches in the order in which their images are numbered."""


@dataclass(frozen=True)
class Batch:
    """The images of one file.

    Attributes:
        pixels: (n, 3072) uint8.
        labels: (n,) uint8 class numbers.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_binary(path: Path) -> Batch:
    """Read a ``.bin`` batch: one byte of label and 3,072 of pixels an image.

    Raises:
        OSError: it cannot be read.
        ValueError: its length is not a whole number of images.
    """
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % (PIXELS + 1):
        raise ValueError(f"its {len(data)} bytes are no whole number of images")
    rows = data.reshape(-1, PIXELS + 1)
    return Batch(np.ascontiguousarray(rows[:, 1:]), rows[:, 0].copy())


def read_pickled(path: Path) -> Batch:
    """Read a pickled batch, without letting it run anything.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no batch, or asks for anything but arrays, bytes, lists and numbers.
    """
    with path.open("rb") as stream:
        try:
            content = _unpickle(stream)
        except OSError:
            raise
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(f"no batch that can be read safely: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("no batch: it holds no mapping")
    fields = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
    pixels = fields.get("data")
    labels = fields.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f"no batch: 'data' is no array (n, {PIXELS}) of bytes")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < 256 for label in labels)
    ):
        raise ValueError(f"no batch: 'labels' are not {len(pixels)} class numbers")
    return Batch(pixels, np.array(labels, dtype=np.uint8))


def _unpickle(stream: Any) -> Any:
    # Made anew for each file: what a pickle does to one of them is gone with it.
    class Dtype:
        def __init__(self, code: Any, *_: Any) -> None:
            self.code = code.decode("latin1") if isinstance(code, bytes) else code

        def __setstate__(self, state: Any) -> None:
            pass

    class Array:
        def __init__(self, *_: Any) -> None:
            self.value: NDArray[np.uint8] | None = None

        def __setstate__(self, state: Any) -> None:
            _version, shape, dtype, fortran, data = state
            self.value = _array(shape, dtype.code, bool(fortran), data)

    def reconstruct(*_: Any) -> Array:
        return Array()

    def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
        array = Array()
        array.value = _array(shape, dtype.code, order != "C", data)
        return array

    def encode(text: Any, encoding: Any = "utf-8", *_: Any) -> bytes:
        name = encoding.decode("ascii") if isinstance(encoding, bytes) else str(encoding)
        if not isinstance(text, str) or name not in ("latin1", "utf-8"):
            raise pickle.UnpicklingError("it encodes something else than text")
        return text.encode(name)

    allowed = {
        ("numpy", "dtype"): Dtype,
        ("numpy", "ndarray"): Array,
        ("_codecs", "encode"): encode,
    }
    for package in ("numpy.core", "numpy._core"):
        allowed[f"{package}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{package}.numeric", "_frombuffer"] = from_buffer

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
            return allowed[module, name]

        def persistent_load(self, pid: Any) -> Any:
            raise pickle.UnpicklingError("it refers to something outside of itself")

    content = Restricted(stream, encoding="bytes").load()
    if isinstance(content, dict):
        return {k: v.value if isinstance(v, Array) else v for k, v in content.items()}
    return content


def _array(shape: Any, code: Any, fortran: bool, data: Any) -> NDArray[np.uint8]:
    raw = data.encode("latin1") if isinstance(data, str) else data
    if code not in ("u1", "|u1") or fortran or not isinstance(raw, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array is not made of bytes in rows")
    return np.frombuffer(bytes(raw), dtype=np.uint8).reshape(shape)
