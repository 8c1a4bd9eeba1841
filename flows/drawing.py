"""The teacher's half of the label stage: draw, fuse where there are several, and say which labels went because nobody prompts them any more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from distill import engine
from distill.fuse import FusePlan, fuse_archive
from distill.label_plan import LabelPlan
from distill.prompts.choice import drawing_sources
from distill.propose import stage_of
from flows.plans import class_infos, label_plans
from flows.recipe import Recipe
from flows.results import StageResult, merged
from storage import Archive

Progress = Callable[[int, int], None]
"""Called with (cases finished, cases to do)."""


def draw(archive: Archive, recipe: Recipe, cases: Sequence[str], follow: Progress) -> StageResult:
    """Let each of the recipe's teachers draw these cases; several make one label set of theirs."""
    drawn = [_drawn(archive, recipe, cases, follow, plan) for plan in label_plans(recipe)]
    return drawn[0] if len(drawn) == 1 else _fused(archive, recipe, cases, follow, drawn)


def _fused(archive: Archive, recipe: Recipe, cases: Sequence[str], follow: Progress, drawn: Sequence[StageResult]) -> StageResult:
    """Fuse what several teachers have drawn; a case that one of them could not draw counts once for each such teacher."""
    plan = FusePlan(
        members=recipe.round.teacher_sets(len(drawn)),
        classes=class_infos(recipe),
        label_set=recipe.round.teacher_set,
        rule=recipe.teacher.fuse,
    )
    summary = fuse_archive(archive, plan, cases=cases, progress=follow)
    together = merged("label", drawn)
    note = f"{len(drawn)} teachers"
    return replace(
        together,
        done=summary.done,
        skipped=summary.skipped,
        failed=together.failed + summary.unfinished,
        quarantined=together.quarantined + len(summary.quarantined),
        seconds=together.seconds + summary.seconds,
        output=plan.label_set,
        tally=dict(drawn[0].tally) | ({"not drawn by every teacher": len(summary.waiting)} if summary.waiting else {}),
        note="; ".join(each for each in (note, together.note) if each),
    )


def _drawn(archive: Archive, recipe: Recipe, cases: Sequence[str], follow: Progress, plan: LabelPlan) -> StageResult:
    """Let one of the recipe's teachers draw."""
    summary = engine.label_archive(archive, plan, cases=cases, progress=follow)
    unasked = set(summary.without_prompts) - _given_up_by_sources(archive, recipe)
    counts = {
        "without a prompt, so without a label": len(unasked),
        "whose labels were withdrawn": len(summary.withdrawn.cases),
        "verdicts of people on withdrawn masks, kept": summary.withdrawn.verdicts,
        "prompts not asked, across another axis than their class is asked along": sum(summary.set_aside.values()),
    }
    return StageResult(
        stage="label",
        done=summary.done,
        skipped=summary.skipped,
        failed=summary.unfinished,
        quarantined=len(summary.quarantined),
        seconds=summary.seconds,
        output=plan.label_set,
        tally={what: count for what, count in counts.items() if count},
        note="; ".join(
            [
                *([_withdrawal_note(recipe)] if summary.withdrawn.cases else []),
                *([_axis_note(summary.set_aside)] if summary.set_aside else []),
            ]
        ),
    )


def _given_up_by_sources(archive: Archive, recipe: Recipe) -> set[str]:
    """Return the cases that a source of the recipe could not look at: they are counted as those already."""
    return {unit.unit for source in drawing_sources(recipe.prompts.source) for unit in archive.ledger.quarantined(stage_of(source))}


def _axis_note(set_aside: Mapping[str, int]) -> str:
    """Say which cases have prompts that were not asked, and what to do."""
    cases = sorted(set_aside)
    named = f"{', '.join(cases[:3])}{f' and {len(cases) - 3:,} more' if len(cases) > 3 else ''}"
    return (
        f"WARNING: {sum(set_aside.values()):,} prompts of {named} were not asked: a class is asked along one axis, "
        "the axial one if it has prompts there that no reviewer drew; prompt each class of a case along one axis"
    )


def _withdrawal_note(recipe: Recipe) -> str:
    """Say why labels went, and what went with them."""
    sources = ", ".join(recipe.prompts.source)
    return (
        f"WARNING: labels were withdrawn where no prompt of {sources} is left for the recipe's classes, and what was refined from them too; "
        "they come back with the prompts"
    )
