"""In which order the slices of a case are asked, and from what.

Prompted slices come first. Every other slice waits for its neighbour that is nearer to a prompt, whose mask then becomes its
prompt; a slice midway between two prompts waits for both. So each slice is asked once, slices at the same distance from a
prompt are asked together (in one batch, over all cases), and errors travel at most half the gap between two prompts.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from distill.prompts.hints import SliceHint


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePlan:
    """How one slice of one class will be asked."""

    z: int
    distance: int
    """Slices to the nearest prompt; 0 for a prompted slice."""
    parents: tuple[int, ...]
    """Slices whose masks are needed first."""
    hint: SliceHint | None
    """The stored prompt of a prompted slice."""
    box_between: np.ndarray | None
    """``(4,)`` xyxy: the boxes of the prompts on both sides, interpolated; None beyond the outermost prompts."""


def schedule_slices(hints: dict[int, SliceHint], depth: int, *, reach: int | None = None) -> list[SlicePlan]:
    """Plan all slices of one class of one case.

    Args:
        hints: prompts by slice; at least one.
        depth: number of slices of the case.
        reach: how many slices beyond the outermost prompts may be asked. Default: one less than the usual gap between
            prompts, since an annotator who prompts every fourth slice leaves at most three slices of the organ beyond; with a
            single prompted slice there is no gap to go by, and the whole volume may be asked.

    Returns:
        Plans in an order in which parents precede their children.
    """
    prompted = sorted(hints)
    if reach is None:
        gaps = [b - a for a, b in pairwise(prompted)]
        reach = int(np.median(gaps)) - 1 if gaps else depth
    plans = [SlicePlan(z=z, distance=0, parents=(), hint=hints[z], box_between=None) for z in prompted]
    for low, high in pairwise(prompted):
        plans.extend(_between(z, low, high, hints) for z in range(low + 1, high))
    first, last = prompted[0], prompted[-1]
    plans.extend(
        SlicePlan(z=z, distance=first - z, parents=(z + 1,), hint=None, box_between=None)
        for z in range(first - 1, max(-1, first - 1 - reach), -1)
    )
    plans.extend(
        SlicePlan(z=z, distance=z - last, parents=(z - 1,), hint=None, box_between=None)
        for z in range(last + 1, min(depth, last + 1 + reach))
    )
    return sorted(plans, key=lambda plan: (plan.distance, plan.z))


def _between(z: int, low: int, high: int, hints: dict[int, SliceHint]) -> SlicePlan:
    down, up = z - low, high - z
    parents = (z - 1, z + 1) if down == up else (z - 1,) if down < up else (z + 1,)
    below, above = hints[low].box, hints[high].box
    box = None if below is None or above is None else (below * up + above * down) / (high - low)
    return SlicePlan(z=z, distance=min(down, up), parents=parents, hint=None, box_between=box)
