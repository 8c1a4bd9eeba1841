"""What gold says about a teacher's drawings, case by case: the material that calibration, guarantees and their benchmark share.

Where gold is ``IGNORE`` nobody said what is there: such a voxel counts neither for nor against a mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8

from distill.cleaning import ClassRule, clean_mask, mend_edges, smooth_probability
from distill.intensity import IntensitySpec
from distill.levels import LevelCounts, count_levels
from distill.quality import dice
from distill.rings import RING_COVERAGE, inner_radius, outer_radius
from distill.semantic import grey_volume
from distill.unknown import unknown_map
from storage import IGNORE, Archive, LabelSetNotFoundError
from storage.case import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldCase:
    """One class of one case that a teacher has drawn and an expert has judged."""

    case: str
    patient: str
    levels: UInt8[np.ndarray, "z y x"]
    """Mean probability of the ensemble times 255."""
    gold: Bool[np.ndarray, "z y x"]
    """Empty where the expert looked for the class and found none."""
    judged: Bool[np.ndarray, "z y x"]
    """Where the expert said what is there, and refinement believes that the teacher did; gold is empty elsewhere."""
    scores: Mapping[str, float]
    """Of this class, without its id: ``pairwise_dice``, ``oof_dice``, ..."""
    spacing_zyx_mm: tuple[float, float, float]
    spacing_known: bool
    grey: np.ndarray | None = None
    """``(z, y, x)``: what edges are mended by, where a rule says so."""
    answered: Bool[np.ndarray, "z y x"] | None = None
    """Where the teacher was asked about the class and its answer is believed; None is everywhere. Elsewhere it says nothing about its neighbours."""

    @property
    def probability(self) -> np.ndarray:
        """The mean probability, ``(z, y, x)`` float32."""
        return self.levels.astype(np.float32) / 255.0

    def says_of(self, mask: Bool[np.ndarray, "z y x"]) -> bool:
        """Tell whether gold can tell if a mask is right: something of either was judged, or everything was, and both are empty."""
        return bool(self.gold.any() or (mask & self.judged).any() or self.judged.all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one drawing, cut by one rule, is worth."""

    case: str
    patient: str
    scores: Mapping[str, float]
    dice: float
    """With gold, where that was judged; NaN where both are empty there."""
    outer_mm: float
    """How far the mask has to grow to cover gold (``distill.rings``); pixels where the spacing is not known."""
    inner_mm: float
    """How far it has to shrink to be gold."""
    counts: LevelCounts
    told: bool = True
    """Whether gold can tell if the mask is right (``GoldCase.says_of``)."""


def gold_cases(
    archive: Archive,
    class_id: int,
    *,
    source: str,
    gold: str = "gold",
    part: Part | None = "calibration",
    intensity: IntensitySpec | None = None,
) -> list[GoldCase]:
    """Read the cases of one part that carry probabilities and agreement of a class, and gold that knows the class.

    Gold that is ``IGNORE`` everywhere says nothing of any mask; such cases are among them, with nothing judged. Nor is a mask judged on slices about which the teacher was
    not asked, or where its track was lost: refinement ignores them.

    Args:
        archive: Where from.
        class_id: Which class.
        source: The teacher's label set.
        gold: The expert's label set.
        part: Only its cases; None reads all parts.
        intensity: Reads the pictures too, for rules that mend edges.
    """
    added, found = archive.catalog.scores(source), []
    for record in archive.cases(part=part, with_labels=source):
        case = archive[record.id]
        try:
            labels, truth = case.labels(source), case.labels(gold)
        except LabelSetNotFoundError:
            continue
        order = [info.id for info in labels.history.classes]
        scores = _of_class(dict(labels.scores) | added.get(record.id, {}), class_id)
        judged = class_id in {info.id for info in truth.history.classes}
        if class_id not in order or "pairwise_dice" not in scores or labels.probability is None or not judged:
            continue
        ids, unknown = truth.read(), unknown_map(labels, class_id)
        known = (ids != IGNORE) & (unknown == 0)
        found.append(
            GoldCase(
                case=record.id,
                patient=record.patient,
                levels=np.asarray(labels.probability[order.index(class_id)], np.uint8),
                gold=(ids == class_id) & known,
                judged=known,
                scores=scores,
                spacing_zyx_mm=case.spacing_zyx_mm,
                spacing_known=record.geometry.spacing_known,
                grey=None if intensity is None else grey_volume(record, case.read(), intensity),
                answered=unknown == 0 if unknown.any() else None,
            )
        )
    return found


def _of_class(scores: Mapping[str, float], class_id: int) -> dict[str, float]:
    """Return the scores of one class without its id; what is no number is left out."""
    ending = f"/{class_id}"
    return {name.removesuffix(ending): value for name, value in scores.items() if name.endswith(ending) and np.isfinite(value)}


def cut_mask(case: GoldCase, rule: ClassRule) -> Bool[np.ndarray, "z y x"]:
    """Return the mask as refinement smooths, cuts and cleans it."""
    return _cut(case, rule)[1]


def _cut(case: GoldCase, rule: ClassRule) -> tuple[np.ndarray, np.ndarray]:
    lengths = rule if case.spacing_known else replace(rule, smooth_mm=0.0)
    smooth = smooth_probability(case.probability, lengths, case.spacing_zyx_mm, case.answered)
    if case.grey is not None:
        smooth = mend_edges(smooth, case.grey, rule)
    return smooth, clean_mask(smooth >= rule.threshold, rule, case.spacing_zyx_mm if case.spacing_known else None)


def count_cut(case: GoldCase, rule: ClassRule) -> LevelCounts:
    """Count the probabilities against gold as ``rule`` smooths them before it cuts: what refinement stores with its labels."""
    return _counted(_cut(case, rule)[0], case)


def _counted(smooth: np.ndarray, case: GoldCase) -> LevelCounts:
    return count_levels(np.rint(255 * smooth).astype(np.uint8), case.gold, judged=case.judged)


def evidence_of(case: GoldCase, rule: ClassRule, coverage: float = RING_COVERAGE) -> Evidence:
    """Measure one drawing, cut by ``rule``, against gold."""
    smooth, mask = _cut(case, rule)
    return Evidence(
        case=case.case,
        patient=case.patient,
        scores=case.scores,
        dice=dice(mask, case.gold, ~case.judged),
        outer_mm=outer_radius(mask, case.gold, case.spacing_zyx_mm, coverage),
        inner_mm=inner_radius(mask, case.gold, case.spacing_zyx_mm, coverage, case.judged),
        counts=_counted(smooth, case),
        told=case.says_of(mask),
    )
