"""The demo's web server: one page of this machine, that answers to nobody else's pages.

A page of another site cannot ask it: requests that name a host which is not this server's are
refused, so that no name can be pointed here (DNS rebinding), and so are those with a foreign
``Origin``. Nothing that is asked names a file; what is uploaded is decoded and never kept.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.serving.demo import Panel, Queries
from orchestrator.serving.gallery import shrunk
from orchestrator.serving.pages import assets, jpeg
from retrieval.errors import DatasetError, InputError
from retrieval.images import decode_bytes

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LARGEST_UPLOAD = 32 * 2**20
"""Bytes of an image that is asked about."""

MOST = 100
"""Matches that can be asked for."""

_USUAL = 10

_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_FILES = {
    "/": ("demo.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/demo.css": ("demo.css", "text/css"),
    "/demo.js": ("demo.js", "text/javascript"),
}

T = TypeVar("T")


class _Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of the answer.
        why: told to who asked.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Demo:
    """The web application.

    Args:
        panels: that are asked the same.
        queries: to click on.
        host: the name or address that the server was told to listen at.
    """

    def __init__(self, panels: Sequence[Panel], queries: Queries, host: str) -> None:
        self.panels = panels
        self.queries = queries
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        # One thread computes, so that no answer's time has another one's work in it.
        self._work = ThreadPoolExecutor(1, "demo")

    def warm_up(self) -> None:
        """Let the computing thread load what it needs."""
        for panel in self.panels:
            self._work.submit(panel.warm_up).result()

    def close(self) -> None:
        """End the computing thread."""
        self._work.shutdown(cancel_futures=True)

    def app(self) -> Starlette:
        """Return the application for a server."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        answer = self._guarded
        routes = [Route(path, answer(_file(*file))) for path, file in _FILES.items()]
        routes += [
            Route("/api/demo", answer(self._facts)),
            Route("/api/search", answer(self._upload), methods=["POST"]),
            Route("/api/queries/{number:int}/search", answer(self._query), methods=["POST"]),
            Route("/queries/{number:int}.jpg", answer(self._query_image)),
            Route("/gallery/{panel:int}/{row:int}.jpg", answer(self._gallery_image)),
        ]
        return Starlette(routes=routes)

    def _guarded(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        from starlette.responses import JSONResponse

        async def guarded(request: Request) -> Response:
            try:
                self._check_sender(request)
                response = await endpoint(request)
            except _Refused as refused:
                response = JSONResponse({"error": refused.why}, refused.status)
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return guarded

    def _check_sender(self, request: Request) -> None:
        """Refuse what a page of another site may have sent."""
        if not self._is_ours(urlsplit(f"//{request.headers.get('host', '')}").hostname):
            raise _Refused(421, "this server does not answer for that host")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise _Refused(403, "this server answers its own page only")

    def _is_ours(self, name: str | None) -> bool:
        """Whether a host is this one: by a name that it has, or by any address, as no name is
        looked up then.
        """
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True

    async def _compute(self, function: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._work, function, *given)

    # ---- what is asked -------------------------------------------------------------------

    async def _facts(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse(
            {
                "panels": [panel.facts() for panel in self.panels],
                "queries": [self.queries.classes(n) for n in range(len(self.queries))],
            }
        )

    async def _upload(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise _Refused(415, "send the bytes of an image as image/... or octet-stream")
        data = await _body(request)

        def answer() -> dict[str, Any]:
            try:
                image = decode_bytes(data, "this file")
            except DatasetError as error:
                raise _Refused(422, f"{error.problem} cannot be read as an image") from None
            return self._answer(image, _wanted(request), None)

        return await self._told(answer)

    async def _query(self, request: Request) -> Response:
        number = self._number(request)
        classes = self.queries.classes(number)
        return await self._told(
            lambda: self._answer(self.queries.image(number), _wanted(request), classes)
        )

    def _answer(self, image: Any, k: int, classes: list[str] | None) -> dict[str, Any]:
        return {
            "classes": classes,
            "panels": [panel.answer(image, k, classes) for panel in self.panels],
        }

    async def _told(self, answer: Callable[[], dict[str, Any]]) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse(await self._compute(answer))

    async def _query_image(self, request: Request) -> Response:
        number = self._number(request)
        return await self._picture(lambda: self.queries.image(number))

    def _number(self, request: Request) -> int:
        number: int = request.path_params["number"]
        if number >= len(self.queries):
            raise _Refused(404, f"there are {len(self.queries)} queries")
        return number

    async def _gallery_image(self, request: Request) -> Response:
        number, row = request.path_params["panel"], request.path_params["row"]
        if number >= len(self.panels) or row >= len(self.panels[number].gallery):
            raise _Refused(404, "there is no such image")
        return await self._picture(lambda: self.panels[number].gallery.image(row))

    async def _picture(self, image: Callable[[], Any]) -> Response:
        from starlette.responses import Response

        try:
            data = await asyncio.to_thread(lambda: jpeg(shrunk(image())))
        except DatasetError as error:
            raise _Refused(404, f"cannot be read any more: {error.problem}") from None
        return Response(data, media_type="image/jpeg")


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        from starlette.responses import Response

        return Response((assets() / name).read_bytes(), media_type=kind)

    return answer


def _wanted(request: Request) -> int:
    text = request.query_params.get("k", str(_USUAL))
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= MOST):
        raise _Refused(400, f"k must be from 1 to {MOST}")
    return int(text)


async def _body(request: Request) -> bytes:
    """Return what was sent, as far as it may be that much."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_UPLOAD:
            raise _Refused(413, f"an image of at most {LARGEST_UPLOAD // 2**20} MiB can be asked")
    if not data:
        raise _Refused(400, "nothing was sent")
    return bytes(data)


# ---- serving ---------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that the port is known before anybody is told.

    Args:
        host: a name or address.
        port: 0 takes one that is free.

    Raises:
        InputError: there is no such host here, or the port is in use or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"is no host: {reason}", key="--host", value=host) from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError("is no address of this machine", key="--host", value=host) from None
        raise InputError(
            f"cannot listen there: {error.strerror}",
            key="--port",
            value=port,
            hint="--port 0 takes one that is free",
        ) from None
    return listening


def address_of(listening: socket.socket) -> str:
    """Return the URL of what listens."""
    host, port = listening.getsockname()[:2]
    if listening.family == socket.AF_INET6:
        host = f"[{host}]"
    return f"http://{host}:{port}/"


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        limit_concurrency=64,
        h11_max_incomplete_event_size=64 * 1024,
    )
    uvicorn.Server(config).run(sockets=[listening])
