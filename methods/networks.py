"""Networks: a timm backbone with a hash head. The only file that imports timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from methods.base import HeadKind
from methods.pairs import BACKBONES, SideSpec, check_weights, pinned
from retrieval.errors import InputError, UnknownNameError, nearest
from retrieval.streams import torch_stream

__all__ = [
    "HashNetwork",
    "build_network",
    "check_timm_name",
    "count_flops",
    "count_parameters",
    "default_tag",
    "hash_head",
    "parameter_groups",
]

_HEAD_STD = 0.01
_CONNECT_SECONDS = 5.0


# ---- names ---------------------------------------------------------------------------


def default_tag(name: str) -> str:
    """Return the tag of timm's default weights for the model ``name``, "" where it has none.

    Raises:
        UnknownNameError: timm has no such model.
    """
    check_timm_name(name, "")
    config = get_pretrained_cfg(name)
    return str(config.tag or "") if config is not None else ""


def check_timm_name(name: str, tag: str) -> None:
    """Refuse a model or a pretrained tag that timm does not have.

    Raises:
        UnknownNameError: ``key`` is "backbone"; says the nearest names.
    """
    if not timm.is_model(name):
        near = nearest(name, timm.list_models(), n=6)  # of more than a thousand
        raise UnknownNameError("backbone", name, [*near, *BACKBONES], key="backbone")
    if tag:
        tagged = timm.list_pretrained(f"{name}.*")
        if f"{name}.{tag}" not in tagged:
            raise UnknownNameError(
                "pretrained tag of a backbone", f"{name}.{tag}", tagged, key="backbone"
            )


# ---- the network ---------------------------------------------------------------------


def hash_head(kind: HeadKind, features: int, bits: int) -> nn.Sequential:
    """Return a head (n, features) -> (n, bits); its output is raw, losses apply any tanh.

    The last linear layer is drawn from N(0, 0.01^2) and has bias 0. ``fc_bn`` is OrthoHash's and
    CSCH's, ``fc_tanh`` and ``mlp3_tanh`` are CSQ's, ``fc_bn_tanh`` is MDSH's.
    """
    last = nn.Linear(features, bits, bias=kind != "fc_bn")
    nn.init.normal_(last.weight, std=_HEAD_STD)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    if kind == "fc_tanh":
        return nn.Sequential(last)
    if kind == "mlp3_tanh":
        return nn.Sequential(
            nn.Linear(features, features),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(features, features),
            nn.ReLU(),
            last,
        )
    return nn.Sequential(last, nn.BatchNorm1d(bits, momentum=0.1))


class HashNetwork(nn.Module):
    """Images in, raw hash outputs out.

    Inputs are laid out channels last, whatever the network: on one CPU thread, with 64 images of
    64 px, a training step of MobileNetV3-S takes 0.13 s instead of 0.19 and one of ResNet-18 0.69
    instead of 0.60, and it is the query that is trained many times. Parameters keep the default
    layout, since fused optimisers silently mix up a channels-last parameter with a state that was
    read back in the default layout.

    Args:
        backbone: a timm model without classifier.
        head: (n, features) -> (n, B).
        mean, std: of the backbone's own preprocessing, three numbers each.
        size: the side's input size in px; larger views are brought to it. Both sides of a pair
            train on the same views, which have the size of the larger one.

    Attributes:
        backbone, head, size: as given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Sequential,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.backbone = backbone
        self.head = head
        # Not trained and not saved: they follow from the backbone's name.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._batch_statistics = any(isinstance(layer, nn.BatchNorm1d) for layer in head)

    def forward(self, views: Tensor) -> Tensor:
        """Return the raw hash outputs.

        Args:
            views: (n, 3, S, S) floats in [0, 1].

        Returns:
            h (n, B).

        Raises:
            ValueError: a single image in training mode, where the head normalises over the batch.
        """
        if self.training and self._batch_statistics and len(views) < 2:
            raise ValueError(
                "a batch of 1 image cannot train a head with batch normalisation; "
                "use batches of at least 2"
            )
        if self.size is not None and views.shape[-1] != self.size:
            views = F.interpolate(views, self.size, mode="bilinear", antialias=True)
        x = ((views - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        h: Tensor = self.head(self.backbone(x))
        return h


def build_network(
    side: SideSpec,
    head: HeadKind,
    bits: int,
    seed: int,
    side_name: Literal["query", "gallery"],
) -> HashNetwork:
    """Build one side's network with its initial weights, on the CPU, in training mode.

    Fresh weights are drawn from the stream (seed, side), so that a side's initial network does not
    depend on the other side.

    Args:
        side: backbone, size, weights.
        head: which hash head.
        bits: B.
        seed: the trial's seed.
        side_name: which side.

    Raises:
        UnknownNameError: timm has no such backbone.
        InputError: weights that are missing or do not fit, a size or rate that the backbone does
            not take, or pretrained weights that cannot be fetched.
    """
    name = pinned(side.backbone)
    source: dict[str, Any] = {}
    if side.pretrained and side.weights is None:
        source = {"pretrained": True, "pretrained_cfg_overlay": {"file": _published_file(name)}}
    with torch_stream(seed, side_name, "init"):
        backbone = _create(name, side, source)
        if side.weights is not None:
            _load_weights(backbone, side.weights, name)
        features = _features(backbone, side)
        head_module = hash_head(head, features, bits)
    config = resolve_model_data_config(backbone)
    return HashNetwork(backbone, head_module, config["mean"], config["std"], side.size).train()


def _create(name: str, side: SideSpec, source: dict[str, Any]) -> nn.Module:
    """Create the timm model; rates of 0 are passed on too, since some models default to more."""
    arguments: dict[str, Any] = {"num_classes": 0, **source}
    model_name, _, tag = name.partition(".")
    check_timm_name(model_name, tag)
    config = get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and config.input_size[-1] != side.size:
        arguments["img_size"] = side.size
    rates = {"drop_rate": side.drop_rate, "drop_path_rate": side.drop_path_rate}
    state = torch.get_rng_state()
    while True:
        try:
            torch.set_rng_state(state)
            model: nn.Module = timm.create_model(name, **arguments, **rates)
            return model
        except TypeError as error:
            refused = next((r for r in ("img_size", *rates) if f"'{r}'" in str(error)), None)
            if refused is None:
                raise
            if refused == "img_size":
                assert config is not None
                raise InputError(
                    f"backbone {name!r} takes images of {config.input_size[-1]} px only",
                    key="size",
                    value=side.size,
                ) from None
            if rates.pop(refused) > 0:
                raise InputError(
                    f"backbone {name!r} does not take {refused}",
                    key=refused,
                    value=getattr(side, refused),
                    hint="set it to 0",
                ) from None
        except (RuntimeError, AssertionError, ValueError) as error:
            if side.pretrained:
                raise InputError(
                    f"the pretrained weights of {name!r} cannot be loaded: {_first_line(error)}",
                    key="pretrained",
                ) from None
            raise InputError(
                f"backbone {name!r} cannot be built at {side.size} px: {_first_line(error)}",
                key="size",
                value=side.size,
            ) from None


def _features(backbone: nn.Module, side: SideSpec) -> int:
    """Run one image through and return the width of what comes out."""
    training = backbone.training
    try:
        with torch.no_grad():
            output = backbone.eval()(torch.zeros(1, 3, side.size, side.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"backbone {side.backbone!r} cannot take images of {side.size} px: "
            f"{_first_line(error)}",
            key="size",
            value=side.size,
        ) from None
    finally:
        backbone.train(training)
    if output.ndim != 2:
        raise InputError(
            f"backbone {side.backbone!r} gives outputs of shape {tuple(output.shape)}, not one "
            "feature vector an image",
            key="backbone",
        )
    return int(output.shape[1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# ---- weights -------------------------------------------------------------------------


def _load_weights(backbone: nn.Module, path: str, name: str) -> None:
    """Load a .safetensors file into ``backbone``: all of it but its classifier.

    Raises:
        InputError: the file is missing or unreadable, or its keys or shapes do not fit; names the
            first that do not.
    """
    check_weights(path)
    try:
        given = load_file(Path(path).expanduser())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"cannot be read: {_first_line(error)}", key="weights", value=path
        ) from None
    wanted = backbone.state_dict()
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    classifier = config.get("classifier") or ()
    prefixes = tuple(
        f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier)
    )
    kept = {k: v for k, v in given.items() if k in wanted or not k.startswith(prefixes or ("\0",))}
    misfits = [f"{k} is missing" for k in wanted if k not in kept]
    misfits += [f"{k} is not in the backbone" for k in kept if k not in wanted]
    misfits += [
        f"{k} has shape {tuple(v.shape)}, not {tuple(wanted[k].shape)}"
        for k, v in kept.items()
        if k in wanted and v.shape != wanted[k].shape
    ]
    if misfits:
        more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise InputError(
            f"these weights do not fit backbone {name!r}: {'; '.join(misfits[:3])}{more}",
            key="weights",
            value=path,
        )
    # Copying converts, so half-precision files end up in the model's own float32.
    backbone.load_state_dict(kept)


def fetch_published(backbone: str) -> str:
    """Return the local file of a backbone's published weights, fetching it where it is not there.

    Called once before a study starts, so that a missing network is one message and not as many
    failed stages.

    Raises:
        InputError: ``key`` is "pretrained".
    """
    return _published_file(pinned(backbone))


def cached_weights(backbone: str) -> str | None:
    """Return the local file of a backbone's published weights, or None; never fetches."""
    import huggingface_hub

    repository = getattr(get_pretrained_cfg(pinned(backbone)), "hf_hub_id", None)
    if not repository:
        return None
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    return cached if isinstance(cached, str) else None


def _published_file(name: str) -> str:
    """Return the local file of timm's published weights, fetched where there is a network.

    timm itself would try for most of a minute before it says that there is none.

    Raises:
        InputError: ``key`` is "pretrained".
    """
    import huggingface_hub
    from huggingface_hub import constants

    config = get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise InputError(
            f"timm publishes no weights for {name!r}",
            key="pretrained",
            value=True,
            hint="give weights: file.safetensors, or pretrained: false",
        )
    file = "model.safetensors"
    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return cached
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        url = huggingface_hub.hf_hub_url(repository, file)
        huggingface_hub.get_hf_file_metadata(url, timeout=_CONNECT_SECONDS)
        return str(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # the client's own classes differ between its releases
        raise InputError(
            f"the weights of {name!r} are not in the local cache and cannot be fetched: "
            f"{_first_line(error)}",
            key="pretrained",
            value=True,
            hint="give weights: file.safetensors, or pretrained: false",
        ) from None


# ---- what there is in it ---------------------------------------------------------------


def parameter_groups(network: HashNetwork) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters as "backbone" and "head", each in a fixed order."""
    return {
        "backbone": [p for p in network.backbone.parameters() if p.requires_grad],
        "head": [p for p in network.head.parameters() if p.requires_grad],
    }


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, size: int) -> int:
    """Return the floating-point operations of one forward pass of one image of ``size`` px.

    A multiply-add counts 2; papers that write "GFLOPs" mostly mean multiply-adds, half of this.
    """
    training = network.training
    device = next(network.parameters()).device
    counter = FlopCounterMode(display=False)
    # The counter has no formula for torch's fused inference kernels of attention.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            network.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        network.train(training)
    return int(counter.get_total_flops())
