"""From crops to a table of who is who, and back."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny

from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.inference import identify, sharded_extraction
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

from .conftest import Cli, Result, Trained

LABELS = ("--k1", 4, "--k2", 2, "--min-samples", 2, "--eps", 0.7)


@pytest.fixture
def crops(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images each of eight people, named like crops of a tracker: nothing in the names but cameras."""
    monkeypatch.chdir(tmp_path)
    for number, file in enumerate(sorted((trained.dataset / "bounding_box_train").iterdir())):
        target = tmp_path / "crops" / f"{file.name[:4]}" / f"{number:03}_c{file.name[6]}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return Path("crops")


@pytest.fixture
def run(cli: Cli, trained: Trained) -> Cli:
    def call(*arguments: object) -> Result:
        style = () if "--progress" in arguments else ("--progress", "none")
        place = ("--resume", trained.logs_dir / trained.name, "--device", "cpu", *style)
        return cli("identify", *arguments, *place)

    return call


def read(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_crops_to_a_table_that_is_read_again(crops: Path, run: Cli, cli: Cli) -> None:
    done = run(crops, *LABELS, "-o", "who.csv")
    assert (done.code, done.out) == (0, ""), done.err
    rows = read("who.csv")
    assert len(rows) == 32 and list(rows[0]) == ["path", "id", "camera", "split", "confidence"]
    assert rows[0]["path"] == "crops/0001/000_c1.jpg" and {row["camera"] for row in rows} == {"1", "2"}
    ids = list(dict.fromkeys(row["id"] for row in rows if row["id"]))
    assert ids == [f"{number:04}" for number in range(1, len(ids) + 1)] and len(ids) > 2
    assert all((row["confidence"] == "") == (row["id"] == "") for row in rows)
    assert not list(Path().glob(".*"))
    again = run("who.csv", *LABELS)
    assert again.out == Path("who.csv").read_text()
    shown = json.loads(cli("data", "info", "who.csv", "--json").out)
    assert "32" in json.dumps(shown)


def test_the_runs_own_settings_count_where_no_other_are_given(
    crops: Path, run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def label(features: object, settings: object, **_: object) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(identify, "pseudo_labels", label)
    run(crops, "--eps", 0.3)
    (settings,) = seen
    assert (settings.eps, settings.k1, settings.k2, settings.min_samples) == (0.3, 4, 2, 2)


def test_json_and_folders(crops: Path, run: Cli) -> None:
    found = json.loads(run(crops, *LABELS, "--json", "--folders", "out").out)
    named = {image["path"]: image["id"] for image in found["images"] if image["id"]}
    assert found["num_images"] == 32 == len(named) + found["num_outliers"] and found["folders_hold"] == "hard links"
    assert {path.name for path in Path("out").iterdir()} == set(named.values())
    for path, identity in named.items():
        assert (Path("out") / identity / Path(path).name).samefile(path)
    refused = run(crops, "--folders", "out", "--force")
    assert refused.code == 2 and "out is there already and not empty" in refused.err


def test_a_feature_file_needs_no_model(crops: Path, run: Cli, cli: Cli, trained: Trained) -> None:
    extracted = cli("extract", crops, "--resume", trained.logs_dir / trained.name, "-o", "f.npz", "--device", "cpu")
    assert extracted.code == 0
    table = cli("identify", "f.npz", *LABELS, "--progress", "none")
    assert table.out == run(crops, *LABELS).out and table.code == 0


def test_new_images_are_named_after_known_ones(crops: Path, run: Cli) -> None:
    """Half the people are known from half their images, under names that a person gave."""
    known = ["path,id,camera,split"]
    for folder in sorted(crops.iterdir())[:4]:
        known += [f"{file.as_posix()},person {folder.name},1,train" for file in sorted(folder.iterdir())[:2]]
    Path("known.csv").write_text("\n".join([*known, ""]))
    done = run(
        crops, "--known", "known.csv", "--false-match-rate", 0.01, *LABELS, "-o", "grown.csv", "--progress", "plain"
    )
    assert done.code == 0 and "known from a similarity above" in done.err and "unsure" in done.err
    rows = read("grown.csv")
    given = dict(line.split(",")[:2] for line in known[1:])
    assert {path: identity for row in rows if (path := row["path"]) in given for identity in [row["id"]]} == given
    for row in rows:
        if row["id"].startswith("person"):
            assert row["id"] == f"person {Path(row['path']).parent.name}"
    assert sum(row["id"].startswith("person") for row in rows) > len(given)
    # The known images need not be among those to name; only these are written.
    few = run(*sorted((crops / "0001").iterdir())[2:], "--known", "known.csv", *LABELS)
    assert few.code == 0 and len(few.out.splitlines()) == 3, few.err
    assert "crops/0001/000_c1.jpg" not in few.out


def test_an_interrupted_extraction_goes_on(crops: Path, run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(crops, *LABELS).out
    monkeypatch.setattr(identify, "KEPT_SIZE", 5)
    save, saved = sharded_extraction._save, []

    def dying(folder: Path, number: int, *rest: object) -> None:
        save(folder, number, *rest)
        saved.append(number)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sharded_extraction, "_save", dying)
    assert run(crops, *LABELS, "-o", "who.csv").code == 130
    assert len(list(Path(".who.csv.features").glob("*.npz"))) == 3 and not Path("who.csv").exists()
    assert run(crops, *LABELS, "-o", "who.csv").code == 0
    assert saved == list(range(7)) and Path("who.csv").read_text() == whole
    assert not Path(".who.csv.features").exists()


def test_killed_at_any_time_it_goes_on_with_the_same_bytes(
    crops: Path, run: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGKILL: while the second chunk of features is written, and while the table is written."""
    monkeypatch.setattr(identify, "KEPT_SIZE", 16)
    settings = (*LABELS, "--precision", "fp32")
    assert run(crops, *settings, "-o", "whole.csv").code == 0
    words = ["identify", crops, *settings, "-o", "who.csv", "--resume", trained.logs_dir / trained.name]
    chunks = Path(".who.csv.features")

    def start(**kill: str) -> tuple[int, str]:
        command = [*map(str, words), "--device", "cpu", "--progress", "none"]
        return tiny.start(Path("said"), command, CCREID_TEST_CHUNK="16", **kill).finish(200)

    assert start(CCREID_TEST_KILLED_BEFORE="000001.npz")[0] == -signal.SIGKILL
    assert [file.name for file in chunks.glob("0*")] == ["000000.npz"]
    first = (chunks / "000000.npz").stat().st_mtime_ns
    assert start(CCREID_TEST_KILLED_BEFORE="who.csv")[0] == -signal.SIGKILL
    assert len(list(chunks.glob("0*"))) == 2 and not Path("who.csv").exists()
    assert (chunks / "000000.npz").stat().st_mtime_ns == first
    code, said = start()
    assert code == 0, said
    assert Path("who.csv").read_bytes() == Path("whole.csv").read_bytes() and not chunks.exists()


def test_tracks_stay_whole_and_what_is_beside_apart(crops: Path, run: Cli) -> None:
    """Images of two people each make a track, against all likeness, and all tracks are seen at one time."""
    for number, file in enumerate(sorted(crops.rglob("*.jpg"))):
        file.rename(crops / f"cam1_track{number // 8}_frame{number % 8}.jpg")
    done = run(crops, "--k1", 8, "--k2", 1, "--min-samples", 2, "--eps", 0.99)
    rows = list(csv.DictReader(done.out.splitlines()))
    assert len(rows) == 32 and {row["camera"] for row in rows} == {"1"}
    ids = {row["path"].rsplit("_", 1)[0]: row["id"] for row in rows}
    assert all(ids[row["path"].rsplit("_", 1)[0]] == row["id"] for row in rows)
    named = [name for name in ids.values() if name]
    assert len(ids) == 4 and len(set(named)) == len(named) > 0


def test_what_a_person_has_checked_stays(crops: Path, run: Cli) -> None:
    """Also where that is in no identity; and a checked table is a source of its own."""
    files = [file.as_posix() for file in sorted(crops.rglob("*.jpg"))]
    lines = [f"{file},{'ada' if number < 9 else 'bea'},1,train,,1" for number, file in enumerate(files[:12])]
    lines[3] = f"{files[3]},,1,train,,1"
    Path("known.csv").write_text("\n".join(["path,id,camera,split,confidence,checked", *lines, ""]))
    done = run(crops, "--known", "known.csv", *LABELS)
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["id"] for row in rows[:12]] == ["ada"] * 3 + [""] + ["ada"] * 5 + ["bea"] * 3
    assert [row["checked"] for row in rows] == ["1"] * 12 + [""] * 20
    again = list(csv.DictReader(run("known.csv", *LABELS).out.splitlines()))
    groups = [row["id"] for row in again]
    assert len(set(groups[:3] + groups[4:9])) == 1 == len(set(groups[9:])) and groups[3] == ""
    assert groups[0] != groups[11] or groups[0] == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["crops", "--symlink", "--copy", "--folders", "o"], 2, "exclude each other"),
        (["crops", "--copy"], 2, "are for --folders"),
        (["crops", "-o", "who.txt"], 2, ".csv or .json"),
        (["crops", "-o", "crops/0001"], 2, ".csv or .json"),
        (["crops", "--false-match-rate", "2"], 2, "equal to 1"),
        (["crops", "--known", "absent.csv"], 3, "absent.csv does not exist"),
        (["crops/0001/000_c1.jpg", "crops"], 2, "crops is no image file"),
        (["crops/0001/000_c1.jpg", "gone.jpg"], 3, "gone.jpg does not exist"),
        (["crops", "--eps", "1.5"], 2, "eps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(crops: Path, run: Cli, arguments: list[str], code: int, words: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (code, "") and words in result.err
    assert [path.name for path in Path().iterdir()] == ["crops"]


def test_features_of_another_model_are_refused(crops: Path, run: Cli, cli: Cli, tmp_path: Path) -> None:
    spec = ModelSpec("resnet18", "gem")
    content = {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec)), "preprocess": {"height": 32, "width": 16}}
    save_checkpoint(tmp_path / "other.pt", content)
    assert cli("extract", crops, "--resume", "other.pt", "-o", "f.npz", "--device", "cpu").code == 0
    refused = run("f.npz")
    assert refused.code == 3 and "f.npz was made by another model" in refused.err


def test_a_file_of_another_program(cli: Cli, rng: np.random.Generator) -> None:
    np.savez("f.npz", features=np.repeat(rng.normal(size=(3, 8)), 5, axis=0))
    done = cli("identify", "f.npz", *LABELS, "--progress", "none")
    assert done.code == 0
    assert [line.split(",")[1] for line in done.out.splitlines()[1:]] == ["0001"] * 5 + ["0002"] * 5 + ["0003"] * 5


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
