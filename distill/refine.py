"""From the teacher's probabilities to pseudo-labels: every case once per state of its labels, rules, scores and verdicts of people.

What is decided about one case is in ``distill.refined_case``.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distill.cleaning import ClassRule, clean_mask, smooth_probability
from distill.errors import PlanError
from distill.refined_case import Hearsay, Refined, RefinePlan, class_probability, compose, drawn_mask, plan_for, refine_case, surroundings
from distill.verdicts import IDENTITY, KEEPS, MADE_OF, Verdict, judge, overall_verdict, worst
from distill.withdrawal import made_anew
from storage import Archive, Case, CaseRecord, LabelHistory, LabelSetNotFoundError, fingerprint
from storage.working import work_through

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

REFINE = "7"
"""Raised whenever refinement's answers change."""


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
    prints = _fingerprints(archive, plan, records, heard)

    stage = f"refine:{plan.target}"

    def refine(case: str) -> None:
        with made_anew(archive, stage, case, plan.target):
            _refine(archive[case], plan, heard.get(case, Hearsay()), prints[case])

    worked = work_through(archive.ledger, stage, prints, refine, progress=progress)
    counts, reasons = count_verdicts(archive, plan.target, list(prints))
    return RefineSummary(
        label_set=plan.target,
        done=len(worked.done),
        skipped=worked.skipped,
        quarantined=worked.quarantined,
        unsized=sum(not record.geometry.spacing_known for record in records)
        if any(rule.volume_mm3 is not None for rule in plan.rules.values())
        else 0,
        verdicts=counts,
        reasons=reasons,
        seconds=time.monotonic() - began,
    )


def replaced_cases(archive: Archive, plan: RefinePlan) -> list[str]:
    """Return the cases whose refined labels are there, and would be written anew: they are of other masks, rules or opinions. Reads no case."""
    there = archive.catalog.fingerprints(plan.target)
    records = [record for record in archive.cases(with_labels=plan.source) if record.id in there]
    prints = _fingerprints(archive, plan, records, _hearsay(archive, plan, [record.id for record in records]))
    return [case for case, print_ in prints.items() if there[case] != print_]


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


def _fingerprints(archive: Archive, plan: RefinePlan, records: Sequence[CaseRecord], heard: Mapping[str, Hearsay]) -> dict[str, str]:
    """Return by case the fingerprint of everything that its refined labels depend on."""
    drawn = archive.catalog.fingerprints(plan.source)
    return {
        record.id: _fingerprint(plan, record, drawn[record.id], heard.get(record.id, Hearsay())) for record in records if record.id in drawn
    }


def _fingerprint(plan: RefinePlan, record: CaseRecord, source: str, heard: Hearsay) -> str:
    own = plan_for(plan, record)
    looks = plan.intensity.model_dump(mode="json") if any(rule.rectify_edges for rule in own.rules.values()) else None
    return fingerprint(
        refine=REFINE, source=source, rules=own.rules, classes=plan.classes, scores=heard.scores, people=heard.people, intensity=looks
    )


def _refine(case: Case, plan: RefinePlan, heard: Hearsay, mark: str) -> None:
    """Refine one case, and write what comes of it."""
    refined = refine_case(case, plan, heard)
    case.write_labels(_history(case, plan, refined, mark), refined.ids, probability_kzyx=refined.probability, scores=refined.scores)


def _history(case: Case, plan: RefinePlan, refined: Refined, print_: str) -> LabelHistory:
    source = case.labels(plan.source).history
    own = plan_for(plan, case.record).rules
    rules = {info.id: own.get(info.id, ClassRule()) for info in plan.classes}
    decided: dict[str, str | float | int | bool | list[float]] = {MADE_OF: source.fingerprint}
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
            history = archive[case].labels(label_set).history
        except LabelSetNotFoundError:
            continue
        parameters = history.parameters
        verdicts = {
            info.id: Verdict(keep=keep, reason=str(parameters.get(f"reason/{info.id}", "")))
            for info in history.classes
            for keep in KEEPS
            if parameters.get(f"verdict/{info.id}") == keep
        }
        keeps[overall_verdict(verdicts)] += 1
        reasons.update(str(value) for key, value in parameters.items() if key.startswith("reason/"))
    return dict(keeps), dict(reasons)


def accepted_cases(archive: Archive, label_set: str) -> list[str]:
    """Return the ids of the cases whose pseudo-labels were accepted, sorted; these may be trained on."""
    return sorted(case for case, scores in archive.catalog.scores(label_set).items() if scores.get("accepted", 0.0) >= 1.0)
