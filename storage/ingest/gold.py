"""Bring label files that experts drew into the archive."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from storage import Archive, Case
from storage.case import IGNORE, CaseRecord, ClassInfo, LabelHistory
from storage.channels import without_number
from storage.errors import IngestError, LedgerError
from storage.heartbeat import beating
from storage.ingest.bookkeeping import PROBLEM_NOTE, Bookkeeping, source_name
from storage.ingest.discover import FoundFile, find_files
from storage.ingest.images import read_label_image
from storage.ingest.nifti import read_label_nifti
from storage.ingest.source import case_id_from_name, quiet_readers
from storage.ledger import fingerprint
from storage.wording import ABOVE_ZERO

STAGE = "gold"
MADE_BY = "storage.ingest.gold"
_FINE = frozenset({"added", "elsewhere"})
_AFFINE_TOLERANCE_MM = 1e-3
"""Two programs that write one affine as float32 differ by up to 1e-4 mm at the edge of a body; a shift of one voxel is 1000 times that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldSummary:
    """What became of the label files of one folder."""

    added: int = 0
    unchanged: int = 0
    problems: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def import_labels(
    archive: Archive,
    folder: Path,
    *,
    classes: tuple[ClassInfo, ...],
    label_set: str = "gold",
    mapping: Mapping[int, int] | Mapping[int | str, int] | None = None,
    suffix: str = "",
) -> GoldSummary:
    """Import every label file of a folder that is named like a case; safe to run again.

    Args:
        archive: An archive that holds the images already.
        folder: NIfTI or PNG files (or one file).
        classes: The classes of the label set.
        label_set: Its name.
        mapping: Value in the files -> class id (0 background, 255 ignore), for example ``{1: 1, 2: 1}`` to merge two classes. ``"above 0"`` is
            every value above 0 that is not named beside it, 255 too: ``{"above 0": 1}`` takes nuclei that are numbered 1, 2, 3, ... as class 1.
            By default values are class ids.
        suffix: What follows the case id in the file names, such as ``_1stHO``; other files are passed over.

    Raises:
        IngestError: ``source-not-found``, ``unknown-class`` if the mapping leads to an id that is none of the classes', or ``bad-mapping`` if
            it names a value that is no number. A bad file raises nothing: see ``catalog.problems()``.
    """
    given = dict[int | str, int]()
    given.update((mapping or {info.id: info.id for info in classes}).items())
    _check_mapping(given, classes)
    plan = _LabelPlan(
        classes=classes,
        label_set=label_set,
        mapping={value: target for value, target in given.items() if not isinstance(value, str)},
        above_zero=given.get(ABOVE_ZERO),
        suffix=suffix,
    )
    files = {file.name: file for file in find_files(folder) if file.kind != "dicom" and case_id_from_name(file.name).endswith(suffix)}
    book = Bookkeeping(archive)
    try:
        with quiet_readers(), beating(archive.ledger):
            if folder.is_dir():
                book.forget_gone(folder, {source_name(file.path) for file in files.values()}, row=plan.row)
            reasons, due = _plan(archive, book, list(files.values()), plan)
            outcomes = Counter(_import_one(archive, book, task, plan) for task in due.values())
        reasons += Counter({slug: count for slug, count in outcomes.items() if slug not in _FINE})
    finally:
        book.close()
    added = outcomes["added"]
    unchanged = len(files) - added - outcomes["elsewhere"] - reasons.total()
    return GoldSummary(added=added, unchanged=unchanged, problems=reasons.total(), reasons=dict(sorted(reasons.items())))


def _check_mapping(mapping: Mapping[int | str, int], classes: Sequence[ClassInfo]) -> None:
    if words := [value for value in mapping if isinstance(value, str) and value != ABOVE_ZERO]:
        message = f"the mapping of label values names {words[0]!r}, which is no value: give whole numbers, and {ABOVE_ZERO!r} for all others above 0."
        raise IngestError("bad-mapping", message)
    known = {0, IGNORE} | {info.id for info in classes}
    strangers = {value: target for value, target in mapping.items() if target not in known}
    if strangers:
        message = f"the mapping of label values leads to no class: {strangers}. Classes: {sorted(known - {0, IGNORE})}; 0 is background, {IGNORE} ignore."
        raise IngestError("unknown-class", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelPlan:
    """The choices of one import, as they enter its fingerprints."""

    classes: tuple[ClassInfo, ...]
    label_set: str
    mapping: dict[int, int]
    above_zero: int | None
    """Class of the values above 0 that the mapping does not name; None where each value must be named."""
    suffix: str

    @property
    def stage(self) -> str:
        """Each label set has units of its own, named by case."""
        return STAGE if self.label_set == "gold" else f"{STAGE}/{self.label_set}"

    @property
    def row(self) -> str:
        """Under which problems of its files are kept."""
        return f"label set {self.label_set}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelTask:
    """One label file that belongs to a case."""

    case: str
    path: Path
    source: str
    row: str
    fingerprint: str


def _plan(archive: Archive, book: Bookkeeping, files: Sequence[FoundFile], plan: _LabelPlan) -> tuple[Counter[str], dict[str, _LabelTask]]:
    """Pair files with cases; return the problems found so far, old and new, and the tasks that are due."""
    reasons: Counter[str] = Counter()
    tasks: dict[str, _LabelTask] = {}
    for file in files:
        source, case = source_name(file.path), case_id_from_name(file.name).removesuffix(plan.suffix)
        record = archive.catalog.find_case(case) or archive.catalog.find_case(without_number(case))
        case = case if record is None else record.id
        if record is None or case in tasks:
            reason = "unknown-case" if record is None else "duplicate-case-id"
            message = (
                f"{file.name}: the archive holds no case {case!r}." if record is None else f"{file.name}: another file labels case {case}."
            )
            book.replace_problem(source, plan.row, reason, f"{message} Label files are named like the case they belong to.")
            reasons[reason] += 1
            continue
        print_ = fingerprint(
            state=file.state,
            name=source,
            case=record.fingerprint,
            classes=plan.classes,
            mapping=sorted(plan.mapping.items()),
            **({} if plan.above_zero is None else {"above_zero": plan.above_zero}),
        )
        tasks[case] = _LabelTask(case=case, path=file.path, source=source, row=plan.row, fingerprint=print_)
    due = archive.ledger.plan(plan.stage, {task.case: task.fingerprint for task in tasks.values()})
    notes = {unit: seen.note for unit, seen in book.seen(plan.stage).items() if unit in tasks and unit not in due}
    reasons.update(note.removeprefix(f"{PROBLEM_NOTE}: ") for note in notes.values() if note.startswith(PROBLEM_NOTE))
    return reasons, {case: tasks[case] for case in due}


def _import_one(archive: Archive, book: Bookkeeping, task: _LabelTask, plan: _LabelPlan) -> str:
    """Import one file, and return what became of it, or the slug of its problem; another run may have it, or take it meanwhile."""
    if not archive.ledger.claim(plan.stage, task.case):
        return "elsewhere"
    try:
        return _import_claimed(archive, book, task, plan)
    except LedgerError:
        return "elsewhere"


def _import_claimed(archive: Archive, book: Bookkeeping, task: _LabelTask, plan: _LabelPlan) -> str:
    try:
        case = archive[task.case]
        _write(case, read_labels_for(case.record, task.path), plan, task.fingerprint)
    except IngestError as error:
        book.replace_problem(task.source, task.row, error.reason, str(error))
        archive.ledger.done(plan.stage, task.case, note=f"{PROBLEM_NOTE}: {error.reason}")
        return error.reason
    except Exception as error:  # noqa: BLE001 - a full disk or a lost network: this file is tried again, the others go on
        message = f"case {task.case}: {type(error).__name__} while its labels were brought in. They are tried again on the next run."
        book.replace_problem(task.source, task.row, "unexpected-error", message)
        archive.ledger.fail(plan.stage, task.case, error)
        return "unexpected-error"
    book.forget_problems([task.source])
    archive.ledger.done(plan.stage, task.case)
    return "added"


def read_labels_for(record: CaseRecord, path: Path) -> Integer[np.ndarray, "z y x"]:
    """Read a label file and check that it lies where the case lies; axes stored in another order or direction are put right.

    Raises:
        IngestError: ``label-geometry-mismatch``, or what reading the file finds.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        expected = np.array(record.geometry.affine)
        labels, affine = _turned_like(expected, *read_label_nifti(path))
        # An image without orientation has a made-up affine; only the grid can be compared.
        placed = not record.geometry.nifti and not record.geometry.spacing_known
        same_place = placed or np.allclose(affine, expected, rtol=1e-5, atol=_AFFINE_TOLERANCE_MM)
    else:
        labels, same_place, affine, expected = read_label_image(path), True, np.eye(4), np.eye(4)
    if labels.shape != record.shape_czyx[1:]:
        message = (
            f"case {record.id}: the labels in {path.name} have the shape {labels.shape} (z, y, x), but the image {record.shape_czyx[1:]}. "
            "They were drawn on another image, or one of the two was resampled."
        )
        raise IngestError("label-geometry-mismatch", message)
    if not same_place:
        message = (
            f"case {record.id}: the labels in {path.name} lie elsewhere: affine {affine.round(4).tolist()}, but the image has "
            f"{expected.round(4).tolist()}. One of the two was flipped, cropped or resampled; resample the labels onto the image."
        )
        raise IngestError("label-geometry-mismatch", message)
    return labels


def _turned_like(
    affine: np.ndarray, labels: Integer[np.ndarray, "z y x"], label_affine: np.ndarray
) -> tuple[Integer[np.ndarray, "z2 y2 x2"], np.ndarray]:
    """Reorder and flip axes of labels as the image has them, moving no voxel in space: converters of DICOM flip rows, for example."""
    turn = ornt_transform(io_orientation(label_affine), io_orientation(affine))
    turned = apply_orientation(labels.T, turn)
    return turned.T, label_affine @ inv_ornt_aff(turn, labels.T.shape)


def _write(case: Case, labels: Integer[np.ndarray, "z y x"], plan: _LabelPlan, print_: str) -> None:
    meant: dict[str, str | float | int | bool | list[float]] = {f"value_{value}": target for value, target in sorted(plan.mapping.items())}
    if plan.above_zero is not None:
        meant[f"value_{ABOVE_ZERO.replace(' ', '_')}"] = plan.above_zero
    history = LabelHistory(
        label_set=plan.label_set,
        classes=plan.classes,
        made_by=MADE_BY,
        prompt_source="expert",
        parameters=meant,
        round=0,
        fingerprint=print_,
    )
    case.write_labels(history, _mapped(case.id, labels, plan))


def _mapped(case: str, labels: Integer[np.ndarray, "z y x"], plan: _LabelPlan) -> UInt8[np.ndarray, "z y x"]:
    full, present = {0: 0, IGNORE: IGNORE} | plan.mapping, [int(value) for value in np.unique(labels)]
    if plan.above_zero is not None:  # 255 is a number like any other then
        full = {value: plan.above_zero for value in present if value > 0} | {0: 0} | plan.mapping
    strangers = [value for value in present if value not in full]
    if strangers:
        message = (
            f"case {case}: the label file holds the values {strangers[:8]}{' and more' if len(strangers) > 8 else ''}, which stand for no class. "
            f"Known: {sorted(full)}. Give a mapping from values to class ids; {{{ABOVE_ZERO}: 1}} makes class 1 of all above 0."
        )
        raise IngestError("unmapped-label-value", message)
    targets = np.array([full[value] for value in present], dtype=np.uint8)
    return targets[np.searchsorted(present, labels)]
