"""MLflow's own pages in a real browser: what `asymbench ui` prints shows what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest
import yaml

from orchestrator.mlflow_views import CURRENT
from tests.integration.browser import PATIENCE, browser, why_no_browser
from tests.integration.servers import mlflow_server
from tests.orchestrator.conftest import BASE
from tests.orchestrator.test_sync import content, differences

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser()),
]

STUDY = {
    **BASE,
    "study": "seen",
    "methods": [{"csch": {"gamma": [1.0, 10.0]}}, "csq"],
    "bits": [16, 32],
    "tracking": {"enabled": True},
}
NAMES = [
    f"{method} · effnet→resnet · {bits} bit · digits · s0"
    for method in ("csch gamma=1.0", "csch gamma=10.0", "csq")
    for bits in (16, 32)
]
NOT_OURS = ("/mlflow/users/current",)
"""What the page asks for of a server that knows users; others say 404."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study that was run and mirrored."""
    from orchestrator.session import Place, open_session, run

    home = tmp_path_factory.mktemp("seen")
    path = home / "seen.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    result = run(open_session(str(path), home=home), Place(executor="inline"))
    assert (result.failed, result.tracking) == (0, [])
    return home


@pytest.fixture(scope="module")
def links(home: Path) -> Iterator[dict[str, str]]:
    """What `asymbench ui` prints, by its name, while its server runs."""
    code = "import sys; from orchestrator.cli import main; sys.argv[0] = 'asymbench'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ui", "seen"],
        env={**os.environ, "ASYMBENCH_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        # Tests that were started in the background would pass on that they ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        found = {}
        while "models" not in found:  # the last of them
            line = process.stdout.readline()
            assert line, "ended before it had said where to look"
            name, link = re.split(r"  +", line.strip())
            found[name] = link
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as found:
        yield found


@contextmanager
def opened(started: Browser, link: str, height: int = 900) -> Iterator[Page]:
    """Open a page that may ask our server alone, and may get no refusal and no exception."""
    base = link.partition("/#/")[0]
    context = started.new_context(viewport={"width": 1600, "height": height})
    problems: list[str] = []
    try:
        context.set_default_timeout(PATIENCE)
        context.route(
            re.compile(r"^https?:"),
            lambda route: (
                route.continue_() if route.request.url.startswith(base) else route.abort()
            ),
        )
        page = context.new_page()

        def answered(response: object) -> None:
            url, status = response.url, response.status  # type: ignore[attr-defined]
            if url.startswith(base) and status >= 400 and not url.endswith(NOT_OURS):
                problems.append(f"{status} {url}")

        page.on("response", answered)
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.goto(link)
        yield page
        assert not problems, "\n".join(problems)
    finally:
        context.close()


def save(page: Page, name: str) -> None:
    """Keep a picture where somebody asks for it: those in the documentation are made so."""
    folder = os.environ.get("ASYMBENCH_TEST_PICTURES")
    if folder:
        for button in page.locator(
            '[data-component-id="mlflow.assistant.chat_panel.close"]'
        ).all():
            button.click()
        page.set_viewport_size({"width": 1280, "height": 800})
        page.wait_for_timeout(3000)  # charts are drawn anew
        page.screenshot(path=Path(folder) / f"mlflow_{name}.png")


def test_results_are_a_table_of_current_runs_the_best_first(
    started: Browser, links: dict[str, str]
) -> None:
    with opened(started, links["results"]) as page:
        page.get_by_text("6 matching runs").wait_for()
        rows = page.locator(".ag-pinned-left-cols-container .ag-row a, .ag-row a")
        rows.first.wait_for()
        shown = {text for text in rows.all_inner_texts() if "effnet" in text}
        assert shown == set(NAMES)
        heads = [
            head.get_attribute("col-id")
            for head in page.locator(".ag-header-cell").all()
            if head.get_attribute("col-id")
        ]
        assert "metrics.`map`" in heads
        assert heads.index("attributes.`Run Name`") < heads.index("metrics.`map`")
        query = parse_qs(page.url.partition("?")[2])  # the page writes there what it shows
        assert query["searchFilter"] == [CURRENT]
        scores = page.locator('.ag-row [col-id="metrics.`map`"]').all_inner_texts()
        values = [float(text.rstrip("….")) for text in scores]
        assert len(values) == 6
        assert values == sorted(values, reverse=True)
        save(page, "runs")


def test_charts_are_grouped_scores_as_bars_and_epochs_as_lines(
    started: Browser, links: dict[str, str]
) -> None:
    with opened(started, links["charts"], height=1500) as page:
        for section in ("Retrieval, test queries", "Training, by epoch"):
            page.get_by_text(section).first.wait_for()
        page.locator(".barlayer .bars .point").first.wait_for()
        page.locator(".scatterlayer .trace").first.wait_for()
        for metric in ("map", "precision_at_k/100", "validation/map", "loss/query/center"):
            assert page.get_by_text(metric, exact=True).count() >= 1, metric
        save(page, "charts")


def test_runs_of_the_best_settings_are_compared_side_by_side(
    started: Browser, links: dict[str, str]
) -> None:
    with opened(started, links["compare 2 runs"]) as page:
        page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
        for bits in (16, 32):
            assert page.get_by_text(f"{bits} bit · digits · s0").count() >= 1
        save(page, "compare")


def test_models_are_listed_with_the_versions_that_are_registered(
    started: Browser, links: dict[str, str]
) -> None:
    with opened(started, links["models"]) as page:
        page.get_by_text("Ready").first.wait_for()
        assert page.get_by_text("Ready").count() == 6
        assert page.get_by_text("seen · digits · effnet-resnet").count() == 2
        save(page, "models")


def test_a_run_shows_its_description_links_and_artifacts(
    started: Browser, links: dict[str, str]
) -> None:
    with opened(started, links["results"]) as page:
        page.locator(".ag-row a", has_text="csch gamma=1.0").first.click()
        page.get_by_text("Description").first.wait_for()
        linked = page.locator("a", has_text="gallery csch").first
        linked.wait_for()
        assert re.match(
            r"#/experiments/\d+/runs/[0-9a-f]{32}$", linked.get_attribute("href") or ""
        )
        save(page, "run")
        page.get_by_role("tab", name="Artifacts").click()
        for folder in ("codes", "curves", "weights", "trial.yaml"):
            page.get_by_text(folder, exact=True).first.wait_for()
        page.get_by_text("curves", exact=True).first.click()
        page.get_by_text("precision_recall.png").first.click()
        page.locator(
            "img[src^='blob:'], .image-outer-container, canvas, .ant-image img"
        ).first.wait_for()


def test_a_server_gets_the_same_as_the_database(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP the requests are others, and the content is not."""
    from orchestrator.cli import cli, guarded

    monkeypatch.setenv("ASYMBENCH_HOME", str(home))
    database = tmp_path / "server.db"
    with mlflow_server(f"sqlite:///{database}", tmp_path) as server:
        arguments = ["sync", "seen", "--uri", server.uri]
        for _ in range(2):
            assert guarded(lambda: cli(arguments, standalone_mode=False)) == 0
            assert differences(content(database), content(home / "mlflow.db")) == []
