"""Is there anything to do? A look at recipe, source files and catalog that answers in about a second.

The stages themselves would find out too, but only after torch and Prefect have been imported and a server started.
"""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import make_url

from flows.recipe import Recipe
from flows.results import CALIBRATE, LEDGER_STAGES, STAGES, Stage, StageResult
from flows.stages import report_of
from storage import Archive, ArchiveNotFoundError, fingerprint
from storage.ingest.discover import OWN_FOLDERS
from storage.store import catalog_url_of

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
    archive = Archive.open(recipe.archive, catalog=recipe.catalog)
    return tuple(_standing(recipe, archive, stage) for stage in STAGES)


def _standing(recipe: Recipe, archive: Archive, stage: Stage) -> StageResult:
    counts = archive.ledger.counts(LEDGER_STAGES[stage])
    # What ingest refused is in the catalog; the exit code of this call must be that of the run that refused it.
    refused = len(archive.catalog.problems()) if recipe.ingest is not None else 0
    given_up = refused if stage == "ingest" else counts["quarantined"]
    if stage == "refine":
        given_up += archive.ledger.state(CALIBRATE, recipe.student.name) == "quarantined"
    return StageResult(stage=stage, skipped=counts["done"], failed=counts["failed"], quarantined=given_up)


def run_fingerprint(recipe: Recipe, archive: Archive) -> str:
    """Everything a run depends on, and the state it left behind."""
    cases = archive.cases()
    return fingerprint(
        version=version("samdistill"),
        recipe=recipe.model_dump(mode="json"),
        files=[_stamp(path) for path in _inputs(recipe)],
        cases=[[record.id, record.fingerprint, record.part, record.patient] for record in cases],
        prompts=archive.catalog.prompts_by_case([record.id for record in cases]),
        label_sets=archive.catalog.count_label_sets(),
        ledger={stage: archive.ledger.counts(name) for stage, name in LEDGER_STAGES.items()},
        report=report_of(recipe),
    )


def _inputs(recipe: Recipe) -> Iterator[Path]:
    """Every file the recipe reads."""
    if recipe.teacher.checkpoint != "bundled":
        yield Path(recipe.teacher.checkpoint)
    if recipe.teacher.base is not None:
        yield Path(recipe.teacher.base)
    if recipe.ingest is None:
        return
    gold = recipe.ingest.gold.path if recipe.ingest.gold else None
    for source in (recipe.ingest.images, recipe.ingest.prompts, gold, recipe.ingest.split):
        if source is not None:
            yield from _files(source, recipe)


def _files(source: Path, recipe: Recipe) -> Iterator[Path]:
    """Yield a file, or the files of a folder without what the run itself writes there: that would never be up to date."""
    if source.is_file():
        yield source
        return
    catalog, results = _catalog_file(recipe), {recipe.results, recipe.student_folder.parent, recipe.report_folder.parent}
    for base, folders, names in os.walk(source):
        folder = Path(base)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(OWN_FOLDERS))
        folders[:] = [name for name in folders if folder / name not in results]
        own = catalog.name if catalog is not None and folder == catalog.parent else None
        # SQLite keeps "-wal" and "-shm" files beside its database.
        yield from (folder / name for name in sorted(names) if not name.startswith(".") and not (own and name.startswith(own)))


def _catalog_file(recipe: Recipe) -> Path | None:
    """Return the file that the catalog is kept in; None for a database server."""
    url = make_url(catalog_url_of(recipe.archive, recipe.catalog))
    return Path(url.database).resolve() if url.get_backend_name() == "sqlite" and url.database else None


def _stamp(path: Path) -> list[str | int]:
    """Return path, size (bytes) and time of last change (ns); a file that cannot be looked at, such as a dangling link, is -1 and 0."""
    try:
        seen = path.stat()
    except OSError:
        return [str(path), -1, 0]
    return [str(path), seen.st_size, seen.st_mtime_ns]
