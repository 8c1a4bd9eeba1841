"""Who gets worse segmentations? The student's scores by groups of cases, the worst group, and how far groups are apart.

Groups come from the cases' attributes (numbers and ages in thirds of the test cases), modality, the source of the teacher's prompts, and the size of the object
in gold. A group with fewer patients than an interval takes is shown and not ranked. Among many groups the worst is always bad by chance too: so the gap of best and
worst is also held against gaps among groups drawn at random from the same patients (a permutation test, Holm over all gaps).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from distill.quality import BOOTSTRAP_DRAWS, TRUSTED_PATIENTS, Interval, patient_interval
from distill.subgroups import UNKNOWN, Banding, holm, third
from storage import Archive, CaseRecord, ClassInfo
from students.figures import known, measured, nan_for_none
from students.findings import Breakdown, Gap, GroupScore
from students.results import CaseScore, Comparison

SIZE = "size of the object in gold"
PROMPTED = "source of the teacher's prompts"
_PERMUTATIONS = 1999
_LEAST_SIZES = 3
"""Thirds of fewer cases are none."""

Groups = Mapping[str, Mapping[str, str]]
"""Attribute -> case -> value."""


def groups_of(archive: Archive, records: Sequence[CaseRecord], teacher: str | None) -> dict[str, dict[str, str]]:
    """Return the value of every attribute of every case, numbers in thirds.

    Args:
        archive: read from.
        records: of the scored cases.
        teacher: the teacher's label set, which says whose prompts it was asked with.
    """
    banding = Banding([record.attributes for record in records], ages_in_thirds=True)
    found = {name: {record.id: banding.value(name, record.attributes) for record in records} for name in banding.names}
    found["modality"] = {record.id: record.modality for record in records}
    if teacher is not None:
        drawn = {record.id for record in archive.cases(part="test", with_labels=teacher)}
        found[PROMPTED] = {
            record.id: archive[record.id].labels(teacher).history.prompt_source or UNKNOWN if record.id in drawn else "not prompted"
            for record in records
        }
    return found


def breakdown(comparisons: Sequence[Comparison], classes: Sequence[ClassInfo], groups: Groups, unit: str = "ml") -> Breakdown:
    """Return the student's scores by group, class by class.

    Args:
        comparisons: Of the evaluation, the student's first.
        classes: Of the student.
        groups: From `groups_of`; the size of the object is added here.
        unit: Of volumes; 1000 pixels where no spacing is known.
    """
    teacher = next((each for each in comparisons if each.role == "teacher"), None)
    alike = {name: next(iter(values.values())) for name, values in groups.items() if len(set(values.values())) == 1}
    rows: list[GroupScore] = []
    gaps: list[Gap] = []
    for info in classes:
        own = [score for score in comparisons[0].scores if score.class_id == info.id]
        taught = {score.case: score for score in teacher.scores if score.class_id == info.id} if teacher else {}
        for name, value_of in ({name: each for name, each in groups.items() if name not in alike} | _sizes(own, unit)).items():
            found = _rows(name, value_of, own, taught, info)
            gap = _gap(name, value_of, own, found, info)
            rows += [row.model_copy(update={"worst": gap is not None and row.value == gap.worst}) for row in found]
            gaps += [gap] if gap is not None else []
    adjusted = holm([gap.p for gap in gaps])
    return Breakdown(
        rows=tuple(rows),
        gaps=tuple(gap.model_copy(update={"p_adjusted": p}) for gap, p in zip(gaps, adjusted, strict=True)),
        alike=alike,
    )


def _sizes(own: Sequence[CaseScore], unit: str) -> dict[str, dict[str, str]]:
    """Return the third of each case's object by its volume in gold; nothing where they hardly differ."""
    volumes = {score.case: score.second_ml for score in own if score.second_ml > 0}
    if len(set(volumes.values())) < _LEAST_SIZES:
        return {}
    low, high = np.quantile(list(volumes.values()), [1 / 3, 2 / 3])
    return {f"{SIZE} ({unit})": {case: third(value, (float(low), float(high))) for case, value in volumes.items()}}


def _rows(
    name: str, value_of: Mapping[str, str], own: Sequence[CaseScore], taught: Mapping[str, CaseScore], info: ClassInfo
) -> list[GroupScore]:
    found = []
    for value in sorted(set(value_of.values())):
        scores = [score for score in own if value_of.get(score.case) == value]
        teacher = [taught[score.case] for score in scores if score.case in taught]
        dice = _interval(scores, "dice")
        few = dice.patients < TRUSTED_PATIENTS
        note = f"only {dice.patients} {'patient' if dice.patients == 1 else 'patients'}: not ranked" if few else ""
        found.append(
            GroupScore(
                attribute=name,
                value=value,
                class_id=info.id,
                class_name=info.name,
                cases=len(scores),
                dice=measured(dice),
                nsd=measured(_interval(scores, "nsd")),
                volume_bias=measured(_interval(scores, "volume_bias")),
                teacher_dice=measured(_interval(teacher, "dice")) if teacher else None,
                note=note or ("not ranked" if value == UNKNOWN else ""),
            )
        )
    return found


def _interval(scores: Sequence[CaseScore], metric: str) -> Interval:
    return patient_interval([nan_for_none(getattr(score, metric)) for score in scores], [score.patient for score in scores])


def _gap(name: str, value_of: Mapping[str, str], own: Sequence[CaseScore], rows: Sequence[GroupScore], info: ClassInfo) -> Gap | None:
    """Return how far the best ranked group is above the worst; None with fewer than two that can be ranked."""
    ranked = sorted((row for row in rows if not row.note and row.dice.mean is not None), key=lambda row: row.dice.mean or 0.0)
    if len(ranked) < 2:
        return None
    kept = {row.value for row in ranked}
    scores = [score for score in own if value_of.get(score.case) in kept and score.dice is not None]
    patients = sorted({score.patient for score in scores})
    table = np.array([_means(scores, value_of, row.value, patients) for row in ranked])
    apart = bool((np.isfinite(table).sum(axis=0) == 1).all())
    whole = float(np.mean([np.nanmean(column) for column in table.T]))
    means = np.nanmean(table, axis=1)
    return Gap(
        attribute=name,
        class_id=info.id,
        class_name=info.name,
        best=ranked[-1].value,
        worst=ranked[0].value,
        gap=measured(_drawn_gap(table[-1], table[0])),
        p=_by_permutation(table) if apart else None,
        p_adjusted=None,
        equity_scaled=known(whole / (1 + float(np.abs(means - whole).sum()))) or 0.0,
        note="" if apart else "some patients are in several groups: not tested",
    )


def _means(scores: Sequence[CaseScore], value_of: Mapping[str, str], value: str, patients: Sequence[str]) -> list[float]:
    """Return each patient's mean Dice in one group; NaN of those who are not in it."""
    inside: dict[str, list[float]] = {patient: [] for patient in patients}
    for score in scores:
        if value_of.get(score.case) == value:
            inside[score.patient].append(nan_for_none(score.dice))
    return [float(np.mean(each)) if each else float("nan") for each in inside.values()]


def _drawn_gap(best: np.ndarray, worst: np.ndarray) -> Interval:
    """Return the difference of two groups' means with its interval, patients being drawn as they are."""
    drawn = np.random.default_rng(0).integers(0, len(best), size=(BOOTSTRAP_DRAWS, len(best)))
    sides = []
    for values in (best, worst):
        there = np.isfinite(values)
        count = there[drawn].sum(axis=1)
        total = np.where(there, values, 0.0)[drawn].sum(axis=1)
        sides.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    found = sides[0] - sides[1]
    low, high = np.quantile(found[np.isfinite(found)], [0.025, 0.975])
    mean = float(np.nanmean(best) - np.nanmean(worst))
    return Interval(mean=mean, low=float(low), high=float(high), patients=int((np.isfinite(best) | np.isfinite(worst)).sum()))


def _by_permutation(table: np.ndarray) -> float:
    """Return how often groups of these sizes, drawn from all patients, are as far apart as these are."""
    values = np.nanmax(table, axis=0)
    sizes = np.isfinite(table).sum(axis=1)
    ends = np.cumsum(sizes)[:-1]
    means = np.nanmean(table, axis=1)
    reached, rng, as_far = float(means.max() - means.min()), np.random.default_rng(0), 0
    for _ in range(_PERMUTATIONS):
        drawn = [part.mean() for part in np.split(rng.permutation(values), ends)]
        as_far += max(drawn) - min(drawn) >= reached - 1e-12
    return (1 + as_far) / (1 + _PERMUTATIONS)
