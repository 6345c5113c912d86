from __future__ import annotations

import numpy as np
import pytest

from orchestrator.reporting import projections
from orchestrator.reporting.panels import panels_of
from orchestrator.reporting.projections import (
    best_settings,
    galleries,
    project,
    projections_section,
)
from orchestrator.reporting.results import gather
from tests.orchestrator.reporting import made
from tests.orchestrator.test_search_pages import Parsed


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections, "SAMPLE", 60)
        patch.setattr(projections, "STEPS", 260)
        yield


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    methods = ["csch", "csq", {"l2": {"teacher": "csch"}}]
    return made.study(tmp_path_factory.mktemp("maps"), methods=methods, seeds=(0,))


def panels(session):
    return panels_of(gather(session.plan, session.store))


def two_groups(count: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    center = rng.integers(0, 2, (2, 32))
    noise = rng.random((2 * count, 32)) < 0.05
    return (np.repeat(center, count, axis=0) ^ noise).astype(np.uint8)


def test_codes_that_lie_apart_are_drawn_apart() -> None:
    points = project(two_groups())
    one, other = points[:30], points[30:]
    spread = max(np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in (one, other))
    assert np.linalg.norm(one.mean(axis=0) - other.mean(axis=0)) > spread


def test_the_same_codes_give_the_same_map() -> None:
    assert np.array_equal(project(two_groups()), project(two_groups()))


@pytest.mark.parametrize("bits", [1, 8])
def test_codes_that_are_all_equal_have_a_map_too(bits: int) -> None:
    points = project(np.zeros((25, bits), np.uint8))
    assert points.shape == (25, 2)
    assert np.isfinite(points).all()


def test_maps_are_kept_and_damaged_ones_made_anew(session, tmp_path, monkeypatch) -> None:
    calls = []

    def counted(bits):
        calls.append(bits.shape)
        return np.column_stack([bits[:, 0], bits[:, 1]]).astype(float)

    monkeypatch.setattr(projections, "project", counted)
    first = projections_section(session.plan, panels(session), tmp_path)
    assert calls == [(60, 24)] * 2  # l2 has csch's gallery
    assert projections_section(session.plan, panels(session), tmp_path) == first
    assert len(calls) == 2
    files = sorted(tmp_path.glob("tsne-*.json"))
    files[0].write_text('[["a", 1]]')
    files[1].write_text("[[0, NaN], ")
    assert projections_section(session.plan, panels(session), tmp_path) == first
    assert len(calls) == 4


def test_a_home_that_cannot_be_written_has_maps_too(session, tmp_path, caplog) -> None:
    taken = tmp_path / "report"
    taken.write_text("a file")
    kept = projections_section(session.plan, panels(session), tmp_path / "folder")
    assert projections_section(session.plan, panels(session), taken) == kept
    assert f"the map {taken}" in caplog.text


def test_methods_that_share_a_gallery_share_a_map(session) -> None:
    longest = panels(session)[-1]
    assert longest.column.bits == 24
    assert [name for name, _ in galleries(longest)] == ["csch, l2", "csq"]


def test_of_several_settings_the_best_by_validation_is_mapped(tmp_path, monkeypatch) -> None:
    methods = [{"csch": {"gamma": [1.0, 10.0, 100.0]}}]
    session = made.study(tmp_path, methods=methods, bits=[16], seeds=(0,))
    panel = panels(session)[0]
    known = {entry.first.trial.params["gamma"]: entry for entry in panel.entries}
    assert set(known) == {1.0, 10.0, 100.0}
    assert [entry.first.trial.params["gamma"] for entry in best_settings(panel)] == [1.0]

    def course(one):
        return {1.0: 0.9, 2.0: {1.0: 0.3, 10.0: 0.6, 100.0: 0.5}[one.trial.params["gamma"]]}

    monkeypatch.setattr(projections, "validation_by_epoch", course)
    assert [entry.first.trial.params["gamma"] for entry in best_settings(panel)] == [10.0]


def test_the_page_says_which_images_and_which_maps_are_left_out(
    session, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(projections, "MAPS", 1)
    section = projections_section(session.plan, panels(session), tmp_path)
    text = Parsed(str(section.body)).text
    assert "60 of" in text and "drawn by the split's seed" in text
    assert "Left out, so that the page stays quick: csq." in text


def test_a_cloud_has_every_class_of_the_sample(session, tmp_path) -> None:
    section = projections_section(session.plan, panels(session), tmp_path)
    names = [one["data-name"] for one in Parsed(str(section.body)).all("g") if "data-name" in one]
    assert set(names) == {str(digit) for digit in range(10)}
