from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from ccreid_cli.cli import export, extract, features
from ccreid_cli.cli.options import bind_all
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

NAMES = ["query/0001_c1_1.png", "gallery/0001_c2_1.png", "gallery/0002_c1_1.png", "gallery/0002_c2_2.png"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of small random networks."""
    folder = tmp_path_factory.mktemp("logs")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        spec = ModelSpec("resnet18", "gem", 8)
        content = {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec))}
        content["preprocess"] = {"height": 32, "width": 16}
        save_checkpoint(folder / name / "checkpoints" / "last.pt", content)
        (folder / name / "recipe.toml").write_text('[train]\ndataset = "toy"\n')
    return folder


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "crops"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CCREID_LOGS_DIR", str(logs))


def call(*arguments: object) -> Result:
    app = typer.Typer()
    for module in (extract, export, features):
        module.register(app)
    bind_all(app)
    style = () if arguments[0] == "score" else ("--progress", "none")
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *style)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_extract_then_search_finds_the_image_itself(crops: Path) -> None:
    (crops / "gallery" / "broken.jpg").write_bytes(b"junk")
    done = json.loads(call("extract", crops, "--resume", "one", "-o", "all.npz", "--device", "cpu", "--json").stdout)
    assert (done["num_images"], done["num_broken"], done["embedding_dim"]) == (4, 1, 8)
    assert done["broken"] == [{"name": "gallery/broken.jpg", "reason": "not an image"}]
    query = crops / NAMES[2]
    found = call("search", query, "-g", "all.npz", "--resume", "one", "--top", 9, "--sheet", "s.png", "--json")
    (answer,) = json.loads(found.stdout)["queries"]
    assert answer["matches"][0]["name"] == NAMES[2] and answer["matches"][0]["similarity"] > 0.9999
    assert [match["rank"] for match in answer["matches"]] == [1, 2, 3, 4]
    with Image.open("s.png") as sheet:
        assert sheet.width > sheet.height
    table = call("search", query, crops / NAMES[0], "-g", crops, "--resume", "one", "--top", 2).stdout
    assert table.count("1.0000") == 2 and str(query) in table


def test_search_through_an_index(crops: Path) -> None:
    pytest.importorskip("faiss")
    call("extract", crops, "--resume", "one", "-o", "all.npy", "--device", "cpu")
    options = ("--resume", "one", "--top", 9, "--json")
    plain = json.loads(call("search", crops / NAMES[2], "-g", "all.npy", *options).stdout)
    found = json.loads(call("search", crops / NAMES[2], "-g", "all.npy", *options, "--index", "ivf").stdout)
    assert found["queries"] == plain["queries"] and found["index"] == "ivf" and found["index_recall"] > 0.9
    assert Path("all.npy.ivf").is_dir()
    with pytest.raises(UsageError, match="are images"):
        call("search", crops / NAMES[2], "-g", crops, *options, "--index", "ivf")


def test_a_gallery_resized_otherwise_is_refused(crops: Path) -> None:
    done = call("extract", crops, "--resume", "one", "-o", "all.npz", "--resize", "opencv", "--json")
    assert json.loads(done.stdout)["preprocess"]["resize"] == "opencv"
    with pytest.raises(DataError, match="resize"):
        call("search", crops / NAMES[0], "-g", "all.npz", "--resume", "one")
    found = call("search", crops / NAMES[0], "-g", "all.npz", "--resume", "one", "--resize", "opencv", "--json")
    assert json.loads(found.stdout)["queries"][0]["matches"][0]["name"] == NAMES[0]


def test_extract_a_split_for_scoring(crops: Path) -> None:
    for split, ids in {"query": ["0001"], "gallery": ["0001", "0002", "0002"]}.items():
        call("extract", crops, "--split", split, "--resume", "one", "-o", f"{split}.npz")
        with np.load(f"{split}.npz") as loaded:
            assert loaded["ids"].tolist() == ids and loaded["cams"].shape == (len(ids),)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_two_manifests_are_compared_by_name(tmp_path: Path, suffix: str) -> None:
    """Each lists other identities and cameras, so that numbers given per file would name different ones."""
    header = "path,id,camera,split\n"
    shots = {"g": ("ada_1", "bea_1", "cid_1", "dan_2"), "q": ("bea_2", "cid_2", "dan_1")}
    for kind, split in (("g", "gallery"), ("q", "query")):
        rows = [f"{shot}.png,{shot[:3].title()},{shot[-1]},{split}\n" for shot in shots[kind]]
        (tmp_path / f"{kind}.csv").write_text(header + "".join(rows))
        for shot in shots[kind]:  # the pixels depend on the identity alone
            pixels = np.random.default_rng(sum(map(ord, shot[:3]))).integers(0, 256, (32, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{shot}.png")
        call("extract", f"{kind}.csv", "--resume", "one", "-o", f"{kind}.{suffix}")
    found = json.loads(call("score", "-q", f"q.{suffix}", "-g", f"g.{suffix}", "--json").stdout)
    assert found["rank1"] == found["mAP"] == 1.0
    assert (found["num_queries"], found["num_queries_skipped"]) == (3, 0)


def test_images_without_an_identity_are_extracted_and_left_out_of_the_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    rows = "a.png,x,1,query\nb.png,x,2,gallery\nc.png,,2,gallery\nd.png,-1.0,3,gallery\n"
    (tmp_path / "m.csv").write_text("path,id,camera,split\n" + rows)
    for split in ("query", "gallery"):
        call("extract", "m.csv", "--split", split, "--resume", "one", "-o", f"{split}.npz")
    with np.load("gallery.npz") as loaded:
        assert loaded["ids"].tolist() == ["x", "", ""] and loaded["cams"].tolist() == ["2", "2", "3"]
    result = call("score", "-q", "query.npz", "-g", "gallery.npz", "--json")
    assert "2 gallery images without an identity were left out" in result.stderr
    scores = json.loads(result.stdout)
    assert (scores["mAP"], scores["num_queries_without_id"], scores["num_gallery_without_id"]) == (1.0, 0, 2)


def test_noise_without_identities_is_not_scored() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 20, 4))
    for name, rows in zip("qg", noise, strict=True):
        np.savez(f"{name}.npz", features=rows, ids=np.full(20, -1), cams=np.arange(20))
    with pytest.raises(DataError, match=r"none of the 20 queries has an identity"):
        call("score", "-q", "q.npz", "-g", "g.npz")


def test_strict_stops_before_anything_is_written(crops: Path) -> None:
    (crops / "broken.jpg").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        call("extract", crops, "--resume", "one", "--strict", "-o", "f.npz")
    assert not Path("f.npz").exists()


def test_galleries_of_another_model_or_size_are_refused(crops: Path) -> None:
    call("extract", crops, "--resume", "one", "-o", "one.npy")
    with pytest.raises(DataError, match=r"one.*last\.pt.*two.*last\.pt"):
        call("search", crops / NAMES[0], "-g", "one.npy", "--resume", "two")
    with pytest.raises(DataError, match="height 32; the query with height 48"):
        call("search", crops / NAMES[0], "-g", "one.npy", "--resume", "one", "--height", 48)


def test_mistakes_are_found_before_the_work(crops: Path) -> None:
    for arguments in (
        ["extract", crops, "-o", "f.npz"],
        ["extract", crops, "--resume", "one", "-o", "f.csv"],
        ["extract", crops, "--resume", "one", "--checkpoint", "first"],
        ["extract", "markt1501", "--resume", "one"],
        ["search", crops / NAMES[0], "-g", crops, "--resume", "one", "--sheet", "s.txt"],
        ["export", "one", "--format", "onx"],
    ):
        with pytest.raises(UsageError):
            call(*arguments)
    with pytest.raises(DataError, match="absent"):
        call("search", "absent.jpg", "-g", crops, "--resume", "one")


def test_export_writes_the_file_and_its_cards() -> None:
    done = call("export", "one", "--format", "torchscript")
    assert "random noise" in done.stdout and "cosine 1.000000" in done.stdout
    assert {path.name for path in Path().glob("one.*")} == {f"one.torchscript{end}" for end in ("", ".json", ".md")}
    card = json.loads(call("export", "one", "-f", "safetensors", "-o", "m.safetensors", "--json").stdout)["card"]
    assert card["preprocess"]["height"] == 32 and card["check"]["max_abs_difference"] == 0


def test_an_exported_model_reads_galleries_of_the_run(crops: Path) -> None:
    call("extract", crops, "--resume", "one", "-o", "one.npz")
    call("export", "one", "-f", "safetensors", "-o", "m.safetensors")
    found = call("search", crops / NAMES[1], "-g", "one.npz", "--resume", "m.safetensors", "--top", 1, "--json")
    assert json.loads(found.stdout)["queries"][0]["matches"][0]["name"] == NAMES[1]
