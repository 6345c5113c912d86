"""Sides and pairs: defaults, identity, what is refused, and that planning needs no torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from methods import pairs
from methods.pairs import (
    BACKBONES,
    PAIRS,
    PairSpec,
    SideSpec,
    backbone_gmacs,
    check_backbone,
    check_weights,
    pinned,
)
from retrieval.errors import InputError, UnknownNameError
from retrieval.validation import explain_validation


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    return path


def test_size_defaults_to_the_backbones_own():
    assert SideSpec(backbone="resnet18").size == 224
    assert SideSpec(backbone="mobilevit_xxs.cvnets_in1k").size == 256
    assert SideSpec(backbone="test_resnet", size=64).size == 64
    assert SideSpec(backbone="some_other_model").size == 224


def test_side_survives_json():
    side = SideSpec(backbone="resnet18", size=64, drop_rate=0.2)
    assert SideSpec(**side.model_dump(mode="json")) == side
    assert SideSpec.model_validate_json(side.model_dump_json()) == side


def test_bare_names_are_pinned_to_a_tag():
    assert pinned("resnet101") == "resnet101.a1h_in1k"
    assert pinned("resnet50.tv_in1k") == "resnet50.tv_in1k"
    bare, tagged = SideSpec(backbone="resnet18"), SideSpec(backbone="resnet18.a1_in1k")
    assert bare.identity() == tagged.identity()


def test_names_outside_the_table_are_pinned_by_timm():
    assert pinned("test_byobnet") == "test_byobnet.r160_in1k"


def test_table_agrees_with_timm():
    timm = pytest.importorskip("timm")
    for name, known in BACKBONES.items():
        assert timm.is_model(name)
        assert f"{name}.{known.tag}" in timm.list_pretrained(f"{name}.*")


def test_identity_of_local_weights_is_their_content(weights, tmp_path):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    side = SideSpec(backbone="resnet18", weights=str(weights))
    assert side.identity()["weights"] == f"sha256:{digest}"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert SideSpec(backbone="resnet18", weights=str(copy)).identity() == side.identity()
    save_file({"a": torch.zeros(3)}, copy)
    assert SideSpec(backbone="resnet18", weights=str(copy)).identity() != side.identity()


def test_identity_reads_a_file_once_until_it_changes(weights, monkeypatch):
    calls = []
    original = hashlib.file_digest
    monkeypatch.setattr(pairs.hashlib, "file_digest", lambda *a: calls.append(1) or original(*a))
    side = SideSpec(backbone="resnet18", weights=str(weights))
    side.identity()
    side.identity()  # written just now: it might change again within the clock's resolution
    assert len(calls) == 2
    os.utime(weights, ns=(1, 1))
    assert side.identity() == side.identity()
    assert len(calls) == 3
    os.utime(weights, ns=(2, 2))
    side.identity()
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "random"), ({"pretrained": True}, "pretrained:a1_in1k")]
)
def test_identity_of_other_weights(given, expected):
    assert SideSpec(backbone="resnet18", **given).identity() == {
        "backbone": "resnet18.a1_in1k",
        "size": 224,
        "drop_rate": 0.0,
        "drop_path_rate": 0.0,
        "weights": expected,
    }


def test_weights_stand_for_the_published_ones_where_both_are_given(weights):
    both = SideSpec.parse({"backbone": "resnet18", "pretrained": True, "weights": str(weights)})
    alone = SideSpec.parse({"backbone": "resnet18", "weights": str(weights)})
    assert both.identity() == alone.identity()


@pytest.mark.parametrize(
    ("given", "key", "match"),
    [
        ({}, "backbone", "required"),
        ({"backbone": "resnet18", "sise": 64}, "sise", "did you mean 'size'"),
        ({"backbone": "resnet18", "size": "64"}, "size", "valid integer"),
        ({"backbone": "resnet18", "size": 0}, "size", "greater than or equal to 8"),
        ({"backbone": "resnet18", "drop_rate": 1.0}, "drop_rate", "less than 1"),
    ],
)
def test_wrong_sides_are_refused_by_key(given, key, match):
    with pytest.raises(InputError, match=match) as caught:
        SideSpec.parse(given)
    assert caught.value.key == key


def test_what_is_read_in_timms_text_agrees_with_timm():
    timm = pytest.importorskip("timm")
    from timm.models import get_pretrained_cfg

    declared = pairs._timm_declarations()
    assert set(declared) == set(timm.list_models())
    published = set(timm.list_pretrained())
    told = [(name, model) for name, model in declared.items() if model.tags]
    assert len(told) > 1000  # where the text does not tell, timm itself is asked
    for name, model in told:
        config = get_pretrained_cfg(name)
        assert model.tags[0] == ((config and config.tag) or "")
        tags = {f"{name}.{tag}" if tag else name for tag in model.with_weights}
        assert tags <= published


def test_names_that_timms_text_tells_import_no_timm():
    code = (
        "import sys; from methods.pairs import SideSpec;"
        "side = SideSpec(backbone='test_byobnet', size=32); side.check();"
        "assert side.identity()['backbone'] == 'test_byobnet.r160_in1k';"
        "SideSpec(backbone='resnet26.bt_in1k').check();"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("configs", "tags", "with_weights"),
    [
        ("'a.x': _cfg(url='https://x'),\n'a.y': _cfg(hf_hub_id='t/'),", ["x", "y"], {"x", "y"}),
        ("'a.x': _cfg(url=''),\n'a.y': _cfg(hf_hub_id='t/'),", ["y", "x"], {"y"}),
        ("'a.x': _cfg(hf_hub_id='t/'),\n'a.y*': _cfg(hf_hub_id='t/'),", ["y", "x"], {"x", "y"}),
        ("'a': _cfg(),  # url='https://old'", [""], set()),
        ("'a.x': {'url': 'https://x'},\n'a.y': _cfg(\n  file=None),", ["x", "y"], {"x"}),
    ],
)
def test_tags_come_in_timms_order(configs, tags, with_weights):
    assert pairs._declared_tags(configs)["a"] == (tags, frozenset(with_weights))


def test_unknown_backbones_and_tags_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="mobilenetv3_small_100") as caught:
        check_backbone("mobilnetv3_small_100")
    assert caught.value.key == "backbone"
    with pytest.raises(UnknownNameError, match=r"did you mean 'test_resnet\.r160_in1k'"):
        check_backbone("test_resnet.r16_in1k")
    check_backbone("resnet18")
    check_backbone("test_byobnet.r160_in1k")


def test_weights_that_are_no_safetensors_are_refused(weights, tmp_path):
    check_weights(str(weights))

    def refused(name, content, match):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=match) as caught:
            SideSpec(backbone="resnet18", weights=str(path)).check()
        assert caught.value.key == "weights"
        return caught.value

    refused("missing.safetensors", None, "no such file")
    assert "save_file" in refused("old.pth", b"x", "must be a .safetensors").hint
    refused("empty.safetensors", b"", "no safetensors file")
    refused("text.safetensors", b"not at all what it says it is", "no safetensors file")
    refused("cut.safetensors", weights.read_bytes()[:-4], "cut short")
    (tmp_path / "folder.safetensors").mkdir()
    refused("folder.safetensors", None, "not a file")


def test_identity_of_missing_weights_is_an_input_error(tmp_path):
    side = SideSpec(backbone="resnet18", weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match="cannot be read"):
        side.identity()


def test_gmacs_grow_with_the_area():
    assert backbone_gmacs("resnet50.tv_in1k", 448) == pytest.approx(4 * 4.0871)
    assert backbone_gmacs("nobody_knows", 224) > 0


@pytest.mark.parametrize("name", PAIRS.names())
def test_named_pairs_are_complete(name):
    pair = PAIRS.get(name)
    assert pair.name == name
    assert "." in pair.query.backbone
    assert "." in pair.gallery.backbone
    pair.query.check()
    pair.gallery.check()
    assert PairSpec(**pair.model_dump(mode="json")) == pair


def test_pairs_of_the_literature_and_small_ones_are_there():
    assert {"mnv3s-rn50", "mnv3l-rn101", "mvitxxs-vitb16", "small", "tiny"} <= set(PAIRS.names())
    assert "MobileViT-XS" in PAIRS.get("mvitxxs-vitb16").note
    with pytest.raises(UnknownNameError, match="did you mean 'mnv3s-rn50'"):
        PAIRS.get("mnv3s_rn50")


def test_a_pair_without_a_name_is_called_by_its_backbones():
    pair = PairSpec(query={"backbone": "resnet18"}, gallery=SideSpec(backbone="resnet50"))
    assert pair.name == "resnet18-resnet50"


def test_wrong_pairs_are_refused_by_their_dotted_key():
    with pytest.raises(ValidationError) as caught:
        PairSpec(query={"backbone": "resnet18", "sise": 64}, gallery={"backbone": "resnet50"})
    error = explain_validation(caught.value, PairSpec)
    assert error.key == "query.sise"
    assert "did you mean 'size'" in str(error)


def test_declaring_pairs_imports_neither_torch_nor_timm():
    code = (
        "import sys; from methods.pairs import *;"
        "p = PAIRS.get('tiny'); p.query.check(); p.query.identity();"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
