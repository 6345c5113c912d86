"""Studies are found by path, preset and name, and mean the same from anywhere."""

import json

import pytest

from orchestrator.plan_commands import summarize
from orchestrator.session import open_session, remember
from retrieval.errors import InputError

STUDY = """\
study: here
datasets: [{folder: photos}]
pairs:
  - name: p
    query: {backbone: test_efficientnet, size: 32}
    gallery: {backbone: test_resnet, size: 32}
methods: [csq]
bits: [16]
train: {batch_size: 4}
"""


@pytest.fixture
def photos(tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "work" / "photos" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "work"


def test_a_study_that_was_run_is_found_by_name_from_another_folder(photos, tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "here.yaml").write_text(STUDY)
    home = tmp_path / "home"
    monkeypatch.chdir(photos)  # the photos are found from the working directory
    session = open_session("../studies/here.yaml", home=home)
    remember(session)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = open_session("here", home=home, ran=True)
    assert [t.id for t in again.plan.trials] == [t.id for t in session.plan.trials]
    with pytest.raises(InputError, match="does not exist"):
        open_session("../studies/here.yaml", home=home)


def test_overrides_are_remembered_for_a_study_that_was_run(tmp_path):
    session = open_session("quickstart", ("bits=[8]", "methods=[csq]"), home=tmp_path)
    remember(session)
    again = open_session("quickstart", home=tmp_path, ran=True)
    assert {t.bits for t in again.plan.trials} == {8}
    fresh = open_session("quickstart", home=tmp_path)
    assert {t.bits for t in fresh.plan.trials} == {16, 32}


def test_summary_is_json_and_counts_by_hand(tmp_path):
    session = open_session(
        "quickstart",
        ("bits=[8]", "methods={csch: {assign: A_r, gamma: [1.0, 2.0]}}"),
        home=tmp_path,
    )
    summary = json.loads(json.dumps(summarize(session)))
    # 2 gammas x 2 query networks; one set of random centers and one gallery serve all four
    assert summary["trials"] == 4
    assert {k: v["stages"] for k, v in summary["stages"].items()} == {
        "centers": 1,
        "gallery": 1,
        "query": 4,
        "metrics": 4,
    }
    assert summary["stages_to_run"] == 10
    assert summary["stages"]["gallery"]["uses"] == 4


@pytest.mark.parametrize("note", ["{", "[]", '{"text": ""}'])
def test_a_damaged_note_of_a_study_is_an_unknown_study(tmp_path, note):
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(note)
    with pytest.raises(InputError, match="unknown study 'mine'"):
        open_session("mine", home=tmp_path, ran=True)


def test_weights_that_cannot_be_fetched_are_refused_before_anything_runs(tmp_path, monkeypatch):
    import methods.networks
    from orchestrator.session import Place, run

    def offline(backbone):
        raise InputError(f"the weights of {backbone!r} cannot be fetched", key="pretrained")

    monkeypatch.setattr(methods.networks, "fetch_published", offline)
    session = open_session(
        "quickstart",
        ("bits=[8]", "methods=[csq]", "pairs.0.query.pretrained=true"),
        home=tmp_path,
    )
    with pytest.raises(InputError, match=r"test_efficientnet.* cannot be fetched") as caught:
        run(session, Place(executor="inline"))
    assert caught.value.key == "pairs.pretrained"
    assert not (tmp_path / "studies").exists()
    assert not (tmp_path / "store").exists()


def test_local_weights_are_not_fetched(tmp_path, monkeypatch):
    import methods.networks
    from orchestrator.session import fetch_weights

    monkeypatch.setattr(methods.networks, "fetch_published", lambda name: pytest.fail(name))
    session = open_session("quickstart", ("bits=[8]",), home=tmp_path)
    fetch_weights(session.plan, set(session.plan.stages))
