"""The scans that lie in files and folders, found and read as an ingest finds and reads them, but kept nowhere.

A DICOM series goes by a pseudonym, and so do its files in messages, because their names and headers may say who was scanned. Which is
which stands in a list beside the folder of the answers, that only its owner can read, like the key that the pseudonyms come from.
"""

import csv
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from storage.errors import IngestError, InvalidCaseError
from storage.ingest.dicom import read_series
from storage.ingest.dicom_attributes import keyed_hash, load_or_make_key
from storage.ingest.dicom_headers import SliceHeader, group_series, read_header
from storage.ingest.discover import FoundFile, find_files, kind_of
from storage.ingest.images import read_image
from storage.ingest.nifti import read_nifti
from storage.ingest.source import ENDINGS, Naming, SourceCase

_READABLE = "NIfTI, DICOM, PNG, JPEG and TIFF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One volume, picture or DICOM series that has not been read yet."""

    name: str
    """For messages: the file's name below the given folder; a DICOM series' pseudonym."""
    target: Path
    """Where its labels go, without an ending."""
    picture: bool
    """True for PNG, JPEG and TIFF."""
    read: Callable[[], SourceCase]
    """Raises `IngestError` with a reason that a person can act on."""
    path: Path | None = None
    """The file; None for a series."""


@dataclass(slots=True, kw_only=True)
class FoundScans:
    """What there is to segment, and what cannot be."""

    scans: list[Scan] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of what was asked for, or looks like a scan, and cannot be one."""
    passed_over: list[str] = field(default_factory=list)
    """Other files in the folders."""
    private_list: Path | None = None
    """Says which DICOM pseudonym is which file; None where there is no DICOM."""


def find_scans(paths: Iterable[str | Path], out: Path) -> FoundScans:
    """List the scans under folders and among files, without reading voxels.

    Args:
        paths: Files, and folders that are searched with all that is below them. Hidden files and ``.zarr`` folders are left alone, and
            so is ``out``: answers are no scans.
        out: The folder for answers; it mirrors the folders of the scans.
    """
    found = FoundScans()
    slices: list[FoundFile] = []
    for path in map(Path, paths):
        try:
            files = find_files(path)
        except IngestError as error:
            found.refused.append((str(path), str(error)))
            continue
        found.passed_over += _others(path, files, out)
        if path.is_file() and not files:
            found.refused.append((path.name, f"{path.name}: no scan. {_READABLE} can be read; its name and content are neither."))
        for file in files:
            if _is_answer(file.path, path, out):
                continue
            if file.kind == "dicom":
                slices.append(file)
            else:
                found.scans.append(_file_scan(file, out))
    _add_series(slices, out, found)
    return found


def _is_answer(path: Path, source: Path, out: Path) -> bool:
    """Tell whether something lies in the folder for answers, where that is a part of the folder that is searched."""
    inside = source.is_dir() and source.resolve() != out.resolve()
    return inside and path.resolve().is_relative_to(out.resolve())


def _others(path: Path, files: Sequence[FoundFile], out: Path) -> list[str]:
    """Name what is in a folder and no scan; hidden files, archives and answers are nobody's scans."""
    if path.is_file():
        return []
    known = {file.path for file in files}
    names = []
    for base, folders, leaves in os.walk(path):
        wanted = [f for f in folders if not f.startswith(".") and not f.endswith(".zarr")]
        folders[:] = sorted(f for f in wanted if not _is_answer(Path(base, f), path, out))
        names += [Path(base, leaf) for leaf in sorted(leaves) if not leaf.startswith(".") and Path(base, leaf) not in known]
    return [name.relative_to(path).as_posix() for name in names if kind_of(name) is None]


def _file_scan(file: FoundFile, out: Path) -> Scan:
    reader = read_nifti if file.kind == "nifti" else read_image
    ending = next(e for e in ENDINGS if file.name.lower().endswith(e))
    # The name of the file is free; the id is only there to fill the record, and goes nowhere.
    naming = Naming(case="scan", patient="scan")
    target = out / file.name[: -len(ending)]
    return Scan(
        name=file.name, target=target, picture=file.kind == "image", read=partial(_read_named, reader, file, naming), path=file.path
    )


def _read_named(reader: Callable[[Path, Naming], SourceCase], file: FoundFile, naming: Naming) -> SourceCase:
    """Read a file, naming it where a reader's message names the case."""
    try:
        return reader(file.path, naming)
    except (IngestError, InvalidCaseError) as error:
        said = str(error).removeprefix(f"case {naming.case}: ").removeprefix(f"{file.path.name}: ")
        reason = error.reason if isinstance(error, IngestError) else "invalid-case"
        raise IngestError(reason, f"{file.name}: {said}") from error


def _add_series(files: Sequence[FoundFile], out: Path, found: FoundScans) -> None:
    """Sort DICOM files into series under pseudonyms, and write down privately which is which."""
    if not files:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    key = load_or_make_key(out.with_name(out.name + ".dicom-key"))
    headers: list[SliceHeader] = []
    rows: list[tuple[str, Path]] = []
    for number, file in enumerate(files, start=1):
        name = str(file.path.absolute())
        try:
            headers.append(read_header(file.path, number, key=key, name=name))
        except IngestError as error:
            found.refused.append((f"DICOM file {number}", str(error)))
            rows.append((f"file {number} ({keyed_hash(key, ('name', name))})", file.path))
    for series in group_series(headers, key=key):
        rows += [(series.case, header.path) for header in sorted(series.slices, key=lambda header: header.number)]
        found.scans.append(Scan(name=series.case, target=out / series.case, picture=False, read=partial(read_series, series)))
    found.private_list = out.with_name(out.name + ".dicom-names.csv")
    _write_privately(found.private_list, rows)


def _write_privately(path: Path, rows: Sequence[tuple[str, Path]]) -> None:
    """Replace the list by a file that is its owner's alone from its first byte on."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "file"))
        writer.writerows(rows)
    aside.replace(path)
