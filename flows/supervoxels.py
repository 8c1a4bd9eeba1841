"""``samdistill supervoxels``: every case of an archive cut into pieces without names, as NIfTI files in the scans' geometry."""

import time
from pathlib import Path

from flows.console import BARS, Follow
from flows.errors import StageError
from flows.opened import open_archive
from flows.places import check_writable
from flows.plans import label_plan
from flows.recipe_file import load_recipe
from flows.results import StageResult
from storage import Part
from storage.export.nifti import is_export, note_of, write_nifti

_NOTE = "samdistill supervoxels "
"""What the comment in a file begins with; the fingerprint of what was asked follows."""


def export_supervoxels(recipe_file: Path, out: Path, *, part: Part | None) -> StageResult:
    """Write the pieces of each case to ``OUT/CASE.nii.gz``; files that this command wrote before, of the same scan, teacher and options, stay as they are.

    Raises:
        StageError: if there is no case, the folder cannot be written to, or a file of somebody else would be lost; nothing is written then.
        PromptError: if the recipe's teacher does not answer points.
    """
    from distill.prompts.sources import SourceContext
    from distill.supervoxels import supervoxel_inputs, supervoxels

    started = time.monotonic()
    recipe = load_recipe(recipe_file)
    archive = open_archive(recipe)
    records = archive.cases(part=part)
    if not records:
        message = f"the archive {recipe.archive} has no case{f' in part {part}' if part else ''}. Bring some in with 'samdistill ingest'."
        raise StageError(message)
    check_writable(out, "the supervoxels")
    targets = {record.id: out / f"{record.id}.nii.gz" for record in records}
    if strangers := [target for target in targets.values() if target.exists() and not is_export(target)]:
        message = f"{strangers[0]} would be lost: no samdistill export wrote it. Name another folder: -o FOLDER."
        raise StageError(message)
    context, grid = SourceContext(archive=archive, plan=label_plan(recipe)), recipe.prompts.everything.grid
    notes = {record.id: f"{_NOTE}{supervoxel_inputs(context, record, grid)}" for record in records}
    due = [record for record in records if note_of(targets[record.id]) != notes[record.id]]
    pieces = 0
    with BARS.shown():
        for n, record in enumerate(due):
            found = supervoxels(context.teacher, context.subject(record, ()), grid)
            write_nifti(found, record.geometry, targets[record.id], description="samdistill export", note=notes[record.id])
            pieces += int(found.max())
            Follow("supervoxels")(n + 1, len(due))
    return StageResult(
        stage="export",
        done=len(due),
        skipped=len(records) - len(due),
        seconds=time.monotonic() - started,
        output=str(out),
        tally={"pieces": pieces} if due else {},
    )
