"""In which order the slices of a case are asked, and from what.

Prompted slices come first. Every other slice waits for its neighbour that is nearer to a prompt, whose mask then becomes its
prompt; a slice midway between two prompts waits for both. So each slice is asked once, slices at the same distance from a
prompt are asked together (in one batch, over all cases), and errors travel at most half the gap between two prompts.

Where a class has several pieces on a slice, each goes its own way, from piece to piece (``distill.prompts.tracks``). One that the next prompted slice
does not have is asked about on the slices that are nearer to it than to that slice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from distill.prompts.slice_hint import SliceHint
from distill.prompts.tracks import tracks_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePlan:
    """How one piece of one class will be asked on one slice."""

    z: int
    distance: int
    """Slices to the nearest prompt; 0 for a prompted slice."""
    parents: tuple[int, ...]
    """Slices whose masks are needed first."""
    hint: SliceHint | None
    """The stored prompt of a prompted slice."""
    box_between: np.ndarray | None
    """``(4,)`` xyxy: the boxes of the prompts on both sides, interpolated; None beyond the outermost prompts."""
    track: int = 0
    """Which piece; the same number on other slices is the same piece."""


def schedule_slices(hints: Mapping[int, SliceHint | Sequence[SliceHint]], depth: int, *, reach: int | None = None) -> list[SlicePlan]:
    """Plan all slices of one class of one case.

    Args:
        hints: prompts by slice, one of each piece; at least one.
        depth: number of slices of the case.
        reach: how many slices beyond the outermost prompts may be asked. Default: one less than the usual gap between
            prompts, since an annotator who prompts every fourth slice leaves at most three slices of the organ beyond; with a
            single prompted slice there is no gap to go by, and the whole volume may be asked.

    Returns:
        Plans in an order in which parents precede their children.
    """
    prompted = sorted(hints)
    if reach is None:
        reach = usual_reach(prompted, depth)
    pieces = {z: (each,) if isinstance(each, SliceHint) else tuple(each) for z, each in hints.items()}
    plans: list[SlicePlan] = []
    for number, track in enumerate(tracks_of(pieces)):
        first, last = min(track), max(track)
        below = min(reach, first) if first == prompted[0] else _nearer(prompted[prompted.index(first) - 1], first)
        above = min(reach, depth - 1 - last) if last == prompted[-1] else _nearer(last, prompted[prompted.index(last) + 1])
        plans.extend(_along(track, number, below, above))
    return sorted(plans, key=lambda plan: (plan.distance, plan.z, plan.track))


def usual_reach(slices: Iterable[int], depth: int) -> int:
    """Return how many slices beyond the outermost prompts are asked if nothing else is said: one less than the usual gap between them."""
    gaps = [b - a for a, b in pairwise(sorted(slices))]
    return int(np.median(gaps)) - 1 if gaps else depth


def _nearer(low: int, high: int) -> int:
    """Return how many slices between two are nearer to one of them."""
    return (high - low - 1) // 2


def _along(track: dict[int, SliceHint], number: int, below: int, above: int) -> list[SlicePlan]:
    """Plan the slices of one piece: prompted ones, those between them, and so many below the first and above the last."""
    prompted = sorted(track)
    first, last = prompted[0], prompted[-1]
    plans = [SlicePlan(z=z, distance=0, parents=(), hint=track[z], box_between=None, track=number) for z in prompted]
    for low, high in pairwise(prompted):
        plans.extend(_between(z, low, high, track, number) for z in range(low + 1, high))
    ends = [(first - far, first - far + 1, far) for far in range(1, below + 1)] + [
        (last + far, last + far - 1, far) for far in range(1, above + 1)
    ]
    return plans + [SlicePlan(z=z, distance=far, parents=(parent,), hint=None, box_between=None, track=number) for z, parent, far in ends]


def _between(z: int, low: int, high: int, hints: Mapping[int, SliceHint], number: int) -> SlicePlan:
    down, up = z - low, high - z
    parents = (z - 1, z + 1) if down == up else (z - 1,) if down < up else (z + 1,)
    below, above = hints[low].box, hints[high].box
    box = None if below is None or above is None else (below * up + above * down) / (high - low)
    return SlicePlan(z=z, distance=min(down, up), parents=parents, hint=None, box_between=box, track=number)
