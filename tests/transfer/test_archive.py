"""Archives as they should be, and as someone who means harm would make them."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.transfer import archive as archive_module
from ccreid_cli.transfer import entries
from ccreid_cli.transfer.archive import INCOMING_PREFIX, extract_archive
from ccreid_cli.transfer.archive import test_archive as check_archive

from .conftest import Listener

Item = tuple[str, bytes]
GOOD: list[Item] = [
    ("set/readme.txt", b"hello" * 100),
    ("set/train/0001_c1.jpg", random.Random(0).randbytes(5000)),
    ("set/train/0002_c2.jpg", random.Random(1).randbytes(7000)),
    ("set/empty.txt", b""),
]


def zip_of(items: list[Item | tuple[zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as writer:
        for name, content in items:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = method
            writer.writestr(info, content)
    return buffer.getvalue()


def tar_of(items: list[Item | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as writer:
        for item in items:
            if isinstance(item, tarfile.TarInfo):
                writer.addfile(item, io.BytesIO(bytes(item.size)))
            else:
                info = tarfile.TarInfo(item[0])
                info.size = len(item[1])
                writer.addfile(info, io.BytesIO(item[1]))
    return buffer.getvalue()


def tar_entry(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def zip_entry(name: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = info.orig_filename = name  # ZipInfo would tidy it
    info.external_attr, info.flag_bits, info.create_system = mode << 16, flags, 3
    return info


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


# ---------------------------------------------------------------------------------------------------------------------
# Archives as they should be

FORMS: dict[str, Callable[[list[Item]], bytes]] = {
    "zip": zip_of,
    "stored zip": lambda items: zip_of(items, zipfile.ZIP_STORED),
    "tar": tar_of,
    "gnu tar": lambda items: tar_of(items, tarfile.GNU_FORMAT),
    "ustar": lambda items: tar_of(items, tarfile.USTAR_FORMAT),
    "tar.gz": lambda items: gzip.compress(tar_of(items)),
    "tar.bz2": lambda items: bz2.compress(tar_of(items)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known_by_its_content(form: str, tmp_path: Path, listener: Listener) -> None:
    archive, target = tmp_path / "download.part", tmp_path / "data" / "set"
    archive.write_bytes(FORMS[form](GOOD))
    check_archive(archive)
    extract_archive(archive, target, reporter=listener)
    assert content_of(target) == dict(GOOD)
    assert [path.name for path in target.parent.iterdir()] == ["set"]
    assert listener.tasks == [["unpacking download.part", 12_500, "B", 12_500]]


def test_modes_are_sane_whatever_the_archive_says(tmp_path: Path) -> None:
    script, folder = tarfile.TarInfo("d/run.sh"), tar_entry("d", tarfile.DIRTYPE)
    script.mode, folder.mode = 0o6777, 0o000
    for name, data in (
        ("tar", tar_of([folder, script])),
        ("zip", zip_of([(zip_entry("d/x", stat.S_IFREG | 0o4777), b"x")])),
    ):
        (tmp_path / name).write_bytes(data)
        extract_archive(tmp_path / name, tmp_path / f"{name}-out")
        assert {
            stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / f"{name}-out").rglob("*") if path.is_file()
        } == {0o644}
        assert stat.S_IMODE((tmp_path / f"{name}-out/d").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / f"{name}-out").stat().st_mode) == 0o755


def test_clutter_is_left_out(tmp_path: Path) -> None:
    clutter = ["set/Thumbs.db", "set/train/THUMBS.DB", "__MACOSX/set/._a.jpg", "set/._a.jpg", "set/.DS_Store"]
    (tmp_path / "a.zip").write_bytes(zip_of([*GOOD, *((name, b"x") for name in clutter)]))
    extract_archive(tmp_path / "a.zip", tmp_path / "out")
    assert content_of(tmp_path / "out") == dict(GOOD)


def test_windows_separators_in_a_zip_make_folders(tmp_path: Path) -> None:
    names = [zip_entry("set\\"), zip_entry("set\\train\\0001_c1.jpg")]
    (tmp_path / "a.zip").write_bytes(zip_of([(names[0], b""), (names[1], b"x")]))
    extract_archive(tmp_path / "a.zip", tmp_path / "out")
    assert content_of(tmp_path / "out") == {"set/train/0001_c1.jpg": b"x"}


def test_plain_oddities_are_taken(tmp_path: Path) -> None:
    long_name = "a" * 120 + "/" + "b" * 150 + ".jpg"
    odd = tar_of(
        [tar_entry(".", tarfile.DIRTYPE), ("./set//a.jpg", b"1"), ("set/\u00e4 b.jpg", b"2"), (long_name, b"3")]
    )
    (tmp_path / "a.tar").write_bytes(odd)
    extract_archive(tmp_path / "a.tar", tmp_path / "out")
    assert content_of(tmp_path / "out") == {"set/a.jpg": b"1", "set/\u00e4 b.jpg": b"2", long_name: b"3"}
    latin = replaced(tar_of([("name-XY.jpg", b"4")], tarfile.GNU_FORMAT), b"name-XY", b"name-\xe9\xfc")
    header = bytearray(latin[:512])
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "b.tar").write_bytes(bytes(header) + latin[512:])
    extract_archive(tmp_path / "b.tar", tmp_path / "latin")
    assert list(content_of(tmp_path / "latin").values()) == [b"4"]


def test_empty_folders_and_repeated_ones_are_made(tmp_path: Path) -> None:
    folders = [tar_entry("a", tarfile.DIRTYPE), tar_entry("a/b", tarfile.DIRTYPE), tar_entry("a", tarfile.DIRTYPE)]
    (tmp_path / "a.tar").write_bytes(tar_of([*folders, ("c/x.txt", b"x")]))
    extract_archive(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out/a/b").is_dir()


# ---------------------------------------------------------------------------------------------------------------------
# Archives that mean harm, or came to some


def pax_bomb() -> bytes:
    """A tar.gz whose extended header declares 5 GB."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 5_000_000_000
    return gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))


def backwards_tar() -> bytes:
    """A header with a negative size, which would send the reader in circles."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def lying_zip(declared: int) -> bytes:
    """A zip whose one entry of 5,000 bytes declares another size."""
    data = zip_of([("a.jpg", GOOD[1][1])], zipfile.ZIP_STORED)
    return data.replace(struct.pack("<LL", 5000, 5000), struct.pack("<LL", 5000, declared))


def overlapping_zip() -> bytes:
    """Two entries that share their content."""
    data = zip_of([("a.jpg", b"x" * 900), ("b.jpg", b"y" * 900)], zipfile.ZIP_STORED)
    second = data.index(b"PK\x03\x04", 4)
    central = data.rindex(b"PK\x01\x02")
    return data[: central + 42] + struct.pack("<L", 0) + data[central + 46 :] if second else data


def sparse_tar() -> bytes:
    header = bytearray(tar_entry("sparse.bin", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def zip_with_wrong_local_name() -> bytes:
    data = zip_of([("inside.jpg", b"x" * 100)])
    return data.replace(b"inside.jpg", b"../outside", 1)


def encrypted_zip() -> bytes:
    """The central directory says that the last entry needs a password."""
    data = bytearray(zip_of(GOOD))
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def unknown_method() -> bytes:
    """Both headers of the one entry name a method that nothing knows."""
    data = zip_of([("a.jpg", b"x")], zipfile.ZIP_STORED)
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.index(magic) + offset
        data = data[:place] + b"\x63\0" + data[place + 2 :]
    return data


def wrong_crc() -> bytes:
    data = bytearray(zip_of(GOOD, zipfile.ZIP_STORED))
    data[data.index(GOOD[1][1]) + 2500] ^= 1
    return bytes(data)


def broken_second_header() -> bytes:
    data = bytearray(tar_of(GOOD, tarfile.USTAR_FORMAT))
    place = data.index(b"set/train/0002")
    data[place] ^= 1
    return bytes(data)


def broken_gzip_checksum() -> bytes:
    data = bytearray(gzip.compress(tar_of(GOOD)))
    data[-6] ^= 1
    return bytes(data)


MIB = 1 << 20
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # names
    "absolute": (lambda: zip_of([(zip_entry("/abs.txt"), b"x")]), "absolute path"),
    "drive letter": (lambda: tar_of([("c:x.txt", b"x")]), "absolute path"),
    "network share": (lambda: zip_of([(zip_entry("\\\\host\\share\\x"), b"x")]), "absolute path"),
    "parent": (lambda: tar_of([("set/../../up.txt", b"x")]), "leads out"),
    "parent by backslashes": (lambda: zip_of([(zip_entry("set\\..\\..\\up.txt"), b"x")]), "leads out"),
    "parent among clutter": (lambda: zip_of([*GOOD, ("__MACOSX/../../up.txt", b"x")]), "leads out"),
    "backslash in tar": (lambda: tar_of([("a\\b.txt", b"x")]), "backslash"),
    "NUL": (lambda: replaced(zip_of([("set/a.jpg_.txt", b"x")]), b"a.jpg_", b"a.jpg\0"), "control characters"),
    "escape sequence": (lambda: tar_of([("set/\x1b[2Jx", b"x")]), "control characters"),
    "long name": (lambda: tar_of([("\u00e4" * 200, b"x")]), "too long"),
    "long path": (lambda: tar_of([("/".join(["a" * 100] * 30), b"x")]), "too long"),
    # kinds
    "symbolic link": (lambda: tar_of([tar_entry("d", tarfile.SYMTYPE, "../.."), ("d/up.txt", b"x")]), "is a link"),
    "hard link": (lambda: tar_of([*GOOD, tar_entry("l", tarfile.LNKTYPE, "set/readme.txt")]), "is a link"),
    "symbolic link in zip": (lambda: zip_of([(zip_entry("l", stat.S_IFLNK | 0o777), b"/etc/passwd")]), "is a link"),
    "pipe": (lambda: tar_of([tar_entry("f", tarfile.FIFOTYPE)]), "special file"),
    "device": (lambda: tar_of([tar_entry("dev", tarfile.BLKTYPE)]), "special file"),
    "sparse file": (sparse_tar, "special file"),
    # collisions
    "twice": (lambda: tar_of([("a/b.jpg", b"1"), ("./a//b.jpg", b"2")]), "twice"),
    "case": (lambda: zip_of([("set/A.jpg", b"1"), ("set/a.jpg", b"2")]), "case does not count"),
    "case of folders": (lambda: tar_of([("Train/a.jpg", b"1"), ("train/b.jpg", b"2")]), "case does not count"),
    "Unicode forms": (lambda: zip_of([("\u00e9.jpg", b"1"), ("e\u0301.jpg", b"2")]), "case does not count"),
    "file, then folder": (lambda: zip_of([("set", b"1"), ("set/a.jpg", b"2")]), "twice"),
    "folder, then file": (lambda: tar_of([("set/a.jpg", b"2"), ("set", b"1")]), "twice"),
    # sizes
    "zip bomb": (lambda: zip_of([("zeros", bytes(8 * MIB))]), "too well to be true"),
    "tar.gz bomb": (lambda: gzip.compress(tar_of([("zeros", bytes(8 * MIB))])), "too well to be true"),
    "bomb among clutter": (lambda: zip_of([*GOOD, ("Thumbs.db", bytes(8 * MIB))]), "too well to be true"),
    "tar of terabytes": (
        lambda: gzip.compress(tar_entry("x", tarfile.REGTYPE, size=1 << 42).tobuf(tarfile.GNU_FORMAT) + bytes(MIB)),
        "too well to be true",
    ),
    "zeros after the end": (lambda: gzip.compress(tar_of(GOOD) + bytes(8 * MIB)), "too well to be true"),
    "pax header of gigabytes": (pax_bomb, "absurd length"),
    "size below zero": (backwards_tar, "damaged|declares -"),
    "overlapping entries": (overlapping_zip, "damaged"),
    "another size than declared": (lambda: lying_zip(3000), "damaged"),
    # damage
    "zip cut": (lambda: zip_of(GOOD)[:-30], "cut short or damaged"),
    "zip checksum": (wrong_crc, "Bad CRC-32"),
    "zip deflate stream": (lambda: replaced(zip_of(GOOD), zip_of(GOOD)[3000:3050], bytes(50)), "damaged"),
    "zip local name differs": (zip_with_wrong_local_name, "damaged"),
    "tar cut in a file": (lambda: tar_of(GOOD)[:8000], "cut short or damaged"),
    "tar cut between files": (lambda: tar_of(GOOD, tarfile.USTAR_FORMAT)[: 512 + 512], "mark at the end is missing"),
    "tar with a broken header": (broken_second_header, "mark at the end is missing"),
    "tar.gz without its checksum": (lambda: gzip.compress(tar_of(GOOD))[:-8], "cut short or damaged"),
    "tar.gz checksum": (broken_gzip_checksum, "CRC check failed"),
    "tar.bz2 cut": (lambda: bz2.compress(tar_of(GOOD))[:-500], "cut short or damaged"),
    "gzip of no tar": (lambda: gzip.compress(b"just text" * 100), "damaged"),
    # kinds that are not read
    "encrypted": (encrypted_zip, "needs a password"),
    "unknown method": (unknown_method, "compression method is not supported"),
    "RAR": (lambda: b"Rar!\x1a\x07\x00" + bytes(600), "is packed as RAR"),
    "web page": (lambda: b"<!DOCTYPE html><html>no</html>", "is a web page"),
    "text": (lambda: b"hello", "is not an archive"),
    "zeros": (lambda: bytes(2048), "is not an archive"),
    "empty": (lambda: b"", "is empty"),
    "zip of nothing": (lambda: zip_of([]), "holds no files"),
    "tar of folders": (lambda: tar_of([tar_entry("d", tarfile.DIRTYPE)]), "holds no files"),
    "only clutter": (lambda: zip_of([("Thumbs.db", b"x")]), "holds no files"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_unpacked_and_nothing_touched(name: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[name]
    place = tmp_path / "deep" / "place"
    place.mkdir(parents=True)
    archive, neighbour = tmp_path / "a.archive", place / "up.txt"
    archive.write_bytes(make())
    neighbour.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=reason) as caught:
        extract_archive(archive, place / "set")
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert sorted(tmp_path.rglob("*")) == before and neighbour.read_text() == "mine"
    with pytest.raises(DataError, match=reason):
        check_archive(archive)


def test_number_of_entries_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of(GOOD))
    monkeypatch.setattr(entries, "MAX_ENTRIES", 3)
    with pytest.raises(DataError, match="more than 3 entries"):
        extract_archive(archive, tmp_path / "out")
    monkeypatch.setattr(entries, "MAX_ENTRIES", 4)
    extract_archive(archive, tmp_path / "out")


def test_well_packed_text_is_no_bomb(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of([("noise", random.Random(0).randbytes(100_000)), ("zeros", bytes(15 * MIB))]))
    extract_archive(archive, tmp_path / "out")
    assert (tmp_path / "out/zeros").stat().st_size == 15 * MIB


@settings(max_examples=40, deadline=None)
@given(form=st.sampled_from(sorted(FORMS)), cut=st.floats(0, 0.999))
def test_an_archive_cut_anywhere_is_found_out(form: str, cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = FORMS[form](GOOD)
    if "tar" in form and "." not in form or form == "ustar":
        whole = whole.rstrip(b"\0")  # padding may be cut without loss
        whole += bytes(-len(whole) % 512)
    (folder / "a").write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(DataError):
        extract_archive(folder / "a", folder / "out")
    assert [path.name for path in folder.iterdir()] == ["a"]


@settings(max_examples=80, deadline=None)
@given(form=st.sampled_from(sorted(FORMS)), place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_changed_byte_gives_the_files_or_an_error_but_never_a_traceback(
    form: str, place: float, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    data = bytearray(FORMS[form](GOOD))
    data[int(place * len(data))] = value
    (folder / "a").write_bytes(data)
    try:
        extract_archive(folder / "a", folder / "out")
    except DataError:
        assert [path.name for path in folder.iterdir()] == ["a"]
    else:
        assert {path.name for path in folder.iterdir()} == {"a", "out"}
        assert len(content_of(folder / "out")) == len(GOOD)


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "B", "b", "/", "\\", "C:", "x\0", "é", "~", "*", "CON"]),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES.map("/".join), min_size=1, max_size=4), form=st.sampled_from(["zip", "tar"]))
def test_no_name_leads_out(names: list[str], form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    outer = tmp_path_factory.mktemp("names")
    place = outer / "one" / "two"
    place.mkdir(parents=True)
    with warnings.catch_warnings(action="ignore"):  # zipfile's, of duplicate names
        data = (
            zip_of([(zip_entry(name), b"x") for name in names]) if form == "zip" else tar_of([(n, b"x") for n in names])
        )
    (outer / "a").write_bytes(data)
    try:
        extract_archive(outer / "a", place / "out")
    except DataError:
        assert not any(place.iterdir())
    assert {path.name for path in outer.iterdir()} == {"a", "one"}
    assert [path.name for path in (outer / "one").iterdir()] == ["two"]


# ---------------------------------------------------------------------------------------------------------------------
# The place


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(GOOD))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "file", "dangling"):
        with pytest.raises(DataError, match="is there already"):
            extract_archive(tmp_path / "a.zip", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "dangling", "file", "folder"]


def test_a_missing_archive_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.zip", tmp_path):
        with pytest.raises(DataError, match="there is no archive"):
            extract_archive(path, tmp_path / "out")
        with pytest.raises(DataError, match="there is no archive"):
            check_archive(path)


def test_a_small_disk_is_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(GOOD)))
    monkeypatch.setattr(archive_module, "free_bytes", lambda folder: 12_500)
    with pytest.raises(DataError, match="unpacks to 28.9 kB.*only 12.5 kB free"):
        extract_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    try:
        (tmp_path / "a.zip").write_bytes(zip_of([("a", bytes(100)), ("b", random.Random(0).randbytes(2 * MIB))]))
        monkeypatch.setattr(archive_module, "free_bytes", lambda folder: 10 * MIB)
        with pytest.raises(DataError, match="No space left on device"):
            extract_archive(tmp_path / "a.zip", place / "out")
        assert not any(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)


UNPACK = """
import sys
from pathlib import Path
from ccreid_cli.transfer.archive import extract_archive
extract_archive(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_unpacking_starts_clean_the_next_time(tmp_path: Path) -> None:
    items = [(f"set/{number:05}.jpg", random.Random(number).randbytes(2000)) for number in range(1000)]
    archive, target = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(zip_of(items, zipfile.ZIP_STORED))
    incoming = tmp_path / f"{INCOMING_PREFIX}out"
    process = subprocess.Popen([sys.executable, "-c", UNPACK, str(archive), str(target)], cwd=Path(__file__).parents[2])
    while process.poll() is None and not (incoming / "set").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert incoming.exists() != target.exists()  # a fast machine may have finished
    shutil.rmtree(target, ignore_errors=True)
    (incoming / "set").mkdir(parents=True, exist_ok=True)
    (incoming / "set" / "stale.jpg").write_text("stale")
    extract_archive(archive, target)
    assert content_of(target) == dict(items)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    class Impatient(SilentReporter):
        def task(self, *arguments: object, **named: object) -> NoReturn:
            assert (tmp_path / f"{INCOMING_PREFIX}out").exists()
            raise KeyboardInterrupt

    (tmp_path / "a.zip").write_bytes(zip_of(GOOD))
    with pytest.raises(KeyboardInterrupt):
        extract_archive(tmp_path / "a.zip", tmp_path / "out", reporter=Impatient())
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.shared
def test_a_real_dataset(shared: Path, tmp_path: Path) -> None:
    archive = shared / "data" / "market-mini.zip"
    if not archive.exists():
        pytest.skip("market-mini.zip is not there")
    check_archive(archive)
    extract_archive(archive, tmp_path / "out")
    with zipfile.ZipFile(archive) as reader:
        expected = {name: reader.read(name) for name in reader.namelist() if name.endswith(".jpg")}
    assert content_of(tmp_path / "out") == expected
