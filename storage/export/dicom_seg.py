"""Labels of a DICOM series as DICOM SEG, which stands in the patient's study and refers to every slice that it is about (PS3.3, C.8.20).

Unlike all else that this program writes, such a file names the patient as the scan does, because a picture archive files it by that. So it is its
owner's alone, and its name is whatever the caller chose.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pydicom
from jaxtyping import UInt8
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from storage.case import ClassInfo
from storage.errors import InvalidCaseError

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
"""Without these an object cannot refer to its slices, nor lie in their space."""

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Type 2 in PS3.3, C.7: to be there, with or without a value. Anonymised scans often lack them."""

_SERIES_NUMBER = 9_001
"""Beyond those that scanners count; the standard leaves it free."""

_WORD = 64
"""Characters of DICOM's short texts (value representation LO)."""

_ANATOMY = codes.cid7151
"""The context group of PS3.16 with the anatomy that a segment may show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """Who drew the labels."""

    name: str
    version: str
    """Tells one training from another."""
    program_version: str


def obstacle(files: Sequence[Path]) -> str:
    """Say what a series lacks that DICOM SEG needs; empty where nothing does. Values are not quoted."""
    for path in files:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=[*_NEEDED, "ImagePositionPatient"])
        lacking = [word for word in (*_NEEDED, "ImagePositionPatient") if not header.get(word)]
        if lacking:
            return f"its headers hold no {lacking[0]}"
    return ""


def write_dicom_seg(
    labels_zyx: UInt8[np.ndarray, "z y x"], files: Sequence[Path], classes: Sequence[ClassInfo], made_by: MadeBy, path: Path
) -> None:
    """Write class ids as one binary segment per class; the same labels of the same series get the same UIDs, so that sending twice adds nothing.

    Args:
        labels_zyx: Class ids; others than those of ``classes`` are background.
        files: The slices, in the order of ``z``.
        classes: Become segments 1, 2, ... under their names.
        made_by: Goes into the file.
        path: Replaced if it is there; missing folders are made.

    Raises:
        InvalidCaseError: if the headers of the series do not go into a segmentation; the message quotes none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of DICOM libraries quote headers
        try:
            found = _segmentation(labels_zyx, _sources(files), classes, made_by)
        except Exception as error:  # noqa: BLE001 - so do their errors, of whatever type
            message = f"the headers of its series do not go into DICOM SEG ({type(error).__name__})"
            raise InvalidCaseError(message) from None
        _save(found, path)


def _segmentation(labels_zyx: np.ndarray, sources: list[pydicom.Dataset], classes: Sequence[ClassInfo], made_by: MadeBy) -> Any:
    import highdicom as hd

    numbers = np.zeros(256, np.uint8)
    for number, info in enumerate(classes, start=1):
        numbers[info.id] = number
    segments = numbers[labels_zyx]
    entropy = [sources[0].SeriesInstanceUID, made_by.name, made_by.version, segments.tobytes().hex()]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=segments,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(number, info, made_by) for number, info in enumerate(classes, start=1)],
        series_instance_uid=generate_uid(entropy_srcs=["series", *entropy]),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(entropy_srcs=["instance", *entropy]),
        instance_number=1,
        manufacturer="samdistill",
        manufacturer_model_name=made_by.name[:_WORD],
        software_versions=made_by.program_version[:_WORD],
        device_serial_number=made_by.version[:_WORD],
        omit_empty_frames=bool(segments.any()),
        content_label="SEGMENTATION",
        series_description=f"{made_by.name}: {', '.join(info.name for info in classes)}"[:_WORD],
    )


def _sources(files: Sequence[Path]) -> list[pydicom.Dataset]:
    """Return the headers of the slices; a thickness that is not stated is the step from one to the next."""
    sources = [_source(file) for file in files]
    places = np.array([header.ImagePositionPatient for header in sources], dtype=np.float64)
    step = float(np.linalg.norm(places[1] - places[0])) if len(places) > 1 else 1.0
    for header in sources:
        if not header.get("SliceThickness"):
            header.SliceThickness = f"{step:.6g}"
    return sources


def _source(file: Path) -> pydicom.Dataset:
    """Return what a segmentation takes over from a slice."""
    header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
    for word in _MAY_BE_EMPTY:
        if word not in header:
            setattr(header, word, "" if word != "PatientSex" else "O")
    if not header.get("SpecificCharacterSet"):
        header.pop("SpecificCharacterSet", None)  # empty means the default, which is said by leaving it out
    return header


def _segment(number: int, info: ClassInfo, made_by: MadeBy) -> Any:
    import highdicom as hd

    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=info.name[:_WORD],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=anatomy(info.name),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=made_by.name[:_WORD], family=codes.cid7162.ArtificialIntelligence, version=made_by.version[:_WORD]
        ),
    )


def anatomy(name: str) -> Code:
    """Return SNOMED's code for the anatomy that a class is called after; that of any anatomical structure where the name is none."""
    wanted = "".join(word for word in name.title() if word.isalnum())
    found: Code = getattr(_ANATOMY, wanted) if wanted in _ANATOMY.dir() else codes.SCT.AnatomicalStructure
    return found


def _save(found: pydicom.Dataset, path: Path) -> None:
    """Write under another name first, for the owner's eyes alone from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid4().hex}.dcm")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            found.save_as(stream)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
