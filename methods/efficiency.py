"""What a pair of networks costs: parameters, operations, latency, memory, and a search.

How the figures compare with those in papers:

* A network is the backbone without its classifier and with a hash head of B bits, as it encodes
  in service: eval mode, float32, on an image that is decoded, resized and normalised. Papers often
  count the backbone with its ImageNet classifier: MobileNetV3-S has 2.54 M parameters so, and
  1.52 M without.
* ``flops`` are floating-point operations: a multiply-add (MAC) counts 2. Many papers and tools
  (thop, fvcore, ptflops; MobileNetV3's and EfficientNet's own tables) count MACs and call them
  FLOPs: compare those with ``macs``, which is half of ``flops``.
* They are counted as torch runs them (``torch.utils.flop_counter``): convolutions, matrix
  products and attention. Bias, normalisation, activations, pooling, softmax, interpolation and
  other elementwise work is not counted, here as in those tools; ``uncounted`` names what the
  network ran of it. These operations do take time: latency does not follow from MACs.
* ``weight_bytes`` is what a float32 file of the network holds: parameters and the running
  statistics of batch normalisation.
* Latency is wall time from the image tensor to h, before the sign. On a GPU each run is waited for
  (synchronised), so launching its kernels is included.
* Memory on a CPU is resident memory of a fresh process, above what the process holds with torch
  loaded and no network: weights, activations, and the workspace of torch's kernels. On a GPU it
  is what torch's allocator handed out.

Random weights are used always: no figure here depends on their values.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from methods.base import HeadKind
from methods.pairs import PairSpec, SideSpec
from retrieval.efficiency import (
    GalleryMemory,
    Machine,
    SearchTiming,
    Timing,
    busy,
    describe_machine,
    measure,
    time_search,
)
from retrieval.errors import InputError, UnknownNameError
from retrieval.streams import generator

__all__ = [
    "DEVICES",
    "NetworkCost",
    "PairEfficiency",
    "PeakMemory",
    "Protocol",
    "SideEfficiency",
    "build_encoder",
    "check_pair",
    "encoder_cost",
    "measure_pair",
    "peak_memory",
    "resolve_device",
    "time_network",
]

Side = Literal["query", "gallery"]
SIDES: tuple[Side, Side] = ("query", "gallery")
DEVICES = ("auto", "cpu", "cuda")

_FADED = 1e-30
"""Outputs below this are near float32's subnormal numbers, on which processors are far slower."""


@dataclass(frozen=True)
class Protocol:
    """How a pair is measured.

    Attributes:
        bits: code length B.
        heads: hash head of the query network and of the gallery's.
        device: "cpu" or "cuda".
        threads: CPU threads of torch.
        batches: images of one run, each timed by itself.
        queries: timed queries of a search; for a network see `runs`.
        warmup: images before them, which are not timed; at least two runs.
        channels_last: lay out inputs and weights channels last; torch's default is channels first.
        galleries: sizes N of the galleries that are searched.
        k: how many items the top-k search returns.
    """

    bits: int = 64
    heads: tuple[HeadKind, HeadKind] = ("fc_bn", "fc_bn")
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    batches: tuple[int, ...] = (1, 32)
    queries: int = 100
    warmup: int = 10
    channels_last: bool = False
    galleries: tuple[int, ...] = (59_000, 1_000_000)
    k: int = 100

    def runs(self, batch: int) -> int:
        """Timed runs at a batch size: as many as the queries take, and ten to tell a spread."""
        return max(-(-self.queries // batch), min(self.queries, 10))

    def warmups(self, batch: int) -> int:
        """Runs before the timed ones."""
        return max(-(-self.warmup // batch), 2)


def resolve_device(name: str) -> Literal["cpu", "cuda"]:
    """Return the device that ``name`` stands for; "auto" is a GPU where torch has one.

    Raises:
        UnknownNameError: another name.
        InputError: "cuda" where torch has none.
    """
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES, key="--device")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(
            "torch has no CUDA device here; allowed are 'cpu' and 'auto'",
            key="--device",
            value=name,
        )
    return "cuda" if name != "cpu" and available else "cpu"


# ---- the network ---------------------------------------------------------------------


def build_encoder(side: SideSpec, head: HeadKind, bits: int, name: Side) -> nn.Sequential:
    """Build backbone and head of one side with random weights, in eval mode, on the CPU.

    Args:
        side: backbone and size; its weights are not read and never fetched.
        head: which hash head.
        bits: B.
        name: which side.

    Returns:
        A network from normalised images (n, 3, S, S) to h (n, B).

    Raises:
        UnknownNameError: timm has no such backbone.
        InputError: the backbone cannot take the size.
    """
    from methods.networks import build_network

    fresh = side.model_copy(update={"pretrained": False, "weights": None})
    network = build_network(fresh, head, bits, 0, name)
    return nn.Sequential(network.backbone, network.head).eval()


def _images(batch: int, shape: Sequence[int], device: str, channels_last: bool) -> Tensor:
    """Return (batch, *shape) normalised noise: standard normal, whatever the backbone."""
    noise = generator(0, "efficiency", "images").standard_normal((batch, *shape), dtype="float32")
    images = torch.from_numpy(noise).to(device)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ---- parameters and operations -------------------------------------------------------


@dataclass(frozen=True)
class NetworkCost:
    """What a network is, whatever machine it runs on.

    Attributes:
        parameters: all of them.
        trainable: those that require a gradient.
        weight_bytes: parameters and floating-point buffers that are saved, as float32.
        flops: operations of one image, a multiply-add counting 2.
        uncounted: names of the operations that the network ran and that ``flops`` leaves out;
            views and new tensors, which compute nothing, are not among them.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    flops: int
    uncounted: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of one image, half of ``flops``."""
        return self.flops // 2

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the multiply-adds."""
        return {**asdict(self), "uncounted": list(self.uncounted), "macs": self.macs}


class _Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of computing operations that torch's counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        computes = any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs)))
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        name = str(func._overloadpacket).removeprefix("aten.")
        if func._overloadpacket not in flop_registry and computes and not views:
            if name != "_unsafe_view":  # a view whose signature does not say so
                self.names.add(name)
        return func(*args, **(kwargs or {}))


def encoder_cost(network: nn.Module, size: int) -> NetworkCost:
    """Count what is in a network and what it computes for one image of ``size`` px."""
    from methods.networks import count_flops, count_parameters

    with _Uncounted() as uncounted:
        flops = count_flops(network, size)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    floats = sum(v.numel() for v in network.state_dict().values() if v.is_floating_point())
    return NetworkCost(
        parameters=count_parameters(network),
        trainable=trainable,
        weight_bytes=4 * floats,
        flops=flops,
        uncounted=tuple(sorted(uncounted.names)),
    )


# ---- latency -------------------------------------------------------------------------


def time_network(
    network: nn.Module,
    shape: Sequence[int],
    batch: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    channels_last: bool = False,
    repeats: int = 100,
    warmup: int = 10,
) -> tuple[Timing, bool]:
    """Time the forward pass of one batch, in eval mode and without autograd.

    Args:
        network: from images to codes; it is moved to the device and laid out as asked.
        shape: of one image.
        batch: images of one run; runs of one image take the images of a small pool in turn.
        device: "cpu" or "cuda"; on the latter each run ends when the device has finished.
        threads: CPU threads of torch; put back after.
        channels_last: lay out inputs and weights channels last.
        repeats: timed runs.
        warmup: runs before them.

    Returns:
        The timing, and whether the outputs were ordinary numbers: random weights could also give
        infinities, or numbers so small that processors are slower on them.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.eval().to(device=device, memory_format=layout)  # type: ignore[call-overload]
    pool = [_images(batch, shape, device, channels_last)]
    if batch == 1:
        pool = list(_images(8, shape, device, channels_last).split(1))  # type: ignore[no-untyped-call]
    images = itertools.cycle(pool)

    def run() -> None:
        network(next(images))
        _wait(device)

    with _torch_threads(threads), torch.inference_mode():
        _wait(device)
        timing = measure(run, warmup=warmup, repeats=repeats, items=batch)
        largest = float(network(pool[0]).abs().max())
    return timing, _FADED < largest < float("inf")


# ---- memory --------------------------------------------------------------------------


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of inference, in bytes.

    Attributes:
        how: what was read.
        process: what the process held before the network was built, with the libraries loaded and
            their kernels made; on a GPU only the libraries' workspace.
        loaded: the same with the network built, before its first image.
        peak: batch size -> the highest that the process held while it ran one batch.
    """

    how: str
    process: int
    loaded: int
    peak: dict[int, int]

    def network(self, batch: int) -> int:
        """Return what the network added at its peak: weights, activations and workspace."""
        return self.peak[batch] - self.process

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and the network's own bytes by batch size."""
        return {
            "how": self.how,
            "process": self.process,
            "loaded": self.loaded,
            "peak": {str(batch): bytes_ for batch, bytes_ in self.peak.items()},
            "network": {str(batch): self.network(batch) for batch in self.peak},
        }


def peak_memory(
    build: Callable[[], nn.Module],
    shape: Sequence[int],
    *,
    batches: Sequence[int] = (1, 32),
    device: str = "cpu",
    threads: int = 1,
    channels_last: bool = False,
) -> PeakMemory:
    """Measure the peak memory of inference in a process of its own.

    A process that has done other work holds memory of that work, which would hide the network's.

    Args:
        build: returns the network; picklable, since it is called in the new process.
        shape: of one image.
        batches: images of one run, measured in ascending order.
        device: "cpu" or "cuda".
        threads: CPU threads of torch.
        channels_last: lay out inputs and weights channels last.

    Raises:
        InputError: the new process was killed, which means that memory ran out.
    """
    context = multiprocessing.get_context("spawn")
    # The process ends silently when the user interrupts; this one says what there is to say.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=signal.signal, initargs=quiet
    ) as pool:
        try:
            return pool.submit(
                _measure_memory,
                build,
                tuple(shape),
                tuple(sorted(batches)),
                device,
                threads,
                channels_last,
            ).result()
        except BrokenProcessPool:
            raise InputError(
                "the process that measures memory was killed, most likely because there is not "
                f"enough for batches of {max(batches)} images of shape {tuple(shape)}",
                key="memory",
            ) from None


def _measure_memory(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    batches: tuple[int, ...],
    device: str,
    threads: int,
    channels_last: bool,
) -> PeakMemory:
    """Measure in this process, which should have done nothing before."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def loaded_network() -> nn.Module:
        network = build().eval()
        network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        return network

    def run(network: nn.Module, batch: int) -> None:
        network(_images(batch, shape, device, channels_last))
        _wait(device)

    with _torch_threads(threads), torch.inference_mode():
        # The first network only makes torch and timm load what they load at first use.
        run(loaded_network(), batches[0])
        meter: _CudaMeter | _ResidentMeter
        meter = _CudaMeter() if device == "cuda" else _ResidentMeter()
        process = meter.start()
        network = loaded_network()
        loaded = meter.start()
        peak = {}
        for batch in batches:
            meter.start()
            run(network, batch)
            peak[batch] = meter.peak()
    return PeakMemory(how=meter.how, process=process, loaded=loaded, peak=peak)


class _ResidentMeter:
    """Resident memory of this process and its highest since `start`.

    Linux can start the high-water mark anew, so that what building a network took for a moment is
    not counted. Elsewhere the mark is that of the whole process, building included.

    Args:
        proc: where Linux keeps this process's figures.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._resets = self._reset()
        self.how = (
            "resident memory, highest while running"
            if self._resets
            else "resident memory, highest since the process began"
        )

    def start(self) -> int:
        """Give free memory back, begin a new highest, return what is resident now, in bytes."""
        gc.collect()
        _trim()
        if not self._resets:
            return self.peak()
        self._reset()
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return the highest resident memory since `start`, in bytes."""
        if self._resets:
            return self._status("VmHWM")
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _reset(self) -> bool:
        try:
            (self._proc / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def _status(self, key: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


class _CudaMeter:
    """Memory that torch's allocator has handed out on the GPU, and its highest since `start`."""

    how = "allocated by torch on the GPU, highest while running"

    def start(self) -> int:
        """Begin a new highest; return what is allocated now, in bytes."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def peak(self) -> int:
        """Return the highest since `start`, in bytes."""
        return int(torch.cuda.max_memory_allocated())


def _trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# ---- a pair --------------------------------------------------------------------------


@dataclass(frozen=True)
class SideEfficiency:
    """What one side's network costs.

    Attributes:
        backbone, size, head: which network.
        cost: parameters and operations.
        latency: batch size -> timing.
        memory: peak memory of inference.
    """

    backbone: str
    size: int
    head: str
    cost: NetworkCost
    latency: dict[int, Timing]
    memory: PeakMemory

    def figures(self) -> dict[str, float]:
        """Return the quantities that two sides are compared by; seconds an image, bytes."""
        return {
            "parameters": self.cost.parameters,
            "trainable": self.cost.trainable,
            "weight_bytes": self.cost.weight_bytes,
            "flops": self.cost.flops,
            "macs": self.cost.macs,
            **{f"latency_batch_{b}": timing.per_item for b, timing in self.latency.items()},
            **{f"memory_batch_{b}": float(self.memory.network(b)) for b in self.memory.peak},
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return {
            "backbone": self.backbone,
            "size": self.size,
            "head": self.head,
            **self.cost.to_json(),
            "latency": {str(b): timing.to_json() for b, timing in self.latency.items()},
            "memory": self.memory.to_json(),
        }


@dataclass(frozen=True)
class PairEfficiency:
    """What a pair costs, and where and how that was measured.

    Attributes:
        pair: its name.
        protocol: how it was measured.
        query, gallery: the two sides.
        galleries: memory of galleries of each size.
        search: timing of a search in each.
        machine: where, and how busy it was.
        torch: version of torch, its kernels' instruction set, and the GPU's name if one was used.
        warnings: what keeps these figures from being trusted.
    """

    pair: str
    protocol: Protocol
    query: SideEfficiency
    gallery: SideEfficiency
    galleries: tuple[GalleryMemory, ...]
    search: tuple[SearchTiming, ...]
    machine: Machine
    torch: dict[str, str]
    warnings: tuple[str, ...]

    def ratio(self) -> dict[str, float | None]:
        """Return query / gallery of each quantity, below 1 where the query is cheaper.

        None where the gallery's is not above 0, as memory too small to be seen can be.
        """
        query, gallery = self.query.figures(), self.gallery.figures()
        return {
            name: value / gallery[name] if gallery[name] > 0 else None
            for name, value in query.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything: seconds, bytes, and MB of 10^6 bytes."""
        protocol = asdict(self.protocol)
        heads = dict(zip(SIDES, protocol.pop("heads"), strict=True))
        return {
            "pair": self.pair,
            **protocol,
            "heads": heads,
            "precision": "float32",
            "weights": "random",
            "query": self.query.to_json(),
            "gallery": self.gallery.to_json(),
            "ratio": self.ratio(),
            "galleries": [memory.to_json() for memory in self.galleries],
            "search": [timing.to_json() for timing in self.search],
            "machine": {**self.machine.to_json(), **self.torch},
            "warnings": list(self.warnings),
        }


def check_pair(pair: PairSpec, bits: int, heads: tuple[HeadKind, HeadKind]) -> None:
    """Build both networks once, so that what cannot be built is refused before any timing.

    Raises:
        UnknownNameError: timm has no such backbone.
        InputError: a backbone cannot take its size.
    """
    for name, head in zip(SIDES, heads, strict=True):
        build_encoder(getattr(pair, name), head, bits, name)


def measure_pair(
    pair: PairSpec,
    protocol: Protocol,
    *,
    machine: Machine | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> PairEfficiency:
    """Measure both sides of a pair and the search of its codes.

    Args:
        pair: backbones and sizes; weights are not read and never fetched.
        protocol: how.
        machine: described before the run; now where it is not given.
        say: is told what is measured next.

    Raises:
        UnknownNameError: timm has no such backbone.
        InputError: a backbone cannot take its size, or memory ran out.
    """
    machine = machine or describe_machine()
    warnings = [warning] if (warning := busy(machine)) else []
    sides = {}
    for name, head in zip(SIDES, protocol.heads, strict=True):
        sides[name], ordinary = _measure_side(getattr(pair, name), head, name, protocol, say)
        if not ordinary:
            warnings.append(
                f"the {name} network's random weights give outputs that are infinite or nearly "
                "0, on which processors can be slower than on a trained network's"
            )
    search = []
    for items in protocol.galleries:
        say(f"search in {items:,} codes of {protocol.bits} bits")
        search.append(time_search(items, protocol.bits, k=protocol.k, queries=protocol.queries))
    return PairEfficiency(
        pair=pair.name,
        protocol=protocol,
        **sides,
        galleries=tuple(GalleryMemory(items, protocol.bits) for items in protocol.galleries),
        search=tuple(search),
        machine=machine,
        torch=_describe_torch(protocol.device),
        warnings=tuple(warnings),
    )


def _measure_side(
    side: SideSpec, head: HeadKind, name: Side, protocol: Protocol, say: Callable[[str], None]
) -> tuple[SideEfficiency, bool]:
    """Measure one side; also whether its outputs were ordinary numbers."""
    build = partial(build_encoder, side, head, protocol.bits, name)
    shape = (3, side.size, side.size)
    run: dict[str, Any] = {
        "device": protocol.device,
        "threads": protocol.threads,
        "channels_last": protocol.channels_last,
    }
    network = build()
    cost = encoder_cost(network, side.size)
    latency, ordinary = {}, True
    for batch in protocol.batches:
        say(f"{name} {side.backbone}: {protocol.runs(batch)} runs of {batch}")
        latency[batch], fine = time_network(
            network,
            shape,
            batch,
            repeats=protocol.runs(batch),
            warmup=protocol.warmups(batch),
            **run,
        )
        ordinary &= fine
    say(f"{name} {side.backbone}: memory")
    memory = peak_memory(build, shape, batches=protocol.batches, **run)
    found = SideEfficiency(
        backbone=side.backbone,
        size=side.size,
        head=head,
        cost=cost,
        latency=latency,
        memory=memory,
    )
    return found, ordinary


def _describe_torch(device: str) -> dict[str, str]:
    described = {
        "torch": str(torch.__version__),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        described["gpu"] = str(torch.cuda.get_device_name())
        described["cuda"] = str(torch.version.cuda)
    return described
