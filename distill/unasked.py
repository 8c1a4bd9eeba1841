"""Slices that nobody asked about: which of them are background, and of which nobody knows.

People prompt some slices of an organ, and a few more are asked beyond the outermost ones. What lies further is background where something says that the
organ has ended: the teacher, on the slice where the track stopped; the mask, which has become small; or the prompts (``distill.prompts.ends``). Of other
slices nobody knows, as far as organs reach, nor of those beyond a slice on which a track was lost. Where the teacher draws nothing on the outermost prompted slice
of an end that is open, a person has seen the object there and the teacher has not: that slice is unknown, as is what lies beyond it. The label set's map
``unknown`` says which these are.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from distill.casework import CaseWork, ClassWork, Track
from distill.prompts.axes import asked_axes, turned_record
from distill.prompts.ends import NARROWED, Direction, open_ends
from distill.prompts.hints import hints_by_slice
from distill.propagation import ENDED
from storage import CaseRecord, Prompt

UNASKED_RULE = "2"
"""Raised whenever other slices are taken to be unknown, or count otherwise."""
_STEPS: dict[Direction, int] = {"down": -1, "up": 1}


def unasked_slices(work: CaseWork, target: ClassWork, limit_mm: float, *, propagate: bool) -> set[int]:
    """Return the slices of which nobody knows whether a class is there.

    Args:
        work: answered.
        target: one of its classes.
        limit_mm: how far beyond the last slice that was answered; without a known spacing it is the whole rest.
        propagate: whether masks were carried through the whole volume, and prompts say nothing about its ends.
    """
    depth = target.probability.shape[0]
    geometry = work.record.geometry
    length = math.ceil(limit_mm / geometry.spacing_zyx_mm[target.axis]) if geometry.spacing_known else depth
    unasked: set[int] = set()
    for direction, step in _STEPS.items():
        edge = _open_edge(target, direction, depth, propagate=propagate)
        if edge is not None and limit_mm > 0:
            unasked |= {z for z in range(edge, edge + step * length, step) if 0 <= z < depth}
            unasked |= {z for z in [edge - step] if not target.summaries[z].area_px}
    return unasked


def shown(slices: Iterable[int]) -> str:
    """Return slices as a person writes them: ``0-3, 7``."""
    given = set(slices)
    firsts = sorted(z for z in given if z - 1 not in given)
    lasts = sorted(z for z in given if z + 1 not in given)
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in zip(firsts, lasts, strict=True))


def _open_edge(target: ClassWork, direction: Direction, depth: int, *, propagate: bool) -> int | None:
    """Return the first slice in a direction of which nobody knows; None where the object has ended, or the volume."""
    prompted = [plan for plan in target.plans if plan.distance == 0]
    if not prompted:
        return None
    step = _STEPS[direction]
    seed = max(step * plan.z for plan in prompted) * step
    edges = []
    for number in sorted({plan.track for plan in prompted if plan.z == seed}):
        edge = _edge(target.tracks[number], seed, step)
        if edge != seed and 0 <= edge < depth and _is_open(target, number, edge, direction, propagate=propagate):
            edges.append(edge)
    return min(edges, key=lambda edge: step * edge, default=None)


def _edge(track: Track, seed: int, step: int) -> int:
    """Return the first slice from ``seed`` on about which a track has no answer."""
    z = seed
    while z in track.answers:
        z += step
    return z


def _is_open(target: ClassWork, track: int, edge: int, direction: Direction, *, propagate: bool) -> bool:
    """Say whether a track has not come to the object's end before ``edge``: it was lost there, or not asked further."""
    last = edge - _STEPS[direction]
    if not target.tracks[track].answers[last].summary.area_px:  # on its prompted slice: beyond, an empty answer ends a track
        return propagate or direction in target.open_ends
    if edge in target.tracks[track].absent:
        ended = any((stop.z, stop.track, stop.reason) == (edge, track, ENDED) for stop in target.stops)
        return not ended or last in target.unknown
    largest = max(target.summaries[plan.z].area_px for plan in target.plans if plan.distance == 0 and plan.z in target.summaries)
    return direction in target.open_ends and target.summaries[last].area_px > NARROWED * largest


def unasked_inputs(
    record: CaseRecord, prompts: Iterable[Prompt], classes: Iterable[int], *, limit_mm: float, propagate: bool
) -> Mapping[str, Any]:
    """Return what a label's fingerprint takes in where slices may be unknown, and nothing elsewhere.

    Args:
        record: of the case.
        prompts: that it is asked with.
        classes: ids of those that are asked about.
        limit_mm: of ``unasked_slices``.
        propagate: whether masks are carried through the whole volume, where tracks may be lost.
    """
    wanted = set(classes)
    given = [prompt for prompt in prompts if prompt.class_id in wanted]
    if not given or max(record.shape_czyx[1:]) == 1:
        return {}
    axes = asked_axes(given)
    is_open = propagate and any(turned_record(record, axis).shape_czyx[1] > 1 for axis in axes.values())
    for axis in () if is_open else sorted(set(axes.values())):
        turned = turned_record(record, axis)
        hints = hints_by_slice(turned, (prompt for prompt in given if axes.get(prompt.class_id) == axis), axis)
        for key, each in hints.items():
            is_open |= bool(open_ends(each, (prompt for prompt in given if prompt.class_id == key), turned.shape_czyx[1]))
    return {"unasked": [UNASKED_RULE, limit_mm]} if is_open else {}
