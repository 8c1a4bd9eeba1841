"""Follow each track of a propagated mask back, and see whether it meets the mask that it began with.

A track that stays smooth may still have slid onto another organ. So it is followed back from the last slice that it reached, and must
meet its own beginning (forward-backward consistency, Kalal et al. 2010). Slices of a track that does not are unknown: neither object
nor background.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from distill.casework import CaseWork, ClassWork
from distill.prompts.hints import SliceHint, box_of
from distill.prompts.schedule import SlicePlan
from distill.quality import dice
from distill.questions import AskSettings
from distill.teachers.base import Teacher
from distill.wavefront import run_wavefront

Direction = Literal["down", "up"]
"""Towards slice 0, or away from it."""
_BACK: dict[str, Any] = {
    "boxes": 1,
    "flips": False,
    "rotations": (),
    "scales": (),
    "gammas": (),
    "window_shifts": (),
    "multimask": False,
    "end_area_share": 0.0,
    "end_agreement": 0.0,
    "stop_area": (0.0, np.inf),
    "stop_jump": np.inf,
    "stop_iou": 0.0,
    "stop_outgrown": np.inf,
}
"""How the way back is asked: once, about the picture as it is, and without a stop, since where it ends is the question."""
DIRECTIONS: tuple[Direction, Direction] = ("down", "up")


def check_round_trips(
    teacher: Teacher, works: Sequence[CaseWork], settings: AskSettings, *, check: Callable[[], None] | None = None
) -> None:
    """Follow every track back to the slice that it began at; note how well it meets it, and which slices are unknown because it does not.

    The way back is asked with one box about the picture as it is: it is a check, and not a label. ``check`` is ``run_wavefront``'s.
    """
    journeys = [
        (target, direction, reached, _way_back(work, key, reached))
        for work in works
        for key, target in work.classes.items()
        for direction in DIRECTIONS
        if len(reached := _reached(target, direction)) > 1
    ]
    run_wavefront(teacher, [shadow for _, _, _, shadow in journeys], replace(settings, **_BACK), check=check)
    for target, direction, reached, shadow in journeys:
        seed = reached[0]
        (back,) = shadow.classes.values()
        agreement = float(dice(back.probability[seed] > 0.5, target.probability[seed] > 0.5))
        target.round_trips[direction] = agreement if np.isfinite(agreement) else 0.0
        if target.round_trips[direction] < settings.least_round_trip:
            target.unknown.update(reached[1:])


def _reached(target: ClassWork, direction: Direction) -> list[int]:
    """Return the slices of one track, the prompted one first, as far as they were believed."""
    prompted = [plan.z for plan in target.plans if plan.distance == 0]
    step = 1 if direction == "up" else -1
    track = [max(prompted) if direction == "up" else min(prompted)]
    while track[-1] + step in target.summaries:
        track.append(track[-1] + step)
    return track if track[0] in target.summaries else []


def _way_back(work: CaseWork, class_id: int, reached: Sequence[int]) -> CaseWork:
    """Return the case with one class to be asked from the last slice of a track back to its first."""
    target = work.classes[class_id]
    last = target.probability[reached[-1]]
    hint = SliceHint(box=box_of(last > 0.5), mask=last)
    plans = [SlicePlan(z=reached[-1], distance=0, parents=(), hint=hint, box_between=None)]
    for distance, z in enumerate(reached[-2::-1], start=1):
        plans.append(SlicePlan(z=z, distance=distance, parents=(plans[-1].z,), hint=None, box_between=None))
    return replace(work, classes={class_id: ClassWork(plans=plans, probability=np.zeros(target.probability.shape, np.float32))})
