"""How much memory stages need, and the requests that follow from it."""

from types import SimpleNamespace

import pytest

from cluster.accelerators import ACCELERATORS
from cluster.resources import ACCELERATOR_LABEL, Asked, Capacity, Node, Request
from methods.pairs import BACKBONES
from orchestrator.footprint import (
    ACTIVATIONS,
    gpu_busy,
    gpu_bytes,
    host_bytes,
    network_bytes,
    request_for,
    requests_for,
)
from orchestrator.plan import Stage

RECIPE = {"batch_size": 64, "precision": "fp32", "optimizer": "adam"}


def side(backbone: str = "resnet18", size: int = 224) -> dict[str, object]:
    return {"backbone": backbone, "size": size}


def stage(kind="query", request=None, **setup) -> Stage:
    setup = {"threads": 1, **setup}
    return Stage(f"{kind}-{len(setup)}", kind, {}, {}, setup, request, kind)


def cluster(gpu: str = "", gpus: float = 1.0, cpus: float = 16.0, memory: int = 10**12):
    labels = {ACCELERATOR_LABEL: gpu} if gpu else {}
    return Capacity((Node(cpus=cpus, gpus=gpus, memory=memory, labels=labels),))


# ---- the table -----------------------------------------------------------------------


def test_every_backbone_that_planning_knows_is_in_the_table():
    assert ACTIVATIONS.keys() == BACKBONES.keys()


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_100", "resnet18", "test_vit"])
def test_the_table_is_what_autograd_keeps_and_the_largest_layer_moves(backbone):
    import timm
    import torch

    network = timm.create_model(
        backbone, num_classes=0, **({"img_size": 224} if "vit" in backbone else {})
    ).train()
    own = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    kept: dict[
        int, torch.UntypedStorage
    ] = {}  # storages are kept alive, so no address comes twice
    moved: list[int] = []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    def measure(module, inputs, output):
        moved.append(sum(t.numel() * t.element_size() for t in (*inputs, output)))

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(measure)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, 3, 224, 224))
    known = ACTIVATIONS[backbone]
    assert sum(storage.nbytes() for storage in kept.values()) / 2e6 == pytest.approx(
        known.train, rel=0.05
    )
    assert max(moved) / 2e6 == pytest.approx(known.forward, rel=0.1)


# ---- bytes, by hand ------------------------------------------------------------------

MPARAMS, TRAIN, FORWARD = 11.177, 22.2, 6.4  # of ResNet-18


def test_training_keeps_weights_gradients_two_moments_and_the_batch():
    given = stage(side=side(), recipe={**RECIPE, "batch_size": 128})
    assert network_bytes(given) == pytest.approx(1.25e6 * (16 * MPARAMS + 128 * TRAIN))


def test_a_small_batch_needs_less_than_encoding_does():
    given = stage(side=side(), recipe={**RECIPE, "batch_size": 8})
    assert network_bytes(given) == pytest.approx(1.25e6 * (16 * MPARAMS + 256 * FORWARD))


def test_sgd_keeps_one_moment_and_a_momentum_encoder_one_network_more():
    sgd = stage(side=side(), recipe={**RECIPE, "optimizer": "sgd"})
    encoder = stage(side=side(), recipe=RECIPE, params={"momentum": 0.999})
    plain = network_bytes(stage(side=side(), recipe=RECIPE))
    assert network_bytes(sgd) == pytest.approx(plain - 1.25e6 * 4 * MPARAMS)
    assert network_bytes(encoder) == pytest.approx(plain + 1.25e6 * 4 * MPARAMS)


def test_bfloat16_halves_the_activations_and_casts_the_weights():
    given = stage(side=side(), recipe={**RECIPE, "batch_size": 256, "precision": "bf16"})
    assert network_bytes(given) == pytest.approx(1.25e6 * (18 * MPARAMS + 256 * 0.56 * TRAIN))


def test_activations_go_by_area_and_the_share_of_a_worker():
    given = stage(side=side(size=448), recipe={**RECIPE, "batch_size": 256, "workers": 4})
    train = 64 * 4 * TRAIN
    assert network_bytes(given) == pytest.approx(
        1.25e6 * (16 * MPARAMS + max(train, 1024 * FORWARD))
    )


def test_both_sides_of_a_joint_stage_are_in_memory():
    one = stage(side=side(), recipe={**RECIPE, "batch_size": 128})
    both = stage(
        "joint",
        sides={"query": side(), "gallery": side()},
        recipes={name: {**RECIPE, "batch_size": 128} for name in ("query", "gallery")},
    )
    assert network_bytes(both) == pytest.approx(2 * network_bytes(one))


def test_a_gallery_that_answers_live_is_in_memory_beside_the_query():
    apart = stage(side=side(), recipe=RECIPE, gallery_side=side("resnet50"), live=False)
    live = stage(side=side(), recipe=RECIPE, gallery_side=side("resnet50"), live=True)
    assert network_bytes(apart) == network_bytes(stage(side=side(), recipe=RECIPE))
    # its activations go one layer at a time, the query's batch of 64 is not in memory meanwhile
    most = max(64 * TRAIN, 256 * 6.4)
    assert network_bytes(live) == pytest.approx(1.25e6 * (16 * MPARAMS + 4 * 23.508 + most))


def test_recording_and_placing_centers_only_answer():
    recording = stage("recording", side=side(), batch_size=64, precision="fp32")
    assert network_bytes(recording) == pytest.approx(1.25e6 * (4 * MPARAMS + 64 * FORWARD))
    centers = stage("centers", sides={"query": side()})
    assert network_bytes(centers) == pytest.approx(1.25e6 * (4 * MPARAMS + 256 * FORWARD))


def test_an_unknown_backbone_counts_as_the_heaviest_known():
    needed = network_bytes(stage(side=side("anything.tag"), recipe=RECIPE))
    assert all(network_bytes(stage(side=side(n), recipe=RECIPE)) <= needed for n in BACKBONES)


def test_processes_need_memory_of_their_own():
    given = stage(side=side(), recipe=RECIPE)
    assert gpu_bytes(given) == network_bytes(given) + 0.8e9
    assert host_bytes(given, on_gpu=False) == network_bytes(given) + 0.7e9
    assert host_bytes(given, on_gpu=True) == 2.5e9  # the networks are on the GPU


def test_a_gpu_is_busy_for_the_operations_of_a_step_and_idle_between():
    # three passes of 64 images at 1.8136 GMACs, two operations each, at 0.4 x 19.5 TFLOP/s
    seconds = 3 * 64 * 1.8136e9 * 2 / (0.4 * 19.5e12)
    given = stage(side=side(), recipe=RECIPE)
    assert gpu_busy(given, ACCELERATORS["A100"]) == pytest.approx(seconds / (seconds + 0.02))
    assert gpu_busy(stage("recording", side=side()), ACCELERATORS["A100"]) == 0.0


# ---- requests ------------------------------------------------------------------------

LIGHT = stage(side=side("mobilenetv3_small_100", 64), recipe=RECIPE)
HEAVY = stage("gallery", side=side("resnet101"), recipe=RECIPE)


def test_small_networks_share_a_gpu_and_large_ones_have_it_alone():
    assert request_for(LIGHT, cluster("T4")).gpus == 0.125
    assert request_for(HEAVY, cluster("T4")).gpus == 1.0
    assert (
        request_for(HEAVY, cluster("H200")).gpus == 1.0
    )  # it fits eight times, but keeps it busy


def test_memory_decides_where_the_gpu_is_not_kept_busy():
    given = stage(side=side("mobilenetv3_small_050"), recipe={**RECIPE, "batch_size": 256})
    assert 24e9 / 6 < gpu_bytes(given) < 24e9 / 5
    assert gpu_busy(given, ACCELERATORS["RTX-3090"]) < 0.125
    assert request_for(given, cluster("RTX-3090")).gpus == 0.2
    assert request_for(given, cluster("H200")).gpus == 0.125


def test_the_weakest_gpu_that_may_be_given_decides():
    mixed = Capacity((*cluster("H200").nodes, *cluster("T4").nodes))
    given = stage(side=side("mobilenetv3_large_100"), recipe=RECIPE)
    assert request_for(given, mixed) == request_for(given, cluster("T4"))
    only = stage(
        side=given.setup["side"], recipe=RECIPE, request=Asked(labels={ACCELERATOR_LABEL: "H200"})
    )
    assert request_for(only, mixed).gpus == request_for(given, cluster("H200")).gpus


def test_without_gpus_or_on_cpus_only_none_are_asked_for():
    for capacity, device in ((cluster(gpus=0.0), "auto"), (cluster("T4"), "cpu")):
        request = request_for(LIGHT, capacity, device=device)
        assert (request.cpus, request.gpus) == (1.0, 0.0)
        assert request.memory == round(host_bytes(LIGHT, on_gpu=False))


def test_metrics_ask_for_cores_alone():
    assert request_for(stage("metrics"), cluster("T4")) == Request(cpus=1.0)


def test_threads_are_cores_and_workers_have_whole_gpus():
    given = stage(threads=4, side=side("test_vit", 32), recipe={**RECIPE, "workers": 2})
    request = request_for(given, cluster("T4", gpus=2.0))
    assert (request.cpus, request.gpus, request.workers) == (4.0, 1.0, 2)


def test_what_the_study_says_goes_before_defaults():
    asked = Asked(cpus=3.0, gpus=1.0, memory=10**9, custom={"nvme": 1.0})
    given = stage(request=asked, side=side(), recipe=RECIPE)
    assert request_for(given, cluster("T4")) == Request(
        cpus=3.0, gpus=1.0, memory=10**9, custom={"nvme": 1.0}
    )


def test_defaults_are_cut_to_the_largest_node_and_what_was_asked_for_is_not():
    small = cluster(gpus=0.0, cpus=2.0, memory=10**9)
    assert request_for(stage(threads=8, side=side(), recipe=RECIPE), small) == Request(
        cpus=2.0, memory=10**9
    )
    asked = stage(request=Asked(cpus=8.0, memory=2 * 10**9), side=side(), recipe=RECIPE)
    assert request_for(asked, small) == Request(cpus=8.0, memory=2 * 10**9)
    uncut = request_for(stage(threads=8, side=side(), recipe=RECIPE), small, cut=False)
    assert uncut.cpus == 8.0
    assert uncut.memory > 10**9


def test_no_memory_is_asked_for_where_no_node_says_what_it_has():
    assert request_for(LIGHT, cluster(gpus=0.0, memory=0)).memory == 0


def test_equal_stages_have_one_request_between_them():
    stages = [SimpleNamespace(**{**vars(LIGHT), "id": str(n)}) for n in range(3)]
    found = requests_for([*stages, HEAVY], cluster("T4"))
    assert found["0"] is found["1"] is found["2"]
    assert found[HEAVY.id] == request_for(HEAVY, cluster("T4"))
