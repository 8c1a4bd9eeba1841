"""Which lesions are found, by their size in gold: small ones are missed first, and a mean over all sizes hides it.

Sizes are decades of volume (1 to 10 mm3, 10 to 100 mm3, ...), the same in every report, so that figures of several reports may stand beside each other.
"""

from collections.abc import Sequence

from distill.lesions import decade_words
from distill.quality import patient_interval
from storage import ClassInfo
from students.figures import Measured, measured
from students.findings import LesionsOfSize
from students.results import CaseScore, Comparison


def lesions_by_size(comparisons: Sequence[Comparison], classes: Sequence[ClassInfo], unit: str = "mm3") -> tuple[LesionsOfSize, ...]:
    """Return the share of gold's lesions that were found, by decade of volume; nothing of classes that are no lesions.

    Args:
        comparisons: Of the evaluation, the student's first.
        classes: Of the student.
        unit: Of volumes; ``px`` where no spacing is known.
    """
    teacher = next((each for each in comparisons if each.role == "teacher"), None)
    rows = []
    for info in classes:
        own = [score for score in comparisons[0].scores if score.class_id == info.id]
        cases = {score.case for score in own}
        taught = [score for score in teacher.scores if score.class_id == info.id and score.case in cases] if teacher else []
        for decade in sorted({each for score in own for each in score.lesions_by_decade or {}}):
            counts = [(score.lesions_by_decade or {}).get(decade, (0, 0)) for score in own]
            rows.append(
                LesionsOfSize(
                    class_id=info.id,
                    class_name=info.name,
                    size=decade_words(decade, unit),
                    lesions=sum(lesions for lesions, _ in counts),
                    found=sum(found for _, found in counts),
                    sensitivity=_sensitivity(own, decade),
                    teacher=_sensitivity(taught, decade) if taught else None,
                )
            )
    return tuple(rows)


def _sensitivity(scores: Sequence[CaseScore], decade: int) -> Measured:
    there = [(score.patient, pair) for score in scores if (pair := (score.lesions_by_decade or {}).get(decade))]
    return measured(patient_interval([found / lesions for _, (lesions, found) in there], [patient for patient, _ in there]))
