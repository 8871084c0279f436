"""`ccreid review`: what it refuses, and what it leaves behind when it ends."""

from __future__ import annotations

import csv
import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ccreid_cli.core.locks import FileLock
from ccreid_cli.review import server
from ccreid_cli.review.desk import Desk

from .conftest import Cli


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    file = tmp_path / "identities.csv"
    file.write_text("path,id,camera,split,confidence\n" + "".join(f"{i}.jpg,{i // 3},,train,0.5\n" for i in range(6)))
    np.savez(tmp_path / "f.npz", features=np.eye(6, dtype=np.float32))
    return file


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Desk], object]], None]:
    """Let something be done where the page would be shown."""

    def use(work: Callable[[Desk], object]) -> None:
        def serve(desk: Desk, listening: socket.socket, token: str) -> None:
            listening.close()
            work(desk)

        monkeypatch.setattr(server, "serve", serve)

    return use


def split_off(desk: Desk) -> None:
    desk.act({"do": "move", "images": [2], "to": None}, 0)


def test_the_csv_is_written_at_the_end_even_of_a_failure(
    cli: Cli, identities: Path, served: Callable[[Callable[[Desk], object]], None]
) -> None:
    def work(desk: Desk) -> None:
        split_off(desk)
        raise KeyError("a bug")

    served(work)
    options = ("review", identities, "--features", identities.parent / "f.npz", "--no-browser", "--json")
    done = cli(*options)
    assert done.code == 1
    assert json.loads(done.out)["address"].startswith("http://127.0.0.1:")
    rows = list(csv.DictReader(identities.open()))
    assert [(row["id"], row["checked"]) for row in rows[:4]] == [("0", "0"), ("0", "0"), ("2", "1"), ("1", "0")]
    served(lambda desk: desk.act({"do": "undo"}, 1))
    assert cli(*options).code == 0
    assert [row["id"] for row in csv.DictReader(identities.open())] == list("000111")
    assert not identities.with_name("identities.csv.lock").exists()


def test_a_second_server_on_one_csv_is_refused(cli: Cli, identities: Path) -> None:
    with FileLock(identities.with_name("identities.csv.lock")):
        done = cli("review", identities, "--features", identities.parent / "f.npz", "--no-browser")
    assert done.code == 3
    assert "identities.csv is in use by process" in done.err


def test_what_is_missing_is_said(cli: Cli, identities: Path) -> None:
    without = cli("review", identities, "--no-browser")
    assert (without.code, "no trained model is named" in without.err) == (2, True)
    assert cli("review", identities.parent / "none.csv").code == 3
    np.savez(identities.parent / "few.npz", features=np.eye(5, dtype=np.float32))
    few = cli("review", identities, "--features", identities.parent / "few.npz", "--no-browser")
    assert few.code == 3
    assert "no feature for 6 of 6 images" in few.err
