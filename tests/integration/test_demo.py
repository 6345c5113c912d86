"""The demo as people use it: an image is dropped, chosen or clicked on in a real browser."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from orchestrator.serving.demo import Queries, panels
from orchestrator.serving.gallery import study_gallery
from orchestrator.serving.server import Demo, address_of, listen
from orchestrator.serving.trained import TrainedTrial, open_trial
from tests.integration.browser import browser, opened, overflow, why_no_browser
from tests.orchestrator.serving.conftest import served_home

__all__ = ["served_home"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser()),
]


@pytest.fixture(scope="module")
def trained(served_home) -> TrainedTrial:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMBENCH_HOME", str(served_home))
        return open_trial(None, "served:csch")


@pytest.fixture(scope="module")
def url(trained) -> Iterator[str]:
    """The address of a demo that is served in this process."""
    demo = Demo(
        panels([trained], [study_gallery(trained)], threads=1), Queries(trained), "127.0.0.1"
    )
    demo.warm_up()
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(demo.app(), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.05)
            yield address_of(listening)
        finally:
            server.should_exit = True
            thread.join()
            demo.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


def picture(trained: TrainedTrial, place: int) -> bytes:
    """Return a test query as a PNG."""
    stored = trained.dataset.images()
    stream = io.BytesIO()
    Image.fromarray(np.array(stored.array[trained.rows("query")[place]])).save(stream, "PNG")
    return stream.getvalue()


def distances(page) -> list[list[int]]:
    """Return the distances that each panel shows."""
    found: list[list[int]] = page.evaluate(
        """() => Array.from(document.querySelectorAll(".panel"), panel => Array.from(
          panel.querySelectorAll(".matches li"), item => Number(
            item.textContent.match(/: (\\d+) bit/)[1])))"""
    )
    return found


def expected(trained: TrainedTrial, place: int, k: int) -> list[list[int]]:
    """Return the k least distances, counted bit by bit, from both networks' codes of a query."""
    path = trained.session.store.read(
        trained.trial.stages["gallery"], "gallery_network_query_codes.npy"
    )
    codes = [trained.codes("query")[place], np.load(path)[place]]
    gallery = trained.codes("gallery")
    return [np.sort(np.unpackbits(gallery ^ c, axis=1).sum(axis=1))[:k].tolist() for c in codes]


def finished(page, k: int) -> None:
    """Wait for the answer, and for the images that are on the screen."""
    page.get_by_text(f"{k} matches", exact=True).wait_for()
    page.locator(".matches img").first.evaluate(
        "image => image.complete || new Promise(done => image.addEventListener('load', done))"
    )


DROP = """async ([name, data]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: given, bubbles: true,
      cancelable: true }));
}"""


@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_image_that_is_dropped_finds_others(started, url, trained, width, scheme) -> None:
    with opened(started, url, width=width, scheme=scheme) as page:
        page.locator(".queries img").nth(23).wait_for()
        page.evaluate(DROP, ["query.png", base64.b64encode(picture(trained, 5)).decode()])
        finished(page, 10)
        assert distances(page) == expected(trained, 5, 10)
        assert overflow(page) == 0
        sides = page.locator(".panel").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().left)"
        )
        assert (sides[0] == sides[1]) == (width == 380)  # one below the other on a phone
        strips = page.locator(".matches .bits").all()
        assert len(strips) == 20
        shown = [distance for panel in distances(page) for distance in panel]
        for strip, distance in zip(strips, shown, strict=True):
            assert strip.get_attribute("aria-label") == f"code, {distance} of 16 bits differ"


def test_the_keyboard_alone_asks_a_test_query_and_for_more(started, url, trained) -> None:
    with opened(started, url) as page:
        page.locator(".queries img").nth(23).wait_for()
        names = []
        for _ in range(5):
            page.keyboard.press("Tab")
            names.append(
                page.evaluate("document.activeElement.id || document.activeElement.textContent")
            )
            shown = page.evaluate(
                """() => { const one = document.activeElement.closest("label.drop") ||
                  document.activeElement; return getComputedStyle(one).outlineStyle; }"""
            )
            assert shown != "none"
        assert names[:3] == ["To the results", "file", "count"]
        page.keyboard.press("Enter")  # the second of the queries
        finished(page, 10)
        place = len(trained.rows("query")) // 24
        assert distances(page) == expected(trained, place, 10)
        pressed = page.locator(".queries button[aria-pressed=true]")
        assert pressed.count() == 1
        assert pressed.locator("img").get_attribute("alt").startswith("test query 2: ")
        assert page.locator(".right, .wrong").count() == 20
        page.locator("#count").select_option("50")
        finished(page, 50)
        assert distances(page) == expected(trained, place, 50)


def test_a_file_that_is_no_image_is_told_and_the_next_one_is_answered(
    started, url, trained, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes(picture(trained, 2))
    with pytest.raises(AssertionError, match="422"), opened(started, url) as page:  # the console
        page.locator("#file").set_input_files(tmp_path / "bad.png")
        page.get_by_text("cannot be read as an image").wait_for()
        assert page.locator("#results").is_hidden()
        page.locator("#file").set_input_files(tmp_path / "good.png")
        finished(page, 10)
        assert distances(page) == expected(trained, 2, 10)


def test_a_page_of_a_server_may_ask_for_nothing_else(started, url) -> None:
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1:9/"), opened(started, url) as page:
        page.evaluate("fetch('http://127.0.0.1:9/x').catch(() => 0)")
    with pytest.raises(ValueError, match="no page of a server"), opened(started, "http://x.org/"):
        pass
