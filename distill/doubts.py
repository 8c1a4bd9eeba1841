"""Second looks at finished labels: is each mask of the right object, and how good is it likely to be?

Runs over an archive after labelling and adds scores to the teacher's label set (``Catalog.add_scores``); masks are those that refinement
cuts and cleans by the recipe's own rules, before any gold is looked at. One case is in memory at a time; what is kept are a few numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from distill.quality import dice
from distill.refine import RefinePlan, class_probability, drawn_mask
from distill.reverse import Sample, reverse_accuracy, sample_of
from distill.semantic import LEAST_PATIENTS, Traits, credibility, firmness, grey_volume, prior_scores, traits_of
from distill.unknown import unknown_map
from storage import IGNORE, Archive, CaseRecord, ClassInfo

DOUBTS = "3"
"""Raised whenever the answers of these tests change."""
_HEARD = {"prior": "prior", "student": "oof_dice", "reverse": "rca_dice"}
"""The score in which each test speaks of the object, in the order in which ``credibility`` takes them."""
LEFT_BY = {"prior": ("prior", "firmness"), "student": ("oof_dice",), "reverse": ("rca_dice",)}
"""The scores that each test leaves with every mask. They stay in the catalog when it is asked no more."""
MOST_REFERENCES = 8
"""Cases with gold that reverse classification looks at; each costs some 50 ms per mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtSummary:
    """What a test over an archive did."""

    masks: int
    """Scored by it."""
    note: str = ""
    """Why some, or all, could not be scored."""


def add_priors(
    archive: Archive, plan: RefinePlan, *, cases: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> DoubtSummary:
    """Score how usual each mask is in place, size and brightness, as ``prior/CLASSID``, and how firm its border is, as ``firmness/CLASSID``.

    An empty mask gets 0 for both. Where too few patients say what is usual, a ``prior`` of before becomes NaN.

    Args:
        archive: whose cases carry the plan's source label set.
        plan: how masks are cut.
        cases: restrict to these ids; default all with the label set.
        progress: called with (cases looked at, cases to look at).
    """
    wanted = None if cases is None else frozenset(cases)
    records = [record for record in archive.cases(with_labels=plan.source) if wanted is None or record.id in wanted]
    found: dict[int, dict[str, Traits | None]] = {info.id: {} for info in plan.classes}
    for n, record in enumerate(records):
        for class_id, (measured, firm) in _look_at(archive, plan, record).items():
            found[class_id][record.id] = measured
            archive.catalog.add_scores(record.id, plan.source, {f"firmness/{class_id}": firm})
        if progress is not None:
            progress(n + 1, len(records))
    patients = {record.id: record.patient for record in records}
    scored = {info.id: _scores(found[info.id], patients) for info in plan.classes}
    before = archive.catalog.scores(plan.source)
    for class_id, scores in scored.items():
        stale = {case: math.nan for case in found[class_id] if case not in scores and f"prior/{class_id}" in before.get(case, {})}
        for case, score in (scores | stale).items():
            archive.catalog.add_scores(case, plan.source, {f"prior/{class_id}": score})
    unsaid = [_too_few(info, found[info.id], patients) for info in plan.classes if found[info.id] and not scored[info.id]]
    return DoubtSummary(masks=sum(map(len, scored.values())), note="; ".join(unsaid))


def _look_at(archive: Archive, plan: RefinePlan, record: CaseRecord) -> dict[int, tuple[Traits | None, float]]:
    """Measure the masks of one case, by class; no traits where one is empty. A class that nobody prompted is left out."""
    case = archive[record.id]
    grey = grey_volume(record, case.read(), plan.intensity)
    looks: dict[int, tuple[Traits | None, float]] = {}
    for info in plan.classes:
        drawn, probability = drawn_mask(case, plan, info.id), class_probability(case, plan, info.id)
        if drawn is not None and probability is not None:
            looks[info.id] = (traits_of(drawn[1], grey, case.spacing_zyx_mm), firmness(probability, drawn[1]))
    return looks


def _scores(found: dict[str, Traits | None], patients: dict[str, str]) -> dict[str, float]:
    known = {case: measured for case, measured in found.items() if measured is not None}
    scores = prior_scores(known, patients)
    return scores | {case: 0.0 for case in found if case not in known} if scores else {}


def _too_few(info: ClassInfo, found: dict[str, Traits | None], patients: dict[str, str]) -> str:
    held = len({patients[case] for case, measured in found.items() if measured is not None})
    return f"{info.name}: masks of {held} patients do not say which place and size are usual, {LEAST_PATIENTS} would"


def add_reverse(
    archive: Archive, plan: RefinePlan, *, gold: str = "gold", progress: Callable[[int, int], None] | None = None
) -> DoubtSummary:
    """Score what each mask teaches about gold of other patients, as ``rca_dice/CLASSID`` (``distill.reverse``).

    An empty mask gets 0, and NaN says that there is no gold of another patient. Gold of at most 8 calibration cases is looked at, of as many
    patients as there are; a case is never judged by gold of its own patient.

    Args:
        archive: whose cases carry the plan's source label set.
        plan: how masks are cut.
        gold: the expert's label set.
        progress: called with (cases judged, cases to judge).
    """
    references = {info.id: _references(archive, plan, info.id, gold) for info in plan.classes}
    records, scored = archive.cases(with_labels=plan.source), 0
    for n, record in enumerate(records):
        scores = _taught(archive, plan, record, references)
        archive.catalog.add_scores(record.id, plan.source, scores)
        scored += sum(not math.isnan(value) for value in scores.values())
        if progress is not None:
            progress(n + 1, len(records))
    unsaid = [f"{info.name}: no gold of two calibration patients to be judged by" for info in plan.classes if not references[info.id]]
    return DoubtSummary(masks=scored, note="; ".join(unsaid))


def _references(archive: Archive, plan: RefinePlan, class_id: int, gold: str) -> list[tuple[str, Sample]]:
    """Sample gold of calibration cases, the first case of each patient first; nothing where there are fewer than two patients."""
    by_patient: dict[str, list[CaseRecord]] = {}
    for record in archive.cases(part="calibration", with_labels=gold):
        by_patient.setdefault(record.patient, []).append(record)
    found: list[tuple[str, Sample]] = []
    for record in (each for turn in zip_longest(*by_patient.values()) for each in turn if each is not None):
        case = archive[record.id]
        ids = case.labels(gold).read()
        sample = sample_of(ids == class_id, grey_volume(record, case.read(), plan.intensity), judged=ids != IGNORE)
        found += [] if sample is None else [(record.patient, sample)]
        if len(found) == MOST_REFERENCES:
            break
    return found if len({patient for patient, _ in found}) > 1 else []


def _taught(
    archive: Archive, plan: RefinePlan, record: CaseRecord, references: Mapping[int, Sequence[tuple[str, Sample]]]
) -> dict[str, float]:
    case, scores = archive[record.id], {}
    grey = grey_volume(record, case.read(), plan.intensity)
    for class_id, known in references.items():
        drawn = drawn_mask(case, plan, class_id)
        if drawn is not None:
            others = [each for patient, each in known if patient != record.patient]
            known_here = unknown_map(case.labels(plan.source), class_id) == 0
            sample = sample_of(drawn[1] & known_here, grey, judged=None if known_here.all() else known_here)
            nothing_beside = sample is None and drawn[1].any()
            scores[f"rca_dice/{class_id}"] = math.nan if nothing_beside else reverse_accuracy(sample, others)
    return scores


def add_answers(archive: Archive, plan: RefinePlan, answers: str) -> DoubtSummary:
    """Score how far each mask is what students say who never saw the case, as ``oof_dice/CLASSID``, by a label set of their answers.

    Args:
        archive: whose cases carry the plan's source label set.
        plan: how masks are cut.
        answers: the label set; cases without it get NaN.
    """
    said, scored = archive.catalog.fingerprints(answers), 0
    for record in archive.cases(with_labels=plan.source):
        case, scores = archive[record.id], {}
        ids = case.labels(answers).read() if record.id in said else None
        for info in plan.classes:
            drawn = drawn_mask(case, plan, info.id)
            if drawn is not None:
                unknown = unknown_map(case.labels(plan.source), info.id) > 0
                scores[f"oof_dice/{info.id}"] = math.nan if ids is None else dice(drawn[1], ids == info.id, unknown)
        archive.catalog.add_scores(record.id, plan.source, scores)
        scored += sum(not math.isnan(value) for value in scores.values())
    return DoubtSummary(masks=scored)


def add_qualities(archive: Archive, plan: RefinePlan, tests: Sequence[str]) -> DoubtSummary:
    """Score each mask's quality without gold, as ``quality/CLASSID``: how firm its border is, less what speaks against the object.

    Uses what the named tests have left, and nothing that tests left which are asked no more: what an archive says does not depend on its
    past. Without ``prior``, which measures the firmness, there is no quality, and one of before becomes NaN. The number ranks masks; it is no Dice until gold
    says what it is worth (``distill.reliability``). Only what has changed is written.

    Args:
        archive: whose cases carry the plan's source label set.
        plan: classes and source.
        tests: ``prior``, ``student``, ``reverse``, as far as they are asked.
    """
    counted = 0
    for case, told in archive.catalog.scores(plan.source).items():
        known = {name: value for name, value in told.items() if not math.isnan(value)}
        found = {
            f"quality/{info.id}": known[firm]
            * credibility(*(known.get(f"{score}/{info.id}") if test in tests else None for test, score in _HEARD.items()))
            for info in plan.classes
            if "prior" in tests and (firm := f"firmness/{info.id}") in known
        }
        stale = {name: math.nan for name in known if name.startswith("quality/") and name not in found}
        if stale or any(known.get(name) != value for name, value in found.items()):
            archive.catalog.add_scores(case, plan.source, found | stale)
        counted += len(found)
    return DoubtSummary(masks=counted)
