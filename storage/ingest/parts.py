"""Say which cases are kept for calibration and test. A patient is in one part only."""

import csv
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import cast, get_args

from storage.archive import Archive
from storage.case import CaseRecord, Part
from storage.channels import without_number
from storage.errors import IngestError


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsSummary:
    """How many cases are in which part now, and which named cases are not in the archive."""

    counts: dict[str, int]
    unknown: tuple[str, ...] = ()
    named: int = 0
    """Cases that the file names, known or not."""


def import_parts(archive: Archive, csv_path: Path) -> PartsSummary:
    """Set the part of each case from a CSV with the columns ``case`` and ``part``.

    Raises:
        IngestError: ``bad-parts-file`` if the file cannot be understood, ``patient-in-two-parts`` if any patient would
            end up in two parts; nothing is changed then.
    """
    records = {record.id: record for record in archive.cases()}
    wanted = _read_parts(csv_path, records)
    unknown = tuple(sorted(set(wanted) - set(records)))
    chosen = {case: part for case, part in wanted.items() if case in records}
    merged = [with_changes(record, part=chosen.get(case, record.part)) for case, record in records.items()]
    _check_patients(merged)
    archive.catalog.set_part(chosen)
    return PartsSummary(counts=dict(sorted(Counter(record.part for record in merged).items())), unknown=unknown, named=len(wanted))


def _read_parts(path: Path, known: Container[str]) -> dict[str, Part]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IngestError("bad-parts-file", f"{path}: the file cannot be read ({error}).") from error
    parts: dict[str, Part] = {}
    for number, row in enumerate(rows, start=2):
        case, part = (row.get("case") or "").strip(), (row.get("part") or "").strip()
        if not case or part not in get_args(Part):
            message = f"{path.name}, line {number}: case {case!r} has part {part!r}; the columns case and part are needed, part one of {get_args(Part)}."
            raise IngestError("bad-parts-file", message)
        case = case if case in known or without_number(case) not in known else without_number(case)
        if parts.get(case, part) != part:
            message = (
                f"{path.name}, line {number}: case {case} is in part {parts[case]} on an earlier line and in {part} here. Keep one line."
            )
            raise IngestError("bad-parts-file", message)
        parts[case] = cast("Part", part)
    return parts


def _check_patients(records: list[CaseRecord]) -> None:
    """Refuse a split that runs through a patient.

    Raises:
        IngestError: ``patient-in-two-parts``.
    """
    cases: dict[str, dict[str, str]] = {}
    for record in records:
        cases.setdefault(record.patient, {}).setdefault(record.part, record.id)
    split = {patient: found for patient, found in cases.items() if len(found) > 1}
    if split:
        patient, found = min(split.items())
        shown = ", ".join(f"case {case} in {part}" for part, case in sorted(found.items()))
        message = (
            f"{len(split)} patients would have cases in two parts, for example {patient}: {shown}. Scores on a patient seen in training are "
            "too good; put all cases of a patient in one part."
        )
        raise IngestError("patient-in-two-parts", message)
