"""Take files of weak prompts apart into rows, keeping the good rows of a damaged file."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import IngestError

_NEXT_OBJECT = re.compile(r"\}\s*,\s*(?=\{)")
_LISTS = frozenset({"box_xyxy", "box_ij", "box_xywh", "point_xy", "point_ij", "box_zyxzyx", "box_ijk", "size_yx"})
_LISTS_OF_PAIRS = frozenset({"points_xy", "points_ij", "extreme_points_xy", "recist_xy"})
_NOT_JSON = "malformed-json"
_SURPLUS = "cells without a column"
_QUOTE = "Put a list into quotes, or separate its numbers by blanks"
_SHORT_FORMS = {("x0", "y0", "x1", "y1"): "box_xyxy", ("x", "y"): "point_xy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it stands in the file."""

    number: str
    """As a person would count: entries of JSON from 1, lines of CSV and JSON Lines as an editor shows them."""
    content: object = None
    error: str = ""
    """What is wrong when the row could not even be taken apart."""
    reason: str = "malformed-row"
    """The slug that goes with ``error``."""


def read_text(path: Path) -> str:
    """Read a file as text.

    Raises:
        IngestError: ``zero-bytes`` or ``unreadable``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise IngestError("unreadable", f"{path.name}: the file cannot be read as UTF-8 text ({error}).") from error
    if not text.strip():
        raise IngestError("zero-bytes", f"{path.name}: the file is empty.")
    return text


def json_rows(text: str) -> Iterator[RawRow]:
    """Yield the entries of a JSON list; where its syntax is broken, those that stand on their own."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield from _salvage(text, error)
        return
    entries = document.get("prompts", [document]) if isinstance(document, dict) else document
    if not isinstance(entries, list):
        message = "the document must be a list of prompts, or an object with such a list under 'prompts'"
        yield RawRow(number="", error=message, reason=_NOT_JSON)
        return
    for number, entry in enumerate(entries, start=1):
        yield RawRow(number=str(number), content=entry)


def json_lines(text: str) -> Iterator[RawRow]:
    """Yield one row per line of JSON Lines."""
    # Not splitlines: a text of JSON may hold the separators of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield RawRow(number=str(number), content=json.loads(line))
        except json.JSONDecodeError as error:
            yield RawRow(number=str(number), error=f"not JSON: {error.msg} at character {error.colno}", reason=_NOT_JSON)
        except (ValueError, RecursionError) as error:
            yield RawRow(number=str(number), error=f"not readable: {error}", reason=_NOT_JSON)


def csv_rows(text: str) -> Iterator[RawRow]:
    """Yield one row per line of CSV; empty cells count as absent, cells of lists hold numbers or JSON."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_SURPLUS)
    try:
        yield from _rows_of_lines(reader)
    except csv.Error as error:
        message = f"not readable from here on: {error}. A quote is probably never closed"
        yield RawRow(number=str(reader.line_num), error=message)


def _rows_of_lines(reader: "csv.DictReader[str]") -> Iterator[RawRow]:
    for cells in reader:
        number = str(reader.line_num)
        extra = [cell for cell in cells.pop(_SURPLUS, None) or [] if cell.strip()]
        if extra:
            columns = len(reader.fieldnames or ())
            yield RawRow(number=number, error=f"there are more cells than the {columns} columns (left over: {', '.join(extra)}). {_QUOTE}")
            continue
        filled = {str(name).strip(): value.strip() for name, value in cells.items() if isinstance(value, str) and value.strip()}
        if not filled:
            continue
        try:
            yield RawRow(number=number, content=_row_of_cells(filled))
        except ValueError as error:
            yield RawRow(number=number, error=str(error))


def _salvage(text: str, cause: Exception) -> Iterator[RawRow]:
    """Decode the objects of a broken list one by one; after one that fails, go on at the next ``}, {``."""
    start = text.find("{")
    if not text.lstrip().startswith("[") or start < 0:
        yield RawRow(number="", error=f"the file is no JSON: {cause}", reason=_NOT_JSON)
        return
    decoder = json.JSONDecoder()
    number = 0
    while start >= 0:
        number += 1
        try:
            content, end = decoder.raw_decode(text, start)
            yield RawRow(number=str(number), content=content)
        except (ValueError, RecursionError) as error:
            what = f"JSON from line {error.lineno} on: {error.msg}" if isinstance(error, json.JSONDecodeError) else f"readable: {error}"
            message = f"not {what}. Rows that stand on their own went in"
            yield RawRow(number=str(number), error=message, reason=_NOT_JSON)
            found = _NEXT_OBJECT.search(text, start)
            end = found.end() if found else len(text)
        start = text.find("{", end)


def _row_of_cells(cells: dict[str, str]) -> dict[str, object]:
    row: dict[str, object] = dict(cells)
    for names, target in _SHORT_FORMS.items():
        if all(name in cells for name in names):
            row[target] = [cells[name] for name in names]
            for name in names:
                del row[name]
    for name in _LISTS & cells.keys():
        row[name] = _split(cells[name])
    for name in _LISTS_OF_PAIRS & cells.keys():
        values = _split(cells[name])
        row[name] = list(zip(values[::2], values[1::2], strict=True)) if len(values) % 2 == 0 else values
    if "extreme_points_ijk" in cells:
        values = _split(cells["extreme_points_ijk"])
        row["extreme_points_ijk"] = [values[n : n + 3] for n in range(0, len(values), 3)]
    if "polygons_xy" in cells:
        row["polygons_xy"] = [_split(part) for part in cells["polygons_xy"].split("|")]
    if cells.get("rle", "").startswith("["):
        row["rle"] = json.loads(cells["rle"])
    return row


def _split(cell: str) -> list[str]:
    """Split numbers at spaces, commas, semicolons and brackets."""
    return [word for word in re.split(r"[\s,;\[\]()]+", cell) if word]
