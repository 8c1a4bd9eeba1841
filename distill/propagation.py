"""Carry a mask from prompted slices through the volume, and notice when the organ ends or the track is lost.

Beyond the outermost prompts each slice is asked with what its neighbour answered (``distill.prompts.schedule``). The organ has ended where
little of the mask is left or the ensemble falls apart. The track is taken to be lost, rather than the organ at its end, where the mask jumps: in
area, in place, or away from its neighbour (the IoU stop of micro-sam's volume tool, Archit et al. 2025). Every stop is kept with its reason.
"""

import numpy as np

from distill.answers import Answer
from distill.casework import ClassWork, Stop
from distill.questions import Ask, AskSettings

ENDED = "organ-ended"
AREA, JUMP, OVERLAP, OUTGROWN = "area-ratio", "centroid-jump", "iou-below-tau", "outgrown"


def stop_of(ask: Ask, answer: Answer, settings: AskSettings) -> Stop | None:
    """Say why a slice beyond the outermost prompts does not hold the object any more; None while it does."""
    if not ask.plan.distance or ask.plan.box_between is not None:
        return None
    known = [ask.track.answers[z] for z in ask.plan.parents if z in ask.track.answers]
    before = max((each.summary.area_px for each in known), default=0)
    summary, reason = answer.summary, None
    if summary.area_px < max(1.0, settings.end_area_share * before) or summary.pairwise_dice < settings.end_agreement:
        reason = ENDED
    elif settings.propagate and before:
        reason = lost_because(known[0].mask, answer.mask, settings)
        if reason is None and summary.area_px > settings.stop_outgrown * _first_area(ask, before):
            reason = OUTGROWN
    return None if reason is None else Stop(z=ask.plan.z, reason=reason, track=ask.plan.track)


def _first_area(ask: Ask, otherwise: int) -> int:
    """Return the area on the prompted slice that a track began at; what the caller says where nothing was found on it."""
    step = ask.plan.parents[0] - ask.plan.z
    first = ask.track.answers.get(ask.plan.z + step * ask.plan.distance)
    return first.summary.area_px if first is not None and first.summary.area_px else otherwise


def lost_because(before: np.ndarray, now: np.ndarray, settings: AskSettings) -> str | None:
    """Say why a mask cannot be the next one of a track: area, place or overlap; None if it can.

    Args:
        before: ``(H, W)`` bool, not empty.
        now: ``(H, W)`` bool, not empty.
        settings: the limits.
    """
    areas = float(before.sum()), float(now.sum())
    low, high = settings.stop_area
    if not low <= areas[1] / areas[0] <= high:
        return AREA
    moved = np.linalg.norm(np.argwhere(now).mean(axis=0) - np.argwhere(before).mean(axis=0))
    if moved > settings.stop_jump * np.sqrt(areas[0]):
        return JUMP
    shared = float((before & now).sum())
    return OVERLAP if shared < settings.stop_iou * (sum(areas) - shared) else None


def told(target: ClassWork) -> dict[str, str]:
    """Return what a label set's history says about the tracks of one class: where and why they stopped, and how the ways back ended."""
    stops = ", ".join(f"{stop.reason} at {stop.z}" for stop in target.stops)
    trips = ", ".join(f"{direction} {agreement:.3f}" for direction, agreement in target.round_trips.items())
    return {name: text for name, text in (("stops", stops), ("round_trips", trips)) if text}
