"""The process that trains: ``python -m students.nnunet.worker FOLDER PARENT``.

It says on its standard output how far it is, one JSON object a line; all that nnU-Net prints goes to a log. Each step leaves a file that is
there whole or not at all, so that another start takes up where this one was killed. It ends itself, and what it started, when its parent is gone.
"""

import os
import sys
from pathlib import Path

from storage import Archive
from students.errors import TrainingError
from students.nnunet.dataset import Survey, lay_out, survey
from students.nnunet.job import CATALOG, JOB, LOG, PRESETS, Job, Places, write_json
from students.process import REFUSED, Advance, Refusal, Say, end_with, own_output, voice
from students.spec import NnunetSpec

_SURVEY = "survey.json"


def main(folder: Path, parent: int) -> int:
    """Train what the folder's job asks for, and return the exit code."""
    end_with(parent)
    places = Places(folder)
    say = voice(own_output(places.work / LOG))
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
        "learning": job.spec.learning.model_dump(mode="json"),
        "weights": weights if any(case.weight != found.kept[0].weight for case in found.kept) else {},
    }


if __name__ == "__main__":  # nnU-Net's own processes import this module again
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
