"""Is there anything to do? A look at recipe, source files and catalog that answers in about a second.

The stages themselves would find out too, but only after torch and Prefect have been imported and a server started.
"""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from flows.recipe import Recipe
from flows.results import LEDGER_STAGES, STAGES, Stage, StageResult
from flows.stages import report_of
from storage import Archive, ArchiveNotFoundError, Ledger, fingerprint

_STAGE = "run"


def is_up_to_date(recipe: Recipe) -> bool:
    """Tell whether a run of this recipe ended well and nothing it depends on has changed since."""
    try:
        archive = Archive.open(recipe.archive, catalog=recipe.catalog)
    except ArchiveNotFoundError:
        return False
    outputs = (recipe.student_folder / "student.json").is_file()
    return outputs and not archive.ledger.plan(_STAGE, {recipe.student.name: run_fingerprint(recipe, archive)})


def remember_run(recipe: Recipe) -> None:
    """Note that every stage of this recipe has ended, so that the next call is short."""
    archive = Archive.open(recipe.archive, catalog=recipe.catalog)
    unit = recipe.student.name
    if archive.ledger.plan(_STAGE, {unit: run_fingerprint(recipe, archive)}) and archive.ledger.claim(_STAGE, unit):
        archive.ledger.done(_STAGE, unit)


def standing(recipe: Recipe) -> tuple[StageResult, ...]:
    """What the ledger says about each stage, without doing anything."""
    ledger = Archive.open(recipe.archive, catalog=recipe.catalog).ledger
    return tuple(_standing(ledger, stage) for stage in STAGES)


def _standing(ledger: Ledger, stage: Stage) -> StageResult:
    counts = ledger.counts(LEDGER_STAGES[stage])
    return StageResult(stage=stage, skipped=counts["done"], failed=counts["failed"], quarantined=counts["quarantined"])


def run_fingerprint(recipe: Recipe, archive: Archive) -> str:
    """Everything a run depends on, and the state it left behind."""
    cases = archive.cases()
    return fingerprint(
        version=version("samdistill"),
        recipe=recipe.model_dump(mode="json"),
        files=[_stamp(path) for path in _inputs(recipe)],
        cases=[[record.id, record.fingerprint, record.part, record.patient] for record in cases],
        prompts={case: len(prompts) for case, prompts in archive.catalog.prompts_by_case([record.id for record in cases]).items()},
        label_sets=archive.catalog.count_label_sets(),
        ledger={stage: archive.ledger.counts(name) for stage, name in LEDGER_STAGES.items()},
        report=report_of(recipe),
    )


def _inputs(recipe: Recipe) -> Iterator[Path]:
    """Every file the recipe reads."""
    if recipe.teacher.checkpoint != "bundled":
        yield Path(recipe.teacher.checkpoint)
    if recipe.ingest is None:
        return
    gold = recipe.ingest.gold.path if recipe.ingest.gold else None
    for source in (recipe.ingest.images, recipe.ingest.prompts, gold, recipe.ingest.split):
        if source is not None:
            yield from _files(source)


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    for folder, folders, names in os.walk(source):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _stamp(path: Path) -> list[str | int]:
    seen = path.stat()
    return [str(path), seen.st_size, seen.st_mtime_ns]
