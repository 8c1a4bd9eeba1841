"""One call from a recipe file to a summary: what the command line, a schedule and a test all use."""

import os
from collections.abc import Sequence
from pathlib import Path

from distill.devices import AUTO, CPU, resolve_devices
from distill.errors import CheckpointError, PlanError, PromptError
from distill.teachers.foreign import check_foreign, is_foreign
from flows.console import BARS, warn
from flows.errors import FlowError, StageError
from flows.places import check_writable
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.recipe_teacher import CheckpointBlock
from flows.results import CALIBRATE, CURVE, DOUBT, FILTER, LEDGER_STAGES, STAGES, RunSummary, Stage, doubt_unit, teacher_sets
from flows.round_units import round_units
from flows.stopping import listening

ASKED_WITH = "box"
"""The kind of prompt that every question of labelling holds (``distill.questions``)."""


def launch(recipe_file: Path, chosen: tuple[Stage, ...] = STAGES, *, retry: bool = False, arms: tuple[str, ...] = ()) -> RunSummary:
    """Run the chosen stages of a recipe; a whole run with nothing to do returns at once.

    Args:
        recipe_file: The recipe.
        chosen: Its stages.
        retry: Whether units of these stages that were given up get three new attempts.
        arms: What to evaluate beside student and teacher, instead of what the recipe names.

    Raises:
        RecipeError: if the recipe cannot be used; nothing has been touched then.
        StageError: if there is no such arm, or if what it names cannot be written to; nothing has been touched then either.
        DistillError: if it cannot be the teacher; likewise.
    """
    from flows.freshness import input_stamps, is_up_to_date, remember_run, standing
    from flows.judging import check_arms, report_of

    recipe = load_recipe(recipe_file)
    check_arms(recipe, arms)
    _warn_of_what_is_not_used(recipe_file, recipe)
    whole = chosen == STAGES
    files = input_stamps(recipe) if whole else []
    again = requeue(recipe, chosen) if retry else 0
    if whole and not again and is_up_to_date(recipe, files):
        return RunSummary(stages=standing(recipe), up_to_date=True, report=report_of(recipe), archive=recipe.archive)
    check_before(recipe, chosen)
    summary = _run(recipe_file, chosen, arms)
    if whole and not any(result.failed for result in summary.stages):
        remember_run(recipe, files, summary.brought_in)
    return summary


def _warn_of_what_is_not_used(recipe_file: Path, recipe: Recipe) -> None:
    """Say which options of sources come to nothing; they may stand there for another day, so it is no error."""
    if unasked := recipe.prompts.unasked:
        chain = ", ".join((*recipe.prompts.source, unasked[0]))
        warn(
            f"WARNING: {recipe_file.name} has options for {' and '.join(unasked)}, which prompts.source does not name: nothing is asked with them. "
            f"Say source: [{chain}] if it is to be asked too."
        )


def requeue(recipe: Recipe, chosen: Sequence[Stage]) -> int:
    """Give the units of these stages that were given up three new attempts, and return how many there were.

    Train, evaluate and the thresholds of refine have one unit, called after the student: those of other recipes stay as they are.
    """
    from storage import Archive, ArchiveNotFoundError

    try:
        ledger = Archive.open(recipe.archive, catalog=recipe.catalog).ledger
    except ArchiveNotFoundError:
        return 0
    own = recipe.student.name
    names = [(LEDGER_STAGES[stage], own if stage in {"train", "evaluate"} else None) for stage in chosen]
    names += [(f"label:{name}", None) for name in teacher_sets(1 + len(recipe.teacher.also))] if "label" in chosen else []
    doubts = [(DOUBT, doubt_unit(own, test)) for test in recipe.refine.semantic]
    names += [*doubts, (CALIBRATE, own), (FILTER, own)] if "refine" in chosen else []
    names += [(f"prompts:{source}", None) for source in recipe.prompts.source] if "label" in chosen else []
    if "evaluate" in chosen and recipe.evaluate.gold_curve:
        from flows.curve import points

        names += [(CURVE, point.name) for point in points(recipe)]
    names += round_units(recipe) if "train" in chosen else []
    return sum(ledger.requeue(name, unit=unit) for name, unit in names)


def check_before(recipe: Recipe, chosen: Sequence[Stage]) -> None:
    """Fail in seconds over what would otherwise fail after the first stage.

    Raises:
        StageError: if archive or results cannot be written, the archive is not there and would not be made, or the student's device is not here.
        DistillError: if the teacher cannot be loaded or asked (``check_teacher``), or its device is not here.
    """
    from storage.store import local_path

    archive = local_path(recipe.archive)
    if archive is not None:
        check_writable(archive, "the archive")
    check_writable(recipe.results, "the results")
    if "ingest" not in chosen:
        from flows.opened import open_archive

        open_archive(recipe)
    draws_again = "train" in chosen and recipe.rounds.most > 1 and recipe.in_round(2).round.asks_teacher
    if "label" in chosen or draws_again:
        check_teacher(recipe)
    check_student_device(recipe, chosen)


def check_student_device(recipe: Recipe, chosen: Sequence[Stage]) -> None:
    """Look for the devices on which these stages train; a promptable student is trained where its teacher is asked.

    Raises:
        StageError: if one is not here.
    """
    trains = "train" in chosen or ("refine" in chosen and "student" in recipe.refine.semantic)
    if not trains or recipe.student.kind == "promptable" or recipe.student.device in {AUTO, CPU}:
        return
    try:
        resolve_devices(recipe.student.device)
    except PlanError as error:
        message = f"student.{error}"
        raise StageError(message) from error


def check_teacher(recipe: Recipe) -> None:
    """Look for its devices, and at every tensor of the teacher's file without building the model.

    Raises:
        DistillError: if a device is not here, the file cannot be read, is of no family that can be used, lacks tensors or holds NaN, if the
            recipe leaves open, or contradicts, how to use it, or if it answers no prompts.
    """
    block = recipe.teacher
    teachers: list[CheckpointBlock] = [block, *block.also]
    plain = block.device in {AUTO, CPU} and all(each.precision != "int8" for each in teachers)  # then torch need not be asked
    devices = () if plain else resolve_devices(block.device)
    for each in teachers:
        _check_one(each, devices)


def _check_one(block: CheckpointBlock, devices: Sequence[str]) -> None:
    """Look at one teacher, without building it."""
    if (block.checkpoint, block.profile, block.base) == ("bundled", None, None) and block.precision != "int8":
        return
    if is_foreign(block.checkpoint):
        check_foreign(block.checkpoint, profile=block.profile, base=block.base)
        return
    from distill.teachers.checkpoints import check_precision, choose_profile, inspect_checkpoint
    from distill.teachers.profiles import PROFILES

    info = inspect_checkpoint(block.checkpoint, base=block.base, tensors=True)
    name = Path(block.checkpoint).name
    profile = choose_profile(info, name, block.profile)
    check_precision(info, name, block.precision, devices)
    if info.fault:
        raise CheckpointError(info.fault)
    if ASKED_WITH not in PROFILES[profile].prompts:
        message = (
            f"{name} (profile {profile}) answers no boxes, and labelling asks with a box on every slice. In a recipe name a teacher that "
            "takes them, such as bundled, vit_b or medsam; from Python, distill.load_teacher(...).predict(picture) asks this one."
        )
        raise PromptError(message)


def _run(recipe_file: Path, chosen: tuple[Stage, ...], arms: tuple[str, ...]) -> RunSummary:
    """Start the Prefect flow in this process; its server keeps its records in a folder of its own."""
    home = Path(os.environ["PREFECT_HOME"])
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"run records cannot be kept in {home} ({error.strerror}). Name a folder of yours: export PREFECT_HOME=/some/folder"
        raise FlowError(message) from error
    warn(f"{recipe_file.name}: {', '.join(chosen)} ...")  # what they need takes seconds to load
    with BARS.shown(), listening():
        from flows.pipeline import run_recipe

        return run_recipe(str(recipe_file.resolve()), chosen, arms)
