"""Import weak prompts: boxes, points, scribbles and masks that annotators left. Good rows go in, bad rows are recorded."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from storage.archive import Archive
from storage.case import ClassInfo, Prompt
from storage.errors import IngestError
from storage.ingest.bookkeeping import Bookkeeping, source_name
from storage.ingest.discover import walk
from storage.ingest.source import quiet_readers
from storage.ingest.weak_coco import coco_rows, is_coco
from storage.ingest.weak_convert import Converter
from storage.ingest.weak_explain import explain
from storage.ingest.weak_files import RawRow, csv_rows, json_lines, json_rows, read_text
from storage.ingest.weak_schema import ROW
from storage.ingest.weak_sparse import sparse_prompts
from storage.records import ProblemRecord

PromptFormat = Literal["json", "jsonl", "csv", "coco", "sparse"]
_SPARSE = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSummary:
    """What became of the rows of one file."""

    added: int = 0
    """Prompts that are new in the archive."""
    unchanged: int = 0
    """Prompts that were there already."""
    removed: int = 0
    """Prompts that the file said when it was imported before, and says no longer."""
    problems: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a person should know of rows that went in."""
    first_problem: str = ""
    """What was wrong with the first row that did not go in."""


def import_prompts(
    archive: Archive,
    path: Path,
    *,
    format: PromptFormat | None = None,  # noqa: A002 - the word users know
    classes: tuple[ClassInfo, ...] | None = None,
    names: Mapping[str, int] | None = None,
    source: str = "weak",
) -> PromptSummary:
    """Import a file of prompts, or sparse label files. Importing it again changes nothing, or what was changed in the file.

    Args:
        archive: An archive that holds the cases already.
        path: JSON, JSON Lines, CSV or COCO JSON; a NIfTI file or a folder of them means sparse labels.
        format: Which of them, where the ending does not say.
        classes: The classes that rows may speak of; by default any id from 1 to 254.
        names: Class name -> id, for rows that name their class only; ids that are not listed stay allowed.
        source: Name of where the prompts come from; ``catalog.delete_prompts(source=...)`` takes them back.

    Raises:
        IngestError: ``source-not-found`` or ``unknown-format``. A bad row raises nothing: see ``catalog.problems()``.
    """
    if not path.exists():
        raise IngestError("source-not-found", f"there is no file of prompts at {path}.")
    kind = format or _format_of(path)
    folder = path if path.is_dir() else path.parent
    converter = Converter(archive=archive, folder=folder, source=source, classes=classes, names=names or {})
    book = Bookkeeping(archive)
    try:
        with quiet_readers():
            if kind == "sparse":
                files = _sparse_files(path)
                if path.is_dir():
                    book.forget_gone(path, {source_name(file) for file in files}, endings=_SPARSE)
                summaries = [_import_file(book, file, _sparse_outcomes(file, converter), converter) for file in files]
                return _sum(summaries, converter.notes())
            return _import_file(book, path, _row_outcomes(path, kind, converter), converter)
    finally:
        book.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """Prompts of one row, or what is wrong with it."""

    row: str
    prompts: tuple[Prompt, ...] = ()
    reason: str = ""
    message: str = ""
    unread: bool = False
    """Whether there may be prompts that could not be read, so that nobody knows what the file no longer says."""


def _import_file(book: Bookkeeping, path: Path, outcomes: Iterator[_Outcome], converter: Converter) -> PromptSummary:
    """Bring in what a file says, and take back what it said before, in one transaction."""
    catalog, file, source = converter.archive.catalog, _file_key(path), source_name(path)
    problems: list[ProblemRecord] = []
    prompts: list[Prompt] = []
    unread = False
    for outcome in outcomes:
        if outcome.reason:
            problems.append(ProblemRecord(source=source, row=outcome.row, reason=outcome.reason, message=outcome.message))
        prompts.extend(outcome.prompts)
        unread |= outcome.unread
    book.forget_problems([source])
    catalog.record_problems(problems)
    reasons = Counter(problem.reason for problem in problems)
    if unread:
        added, removed = catalog.add_prompts(prompts, file=file), 0
    else:
        added, removed = catalog.replace_prompts(prompts, file=file, source=converter.source)
    return PromptSummary(
        added=added,
        unchanged=len(prompts) - added,
        removed=removed,
        problems=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        notes=converter.notes(),
        first_problem=problems[0].message if problems else "",
    )


def _file_key(path: Path) -> str:
    """Return what the catalog knows a file by: many folders hold a file of one name, and a path may name a patient, so a hash."""
    return hashlib.blake2b(str(path.resolve()).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _sum(summaries: list[PromptSummary], notes: tuple[str, ...]) -> PromptSummary:
    """Add up the files of a folder; the notes are those of all of them, since one converter has read them."""
    reasons = sum((Counter(one.reasons) for one in summaries), Counter[str]())
    return PromptSummary(
        added=sum(one.added for one in summaries),
        unchanged=sum(one.unchanged for one in summaries),
        removed=sum(one.removed for one in summaries),
        problems=sum(one.problems for one in summaries),
        reasons=dict(sorted(reasons.items())),
        notes=notes,
        first_problem=next((one.first_problem for one in summaries if one.first_problem), ""),
    )


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
        for raw in _raw_rows(path, kind, converter):
            yield _convert(path, raw, converter)
    except IngestError as error:
        yield _Outcome(row="", reason=error.reason, message=str(error), unread=True)


def _raw_rows(path: Path, kind: PromptFormat, converter: Converter) -> Iterator[RawRow]:
    text = read_text(path)
    if kind == "csv":
        return csv_rows(text)
    if kind == "jsonl":
        return json_lines(text)
    document = _document(text)
    if is_coco(document):
        return coco_rows(document, path.name, converter.id_of_category)  # type: ignore[arg-type]  # is_coco has looked
    if kind == "coco":
        raise IngestError("malformed-json", f"{path.name}: a COCO file is one JSON object with 'images' and 'annotations'.")
    return json_rows(text)


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # json_rows will find what stands on its own


def _convert(path: Path, raw: RawRow, converter: Converter) -> _Outcome:
    if raw.error:
        return _Outcome(row=raw.number, reason=raw.reason, message=f"{path.name}, row {raw.number or '-'}: {raw.error}.", unread=True)
    try:
        prompts = converter.prompts(ROW.validate_python(raw.content))
    except ValidationError as error:
        message = f"{path.name}, row {raw.number}: {explain(error, raw.content)}. docs/prompts.md shows what a row may hold."
        return _Outcome(row=raw.number, reason="malformed-row", message=message)
    except IngestError as error:
        message = f"{path.name}, row {raw.number}: {error}"
        return _Outcome(row=raw.number, reason=error.reason, message=message, unread=error.reason == "mask-file")
    return _Outcome(row=raw.number, prompts=tuple(prompts))


def _sparse_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in walk(path) if file.name.lower().endswith(_SPARSE))


def _sparse_outcomes(file: Path, converter: Converter) -> Iterator[_Outcome]:
    try:
        yield _Outcome(row="", prompts=tuple(sparse_prompts(file, converter)))
    except IngestError as error:
        yield _Outcome(row="", reason=error.reason, message=str(error), unread=True)
