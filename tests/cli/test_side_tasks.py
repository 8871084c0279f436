"""What a command does beside its work fails: the work's result is there, and the exit code says so."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccreid_cli.data import contact_sheet
from ccreid_cli.inference import embedding_file, feature_file, model_card, search
from ccreid_cli.report import gather, page

from .conftest import SMALL, Cli, Trained


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("odd")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(trained: Trained) -> Path:
    return trained.logs_dir / trained.name


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_the_report_of_a_finished_run(cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "render", fail)
    result = cli("resume", copied, "--json")
    assert result.code == 0 and json.loads(result.out)["epochs"] == 1
    assert "warning: the report was not written: ZeroDivisionError: odd" in result.err
    assert "Traceback" not in result.err


def test_debugging_shows_why_there_is_no_report(cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREID_DEBUG", "1")
    monkeypatch.setattr(gather, "read_records", fail)
    result = cli("resume", copied)
    assert result.code == 0 and "Traceback" in result.err and "run: " in result.err


def test_a_gallery_that_fails_leaves_the_rest_of_the_report(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gather.SECTIONS, "retrieval", fail)
    result = cli("report", run, "-o", "r.html")
    assert result.code == 0 and "ZeroDivisionError: odd" in result.err
    text = Path("r.html").read_text()
    assert "Left out: ZeroDivisionError: odd" in text and 'id="clusters"' in text


def test_the_sheet_of_a_search(cli: Cli, run: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "draw_sheet", fail)
    query = next((trained.dataset / "query").iterdir())
    result = cli("search", query, "-g", trained.dataset, "--resume", run, "--sheet", "s.png", "--json")
    assert result.code == 0 and len(json.loads(result.out)["queries"]) == 1
    assert "warning: the contact sheet s.png was not drawn: ZeroDivisionError: odd" in result.err


def test_the_sheet_of_a_dataset(cli: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "draw_sheet", fail)
    result = cli("data", "info", trained.dataset, "--sheet", "s.png")
    assert result.code == 0 and "bounding_box" not in result.err and "query" in result.out
    assert "the contact sheet s.png was not drawn" in result.err
    assert cli("data", "info", trained.dataset, "--sheet", "s.xyz").code == 2


def test_the_cards_of_an_export(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_card, "card_text", fail)
    result = cli("export", run, "-f", "safetensors", "-o", "m.safetensors", "--json")
    assert result.code == 0 and Path("m.safetensors").is_file()
    assert json.loads(result.out)["cards"] == [] and "the model card was not written" in result.err


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def full_but_for(folder: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a function that writes to a path fail outside of `folder`."""
    original = getattr(owner, name)

    def write(path: Path, *arguments: Any) -> None:
        if not path.is_relative_to(folder):
            raise OSError(28, "No space left on device")
        original(path, *arguments)

    monkeypatch.setattr(owner, name, write)


@pytest.mark.parametrize("name", ["f.npz", "f.npy"])
def test_features_without_room_are_kept_elsewhere(
    name: str, cli: Cli, run: Path, trained: Trained, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_but_for(elsewhere, monkeypatch, embedding_file, "write_embeddings")
    result = cli("extract", trained.dataset, "--resume", run, "-o", name)
    assert result.code == 3 and f"could not write {name}" in result.err
    (kept,) = elsewhere.glob(f"*/{name}")
    assert str(kept) in result.err
    assert len(embedding_file.read_embeddings(kept)) == 41


def test_labels_without_room_are_kept_elsewhere(
    cli: Cli, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    np.savez("features.npz", features=rng.normal(size=(20, 4)))
    full_but_for(elsewhere, monkeypatch, feature_file, "write_labels")
    result = cli("cluster", "features.npz", "--k1", 4, "-o", "l.npz")
    (kept,) = elsewhere.glob("*/l.npz")
    assert result.code == 3 and str(kept) in result.err and len(np.load(kept)["labels"]) == 20


def test_without_room_anywhere_the_first_problem_is_said(
    cli: Cli, run: Path, trained: Trained, elsewhere: Path, no_room: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))  # less than 41 rows
    result = cli("extract", trained.dataset, "--resume", run, "-o", "f.npz")
    assert result.code == 3 and "could not write f.npz: File too large" in result.err
    assert "Free some space" in result.err and not list(elsewhere.iterdir()) and not list(Path().iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_at_the_start(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    result = cli("extract", "absent", "--resume", run, "-o", "locked/f.npz")
    assert result.code == 2 and "locked cannot be written" in result.err


def test_a_name_that_a_form_cannot_hold_is_said_at_the_start(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("crops").mkdir()
    Image.new("RGB", (16, 32)).save("crops/a\nb.png")
    monkeypatch.setattr("ccreid_cli.inference.sharded_extraction.embed_in_shards", fail)
    result = cli("extract", "crops", "--resume", run, "-o", "f.npy")
    assert result.code == 3 and "a\\nb.png holds a line break" in result.err


def test_a_disk_that_is_too_small_is_said_before_the_work(
    cli: Cli, run: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccreid_cli.core.files.free_bytes", lambda folder: 10)
    result = cli("extract", trained.dataset, "--resume", run, "-o", "f.npz")
    assert result.code == 0 and "warning: f.npz will need" in result.err


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("style", ["plain", "rich", "json"])
def test_training_goes_on_where_nothing_can_be_said(
    style: str, cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("-d", trained.dataset, *SMALL, "--epochs", 1, "--iters", 2, "--k1", 4, "--k2", 2, "--min-samples", 2)
    arguments += ("--workers", 0, "--device", "cpu", "--precision", "fp32", "--no-report", "--json")
    places = ("--data-dir", trained.data_dir, "--logs-dir", tmp_path / "logs", "--progress", style)
    monkeypatch.setattr(sys, "stderr", FullDisk())
    result = cli("train", *arguments, *places)
    assert result.code == 0 and json.loads(result.out)["epochs"] == 1
