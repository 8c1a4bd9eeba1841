"""Plan an ingest: which source becomes which case, and what of two that want the same id."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage.archive import Archive
from storage.case import Channel
from storage.errors import IngestError
from storage.ingest.bookkeeping import Bookkeeping, source_name
from storage.ingest.channels import ScanFiles, read_scan
from storage.ingest.dicom import read_series
from storage.ingest.dicom_attributes import keyed_hash
from storage.ingest.dicom_headers import DicomSeries, SliceHeader, group_series, read_header
from storage.ingest.discover import FoundFile
from storage.ingest.images import read_image
from storage.ingest.nifti import read_nifti
from storage.ingest.source import Naming, SourceCase, case_id_from_name, patient_of
from storage.ledger import fingerprint

_OWNER_DIGITS = 16
_DICOM_OWNER = "dicom"
"""A series is known by the hash of its UID wherever its files lie, so it always owns its case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One source to read, and where its outcome is written down."""

    unit: str
    case: str
    fingerprint: str
    """``owner.state``: which source it is, and what would make reading it again worthwhile."""
    source: str
    """Name under which a problem is recorded."""
    row: str
    read: Callable[[], SourceCase]
    contender: bool = False
    """Another source has this case id already: only the same content may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """One file, or the files of one case's channels, before it is known what the case is called in the archive."""

    name: str
    """Below the source folder."""
    case: str
    path: str
    """Name under which a problem is recorded."""
    state: str
    """Changes when one of the files does."""
    read: Callable[[Naming], SourceCase]


def single_source(file: FoundFile, called: str | None = None, *, alone: bool = True) -> FileSource:
    """Return a file that is a case by itself.

    Args:
        file: The file.
        called: What it is called, and known by, as the file of one channel: its name without number and ending.
        alone: No other file is called so.
    """
    reader = read_nifti if file.kind == "nifti" else read_image
    return FileSource(
        name=called if called is not None and alone else file.name,
        case=case_id_from_name(file.name if called is None else called.rpartition("/")[2]),
        path=source_name(file.path),
        state=file.state,
        read=partial(reader, file.path),
    )


def channel_source(scan: ScanFiles, channels: Sequence[Channel]) -> FileSource:
    """Return the files of one case with several channels."""
    file = scan.files[0]
    return FileSource(
        name=scan.name if scan.whole is None else scan.whole.name,
        case=case_id_from_name(scan.name.rpartition("/")[2]),
        path=source_name(file.path if scan.whole is not None else file.path.parent / scan.name.rpartition("/")[2]),
        state=fingerprint(
            files=sorted((each.name, each.state) for each in scan.files),
            channels=[(each.name, each.modality, each.suffix) for each in channels],
        ),
        read=partial(read_scan, scan, channels),
    )


def file_tasks(
    sources: Sequence[FileSource],
    root: Path,
    archive: Archive,
    book: Bookkeeping,
    known: Mapping[str, str],
    *,
    modality: str | None,
    patient_from: str | None,
) -> tuple[list[Task], set[str]]:
    """Make a task of each source; one without a usable name is a problem at once.

    Args:
        sources: What was found.
        root: The folder that names are relative to.
        archive: Asked whether a case is there.
        book: Where problems go.
        known: Unit -> fingerprint, from earlier runs.
        modality: As for ``ingest``.
        patient_from: As for ``ingest``.

    Returns:
        The tasks, and the names of all sources.
    """
    tasks: list[Task] = []
    by_case: dict[str, list[FileSource]] = {}
    for source in sources:
        by_case.setdefault(source.case, []).append(source)
    for case, rivals in sorted(by_case.items()):
        owners = {source.name: fingerprint(path=str(root.absolute() / source.name))[:_OWNER_DIGITS] for source in rivals}
        first = _owner(case, owners, known, archive)
        for source in rivals:
            try:
                naming = Naming(case=case, patient=patient_of(case, patient_from), modality=modality or "unknown")
            except IngestError as error:
                book.replace_problem(source.path, "", error.reason, str(error))
                continue
            tasks.append(_file_task(source, naming, owners[source.name], contender=source.name != first))
    return tasks, {source.path for source in sources}


def dicom_tasks(
    files: Sequence[FoundFile],
    source: Path,
    book: Bookkeeping,
    *,
    key: bytes,
    modality: str | None,
) -> tuple[list[Task], set[str]]:
    """Read all headers, record the files that are no pictures, make a task of each series, and forget what is gone from a folder."""
    place = f", folder {keyed_hash(key, ('folder', source_name(source)), length=8)}"
    headers: list[SliceHeader] = []
    states: dict[str, str] = {}
    problems: dict[str, tuple[str, IngestError]] = {}
    for number, file in enumerate(files, start=1):
        name = str(file.path.absolute())
        name_hash = keyed_hash(key, ("name", name))
        states[name_hash] = file.state
        try:
            headers.append(read_header(file.path, number, key=key, name=name))
        except IngestError as error:
            problems[f"dicom:{name_hash}"] = (f"file {number} of {len(files)}{place}", error)
    _settle(book, {f"dicom:{name_hash}" for name_hash in states}, problems)
    tasks = [_series_task(series, states, modality, place) for series in group_series(headers, key=key)]
    sources = {task.source for task in tasks} | set(problems)
    if source.is_dir():
        book.forget_problems({problem.source for problem in book.problems() if problem.row.endswith(place)} - sources)
    return tasks, sources


def _owner(case: str, owners: Mapping[str, str], known: Mapping[str, str], archive: Archive) -> str | None:
    """Say which of the files that map to a case id may write the case: who did before, else the first by name."""
    before = known.get(case, "").split(".")[0]
    for name, owner in owners.items():
        if owner == before:
            return name
    if case in archive:
        return None
    return min(owners)


def _file_task(source: FileSource, naming: Naming, owner: str, *, contender: bool) -> Task:
    state = fingerprint(state=source.state, patient=naming.patient, modality=naming.modality)
    return Task(
        unit=f"{naming.case[:100]}~{owner}" if contender else naming.case,
        case=naming.case,
        fingerprint=f"{owner}.{state}",
        source=source.path,
        row="",
        read=partial(source.read, naming),
        contender=contender,
    )


def _series_task(series: DicomSeries, states: Mapping[str, str], modality: str | None, place: str) -> Task:
    files = sorted((header.name_hash, states[header.name_hash]) for header in series.slices)
    return Task(
        unit=series.case,
        case=series.case,
        fingerprint=f"{_DICOM_OWNER}.{fingerprint(files=files, modality=modality)}",
        source=f"dicom:{series.case}",
        row=f"series of {len(series.slices)} files{place}",
        read=partial(read_series, series, modality=modality),
    )


def _settle(book: Bookkeeping, scanned: Iterable[str], problems: Mapping[str, tuple[str, IngestError]]) -> None:
    """Make the recorded problems of DICOM files those that this scan found."""
    standing = {problem.source for problem in book.problems()}
    book.forget_problems(standing & set(scanned))
    for source, (row, error) in problems.items():
        book.replace_problem(source, row, error.reason, str(error))
