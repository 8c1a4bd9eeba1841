"""Pseudo-labels as far as a student that learnt from gold agrees with them.

The teacher errs in its own way, and so does a student of a few gold cases. Where the two say the same of a patient that the student has never
seen, both being wrong is unlikely; where they differ, nobody should learn (``ignore``). A case on which they hardly agree is left out whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from distill.quality import dice_per_class
from distill.unknown import believed_ids
from storage import IGNORE, Archive, LabelHistory, Labels, fingerprint
from students.predict import Student, answer_fingerprint

_VERSION = "1"
"""Raised whenever the same labels and student give other agreed labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What came of asking a student about labels."""

    kept: tuple[str, ...]
    """Cases that carry the agreed label set now."""
    left_out: tuple[str, ...]
    dice: dict[str, float]
    """Agreement of each case that was asked about, mean over classes; NaN where both are empty."""


def write_agreed(
    archive: Archive,
    student: Student,
    cases: Sequence[str],
    *,
    label_set: str,
    into: str,
    least: float,
    progress: Callable[[int, int], None] | None = None,
) -> Agreed:
    """Write a label set that holds only what label set and student both say; what is there already is not made again.

    Args:
        archive: read from and written to.
        student: who learnt from gold. Labels of patients that it has seen are copied as they are: it would only repeat what it learnt.
        cases: whose labels are judged.
        label_set: of these.
        into: the new one.
        least: Dice below which a case is left out.
        progress: called with how many of how many cases are done.
    """
    mark, dice = answer_fingerprint(student), {}
    for number, case in enumerate(cases, start=1):
        dice[case] = _judge(archive, student, case, label_set, into, least, mark)
        if progress:
            progress(number, len(cases))
    left_out = tuple(case for case in cases if dice[case] < least)
    return Agreed(kept=tuple(case for case in cases if case not in set(left_out)), left_out=left_out, dice=dice)


def _judge(archive: Archive, student: Student, case: str, label_set: str, into: str, least: float, mark: str) -> float:
    """Write one case's agreed labels, or none if it is left out; return the agreement."""
    stored = archive[case]
    labels = stored.labels(label_set)
    unit = fingerprint(labels=labels.history.fingerprint, student=mark, least=least, version=_VERSION)
    if into in stored.label_sets() and (there := stored.labels(into)).history.fingerprint == unit:
        return there.scores.get("agreement", float("nan"))
    ids = believed_ids(labels)
    if stored.record.patient in student.card.training_patients:
        answer, agreement = ids, 1.0
    else:
        answer = student.predict_case(stored).labels
        agreement = _agreement(answer, ids, labels)
    if agreement < least:
        if into in stored.label_sets():
            stored.delete_labels(into)
        return agreement
    agreed = np.where((ids == answer) | (ids == IGNORE), ids, ids.dtype.type(IGNORE))
    probability = None if labels.probability is None else np.asarray(labels.probability[:])
    history = _history(labels, student, label_set, into, unit)
    stored.write_labels(history, agreed, probability_kzyx=probability, scores={"agreement": agreement, "accepted": 1.0})
    return agreement


def _agreement(answer: Shaped[np.ndarray, "z y x"], ids: Shaped[np.ndarray, "z y x"], labels: Labels) -> float:
    """Return the mean Dice over the classes that either has, what is ignored left out; NaN where both are empty."""
    found = dice_per_class(answer, ids, [info.id for info in labels.history.classes]).values()
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _history(labels: Labels, student: Student, label_set: str, into: str, unit: str) -> LabelHistory:
    own = labels.history
    return LabelHistory(
        label_set=into,
        classes=own.classes,
        made_by="students.agreement",
        teacher=own.teacher,
        prompt_source=own.prompt_source,
        parameters={**own.parameters, "witness": student.name},
        parents=(label_set, student.card.label_set),
        round=own.round,
        fingerprint=unit,
    )
