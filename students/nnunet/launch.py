"""Train an nnU-Net from an archive's labels, resumably, in a process of its own. Importing this costs no torch.

The process is a clean one, so it works also where the caller may not start children by ``multiprocessing``, as the workers of schedulers. It
ends with its caller, however that ends; the same call then goes on after the last whole epoch.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Unpack

from storage import Archive, CaseRecord, ClassInfo, fingerprint
from students.compact import TrainedStudent, finished_card
from students.errors import WorkerError
from students.learnt_cases import check_channels, chosen_records, named_channels
from students.lesson import Lesson
from students.nnunet.job import JOB, LOG, Job, JobCase, Places, write_json
from students.process import Progress, accident_words, run_process
from students.spec import NnunetSpec, StudentSpec
from students.units import spacing_known

TRAINER = "1"
"""Raised whenever training from the same inputs gives other students, so that old ones are trained again."""

_FREE = ("threads", "device", "checkpoint_seconds", "cache_bytes")


def train(archive: Archive, **lesson: Unpack[Lesson]) -> TrainedStudent:
    """Train an nnU-Net, or continue an interrupted training, or return at once if this very student is finished.

    Args:
        archive: Where images and labels are read from.
        **lesson: See `students.lesson.Lesson`.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given.
        WorkerError: if the process that trains ends without a student.
    """
    label_set, spec, weights = lesson["label_set"], lesson["spec"], lesson.get("case_weights") or {}
    records = chosen_records(archive, label_set, lesson.get("cases"), weights)
    check_channels(records)
    job = _job(archive, records, label_set, lesson["classes"], spec, weights)
    places = Places(lesson["workdir"] / spec.name)
    done = finished_card(places.folder, job.fingerprint)
    if done is not None:
        return TrainedStudent(path=places.folder, card=done, fresh=False, resumed=False)
    resumed = _prepare(job, places)
    _run(_command(places), places.environment(spec, archive.catalog_url), places, lesson.get("progress"))
    card = finished_card(places.folder, job.fingerprint)
    if card is None:
        message = f"student {spec.name}: nnU-Net ended well, but {places.folder} holds no student of these inputs. Run again."
        raise WorkerError(message)
    shutil.rmtree(places.work, ignore_errors=True)
    return TrainedStudent(path=places.folder, card=card, fresh=True, resumed=resumed)


def _job(
    archive: Archive,
    records: Sequence[CaseRecord],
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    weights: Mapping[str, float],
) -> Job:
    """Return what the process is told, with the fingerprint of everything that decides the result."""
    labels = [archive[record.id].labels(label_set).history.fingerprint for record in records]
    asked = (spec.nnunet or NnunetSpec()).model_dump(exclude={"workers"}, mode="json")
    # Students of before learnt from class ids, and their fingerprints do not speak of it.
    heard = {name: getattr(spec.learning, name) for name in ("targets", "confidence")} if spec.learning.needs_probability else {}
    mark = fingerprint(
        trainer=TRAINER,
        spec={**spec.model_dump(include={"name", "kind", "budget_seconds", "seed"}, mode="json"), "nnunet": asked},
        classes=[(info.id, info.name) for info in classes],
        cases=[(r.id, r.fingerprint, own, weights.get(r.id, 1.0)) for r, own in zip(records, labels, strict=True)],
        label_set=label_set,
        **heard,
        **({"channels": [(each.name, each.modality) for each in named]} if (named := named_channels(records)) else {}),
    )
    return Job(
        fingerprint=mark,
        archive=archive.url,
        label_set=label_set,
        classes=classes,
        cases=tuple(JobCase(id=record.id, patient=record.patient, weight=weights.get(record.id, 1.0)) for record in records),
        channels=_told_channels(records),
        named_channels=named,
        flat=all(record.shape_czyx[1] == 1 for record in records),
        spacing_known=spacing_known(records),
        spec=spec,
    )


def _told_channels(records: Sequence[CaseRecord]) -> tuple[str, ...]:
    """Return what nnU-Net is told of each channel: its name, or ``CT``, by which it chooses how to normalise; without names the modality of all."""
    named = named_channels(records)
    if named:
        return tuple("CT" if each.modality == "CT" else each.name for each in named)
    modalities = {record.modality for record in records}
    return (modalities.pop() if len(modalities) == 1 else "mixed",) * records[0].shape_czyx[0]


def _prepare(job: Job, places: Places) -> bool:
    """Make the work folder, unless it is there from an interrupted training of the same inputs; tell whether it is."""
    path = places.work / JOB
    with suppress(OSError, ValueError):
        if Job.model_validate_json(path.read_text(encoding="utf-8")).fingerprint == job.fingerprint:
            write_json(path, job.model_dump(mode="json"))  # how to compute may have changed
            return True
    shutil.rmtree(places.work, ignore_errors=True)
    write_json(path, job.model_dump(mode="json"))
    return False


def _command(places: Places) -> list[str]:
    """Return the command line of the worker; ``-P``, lest a file in the current folder be taken for a module."""
    return [sys.executable, "-P", "-m", "students.nnunet.worker", str(places.folder.resolve()), str(os.getpid())]


def _run(command: Sequence[str], environment: Mapping[str, str], places: Places, progress: Progress | None) -> None:
    """Let the worker train.

    Raises:
        TrainingError: if there is nothing to learn from.
        WorkerError: if it ends otherwise without a student.
    """
    code, _ = run_process(command, environment, progress)
    if code != 0:
        log = places.work / LOG
        message = (
            f"student {places.folder.name}: the process that trains nnU-Net {accident_words(code, log)} Its log is {log}. "
            "The same command goes on from the last epoch."
        )
        raise WorkerError(message)
