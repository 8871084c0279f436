"""Archives become the official tree, whole and verified, or nothing changes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ccreid_cli.core.errors import DataError, NetworkError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data import install
from ccreid_cli.data.catalog import BUNDLE_NAMES, CATALOG, Counts, DatasetInfo, Source
from ccreid_cli.data.install import install_bundle, install_dataset, lock_of
from ccreid_cli.data.maintenance import CleanReport, clean, link_dataset
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.replace_folder import REPLACED_PREFIX, recover_replaced

Write = Callable[..., Path]
Row = Callable[..., DatasetInfo]
FOLDER = "Market-1501-v15.09.15"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "D"


@pytest.fixture
def tree(tmp_path: Path, write_boxes: Write) -> Path:
    return write_boxes(tmp_path / "source" / FOLDER)


def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
    """Pack the content of a folder below `prefix`; the ending decides the kind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [f"{prefix}{path.relative_to(folder).as_posix()}" for path in files]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as target:
            for path, name in zip(files, names, strict=True):
                target.write(path, name)
    else:
        modes = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2"}
        with tarfile.open(archive, modes[archive.suffix]) as target:  # type: ignore[call-overload]  # a computed mode
            for path, name in zip(files, names, strict=True):
                target.add(path, name)
    return archive


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("[0-]*.jpg"))}


def visible(data_dir: Path) -> list[str]:
    """Everything in the data directory, hidden leftovers included, down to the datasets' folders."""
    return sorted(path.relative_to(data_dir).as_posix() for path in (*data_dir.glob("*"), *data_dir.glob("*/*")))


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.bz2"])
@pytest.mark.parametrize("prefix", ["", f"{FOLDER}/", "some/where/else/"])
def test_any_archive_ends_as_the_official_tree(
    tree: Path, data_dir: Path, tmp_path: Path, small: Row, ending: str, prefix: str
) -> None:
    archive = pack(tree, tmp_path / f"a.{ending}", prefix)
    root = install_dataset(small(), data_dir, archive=archive, accepted=True)
    assert root == data_dir / "market1501" / FOLDER
    assert pictures(root) == pictures(tree)
    assert visible(data_dir) == ["market1501", f"market1501/{FOLDER}"]
    assert archive.exists()  # the user's own file is never removed
    assert len(load_dataset("market1501", data_dir, SilentReporter()).train) == 3


def test_nested_archives(tree: Path, data_dir: Path, tmp_path: Path, small: Row) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    pack(tree, inner / "market.zip", "x/")
    (inner / "other.zip").write_bytes(b"never opened: the one named like the dataset has it")
    middle = tmp_path / "middle"
    middle.mkdir()
    pack(inner, middle / "all.tar.gz", "data/")
    archive = pack(middle, tmp_path / "market1501.zip")
    assert pictures(install_dataset(small(), data_dir, archive=archive, accepted=True)) == pictures(tree)


def test_among_several_datasets_the_counts_decide(
    tree: Path, data_dir: Path, tmp_path: Path, small: Row, write_boxes: Write
) -> None:
    decoy = write_boxes(tmp_path / "source" / "A-first")
    (decoy / "query" / "0001_c1s1_001051_00.jpg").unlink()
    archive = pack(tmp_path / "source", tmp_path / "a.zip")
    assert pictures(install_dataset(small(), data_dir, archive=archive, accepted=True)) == pictures(tree)


@pytest.mark.parametrize(("folder", "train"), [("MSMT17_V1", "train"), ("MSMT17_V2", "mask_train_v2")])
def test_the_layout_decides_the_folder(
    tmp_path: Path, data_dir: Path, write_images: Write, small: Row, folder: str, train: str
) -> None:
    test = train.replace("train", "test")
    name = "0000/0000_000_01_0303morning_0008_0.jpg"
    root = write_images(tmp_path / "m", [f"{train}/{name}", f"{test}/{name}"])
    for list_name in ("list_train.txt", "list_query.txt", "list_gallery.txt"):
        (root / list_name).write_text(f"{name} 0\n")
    (root / "list_val.txt").write_text("")
    info = small("msmt17", counts=(Counts(1, 1),) * 3)
    archive = pack(root, tmp_path / "a.tar.gz", "MSMT/")
    assert install_dataset(info, data_dir, archive=archive, accepted=True) == data_dir / "msmt17" / folder


def test_wrong_archives_change_nothing(tree: Path, data_dir: Path, tmp_path: Path, small: Row) -> None:
    archive = pack(tree / "query", tmp_path / "a.zip")
    with pytest.raises(DataError, match="no folder in it has bounding_box_train, query, bounding_box_test"):
        install_dataset(small(), data_dir, archive=archive, accepted=True)
    next((tree / "query").glob("0*.jpg")).unlink()
    with pytest.raises(DataError, match=r"1 query image \(published: 2\)") as caught:
        install_dataset(small(), data_dir, archive=pack(tree, archive, "Market/"), accepted=True)
    assert ".ccreid" not in caught.value.message  # the temporary folder is nobody's business
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DataError):
        install_dataset(small(), data_dir, archive=archive, accepted=True)
    assert visible(data_dir) == []


def test_a_variant_is_taken_with_force_where_nothing_is_replaced(
    tree: Path, data_dir: Path, tmp_path: Path, small: Row, listener: Any
) -> None:
    next((tree / "query").glob("0*.jpg")).unlink()
    archive = pack(tree, tmp_path / "a.zip", "Market/")
    root = install_dataset(small(), data_dir, archive=archive, accepted=True, force=True, reporter=listener)
    assert pictures(root) == pictures(tree)
    assert "1 query image (published: 2)" in listener.warnings[0]
    duke = pack(tree, tmp_path / "b.zip", "DukeMTMC-reID/")
    with pytest.raises(DataError, match="does not hold the published"):
        install_dataset(small(), tmp_path / "E", archive=duke, accepted=True, force=True)


def test_options_are_checked(tree: Path, data_dir: Path, tmp_path: Path, small: Row) -> None:
    archive = pack(tree, tmp_path / "a.zip")
    with pytest.raises(UsageError, match="the terms of Market-1501 must be accepted first"):
        install_dataset(small(), data_dir, archive=archive)
    with pytest.raises(UsageError, match="cannot be given together"):
        install_dataset(small(), data_dir, archive=archive, url="http://x/y.zip", accepted=True)
    with pytest.raises(DataError, match="does not exist"):
        install_dataset(small(), data_dir, archive=tmp_path / "no.zip", accepted=True)
    with pytest.raises(DataError, match="is a folder") as caught:
        install_dataset(small(), data_dir, archive=tree, accepted=True)
    assert "ccreid data link" in (caught.value.hint or "")
    with pytest.raises(UsageError) as made:
        install_dataset(CATALOG["toy"], data_dir, accepted=True)
    assert "ccreid data make toy" in (made.value.hint or "")
    assert not data_dir.exists()


def test_a_complete_dataset_is_not_fetched_again(
    tree: Path, data_dir: Path, tmp_path: Path, small: Row, listener: Any
) -> None:
    archive = pack(tree, tmp_path / "a.zip")
    root = install_dataset(small(), data_dir, archive=archive, accepted=True)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert install_dataset(small(), data_dir, reporter=listener) == root  # no terms, no network
    assert "complete" in listener.messages[0]
    install_dataset(small(), data_dir, archive=archive, accepted=True, force=True, reporter=listener)
    assert "image for image the same" in listener.messages[1]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert visible(data_dir) == ["market1501", f"market1501/{FOLDER}"]


def test_what_is_there_is_replaced_by_a_verified_different_one_only(
    tree: Path, data_dir: Path, tmp_path: Path, small: Row
) -> None:
    good = pack(tree, tmp_path / "good.zip")
    root = install_dataset(small(), data_dir, archive=good, accepted=True)
    damaged = root / "query" / "0001_c1s1_001051_00.jpg"
    damaged.write_bytes(b"same name, other bytes")
    (root / "query" / "0003_c2s1_000001_00.jpg").unlink()
    with pytest.raises(DataError, match="is there, but is not the published") as caught:
        install_dataset(small(), data_dir, archive=good, accepted=True)
    assert "--force" in (caught.value.hint or "")
    shutil.rmtree(tree / "query")
    (tree / "query").mkdir()
    (tree / "query" / "0001_c1s1_001051_00.jpg").write_bytes(b"x")
    bad = pack(tree, tmp_path / "bad.zip")
    with pytest.raises(DataError, match="is kept"):
        install_dataset(small(), data_dir, archive=bad, accepted=True, force=True)
    assert damaged.read_bytes() == b"same name, other bytes"
    install_dataset(small(), data_dir, archive=good, accepted=True, force=True)
    assert damaged.read_bytes() != b"same name, other bytes" and len(pictures(root)) == 9
    assert visible(data_dir) == ["market1501", f"market1501/{FOLDER}"]


@pytest.mark.parametrize("killed_after", [1, 2])
def test_killed_while_replacing(tree: Path, data_dir: Path, small: Row, write_boxes: Write, killed_after: int) -> None:
    info, home = small(), data_dir / "market1501"
    aside = write_boxes(home / f"{REPLACED_PREFIX}{FOLDER}")
    if killed_after == 2:
        shutil.copytree(tree, home / FOLDER)
    recover_replaced(info, data_dir)
    assert not aside.exists()
    assert pictures(home / FOLDER) == pictures(tree)


class Server:
    """Serves a folder and counts requests by path."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        owner = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                owner.requests.append(self.path)
                super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "www").mkdir()
    server = Server(tmp_path / "www")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def www(tmp_path: Path, server: Server) -> Path:
    return tmp_path / "www"


def test_fetch_removes_or_keeps_what_it_downloaded(
    tree: Path, data_dir: Path, www: Path, server: Server, small: Row
) -> None:
    pack(tree, www / "m.zip")
    install_dataset(small(), data_dir, url=f"{server.url}/m.zip?x=1", accepted=True)
    assert sorted(path.name for path in data_dir.iterdir()) == ["market1501"]
    shutil.rmtree(data_dir)
    install_dataset(small(), data_dir, url=f"{server.url}/m.zip", accepted=True, keep_archive=True)
    assert sorted(path.name for path in data_dir.iterdir()) == ["m.zip", "market1501"]


def test_the_next_source_is_tried(
    tree: Path, data_dir: Path, www: Path, server: Server, small: Row, listener: Any
) -> None:
    pack(tree / "query", www / "wrong.zip")
    pack(tree, www / "right.zip")
    sources = [Source(f"{server.url}/{name}.zip") for name in ("gone", "wrong", "right")]
    info = small(sources=tuple(sources))
    assert pictures(install_dataset(info, data_dir, accepted=True, reporter=listener)) == pictures(tree)
    assert sorted(path.name for path in data_dir.iterdir()) == ["market1501"]
    with pytest.raises(NetworkError, match=r"none of the 2 sources(.|\n)*gone.zip(.|\n)*wrong.zip"):
        install_dataset(small(sources=tuple(sources[:2])), data_dir / "E", accepted=True)


def test_a_published_hash_is_checked(tree: Path, data_dir: Path, www: Path, server: Server, small: Row) -> None:
    pack(tree, www / "m.zip")
    info = small(sources=(Source(f"{server.url}/m.zip", md5="0" * 32),))
    with pytest.raises(NetworkError):
        install_dataset(info, data_dir, accepted=True)
    assert not (data_dir / "market1501").exists()


def test_two_fetches_at_once(tree: Path, data_dir: Path, www: Path, server: Server, small: Row) -> None:
    pack(tree, www / "m.zip")
    roots: list[Path] = []

    def fetch() -> None:
        roots.append(install_dataset(small(), data_dir, url=f"{server.url}/m.zip", accepted=True))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert roots == [data_dir / "market1501" / FOLDER] * 3
    assert server.requests == ["/m.zip"]
    assert pictures(roots[0]) == pictures(tree)


KILLED = """
import dataclasses, sys, time
from pathlib import Path
from ccreid_cli.data import install
from ccreid_cli.data import recognise
from ccreid_cli.data.catalog import CATALOG, Counts
counts = (Counts(3, 2), Counts(2, 2), Counts(3, 3))
extract = recognise.extract_archive
def slowly(*args, **kwargs):
    extract(*args, **kwargs)
    print("unpacked", flush=True)
    time.sleep(60)
recognise.extract_archive = slowly
info = dataclasses.replace(CATALOG["market1501"], counts=counts)
install.install_dataset(info, Path(sys.argv[1]), archive=Path(sys.argv[2]), accepted=True)
"""


def test_killed_half_way_the_next_run_starts_clean(tree: Path, data_dir: Path, tmp_path: Path, small: Row) -> None:
    archive = pack(tree, tmp_path / "a.zip")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(data_dir), str(archive)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(install.__file__).parents[2])},
    )
    assert process.stdout is not None and process.stdout.readline() == "unpacked\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (data_dir / f"{install.WORK_PREFIX}market1501").exists()
    assert pictures(install_dataset(small(), data_dir, archive=archive, accepted=True)) == pictures(tree)
    assert visible(data_dir) == ["market1501", f"market1501/{FOLDER}"]
    assert clean(data_dir).freed_bytes == 0


@pytest.fixture
def bundle(
    tmp_path: Path, write_boxes: Write, write_images: Write, monkeypatch: pytest.MonkeyPatch, small: Row
) -> Path:
    """The five datasets, each as an archive inside one, of another kind and depth; counts tell them apart."""
    inside = tmp_path / "inside"
    folders = {name: CATALOG[name].places[0] for name in BUNDLE_NAMES}
    for number, (name, place) in enumerate(folders.items()):
        (inside / name).mkdir(parents=True)
        extra = [f"0100_c3_{index}.jpg" for index in range(number)]
        root = tmp_path / "trees" / place.folder
        for part in place.layout.parts:
            write_images(root / part, [f"{10 if 'train' in part else 20:04}_c3_{name}.jpg", *extra])
        pack(root, inside / name / (f"{place.folder}.zip" if number % 2 else f"{place.folder}.tar.gz"), f"{name}/x/")
        ids = 1 + bool(extra)
        monkeypatch.setitem(CATALOG, name, small(name, counts=(Counts(1 + number, ids),) * 3))
    return pack(inside, tmp_path / "data.zip", "data/")


def test_bundle(bundle: Path, data_dir: Path) -> None:
    with pytest.raises(UsageError, match="terms of Market-1501, DukeMTMC-reID, .* must be accepted"):
        install_bundle(data_dir, archive=bundle)
    report = install_bundle(data_dir, archive=bundle, accepted=True)
    assert report.failures == {}
    assert report.roots == {name: data_dir / name / CATALOG[name].places[0].folder for name in BUNDLE_NAMES}
    for name in BUNDLE_NAMES:
        assert load_dataset(name, data_dir, SilentReporter()).name == name
    assert not [path for path in data_dir.iterdir() if path.name.startswith(".")]
    assert install_bundle(data_dir).roots == report.roots  # all there: nothing is asked or fetched


def test_bundle_leaves_what_is_there(bundle: Path, data_dir: Path, write_images: Write) -> None:
    mine = write_images(data_dir / "personx" / "PersonX" / "query", ["0001_c3_1.jpg"])
    report = install_bundle(data_dir, archive=bundle, accepted=True)
    assert set(report.failures) == {"personx"} and len(report.roots) == 4
    assert [path.name for path in mine.iterdir()] == ["0001_c3_1.jpg"]


def test_one_dataset_of_the_bundle(bundle: Path, data_dir: Path) -> None:
    root = install_dataset(CATALOG["veri"], data_dir, archive=bundle, accepted=True)
    assert root == data_dir / "veri" / "VeRi"
    assert [path.name for path in data_dir.iterdir()] == ["veri"]


def test_bundle_without_any_dataset(data_dir: Path, tmp_path: Path, write_images: Write) -> None:
    archive = pack(write_images(tmp_path / "x", ["a.jpg"]), tmp_path / "x.zip")
    with pytest.raises(DataError, match="gave no dataset"):
        install_bundle(data_dir, archive=archive, accepted=True)
    assert visible(data_dir) == []


@pytest.mark.parametrize("above", ["", "source", "."])
def test_link(tree: Path, data_dir: Path, tmp_path: Path, small: Row, above: str) -> None:
    place = {"": tree, "source": tree.parent, ".": tmp_path}[above]
    link = link_dataset(small(), place, data_dir)
    assert link == data_dir / "market1501" / FOLDER and link.is_symlink()
    assert link_dataset(small(), place, data_dir) == link  # again does no harm
    assert len(load_dataset("market1501", data_dir, SilentReporter()).train) == 3
    assert install_dataset(small(), data_dir) == link


def test_link_refuses_what_is_not_the_dataset(tree: Path, data_dir: Path, small: Row, write_boxes: Write) -> None:
    with pytest.raises(DataError, match="no folder in it has"):
        link_dataset(small(), tree / "query", data_dir)
    with pytest.raises(DataError, match="is not a folder"):
        link_dataset(small(), tree / "no", data_dir)
    write_boxes(data_dir / "market1501" / FOLDER)
    with pytest.raises(DataError, match="is there already"):
        link_dataset(small(), tree, data_dir)


def test_force_never_touches_what_a_link_points_to(tree: Path, data_dir: Path, tmp_path: Path, small: Row) -> None:
    archive = pack(tree, tmp_path / "a.zip")
    link_dataset(small(), tree, data_dir)
    (tree / "query" / "0001_c1s1_001051_00.jpg").write_bytes(b"mine")
    root = install_dataset(small(), data_dir, archive=archive, accepted=True, force=True)
    assert not root.is_symlink() and len(pictures(root)) == 9
    assert (tree / "query" / "0001_c1s1_001051_00.jpg").read_bytes() == b"mine"


def test_clean(tree: Path, data_dir: Path, small: Row) -> None:
    shutil.copytree(tree, data_dir / "market1501" / FOLDER)
    litter = {
        ".ccreid-cache/train.bin": 1000,
        ".ccreid-downloads/market1501/m.zip.part": 200,
        ".ccreid-downloads/veri/v.zip.part": 70,
        f"{install.WORK_PREFIX}msmt17/1/a.jpg": 30,
        "x.zip.part": 4,
        "x.zip.part.json": 5,
    }
    for name, size in litter.items():
        (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / name).write_bytes(bytes(size))
    (data_dir / "kept.zip").write_bytes(b"x")
    with lock_of(data_dir, "veri"):
        report = clean(data_dir)
    assert report.freed_bytes == 1239
    assert report.in_use == (data_dir / ".ccreid-downloads" / "veri",)
    assert clean(data_dir).freed_bytes == 70
    assert sorted(path.name for path in data_dir.iterdir()) == ["kept.zip", "market1501"]
    assert clean(data_dir / "absent") == CleanReport(0, (), ())
