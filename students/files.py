"""Use a student on scans in files: one answer beside the others for each, and a bad file does not stop the rest."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from storage.case import Channel, Geometry
from storage.errors import IngestError, InvalidCaseError
from storage.export.dicom_seg import MadeBy, obstacle, write_dicom_seg
from storage.export.nifti import write_nifti
from storage.ingest.dicom import order_slices
from storage.ingest.source import SourceCase, quiet_readers
from students.checkpoint import weights_digest
from students.errors import VolumeError
from students.predict import Student
from students.scans import Scan, find_scans


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePrediction:
    """What became of one scan."""

    source: str
    """Name of the file below the given folder, or pseudonym of a DICOM series."""
    output: Path | None
    problem: str
    """Why there is no output; empty when there is one."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What was put right on the way in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePredictions:
    """What became of all of them."""

    scans: tuple[FilePrediction, ...]
    passed_over: tuple[str, ...]
    """Files in the folders that are no scans, where these hold no DICOM."""
    unnamed: tuple[tuple[str, int], ...] = ()
    """Kind and number of what else was passed over beside DICOM: localizers, reports and segmentations, other files."""
    private_list: Path | None = None
    """Says which DICOM pseudonym is which file, where there are any."""


def predict_files(
    student: Student,
    paths: Iterable[str | Path],
    out: str | Path,
    progress: Callable[[FilePrediction, int], None] | None = None,
    *,
    largest_component: bool = False,
    nifti_only: bool = False,
    channels: Sequence[Channel] | None = None,
) -> FilePredictions:
    """Segment NIfTI, DICOM, PNG, JPEG and TIFF scans, each with the geometry it came with.

    Args:
        student: Who answers.
        paths: Files, and folders that are searched with all that is below them.
        out: Folder for the answers; below it they lie as their scans do. A volume becomes ``NAME.nii.gz``, and a picture of one slice
            ``NAME.png``, an 8-bit grey image of the same size whose values are class ids (so it looks black). A DICOM series becomes
            DICOM SEG, ``NAME.dcm``, or NIfTI with a note where its headers lack what that needs; ``NAME`` is a pseudonym, and ``OUT.dicom-names.csv``
            beside the folder says which is which, for its owner only. The segmentation itself names the patient as the series does, and
            is its owner's only too. No answer takes the place of a scan, nor of any other file that already lies in the folder of its scan.
        progress: Called after each scan, with the number of all.
        largest_component: As in `Student.predict`.
        nifti_only: Write NIfTI for pictures and DICOM series too.
        channels: Where the files of each channel are called otherwise here than those that the student learnt from: the same channels with
            other suffixes. A scan of several channels answers as ``NAME``, without what tells its files apart.

    Returns:
        One record per scan, in the order of their names, those that could not be segmented among them with the reason.

    Raises:
        VolumeError: if ``channels`` are not those of the student.
    """
    seen = _seen_channels(student, channels)
    # Absolute and without dots, since it must have a name: the private list is called after it.
    folder = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow links, and absolute() keeps "."
    done: list[FilePrediction] = []

    def note(record: FilePrediction) -> None:
        done.append(record)
        if progress:
            progress(record, total)

    taken: set[Path] = set()
    with quiet_readers():
        found = find_scans(paths, folder, seen)
        total = len(found.refused) + len(found.scans)
        for source, reason in found.refused:
            note(FilePrediction(source=source, output=None, problem=reason, seconds=0.0))
        given = {path.resolve() for scan in found.scans if scan.path is not None for path in (scan.path, *scan.others)}
        for scan in found.scans:
            note(_predict_scan(student, scan, taken, given, largest_component=largest_component, nifti_only=nifti_only))
    return FilePredictions(
        scans=tuple(done),
        passed_over=tuple(found.passed_over),
        unnamed=tuple(sorted(found.unnamed.items())),
        private_list=found.private_list,
    )


def _seen_channels(student: Student, channels: Sequence[Channel] | None) -> tuple[Channel, ...]:
    """Return the channels that files are looked for, in the order in which the student sees them.

    Raises:
        VolumeError: if others are named than the student sees.
    """
    own = student.card.channels
    if channels is None:
        return own
    count = student.card.plan.image_channels
    by_name = {channel.name: channel for channel in channels}
    if not own and len(channels) == count:
        return tuple(channels)
    if sorted(by_name) != sorted(channel.name for channel in own):
        message = f"student {student.name} sees {student.card.channel_words}, but {', '.join(by_name) or 'none'} are named. Name the same, with what their files end in."
        raise VolumeError(message)
    return tuple(by_name[channel.name] for channel in own)


def _predict_scan(
    student: Student, scan: Scan, taken: set[Path], given: AbstractSet[Path], *, largest_component: bool, nifti_only: bool
) -> FilePrediction:
    """Read, ask, write; every way of failing becomes a reason."""
    started = time.perf_counter()
    target, problem, notes = scan.target, "", tuple[str, ...]()
    try:
        source = scan.read()
        ending, remark = (".nii.gz", "") if nifti_only else _own_format(scan, source)
        target = scan.target.with_name(scan.target.name + ending)
        _check_free(target, scan, taken, given)
        geometry = source.record.geometry
        labels = student.predict(source.image_czyx, geometry.spacing_zyx_mm, largest_component=largest_component).labels
        if ending == ".dcm":
            target, remark = _write_seg(student, scan, labels, geometry, target)
        elif ending == ".png":
            write_label_png(labels, target)
        else:
            write_nifti(labels, geometry, target)
        taken.add(target)
        notes = (
            *(each.replace("case scan", scan.name) for each in source.notes),
            *([remark] if remark else []),
            *_unlike(student, scan, source),
        )
    except (IngestError, InvalidCaseError, VolumeError) as error:
        said = str(error).replace("then ingest again", "then predict again")
        problem = said if said.startswith((scan.name, "DICOM", "case ")) else f"{scan.name}: {said}"
    except Exception as error:  # noqa: BLE001 - codecs and full disks raise anything; one scan must not stop the others
        # Only the type: the messages of DICOM readers quote headers.
        problem = f"{scan.name}: {type(error).__name__} while it was segmented{f' ({error})' if scan.path else ''}."
    output = None if problem else target
    return FilePrediction(source=scan.name, output=output, problem=problem, seconds=time.perf_counter() - started, notes=notes)


def _unlike(student: Student, scan: Scan, source: SourceCase) -> tuple[str, ...]:
    """Say in which way a scan is plainly none of those that the student learnt from."""
    card, said = student.card, list[str]()
    if card.plan.dimensions == "3d" and source.record.shape_czyx[1] == 1:
        said.append("a single slice, but the student learnt from volumes")
    if not source.record.geometry.spacing_known and card.spacing_known is True and any(mm != 1.0 for mm in card.plan.spacing_zyx_mm[1:]):
        said.append("without a spacing and read as if a pixel were 1 mm, but the student learnt at another")
    return (f"WARNING: {scan.name} is {', and '.join(said)}: do not rely on the answer.",) if said else ()


def _own_format(scan: Scan, source: SourceCase) -> tuple[str, str]:
    """Return the ending of the format that a scan came in, and why it is not taken, where it is not."""
    if scan.series is not None:
        lacking = obstacle(_slices(scan))
        return (".nii.gz", f"{scan.name}: written as NIfTI, not as DICOM SEG, since {lacking}.") if lacking else (".dcm", "")
    return (".png", "") if scan.picture and source.record.shape_czyx[1] == 1 else (".nii.gz", "")


def _write_seg(student: Student, scan: Scan, labels: UInt8[np.ndarray, "z y x"], geometry: Geometry, target: Path) -> tuple[Path, str]:
    """Write DICOM SEG, or NIfTI where the headers do not allow it; return where, and why it is NIfTI."""
    made_by = MadeBy(name=student.name, version=weights_digest(student.path), program_version=f"samdistill {version('samdistill')}")
    try:
        write_dicom_seg(labels, _slices(scan), student.card.classes, made_by, target)
    except InvalidCaseError as error:
        other = target.with_suffix(".nii.gz")
        write_nifti(labels, geometry, other)
        return other, f"{scan.name}: written as NIfTI, since {error}."
    return target, ""


def _slices(scan: Scan) -> list[Path]:
    """Return the files of a DICOM series in the order of the volume's slices."""
    return [] if scan.series is None else [header.path for header in order_slices(scan.series).slices]


def _check_free(target: Path, scan: Scan, taken: set[Path], given: AbstractSet[Path]) -> None:
    """Refuse to write over another answer of this run, over a scan, or over what lies beside the scan already.

    Args:
        target: Where the answer would go.
        scan: What it answers.
        taken: Targets of this run that are written.
        given: Every file that is a scan of this run, links followed.

    Raises:
        VolumeError: saying what would be lost.
    """
    beside = scan.path is not None and target.exists() and target.parent.resolve() == scan.path.parent.resolve()
    if beside or target in taken or target.resolve() in given:
        message = f"its output {target} would overwrite another file. Give another folder, or rename one."
        raise VolumeError(message)


def write_label_png(labels_zyx: UInt8[np.ndarray, "1 y x"], path: Path) -> None:
    """Write one slice of class ids as an 8-bit grey PNG; readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid4().hex}.png")
    try:
        Image.fromarray(labels_zyx[0]).save(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
