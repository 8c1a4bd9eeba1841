"""From the teacher's probabilities to pseudo-labels: smooth, threshold, clean, and decide what may be believed.

Per voxel: probabilities are smoothed over neighbouring slices, cut at a threshold (set on gold where there is some), reduced to
the largest component, and left ``ignore`` in the band around the threshold. Per class and case a verdict with its reason:
accepted, for review, or rejected. A class that was rejected, or that nobody prompted in a case, is ``ignore`` there and never
background, since the object is in the scan and merely not drawn.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import cc3d
import numpy as np
from scipy import ndimage

from distill.errors import PlanError
from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, LabelHistory, LabelSetNotFoundError, LedgerError, fingerprint
from storage.heartbeat import beating

REFINE = "3"
"""Raised whenever refinement's answers change."""

Keep = Literal["accept", "review", "reject"]
KEEPS: tuple[Keep, ...] = ("accept", "review", "reject")
ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What refinement decided about one class of one case, and why."""

    keep: Keep
    reason: str
    """A slug that reports count by: ``good-agreement``, ``pairwise-dice-below-review``, ``volume-outside-prior``, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRule:
    """How one class is refined. Thresholds come from ``calibration`` where there is gold; these defaults are documented guesses."""

    threshold: float = 0.5
    """Mean probability from which a voxel is the class."""
    ignore_band: float = 0.08
    """Half width in probability of the band around the threshold that nobody should learn from."""
    smooth_mm: float = 0.0
    """Standard deviation of the Gaussian that makes neighbouring slices agree; 0 leaves them as they are."""
    largest_component: bool = True
    volume_mm3: tuple[float, float] | None = None
    """Volumes outside this range go to review; not judged in cases without a known spacing."""
    accept_from: float = 0.85
    """Ensemble agreement (mean pairwise Dice) from which a mask is accepted."""
    review_from: float = 0.70
    """... and from which it is for a person to judge; below, it is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinePlan:
    """What to refine, and how."""

    classes: tuple[ClassInfo, ...]
    rules: dict[int, ClassRule] = field(default_factory=dict)
    """By class id; a class without a rule gets the defaults."""
    source: str = "teacher/r1"
    target: str = "pseudo/r1"


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
    prints = {record.id: _fingerprint(archive, plan, record) for record in records}
    stage = f"refine:{plan.target}"
    todo = archive.ledger.plan(stage, prints)
    due, finished = frozenset(todo), 0
    with beating(archive.ledger):
        for _ in range(ATTEMPTS):
            for case in todo:
                if archive.ledger.claim(stage, case):
                    finished += _refine_unit(archive, plan, stage, case, prints[case])
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


def _fingerprint(archive: Archive, plan: RefinePlan, record: CaseRecord) -> str:
    source = archive[record.id].labels(plan.source).history.fingerprint
    return fingerprint(refine=REFINE, source=source, rules=plan_for(plan, record).rules, classes=plan.classes)


def _refine_unit(archive: Archive, plan: RefinePlan, stage: str, case: str, print_: str) -> int:
    """Refine one claimed case; return 1 if it is done, 0 if it failed or another run has taken it meanwhile."""
    began = time.monotonic()
    try:
        refined = refine_case(archive[case], plan)
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


def refine_case(case: Case, plan: RefinePlan) -> Refined:
    """Refine one case; reads its source labels, writes nothing."""
    plan = plan_for(plan, case.record)
    labels = case.labels(plan.source)
    stored = labels.probability
    if stored is None:
        message = f"case {case.id}: label set {plan.source!r} has no probabilities, which refinement needs. It was probably imported rather than made by a teacher."
        raise PlanError(message)
    order = [info.id for info in labels.history.classes]
    probability = np.asarray(stored[:], np.float32) / 255.0
    parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    verdicts: dict[int, Verdict] = {}
    scores: dict[str, float] = {}
    for info in plan.classes:
        rule = plan.rules.get(info.id, ClassRule())
        if info.id not in order or f"pairwise_dice/{info.id}" not in labels.scores:
            verdicts[info.id] = Verdict(keep="reject", reason="not-prompted")
            continue
        smooth = smooth_probability(probability[order.index(info.id)], rule, case.spacing_zyx_mm)
        mask = clean_mask(smooth >= rule.threshold, rule)
        verdicts[info.id] = judge(mask, labels.scores[f"pairwise_dice/{info.id}"], rule, case.spacing_zyx_mm)
        scores |= {
            f"pairwise_dice/{info.id}": labels.scores[f"pairwise_dice/{info.id}"],
            f"volume_mm3/{info.id}": float(mask.sum() * np.prod(case.spacing_zyx_mm)),
        }
        parts[info.id] = (smooth, mask)
    ids = compose(parts, verdicts, plan, case.record.shape_czyx[1:])
    overall = overall_verdict(verdicts)
    blank = np.zeros(ids.shape, np.float32)
    cut = np.stack([parts[info.id][0] if info.id in parts else blank for info in plan.classes])
    return Refined(
        ids,
        np.rint(255 * cut).astype(np.uint8),
        verdicts,
        scores | {"accepted": float(overall == "accept"), "ignored_share": float((ids == IGNORE).mean())},
    )


def smooth_probability(probability: np.ndarray, rule: ClassRule, spacing_zyx_mm: tuple[float, float, float]) -> np.ndarray:
    """Smooth ``(z, y, x)`` probabilities by ``rule.smooth_mm``, an isotropic length in the patient; one-slice cases stay as they are."""
    if rule.smooth_mm <= 0 or probability.shape[0] == 1:
        return probability
    return np.asarray(ndimage.gaussian_filter(probability, [rule.smooth_mm / mm for mm in spacing_zyx_mm], truncate=3.0))


def clean_mask(mask: np.ndarray, rule: ClassRule) -> np.ndarray:
    """Keep the largest 26-connected component (where the rule says so) and fill its holes, slice by slice."""
    if rule.largest_component and mask.any():
        mask = np.asarray(cc3d.largest_k(np.ascontiguousarray(mask), k=1, connectivity=26)) > 0
    return np.stack([ndimage.binary_fill_holes(each) for each in mask]) if mask.any() else mask


def judge(mask: np.ndarray, agreement: float, rule: ClassRule, spacing_zyx_mm: tuple[float, float, float]) -> Verdict:
    """Decide about one class of one case.

    Args:
        mask: ``(z, y, x)`` bool after cleaning.
        agreement: mean pairwise Dice of the ensemble, 0 to 1.
        rule: the thresholds.
        spacing_zyx_mm: to turn voxels into mm3.
    """
    if not mask.any():
        return Verdict(keep="reject", reason="empty-mask")
    if agreement < rule.review_from:
        return Verdict(keep="reject", reason="pairwise-dice-below-review")
    volume = float(mask.sum() * np.prod(spacing_zyx_mm))
    if rule.volume_mm3 is not None and not rule.volume_mm3[0] <= volume <= rule.volume_mm3[1]:
        return Verdict(keep="review", reason="volume-outside-prior")
    if agreement < rule.accept_from:
        return Verdict(keep="review", reason="pairwise-dice-below-accept")
    return Verdict(keep="accept", reason="good-agreement")


def compose(
    parts: dict[int, tuple[np.ndarray, np.ndarray]], verdicts: dict[int, Verdict], plan: RefinePlan, shape: tuple[int, int, int]
) -> np.ndarray:
    """Put the classes of one case together.

    Where accepted classes overlap, the one further above its threshold wins. The ignore band and everything rejected or not
    prompted come last, except that they never overwrite an accepted class.
    """
    ids = np.zeros(shape, np.uint8)
    margin = np.zeros(shape, np.float32)
    ignore = np.zeros(shape, bool)
    for class_id, (smooth, mask) in parts.items():
        rule = plan.rules.get(class_id, ClassRule())
        if verdicts[class_id].keep == "reject":
            ignore |= surroundings(smooth > 0.02)
            continue
        above = np.where(mask, smooth - rule.threshold + 1e-6, 0)
        ids = np.where(above > margin, class_id, ids).astype(np.uint8)
        margin = np.maximum(margin, above)
        band = np.abs(smooth - rule.threshold) < rule.ignore_band
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


def overall_verdict(verdicts: dict[int, Verdict]) -> Keep:
    """Return the worst verdict about a class that was drawn; a class nobody prompted is ignored, and does not bar the case."""
    drawn = [verdict.keep for verdict in verdicts.values() if verdict.reason != "not-prompted"]
    return worst(drawn) if drawn else "reject"


def worst(keeps: Sequence[Keep]) -> Keep:
    """Return the most cautious of several verdicts: a case is accepted only if every class that was drawn is."""
    return max(keeps, key=KEEPS.index, default="accept")


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
