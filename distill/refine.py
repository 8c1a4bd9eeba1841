"""From the teacher's probabilities to pseudo-labels: smooth, threshold, clean, and decide what may be believed.

Per voxel: probabilities are smoothed over neighbouring slices, cut at a threshold (set on gold where there is some), cleaned
(``distill.cleaning``), and left ``ignore`` in the band around the threshold. Per class and case a verdict with its reason:
accepted, for review, or rejected. What a person said of a mask overrules every score. A class that was rejected, or that nobody prompted
in a case, is ``ignore`` there and never background, since the object is in the scan and merely not drawn: around a mask whose
border is bad, and everywhere if the mask is of something else, as nobody knows then where the object is.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from distill.cleaning import ClassRule, clean_mask, rectify_edges, smooth_probability
from distill.errors import PlanError
from distill.intensity import IntensitySpec
from distill.prompts.choice import ABSENT
from distill.semantic import grey_volume
from distill.verdicts import IDENTITY, KEEPS, LOST, Verdict, judge, judge_absence, overall_verdict, worst
from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, LabelHistory, Labels, LabelSetNotFoundError, LedgerError, fingerprint
from storage.heartbeat import beating

__all__ = [
    "ClassRule",
    "Hearsay",
    "RefinePlan",
    "RefineSummary",
    "Refined",
    "Verdict",
    "accepted_cases",
    "class_probability",
    "clean_mask",
    "compose",
    "count_verdicts",
    "drawn_mask",
    "judge",
    "plan_for",
    "refine_archive",
    "refine_case",
    "smooth_probability",
    "surroundings",
    "worst",
]

REFINE = "4"
"""Raised whenever refinement's answers change."""
ATTEMPTS = 3


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineSummary:
    """What a refinement run did."""

    label_set: str
    done: int
    skipped: int
    quarantined: tuple[str, ...]
    unsized: int
    """Cases without a known spacing, whose volumes were not judged though the plan has a rule for some."""
    verdicts: dict[str, int]
    """Cases by verdict, over all cases of the label set."""
    reasons: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Refined:
    """One case after refinement."""

    ids: np.ndarray
    """``(z, y, x)`` uint8 with IGNORE."""
    probability: np.ndarray
    """``(k, z, y, x)`` uint8: what was cut, after smoothing, in the order of the plan's classes."""
    verdicts: dict[int, Verdict]
    scores: dict[str, float]


def refine_archive(
    archive: Archive, plan: RefinePlan, *, cases: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> RefineSummary:
    """Refine every case that carries the source label set and not yet this refinement of it.

    Raises:
        PlanError: if no case carries the source label set.
    """
    began = time.monotonic()
    records = _to_refine(archive, plan, cases)
    heard = _hearsay(archive, plan, [record.id for record in records])
    prints = {record.id: _fingerprint(archive, plan, record, heard.get(record.id, Hearsay())) for record in records}
    stage = f"refine:{plan.target}"
    todo = archive.ledger.plan(stage, prints)
    due, finished = frozenset(todo), 0
    with beating(archive.ledger):
        for _ in range(ATTEMPTS):
            for case in todo:
                if archive.ledger.claim(stage, case):
                    finished += _refine_unit(archive, plan, stage, case, prints[case], heard.get(case, Hearsay()))
                    if progress is not None:
                        progress(finished, len(due))
            todo = archive.ledger.plan(stage, {case: prints[case] for case in todo})
    counts, reasons = count_verdicts(archive, plan.target, list(prints))
    quarantined = tuple(unit.unit for unit in archive.ledger.quarantined(stage) if unit.unit in prints)
    return RefineSummary(
        label_set=plan.target,
        done=finished,
        skipped=sum(case not in due and case not in quarantined for case in prints),
        quarantined=quarantined,
        unsized=sum(plan_for(plan, record) != plan for record in records),
        verdicts=counts,
        reasons=reasons,
        seconds=time.monotonic() - began,
    )


def plan_for(plan: RefinePlan, record: CaseRecord) -> RefinePlan:
    """Return the plan as it holds for one case: volumes are not judged where the spacing is unknown, since a pixel then has no size."""
    if record.geometry.spacing_known:
        return plan
    return replace(plan, rules={key: replace(rule, volume_mm3=None) for key, rule in plan.rules.items()})


def _to_refine(archive: Archive, plan: RefinePlan, cases: Sequence[str] | None) -> list[CaseRecord]:
    wanted = None if cases is None else frozenset(cases)
    records = [record for record in archive.cases(with_labels=plan.source) if wanted is None or record.id in wanted]
    if not records:
        message = f"no case carries the label set {plan.source!r}, so there is nothing to refine. Run the label stage first."
        raise PlanError(message)
    return records


def _hearsay(archive: Archive, plan: RefinePlan, cases: list[str]) -> dict[str, Hearsay]:
    """Return what semantic tests and people have said about the source's masks, by case."""
    told = ("quality", *IDENTITY)
    scores = {
        case: {name: value for name, value in each.items() if name.partition("/")[0] in told and not math.isnan(value)}
        for case, each in archive.catalog.scores(plan.source, cases).items()
    }
    people: dict[str, dict[int, str]] = {}
    for review in archive.catalog.reviews(plan.source):
        people.setdefault(review.case, {})[review.class_id] = review.verdict
    return {case: Hearsay(scores=scores.get(case, {}), people=people.get(case, {})) for case in scores.keys() | people.keys()}


def _fingerprint(archive: Archive, plan: RefinePlan, record: CaseRecord, heard: Hearsay) -> str:
    source = archive[record.id].labels(plan.source).history.fingerprint
    own = plan_for(plan, record)
    looks = plan.intensity.model_dump(mode="json") if any(rule.rectify_edges for rule in own.rules.values()) else None
    return fingerprint(
        refine=REFINE, source=source, rules=own.rules, classes=plan.classes, scores=heard.scores, people=heard.people, intensity=looks
    )


def _refine_unit(archive: Archive, plan: RefinePlan, stage: str, case: str, print_: str, heard: Hearsay) -> int:
    """Refine one claimed case; return 1 if it is done, 0 if it failed or another run has taken it meanwhile."""
    began = time.monotonic()
    try:
        refined = refine_case(archive[case], plan, heard)
        archive[case].write_labels(
            _history(archive[case], plan, refined, print_), refined.ids, probability_kzyx=refined.probability, scores=refined.scores
        )
    except Exception as error:  # noqa: BLE001 - one bad case must not stop the others
        with suppress(LedgerError):
            archive.ledger.fail(stage, case, error)
        return 0
    except BaseException:
        with suppress(LedgerError):
            archive.ledger.release(stage, case)
        raise
    try:
        archive.ledger.done(stage, case, seconds=time.monotonic() - began)
    except LedgerError:
        return 0
    return 1


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
        verdicts[info.id] = judge(
            drawn[1], known["pairwise_dice"], rule, case.spacing_zyx_mm, evidence=known, person=heard.people.get(info.id)
        )
        kept = {name: known[name] for name in ("pairwise_dice", "quality", *IDENTITY) if name in known}
        kept["volume_mm3"] = float(drawn[1].sum() * np.prod(case.spacing_zyx_mm))
        scores |= {f"{name}/{info.id}": value for name, value in kept.items()}
    ids = compose(parts, verdicts, plan, case.record.shape_czyx[1:], vote=_vote(labels, plan))
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
    spacing = case.spacing_zyx_mm if case.record.geometry.spacing_known else None
    return smooth, clean_mask(smooth >= rule.threshold, rule, spacing)


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
        # Only doubt that touches the object: a second, removed component is background by decision, not by doubt.
        ids[band & mask & (ids == class_id)] = IGNORE
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


def _history(case: Case, plan: RefinePlan, refined: Refined, print_: str) -> LabelHistory:
    source = case.labels(plan.source).history
    rules = {info.id: plan.rules.get(info.id, ClassRule()) for info in plan.classes}
    decided: dict[str, str | float | int | bool | list[float]] = {}
    for class_id, verdict in refined.verdicts.items():
        decided |= {
            f"verdict/{class_id}": verdict.keep,
            f"reason/{class_id}": verdict.reason,
            f"threshold/{class_id}": rules[class_id].threshold,
        }
        decided |= {f"ignore_band/{class_id}": rules[class_id].ignore_band, f"smooth_mm/{class_id}": rules[class_id].smooth_mm}
    return replace(
        source,
        label_set=plan.target,
        classes=plan.classes,
        made_by=f"distill.refine/{REFINE}",
        parameters=decided,
        parents=(plan.source,),
        fingerprint=print_,
    )


def count_verdicts(archive: Archive, label_set: str, cases: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Count cases by their worst verdict, and (case, class) pairs by reason."""
    keeps: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in cases:
        try:
            parameters = archive[case].labels(label_set).history.parameters
        except LabelSetNotFoundError:
            continue
        verdicts = {
            info.id: Verdict(keep=keep, reason=str(parameters.get(f"reason/{info.id}", "")))
            for info in archive[case].labels(label_set).history.classes
            for keep in KEEPS
            if parameters.get(f"verdict/{info.id}") == keep
        }
        keeps[overall_verdict(verdicts)] += 1
        reasons.update(str(value) for key, value in parameters.items() if key.startswith("reason/"))
    return dict(keeps), dict(reasons)


def accepted_cases(archive: Archive, label_set: str) -> list[str]:
    """Return the ids of the cases whose pseudo-labels were accepted, sorted; these may be trained on."""
    return sorted(case for case, scores in archive.catalog.scores(label_set).items() if scores.get("accepted", 0.0) >= 1.0)
