"""Plant wrong objects in an archive: the prompts of some cases are moved to something else in the same picture.

A hurried annotator marks the neighbouring organ; a rule picks the wrong component. Boxes and points of a chosen case move together by one
in-plane shift, stay inside the picture and keep their sizes: to where the mean gradient is highest (something with an edge) among the
positions at which the boxes no longer overlap with their old places, or, in crops too small for that, overlap least. Seeded, so that
every run plants the same errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import ndimage

from storage import Archive, Prompt

WRONG_BELOW = 0.3
"""A planted mask that still reaches this Dice with gold has hit the object, and counts as no error."""
REACH = 4.0
"""Sides of the largest box: no prompt goes further, so that it stays in the same region of the body."""
_STEPS = 24
"""Positions tried along each axis of the picture."""
_SLACK = 0.02
"""Overlap beyond the least possible that a position may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Where the prompts of one case went."""

    case: str
    shift_xy_px: tuple[float, float]
    overlap: float
    """Mean share of a box that still lies in its old place."""


def plant(archive: Archive, share: float, seed: int, *, reach: float = REACH, alike: bool = False) -> list[Planted]:
    """Move the prompts of a random share of the cases; the archive's prompts are replaced.

    Args:
        archive: with axial boxes (and points) for its cases.
        share: of the cases.
        seed: chooses the cases.
        reach: how far prompts may go, in sides of the largest box; a small one keeps to the next neighbours.
        alike: of the quarter of positions with the most edge take the one that is as bright as the object, and not the one with the most.
    """
    everything = archive.catalog.prompts_by_case([record.id for record in archive.cases()])
    ids = sorted(case for case, prompts in everything.items() if any(prompt.box_xyxy_px is not None for prompt in prompts))
    chosen = sorted(np.random.default_rng(seed).choice(ids, size=round(share * len(ids)), replace=False).tolist())
    done = []
    for case in chosen:
        planted = elsewhere(case, archive[case].read(), everything[case], reach, alike=alike)
        _, _, height, width = archive[case].record.shape_czyx
        everything[case] = moved(everything[case], planted.shift_xy_px, (height, width))
        done.append(planted)
    for source in {prompt.source for found in everything.values() for prompt in found}:
        archive.catalog.delete_prompts(source=source)
    archive.catalog.add_prompts([prompt for found in everything.values() for prompt in found])
    return done


def elsewhere(case: str, volume_czyx: np.ndarray, prompts: Sequence[Prompt], reach: float = REACH, *, alike: bool = False) -> Planted:
    """Choose where the boxes of one case go."""
    boxes = [(int(p.slice or 0), np.asarray(p.box_xyxy_px, float)) for p in prompts if p.box_xyxy_px is not None and p.axis == "z"]
    height, width = volume_czyx.shape[2:]
    far_xy = np.minimum(np.array([width, height]), reach * np.max([box[2:] - box[:2] for _, box in boxes], axis=0))
    edges = {z: ndimage.gaussian_gradient_magnitude(volume_czyx[0, z].astype(float), 1.0) for z, _ in boxes}
    tried = []
    for shift_xy in product(*(np.linspace(-far, far, _STEPS) for far in far_xy)):
        news = [(z, box, shifted(box, shift_xy, (height, width))) for z, box in boxes]
        overlap = float(np.mean([_overlap(box, new) for _, box, new in news]))
        contrast = float(np.mean([_mean_inside(edges[z], new) for z, _, new in news]))
        unlike = float(np.mean([abs(_mean_inside(volume_czyx[0, z], new) - _mean_inside(volume_czyx[0, z], box)) for z, box, new in news]))
        tried.append((overlap, contrast, unlike, (float(shift_xy[0]), float(shift_xy[1]))))
    least = min(each[0] for each in tried)
    free = sorted((each for each in tried if each[0] <= least + _SLACK), key=lambda each: -each[1])
    overlap, _, _, chosen = min(free[: max(1, len(free) // 4)], key=lambda each: each[2]) if alike else free[0]
    return Planted(case=case, shift_xy_px=chosen, overlap=overlap)


def shifted(box_xyxy: np.ndarray, shift_xy: Sequence[float], size_yx: tuple[int, int]) -> np.ndarray:
    """Return a box moved by a shift, but not out of the picture; its size stays."""
    sides = box_xyxy[2:] - box_xyxy[:2]
    low = np.clip(box_xyxy[:2] + shift_xy, 0, np.maximum(0, np.array(size_yx[::-1]) - sides))
    return np.concatenate([low, low + sides])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.clip(sides, 0, None)) / np.prod(a[2:] - a[:2]))


def _mean_inside(edges: np.ndarray, box: np.ndarray) -> float:
    x0, y0, x1, y1 = np.rint(box).astype(int)
    inside = edges[max(0, y0) : max(1, y1), max(0, x0) : max(1, x1)]
    return float(inside.mean()) if inside.size else 0.0


def moved(prompts: Sequence[Prompt], shift_xy_px: tuple[float, float], size_yx: tuple[int, int]) -> list[Prompt]:
    """Return a case's axial prompts at their new places; points go with the box of their slice, and other prompts stay."""
    way: dict[int, np.ndarray] = {}
    for prompt in prompts:
        if prompt.box_xyxy_px is not None and prompt.axis == "z":
            box = np.asarray(prompt.box_xyxy_px)
            way[prompt.slice or 0] = (shifted(box, shift_xy_px, size_yx) - box)[:2]
    return [_moved(prompt, way[prompt.slice or 0]) if prompt.axis == "z" and (prompt.slice or 0) in way else prompt for prompt in prompts]


def _moved(prompt: Prompt, way_xy: np.ndarray) -> Prompt:
    dx, dy = way_xy.tolist()
    box = prompt.box_xyxy_px
    return replace(
        prompt,
        box_xyxy_px=None if box is None else (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy),
        points_xy_px=tuple((x + dx, y + dy) for x, y in prompt.points_xy_px),
    )
