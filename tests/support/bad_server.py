"""An HTTP server on 127.0.0.1 that does to a download whatever a test asks for."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MODIFIED = "Sat, 01 Jan 2022 00:00:00 GMT"


@dataclass
class Request:
    """One request, and the means to answer it in any wrong way."""

    path: str
    headers: dict[str, str]
    connection: socket.socket
    server: BadServer
    number: int

    @property
    def range_start(self) -> int | None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else None

    def raw(self, data: bytes) -> None:
        self.connection.sendall(data)

    def head(self, status: int | str, **headers: object) -> None:
        lines = [f"HTTP/1.1 {status} X" if isinstance(status, int) else f"HTTP/1.1 {status}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.raw("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))

    def body(self, data: bytes, *, block: int = 1 << 16, pause: float = 0.0) -> None:
        for start in range(0, len(data), block):
            piece = data[start : start + block]
            self.server.sent_bytes += len(piece)  # first: the client may be ahead of this thread
            self.raw(piece)
            if pause:
                time.sleep(pause)

    def chunked(self, data: bytes, *, end: bool = True, block: int = 5000) -> None:
        for start in range(0, len(data), block):
            piece = data[start : start + block]
            self.raw(f"{len(piece):x}\r\n".encode())
            self.body(piece)
            self.raw(b"\r\n")
        if end:
            self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        """Break the connection the hard way."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


Behaviour = Callable[[Request], None]


@dataclass
class BadServer:
    """Answers every request with `behaviour`; counts requests and body bytes."""

    behaviour: Behaviour
    certificate: Path | None = None
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0
    port: int = 0

    def __enter__(self) -> BadServer:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._socket.close()

    def url(self, path: str = "/file.bin") -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}{path}"

    @property
    def range_starts(self) -> list[int | None]:
        return [request.range_start for request in self.requests]

    def _accept(self) -> None:
        while self._open:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.certificate:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.certificate)
                connection = context.wrap_socket(connection, server_side=True)
            text = b""
            while b"\r\n\r\n" not in text:
                received = connection.recv(65536)
                if not received:
                    return
                text += received
            first, *lines = text.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            request = Request(first.split()[1], headers, connection, self, len(self.requests))
            self.requests.append(request)
            self.behaviour(request)
            if connection.fileno() >= 0:
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
                connection.close()


def good(
    data: bytes, *, etag: str = '"v1"', pause: float = 0.0, block: int = 1 << 16, stop: int | None = None
) -> Behaviour:
    """A server that does everything right; with `stop`, it cuts each answer after that many body bytes."""

    def answer(request: Request) -> None:
        start, condition = request.range_start, request.headers.get("if-range")
        head: dict[str, object] = {"Accept_Ranges": "bytes", "Last_Modified": MODIFIED}
        if etag:
            head["ETag"] = etag
        if start is not None and start >= len(data):
            request.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0, **head)
            return
        if start is None or condition not in (None, etag, MODIFIED):
            start = 0
            request.head(200, Content_Length=len(data), **head)
        else:
            head["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            request.head(206, Content_Length=len(data) - start, **head)
        request.body(data[start:][:stop], pause=pause, block=block)

    return answer


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Answer the first request with the first behaviour and so on; the last one stays."""

    def answer(request: Request) -> None:
        behaviours[min(request.number, len(behaviours) - 1)](request)

    return answer


def status(code: int, body: bytes = b"no", **headers: object) -> Behaviour:
    """Answer with a status and a short body."""

    def answer(request: Request) -> None:
        request.head(code, Content_Length=len(body), **headers)
        request.raw(body)

    return answer


def redirect(location: str | Callable[[int], str]) -> Behaviour:
    """Send the client elsewhere."""

    def answer(request: Request) -> None:
        where = location if isinstance(location, str) else location(request.number)
        request.head(302, Location=where, Content_Length=0)

    return answer


def drip(request: Request, data: bytes, pause: float = 0.05) -> None:
    """Send byte by byte."""
    for start in range(len(data)):
        request.raw(data[start : start + 1])
        time.sleep(pause)


@contextlib.contextmanager
def serving(behaviour: Behaviour, certificate: Path | None = None) -> Iterator[BadServer]:
    with BadServer(behaviour, certificate) as server:
        yield server
