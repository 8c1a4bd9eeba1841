"""The process that trains: ``python -m students.nnunet.worker FOLDER PARENT``.

It says on its standard output how far it is, one JSON object a line; all that nnU-Net prints goes to a log. Each step leaves a file that is
there whole or not at all, so that another start takes up where this one was killed. It ends itself, and what it started, when its parent is gone.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from storage import Archive
from students.errors import TrainingError
from students.nnunet.dataset import Survey, lay_out, survey
from students.nnunet.job import CATALOG, JOB, LOG, PRESETS, Advance, Job, Places, Refusal, write_json
from students.spec import NnunetSpec

REFUSED = 3
"""Exit code where there is nothing to learn from."""

_SURVEY = "survey.json"
_WATCH_S = 1.0

Say = Callable[[Advance | Refusal], None]


def main(folder: Path, parent: int) -> int:
    """Train what the folder's job asks for, and return the exit code."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    places = Places(folder)
    say = _voice(_own_output(places.work / LOG))
    job = Job.model_validate_json((places.work / JOB).read_text(encoding="utf-8"))
    try:
        _train(job, places, say)
    except TrainingError as error:
        say(Refusal(refused=str(error)))
        return REFUSED
    return 0


def _train(job: Job, places: Places, say: Say) -> None:
    """Lay out, plan, preprocess, train, pack."""
    say(Advance(phase="starting nnU-Net"))
    import torch

    from students.nnunet import planning, reader
    from students.nnunet.model import pack
    from students.nnunet.training import train

    reader.register()
    torch.manual_seed(job.spec.seed)
    found = _laid_out(job, places, say)
    say(Advance(phase="planning"))
    planning.measure(places, (job.spec.nnunet or NnunetSpec()).workers)
    planning.plan(job, places)
    total = len(found.kept)
    planning.preprocess(job, places, lambda done: say(Advance(phase=f"preprocessing {done} of {total} cases")))
    pack(train(job, places, say), job, found, places)


def _laid_out(job: Job, places: Places, say: Say) -> Survey:
    """Return what there is to learn from, having written what nnU-Net finds."""
    path = places.work / _SURVEY
    if path.is_file() and (places.raw / "dataset.json").is_file():
        return Survey.model_validate_json(path.read_text(encoding="utf-8"))
    total = len(job.cases)
    archive = Archive.open(job.archive, catalog=os.environ.get(CATALOG), mode="r")
    found = survey(archive, job, lambda done: say(Advance(phase=f"reading labels of {done} of {total} cases")))
    write_json(path, found.model_dump(mode="json"))
    lay_out(job, found, places, _settings(job, found))
    return found


def _settings(job: Job, found: Survey) -> dict[str, object]:
    """Return what the trainer has to know."""
    from students.nnunet.dataset import identifier

    asked = job.spec.nnunet or NnunetSpec()
    preset = PRESETS[asked.preset]
    mean = sum(case.weight for case in found.kept) / len(found.kept)
    weights = {identifier(case.id): case.weight / mean for case in found.kept}
    return {
        "epochs": asked.epochs or preset.epochs,
        "iterations": asked.iterations or preset.iterations,
        "looks": preset.looks,
        "adamw_lr": preset.adamw_lr,
        "budget_s": job.spec.budget_seconds,
        "mirror": asked.mirror,
        "seed": job.spec.seed,
        "weights": weights if any(case.weight != found.kept[0].weight for case in found.kept) else {},
    }


def _own_output(log: Path) -> TextIO:
    """Send all that is printed from here on to the log, by whomever; return what was standard output."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    return ours


def _voice(output: TextIO) -> Say:
    def say(what: Advance | Refusal) -> None:
        output.write(json.dumps(what.model_dump(mode="json")) + "\n")
        output.flush()

    return say


def _end_with(parent: int) -> None:
    """End this process and those that it started once its parent is gone: nobody would use what it makes, and another start would meet it."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":  # nnU-Net's own processes import this module again
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
