from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from orchestrator.search_pages import page
from orchestrator.search_report import WHY_BOTH, SearchResults
from search_spaces.options import Sensitivity
from tests.orchestrator.searched import (
    CENTER,
    TUNING,
    around,
    cell,
    observed,
    results,
    sensitivity,
    tuning,
)
from tests.orchestrator.test_search_pictures import factorial, traded

VOID = {"meta", "br", "hr", "img", "input", "link"}
ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&"\'`'


class Parsed(HTMLParser):
    """A page as elements: that they nest is checked, and what would load something is kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def plots(self) -> list[dict]:
        return json.loads(self.scripts[0])


def several() -> SearchResults:
    cells = [cell(i, dataset=name) for i, name in enumerate(["digits", "cifar10"])]
    return results(cells, [one for own in cells for one in observed(own, around())])


STUDIES = {
    "sensitivity": lambda: sensitivity(failed=(3,), chosen={**CENTER, "margin": 0.0}),
    "one seed": lambda: sensitivity((0,)),
    "several": several,
    "tuning": lambda: tuning(30, pruned=(12, 20), failed=(25,)),
    "factorial": factorial,
    "traded": traded,
}


@pytest.fixture(scope="module", params=sorted(STUDIES))
def parsed(request) -> Parsed:
    return Parsed(page(STUDIES[request.param]()))


def test_a_page_nests_and_loads_nothing(parsed: Parsed) -> None:
    loading = {"src", "srcset", "data", "action", "poster", "background", "formaction"}
    for tag, attributes in parsed.tags:
        assert not loading & set(attributes), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)


def test_a_page_has_three_scripts_of_which_one_is_the_library(parsed: Parsed) -> None:
    kinds = [attributes.get("type") for attributes in parsed.all("script")]
    assert kinds == ["application/json", None, None]
    assert len(parsed.scripts[1]) > 1_000_000
    assert "Plotly.newPlot" in parsed.scripts[2]


def test_plotly_takes_every_plot_as_it_is(parsed: Parsed) -> None:
    import plotly.graph_objects as go

    assert parsed.plots
    for plot in parsed.plots:
        figure = go.Figure(plot)  # refuses what it does not know
        assert len(figure.data) == len(plot["data"]) > 0


def test_every_plot_has_a_place_a_text_alternative_and_a_caption(parsed: Parsed) -> None:
    places = [a["data-plot"] for a in parsed.all("div") if "data-plot" in a]
    assert places == [str(i) for i in range(len(parsed.plots))]
    told = [a.get("aria-labelledby") for a in parsed.all("div") if a.get("role") == "img"]
    assert len(told) == len(places) > 0
    assert told == [a.get("id") for a in parsed.all("figcaption")]


def test_a_caption_says_the_name_of_a_parameter_once() -> None:
    text = Parsed(page(sensitivity())).text
    assert "gamma. Best at 10; every other value can be told from it at 3 seeds." in text
    assert "gamma: best" not in text.split("All points")[0].split("Pictures")[1].split("Values")[0]


def test_parallel_coordinates_have_a_line_for_each_complete_point_in_its_places() -> None:
    own = cell(space={"gamma": [1, 10, 100], "tau": [0.125, 0.25]})
    points = [{"gamma": 1, "tau": 0.125}, {"gamma": 100, "tau": 0.25}, {"gamma": 10, "tau": 0.25}]
    worth = {1: 0.5, 100: 0.7, 10: 0.6}
    seen = observed(own, points, (0,), truth=lambda point: worth[point["gamma"]], failed=(2,))
    found = Parsed(page(results([own], seen, center=points[0])))
    (plot,) = [p for p in found.plots if p["layout"].get("dragmode") == "select"]
    assert [trace["customdata"] for trace in plot["data"]] == [[0] * 4, [1] * 4]
    assert [trace["x"] for trace in plot["data"]] == [[0, 1, 2, None]] * 2
    # choices that are numbers are spaced evenly from 0 to 1; the mAP axis is from 0.5 to 0.7
    low, high = (trace["y"] for trace in plot["data"])
    assert low == [0, 0, 0, None]
    assert high == [1, 1, 1, None]
    assert [trace["line"]["color"] for trace in plot["data"]] == ["#2b83c6", "#e06c18"]
    marks = {note["text"]: note["y"] for note in plot["layout"]["annotations"] if note["x"] == 2}
    assert marks["0.6"] == pytest.approx(0.5) and marks["0.7"] == pytest.approx(1)


def test_importances_whose_shortened_names_are_equal_keep_a_bar_each() -> None:
    names = [f"methods.csch.weights.of_{middle}_the_many_terms" for middle in ("a", "b")]
    own = cell(space={name: [1, 10, 100] for name in names})
    points = [
        dict(zip(names, pair, strict=True)) for pair in itertools.product((1, 10, 100), repeat=2)
    ]
    seen = observed(
        own, points, (0, 1, 2), truth=lambda p: 0.5 + p[names[0]] / 1e3 + p[names[1]] / 1e4
    )
    found = Parsed(page(results([own], seen, Sensitivity(design="factorial"), center=points[0])))
    (plot,) = [p for p in found.plots if p["data"][0]["type"] == "bar"]
    texts = plot["layout"]["yaxis"]["ticktext"]
    assert texts[0] == texts[1]
    assert all(trace["y"] == [0, 1] for trace in plot["data"])


def test_lines_of_every_map_are_seen_on_a_light_and_on_a_dark_page() -> None:
    points = [{"gamma": i, "tau": 0.125} for i in range(1, 31)]
    own = cell(space={"gamma": list(range(1, 31)), "tau": [0.125, 0.25]})
    seen = observed(own, points, (0,), truth=lambda point: point["gamma"] / 31)
    found = Parsed(page(results([own], seen, center=points[0])))
    (plot,) = [p for p in found.plots if p["layout"].get("dragmode") == "select"]
    colours = [trace["line"]["color"] for trace in plot["data"]]
    assert len(set(colours)) == 10
    for colour in colours:
        for back in ("#ffffff", "#15181c"):
            assert contrast(colour, back) >= 3  # WCAG AA of what is no text


@pytest.mark.parametrize(("epochs", "step"), [(3, 1), (8, 1), (30, None)])
def test_few_epochs_have_a_tick_each(epochs: int, step: int | None) -> None:
    found = Parsed(page(tuning(6, epochs=epochs)))
    (axis,) = [axis for axis in across(found) if axis["title"]["text"] == "epoch"]
    assert axis.get("dtick") == step


def across(found: Parsed) -> list[dict]:
    return [p["layout"]["xaxis"] for p in found.plots if "title" in p["layout"]["xaxis"]]


def test_ids_are_unique_and_a_page_works_on_a_narrow_dark_screen(parsed: Parsed) -> None:
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all(
        "meta"
    )
    assert parsed.all("html") == [{"lang": "en"}]


def test_tables_have_captions_and_heads_that_are_buttons(parsed: Parsed) -> None:
    assert len(parsed.all("caption")) == len(parsed.all("table")) > 0
    heads = parsed.all("th")
    assert all(head["scope"] == "col" for head in heads)
    sorting = [b for b in parsed.all("button") if "data-copy" not in b]
    assert len(sorting) == len(heads)


def test_a_page_says_what_was_studied_what_to_use_and_both_scores() -> None:
    study = sensitivity(failed=(3,), chosen={**CENTER, "margin": 0.0})
    study = dataclasses.replace(
        study, description="On <digits>.", seconds=90.0, naive_seconds=270.0
    )
    found = Parsed(page(study))
    for words in (
        "On <digits>.",
        "one at a time",
        "0, 1, 2",
        "CSCH, Fig. 7",
        "0 to 0.5, in steps of 0.1",
        "Recommended: gamma 10, margin 0, tau 0.25",
        "gamma: 10 margin: 0.0 tau: 0.25",
        WHY_BOTH,
        "out of memory: 3 GiB wanted",
        "the same trials as scripts of their own, which share no stage: 4 min 30 s",
    ):
        assert words in found.text, words
    assert ["recommended ★", "gamma 10, margin 0, tau 0.25", "0.8000 ± 0.0100",
            "0.7800 ± 0.0100"] in found.rows  # fmt: skip


def test_the_table_of_points_has_every_point_and_marks_the_recommended_one() -> None:
    found = Parsed(page(tuning(30, pruned=(12,), failed=(25,))))
    heads = ["#", "gamma", "margin", "tau", "instance", "validation mAP", "state"]
    start = found.rows.index(heads)
    lines = found.rows[start + 1 : start + 31]
    assert sorted(int(line[0].split()[0]) for line in lines) == list(range(30))
    assert [line[0].endswith("★") for line in lines] == [True, *[False] * 29]


def test_the_setting_can_be_copied() -> None:
    found = Parsed(page(tuning(6)))
    (source,) = found.all("pre")
    (button,) = [b for b in found.all("button") if "data-copy" in b]
    assert button["data-copy"] == source["id"]
    assert source["tabindex"] == "0"


def test_a_curve_is_drawn_in_the_places_of_its_axis() -> None:
    found = Parsed(page(sensitivity()))
    gamma = found.plots[0]
    assert gamma["layout"]["xaxis"]["ticktext"] == ["0", "0.1", "1", "10", "100", "1000"]
    assert gamma["layout"]["xaxis"]["tickvals"] == pytest.approx([-2, -1, 0, 1, 2, 3])
    (line,) = [trace for trace in gamma["data"] if trace["name"] == "validation"]
    assert line["x"] == pytest.approx([-2, -1, 0, 1, 2, 3])
    # 0.78 - 0.02 (log10 gamma - 1)^2, and log10 of 0 counted as -2
    assert line["y"] == pytest.approx([0.60, 0.70, 0.76, 0.78, 0.76, 0.70])
    assert gamma["layout"]["shapes"][0]["x0"] == pytest.approx(1)


def test_several_searches_are_also_drawn_beside_each_other() -> None:
    found = Parsed(page(several()))
    names = [[trace["name"] for trace in plot["data"]] for plot in found.plots[:3]]
    assert names == [["digits", "cifar10"]] * 3
    sections = [a["id"] for a in found.all("section") if "id" in a]
    assert sections == ["search-0", "search-1"]


def test_stopped_trials_are_traces_that_end() -> None:
    found = Parsed(page(tuning(8, pruned=(4, 5))))
    (plot,) = [
        p for p in found.plots if p["layout"]["xaxis"].get("title", {}).get("text") == "epoch"
    ]
    (stopped,) = [trace for trace in plot["data"] if trace["name"] == "stopped early"]
    assert stopped["x"] == [1, 2, None, 1, 2, None]


def test_names_and_texts_cannot_become_markup_or_script() -> None:
    space = {"instance": [ATTACK, "b"], "gamma": {**TUNING["gamma"], "source": ATTACK}}
    own = cell(space=space, dataset=ATTACK, pair=ATTACK, method=ATTACK)
    points = [own.space.at([0.1 + i / 20, i / 16]) for i in range(16)]
    seen = [
        dataclasses.replace(one, reason=ATTACK if one.state == "failed" else "")
        for one in observed(own, points, (0,), failed=(3,), chosen=points[2])
    ]
    study = dataclasses.replace(
        results([own], seen, STUDIES["tuning"]().options, center=points[0]),
        study=ATTACK,
        description=ATTACK,
    )
    text = page(study)
    found = Parsed(text)
    assert len(found.scripts) == 3
    assert not found.all("img")
    assert "alert(1)" in found.text  # shown as what it is
    own_parts = text.replace(found.scripts[1], "")
    assert "<script>alert" not in own_parts and "<img" not in own_parts
    for plot in found.plots:
        for shown in strings(plot):  # Plotly reads tags in what it shows
            assert "<" not in shown, shown


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for one in value for text in strings(one)] if isinstance(value, list) else []


def test_the_same_results_give_the_same_page() -> None:
    assert page(tuning(6)) == page(tuning(6))


def test_a_page_before_anything_is_measured_says_so() -> None:
    own = cell()
    found = Parsed(page(results([own], observed(own, around(), missing=range(15)))))
    assert "No point is complete yet" in found.text
    assert found.plots == []


def test_colours_of_the_page_follow_the_reader_s_scheme() -> None:
    text = page(sensitivity((0,)))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "prefers-color-scheme: dark" in style
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
                   for part in style.split("prefers-color-scheme: dark")[:2])  # fmt: skip
    assert set(light) == set(dark)
    for scheme in (light, dark):
        for name in ("fore", "soft", "accent"):
            assert contrast(scheme[name], scheme["back"]) >= 4.5  # WCAG AA


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
