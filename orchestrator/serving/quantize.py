"""An ONNX encoder with 8-bit integers: smaller, and faster where the processor has them.

Static quantization of onnxruntime: weights are whole numbers in [-127, 127] with one scale for
each output channel; activations get a scale and a zero point from the ranges that they had on
calibration images. The resize, the normalisation and the packing stay as they are. So does the
last layer of the hash head, since it is small and the sign of its output is the code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.parity import Images
from retrieval.atomic import write_atomic
from retrieval.streams import generator

CALIBRATION = 256
"""Training images from which ranges of activations are taken."""

_BATCH = 16
_KINDS = ("Conv", "Gemm", "MatMul")
"""What is computed with whole numbers: where the time and the weights are."""


def calibration_rows(train: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return rows of training images, drawn with the trial's seed.

    Args:
        train: (n,) rows of the training split.
        seed: of the trial.

    Returns:
        (min(n, 256),) in ascending order.
    """
    draw = generator(seed, "export", "calibration")
    return np.sort(draw.choice(train, size=min(len(train), CALIBRATION), replace=False))


def quantize(source: Path, target: Path, images: Images) -> None:
    """Quantize an encoder.

    Args:
        source: ONNX file, as `export_onnx.write_onnx` writes it.
        target: where to write the quantized one.
        images: (n, ...) calibration images, as the encoder takes them.
    """
    import onnx
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    temporary = target.with_name(f".{target.name}")
    given = onnx.load(source)
    try:
        with _quiet():
            quantize_static(
                given,
                temporary,
                _reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=_quantized(given),
                calibrate_method=CalibrationMethod.MinMax,
            )
        made = onnx.load(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    onnx.checker.check_model(made)
    write_atomic(target, made.SerializeToString(deterministic=True))


def _quantized(model: Any) -> list[str]:
    """Return the names of the layers to quantize: all of the network but the head's last."""
    layers = [
        node.name
        for node in model.graph.node
        if node.op_type in _KINDS and node.name.partition("/")[0] in ("backbone", "head")
    ]
    return layers[:-1]


def _reader(images: Images) -> Any:
    """Return what hands onnxruntime the calibration images."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), _BATCH))

        def get_next(self) -> dict[str, Images] | None:
            first = next(self.starts, None)
            return None if first is None else {"images": images[first : first + _BATCH]}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the advice to preprocess the model, which its exporter has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
