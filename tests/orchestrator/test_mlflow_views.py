"""Saved views and links: what they say, and that MLflow has room for them."""

import base64
import json
import zlib
from urllib.parse import parse_qs, unquote, urlsplit

from orchestrator.mlflow_views import (
    CHARTS,
    TABLE,
    compare_link,
    experiment_link,
    models_link,
    saved_views,
    search_link,
)

TAG_LIMIT = 5000  # characters of an experiment's tag in MLflow


def states(epochs=()):
    """Return name and unpacked state of each view, by its key."""
    found = {}
    for tag, text in saved_views(7, epochs).items():
        view = json.loads(text)
        packed = view["state"].removeprefix("deflate;")
        assert (view["createdAt"], view["updatedAt"]) == (7, 7)
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        found[tag.removeprefix("mlflow.sharedViewState.")] = (view["name"], state)
    return found


def test_views_leave_out_old_runs_and_put_the_best_first():
    for name, state in states().values():
        assert name.endswith("of the study")
        assert state["searchFilter"] == "tags.superseded_by IS NULL"
        assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`map`", False)


def test_every_column_that_is_shown_has_its_place_in_the_order():
    _, state = states()[TABLE]
    assert set(state["selectedColumns"]) < set(state["columnOrder"])
    assert len(set(state["columnOrder"])) == len(state["columnOrder"])
    assert set(state["columnWidths"]) < set(state["columnOrder"])
    assert state["columnOrder"][:2] == ["attributes.`Run Name`", "metrics.`map`"]


def test_scores_are_bars_and_epochs_are_lines_each_in_a_section_that_there_is():
    _, state = states(["loss/query/center", "validation/map"])[CHARTS]
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    places = {
        chart["metricKey"]: (chart["type"], sections[chart["metricSectionId"]])
        for chart in state["compareRunCharts"]
    }
    assert places["map"] == ("BAR", "Retrieval, test queries")
    assert places["loss/query/center"] == ("LINE", "Training, by epoch")
    assert places["validation/map"] == ("LINE", "Training, by epoch")
    assert places["codes/gallery/dead_bits"] == ("BAR", "Codes of the gallery")
    ids = [chart["uuid"] for chart in state["compareRunCharts"]]
    assert len(set(ids)) == len(ids)


def test_without_epochs_there_is_no_section_of_them():
    _, state = states()[CHARTS]
    names = [section["name"] for section in state["compareRunSections"]]
    assert "Training, by epoch" not in names


def test_views_with_many_losses_fit_into_a_tag():
    losses = [f"loss/query/a_rather_long_name_of_a_term_{i}" for i in range(9)]
    assert max(map(len, saved_views(0, losses).values())) < TAG_LIMIT


def test_links_lead_to_pages_within_the_hash_of_the_address():
    link = urlsplit(experiment_link("http://h:1/", "7", view=CHARTS, charts=True))
    page, _, query = link.fragment.partition("?")
    assert (link.scheme, link.netloc, link.path, page) == (
        "http",
        "h:1",
        "/",
        "/experiments/7/runs",
    )
    assert parse_qs(query) == {
        "workflowType": ["machine_learning"],
        "compareRunsMode": ["CHART"],
        "viewStateShareKey": ["asymbench-curves"],
    }
    query = urlsplit(compare_link("http://h", "7", ["a", "b"])).fragment.partition("?")[2]
    assert query.startswith("runs=")  # or MLflow's page does not find them
    options = {name: values[0] for name, values in parse_qs(query).items()}
    assert json.loads(options["runs"]) == ["a", "b"]
    assert json.loads(options["experiments"]) == ["7"]
    assert "/#/experiments/7/models?" in models_link("http://h", "7")


def test_a_search_in_a_link_comes_out_as_it_went_in():
    search = "tags.`stage.gallery` = '100% & ü'"
    assert unquote(search_link("7", search).partition("searchFilter=")[2]) == search
