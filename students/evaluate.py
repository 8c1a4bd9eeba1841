"""How good is the student, against its teacher *and* against gold, on cases no step has seen.

Everything that is compared is a label set of the archive: students answer first (`predict_cases`), then label sets are read
side by side, case by case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from distill import quality
from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, Labels
from students.baselines import LABEL_SET as ELLIPSES
from students.cost import student_cost
from students.errors import GoldLeakError
from students.outcome import evaluation_doubts
from students.predict import Student, predict_cases
from students.results import METRICS, CaseScore, ClassResult, Comparison, Difference, Evaluation, Hindsight, Measured, Role, Transfer
from students.spec import Cost, StudentCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One more line of the table: a label set, or a student that is asked first."""

    name: str
    """As the table shows it, ``ellipse in box`` for example."""
    label_set: str = ""
    student: Path | None = None


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


def evaluate(archive: Archive, student: Student, plan: EvaluationPlan, progress: Callable[[str], None] | None = None) -> Evaluation:
    """Compare student, teacher and gold, class by class.

    Args:
        archive: Read from; students' answers are written to it as label sets ``student/NAME``.
        student: Who is judged.
        plan: Against what, on which cases.
        progress: Called with a sentence when a comparison begins.

    Raises:
        GoldLeakError: if a case is not of the test part, or a patient was seen in training or calibration.
    """
    say = progress or (lambda _: None)
    records = unseen_cases(archive, student, plan)
    cases = [record.id for record in records]
    say(f"student {student.name} answers for {len(cases)} cases")
    own = f"student/{student.name}"
    predict_cases(student, archive, cases)
    arms = [(arm, _arm_label_set(arm, archive, records, student, plan)) for arm in plan.arms]
    bench = _Bench(archive, student.card.classes, plan)
    comparisons = [bench.compare("student - gold", "student", own, plan.gold, cases)]
    if plan.teacher:
        comparisons.append(bench.compare("teacher - gold", "teacher", plan.teacher, plan.gold, cases))
        comparisons.append(bench.compare("student - teacher", "agreement", own, plan.teacher, cases))
    for arm, label_set in arms:
        say(f"{arm.name} is compared with gold")
        comparisons.append(bench.compare(f"{arm.name} - gold", "arm", label_set, plan.gold, cases))
    say("training labels are judged in hindsight, and costs measured")
    hindsight = _hindsight(bench, student, plan)
    labels = hindsight.before_ignoring if hindsight else None
    return Evaluation(
        student=student.name,
        trained_on=student.card.label_set,
        gold_learnt=student.card.gold_cases,
        agreement=student.card.agreement,
        tolerance_mm=plan.tolerance_mm,
        cases=tuple(cases),
        comparisons=tuple(comparisons),
        transfer=bench.transfer(own, plan.teacher, cases) if plan.teacher else None,
        differences=_differences(comparisons),
        hindsight=hindsight,
        costs=(student_cost(student, archive, cases[0]), *plan.costs),
        gold=plan.gold,
        classes=student.card.classes,
        rounds=student.card.rounds,
        warnings=evaluation_doubts(tuple(comparisons), labels, student.card, ELLIPSES, _ignored(archive, student.card)),
        spacing_known=spacing_known(records),
    )


def spacing_known(records: Sequence[CaseRecord]) -> bool | Literal["mixed"]:
    """Tell whether voxel sizes are known of all, of none, or of some of the cases."""
    known = {record.geometry.spacing_known for record in records}
    return "mixed" if len(known) > 1 else known.pop()


def unseen_cases(archive: Archive, student: Student, plan: EvaluationPlan) -> list[CaseRecord]:
    """Return the records to score on, having checked that nobody has seen them.

    Raises:
        GoldLeakError: naming the first case that was seen, and by whom.
    """
    if plan.cases is None:
        records = [r for r in archive.cases(part="test") if plan.gold in archive[r.id].label_sets()]
    else:
        records = [archive[case].record for case in plan.cases]
    if not records:
        message = f"no test case carries the label set {plan.gold!r}: there is nothing to score on. Ingest gold labels for the test part."
        raise GoldLeakError(message)
    for record in records:
        _check_unseen(record, student, plan)
    return records


def _check_unseen(record: CaseRecord, student: Student, plan: EvaluationPlan) -> None:
    card, why = student.card, ""
    if record.part != "test":
        why = f"belongs to the part {record.part!r}, which training or calibration may use"
    elif record.id in (*card.training_cases, *card.validation_cases, *card.gold_cases, *card.unlabeled_cases):
        why = f"was learnt from by the student {card.name}"
    elif record.patient in card.training_patients:
        why = f"is of a patient ({record.patient}) that the student {card.name} was trained on"
    elif record.id in plan.seen:
        why = "was seen by an earlier step (calibration or tuning)"
    if why:
        message = f"case {record.id}: it {why}, so a score on it would mean nothing. Score on untouched test cases only."
        raise GoldLeakError(message)


def _arm_label_set(arm: Arm, archive: Archive, records: Sequence[CaseRecord], student: Student, plan: EvaluationPlan) -> str:
    """Return the label set of an arm; a student is asked for its answers first."""
    if arm.student is None:
        return arm.label_set
    other = Student.load(arm.student, device=str(student.device))
    for record in records:
        _check_unseen(record, other, plan)
    predict_cases(other, archive, [record.id for record in records])
    return f"student/{other.name}"


def _measured(interval: quality.Interval) -> Measured:
    def known(value: float) -> float | None:
        return None if np.isnan(value) else round(value, 6)

    return Measured(
        mean=known(interval.mean),
        low=known(interval.low),
        high=known(interval.high),
        patients=interval.patients,
        excluded=interval.excluded,
    )


class _Bench:
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
            values = {name: None if np.isnan(getattr(found, name)) else round(getattr(found, name), 6) for name in METRICS}
            volumes = {"first_ml": round(float(left.sum()) * ml, 6), "second_ml": round(float(right.sum()) * ml, 6)}
            scores.append(CaseScore(case=case, patient=stored.record.patient, class_id=info.id, **values, **volumes))
        return scores

    def _class(self, info: ClassInfo, scores: Sequence[CaseScore]) -> ClassResult:
        own = [score for score in scores if score.class_id == info.id]
        patients = [score.patient for score in own]
        metrics = {name: _measured(quality.patient_interval([_value(s, name) for s in own], patients)) for name in METRICS}
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
            name: _measured(quality.patient_interval([getattr(f, name) for f in found], patients))
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


def _value(score: CaseScore, metric: str) -> float:
    found = getattr(score, metric)
    return float("nan") if found is None else float(found)


def _differences(comparisons: Sequence[Comparison]) -> tuple[Difference, ...]:
    """Return student minus each other line of the table that is measured against gold, on the cases they share."""
    student = comparisons[0]
    mine = {(s.case, s.class_id): s for s in student.scores}
    found = []
    for other in comparisons[1:]:
        shared = [s for s in other.scores if (s.case, s.class_id) in mine]
        if other.role not in ("teacher", "arm") or not shared:
            continue
        own = [_value(mine[s.case, s.class_id], "dice") for s in shared]
        interval = quality.paired_interval(own, [_value(s, "dice") for s in shared], [s.patient for s in shared])
        found.append(Difference(name=f"student minus {other.name.removesuffix(' - gold')}", dice=_measured(interval)))
    return tuple(found)


def _ignored(archive: Archive, card: StudentCard) -> float:
    """Return the mean share of the voxels of the training cases that nobody learns from; 0 where refinement did not say."""
    said = archive.catalog.scores(card.label_set, list(card.training_cases)).values()
    return float(np.mean([scores.get("ignored_share", 0.0) for scores in said])) if said else 0.0


def _hindsight(bench: _Bench, student: Student, plan: EvaluationPlan) -> Hindsight | None:
    """Judge the labels the student learnt from, where gold happens to exist for those cases."""
    label_set = plan.pseudo or student.card.label_set
    known = [*student.card.training_cases, *student.card.validation_cases]
    cases = [c for c in known if c in bench.archive and {label_set, plan.gold} <= set(bench.archive[c].label_sets())]
    if not cases or label_set == plan.gold:
        return None
    shares = [float((bench.archive[case].labels(label_set).read() != IGNORE).mean()) for case in cases]
    return Hindsight(
        before_ignoring=bench.compare(
            "training labels, before doubt was ignored", "hindsight", label_set, plan.gold, cases, resolve_ignored=True
        ),
        with_ignored_left_out=bench.compare(
            "training labels, ignored voxels left out", "hindsight", label_set, plan.gold, cases, leave_out_ignored=True
        ),
        with_ignored_as_background=bench.compare("training labels, ignored voxels as background", "hindsight", label_set, plan.gold, cases),
        coverage=float(np.mean(shares)),
    )
