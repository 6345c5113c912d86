"""A network as its weights and a description that timm alone can build it from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from methods.pairs import pinned

if TYPE_CHECKING:
    from methods.networks import HashNetwork
    from orchestrator.serving.trained import TrainedSide


def describe_network(side: TrainedSide) -> dict[str, Any]:
    """Return what a network is made of, as JSON values: backbone, head, normalisation, size."""
    network = side.network
    return {
        "backbone": {
            "name": pinned(side.spec.backbone),
            "arguments": {"num_classes": 0, **_own_size(network)},
        },
        "head": [_layer(layer) for layer in network.head],
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "size": side.size,
    }


def _own_size(network: HashNetwork) -> dict[str, int]:
    """Return the size, where a backbone is built for one and this is another than its default."""
    published: dict[str, Any] = getattr(network.backbone, "pretrained_cfg", None) or {}
    other = published.get("fixed_input_size") and published["input_size"][-1] != network.size
    return {"img_size": int(network.size)} if other and network.size else {}


def _layer(layer: nn.Module) -> dict[str, Any]:
    """Return a layer of a hash head."""
    if isinstance(layer, nn.Linear):
        return {
            "layer": "linear",
            "inputs": layer.in_features,
            "outputs": layer.out_features,
            "bias": layer.bias is not None,
        }
    if isinstance(layer, nn.BatchNorm1d):
        return {"layer": "batch_norm", "features": layer.num_features, "eps": layer.eps}
    names: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Dropout: "dropout"}
    return {"layer": names[type(layer)]}
