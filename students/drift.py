"""Is the student of a new round better or worse than the one so far? Judged by gold where there is some, never by its own labels alone.

Labels that a student has had a part in agree with students better and better, whether they become right or wrong: that is how self-training
drifts. So the new student and the one so far answer for the same patients, whom neither has learnt from, and are compared patient by patient.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from distill.quality import TRUSTED_PATIENTS, dice_per_class, paired_interval
from distill.unknown import believed_ids
from storage import Archive
from students.frozen import Frozen
from students.predict import Student

Measure = Literal["gold", "agreement"]

LEAST_PATIENTS = 3
"""With fewer there is nothing to compare: a difference of one patient says nothing of others."""


class Drift(Frozen):
    """The student of a round, compared with the one so far."""

    measure: Measure
    """``gold`` of calibration cases, or ``agreement`` with the labels of the first round on cases that neither student has learnt from."""
    patients: int
    before: float | None
    """Mean Dice over patients of the student so far; None where nobody could be compared."""
    after: float | None
    difference: float | None
    low: float | None
    """Of the difference: 95 % bootstrap interval over patients."""
    high: float | None
    may_fall: float
    own_before: float | None = None
    """Agreement with the pseudo-labels that each learnt from, on patients held out."""
    own_after: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether there was anybody to compare them on."""
        return self.difference is not None

    @property
    def fell(self) -> bool:
        """Whether it is worse: by more than is allowed, or by less, but certainly."""
        if self.difference is None or self.high is None:
            return False
        return self.difference < -self.may_fall or (self.patients >= TRUSTED_PATIENTS and self.high < 0)

    @property
    def gained(self) -> bool:
        """Whether it is better, if only by chance."""
        return self.difference is not None and self.difference > 0

    @property
    def confirms_itself(self) -> bool:
        """Whether it agrees more with its own labels, and less with what it is judged by."""
        if self.own_before is None or self.own_after is None or self.difference is None:
            return False
        return self.own_after > self.own_before and self.difference < 0

    @property
    def words(self) -> str:
        """Say what was found, without a full stop."""
        if self.difference is None or self.before is None or self.after is None:
            return f"only {self.patients} patients to compare students on, {LEAST_PATIENTS} are needed"
        of = "gold of" if self.measure == "gold" else "agreement with the first round's labels on"
        sign = "+" if self.difference >= 0 else ""
        found = f"Dice {self.before:.3f} to {self.after:.3f} ({of} {self.patients} patients, {sign}{self.difference:.3f}, {self.low:.3f} to {self.high:.3f})"
        if not self.confirms_itself:
            return found
        return f"{found}; ALARM: agreement with its own labels rose from {self.own_before:.3f} to {self.own_after:.3f} meanwhile, so it confirms its own errors"


def compare_students(
    archive: Archive,
    before: Student,
    after: Student,
    cases: Sequence[str],
    *,
    label_set: str,
    may_fall: float,
    progress: Callable[[int, int], None] | None = None,
) -> Drift:
    """Let two students answer for the same cases, and compare them patient by patient.

    Args:
        archive: where the cases are; nothing is written.
        before: the student so far.
        after: the new one.
        cases: whose patients neither has learnt from; others are left out.
        label_set: what they are compared with: ``gold``, or the first round's labels.
        may_fall: mean Dice by which the new one may be worse.
        progress: called with (cases done, cases to do).
    """
    learnt = {patient for student in (before, after) for patient in _learnt(archive, student)}
    shown = [student.card.spec.hints for student in (before, after) if student.card.spec.hints is not None]
    chosen = [case for case in cases if archive[case].record.patient not in learnt and set(shown) <= set(archive[case].label_sets())]
    scores: dict[str, tuple[float, float]] = {}
    for n, case in enumerate(chosen):
        scores[case] = (_dice(archive, before, case, label_set), _dice(archive, after, case, label_set))
        if progress is not None:
            progress(n + 1, len(chosen))
    own = (before.card.agreement, after.card.agreement)
    measure: Measure = "gold" if label_set == "gold" else "agreement"
    return drift_of(scores, {case: archive[case].record.patient for case in chosen}, measure=measure, may_fall=may_fall, own=own)


def drift_of(
    scores: Mapping[str, tuple[float, float]],
    patients: Mapping[str, str],
    *,
    measure: Measure,
    may_fall: float,
    own: tuple[float | None, float | None] = (None, None),
) -> Drift:
    """Compare two students by the Dice of each on the same cases.

    Args:
        scores: Dice of the student so far and of the new one, by case; NaN where there is nothing to see.
        patients: of each case.
        measure: what the Dice is with.
        may_fall: mean Dice by which the new one may be worse.
        own: agreement of each with its own labels.
    """
    known = {case: pair for case, pair in scores.items() if not any(map(math.isnan, pair))}
    whose = [patients[case] for case in known]
    found = paired_interval([after for _, after in known.values()], [before for before, _ in known.values()], whose)
    if found.patients < LEAST_PATIENTS:
        return Drift(
            measure=measure, patients=found.patients, before=None, after=None, difference=None, low=None, high=None, may_fall=may_fall
        )
    before, after = (paired_interval([pair[n] for pair in known.values()], [0.0] * len(known), whose, draws=1).mean for n in (0, 1))
    return Drift(
        measure=measure,
        patients=found.patients,
        before=before,
        after=after,
        difference=found.mean,
        low=found.low,
        high=found.high,
        may_fall=may_fall,
        own_before=own[0],
        own_after=own[1],
    )


def _learnt(archive: Archive, student: Student) -> set[str]:
    """Return the patients whose labels have set weights; those held out have only chosen among them."""
    card = student.card
    return {archive[case].record.patient for case in (*card.training_cases, *card.gold_cases, *card.unlabeled_cases)}


def _dice(archive: Archive, student: Student, case: str, label_set: str) -> float:
    """Return the mean Dice over the classes that either has, what the labels leave open left out; NaN where both are empty."""
    stored = archive[case]
    ids = believed_ids(stored.labels(label_set))
    answer = student.predict_case(stored).labels
    known = [value for value in dice_per_class(answer, ids, [info.id for info in student.card.classes]).values() if not np.isnan(value)]
    return float(np.mean(known)) if known else math.nan
