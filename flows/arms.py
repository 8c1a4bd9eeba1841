"""What the student is compared with: arms that need no teacher, and what the teacher itself costs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from distill.intensity import choose_window
from distill.planes import ask_other_planes
from distill.prompts.hints import hints_by_slice
from distill.prompts.schedule import schedule_slices
from distill.teachers.checkpoints import load_teacher
from distill.wavefront import SLICES_PER_CALL, CaseWork, ClassWork, run_wavefront
from flows.plans import class_infos, label_plan, student_spec
from flows.recipe import ArmName, Recipe
from flows.results import TEACHER_SET, counted
from storage import Archive, CaseRecord
from students.baselines import LABEL_SET as ELLIPSES
from students.baselines import write_ellipse_labels
from students.compact import train
from students.cost import measure_cost
from students.evaluate import Arm, EvaluationPlan
from students.spec import Cost

TRAINED_ARMS: dict[ArmName, str] = {
    "ellipse-student": "same net, trained on ellipses",
    "few-gold": "same net, trained on gold of the calibration part",
    "all-gold": "same net, trained on gold of the archive part",
}
"""How the report calls the arms that end in a student."""

_ENOUGH_SLICES = 8 * SLICES_PER_CALL
"""Of cases that the teacher is measured on; with so many, a batch that is not full weighs little."""


def evaluation_plan(archive: Archive, recipe: Recipe, say: Callable[[str], None]) -> EvaluationPlan:
    """Prepare every arm that the recipe asks for, and return what is to be compared."""
    test = [record.id for record in archive.cases(part="test")]
    write_ellipse_labels(archive, test, class_infos(recipe))
    labelled = archive.cases(part="test", with_labels=TEACHER_SET)
    return EvaluationPlan(
        teacher=TEACHER_SET if labelled else None,
        arms=tuple(_arm(archive, recipe, name, say) for name in recipe.evaluate.arms),
        seen=frozenset(record.id for record in archive.cases(part="calibration")),
        tolerance_mm=recipe.evaluate.tolerance_mm,
        costs=(teacher_cost(archive, recipe, labelled),) if labelled else (),
    )


def _arm(archive: Archive, recipe: Recipe, name: ArmName, say: Callable[[str], None]) -> Arm:
    """One line of the table; those that end in a student train it, with the budget of the recipe's own."""
    match name:
        case "ellipse":
            return Arm(name="ellipses in boxes", label_set=ELLIPSES)
        case "ellipse-student":
            cases = [record.id for record in archive.cases(part="archive")]
            write_ellipse_labels(archive, cases, class_infos(recipe))
            return _trained(
                archive, recipe, name, ELLIPSES, [record.id for record in archive.cases(part="archive", with_labels=ELLIPSES)], say
            )
        case "few-gold":
            return _trained(archive, recipe, name, "gold", _gold_cases(archive.cases(part="calibration", with_labels="gold")), say)
        case "all-gold":
            return _trained(archive, recipe, name, "gold", _gold_cases(archive.cases(part="archive", with_labels="gold")), say)


def _gold_cases(records: list[CaseRecord]) -> list[str]:
    return [record.id for record in records]


def _trained(archive: Archive, recipe: Recipe, name: ArmName, label_set: str, cases: list[str], say: Callable[[str], None]) -> Arm:
    """Train the student of an arm; at once if it is there already."""
    say(f"training the arm {name} on {len(cases)} cases")
    spec = student_spec(recipe)
    student = train(
        archive,
        label_set=label_set,
        classes=class_infos(recipe),
        spec=spec.model_copy(update={"name": f"{spec.name}-{name}"}),
        workdir=recipe.student_folder.parent,
        cases=cases,
    )
    return Arm(name=f"{TRAINED_ARMS[name]} ({len(cases)} cases)", student=student.path)


def teacher_cost(archive: Archive, recipe: Recipe, records: Sequence[CaseRecord]) -> Cost:
    """Measure the teacher as the labelling stage runs it: several cases asked together, as the recipe says, and shared out among them.

    Reading, writing and loading the checkpoint are not included. Fewer cases than the engine takes at once fill its batches less well.
    """
    plan = label_plan(recipe)
    teacher = load_teacher(plan.teacher, profile=plan.profile, base=plan.base, device=plan.device, precision=plan.precision)
    together = [_blank(archive, recipe, record) for record in _some(records, plan.window)]

    def ask() -> None:
        works = [_fresh(work) for work in together]
        run_wavefront(teacher, works, plan.ask)
        if plan.ask.planes == "three":
            ask_other_planes(teacher, works, plan.ask)

    name = f"teacher, with prompts ({counted(len(together), 'case', 'cases')} asked together)"
    return measure_cost(name, [teacher.sam], ask, device=teacher.device, repeats=1, cases=len(together))


def _some(records: Sequence[CaseRecord], window: int) -> list[CaseRecord]:
    """Return enough cases to fill the engine's batches as it does itself: one or two volumes, or as many pictures as it takes at once."""
    chosen: list[CaseRecord] = []
    for record in records[:window]:
        chosen.append(record)
        if sum(each.shape_czyx[1] for each in chosen) >= _ENOUGH_SLICES:
            break
    return chosen


def _blank(archive: Archive, recipe: Recipe, record: CaseRecord) -> CaseWork:
    """Return a case of which nothing is known yet but its pixels and prompts."""
    volume = archive[record.id].read()
    hints = hints_by_slice(record, archive.catalog.prompts(record.id))
    shape_zyx = record.shape_czyx[1:]
    classes = {
        key: ClassWork(plans=schedule_slices(found, shape_zyx[0]), probability=np.zeros(shape_zyx, np.float32))
        for key, found in hints.items()
        if key in recipe.classes
    }
    return CaseWork(record=record, volume_czyx=volume, window=choose_window(record, volume, recipe.intensity), classes=classes)


def _fresh(work: CaseWork) -> CaseWork:
    """Return the same question without any answer."""
    classes = {key: ClassWork(plans=known.plans, probability=np.zeros_like(known.probability)) for key, known in work.classes.items()}
    return replace(work, classes=classes)
