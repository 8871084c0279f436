"""A CSV or TSV file -> rows of text; whatever is wrong in it is named with line and column."""

from __future__ import annotations

import codecs
import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ccreid_cli.core.errors import DataError

_LINE_END = re.compile(r"\r\n|\n|\r")
_QUOTES = "A quote within a field is written twice, and such a field stands in quotes as a whole."


class Row(NamedTuple):
    """The fields of one row, and the number of the line that it begins in."""

    line: int
    fields: list[str]


def read_table(path: Path) -> list[Row]:
    """Read all rows that are not empty, the header first.

    Args:
        path: The file; ``.tsv`` is split at tabs, others at tabs, semicolons, commas or bars, whichever
            the first line uses most.

    Raises:
        DataError: It cannot be read, is no UTF-8 text, or a row is malformed: names line and column.
    """
    text = _text(path)
    first, separator = 1, _excel_separator(text)
    if separator:
        first, text = 2, _LINE_END.split(text, maxsplit=1)[1]
    header = _LINE_END.split(text, maxsplit=1)[0]
    rows: list[Row] = []
    for row in _rows(path, text, separator or _separator(path, header), first):
        _check_width(path, row, rows[0].fields if rows else row.fields)
        rows.append(row)
    return rows


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is not UTF-8 text: its first bytes are those of UTF-16.", "Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, character = _place(content[: error.start].decode("utf-8-sig", errors="replace"))
        raise DataError(
            f"{path}, line {line}, character {character}: byte 0x{content[error.start]:02x} is not UTF-8 text (byte "
            f"{error.start:,} of the file).",
            "Save it as UTF-8.",
        ) from error
    if "\0" in text:
        line, character = _place(text[: text.index("\0")])
        raise DataError(f"{path}, line {line}, character {character}: a NUL character.", "Save it as UTF-8 text.")
    return text


def _place(before: str) -> tuple[int, int]:
    """Return line and character, from 1, of what follows a text."""
    lines = _LINE_END.split(before)
    return len(lines), len(lines[-1]) + 1


def _excel_separator(text: str) -> str:
    """Return the separator that a spreadsheet program names in a line of its own (``sep=;``)."""
    match = re.match(r"sep=(.)(?=[\r\n])", text)
    return match[1] if match else ""


def _separator(path: Path, header: str) -> str:
    plain = re.sub(r'"[^"]*"', "", header)
    if path.suffix.lower() == ".tsv" or "\t" in plain:
        return "\t"
    return max(",;|", key=plain.count)


def _rows(path: Path, text: str, separator: str, first: int) -> Iterator[Row]:
    """Yield the rows that hold anything."""
    lines = _LINE_END.split(text)
    before = csv.field_size_limit(sys.maxsize)  # the longest field is the file
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        start = 0
        width = 0
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise _bad_quote(path, lines, start, separator, first, str(error)) from error
            if fields is None:
                return
            width = width or len(fields)
            if reader.line_num > start + 1 and _swallowed_rows(fields, separator, width):
                raise _bad_quote(path, lines, start, separator, first, "it goes on over whole rows")
            if any(field.strip() for field in fields):
                yield Row(start + first, fields)
            start = reader.line_num
    finally:
        csv.field_size_limit(before)


def _swallowed_rows(fields: Sequence[str], separator: str, width: int) -> bool:
    """Say whether a field of several lines holds what looks like rows: a line with as many separators as the header."""
    lines = (line for field in fields if "\n" in field or "\r" in field for line in _LINE_END.split(field))
    return any(line.count(separator) >= max(1, width - 2) for line in lines)


def _bad_quote(path: Path, lines: list[str], start: int, separator: str, first: int, why: str) -> DataError:
    """Name the place where the quote that is wrong was opened: in the line that the row begins in."""
    number, line = start, lines[start]
    while number < len(lines) and (character := _open_quote(line, separator)) is None:
        number += 1
        line = lines[number] if number < len(lines) else ""
    if number >= len(lines):
        number, character, line = start, 0, lines[start]
    column = line[: character or 0].count(separator) + 1
    return DataError(
        f"{path}, line {number + first}, column {column}, character {(character or 0) + 1}: the quote is not closed as "
        f"it should be ({why}): {line[:80]!r}.",
        _QUOTES,
    )


def _open_quote(line: str, separator: str) -> int | None:
    """Return the place of a quote that opens a field and is wrong or not closed in its line; None where all are."""
    place = 0
    while place < len(line):
        if line[place] == '"':
            closing = re.compile(r'"(?:[^"]|"")*"(?!")').match(line, place)
            if closing is None or (closing.end() < len(line) and line[closing.end()] != separator):
                return place
            place = closing.end()
        else:
            place = line.find(separator, place)
            if place < 0:
                return None
        place += 1
    return None


def _check_width(path: Path, row: Row, header: Sequence[str]) -> None:
    extra = [field for field in row.fields[len(header) :] if field.strip()]
    if extra:
        raise DataError(
            f"{path}, line {row.line}: {len(row.fields)} fields, but the first line names {len(header)}.",
            "A field that holds the separator stands in quotes.",
        )
