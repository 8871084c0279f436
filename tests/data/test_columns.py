"""Manifests of other programs and with columns of their own, and tables that are broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.columns import parse_columns
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset

HEADER = "path,id,camera,split\n"


@pytest.fixture
def load(tmp_path: Path, write_images: Callable[..., Path]) -> Callable[..., ReidDataset]:
    write_images(tmp_path, [f"i/{letter}.jpg" for letter in "abcdef"])

    def read(text: str | bytes, reporter: Any = None, columns: str | None = None, name: str = "l.csv") -> ReidDataset:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_dataset(str(tmp_path / name), tmp_path, reporter or SilentReporter(), columns=columns)

    return read


def test_columns_of_ones_own(load: Callable[..., ReidDataset], listener: Any) -> None:
    text = "File;Who;Site;Subset;note\ni/a.jpg;Ada;yard;train;x\ni/b.jpg;Bea;yard;query;\ni/c.jpg;Bea;gate;database;\n"
    dataset = load(text, listener, "path=file, id=who,camera=site,split=subset")
    assert [split.identities for split in dataset.splits.values()] == [("Ada",), ("Bea",), ("Bea",)]
    assert dataset.gallery.cameras == ("gate",)
    assert "path=file, id=who, camera=site, split=subset" in listener.messages[0]


def test_columns_that_are_not_there(load: Callable[..., ReidDataset]) -> None:
    with pytest.raises(DataError, match='the column "whom" is not there') as caught:
        load("path,who\ni/a.jpg,Ada\n", columns="id=whom")
    assert "--columns id=COLUMN" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["id", "id=", "ids=x", "id=a,id=b"])
def test_columns_that_say_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="--columns"):
        parse_columns(text)


def test_columns_are_not_for_the_catalogue(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="own"):
        load_dataset("toy", tmp_path, SilentReporter(), columns="id=names")


def test_wildlife_datasets(load: Callable[..., ReidDataset], listener: Any) -> None:
    text = 'image_id,identity,path,bbox\n1,ada,i/a.jpg,"[0, 0, 1, 1]"\n2,unknown,i/b.jpg,\n'
    dataset = load(text, listener, name="metadata.csv")
    assert dataset.train.identities == ("ada", "")
    assert any("not cut out" in text for text in listener.warnings)
    split = "identity,path,split\nada,i/a.jpg,database\nada,i/b.jpg,query\nbea,i/c.jpg,train\nbea,i/d.jpg,test\n"
    dataset = load(split, listener)
    assert [split.names for split in dataset.splits.values()] == [("i/c.jpg",), ("i/b.jpg",), ("i/a.jpg",)]
    assert "1 image is left out, the first i/d.jpg on line 5" in listener.warnings[-1]


def test_open_metric_learning(load: Callable[..., ReidDataset], listener: Any) -> None:
    rows = ["1,i/a.jpg,train,,", "2,i/b.jpg,validation,True,True", "2,i/c.jpg,validation,1.0,1.0"]
    rows += ["3,i/d.jpg,validation,False,True", "3,i/e.jpg,validation,0,0"]
    dataset = load("\n".join(["label,path,split,is_query,is_gallery", *rows]), listener)
    assert [split.names for split in dataset.splits.values()] == [
        ("i/a.jpg",),
        ("i/b.jpg", "i/c.jpg"),
        ("i/b.jpg", "i/c.jpg", "i/d.jpg"),
    ]
    assert "the first i/e.jpg on line 6" in listener.warnings[0]
    shared = set(dataset.query.cameras)
    assert len(shared) == 2 and shared < set(dataset.gallery.cameras)  # none is matched with itself
    with pytest.raises(DataError, match='line 2: "maybe" in the column "is_query"'):
        load("label,path,split,is_query,is_gallery\n1,i/a.jpg,validation,maybe,\n")


def test_a_quote_that_is_not_closed_in_a_long_file(load: Callable[..., ReidDataset]) -> None:
    rows = ["i/a.jpg,Ada,1,train\n"] * 8000
    rows[3000] = 'i/a.jpg,"Ada,1,train\n'
    with pytest.raises(DataError, match=r"line 3002, column 2, character 9: the quote is not closed"):
        load(HEADER + "".join(rows))


@pytest.mark.parametrize("close", ['i/c.jpg,Cid",1,train\n', 'i/c.jpg,"Cid",1,train\n'])
def test_a_quote_that_swallows_rows(load: Callable[..., ReidDataset], close: str) -> None:
    with pytest.raises(DataError, match="line 2, column 2, character 9: the quote is not closed"):
        load(HEADER + 'i/a.jpg,"Ada,1,train\ni/b.jpg,Bea,1,train\n' + close)


def test_quotes_that_are_right(load: Callable[..., ReidDataset]) -> None:
    dataset = load(HEADER + 'i/a.jpg,"Ada ""the, first""\nof her name",1,train\n"i/b.jpg","Bea","1","train"\n')
    assert dataset.train.identities == ('Ada "the, first"\nof her name', "Bea")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEADER.encode() + b"i/a.jpg,Ren\xe9,1,train\n", "line 2, character 12: byte 0xe9 is not UTF-8"),
        (HEADER.encode("utf-16"), "UTF-16"),
        (HEADER.encode() + b"i/a.jpg,A\0da,1,train\n", "line 2, character 10: a NUL"),
        (HEADER.encode() + b"i/a,b.jpg,Ada,1,train\n", "line 2: 5 fields, but the first line names 4"),
    ],
)
def test_what_is_no_table(load: Callable[..., ReidDataset], content: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load(content)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_line_ends_separators_and_byte_order_marks(load: Callable[..., ReidDataset], end: str, sign: str) -> None:
    rows = f"{HEADER}i/a.jpg,Ada,1,train\ni/b.jpg,Bea,1,train\n".replace(",", sign).replace("\n", end)
    assert load("\ufeff" + rows).train.identities == ("Ada", "Bea")
    assert load(f"sep={sign}{end}" + rows).train.identities == ("Ada", "Bea")
