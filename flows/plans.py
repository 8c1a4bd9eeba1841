"""Recipe -> the plans of the rooms below. The one place to change when a plan gains a field."""

from dataclasses import replace
from pathlib import Path

from distill.embedding_cache import EmbeddingCachePlan
from distill.engine import LabelPlan
from distill.prompts.choice import PROPAGATE
from distill.propose import PromptPlan
from distill.teachers.fetch import checkpoint_folder
from distill.wavefront import AskSettings
from flows.recipe import Recipe
from flows.results import TEACHER_SET
from storage import ClassInfo
from storage.store import local_path
from students.folds import FoldPlan
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
        label_set=recipe.round.teacher_set,
        sources=recipe.prompts.source,
        classes=class_infos(recipe),
        teacher=recipe.teacher.checkpoint,
        profile=recipe.teacher.profile,
        base=recipe.teacher.base,
        precision=recipe.teacher.precision,
        ask=AskSettings(
            boxes=recipe.uncertainty.boxes,
            jitter=recipe.uncertainty.jitter,
            flips=recipe.uncertainty.flips,
            rotations=recipe.uncertainty.rotations,
            scales=recipe.uncertainty.scales,
            gammas=recipe.uncertainty.gammas,
            window_shifts=recipe.uncertainty.window_shifts,
            points=recipe.uncertainty.points,
            multimask=recipe.uncertainty.multimask,
            weights=recipe.uncertainty.weights,
            planes=recipe.uncertainty.planes,
            propagate=PROPAGATE in recipe.prompts.source,
        ),
        unasked_mm=recipe.uncertainty.unasked_mm,
        intensity=recipe.intensity,
        embedding_cache=_embedding_cache(recipe),
        device=recipe.teacher.device,
        compiled=recipe.teacher.compile,
    )


def label_plans(recipe: Recipe) -> tuple[LabelPlan, ...]:
    """What the labelling engine is to do for each of the recipe's teachers; several draw label sets of their own."""
    first, block = label_plan(recipe), recipe.teacher
    return tuple(
        replace(first, label_set=name, teacher=each.checkpoint, profile=each.profile, base=each.base, precision=each.precision)
        for name, each in zip(recipe.round.teacher_sets(1 + len(block.also)), (block, *block.also), strict=True)
    )


def prompt_plan(recipe: Recipe) -> PromptPlan:
    """Which sources propose prompts before the teacher is asked."""
    block = recipe.prompts
    options = dict(block.options) | {
        "exemplar": block.exemplar,
        "student": block.student,
        "threshold": block.threshold,
        "everything": block.everything,
        "text": block.text,
    }
    return PromptPlan(sources=block.source, options=options, label=label_plan(recipe))


def _embedding_cache(recipe: Recipe) -> EmbeddingCachePlan | None:
    block = recipe.teacher.embedding_cache
    if block is None:
        return None
    local = local_path(recipe.archive)
    beside = checkpoint_folder().parent / "embeddings" if local is None else Path(f"{local}.embeddings")
    return EmbeddingCachePlan(folder=str(block.folder or beside), budget_bytes=block.size, storage=block.precision)


def fold_plan(recipe: Recipe) -> FoldPlan:
    """Which students are witnesses of the teacher's labels."""
    block = recipe.refine
    spec = StudentSpec(
        name="witness",
        budget_seconds=block.witness_budget,
        seed=recipe.student.seed,
        validation_fraction=0.0,
        device=first_device(recipe.student.device),
    )
    return FoldPlan(
        classes=class_infos(recipe),
        spec=spec,
        workdir=recipe.results / "witnesses" / recipe.student.name,
        label_set=recipe.round.teacher_set,
    )


def first_device(devices: str) -> str:
    """Return the first of the devices that a recipe names: small students beside the one that ships need no more."""
    return devices.split(",", maxsplit=1)[0]


def round_fold_plan(recipe: Recipe, cases: tuple[str, ...], gold: tuple[str, ...]) -> FoldPlan:
    """Which students answer in a later round for cases that they never saw: compact ones, taught by the labels of the round before.

    Args:
        recipe: of the round.
        cases: whose labels of the round before are believed.
        gold: whose experts' labels may be learnt from.
    """
    block, own = recipe.rounds, recipe.whole.student
    asked = {
        "name": "witness",
        "budget_seconds": block.budget or own.budget,
        "seed": own.seed,
        "validation_fraction": 0.0,
        "device": first_device(own.device),
    }
    spec = StudentSpec.model_validate(asked | (own.network if own.kind == "compact" else {}))
    if own.kind == "compact":
        spec = spec.model_copy(update={"learning": own.learning.model_copy(update={"consistency": 0.0})})
    return FoldPlan(
        classes=class_infos(recipe),
        spec=spec,
        workdir=recipe.results / "witnesses" / recipe.student.name,
        label_set=recipe.in_round(recipe.round.number - 1).round.pseudo_set,
        folds=block.folds,
        cases=cases,
        gold=gold,
    )


def student_spec(recipe: Recipe) -> StudentSpec:
    """What is asked of the student."""
    block = recipe.student
    if block.kind == "compact":
        asked = {
            "name": block.name,
            "kind": block.kind,
            "budget_seconds": block.budget,
            "seed": block.seed,
            "device": block.device,
            "batch": block.batch,
            **block.network,
        }
        return StudentSpec.model_validate(asked | {"learning": block.learning, "hints": TEACHER_SET if block.hints == "teacher" else None})
    if block.kind == "promptable":
        return StudentSpec(name=block.name, kind=block.kind, budget_seconds=block.budget, seed=block.seed, promptable=block.promptable)
    # nnU-Net's own presets are as long as nnU-Net has found good; the default budget would end them after a few epochs.
    budget = block.budget if block.nnunet.preset == "reduced" or "budget" in block.model_fields_set else None
    return StudentSpec(
        name=block.name,
        kind=block.kind,
        budget_seconds=budget,
        seed=block.seed,
        device=block.device,
        nnunet=block.nnunet,
        learning=block.learning,
    )
