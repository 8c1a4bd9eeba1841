"""Stored prompts of one case, gathered slice by slice and piece by piece into what a teacher can be asked.

What is *not* the object says something only beside a hint where it is. So negative points and scribbles count on slices where
something positive prompts the same class; alone they prompt neither slice nor class (``usable_prompts``).
"""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np

from distill.patches import Patch
from distill.prompts.choice import ABSENT, REVIEW
from distill.prompts.grouping import grouped
from distill.prompts.slice_hint import SliceHint, box_of
from storage.case import MOST_POINTS, CaseRecord, Prompt
from storage.rle import decode as decode_rle

__all__ = ["SliceHint", "box_of", "extreme_hint", "hints_by_slice", "piece_inputs", "recist_hint", "usable_prompts"]

PIECES = "4"
"""Raised whenever several pieces of a class on a slice are asked otherwise."""
POLE_FLOOR = 0.4
"""A 3D box never shrinks below this share of its sides, even at its first and last slice."""
INWARD_PX = 2.0
"""How far extreme points are moved inward."""
RECIST_MARGIN = 0.08
"""Share of its sides by which the box around the diameters is widened; 5 to 10 % is usual."""
_POINT_KINDS = frozenset({"point", "scribble"})
HALF_PX = np.float32(0.5)
"""Prompts count pixel ``n`` as covering ``[n, n + 1)``; teachers count its centre as ``n`` and add the half themselves."""


def usable_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts that a teacher can be asked with, in the order given.

    Left out are negative boxes and masks, for which no teacher has an input, and negative points and scribbles on slices where
    nothing positive (a box, a mask, a point, a scribble, or a 3D box through the slice) prompts the same class: asked alone they would
    make a slice count as prompted of which nobody said that the object is on it.
    """
    given = list(prompts)
    told = {_place(prompt) for prompt in given if prompt.positive and prompt.kind not in ("box3d", ABSENT) and _is_something(prompt)}
    boxes = [prompt for prompt in given if prompt.positive and prompt.kind == "box3d"]
    return [
        prompt
        for prompt in given
        if prompt.positive
        or (prompt.kind in _POINT_KINDS and (_place(prompt) in told or any(_passes_through(box, prompt) for box in boxes)))
    ]


def _place(prompt: Prompt) -> tuple[int, str, int]:
    return prompt.class_id, prompt.axis, prompt.slice if prompt.slice is not None else 0


def _is_something(prompt: Prompt) -> bool:
    return prompt.kind != "mask" or (prompt.mask_size_yx is not None and bool(decode_rle(prompt.mask_rle, prompt.mask_size_yx).any()))


def _passes_through(box: Prompt, prompt: Prompt) -> bool:
    """Say whether a 3D box crosses the axial slice of a prompt of the same class."""
    class_id, axis, z = _place(prompt)
    low, high = (box.box_zyxzyx_px[0], box.box_zyxzyx_px[3]) if box.box_zyxzyx_px is not None else (0.0, 0.0)
    return (box.class_id, box.axis, axis) == (class_id, "z", "z") and np.floor(low) <= z < np.ceil(high)


def hints_by_slice(
    record: CaseRecord, prompts: Iterable[Prompt], axis: Literal["z", "y", "x"] = "z"
) -> dict[int, dict[int, tuple[SliceHint, ...]]]:
    """Gather the prompts across one axis as ``{class id: {slice: hints}}``, one hint per piece (``distill.prompts.grouping``).

    Every hint has something positive, see ``usable_prompts``. What is about one piece is joined: the box around its boxes, points and
    scribbles together; a rough mask gives its box as well. 3D boxes become a box per slice that shrinks elliptically towards the poles, except on
    slices where a reviewer drew. Prompts across other axes are left out (``distill.prompts.axes``); the record is that of the case with this axis first.
    """
    gathered: dict[int, dict[int, list[SliceHint]]] = {}
    given = usable_prompts(prompts)
    redrawn = {_place(prompt) for prompt in given if prompt.source == REVIEW and prompt.kind not in ("box3d", ABSENT)}
    for prompt in given:
        slices = gathered.setdefault(prompt.class_id, {})
        for z, hint in _as_hints(record, prompt) if prompt.axis == axis else ():
            if prompt.kind != "box3d" or prompt.source == REVIEW or (prompt.class_id, "z", z) not in redrawn:
                slices.setdefault(z, []).append(hint)
    return {class_id: {z: grouped(hints) for z, hints in sorted(slices.items())} for class_id, slices in gathered.items() if slices}


def piece_inputs(record: CaseRecord, prompts: Iterable[Prompt], classes: Collection[int]) -> dict[str, str]:
    """Return what a label's fingerprint takes in where a class has several pieces on a slice, and nothing elsewhere.

    Args:
        record: of the case.
        prompts: that it is asked with.
        classes: ids of those that are asked about.
    """
    given = [prompt for prompt in prompts if prompt.class_id in classes]
    places = Counter(_place(prompt) for prompt in given if prompt.kind not in (*_POINT_KINDS, "box3d", ABSENT))
    pointed = {_place(prompt) for prompt in given if prompt.kind in _POINT_KINDS and prompt.positive}
    may_be = (
        any(count > 1 for count in places.values())
        or any(prompt.kind in ("mask", "box3d") for prompt in given)
        or not pointed.isdisjoint(places)
    )
    if may_be and any(len(pieces) > 1 for slices in hints_by_slice(record, given).values() for pieces in slices.values()):
        return {"pieces": PIECES}
    return {}


def _as_hints(record: CaseRecord, prompt: Prompt) -> Iterable[tuple[int, SliceHint]]:
    if prompt.kind == "box3d" and prompt.box_zyxzyx_px is not None:
        return _box3d_hints(record, np.asarray(prompt.box_zyxzyx_px, np.float32))
    z = prompt.slice if prompt.slice is not None else 0
    if prompt.kind == "box" and prompt.box_xyxy_px is not None:
        return [(z, SliceHint(box=np.asarray(prompt.box_xyxy_px, np.float32)))]
    if prompt.kind in _POINT_KINDS and prompt.points_xy_px:
        points = np.asarray(prompt.points_xy_px, np.float32) - HALF_PX
        points = points[spread(points, MOST_POINTS)]
        signs = np.full(len(points), float(prompt.positive), np.float32)
        parts = [slice(None)] if prompt.kind == "scribble" else [slice(n, n + 1) for n in range(len(points))]
        return [(z, SliceHint(points=points[part], point_labels=signs[part])) for part in parts]
    if prompt.kind in ("extreme", "recist") and len(prompt.points_xy_px) == 4:
        ends = np.asarray(prompt.points_xy_px, np.float32)
        return [(z, extreme_hint(ends) if prompt.kind == "extreme" else recist_hint(ends))]
    if prompt.kind == "mask" and prompt.mask_rle and prompt.mask_size_yx is not None:
        return _mask_hint(z, decode_rle(prompt.mask_rle, prompt.mask_size_yx))
    return []


def spread(points: np.ndarray, count: int) -> list[int]:
    """Return which ``count`` of some points ``(n, 2)`` cover them best, in their order: the most central one, and each next the furthest from those before.

    Farthest-point sampling (Gonzalez 1985): no point is further from a chosen one than twice the least that is possible.
    """
    if len(points) <= count:
        return list(range(len(points)))
    chosen = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())]
    while len(chosen) < count:
        away = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(axis=1)
        away[chosen] = -1
        chosen.append(int(away.argmax()))
    return sorted(chosen)


def point_inputs(prompts: Iterable[Prompt], classes: Collection[int]) -> dict[str, str]:
    """Return what a label's fingerprint takes in where some of a prompt's points are left out, and nothing elsewhere."""
    many = any(prompt.class_id in classes and prompt.kind in _POINT_KINDS and len(prompt.points_xy_px) > MOST_POINTS for prompt in prompts)
    return {"points": "spread"} if many else {}


def extreme_hint(ends: np.ndarray) -> SliceHint:
    """Return the exact box of four extreme points ``(4, 2)`` xy, and as positive points each of them moved inward, and their mean.

    On the border itself a point says as much about the outside (Maninis et al. 2018 made them prompts of their own).
    """
    middle = ends.mean(axis=0)
    inward = middle - ends
    lengths = np.maximum(np.linalg.norm(inward, axis=1, keepdims=True), 1e-6)
    moved = ends + inward * np.minimum(INWARD_PX / lengths, 0.5)
    return _positive(np.concatenate([ends.min(axis=0), ends.max(axis=0)]), np.concatenate([moved, middle[None]]))


def recist_hint(ends: np.ndarray) -> SliceHint:
    """Return the box around both diameters of a lesion, a little widened, and as positive points their crossing and what lies a quarter from their ends.

    A lesion bulges beyond its diameters (Cai et al. 2018 start from them in the same way).

    Args:
        ends: ``(4, 2)`` xy: of the long diameter, then of the short one.
    """
    low, high = ends.min(axis=0), ends.max(axis=0)
    margin = RECIST_MARGIN * (high - low)
    long, short = ends[:2], ends[2:]
    quarters = [line[0] + share * (line[1] - line[0]) for line in (long, short) for share in (0.25, 0.75)]
    return _positive(np.concatenate([low - margin, high + margin]), np.stack([_crossing(long, short), *quarters]))


def _crossing(long: np.ndarray, short: np.ndarray) -> np.ndarray:
    """Return where two lines ``(2, 2)`` cross; between their middles where they run side by side, or where they cross outside of the long one."""
    along, across = long[1] - long[0], short[1] - short[0]
    turn = float(along[0] * across[1] - along[1] * across[0])
    gap = short[0] - long[0]
    share = float(gap[0] * across[1] - gap[1] * across[0]) / turn if abs(turn) > 1e-6 else -1.0
    crossing: np.ndarray = long[0] + share * along if 0 <= share <= 1 else np.concatenate([long, short]).mean(axis=0)
    return crossing


def _positive(box: np.ndarray, points: np.ndarray) -> SliceHint:
    points = (points - HALF_PX).astype(np.float32)
    return SliceHint(box=box.astype(np.float32), points=points, point_labels=np.ones(len(points), np.float32))


def _mask_hint(z: int, mask: np.ndarray) -> list[tuple[int, SliceHint]]:
    box = box_of(mask > 0)
    if box is None:
        return []
    x0, y0, x1, y1 = (int(side) for side in box)
    return [(z, SliceHint(box=box, mask=Patch(values=mask[y0:y1, x0:x1].astype(np.float32), corner_yx=(y0, x0))))]


def _box3d_hints(record: CaseRecord, box: np.ndarray) -> list[tuple[int, SliceHint]]:
    low, high = box[:3], box[3:]
    first, last = max(0, int(np.floor(low[0]))), min(record.shape_czyx[1], int(np.ceil(high[0])))
    centre, half = (low + high) / 2, (high - low) / 2
    hints = []
    for z in range(first, last):
        height = (z + 0.5 - centre[0]) / (half[0] + 0.5)
        shrink = max(POLE_FLOOR, float(np.sqrt(max(0.0, 1 - height**2))))
        (y, x), (dy, dx) = centre[1:], half[1:] * shrink
        hints.append((z, SliceHint(box=np.array([x - dx, y - dy, x + dx, y + dy], np.float32))))
    return hints
