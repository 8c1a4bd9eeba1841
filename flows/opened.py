"""The archive of a recipe, and what of it later stages depend on."""

from collections.abc import Iterable

from flows.errors import StageError
from flows.recipe import Recipe
from storage import Archive, ArchiveNotFoundError, CaseRecord, Prompt


def open_archive(recipe: Recipe) -> Archive:
    """Open the recipe's archive.

    Raises:
        StageError: if there is none yet.
    """
    try:
        return Archive.open(recipe.archive, catalog=recipe.catalog)
    except ArchiveNotFoundError:
        message = f"there is no archive at {recipe.archive}. Run 'samdistill run RECIPE' or 'samdistill ingest SRC {recipe.archive}' first."
        raise StageError(message) from None


def label_fingerprints(archive: Archive, records: Iterable[CaseRecord], label_set: str) -> dict[str, str]:
    """Case id -> fingerprint of its labels: what a student or a score depends on. Cases whose labels are gone by now are left out."""
    known = archive.catalog.fingerprints(label_set)
    return {record.id: known[record.id] for record in records if record.id in known}


def channel_names(records: Iterable[CaseRecord]) -> dict[str, dict[str, list[str]]]:
    """Return the names of each case's channels in their order, as a part of a fingerprint; nothing where nobody named any.

    Students take channels by name, so that other names for the same pixels are other images to them.
    """
    named = {record.id: [channel.name for channel in record.channels] for record in records if record.channels}
    return {"channels": named} if named else {}


def asked_with(archive: Archive, recipe: Recipe, cases: list[str]) -> dict[str, list[Prompt]]:
    """Return the prompts of each case that the teacher is asked with: those of the recipe's sources."""
    from distill.prompts.choice import chosen_prompts

    stored = archive.catalog.prompts_by_case(cases)
    return {case: chosen_prompts(prompts, recipe.prompts.source) for case, prompts in stored.items()}
