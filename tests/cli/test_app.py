"""What each kind of trouble looks like from a shell: exit code, words, streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccreid_cli import __version__
from ccreid_cli.cli.error_messages import EXIT_CODES, explain
from ccreid_cli.core.errors import (
    CcreidError,
    CheckpointError,
    DataError,
    DeviceError,
    Interrupted,
    NetworkError,
    UsageError,
)

from .conftest import COMMANDS, Cli, Trained

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (DataError("a"), 3),
        (CheckpointError("a"), 3),
        (NetworkError("a"), 4),
        (DeviceError("a"), 5),
        (Interrupted("a", signal_number=2), 130),
        (Interrupted("a", signal_number=15), 143),
        (CcreidError("a"), 1),
    ],
)
def test_exit_codes(error: CcreidError, code: int) -> None:
    assert explain(error) == (code, "a", None)


def test_every_error_class_has_an_exit_code() -> None:
    kinds = {UsageError, DataError, NetworkError, DeviceError}
    assert set(EXIT_CODES) == kinds == set(CcreidError.__subclasses__()) - {Interrupted}


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("ccreid_cli.core.recipes.recipe_names", fail)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("odd"), 1, "unexpected ValueError: odd"),
        (MemoryError(), 5, "out of memory"),
        (torch.cuda.OutOfMemoryError("x"), 5, "out of memory"),
        (PermissionError(13, "Permission denied", "/a/b"), 3, "/a/b: Permission denied"),
        (NetworkError("no route", "look at the cable"), 4, "hint: look at the cable"),
        (Interrupted("saved", "go on", signal_number=15), 143, "saved"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_in_words(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    _raising(monkeypatch, error)
    result = cli("recipes")
    assert result.code == code
    assert words in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_debug_shows_where(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREID_DEBUG", "1")
    _raising(monkeypatch, UsageError("bad"))
    with pytest.raises(UsageError, match="bad"):
        cli("recipes")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "-d", "markte1501"], 2, 'did you mean "market1501"?'),
        (["train", "-d", "market1501"], 3, "ccreid data fetch market1501"),
        (["eval", "-d", "veri", "--weights", "none"], 3, "ccreid data fetch veri"),
        (["train", "-d", "toy", "--recipe", "toi"], 2, 'did you mean "toy"?'),
        (["train", "-d", "toy", "-a", "resnet5"], 2, 'did you mean "resnet50"?'),
        (["eval", "-d", "toy", "-a", "rezn50"], 2, "resnet50"),
        (["train"], 2, "ccreid train -d toy"),
        (["eval"], 2, "-d"),
        (["train", "-d", "toy", "--epoch", "3"], 2, "--epochs"),
        (["train", "-d", "toy", "--epochs", "many"], 2, "--epochs"),
        (["train", "-d", "toy", "--epochs", "0"], 2, "epochs"),
        (["train", "-d", "toy", "--pooling-type", "mean"], 2, "gem, avg, max"),
        (["train", "-d", "toy", "--num-instances", "512"], 2, "--num-instances 512"),
        (["trian"], 2, "train"),
        (["train", "-d", "toy", "--eps-gap", "0.02"], 2, "--eps-gap"),
        (["train", "-d", "toy", "--dsbn"], 2, "--dsbn"),
        (["eval", "-d", "toy", "--dsbn"], 2, "--dsbn"),
        (["train", "-d", "toy", "--test-source"], 2, "--test-source"),
        (["train", "-d", "toy", "--device", "gpu7"], 2, "gpu7"),
        (["train", "-d", "toy", "--progress", "plian", "--device", "cpu"], 2, "plain"),
        (["resume", "nothing"], 3, "nothing"),
        (["eval", "-d", "toy", "--resume", "nothing.pth.tar"], 3, "nothing.pth.tar"),
        (["cluster", "nothing.npz"], 3, "nothing.npz"),
        (["data", "info", "market1502"], 2, 'did you mean "market1501"?'),
        (["data", "fetch", "market1502"], 2, 'did you mean "market1501"?'),
        (["weights", "fetch", "resnet51"], 2, "resnet5"),
        (["completion", "zhs"], 2, 'did you mean "zsh"?'),
    ],
)
def test_wrong_command_lines(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert (result.code, result.out) == (code, ""), result.err
    assert words in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_the_device_is_said_once_though_a_report_follows(cli: Cli, trained: Trained) -> None:
    result = cli("resume", trained.logs_dir / trained.name, "--device", "cpu")
    assert result.code == 0 and "report.html" in result.err
    assert result.err.count("device: ") == 1


def test_terms_are_shown_once(cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "fetch", "market1501", "--data-dir", tmp_path)
    assert result.code == 2 and "--accept-terms" in result.err
    assert result.err.count("academic research only") == result.err.count("https://") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_more_gpus_than_there_are(cli: Cli) -> None:
    result = cli("train", "-d", "toy", "--gpus", 4)
    assert result.code == 5
    assert "--gpus 4" in result.err
    assert "ccreid doctor" in result.err


def test_missing_dataset_says_what_is_expected_where(cli: Cli, tmp_path: Path) -> None:
    result = cli("eval", "-d", "market1501", "--weights", "none", "--data-dir", tmp_path)
    assert result.code == 3
    assert str(tmp_path) in result.err
    assert "bounding_box_train" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "-d", "toy"],
        ["resume", "RUN"],
        ["eval", "--resume", "RUN"],
        ["report", "RUN"],
        ["export", "RUN", "-f", "safetensors"],
        ["extract", "toy", "--resume", "RUN"],
        ["data", "list"],
        ["data", "clean"],
        ["doctor"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_data_directory_that_is_a_file(
    cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    options = ["--data-dir", "file"] if by == "flag" or arguments[0] == "resume" else []  # which reads no environment
    monkeypatch.setenv("CCREID_DATA_DIR", "file" if by == "environment" else "")
    run = str(trained.logs_dir / trained.name)
    result = cli(*(run if argument == "RUN" else argument for argument in arguments), *options)
    assert (result.code, result.out) == (2, "")
    assert "the data directory file is a file, not a folder" in result.err
    assert len(result.err.splitlines()) == 2 and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_data_directory_that_is_a_link_to_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    result = cli("data", "list", "--data-dir", tmp_path / "link")
    assert result.code == 2 and "link is a link to nothing, not a folder" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train\n", "not valid TOML"),
        ("[train]\nepoch = 3\n", 'did you mean "epochs"?'),
        ("epochs = 3\n", "[train]"),
        ("[train]\nepochs = 'many'\n", "epochs = 'many'"),
        ("[train]\nlr = -1\n", "lr = -1"),
    ],
)
def test_wrong_recipe_file(cli: Cli, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    result = cli("train", "--recipe", file, "--dry-run")
    assert result.code == 2
    assert words in result.err
    assert "mine.toml" in result.err


def test_alone_it_shows_three_commands(cli: Cli) -> None:
    result = cli()
    assert result.code == 0
    commands = [line.split()[:2] for line in result.out.splitlines() if line.startswith("  ccreid")]
    assert commands == [["ccreid", "train"], ["ccreid", "data"], ["ccreid", "train"]]
    assert max(map(len, result.out.splitlines())) <= 60


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"ccreid {__version__}\n"


JSON_COMMANDS = [
    ["recipes"],
    ["doctor"],
    ["data", "list"],
    ["data", "clean"],
    ["weights", "list"],
    ["runs", "list"],
    ["runs", "show", "RUN"],
    ["runs", "compare", "RUN", "RUN"],
    ["data", "info", "DATASET"],
    ["data", "verify", "DATASET"],
    ["eval", "--resume", "RUN", "--device", "cpu"],
    ["resume", "RUN", "--device", "cpu"],
    ["train", "-d", "toy", "--dry-run"],
]


@pytest.mark.parametrize("arguments", JSON_COMMANDS, ids=" ".join)
def test_json_is_one_object_on_stdout(
    cli: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("CCREID_LOGS_DIR", str(trained.logs_dir))
    monkeypatch.setenv("CCREID_DATA_DIR", str(trained.data_dir))
    places = {"RUN": trained.name, "DATASET": str(trained.dataset)}
    result = cli(*(places.get(argument, argument) for argument in arguments), "--json")
    assert result.code in {0, 3 if "verify" in arguments else 0}, result.err
    assert isinstance(json.loads(result.out), dict)


@pytest.mark.parametrize("arguments", JSON_COMMANDS, ids=" ".join)
def test_tables_need_no_colour_and_fit_a_pipe(
    cli: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    if arguments[0] in {"eval", "resume", "doctor"}:
        pytest.skip("takes seconds, and prints through the same functions")
    monkeypatch.setenv("CCREID_LOGS_DIR", str(trained.logs_dir))
    monkeypatch.setenv("CCREID_DATA_DIR", str(trained.data_dir))
    places = {"RUN": trained.name, "DATASET": str(trained.dataset)}
    result = cli(*(places.get(argument, argument) for argument in arguments))
    assert result.code in {0, 3 if "verify" in arguments else 0}, result.err
    assert "\x1b" not in result.out + result.err
    assert result.out.strip() or arguments == ["data", "clean"]


def test_every_reporting_command_is_asked_for_json() -> None:
    elsewhere = {"data fetch", "cluster", "score", "extract", "search", "identify", "review"}
    elsewhere |= {"export", "report", "weights fetch", "bench"}
    with_json = {
        path.removeprefix("ccreid ")
        for path, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    here = {
        " ".join(arguments[: 2 if arguments[0] in {"data", "runs", "weights"} else 1]) for arguments in JSON_COMMANDS
    }
    assert {path for path in with_json if path not in elsewhere and path.split()[0] not in elsewhere} == here


def test_evaluation_json_has_the_promised_keys(cli: Cli, trained: Trained) -> None:
    result = cli("eval", "--resume", trained.logs_dir / trained.name, "--device", "cpu", "--json")
    found = json.loads(result.out)
    assert {"mAP", "mINP", "rank1", "rank5", "rank10", "num_queries", "num_queries_skipped"} <= set(found)
    assert 0 <= found["mAP"] <= 1


def test_how_a_score_was_made_stands_beside_it(cli: Cli, trained: Trained) -> None:
    command = ("eval", "--resume", trained.logs_dir / trained.name, "--device", "cpu", "--camera-batch-norm")
    found = json.loads(cli(*command, "--json").out)
    assert found["camera_batch_norm"] is True and found["camera_norm"] is False
    shown = cli(*command, "--camera-norm", "--rerank").out
    assert "camera-batch-normalised camera-normalised re-ranked last" in shown


def test_dry_run_shows_where_values_come_from(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREID_DATA_DIR", "/from/environment")
    monkeypatch.setenv("CCREID_LOGS_DIR", "/from/environment")
    flags = ("--eps", 0.55, "--logs-dir", "/from/flag")
    found = json.loads(cli("train", "-d", "market1501", *flags, "--dry-run", "--json").out)
    assert found["momentum"] == {"value": 0.1, "source": found["momentum"]["source"]}
    assert found["eps"] == {"value": 0.55, "source": "flag"}
    assert found["iters"]["source"] == "recipe market1501"
    assert found["data_dir"] == {"value": "/from/environment", "source": "environment CCREID_DATA_DIR"}
    assert found["logs_dir"] == {"value": "/from/flag", "source": "flag"}
    assert found["print_freq"] == {"value": 10, "source": "default"}


def test_dry_run_writes_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("train", "-d", "toy", "--dry-run").code == 0
    assert not list(tmp_path.iterdir())


def _start(code: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_quietly(number: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom ccreid_cli.cli import app, system\n"
        "def wait(app):\n    print('ready', flush=True); time.sleep(60)\n"
        "system.register, sys.argv = wait, ['ccreid', 'doctor']\napp.main()"
    )
    process = _start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors


def test_help_version_and_completion_import_nothing_heavy() -> None:
    heavy = "torch numpy scipy sklearn faiss PIL matplotlib requests tqdm"
    code = (
        "import sys\nfrom ccreid_cli.cli.app import main\n"
        "sys.argv = ['ccreid', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in NAMES.split() if name in sys.modules], file=sys.stderr)"
    )
    completing = {"_CCREID_OFFER": "quoted"}
    for arguments, environment, names in (
        (["--help"], {}, f"{heavy} rich.markdown"),
        (["--version"], {}, heavy),
        (["train", "-d", "ma"], completing, f"{heavy} pydantic rich.console"),
        (["train", "--"], completing, f"{heavy} pydantic rich.console"),
    ):
        found = subprocess.run(
            [sys.executable, "-c", code.replace("NAMES", repr(names)), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout
        assert found.stderr.strip().splitlines()[-1] == "[]", arguments


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = _start(
        "import sys; sys.argv = ['ccreid', 'completion', 'bash']; from ccreid_cli.cli.app import main; main()"
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(timeout=30) in {0, 1, 120}


def test_ctrl_c_ends_a_command_that_is_still_starting() -> None:
    """As if it came while the command line is imported, which takes a while."""
    process = _start(
        "import sys, signal; from ccreid_cli.__main__ import main\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Late()); main()"
    )
    assert process.stdout is not None and process.stderr is not None
    assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
    assert process.wait(timeout=30) == 130


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["eval", "--resume", "RUN", "-b", "-5"], "-5"),
        (["extract", "DATASET", "--resume", "RUN", "-b", "0", "-o", "f.npz"], "0"),
        (["train", "-d", "toy", "--lr", "1e400", "--dry-run"], "lr"),
        (["train", "-d", "toy", "--name", "../evil"], "../evil"),
        (["bench", "--plan", "--images", "nan", "--rates", "RATES"], "nan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_impossible_numbers_and_names_are_usage(
    cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [{"stage": stage, "size": "", "count": 8, "seconds": 1.0} for stage in ("extract", "labels", "step")]
    for row in stages:
        row |= {"parts": {"neighbors": 1.0}, "numbers": {"dim": 8, "batch": 8, "parameters": 8}}
    Path("rates.json").write_text(json.dumps({"results": stages}))
    places = {"RUN": str(trained.logs_dir / trained.name), "DATASET": str(trained.dataset), "RATES": "rates.json"}
    result = cli(*(places.get(argument, argument) for argument in arguments))
    assert result.code == 2 and word in result.err and "bug" not in result.err
    assert not (tmp_path / "logs").exists()


def test_a_damaged_run_does_not_hide_the_others(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.toml").write_text("bad =")
    (tmp_path / "whole").symlink_to(trained.logs_dir / trained.name)
    result = cli("runs", "list", "--logs-dir", tmp_path)
    assert result.code == 0 and "damaged" in result.out and "whole" in result.out and "TOML" in result.err
    listed = json.loads(cli("runs", "list", "--logs-dir", tmp_path, "--json").out)["runs"]
    assert {run["run"]: run["state"] for run in listed} == {"broken": "damaged", "whole": "finished"}


def test_closed_stdout_is_no_bug() -> None:
    command = f"{sys.executable} -m ccreid_cli recipes >&-"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "bug" not in found.stderr
