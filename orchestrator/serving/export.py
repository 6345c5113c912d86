"""A trained network as files that run without us: written, checked on images, described."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from orchestrator.serving.export_folder import CONFIG, MADE_BY, check_folder, placed
from orchestrator.serving.export_readme import readme
from orchestrator.serving.parity import TOLERANCE, Network, Parity, compare, outputs
from orchestrator.serving.parity_images import Sample, given_sample, query_sample
from orchestrator.serving.parity_speed import Speed, latency
from orchestrator.serving.quantize import calibration_rows, quantize
from orchestrator.store import canonical, file_digest, write_json
from retrieval.atomic import write_atomic
from retrieval.efficiency import busy, describe_machine
from retrieval.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.serving.export_graph import Encoder
    from orchestrator.serving.parity import Images
    from orchestrator.serving.trained import SideName, TrainedSide, TrainedTrial

Format: TypeAlias = Literal["onnx", "torchscript", "safetensors"]
Input: TypeAlias = Literal["pixels", "tensor"]

MODELS: dict[Format, str] = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "safetensors": "model.safetensors",
}
"""Format -> name of its file."""

INT8 = "model.int8.onnx"

IMAGES = 1000
"""Test queries that a check encodes, where there are as many."""

_NEEDS = ("onnx", "onnxscript", "onnxruntime")
_ASSETS = Path(__file__).parent / "assets"

Say: TypeAlias = Callable[[str], None]


class NotEqualError(Exception):
    """What was exported does not give torch's codes; it was removed again.

    Attributes:
        parity: how they differ.
    """

    def __init__(self, parity: Parity) -> None:
        super().__init__(parity.text())
        self.parity = parity


@dataclass(frozen=True)
class Wanted:
    """What to export.

    Attributes:
        format: of the file.
        side: which network.
        input: what the file takes: "pixels" is uint8 (N, H, W, 3) of any size, "tensor" is
            float32 (N, 3, S, S) in [0, 1].
        int8: also quantize it.
        check: whether to compare with torch.
        images: a folder, zip or file to compare on; None takes test queries of the dataset.
        count: how many images to compare on.
        tolerance: outputs this near to zero may change sign.
        threads: of the comparison of speed.
    """

    format: Format
    side: SideName = "query"
    input: Input = "pixels"
    int8: bool = False
    check: bool = True
    images: str | None = None
    count: int = IMAGES
    tolerance: float = TOLERANCE
    threads: int = 1

    def refuse(self) -> None:
        """Refuse what cannot be had, before anything is opened.

        Raises:
            InputError: a combination that there is not, or a package that is not installed.
        """
        if self.format == "safetensors" and self.input == "pixels":
            raise InputError(
                "weights alone hold no resize; they take a tensor",
                key="--input",
                value=self.input,
                hint="leave --input out, or choose --format onnx",
            )
        if self.int8 and self.format != "onnx":
            raise InputError(
                "8-bit integers are there for --format onnx only", key="--int8", value=self.format
            )
        if self.int8 and self.side != "query":
            raise InputError(
                "the query network alone is quantized: other gallery codes than the study's would "
                "need the whole gallery to be encoded again",
                key="--int8",
                value=self.side,
            )
        if self.format == "onnx":
            missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
            if missing:
                raise InputError(
                    f"needs {' and '.join(missing)}, not installed here",
                    key="--format",
                    value="onnx",
                    hint="pip install 'asymbench[export]'",
                )


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        folder: where it lies.
        config: what its ``config.json`` says.
        bytes: name -> size of the files with weights.
        parity: how its codes differ from torch's; None where it was not checked.
        speed: None where it was not checked, or is torch itself.
        machine: where the speed was measured, and a warning where that was busy.
        int8: what quantization came to, if it was asked for.
    """

    folder: Path
    config: dict[str, Any]
    bytes: dict[str, int]
    parity: Parity | None = None
    speed: Speed | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    int8: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "folder": str(self.folder),
            "config": self.config,
            "bytes": self.bytes,
            "check": None if self.parity is None else self.parity.to_json(),
            "latency": None if self.speed is None else self.speed.to_json(),
            "machine": self.machine,
            "int8": self.int8,
        }


def export(
    trial: TrainedTrial, wanted: Wanted, folder: Path, *, force: bool = False, say: Say
) -> Exported:
    """Export a network of a finished trial.

    Args:
        trial: finished, on the CPU.
        wanted: what of it, and how.
        folder: where to; made anew, or replaced where it holds an earlier export of the same.
        force: write into a folder that holds other things.
        say: is told what takes long.

    Raises:
        InputError: this cannot be had, or the folder is somebody else's.
        NotEqualError: the codes are not torch's; nothing is left behind.
        StoreCorrupt: the weights are damaged.
    """
    wanted.refuse()
    side = trial.side(wanted.side)
    config = _config(side, wanted)
    check_folder(folder, config, force=force)
    with placed(folder, config) as made:
        work = _Export(side, wanted, made, config, say)
        done = work.run(folder)
    return done


def default_folder(trial: TrainedTrial, wanted: Wanted) -> Path:
    """Return where an export goes that nobody gave a place."""
    return Path(f"export-{trial.id[:12]}-{wanted.side}-{wanted.format}")


def _config(side: TrainedSide, wanted: Wanted) -> dict[str, Any]:
    """Return what ``config.json`` says of the network, without what follows from its files."""
    from orchestrator.serving.export_weights import describe_network

    trial = side.of.trial
    packages = {"asymbench": version("asymbench"), "torch": version("torch")}
    return {
        "made_by": MADE_BY,
        "format": wanted.format,
        "input": wanted.input,
        "trial": trial.id,
        "label": trial.label,
        "method": trial.method,
        "dataset": trial.dataset,
        "side": side.name,
        "bits": trial.bits,
        "stored_size": side.of.stored_size,
        "weights_sha256": side.weights_digest,
        "bit_order": "bit 1 where h >= 0, most significant bit first, padded with 0",
        "versions": packages,
        **describe_network(side),
    }


class _Export:
    """One export in work."""

    def __init__(
        self, side: TrainedSide, wanted: Wanted, made: Path, config: dict[str, Any], say: Say
    ) -> None:
        self.side, self.wanted, self.made, self.config, self.say = side, wanted, made, config, say
        self.model = MODELS[wanted.format]

    def run(self, folder: Path) -> Exported:
        """Write, check, quantize and describe; return what it came to."""
        sample = self._sample() if self.wanted.check else None  # may be refused: before all work
        self.say(f"writing {self.model}")
        self._write()
        write_json(self.made / CONFIG, self.config)  # the loaders read it
        parity = speed = int8 = None
        machine: dict[str, Any] = {}
        if sample is not None:
            parity = self._compare(sample)
        if self.wanted.int8:
            self._quantize()
        if sample is not None:
            machine = describe_machine().to_json()
            machine["warning"] = busy(describe_machine())
            speed = self._time(sample)
            int8 = self._int8(sample) if self.wanted.int8 else None
        self._describe(sample, parity, int8)
        sizes = {name: (self.made / name).stat().st_size for name in self._models()}
        return Exported(folder, self.config, sizes, parity, speed, machine, int8)

    # ---- writing -------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> Encoder:
        """The graph in torch."""
        from orchestrator.serving.export_graph import Encoder

        return Encoder(self.side.network, self.side.of.bits, self.wanted.input)

    def _write(self) -> None:
        path = self.made / self.model
        if self.wanted.format == "onnx":
            from orchestrator.serving.export_onnx import write_onnx

            write_onnx(self.encoder, path, _metadata(self.config))
        elif self.wanted.format == "torchscript":
            from orchestrator.serving.export_torchscript import write_torchscript

            write_torchscript(self.encoder, path)
        else:
            shutil.copyfile(self.side.weights, path)
        for name, source in (
            ("encode.py", "encode.py"),
            ("network.py", f"network_{self.wanted.format}.py"),
        ):
            shutil.copyfile(_ASSETS / source, self.made / name)

    def _models(self) -> list[str]:
        return [self.model, INT8] if self.wanted.int8 else [self.model]

    def _describe(
        self, sample: Sample | None, parity: Parity | None, int8: dict[str, Any] | None
    ) -> None:
        """Write README.md, and config.json for good."""
        if sample is not None and parity is not None:
            self.config["check"] = {"on": sample.name, **parity.to_json()}
        text = readme(self.config, self._models(), int8)
        write_atomic(self.made / "README.md", text.encode())
        names = (*self._models(), "encode.py", "network.py", "README.md")
        self.config["files"] = {name: file_digest(self.made / name) for name in names}
        write_json(self.made / CONFIG, self.config)

    # ---- checking ------------------------------------------------------------------------

    def _sample(self) -> Sample:
        wanted = self.wanted
        if wanted.images is not None:
            return given_sample(self.side, wanted.images, wanted.count)
        return query_sample(self.side, wanted.count)

    def _load(self, model: str, **options: Any) -> Network:
        """Return the network as those get it who have nothing but the folder."""
        network: Network = self._code("network.py")["load"](self.made, model, **options)
        return network

    def _code(self, name: str) -> dict[str, Any]:
        return runpy.run_path(str(self.made / name))

    @cached_property
    def _prepare(self) -> Callable[..., Images]:
        prepare: Callable[..., Images] = self._code("encode.py")["prepare"]
        return prepare

    def _images(self, sample: Sample, part: slice) -> Images:
        return self._prepare(sample.squares(part), self.config)

    def _outputs(
        self, network: Network, sample: Sample
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        return outputs(network, len(sample), lambda part: self._images(sample, part))

    def _compare(self, sample: Sample) -> Parity:
        """Compare with torch.

        Raises:
            NotEqualError: it is not the same.
        """
        self.say(f"checking {self.model} on {len(sample):,} {sample.name}")
        reference = sample.reference(self.side)
        codes, h = self._outputs(self._load(self.model), sample)
        parity = compare(codes, h, reference, tolerance=self.wanted.tolerance)
        if not parity.equal:
            raise NotEqualError(parity)
        return parity

    def _time(self, sample: Sample) -> Speed | None:
        """Time one image in torch and in the file; None where both are the same."""
        if self.wanted.format == "safetensors":
            return None
        import torch

        from orchestrator.serving.trained import torch_threads

        threads = self.wanted.threads
        options = {"threads": threads} if self.wanted.format == "onnx" else {}
        image = self._images(sample, slice(0, 1))
        tensor = torch.from_numpy(image)
        self.say("timing one image")
        with torch_threads(threads), torch.inference_mode():
            eager = latency(lambda: self.encoder(tensor))
            networks = [self._load(model, **options) for model in self._models()]
            timings = [latency(partial(network, image)) for network in networks]
        return Speed(eager, timings[0], timings[1] if timings[1:] else None, threads)

    # ---- 8-bit integers ------------------------------------------------------------------

    def _quantize(self) -> None:
        from orchestrator.serving.parity_images import split_sample

        trial = self.side.of
        rows = calibration_rows(trial.dataset.splits().train, trial.trial.seed)
        sample = split_sample(self.side, "training images", rows)
        self.say(f"quantizing, with {len(sample)} training images")
        quantize(self.made / self.model, self.made / INT8, self._images(sample, slice(None)))
        self.config["int8"] = {"calibration_images": len(sample), "weights": "per channel"}

    def _int8(self, sample: Sample) -> dict[str, Any]:
        """Return how many bits quantization flips, and what it costs in mAP."""
        from orchestrator.serving.quantize_scores import quantized_scores

        full, small = self._load(self.model), self._load(INT8)
        _, reference = self._outputs(full, sample)
        codes, h = self._outputs(small, sample)
        flips = compare(codes, h, reference, tolerance=0.0)
        self.say("scoring the quantized network on validation and test queries")
        scores = quantized_scores(
            self.side,
            lambda images: self._outputs(full, images)[0],
            lambda images: self._outputs(small, images)[0],
        )
        return {
            "images": flips.images,
            "bits": flips.images * flips.bits,
            "flipped": flips.differing,
            "images_differing": flips.images_differing,
            "map": scores,
        }


def _metadata(config: dict[str, Any]) -> dict[str, str]:
    """Return what an ONNX file says of itself."""
    names = ("made_by", "trial", "method", "dataset", "side", "bits", "size", "stored_size")
    more = ("input", "weights_sha256", "bit_order", "versions")
    texts = {name: config[name] for name in (*names, *more)}
    texts["backbone"] = config["backbone"]["name"]
    return {
        name: value if isinstance(value, str) else canonical(value)
        for name, value in texts.items()
    }
