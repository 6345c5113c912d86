"""The report's page as a reader has it: read, sorted, filtered, enlarged, printed by a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.reporting import projections
from orchestrator.reporting.page import write_page
from tests.integration.browser import PATIENCE, browser, opened, overflow, why_no_browser
from tests.orchestrator.reporting import made
from tests.orchestrator.test_search_pages import ATTACK, contrast

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser()),
]

WIDTHS = [1280, 380]
METHODS = ["csch", "csq", "orthohash", "l2"]


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    digits = {"name": "digits", "protocol": {"train_per_class": 20}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections, "SAMPLE", 60)
        patch.setattr(projections, "STEPS", 250)
        session = made.study(
            folder / "home",
            methods=["csch", "csq", "orthohash", {"l2": {"teacher": "csch"}}],
            description=ATTACK,
            datasets=[
                digits,
                {
                    "name": "digits",
                    "label": "<b>other & more</b>",
                    "protocol": {"train_per_class": 30},
                },
            ],
        )
        failed = next(one for one in session.plan.trials if one.method == "l2")
        note = {"kind": "error", "reason": ATTACK, "detail": "", "attempt": 1}
        session.store.note_failure(failed.stages["metrics"], note)
        return write_page(session, folder, price="2.5 EUR")


def column(page, number: int) -> list[str]:
    return [
        row.locator("th, td").nth(number).inner_text()
        for row in page.locator(".board tbody tr").all()
    ]


def scores(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) for text in texts]


def shown(locator) -> list[str]:
    return [one.inner_text().strip() for one in locator.all() if one.is_visible()]


# ---- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_the_page_or_its_box(started, path, width: int, scheme) -> None:
    with opened(started, path, width=width, scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert overflow(page) <= 0
        assert page.locator("h1").inner_text() == "small"
        outside = page.evaluate(
            """() => Array.from(document.querySelectorAll("section *")).filter(one => {
              const box = one.getBoundingClientRect();
              return box.width && box.right > document.documentElement.clientWidth + 1 &&
                !one.closest(".scroll, pre, .pick, .hidden");
            }).map(one => one.outerHTML.slice(0, 120))"""
        )
        assert outside == []


def test_charts_are_large_enough_to_read(started, path) -> None:
    for width in WIDTHS:
        with opened(started, path, width=width) as page:
            small = page.evaluate(
                """() => Array.from(document.querySelectorAll(".chart text")).filter(text => {
                  const svg = text.closest("svg"), box = svg.getBoundingClientRect();
                  if (!box.width) return false;
                  const scale = box.width / svg.viewBox.baseVal.width;
                  return parseFloat(getComputedStyle(text).fontSize) * scale < 9.5;
                }).map(text => text.textContent)"""
            )
            assert small == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_contents_lead_to_every_section_and_follow_the_reader(started, path, width) -> None:
    with opened(started, path, width=width) as page:
        links = page.locator(".contents a")
        for i in range(links.count()):
            target = links.nth(i).get_attribute("href")
            links.nth(i).click()
            page.wait_for_function(
                """id => { const top = document.querySelector(id).getBoundingClientRect().top;
                  return Math.abs(top) < 60 || Math.abs(document.documentElement.scrollHeight -
                    innerHeight - scrollY) < 2; }""",
                arg=target,
            )
        page.locator(".contents a[href='#curves']").click()
        page.locator(".contents a[href='#curves'][aria-current]").wait_for(state="attached")
        assert page.locator(".contents a[aria-current]").count() == 1


def test_the_skip_link_comes_first(started, path) -> None:
    with opened(started, path) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the results"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_the_keyboard_stops_at_what_scrolls_alone(started, path) -> None:
    with opened(started, path, width=380) as page:
        page.wait_for_function("document.querySelector('#origin .scroll').tabIndex === 0")
        wrong = page.evaluate(
            """() => Array.from(document.querySelectorAll("section .scroll, pre")).filter(box =>
              box.clientWidth && box.firstElementChild &&
              (box.scrollWidth > box.clientWidth + 1) !== (box.tabIndex === 0) &&
              box.scrollHeight <= box.clientHeight + 1).length"""
        )
        assert wrong == 0


# ---- the leaderboard -----------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("by", ["click", "Enter", "Space"])
def test_the_leaderboard_sorts(started, path, by: str, width: int) -> None:
    with opened(started, path, width=width) as page:
        head = page.locator(".board thead th[data-bits]").first
        button = head.locator("button")

        def press() -> None:
            if by == "click":
                button.click()
            else:
                button.focus()
                page.keyboard.press(by)

        before = scores(column(page, 1))
        press()
        assert head.get_attribute("aria-sort") == "descending"
        assert scores(column(page, 1)) == sorted(before, reverse=True) != before[::-1]
        press()
        assert head.get_attribute("aria-sort") == "ascending"
        assert scores(column(page, 1)) == sorted(before)
        page.get_by_role("button", name="method", exact=True).first.click()
        assert head.get_attribute("aria-sort") is None
        names = column(page, 0)
        assert names == sorted(names)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_leaderboard_is_filtered_by_text_and_boxes(started, path, width: int) -> None:
    with opened(started, path, width=width) as page:
        rows, heads = page.locator(".board tbody tr th"), page.locator(".board th[data-bits]")
        assert (
            shown(rows) == ["csch", "csq", "orthohash", "l2 teacher=csch"] or len(shown(rows)) == 4
        )
        page.get_by_label("Find a method").fill("CS")
        assert all("cs" in name for name in shown(rows))
        page.get_by_label("Find a method").fill("orth")
        assert shown(rows) == ["orthohash"]
        assert page.locator("[data-found]").inner_text() == "1 line"
        page.get_by_role("button", name="All", exact=True).click()
        page.wait_for_function("document.querySelector('[data-found]').value === '4 lines'")
        assert len(shown(heads)) == 4
        page.locator(".pick", has_text="Bits").locator("summary").click()
        page.get_by_role("checkbox", name="16", exact=True).uncheck()
        page.keyboard.press("Escape")
        assert [text.split()[0] for text in shown(heads)] == ["24", "24"]
        assert page.locator(".pick", has_text="Bits").locator(".count").inner_text() == "(1 of 2)"
        page.locator(".pick", has_text="Datasets").locator("summary").click()
        page.get_by_role("checkbox", name="<b>other & more</b>").uncheck()
        page.keyboard.press("Escape")
        groups = page.locator(".board [scope=colgroup]")
        assert [text.split(",")[0] for text in shown(groups)] == ["digits"]
        assert len(shown(heads)) == 1
        assert all(len(shown(row.locator("td"))) == 1 for row in
                   page.locator(".board tbody tr").all())  # fmt: skip
        page.locator(".pick", has_text="Methods").locator("summary").click()
        page.get_by_role("checkbox", name="csq", exact=True).uncheck()
        assert "csq" not in shown(rows) and len(shown(rows)) == 3
        assert overflow(page) <= 0


# ---- charts --------------------------------------------------------------------------------


def test_one_choice_of_a_panel_is_that_of_all_sections(started, path) -> None:
    with opened(started, path) as page:
        choosers = page.locator("select[data-panels]")
        names = choosers.first.locator("option").all_inner_texts()
        assert len(names) == 4
        choosers.first.select_option(label=names[3])
        assert {one.input_value() for one in choosers.all() if one.locator(
            "option").count() == 4} == {"3"}  # fmt: skip
        for name in ("curves", "epochs", "distances", "codes", "classes", "grids"):
            panels = [p for p in page.locator(f"#{name} [data-panel]").all() if p.is_visible()]
            assert [one.get_attribute("data-panel") for one in panels] == ["3"], name


def test_a_chart_tells_the_value_under_the_pointer(started, path) -> None:
    with opened(started, path) as page:
        chart = page.locator("#curves .chart").nth(1)
        chart.scroll_into_view_if_needed()
        series = chart.locator(".series").first
        first = series.get_attribute("data-v").split()[0].split(",")
        place = page.evaluate(
            """svg => { const line = svg.querySelector(".series path").getPointAtLength(0);
              const at = new DOMPoint(line.x, line.y).matrixTransform(svg.getScreenCTM());
              return [at.x, at.y]; }""",
            chart.element_handle(),
        )
        page.mouse.move(place[0], place[1])
        tip = page.locator(".tip")
        tip.wait_for(state="visible")
        told = tip.inner_text().splitlines()
        assert told[0] in METHODS
        assert told[1] == f"K, images at the top: {first[0]}"
        assert float(told[2].split(": ")[1]) == pytest.approx(float(first[1]), abs=0.2)
        page.mouse.move(2, 2)
        tip.wait_for(state="hidden")
        assert chart.locator(".hover-dot").count() == 0


def test_the_legend_hides_a_method_in_its_charts_by_keyboard(started, path) -> None:
    with opened(started, path) as page:
        group = page.locator("#curves [data-panel].shown")
        button = group.locator(".legend button").nth(1)
        name = button.inner_text().strip()
        hidden = group.locator(f'.series[data-name="{name}"]')
        assert hidden.count() == 2 and all(one.is_visible() for one in hidden.all())
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "false"
        assert not any(one.is_visible() for one in hidden.all())
        page.keyboard.press("Enter")
        assert all(one.is_visible() for one in hidden.all())


def test_the_numbers_of_a_chart_are_a_table(started, path) -> None:
    with opened(started, path) as page:
        card = page.locator("#curves [data-panel].shown .card").nth(1)
        card.locator("summary").click()
        rows = card.locator("tbody tr")
        rows.first.wait_for()
        values = " ".join(
            str(one.get_attribute("data-v")) for one in card.locator(".series").all()
        ).split()
        assert rows.count() == len(values)
        cells = rows.first.locator("td").all_inner_texts()
        x, y = map(float, values[0].split(","))
        assert [float(cells[1]), float(cells[2])] == [x, pytest.approx(y, rel=1e-3)]


# ---- themes --------------------------------------------------------------------------------


def colours(page, selector: str) -> tuple[str, str]:
    """Return text and background of an element as ``#rrggbb``."""
    found: list[str] = page.evaluate(
        """selector => {
          const hex = text => "#" + text.match(/[0-9.]+/g).slice(0, 3).map(part =>
            Math.round(Number(part)).toString(16).padStart(2, "0")).join("");
          let one = document.querySelector(selector), back = one;
          const clear = part => /rgba\\(.*, 0\\)|transparent/.test(
            getComputedStyle(part).backgroundColor);
          while (back.parentElement && clear(back)) back = back.parentElement;
          return [hex(getComputedStyle(one).color), hex(getComputedStyle(back).backgroundColor)];
        }""",
        selector,
    )
    return found[0], found[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_seen_in_both_themes_and_the_theme_can_be_chosen(started, path, scheme) -> None:
    other = {"light": "dark", "dark": "light"}[scheme]
    with opened(started, path, scheme=scheme) as page:
        root, toggle = page.locator("html"), page.locator("[data-theme-toggle]")
        for theme in (scheme, other):
            assert root.get_attribute("data-theme") == theme
            assert toggle.get_attribute("aria-pressed") == str(theme == "dark").lower()
            for selector in (
                "body", "h2", ".soft", ".contents a", "thead th", "tbody td", "td.best strong",
                "button[data-close]", ".verdict", ".legend button", "pre", "select",
            ):  # fmt: skip
                assert contrast(*colours(page, selector)) >= 4.5, (theme, selector)
            toggle.focus()
            page.keyboard.press("Enter")
        assert root.get_attribute("data-theme") == scheme


def test_motion_is_left_out_where_the_reader_wants_none(started, path) -> None:
    with opened(started, path) as page:
        page.emulate_media(reduced_motion="reduce")
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


# ---- retrieved images ----------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("by", ["click", "Enter"])
def test_a_grid_opens_and_closes_and_gives_the_focus_back(started, path, by, width) -> None:
    with opened(started, path, width=width) as page:
        card = page.locator("#grids [data-panel].shown .card").nth(1)
        button = card.locator("[data-enlarge]")
        dialog = page.locator("dialog")
        if by == "click":
            card.locator(".shots").click()
        else:
            button.focus()
            page.keyboard.press("Enter")
        dialog.wait_for(state="visible")
        assert dialog.locator("h2").inner_text().startswith(str(card.get_attribute("data-method")))
        assert dialog.locator(".shot").count() == 5 * 6
        assert dialog.locator(".shot .label").first.is_visible()
        loaded = "one => one.complete && one.naturalWidth > 0"
        assert all(image.evaluate(loaded) for image in dialog.locator("img").all())
        assert overflow(page) <= 0
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        assert button.evaluate("one => one === document.activeElement")
        button.click()
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="hidden")
        assert button.evaluate("one => one === document.activeElement")


def test_images_are_filled_in_where_they_are_seen(started, path) -> None:
    with opened(started, path) as page:
        empty = "document.querySelectorAll('img[data-image]:not([src])').length"
        assert page.evaluate(empty) > 0
        for image in page.locator("#grids [data-panel].shown img").all():
            assert image.evaluate("one => one.naturalWidth") == 8  # digits are 8 x 8
        page.locator("#grids select[data-panels]").select_option("2")
        assert page.locator("#grids [data-panel='2'] img:not([src])").count() == 0


def test_one_method_s_grids_can_be_chosen(started, path) -> None:
    with opened(started, path) as page:
        panel = page.locator("#grids [data-panel].shown")
        panel.locator("select[data-grids]").select_option("csq")
        cards = [one for one in panel.locator(".card").all() if one.is_visible()]
        assert [one.get_attribute("data-method") for one in cards] == ["csq"]
        page.locator("#grids select[data-panels]").select_option("1")
        panel = page.locator("#grids [data-panel='1']")
        cards = [one for one in panel.locator(".card").all() if one.is_visible()]
        assert [one.get_attribute("data-method") for one in cards] == ["csq"]


def test_pictures_of_a_search_are_drawn_under_the_policy(started, tmp_path) -> None:
    path = write_page(made.searched(tmp_path / "home"), tmp_path)
    for width in WIDTHS:
        with opened(started, path, width=width) as page:
            pictures = page.locator("#search img")
            assert pictures.count() > 1
            for picture in pictures.all():
                picture.scroll_into_view_if_needed()
                assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0
            assert overflow(page) <= 0


# ---- paper, and no script ------------------------------------------------------------------


def test_paper_has_everything_and_no_controls(started, path) -> None:
    with opened(started, path, scheme="dark") as page:
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert page.locator("html").get_attribute("data-theme") == "light"
        for panel in page.locator("[data-panel]").all():
            assert panel.is_visible()
        assert page.evaluate("document.querySelectorAll('img[data-image]:not([src])').length") == 0
        for control in ("form", ".contents", "[data-theme-toggle]", ".chooser", "[data-copy]"):
            assert not any(one.is_visible() for one in page.locator(control).all()), control
        assert page.locator("#origin details").get_attribute("open") is not None
        page.emulate_media(media="screen")
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("html").get_attribute("data-theme") == "dark"
        assert page.locator("#origin details").get_attribute("open") is None


def test_without_a_script_every_panel_is_there(started, path) -> None:
    context = started.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(path.as_uri())
    assert all(panel.is_visible() for panel in page.locator("[data-panel]").all())
    context.close()


def test_the_policy_stops_what_is_not_the_page_s_own(started, path, tmp_path) -> None:
    changed = tmp_path / "changed.html"
    text = path.read_text(encoding="utf-8")
    changed.write_text(text.replace("</body>", "<script>window.ran = 1</script></body>"))
    context = started.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(changed.as_uri())
    assert page.evaluate("window.ran") is None
    assert "js" in str(page.locator("html").get_attribute("class"))
    context.close()


def test_commands_are_copied(started, path) -> None:
    with opened(started, path, permissions=["clipboard-read", "clipboard-write"]) as page:
        box = page.locator("#origin .command").first
        box.locator("[data-copy]").click()
        box.locator("[role=status]", has_text="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == box.locator("pre").inner_text()
