"""Studies are read strictly; every mistake gets one message: where, and what is allowed."""

from pathlib import Path

import pytest
import yaml

from orchestrator.study import load_study
from retrieval.errors import InputError
from search_spaces.presets import presets

MINIMAL = """\
study: mine
datasets: [digits]
pairs: [test_efficientnet-test_resnet]
methods: [csch]
bits: [16, 32]
"""


def load(text: str = MINIMAL, *overrides: str):
    return load_study(text, "mine.yaml", Path.cwd(), overrides)[0]


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_minimal_study_takes_defaults():
    study = load()
    assert (study.kind, study.seeds, study.replay) == ("benchmark", [0], True)
    assert study.train.side("query").epochs == 150
    assert [(grid.name, grid.given) for grid in study.method_grids()] == [("csch", {})]


def test_a_method_may_come_again_with_other_hyperparameters():
    text = MINIMAL.replace("[csch]", "[csq, csch: {margin: 0.3}, csch: {assign: A_r}, l2: null]")
    grids = load(text).method_grids()
    assert [(grid.key, grid.name, grid.given) for grid in grids] == [
        ("methods.0", "csq", {}),
        ("methods.1.csch", "csch", {"margin": 0.3}),
        ("methods.2.csch", "csch", {"assign": "A_r"}),
        ("methods.3.l2", "l2", {}),
    ]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("[csch: {}, csch: {}]", "mine.yaml:4  methods.1: 'csch' is there twice"),
        ("[csch, 3]", "mine.yaml:4  methods.1: must be the name of a method, or a mapping"),
        ("[{csch: {}, csq: {}}]", "a mapping of one name to its hyperparameters"),
        ("[csch: [1]]", "mine.yaml:4  methods.0.csch: must be a mapping of hyperparameters"),
    ],
)
def test_wrong_lists_of_methods_are_refused(methods, message):
    assert message in refusal(MINIMAL.replace("[csch]", methods))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[cosine]", "must contain 'hamming'"),
        ("[hamming, hamming]", "must not repeat a value"),
        ("[hamming, cosin]", "cosine"),
        ("[]", "at least 1"),
    ],
)
def test_wrong_kinds_of_retrieval_are_refused(given, message):
    found = refusal(MINIMAL + f"evaluate: {{retrieval: {given}}}\n")
    assert found.startswith("mine.yaml:6  evaluate.retrieval")
    assert message in found


@pytest.mark.parametrize("name", sorted(presets()))
def test_shipped_presets_are_valid(name):
    study = load(presets()[name].read_text())
    assert study.study == name
    assert study.description


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_study_that_is_written_out_is_the_same_study(name):
    study, _ = load_study(presets()[name].read_text(), name, Path())
    written = yaml.safe_dump(study.as_written(), sort_keys=False)
    again, _ = load_study(written, "again", Path())
    assert again == study


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{legacy: [orthohsh]}", "must be one of deephash_pytorch, orthohash"),
        ("{legacy: [orthohash, orthohash]}", "must not repeat a value"),
    ],
)
def test_wrong_conventions_are_refused(given, message):
    text = refusal(f"{MINIMAL}evaluate: {given}\n")
    assert "evaluate.legacy" in text
    assert message in text


def test_singular_keys_and_single_values_are_lists_of_one():
    text = "study: s\ndataset: digits\npair: p\nmethod: csch\nbits: 32\nseed: 3\n"
    study = load(text)
    assert (study.datasets, study.pairs, study.methods) == (["digits"], ["p"], ["csch"])
    assert (study.bits, study.seeds) == ([32], [3])


def test_singular_and_plural_together_are_refused():
    assert "'dataset' or 'datasets', not both" in refusal(MINIMAL + "dataset: digits\n")


def test_unknown_key_names_the_nearest_and_its_line():
    message = refusal(MINIMAL + "sedes: [1]\n")
    assert message.startswith("mine.yaml:6  sedes: unknown key")
    assert "did you mean 'seeds'" in message


def test_unknown_training_key_names_the_nearest():
    message = refusal(MINIMAL + "train:\n  epoch: 3\n")
    assert message.startswith("mine.yaml:7  train.epoch: unknown key 'epoch'")
    assert "'epochs'" in message


@pytest.mark.parametrize(
    ("extra", "where", "what"),
    [
        ("train: {epochs: 0}", "train.epochs", "greater than or equal to 1"),
        ("train: {epochs: many}", "train.epochs", "valid integer"),
        ("train: {batch_size: 1}", "train.batch_size", "greater than or equal to 2"),
        ("train: {query: {lr_head: -1.0}}", "train.query.lr_head", "greater than or equal to 0"),
        ("train: {optimizer: adm}", "train.optimizer", "did you mean 'adam'"),
        ("train: {schedule: cosin}", "train.schedule", "did you mean 'cosine'"),
        ("train: {precision: fp16}", "train.precision", "fp32, bf16"),
        ("train: {threads: 0}", "train.threads", "greater than or equal to 1"),
        ("evaluate: {at: 0}", "evaluate.at", "at least 1"),
        ("evaluate: {at: some}", "evaluate.at", "all"),
        ("kind: benchmrk", "kind", "benchmark"),
        ("seeds: [1, 1]", "seeds", "not repeat"),
        ("seeds: [-1]", "seeds", "at least 0"),
        ("replay: sometimes", "replay", "boolean"),
        ("resources: {query: {gpus: -1.0}}", "resources.query.gpus", "greater than or equal to 0"),
        ("resources: {device: tpu}", "resources.device", "cuda"),
        ("resources: {galery: {cpus: 1}}", "resources.galery", "did you mean 'gallery'"),
        ("tracking: {enable: true}", "tracking.enable", "did you mean 'enabled'"),
    ],
)
def test_wrong_values_are_refused_with_key_and_rule(extra, where, what):
    message = refusal(MINIMAL + extra + "\n")
    assert where in message
    assert what in message
    assert message.startswith("mine.yaml:6")


@pytest.mark.parametrize("bits", ["0", "-16", "2000", "16.5", "'16'", "true"])
def test_impossible_code_lengths_are_refused(bits):
    message = refusal(MINIMAL.replace("[16, 32]", f"[{bits}]"))
    assert message.startswith("mine.yaml:5  bits")


@pytest.mark.parametrize("name", ["../up", "", "a b", "-x", "a/b", "x" * 65])
def test_names_that_are_no_folder_names_are_refused(name):
    assert "letters, digits" in refusal(MINIMAL.replace("mine", repr(name), 1))


def test_missing_key_is_named():
    assert "methods: this key is required" in refusal(MINIMAL.replace("methods: [csch]\n", ""))


def test_key_given_twice_is_refused_with_its_line():
    message = refusal(MINIMAL + "bits: [64]\n")
    assert message.startswith("mine.yaml:6")
    assert "'bits' is given twice" in message


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "", "text"])
def test_what_is_no_mapping_is_refused(text):
    assert "mine.yaml" in refusal(text)


def test_tags_that_would_build_objects_are_refused():
    message = refusal(MINIMAL + "description: !!python/object/apply:os.system ['true']\n")
    assert "not valid YAML" in message


def test_exponents_without_a_point_are_numbers():
    assert load(MINIMAL + "train: {lr_head: 1e-4}\n").train.side("query").lr_head == 1e-4


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("true", True)])
def test_replay_takes_on_and_off(text, value):
    assert load(MINIMAL + f"replay: {text}\n").replay is value


def test_override_replaces_a_nested_value():
    study = load(MINIMAL, "train.epochs=2", "bits=[8]", "train.query.lr_head=1e-2")
    assert study.bits == [8]
    assert study.train.side("query").epochs == 2
    assert study.train.side("query").lr_head == 1e-2
    assert study.train.side("gallery").lr_head == 1e-4


def test_override_reaches_into_lists():
    assert load(MINIMAL, "bits.1=64").bits == [16, 64]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("bits", "write --set key=value"),
        ("=3", "write --set key=value"),
        ("bits.7=3", "no place in a list of 2"),
        ("study.name=3", "holds no keys"),
        ("train.epohcs=3", "'epochs'"),
        ("bits=[0]", "from 1 to 1024"),
    ],
)
def test_wrong_overrides_are_refused(override, what):
    message = refusal(MINIMAL, override)
    assert what in message
    assert "--set" in message


def test_side_overrides_differ_by_side():
    study = load(MINIMAL + "train: {epochs: 4, gallery: {epochs: 8}}\n")
    assert study.train.side("query").epochs == 4
    assert study.train.side("gallery").epochs == 8


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://me:secret@host:5000", "MLFLOW_TRACKING_USERNAME"),
        ("htp://host", "did you mean 'http://'"),
    ],
)
def test_a_tracking_uri_is_refused_with_the_file_and_without_its_password(uri, said):
    with pytest.raises(InputError) as caught:
        load_study(f"{MINIMAL}tracking: {{uri: '{uri}'}}\n", "s.yaml", Path())
    assert said in str(caught.value)
    assert "tracking.uri" in str(caught.value)
    assert str(caught.value).startswith("s.yaml:")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("faults: {lost_worker: -1}", "faults.lost_worker"),
        ("faults: {oom: 1}", "faults.oom"),
        ("faults: {stage_minutes: 0}", "faults.stage_minutes"),
        ("faults: 3", "faults"),
        ("checkpoint: {epochs: 0}", "checkpoint.epochs"),
        ("checkpoint: {seconds: -1.0}", "checkpoint.seconds"),
        ("resources: {gallery: {memory: [16]}}", "resources.gallery.memory"),
        ("resources: {gallery: {custom: [a]}}", "resources.gallery.custom"),
        ("resources: {gallery: {labels: x}}", "resources.gallery.labels"),
    ],
)
def test_faults_checkpoints_and_resources_are_checked(text, key):
    with pytest.raises(InputError) as caught:
        load_study(f"{MINIMAL}{text}\n", "s.yaml", Path())
    assert caught.value.key == key
