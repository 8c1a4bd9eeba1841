"""Bring a folder of scans into an archive: in parallel, again and again without harm, whatever is in it.

Each volume, picture or DICOM series is one unit of the ledger's stage ``ingest``. A bad source is a recorded problem
and a finished unit: it is looked at again when the file changes. A worker holds one volume at a time, so memory is a
function of ``workers``.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Literal

from storage.archive import Archive
from storage.case import Channel, check_case_id
from storage.errors import IngestError, InvalidCaseError, LedgerError
from storage.heartbeat import beating
from storage.ingest.bookkeeping import PROBLEM_NOTE, Bookkeeping
from storage.ingest.dicom_attributes import load_or_make_key
from storage.ingest.source import SourceCase, quiet_readers
from storage.ingest.sources import ChosenSources, choose_sources
from storage.ingest.tasks import Task, dicom_tasks, file_tasks
from storage.store import local_path
from storage.wording import check_modality, check_pattern

STAGE = "ingest"
Progress = Callable[[int, int], None]
Outcome = Literal["added", "replaced", "unchanged", "problem", "elsewhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSummary:
    """What one run did, and what is still wrong with its source."""

    added: int = 0
    replaced: int = 0
    """Cases whose file had changed; their label sets went with the old pixels."""
    unchanged: int = 0
    problems: int = 0
    """Problems that stand after this run, found now or before."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Slug -> how many of ``problems``."""
    notes: tuple[str, ...] = ()
    """What was put right on the way in."""
    remarks: tuple[str, ...] = ()
    """How files were taken together as channels of one case, where they were."""


def ingest(  # noqa: PLR0913 - all but archive and source by name
    archive: Archive,
    source: Path,
    *,
    modality: str | None = None,
    patient_from: str | None = None,
    exclude: Sequence[str] = (),
    channels: Sequence[Channel] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    dicom_key: bytes | None = None,
) -> IngestSummary:
    """Bring every NIfTI, DICOM, PNG, JPEG and TIFF under ``source`` into the archive; safe to run again.

    Args:
        archive: An archive opened for writing.
        source: A folder, or one file.
        modality: DICOM's code for all of them (``MR``), or ``other``; by default what DICOM files say, and ``unknown`` for others.
        patient_from: Regular expression whose first group is the patient in a case id; by default each case is a patient.
            DICOM files say themselves whose they are.
        exclude: Shell patterns of relative names to leave out, such as ``gold/*``.
        channels: What the files of one case are, in this order, if they are one for each channel (``storage.ingest.channels``); by default
            what ``dataset.json`` of nnU-Net or the Decathlon says; an empty list takes each file by itself.
        workers: Threads. Each holds one volume.
        progress: Called with (finished, total) after each unit.
        dicom_key: Secret behind DICOM pseudonyms; by default a file beside the archive that only its owner can read.

    Raises:
        IngestError: ``source-not-found``, ``unknown-modality``, ``bad-pattern``, ``bad-channels``, ``no-dicom-key`` or ``bad-dicom-key``. A bad file raises nothing: see ``catalog.problems()``.
    """
    modality, patient_from = check_modality(modality), check_pattern(patient_from)
    book = Bookkeeping(archive)
    try:
        with quiet_readers():
            chosen = choose_sources(archive, Path(source), exclude=exclude, channels=channels)
            tasks, sources = _plan(archive, book, Path(source), chosen, modality, patient_from, dicom_key)
            due = set(archive.ledger.plan(STAGE, {task.unit: task.fingerprint for task in tasks}))
            waves = [[t for t in tasks if t.unit in due and t.contender == late] for late in (False, True)]
            outcomes = _work(archive, book, waves, workers, progress)
        return with_changes(_summary(book, tasks, due, outcomes, sources), remarks=chosen.remarks)
    finally:
        book.close()


def dicom_key_path(archive: Archive) -> Path:
    """Return where the secret of a local archive lies.

    Raises:
        IngestError: ``no-dicom-key`` if the archive is not local.
    """
    path = local_path(archive.url)
    if path is None:
        message = f"the archive {archive.url} is not a local folder, so no secret can lie beside it. Pass dicom_key, the same each time."
        raise IngestError("no-dicom-key", message)
    return path.with_name(path.name + ".dicom-key")


def _has_key(archive: Archive) -> bool:
    return local_path(archive.url) is not None and dicom_key_path(archive).exists()


def _plan(
    archive: Archive,
    book: Bookkeeping,
    source: Path,
    chosen: ChosenSources,
    modality: str | None,
    patient_from: str | None,
    dicom_key: bytes | None,
) -> tuple[list[Task], set[str]]:
    """Turn the files into tasks, and return them with the names under which problems of this source are kept."""
    known = {unit: seen.fingerprint for unit, seen in book.seen(STAGE).items()}
    root = source if source.is_dir() else source.parent
    tasks, sources = file_tasks(chosen.named, root, archive, book, known, modality=modality, patient_from=patient_from)
    slices = chosen.slices
    # Without slices there may still be problems of some that are gone.
    if slices or dicom_key or _has_key(archive):
        key = dicom_key or load_or_make_key(dicom_key_path(archive))
        more, labels = dicom_tasks(slices, source, book, key=key, modality=modality)
        tasks, sources = tasks + more, sources | labels
    if source.is_dir():
        book.forget_gone(source, sources)
    return tasks, sources


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    outcome: Outcome
    notes: tuple[str, ...] = ()


def _work(archive: Archive, book: Bookkeeping, waves: list[list[Task]], workers: int, progress: Progress | None) -> list[_Result]:
    """Run the waves one after the other, each in parallel."""
    total = sum(len(wave) for wave in waves)
    results: list[_Result] = []
    with beating(archive.ledger), ThreadPoolExecutor(max_workers=max(workers, 1), thread_name_prefix="ingest") as pool:
        try:
            for wave in waves:
                for future in as_completed([pool.submit(_ingest_one, archive, book, task) for task in wave]):
                    results.append(future.result())
                    if progress is not None:
                        progress(len(results), total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _ingest_one(archive: Archive, book: Bookkeeping, task: Task) -> _Result:
    """Bring in one unit, unless another run has it, or has taken it meanwhile."""
    if not archive.ledger.claim(STAGE, task.unit):
        return _Result(outcome="elsewhere")
    try:
        return _ingest_claimed(archive, book, task)
    except LedgerError:
        return _Result(outcome="elsewhere")


def _ingest_claimed(archive: Archive, book: Bookkeeping, task: Task) -> _Result:
    """Read, write, then sign the ledger.

    Raises:
        LedgerError: if another run has taken the unit meanwhile.
    """
    started = time.perf_counter()
    try:
        found = task.read()
        outcome = _store(archive, book, task, found)
    except (IngestError, InvalidCaseError) as error:
        reason = error.reason if isinstance(error, IngestError) else "invalid-case"
        book.replace_problem(task.source, task.row, reason, str(error))
        archive.ledger.done(STAGE, task.unit, seconds=time.perf_counter() - started, note=f"{PROBLEM_NOTE}: {reason}")
        return _Result(outcome="problem")
    except Exception as error:  # noqa: BLE001 - a full disk or a lost network: this unit is tried again, the others go on
        message = f"case {task.case}: {type(error).__name__} while it was brought in. It is tried again on the next run."
        book.replace_problem(task.source, task.row, "unexpected-error", message)
        archive.ledger.fail(STAGE, task.unit, error)
        return _Result(outcome="problem")
    book.forget_problems([task.source])
    archive.ledger.done(STAGE, task.unit, seconds=time.perf_counter() - started)
    return _Result(outcome=outcome, notes=found.notes)


def _store(archive: Archive, book: Bookkeeping, task: Task, found: SourceCase) -> Outcome:
    """Put a case where it belongs, unless another source has its name.

    Raises:
        IngestError: ``duplicate-case-id``.
    """
    record = with_changes(found.record, part=book.part_for(found.record.id, found.record.patient))
    check_case_id(record.id)
    present = archive.catalog.find_case(record.id)
    if present is not None and present.fingerprint == record.fingerprint:
        if not task.contender and present != record:
            archive.describe_case(record)  # same pixels, another modality, patient or name of a channel
        return "unchanged"
    if task.contender:
        message = f"case {record.id}: another file was ingested under this id, and this one differs from it. Rename one of them."
        raise IngestError("duplicate-case-id", message)
    archive.add_case(record, found.image_czyx, replace=present is not None)
    return "added" if present is None else "replaced"


def _summary(book: Bookkeeping, tasks: list[Task], due: set[str], results: list[_Result], sources: set[str]) -> IngestSummary:
    seen = book.seen(STAGE)
    still = sum(t.unit not in due and seen[t.unit].state == "done" and not seen[t.unit].note.startswith(PROBLEM_NOTE) for t in tasks)
    counts = Counter(result.outcome for result in results)
    reasons = Counter(problem.reason for problem in book.problems() if problem.source in sources)
    return IngestSummary(
        added=counts["added"],
        replaced=counts["replaced"],
        unchanged=counts["unchanged"] + still,
        problems=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        notes=tuple(note for result in results for note in result.notes),
    )
