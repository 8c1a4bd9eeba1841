"""Walking through an archive for the filter's report: one line of numbers for each mask, and never a voxel kept."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from distill.audit_records import Gold, Group
from distill.calibration import ClassCalibration
from distill.cleaning import ClassRule, clean_mask
from distill.levels import count_levels
from distill.quality import dice
from distill.subgroups import Banding
from distill.unknown import unknown_map
from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, Labels

PAGE = 256
"""Cases per query of the catalog."""
OWN = "pairwise_dice"
"""What every drawn mask has: the ensemble's agreement with itself, by which refinement accepts."""
QUALITY = "quality"
"""The best single score of a mask (``distill.doubts``), where all masks of a class have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Whose filter is looked at."""

    classes: tuple[ClassInfo, ...]
    rules: Mapping[int, ClassRule] = field(default_factory=dict)
    calibrations: Mapping[int, ClassCalibration] = field(default_factory=dict)
    source: str = "teacher/r1"
    target: str = "pseudo/r1"
    gold: str = "gold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """One class of one case, in numbers."""

    case: str
    patient: str
    part: Group
    class_id: int
    class_name: str
    verdict: str
    reason: str
    scores: Mapping[str, float]
    """Of this class, without its id."""
    dice: float
    """With gold, where that was judged; NaN where it says nothing of the mask, or there is nothing to find and nothing drawn."""
    gold: Gold
    judged: float
    """The share of what the expert drew that ``dice`` is about: the rest lies on slices that nobody asked about, or where the teacher is not believed. NaN
    where no expert drew anything."""
    ignored_share: float
    volume_mm3: float
    confidence: float
    """The score that orders it."""
    groups: Mapping[str, str]
    """Attribute -> band."""

    @property
    def kept(self) -> bool:
        """Whether it may be learnt from."""
        return self.verdict == "accept"


@dataclass(slots=True)
class Found:
    """What a walk through the archive leaves behind."""

    masks: list[Mask] = field(default_factory=list)
    not_drawn: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Class id, reason -> archive cases where it was not drawn: nobody prompted it, or somebody said that it is not there."""
    levels: dict[tuple[int, Group], np.ndarray] = field(default_factory=dict)
    """Class id, group -> voxels by gold and probability as it was cut, summed: what a temperature is fitted to as well."""
    drawn_gold: Counter[tuple[int, Group]] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    gold: Counter[str] = field(default_factory=Counter)
    """Part -> cases that an expert has drawn ..."""
    partly: Counter[str] = field(default_factory=Counter)
    """... of these, only in part ..."""
    left_open: int = 0
    """... and cases whose gold leaves everything open."""
    patients: set[str] = field(default_factory=set)


def _pages(archive: Archive, label_set: str) -> Iterator[CaseRecord]:
    after = None
    while records := archive.cases(with_labels=label_set, limit=PAGE, after=after):
        yield from records
        after = records[-1].id


def walk(archive: Archive, plan: AuditPlan, progress: Callable[[int], None] | None = None) -> Found:
    """Look at every case that carries the filter's label set, one after the other.

    Args:
        archive: where; nothing is written.
        plan: whose filter.
        progress: called with how many cases are read.
    """
    found = Found()
    banding = Banding([record.attributes for record in _pages(archive, plan.target)])
    scores = [archive.catalog.scores(name) for name in (plan.source, plan.target)]
    for n, record in enumerate(_pages(archive, plan.target), 1):
        known = {name: value for each in scores for name, value in each.get(record.id, {}).items() if np.isfinite(value)}
        groups = {name: banding.value(name, record.attributes) for name in banding.names}
        groups |= {"modality": record.modality, "dimensions": "2D" if record.shape_czyx[1] == 1 else "3D"}
        found.parts[record.part] += 1
        found.patients.add(record.patient)
        _look(archive[record.id], plan, known, groups, found)
        if progress is not None:
            progress(n)
    return found


def ordered_by_quality(masks: Sequence[Mask], class_id: int) -> tuple[str, list[Mask]]:
    """Return what orders the masks of a class, and these masks with it: their quality, if all have one, else their agreement."""
    mine = [mask for mask in masks if mask.class_id == class_id]
    if not mine or not all(QUALITY in mask.scores for mask in mine):
        return OWN, mine
    return QUALITY, [replace(mask, confidence=mask.scores[QUALITY]) for mask in mine]


def _look(case: Case, plan: AuditPlan, known: Mapping[str, float], groups: Mapping[str, str], found: Found) -> None:
    """Add the masks of one case; its voxels are read only if an expert has drawn it too."""
    labels = case.labels(plan.target)
    told = labels.history.parameters
    asked = case.labels(plan.source) if plan.source in case.label_sets() else labels
    truth = case.labels(plan.gold) if plan.gold in case.label_sets() else None
    gold = None if truth is None else truth.read()
    judged = None if truth is None else {info.id for info in truth.history.classes}
    _count_gold(case.record.part, gold, found)
    for info in plan.classes:
        scores = {name.rpartition("/")[0]: value for name, value in known.items() if name.endswith(f"/{info.id}")}
        if OWN not in scores:
            found.not_drawn[info.id, str(told.get(f"reason/{info.id}", "not-prompted"))] += case.record.part == "archive"
            continue
        reached, told_of, known_gold = float("nan"), float("nan"), _gold_of(judged, info.id)
        if gold is not None and known_gold == "known":
            unanswered = unknown_map(asked, info.id) > 0
            left_open = (gold == IGNORE) | unanswered
            told_of = 1 - float(unanswered[gold == info.id].mean()) if (gold == info.id).any() else float("nan")
            reached, known_gold = _dice(case, labels, info.id, plan, left_open, gold)
            _count(labels, gold == info.id, ~left_open, (info.id, case.record.part), found)
        found.masks.append(
            Mask(
                case=case.id,
                patient=case.record.patient,
                part=case.record.part,
                class_id=info.id,
                class_name=info.name,
                verdict=str(told.get(f"verdict/{info.id}", "reject")),
                reason=str(told.get(f"reason/{info.id}", "unknown")),
                scores=scores,
                confidence=scores[OWN],
                dice=reached,
                gold=known_gold,
                judged=told_of,
                ignored_share=known.get("ignored_share", 0.0),
                volume_mm3=scores.get("volume_mm3", 0.0),
                groups=groups,
            )
        )


def _count_gold(part: Group, gold: np.ndarray | None, found: Found) -> None:
    """Count a case that an expert has drawn, whole or in part."""
    judged = gold is not None and bool((gold != IGNORE).any())
    found.gold[part] += judged
    found.partly[part] += judged and gold is not None and bool((gold == IGNORE).any())
    found.left_open += gold is not None and not judged


def _gold_of(judged: set[int] | None, class_id: int) -> Gold:
    if judged is None:
        return "case not drawn by an expert"
    return "known" if class_id in judged else "class not looked for by the expert"


def _row(labels: Labels, class_id: int) -> np.ndarray | None:
    """Return the stored probability of one class as uint8 ``(z, y, x)``."""
    order = [info.id for info in labels.history.classes]
    if labels.probability is None or class_id not in order:
        return None
    at = order.index(class_id)
    row: np.ndarray = np.asarray(labels.probability[at : at + 1])[0]
    return row


def judged_mask(case: Case, labels: Labels, class_id: int, rule: ClassRule) -> np.ndarray:
    """Return the mask ``(z, y, x)`` bool that a verdict is about: as it was before doubtful voxels, or the whole object, became ``ignore``.

    Args:
        case: whose.
        labels: the filter's label set, with the probabilities as they were cut.
        class_id: which class.
        rule: by which it was cleaned.
    """
    row = _row(labels, class_id)
    threshold = labels.history.parameters.get(f"threshold/{class_id}", rule.threshold)
    if row is None or not isinstance(threshold, (int, float)):
        return np.asarray(labels.read() == class_id)
    spacing = case.spacing_zyx_mm if case.record.geometry.spacing_known else None
    return clean_mask(row >= np.rint(255 * threshold), rule, spacing)


def _dice(case: Case, labels: Labels, class_id: int, plan: AuditPlan, left_open: np.ndarray, gold: np.ndarray) -> tuple[float, Gold]:
    """Return the Dice of a mask with gold ids, and whether these say anything of it.

    Args:
        case: whose mask.
        labels: refined ones.
        class_id: of the class.
        plan: how masks are cut.
        left_open: ``(z, y, x)`` bool where nobody drew, and where nobody asked the teacher or its track was lost, which refinement ignores.
        gold: the expert's ids.
    """
    mask, drawn = judged_mask(case, labels, class_id, plan.rules.get(class_id, ClassRule())), gold == class_id
    told = (drawn & ~left_open).any() or (mask & ~left_open).any() or not left_open.any()
    if told:
        return dice(mask, drawn, left_open), "known"
    return float("nan"), "left open by the expert" if (
        gold[mask | drawn] == IGNORE
    ).all() else "the teacher was not asked there, or is not believed"


def _count(labels: Labels, drawn: np.ndarray, judged: np.ndarray, key: tuple[int, Group], found: Found) -> None:
    row = _row(labels, key[0])
    if row is not None and judged.any():
        found.levels[key] = found.levels.get(key, 0) + count_levels(row, drawn, judged=judged).counts
        found.drawn_gold[key] += 1
