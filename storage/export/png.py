"""Pictures back to PNG: a case that came in as a picture goes out as one, of the same height and width, and so do its labels.

A NIfTI file of a picture is one slice whose first index runs along its columns, with an affine that nobody has measured: hard to lay over the
PNG that it came from. So a case of one slice without a known spacing is written as PNG: labels in grey, whose values are class ids (1, 2, ...,
255 for ignore: it looks black), as ``samdistill predict`` writes them and ingest reads them.
"""

from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from storage.case import CaseRecord
from storage.stored_case import Case

_SOFTWARE = "Software"
"""The keyword of PNG's text chunks for who made a picture (PNG specification, 11.3.4.3)."""
_EXPORTED = "samdistill export"
"""Marks what an export wrote, and so may write again."""


def is_picture(record: CaseRecord) -> bool:
    """Tell whether a case has nothing that a PNG would lose: one slice, and no place or size in a patient."""
    return record.shape_czyx[1] == 1 and not record.geometry.spacing_known and not record.geometry.nifti


def fits_png(record: CaseRecord) -> bool:
    """Tell whether the pixels of a picture fit a PNG as they are: grey of 8 or 16 bits, or colours of 8."""
    return is_picture(record) and (record.shape_czyx[0], record.dtype) in {(1, "uint8"), (1, "uint16"), (3, "uint8")}


def export_png_image(case: Case, path: Path | str) -> Path:
    """Write the pixels of a picture for which ``fits_png`` holds; missing folders are made, an existing file is replaced."""
    pixels_cyx = case.read()[:, 0]
    return _write(pixels_cyx[0] if len(pixels_cyx) == 1 else np.moveaxis(pixels_cyx, 0, -1), Path(path))


def export_png_labels(case: Case, label_set: str, path: Path | str) -> Path:
    """Write the class ids of a picture as 8-bit grey; missing folders are made, an existing file is replaced.

    Raises:
        LabelSetNotFoundError: if the case has no such label set.
    """
    return _write(case.labels(label_set).read()[0], Path(path))


def is_png_export(path: Path | str) -> bool:
    """Tell whether an export wrote this file: anything else of its name may be a scan, or what an expert drew."""
    try:
        with Image.open(path) as picture:
            return isinstance(picture, PngImageFile) and picture.text.get(_SOFTWARE) == _EXPORTED
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return False


def _write(pixels: np.ndarray, path: Path) -> Path:
    """Write a picture under a name of its own first, so that readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, made_by = path.with_name(f".{uuid4().hex}.png"), PngInfo()
    made_by.add_text(_SOFTWARE, _EXPORTED)
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(unfinished, pnginfo=made_by)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
