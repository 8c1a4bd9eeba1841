"""Recipe -> the plans of the rooms below. The one place to change when a plan gains a field."""

from distill.engine import LabelPlan
from distill.wavefront import AskSettings
from flows.recipe import Recipe
from flows.results import TEACHER_SET
from storage import ClassInfo
from students.spec import StudentSpec

_COLOURS: tuple[tuple[int, int, int], ...] = ((228, 60, 60), (60, 140, 228), (70, 180, 90), (240, 170, 40), (150, 90, 200), (40, 190, 190))
"""Told apart by people with the common colour deficiencies when neighbours differ in lightness too; reused in order."""


def class_infos(recipe: Recipe) -> tuple[ClassInfo, ...]:
    """The recipe's classes, in order of id, each with a colour."""
    chosen = sorted(recipe.classes.items())
    return tuple(ClassInfo(id=key, name=block.name, rgba=(*_COLOURS[n % len(_COLOURS)], 255)) for n, (key, block) in enumerate(chosen))


def label_plan(recipe: Recipe) -> LabelPlan:
    """What the labelling engine is to do."""
    return LabelPlan(
        label_set=TEACHER_SET,
        classes=class_infos(recipe),
        teacher=recipe.teacher.checkpoint,
        profile=recipe.teacher.profile,
        ask=AskSettings(
            boxes=recipe.uncertainty.boxes,
            jitter=recipe.uncertainty.jitter,
            flips=recipe.uncertainty.flips,
            planes=recipe.uncertainty.planes,
        ),
    )


def student_spec(recipe: Recipe) -> StudentSpec:
    """What is asked of the student."""
    block = recipe.student
    return StudentSpec(name=block.name, kind=block.kind, budget_seconds=block.budget, seed=block.seed)
