"""How good is the student, against its teacher *and* against gold, on cases no step has seen.

Everything that is compared is a label set of the archive: students answer first (`predict_cases`), then label sets are read
side by side, case by case.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from distill import quality
from storage import IGNORE, Archive, CaseRecord
from students.baselines import LABEL_SET as ELLIPSES
from students.bench import Arm, Bench, EvaluationPlan, resolved
from students.breakdown import breakdown, groups_of
from students.checkpoint import read_card
from students.cost import student_cost
from students.errors import GoldLeakError
from students.figures import measured, nan_for_none
from students.findings import FailureDetection, GoldCurve, OwnCalibration, Relative
from students.gold_curve import FullSupervision, Scored, gold_curve
from students.lesion_sizes import lesions_by_size
from students.outcome import evaluation_doubts, no_yardstick
from students.own_confidence import calibration_of, failure_detection_of, read_own
from students.predict import Student, predict_cases
from students.promptable.answers import PromptedStudent
from students.results import Comparison, Difference, Evaluation, Hindsight
from students.significance import dices_of, paired_differences, relative_dice
from students.spec import Cost, Shape, StudentCard
from students.unequal import are_unequal, unequal_note, unequal_trainings
from students.units import spacing_known, units_of

__all__ = ["Arm", "EvaluationPlan", "conventions", "evaluate", "resolved", "spacing_known", "unseen_cases"]


def evaluate(
    archive: Archive, student: Student | PromptedStudent, plan: EvaluationPlan, progress: Callable[[str], None] | None = None
) -> Evaluation:
    """Compare student, teacher and gold, class by class.

    Args:
        archive: Read from; students' answers are written to it as label sets ``student/NAME``.
        student: Who is judged; a promptable one is asked with the prompts that its teacher was asked with.
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
    if isinstance(student, PromptedStudent):
        student.answer(archive, cases)
    else:
        predict_cases(student, archive, cases)
    arms = [(arm, _arm_label_set(arm, archive, records, student, plan)) for arm in plan.arms]
    bench = Bench(archive, student.card.classes, plan)
    comparisons = _comparisons(bench, own, arms, cases, say)
    curve = _curve(bench, records, student, comparisons, say)
    say("training labels are judged in hindsight, and costs measured")
    hindsight = _hindsight(bench, student, plan)
    calibration, failures = _own_confidence(bench, own, comparisons[0])
    rivals = _rivals(plan)
    labels = hindsight.before_ignoring if hindsight else None
    known = spacing_known(records)
    units = units_of(known)
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
        costs=(*_own_costs(student, archive, cases), *plan.costs),
        gold=plan.gold,
        classes=student.card.classes,
        rounds=student.card.rounds,
        hints=student.card.spec.hints,
        warnings=(
            *evaluation_doubts(
                tuple(comparisons),
                labels,
                student.card,
                ELLIPSES,
                _ignored(archive, student.card),
                arms=_asked_as(plan),
                unequal=[name for name, card in rivals.items() if are_unequal(student.card, card)],
                curve=curve,
            ),
            *unequal_trainings(student.card, rivals),
        ),
        spacing_known=known,
        conventions=conventions(plan.shapes.values()),
        shapes={class_id: shape for class_id, shape in plan.shapes.items() if shape != "organ"},
        arms=tuple(arm.asked_as for arm in plan.arms if arm.asked_as),
        tests=paired_differences(comparisons, student.card.classes),
        relative=_relative(student.card, plan, comparisons),
        calibration=calibration,
        failure_detection=failures,
        breakdown=breakdown(
            comparisons,
            student.card.classes,
            groups_of(archive, records, plan.teacher),
            units.thousand,
        ),
        lesion_sizes=lesions_by_size(comparisons, student.card.classes, units.small),
        gold_curve=curve,
    )


def _own_costs(student: Student | PromptedStudent, archive: Archive, cases: Sequence[str]) -> tuple[Cost, ...]:
    """Measure what an answer costs, on the first case that the student can answer for."""
    if isinstance(student, PromptedStudent):
        return student.costs(archive, cases[0])
    shown = student.card.spec.hints
    able = (case for case in cases if shown is None or shown in archive[case].label_sets())
    return tuple(student_cost(student, archive, case) for case in islice(able, 1))


def _comparisons(
    bench: Bench, own: str, arms: Sequence[tuple[Arm, str]], cases: Sequence[str], say: Callable[[str], None]
) -> list[Comparison]:
    """Return the lines of the table: the student, the teacher, the two against each other, and the arms last."""
    plan = bench.plan
    found = [bench.compare("student - gold", "student", own, plan.gold, cases)]
    if plan.teacher:
        found.append(bench.compare("teacher - gold", "teacher", plan.teacher, plan.gold, cases))
        found.append(bench.compare("student - teacher", "agreement", own, plan.teacher, cases))
    for arm, label_set in arms:
        say(f"{arm.name} is compared with gold")
        found.append(bench.compare(f"{arm.name} - gold", "arm", label_set, plan.gold, cases))
    return found


def conventions(shapes: Iterable[Shape]) -> str:
    """Return what the figures of a report mean where that is not plain, for the kinds of classes there are."""
    seen = set(shapes)
    tubes = " clDice is of centre lines (Lee 1994) on the grid of the image; both masks empty: left out, one empty: 0."
    lesions = (
        " Lesions are pieces with 26 neighbours, found from an IoU of 0.1 on, one to one; without a lesion and a drawn piece F1 is left out, "
        "with those of one side only it is 0; sensitivity is left out without a lesion."
    )
    extra = (tubes if "tube" in seen else "") + (lesions if "lesions" in seen else "")
    return (
        "Means over patients with percentile bootstrap 95 % intervals over patients. Both masks empty: left out and counted. "
        "One empty: Dice and NSD 0, HD95 the image diagonal, volume bias -1 where nothing was drawn and left out where there is nothing to draw. "
        "Distances between voxel centres, MONAI's definition."
        + extra
        + " Tests are Wilcoxon's signed ranks over patients, p values after Holm over all tests of a table. "
        "Calibration is that of the stored probabilities in the box around what the student sees at all, widened by 30 %, per case; nothing seen: the whole image. "
        "Confidence is soft Dice; nothing drawn and nothing thought possible: 1. AURC is the mean, over n, of the mean risk (1 - Dice) of the n most confident cases."
    )


def _own_confidence(bench: Bench, own: str, student: Comparison) -> tuple[tuple[OwnCalibration, ...], tuple[FailureDetection, ...]]:
    """Judge the student's probabilities, and its confidence in whole cases."""
    cases = list(dict.fromkeys(score.case for score in student.scores))
    told = read_own(bench.archive, own, cases, bench.classes, lambda case: bench.read(bench.archive[case], bench.plan.gold))
    dice = {(score.case, score.class_id): score.dice for score in student.scores}
    calibrated = [calibration_of(told, info) for info in bench.classes]
    detected = [failure_detection_of(told, dice, info) for info in bench.classes]
    return tuple(found for found in calibrated if found), tuple(found for found in detected if found)


def _curve(
    bench: Bench,
    records: Sequence[CaseRecord],
    student: Student | PromptedStudent,
    comparisons: Sequence[Comparison],
    say: Callable[[str], None],
) -> GoldCurve | None:
    """Let the students of the curve answer, and score them."""
    plan, scored = bench.plan, []
    for each in plan.curve:
        other = _asked(each.path, bench.archive, records, student, plan)
        say(f"{other.name} is compared with gold")
        found = bench.compare(other.name, "arm", f"student/{other.name}", plan.gold, [record.id for record in records])
        scored.append(Scored(student=each, name=other.name, gold_cases=len(other.card.gold_cases), dices=dices_of(found), card=other.card))
    patient = {record.id: record.patient for record in records}
    full = [
        FullSupervision(dices=dices_of(found), name=arm.asked_as or arm.name, card=_card_of(arm))
        for arm, found in _full_supervision(plan, comparisons)
    ]
    return gold_curve(scored, patient, full[0] if full else None, plan.curve_missing)


def _relative(card: StudentCard, plan: EvaluationPlan, comparisons: Sequence[Comparison]) -> tuple[Relative, ...]:
    """Return the student's Dice as a part of full supervision's, where that arm is there."""
    for arm, found in _full_supervision(plan, comparisons):
        full = _card_of(arm)
        name = arm.asked_as or arm.name
        note = unequal_note(name, full, {"the student": card}) or no_yardstick(name, full) if full else ""
        return relative_dice(comparisons[0], found, card.classes, note)
    return ()


def _card_of(arm: Arm) -> StudentCard | None:
    return None if arm.student is None else read_card(arm.student)


def _asked_as(plan: EvaluationPlan) -> dict[str, str]:
    """Return how recipes name the arms, by their lines of the table."""
    return {f"{arm.name} - gold": arm.asked_as for arm in plan.arms if arm.asked_as}


def _rivals(plan: EvaluationPlan) -> dict[str, StudentCard]:
    """Return the cards of all other students of the report, by the names of arms in recipes, and those of the curve by their own."""
    arms = {arm.asked_as or arm.name: card for arm in plan.arms if (card := _card_of(arm))}
    return arms | {each.path.name: read_card(each.path) for each in plan.curve}


def _full_supervision(plan: EvaluationPlan, comparisons: Sequence[Comparison]) -> list[tuple[Arm, Comparison]]:
    """Return the arm that learnt from all gold of the archive part with its comparison, if it is there; the arms come last."""
    of_arms = comparisons[len(comparisons) - len(plan.arms) :]
    return [(arm, found) for arm, found in zip(plan.arms, of_arms, strict=True) if arm.is_full_supervision][:1]


def unseen_cases(archive: Archive, student: Student | PromptedStudent, plan: EvaluationPlan) -> list[CaseRecord]:
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


def _check_unseen(record: CaseRecord, student: Student | PromptedStudent, plan: EvaluationPlan) -> None:
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


def _arm_label_set(
    arm: Arm, archive: Archive, records: Sequence[CaseRecord], student: Student | PromptedStudent, plan: EvaluationPlan
) -> str:
    """Return the label set of an arm; a student is asked for its answers first."""
    if arm.student is None:
        return arm.label_set
    return f"student/{_asked(arm.student, archive, records, student, plan).name}"


def _asked(
    path: Path, archive: Archive, records: Sequence[CaseRecord], student: Student | PromptedStudent, plan: EvaluationPlan
) -> Student:
    """Let another student answer for the cases, none of which it may have seen."""
    other = Student.load(path, device=str(student.device))
    for record in records:
        _check_unseen(record, other, plan)
    predict_cases(other, archive, [record.id for record in records])
    return other


def _differences(comparisons: Sequence[Comparison]) -> tuple[Difference, ...]:
    """Return student minus each other line of the table that is measured against gold, on the cases they share."""
    student = comparisons[0]
    mine = {(s.case, s.class_id): s for s in student.scores}
    found = []
    for other in comparisons[1:]:
        shared = [s for s in other.scores if (s.case, s.class_id) in mine]
        if other.role not in ("teacher", "arm") or not shared:
            continue
        own = [nan_for_none(mine[s.case, s.class_id].dice) for s in shared]
        interval = quality.paired_interval(own, [nan_for_none(s.dice) for s in shared], [s.patient for s in shared])
        found.append(Difference(name=f"student minus {other.name.removesuffix(' - gold')}", dice=measured(interval)))
    return tuple(found)


def _ignored(archive: Archive, card: StudentCard) -> float:
    """Return the mean share of the voxels of the training cases that nobody learns from; 0 where refinement did not say."""
    said = archive.catalog.scores(card.label_set, list(card.training_cases)).values()
    return float(np.mean([scores.get("ignored_share", 0.0) for scores in said])) if said else 0.0


def _hindsight(bench: Bench, student: Student | PromptedStudent, plan: EvaluationPlan) -> Hindsight | None:
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
