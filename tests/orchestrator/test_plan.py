"""Which stages a study comes to: what is shared, what is not, and what an id depends on."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from cluster.resources import Request
from orchestrator.plan import KINDS, Plan, build_plan
from orchestrator.store import digest
from orchestrator.study import load_study
from retrieval.errors import InputError

EFFNET = {"backbone": "test_efficientnet", "size": 32}
BYOBNET = {"backbone": "test_byobnet", "size": 32}
RESNET = {"backbone": "test_resnet", "size": 32}
TWO_QUERIES = [{"query": EFFNET, "gallery": RESNET}, {"query": BYOBNET, "gallery": RESNET}]

BASE = {"study": "s", "datasets": ["digits"], "pairs": ["tiny"], "methods": ["csch"], "bits": [16]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def plan(home):
    def build(folder: Path | None = None, **changes: object) -> Plan:
        folder = folder or Path.cwd()
        text = yaml.safe_dump({**BASE, **changes}, sort_keys=False)
        return build_plan(load_study(text, "s.yaml", folder)[0], folder=folder, home=home)

    return build


def counts(plan: Plan) -> dict[str, int]:
    return {kind: len(plan.of_kind(kind)) for kind in KINDS if plan.of_kind(kind)}


def ids(plan: Plan) -> dict[str, set[str]]:
    return {kind: {stage.id for stage in plan.of_kind(kind)} for kind in KINDS}


# ---- sharing, counted by hand --------------------------------------------------------


def test_gamma_values_share_centers_and_gallery(plan):
    found = plan(methods={"csch": {"gamma": [1.0, 10.0, 100.0]}})
    assert counts(found) == {"centers": 1, "gallery": 1, "query": 3, "metrics": 3}
    (gallery,) = found.of_kind("gallery")
    assert found.uses[gallery.id] == 3
    assert len(found.users[gallery.id]) == 6  # of each trial the query and the metrics stage


def test_margins_share_centers_and_nothing_else(plan):
    found = plan(methods={"csch": {"margin": [0.1, 0.2]}})
    assert counts(found) == {"centers": 1, "gallery": 2, "query": 2, "metrics": 2}


@pytest.mark.parametrize(
    ("assign", "centers", "galleries"),
    [("A_q", 2, 2), ("A_b", 2, 2), ("A_r", 1, 1), ("A_g", 1, 1)],
)
def test_galleries_are_shared_over_query_networks_unless_these_place_the_centers(
    plan, assign, centers, galleries
):
    found = plan(pairs=TWO_QUERIES, methods={"csch": {"assign": assign}})
    assert counts(found) == {
        "centers": centers,
        "gallery": galleries,
        "query": 2,
        "metrics": 2,
    }


@pytest.mark.parametrize(("teacher", "other"), [("csch", "orthohash"), ("orthohash", "csq")])
def test_a_student_shares_its_teachers_gallery_and_no_other(plan, teacher, other):
    found = plan(methods={teacher: {}, other: {}, "l2": {"teacher": teacher}})
    by_method = {trial.method: trial.stages for trial in found.trials}
    assert by_method["l2"]["gallery"] == by_method[teacher]["gallery"]
    assert by_method["l2"]["centers"] == by_method[teacher]["centers"]
    assert by_method["l2"]["gallery"] != by_method[other]["gallery"]
    assert by_method["l2"]["query"] != by_method[teacher]["query"]


def test_teachers_with_other_hyperparameters_are_other_galleries(plan):
    found = plan(
        methods={"csch": {}, "l2": {"teacher": "csch", "teacher_params": {"margin": 0.3}}}
    )
    assert counts(found)["gallery"] == 2


@pytest.mark.parametrize("method", ["csq", "orthohash"])
def test_recordings_of_frozen_galleries_are_shared_over_query_networks(plan, method):
    found = plan(pairs=TWO_QUERIES, methods=[method])
    assert counts(found) == {
        "centers": 1,
        "gallery": 1,
        "recording": 1,
        "query": 2,
        "metrics": 2,
    }


def test_seeds_share_nothing(plan):
    one, three = counts(plan(seeds=[0])), counts(plan(seeds=[0, 1, 2]))
    assert three == {kind: 3 * count for kind, count in one.items()}


def test_bits_share_nothing(plan):
    assert counts(plan(bits=[16, 32])) == {"centers": 2, "gallery": 2, "query": 2, "metrics": 2}


def test_cut_offs_share_all_but_metrics(plan):
    one, other = ids(plan(evaluate={"at": 100})), ids(plan(evaluate={"at": "all"}))
    assert {kind for kind in KINDS if one[kind] != other[kind]} == {"metrics"}


def test_cut_off_of_the_protocol_and_of_the_study_are_one(plan):
    by_protocol = plan(datasets=[{"name": "digits", "protocol": {"at": 100}}])
    assert ids(by_protocol) == ids(plan(evaluate={"at": 100}))
    assert by_protocol.trials[0].at == 100


def test_without_replay_simultaneous_sides_train_in_one_stage(plan):
    assert counts(plan(replay=False)) == {"centers": 1, "joint": 1, "metrics": 1}


def test_without_replay_a_frozen_gallery_is_asked_live(plan):
    with_, without = plan(methods=["csq"]), plan(methods=["csq"], replay=False)
    assert counts(without) == {"centers": 1, "gallery": 1, "query": 1, "metrics": 1}
    assert ids(with_)["gallery"] == ids(without)["gallery"]


def test_gradients_that_reach_the_gallery_make_a_joint_stage(plan):
    found = plan(methods={"csch": {"instance": "released_code", "gamma": [1.0, 2.0]}})
    assert counts(found) == {"centers": 1, "joint": 2, "metrics": 2}


def test_two_spellings_of_one_trial_are_one(plan):
    assert len(plan(methods={"csch": {"gamma": [10, 10.0]}}).trials) == 1


def test_trials_come_in_the_order_of_the_study(plan):
    found = plan(methods={"csq": {}, "csch": {"gamma": [2.0, 1.0]}}, bits=[32, 16], seeds=[1, 0])
    assert [(t.method, t.setting, t.bits, t.seed) for t in found.trials] == [
        (method, setting, bits, seed)
        for method, setting in (("csq", ""), ("csch", "gamma=2.0"), ("csch", "gamma=1.0"))
        for bits in (32, 16)
        for seed in (1, 0)
    ]


# ---- the graph -----------------------------------------------------------------------

EVERYTHING = {
    "pairs": TWO_QUERIES,
    "methods": {
        "csch": {"gamma": [1.0, 2.0], "instance": ["binary_sg", "released_code"]},
        "csq": {},
        "orthohash": {},
        "l2": {"teacher": ["csch", "csq"]},
    },
    "seeds": [0, 1],
}


def test_every_id_is_the_digest_of_its_identity(plan):
    for stage_id, stage in plan(**EVERYTHING).stages.items():
        assert stage_id == stage.id == digest(stage.identity)
        assert stage.identity["kind"] == stage.kind


def test_stages_come_after_all_that_they_consume(plan):
    seen: set[str] = set()
    for stage in plan(**EVERYTHING).stages.values():
        assert set(stage.inputs.values()) <= seen
        seen.add(stage.id)


def test_uses_and_users_agree_with_the_trials(plan):
    found = plan(**EVERYTHING)
    assert set(found.uses) == set(found.stages)
    for stage_id, stage in found.stages.items():
        assert found.uses[stage_id] == len(found.trials_of(stage_id)) > 0
        consumers = [s.id for s in found.stages.values() if stage_id in s.inputs.values()]
        assert sorted(found.users[stage_id]) == sorted(consumers)
        assert bool(consumers) == (stage.kind != "metrics")


def test_identities_hold_the_ids_that_they_consume_and_are_json(plan):
    for stage in plan(**EVERYTHING).stages.values():
        assert stage.identity.get("inputs", {}) == stage.inputs
        assert json.loads(json.dumps(stage.identity)) is not None


# ---- what an id depends on -----------------------------------------------------------

SIMULTANEOUS = {"methods": ["csch"]}
FROZEN = {"methods": ["csq"]}
ALL = {"gallery", "recording", "query", "metrics"}


def moved(plan, base: dict, **train: object) -> set[str]:
    """The kinds of which a training key moves ids."""
    one, other = ids(plan(**base)), ids(plan(**base, train=train))
    return {kind for kind in KINDS if one[kind] != other[kind]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr_head", 1e-2),
        ("lr_backbone", 1e-2),
        ("optimizer", "sgd"),
        ("weight_decay", 0.0),
        ("momentum", 0.5),
        ("schedule", "cosine"),
        ("warmup_epochs", 1.0),
        ("precision", "bf16"),
        ("clip_norm", 1.0),
    ],
)
def test_a_sides_recipe_moves_that_side_and_what_consumes_it(plan, key, value):
    assert moved(plan, SIMULTANEOUS, query={key: value}) == {"query", "metrics"}
    assert moved(plan, SIMULTANEOUS, gallery={key: value}) == ALL - {"recording"}
    assert moved(plan, FROZEN, query={key: value}) == {"query", "metrics"}
    assert moved(plan, FROZEN, gallery={key: value}) == ALL
    assert moved(plan, SIMULTANEOUS, **{key: value}) == ALL - {"recording"}


@pytest.mark.parametrize(("key", "value"), [("epochs", 7), ("batch_size", 32)])
def test_epochs_and_batches_of_a_query_move_the_recording_that_it_replays(plan, key, value):
    assert moved(plan, FROZEN, query={key: value}) == ALL - {"gallery"}
    assert moved(plan, FROZEN, gallery={key: value}) == ALL
    assert moved(plan, SIMULTANEOUS, **{key: value}) == ALL - {"recording"}


@pytest.mark.parametrize(
    ("key", "value"), [("augmentation", {"padding": 0.25}), ("validate_every", 3)]
)
def test_augmentation_and_validation_leave_centers_alone(plan, key, value):
    expected = ALL if key == "augmentation" else ALL - {"recording"}
    assert moved(plan, FROZEN, **{key: value}) >= expected
    assert "centers" not in moved(plan, FROZEN, **{key: value})


def test_threads_move_all_that_computes_with_a_network(plan):
    assert moved(plan, FROZEN, threads=2) == ALL
    assert moved(plan, SIMULTANEOUS, threads=2) == {"centers", *ALL} - {"recording"}


def test_a_seed_moves_everything(plan):
    one, other = ids(plan(seeds=[0])), ids(plan(seeds=[1]))
    assert all(not one[kind] & other[kind] for kind in KINDS)


def test_a_recipes_default_written_out_is_the_same_recipe(plan):
    written = {"epochs": 150, "lr_head": 1e-4, "query": {"optimizer": "adam"}, "threads": 1}
    assert moved(plan, FROZEN, **written) == set()


@pytest.mark.parametrize(
    ("hyperparameter", "value", "kinds"),
    [
        ("gamma", 3.0, {"query", "metrics"}),
        ("margin", 0.3, {"gallery", "query", "metrics"}),
        ("assign", "A_r", {"centers", "gallery", "query", "metrics"}),
    ],
)
def test_a_hyperparameter_moves_the_stages_that_read_it(plan, hyperparameter, value, kinds):
    one, other = ids(plan()), ids(plan(methods={"csch": {hyperparameter: value}}))
    assert {kind for kind in KINDS if one[kind] != other[kind]} == kinds


@pytest.mark.parametrize(
    "change",
    [
        {"study": "another"},
        {"description": "words"},
        {"resources": {"query": {"cpus": 2.0}, "device": "cpu"}},
        {"tracking": {"enabled": False}},
        {"datasets": [{"name": "digits", "label": "scans"}]},
        {"pairs": [{"name": "mine", "query": EFFNET, "gallery": RESNET}]},
    ],
)
def test_names_and_operational_keys_move_nothing(plan, change):
    assert ids(plan(**change)) == ids(plan())


def test_resources_reach_the_stages_of_their_kind_and_leave_open_what_they_do_not_say(plan):
    asked = {
        "gpus": 0.5,
        "memory": "16 GiB",
        "custom": {"nvme": 1.0},
        "labels": {"zone": "in(a, b)"},
    }
    found = plan(resources={"gallery": asked, "metrics": {"cpus": 3.0}})
    (gallery,), (metrics,) = found.of_kind("gallery"), found.of_kind("metrics")
    assert gallery.request.over(Request(cpus=2.0, gpus=1.0)) == Request(
        cpus=2.0, gpus=0.5, memory=16 * 2**30, custom={"nvme": 1.0}, labels={"zone": "in(a, b)"}
    )
    assert metrics.request.over(Request(gpus=0.25, workers=2)) == Request(
        cpus=3.0, gpus=0.25, workers=2
    )
    assert all(stage.request is None for stage in found.of_kind("query"))


@pytest.mark.parametrize(
    ("asked", "key", "match"),
    [
        ({"memory": "16G"}, "resources.query.memory", "did you mean '16GB'"),
        ({"gpus": 1.5}, "resources.query.gpus", "more than one gpu must be a whole number"),
        ({"cpus": 0.0}, "resources.query", "needs some cpus or gpus"),
        ({"custom": {"CPU": 1.0}}, "resources.query.custom", "a key of its own: cpus"),
        ({"labels": {"zone": "a b"}}, "resources.query.labels", "'a b' selects no label"),
    ],
)
def test_resources_that_no_stage_can_have_are_refused_by_key(plan, asked, key, match):
    with pytest.raises(InputError, match=match) as caught:
        plan(resources={"query": asked})
    assert caught.value.key == key


def test_ids_are_the_digests_of_what_the_stages_hold(plan):
    found = plan(
        pairs=TWO_QUERIES,
        methods={"csch": {"assign": "A_q"}, "l2": {}, "daph": {}, "csq": {"quantizer": "caq"}},
        evaluate={"retrieval": ["hamming", "cosine"], "legacy": ["orthohash"]},
    )
    assert {s.kind for s in found.stages.values()} == set(KINDS)
    assert all(digest(stage.identity) == stage_id for stage_id, stage in found.stages.items())


# ---- paths ---------------------------------------------------------------------------


def texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for text in texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


def test_weights_are_found_beside_the_study_and_no_path_is_identity(plan, tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    save_file({"a": torch.zeros(2)}, beside / "w.safetensors")
    pairs = [{"query": {**EFFNET, "weights": "w.safetensors"}, "gallery": RESNET}]
    found = plan(beside, pairs=pairs)
    (query,) = found.of_kind("query")
    assert query.setup["side"]["weights"] == str(beside / "w.safetensors")
    for stage in found.stages.values():
        assert not [text for text in texts(stage.identity) if str(tmp_path) in text]
    save_file({"a": torch.ones(2)}, here / "w.safetensors")  # the working directory goes first
    (other,) = plan(beside, pairs=pairs).of_kind("query")
    assert other.setup["side"]["weights"] == str(here / "w.safetensors")
    assert other.id != query.id


def make_images(root: Path, classes: int = 3, each: int = 12) -> None:
    from PIL import Image

    for number in range(classes):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(each):
            colour = (80 * number, 20 * image, 40)
            Image.new("RGB", (16, 16), colour).save(folder / f"{image}.png")


def test_roots_are_found_beside_the_study_and_no_path_is_identity(plan, tmp_path, monkeypatch):
    make_images(tmp_path / "beside" / "photos")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train = {"batch_size": 4}
    found = plan(tmp_path / "beside", datasets=[{"folder": "photos"}], train=train)
    for stage in found.stages.values():
        assert not [text for text in texts(stage.identity) if str(tmp_path) in text]
    (tmp_path / "beside" / "photos").rename(tmp_path / "here" / "pictures")
    again = plan(tmp_path / "beside", datasets=[{"folder": "pictures"}], train=train)
    assert ids(again) == ids(found)


def test_an_open_dataset_is_handed_on_with_the_plan(plan):
    (dataset,) = plan().datasets
    assert len(dataset.splits().train) == 1197  # 1797 - 10 * (30 query + 30 validation)


# ---- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        (
            {"train": {"query": {"epochs": 3}}},
            "train.query.epochs",
            "epochs must be equal, query has 3 and gallery 150",
        ),
        (
            {"train": {"gallery": {"epochs": 3}}},
            "train.gallery.epochs",
            "epochs must be equal, query has 150 and gallery 3",
        ),
        (
            {"train": {"batch_size": 2000}},
            "train.batch_size",
            "has 1197 images, which is less than one batch",
        ),
        (
            {"methods": ["csq"], "train": {"gallery": {"batch_size": 2000}}},
            "train.gallery.batch_size",
            "has 1197 images, which is less than one batch",
        ),
        ({"bits": [2]}, "bits", "at least 4 bits are needed (method 'csch' on 'digits')"),
        ({"methods": {"csch": {"centers": "hadamard"}}, "bits": [12]}, "bits", "power of two"),
        ({"resources": {"joint": {"gpus": 1.5}}}, "resources.joint.gpus", "number, got 1.5"),
        ({"datasets": ["digits", "digits"]}, "datasets", "give each a 'label' of its own"),
        ({"pairs": ["tiny", "tiny"]}, "pairs", "give each a 'name' of its own"),
        (
            {"datasets": [{"name": "digits", "protocol": {"query_per_class": 999}}]},
            "datasets.0.protocol",
            "class '0' has 178 images, the protocol needs 1030",
        ),
        ({"pairs": [{"query": 3, "gallery": RESNET}]}, "pairs.0.query", "a backbone's name"),
        (
            {"pairs": [{"name": "x" * 201, "query": EFFNET, "gallery": RESNET}]},
            "pairs.0.name",
            "at most 200 characters, this has 201",
        ),
    ],
)
def test_impossible_studies_are_refused_by_key(plan, changes, key, problem):
    with pytest.raises(InputError) as caught:
        plan(**changes)
    assert caught.value.key == key
    assert problem in caught.value.problem


def test_methods_with_two_stages_may_train_the_sides_for_different_epochs(plan):
    assert counts(plan(methods=["csq"], train={"query": {"epochs": 3}}))["recording"] == 1
