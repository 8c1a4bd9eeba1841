"""Every mask of a slice that a teacher finds without being told what to look for."""

from collections.abc import Iterator

import numpy as np

from distill.automatic import Candidate, GridSettings, find_objects_in
from distill.prompts.everything_options import GridOptions
from distill.prompts.pieces import Piece
from distill.prompts.sources import Subject
from distill.teachers.base import Teacher, sizes_of

BUNDLED = "samdistill-conv"
SOFT, HARD = (0.35, 0.25), (0.7, 0.85)
"""Least predicted IoU and stability. On 8 cardiac pictures no mask of the bundled teacher reaches 0.7, and the best of those at the ventricle
have 0.41 to 0.66 with a stability of 0.36 to 0.59, since a point says little to it and its logits are small."""
MOST_OF_SLICE = 0.9
"""A mask that fills more of a slice is the slice."""


def masks_by_slice(teacher: Teacher, subject: Subject, grid: GridOptions) -> Iterator[tuple[int, list[Candidate]]]:
    """Yield each slice with its masks, best predicted IoU first; those too small or as large as the slice are left out.

    Args:
        teacher: one that was trained with points.
        subject: the case.
        grid: how densely to ask, and which masks to keep.

    Raises:
        PromptError: if the teacher does not answer points.
    """
    least_iou, least_stability = SOFT if teacher.profile.name == BUNDLED else HARD
    settings = GridSettings(
        points_per_side=grid.points_per_side,
        least_predicted_iou=least_iou if grid.least_iou is None else grid.least_iou,
        least_stability=least_stability if grid.least_stability is None else grid.least_stability,
        crop_layers=grid.crops,
        least_region_px=grid.least_px,
    )
    _, depth, height, width = subject.record.shape_czyx
    together = sizes_of(teacher).pictures
    for start in range(0, depth, together):
        pictures = {z: subject.picture(z) for z in range(start, min(depth, start + together))}
        shown = [z for z, picture in pictures.items() if picture.min() != picture.max()]
        found = dict(zip(shown, find_objects_in(teacher, [pictures[z] for z in shown], settings), strict=True))
        for z in pictures:
            yield z, [each for each in found.get(z, []) if grid.least_px <= each.area_px <= MOST_OF_SLICE * height * width and each.area_px]


def piece_of(candidate: Candidate, z: int) -> Piece:
    """Return a candidate as a piece of slice ``z``."""
    x0, y0, x1, y1 = candidate.box_xyxy_px
    return Piece(z=z, mask=np.ascontiguousarray(candidate.mask[y0:y1, x0:x1]), box_xyxy_px=candidate.box_xyxy_px)
