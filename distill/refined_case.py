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

from distill.cleaning import ClassRule, Parted, filled, mend_edges, part, smooth_probability
from distill.errors import PlanError
from distill.intensity import IntensitySpec
from distill.prompts.choice import ABSENT
from distill.semantic import grey_volume
from distill.unknown import unknown_map
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
    """Return the plan as it holds for one case: without a known spacing volumes are not judged, and stacks not smoothed, since a pixel has no size."""
    if record.geometry.spacing_known:
        return plan
    is_stack = record.shape_czyx[1] > 1  # single pictures never are
    rules = {key: replace(rule, volume_mm3=None, smooth_mm=0.0 if is_stack else rule.smooth_mm) for key, rule in plan.rules.items()}
    return replace(plan, rules=rules)


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
    left_open = {info.id: unknown_map(labels, info.id) for info in plan.classes}
    unheard = {key: each > 0 for key, each in left_open.items()}
    nobody_knows = np.logical_or.reduce([each > 0 for each in left_open.values()])
    for info in plan.classes:
        drawn, pieces = _drawn(case, plan, info.id) or (None, None)
        if f"{ABSENT}/{info.id}" in labels.scores:
            verdicts[info.id] = judge_absence(labels.scores[f"{ABSENT}/{info.id}"])
            continue
        if drawn is None or pieces is None:
            verdicts[info.id] = Verdict(keep="reject", reason="not-prompted")
            continue
        rule = plan.rules.get(info.id, ClassRule())
        known = _of_class(dict(labels.scores) | dict(heard.scores), info.id)
        parts[info.id] = drawn
        unknown[info.id] = np.asarray(ndimage.binary_dilation(pieces.dropped, iterations=2)) | pieces.gaps
        known |= {DROPPED: float(pieces.dropped.sum() / max(drawn[1].sum(), 1))} if pieces.dropped.any() else {}
        verdicts[info.id] = judge(
            drawn[1], known["pairwise_dice"], rule, case.spacing_zyx_mm, evidence=known, person=heard.people.get(info.id)
        )
        kept = {name: known[name] for name in ("pairwise_dice", "quality", DROPPED, *IDENTITY) if name in known}
        kept["volume_mm3"] = float(drawn[1].sum() * np.prod(case.spacing_zyx_mm))
        scores |= {f"{name}/{info.id}": value for name, value in kept.items()}
    ids = compose(parts, verdicts, plan, case.record.shape_czyx[1:], vote=_votes(labels, plan), unknown=unknown, unheard=unheard)
    ids[nobody_knows & (ids == 0)] = IGNORE
    overall = overall_verdict(verdicts)
    blank = np.zeros(ids.shape, np.float32)
    cut = np.stack([parts[info.id][0] if info.id in parts else blank for info in plan.classes])
    return Refined(
        ids,
        np.rint(255 * cut).astype(np.uint8),
        verdicts,
        scores | {"accepted": float(overall == "accept"), "ignored_share": float((ids == IGNORE).mean())},
    )


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
    drawn = _drawn(case, plan_for(plan, case.record), class_id)
    return None if drawn is None else drawn[0]


def _drawn(case: Case, plan: RefinePlan, class_id: int) -> tuple[tuple[np.ndarray, np.ndarray], Parted] | None:
    """Return what ``drawn_mask`` does by the plan of a case, and what became of the pieces."""
    probability = class_probability(case, plan, class_id)
    if probability is None:
        return None
    rule = plan.rules.get(class_id, ClassRule())
    answered = unknown_map(case.labels(plan.source), class_id) == 0
    smooth = smooth_probability(probability, rule, case.spacing_zyx_mm, answered)
    if rule.rectify_edges:
        smooth = mend_edges(smooth, grey_volume(case.record, case.read(), plan.intensity), rule)
    spacing = _known_spacing(case)
    pieces = part(smooth >= rule.threshold, rule, spacing)
    return (smooth, filled(pieces.kept, rule, spacing)), pieces


def _known_spacing(case: Case) -> tuple[float, float, float] | None:
    return case.spacing_zyx_mm if case.record.geometry.spacing_known else None


def _of_class(scores: Mapping[str, float], class_id: int) -> dict[str, float]:
    """Return the scores of one class by their names alone."""
    parts = {name: name.rpartition("/") for name in scores}
    return {first: scores[name] for name, (first, _, last) in parts.items() if last == str(class_id)}


def _votes(labels: Labels, plan: RefinePlan) -> dict[int, np.ndarray]:
    """Return the share of members that say yes, 0 to 1, of the classes whose rule asks for it, where it was kept."""
    wanted = [info.id for info in plan.classes if info.id in plan.rules and plan.rules[info.id].disputed_from is not None]
    stored = {key: labels.class_map("vote", key) for key in wanted}
    return {key: np.asarray(each, np.float32) / np.float32(255) for key, each in stored.items() if each is not None}


def compose(
    parts: dict[int, tuple[np.ndarray, np.ndarray]],
    verdicts: dict[int, Verdict],
    plan: RefinePlan,
    shape: tuple[int, int, int],
    *,
    vote: Mapping[int, np.ndarray] | None = None,
    unknown: Mapping[int, np.ndarray] | None = None,
    unheard: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Put the classes of one case together.

    Where accepted classes overlap, the one further above its threshold wins. The ignore band and everything rejected or not
    prompted come last, except that they never overwrite an accepted class.

    Args:
        parts: class id -> probability as it is cut, and mask, both ``(z, y, x)``.
        verdicts: by class id.
        plan: classes and rules.
        shape: of the case.
        vote: class id -> ``(z, y, x)`` share of the ensemble's members that say yes, for rules about disputed voxels.
        unknown: class id -> bool ``(z, y, x)``: where large pieces were taken away from its mask, and the gaps in it (``distill.cleaning.Parted``).
        unheard: class id -> bool ``(z, y, x)``: where the class was not asked about, or is not believed (``distill.unknown``): what was drawn of it there, as from
            other planes, is not learnt, and other classes' masks stand as if it were not there.
    """
    ids = np.zeros(shape, np.uint8)
    margin = np.zeros(shape, np.float32)
    ignore = np.zeros(shape, bool)
    for class_id, (smooth, mask) in parts.items():
        rule = plan.rules.get(class_id, ClassRule())
        if verdicts[class_id].keep == "reject":
            ignore |= np.True_ if verdicts[class_id].reason in LOST else surroundings(smooth > 0.02)
            continue
        held = mask if unheard is None or class_id not in unheard else mask & ~unheard[class_id]
        above = np.where(held, smooth - rule.threshold + 1e-6, 0)
        ids = np.where(above > margin, class_id, ids).astype(np.uint8)
        margin = np.maximum(margin, above)
        band = np.abs(smooth - rule.threshold) < rule.ignore_band
        if rule.disputed_from is not None and vote is not None and class_id in vote:
            band |= np.minimum(vote[class_id], 1 - vote[class_id]) >= rule.disputed_from
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
