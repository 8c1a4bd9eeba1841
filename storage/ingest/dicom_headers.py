"""Read the headers of DICOM files and sort the files into series.

Nothing that names a person leaves this module: identifiers are replaced by keyed hashes here, and a message about a
file gives its position in the sorted list and a keyed hash of its name, because file names of exports carry names too.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from storage.errors import IngestError
from storage.ingest.dicom_attributes import (
    ATTRIBUTE_KEYWORDS,
    allowed_attributes,
    keyed_hash,
    modality_of,
    positive_number,
)
from storage.wording import IMAGE_MODALITIES

_PREAMBLE_BYTES = 128
_TAGS = [
    *ATTRIBUTE_KEYWORDS,
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "ImageType",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "NumberOfFrames",
]
_DECIMALS = 4
"""Direction cosines and pixel spacings that agree to this many decimals belong to one grid; scanners print 6 to 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceHeader:
    """What ordering and stacking need to know of one file. Identifiers are hashed already."""

    path: Path
    number: int
    """Position in the sorted list of the run's DICOM files, from 1."""
    name_hash: str
    series: str
    instance: str
    patient: str
    frame: str
    grid: tuple[object, ...]
    """Rows, columns, samples, orientation and pixel spacing: slices of one volume share it."""
    modality: str
    attributes: dict[str, str | float | int] = field(default_factory=dict)
    orientation: tuple[float, ...] | None = None
    """Direction cosines of a row and of a column, in the LPS frame."""
    position_mm: tuple[float, ...] | None = None
    """Centre of the first voxel, in the LPS frame."""
    pixel_spacing_mm: tuple[float, float] | None = None
    """Distance between rows, and between columns."""
    slope: float = 1.0
    intercept: float = 0.0
    monochrome1: bool = False

    @property
    def label(self) -> str:
        """Name the file without naming anyone."""
        return f"DICOM file {self.number} ({self.name_hash})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomSeries:
    """The files of one volume or one picture, not yet ordered."""

    case: str
    patient: str
    slices: tuple[SliceHeader, ...]


def looks_like_dicom(path: Path) -> bool:
    """Tell by content: the letters DICM after the preamble, or a first element of group 0002 or 0008 without one."""
    if not path.is_file():
        return False  # opening a named pipe would wait for ever
    try:
        with path.open("rb") as file:
            head = file.read(_PREAMBLE_BYTES + 4)
    except OSError:
        return False
    if head[_PREAMBLE_BYTES:] == b"DICM":
        return True
    bare = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) > _PREAMBLE_BYTES
    return bare or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def read_header(path: Path, number: int, *, key: bytes, name: str) -> SliceHeader:
    """Read one header without its pixels.

    Args:
        path: The file.
        number: Its position in the sorted list of files, from 1.
        key: The archive's secret for pseudonyms.
        name: The file's full name; only its keyed hash is kept.

    Raises:
        IngestError: ``zero-bytes``, ``not-dicom``, ``not-an-image``, ``localizer``, ``multi-frame`` or ``unreadable``.
            No message quotes the file.
    """
    name_hash = keyed_hash(key, ("name", name))
    label = f"DICOM file {number} ({name_hash})"
    try:
        header = _load_header(path)
        _check_is_image(header, label)
        return _slice_header(header, path, number, name_hash, key)
    except IngestError:
        raise
    except EOFError:
        raise IngestError("zero-bytes", f"{label}: the file has no bytes. Copy it again.") from None
    except Exception as error:  # noqa: BLE001 - pydicom's messages quote values, so none may pass, whatever its type
        raise IngestError("unreadable", f"{label}: the header cannot be read ({type(error).__name__}). Export the file again.") from None


def group_series(headers: Iterable[SliceHeader], *, key: bytes) -> list[DicomSeries]:
    """Sort slices into series by series UID and grid; where the UID is empty, by folder, frame of reference and grid.

    A series of several grids (a localizer in two planes, say) becomes several cases. A picture without a position in
    space is a case of its own.
    """
    groups: dict[tuple[object, ...], list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault(_group_key(header), []).append(header)
    series = [_series(slices, key) for slices in groups.values()]
    return sorted(series, key=lambda s: s.case)


def _load_header(path: Path) -> pydicom.Dataset:
    if path.stat().st_size == 0:
        raise EOFError
    return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)


def _check_is_image(header: pydicom.Dataset, label: str) -> None:
    if not header.get("SOPClassUID") and not header.get("Modality") and not header.get("Rows"):
        raise IngestError("not-dicom", f"{label}: the content is not DICOM. Was another kind of file renamed?")
    modality = str(header.get("Modality", "") or "").upper()
    if not header.get("Rows") or not header.get("Columns") or (modality and modality not in IMAGE_MODALITIES):
        message = f"{label}: this object holds no picture (a segmentation, report or plan, for example), so it is no case."
        raise IngestError("not-an-image", message)
    if "LOCALIZER" in [str(word).upper() for word in _several(header.get("ImageType"))]:
        raise IngestError("localizer", f"{label}: a localizer, taken only to plan the scan, is not ingested.")
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        message = f"{label}: the file holds several frames. Split it into one file per frame, for example with dcm2niix or emf2sf."
        raise IngestError("multi-frame", message)


def _slice_header(header: pydicom.Dataset, path: Path, number: int, name_hash: str, key: bytes) -> SliceHeader:
    orientation = _numbers(header.get("ImageOrientationPatient"), 6)
    spacing = _numbers(header.get("PixelSpacing") or header.get("ImagerPixelSpacing"), 2)
    slope = header.get("RescaleSlope")
    rounded = [tuple(round(v, _DECIMALS) + 0.0 for v in values or ()) for values in (orientation, spacing)]
    return SliceHeader(
        path=path,
        number=number,
        name_hash=name_hash,
        series=_hashed(header, "SeriesInstanceUID", key),
        instance=_hashed(header, "SOPInstanceUID", key),
        patient=_hashed(header, "PatientID", key),
        frame=_hashed(header, "FrameOfReferenceUID", key),
        grid=(int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1) or 1), *rounded),
        modality=modality_of(header),
        attributes=allowed_attributes(header),
        orientation=orientation,
        position_mm=_numbers(header.get("ImagePositionPatient"), 3),
        pixel_spacing_mm=_positive_pair(spacing),
        slope=1.0 if slope in (None, "") else float(slope),
        intercept=float(header.get("RescaleIntercept", 0) or 0),
        monochrome1=str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1",
    )


def _hashed(header: pydicom.Dataset, keyword: str, key: bytes) -> str:
    value = str(header.get(keyword, "") or "").strip()
    return keyed_hash(key, (keyword, value)) if value else ""


def _several(value: Any) -> Sequence[Any]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    numbers = tuple(float(v) for v in _several(value))
    return numbers if len(numbers) == count else None


def _positive_pair(values: tuple[float, ...] | None) -> tuple[float, float] | None:
    if values is None or any(positive_number(v) is None for v in values):
        return None
    return (values[0], values[1])


def _group_key(header: SliceHeader) -> tuple[object, ...]:
    if header.position_mm is None or header.orientation is None:
        return ("picture", header.name_hash)
    if header.series:
        return ("series", header.series, *header.grid)
    return ("folder", str(header.path.parent), header.patient, header.frame, header.modality, *header.grid)


def _series(slices: list[SliceHeader], key: bytes) -> DicomSeries:
    """Name a series after what is in it, so that moving its folder or renaming its files changes nothing."""
    first = min(slices, key=lambda s: (s.position_mm or (), s.instance, s.name_hash))
    if first.position_mm is not None and first.series:
        parts = [first.series, repr(first.grid)]
    elif first.instance:
        parts = [first.series, first.instance, repr(first.grid)]
    else:
        # No UID at all: two patients may share the same table position, so the pixels themselves take part.
        parts = [first.frame, repr(first.grid), repr(sorted(s.position_mm or () for s in slices)), _content_hash(first.path)]
    case = "dcm-" + keyed_hash(key, parts)
    return DicomSeries(case=case, patient=f"pat-{first.patient}" if first.patient else case, slices=tuple(slices))


def _content_hash(path: Path) -> str:
    try:
        dataset = pydicom.dcmread(path, force=True)
        pixels = io.BytesIO(dataset.get("PixelData", b"")).getvalue()
    except (OSError, EOFError, ValueError, KeyError, InvalidDicomError, AttributeError):
        return ""
    return keyed_hash(b"content", (pixels.hex(),))
