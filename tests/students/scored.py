"""Comparisons made of figures alone, for tests of what is said about them."""

from collections.abc import Mapping, Sequence

from distill.quality import patient_interval
from storage import ClassInfo
from students.figures import measured, nan_for_none
from students.results import METRICS, CaseScore, ClassResult, Comparison, Role

ORGAN = ClassInfo(id=3, name="kernel")


def comparison(dice: Mapping[str, float | None], *, name: str = "student - gold", role: Role = "student", ml: float = 1.0) -> Comparison:
    """Case -> Dice; the patient is what stands before the first dash of a case's name."""
    scores = [
        CaseScore(
            case=case,
            patient=case.split("-")[0],
            class_id=ORGAN.id,
            dice=value,
            jaccard=value,
            nsd=value,
            hd95_mm=1.0,
            volume_bias=0.0,
            first_ml=ml,
            second_ml=ml,
        )
        for case, value in dice.items()
    ]
    return Comparison(
        name=name,
        role=role,
        first="student/s",
        second="gold",
        cases=len(scores),
        missing=0,
        classes=(_of_class(scores),),
        scores=tuple(scores),
    )


def _of_class(scores: Sequence[CaseScore]) -> ClassResult:
    patients = [score.patient for score in scores]
    metrics = {name: measured(patient_interval([nan_for_none(getattr(s, name)) for s in scores], patients)) for name in METRICS}
    return ClassResult(class_id=ORGAN.id, class_name=ORGAN.name, metrics=metrics)
