"""Source ``threshold``: what intensities alone tell apart, such as lungs, bones and bright objects, without anybody's annotation.

A range of intensities inside the patient's outline, cut into pieces; pieces of the wrong size or density go, the largest stay; each piece on
each slice becomes a box, a point at its innermost pixel and a rough mask. The teacher draws the border.
"""

from collections.abc import Mapping

import cc3d
import cv2
import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import expand_labels, watershed

from distill.errors import PlanError
from distill.intensity import modality_of
from distill.prompts.body import body_mask, grey_volume, otsu_cuts
from distill.prompts.pieces import pieces_of, prompts_of, rim_contrast
from distill.prompts.presets import PRESETS, ThresholdOptions, ThresholdRule
from distill.prompts.sources import SourceContext, Subject
from storage import CaseRecord, Prompt, fingerprint

VERSION = "1"
"""Raised whenever the same rules find something else."""


class ThresholdSource:
    """Finds classes by rules about intensities."""

    name = "threshold"
    channel_version = "2"
    """1 looked at the mean of all channels, and asked the modality of the case; 2 looks at the channel that is shown."""

    def __init__(self, rules: Mapping[int, ThresholdRule]) -> None:
        """Take the rules by class id; about other classes it says nothing."""
        self.rules = dict(rules)
        self.fingerprint = fingerprint(version=VERSION, rules={str(key): rule.model_dump_json() for key, rule in sorted(rules.items())})

    def propose(self, subject: Subject) -> list[Prompt]:
        """Return the prompts of every piece of every class that there is a rule about."""
        due = [(info.id, rule) for info in subject.classes if (rule := self.rules.get(info.id)) and _speaks_of(rule, subject)]
        if not due:
            return []
        grey = grey_volume(subject.volume_czyx, subject.shown)
        body = body_mask(grey, modality_of(subject.record, subject.shown))
        found: list[Prompt] = []
        for class_id, rule in due:
            found += _prompts(subject.record, class_id, rule, grey, find_pieces(subject.record, grey, body, rule))
        return found


def make_threshold(context: SourceContext, options: ThresholdOptions | None) -> ThresholdSource:
    """Make the source from the recipe's rules.

    Raises:
        PlanError: if there is a rule about no class of the run, or about none at all.
    """
    options = options or ThresholdOptions()
    known = {name for info in context.classes for name in (str(info.id), info.name)}
    if strangers := sorted(set(options.classes) - known):
        message = (
            f"prompts.threshold.classes has a rule for {strangers[0]!r}, but there is no such class. Known: {', '.join(sorted(known))}."
        )
        raise PlanError(message)
    rules = {info.id: rule for info in context.classes if (rule := options.rule_for(info.id, info.name)) is not None}
    if not rules:
        message = (
            "the source threshold has no rule for any class. Give one under prompts.threshold.classes, such as {lungs: {preset: lungs}}. "
            f"Presets: {', '.join(PRESETS)}."
        )
        raise PlanError(message)
    return ThresholdSource(rules)


def find_pieces(record: CaseRecord, grey_zyx: np.ndarray, body_zyx: np.ndarray, rule: ThresholdRule) -> np.ndarray:
    """Return the pieces of a class, ``(z, y, x)`` int32: 0 nothing, each piece a number of its own.

    Args:
        record: the case, for the size of its voxels.
        grey_zyx: native intensities, float.
        body_zyx: bool, see ``distill.prompts.body``.
        rule: what is looked for.
    """
    inside = body_zyx if rule.within == "body" else np.ones_like(body_zyx)
    smooth = ndimage.gaussian_filter(grey_zyx, (0, rule.smooth_px, rule.smooth_px)) if rule.smooth_px else grey_zyx
    low, high = bounds_of(rule, smooth[inside])
    mask = inside & (smooth >= low) & (smooth <= high)
    if rule.close:
        mask = _closed(mask, rule.close)
    if rule.fill:
        mask = np.stack([ndimage.binary_fill_holes(each) for each in mask])
    labels = _numbered(_eroded(mask, rule.erode))
    if rule.erode:
        labels = expand_labels(labels, distance=rule.erode * np.sqrt(2) + 0.01) * mask
    if rule.split_px:
        labels = _split(labels, rule.split_px)
    return _chosen(record, labels, grey_zyx, rule)


def bounds_of(rule: ThresholdRule, values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest intensity that a rule means, given all ``values`` among which it chooses."""
    if rule.window is not None:
        low, high = rule.window
        return -np.inf if low is None else low, np.inf if high is None else high
    if not len(values):
        return np.inf, -np.inf
    if rule.percentiles is not None:
        low, high = (float(cut) for cut in np.percentile(values, rule.percentiles))
        return low, high
    cuts = otsu_cuts(values, rule.levels)
    return (float(np.nextafter(cuts[-1], np.inf)), np.inf) if rule.otsu == "bright" else (-np.inf, float(cuts[0]))


def _speaks_of(rule: ThresholdRule, subject: Subject) -> bool:
    return not rule.modalities or modality_of(subject.record, subject.shown) in rule.modalities


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Erode slice by slice; beyond the slice there may be more of it, so its border does not count."""
    if not pixels:
        return mask
    kernel = np.ones((3, 3), np.uint8)
    return np.stack([cv2.erode(each.astype(np.uint8), kernel, iterations=pixels) > 0 for each in mask])


def _closed(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((3, 3), np.uint8)
    return np.stack([cv2.morphologyEx(each.astype(np.uint8), cv2.MORPH_CLOSE, kernel, iterations=pixels) > 0 for each in mask])


def _numbered(mask: np.ndarray) -> np.ndarray:
    return np.asarray(cc3d.connected_components(np.ascontiguousarray(mask), connectivity=6)).astype(np.int32)


def _split(labels: np.ndarray, apart_px: int) -> np.ndarray:
    """Cut pieces at their waists by a watershed of the distance to the border, seeded at its maxima."""
    depth = np.asarray(ndimage.gaussian_filter(ndimage.distance_transform_edt(labels > 0), 1.0))
    peaks = peak_local_max(depth, min_distance=apart_px, labels=labels, exclude_border=False)
    if not len(peaks):
        return labels
    seeds = np.zeros(labels.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-depth, seeds, mask=labels > 0), np.int32)


def _chosen(record: CaseRecord, labels: np.ndarray, grey: np.ndarray, rule: ThresholdRule) -> np.ndarray:
    """Keep the pieces of the right size and density, the largest first."""
    counts = np.bincount(labels.reshape(-1))
    sizes = counts * voxel_size(record)
    low, high = rule.size[0], np.inf if rule.size[1] is None else rule.size[1]
    fits = (sizes >= low) & (sizes <= high) & (counts > 0)
    fits[0] = False
    if rule.border == "drop":
        sides = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
        fits[np.unique(np.concatenate([side.reshape(-1) for side in sides]))] = False
    candidates = np.flatnonzero(fits)
    if rule.median != (None, None) and len(candidates):
        least, most = (-np.inf if rule.median[0] is None else rule.median[0]), (np.inf if rule.median[1] is None else rule.median[1])
        medians = np.asarray(ndimage.median(grey, labels, candidates))
        candidates = candidates[(medians >= least) & (medians <= most)]
    candidates = candidates[np.argsort(-counts[candidates], kind="stable")][: rule.keep]
    numbers = np.zeros(len(counts), np.int32)
    numbers[candidates] = np.arange(1, len(candidates) + 1)
    return np.asarray(numbers[labels])


def voxel_size(record: CaseRecord) -> float:
    """Return what a voxel measures: mm3, in a case of one slice mm2, without a known spacing 1."""
    if not record.geometry.spacing_known:
        return 1.0
    spacing = record.geometry.spacing_zyx_mm
    return float(np.prod(spacing[1:] if record.shape_czyx[1] == 1 else spacing))


def _prompts(record: CaseRecord, class_id: int, rule: ThresholdRule, grey: np.ndarray, labels: np.ndarray) -> list[Prompt]:
    found: list[Prompt] = []
    for piece in pieces_of(labels):
        confidence = rim_contrast(piece, grey[piece.z])
        found += prompts_of(record, class_id, piece, give=rule.give, margin=rule.margin, confidence=confidence)
    if not found and rule.absent:
        return [Prompt(case=record.id, class_id=class_id, kind="absent")]
    return found
