"""Program for ``test_kill_and_resume``: run ingest, label and refine over and over, killing each run at a random moment.

``python killed_run.py FOLDER KILLS`` ingests ``FOLDER/scans`` into ``FOLDER/killed0.zarr``, ``killed1.zarr``, ... with kills and into
``FOLDER/calm.zarr`` without, and prints how many runs were really killed. Heavy imports happen once; each run is a fork.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from distill.engine import LabelPlan, label_archive
from distill.refine import RefinePlan, refine_archive
from distill.wavefront import AskSettings
from storage import Archive, ClassInfo
from storage.ingest import import_prompts, ingest

CLASSES = (ClassInfo(id=1, name="organ"),)


def work(folder: Path, name: str) -> None:
    """Do everything that is not done yet, in the process that calls it."""
    import torch

    torch.set_num_threads(1)
    archive = Archive.open_or_create(str(folder / name))
    ingest(archive, folder / "scans", modality="MR", workers=1)
    import_prompts(archive, folder / "prompts.json")
    plan = LabelPlan(classes=CLASSES, teacher=str(folder / "teacher.safetensors"), device="cpu", window=2, ask=AskSettings(boxes=2))
    label_archive(archive, plan)
    refine_archive(archive, RefinePlan(classes=CLASSES))


def in_a_fork(folder: Path, name: str) -> int:
    """Start ``work`` in a child process and return its id."""
    child = os.fork()
    if child == 0:
        try:
            work(folder, name)
        except BaseException as error:  # noqa: BLE001 - the parent must see it
            sys.stderr.write(f"run failed: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def main() -> None:
    """Run calmly once; then kill runs, moving on to a fresh archive whenever one gets through, and finish the last one."""
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    began = time.monotonic()
    calm = os.waitpid(in_a_fork(folder, "calm.zarr"), 0)[1]
    span = time.monotonic() - began
    rng = random.Random(0)
    killed = rounds = 0
    failures = 0
    while killed < kills:
        child = in_a_fork(folder, f"killed{rounds}.zarr")
        time.sleep(rng.uniform(0.05, 0.6) * span)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            failures += status != 0
            rounds += 1
    failures += os.waitpid(in_a_fork(folder, f"killed{rounds}.zarr"), 0)[1] != 0
    sys.stdout.write(f"calm={calm} killed={killed} rounds={rounds + 1} failures={failures}\n")


if __name__ == "__main__":
    main()
