"""The network, by onnxruntime."""

from pathlib import Path

import onnxruntime


def load(folder, model="model.onnx", threads=0):
    """Return a function from images to packed codes (N, bytes) uint8 and h (N, bits) float32.

    Images are what config.json says under "input": "pixels" are uint8 (N, height, width, 3) of
    any size, "tensor" is float32 (N, 3, size, size) in [0, 1].
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = str(Path(folder) / model)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(["codes", "h"], {"images": images}))
