"""Do prompts say where along a volume their object ends?

Whoever prompts an organ from end to end has small prompts last. So towards an end where the outermost prompted slice has at most a quarter of the largest one's area the
organ is believed to have ended with the slices that are asked beyond (``schedule_slices``); and where a 3D box ends, the organ does. On 100 hippocampi, every
fourth slice and both ends prompted, the outermost box has 0.23 of the largest one's area at most, half of them 0.03; on two slices from the middle of the organ
boxes differ by a tenth. Sources that look at the whole volume say where their object is not, and leave no end open.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from distill.prompts.choice import REVIEW, WEAK, source_of
from distill.prompts.schedule import usual_reach
from distill.prompts.slice_hint import SliceHint
from storage import Prompt

Direction = Literal["down", "up"]
"""Towards slice 0, or away from it."""
NARROWED = 0.25
"""Share of the largest area from which on a prompt or mask has become small."""


def open_ends(hints: Mapping[int, Sequence[SliceHint]], prompts: Iterable[Prompt], depth: int) -> frozenset[Direction]:
    """Return towards which ends of the volume the prompts of one class leave slices that are not asked, and do not say that the object has ended.

    Args:
        hints: by slice; at least one.
        prompts: that they come from, all of the class.
        depth: number of slices of the case.
    """
    given = list(prompts)
    if not {source_of(prompt) for prompt in given} <= {WEAK, REVIEW}:
        return frozenset()
    reach = usual_reach(hints, depth)
    areas = {z: sum(_area(hint) for hint in each) for z, each in hints.items()}
    narrow = NARROWED * max(areas.values())
    boxes = [prompt.box_zyxzyx_px for prompt in given if prompt.kind == "box3d" and prompt.box_zyxzyx_px is not None]
    ends: dict[Direction, tuple[int, bool, bool]] = {
        "down": (min(hints), min(hints) > reach, any(int(np.floor(box[0])) <= min(hints) for box in boxes)),
        "up": (max(hints), depth - 1 - max(hints) > reach, any(int(np.ceil(box[3])) > max(hints) for box in boxes)),
    }
    return frozenset(direction for direction, (z, has_more, boxed) in ends.items() if has_more and not boxed and not 0 < areas[z] <= narrow)


def _area(hint: SliceHint) -> float:
    """Return the area of a hint's box in pixels; 0 where it has none."""
    return 0.0 if hint.box is None else float(np.prod(hint.box[2:] - hint.box[:2]))
