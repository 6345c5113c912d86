"""Trials are found by name, and give the codes that the study scored."""

import shutil

import numpy as np
import pytest
import torch

from orchestrator.serving.trained import SIDES, open_trial
from orchestrator.session import open_session
from orchestrator.store import StoreCorrupt
from retrieval.codes import pack
from retrieval.errors import InputError, UnknownNameError


@pytest.mark.parametrize("method", ["csch", "daph"])
@pytest.mark.parametrize("side", SIDES)
def test_images_of_the_dataset_get_the_codes_that_were_scored(session, method, side) -> None:
    trained = open_trial(session, method)
    rows = trained.rows(side)
    codes = trained.codes(side)
    stored = trained.dataset.images()
    assert np.array_equal(trained.side(side).encode(stored, rows), codes)
    # And so do their pixels, handed in one by one as anybody's images.
    first = [np.array(stored.array[row]) for row in rows[:256]]
    h = trained.side(side).embed(first)
    assert np.array_equal(pack(h), codes[:256])
    assert h.dtype == np.float32 and h.shape == (256, 16)


def test_the_two_sides_have_their_own_networks_and_weights(session) -> None:
    for method in ("csch", "daph"):
        trained = open_trial(session, method)
        query, gallery = trained.side("query"), trained.side("gallery")
        assert query.spec.backbone == "test_efficientnet"
        assert gallery.spec.backbone == "test_resnet"
        assert query.weights_digest != gallery.weights_digest
        assert not query.network.training and not gallery.network.training
        assert not any(p.requires_grad for p in query.network.parameters())
        assert trained.class_names == [str(i) for i in range(10)]
        with pytest.raises(UnknownNameError, match="did you mean 'query'"):
            trained.side("qwery")


def test_a_trial_is_found_by_id_prefix_label_words_and_study(session) -> None:
    for trial in session.plan.trials:
        names = [trial.id, trial.id[:8], trial.id[:8].upper(), trial.label]
        names += [trial.label.upper().replace(" · ", " "), f"{trial.method} s0"]
        for name in names:
            for where in (session, None):
                assert open_trial(where, name).id == trial.id
                assert open_trial(where, f"served:{name}").id == trial.id


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("16 bit", "means 2 things"),
        ("nothing of it", "is no id"),
        ("", "is no id"),
        ("ffff", "is no id"),
        ("servd:csch", "did you mean 'served'"),
        ("csch effnet-resnet 16 bit digitz s0", "nearest:\n    csch · effnet-resnet"),
    ],
)
def test_another_name_is_refused_with_what_there_is(in_home, name, says) -> None:
    with pytest.raises(InputError) as caught:
        open_trial(None, name)
    assert says in str(caught.value)


def test_a_home_without_studies_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no study was run in this home"):
        open_trial(None, "csch")


def test_an_unfinished_trial_is_refused_with_how_to_finish_it(in_home) -> None:
    other = open_session("served", ("bits=[8]",), ran=True)
    with pytest.raises(InputError) as caught:
        open_trial(other, "daph")
    assert "joint is still to be trained" in str(caught.value)
    assert "asymbench run served" in str(caught.value)


def test_damaged_weights_are_refused(served_home, tmp_path, monkeypatch) -> None:
    home = shutil.copytree(served_home, tmp_path / "home")
    monkeypatch.setenv("ASYMBENCH_HOME", str(home))
    session = open_session("served", ran=True)
    side = open_trial(session, "csch").side("query")
    path = session.store.folder(side.stage.id) / side.weights_name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreCorrupt):
        _ = side.network


def test_an_image_of_another_size_is_cut_to_the_square_that_the_dataset_stores(session) -> None:
    side = open_trial(session, "csch").side("query")
    stored = side.of.stored_size
    wide = np.zeros((stored, 3 * stored, 3), np.uint8)
    wide[:, stored : 2 * stored] = np.arange(stored * stored * 3).reshape(stored, stored, 3) % 251
    assert np.array_equal(side.squares([wide])[0], wide[:, stored : 2 * stored])
    assert side.embed([]).shape == (0, 16)


def test_codes_do_not_change_the_threads_of_the_process(session) -> None:
    side = open_trial(session, "csch").side("query")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        side.encode([np.zeros((8, 8, 3), np.uint8)], threads=before + 2)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_refused(session, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_trial(session, "csch", device="auto").device == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        open_trial(session, "csch", device="cuda")
    with pytest.raises(UnknownNameError, match="'cuda'"):
        open_trial(session, "csch", device="cudda")
