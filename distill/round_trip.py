"""Follow each track of a propagated mask back, and see whether it meets the mask that it began with.

A track that stays smooth may still have slid onto another organ. So it is followed back from the last slice that it reached, and must
meet its own beginning (forward-backward consistency, Kalal et al. 2010). Slices of a track that does not are unknown: neither object
nor background.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.casework import CaseWork, ClassWork, Track
from distill.embedding_memory import EmbeddingMemory
from distill.patches import Patch
from distill.prompts.ends import Direction
from distill.prompts.hints import SliceHint, box_of
from distill.prompts.schedule import SlicePlan
from distill.quality import dice
from distill.questions import AskSettings
from distill.teachers.base import Teacher
from distill.uncertainty import OUTSIDE
from distill.wavefront import run_wavefront

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
    teacher: Teacher,
    works: Sequence[CaseWork],
    settings: AskSettings,
    *,
    check: Callable[[], None] | None = None,
    memory: EmbeddingMemory | None = None,
) -> None:
    """Follow every track back to the slice that it began at; note how well the worst meets it, and which slices are unknown because one does not.

    The way back is asked with one box about the picture as it is: it is a check, and not a label. ``check`` and
    ``memory`` are ``run_wavefront``'s: what the way out kept need not be encoded again.
    """
    journeys = [
        (target, direction, reached, _way_back(work, key, reached))
        for work in works
        for key, target in work.classes.items()
        for direction in DIRECTIONS
        if (reached := _reached(target, direction))
    ]
    run_wavefront(teacher, [shadow for _, _, _, shadow in journeys], replace(settings, **_BACK), check=check, memory=memory)
    for target, direction, reached, shadow in journeys:
        (back,) = shadow.classes.values()
        agreements = {number: _met(back, target, number, zs[0]) for number, zs in reached.items()}
        target.round_trips[direction] = min(agreements.values())
        for number, agreement in agreements.items():
            if agreement < settings.least_round_trip:
                target.unknown.update(reached[number][1:])


def _met(back: ClassWork, target: ClassWork, track: int, seed: int) -> float:
    """Return the Dice of what the way back of a track ended with and what it had begun with."""
    end = back.tracks[track].answers.get(seed)
    begin = target.tracks[track].answers[seed].mask
    agreement = float(dice(np.zeros_like(begin) if end is None else end.mask, begin))
    return agreement if np.isfinite(agreement) else 0.0


def _reached(target: ClassWork, direction: Direction) -> dict[int, list[int]]:
    """Return the slices of each track that went on beyond the outermost prompted slice, which comes first, as far as they were believed."""
    prompted = [plan.z for plan in target.plans if plan.distance == 0]
    step = 1 if direction == "up" else -1
    seed = max(prompted) if direction == "up" else min(prompted)
    reached = {}
    for number in sorted({plan.track for plan in target.plans if plan.z == seed}):
        answers, zs = target.tracks[number].answers, [seed]
        while zs[-1] + step in answers:
            zs.append(zs[-1] + step)
        if seed in answers and len(zs) > 1:
            reached[number] = zs
    return reached


def _way_back(work: CaseWork, class_id: int, reached: Mapping[int, Sequence[int]]) -> CaseWork:
    """Return the case with one class to be asked from the last slice of each track back to its first."""
    target = work.classes[class_id]
    plans = [plan for number, zs in reached.items() for plan in _plans_back(target.tracks[number], number, zs)]
    return replace(work, classes={class_id: ClassWork(plans=plans, probability=np.zeros(target.probability.shape, np.float32))})


def _plans_back(track: Track, number: int, reached: Sequence[int]) -> list[SlicePlan]:
    last = track.answers[reached[-1]]
    hint = SliceHint(box=box_of(last.mask), mask=Patch.cut(last.probability, last.region, OUTSIDE))
    plans = [SlicePlan(z=reached[-1], distance=0, parents=(), hint=hint, box_between=None, track=number)]
    for distance, z in enumerate(reached[-2::-1], start=1):
        plans.append(SlicePlan(z=z, distance=distance, parents=(plans[-1].z,), hint=None, box_between=None, track=number))
    return plans
