"""What needs no model at all: an ellipse in each box. A teacher or student that is not better has learnt nothing."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from distill.prompts.choice import chosen_prompts
from storage import Archive, Case, ClassInfo, LabelHistory, Prompt, fingerprint

LABEL_SET = "baseline/ellipse"

_ELLIPSE = "1"
"""Raised whenever other ellipses are drawn from the same prompts."""


def ellipse_in_box(box_xyxy_px: Sequence[float], shape_yx: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Return the ellipse that touches the four sides of a box.

    Args:
        box_xyxy_px: Column and row of two corners; pixel ``n`` covers ``[n, n + 1)`` and belongs to the ellipse if its centre does.
        shape_yx: Of the slice.
    """
    x0, y0, x1, y1 = box_xyxy_px
    if x1 <= x0 or y1 <= y0:
        return np.zeros(shape_yx, dtype=bool)
    rows = (np.arange(shape_yx[0]) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    columns = (np.arange(shape_yx[1]) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    inside: np.ndarray = rows[:, None] ** 2 + columns[None, :] ** 2 <= 1
    return inside


def boxes_between(slices: Sequence[int], boxes_xyxy_px: Float[np.ndarray, "n 4"]) -> dict[int, Float[np.ndarray, " 4"]]:
    """Return a box for every slice from the first prompted one to the last, its sides interpolated between prompts.

    Args:
        slices: Indices of the prompted slices, in any order; two boxes on one slice are averaged.
        boxes_xyxy_px: One box per entry of ``slices``.
    """
    known = np.unique(slices)
    mean = np.stack([boxes_xyxy_px[np.asarray(slices) == z].mean(0) for z in known])
    every = np.arange(known[0], known[-1] + 1)
    sides = np.stack([np.interp(every, known, mean[:, side]) for side in range(4)], axis=1)
    return {int(z): box for z, box in zip(every, sides, strict=True)}


def ellipse_labels(prompts: Sequence[Prompt], shape_zyx: tuple[int, int, int], classes: Sequence[ClassInfo]) -> UInt8[np.ndarray, "z y x"]:
    """Return class ids: ellipses in the boxes of z-slices and, between those, in interpolated boxes.

    A class whose boxes are far apart in one slice (several objects) is not what this baseline can draw; it averages them. Where
    classes overlap, the later one in ``classes`` wins.
    """
    labels = np.zeros(shape_zyx, np.uint8)
    for info in classes:
        own = [p for p in prompts if p.class_id == info.id and p.kind == "box" and p.axis == "z" and p.box_xyxy_px is not None]
        if not own:
            continue
        boxes = boxes_between([int(p.slice or 0) for p in own], np.asarray([p.box_xyxy_px for p in own], dtype=float))
        for z, box in boxes.items():
            if 0 <= z < shape_zyx[0]:
                labels[z][ellipse_in_box(box.tolist(), shape_zyx[1:])] = info.id
    return labels


def write_ellipse_labels(
    archive: Archive,
    cases: Sequence[str],
    classes: tuple[ClassInfo, ...],
    *,
    label_set: str = LABEL_SET,
    sources: Sequence[str] = ("weak",),
    progress: Callable[[str], None] | None = None,
) -> int:
    """Write the ellipse labels of cases that have box prompts; return how many cases have them now.

    Labels drawn before from the same prompts stay as they are. Cases without a box get no label set, as no prompt is not the same as no
    organ, unless a prompt says that the organ is not there. ``sources`` are those whose boxes the teacher is asked with.
    """
    written = 0
    for case in cases:
        prompts = chosen_prompts(archive.catalog.prompts(case), sources)
        if any(p.kind == "absent" or (p.kind == "box" and p.axis == "z") for p in prompts):
            _write(archive[case], prompts, classes, label_set)
            written += 1
        if progress:
            progress(case)
    return written


def _write(stored: Case, prompts: Sequence[Prompt], classes: tuple[ClassInfo, ...], label_set: str) -> None:
    mark = fingerprint(ellipse=_ELLIPSE, prompts=list(prompts), classes=classes)
    if label_set in stored.label_sets() and stored.labels(label_set).history.fingerprint == mark:
        return
    sources = ",".join(sorted({p.source for p in prompts}))
    history = LabelHistory(label_set=label_set, classes=classes, made_by="students.baselines", prompt_source=sources, fingerprint=mark)
    depth, height, width = stored.record.shape_czyx[1:]
    stored.write_labels(history, ellipse_labels(prompts, (depth, height, width), classes))
