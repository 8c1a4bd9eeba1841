"""Label sets side by side, case by case and class by class: what is to be compared, and the comparing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill import quality
from distill.lesions import score_lesions
from distill.tubes import cl_dice
from storage import IGNORE, Archive, Case, ClassInfo, Labels
from students.figures import known, measured, nan_for_none
from students.findings import SHAPE_METRICS
from students.gold_curve import CurveStudent
from students.results import METRICS, CaseScore, ClassResult, Comparison, Role, Transfer
from students.spec import Cost, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One more line of the table: a label set, or a student that is asked first."""

    name: str
    """As the table shows it, ``ellipse in box`` for example."""
    label_set: str = ""
    student: Path | None = None
    asked_as: str = ""
    """As recipes name it, ``few-gold`` for example."""
    is_full_supervision: bool = False
    """The same net on all gold of the archive part: what the student's Dice is given as a part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What to compare."""

    cases: tuple[str, ...] | None = None
    """All cases of the test part when None."""
    gold: str = "gold"
    gold_ids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Class id -> ids in the gold label set that make it up; by default the same id."""
    teacher: str | None = None
    """Label set of the teacher on the same cases."""
    pseudo: str | None = None
    """Label set whose quality is judged in hindsight, on the cases the student saw; by default the one it learnt from."""
    arms: tuple[Arm, ...] = ()
    seen: frozenset[str] = frozenset()
    """More cases that some step has seen (calibration, tuning); they are refused."""
    tolerance_mm: float = quality.DEFAULT_TOLERANCE_MM
    costs: tuple[Cost, ...] = ()
    """Costs measured elsewhere, the teacher's for example."""
    shapes: Mapping[int, Shape] = field(default_factory=dict)
    """Classes that are tubes or lesions, of which more is measured."""
    curve: tuple[CurveStudent, ...] = ()
    """Students of gold of more and more patients."""
    curve_missing: tuple[str, ...] = ()
    """Those that could not be trained, each with the reason."""


class Bench:
    """Compares label sets of one archive under one plan."""

    def __init__(self, archive: Archive, classes: tuple[ClassInfo, ...], plan: EvaluationPlan) -> None:
        self.archive, self.classes, self.plan = archive, classes, plan

    def read(self, stored: Case, label_set: str, *, resolve_ignored: bool = False) -> np.ndarray:
        """Return class ids, with several gold ids merged where the plan says so, and ``ignore`` decided by the threshold if asked."""
        ids = resolved(stored.labels(label_set)) if resolve_ignored else stored.labels(label_set).read()
        if label_set != self.plan.gold or not self.plan.gold_ids:
            return ids
        merged = np.zeros_like(ids)
        for info in self.classes:
            merged[np.isin(ids, self.plan.gold_ids.get(info.id, (info.id,)))] = info.id
        merged[ids == IGNORE] = IGNORE
        return merged

    def compare(
        self,
        name: str,
        role: Role,
        first: str,
        second: str,
        cases: Sequence[str],
        *,
        leave_out_ignored: bool = False,
        resolve_ignored: bool = False,
    ) -> Comparison:
        """Measure every class of every case that has both label sets; voxels ignored by ``second`` never count."""
        have = [case for case in cases if {first, second} <= set(self.archive[case].label_sets())]
        scores = [score for case in have for score in self._case(case, first, second, leave_out=leave_out_ignored, resolve=resolve_ignored)]
        return Comparison(
            name=name,
            role=role,
            first=first,
            second=second,
            cases=len(have),
            missing=len(cases) - len(have),
            classes=tuple(self._class(info, scores) for info in self.classes),
            scores=tuple(scores),
        )

    def _case(self, case: str, first: str, second: str, *, leave_out: bool, resolve: bool) -> list[CaseScore]:
        stored = self.archive[case]
        a, b = self.read(stored, first, resolve_ignored=resolve), self.read(stored, second)
        exclude = (b == IGNORE) | ((a == IGNORE) & leave_out)
        ml = float(np.prod(stored.spacing_zyx_mm)) / 1000
        scores = []
        for info in self.classes:
            left, right = (a == info.id) & ~exclude, (b == info.id) & ~exclude
            found = quality.score_mask(left, right, stored.spacing_zyx_mm, tolerance_mm=self.plan.tolerance_mm)
            values: dict[str, Any] = {name: known(getattr(found, name)) for name in METRICS}
            values |= _of_shape(self.plan.shapes.get(info.id, "organ"), left, right, 1000 * ml)
            volumes = {"first_ml": round(float(left.sum()) * ml, 6), "second_ml": round(float(right.sum()) * ml, 6)}
            scores.append(CaseScore(case=case, patient=stored.record.patient, class_id=info.id, **values, **volumes))
        return scores

    def _class(self, info: ClassInfo, scores: Sequence[CaseScore]) -> ClassResult:
        own = [score for score in scores if score.class_id == info.id]
        patients = [score.patient for score in own]
        names = (*METRICS, *SHAPE_METRICS[self.plan.shapes.get(info.id, "organ")])
        metrics = {name: measured(quality.patient_interval([nan_for_none(getattr(s, name)) for s in own], patients)) for name in names}
        return ClassResult(class_id=info.id, class_name=info.name, metrics=metrics)

    def transfer(self, student: str, teacher: str, cases: Sequence[str]) -> Transfer:
        """Return what became of the teacher's errors, patient by patient."""
        have = [case for case in cases if {student, teacher} <= set(self.archive[case].label_sets())]
        patients = [self.archive[case].record.patient for case in have]
        found = []
        for case in have:
            stored = self.archive[case]
            taught, learnt = (self.read(stored, name) for name in (teacher, student))
            found.append(quality.error_transfer(taught, learnt, self.read(stored, self.plan.gold)))
        rates = {
            name: measured(quality.patient_interval([getattr(f, name) for f in found], patients))
            for name in quality.ErrorTransfer.__slots__
        }
        return Transfer(**rates)


def resolved(labels: Labels) -> np.ndarray:
    """Return class ids as they were before doubtful voxels became ``ignore``: each goes to the side of the threshold it is on.

    Label sets without probabilities, or without a threshold in their history, come back unchanged.
    """
    ids = labels.read()
    if labels.probability is None:
        return ids
    probability, doubtful = np.asarray(labels.probability[:]), ids == IGNORE
    known = labels.history.parameters
    thresholds = {info.id: value for info in labels.history.classes if isinstance(value := known.get(f"threshold/{info.id}"), (int, float))}
    if len(thresholds) != len(labels.history.classes):
        return ids
    ids[doubtful] = 0
    for row, (class_id, threshold) in zip(probability, thresholds.items(), strict=True):
        ids[doubtful & (row >= np.rint(255 * threshold))] = class_id
    return ids


def _of_shape(shape: Shape, predicted: np.ndarray, gold: np.ndarray, voxel_mm3: float) -> dict[str, Any]:
    """Return what is measured of tubes or lesions beyond overlap and surface."""
    if shape == "tube":
        return {"cl_dice": known(cl_dice(predicted, gold))}
    if shape != "lesions":
        return {}
    found = score_lesions(predicted, gold, voxel_mm3=voxel_mm3)
    return {name: known(getattr(found, name)) for name in SHAPE_METRICS[shape]} | {"lesions_by_decade": dict(found.by_decade)}
