"""The student against every other line of the table: tests class by class, and its Dice as a part of full supervision's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distill.paired_tests import PairedTest, compare_paired
from distill.quality import BOOTSTRAP_DRAWS, Interval, patient_means
from distill.subgroups import holm
from storage import ClassInfo
from students.figures import Measured, measured, nan_for_none
from students.findings import PairedDifference, Relative
from students.results import Comparison

Dices = Mapping[tuple[str, int], float]
"""Dice by case and class; NaN where both masks are empty."""

_ALL_ZERO = "full supervision has a Dice of 0 on too many patients to divide by it"


def dices_of(comparison: Comparison) -> dict[tuple[str, int], float]:
    """Return the Dice of each class of each case."""
    return {(score.case, score.class_id): nan_for_none(score.dice) for score in comparison.scores}


def paired_differences(comparisons: Sequence[Comparison], classes: Sequence[ClassInfo]) -> tuple[PairedDifference, ...]:
    """Test the first comparison, the student's, against every other one with gold, and adjust all p values together."""
    mine = dices_of(comparisons[0])
    patient = {score.case: score.patient for comparison in comparisons for score in comparison.scores}
    found: list[tuple[str, ClassInfo, PairedTest]] = []
    for other in comparisons[1:]:
        theirs = dices_of(other) if other.role in ("teacher", "arm") else {}
        for info in classes:
            cases = [case for case, class_id in theirs if class_id == info.id and (case, class_id) in mine]
            if cases:
                own, taught = ([dices[case, info.id] for case in cases] for dices in (mine, theirs))
                test = compare_paired(own, taught, [patient[case] for case in cases])
                missing = sum(class_id == info.id for _, class_id in mine) - len(cases)
                found.append((other.name.removesuffix(" - gold"), info, _with_missing(test, missing)))
    adjusted = holm([test.p for _, _, test in found])
    return tuple(
        PairedDifference(
            other=name,
            class_id=info.id,
            class_name=info.name,
            difference=measured(test.difference),
            p=test.p,
            p_adjusted=p,
            note=test.note,
        )
        for (name, info, test), p in zip(found, adjusted, strict=True)
    )


def _with_missing(test: PairedTest, missing: int) -> PairedTest:
    """Count the cases that only the student has answered for among those left out."""
    return replace(test, difference=replace(test.difference, excluded=test.difference.excluded + missing))


def relative_dice(student: Comparison, full: Comparison, classes: Sequence[ClassInfo], note: str = "") -> tuple[Relative, ...]:
    """Return the student's Dice divided by that of the same net under full supervision: of the mean over classes, and of each class if there are several.

    Args:
        student: Against gold.
        full: As ``student``.
        classes: Of the student.
        note: Why the two may not be divided (`students.unequal.unequal_note`); empty if they may.
    """
    mine, theirs = dices_of(student), dices_of(full)
    patient = {score.case: score.patient for score in student.scores}
    groups = [("", [info.id for info in classes])] + [(info.name, [info.id]) for info in classes if len(classes) > 1]
    found = ((name, share_of(*paired_means(mine, theirs, ids), patient, note)) for name, ids in groups)
    return tuple(Relative(class_name=name, ratio=ratio, note=why) for name, (ratio, why) in found)


def share_of(first: Mapping[str, float], second: Mapping[str, float], patient: Mapping[str, str], note: str = "") -> tuple[Measured, str]:
    """Return the ratio of two means over patients as it is kept, and why there is none; arguments as of `ratio_interval` and `relative_dice`."""
    found = ratio_interval(first, second, patient)
    if note:
        found = replace(found, mean=float("nan"), low=float("nan"), high=float("nan"))
    unknown = (_ALL_ZERO if found.patients else "no case has a Dice in both") if np.isnan(found.mean) else ""
    return measured(found), note or unknown


def paired_means(mine: Dices, theirs: Dices, class_ids: Sequence[int]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean Dice over classes of each case, of both, where both have one."""
    first, second = {}, {}
    for case in {case for case, _ in mine}:
        pairs = np.array([(mine.get((case, n), np.nan), theirs.get((case, n), np.nan)) for n in class_ids])
        pairs = pairs[~np.isnan(pairs).any(axis=1)]
        if len(pairs):
            first[case], second[case] = (float(value) for value in pairs.mean(axis=0))
    return first, second


def ratio_interval(first: Mapping[str, float], second: Mapping[str, float], patient: Mapping[str, str], *, seed: int = 0) -> Interval:
    """Return the ratio of two means over patients, with its bootstrap interval: each draw takes both figures of a patient.

    NaN where a draw would be divided by 0: of such figures no ratio can be relied on.

    Cases that have no patient's figure in both are left out, and counted.

    Args:
        first: Figure of each case.
        second: Of the same cases.
        patient: Of each case that was to be compared.
        seed: Same seed, same interval.
    """
    cases = sorted(set(first) & set(second))
    names = [patient[case] for case in cases]
    pairs = np.array([list(patient_means([each[case] for case in cases], names).values()) for each in (first, second)])
    left_out, nan = len(patient) - len(cases), float("nan")
    unknown = Interval(mean=nan, low=nan, high=nan, patients=len(set(names)), excluded=left_out)
    if not cases:
        return unknown
    drawn = np.random.default_rng(seed).integers(0, pairs.shape[1], size=(BOOTSTRAP_DRAWS, pairs.shape[1]))
    above, below = pairs[0][drawn].mean(axis=1), pairs[1][drawn].mean(axis=1)
    if not below.all():
        return unknown
    low, high = np.quantile(above / below, [0.025, 0.975])
    return replace(unknown, mean=float(pairs[0].mean() / pairs[1].mean()), low=float(low), high=float(high))
