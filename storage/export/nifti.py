"""Cases and label sets to NIfTI-1, with the geometry they came in with.

An archive array is ``z, y, x``; its NIfTI array is the transpose, indexed ``i, j, k``. Several channels become vector components: the
file is 5D, ``i, j, k, 1, c``, as ITK writes it and as our own ingest reads it. The fourth axis would be time.

Where the case came from a NIfTI file, the numeric header fields that describe its geometry are written back as they were, so that the
affine that readers compute is the same to the last bit. Otherwise the affine is the sform, with code 1 (scanner). NIfTI-1 stores
32-bit numbers: an affine from another source, DICOM for instance, is rounded to those.
"""

import zlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError

from storage.case import Geometry
from storage.errors import InvalidCaseError
from storage.stored_case import Case

_MILLIMETRES = 2
"""NIfTI's ``xyzt_units`` code for millimetres and no time."""
_SCANNER = 1
"""NIfTI's form code for scanner coordinates."""
_COMMENT = 6
"""NIfTI's extension code for a comment."""
_EXPORTED = "samdistill export"
"""Description in the header of what an export wrote, and so may write again."""
_STORED = {"int64": "int32", "uint64": "uint32", "float16": "float32", "bool": "uint8"}
"""What NIfTI cannot hold, or hardly any reader reads, and what holds it; :func:`_storable` checks that no value changes."""


def export_image(case: Case, path: Path | str) -> Path:
    """Write the pixels of a case; several channels become the components of a 5D vector file.

    Args:
        case: The case.
        path: Ends in ``.nii`` or ``.nii.gz``; missing folders are made, an existing file is replaced.

    Returns:
        The path written.

    Raises:
        InvalidCaseError: if the path has another ending, or the values fit no NIfTI data type.
    """
    image_czyx = case.read()
    array = image_czyx[0] if len(image_czyx) == 1 else image_czyx
    return write_nifti(array, case.record.geometry, path, description=_EXPORTED)


def export_labels(case: Case, label_set: str, path: Path | str) -> Path:
    """Write the class ids of one label set; 255 stays 255, which means ignore.

    Raises:
        LabelSetNotFoundError: if the case has no such label set.
        InvalidCaseError: if the path does not end in ``.nii`` or ``.nii.gz``.
    """
    return write_nifti(case.labels(label_set).read(), case.record.geometry, path, description=_EXPORTED)


def is_export(path: Path | str) -> bool:
    """Tell whether an export wrote this file: anything else of its name may be a scan, or what an expert drew."""
    try:
        header = nib.load(path).header
    except (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError):
        return False
    return isinstance(header, nib.Nifti1Header) and bytes(header["descrip"].item()).decode("latin-1") == _EXPORTED


def note_of(path: Path | str) -> str:
    """Return the comment that ``write_nifti`` left in a file; nothing where there is none, or the file cannot be read."""
    try:
        header = nib.load(path).header
    except (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError):
        return ""
    notes = [each for each in getattr(header, "extensions", ()) if each.get_code() == _COMMENT]
    return notes[0].get_content().rstrip(b"\0").decode("utf-8", "replace") if notes else ""


def write_nifti(array: np.ndarray, geometry: Geometry, path: Path | str, *, description: str = "", note: str = "") -> Path:
    """Write an array ``(z, y, x)`` or ``(c, z, y, x)`` with a geometry; readers never see half a file.

    Args:
        array: What to write.
        geometry: Where its voxels lie.
        path: Ends in ``.nii`` or ``.nii.gz``; missing folders are made, an existing file is replaced.
        description: For the header, at most 79 letters.
        note: A comment of any length, as a header extension; none where it is empty.

    Raises:
        InvalidCaseError: if the path does not end in ``.nii`` or ``.nii.gz``, or the values fit no NIfTI data type.
    """
    target = Path(path)
    ending = next((ending for ending in (".nii.gz", ".nii") if target.name.endswith(ending)), None)
    if ending is None:
        message = f"{target} must end in .nii or .nii.gz."
        raise InvalidCaseError(message)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{uuid4().hex}{ending}")
    try:
        image = _image(_storable(array), geometry)
        image.header["descrip"] = description
        if note:
            image.header.extensions.append(Nifti1Extension(_COMMENT, note.encode()))
        nib.save(image, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _image(array: np.ndarray, geometry: Geometry) -> Any:
    array_ijk = array.T if array.ndim == 3 else array.T[:, :, :, np.newaxis, :]
    header = _header(array_ijk, geometry)
    if array.ndim == 4:
        header.set_intent("vector")
    # Without an affine of its own the image takes the header's forms as they are.
    return nib.Nifti1Image(array_ijk, None, header)


def _header(array_ijk: np.ndarray, geometry: Geometry) -> Any:
    affine = np.array(geometry.affine)
    header = _empty_header(array_ijk)
    _restore_forms(header, geometry)
    # Somebody may have cropped or resampled the case since: then the affine is right, and the old header is not.
    if not np.array_equal(header.get_best_affine(), affine):
        header = _empty_header(array_ijk)
        header.set_zooms([*geometry.spacing_zyx_mm[::-1], *[1.0] * (array_ijk.ndim - 3)])
        header.set_sform(affine, code=_SCANNER)
    return header


def _empty_header(array_ijk: np.ndarray) -> Any:
    header = nib.Nifti1Header()
    header.set_data_dtype(array_ijk.dtype)
    header.set_data_shape(array_ijk.shape)
    header["xyzt_units"] = _MILLIMETRES
    return header


def _restore_forms(header: Any, geometry: Geometry) -> None:
    fields = geometry.nifti
    for name in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
        if name in fields:
            header[name] = fields[name]
    if "qfac" in fields:
        header["pixdim"][0] = fields["qfac"]
    grouped = {"quatern": ("quatern_b", "quatern_c", "quatern_d"), "qoffset": ("qoffset_x", "qoffset_y", "qoffset_z")}
    for group, names in grouped.items():
        for name, value in zip(names, np.ravel(fields.get(group, [])), strict=False):
            header[name] = value
    for name, row in zip(("srow_x", "srow_y", "srow_z"), np.reshape(fields.get("sform", []), (-1, 4)), strict=False):
        header[name] = row


def _storable(array: np.ndarray) -> np.ndarray:
    wanted = _STORED.get(array.dtype.name)
    if wanted is None:
        return array
    stored = array.astype(wanted)
    if not np.array_equal(stored, array, equal_nan=array.dtype.kind == "f"):
        message = f"values from {array.min()} to {array.max()} of type {array.dtype} do not fit NIfTI's {wanted}."
        raise InvalidCaseError(message)
    return stored
