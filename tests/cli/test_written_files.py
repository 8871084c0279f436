"""Files that the user names: nothing that lies there is lost, and wrong endings are found before the work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from .conftest import Cli, Trained

WRITING = [
    (["extract", "DATASET", "--resume", "RUN", "-o", "f.npz"], "f.npz"),
    (["extract", "DATASET", "--resume", "RUN", "-o", "f.npy"], "f.txt"),
    (["search", "QUERY", "-g", "DATASET", "--resume", "RUN", "--sheet", "s.png"], "s.png"),
    (["identify", "DATASET", "--resume", "RUN", "-o", "i.csv"], "i.csv"),
    (["cluster", "features.npz", "--k1", "4", "-o", "l.npz"], "l.npz"),
    (["report", "RUN", "-o", "r.html", "--no-images"], "r.html"),
    (["export", "RUN", "-f", "safetensors", "-o", "m.safetensors"], "m.safetensors"),
    (["export", "RUN", "-f", "safetensors"], "small run.safetensors.md"),
    (["weights", "convert", "RUN", "--to", "safetensors", "-o", "c.safetensors"], "c.safetensors"),
    (["data", "info", "DATASET", "--sheet", "s.png"], "s.png"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("features.npz", features=rng.normal(size=(20, 4)))


@pytest.fixture
def run(cli: Cli, trained: Trained) -> Cli:
    places = {
        "DATASET": trained.dataset,
        "QUERY": next((trained.dataset / "query").iterdir()),
        "RUN": trained.logs_dir / trained.name,
    }
    return lambda *arguments: cli(*(places.get(str(argument), argument) for argument in arguments))


@pytest.mark.parametrize(("arguments", "taken"), WRITING, ids=lambda value: " ".join(value))
def test_what_is_there_is_replaced_only_by_force(run: Cli, arguments: list[str], taken: str) -> None:
    Path(taken).write_text("precious")
    refused = run(*arguments)
    assert (refused.code, refused.out) == (2, "") and f"{taken} is there already" in refused.err
    assert "--force" in refused.err and Path(taken).read_text() == "precious"
    assert {path.name for path in Path().iterdir()} == {taken, "features.npz"}
    done = run(*arguments, "--force")
    assert done.code == 0, done.err
    assert Path(taken).read_bytes() != b"precious"


@pytest.mark.parametrize(("arguments", "taken"), WRITING, ids=lambda value: " ".join(value))
def test_a_link_to_nothing_is_replaced_only_by_force(run: Cli, arguments: list[str], taken: str) -> None:
    Path(taken).symlink_to("gone")
    refused = run(*arguments)
    assert (refused.code, refused.out) == (2, "") and f"{taken} is there already" in refused.err
    assert Path(taken).is_symlink() and not Path("gone").exists()


def test_a_device_or_pipe_is_never_replaced(run: Cli) -> None:
    os.mkfifo("l.npz")
    refused = run("cluster", "features.npz", "-o", "l.npz", "--force")
    assert refused.code == 2 and "l.npz is a device or a pipe" in refused.err
    assert Path("l.npz").is_fifo()


def test_an_empty_name_is_a_folder(run: Cli) -> None:
    refused = run("export", "RUN", "-f", "safetensors", "-o", "")
    assert refused.code == 2 and "is a folder" in refused.err


def test_a_folder_is_never_replaced(run: Cli) -> None:
    Path("l.npz").mkdir()
    refused = run("cluster", "features.npz", "-o", "l.npz", "--force")
    assert refused.code == 2 and "l.npz is a folder" in refused.err


def test_a_run_s_own_report_is_made_anew(run: Cli, trained: Trained) -> None:
    own = trained.logs_dir / trained.name / "report.html"
    for options in ((), ("-o", own)):
        assert run("report", "RUN", "--no-images", *options).code == 0
        assert own.is_file()


@pytest.mark.parametrize("name", ["labels.npz", "labels.npy", "LABELS.NPZ"])
def test_cluster_says_where_the_labels_are(run: Cli, name: str) -> None:
    done = run("cluster", "features.npz", "--k1", 4, "-o", f"new/{name}")
    assert done.code == 0 and f"labels: new/{name}" in done.err
    loaded = np.load(f"new/{name}")
    labels = loaded if isinstance(loaded, np.ndarray) else loaded["labels"]
    assert labels.shape == (20,) and labels.dtype == np.int64
    again = run("cluster", "features.npz", "--k1", 4, "-o", f"new/{name}", "--force", "--json")
    assert json.loads(again.out)["output"] == f"new/{name}"


@pytest.mark.parametrize("name", ["labels.csv", "labels", "labels.npz.gz"])
def test_cluster_refuses_other_endings_before_any_work(run: Cli, name: str) -> None:
    refused = run("cluster", "absent.npz", "-o", name)
    assert (refused.code, refused.out) == (2, "")
    assert f"{name}: labels are written as .npz or .npy" in refused.err


def test_a_sheet_names_images_that_are_gone(run: Cli, trained: Trained) -> None:
    gallery = Path(shutil.copytree(trained.dataset / "bounding_box_test", "gallery"))
    assert run("extract", gallery, "--resume", "RUN", "-o", "g.npz").code == 0
    first, second, *_ = sorted(gallery.iterdir())
    search = ("search", "QUERY", "QUERY", "-g", "g.npz", "--resume", "RUN", "--sheet", "s.png", "--force")
    assert "grey" not in run(*search).err
    first.unlink()
    found = run(*search)
    assert found.code == 0 and "warning: s.png: 1 image cannot be read and is left grey" in found.err
    assert found.err.count("grey") == 1 and first.name in found.err
    second.write_bytes(b"junk")
    assert "2 images cannot be read and are left grey" in run(*search).err


@pytest.mark.parametrize("arguments", [words for words, _ in WRITING if "-o" in words], ids=" ".join)
def test_a_folder_that_is_a_file_is_found_before_the_work(run: Cli, arguments: list[str]) -> None:
    Path("plain").write_text("precious")
    place = arguments.index("-o") + 1
    refused = run(*arguments[:place], f"plain/{arguments[place]}", *arguments[place + 1 :])
    assert (refused.code, refused.out) == (2, "") and "plain is a file" in refused.err
    assert Path("plain").read_text() == "precious"


def test_labels_never_replace_their_features(run: Cli) -> None:
    before = Path("features.npz").read_bytes()
    refused = run("cluster", "features.npz", "-o", "features.npz", "--force")
    assert refused.code == 2 and "replace the features" in refused.err
    assert Path("features.npz").read_bytes() == before


def test_an_ending_that_means_another_form(run: Cli) -> None:
    refused = run("export", "RUN", "-f", "safetensors", "-o", "m.onnx")
    assert refused.code == 2 and "ends as onnx does" in refused.err
