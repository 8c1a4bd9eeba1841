"""What students that never saw a case say of it, kept as a label set: the labels, or the prompts, of the next round.

A student repeats the errors of the labels that it learnt from, on the patients that it learnt them of. So each patient of the archive part is
answered for by the students of the other folds, and patients that no student learns from by all of them (``students.out_of_fold``).
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from distill.mean_labels import promised_dice
from storage import Archive, LabelHistory, fingerprint
from storage.working import Worked, work_through
from students.folds import FoldPlan
from students.out_of_fold import ids_of, mean_probability
from students.predict import Student, answer_fingerprint, turned_channels

_VERSION = "2"
"""Raised whenever the same students give other answers."""
_TOP = 255


def answer_out_of_fold(
    archive: Archive,
    plan: FoldPlan,
    students: Sequence[Student],
    cases: Sequence[str],
    *,
    into: str,
    number: int,
    progress: Callable[[int, int], None] | None = None,
) -> Worked[None]:
    """Write the answer of each case's strangers; what is there already is not made again.

    The label set looks like a teacher's, so that it can be refined as one: it has probabilities, and as ``pairwise_dice/ID`` the Dice that the
    probabilities promise (``promised_dice``). A case that every student has learnt from gets no answer.

    Args:
        archive: read from and written to.
        plan: as the students were trained.
        students: one per fold.
        cases: to answer for.
        into: the label set.
        number: of the round that the label set belongs to.
        progress: called with (cases done, cases to do).
    """
    marks = [answer_fingerprint(student) for student in students]
    seen = [frozenset(student.card.training_patients) for student in students]
    records = {case: archive[case].record for case in cases}
    strangers = {
        case: _stranger([n for n, patients in enumerate(seen) if record.patient not in patients], record.patient)
        for case, record in records.items()
    }
    prints = {
        case: fingerprint(
            version=_VERSION,
            case=records[case].fingerprint,
            students=[marks[n] for n in those],
            **({"channels": turned} if (turned := turned_channels(students[those[0]].card, records[case])) else {}),
        )
        for case, those in strangers.items()
        if those
    }

    def answer(case: str) -> None:
        stored, chosen = archive[case], [students[n] for n in strangers[case]]
        probability = mean_probability(chosen, stored)
        ids = ids_of(chosen[0], probability)
        history = LabelHistory(
            label_set=into,
            classes=plan.classes,
            made_by="students.fold_answers",
            parameters={"students": ", ".join(student.name for student in chosen)},
            parents=(plan.label_set,),
            round=number,
            fingerprint=prints[case],
        )
        stored.write_labels(
            history, ids, probability_kzyx=np.rint(probability * _TOP).astype(np.uint8), scores=_scores(plan, probability, ids)
        )

    return work_through(archive.ledger, f"answer:{into}", prints, answer, progress=progress)


def _stranger(those: list[int], patient: str) -> list[int]:
    """Return one of the students that have not seen a patient, the same each time.

    A patient who was learnt from has one such student. One of the calibration part has all of them, whose mean would be better than what archive cases
    get; thresholds that are set on it would then promise too much.
    """
    return [those[int(hashlib.blake2b(patient.encode(), digest_size=8).hexdigest(), 16) % len(those)]] if those else []


def _scores(plan: FoldPlan, probability_kzyx: Float32[np.ndarray, "k z y x"], ids: UInt8[np.ndarray, "z y x"]) -> dict[str, float]:
    return {
        f"pairwise_dice/{info.id}": promised_dice(probability, ids == info.id)
        for info, probability in zip(plan.classes, probability_kzyx, strict=True)
    }
