"""One call from a recipe file to a summary: what the command line, a schedule and a test all use."""

import os
from collections.abc import Sequence
from pathlib import Path

from flows.console import BARS
from flows.errors import FlowError, StageError
from flows.places import check_writable
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import CALIBRATE, LEDGER_STAGES, STAGES, RunSummary, Stage


def launch(recipe_file: Path, chosen: tuple[Stage, ...] = STAGES, *, retry: bool = False) -> RunSummary:
    """Run the chosen stages of a recipe; a whole run with nothing to do returns at once.

    Args:
        recipe_file: The recipe.
        chosen: Its stages.
        retry: Whether units of these stages that were given up get three new attempts.

    Raises:
        RecipeError: if the recipe cannot be used; nothing has been touched then.
        StageError: if what it names cannot be written to, or cannot be the teacher; nothing has been touched then either.
    """
    from flows.freshness import is_up_to_date, remember_run, standing
    from flows.stages import report_of

    recipe = load_recipe(recipe_file)
    whole = chosen == STAGES
    again = requeue(recipe, chosen) if retry else 0
    if whole and not again and is_up_to_date(recipe):
        return RunSummary(stages=standing(recipe), up_to_date=True, report=report_of(recipe), archive=recipe.archive)
    check_before(recipe, chosen)
    summary = _run(recipe_file, chosen)
    if whole and not any(result.failed for result in summary.stages):
        remember_run(recipe)
    return summary


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
    names += [(CALIBRATE, own)] if "refine" in chosen else []
    return sum(ledger.requeue(name, unit=unit) for name, unit in names)


def check_before(recipe: Recipe, chosen: Sequence[Stage]) -> None:
    """Fail in seconds over what would otherwise fail after the first stage.

    Raises:
        StageError: if archive or results cannot be written, or the teacher's profile or base does not fit its file.
        DistillError: if the teacher's file cannot be read.
    """
    from storage.store import local_path

    archive = local_path(recipe.archive)
    if archive is not None:
        check_writable(archive, "the archive")
    check_writable(recipe.results, "the results")
    if "label" in chosen:
        check_teacher(recipe)


def check_teacher(recipe: Recipe) -> None:
    """Look into the teacher's file without building the model.

    Raises:
        StageError: if the recipe leaves open, or contradicts, how the file is to be used.
        DistillError: if the file cannot be read, or is of no family that can be used.
    """
    block = recipe.teacher
    if (block.checkpoint, block.profile, block.base) == ("bundled", None, None):
        return
    from distill.teachers.checkpoints import inspect_checkpoint

    info = inspect_checkpoint(block.checkpoint, base=block.base)
    file, known = Path(block.checkpoint).name, ", ".join(info.profiles)
    if block.base is None and "needs" in info.details:
        message = f"the teacher {file} is {info.title} and needs {info.details['needs']}. Name it in the recipe: teacher: {{base: FILE}}."
        raise StageError(message)
    if block.profile is None and info.profile is None:
        message = (
            f"the teacher {file} is {info.title}, and the file does not say how it wants its images. Name its profile in the recipe, "
            f"teacher: {{profile: ...}}; possible: {known}. See docs/checkpoints.md."
        )
        raise StageError(message)
    if block.profile is not None and block.profile not in info.profiles:
        message = f"the teacher {file} is {info.title} and cannot be used with profile {block.profile!r}. Possible: {known}."
        raise StageError(message)


def _run(recipe_file: Path, chosen: tuple[Stage, ...]) -> RunSummary:
    """Start the Prefect flow in this process; its server keeps its records in a folder of its own."""
    home = Path(os.environ["PREFECT_HOME"])
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"run records cannot be kept in {home} ({error.strerror}). Name a folder of yours: export PREFECT_HOME=/some/folder"
        raise FlowError(message) from error
    with BARS.shown():
        from flows.pipeline import run_recipe

        return run_recipe(str(recipe_file.resolve()), chosen)
