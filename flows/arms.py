"""What the student is compared with: arms that need no teacher, and what the teacher itself costs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from distill.casework import prepare_case
from distill.devices import made_current, resolve_devices
from distill.oracle import LABEL_SET as GOLD_BOXES
from distill.oracle import draw_in_gold_boxes
from distill.planes import ask_other_planes
from distill.prompts.choice import chosen_prompts
from distill.teachers.checkpoints import load_teacher
from distill.wavefront import run_wavefront, sizes_of
from flows.curve import curve_students
from flows.learnt import chosen_gold
from flows.opened import asked_with
from flows.plans import class_infos, label_plan, student_spec
from flows.recipe import Recipe
from flows.recipe_evaluate import UNTRAINED, ArmName
from flows.results import TEACHER_SET, counted
from storage import Archive, CaseRecord
from students.baselines import LABEL_SET as ELLIPSES
from students.baselines import write_ellipse_labels
from students.cost import measure_cost
from students.evaluate import Arm, EvaluationPlan
from students.spec import Cost
from students.training import train

TRAINED_ARMS: dict[ArmName, str] = {
    "ellipse-student": "same net, trained on ellipses",
    "few-gold": "same net, trained on gold of the calibration part",
    "all-gold": "same net, trained on gold of the archive part",
    "gold-alone": "same net, trained on the student's own gold alone",
}
"""How the report calls the arms that end in a student."""

_ENOUGH_CALLS = 8
"""Of the encoder that the teacher is measured on; with so many, one that is not full weighs little."""


def evaluation_plan(archive: Archive, recipe: Recipe, say: Callable[[str], None]) -> EvaluationPlan:
    """Prepare every arm that the recipe asks for, and return what is to be compared."""
    test = [record.id for record in archive.cases(part="test")]
    write_ellipse_labels(archive, test, class_infos(recipe), sources=recipe.prompts.source)
    labelled = archive.cases(part="test", with_labels=TEACHER_SET)
    arms = tuple(replace(_arm(archive, recipe, name, say), asked_as=name) for name in recipe.evaluate.arms)
    curve, missing = curve_students(archive, recipe, say)
    return EvaluationPlan(
        teacher=TEACHER_SET if labelled else None,
        arms=arms,
        seen=frozenset(record.id for record in archive.cases(part="calibration")),
        tolerance_mm=recipe.evaluate.tolerance_mm,
        costs=(teacher_cost(archive, recipe, labelled),) if labelled else (),
        shapes={class_id: block.shape for class_id, block in recipe.classes.items() if block.shape != "organ"},
        curve=curve,
        curve_missing=missing,
    )


def _arm(archive: Archive, recipe: Recipe, name: ArmName, say: Callable[[str], None]) -> Arm:
    """One line of the table; those that end in a student train it, with the budget of the recipe's own."""
    match name:
        case "ellipse":
            return Arm(name="ellipses in boxes", label_set=ELLIPSES)
        case "ellipse-student":
            cases = [record.id for record in archive.cases(part="archive")]
            write_ellipse_labels(archive, cases, class_infos(recipe), sources=recipe.prompts.source)
            return _trained(
                archive, recipe, name, ELLIPSES, [record.id for record in archive.cases(part="archive", with_labels=ELLIPSES)], say
            )
        case "few-gold":
            return _trained(archive, recipe, name, "gold", _gold_cases(archive.cases(part="calibration", with_labels="gold")), say)
        case "all-gold":
            arm = _trained(archive, recipe, name, "gold", _gold_cases(archive.cases(part="archive", with_labels="gold")), say)
            return replace(arm, is_full_supervision=True)
        case "gold-alone":
            return _trained(archive, recipe, name, "gold", (), say, gold=chosen_gold(archive, recipe))
        case "teacher-gold-boxes":
            say("the teacher draws in gold boxes")
            draw_in_gold_boxes(archive, label_plan(recipe), _gold_cases(archive.cases(part="test", with_labels="gold")))
            return Arm(name="teacher with gold boxes on every slice", label_set=GOLD_BOXES)


def possible_arms(archive: Archive, recipe: Recipe) -> tuple[ArmName, ...]:
    """Return every arm that there is something to learn from, or to draw with, in this archive."""
    ids = [record.id for record in archive.cases(part="archive")]
    boxed = any(prompt.kind == "box" and prompt.axis == "z" for each in asked_with(archive, recipe, ids).values() for prompt in each)
    known: dict[ArmName, bool] = {
        "ellipse": True,
        "ellipse-student": boxed,
        "few-gold": bool(archive.cases(part="calibration", with_labels="gold")),
        "all-gold": bool(archive.cases(part="archive", with_labels="gold")),
        "gold-alone": recipe.student.gold is not None,
        "teacher-gold-boxes": True,
    }
    trains = recipe.student.kind != "promptable"
    return tuple(name for name, possible in known.items() if possible and (trains or name in UNTRAINED))


def _gold_cases(records: list[CaseRecord]) -> list[str]:
    return [record.id for record in records]


def _trained(
    archive: Archive,
    recipe: Recipe,
    name: ArmName,
    label_set: str,
    cases: Sequence[str],
    say: Callable[[str], None],
    *,
    gold: Sequence[str] = (),
) -> Arm:
    """Train the student of an arm; at once if it is there already."""
    count = len(cases) + len(gold)
    say(f"training the arm {name} on {count} cases")
    spec = student_spec(recipe)
    student = train(
        archive,
        label_set=label_set,
        classes=class_infos(recipe),
        spec=spec.model_copy(update={"name": f"{spec.name}-{name}"}),
        workdir=recipe.student_folder.parent,
        cases=cases,
        gold=gold,
    )
    return Arm(name=f"{TRAINED_ARMS[name]} ({count} cases)", student=student.path)


def teacher_cost(archive: Archive, recipe: Recipe, records: Sequence[CaseRecord]) -> Cost:
    """Measure the teacher as the labelling stage runs it: several cases asked together, as the recipe says, and shared out among them.

    Reading, writing and loading the checkpoint are not included. Fewer cases than the engine takes at once fill its batches less well. Where the
    recipe names several devices, the first one is measured.
    """
    plan = label_plan(recipe)
    device = resolve_devices(plan.device)[0]
    with made_current(device):
        teacher = load_teacher(
            plan.teacher, profile=plan.profile, base=plan.base, device=device, precision=plan.precision, compiled=plan.compiled
        )
    some = _some(records, plan.window, _ENOUGH_CALLS * sizes_of(teacher).pictures)
    classes = [info.id for info in plan.classes]
    asked = {record.id: chosen_prompts(archive.catalog.prompts(record.id), plan.sources) for record in some}
    together = [prepare_case(archive, record, asked[record.id], classes=classes, intensity=plan.intensity) for record in some]

    def ask() -> None:
        works = [work.fresh() for work in together]
        with made_current(device):
            run_wavefront(teacher, works, plan.ask)
            if plan.ask.planes == "three":
                ask_other_planes(teacher, works, plan.ask)

    name = f"teacher, with prompts ({counted(len(together), 'case', 'cases')} asked together)"
    networks = [each for each in vars(teacher).values() if isinstance(each, nn.Module)]
    return measure_cost(name, networks, ask, device=torch.device(device), repeats=1, cases=len(together))


def _some(records: Sequence[CaseRecord], window: int, slices: int) -> list[CaseRecord]:
    """Return enough cases to fill the engine's batches as it does itself: one or two volumes, or as many pictures as it takes at once."""
    chosen: list[CaseRecord] = []
    for record in records[:window]:
        chosen.append(record)
        if sum(each.shape_czyx[1] for each in chosen) >= slices:
            break
    return chosen
