"""Lists, tables and tars of images: what is named, and what becomes of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import Warnings

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference.embedder import Embedder
from ccreid_cli.inference.embedding_file import read_embeddings
from ccreid_cli.inference.image_list import list_source
from ccreid_cli.inference.image_parts import ListParts, Parts, TarParts, expand_braces, parts_of
from ccreid_cli.inference.sharded_extraction import Extraction, embed_in_shards, write_shards
from ccreid_cli.inference.stored_arrays import holds_features

SAY = SilentReporter()


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> dict[str, bytes]:
    """Five pictures, also as files of a folder."""
    found = {}
    (tmp_path / "images").mkdir()
    for number in range(5):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(data, "png")
        found[f"{number}.png"] = data.getvalue()
        (tmp_path / "images" / f"{number}.png").write_bytes(data.getvalue())
    return found


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def parts(*sources: object, **options: Any) -> Parts:
    defaults: dict[str, Any] = {"split": None, "data_dir": Path(), "reporter": SAY, "usual_size": 2}
    return parts_of([str(source) for source in sources], **{**defaults, **options})


def test_a_list_names_its_images(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"images/3.png\r\n\nimages/1.png\n/elsewhere/\xff.jpg\n")
    images = list_source(str(file), None, tmp_path, SAY)
    assert images.names == ("images/3.png", "images/1.png", "/elsewhere/\udcff.jpg") and images.ids is None
    assert images.files(0, 3) == [f"{tmp_path}/images/3.png", f"{tmp_path}/images/1.png", "/elsewhere/\udcff.jpg"]
    for options, words in (({"split": "query"}, "no splits"), ({"columns": "id=who"}, "no columns")):
        with pytest.raises(UsageError, match=words):
            parts(file, **options)
    file.write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        list_source(str(file), None, tmp_path, SAY)
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        list_source(str(tmp_path / "none.txt"), None, tmp_path, SAY)


def test_a_table_names_its_images(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "who": [7, None], "camera": ["x", "-1"]}), file)
    plain = list_source(str(file), None, tmp_path, SAY)
    assert (plain.names, plain.ids, plain.cams) == (("a.png", "b.png"), None, ("x", ""))
    assert list_source(str(file), None, tmp_path, SAY, columns="id=who").ids == ("7", "")
    with pytest.raises(DataError, match="no column file; it has path, who, camera"):
        list_source(str(file), None, tmp_path, SAY, columns="path=file")
    assert not holds_features(file)
    pq.write_table(pa.table({"path": ["a.png"], "feature": [[1.0]]}), file)
    assert holds_features(file) and holds_features(tmp_path / "absent.parquet")
    file.write_bytes(b"junk")
    with pytest.raises(DataError, match="no readable Parquet table"):
        list_source(str(file), None, tmp_path, SAY)


def test_remote_lists_and_folders(tmp_path: Path, embedder: Embedder, pictures: dict[str, bytes]) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name, data in pictures.items():
        memory.pipe(f"/parts/images/{name}", data)
    memory.pipe("/parts/list.txt", b"images/1.png\nmemory://parts/images/0.png\nimages/none.png\n")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as packed:
        packed.add(tmp_path / "images" / "4.png", "4.png")
    memory.pipe("/parts/4.tar", tar.getvalue())
    how = Extraction(embedder, workers=0)
    folder, _ = embed_in_shards(parts("memory://parts/images/"), how, SAY)
    assert folder.images.names == tuple(f"memory:///parts/images/{number}.png" for number in range(5))
    listed, broken = embed_in_shards(parts("memory://parts/list.txt"), how, SAY)
    assert listed.images.names == ("memory://parts/images/1.png", "memory://parts/images/0.png")
    assert [item["name"] for item in broken] == ["memory://parts/images/none.png"]
    inside, _ = embed_in_shards(parts("memory://parts/4.tar"), how, SAY)
    rows = [folder.features[1], folder.features[0], folder.features[4]]
    np.testing.assert_allclose([*listed.features, *inside.features], rows, atol=1e-6)
    assert inside.images.files(0, 1) == ["memory://parts/4.tar/4.png"]
    memory.rm("/parts", recursive=True)


def test_braces_stand_for_numbers() -> None:
    assert expand_braces("s/{08..11}.tar") == ["s/08.tar", "s/09.tar", "s/10.tar", "s/11.tar"]
    assert expand_braces("{1..2}/{9..10}") == ["1/9", "1/10", "2/9", "2/10"] and expand_braces("{a}.tar") == ["{a}.tar"]


def test_each_tar_is_a_shard(
    tmp_path: Path, embedder: Embedder, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    members = dict(list(pictures.items())[:3])
    write_tar(Path("0.tar"), {**members, "0.json": b'{"id": "ada", "cam": 3}', "1.cls": b"-1", "../up.png": b"x"})
    write_tar(Path("1.tar"), {"bad.png": b"junk", "3.png": pictures["3.png"], "notes.txt": b""})
    tars = parts("{0..1}.tar", columns="camera=cam")
    assert isinstance(tars, TarParts) and len(tars) == 2
    warned = Warnings()
    how = Extraction(embedder, Path("features"), workers=0)
    count, broken = write_shards(tars, how, warned)
    assert count == 4 and [(item["name"], item["reason"]) for item in broken] == [
        ("0.tar/../up.png", "its name leads out of the tar"),
        ("1.tar/bad.png", "not an image"),
    ]
    assert "2 of 6 images cannot be read" in warned.said[0]
    content = read_embeddings(Path("features"))
    assert content.images.names == ("0.tar/0.png", "0.tar/1.png", "0.tar/2.png", "1.tar/3.png")
    assert content.images.ids == ("ada", "", "", "") and content.images.cams == ("3", "", "", "")
    files, _ = embed_in_shards(parts(tmp_path / "images"), Extraction(embedder, workers=0), SAY)
    np.testing.assert_allclose(content.features, files.features[:4], atol=1e-6)
    again, _ = embed_in_shards(tars, Extraction(embedder, workers=0), SAY)
    assert again.matrix.tobytes() == content.matrix.tobytes() and again.images.names == content.images.names


def test_a_cut_tar_ends_it_and_the_others_stay(
    tmp_path: Path, embedder: Embedder, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_tar(Path(f"{number}.tar"), pictures)
    whole = Path("1.tar").read_bytes()
    Path("1.tar").write_bytes(whole[:2000])
    how = Extraction(embedder, Path("features"), workers=0)
    with pytest.raises(DataError, match=r"1\.tar is damaged or cut off"):
        write_shards(parts("{0..1}.tar"), how, SAY)
    assert [file.name for file in sorted(Path("features").glob("*.npz"))] == ["000000.npz"]
    Path("1.tar").write_bytes(whole)
    assert write_shards(parts("{0..1}.tar"), how, SAY)[0] == 10


def test_sources_that_do_not_go_together(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {})
    for sources, options, words in (
        ((tmp_path / "0.tar", tmp_path), {}, "is no tar"),
        ((tmp_path / "0.tar",), {"size": 5}, "one shard"),
        ((tmp_path / "0.tar",), {"split": "query"}, "no splits"),
    ):
        with pytest.raises(UsageError, match=words):
            parts(*sources, **options)
    with pytest.raises(DataError, match=r"7\.tar does not exist"):
        parts(tmp_path / "{0..7}.tar".replace("0..", "7.."))
    with pytest.raises(DataError, match="no image"):
        parts(tmp_path)


def test_a_folder_is_cut_into_parts(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    cut = parts(tmp_path / "images")
    assert isinstance(cut, ListParts) and (len(cut), cut.num_images) == (3, 5)
    before = [cut.state(number) for number in range(3)]
    (tmp_path / "images/4.png").write_bytes(b"other")
    assert [cut.state(number) == old for number, old in enumerate(before)] == [True, True, False]
