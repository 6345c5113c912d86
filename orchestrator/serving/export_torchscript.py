"""An encoder as a TorchScript file: for programs that run it already.

torch calls TorchScript deprecated; ONNX is what to choose for something new. Such a file is a zip
with code and a pickle of constants. We write it, and read back none but our own.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.jit._trace import TracerWarning

from retrieval.atomic import write_atomic

if TYPE_CHECKING:
    from orchestrator.serving.export_graph import Encoder

_EPOCH = (1980, 1, 1, 0, 0, 0)
_ALIGNMENT = 64
"""Bytes; where torch's own writer puts tensors, so that they can be mapped."""


def write_torchscript(encoder: Encoder, path: Path) -> None:
    """Trace an encoder and write it as TorchScript.

    Args:
        encoder: in eval mode.
        path: of the file.
    """
    buffer = io.BytesIO()
    with _without_advice():
        # Its own check compares a second run; ours compares real images, one and many at a time.
        traced = torch.jit.trace(encoder, (encoder.example(),), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer)
    write_atomic(path, _without_sources(buffer.getvalue()))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out the advice to use something else, and guesses at what a trace may have lost.

    Shapes that a backbone asserts are constants for the tracer. Whether the batch is still free
    shows in the check that follows, with one image at a time and with many.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        warnings.simplefilter("ignore", TracerWarning)
        yield


def _without_sources(data: bytes) -> bytes:
    """Return the archive without its notes of source files, which name the machine's folders."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as given,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made,
    ):
        for name in given.namelist():
            if not name.endswith(".debug_pkl"):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.extra = _padding(out.tell() + 30 + len(name.encode()))
                made.writestr(entry, given.read(name))
    return out.getvalue()


def _padding(place: int) -> bytes:
    """Return an extra field of a zip entry that moves its data to a multiple of 64 bytes."""
    size = -(place + 4) % _ALIGNMENT
    return b"FB" + size.to_bytes(2, "little") + b"Z" * size
