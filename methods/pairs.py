"""Pairs of backbones: what runs on the phone and what runs on the server.

Everything here is declaration, so that a study can be planned without importing torch or timm: a
side's backbone, size and weights, the named pairs of the literature, and a table of well-known
backbones with their costs. Networks are built in ``methods.networks``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from retrieval.errors import InputError, UnknownNameError
from retrieval.registry import Registry
from retrieval.validation import explain_validation

__all__ = [
    "BACKBONES",
    "PAIRS",
    "Backbone",
    "PairSpec",
    "SideSpec",
    "backbone_gmacs",
    "check_backbone",
    "check_weights",
    "default_pair_name",
    "pinned",
]


class Backbone(NamedTuple):
    """What is known of a timm model without building it.

    Attributes:
        tag: the pretrained tag that a bare name stands for; fixes weights and preprocessing.
        gmacs: 10^9 multiply-adds of one forward pass at 224 px, without classifier.
        mparams: 10^6 parameters, without classifier.
        size: default input size in px.
    """

    tag: str
    gmacs: float
    mparams: float
    size: int = 224


BACKBONES: dict[str, Backbone] = {
    "mobilenetv3_small_050": Backbone("lamb_in1k", 0.0232, 0.568),
    "mobilenetv3_small_100": Backbone("lamb_in1k", 0.0555, 1.518),
    "mobilenetv3_large_100": Backbone("ra_in1k", 0.2153, 4.202),
    "mobilenetv2_100": Backbone("ra_in1k", 0.2995, 2.224),
    "mobilevit_xxs": Backbone("cvnets_in1k", 0.3012, 0.951, 256),
    "mobilevit_xs": Backbone("cvnets_in1k", 0.7720, 1.933, 256),
    "efficientnet_b0": Backbone("ra_in1k", 0.3845, 4.008),
    "resnet18": Backbone("a1_in1k", 1.8136, 11.177),
    "resnet34": Backbone("a1_in1k", 3.6632, 21.285),
    "resnet50": Backbone("a1_in1k", 4.0871, 23.508),
    "resnet101": Backbone("a1h_in1k", 7.7994, 42.500),
    "convnext_tiny": Backbone("in12k_ft_in1k", 4.4548, 27.820),
    "vit_tiny_patch16_224": Backbone("augreg_in21k_ft_in1k", 1.2535, 5.524),
    "vit_small_patch16_224": Backbone("augreg_in21k_ft_in1k", 4.5985, 21.666),
    "vit_base_patch16_224": Backbone("augreg2_in21k_ft_in1k", 17.5631, 85.799),
    "deit_small_patch16_224": Backbone("fb_in1k", 4.5985, 21.666),
    "swin_tiny_patch4_window7_224": Backbone("ms_in1k", 4.4898, 27.519),
    "test_resnet": Backbone("r160_in1k", 0.2008, 0.373, 32),
    "test_efficientnet": Backbone("r160_in1k", 0.1118, 0.099, 32),
    "test_byobnet": Backbone("r160_in1k", 0.0605, 0.200, 32),
    "test_vit": Backbone("r160_in1k", 0.0879, 0.312, 32),
}
"""Backbones that planning knows by itself; any other timm model works too."""

_DEFAULT_SIZE = 224
_UNKNOWN_GMACS = 4.0  # of a ResNet-50; only the order of stages hangs on it


def _split(backbone: str) -> tuple[str, str]:
    name, _, tag = backbone.partition(".")
    return name, tag


def backbone_gmacs(backbone: str, size: int) -> float:
    """Estimate 10^9 multiply-adds of one forward pass at ``size`` px, by area from 224 px."""
    known = BACKBONES.get(_split(backbone)[0])
    return (known.gmacs if known else _UNKNOWN_GMACS) * (size / 224) ** 2


def pinned(backbone: str) -> str:
    """Return the backbone with its pretrained tag, ``resnet18`` as ``resnet18.a1_in1k``.

    The tag fixes the weights and the preprocessing. timm's own default may change from release to
    release; for the backbones in the table it cannot change here.
    """
    name, tag = _split(backbone)
    if tag:
        return backbone
    if name in BACKBONES:
        return f"{name}.{BACKBONES[name].tag}"
    declared = _timm_declarations().get(name)
    if declared is not None and declared.tags:
        tag = declared.tags[0]
    else:
        from methods.networks import default_tag  # imports timm: only where its text is not enough

        tag = default_tag(name)
    return f"{name}.{tag}" if tag else name


def check_backbone(backbone: str) -> None:
    """Refuse a name or tag that is no timm model.

    Raises:
        UnknownNameError: with the nearest names that timm has.
    """
    name, tag = _split(backbone)
    if backbone == f"{name}.":
        raise UnknownNameError("backbone", backbone, {name, *BACKBONES}, key="backbone")
    if name in BACKBONES and tag in ("", BACKBONES[name].tag):
        return
    declared = _timm_declarations().get(name)
    if declared is not None and (not tag or tag in declared.with_weights):
        return
    from methods.networks import check_timm_name  # imports timm: only to refuse, or for rare names

    check_timm_name(name, tag)


# ---- timm's declarations, read as text: importing timm takes seconds, a plan may not ---------


class _Declared(NamedTuple):
    """What timm's source declares of a model.

    Attributes:
        tags: its pretrained tags, the default one first; empty where the text does not tell.
        with_weights: the tags whose weights are published.
    """

    tags: list[str]
    with_weights: frozenset[str]


_MODEL = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)
_CONFIGS = re.compile(
    r"^default_cfgs\b[^\n=]*=[ \t]*generate_default_cfgs\(\{\n(.*?)^\}\)", re.MULTILINE | re.DOTALL
)
_CONFIG = re.compile(r"""^[ \t]*['"](\w+)(?:\.([\w.-]+\*?))?['"][ \t]*:""", re.MULTILINE)
_WEIGHTS = re.compile(
    r"""(?:\b(?:hf_hub_id|url|file)[ \t]*=|['"](?:hf_hub_id|url|file)['"][ \t]*:)"""
    r"""[ \t]*(?!['"]{2}|None)"""
)


@lru_cache(maxsize=1)
def _timm_declarations() -> dict[str, _Declared]:
    """Return model -> what the source of the installed timm declares of it.

    Whoever is not in here may still be a model: a renamed one, or one declared in another way.
    """
    found = importlib.util.find_spec("timm")
    folders = list(found.submodule_search_locations or ()) if found else []
    table: dict[str, _Declared] = {}
    for folder in folders:
        for path in sorted((Path(folder) / "models").glob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            configs = "".join(match[1] for match in _CONFIGS.finditer(text))
            declared = _declared_tags(configs)
            for match in _MODEL.finditer(text):
                table[match[1]] = declared.get(match[1], _Declared([], frozenset()))
    return table


def _declared_tags(configs: str) -> dict[str, _Declared]:
    """Return model -> tags, in the order that timm's ``generate_default_cfgs`` gives them."""
    tags: dict[str, list[str]] = {}
    weights: dict[str, set[str]] = {}
    marked: set[str] = set()
    keys = list(_CONFIG.finditer(configs))
    ends = [key.start() for key in keys[1:]] + [len(configs)] * bool(keys)
    for key, end in zip(keys, ends, strict=True):
        body = re.sub(r"#[^\n]*", "", configs[key.end() : end])
        name, tag = key[1], key[2] or ""
        published = _WEIGHTS.search(body) is not None
        known = tags.setdefault(name, [])
        first = (published and not tag) or (tag.endswith("*") and name not in marked)
        tag = tag.rstrip("*")
        if first:
            marked.add(name)
        if first or (published and name not in weights):
            known.insert(0, tag)
        else:
            known.append(tag)
        if published:
            weights.setdefault(name, set()).add(tag)
    return {
        name: _Declared(known, frozenset(weights.get(name, ()))) for name, known in tags.items()
    }


def check_weights(path: str) -> None:
    """Refuse a weights file that is missing or is not safetensors; reads only its header.

    Raises:
        InputError: ``key`` is "weights".
    """
    file = Path(path).expanduser()

    def refuse(problem: str, hint: str | None = None) -> InputError:
        return InputError(problem, key="weights", value=path, hint=hint)

    if not file.exists():
        raise refuse("there is no such file")
    if not file.is_file():
        raise refuse("this is not a file")
    if file.suffix != ".safetensors":
        raise refuse(
            "weights must be a .safetensors file; other formats can run code when they are read",
            'convert it where you trust it: safetensors.torch.save_file(torch.load("w.pth", '
            'weights_only=True), "w.safetensors")',
        )
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        available = file.stat().st_size - 8
        try:
            if not 2 <= length <= min(available, 100_000_000):
                raise ValueError
            header = json.loads(stream.read(length))
            if not isinstance(header, dict):
                raise ValueError
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            if length + max(ends, default=0) != available:
                raise ValueError
        except (ValueError, KeyError, TypeError, IndexError):
            raise refuse("this is no safetensors file, or it is cut short") from None


_digests: dict[tuple[str, int, int], str] = {}
_SETTLED_NS = 2_000_000_000  # a younger file could change again without its time showing it


def _sha256(path: str) -> str:
    """Return the SHA-256 of a file, computed once for each (path, size, modification time)."""
    file = Path(path).expanduser()
    try:
        about = file.stat()
        key = (str(file.resolve()), about.st_size, about.st_mtime_ns)
        if key in _digests:
            return _digests[key]
        began = time.time_ns()
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}", key="weights", value=path
        ) from None
    if began - about.st_mtime_ns > _SETTLED_NS:
        _digests[key] = digest
    return digest


class SideSpec(BaseModel):
    """One side of a pair: a timm backbone, its input size and its initial weights.

    Attributes:
        backbone: timm model, with or without a pretrained tag.
        size: input size in px; the backbone's own default where it is not given.
        drop_rate: dropout before the hash head, as timm's models define it.
        drop_path_rate: stochastic depth.
        pretrained: start from the weights that timm publishes under the tag.
        weights: start from this .safetensors file with timm's key names, without its classifier;
            it stands for the published weights where ``pretrained`` is given too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    backbone: str = Field(min_length=1)
    size: int = Field(ge=8, le=2048)
    drop_rate: float = Field(0.0, ge=0, lt=1)
    drop_path_rate: float = Field(0.0, ge=0, lt=1)
    pretrained: bool = False
    weights: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_size(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("size") is None:
            known = BACKBONES.get(_split(str(data.get("backbone", "")))[0])
            return {**data, "size": known.size if known else _DEFAULT_SIZE}
        return data

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> SideSpec:
        """Validate ``given``.

        Raises:
            InputError: naming the key, the value and what is allowed.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            raise explain_validation(error, cls) from None

    def check(self) -> None:
        """Refuse an unknown backbone or an unreadable weights file.

        Raises:
            InputError: ``key`` is "backbone" or "weights".
        """
        check_backbone(self.backbone)
        if self.weights is not None:
            check_weights(self.weights)

    def identity(self) -> dict[str, Any]:
        """Return what of this side can change a number, as JSON values.

        The backbone has its tag, and local weights go by their content, not their path.

        Raises:
            InputError: the weights file cannot be read.
        """
        backbone = pinned(self.backbone)
        if self.weights is not None:
            weights = f"sha256:{_sha256(self.weights)}"
        elif self.pretrained:
            weights = f"pretrained:{_split(backbone)[1]}"
        else:
            weights = "random"
        return {
            "backbone": backbone,
            "size": self.size,
            "drop_rate": self.drop_rate,
            "drop_path_rate": self.drop_path_rate,
            "weights": weights,
        }


class PairSpec(BaseModel):
    """A query backbone and a gallery backbone.

    Attributes:
        query: the small network.
        gallery: the large network.
        name: how tables call the pair; "QUERY-GALLERY" of the backbones where it is not given.
        note: what a reader of a table should know of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    query: SideSpec
    gallery: SideSpec
    name: str = Field("", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", validate_default=True)
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name"):
            name = default_pair_name(data)
            return data if name is None else {**data, "name": name}
        return data


def default_pair_name(given: Mapping[str, Any]) -> str | None:
    """Return what a pair without a name is called; None where it has not two backbones.

    Args:
        given: ``query`` and ``gallery``, each a side or its backbone.
    """
    sides = [given.get(side) for side in ("query", "gallery")]
    names = [
        side.get("backbone") if isinstance(side, dict) else getattr(side, "backbone", side)
        for side in sides
    ]
    if all(isinstance(name, str) and name for name in names):
        return "-".join(map(str, names))
    return None


PAIRS: Registry[PairSpec] = Registry("pair", group="asymbench.pairs")


def _published(backbone: str, drop_rate: float = 0.0) -> SideSpec:
    """A side as in the papers: ImageNet weights, 224 px."""
    return SideSpec(backbone=backbone, size=224, drop_rate=drop_rate, pretrained=True)


# The CSCH paper's pairs. Its MobileNetV3 keeps the dropout of 0.2 before the hash layer.
_MNV3S = _published("mobilenetv3_small_100.lamb_in1k", 0.2)
_MNV3L = _published("mobilenetv3_large_100.ra_in1k", 0.2)
_MVITXXS = _published("mobilevit_xxs.cvnets_in1k")
_MVITXS = _published("mobilevit_xs.cvnets_in1k")
_RN50 = _published("resnet50.a1_in1k")
_RN101 = _published("resnet101.a1h_in1k")
_VITB16 = _published("vit_base_patch16_224.augreg2_in21k_ft_in1k")
_AMBIGUOUS = (
    "the CSCH paper says MobileViT-XXS, but its 1.09 GFLOPs and 1.91 M parameters are those of "
    "MobileViT-XS; both pairs are here"
)

for _pair in (
    PairSpec(name="mnv3s-rn50", query=_MNV3S, gallery=_RN50),
    PairSpec(name="mnv3l-rn101", query=_MNV3L, gallery=_RN101),
    PairSpec(name="mvitxxs-vitb16", query=_MVITXXS, gallery=_VITB16, note=_AMBIGUOUS),
    PairSpec(name="mvitxs-vitb16", query=_MVITXS, gallery=_VITB16, note=_AMBIGUOUS),
    PairSpec(name="rn50-rn50", query=_RN50, gallery=_RN50, note="upper bound of mnv3s-rn50"),
    PairSpec(name="rn101-rn101", query=_RN101, gallery=_RN101, note="upper bound of mnv3l-rn101"),
    PairSpec(
        name="vitb16-vitb16", query=_VITB16, gallery=_VITB16, note="upper bound of ViT pairs"
    ),
    PairSpec(
        name="small",
        query=SideSpec(backbone="mobilenetv3_small_100.lamb_in1k", size=64),
        gallery=SideSpec(backbone="resnet18.a1_in1k", size=64),
        note="for one GPU or a patient CPU; random weights unless weights are given",
    ),
    PairSpec(
        name="tiny",
        query=SideSpec(backbone="test_efficientnet.r160_in1k", size=32),
        gallery=SideSpec(backbone="test_resnet.r160_in1k", size=32),
        note="for tests and the quickstart; random weights",
    ),
):
    PAIRS.register(_pair.name)(_pair)
