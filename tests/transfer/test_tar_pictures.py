"""Tars are read in memory, whatever they hold."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.transfer import tar_pictures
from ccreid_cli.transfer.tar_pictures import Entry, entries_of


def packed(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def read(data: bytes) -> list[Entry]:
    return list(entries_of(io.BytesIO(data), "a.tar", lambda name: name.endswith(".jpg")))


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_pictures_and_their_labels() -> None:
    data = packed(
        ("a/0.jpg", b"one"), ("a/0.cls", b"17\n"), ("1.x.jpg", b"two"), ("1.json", b'{"id": 5}'), ("2.txt", b"?"),
        ("3.json", b"[1]"), ("4.json", b"{"),
    )  # fmt: skip
    entries = read(data)
    assert [(entry.name, entry.data, entry.labels) for entry in entries] == [
        ("a/0.jpg", b"one", None),
        ("a/0.cls", b"", {"id": "17"}),
        ("1.x.jpg", b"two", None),
        ("1.json", b"", {"id": 5}),
        ("3.json", b"", {}),
        ("4.json", b"", {}),
    ]
    assert [entry.key for entry in entries[:4]] == ["a/0", "a/0", "1", "1"]


def test_what_is_no_plain_picture_is_said_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tar_pictures, "MOST_BYTES", 1000)
    data = packed(
        odd("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        odd("hard.jpg", tarfile.LNKTYPE, "link.jpg"),
        odd("pipe.jpg", tarfile.FIFOTYPE),
        odd("device.jpg", tarfile.CHRTYPE),
        odd("folder.jpg", tarfile.DIRTYPE),
        odd("link.json", tarfile.SYMTYPE, "/etc/passwd"),
        ("/absolute.jpg", b"x"),
        ("a/../../up.jpg", b"x"),
        ("large.jpg", b"x" * 1001),
        ("good.jpg", b"x"),
    )
    found = {entry.name: (entry.data, entry.problem) for entry in read(data)}
    assert found == {
        "link.jpg": (b"", "a link in the tar"),
        "hard.jpg": (b"", "a link in the tar"),
        "pipe.jpg": (b"", "no plain file in the tar"),
        "device.jpg": (b"", "no plain file in the tar"),
        "folder.jpg": (b"", "a folder in the tar"),
        "/absolute.jpg": (b"", "its name leads out of the tar"),
        "a/../../up.jpg": (b"", "its name leads out of the tar"),
        "large.jpg": (b"", "1,001 bytes"),
        "good.jpg": (b"x", ""),
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [600, 1024 + 300, 2048 + 100])
def test_a_tar_that_is_cut_off_is_named(size: int) -> None:
    data = packed(("0.jpg", b"x" * 400), ("1.jpg", b"y" * 400), ("2.jpg", b"z" * 400))
    seen = []
    with pytest.raises(DataError, match=r"a\.tar is damaged or cut off, after \d whole pictures"):
        for entry in entries_of(io.BytesIO(data[:size]), "a.tar", lambda name: True):
            seen.append(entry)
    assert len(seen) == size // 1024


def test_what_is_no_tar_is_named() -> None:
    for data in (b"", b"\xff" * 2000):
        with pytest.raises(DataError, match="after 0 whole"):
            read(data)
