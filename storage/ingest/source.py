"""What every reader of source files returns, and the checks that all of them share."""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from storage.case import CaseRecord, Geometry
from storage.errors import IngestError

ENDINGS = (".nii.gz", ".nii", ".png", ".jpeg", ".jpg", ".tiff", ".tif")
"""File name endings that are cut off to find a case id, the longest of each family first."""

_NOISY_LOGGERS = ("pydicom", "nibabel.global", "PIL", "tifffile", "pylibjpeg", "openjpeg", "libjpeg")
_NOISY_MODULES = r"(pydicom|nibabel|PIL|tifffile|pylibjpeg|openjpeg|libjpeg|highdicom)(\.|$)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One source, read and found fit to go into an archive."""

    record: CaseRecord
    image_czyx: np.ndarray
    """Native intensities, in the byte order of this machine."""
    notes: tuple[str, ...] = ()
    """What was put right on the way in, one sentence each; never a name, date or free text of the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How a case that comes from a named file is called, and whose it is."""

    case: str
    patient: str
    modality: str = "unknown"


def case_id_from_name(name: str) -> str:
    """Turn a file name into a case id: the ending goes, and what a folder name cannot hold becomes ``_``."""
    stem = Path(name).name
    lower = stem.lower()
    ending = next((e for e in ENDINGS if lower.endswith(e)), "")
    stem = stem[: len(stem) - len(ending)]
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-")[:128]


def patient_of(case: str, pattern: str | None) -> str:
    """Find the patient pseudonym in a case id.

    Args:
        case: The case id.
        pattern: A regular expression whose first group is the patient; None makes each case its own patient.

    Raises:
        IngestError: if the pattern has no group or does not match. Guessing would risk one patient in two parts of a split.
    """
    if pattern is None:
        return case
    match = re.search(pattern, case)
    if match is None or not match.groups() or not match.group(1):
        message = (
            f"case {case}: the patient pattern {pattern!r} finds no patient in this id. "
            "Its first group must match the patient part of every case id, for example '^(P[0-9]+)'."
        )
        raise IngestError("patient-not-matched", message)
    return str(match.group(1))


def finish_case(
    image_czyx: Shaped[np.ndarray, "c z y x"],
    geometry: Geometry,
    naming: Naming,
    *,
    attributes: Mapping[str, str | float | int] | None = None,
    notes: tuple[str, ...] = (),
) -> SourceCase:
    """Check the pixels, hash them, and bind them to a record.

    Raises:
        IngestError: ``nan-volume`` if any voxel is NaN or infinite, ``empty-volume`` if all voxels are equal,
            ``unsupported-dtype`` for complex or structured values.
    """
    check_pixels(naming.case, image_czyx)
    channels, depth, height, width = image_czyx.shape
    record = CaseRecord(
        id=naming.case,
        patient=naming.patient,
        shape_czyx=(channels, depth, height, width),
        dtype=image_czyx.dtype.name,
        geometry=geometry,
        modality=naming.modality,
        attributes=dict(attributes or {}),
        fingerprint=pixel_fingerprint(image_czyx, geometry),
    )
    return SourceCase(record=record, image_czyx=image_czyx, notes=notes)


def check_pixels(case: str, image: Shaped[np.ndarray, "..."]) -> None:
    """Refuse what nobody can learn from.

    A single NaN is enough: resampling and normalisation spread it over the whole volume, and what was meant by it
    (air, padding, a failed reconstruction) only the person who made the file can say.

    Raises:
        IngestError: see ``finish_case``.
    """
    if image.dtype.kind not in "uif":
        message = f"case {case}: voxels are of type {image.dtype}, but must be integers or real numbers. Save magnitude images."
        raise IngestError("unsupported-dtype", message)
    if image.size == 0:
        raise IngestError("empty-volume", f"case {case}: the image has no voxels, its shape is {image.shape}.")
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(image.size - np.count_nonzero(np.isfinite(image)))
        message = (
            f"case {case}: {bad} of {image.size} voxels ({bad / image.size:.2%}) are NaN or infinite. "
            "Replace them by the value of the background, then ingest again."
        )
        raise IngestError("nan-volume", message)
    if low == high:
        raise IngestError("empty-volume", f"case {case}: every voxel has the value {low}. Was the export interrupted?")


def pixel_fingerprint(image: Shaped[np.ndarray, "..."], geometry: Geometry) -> str:
    """Hash pixels and geometry, so that label work can tell when its case changed."""
    digest = hashlib.blake2b(digest_size=16)
    head = {"shape": image.shape, "dtype": image.dtype.name, "geometry": asdict(geometry)}
    digest.update(json.dumps(head, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(image).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def native_order(array: np.ndarray) -> np.ndarray:
    """Return the same values in this machine's byte order, without a copy where they already are."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_not_empty(path: Path, label: str) -> None:
    """Refuse a file of zero bytes before any library answers it with a riddle.

    Raises:
        IngestError: ``zero-bytes``, or ``unreadable`` if the file cannot be looked at.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise IngestError("unreadable", f"{label}: the file cannot be opened ({error.strerror}).") from None
    if size == 0:
        raise IngestError("zero-bytes", f"{label}: the file has no bytes. A copy was probably interrupted; copy it again.")


@contextmanager
def quiet_readers() -> Iterator[None]:
    """Silence the file libraries while a run lasts; what matters becomes a recorded problem instead.

    Their warnings quote header values, which may be a patient's name. Enter it once, in the thread that starts the
    workers: the warning filters belong to the whole process.
    """
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_NOISY_MODULES)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
