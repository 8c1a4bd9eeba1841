"""Read sparse labels: NIfTI files in which only some slices are drawn. Each drawn slice becomes a mask and its tight box."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer

from storage import rle
from storage.case import IGNORE, Prompt
from storage.ingest.gold import read_labels_for
from storage.ingest.source import case_id_from_name
from storage.ingest.weak_convert import Converter

Axis = Literal["z", "y", "x"]
_AXES: tuple[Axis, Axis, Axis] = ("z", "y", "x")


def sparse_prompts(path: Path, converter: Converter) -> list[Prompt]:
    """Turn one sparse label file, named like its case, into prompts.

    Raises:
        IngestError: ``unknown-case``, ``unknown-class``, ``label-geometry-mismatch``, ``empty-mask``, or what reading the file finds.
    """
    record = converter.record(case_id_from_name(path.name))
    labels = read_labels_for(record, path)
    labels = np.where(labels == IGNORE, 0, labels)
    classes = [converter.class_id(int(value), None) for value in np.unique(labels) if value]
    axis = drawn_axis(labels)
    return [
        prompt
        for class_id in classes
        for index, mask in _drawn_slices(labels == class_id, axis)
        for prompt in _mask_and_box(record.id, class_id, axis, index, mask, converter.source)
    ]


def drawn_axis(labels: Integer[np.ndarray, "z y x"]) -> Axis:
    """Find the axis that the annotator scrolled along: across it, the smallest share of slices has a label."""
    drawn = labels != 0
    shares = [float(drawn.any(axis=tuple(a for a in range(3) if a != n)).mean()) for n in range(3)]
    return _AXES[int(np.argmin(shares))]  # of equals the first, so z


def _drawn_slices(mask: Bool[np.ndarray, "z y x"], axis: Axis) -> Iterator[tuple[int, Bool[np.ndarray, "row column"]]]:
    planes = np.moveaxis(mask, _AXES.index(axis), 0)
    for index in np.flatnonzero(planes.any(axis=(1, 2))):
        yield int(index), planes[index]


def _mask_and_box(
    case: str, class_id: int, axis: Axis, index: int, mask: Bool[np.ndarray, "row column"], source: str
) -> tuple[Prompt, Prompt]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    size = (mask.shape[0], mask.shape[1])
    return (
        Prompt(
            case=case, class_id=class_id, kind="mask", axis=axis, slice=index, mask_rle=rle.encode(mask), mask_size_yx=size, source=source
        ),
        Prompt(case=case, class_id=class_id, kind="box", axis=axis, slice=index, box_xyxy_px=box, source=source),
    )
