"""Import weak prompts: boxes, points, scribbles and masks that annotators left. Good rows go in, bad rows are recorded."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from storage.archive import Archive
from storage.case import ClassInfo, Prompt
from storage.errors import IngestError
from storage.ingest.bookkeeping import Bookkeeping
from storage.ingest.source import quiet_readers
from storage.ingest.weak_coco import coco_rows, is_coco
from storage.ingest.weak_convert import Converter
from storage.ingest.weak_files import RawRow, csv_rows, json_lines, json_rows, read_text
from storage.ingest.weak_schema import ROW
from storage.ingest.weak_sparse import sparse_prompts

PromptFormat = Literal["json", "jsonl", "csv", "coco", "sparse"]
_BATCH = 2000
"""Prompts written in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSummary:
    """What became of the rows of one file."""

    added: int = 0
    """Prompts that are new in the archive."""
    unchanged: int = 0
    """Prompts that were there already."""
    problems: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def import_prompts(
    archive: Archive,
    path: Path,
    *,
    format: PromptFormat | None = None,  # noqa: A002 - the word users know
    classes: tuple[ClassInfo, ...] | None = None,
    source: str = "weak",
) -> PromptSummary:
    """Import a file of prompts, or sparse label files; importing it again changes nothing.

    Args:
        archive: An archive that holds the cases already.
        path: JSON, JSON Lines, CSV or COCO JSON; a NIfTI file or a folder of them means sparse labels.
        format: Which of them, where the ending does not say.
        classes: The classes that rows may speak of; by default any id from 1 to 254.
        source: Name of where the prompts come from; ``catalog.delete_prompts(source=...)`` takes them back.

    Raises:
        IngestError: ``source-not-found`` or ``unknown-format``. A bad row raises nothing: see ``catalog.problems()``.
    """
    if not path.exists():
        raise IngestError("source-not-found", f"there is no file of prompts at {path}.")
    kind = format or _format_of(path)
    folder = path if path.is_dir() else path.parent
    converter = Converter(archive=archive, folder=folder, source=source, classes=classes)
    book = Bookkeeping(archive)
    try:
        with quiet_readers():
            if kind == "sparse":
                return _import_all(archive, book, _sparse_outcomes(path, converter), _sparse_files(path))
            return _import_all(archive, book, _row_outcomes(path, kind, converter), [path])
    finally:
        book.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """Prompts of one row, or what is wrong with it."""

    source: Path
    row: str
    prompts: tuple[Prompt, ...] = ()
    reason: str = ""
    message: str = ""


def _import_all(archive: Archive, book: Bookkeeping, outcomes: Iterable[_Outcome], files: list[Path]) -> PromptSummary:
    book.forget_problems(str(file) for file in files)
    reasons: Counter[str] = Counter()
    waiting: list[Prompt] = []
    added = total = 0
    for outcome in outcomes:
        if outcome.reason:
            reasons[outcome.reason] += 1
            archive.catalog.record_problem(str(outcome.source), outcome.row, outcome.reason, outcome.message)
        waiting.extend(outcome.prompts)
        total += len(outcome.prompts)
        if len(waiting) >= _BATCH:
            added += archive.catalog.add_prompts(waiting)
            waiting = []
    added += archive.catalog.add_prompts(waiting)
    return PromptSummary(added=added, unchanged=total - added, problems=sum(reasons.values()), reasons=dict(sorted(reasons.items())))


def _format_of(path: Path) -> PromptFormat:
    name = path.name.lower()
    endings: dict[str, PromptFormat] = {
        ".csv": "csv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "json",
        ".nii": "sparse",
        ".nii.gz": "sparse",
    }
    for ending, kind in endings.items():
        if name.endswith(ending):
            return kind
    if path.is_dir():
        return "sparse"
    message = f"{path.name}: the ending does not say what it is. Name the format: json, jsonl, csv, coco or sparse."
    raise IngestError("unknown-format", message)


def _row_outcomes(path: Path, kind: PromptFormat, converter: Converter) -> Iterator[_Outcome]:
    try:
        for raw in _raw_rows(path, kind):
            yield _convert(path, raw, converter)
    except IngestError as error:
        yield _Outcome(source=path, row="", reason=error.reason, message=str(error))


def _raw_rows(path: Path, kind: PromptFormat) -> Iterator[RawRow]:
    text = read_text(path)
    if kind == "csv":
        return csv_rows(text)
    if kind == "jsonl":
        return json_lines(text)
    document = _document(text)
    if is_coco(document):
        return coco_rows(document, path.name)  # type: ignore[arg-type]  # is_coco has looked
    if kind == "coco":
        raise IngestError("malformed-json", f"{path.name}: a COCO file is one JSON object with 'images' and 'annotations'.")
    return json_rows(text)


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None  # json_rows will find what stands on its own


def _convert(path: Path, raw: RawRow, converter: Converter) -> _Outcome:
    if raw.error:
        slug = "malformed-row" if raw.number else "malformed-json"
        return _Outcome(source=path, row=raw.number, reason=slug, message=f"{path.name}, row {raw.number or '-'}: {raw.error}.")
    try:
        prompts = converter.prompts(ROW.validate_python(raw.content))
    except ValidationError as error:
        message = f"{path.name}, row {raw.number}: {_explain(error)}. docs/prompts.md shows what a row may hold."
        return _Outcome(source=path, row=raw.number, reason="malformed-row", message=message)
    except IngestError as error:
        return _Outcome(source=path, row=raw.number, reason=error.reason, message=f"{path.name}, row {raw.number}: {error}")
    return _Outcome(source=path, row=raw.number, prompts=tuple(prompts))


def _explain(error: ValidationError) -> str:
    """Name the first fault in one clause, without the link that pydantic adds."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _sparse_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.name.lower().endswith((".nii", ".nii.gz")))


def _sparse_outcomes(path: Path, converter: Converter) -> Iterator[_Outcome]:
    for file in _sparse_files(path):
        try:
            prompts = sparse_prompts(file, converter)
        except IngestError as error:
            yield _Outcome(source=file, row="", reason=error.reason, message=str(error))
        else:
            yield _Outcome(source=file, row="", prompts=tuple(prompts))
