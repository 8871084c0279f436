"""The journal: nothing that was answered is lost, nothing is applied twice, nothing foreign is applied."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.review.journal import SUFFIX, Journal, StaleRevision
from ccreid_cli.review.table import read_identities
from ccreid_cli.review.undo import RefusedAction

TEXT = 'id,path,note\n7,a.jpg,kept\n7,b.jpg,"with, comma"\n,c.jpg,\n'
SPLIT_OFF = {"do": "move", "images": [1], "to": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ids.csv"
    path.write_text(TEXT)
    return path


def opened(path: Path) -> Journal:
    return Journal(read_identities(path))


def test_what_was_done_is_there_after_a_kill_and_a_torn_line_is_not(file: Path) -> None:
    first = opened(file)
    first.act(SPLIT_OFF, 0)
    first.act({"do": "junk", "images": [2]}, 1)
    first.act({"do": "undo"}, 2)
    with (file.parent / (file.name + SUFFIX)).open("ab") as stream:
        stream.write(b'{"revision":4,"action":{"do":"junk","ima')
    again = opened(file)
    assert again.revision == 3
    assert again.decisions.snapshot() == first.decisions.snapshot()
    again.act({"do": "redo"}, 3)
    assert opened(file).decisions.junk == [2]


def test_the_csv_is_written_with_every_other_column_and_can_be_reviewed_on(file: Path) -> None:
    journal = opened(file)
    journal.act(SPLIT_OFF, 0)
    assert (journal.revision, journal.written_revision) == (1, 0)
    assert journal.write_table()
    assert file.read_text() == 'id,path,note,checked\n7,a.jpg,kept,0\n8,b.jpg,"with, comma",1\n,c.jpg,,0\n'
    assert not journal.write_table()
    again = opened(file)
    assert again.written_revision == again.revision == 1
    again.act({"do": "undo"}, 1)
    assert again.write_table()
    assert read_identities(file).names == ["7", "7", ""]


def test_a_crash_between_the_note_and_the_csv_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(file)
    journal.act(SPLIT_OFF, 0)
    with monkeypatch.context() as patch:
        patch.setattr(type(read_identities(file)), "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            journal.write_table()
    again = opened(file)
    assert again.decisions.rows()[0] == ["7", "8", ""]
    assert again.write_table()


def test_an_action_that_cannot_be_written_did_not_happen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(file)
    journal.act(SPLIT_OFF, 0)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = journal.decisions.snapshot()
    for action in ({"do": "junk", "images": [2]}, {"do": "undo"}):
        with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left"):
            patch.setattr(os, "fsync", full)
            journal.act(action, 1)
        assert (journal.revision, journal.decisions.snapshot()) == (1, before)
    assert opened(file).decisions.snapshot() == before


def test_refused_and_stale_actions_are_not_recorded(file: Path) -> None:
    journal = opened(file)
    size = journal.path.stat().st_size
    with pytest.raises(RefusedAction):
        journal.act({"do": "junk", "images": [3]}, 0)
    with pytest.raises(StaleRevision):
        journal.act(SPLIT_OFF, 1)
    assert journal.path.stat().st_size == size


def test_a_csv_that_something_else_changed_is_not_touched(file: Path) -> None:
    journal = opened(file)
    journal.act(SPLIT_OFF, 0)
    file.write_text(TEXT.replace("7,b", "9,b"))
    with pytest.raises(DataError, match="changed by something else"):
        opened(file)
    file.write_text(TEXT.replace("c.jpg", "d.jpg"))
    with pytest.raises(DataError, match="another list of images"):
        opened(file)


@pytest.mark.parametrize("line", ["{]", "7", json.dumps({"revision": 1, "action": {"do": "explode"}})])
def test_a_damaged_line_is_named(file: Path, line: str) -> None:
    opened(file)
    with (file.parent / (file.name + SUFFIX)).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match="line 2"):
        opened(file)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", 'no column "path"'),
        ("path,name\na,b\n", 'no column "id"'),
        ("path,id\n", "no images"),
        ("path,id\n,7\n", "line 2: the path is empty"),
        ("path,id,checked\na.jpg,7,perhaps\n", 'line 2: checked is "perhaps"'),
    ],
)
def test_a_csv_that_is_none_is_said(file: Path, text: str, what: str) -> None:
    file.write_text(text)
    with pytest.raises(DataError, match=what):
        read_identities(file)
