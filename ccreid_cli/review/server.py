"""The server of the page: on 127.0.0.1 only, behind a random token, for this page's own origin only."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ccreid_cli.core.errors import CcreidError, DataError, UsageError
from ccreid_cli.review.desk import Desk, as_integer
from ccreid_cli.review.journal import StaleRevision

ADDRESS = "127.0.0.1"
LARGEST_BODY = 4 << 20
"""Bytes of an action: a move of all of 100,000 images fits."""
_HUGE = 1 << 40
_STATIC = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets through only what this page itself asks for.

    Args:
        app: What answers the rest.
        token: The first part of every path.
        port: Where the server listens: hosts and origins of other ports are strangers.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        refused = self._refusal(Request(scope))
        if refused is not None:
            await _problem(*refused)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> tuple[int, str] | None:
        given = request.url.path.split("/")[1]
        if request.headers.getlist("host") not in [[host] for host in self._hosts]:
            return 403, "this server answers only to its own address."
        origin = request.headers.get("origin")
        if (origin is not None and origin not in self._origins) or request.headers.get(
            "sec-fetch-site"
        ) == "cross-site":
            return 403, "another page may not use this server."
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return 404, "the address is not whole: open the one that `ccreid review` shows."
        if request.method == "POST" and request.headers.get("content-type", "").split(";")[0] != "application/json":
            return 415, "actions are sent as JSON."
        return None


def make_app(desk: Desk, token: str, port: int) -> ASGIApp:
    """Return the application: the page below ``/TOKEN/``, its data as JSON, its images by number.

    Args:
        desk: What it shows and does.
        token: The first part of every path.
        port: Where it listens.
    """

    def identities(request: Request) -> dict[str, Any]:
        query = request.query_params
        window = as_integer(query.get("first"), 0, _HUGE), as_integer(query.get("count"), 50, _HUGE)
        return desk.identities(*window, query.get("order", "doubt"), query.get("search", ""))

    def members(request: Request) -> dict[str, Any]:
        query = request.query_params
        window = as_integer(query.get("first"), 0, _HUGE), as_integer(query.get("count"), 100, _HUGE)
        return desk.members(request.path_params["group"], *window)

    def question(request: Request) -> dict[str, Any]:
        return desk.question(as_integer(request.query_params.get("place"), 0, _HUGE))

    async def act(request: Request) -> Response:
        sent = await _body(request)
        revision = sent.get("revision")
        action = sent.get("action")
        if type(revision) is not int or not isinstance(action, dict):
            raise UsageError("an action and the revision that it follows are needed.")
        return _json(await run_in_threadpool(desk.act, action, revision))

    async def write(request: Request) -> Response:
        return _json(await run_in_threadpool(desk.write))

    def picture(request: Request) -> Response:
        parameters = request.path_params
        found = desk.picture(as_integer(parameters["image"], -1, _HUGE), parameters["size"])
        if found is None:
            return _problem(404, "there is no such image.")
        headers = {**HEADERS, "cache-control": "private, max-age=86400"}
        return Response(found[0], media_type=f"image/{found[1]}", headers=headers)

    def static(request: Request) -> Response:
        name = request.path_params.get("name", "")
        if name not in _STATIC:
            return _problem(404, "there is no such page.")
        return Response(_file(name or "page.html"), media_type=_STATIC[name], headers=HEADERS)

    base = f"/{token}"
    routes = [
        Route(f"{base}/data/summary", _getter(lambda _: desk.summary())),
        Route(f"{base}/data/question", _getter(question)),
        Route(f"{base}/data/identities", _getter(identities)),
        Route(f"{base}/data/members/{{group}}", _getter(members)),
        Route(f"{base}/act", act, methods=["POST"]),
        Route(f"{base}/write", write, methods=["POST"]),
        Route(f"{base}/image/{{image}}/{{size}}", picture),
        Route(f"{base}/", static),
        Route(f"{base}/{{name}}", static),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        CcreidError: _said,
        404: _not_found,
        405: _not_found,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, port)


def _getter(answer: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
    return lambda request: _json(answer(request))


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value), status, HEADERS, "application/json")


def _problem(status: int, message: str, hint: str | None = None) -> Response:
    return _json({"message": message, "hint": hint}, status)


async def _said(request: Request, error: Exception) -> Response:
    """Answer with what a person can do about an error."""
    assert isinstance(error, CcreidError)
    status = 409 if isinstance(error, StaleRevision) else 507 if isinstance(error, DataError) else 422
    return _problem(status, error.message, error.hint)


async def _not_found(request: Request, error: Exception) -> Response:
    return _problem(404, "there is nothing at this address.")


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object that was sent.

    Raises:
        UsageError: It is none, or too large.
    """
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_BODY:
            raise UsageError("that is too much for one action.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError("that is no JSON.") from error
    if not isinstance(value, dict):
        raise UsageError("that is no JSON object.")
    return value


@cache
def _file(name: str) -> bytes:
    return (resources.files("ccreid_cli.review") / "static" / name).read_bytes()


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine only.

    Args:
        port: Where; 0 takes a free one.

    Raises:
        UsageError: The port is taken or may not be used.
    """
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"port {port} cannot be used: {reason}.", "Choose another --port, or 0 for a free one."
        ) from error
    found.listen(128)
    return found


def serve(desk: Desk, listening: socket.socket, token: str) -> None:
    """Answer until Ctrl-C or a stop signal, which is then raised again for the caller's handler."""
    app = make_app(desk, token, int(listening.getsockname()[1]))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listening])
