"""The demo's web server: one page of this machine, that answers to nobody else's pages.

A page of another site cannot ask it: requests that name a host which is not this server's are
refused, so that no name can be pointed here (DNS rebinding), and so are those with a foreign
``Origin``. Nothing that is asked names a file; what is uploaded is decoded and never kept.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.serving.demo import Panel, Queries
from orchestrator.serving.gallery import shrunk
from orchestrator.serving.pages import assets, jpeg
from retrieval.errors import DatasetError, InputError
from retrieval.images import decode_bytes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_UPLOAD = 32 * 2**20
"""Bytes of an image that is asked about."""

MOST = 100
"""Matches that can be asked for."""

_USUAL = 10

_PATIENCE = 60.0
"""Seconds in which an upload must have arrived."""

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:@/\\\s]+))(?::[0-9]*)?", re.IGNORECASE)
"""An address of IPv6, or another address or a name; with or without a port."""

_NUMBER = re.compile(r"[0-9]{1,12}", re.ASCII)

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

    def app(self) -> ASGIApp:
        """Return the application for a server."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes = [Route(path, _file(*file)) for path, file in _FILES.items()]
        routes += [
            Route("/api/demo", self._facts),
            Route("/api/search", self._upload, methods=["POST"]),
            Route("/api/queries/{number}/search", self._query, methods=["POST"]),
            Route("/queries/{number}.jpg", self._query_image),
            Route("/gallery/{panel}/{row}.jpg", self._gallery_image),
        ]
        site = Starlette(routes=routes, exception_handlers={_Refused: _refusal})
        site.router.redirect_slashes = False
        return self._guarded(site)

    def _guarded(self, site: ASGIApp) -> ASGIApp:
        """Return an application that asks the site for its own page only.

        It stands around all of the site, so that every answer has the headers, that of a path
        which there is not too.
        """
        from starlette.datastructures import Headers, MutableHeaders

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_guarded(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(_HEADERS)
                await send(message)

            refused = self._refused(Headers(scope=scope))
            if refused is None:
                await site(scope, receive, send_guarded)
            else:
                await _answer_to(refused)(scope, receive, send_guarded)

        return guarded

    def _refused(self, headers: Mapping[str, str]) -> _Refused | None:
        """Return why a request is not answered that a page of another site may have sent."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return _Refused(421, "this server does not answer for that host")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _Refused(403, "this server answers its own page only")
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a host is this one: by a name that it has, or by any address, as no name is
        looked up then.
        """
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        address, name = found.groups()
        try:
            ipaddress.ip_address(address or name)
        except ValueError:
            return name is not None and name.lower() in self._names
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
        number = _number(request, "number", len(self.queries))
        if number is None:
            raise _Refused(404, f"there are {len(self.queries)} queries")
        return number

    async def _gallery_image(self, request: Request) -> Response:
        number = _number(request, "panel", len(self.panels))
        gallery = None if number is None else self.panels[number].gallery
        row = None if gallery is None else _number(request, "row", len(gallery))
        if gallery is None or row is None:
            raise _Refused(404, "there is no such image")
        return await self._picture(lambda: gallery.image(row))

    async def _picture(self, image: Callable[[], Any]) -> Response:
        from starlette.responses import Response

        try:
            data = await asyncio.to_thread(lambda: jpeg(shrunk(image())))
        except DatasetError as error:
            raise _Refused(404, f"cannot be read any more: {error.problem}") from None
        return Response(data, media_type="image/jpeg")


def _answer_to(refused: _Refused) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": refused.why}, refused.status)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return _answer_to(error)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        from starlette.responses import Response

        return Response((assets() / name).read_bytes(), media_type=kind)

    return answer


def _number(request: Request, name: str, below: int) -> int | None:
    """Return a number of the path; None where it is none below the limit."""
    text = request.path_params[name]
    return int(text) if _NUMBER.fullmatch(text) and int(text) < below else None


def _wanted(request: Request) -> int:
    text = request.query_params.get("k", str(_USUAL))
    if not (_NUMBER.fullmatch(text) and 1 <= int(text) <= MOST):
        raise _Refused(400, f"k must be from 1 to {MOST}")
    return int(text)


async def _body(request: Request) -> bytes:
    """Return what was sent, as far as it may be that much and take that long."""
    from starlette.requests import ClientDisconnect

    data = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE):
            async for chunk in request.stream():
                data += chunk
                if len(data) > LARGEST_UPLOAD:
                    most = LARGEST_UPLOAD // 2**20
                    raise _Refused(413, f"an image of at most {most} MiB can be asked")
    except TimeoutError:
        raise _Refused(408, "the image did not arrive in time") from None
    except ClientDisconnect:
        raise _Refused(400, "the image did not arrive whole") from None  # nobody hears it
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
    if not host:  # all addresses to the system, which is said as 0.0.0.0
        raise InputError("must be a name or an address", key="--host", value=host)
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


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=2,
        limit_concurrency=64,
        h11_max_incomplete_event_size=64 * 1024,
    )
    uvicorn.Server(config).run(sockets=[listening])
