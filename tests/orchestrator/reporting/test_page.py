from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import statistics

import pytest

from orchestrator.errors import StoreCorrupt
from orchestrator.reporting import projections
from orchestrator.reporting.board_section import board_section
from orchestrator.reporting.leaderboard import Cell, Column, Leaderboard, Line, method_of
from orchestrator.reporting.page import page, write_page
from orchestrator.reporting.panels import mean_curve, panels_of
from orchestrator.reporting.published import Published
from orchestrator.reporting.results import gather
from orchestrator.reporting.templates import asset
from retrieval.errors import InputError
from tests.orchestrator.reporting import made
from tests.orchestrator.test_search_pages import ATTACK, Parsed, contrast


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections, "SAMPLE", 40)
        patch.setattr(projections, "STEPS", 250)
        yield


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return made.study(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(session):
    return page(session)


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def section(text: str, name: str) -> Parsed:
    """Return one section of a page."""
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    assert found, name
    return Parsed(found[0])


def results(session):
    return gather(session.plan, session.store)


# ---- one file that is safe to open ---------------------------------------------------------


def test_the_policy_allows_the_script_of_the_page_and_nothing_else(text) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script
    mark = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1] == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{mark}'"
    )
    assert script[1] == asset("page.js")


def test_nothing_is_loaded_from_anywhere(parsed, text) -> None:
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert not re.search(r"@import|url\((?!#|data:)", text)


def test_what_a_study_says_cannot_become_markup(tmp_path) -> None:
    hostile = "<script>alert(1)</script>&\"'$x${{7*7}}"
    session = made.study(
        tmp_path,
        methods=["csch", "csq"],
        bits=[16],
        seeds=(0,),
        description=ATTACK,
        datasets=[{"name": "digits", "label": hostile, "protocol": {"train_per_class": 20}}],
        skip=("csq",),
    )
    failed = session.plan.trials[1]
    session.store.note_failure(
        failed.stages["query"], {"kind": "error", "reason": ATTACK, "detail": "", "attempt": 1}
    )
    text = page(session)
    parsed = Parsed(text)
    assert len(parsed.all("script")) == 2
    assert not [image for image in parsed.all("img") if "data-image" not in image]
    for told in (ATTACK, hostile):
        assert told in "".join(parsed.words)
    assert "49" not in section(text, "asked").text
    json.loads(parsed.scripts[1])


def test_the_same_store_gives_the_same_bytes(session, text, tmp_path) -> None:
    kept = session.home / "studies" / "small" / "report"
    assert list(kept.glob("tsne-*.json"))
    shutil.rmtree(kept)
    path = write_page(session, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "index.html"
    assert path.read_text(encoding="utf-8") == text
    assert [one.name for one in path.parent.iterdir()] == ["index.html"]


# ---- structure -----------------------------------------------------------------------------


def test_headings_are_in_order_and_ids_are_unique(parsed) -> None:
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in parsed.tags:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name) is None or attributes[name] in ids
    assert parsed.all("html") == [{"lang": "en"}]


def test_every_control_table_chart_and_image_says_what_it_is(parsed, text) -> None:
    for button in re.findall(r"<button[^>]*>(.*?)</button>", text, re.DOTALL):
        assert Parsed(f"<p>{button}</p>").text, button
    assert all("alt" in image for image in parsed.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in parsed.all("svg"))
    boxes = [d for d in parsed.all("div") if d.get("class") == "scroll" and "tabindex" in d]
    assert boxes and all(d.get("role") == "region" and d.get("aria-label") for d in boxes)
    for head in parsed.all("th"):
        assert head.get("scope") in ("col", "row", "colgroup")
    for tag in re.findall(r"<(?:select|input)\b[^>]*>", text):
        before = text[: text.index(tag)]
        assert before.rfind("<label") > before.rfind("</label>"), tag


def test_the_contents_name_what_is_shown_and_the_end_says_what_is_not(parsed, text) -> None:
    links = [str(a["href"])[1:] for a in parsed.all("a") if a.get("class") != "skip"]
    sections = [one["id"] for one in parsed.all("section")]
    assert sections[-1] == "absent"
    assert links == sections[:-1] == [
        "asked", "leaderboard", "curves", "epochs", "cost", "maps", "grids", "distances", "codes",
        "classes", "work", "origin",
    ]  # fmt: skip
    absent = section(text, "absent").text
    assert "Search: the study is no search." in absent
    assert "Failures: no trial failed." in absent


def test_a_study_that_was_not_run_yet_has_a_page(tmp_path) -> None:
    session = made.study(tmp_path, skip=("csch", "csq"))
    text = page(session)
    assert "8 trials: 8 not run yet" in Parsed(text).text
    told = section(text, "absent").text
    for reason in (
        "Leaderboard: no trial is scored on the test queries.",
        "Precision and recall: no trial is scored yet.",
        "mAP by epoch: no trial is scored yet.",
        "Maps of the codes: no trial is scored yet.",
        "Retrieved images: no trial is scored yet.",
        "Time and money: no stage is finished.",
    ):
        assert reason in told
    assert [str(a["href"]) for a in Parsed(text).all("a")][1:] == ["#asked", "#origin"]


# ---- numbers -------------------------------------------------------------------------------


def test_the_leaderboard_has_means_and_deviations_of_the_store_s_scores(session, text) -> None:
    values: dict[tuple[str, int], list[float]] = {}
    for one in results(session).trials:
        values.setdefault((method_of(one), one.trial.bits), []).append(one.scores["map"])
    rows = [row for row in section(text, "leaderboard").rows if row[0] in ("csch", "csq")]
    assert [row[0] for row in rows] == ["csch", "csq"]
    for row in rows:
        for bits, shown in zip((16, 24), row[1:], strict=True):
            two = values[row[0], bits]
            mean, sd = statistics.fmean(two), statistics.stdev(two)
            assert re.match(rf"{mean:.4f} ± {sd:.4f}", " ".join(shown.split()))
    best = re.findall(r"<td class=\"number best\">.*?<strong>([\d.]+)</strong>", text)
    assert best == [
        f"{max(statistics.fmean(values[m, bits]) for m in ('csch', 'csq')):.4f}"
        for bits in (16, 24)
    ]


def test_marks_and_published_numbers_stand_beside_a_number() -> None:
    printed = Published(0.5, "Table 2", "CSCH")
    columns = (Column("digits", "p", "all", 16), Column("digits", "p", "all", 32))
    lines = (
        Line("a", (Cell(0.61, None, 1, 1, best=True, published=printed), None)),
        Line("b", (Cell(0.48, None, 1, 1, p_value=0.03, published=printed), None)),
        Line("c", (Cell(0.4, None, 1, 1, p_value=0.00001, published=Published(
            0.5, "Table 2", "CSCH", dagger=True, differs=("epochs 8, not 150",))), None)),
    )  # fmt: skip
    body = str(board_section([Leaderboard("pair", "map", "", columns, lines, 1)]).body)
    rows = {row[0]: " ".join(row[1].split()) for row in Parsed(body).rows if len(row) > 1}
    assert rows["a"] == "0.6100 +0.1100"
    assert rows["b"] == "0.4800▽ \N{MINUS SIGN}0.0200"
    assert rows["c"] == "0.4000▼ 0.5000†"
    titles = [str(span["title"]) for span in Parsed(body).all("span") if "title" in span]
    assert titles == [
        "CSCH, Table 2: 0.5000",
        "p 0.0300",
        "CSCH, Table 2: 0.5000",
        "p < 0.0001",
        "CSCH, Table 2: 0.5000; here epochs 8, not 150",
    ]
    assert "No Δ for c: epochs 8, not 150." in Parsed(body).text


def test_a_mean_over_some_of_the_seeds_says_so(tmp_path) -> None:
    session = made.study(tmp_path, methods=["csch"], bits=[16], skip=("csch",))
    made.finish(session, session.plan.trials[0])
    row = next(row for row in section(page(session), "leaderboard").rows if row[0] == "csch")
    assert row[1].startswith("(1 of 2) ")


def test_curves_are_means_over_seeds(session, text) -> None:
    panel = panels_of(results(session))[0]
    first, second = (one.evaluation for one in panel.entries[0].trials)
    shown = section(text, "curves")
    groups = [g for g in shown.all("g") if g.get("data-name") == "csch"]
    ks = sorted({int(k) for k in first["precision_at_k"]})
    expected = [
        (k, (first["precision_at_k"][str(k)] + second["precision_at_k"][str(k)]) / 2) for k in ks
    ]
    assert pairs(groups[1]["data-v"]) == pytest.approx([v for one in expected for v in one], 1e-5)
    radii = {point["radius"]: point for point in first["pr_curve"]}
    others = {point["radius"]: point for point in second["pr_curve"]}
    both = [
        (radii[r][name] + others[r][name]) / 2
        for r in sorted(radii.keys() & others.keys())
        for name in ("recall", "precision")
    ]
    assert pairs(groups[0]["data-v"]) == pytest.approx(both, 1e-5)


def pairs(values: str | None) -> list[float]:
    return [float(part) for pair in str(values).split() for part in pair.split(",")]


def test_the_mean_of_curves_is_at_the_places_that_all_have() -> None:
    assert mean_curve([{1.0: 0.2, 2.0: 0.4, 3.0: 1.0}, {2.0: 0.8, 1.0: 0.4}]) == (
        (1.0, pytest.approx(0.3)),
        (2.0, pytest.approx(0.6)),
    )
    assert mean_curve([]) == ()


def test_epochs_are_of_the_validation_split_and_begin_at_one(text) -> None:
    groups = section(text, "epochs").all("g")
    csch = next(g for g in groups if g.get("data-name") == "csch")
    # made.finish: 0.06 and 0.88, a hundredth less for the second seed.
    assert pairs(csch["data-v"]) == pytest.approx([1, 0.055, 2, 0.875])


def test_costs_stand_on_the_axis_they_are_named_by(text) -> None:
    shown = section(text, "cost")
    csch = [g for g in shown.all("g") if g.get("data-name") == "csch"]
    flops, parameters, size = (pairs(g["data-v"])[::2] for g in csch)
    assert (flops, parameters, size) == ([160_000, 240_000], [16_000, 24_000], [2, 3])
    assert csch[0]["data-n"] == "effnet-resnet · 16 bit\neffnet-resnet · 24 bit"


def test_distances_are_shares_that_add_up_to_one(session, text) -> None:
    groups = [g for g in section(text, "distances").all("g") if "data-v" in g]
    assert len(groups) == 2 * 2 * 2
    for one in groups:
        assert sum(pairs(one["data-v"])[1::2]) == pytest.approx(1.0, abs=1e-4)
    first = panels_of(results(session))[0].entries[0].trials[0].evaluation["intra_distances"]
    second = panels_of(results(session))[0].entries[0].trials[1].evaluation["intra_distances"]
    near = [(a / sum(first) + b / sum(second)) / 2 for a, b in zip(first, second, strict=True)]
    assert pairs(groups[0]["data-v"])[1::2] == pytest.approx(near, rel=1e-4, abs=1e-9)


def test_classes_have_the_mean_of_their_queries(session, text) -> None:
    panel = panels_of(results(session))[0]
    rows = next(row for row in section(text, "classes").rows if row[0] == "3")
    for entry, shown in zip(panel.entries, rows[1:], strict=True):
        seeds = [
            next(c["map"] for c in one.evaluation["map_per_class"] if c["class"] == 3)
            for one in entry.trials
        ]
        assert shown == f"{statistics.fmean(seeds):.4f}"


def test_codes_are_described_for_both_networks(session, text) -> None:
    rows = section(text, "codes").rows
    line = next(row for row in rows if row[:2] == ["csch", "gallery"])
    panel = panels_of(results(session))[0]
    both = [one.evaluation["gallery_codes"] for one in panel.entries[0].trials]
    assert line[2] == f"{statistics.fmean(one['bit_balance'] for one in both):.3f}"
    mean = statistics.fmean(one["collisions"] for one in both)
    assert line[7] in (f"{mean:,.1f}", f"{mean:,.0f}")


def test_failures_have_their_reason(tmp_path) -> None:
    session = made.study(tmp_path, bits=[16], seeds=(0,), skip=("csq",))
    failed = next(one for one in session.plan.trials if one.method == "csq")
    session.store.note_failure(
        failed.stages["query"],
        {"kind": "out of memory", "reason": "3 GiB wanted", "detail": "", "attempt": 2},
    )
    text = page(session)
    assert [failed.label, "out of memory: 3 GiB wanted (attempt 2)"] in section(
        text, "failures"
    ).rows
    assert "2 trials: 1 done, 1 failed" in Parsed(text).text


def test_money_is_shown_with_a_price_alone(session, text) -> None:
    assert "EUR" not in text
    stages = {m.id for one in results(session).trials for m in one.manifests.values()}
    priced = section(page(session, price="100 EUR"), "work").text
    assert f"{len(stages) * 36 / 3600 * 100:.2f} EUR" in priced
    with pytest.raises(InputError, match="'cheap'"):
        page(session, price="cheap")


def test_a_search_shows_its_pictures_and_its_setting(tmp_path) -> None:
    text = page(made.searched(tmp_path))
    shown = section(text, "search")
    pictures = [str(image["src"]) for image in shown.all("img")]
    assert pictures and all(one.startswith("data:image/svg+xml;base64,") for one in pictures)
    assert b"<svg" in base64.b64decode(pictures[0].partition(",")[2])
    told = shown.text
    assert "Recommended" in told and "Scored on the test queries, once" in told
    assert "gamma:" in told and "margin:" in told  # the setting as YAML
    assert [row[0] for row in section(text, "leaderboard").rows][-1].startswith("csch")


# ---- what is damaged -----------------------------------------------------------------------


def test_a_damaged_evaluation_names_its_trial(tmp_path) -> None:
    session = made.study(tmp_path, bits=[16], seeds=(0,))
    trial = session.plan.trials[1]
    path = session.store.folder(trial.id) / "evaluation.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    with pytest.raises(StoreCorrupt, match=re.escape(trial.label)):
        page(session)


def test_nothing_is_left_of_a_page_that_failed(tmp_path) -> None:
    session = made.study(tmp_path, bits=[16], seeds=(0,))
    folder = tmp_path / "out"
    path = write_page(session, folder)
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_page(session, folder, price="cheap")
    assert path.read_bytes() == before
    assert [one.name for one in folder.iterdir()] == ["index.html"]


# ---- colours -------------------------------------------------------------------------------


def themes() -> dict[str, dict[str, str]]:
    style = asset("page.css")
    found = re.findall(r":root(\[data-theme=dark\])? \{(.*?)\}", style, re.DOTALL)
    return {
        "dark" if dark else "light": dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", body))
        for dark, body in found[:2]
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_marks_are_seen(theme: str) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for what a picture says."""
    colours = themes()[theme]
    assert len(colours) == 20
    for text in ("fore", "soft", "accent"):
        for back in ("back", "panel"):
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for back in ("best", "heat"):
        assert contrast(colours["fore"], colours[back]) >= 4.5, back
    assert contrast(colours["soft"], colours["best"]) >= 4.5
    for verdict in ("right", "wrong"):
        assert contrast(colours[verdict], colours["back"]) >= 4.5, verdict
    for number in range(10):
        for back in ("back", "panel"):
            assert contrast(colours[f"s{number}"], colours[back]) >= 3, (number, back)
