"""One call from a recipe file to a summary: what the command line, a schedule and a test all use."""

import os
from pathlib import Path

from flows.console import BARS
from flows.errors import FlowError
from flows.recipe_file import load_recipe
from flows.results import STAGES, RunSummary, Stage


def launch(recipe_file: Path, chosen: tuple[Stage, ...] = STAGES) -> RunSummary:
    """Run the chosen stages of a recipe; a whole run with nothing to do returns at once.

    Raises:
        RecipeError: if the recipe cannot be used; nothing has been touched then.
    """
    from flows.freshness import is_up_to_date, remember_run, standing
    from flows.stages import report_of

    recipe = load_recipe(recipe_file)
    whole = chosen == STAGES
    if whole and is_up_to_date(recipe):
        return RunSummary(stages=standing(recipe), up_to_date=True, report=report_of(recipe))
    summary = _run(recipe_file, chosen)
    if whole and not any(result.failed for result in summary.stages):
        remember_run(recipe)
    return summary


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
