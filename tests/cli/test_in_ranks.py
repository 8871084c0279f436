"""Use of a model by several processes gives the bytes of one, and ends as one. The processes talk over gloo."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    spec = ModelSpec("tiny")
    file = tmp_path_factory.mktemp("model") / "tiny.pt"
    content = {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec)), "preprocess": {"height": 32, "width": 16}}
    save_checkpoint(file, content)
    return file


@pytest.fixture
def crops(tmp_path: Path, rng: np.random.Generator) -> Path:
    for number in range(26):
        split = "query" if number % 5 == 0 else "bounding_box_test"
        file = tmp_path / "crops" / split / f"{number % 4:04}_c{number % 3}_{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(file)
    (tmp_path / "crops/query/broken.png").write_bytes(b"junk")
    return tmp_path / "crops"


def contents(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.iterdir()} if place.is_dir() else {"": place.read_bytes()}


@pytest.mark.parametrize("form", ["features/", "f.npz"])
def test_extraction_by_several_processes_gives_the_bytes_of_one(
    form: str, model: Path, crops: Path, tmp_path: Path
) -> None:
    def arguments(world: int) -> list[str]:
        size = ["--shard-size", "4"] if form.endswith("/") else []
        return ["extract", str(crops), "--resume", str(model), "-o", f"{tmp_path}/{world}-{form}", "--json", *size]

    said = []
    for world in (1, 2):
        for rank in tiny.start_ranks(tmp_path, arguments(world), world):
            code, text = rank.finish()
            assert code == 0, text
            said += [text[text.index("{") :]] if "{" in text else []
    one, many = (contents(tmp_path / f"{world}-{form}") for world in (1, 2))
    assert one == many and len(one) in (1, 8)
    results = [json.loads(line) for line in said]
    assert len(results) == 2 and all((found["num_images"], found["num_broken"]) == (26, 1) for found in results)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".") and "features" in file.name]


def test_the_other_commands_say_what_one_process_says(model: Path, crops: Path, tmp_path: Path) -> None:
    (crops / "query/broken.png").unlink()
    query = sorted((crops / "query").iterdir())[0]
    use = ["--resume", str(model), "--json", "--progress", "none"]
    for command in (
        ["eval", "-d", str(crops), "--height", "32", "--width", "16", "-b", "4", "--data-dir", str(tmp_path / "data")],
        ["identify", str(crops), "--min-samples", "2", "--k1", "5"],
        ["search", str(query), "-g", str(crops), "--top", "3"],
    ):
        said = []
        for world in (1, 2):
            ranks = tiny.start_ranks(tmp_path, [*command, *use], world, XDG_CACHE_HOME=str(tmp_path / "cache"))
            for number, rank in enumerate(ranks):
                code, text = rank.finish()
                assert code == 0 and (number == 0 or "{" not in text), text
                if number == 0:
                    said.append(json.loads(text[text.index("{") :]))
        for found in said:
            found.pop("seconds", None), found.pop("search_seconds", None)
        assert said[0] == said[1] and said[0]
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_rank_that_fails_ends_the_others(model: Path, crops: Path, tmp_path: Path) -> None:
    arguments = ["extract", str(crops), "--resume", str(model), "-o", f"{tmp_path}/f/", "--shard-size", "4", "--strict"]
    ended = [rank.finish() for rank in tiny.start_ranks(tmp_path, arguments, 2)]
    assert [code for code, _ in ended] == [3, 3]
    assert sum("broken.png (not an image)" in text for _, text in ended) == 1


def test_killed_processes_leave_whole_shards(model: Path, crops: Path, tmp_path: Path) -> None:
    """Also where one goes on that was two, and two that were one."""
    arguments = ["extract", str(crops), "--resume", str(model), "--shard-size", "2", "-o"]
    for rank in tiny.start_ranks(tmp_path, [*arguments, f"{tmp_path}/whole/"], 1):
        assert rank.finish()[0] == 0
    folder = tmp_path / "killed"
    for world in (2, 1):
        there = len(list(folder.glob("*.npz")))
        ranks = tiny.start_ranks(tmp_path, [*arguments, f"{folder}/"], world)
        ranks[0].wait_for(lambda there=there: len(list(folder.glob("*.npz"))) > there)
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
        assert all(rank.finish()[0] in (-signal.SIGKILL, 0) for rank in ranks)
    ranks = tiny.start_ranks(tmp_path, [*arguments, f"{folder}/"], 2)
    assert [rank.finish()[0] for rank in ranks] == [0, 0]
    assert contents(folder) == contents(tmp_path / "whole") and len(contents(folder)) == 15
