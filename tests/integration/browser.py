"""Pages in a real browser: Chromium without a window, driven by Playwright.

A page that is opened here may load local files alone, or, where it comes from a server of the test
itself, what that server has; and it may not complain: whatever the console says as a warning or an
error, an exception of a script and a request to anywhere else fail the test that opened it.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000
"""Milliseconds after which a page hangs, also on a machine that does much else."""
_LOCAL = ("file:", "data:", "blob:", "about:")
_SERVER = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}/")


@functools.cache
def why_no_browser() -> str:
    """Return why pages cannot be opened here; "" where they can."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if _installed() or _own():
        return ""
    return f"no browser: none of {', '.join(NAMES)}, nor Playwright's own Chromium"


def _installed() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@functools.cache
def _own() -> str | None:
    """Return the browser that ``playwright install chromium`` has put down, if it has."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it with the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=_installed() or _own(),
            ignore_default_args=["--hide-scrollbars"],  # they take room on real screens
            timeout=PATIENCE,
        )
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(
    started: Browser,
    path: Path | str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    touch: bool = False,
    permissions: Sequence[str] = (),
    before: str = "",
) -> Iterator[Page]:
    """Open a file as a page, or a page of a server that the test started.

    Args:
        started: from ``browser``.
        path: of the file; or a URL that begins with ``http://127.0.0.1:PORT/``, and the page may
            ask for what begins with the same and for nothing else.
        width, height: of the window in CSS pixels.
        scheme: of colours, that the reader prefers.
        touch: whether the device has a finger instead of a mouse.
        permissions: that the reader has granted, such as ``clipboard-write``.
        before: script that runs before those of the page.

    Raises:
        AssertionError: at the end of the block, what the page complained of or asked for.
    """
    server = _SERVER.match(path) if isinstance(path, str) else None
    if isinstance(path, str) and server is None:
        raise ValueError(f"no page of a server on this machine: {path}")
    local = (server[0], "data:", "blob:", "about:") if server is not None else _LOCAL
    context = started.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=touch,
        is_mobile=touch,
        permissions=list(permissions),
    )
    try:
        context.set_default_timeout(PATIENCE)
        context.route(
            lambda url: (
                re.match(r"(https?|wss?|ftp):", url) is not None and not url.startswith(local)
            ),
            lambda route: route.abort(),
        )
        if before:
            context.add_init_script(before)
        page = context.new_page()
        problems: list[str] = []
        _listen(page, problems, local)
        page.goto(path if isinstance(path, str) else path.absolute().as_uri())
        yield page
        assert not problems, "\n".join(problems)
    finally:
        context.close()


def _listen(page: Page, problems: list[str], local: tuple[str, ...]) -> None:
    def said(message: Any) -> None:
        if message.type in ("warning", "error"):
            problems.append(f"console {message.type}: {message.text}")

    def asked(request: Any) -> None:
        if not request.url.startswith(local):
            problems.append(f"request: {request.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
    page.on("request", asked)
    page.on("websocket", lambda socket: problems.append(f"request: {socket.url}"))


def overflow(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    width: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return width
