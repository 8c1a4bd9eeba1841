"""The ingest stage: scans first, then what is said about them."""

import time
from collections.abc import Mapping

from flows.console import Follow
from flows.recipe import ClassBlock, IngestBlock
from flows.results import StageResult
from storage import Archive, ClassInfo
from storage.ingest import import_labels, import_parts, import_prompts, ingest


def bring_in(archive: Archive, block: IngestBlock, classes: Mapping[int, ClassBlock], follow: Follow) -> StageResult:
    """Read everything that the recipe's ``ingest`` block names.

    Args:
        archive: Where to.
        block: What from.
        classes: The recipe's classes, for the names in the gold label set.
        follow: Draws the bar.
    """
    started = time.monotonic()
    summary = ingest(
        archive, block.images, modality=block.modality, patient_from=block.patient_from, exclude=block.exclude, progress=follow
    )
    if block.split is not None:
        import_parts(archive, block.split)
    if block.gold is not None:
        infos = tuple(ClassInfo(id=key, name=value.name) for key, value in sorted(classes.items()))
        import_labels(archive, block.gold.path, classes=infos, mapping=block.gold.map or None, suffix=block.gold.suffix)
    if block.prompts is not None:
        import_prompts(archive, block.prompts, names={value.name: key for key, value in classes.items()})
    problems = len(archive.catalog.problems())
    return StageResult(
        stage="ingest",
        done=summary.added + summary.replaced,
        skipped=summary.unchanged,
        quarantined=problems,
        seconds=time.monotonic() - started,
        output=archive.url,
        note=f"{problems} files or rows refused, see 'samdistill inspect'" if problems else "",
    )
