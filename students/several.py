"""Train one student on several devices, in processes of their own. Importing this costs no torch.

``students.ranks`` is the process that is started here; it starts one for each device, and ends all of them when one dies.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from distill.devices import parse_devices, resolve_devices
from storage import Archive, ClassInfo
from students.errors import TrainingError, WorkerError
from students.frozen import Frozen
from students.process import Accident, Progress, accident_words, run_process
from students.spec import StudentSpec

CATALOG = "SAMDISTILL_CATALOG"
"""Environment variable with the catalog's URL: it may hold a password, so no file has it."""
JOB = "job.json"
LOG = "training.log"
MEETING = "meeting"
WORK = "devices-work"
"""Below the student's folder while processes train it."""


class SharedJob(Frozen):
    """What `students.compact.train` was asked, for processes that are asked the same."""

    archive: str
    label_set: str
    classes: tuple[ClassInfo, ...]
    spec: StudentSpec
    cases: tuple[str, ...] | None
    case_weights: dict[str, float]
    gold: tuple[str, ...]
    unlabeled: tuple[str, ...]


def devices_of(spec: StudentSpec) -> tuple[str, ...]:
    """Return the devices that a student is to be trained on; ``auto`` is one."""
    return parse_devices(spec.device)


def train_on_devices(archive: Archive, job: SharedJob, folder: Path, *, batch: int, progress: Progress | None) -> None:
    """Have one process on each device train the student of a folder.

    Args:
        archive: Of the job.
        job: What is learnt.
        folder: Of the student.
        batch: Patches of a step, which the devices share.
        progress: Called about once a second.

    Raises:
        TrainingError: if there are fewer patches than devices, or there is nothing to learn from.
        WorkerError: if a process dies.
    """
    devices = resolve_devices(job.spec.device)
    if batch < len(devices):
        message = (
            f"student {job.spec.name}: {len(devices)} devices share each batch, but it has {batch} patches. Raise student.batch to a multiple of "
            f"{len(devices)}, or name fewer devices."
        )
        raise TrainingError(message)
    work = folder.resolve() / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / JOB).write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "students.ranks", str(folder.resolve()), ",".join(devices), str(os.getpid())]
    code, last = run_process(command, _environment(archive), progress)
    if code != 0:
        how = last.accident if isinstance(last, Accident) else f"the process that starts the others {accident_words(code, work / LOG)}"
        message = f"student {job.spec.name}: {how} Their log is {work / LOG}. The same command goes on from the last checkpoint."
        raise WorkerError(message)
    shutil.rmtree(work, ignore_errors=True)


def _environment(archive: Archive) -> Mapping[str, str]:
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, CATALOG: archive.catalog_url}
