"""Networks: heads, initial weights, preprocessing, local weights, and what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from methods import networks
from methods.networks import (
    build_network,
    count_flops,
    count_parameters,
    hash_head,
    parameter_groups,
)
from methods.pairs import SideSpec
from retrieval.errors import InputError, UnknownNameError

BITS = 12
RESNET = SideSpec(backbone="test_resnet", size=32)
EFFICIENT = SideSpec(backbone="test_efficientnet", size=32)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def views(n=4, size=32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("side", [RESNET, EFFICIENT])
@pytest.mark.parametrize("head", ["fc_bn", "fc_tanh", "fc_bn_tanh", "mlp3_tanh"])
def test_network_gives_raw_outputs_and_trains_every_parameter(side, head):
    network = build_network(side, head, BITS, 0, "query")
    assert network.training
    h = network(views())
    assert h.shape == (4, BITS)
    (h**2).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_heads_have_the_layers_of_the_papers():
    def layers(kind):
        return [type(layer).__name__ for layer in hash_head(kind, 8, BITS)]

    assert layers("fc_bn") == ["Linear", "BatchNorm1d"]
    assert layers("fc_tanh") == ["Linear"]
    assert layers("fc_bn_tanh") == ["Linear", "BatchNorm1d"]
    assert layers("mlp3_tanh") == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    assert hash_head("fc_bn", 8, BITS)[0].bias is None
    assert (hash_head("fc_tanh", 8, BITS)[0].bias == 0).all()
    torch.manual_seed(0)
    assert float(hash_head("fc_bn", 4096, 64)[0].weight.detach().std()) == pytest.approx(
        0.01, rel=0.02
    )


def test_initial_weights_depend_on_seed_and_side_alone():
    first = build_network(RESNET, "fc_bn", BITS, 0, "query").state_dict()
    torch.rand(5)
    again = build_network(RESNET, "fc_bn", BITS, 0, "query").state_dict()
    assert same(first, again)
    assert not same(first, build_network(RESNET, "fc_bn", BITS, 0, "gallery").state_dict())
    assert not same(first, build_network(RESNET, "fc_bn", BITS, 1, "query").state_dict())


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    build_network(EFFICIENT, "fc_bn", BITS, 0, "query")
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize(
    ("backbone", "mean"),
    [("test_efficientnet", (0.485, 0.456, 0.406)), ("test_resnet", (0.5, 0.5, 0.5))],
)
def test_views_are_normalised_as_the_backbone_expects(backbone, mean):
    network = build_network(SideSpec(backbone=backbone, size=32), "fc_tanh", BITS, 0, "query")
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network.eval()(torch.tensor(mean).view(1, 3, 1, 1).expand(2, 3, 32, 32))
    np.testing.assert_allclose(seen[0], 0.0, atol=1e-6)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_parameters_keep_the_default_layout_through_training():
    network = build_network(RESNET, "fc_bn", BITS, 0, "query")
    network(views()).sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in network.parameters())


def test_a_single_image_cannot_train_a_head_with_batch_statistics():
    network = build_network(RESNET, "fc_bn", BITS, 0, "query")
    with pytest.raises(ValueError, match="batches of at least 2"):
        network(views(1))
    assert network.eval()(views(1)).shape == (1, BITS)
    assert build_network(RESNET, "fc_tanh", BITS, 0, "query").eval()(views(1)).shape == (1, BITS)


def test_state_dict_holds_weights_only_and_loads_back():
    network = build_network(EFFICIENT, "fc_bn", BITS, 0, "query")
    assert not {"mean", "std"} & set(network.state_dict())
    other = build_network(EFFICIENT, "fc_bn", BITS, 1, "query")
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(views()), network.eval()(views()))


# ---- size, rates, names --------------------------------------------------------------


def test_vision_transformers_take_another_size():
    network = build_network(SideSpec(backbone="test_vit", size=64), "fc_bn", BITS, 0, "query")
    assert network(views(2, 64)).shape == (2, BITS)


def test_drop_rates_reach_the_model():
    side = SideSpec(backbone="mobilenetv3_small_050", size=32, drop_rate=0.2, drop_path_rate=0.1)
    network = build_network(side, "fc_bn", BITS, 0, "query")
    assert network.backbone.drop_rate == 0.2
    # 1024 features: the Linear-Hardswish before the classifier stays.
    assert network.head[0].in_features == 1024


def test_drop_rates_that_a_model_does_not_take_are_refused_by_name():
    with pytest.raises(InputError, match="does not take drop_path_rate") as caught:
        build_network(
            SideSpec(backbone="vgg11", size=32, drop_path_rate=0.1), "fc_bn", BITS, 0, "query"
        )
    assert caught.value.key == "drop_path_rate"


def test_a_size_that_a_model_cannot_take_is_refused(monkeypatch):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("Input height (32) doesn't match model (160).")

    with pytest.raises(InputError, match="cannot take images of 32 px") as caught:
        networks._features(Fixed(), RESNET)
    assert caught.value.key == "size"


def test_unknown_backbones_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean"):
        build_network(SideSpec(backbone="resnet81", size=32), "fc_bn", BITS, 0, "query")


# ---- weights -------------------------------------------------------------------------


def saved(path, *, backbone="test_resnet", edit=lambda state: state):
    torch.manual_seed(7)
    model = timm.create_model(backbone, num_classes=200)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(edit(dict(state)), path)
    return state


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_local_weights_in_half_precision_load_without_their_classifier(backbone, tmp_path):
    path = tmp_path / "w.safetensors"
    state = saved(path, backbone=backbone)
    side = SideSpec(backbone=backbone, size=32, weights=str(path))
    network = build_network(side, "fc_bn", BITS, 0, "gallery")
    loaded = network.backbone.state_dict()
    assert set(loaded) < set(state)
    for key, value in loaded.items():
        assert torch.equal(value, state[key].to(value.dtype))
        assert value.dtype in (torch.float32, torch.int64)
    # The head is as fresh as without local weights.
    fresh = build_network(SideSpec(backbone=backbone, size=32), "fc_bn", BITS, 0, "gallery")
    assert same(network.head.state_dict(), fresh.head.state_dict())


def drop(state):
    return {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}


def add(state):
    return {**state, "extra.weight": torch.zeros(1)}


def reshape(state):
    return {**state, "conv1.0.weight": torch.zeros(2, 2), "bn1.weight": torch.zeros(5)}


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (drop, r"layer1\.0\.conv1\.weight is missing"),
        (add, r"extra\.weight is not in the backbone"),
        (reshape, r"bn1\.weight has shape \(5,\), not"),
    ],
)
def test_local_weights_that_do_not_fit_are_refused_by_key(edit, match, tmp_path):
    path = tmp_path / "w.safetensors"
    saved(path, edit=edit)
    side = SideSpec(backbone="test_resnet", size=32, weights=str(path))
    with pytest.raises(InputError, match=match) as caught:
        build_network(side, "fc_bn", BITS, 0, "query")
    assert caught.value.key == "weights"
    assert caught.value.value == str(path)


def test_weights_of_another_model_name_the_first_keys_only(tmp_path):
    path = tmp_path / "w.safetensors"
    saved(path, backbone="test_efficientnet")
    side = SideSpec(backbone="test_resnet", size=32, weights=str(path))
    with pytest.raises(InputError, match=r"is missing; .*; and \d+ more"):
        build_network(side, "fc_bn", BITS, 0, "query")


@pytest.mark.parametrize("offline", [True, False])
def test_pretrained_without_network_is_refused_at_once(offline, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)

    def unreachable(*_, **__):
        assert not offline
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    began = time.perf_counter()
    with pytest.raises(InputError, match="not in the local cache and cannot be fetched") as caught:
        build_network(
            SideSpec(backbone="test_resnet", size=32, pretrained=True), "fc_bn", BITS, 0, "query"
        )
    assert time.perf_counter() - began < 5
    assert caught.value.key == "pretrained"
    assert "weights: file.safetensors" in caught.value.hint


def test_pretrained_weights_in_the_cache_are_loaded(monkeypatch, tmp_path):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()  # 1000 classes, as published
    save_file(state, path)
    monkeypatch.setattr(networks, "_published_file", lambda name: str(path))
    side = SideSpec(backbone="test_resnet", size=32, pretrained=True)
    loaded = build_network(side, "fc_bn", BITS, 0, "query").backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


# ---- counts --------------------------------------------------------------------------


def test_parameter_groups_cover_every_parameter_once():
    network = build_network(RESNET, "fc_bn", BITS, 0, "query")
    groups = parameter_groups(network)
    assert list(groups) == ["backbone", "head"]
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    assert len(groups["head"]) == 3  # weight, and BatchNorm's scale and shift
    assert count_parameters(network) == sum(p.numel() for p in network.parameters())


def test_flops_of_a_known_layer_and_state_is_kept():
    network = build_network(RESNET, "fc_bn", BITS, 0, "query")
    features = network.head[0].in_features
    whole = count_flops(network, 32)
    assert network.training
    network.head = torch.nn.Sequential(torch.nn.Identity())
    assert whole - count_flops(network, 32) == 2 * features * BITS  # a multiply-add is 2


def test_mobilenetv3_with_its_head_has_the_published_size():
    network = build_network(
        SideSpec(backbone="mobilenetv3_small_100", size=32), "fc_bn", 32, 0, "query"
    )
    assert count_parameters(network) / 1e6 == pytest.approx(1.55, abs=0.005)


def test_views_of_the_larger_side_are_brought_to_the_network_s_own_size():
    from torchvision.transforms.v2.functional import resize

    network = build_network(SideSpec(backbone="test_resnet", size=24), "fc_bn", 8, 0, "query")
    views = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smaller = resize(views, [24, 24], antialias=True)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(views), network(smaller), rtol=1e-4, atol=1e-5)
