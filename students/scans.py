"""The scans that lie in files and folders, found and read as an ingest finds and reads them, but kept nowhere.

A DICOM series goes by a pseudonym, and so do its files in messages, because their names and headers may say who was scanned. Which is
which stands in a list beside the folder of the answers, that only its owner can read, like the key that the pseudonyms come from.
"""

import csv
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from storage.case import Channel
from storage.errors import IngestError, InvalidCaseError
from storage.ingest.channels import ScanFiles, group_files, read_scan
from storage.ingest.dicom import read_series
from storage.ingest.dicom_attributes import keyed_hash, load_or_make_key
from storage.ingest.dicom_headers import DicomSeries, SliceHeader, group_series, read_header
from storage.ingest.discover import OWN_FOLDERS, FoundFile, find_files, kind_of
from storage.ingest.images import read_image
from storage.ingest.nifti import read_nifti
from storage.ingest.source import ENDINGS, Naming, SourceCase

_READABLE = "NIfTI, DICOM, PNG, JPEG and TIFF"

_NO_SCANS = {"localizer": "localizer", "not-an-image": "DICOM object without a picture"}
"""Reason of a reader -> what every DICOM export holds besides scans: nothing went wrong with these."""

_OTHER = "other file"


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
    """The file, the first of several channels; None for a series."""
    others: tuple[Path, ...] = ()
    """The files of the other channels."""
    series: DicomSeries | None = None
    """The series; None for a file."""


@dataclass(slots=True, kw_only=True)
class FoundScans:
    """What there is to segment, and what cannot be."""

    scans: list[Scan] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of what was asked for, or looks like a scan, and cannot be one."""
    passed_over: list[str] = field(default_factory=list)
    """Other files in the folders, where these hold no DICOM."""
    unnamed: Counter[str] = field(default_factory=Counter)
    """Kind -> how many more were passed over beside DICOM, where a name may be that of a patient; the private list has their names."""
    private_list: Path | None = None
    """Says which DICOM pseudonym is which file; None where there is no DICOM."""


def find_scans(paths: Iterable[str | Path], out: Path, channels: Sequence[Channel] = ()) -> FoundScans:
    """List the scans under folders and among files, without reading voxels.

    Args:
        paths: Files, and folders that are searched with all that is below them; what is reached twice counts once. Hidden files and
            ``.zarr`` folders are left alone, and so is ``out`` where it lies inside such a folder: answers are no scans.
        out: The folder for answers, absolute; it mirrors the folders of the scans.
        channels: What the student sees, where somebody named it: files of one folder that are named alike, but for what each channel's files
            end in, are then one scan. What goes by the name of a scan and is none of its channels is passed over.
    """
    found, seen = FoundScans(), set[Path]()
    pictures: dict[Path, list[FoundFile]] = {}
    slices: list[FoundFile] = []
    private: list[tuple[str, Path]] = []
    for path in _once(map(Path, paths)):
        try:
            there = find_files(path)
        except IngestError as error:
            found.refused.append((str(path), str(error)))
            continue
        if path.is_file() and not there:
            found.refused.append((path.name, f"{path.name}: no scan. {_READABLE} can be read; its name and content are neither."))
        files = [file for file in there if not _is_answer(file.path, path, out) and _is_new(file.path, seen)]
        others = [other for other in _others(path, there, out) if _is_new(other, seen)]
        if any(file.kind == "dicom" for file in files):
            broken = [other for other in others if _may_be_a_slice(other)]
            files += [FoundFile(path=b, name=b.relative_to(path).as_posix(), kind="dicom", size=0, mtime_ns=0) for b in broken]
            rest = [other for other in others if other not in broken]
            private += [(_OTHER, other) for other in rest]
            found.unnamed.update(_OTHER for _ in rest)
        else:
            found.passed_over += [other.relative_to(path).as_posix() for other in others]
        slices += [file for file in files if file.kind == "dicom"]
        named = [file for file in files if file.kind != "dicom"]
        found.scans += [] if channels else [_file_scan(file, out) for file in named]
        for file in named:
            pictures.setdefault(file.path.parent.resolve(), []).append(file)
    for together in pictures.values() if channels else ():
        _add_channels(together, out, found, channels)
    _add_series(slices, out, found, private)
    return found


def _place(path: Path) -> Path:
    """Return where a name stands; two links to one file stand at two places, and each may have its answer."""
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def _is_new(path: Path, seen: set[Path]) -> bool:
    """Tell whether a place was not met before, and remember it."""
    place = _place(path)
    new = place not in seen
    seen.add(place)
    return new


def _once(paths: Iterable[Path]) -> Iterator[Path]:
    seen = set[Path]()
    return (path for path in paths if _is_new(path, seen))


def _is_answer(path: Path, source: Path, out: Path) -> bool:
    """Tell whether something lies in the folder for answers, where that is a part of the folder that is searched."""
    inside = out.resolve() != source.resolve() and out.resolve().is_relative_to(source.resolve())
    return inside and path.resolve().is_relative_to(out.resolve())


def _others(path: Path, files: Sequence[FoundFile], out: Path) -> list[Path]:
    """List what is in a folder and no scan; hidden files, archives, answers and what lies beside them are nobody's scans."""
    if path.is_file():
        return []
    known = {file.path for file in files}
    ours = {_place(_private_list(out)), _place(_key_file(out))}
    names = []
    for base, folders, leaves in os.walk(path):
        wanted = [f for f in folders if not f.startswith((".", "__MACOSX")) and not f.endswith(OWN_FOLDERS)]
        folders[:] = sorted(f for f in wanted if not _is_answer(Path(base, f), path, out))
        names += [Path(base, leaf) for leaf in sorted(leaves) if not leaf.startswith(".") and Path(base, leaf) not in known]
    return [name for name in names if kind_of(name) is None and _place(name) not in ours]


def _may_be_a_slice(path: Path) -> bool:
    """Tell whether a file beside DICOM is a slice whose copy was interrupted: no bytes, and no ending, which many exports do without."""
    try:
        empty = path.stat().st_size == 0
    except OSError:
        return False
    return empty and (not path.suffix or path.suffix[1:].isdigit()) and path.name.upper() != "DICOMDIR"


def _private_list(out: Path) -> Path:
    return out.parent / (out.name + ".dicom-names.csv")


def _key_file(out: Path) -> Path:
    return out.parent / (out.name + ".dicom-key")


def _add_channels(files: Sequence[FoundFile], out: Path, found: FoundScans, channels: Sequence[Channel]) -> None:
    """Take those files of a folder together that are channels of one scan, whether the folder was given, or one above it, or each file."""
    inner = max((file.name.rpartition("/")[0] for file in files), key=len)
    grouped = group_files([replace(file, name=(Path(inner) / file.path.name).as_posix()) for file in files], channels)
    found.passed_over += [file.name for file in grouped.beside]
    found.scans += [_channel_scan(scan, channels, out) for scan in grouped.scans]


def _channel_scan(scan: ScanFiles, channels: Sequence[Channel], out: Path) -> Scan:
    first, *others = scan.files
    name = scan.name if scan.whole is None else scan.whole.name

    def read_channels(_: Path, naming: Naming) -> SourceCase:
        return read_scan(scan, channels, naming)

    return Scan(
        name=name,
        target=out / scan.name,
        picture=all(file.kind == "image" for file in scan.files),
        read=partial(_read_named, read_channels, replace(first, name=name), Naming(case="scan", patient="scan")),
        path=first.path,
        others=tuple(file.path for file in others),
    )


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
        said = str(error).removeprefix(f"case {naming.case}: ").removeprefix(f"case {naming.case}, ").removeprefix(f"{file.path.name}: ")
        reason = error.reason if isinstance(error, IngestError) else "invalid-case"
        raise IngestError(reason, f"{file.name}: {said}") from error


def _add_series(files: Sequence[FoundFile], out: Path, found: FoundScans, private: Sequence[tuple[str, Path]]) -> None:
    """Sort DICOM files into series under pseudonyms, and write down privately which is which, and what else lies beside them."""
    if not files:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    key = load_or_make_key(_key_file(out))
    headers: list[SliceHeader] = []
    rows = list(private)
    for number, file in enumerate(files, start=1):
        name = str(file.path.absolute())
        try:
            headers.append(read_header(file.path, number, key=key, name=name))
        except IngestError as error:
            what = _NO_SCANS.get(error.reason)
            if what is None:
                found.refused.append((f"DICOM file {number}", str(error)))
            else:
                found.unnamed[what] += 1
            rows.append((f"{what or 'file'} {number} ({keyed_hash(key, ('name', name))})", file.path))
    for series in group_series(headers, key=key):
        rows += [(series.case, header.path) for header in sorted(series.slices, key=lambda header: header.number)]
        found.scans.append(
            Scan(name=series.case, target=out / series.case, picture=False, read=partial(read_series, series), series=series)
        )
    found.private_list = _private_list(out)
    _write_privately(found.private_list, [(name, str(path.absolute())) for name, path in rows])


def _write_privately(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Add to the list, in a file that is its owner's alone from its first byte on; the answers of earlier runs stay named."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    # File names need not be UTF-8: what is not comes back as it was.
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "file"))
        writer.writerows(dict.fromkeys([*_listed(path), *rows]))
    aside.replace(path)


def _listed(path: Path) -> list[tuple[str, str]]:
    """Return what the list says already."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return [(row[0], row[1]) for row in list(csv.reader(stream))[1:] if len(row) > 1]
