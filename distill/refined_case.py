"""One case, from the teacher's probabilities to a pseudo-label: smooth, threshold, clean, and decide what may be believed.

Per voxel: probabilities are smoothed over neighbouring slices, cut at a threshold (set on gold where there is some), cleaned
(``distill.cleaning``), and left ``ignore`` in the band around the threshold and where a large piece was taken away, which may be a part of the object. Per class a verdict with its reason (``distill.verdicts``):
accepted, for review, or rejected. What a person said of a mask overrules every score. A class that was rejected, or that nobody prompted
in a case, is ``ignore`` there and never background, since the object is in the scan and merely not drawn: around a mask whose
border is bad, and everywhere if the mask is of something else, as nobody knows then where the object is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from distill.cleaning import ClassRule, clean_mask, part, rectify_edges, smooth_probability
from distill.errors import PlanError
from distill.intensity import IntensitySpec
from distill.prompts.choice import ABSENT
from distill.semantic import grey_volume
from distill.verdicts import DROPPED, IDENTITY, LOST, Verdict, judge, judge_absence, overall_verdict
from storage import IGNORE, Case, CaseRecord, ClassInfo, Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinePlan:
    """What to refine, and how."""

    classes: tuple[ClassInfo, ...]
    rules: dict[int, ClassRule] = field(default_factory=dict)
    """By class id; a class without a rule gets the defaults."""
    source: str = "teacher/r1"
    target: str = "pseudo/r1"
    intensity: IntensitySpec = field(default_factory=IntensitySpec)
    """Whose grey values decide about edges, where a rule says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearsay:
    """What is known about one case besides its labels."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """By ``name/CLASSID``: what was measured after labelling."""
    people: Mapping[int, str] = field(default_factory=dict)
    """Class id -> what a person said of the source's mask: accept, ignore or reject."""


@dataclass(frozen=True, slots=True)
class Refined:
    """One case after refinement."""

    ids: np.ndarray
    """``(z, y, x)`` uint8 with IGNORE."""
    probability: np.ndarray
    """``(k, z, y, x)`` uint8: what was cut, after smoothing, in the order of the plan's classes."""
    verdicts: dict[int, Verdict]
    scores: dict[str, float]


def plan_for(plan: RefinePlan, record: CaseRecord) -> RefinePlan:
    """Return the plan as it holds for one case: volumes are not judged where the spacing is unknown, since a pixel then has no size."""
    if record.geometry.spacing_known:
        return plan
    return replace(plan, rules={key: replace(rule, volume_mm3=None) for key, rule in plan.rules.items()})


def refine_case(case: Case, plan: RefinePlan, heard: Hearsay | None = None) -> Refined:
    """Refine one case; reads its source labels, writes nothing.

    Args:
        case: which carries the plan's source label set.
        plan: what to do.
        heard: what semantic tests and people said of its masks.
    """
    heard = heard or Hearsay()
    plan = plan_for(plan, case.record)
    labels = case.labels(plan.source)
    parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    unknown: dict[int, np.ndarray] = {}
    verdicts: dict[int, Verdict] = {}
    scores: dict[str, float] = {}
    for info in plan.classes:
        drawn = drawn_mask(case, plan, info.id)
        if f"{ABSENT}/{info.id}" in labels.scores:
            verdicts[info.id] = judge_absence(labels.scores[f"{ABSENT}/{info.id}"])
            continue
        if drawn is None:
            verdicts[info.id] = Verdict(keep="reject", reason="not-prompted")
            continue
        rule = plan.rules.get(info.id, ClassRule())
        known = _of_class(dict(labels.scores) | dict(heard.scores), info.id)
        parts[info.id] = drawn
        pieces = part(drawn[0] >= rule.threshold, rule, _known_spacing(case))
        unknown[info.id] = np.asarray(ndimage.binary_dilation(pieces.dropped, iterations=2)) | pieces.gaps
        known |= {DROPPED: float(pieces.dropped.sum() / max(drawn[1].sum(), 1))} if pieces.dropped.any() else {}
        verdicts[info.id] = judge(
            drawn[1], known["pairwise_dice"], rule, case.spacing_zyx_mm, evidence=known, person=heard.people.get(info.id)
        )
        kept = {name: known[name] for name in ("pairwise_dice", "quality", DROPPED, *IDENTITY) if name in known}
        kept["volume_mm3"] = float(drawn[1].sum() * np.prod(case.spacing_zyx_mm))
        scores |= {f"{name}/{info.id}": value for name, value in kept.items()}
    ids = compose(parts, verdicts, plan, case.record.shape_czyx[1:], vote=_vote(labels, plan), unknown=unknown)
    ids[unknown_slices(labels)] = IGNORE
    overall = overall_verdict(verdicts)
    blank = np.zeros(ids.shape, np.float32)
    cut = np.stack([parts[info.id][0] if info.id in parts else blank for info in plan.classes])
    return Refined(
        ids,
        np.rint(255 * cut).astype(np.uint8),
        verdicts,
        scores | {"accepted": float(overall == "accept"), "ignored_share": float((ids == IGNORE).mean())},
    )


def unknown_slices(labels: Labels) -> np.ndarray:
    """Return the slices ``(z,)`` bool about which nothing is known: a mask was carried there, and did not lead back to where it came from."""
    unknown = labels.map("unknown")
    depth = labels.ids.shape[0]
    return np.zeros(depth, bool) if unknown is None else np.asarray(np.asarray(unknown[:]).reshape(depth, -1).any(axis=1))


def class_probability(case: Case, plan: RefinePlan, class_id: int) -> np.ndarray | None:
    """Return the ensemble's mean probability of one class as it was stored, ``(z, y, x)`` float32; None if nobody prompted it.

    Raises:
        PlanError: if the source label set has no probabilities.
    """
    labels = case.labels(plan.source)
    stored = labels.probability
    if stored is None:
        message = f"case {case.id}: label set {plan.source!r} has no probabilities, which refinement needs. It was probably imported rather than made by a teacher."
        raise PlanError(message)
    order = [info.id for info in labels.history.classes]
    if class_id not in order or f"pairwise_dice/{class_id}" not in labels.scores:
        return None
    place = order.index(class_id)
    return np.asarray(np.asarray(stored[place : place + 1], np.float32)[0] / np.float32(255))


def drawn_mask(case: Case, plan: RefinePlan, class_id: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return one class as refinement smooths, cuts and cleans it; None if nobody prompted it.

    Returns:
        ``(z, y, x)`` float32 probability as it is cut, and bool mask.

    Raises:
        PlanError: if the source label set has no probabilities.
    """
    plan = plan_for(plan, case.record)
    probability = class_probability(case, plan, class_id)
    if probability is None:
        return None
    rule = plan.rules.get(class_id, ClassRule())
    smooth = smooth_probability(probability, rule, case.spacing_zyx_mm)
    if rule.rectify_edges:
        smooth = rectify_edges(smooth, grey_volume(case.record, case.read(), plan.intensity))
    return smooth, clean_mask(smooth >= rule.threshold, rule, _known_spacing(case))


def _known_spacing(case: Case) -> tuple[float, float, float] | None:
    return case.spacing_zyx_mm if case.record.geometry.spacing_known else None


def _of_class(scores: Mapping[str, float], class_id: int) -> dict[str, float]:
    """Return the scores of one class by their names alone."""
    parts = {name: name.rpartition("/") for name in scores}
    return {first: scores[name] for name, (first, _, last) in parts.items() if last == str(class_id)}


def _vote(labels: Labels, plan: RefinePlan) -> np.ndarray | None:
    """Return the share of members that say yes, 0 to 1, where a rule asks for it and it was kept."""
    wanted = any(rule.disputed_from is not None for rule in plan.rules.values())
    stored = labels.map("vote") if wanted else None
    return None if stored is None else np.asarray(stored[:], np.float32) / np.float32(255)


def compose(
    parts: dict[int, tuple[np.ndarray, np.ndarray]],
    verdicts: dict[int, Verdict],
    plan: RefinePlan,
    shape: tuple[int, int, int],
    *,
    vote: np.ndarray | None = None,
    unknown: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Put the classes of one case together.

    Where accepted classes overlap, the one further above its threshold wins. The ignore band and everything rejected or not
    prompted come last, except that they never overwrite an accepted class.

    Args:
        parts: class id -> probability as it is cut, and mask, both ``(z, y, x)``.
        verdicts: by class id.
        plan: classes and rules.
        shape: of the case.
        vote: ``(z, y, x)`` share of the ensemble's members that say yes, for rules about disputed voxels.
        unknown: class id -> bool ``(z, y, x)``: where large pieces were taken away from its mask, and the gaps in it (``distill.cleaning.Parted``).
    """
    ids = np.zeros(shape, np.uint8)
    margin = np.zeros(shape, np.float32)
    ignore = np.zeros(shape, bool)
    for class_id, (smooth, mask) in parts.items():
        rule = plan.rules.get(class_id, ClassRule())
        if verdicts[class_id].keep == "reject":
            ignore |= np.True_ if verdicts[class_id].reason in LOST else surroundings(smooth > 0.02)
            continue
        above = np.where(mask, smooth - rule.threshold + 1e-6, 0)
        ids = np.where(above > margin, class_id, ids).astype(np.uint8)
        margin = np.maximum(margin, above)
        band = np.abs(smooth - rule.threshold) < rule.ignore_band
        if rule.disputed_from is not None and vote is not None:
            band |= np.minimum(vote, 1 - vote) >= rule.disputed_from
        # Only doubt that touches the object: a small, removed component is background by decision, not by doubt.
        ids[band & mask & (ids == class_id)] = IGNORE
        if unknown is not None and class_id in unknown:
            ignore |= unknown[class_id]
        ignore |= band & ~mask & np.asarray(ndimage.binary_dilation(mask, iterations=2))
    if any(verdict.reason == "not-prompted" for verdict in verdicts.values()):
        ignore[:] = True
    ids[ignore & (ids == 0)] = IGNORE
    return ids


def surroundings(touched: np.ndarray, margin: float = 0.3) -> np.ndarray:
    """Return the bounding box of ``touched`` widened by ``margin`` of its sides, as ``(z, y, x)`` bool; all True if nothing was touched."""
    where = ndimage.find_objects(touched.astype(np.int8))
    if not where or where[0] is None:
        return np.ones(touched.shape, bool)
    out = np.zeros(touched.shape, bool)
    grown = tuple(slice(max(0, s.start - grow), s.stop + grow) for s in where[0] for grow in [int(np.ceil(margin * (s.stop - s.start)))])
    out[grown] = True
    return out
