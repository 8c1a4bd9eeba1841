"""nnU-Net's way to read images and labels, answered from the archive: a file it is given is a pointer, a few bytes of JSON that name a case.

nnU-Net looks for readers by name, in its own package only; `register` puts ours beside them.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32, Int16, Shaped, UInt8
from nnunetv2.imageio import reader_writer_registry
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from distill.unknown import believed_ids
from storage import IGNORE, Archive, Case, ClassInfo
from students.frozen import Frozen
from students.nnunet.dataset import numbered
from students.nnunet.job import CATALOG
from students.soft import soft_targets

BETWEEN_PICTURES_MM = 999.0
"""nnU-Net's word for the distance between slices of a single slice: larger than both others, so that it is never resampled."""


class ImagePointer(Frozen):
    """Names the image of a case, all channels."""

    archive: str
    case: str
    flat: bool


class LabelPointer(ImagePointer):
    """Names the labels of a case, and what nnU-Net calls their ids."""

    label_set: str
    class_ids: tuple[int, ...]
    """In nnU-Net's order: the first becomes 1."""
    ignore: int
    """What becomes of voxels that nobody should learn from: the number after the classes, or 0 where intensities are measured."""


def finite(image: Shaped[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "c z y x"]:
    """Return intensities that nnU-Net can reckon with: what is no finite number becomes the lowest or highest that is."""
    values = image.astype(np.float32)
    known = np.isfinite(values)
    if known.all():
        return values
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    return np.nan_to_num(values, nan=low, neginf=low, posinf=high)


def told_spacing(spacing_zyx_mm: Sequence[float], *, flat: bool) -> list[float]:
    """Return the spacing as nnU-Net wants it, in the order of the array's axes."""
    first, *others = (float(length) for length in spacing_zyx_mm)
    return [BETWEEN_PICTURES_MM if flat else first, *others]


class ArchiveIO(BaseReaderWriter):
    """Reads cases of an archive. Instances hold nothing, as nnU-Net makes one for each case."""

    supported_file_endings = (".json",)

    def read_images(self, image_fnames: Sequence[str]) -> tuple[Float32[np.ndarray, "c z y x"], dict[str, Any]]:
        """Return all channels of the case that the one pointer names, and its spacing."""
        pointer = ImagePointer.model_validate_json(Path(image_fnames[0]).read_text(encoding="utf-8"))
        case = _case(pointer)
        return finite(case.read()), {"spacing": told_spacing(case.spacing_zyx_mm, flat=pointer.flat)}

    def read_seg(self, seg_fname: str) -> tuple[Int16[np.ndarray, "1 z y x"], dict[str, Any]]:
        """Return the labels that the pointer names, as far as they are believed, with nnU-Net's numbers."""
        pointer = LabelPointer.model_validate_json(Path(seg_fname).read_text(encoding="utf-8"))
        case = _case(pointer)
        ids = believed_ids(case.labels(pointer.label_set))
        return numbered(ids, pointer.class_ids, pointer.ignore)[None], {"spacing": told_spacing(case.spacing_zyx_mm, flat=pointer.flat)}

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> NoReturn:
        """Refuse: answers are written to the archive by ``students.predict``, never through nnU-Net."""
        message = f"{output_fname}: archives are not written through nnU-Net. Use 'samdistill predict'."
        raise NotImplementedError(message)


def soft_labels(pointer: Path, classes: tuple[ClassInfo, ...]) -> UInt8[np.ndarray, "k z y x"]:
    """Return the probability of each class, 255 = certain, of the labels that a pointer names; labels without any are certain."""
    told = LabelPointer.model_validate_json(pointer.read_text(encoding="utf-8"))
    labels = _case(told).labels(told.label_set)
    return soft_targets(labels, numbered(believed_ids(labels), told.class_ids, IGNORE), classes)


@lru_cache(maxsize=4)
def _archive(url: str, catalog: str | None) -> Archive:
    return Archive.open(url, catalog=catalog, mode="r")


def _case(pointer: ImagePointer) -> Case:
    return _archive(pointer.archive, os.environ.get(CATALOG))[pointer.case]


def register() -> None:
    """Let nnU-Net find the reader by its name in this process."""
    reader_writer_registry.ArchiveIO = ArchiveIO
