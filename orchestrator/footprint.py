"""How much memory a stage needs, from its networks and batches, and what it asks for by default.

The estimate decides how many stages share a GPU. It changes no number, and a stage for which it
was too low is tried again with more.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from cluster.accelerators import Accelerator, describe_gpu
from cluster.resources import Capacity, Node, Request, gpu_share
from methods.pairs import BACKBONES, backbone_gmacs
from orchestrator.plan import Stage


class Activations(NamedTuple):
    """Memory of a backbone's activations at 224 px, float32, in 10^6 bytes an image.

    Attributes:
        train: what autograd keeps for the backward pass.
        forward: input and output of the largest layer.
    """

    train: float
    forward: float


ACTIVATIONS = {
    "mobilenetv3_small_050": Activations(10.8, 1.6),
    "mobilenetv3_small_100": Activations(16.2, 1.8),
    "mobilenetv3_large_100": Activations(44.2, 6.4),
    "mobilenetv2_100": Activations(78.3, 9.6),
    "mobilevit_xxs": Activations(45.2, 3.2),
    "mobilevit_xs": Activations(112.6, 12.8),
    "efficientnet_b0": Activations(88.3, 9.6),
    "resnet18": Activations(22.2, 6.4),
    "resnet34": Activations(32.2, 6.4),
    "resnet50": Activations(86.0, 6.4),
    "resnet101": Activations(127.1, 6.4),
    "convnext_tiny": Activations(109.2, 9.6),
    "vit_tiny_patch16_224": Activations(29.9, 1.2),
    "vit_small_patch16_224": Activations(59.1, 2.4),
    "vit_base_patch16_224": Activations(117.6, 4.8),
    "deit_small_patch16_224": Activations(59.1, 2.4),
    "swin_tiny_patch4_window7_224": Activations(106.6, 9.6),
    "test_resnet": Activations(11.7, 3.2),
    "test_efficientnet": Activations(13.2, 2.4),
    "test_byobnet": Activations(7.6, 2.4),
    "test_vit": Activations(4.9, 0.7),
}
"""Measured: the distinct storages that autograd saves in a training step, parameters left out."""

_HEAVIEST = Activations(127.1, 12.8)
_HEAVIEST_MPARAMS = 85.8
"""A backbone that is not in the table counts as the heaviest of those that are."""

_REDUCED = 0.56
"""Activations under bf16 autocast, of those in float32: the largest ratio that was measured."""

_MARGIN = 1.25
"""For the allocator's fragments, the head, the loss and the batch's views."""

_CUDA_CONTEXT = 0.8e9
"""Bytes of GPU memory of a process that has done nothing yet: context, cuBLAS and cuDNN."""

_PROCESS = {"cpu": 0.7e9, "cuda": 2.5e9}
"""Bytes of main memory of a worker that has imported torch and timm; CUDA maps its libraries."""

STEP_SECONDS = 0.02
"""Seconds of a training step in which the CPU prepares the work of the GPU, which waits."""

_ENCODED_AT_ONCE = 256
"""Images in a forward pass of encoding."""

_OPTIMISER_STATES = {"adam": 2, "adamw": 2, "sgd": 1, "rmsprop": 2}
"""Values that an optimiser keeps for each parameter, momentum on."""


def network_bytes(stage: Stage) -> float:
    """Return the bytes that the stage's networks need at their peak, wherever they are.

    Weights, gradients, optimiser states, and the activations of a training batch or of a batch
    that is encoded, whichever is larger; see docs/scheduling.md.
    """
    held = training = answering = 0.0
    for side, recipe in trained_sides(stage):
        weights, one = _parameters(side), _activations(side)
        reduced = recipe["precision"] == "bf16"
        states = _OPTIMISER_STATES[recipe["optimizer"]]
        encoder = (stage.setup.get("params") or {}).get("momentum") is not None
        held += 4 * weights * (2 + states + encoder)
        held += 2 * weights * reduced  # the weights as autocast casts them
        training += _batch(recipe) * one.train * (_REDUCED if reduced else 1.0)
        answering = max(answering, _ENCODED_AT_ONCE * one.forward)
    for side in answering_sides(stage):
        held += 4 * _parameters(side)
        batch = int(stage.setup.get("batch_size", _ENCODED_AT_ONCE))
        answering = max(answering, batch * _activations(side).forward)
    return _MARGIN * (held + max(training, answering))


def gpu_bytes(stage: Stage) -> float:
    """Return the GPU memory that the stage is estimated to need, in bytes."""
    return _CUDA_CONTEXT + network_bytes(stage)


def gpu_busy(stage: Stage, gpu: Accelerator) -> float:
    """Return the estimated part of the time in which a stage that is alone keeps the GPU busy.

    A GPU that is busy already gets no faster by being shared: several stages would each take the
    longer, and the longest chain with them.
    """
    seconds = 0.0
    for side, recipe in trained_sides(stage):
        operations = 2e9 * 3 * _batch(recipe) * backbone_gmacs(side["backbone"], side["size"])
        seconds += operations / (1e12 * gpu.sustained(recipe["precision"]))
    return seconds / (seconds + STEP_SECONDS)


def host_bytes(stage: Stage, *, on_gpu: bool) -> float:
    """Return the main memory that the stage is estimated to need, in bytes.

    Decoded images are mapped files that all stages share; they are not counted.
    """
    if on_gpu:
        return _PROCESS["cuda"]
    return _PROCESS["cpu"] + network_bytes(stage)


def workers_of(stage: Stage) -> int:
    """Return how many processes train the stage together."""
    recipes = stage.setup.get("recipes", {}).values()
    given = [stage.setup.get("recipe") or {}, *recipes]
    return max(int(recipe.get("workers", 1)) for recipe in given)


def requests_for(
    stages: Iterable[Stage], capacity: Capacity, *, device: str = "auto", cut: bool = True
) -> dict[str, Request]:
    """Return what stages ask for on a cluster, by their ids; see :func:`request_for`."""
    known: dict[Hashable, Request] = {}
    requests = {}
    for stage in stages:
        key = _signature(stage)
        if key not in known:
            known[key] = request_for(stage, capacity, device=device, cut=cut)
        requests[stage.id] = known[key]
    return requests


def request_for(
    stage: Stage, capacity: Capacity, *, device: str = "auto", cut: bool = True
) -> Request:
    """Return what a stage asks for on a cluster: the study's values, and defaults for the rest.

    Args:
        stage: of the plan.
        capacity: the nodes.
        device: "cpu" keeps stages off GPUs.
        cut: never let a default exceed the largest node: more threads than cores are slow but
            right, and an estimate of memory is no reason to refuse. False where larger nodes may
            come.
    """
    labels = Request(labels=stage.request.labels if stage.request else {})
    nodes = [node for node in capacity.nodes if node.matches(labels)]
    with_gpus = [node for node in nodes if node.gpus] if device != "cpu" else []
    networks = bool(trained_sides(stage) or answering_sides(stage))
    request = Request(cpus=float(stage.setup.get("threads", 1)), workers=workers_of(stage))
    if networks and with_gpus:
        request = replace(request, gpus=_share(stage, with_gpus))
    if stage.request is not None:
        request = stage.request.over(request)
    if networks and not request.memory:
        request = replace(request, memory=round(host_bytes(stage, on_gpu=request.gpus > 0)))
    return _cut(request, stage, with_gpus if request.gpus else nodes) if cut else request


def _share(stage: Stage, nodes: list[Node]) -> float:
    """Return the share of a GPU that suffices on each of the nodes."""
    if workers_of(stage) > 1:  # they wait for each other at every step, so they share with nobody
        return 1.0
    shares = []
    for gpu in {describe_gpu(node.accelerator) for node in nodes}:
        by_memory = gpu_share(gpu_bytes(stage), gpu.memory)
        shares.append(max(by_memory, gpu_share(gpu_busy(stage, gpu), 1.0)))
    return max(shares)


def _cut(request: Request, stage: Stage, nodes: list[Node]) -> Request:
    """Return the request with defaults cut down to the largest node."""
    given = stage.request
    cores = max((node.cpus for node in nodes), default=0.0)
    memory = max((node.memory for node in nodes), default=0)
    if cores and request.cpus > cores and (given is None or given.cpus is None):
        request = replace(request, cpus=cores)
    if (given is None or given.memory is None) and request.memory > memory:
        request = replace(request, memory=memory)  # 0 where no node's memory is known: none asked
    return request


def trained_sides(stage: Stage) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (side, recipe) of each network that the stage trains."""
    setup = stage.setup
    if "recipes" in setup:
        return [(side, setup["recipes"][name]) for name, side in setup["sides"].items()]
    return [(setup["side"], setup["recipe"])] if setup.get("recipe") and "side" in setup else []


def answering_sides(stage: Stage) -> list[dict[str, Any]]:
    """Return the sides whose networks only answer."""
    setup = stage.setup
    if trained_sides(stage):
        return [setup["gallery_side"]] if setup.get("live") else []
    return [setup["side"]] if "side" in setup else list(setup.get("sides", {}).values())


def _signature(stage: Stage) -> Hashable:
    """Return all that a stage's request depends on."""
    trained = [
        (_key(side), recipe["batch_size"], recipe["precision"], recipe["optimizer"])
        for side, recipe in trained_sides(stage)
    ]
    return (
        stage.kind,
        stage.request,
        stage.setup.get("threads"),
        workers_of(stage),
        stage.setup.get("batch_size"),
        (stage.setup.get("params") or {}).get("momentum"),
        tuple(trained),
        tuple(_key(side) for side in answering_sides(stage)),
    )


def _key(side: dict[str, Any]) -> tuple[str, int]:
    return side["backbone"], side["size"]


def _batch(recipe: dict[str, Any]) -> int:
    """Return the images that one worker has in a batch."""
    return -(-int(recipe["batch_size"]) // int(recipe.get("workers", 1)))


def _name(side: dict[str, Any]) -> str:
    return str(side["backbone"]).partition(".")[0]


def _parameters(side: dict[str, Any]) -> float:
    known = BACKBONES.get(_name(side))
    return 1e6 * (known.mparams if known else _HEAVIEST_MPARAMS)


def _activations(side: dict[str, Any]) -> Activations:
    """Return bytes an image at the side's size: by area, from 224 px."""
    known = ACTIVATIONS.get(_name(side), _HEAVIEST)
    factor = 1e6 * (int(side["size"]) / 224) ** 2
    return Activations(known.train * factor, known.forward * factor)
