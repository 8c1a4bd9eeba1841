"""Is there anything to do? A look at recipe, source files and catalog that answers in about a second.

The stages themselves would find out too, but only after torch and Prefect have been imported and a server started.
"""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import make_url

from distill.extensions import installed
from distill.prompts.choice import PROPOSED
from distill.teachers.fetch import OFFICIAL, checkpoint_folder
from flows.judging import report_of
from flows.opened import channel_names
from flows.program_version import source_hash
from flows.recipe import Recipe
from flows.results import (
    CALIBRATE,
    DOUBT,
    FILTER,
    LEDGER_STAGES,
    OTHER_CASES,
    STAGES,
    TEACHER_SET,
    Stage,
    StageResult,
    doubt_unit,
    teacher_sets,
)
from flows.round_units import student_units
from storage import Archive, ArchiveNotFoundError, fingerprint
from storage.ingest.described import description_of
from storage.ingest.discover import walk
from storage.store import catalog_url_of

Stamps = list[list[str | int]]
"""Path, size (bytes) and time of last change (ns) of each file."""

_STAGE = "run"
_WITH_MASK_FILES = (".json", ".jsonl", ".ndjson", ".csv")
_TEXT = re.compile(r"[^\"',;\r\n\t]+")
"""A text of JSON or a cell of CSV, more or less."""
_PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


def is_up_to_date(recipe: Recipe, files: Stamps) -> bool:
    """Tell whether a run of this recipe ended well and nothing it depends on, ``files`` among it, has changed since."""
    try:
        archive = Archive.open(recipe.archive, catalog=recipe.catalog)
    except ArchiveNotFoundError:
        return False
    outputs = (recipe.student_folder / "student.json").is_file()
    return outputs and not archive.ledger.plan(_STAGE, {recipe.student.name: run_fingerprint(recipe, archive, files)})


def remember_run(recipe: Recipe, files: Stamps, brought_in: str | None) -> None:
    """Note that every stage of this recipe has ended, so that the next call is short; not where a next run has something to do.

    Args:
        recipe: The recipe.
        files: Its inputs before the run began: one that was changed or added meanwhile is for the next run.
        brought_in: What ``material`` was after ingest; None where nobody asked. Prompts or parts that came in later were not worked on.
    """
    archive = Archive.open(recipe.archive, catalog=recipe.catalog)
    unit = recipe.student.name
    to_repeat = any(archive.ledger.counts(stage)["failed"] for stage in ("ingest", "gold"))
    if to_repeat or brought_in not in {None, material(archive)}:
        return
    if archive.ledger.plan(_STAGE, {unit: run_fingerprint(recipe, archive, files)}) and archive.ledger.claim(_STAGE, unit):
        archive.ledger.done(_STAGE, unit)


def standing(recipe: Recipe) -> tuple[StageResult, ...]:
    """What the ledger says about each stage, without doing anything."""
    archive = Archive.open(recipe.archive, catalog=recipe.catalog)
    return tuple(_standing(recipe, archive, stage) for stage in STAGES)


def _standing(recipe: Recipe, archive: Archive, stage: Stage) -> StageResult:
    # The exit code of this call must be that of the run before it.
    own = recipe.student.name
    if stage in {"train", "evaluate"}:  # one unit for each student of the archive
        states = [archive.ledger.state(LEDGER_STAGES[stage], own)]
        states += [archive.ledger.state(*unit) for unit in student_units(recipe)] if stage == "train" else []
        return StageResult(stage=stage, skipped=states[0] == "done", failed=states.count("failed"), quarantined=states.count("quarantined"))
    counts = archive.ledger.counts(LEDGER_STAGES[stage])
    if stage == "ingest":  # what it refused is in the catalog
        refused = sum(each.reason != OTHER_CASES for each in archive.catalog.problems()) if recipe.ingest is not None else 0
        return StageResult(stage=stage, skipped=counts["done"], quarantined=refused)
    if stage == "label":  # what one of several teachers could not draw is in that teacher's stage
        own_sets = teacher_sets(1 + len(recipe.teacher.also))
        counts["quarantined"] += sum(archive.ledger.counts(f"label:{name}")["quarantined"] for name in own_sets if len(own_sets) > 1)
        # and what a source could not look at is in that source's stage, which is reported with label
        counts["quarantined"] += sum(archive.ledger.counts(f"prompts:{source}")["quarantined"] for source in recipe.prompts.source)
    around = [archive.ledger.state(each, own) for each in (CALIBRATE, FILTER)] if stage == "refine" else []
    if stage == "refine":
        around += [archive.ledger.state(DOUBT, doubt_unit(own, test)) for test in recipe.refine.semantic]
    thresholds = around.count("quarantined")
    return StageResult(stage=stage, skipped=counts["done"], failed=counts["failed"], quarantined=counts["quarantined"] + thresholds)


def run_fingerprint(recipe: Recipe, archive: Archive, files: Stamps | None = None) -> str:
    """Everything a run depends on, and the state it left behind; ``files`` are its inputs, looked at now where they are not given."""
    return fingerprint(
        version=version("samdistill"),
        code=source_hash(),
        extensions=installed(),
        recipe=recipe.model_dump(mode="json"),
        files=input_stamps(recipe) if files is None else files,
        material=material(archive),
        label_sets=archive.catalog.count_label_sets(),
        ledger={stage: archive.ledger.counts(name) for stage, name in LEDGER_STAGES.items()},
        report=report_of(recipe),
        **({"rounds": [archive.ledger.state(*unit) for unit in student_units(recipe)]} if recipe.rounds.most > 1 else {}),
    )


def material(archive: Archive) -> str:
    """Return a hash of what stages after ingest work on: cases with their parts and what their channels are called, prompts, and what people decided about masks.

    What sources propose follows from that, and is made by the run itself.
    """
    cases = archive.cases()
    stored = archive.catalog.prompts_by_case([record.id for record in cases])
    return fingerprint(
        cases=[[record.id, record.fingerprint, record.part, record.patient] for record in cases],
        prompts={case: [prompt for prompt in each if not prompt.source.startswith(PROPOSED)] for case, each in stored.items()},
        **channel_names(cases),
        **({"reviews": reviews} if (reviews := archive.catalog.review_history(TEACHER_SET)) else {}),
    )


def input_stamps(recipe: Recipe) -> Stamps:
    """Return path, size and time of change of every file the recipe reads."""
    return [_stamp(path) for path in _inputs(recipe)]


def _inputs(recipe: Recipe) -> Iterator[Path]:
    """Every file the recipe reads."""
    for named in (name for each in (recipe.teacher, *recipe.teacher.also) for name in (each.checkpoint, each.base)):
        if named is not None and named != "bundled":
            file = checkpoint_folder() / OFFICIAL[named].file_name if named in OFFICIAL else Path(named)
            yield from (path for path in (file, file.with_name("adapter_config.json")) if path.exists())
    if recipe.ingest is None:
        return
    gold = recipe.ingest.gold.path if recipe.ingest.gold else None
    for source in (recipe.ingest.images, recipe.ingest.prompts, gold, recipe.ingest.split):
        if source is not None:
            yield from _files(source, recipe)
    told = description_of(recipe.ingest.images)
    if told.parent != recipe.ingest.images and told.is_file():
        yield told
    if recipe.ingest.prompts is not None:
        yield from _masks(recipe.ingest.prompts)


def _masks(prompts: Path) -> list[Path]:
    """Return the pictures that rows of a file of prompts name as their masks; names of others among them do no harm."""
    if not prompts.is_file() or prompts.suffix.lower() not in _WITH_MASK_FILES:
        return []
    text = prompts.read_text(encoding="utf-8-sig", errors="replace")
    words = {found.group().strip() for found in _TEXT.finditer(text) if found.group().rstrip().lower().endswith(_PICTURES)}
    return [prompts.parent / name.replace("\\\\", "/").replace("\\", "/") for name in sorted(words)]


def _files(source: Path, recipe: Recipe) -> Iterator[Path]:
    """Yield a file, or the files of a folder without what the run itself writes there: that would never be up to date."""
    if source.is_file():
        yield source
        return
    catalog, results = _catalog_file(recipe), {recipe.results, recipe.student_folder.parent, recipe.report_folder.parent}
    for path in walk(source, leave_out=results):
        # SQLite keeps "-wal" and "-shm" files beside its database.
        if catalog is None or path.parent != catalog.parent or not path.name.startswith(catalog.name):
            yield path


def _catalog_file(recipe: Recipe) -> Path | None:
    """Return the file that the catalog is kept in; None for a database server."""
    url = make_url(catalog_url_of(recipe.archive, recipe.catalog))
    return Path(url.database).resolve() if url.get_backend_name() == "sqlite" and url.database else None


def _stamp(path: Path) -> list[str | int]:
    """Return path, size (bytes) and time of last change (ns); a file that cannot be looked at, such as a dangling link, is -1 and 0."""
    try:
        seen = path.stat()
    except (OSError, ValueError):  # ValueError: a zero in a name
        return [str(path), -1, 0]
    return [str(path), seen.st_size, seen.st_mtime_ns]
