"""What nnU-Net finds where it looks for a data set: pointers into the archive, ``dataset.json``, and the folds by patient.

A case of whose voxels nobody says anything is left out: nnU-Net would take patches of it, and learn nothing from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Shaped

from distill.unknown import believed_ids
from storage import IGNORE, Archive, ClassInfo
from students.errors import TrainingError
from students.folds import folds_of
from students.frozen import Frozen
from students.nnunet.job import PRESETS, Job, JobCase, Places, write_json
from students.spec import NnunetSpec

FOLDS = 5
"""nnU-Net's own number; fewer where there are fewer patients."""

_OWN_NAMES = ("background", "ignore")
_SEGMENTATION = "_seg"


class Survey(Frozen):
    """What there is to learn from; ``survey.json`` in the work folder."""

    kept: tuple[JobCase, ...]
    dropped: tuple[str, ...]
    """Cases without a voxel that anybody says anything about."""
    ignored: bool
    """Whether any voxel of the others is to be ignored."""


def survey(archive: Archive, job: Job, progress: Callable[[int], None]) -> Survey:
    """Look at all labels once.

    Args:
        archive: Of the job.
        job: What is to be learnt.
        progress: Called with the number of cases that were looked at.

    Raises:
        TrainingError: if no voxel of any case is of one of the classes.
    """
    kept, dropped, ignored, found = [], [], False, False
    ignore = len(job.classes) + 1
    for number, case in enumerate(job.cases, start=1):
        ids = numbered(believed_ids(archive[case.id].labels(job.label_set)), [info.id for info in job.classes], ignore)
        unknown = ids == ignore
        if unknown.all():
            dropped.append(case.id)
        else:
            kept.append(case)
            ignored |= bool(unknown.any())
            found |= bool(((ids > 0) & ~unknown).any())
        progress(number)
    if not found:
        names = ", ".join(info.name for info in job.classes)
        message = (
            f"no voxel of {len(job.cases)} cases with the label set {job.label_set!r} is of a class ({names}): {len(dropped)} of them are "
            "ignored altogether, the others are background. Check the labels before training."
        )
        raise TrainingError(message)
    return Survey(kept=tuple(kept), dropped=tuple(dropped), ignored=ignored)


def numbered(ids: Shaped[np.ndarray, "z y x"], class_ids: Sequence[int], ignore: int) -> Int16[np.ndarray, "z y x"]:
    """Return the archive's class ids as nnU-Net's: 0, 1 to K in the order given, and ``ignore`` for ``IGNORE`` and classes of others."""
    table = np.full(IGNORE + 1, ignore, np.int16)
    table[[0, *class_ids]] = range(len(class_ids) + 1)
    return np.asarray(table[ids])


def identifier(case: str) -> str:
    """Return what nnU-Net calls a case: its id, but for ids that end as nnU-Net's own label files do."""
    return case + "_" if case.rstrip("_").endswith(_SEGMENTATION) else case


def label_names(classes: Sequence[ClassInfo], *, ignored: bool) -> dict[str, int]:
    """Return nnU-Net's names of labels: background is 0, classes are numbered as they stand, ``ignore`` is the highest."""
    names = [info.name if info.name not in _OWN_NAMES else f"class-{info.id}" for info in classes]
    known = {"background": 0} | {name: number for number, name in enumerate(names, start=1)}
    return known | ({"ignore": len(classes) + 1} if ignored else {})


def splits(cases: Sequence[JobCase]) -> list[dict[str, list[str]]]:
    """Return the folds as ``splits_final.json`` has them, by patient; empty where there is one patient only."""
    patients = sorted({case.patient for case in cases})
    count = min(FOLDS, len(patients))
    fold = folds_of(patients, count)
    return [
        {
            "train": sorted(identifier(case.id) for case in cases if fold[case.patient] != held_out),
            "val": sorted(identifier(case.id) for case in cases if fold[case.patient] == held_out),
        }
        for held_out in range(count if count > 1 else 0)
    ]


def chosen_fold(job: Job, folds: Sequence[Any]) -> int | str:
    """Return the fold that is held out; everybody is trained on where one patient is all there is."""
    asked = (job.spec.nnunet or NnunetSpec()).fold
    return "all" if asked == "all" or not folds else asked % len(folds)


def configuration_name(job: Job, planned: Sequence[str]) -> str:
    """Return which of the networks that nnU-Net has planned is trained.

    Raises:
        TrainingError: if it has planned none of the kind that is asked for.
    """
    preset = (job.spec.nnunet or NnunetSpec()).preset
    asked = PRESETS[preset].configuration
    name = asked or ("3d_fullres" if "3d_fullres" in planned and not job.flat else "2d")
    if name not in planned:
        message = f"the preset {preset} is for volumes, but these cases are single slices. Say preset: 2d, or reduced."
        raise TrainingError(message)
    return name


def lay_out(job: Job, found: Survey, places: Places, settings: Mapping[str, Any]) -> None:
    """Write pointers and, last, ``dataset.json``.

    Args:
        job: What is to be learnt.
        found: What of it can be.
        places: Where.
        settings: What the trainer has to know; it reads them from ``dataset.json``, the one thing that nnU-Net hands to it.
    """
    entries = {identifier(case.id): _entry(job, case, found, places.raw) for case in found.kept}
    write_json(places.preprocessed / "splits_final.json", splits(found.kept))
    content = {
        "channel_names": {str(number): name for number, name in enumerate(job.channels)},
        "labels": label_names(job.classes, ignored=found.ignored),
        "numTraining": len(entries),
        "file_ending": ".json",
        "overwrite_image_reader_writer": "ArchiveIO",
        "dataset": entries,
        "samdistill": dict(settings),
    }
    write_json(places.raw / "dataset.json", content)


def _entry(job: Job, case: JobCase, found: Survey, raw: Path) -> dict[str, Any]:
    """Write the pointers of one case and say where they are."""
    for path, content in _pointers(job, case, found, raw):
        write_json(path, content)
    name = identifier(case.id)
    return {"images": [f"imagesTr/{name}_0000.json"], "label": f"labelsTr/{name}.json"}


def _pointers(job: Job, case: JobCase, found: Survey, raw: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    name, classes = identifier(case.id), [info.id for info in job.classes]
    image = {"archive": job.archive, "case": case.id, "flat": job.flat}
    labels = image | {"label_set": job.label_set, "class_ids": classes, "ignore": len(classes) + 1 if found.ignored else 0}
    yield raw / "imagesTr" / f"{name}_0000.json", image
    yield raw / "labelsTr" / f"{name}.json", labels
    # nnU-Net takes every number above 0 for an object where it measures intensities, ignore among them.
    yield raw / MEASURED / f"{name}.json", labels | {"ignore": 0}


MEASURED = "measuredTr"
"""Folder of the labels that intensities are measured with."""
