from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.inference.identity_file import (
    IdentityRow,
    check_identity_form,
    check_paths,
    identities_as_csv,
    path_from,
    write_identities,
)


def test_a_table_is_read_again_by_d(tmp_path: Path) -> None:
    names = ['a, "b".png', "crops/Ärger.png", "c;d.png", "e.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = [
        IdentityRow(names[0], "0001", "1", "query", 0.25),
        IdentityRow(names[1], "Zoë, the 1st", "2", "gallery", 0.125),
        IdentityRow(names[2], "0001", "2", "gallery", 0.5),
        IdentityRow(str(tmp_path / names[3]), "", "", "train"),
    ]
    table = tmp_path / "who.csv"
    write_identities(table, rows)
    assert table.read_text().splitlines()[0] == "path,id,camera,split,confidence"
    dataset = load_dataset(str(table), tmp_path, SilentReporter())
    found = {
        (name, identity, camera, split)
        for split, part in dataset.splits.items()
        for name, identity, camera in zip(part.names, part.identities, part.cameras, strict=True)
    }
    assert found == {(row.path, row.id, row.camera, row.split) for row in rows}


def test_checked_is_a_column_where_anybody_looked() -> None:
    rows = [IdentityRow("a", "1", "", "train", 0.1, checked=True), IdentityRow("b", "", "", "train")]
    assert identities_as_csv(rows) == "path,id,camera,split,confidence,checked\na,1,,train,0.1000,1\nb,,,train,,\n"


def test_json_says_the_same_and_who_the_unsure_may_be(tmp_path: Path) -> None:
    write_identities(
        tmp_path / "who.json",
        [IdentityRow("a", "1", "2", "train", 0.12345), IdentityRow("b", "", "", "train", -0.1, nearest="1")],
    )
    assert json.loads((tmp_path / "who.json").read_text())["images"] == [
        {"path": "a", "id": "1", "camera": "2", "split": "train", "confidence": 0.1235},
        {"path": "b", "id": None, "camera": None, "split": "train", "confidence": -0.1, "unsure": "1"},
    ]


def test_paths_are_relative_below_the_tables_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_from(Path(), Path("crops/a.jpg")) == "crops/a.jpg"
    assert path_from(Path(), tmp_path / "x" / ".." / "a.jpg") == "a.jpg"
    assert path_from(Path("out"), Path("crops/a.jpg")) == str(tmp_path / "crops" / "a.jpg")


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\r.jpg", " a.jpg", "a.jpg ", "caf\udce9.jpg"])
def test_names_that_a_table_cannot_give_back_are_refused(name: str) -> None:
    check_paths(["fine.jpg", "Ärger 1.jpg"])
    with pytest.raises(DataError, match="rename|hold"):
        check_paths(["fine.jpg", name])


def test_the_ending_names_the_form() -> None:
    with pytest.raises(UsageError, match=r"\.csv or \.json"):
        check_identity_form(Path("who.txt"))
