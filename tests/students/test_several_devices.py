"""One student on several devices: what two processes learn is what one would, and none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from storage import Archive, ClassInfo
from students import compact
from students.checkpoint import CHECKPOINT
from students.errors import TrainingError, WorkerError
from students.several import JOB, WORK, devices_of
from students.spec import StudentSpec, TrainProgress
from students.team import ALONE, Team

CLASSES = (ClassInfo(id=3, name="kernel"),)
TINY = StudentSpec(
    name="tiny",
    budget_seconds=None,
    steps=4,
    width=4,
    batch=3,
    threads=1,
    validations=2,
    device="cpu,cpu",
    checkpoint_seconds=0.0,
    mixed_precision=False,
)


def train(archive: Archive, workdir: Path, spec: StudentSpec = TINY, **more: object) -> compact.TrainedStudent:
    arguments: dict[str, object] = {"label_set": "pseudo/r1", "classes": CLASSES, "spec": spec, "workdir": workdir} | more
    return compact.train(archive, **arguments)  # type: ignore[arg-type]


def test_fewer_patches_than_devices_are_refused_with_what_to_do(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"4 devices share each batch, but it has 3 patches\. Raise student\.batch to a multiple of 4"):
        train(archive, tmp_path, TINY.model_copy(update={"device": "cpu,cpu,cpu,cpu"}))


def test_the_parts_of_a_team_are_the_batch_and_differ_by_one_patch_at_most() -> None:
    parts = [range(7)[Team(rank=rank, size=3).part(7)] for rank in range(3)]
    assert [n for part in parts for n in part] == list(range(7))
    assert {len(part) for part in parts} == {2, 3}
    assert ALONE.part(7) == slice(0, 7)


def test_devices_are_no_part_of_what_a_student_is(archive: Archive, tmp_path: Path) -> None:
    alone = train(archive, tmp_path, TINY.model_copy(update={"device": "cpu", "steps": 1}))
    assert devices_of(TINY) == ("cpu", "cpu")
    again = train(archive, tmp_path, TINY.model_copy(update={"steps": 1}))
    assert not again.fresh
    assert again.card.fingerprint == alone.card.fingerprint


@pytest.mark.slow
def test_two_processes_learn_what_one_does(archive: Archive, tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    one = train(archive, tmp_path / "one", TINY.model_copy(update={"device": "cpu"}))
    two = train(archive, tmp_path / "two", progress=seen.append)
    assert seen[-1].fraction == 1
    assert two.fresh
    assert two.card.history[-1].loss == pytest.approx(one.card.history[-1].loss, rel=1e-4)
    wanted, found = (load_file(each.path / "model.safetensors") for each in (one, two))
    # A step moves each weight by about the rate, 2e-3, whatever its gradient; where that is next to nothing rounding may turn it.
    apart = torch.cat([(found[name] - weight).abs().flatten() for name, weight in wanted.items()])
    assert float((apart > 1e-4).float().mean()) < 0.01
    assert sorted(path.name for path in two.path.iterdir()) == ["model.safetensors", "student.json"]


# Each process imports torch, which takes longer than the steps here, and much longer on a machine that others use.
pytestmark = pytest.mark.timeout(1200)

_PROGRAM = """
import sys
from pathlib import Path
from storage import Archive, ClassInfo
from students import compact
spec = compact.StudentSpec.model_validate_json(sys.argv[2])
compact.train(Archive.open(sys.argv[1]), label_set="pseudo/r1", classes=(ClassInfo(id=3, name="kernel"),), spec=spec, workdir=Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_after_a_kill_nobody_is_left_and_the_same_command_goes_on(archive: Archive, tmp_path: Path) -> None:
    long = TINY.model_copy(update={"steps": 2000})
    folder = tmp_path / "tiny"
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, archive.url, long.model_dump_json(), str(tmp_path)]) as running:
        while not (folder / CHECKPOINT).exists() and running.poll() is None:
            time.sleep(0.05)
        others = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGKILL)
    assert len(others) >= 3
    _, left = psutil.wait_procs(others, timeout=60)
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
    step = torch.load(folder / CHECKPOINT, weights_only=True)["state"]["step"]
    seen: list[TrainProgress] = []

    class StopError(Exception):
        pass

    def stop(now: TrainProgress) -> None:
        seen.append(now)
        raise StopError

    with pytest.raises(StopError):
        train(archive, tmp_path, long, progress=stop)
    assert seen[0].resumed
    assert seen[0].step > step


@pytest.mark.slow
def test_a_process_that_dies_ends_the_training_and_is_named(archive: Archive, tmp_path: Path) -> None:
    def kill_one(now: TrainProgress) -> None:
        assert now.step > 0
        ours = [each for each in psutil.Process().children(recursive=True) if "multiprocessing.spawn" in " ".join(each.cmdline())]
        os.kill(max(each.pid for each in ours), signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"student tiny: the process on cpu was killed by signal 9.*goes on from the last checkpoint"):
        train(archive, tmp_path, TINY.model_copy(update={"steps": 2000}), progress=kill_one)
    assert json.loads((tmp_path / "tiny" / WORK / JOB).read_text())["label_set"] == "pseudo/r1"
