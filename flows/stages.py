"""What each stage does, without Prefect: open the archive, make the plan, call the room that knows how, count.

Every stage may be called again at any time; the ledger in the archive knows what is done. Heavy rooms are imported inside the
functions, so that a stage with nothing to do costs nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flows.console import Follow
from flows.errors import StageError
from flows.learnt import chosen_gold
from flows.made_of import remember_sources
from flows.opened import asked_with, label_fingerprints, open_archive
from flows.recipe import Recipe
from flows.results import TEACHER_SET, StageResult
from storage import Archive, CaseRecord

SHARD_CASES = 256
"""Cases per task: enough that starting a task and loading the teacher cost nothing beside the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Cases that one task works on."""

    name: str
    """Which of how many, such as ``1/4``."""
    cases: tuple[str, ...]
    offset: int
    """How many cases the shards before it have."""
    total: int
    """How many cases all shards have."""


def ingest(recipe: Recipe) -> StageResult:
    """Read scans, expert labels, prompts and split into the archive.

    Raises:
        StageError: if the recipe names no sources and there is no archive yet, or if nothing of what it names can be used.
        IngestError: if there is no image; no archive is made then.
    """
    from flows import sources

    if recipe.ingest is None:
        cases = len(open_archive(recipe))
        return StageResult(stage="ingest", skipped=cases, output=recipe.archive, note="the recipe names no sources")
    note = sources.check_source(recipe.ingest.images, recipe.archive, exclude=recipe.ingest.exclude, catalog=recipe.catalog)
    archive = Archive.open_or_create(recipe.archive, catalog=recipe.catalog)
    result = sources.bring_in(archive, recipe.ingest, recipe.classes, Follow("ingest"))
    return replace(result, note="; ".join(each for each in (note, result.note) if each))


def shards_to_label(recipe: Recipe, size: int) -> list[Shard]:
    """Every case: archive cases for the student, calibration cases for thresholds, test cases for the teacher's own score."""
    archive = open_archive(recipe)
    chosen_gold(archive, recipe)  # gold that must not be learnt from is refused now, not after hours of labelling
    return _shards([record.id for record in _some(archive.cases(), recipe)], size)


def propose(recipe: Recipe, shard: Shard) -> StageResult:
    """Ask the recipe's sources for prompts about the cases of one shard; nothing where it takes only those that people left."""
    from distill.prompts.choice import WEAK, drawing_sources
    from distill.propose import propose_prompts
    from flows.plans import prompt_plan

    if set(drawing_sources(recipe.prompts.source)) == {WEAK}:
        return StageResult(stage="prompts")
    summary = propose_prompts(open_archive(recipe), prompt_plan(recipe), cases=shard.cases, progress=_follow("prompts", shard))
    return StageResult(
        stage="prompts",
        done=summary.done,
        skipped=summary.skipped,
        failed=summary.unfinished,
        quarantined=len(summary.quarantined),
        seconds=summary.seconds,
        tally={"prompts proposed": summary.prompts, "classes said to be absent": summary.absent} if summary.done else {},
        note="; ".join(f"WARNING: {each}" for each in summary.warnings),
    )


def announce_changes(recipe: Recipe) -> StageResult:
    """Say before anything is drawn whose labels this recipe is about to replace."""
    from flows.replacing import announce

    return announce(open_archive(recipe), recipe)


def label(recipe: Recipe, shard: Shard) -> StageResult:
    """Let the teacher draw the cases of one shard; of several, each, and then make one label set of theirs."""
    from flows.drawing import draw

    return draw(open_archive(recipe), recipe, shard.cases, _follow("label", shard))


def shards_to_refine(recipe: Recipe, size: int) -> list[Shard]:
    """Every case that the teacher has drawn; there may be none where the student learns from images alone."""
    archive = open_archive(recipe)
    records = archive.cases(with_labels=recipe.round.teacher_set)
    if not records and recipe.student.kind != "promptable":
        raise StageError(_nothing_drawn(archive, recipe))
    return _shards([record.id for record in records], size)


def _nothing_drawn(archive: Archive, recipe: Recipe) -> str:
    """Say why there is no case that the teacher has drawn."""
    cases = [record.id for record in archive.cases()]
    prompted = {prompt.class_id for found in asked_with(archive, recipe, cases).values() for prompt in found}
    if not prompted:
        if any(archive.catalog.prompts_by_case(cases).values()):
            sources = ", ".join(recipe.prompts.source)
            return f"no case of the archive {recipe.archive} has a prompt of {sources}, so the teacher has drawn nothing. Other sources have left some: name them in prompts.source."
        cure = f"Name a file of them: ingest: {{prompts: FILE}}, or 'samdistill prompts import FILE {recipe.archive}'."
        return f"no case of the archive {recipe.archive} has a prompt, so the teacher has drawn nothing. {cure}"
    if not prompted & set(recipe.classes):
        found, asked = (", ".join(map(str, sorted(ids))) for ids in (prompted, recipe.classes))
        return f"the prompts of the archive {recipe.archive} are about class {found}, but the recipe is about {asked}, so the teacher has drawn nothing."
    return f"the archive {recipe.archive} holds no label set {TEACHER_SET!r} to refine. Run 'samdistill label RECIPE' first."


def doubt(recipe: Recipe) -> StageResult:
    """Ask second opinions of what the teacher has drawn: is each mask of the right object?"""
    from flows.doubts import doubt_labels

    return doubt_labels(open_archive(recipe), recipe)


def calibrate(recipe: Recipe) -> StageResult:
    """Set the thresholds of refinement on the calibration cases, where there is gold for them."""
    from flows.rules import calibrate_rules

    archive = open_archive(recipe)
    drawn = archive.cases(part="calibration", with_labels=recipe.round.teacher_set)
    known = archive.cases(part="calibration", with_labels="gold")
    return calibrate_rules(
        archive, recipe, label_fingerprints(archive, drawn, recipe.round.teacher_set), label_fingerprints(archive, known, "gold")
    )


def announce_refined(recipe: Recipe) -> StageResult:
    """Say before anything is refined whose refined labels this recipe is about to replace."""
    from flows.replacing import announce_refined as announce

    return announce(open_archive(recipe), recipe)


def refine(recipe: Recipe, shard: Shard) -> StageResult:
    """Decide what to believe in the cases of one shard."""
    from distill.refine import refine_archive
    from flows.rules import add_predicted_dice, is_calibrated, refine_plan

    archive = open_archive(recipe)
    plan = refine_plan(recipe, calibrated=is_calibrated(archive, recipe))
    summary = refine_archive(archive, plan, cases=shard.cases, progress=_follow("refine", shard))
    add_predicted_dice(archive, recipe, shard.cases)
    remember_sources(archive, shard.cases)
    unsized = {"without known spacing, where volume_mm3 cannot be judged": summary.unsized} if summary.unsized else {}
    return StageResult(
        stage="refine",
        done=summary.done,
        skipped=summary.skipped,
        failed=len(archive.ledger.unfinished(f"refine:{recipe.round.refined_set}", shard.cases)),
        quarantined=len(summary.quarantined),
        seconds=summary.seconds,
        output=summary.label_set,
        tally=ordered_verdicts(summary.verdicts) | unsized,
    )


def report_filter(recipe: Recipe) -> StageResult:
    """Write the filter's own report: what it kept and removed, of whom, and how good that is."""
    from flows.filtering import write_filter_report

    return write_filter_report(open_archive(recipe), recipe)


def ordered_verdicts(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of verdicts, the best first."""
    return {keep: counts[keep] for keep in ("accept", "review", "reject") if counts.get(keep)}


def _some(records: list[CaseRecord], recipe: Recipe) -> list[CaseRecord]:
    if not records:
        message = f"the archive {recipe.archive} holds no case. Check 'ingest.images' in the recipe; 'samdistill inspect {recipe.archive}' lists what was refused."
        raise StageError(message)
    return records


def _shards(cases: list[str], size: int) -> list[Shard]:
    starts = range(0, len(cases), size)
    return [
        Shard(name=f"{n + 1}/{len(starts)}", cases=tuple(cases[start : start + size]), offset=start, total=len(cases))
        for n, start in enumerate(starts)
    ]


def _follow(stage: str, shard: Shard) -> Callable[[int, int], None]:
    """Show the progress of a shard as part of its stage; the engine counts only what is due, the bar all cases."""
    follow = Follow(stage, offset=shard.offset, total=shard.total)
    return lambda done, total: follow(len(shard.cases) - total + done, shard.total)
