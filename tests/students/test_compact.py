"""Training: it learns, it stops, it can be killed, and it never reads what it must not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from storage import Archive, ClassInfo
from students import compact, load_student
from students.checkpoint import CHECKPOINT, load_checkpoint, read_card
from students.errors import StudentFileError, TrainingError
from students.spec import StudentSpec, TrainProgress

CLASSES = (ClassInfo(id=3, name="kernel"),)
TINY = StudentSpec(
    name="tiny",
    budget_seconds=None,
    steps=8,
    width=4,
    batch=1,
    threads=1,
    validations=2,
    device="cpu",
    checkpoint_seconds=0.0,
    mixed_precision=False,
)


def train(archive: Archive, workdir: Path, spec: StudentSpec, **more: object) -> compact.TrainedStudent:
    arguments: dict[str, object] = {"label_set": "pseudo/r1", "classes": CLASSES, "spec": spec, "workdir": workdir} | more
    return compact.train(archive, **arguments)  # type: ignore[arg-type]


def test_importing_the_room_and_its_records_does_not_import_torch() -> None:
    program = (
        "import sys, students, students.compact, students.spec, students.errors; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_a_student_learns_and_its_folder_tells_where_it_came_from(archive: Archive, tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    spec = TINY.model_copy(update={"steps": 40, "lr": 5e-3, "width": 8, "checkpoint_seconds": 100.0})
    done = train(archive, tmp_path, spec, progress=seen.append)
    card = read_card(done.path)
    assert card == done.card
    assert card.label_set == "pseudo/r1"
    assert card.stopped == "steps"
    assert card.agreement is not None
    assert card.agreement > 0.6
    assert set(card.training_cases) | set(card.validation_cases) == {f"train{n}" for n in range(6)}
    assert not set(card.training_cases) & set(card.validation_cases)
    assert len(card.history) == 2
    assert seen[-1].fraction == 1
    assert sorted(p.name for p in done.path.iterdir()) == ["model.safetensors", "student.json"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(archive: Archive, tmp_path: Path) -> None:
    spec = TINY.model_copy(update={"steps": 3})
    one, two = train(archive, tmp_path / "a", spec), train(archive, tmp_path / "b", spec)
    other = train(archive, tmp_path / "c", spec.model_copy(update={"seed": 1}))
    first = load_file(one.path / "model.safetensors")
    assert all(torch.equal(first[k], v) for k, v in load_file(two.path / "model.safetensors").items())
    assert not all(torch.equal(first[k], v) for k, v in load_file(other.path / "model.safetensors").items())


def test_training_again_from_the_same_inputs_does_nothing_and_from_others_trains(archive: Archive, tmp_path: Path) -> None:
    spec = TINY.model_copy(update={"steps": 2})
    assert train(archive, tmp_path, spec).fresh
    assert not train(archive, tmp_path, spec).fresh
    assert not train(archive, tmp_path, spec.model_copy(update={"checkpoint_seconds": 9.0})).fresh
    assert train(archive, tmp_path, spec, label_set="teacher/r1").fresh


def test_a_newer_trainer_trains_again_from_the_same_inputs(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TINY.model_copy(update={"steps": 2})
    train(archive, tmp_path, spec)
    monkeypatch.setattr(compact, "TRAINER", "next")
    assert train(archive, tmp_path, spec).fresh


_PROGRAM = """
import sys
from pathlib import Path
from storage import Archive, ClassInfo
from students import compact
spec = compact.StudentSpec.model_validate_json(sys.argv[2])
compact.train(Archive.open(sys.argv[1]), label_set="pseudo/r1", classes=(ClassInfo(id=3, name="kernel"),), spec=spec, workdir=Path(sys.argv[3]))
"""


def test_after_sigkill_the_same_command_finishes_with_the_very_same_weights(archive: Archive, tmp_path: Path) -> None:
    undisturbed = train(archive, tmp_path / "undisturbed", TINY)
    folder = tmp_path / "killed" / "tiny"
    command = [sys.executable, "-c", _PROGRAM, archive.url, TINY.model_dump_json(), str(tmp_path / "killed")]
    running = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while not (folder / CHECKPOINT).exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (folder / "student.json").exists(), "the kill came too late to show anything"
    resumed = train(archive, tmp_path / "killed", TINY)
    assert resumed.resumed
    assert resumed.card.steps == TINY.steps
    wanted = load_file(undisturbed.path / "model.safetensors")
    assert all(torch.equal(wanted[k], v) for k, v in load_file(resumed.path / "model.safetensors").items())


def test_a_resumed_training_goes_on_with_what_is_left_of_its_time(archive: Archive, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: TrainProgress) -> None:
        if progress.seconds > 1.5:
            raise StopError

    spec = TINY.model_copy(update={"steps": None, "budget_seconds": 6.0, "patience": 99})
    with pytest.raises(StopError):
        train(archive, tmp_path, spec, progress=stop)
    later: list[TrainProgress] = []
    done = train(archive, tmp_path, spec, progress=later.append)
    assert done.resumed
    assert later[0].seconds > 1.5
    assert later[0].resumed
    assert done.card.stopped == "budget"
    assert done.card.seconds >= 6.0


def test_a_damaged_checkpoint_costs_its_work_and_not_the_run(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / CHECKPOINT).write_bytes(b"not a checkpoint")
    assert load_checkpoint(folder, "any") is None
    done = train(archive, tmp_path, TINY.model_copy(update={"steps": 1}))
    assert not done.resumed
    assert done.fresh


def test_a_test_case_is_never_trained_on(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"case test1: it belongs to the test part \(1 such"):
        train(archive, tmp_path, TINY, cases=["train0", "test1"])


def test_calibration_cases_are_trained_on_only_when_named(archive: Archive, tmp_path: Path) -> None:
    spec = TINY.model_copy(update={"steps": 1})
    assert "calib0" not in (*train(archive, tmp_path / "a", spec).card.training_cases,)
    assert "calib0" in train(archive, tmp_path / "b", spec, cases=["calib0"], label_set="gold").card.training_cases


def test_a_case_of_no_weight_is_left_out(archive: Archive, tmp_path: Path) -> None:
    card = train(archive, tmp_path, TINY.model_copy(update={"steps": 1}), case_weights={"train0": 0.0, "train1": 0.5}).card
    assert "train0" not in (*card.training_cases, *card.validation_cases)


def test_a_label_set_that_nobody_wrote_is_named(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="pseudo/r9"):
        train(archive, tmp_path, TINY, label_set="pseudo/r9")


def test_a_2d_student_learns_from_slices_of_volumes(archive: Archive, tmp_path: Path) -> None:
    spec = TINY.model_copy(update={"dimensions": "2d", "steps": 2, "batch": 2})
    done = train(archive, tmp_path, spec)
    assert done.card.plan.patch_zyx[0] == 1
    case = archive["test0"]
    assert load_student(done.path).predict(case.read(), case.spacing_zyx_mm).labels.shape == case.record.shape_czyx[1:]


def test_an_unfinished_student_cannot_be_loaded_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"")
    with pytest.raises(StudentFileError, match="same train command continues"):
        load_student(tmp_path)


def test_a_card_of_a_newer_format_asks_for_an_update(archive: Archive, tmp_path: Path) -> None:
    done = train(archive, tmp_path, TINY.model_copy(update={"steps": 1}))
    card = done.path / "student.json"
    card.write_text(card.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(StudentFileError, match="newer than this program"):
        load_student(done.path)


def test_weights_of_another_network_are_refused(archive: Archive, tmp_path: Path) -> None:
    one = train(archive, tmp_path / "a", TINY.model_copy(update={"steps": 1}))
    two = train(archive, tmp_path / "b", TINY.model_copy(update={"steps": 1, "width": 8}))
    (one.path / "model.safetensors").write_bytes((two.path / "model.safetensors").read_bytes())
    with pytest.raises(StudentFileError, match="Both must come from one training"):
        load_student(one.path)


def test_one_step_without_a_finite_gradient_is_skipped_and_a_row_of_them_is_an_error(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from students import train as training

    real, calls = training.segmentation_loss, [0]

    def sometimes(*arguments: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return real(*arguments) * (float("nan") if calls[0] == 2 else 1.0)

    monkeypatch.setattr(training, "segmentation_loss", sometimes)
    done = train(archive, tmp_path / "once", TINY)
    assert all(torch.isfinite(v).all() for v in load_file(done.path / "model.safetensors").values())
    monkeypatch.setattr(training, "segmentation_loss", lambda *arguments: real(*arguments) * float("nan"))
    with pytest.raises(TrainingError, match="20 steps in a row"):
        train(archive, tmp_path / "always", TINY.model_copy(update={"steps": 40}))
