"""A volume cut into pieces without names: all masks that a teacher finds, made disjoint on each slice and linked through the slices.

On a slice a smaller mask lies on top of a larger one, so that an organ keeps its lesion as a piece of its own. From slice to slice a piece
goes on in the one that it overlaps best, one to one, if they share at least half of their union (Hungarian assignment of IoUs).
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from distill.automatic import Candidate
from distill.embedding_cache import cache_inputs
from distill.intensity import intensity_inputs
from distill.prompts.everything_options import GridOptions
from distill.prompts.nameless import masks_by_slice
from distill.prompts.sources import SourceContext, Subject
from distill.teachers.base import Teacher
from storage import CaseRecord, fingerprint

VERSION = "1"
"""Raised whenever the same options cut other pieces."""
LEAST_IOU = 0.5
MOST_SMALL = 65_535
"""Numbers that fit into 16 bits."""


def supervoxels(teacher: Teacher, subject: Subject, grid: GridOptions) -> np.ndarray:
    """Return the pieces of a case, ``(z, y, x)``: 0 where no mask is, numbers from 1; uint16, or uint32 where there are too many.

    Args:
        teacher: one that was trained with points.
        subject: the case.
        grid: how densely to ask, and which masks to keep.

    Raises:
        PromptError: if the teacher does not answer points.
    """
    numbers = np.zeros(subject.record.shape_czyx[1:], np.uint32)
    last = 0
    for z, candidates in masks_by_slice(teacher, subject, grid):
        here = disjoint(candidates, numbers.shape[1:])
        before = numbers[z - 1] if z else np.zeros_like(numbers[0])
        numbers[z], last = linked(before, here, last)
    return numbers.astype(np.uint16) if last <= MOST_SMALL else numbers


def supervoxel_inputs(context: SourceContext, record: CaseRecord, grid: GridOptions) -> str:
    """Return the fingerprint of all that the pieces of a case depend on: the scan, how it is shown, the teacher and the grid."""
    teacher, plan = context.teacher, context.plan
    return fingerprint(
        version=VERSION,
        case=[record.fingerprint, record.modality],
        grid=grid.model_dump_json(),
        teacher=[teacher.fingerprint, teacher.profile, plan.precision],
        **intensity_inputs(plan.intensity, record),
        **cache_inputs(plan.embedding_cache),
    )


def disjoint(candidates: Sequence[Candidate], shape_yx: tuple[int, ...]) -> np.ndarray:
    """Return ``(y, x)`` uint32: each mask a number from 1, smaller ones on top of larger ones; those that are covered altogether have none left."""
    painted = np.zeros(shape_yx, np.uint32)
    for n, candidate in enumerate(sorted(candidates, key=lambda each: -each.area_px), start=1):
        painted[candidate.mask] = n
    left = np.unique(painted[painted > 0])
    return np.where(painted > 0, np.searchsorted(left, painted) + 1, 0).astype(np.uint32)


def linked(before: np.ndarray, here: np.ndarray, last: int) -> tuple[np.ndarray, int]:
    """Return the pieces of a slice with the numbers of those that they go on from, and the highest number that is taken.

    Args:
        before: the slice below with its final numbers, 0 for nothing.
        here: this slice, numbered from 1.
        last: the highest number so far; new pieces count on from it.
    """
    old = np.unique(before[before > 0])
    count = int(here.max())
    names = np.zeros(count + 1, np.uint32)
    if len(old) and count:
        table = np.zeros((len(old), count))
        both = (before > 0) & (here > 0)
        np.add.at(table, (np.searchsorted(old, before[both]), here[both].astype(int) - 1), 1)
        sizes_old = np.bincount(np.searchsorted(old, before[before > 0]), minlength=len(old))
        sizes_here = np.bincount(here.reshape(-1), minlength=count + 1)[1:]
        iou = table / np.maximum(sizes_old[:, None] + sizes_here[None] - table, 1)
        for row, column in zip(*linear_sum_assignment(-iou), strict=True):
            if iou[row, column] >= LEAST_IOU:
                names[column + 1] = old[row]
    fresh = np.flatnonzero(names[1:] == 0) + 1
    names[fresh] = last + 1 + np.arange(len(fresh))
    return names[here], last + len(fresh)
