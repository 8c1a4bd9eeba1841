"""Which pieces of a class on neighbouring prompted slices are the same object: a track through the slices.

Where both slices have one piece, it is the same. Else pieces are paired one to one so that their boxes fit best, by overlap and, where they do not overlap, by
nearness (generalised IoU, Rezatofighi et al. 2019). What finds no partner ends there, or begins; how far it is from all others costs no other its partner.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from distill.prompts.slice_hint import SliceHint

LEAST_FIT = -1 / 3
"""Generalised IoU of two equal squares that lie one side's length apart; those further apart are other objects."""


def tracks_of(hints: Mapping[int, Sequence[SliceHint]]) -> list[dict[int, SliceHint]]:
    """Return the tracks through the prompted slices of a class, each ``{slice: hint}`` without a gap among the prompted slices.

    Args:
        hints: of its pieces, by slice; at least one on each.
    """
    tracks: list[dict[int, SliceHint]] = []
    before: list[dict[int, SliceHint]] = []
    last: Sequence[SliceHint] = ()
    for z in sorted(hints):
        partners = paired(last, hints[z])
        now = [before[partners[n]] if n in partners else {} for n in range(len(hints[z]))]
        tracks += [track for track in now if not track]
        for track, hint in zip(now, hints[z], strict=True):
            track[z] = hint
        before, last = now, hints[z]
    return tracks


def paired(old: Sequence[SliceHint], new: Sequence[SliceHint]) -> dict[int, int]:
    """Return for each piece of the next slice that continues one of the slice before, which one."""
    if not old or not new:
        return {}
    if len(old) == len(new) == 1:
        return {0: 0}
    fit = box_fit(_extents(new), _extents(old))
    rows, columns = linear_sum_assignment(np.maximum(fit, LEAST_FIT), maximize=True)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True) if fit[row, column] >= LEAST_FIT}


def box_fit(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the generalised IoU of boxes ``(N, 4)`` and ``(M, 4)``, ``(N, M)`` in (-1, 1]: the IoU, less the share of the box around both that neither covers."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    hull = (np.maximum(a[:, None, 2:], b[None, :, 2:]) - np.minimum(a[:, None, :2], b[None, :, :2])).prod(axis=-1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=-1) for each in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    fit: np.ndarray = shared / union - (hull - union) / hull
    return fit


def _extents(hints: Sequence[SliceHint]) -> np.ndarray:
    """Return the box of each hint, around its points where it has none, ``(N, 4)`` with sides of at least a pixel."""
    found = []
    for hint in hints:
        box = hint.box
        if box is None and hint.points is not None:
            box = np.concatenate([hint.points.min(axis=0), hint.points.max(axis=0) + 1])
        found.append(np.zeros(4) if box is None else box.astype(np.float64))
    boxes = np.stack(found)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes
