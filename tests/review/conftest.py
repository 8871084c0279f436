"""A CSV of a few drawn images in clear and in doubtful clusters, and a server on it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.review.desk import Desk
from ccreid_cli.review.journal import Journal
from ccreid_cli.review.server import listen, make_app
from ccreid_cli.review.table import read_identities

TOKEN = "token-of-the-test"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
IDS = ["1"] * 5 + ["2"] * 5 + [HOSTILE] * 5 + [""] * 3
TRUE = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 0, 1, 2]
"""Identity 1 is complete but for its second half, which is called 2 and holds two of another; outliers are of all."""


@pytest.fixture
def features() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    rows = np.eye(3, 8)[TRUE] + 0.08 * rng.normal(size=(len(TRUE), 8))
    return (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float32)


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    folder = tmp_path / "crops"
    folder.mkdir()
    lines = ["path,id,camera,split,confidence"]
    for number, name in enumerate(IDS):
        colour = [(200, 40, 40), (40, 160, 60), (50, 60, 200)][TRUE[number]]
        Image.new("RGB", (24, 48), colour).save(folder / f"{number:02}.png")
        quoted = name.replace('"', '""')
        lines.append(f'crops/{number:02}.png,"{quoted}",{number % 2},train,0.5')
    file = tmp_path / "identities.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@dataclass
class Site:
    """A server in a thread of this process."""

    port: int
    desk: Desk
    journal: Journal

    def send(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send one request, the path as it is, and return status, body and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        own = {"Host": f"127.0.0.1:{self.port}"} | ({"Content-Type": "application/json"} if data is not None else {})
        connection.putrequest(method, path, skip_host=True)
        for name, value in {**own, **(headers or {}), "Content-Length": str(len(data or b""))}.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found

    def get(self, path: str) -> Any:
        status, body, _ = self.send("GET", f"/{TOKEN}/{path}")
        assert status == 200, body
        return json.loads(body)

    def act(self, action: dict[str, Any], revision: int | None = None) -> tuple[int, Any]:
        """Do an action, by default as a window that has seen everything; its status and answer."""
        seen = self.journal.revision if revision is None else revision
        status, body, _ = self.send("POST", f"/{TOKEN}/act", {"action": action, "revision": seen})
        return status, json.loads(body)


@pytest.fixture(scope="session")
def ending() -> Iterator[list[tuple[threading.Thread, socket.socket]]]:
    """Servers that were told to end, which takes each a fifth of a second, and what they listen to."""
    servers: list[tuple[threading.Thread, socket.socket]] = []
    yield servers
    for thread, listening in servers:
        thread.join(10)
        listening.close()


@pytest.fixture
def serve(
    identities: Path, features: NDArray[np.float32], ending: list[tuple[threading.Thread, socket.socket]]
) -> Iterator[Callable[[], Site]]:
    servers = []

    def start() -> Site:
        table = read_identities(identities)
        journal = Journal(table)
        desk = Desk(table, journal, features)
        listening = listen(0)
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(desk, TOKEN, port), log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        servers.append((server, thread, journal, listening))
        while not server.started:
            time.sleep(0.01)
        return Site(port, desk, journal)

    yield start
    for server, thread, journal, listening in servers:
        server.should_exit = True
        journal.close()
        ending.append((thread, listening))


@pytest.fixture
def site(serve: Callable[[], Site]) -> Site:
    return serve()
