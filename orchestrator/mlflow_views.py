"""What MLflow shows of a study without a click: saved views of an experiment, links to them.

A saved view is a tag of the experiment that MLflow's page reads: columns, order, filter, charts.
A link that names it opens the page as it says.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from urllib.parse import quote, urlencode

__all__ = [
    "CHARTS",
    "CURRENT",
    "TABLE",
    "compare_link",
    "experiment_link",
    "models_link",
    "saved_views",
]

CURRENT = "tags.superseded_by IS NULL"
"""Filter of the runs that belong to a study as it is now."""

TABLE, CHARTS = "asymbench-results", "asymbench-curves"

_VIEW = "mlflow.sharedViewState."
_SCORES = ("map", "validation/map", "map_stable", "precision_at_k/100", "p_at_hamming_2")
_PLACES = ("method", "bits", "pair", "dataset", "seed")
_COSTS = ("parameters/query", "flops/query", "seconds/query")
_COLUMNS = (
    *(f"metrics.`{name}`" for name in _SCORES),
    *(f"params.`{name}`" for name in _PLACES),
    *(f"metrics.`{name}`" for name in _COSTS),
    "attributes.`Dataset`",
)
_NAME = "attributes.`Run Name`"
_DATE = "runDateAndNestInfo"
_WIDTHS = {
    _NAME: 430,
    _DATE: 130,
    "duration": 90,
    "params.`method`": 90,
    "params.`bits`": 60,
    "params.`seed`": 60,
}
_BARS = {
    "Retrieval, test queries": (
        "map",
        "map_stable",
        "map_symmetric",
        "precision_at_k/100",
        "recall_at_k/100",
        "p_at_hamming_2",
    ),
    "Codes of the gallery": (
        "codes/gallery/bit_balance",
        "codes/gallery/dead_bits",
        "codes/gallery/collisions",
    ),
    "Cost of the query network": (*_COSTS, "peak_memory_mb/query"),
}
_LINES = "Training, by epoch"
_WORK = {"workflowType": "machine_learning"}
"""MLflow shows what belongs to trained models, and leaves out what belongs to prompts."""


def saved_views(created_ms: int, epochs: Sequence[str]) -> dict[str, str]:
    """Return the tags that hold an experiment's views: a table of results, and charts.

    Args:
        created_ms: when the experiment was created; MLflow orders views by it.
        epochs: names of the metrics by epoch that the charts show.
    """
    search = {
        "searchFilter": CURRENT,
        "orderByKey": "metrics.`map`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
    }
    charts, sections = _charts(epochs)
    state = {
        **search,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": [_NAME, *_COLUMNS[:-1], _DATE, "duration", _COLUMNS[-1]],
        "columnWidths": _WIDTHS,
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
    }
    shown = {
        TABLE: ("Results of the study", state),
        CHARTS: (
            "Charts of the study",
            {
                **state,
                "compareRunCharts": charts,
                "compareRunSections": sections,
                "isAccordionReordered": True,
            },
        ),
    }
    return {
        f"{_VIEW}{key}": json.dumps(
            {
                "name": name,
                "createdAt": created_ms,
                "updatedAt": created_ms,
                "state": _deflated(view),
            }
        )
        for key, (name, view) in shown.items()
    }


def _deflated(view: object) -> str:
    """Return a view's state as MLflow's page packs it; a tag has room for 5000 characters."""
    import base64
    import zlib

    text = json.dumps(view, separators=(",", ":"))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _charts(epochs: Sequence[str]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    charts: list[dict[str, object]] = []
    sections: list[dict[str, object]] = []

    def add(title: str, kind: str, names: Sequence[str]) -> None:
        section = _id(title)
        sections.append(
            {
                "uuid": section,
                "name": title,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        )
        for name in names:
            chart: dict[str, object] = {
                "uuid": _id(title, name),
                "type": kind,
                "runsCountToCompare": 20,
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
                "metricKey": name,
            }
            if kind == "LINE":
                chart |= {
                    "lineSmoothness": 0,
                    "scaleType": "linear",
                    "xAxisScaleType": "linear",
                    "xAxisKey": "step",
                    "selectedXAxisMetricKey": "",
                    "yAxisKey": "metric",
                    "yAxisExpressions": [],
                    "ignoreOutliers": False,
                    "useGlobalXaxisKey": True,
                    "useGlobalLineSmoothing": True,
                    "range": {},
                }
            charts.append(chart)

    first, *others = _BARS.items()
    add(first[0], "BAR", first[1])
    if epochs:
        add(_LINES, "LINE", epochs)
    for title, names in others:
        add(title, "BAR", names)
    return charts, sections


def _id(*words: str) -> str:
    """Return an id that is the same whoever writes the view."""
    return uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("asymbench", *words))).hex


def experiment_link(
    base: str, experiment_id: str, *, view: str = TABLE, charts: bool = False
) -> str:
    """Return the link to an experiment's runs as a saved view shows them.

    Args:
        base: the server's address.
        experiment_id: MLflow's.
        view: key of the saved view.
        charts: whether to open the charts instead of the table.
    """
    mode = {"compareRunsMode": "CHART"} if charts else {}
    options = urlencode({**_WORK, **mode, "viewStateShareKey": view})
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{options}"


def compare_link(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the link to the page that compares runs side by side."""
    runs = json.dumps(list(run_ids), separators=(",", ":"))
    experiments = json.dumps([experiment_id])
    chosen = f"runs={quote(runs)}&experiments={quote(experiments)}"
    # The page takes what it compares only from the beginning of the query.
    return f"{base.rstrip('/')}/#/compare-runs?{chosen}&{urlencode(_WORK)}"


def models_link(base: str, experiment_id: str) -> str:
    """Return the link to an experiment's models."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/models?{urlencode(_WORK)}"


def search_link(experiment_id: str, search: str) -> str:
    """Return the link, within MLflow's pages, to an experiment's runs that a filter keeps."""
    return f"#/experiments/{experiment_id}/runs?searchFilter={quote(search, safe='')}"
