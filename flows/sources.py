"""The ingest stage: scans first, then what is said about them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.console import Follow
from flows.errors import StageError
from flows.recipe import ClassBlock, IngestBlock
from flows.recipe_channels import channels_of
from flows.results import OTHER_CASES, StageResult, counted
from storage import Archive, ArchiveNotFoundError, ClassInfo, IngestError
from storage.ingest import PromptSummary, check_any, import_labels, import_parts, import_prompts, ingest


def check_source(source: Path, archive: str, *, exclude: Sequence[str] = (), catalog: str | None = None) -> str:
    """Look whether there is anything to bring in, before there is an archive for it.

    Returns:
        Nothing, or that the source holds no image any more: what an archive holds stays, and the scans may have been moved away.

    Raises:
        IngestError: ``source-not-found``, or ``no-images`` while the archive has no case either.
    """
    try:
        check_any(source, exclude=exclude)
    except IngestError as error:
        cases = _case_count(archive, catalog) if error.reason == "no-images" else 0
        if not cases:
            raise
        return f"{source.name} holds no image now; the archive keeps its {counted(cases, 'case', 'cases')}"
    return ""


def _case_count(archive: str, catalog: str | None) -> int:
    try:
        return len(Archive.open(archive, catalog=catalog))
    except ArchiveNotFoundError:
        return 0


def bring_in(archive: Archive, block: IngestBlock, classes: Mapping[int, ClassBlock], follow: Follow) -> StageResult:
    """Read everything that the recipe's ``ingest`` block names.

    Args:
        archive: Where to.
        block: What from.
        classes: The recipe's classes, for the names in the gold label set.
        follow: Draws the bar.

    Raises:
        StageError: if not one row of the prompts or of the split could be used; later stages would only fail less clearly.
    """
    started = time.monotonic()
    summary = ingest(
        archive,
        block.images,
        modality=block.modality,
        patient_from=block.patient_from,
        exclude=block.exclude,
        channels=channels_of(block.channels),
        progress=follow,
    )
    notes = list(summary.remarks)
    if block.split is not None:
        notes += set_parts(archive, block.split)
    if block.gold is not None:
        infos = tuple(ClassInfo(id=key, name=value.name) for key, value in sorted(classes.items()))
        import_labels(archive, block.gold.path, classes=infos, mapping=block.gold.map or None, suffix=block.gold.suffix)
    if block.prompts is not None:
        notes += _prompts(archive, block.prompts, classes)
    problems = archive.catalog.problems()
    refused = sum(each.reason != OTHER_CASES for each in problems)
    if refused:
        notes.append(f"{counted(refused, 'file or row', 'files or rows')} refused")
    if block.gold is not None and not archive.cases(with_labels="gold", limit=1):
        notes.append("WARNING: not one expert label could be used")
    return StageResult(
        stage="ingest",
        done=summary.added + summary.replaced,
        skipped=summary.unchanged,
        quarantined=refused,
        seconds=time.monotonic() - started,
        output=archive.url,
        tally=(patients_told(archive, block.patient_from) if summary.added + summary.replaced else {})
        | ({"files or rows about cases that the archive does not hold": len(problems) - refused} if len(problems) > refused else {}),
        note="; ".join(notes),
    )


def patients_told(archive: Archive, patient_from: str | None) -> dict[str, int]:
    """Count the patients, and say how they were told apart: scores, folds and splits by patient are worth no more than that."""
    records = archive.cases()
    patients, alone = len({record.patient for record in records}), sum(record.patient == record.id for record in records)
    how = " (found in the names of files)" if patient_from is not None else ""
    if patient_from is None and alone:
        how = " (each file is one: ingest.patient_from is not given)" if alone == len(records) else f" ({alone:,} of one file each)"
    return {f"{'patient' if patients == 1 else 'patients'}{how}": patients}


def set_parts(archive: Archive, split: Path) -> list[str]:
    """Set the parts of the cases, and say how many rows of the split name none.

    Raises:
        StageError: if no row does.
    """
    summary = import_parts(archive, split)
    if not summary.unknown:
        return []
    like = next((record.id for record in archive.cases(limit=1)), "")
    example = (
        f"such as {summary.unknown[0]!r}. Cases are called after their files, without the ending{f', such as {like!r}' if like else ''}"
    )
    if len(summary.unknown) == summary.named:
        message = f"none of the {counted(summary.named, 'row', 'rows')} of {split.name} names a case of the archive, {example}."
        raise StageError(message)
    return [f"{len(summary.unknown):,} of {counted(summary.named, 'row', 'rows')} of {split.name} name no case, {example}"]


def _prompts(archive: Archive, path: Path, classes: Mapping[int, ClassBlock]) -> list[str]:
    """Import the prompts, and return what a person should know of them."""
    summary = import_prompts(archive, path, names={value.name: key for key, value in classes.items()})
    if summary.added + summary.unchanged == 0:
        raise StageError(_nothing_usable(path, summary, archive.url))
    return list(summary.notes)


def _nothing_usable(path: Path, summary: PromptSummary, archive: str) -> str:
    if not summary.problems:
        return f"{path.name} holds no prompt, so there is nothing that the teacher could draw. docs/prompts.md shows what goes in."
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.reasons.items())
    return (
        f"none of the prompts of {path.name} can be used ({reasons}), so there is nothing that the teacher could draw. "
        f"The first: {summary.first_problem} All: samdistill inspect {archive}"
    )
