"""What gold is worth: the same net, taught with gold of more and more patients, alone and beside pseudo-labels.

Of one seed, the patients of a longer list include those of a shorter one, and both ways of teaching get the same ones; a seed draws patients and
starts the training. So alone and beside are compared patient by patient of the test part, and seeds are averaged before anything is said about patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.paired_tests import compare_paired
from distill.quality import patient_interval, patient_means
from distill.subgroups import holm
from students.figures import known, measured
from students.findings import CurveRow, GoldCurve, Taught
from students.outcome import no_yardstick
from students.significance import Dices, paired_means, share_of
from students.spec import StudentCard
from students.unequal import unequal_note

_Key = tuple[int, str, int]
"""Seed, case and class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveStudent:
    """One training of the curve."""

    taught: Taught
    patients: int
    seed: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What came of it on the test cases."""

    student: CurveStudent
    name: str
    gold_cases: int
    dices: Dices
    card: StudentCard | None = None
    """By which trainings are held against each other; None where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSupervision:
    """The same net taught with all gold of the archive part."""

    dices: Dices
    name: str = "all-gold"
    card: StudentCard | None = None


def gold_curve(
    scored: Sequence[Scored], patient: Mapping[str, str], full: FullSupervision | None = None, missing: Sequence[str] = ()
) -> GoldCurve | None:
    """Return the rows of the curve, gold alone and mixed in turn; None where nobody asked for one.

    Args:
        scored: Every training, with its scores.
        patient: Of each test case.
        full: What every share is of, where that arm is there.
        missing: Trainings that there are none of, each with the reason.
    """
    if not scored and not missing:
        return None
    keys = sorted({(each.student.patients, each.student.taught) for each in scored})
    runs = {key: [each for each in scored if (each.student.patients, each.student.taught) == key] for key in keys}
    rows = [_row(own, runs.get((count, "gold"), []), patient, full) for (count, _), own in runs.items()]
    adjusted = holm([row.p for row in rows])
    return GoldCurve(
        rows=tuple(row.model_copy(update={"p_adjusted": p}) for row, p in zip(rows, adjusted, strict=True)),
        seeds=tuple(sorted({each.student.seed for each in scored})),
        missing=tuple(missing),
    )


def _row(own: Sequence[Scored], alone: Sequence[Scored], patient: Mapping[str, str], full: FullSupervision | None) -> CurveRow:
    first, means = own[0], _over_seeds([each.dices for each in own])
    tested = sorted({case for each in own for case, _ in each.dices})
    unpaired: set[_Key] = set()
    update = _against(own, alone, patient, unpaired) if first.student.taught == "mixed" else {}
    if full is not None:
        pairs = [(each.student.seed, each.dices, full.dices) for each in own]
        why = _unequal(full.name, full.card, own) or (no_yardstick(full.name, full.card) if full.card else "")
        update["share_of_full"], update["note"] = share_of(*_paired(pairs, unpaired), patient, why)
    return CurveRow(
        taught=first.student.taught,
        patients=first.student.patients,
        gold_cases=first.gold_cases,
        students=tuple(each.name for each in own),
        dice=measured(patient_interval([means.get(case, np.nan) for case in tested], [patient[case] for case in tested])),
        between_seeds=_between(own, patient),
        scores={case: known(value) for case, value in means.items()},
    ).model_copy(update={**update, "unpaired": len(unpaired)})


def _against(own: Sequence[Scored], alone: Sequence[Scored], patient: Mapping[str, str], unpaired: set[_Key]) -> dict[str, object]:
    """Return the paired difference to gold alone, over the seeds that both have."""
    rivals = {each.student.seed: each for each in alone}
    pairs = [(each, rivals[each.student.seed]) for each in own if each.student.seed in rivals]
    if not pairs:
        return {}
    mine, theirs = _paired([(one.student.seed, one.dices, other.dices) for one, other in pairs], unpaired)
    cases = sorted({case for each in own for case, _ in each.dices})
    first, second = ([each.get(case, np.nan) for case in cases] for each in (mine, theirs))
    found = compare_paired(first, second, [patient[case] for case in cases])
    notes = [note for one, other in pairs if (note := _unequal(other.name, other.card, [one]))]
    return {"minus_gold": measured(found.difference), "p": found.p, "minus_note": "; ".join(notes)}


def _unequal(name: str, card: StudentCard | None, others: Sequence[Scored]) -> str:
    """Return why others may not be held against this one, if so."""
    return unequal_note(name, card, {each.name: each.card for each in others if each.card}) if card else ""


def _paired(runs: Sequence[tuple[int, Dices, Dices]], unpaired: set[_Key]) -> tuple[dict[str, float], dict[str, float]]:
    """Return each case's Dice of both sides, over the same classes and the same seeds.

    Args:
        runs: Seed, Dices of the one side and of the other.
        unpaired: Filled with what only one of the two has.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for seed, mine, theirs in runs:
        first, second = paired_means(mine, theirs, sorted({class_id for _, class_id in mine}))
        for case in first:
            found.setdefault(case, []).append((first[case], second[case]))
        unpaired.update((seed, *key) for key, value in mine.items() if np.isnan(value) != np.isnan(theirs.get(key, np.nan)))
    means = {case: np.mean(values, axis=0) for case, values in sorted(found.items())}
    return {case: float(value[0]) for case, value in means.items()}, {case: float(value[1]) for case, value in means.items()}


def _over_seeds(runs: Sequence[Dices]) -> dict[str, float]:
    """Return each case's Dice, averaged over classes and then over seeds; cases in which every class is empty are left out."""
    found: dict[str, list[float]] = {}
    for dices in runs:
        for case, value in _over_classes(dices).items():
            found.setdefault(case, []).append(value)
    return {case: float(np.mean(values)) for case, values in sorted(found.items())}


def _over_classes(dices: Dices) -> dict[str, float]:
    cases: dict[str, list[float]] = {}
    for (case, _), value in dices.items():
        if not np.isnan(value):
            cases.setdefault(case, []).append(value)
    return {case: float(np.mean(values)) for case, values in cases.items()}


def _between(own: Sequence[Scored], patient: Mapping[str, str]) -> float | None:
    """Return the standard deviation of the seeds' means over patients."""
    if len(own) < 2:
        return None
    means = []
    for each in own:
        cases = _over_classes(each.dices)
        means.append(float(np.mean(list(patient_means(list(cases.values()), [patient[case] for case in cases]).values()))))
    return known(float(np.std(means, ddof=1)))
