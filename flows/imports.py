"""Single commands that bring things into an archive, or out of it."""

import time
from collections.abc import Sequence
from pathlib import Path

from flows.console import BARS, Follow
from flows.errors import StageError
from flows.places import check_writable
from flows.results import StageResult
from storage import Archive, Part
from storage.store import local_path
from storage.wording import check_modality, check_pattern


def ingest_folder(
    source: Path, archive_url: str, *, modality: str | None, patient_from: str | None, split: Path | None, catalog: str | None
) -> StageResult:
    """Copy scans into an archive, and set their parts if a split is given; what cannot work is said before there is an archive."""
    from flows.sources import check_source, set_parts
    from storage.ingest import ingest as ingest_scans

    started = time.monotonic()
    modality, patient_from = check_modality(modality), check_pattern(patient_from)
    found = check_source(source, archive_url, catalog=catalog)
    place = local_path(archive_url)
    if place is not None:
        check_writable(place, "the archive")
    archive = Archive.open_or_create(archive_url, catalog=catalog)
    with BARS.shown():
        summary = ingest_scans(archive, source, modality=modality, patient_from=patient_from, progress=Follow("ingest"))
    notes = [*([found] if found else []), *(set_parts(archive, split) if split is not None else [])]
    return StageResult(
        stage="ingest",
        done=summary.added + summary.replaced,
        skipped=summary.unchanged,
        quarantined=summary.problems,
        seconds=time.monotonic() - started,
        output=archive.url,
        tally=summary.reasons,
        note="; ".join(notes),
    )


def import_prompt_file(file: Path, archive_url: str, *, source: str, catalog: str | None) -> StageResult:
    """Read a file of prompts into an archive that is there."""
    from storage.ingest import import_prompts

    started = time.monotonic()
    archive = Archive.open(archive_url, catalog=catalog)
    summary = import_prompts(archive, file, source=source)
    return StageResult(
        stage="prompts",
        done=summary.added,
        skipped=summary.unchanged,
        quarantined=summary.problems,
        seconds=time.monotonic() - started,
        output=archive.url,
        tally=summary.reasons,
        note="; ".join(summary.notes),
    )


def export_nifti(archive_url: str, out: Path, *, label_set: str, part: Part | None, images: bool, catalog: str | None) -> StageResult:
    """Write one label set of an archive as NIfTI files, in the geometry the scans came with.

    Raises:
        StageError: if no case carries the label set, the folder cannot be written to, or a file that no export wrote would be lost;
            nothing is written then.
    """
    from storage.export.nifti import export_image, export_labels

    started = time.monotonic()
    archive = Archive.open(archive_url, catalog=catalog, mode="r")
    records = archive.cases(part=part, with_labels=label_set)
    if not records:
        known = ", ".join(sorted(archive.catalog.count_label_sets())) or "none yet"
        message = f"no case of {archive_url} carries the label set {label_set!r}{f' in part {part}' if part else ''}. It holds: {known}."
        raise StageError(message)
    check_writable(out, "the labels")
    names = [f"{record.id}.nii.gz" for record in records]
    _check_replaceable([out / folder / name for folder in ("labels", "images")[: 1 + images] for name in names])
    with BARS.shown():
        for n, (record, name) in enumerate(zip(records, names, strict=True)):
            export_labels(archive[record.id], label_set, out / "labels" / name)
            if images:
                export_image(archive[record.id], out / "images" / name)
            Follow("export")(n + 1, len(records))
    return StageResult(stage="export", done=len(records), seconds=time.monotonic() - started, output=str(out))


def _check_replaceable(targets: Sequence[Path]) -> None:
    """Refuse to write over scans and labels of somebody else, which often lie in folders of the same names.

    Raises:
        StageError: naming the first.
    """
    from storage.export.nifti import is_export

    strangers = [target for target in targets if target.exists() and not is_export(target)]
    if strangers:
        more = f", and {len(strangers) - 1:,} more" if len(strangers) > 1 else ""
        message = f"{strangers[0]} would be lost{more}: no 'samdistill export' wrote it. Name another folder: -o FOLDER."
        raise StageError(message)
