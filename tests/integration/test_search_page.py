"""The page of a search as a reader has it: drawn, sorted, copied, printed by a browser."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search_pages import page as page_of
from orchestrator.search_report import SearchResults
from search_spaces.options import Tuning
from tests.integration.browser import browser, opened, overflow, why_no_browser
from tests.orchestrator.searched import (
    CENTER,
    around,
    cell,
    observed,
    quality,
    results,
    sensitivity,
    tuning,
)
from tests.orchestrator.test_search_pages import contrast
from tests.orchestrator.test_search_pictures import factorial, traded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser()),
]

PARALLEL = "Settings and their validation mAP"


def several(count: int) -> SearchResults:
    cells = [cell(i, method=f"method_{i}") for i in range(count)]
    return results(cells, [one for own in cells for one in observed(own, around(), (0,))])


def many() -> SearchResults:
    """Return a tuning of nine hyperparameters, most of which have long names."""
    space: dict[str, Any] = {
        f"a_hyperparameter_{i}": {"type": "log_float", "low": 1e-6, "high": 0.1} for i in range(8)
    }
    space["centers"] = ["hadamard", "learned_with_a_long_name", "none", "a_fourth_long_name"]
    own = cell(space=space)
    points = [own.space.at([(i * (j + 3) % 17) / 17 for j in range(9)]) for i in range(16)]
    seen = observed(own, points, (0,), failed=(4,), pruned=(6, 7))
    return results([own], seen, Tuning(trials=16), center=points[0])


def named() -> SearchResults:
    """Return a sensitivity to a choice whose names are too long to stand side by side."""
    names = ["binary_sg", "contr_sg", "a_long_name_of_a_choice", "none", "another_long_name"]
    space = {"gamma": [1, 10, 100], "instance": names}
    center = {"gamma": 10, "instance": "binary_sg"}
    own = cell(space=space)
    return results([own], observed(own, around(space, center)), center=center)


STUDIES: dict[str, Callable[[], SearchResults]] = {
    "sensitivity": lambda: sensitivity(failed=(3,), chosen={**CENTER, "margin": 0.0}),
    "several": lambda: several(4),
    "named": named,
    "factorial": factorial,
    "tuning": lambda: tuning(30, pruned=(12, 20), failed=(25,)),
    "many": many,
    "traded": traded,
}


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pages")


def written(folder: Path, name: str) -> Path:
    """Return the page of a study, made at its first use."""
    path = folder / f"{name}.html"
    if not path.exists():
        path.write_text(page_of(STUDIES[name]()), encoding="utf-8")
    return path


def draw_all(page) -> int:
    """Scroll through a page, so that every plot is drawn, and return how many there are."""
    places = page.locator("[data-plot]")
    for i in range(places.count()):
        places.nth(i).scroll_into_view_if_needed()
        places.nth(i).locator(".main-svg").first.wait_for(state="attached")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 250)))")
    return places.count()


def plot(page, name: str):
    """Return the place of a plot by its heading, drawn."""
    figure = page.locator("figure").filter(has=page.locator("strong", has_text=re.compile(
        f"^{re.escape(name)}$")))  # fmt: skip
    place = figure.locator("[data-plot]").first
    place.scroll_into_view_if_needed()
    place.locator(".main-svg").first.wait_for(state="attached")
    return place


# What is wrong with the plots of a page, as (plot, what).
FAULTS = """() => {
  const found = [], inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 &&
    a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  for (const place of document.querySelectorAll("[data-plot]")) {
    const card = place.closest("figure"), box = place.closest(".scroll");
    const name = card.querySelector("strong").textContent;
    const say = what => found.push([name, what]);
    const svg = place.querySelector(".main-svg").getBoundingClientRect();
    if (!inside(svg, place.getBoundingClientRect())) say("is larger than its place");
    if (!inside(box.getBoundingClientRect(), card.getBoundingClientRect())) say("leaves its card");
    if (box.scrollWidth > box.clientWidth + 1) {
      if (!card.matches(".wide")) say("is wider than its card");
      if (box.tabIndex !== 0) say("scrolls, but not by keyboard");
    } else if (box.hasAttribute("tabindex")) say("is a stop of the keyboard for nothing");
    const marks = ".scatterlayer .points path, .scatterlayer .js-line, .barlayer path, " +
      ".heatmaplayer image";
    const drawn = Array.from(place.querySelectorAll(marks), one => one.getBoundingClientRect());
    if (!drawn.some(r => r.width > 2)) say("has no marks");
    const texts = Array.from(place.querySelectorAll(".main-svg text")).filter(text =>
      text.textContent.trim() && text.getBoundingClientRect().width);
    if (!texts.length) say("has no text");
    for (const text of texts) {
      if (!inside(text.getBoundingClientRect(), svg)) say("cuts " + text.textContent);
      if (parseFloat(getComputedStyle(text).fontSize) < 10) say("is small: " + text.textContent);
    }
    const level = texts.filter(text => !/rotate\\((?!0)/.test(text.getAttribute("transform")));
    const boxes = level.map(text => text.getBoundingClientRect());
    for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
      const a = boxes[i], b = boxes[j];
      if (a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 3 &&
          b.top < a.bottom - 3)
        say(`has ${level[i].textContent} over ${level[j].textContent}`);
    }
    const bar = place.querySelector(".modebar"), area = place.querySelector(".bglayer, .plot");
    const frame = place.querySelector(".nsewdrag");
    if (bar && frame && bar.getBoundingClientRect().bottom >
        frame.getBoundingClientRect().top + 1) say("has buttons over its marks");
  }
  for (const box of document.querySelectorAll(".scroll, pre")) {
    const edges = box.getBoundingClientRect();
    if (edges.width && edges.right > document.documentElement.clientWidth)
      found.push([box.getAttribute("aria-label"), "leaves the page"]);
  }
  return found;
}"""


@pytest.mark.parametrize("width", [1280, 768, 380])
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_nothing_is_cut_or_covered_at_any_width(started, folder, name: str, width: int) -> None:
    with opened(started, written(folder, name), width=width) as page:
        assert draw_all(page) > 2
        assert page.evaluate(FAULTS) == []
        assert overflow(page) <= 0


def test_a_page_asks_for_nothing_but_itself(started, folder) -> None:
    path = written(folder, "tuning")
    with opened(started, path) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        draw_all(page)
        assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


def test_a_curve_s_marks_lie_where_its_values_say(started, folder) -> None:
    """gamma is 0, 0.1, ... 1000: six equal steps; heights follow the mAP."""
    with opened(started, written(folder, "several")) as page:
        place = page.locator("#search-0 [data-plot]").first
        place.scroll_into_view_if_needed()
        place.locator(".points path").first.wait_for(state="attached")
        marks = place.evaluate("""place => Array.from(
          place.querySelectorAll(".scatterlayer .trace:first-child .points path"), mark => {
            const box = mark.getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2]; })""")
        xs, ys = zip(*marks, strict=True)
    assert len(xs) == 6
    steps = [after - before for before, after in itertools.pairwise(xs)]
    assert steps == pytest.approx([steps[0]] * 5, abs=1.0) and steps[0] > 20
    values = [quality({**CENTER, "gamma": gamma}) for gamma in (0, 0.1, 1, 10, 100, 1000)]
    scale = (ys[0] - ys[3]) / (values[3] - values[0])
    assert scale > 0
    assert [ys[0] - scale * (v - values[0]) for v in values] == pytest.approx(ys, abs=1.0)


def test_plots_follow_the_width_of_the_window(started, folder) -> None:
    with opened(started, written(folder, "sensitivity")) as page:
        draw_all(page)
        for width in (420, 1000):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(
                """() => Array.from(document.querySelectorAll("[data-plot]")).every(place =>
                  Math.abs(place.querySelector(".main-svg").getBoundingClientRect().width -
                    place.getBoundingClientRect().width) <= 1)"""
            )
            assert page.evaluate(FAULTS) == []
            assert overflow(page) <= 0


def test_nine_searches_are_drawn_when_they_are_seen(started, tmp_path) -> None:
    path = tmp_path / "nine.html"
    path.write_text(page_of(several(9)), encoding="utf-8")
    with opened(started, path) as page:
        page.locator("[data-plot]").first.scroll_into_view_if_needed()
        page.locator("[data-plot] .main-svg").first.wait_for(state="attached")
        whole = page.locator("[data-plot]").count()
        assert whole == 9 * 6 + 3
        assert page.locator(".js-plotly-plot").count() < whole / 2
        page.get_by_role("link", name="method_8").click()
        last = page.locator("#search-8")
        last.locator("[data-plot] .main-svg").first.wait_for(state="attached")
        assert last.evaluate("one => Math.abs(one.getBoundingClientRect().top)") < 60
        draw_all(page)
        assert page.locator(".js-plotly-plot").count() == whole
        assert page.evaluate(FAULTS) == []


# ---- tables --------------------------------------------------------------------------------


def column(table, name: str) -> list[str]:
    heads = [head.strip() for head in table.locator("th").all_inner_texts()]
    at = heads.index(name)
    return [line.locator("td").nth(at).inner_text() for line in table.locator("tbody tr").all()]


def numbers(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) for text in texts if text != "-"]


@pytest.mark.parametrize("by", ["click", "Enter", "Space"])
def test_points_sort_by_their_validation_map(started, folder, by: str) -> None:
    with opened(started, written(folder, "tuning")) as page:
        table = page.locator("table").filter(has_text="All points")
        button = table.get_by_role("button", name="validation mAP")
        head = table.locator("th").filter(has_text="validation mAP")
        before = column(table, "validation mAP")
        assert before.count("-") == 3  # two stopped, one failed
        for state, falls in (("ascending", False), ("descending", True), ("ascending", False)):
            if by == "click":
                button.click()
            else:
                button.focus()
                page.keyboard.press(by)
            assert head.get_attribute("aria-sort") == state
            seen = column(table, "validation mAP")
            assert numbers(seen) == sorted(numbers(before), reverse=falls)
            assert seen[-3:] == ["-"] * 3
        table.get_by_role("button", name="instance").click()
        assert head.get_attribute("aria-sort") is None
        assert column(table, "instance") == sorted(column(table, "instance"))


def test_a_line_stays_together_when_lines_are_sorted(started, folder) -> None:
    with opened(started, written(folder, "tuning")) as page:
        table = page.locator("table").filter(has_text="All points")
        before = sorted(table.locator("tbody tr").all_inner_texts())
        table.get_by_role("button", name="gamma").click()
        assert sorted(table.locator("tbody tr").all_inner_texts()) == before
        gammas = [float(text) for text in column(table, "gamma")]
        assert gammas == sorted(gammas)
        star = table.get_by_role("img", name="recommended")
        assert star.count() == 1 and star.locator("xpath=ancestor::tr[@class='best']").count() == 1


# ---- copying -------------------------------------------------------------------------------


def test_the_setting_comes_into_the_clipboard(started, folder) -> None:
    granted = ["clipboard-read", "clipboard-write"]
    with opened(started, written(folder, "tuning"), permissions=granted) as page:
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        assert text == page.locator("pre").text_content()
        assert text.startswith("methods:\n  csch:\n")


def test_the_setting_is_selected_where_the_clipboard_is_refused(started, folder) -> None:
    refuse = """Object.defineProperty(navigator, "clipboard", { value: {
      writeText: () => Promise.reject(new DOMException("no", "NotAllowedError")) } });"""
    with opened(started, written(folder, "tuning"), before=refuse) as page:
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Selected: press Ctrl+C").wait_for()
        chosen = page.evaluate("window.getSelection().toString()")
        assert chosen.strip() == (page.locator("pre").text_content() or "").strip()


# ---- parallel coordinates ------------------------------------------------------------------

SHOWN = """place => Array.from(new Set(place.data.flatMap(trace =>
  trace.customdata.filter((_, i) => trace.y[i] !== null)))).sort((a, b) => a - b)"""


def test_lines_that_are_dragged_over_stay_alone_until_a_double_click(started, folder) -> None:
    with opened(started, written(folder, "sensitivity")) as page:
        place = plot(page, PARALLEL)
        everything = place.evaluate(SHOWN)
        assert everything == [i for i in range(15) if i != 3]  # which failed
        area = place.locator(".nsewdrag").bounding_box()
        ends = place.evaluate("""place => { const { xaxis, yaxis } = place._fullLayout;
          return [xaxis.c2p(xaxis.range[1] - 0.02), yaxis.c2p(1.05), yaxis.c2p(0.945)]; }""")
        at, top, bottom = area["x"] + ends[0], area["y"] + ends[1], area["y"] + ends[2]
        page.mouse.move(at - 15, top)
        page.mouse.down()
        page.mouse.move(at + 1, (top + bottom) / 2, steps=4)
        page.mouse.move(at + 8, bottom, steps=4)
        page.mouse.up()
        # The mAP axis is from 0.60 to 0.80: margin 0 (0.80) and margin 0.1 (0.79) are in its top.
        points = around()
        best = [i for i in everything if quality(points[i]) > 0.60 + 0.945 * 0.20]
        assert [points[i]["margin"] for i in best] == [0.0, 0.1]
        page.wait_for_function("n => document.querySelectorAll('.wide .points path').length <= n",
                               arg=4 * len(best))  # fmt: skip
        assert place.evaluate(SHOWN) == best
        page.mouse.dblclick(area["x"] + area["width"] / 2, area["y"] + 4)
        page.wait_for_function(f"place => ({SHOWN})(place).length > 2",
                               arg=place.element_handle())  # fmt: skip
        assert place.evaluate(SHOWN) == everything


def test_a_finger_scrolls_the_page_over_plots(started, folder) -> None:
    path = written(folder, "sensitivity")
    for touch, modes in ((True, {False}), (False, {"zoom", "select"})):
        with opened(started, path, width=380, touch=touch) as page:
            draw_all(page)
            found = page.evaluate("""() => Array.from(
              document.querySelectorAll("[data-plot]"), place => place._fullLayout.dragmode)""")
            assert set(found) == modes


# ---- colours, keyboard, paper --------------------------------------------------------------

COLOURS = """() => { const hex = text => "#" + text.match(/\\d+/g).slice(0, 3).map(n =>
    Number(n).toString(16).padStart(2, "0")).join("");
  const texts = ".xtick text, .ytick text, .xtitle, .ytitle, .legendtext, .annotation-text";
  return { back: hex(getComputedStyle(document.body).backgroundColor),
    text: hex(getComputedStyle(document.body).color),
    plots: Array.from(new Set(Array.from(document.querySelectorAll(texts),
      text => hex(getComputedStyle(text).fill)))) }; }"""


@pytest.mark.parametrize("name", ["sensitivity", "factorial"])
def test_a_dark_screen_has_a_dark_page_and_light_text_also_in_plots(
    started, folder, name: str
) -> None:
    found = {}
    for scheme in ("light", "dark"):
        with opened(started, written(folder, name), scheme=scheme) as page:
            draw_all(page)
            found[scheme] = page.evaluate(COLOURS)
            page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
            assert page.evaluate(COLOURS) != found[scheme]  # it follows at once
    assert found["light"]["back"] == "#ffffff" and found["dark"]["back"] == "#15181c"
    for colours in found.values():
        assert colours["plots"]
        for text in [colours["text"], *colours["plots"]]:
            assert contrast(text, colours["back"]) >= 4.5  # WCAG AA


FOCUS = """() => {
  const one = document.activeElement;
  if (one === document.body) return null;
  const style = getComputedStyle(one), box = one.getBoundingClientRect();
  const group = one.closest(".modebar-group");
  return { order: Array.from(document.querySelectorAll("*")).indexOf(one),
    name: one.getAttribute("aria-label") || one.textContent,
    outline: style.outlineStyle, width: parseFloat(style.outlineWidth),
    visible: box.bottom > 0 && box.top < window.innerHeight && box.width > 0 &&
      (!group || getComputedStyle(group).opacity > 0.9) };
}"""


def test_the_keyboard_goes_down_the_page_and_is_seen(started, folder) -> None:
    with opened(started, written(folder, "sensitivity")) as page:
        draw_all(page)
        page.evaluate("window.scrollTo(0, 0)")
        orders, names = [], []
        for _ in range(200):
            page.keyboard.press("Tab")
            seen = page.evaluate(FOCUS)
            if seen is None:
                break
            if not seen["visible"]:  # the buttons of a plot fade in
                page.wait_for_timeout(500)
                seen = page.evaluate(FOCUS)
            assert seen["visible"] and seen["name"], seen
            assert seen["outline"] != "none" and seen["width"] >= 1, seen
            orders.append(seen["order"])
            names.append(seen["name"])
        else:
            pytest.fail("the keyboard never leaves the page")
    assert names[0] == "To the results"
    assert orders == sorted(orders)
    assert {"Copy", "validation mAP"} <= set(names)


@pytest.mark.parametrize(("name", "scheme"), [("tuning", "light"), ("many", "dark")])
def test_paper_has_every_plot_in_full_and_no_controls(started, folder, name, scheme) -> None:
    with opened(started, written(folder, name), scheme=scheme) as page:
        pdf = page.pdf(format="A4")
        assert pdf.startswith(b"%PDF")
        drawn, places = (page.locator(one).count() for one in (".js-plotly-plot", "[data-plot]"))
        assert drawn == places > 2  # those that were not seen yet too
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 690, "height": 980})  # A4 less its margins
        page.wait_for_timeout(300)
        found = page.evaluate(FAULTS)
        screens = ("keyboard", "is small")  # of what is for a screen: paper shrinks a wide plot
        assert [one for one in found if not any(word in one[1] for word in screens)] == []
        assert overflow(page) <= 0
        for control in (".copy", ".skip", ".modebar"):
            for one in page.locator(control).all():
                assert not one.is_visible()
        assert page.evaluate("""() => Array.from(document.querySelectorAll(".scroll")).every(
          box => getComputedStyle(box).overflowX === "visible" &&
            box.scrollWidth <= box.clientWidth + 1)""")
        wrapping = """() => Array.from(new Set(Array.from(
          document.querySelectorAll("td.number"), cell => getComputedStyle(cell).whiteSpace)))"""
        assert page.evaluate(wrapping) == ["nowrap"]  # no number is broken in two
        colours = page.evaluate(COLOURS)
        assert colours["back"] == "#ffffff"
        assert all(contrast(text, "#ffffff") >= 4.5 for text in colours["plots"])


def test_values_that_are_folded_are_printed_and_fold_again(started, folder) -> None:
    with opened(started, written(folder, "sensitivity")) as page:
        parts = page.locator("details")
        assert parts.count() == 3
        parts.nth(1).locator("summary").click()
        for event, opens in (("beforeprint", [True] * 3), ("afterprint", [False, True, False])):
            page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
            assert [one.evaluate("part => part.open") for one in parts.all()] == opens
