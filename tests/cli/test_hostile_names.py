"""A file's name is shown as it is, whatever a terminal, Rich, HTML or Markdown would make of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from ccreid_cli.cli import output
from ccreid_cli.cli.progress import make_reporter

from .conftest import SMALL, Cli, Trained, draw_dataset

MARKS = ":smile: [red]a[b]"
MOVES = "\x1b[31m\n\u202e"
MOVES_SHOWN = "\\x1b[31m\\n\\u202e"
NAME = f"{MARKS} {MOVES} <b>|x`"
SHOWN = f"{MARKS} {MOVES_SHOWN} <b>|x`"
BYTES = os.fsdecode(b"caf\xe9 [/red]")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such names are possible there")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check_shown(text: str, shown: str = SHOWN) -> None:
    assert shown in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert "😄" not in text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hostile name with a dataset of a hostile name."""
    folder = tmp_path_factory.mktemp("hostile") / NAME
    draw_dataset(folder / "set")
    return folder


@pytest.fixture(scope="module")
def logs(place: Path, trained: Trained) -> Path:
    shutil.copytree(trained.logs_dir / trained.name, place / "logs" / NAME)
    return place / "logs"


@pytest.mark.parametrize("style", ["plain", "rich"])
def test_a_training_run(style: str, cli: Cli, place: Path) -> None:
    """Messages, tables, recipe, log, report and card of a real run."""
    data = ("-d", place / "set", "--data-dir", place / "data", "--logs-dir", place / style, "--name", NAME)
    steps = ("--epochs", 1, "--iters", 2, "--k1", 4, "--k2", 2, "--min-samples", 2, "--workers", 0)
    done = cli("train", *SMALL, *data, *steps, "--device", "cpu", "--precision", "fp32", "--progress", style)
    assert done.code == 0, done.err
    check_shown(done.err)
    run = place / style / NAME
    resumed = cli("resume", run, "--progress", style, "--no-report")
    assert resumed.code == 0, resumed.err
    check_shown(resumed.err)
    check_shown((run / "log.txt").read_text() + SHOWN)
    page = (run / "report.html").read_text()
    assert "<b>|x" not in page and ":smile: [red]a[b] \\x1b[31m" in page and "\x1b" not in page
    exported = cli("export", run, "-f", "safetensors", "-o", f"{NAME}.safetensors")
    assert exported.code == 0, exported.err
    check_shown(exported.out)
    card = Path(f"{NAME}.safetensors.md").read_text()
    check_shown(card)
    assert "<b>|" not in card.replace(f"`` {SHOWN}", "").replace("<b>|x`.safetensors", "")


@pytest.mark.parametrize(
    "words",
    [
        ["data", "info", "PLACE/set"],
        ["data", "info", "PLACE/absent"],
        ["runs", "list", "--logs-dir", "LOGS"],
        ["runs", "show", NAME, "--logs-dir", "LOGS"],
        ["runs", "compare", NAME, NAME, "--logs-dir", "LOGS"],
        ["runs", "show", "absent", "--logs-dir", "LOGS"],
        ["runs", "list", "--logs-dir", NAME],
        ["train", "-d", NAME],
        ["train", "--recipe", NAME],
        ["eval", "-d", "toy", "--data-dir", NAME, "--resume", NAME],
        ["search", NAME, "-g", "PLACE/set", "--resume", "LOGS/RUN"],
        ["cluster", NAME],
        ["score", "-q", NAME, "-g", NAME],
        ["extract", "PLACE/set", "-o", f"{NAME}.npz", "--resume", "LOGS/RUN"],
        ["identify", "PLACE/set", "-o", f"{NAME}.csv", "--resume", "LOGS/RUN"],
        ["export", "LOGS/RUN", "-f", NAME],
        ["weights", "convert", "LOGS/RUN", "--to", NAME],
        ["report", "LOGS/RUN", "--no-images"],
        [f"--{NAME}"],
        [NAME],
        ["train", f"--{NAME}"],
        ["train", "--progress", NAME, "-d", "PLACE/set"],
        ["runs", NAME],
        ["bench", NAME],
    ],
    ids=lambda words: " ".join(words).encode("ascii", "backslashreplace").decode().replace("\x1b", "ESC"),
)
@pytest.mark.parametrize("columns", ["", "60"])
def test_a_command(words: list[str], columns: str, cli: Cli, place: Path, logs: Path) -> None:
    filled = [word.replace("PLACE", str(place)).replace("LOGS/RUN", f"LOGS/{NAME}") for word in words]
    if columns:
        os.environ["COLUMNS"] = columns
    try:
        result = cli(*(word.replace("LOGS", str(logs)) for word in filled))
    finally:
        os.environ.pop("COLUMNS", None)
    text = (result.out + result.err).replace("\\x0a", "\\n")  # as Typer writes a line break
    assert "Traceback" not in text and "This is a bug" not in text
    if columns:
        text, shown = "".join(text.split()), "".join(SHOWN.split())
        check_shown(text, shown)
    else:
        check_shown(text)


@pytest.mark.parametrize("style", ["plain", "rich", "json"])
def test_progress(style: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccreid_cli.cli.progress.PlainReporter.SECONDS_BETWEEN_LINES", 0.0)
    output.talk.cache_clear()
    reporter = make_reporter(style)
    for name in (NAME, BYTES):
        with reporter.task(name, 3) as task:
            task.note(image=name)
            task.advance(2)
        reporter.message(name)
        reporter.warning(name)
    said = capsys.readouterr().err
    if style == "json":
        lines = [json.loads(line) for line in said.splitlines()]
        assert {line.get("text") for line in lines if line["event"] == "message"} == {NAME, BYTES}
    else:
        assert f"warning: {SHOWN}" in said and "warning: caf\\xe9 [/red]" in said
        check_shown(said)


def test_images_whose_names_are_no_text(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "set")
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        for path in (root / split).iterdir():
            path.rename(path.with_name(path.name.replace("_00.jpg", f"_{BYTES.replace('/', '')}.jpg")))
    run = trained.logs_dir / trained.name
    for words in (
        ("data", "info", root, "--sheet", "s.png"),
        ("extract", root, "--resume", run, "-o", "f.npz"),
        ("extract", root, "--resume", run, "-o", "f.npy"),
        ("search", next((root / "query").iterdir()), "-g", root, "--resume", run),
        ("identify", root, "--resume", run, "-o", "i.json"),
        ("eval", "-d", root, "--resume", run),
    ):
        result = cli(*words)
        assert result.code == 0, (words, result.err)
    data = ("-d", root, "--data-dir", tmp_path / "data", "--logs-dir", tmp_path / "logs", "--name", "n")
    steps = ("--epochs", 1, "--iters", 2, "--k1", 4, "--k2", 2, "--min-samples", 2, "--workers", 0)
    done = cli("train", *SMALL, *data, *steps, "--device", "cpu", "--precision", "fp32")
    assert done.code == 0 and "warning" not in done.err, done.err
    assert "caf\\xe9" in (tmp_path / "logs" / "n" / "report.html").read_text()


@pytest.mark.parametrize("option", ["-d", "--logs-dir", "--data-dir"])
def test_a_place_that_is_no_text_is_refused_in_words(option: str, cli: Cli, tmp_path: Path, trained: Trained) -> None:
    """The run's recipe, a TOML file, could not hold it."""
    place = tmp_path / BYTES.replace("/", "")
    place.mkdir()
    result = cli("train", *(() if option == "-d" else ("-d", trained.dataset)), option, place, *SMALL)
    assert result.code == 2 and "caf\\" in result.err and "unicode" in result.err.lower()


def test_wrong_words_are_explained_like_any_error(cli: Cli) -> None:
    result = cli("train", "--epoch", "3")
    assert result.code == 2 and result.err.startswith("error: ") and "hint: See `ccreid train --help`." in result.err
    group = cli("runs")
    assert group.code == 2 and "error" not in group.err and "compare" in group.out + group.err
