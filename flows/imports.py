"""Single commands that bring things into an archive, or out of it."""

import time
from collections.abc import Sequence
from pathlib import Path

from flows.console import BARS, Follow
from flows.errors import StageError
from flows.places import check_writable
from flows.results import StageResult, counted
from storage import Archive, Case, CaseRecord, Part
from storage.store import local_path
from storage.wording import check_modality, check_pattern


def ingest_folder(
    source: Path,
    archive_url: str,
    *,
    modality: str | None,
    patient_from: str | None,
    split: Path | None,
    catalog: str | None,
    channels: str | None = None,
) -> StageResult:
    """Copy scans into an archive, and set their parts if a split is given; what cannot work is said before there is an archive."""
    from flows.recipe_channels import channels_from_words
    from flows.sources import check_source, patients_told, set_parts
    from storage.ingest import ingest as ingest_scans

    started = time.monotonic()
    modality, patient_from, wanted = check_modality(modality), check_pattern(patient_from), channels_from_words(channels)
    found = check_source(source, archive_url, catalog=catalog)
    place = local_path(archive_url)
    if place is not None:
        check_writable(place, "the archive")
    archive = Archive.open_or_create(archive_url, catalog=catalog)
    with BARS.shown():
        summary = ingest_scans(archive, source, modality=modality, patient_from=patient_from, channels=wanted, progress=Follow("ingest"))
    notes = [*([found] if found else []), *summary.remarks, *(set_parts(archive, split) if split is not None else [])]
    return StageResult(
        stage="ingest",
        done=summary.added + summary.replaced,
        skipped=summary.unchanged,
        quarantined=summary.problems,
        seconds=time.monotonic() - started,
        output=archive.url,
        tally={**(patients_told(archive, patient_from) if summary.added + summary.replaced else {}), **summary.reasons},
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


def export_files(
    archive_url: str, out: Path, *, label_set: str, part: Part | None, images: bool, catalog: str | None, nifti: bool = False
) -> StageResult:
    """Write one label set of an archive as files, as the scans came: NIfTI in their geometry, and PNG of pictures, unless all is to be NIfTI.

    Raises:
        StageError: if no case carries the label set, the folder cannot be written to, or a file that no export wrote would be lost;
            nothing is written then.
    """
    started = time.monotonic()
    archive = Archive.open(archive_url, catalog=catalog, mode="r")
    records = archive.cases(part=part, with_labels=label_set)
    if not records:
        known = ", ".join(sorted(archive.catalog.count_label_sets())) or "none yet"
        message = f"no case of {archive_url} carries the label set {label_set!r}{f' in part {part}' if part else ''}. It holds: {known}."
        raise StageError(message)
    check_writable(out, "the labels")
    targets = [_targets(record, out, images=images, nifti=nifti) for record in records]
    _check_replaceable([target for each in targets for target in each])
    with BARS.shown():
        for n, (record, each) in enumerate(zip(records, targets, strict=True)):
            _write(archive[record.id], label_set, *each)
            _remove_other_form(each)
            Follow("export")(n + 1, len(records))
    flat = sum(each[0].suffix == ".png" for each in targets)
    note = f"{counted(flat, 'picture', 'pictures')} as PNG, whose grey values are class ids, so labels look black; --to nifti writes NIfTI"
    return StageResult(stage="export", done=len(records), seconds=time.monotonic() - started, output=str(out), note=note if flat else "")


def _targets(record: CaseRecord, out: Path, *, images: bool, nifti: bool) -> tuple[Path, ...]:
    """Return where the labels of a case go, and then its image, if that is wanted too."""
    from storage.export.png import fits_png, is_picture

    labels, image = (".png" if fits and not nifti else ".nii.gz" for fits in (is_picture(record), fits_png(record)))
    return (out / "labels" / f"{record.id}{labels}", *([out / "images" / f"{record.id}{image}"] if images else []))


def _write(case: Case, label_set: str, labels: Path, image: Path | None = None) -> None:
    from storage.export.nifti import export_image, export_labels
    from storage.export.png import export_png_image, export_png_labels

    (export_png_labels if labels.suffix == ".png" else export_labels)(case, label_set, labels)
    if image is not None:
        (export_png_image if image.suffix == ".png" else export_image)(case, image)


def _remove_other_form(written: Sequence[Path]) -> None:
    """Take away what an earlier export wrote of the same as NIfTI, where it is PNG now, or the other way round; files of somebody else stay."""
    for each in written:
        was, now = (".nii.gz", ".png") if each.suffix == ".png" else (".png", ".nii.gz")
        other = each.with_name(each.name.removesuffix(now) + was)
        if other.is_file() and _is_own(other):
            other.unlink()


def _check_replaceable(targets: Sequence[Path]) -> None:
    """Refuse to write over scans and labels of somebody else, which often lie in folders of the same names.

    Raises:
        StageError: naming the first.
    """
    strangers = [each for each in targets if each.exists() and not _is_own(each)]
    if strangers:
        more = f", and {len(strangers) - 1:,} more" if len(strangers) > 1 else ""
        message = f"{strangers[0]} would be lost{more}: no 'samdistill export' wrote it. Name another folder: -o FOLDER."
        raise StageError(message)


def _is_own(path: Path) -> bool:
    """Tell whether an export wrote this file."""
    from storage.export.nifti import is_export
    from storage.export.png import is_png_export

    return (is_png_export if path.suffix == ".png" else is_export)(path)
