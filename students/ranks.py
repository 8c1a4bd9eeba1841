"""The processes that train one student on several devices: ``python -m students.ranks FOLDER DEVICES PARENT``.

The first starts one for each device and waits. If one dies it ends the others, says which it was, and ends too; so does everything when the parent is gone.
"""

import os
import sys
from pathlib import Path

from students.errors import TrainingError
from students.process import REFUSED, Accident, Advance, Refusal, accident_words, end_with, own_output, voice
from students.several import CATALOG, JOB, LOG, MEETING, WORK, SharedJob
from students.spec import TrainProgress


def main(folder: Path, devices: tuple[str, ...], parent: int) -> int:
    """Train, and return the exit code."""
    end_with(parent)
    log = folder / WORK / LOG
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    try:
        # The clean end of all when one dies is torch's.
        spawn(_train, args=(folder, devices), nprocs=len(devices))
    except ProcessExitedException as error:
        if error.exit_code == REFUSED:  # the chief has said why
            return REFUSED
        accident = f"the process on {devices[error.error_index]} {accident_words(error.exit_code, log)}"
    except ProcessRaisedException as error:
        accident = f"the process on {devices[error.error_index]} failed: {str(error).strip().splitlines()[-1]}."
    else:
        return 0
    voice(own_output(log))(Accident(accident=accident))
    return 1


def _train(rank: int, folder: Path, devices: tuple[str, ...]) -> None:
    """Train as one of the processes; the chief says how far all are."""
    say = voice(own_output(folder / WORK / LOG))
    end_with(os.getppid())
    import torch

    from storage import Archive
    from students import compact
    from students.team import meeting

    job = SharedJob.model_validate_json((folder / WORK / JOB).read_text(encoding="utf-8"))
    if set(devices) == {"cpu"}:
        torch.set_num_threads(job.spec.threads or max(1, torch.get_num_threads() // len(devices)))

    def follow(now: TrainProgress) -> None:
        say(Advance(**{name: getattr(now, name) for name in Advance.model_fields}))

    try:
        with meeting(rank, devices, folder / WORK / MEETING) as team:
            archive = Archive.open(job.archive, catalog=os.environ.get(CATALOG), mode="r")
            compact.train_together(archive, job, folder, team, follow if team.is_chief else None)
    except TrainingError as error:
        if rank == 0:
            say(Refusal(refused=str(error)))
        sys.exit(REFUSED)


if __name__ == "__main__":  # the processes that it starts import this module again
    sys.exit(main(Path(sys.argv[1]), tuple(sys.argv[2].split(",")), int(sys.argv[3])))
