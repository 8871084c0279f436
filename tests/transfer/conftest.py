"""What the transfer tests share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest


class Listener:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[list[object]] = []
        self.done: list[int] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.lines.append(text)

    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> _Bar:
        self.done.append(done)
        self.tasks.append([description, total, unit, done])
        return _Bar(self.tasks[-1])

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class _Bar:
    def __init__(self, entry: list[object]) -> None:
        self._entry = entry

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        self._entry[3] = int(str(self._entry[3])) + amount

    def note(self, **fields: object) -> None:
        pass


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="session")
def payload() -> bytes:
    """200,000 bytes that do not pack and are not a web page."""
    return b"PAYLOAD" + random.Random(0).randbytes(199_993)


@pytest.fixture(autouse=True)
def _direct_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "place" / "file.bin"
