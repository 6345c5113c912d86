"""An encoder as an ONNX file: any batch, images of any size, and equal bytes each time.

torch's exporter notes in every node where in which source file it came from. That is of no use to
whoever gets the file, tells how the exporting machine's folders are called, and differs from
machine to machine: it is taken out.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from retrieval.atomic import write_atomic
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.serving.export_graph import Encoder

OPSET = 18
"""ONNX operator set; runtimes of 2023 and later have it."""

LARGEST = 1 << 31
"""Bytes of the largest ONNX file: protobuf's limit."""

_PARTS = ("resize", "normalise", "backbone", "head", "pack")


def write_onnx(encoder: Encoder, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an encoder as ONNX and check the file.

    Args:
        encoder: in eval mode.
        path: of the file.
        metadata: goes into the model's ``metadata_props``.

    Raises:
        InputError: the file would be larger than ONNX allows in one piece.
    """
    import onnx

    size = sum(p.numel() * p.element_size() for p in encoder.parameters())
    if size >= LARGEST:
        raise InputError(
            f"the network has {size:,} bytes of weights, an ONNX file at most {LARGEST:,}",
            key="--format",
            value="onnx",
            hint="export it with --format safetensors",
        )
    model = _graph(encoder)
    _tidy(model)
    _describe(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    write_atomic(path, model.SerializeToString(deterministic=True))


def _graph(encoder: Encoder) -> Any:
    """Return the encoder as an onnx.ModelProto."""
    batch = torch.export.Dim("batch")
    sizes = {0: batch}
    if encoder.kind == "pixels":
        sizes |= {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    with quiet():
        program = torch.onnx.export(
            encoder,
            (encoder.example(),),
            dynamo=True,
            input_names=["images"],
            output_names=["codes", "h"],
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what torch says of its own exporter; errors still show."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        log.setLevel(level)


def _tidy(model: Any) -> None:
    """Name nodes by their part of the encoder, and remove the exporter's notes."""
    numbers: Counter[str] = Counter()
    for node in model.graph.node:
        name = f"{_part(node)}/{node.op_type}"
        node.name = f"{name}_{numbers[name]}"
        numbers[name] += 1
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    model.graph.name = "encoder"


def _part(node: Any) -> str:
    """Return which part of the encoder a node is of."""
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":
            scopes = [scope.partition(".")[0] for scope in ast.literal_eval(note.value)]
            return next((part for part in _PARTS if part in scopes), "encoder")
    return "encoder"


def _describe(model: Any, metadata: Mapping[str, str]) -> None:
    import onnx

    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    graph = model.graph
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    codes, h = graph.output
    graph.input[0].doc_string = metadata.get("input", "")
    codes.doc_string = "packed codes: bit 1 where h >= 0, most significant bit first"
    h.doc_string = "continuous codes, before the sign"
