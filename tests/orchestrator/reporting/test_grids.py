from __future__ import annotations

import base64
import io
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from orchestrator.reporting import grids
from orchestrator.reporting.grids import grids_section, query_places, retrieved, thumbnail
from orchestrator.reporting.panels import panels_of
from orchestrator.reporting.results import gather
from retrieval.errors import DatasetError
from retrieval.streams import permutation
from tests.orchestrator.reporting import made
from tests.orchestrator.test_search_pages import Parsed


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return made.study(tmp_path_factory.mktemp("grids"))


@pytest.fixture
def panels(session):
    return panels_of(gather(session.plan, session.store))


def test_the_images_are_the_nearest_and_ties_stand_in_a_drawn_order(session, panels) -> None:
    tied = set()
    for panel in panels:
        for entry in panel.entries:
            one, bits = entry.first, panel.column.bits
            stages = one.trial.stages
            query = np.load(session.store.folder(stages["query"]) / "query_codes.npy")
            gallery = np.load(session.store.folder(stages["gallery"]) / "gallery_codes.npy")
            places = np.array([3, 0, 7])
            apart = np.unpackbits(query[places][:, None] ^ gallery[None], axis=2).sum(axis=2)
            drawn = permutation(11, "retrieval grid, equal distances", len(gallery)).tolist()
            found, distances = retrieved(one, places, bits, 11)
            for line, far in enumerate(apart.astype(int).tolist()):
                ranked = sorted(drawn, key=far.__getitem__)[:5]  # stable: ties stay as drawn
                assert found[line].tolist() == ranked
                assert distances[line].tolist() == [far[i] for i in ranked]
                tied.add(ranked != sorted(range(len(far)), key=far.__getitem__)[:5])
    assert True in tied  # the order of the gallery would have shown others


def test_right_and_wrong_are_by_class(session, panels) -> None:
    dataset = session.plan.datasets[0]
    labels, splits = np.asarray(dataset.index().labels), dataset.splits()
    places = query_places(dataset, len(splits.query))
    section, _ = grids_section(session.plan, panels)
    page = Parsed(str(section.body))
    said = [str(image["alt"]) for image in page.all("img")]
    expected = []
    for panel in panels:
        for entry in panel.entries:
            found, distances = retrieved(
                entry.first, places, panel.column.bits, dataset.protocol.split_seed
            )
            for query, top, far in zip(places, found, distances, strict=True):
                own = labels[splits.query[query]]
                expected.append(f"query: {own}")
                for rank, (place, distance) in enumerate(zip(top, far, strict=True), 1):
                    other = labels[splits.gallery[place]]
                    word = "right" if own == other else "wrong"
                    expected.append(f"{word}, rank {rank}: {other}, distance {distance}")
    assert said == expected
    assert any(one.startswith("wrong") for one in said)
    frames = [str(one["class"]).split()[-1] for one in page.all("div") if "shot " in
              str(one.get("class"))]  # fmt: skip
    assert frames == [one.split(",")[0].split(":")[0] for one in expected]
    marks = [word for word in page.words if word in ("✓", "✗")]
    assert marks[2:] == ["✓" if one.startswith("right") else "✗" for one in expected
                         if not one.startswith("query")]  # fmt: skip


def test_the_queries_are_drawn_by_the_split_s_seed_alone(session, tmp_path) -> None:
    dataset = session.plan.datasets[0]
    count = len(dataset.splits().query)
    drawn = query_places(dataset, count).tolist()
    assert len(set(drawn)) == grids.QUERIES
    assert all(0 <= place < count for place in drawn)
    assert drawn == query_places(dataset, count).tolist()
    other = made.study(
        tmp_path,
        skip=("csch", "csq"),
        datasets=[{"name": "digits", "protocol": {"train_per_class": 20, "split_seed": 5}}],
    )
    again = query_places(made_dataset(other), count).tolist()
    assert again != drawn


def made_dataset(session):
    return session.plan.datasets[0]


def test_an_image_stands_on_the_page_once_and_is_the_dataset_s(session, panels) -> None:
    section, images = grids_section(session.plan, panels)
    page = Parsed(str(section.body))
    numbers = [int(str(image["data-image"])) for image in page.all("img")]
    assert sorted(set(numbers)) == list(range(len(images)))
    assert len(set(images)) == len(images)
    dataset = session.plan.datasets[0]
    splits = dataset.splits()
    first = splits.query[query_places(dataset, len(splits.query))[0]]
    with dataset.open_decoder() as decode:
        wanted = decode(int(first)).astype(float)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[numbers[0]])))).astype(float)
    assert shown.shape == wanted.shape
    assert np.abs(shown - wanted).mean() < 12  # a JPEG is not exact


@pytest.mark.parametrize(
    ("shape", "side"), [((8, 8, 3), 8), ((300, 200, 3), 96), ((96, 500, 3), 96)]
)
def test_thumbnails_are_small_squares(shape, side) -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail(np.full(shape, 200, np.uint8)))))
    assert (picture.format, picture.size) == ("JPEG", (side, side))


def test_pages_have_an_end_and_say_what_is_left_out(session, panels, monkeypatch) -> None:
    whole, images = grids_section(session.plan, panels)
    assert "Grids left out" not in str(whole.body)
    monkeypatch.setattr(grids, "IMAGES", 31)
    section, fewer = grids_section(session.plan, panels)
    shown = sum(
        str(one.get("class")) == "card grid" for one in Parsed(str(section.body)).all("figure")
    )
    assert shown == 1
    assert len(fewer) <= 31 < len(images)
    assert "so that the page stays small: 3." in str(section.body)


def test_images_that_are_gone_leave_the_grids_out_and_say_why(
    session, panels, monkeypatch
) -> None:
    dataset = session.plan.datasets[0]

    @contextmanager
    def gone():
        raise DatasetError("there is no folder <b>/data/digits</b>", key="root")
        yield

    monkeypatch.setattr(dataset, "open_decoder", gone)
    section, images = grids_section(session.plan, panels)
    assert section.body is None and images == []
    assert "images cannot be read" in section.why and "/data/digits" in section.why


def test_a_dataset_with_a_ground_truth_of_its_own_has_no_grids(
    session, panels, monkeypatch
) -> None:
    monkeypatch.setattr(type(session.plan.datasets[0]), "score_titles", {"map": "Medium"})
    section, _ = grids_section(session.plan, panels)
    assert section.body is None
    assert "ground truth" in section.why


def test_several_labels_match_where_one_is_shared() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 1], [0, 1, 0]], np.uint8)
    assert np.any(grids._shared(labels, 0, 1))
    assert not np.any(grids._shared(labels, 0, 2))
