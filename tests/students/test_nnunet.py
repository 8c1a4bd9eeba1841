"""nnU-Net as a student, what can be told without training one: labels, folds, pointers, the process and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import IGNORE, Archive, ClassInfo, LabelHistory
from students.errors import TrainingError, WorkerError
from students.nnunet import launch
from students.nnunet.dataset import (
    MEASURED,
    Survey,
    chosen_fold,
    configuration_name,
    identifier,
    label_names,
    lay_out,
    numbered,
    splits,
    survey,
)
from students.nnunet.job import CATALOG, LOG, Job, JobCase, Places
from students.process import Advance, Refusal, understood
from students.spec import NnunetSpec, StudentSpec, TrainProgress

CLASSES = (ClassInfo(id=3, name="kernel"),)
SPEC = StudentSpec(name="nn", kind="nnunet", budget_seconds=None, device="cpu", nnunet=NnunetSpec(epochs=2, iterations=3))


def job_of(archive: Archive, cases: list[JobCase], *, label_set: str = "pseudo/r1", flat: bool = False) -> Job:
    return Job(
        fingerprint="f",
        archive=archive.url,
        label_set=label_set,
        classes=CLASSES,
        cases=tuple(cases),
        channels=("MR",),
        flat=flat,
        spec=SPEC,
    )


def patients(*names: str) -> list[JobCase]:
    return [JobCase(id=f"case{n}", patient=name) for n, name in enumerate(names)]


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)),
    st.lists(st.integers(1, IGNORE - 1), min_size=1, max_size=6, unique=True),
)
def test_numbers_lead_back_to_classes_and_all_that_is_no_class_is_ignored(ids: np.ndarray, class_ids: list[int]) -> None:
    ignore = len(class_ids) + 1
    told = numbered(ids, class_ids, ignore)
    known = np.isin(ids, [0, *class_ids])
    assert (told[~known] == ignore).all()
    assert (np.asarray([0, *class_ids])[told[known]] == ids[known]).all()


def test_ignore_is_the_highest_label_and_there_only_where_something_is_ignored() -> None:
    two = (ClassInfo(id=9, name="liver"), ClassInfo(id=2, name="ignore"))
    assert label_names(two, ignored=True) == {"background": 0, "liver": 1, "class-2": 2, "ignore": 3}
    assert label_names(CLASSES, ignored=False) == {"background": 0, "kernel": 1}


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30))
def test_a_patient_is_never_on_both_sides_of_a_fold_and_each_case_is_held_out_once(names: list[str]) -> None:
    cases = patients(*names)
    folds = splits(cases)
    owner = {case.id: case.patient for case in cases}
    assert len(folds) == (min(5, len(set(names))) if len(set(names)) > 1 else 0)
    for fold in folds:
        assert not {owner[case] for case in fold["train"]} & {owner[case] for case in fold["val"]}
        assert sorted(fold["train"] + fold["val"]) == sorted(owner)
        assert fold["train"]
        assert fold["val"]
    held_out = [case for fold in folds for case in fold["val"]]
    assert sorted(held_out) == (sorted(owner) if folds else [])


def test_names_that_nnunet_would_take_for_its_own_label_files_are_changed_and_stay_apart() -> None:
    ids = ["a", "a_seg", "a_seg_", "a_seg__", "seg"]
    told = [identifier(case) for case in ids]
    assert not any(name.endswith("_seg") for name in told)
    assert len(set(told)) == len(ids)


@pytest.fixture
def own_archive(make_archive: Callable[..., Archive], tmp_path: Path) -> Archive:
    return make_archive(tmp_path, train=3, test=1)


def _replace_labels(archive: Archive, case: str, value: int) -> None:
    stored = archive[case]
    ids = np.full(stored.record.shape_czyx[1:], value, np.uint8)
    stored.write_labels(LabelHistory(label_set="pseudo/r1", classes=CLASSES, made_by="test", fingerprint=f"{case}-{value}"), ids)


def test_a_case_without_an_annotated_voxel_is_left_out_and_named(own_archive: Archive) -> None:
    _replace_labels(own_archive, "train1", IGNORE)
    seen: list[int] = []
    found = survey(own_archive, job_of(own_archive, [JobCase(id=f"train{n}", patient=f"p{n}") for n in range(3)]), seen.append)
    assert found.dropped == ("train1",)
    assert [case.id for case in found.kept] == ["train0", "train2"]
    assert found.ignored
    assert seen == [1, 2, 3]


def test_labels_without_a_class_anywhere_are_refused_with_what_they_hold(own_archive: Archive) -> None:
    _replace_labels(own_archive, "train0", IGNORE)
    _replace_labels(own_archive, "train1", 0)
    job = job_of(own_archive, [JobCase(id="train0", patient="a"), JobCase(id="train1", patient="b")])
    with pytest.raises(TrainingError, match=r"no voxel of 2 cases .* is of a class \(kernel\): 1 of them are ignored altogether"):
        survey(own_archive, job, lambda _: None)


def test_pointers_are_all_that_is_written_and_nnunets_reader_interface_gives_the_archives_voxels_for_them(
    own_archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from students.nnunet.reader import ArchiveIO

    monkeypatch.setenv(CATALOG, own_archive.catalog_url)
    places = Places(tmp_path / "nn")
    case = JobCase(id="train1", patient="p")
    lay_out(job_of(own_archive, [case]), Survey(kept=(case,), dropped=(), ignored=True), places, {"epochs": 2})
    content = json.loads((places.raw / "dataset.json").read_text())
    files = content["dataset"]["train1"]
    image, about = ArchiveIO().read_images([str(places.raw / files["images"][0])])
    labels, _ = ArchiveIO().read_seg(str(places.raw / files["label"]))
    stored = own_archive["train1"]
    assert np.array_equal(image, stored.read())
    assert about["spacing"] == [1.5, 0.8, 1.0]
    kept = stored.labels("pseudo/r1").read()
    assert np.array_equal(labels[0], np.select([kept == 3, kept == IGNORE], [1, 2], 0))
    assert content["labels"] == {"background": 0, "kernel": 1, "ignore": 2}
    assert content["overwrite_image_reader_writer"] == "ArchiveIO"
    assert max(path.stat().st_size for path in places.work.rglob("*") if path.is_file()) < 2000


def test_intensities_are_measured_where_something_is_annotated_and_not_where_it_is_ignored(
    own_archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from students.nnunet.reader import ArchiveIO

    monkeypatch.setenv(CATALOG, own_archive.catalog_url)
    places = Places(tmp_path / "nn")
    case = JobCase(id="train0", patient="p")
    lay_out(job_of(own_archive, [case]), Survey(kept=(case,), dropped=(), ignored=True), places, {})
    labels, _ = ArchiveIO().read_seg(str(places.raw / MEASURED / "train0.json"))
    assert np.array_equal(labels[0] > 0, own_archive["train0"].labels("pseudo/r1").read() == 3)


def test_a_single_slice_is_told_as_nnunet_wants_pictures_and_voxels_that_are_no_numbers_become_the_lowest() -> None:
    from students.nnunet.reader import finite, told_spacing

    assert told_spacing((8.0, 0.5, 0.6), flat=True) == [999.0, 0.5, 0.6]
    assert told_spacing((8.0, 0.5, 0.6), flat=False) == [8.0, 0.5, 0.6]
    image = np.asarray([[[[1.0, np.nan, np.inf, -np.inf, 5.0]]]])
    assert finite(image).ravel().tolist() == [1, 1, 5, 1, 5]
    assert finite(np.full((1, 1, 1, 2), np.nan)).ravel().tolist() == [0, 0]


def test_nnunet_finds_our_reader_by_the_name_that_its_plans_have() -> None:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    from students.nnunet import reader

    reader.register()
    assert recursive_find_reader_writer_by_name("ArchiveIO") is reader.ArchiveIO


def test_the_processs_environment_bounds_its_workers_and_only_it_knows_the_catalog(tmp_path: Path) -> None:
    places = Places(tmp_path / "nn")
    one = places.environment(SPEC, "postgresql://user:secret@host/db")
    assert (one["nnUNet_def_n_proc"], one["nnUNet_n_proc_DA"], one[CATALOG]) == ("1", "0", "postgresql://user:secret@host/db")
    four = SPEC.model_copy(update={"nnunet": NnunetSpec(workers=4), "device": "cuda:2"})
    assert {"nnUNet_n_proc_DA": "4", "CUDA_VISIBLE_DEVICES": "2"}.items() <= places.environment(four, "sqlite://").items()


def test_lines_that_are_not_the_workers_own_are_passed_over() -> None:
    assert understood(Advance(step=3, loss=0.5).model_dump_json()) == Advance(step=3, loss=0.5)
    assert understood(Refusal(refused="why").model_dump_json()) == Refusal(refused="why")
    assert understood("Epoch 3") is None
    assert understood('{"other": 1}') is None


def test_a_work_folder_of_the_same_inputs_is_taken_up_and_one_of_others_is_not(archive: Archive, tmp_path: Path) -> None:
    places = Places(tmp_path / "nn")
    job = job_of(archive, patients("a", "b"))
    assert launch._prepare(job, places) is False
    (places.work / "checkpoint").touch()
    assert launch._prepare(job.model_copy(update={"spec": SPEC.model_copy(update={"threads": 2})}), places) is True
    assert (places.work / "checkpoint").exists()
    assert launch._prepare(job.model_copy(update={"fingerprint": "g"}), places) is False
    assert not (places.work / "checkpoint").exists()


def test_how_many_workers_there_are_does_not_make_another_student_and_what_they_learn_does(archive: Archive) -> None:
    def mark(spec: StudentSpec, **weights: float) -> str:
        return launch._job(archive, launch.chosen_records(archive, "pseudo/r1", None, {}), "pseudo/r1", CLASSES, spec, weights).fingerprint

    asked = SPEC.nnunet or NnunetSpec()
    same = SPEC.model_copy(update={"nnunet": asked.model_copy(update={"workers": 3}), "device": "cuda"})
    other = SPEC.model_copy(update={"nnunet": asked.model_copy(update={"epochs": 3})})
    assert mark(SPEC) == mark(same)
    assert len({mark(SPEC), mark(other), mark(SPEC, train0=0.5)}) == 3


def test_pictures_are_told_from_volumes_and_never_the_test_part_is_given(
    archive: Archive, make_archive: Callable[..., Archive], tmp_path: Path
) -> None:
    def job(which: Archive) -> Job:
        return launch._job(which, launch.chosen_records(which, "pseudo/r1", None, {}), "pseudo/r1", CLASSES, SPEC, {})

    assert job(archive).flat is False
    assert job(make_archive(tmp_path, train=2, test=1, shape=(1, 24, 20))).flat is True
    assert {case.id for case in job(archive).cases} == {f"train{n}" for n in range(6)}


def _run(program: str, tmp_path: Path, progress: Callable[[TrainProgress], None] | None = None) -> None:
    places = Places(tmp_path / "nn")
    places.work.mkdir(parents=True)
    launch._run([sys.executable, "-c", program], dict(os.environ), places, progress)


def test_progress_comes_from_the_process_whatever_else_it_prints(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    said = [Advance(phase="planning"), Advance(step=4, fraction=0.5, loss=0.25, lr=0.01, agreement=0.5)]
    program = "print('Epoch 0')\n" + "\n".join(f"print({advance.model_dump_json()!r})" for advance in said)
    _run(program, tmp_path, seen.append)
    assert [(now.phase, now.step, now.fraction) for now in seen] == [("planning", 0, 0.0), ("", 4, 0.5)]


def test_a_refusal_of_the_process_is_the_error_of_the_call(tmp_path: Path) -> None:
    program = f"import sys; print({Refusal(refused='no voxel').model_dump_json()!r}); sys.exit(3)"
    with pytest.raises(TrainingError, match="no voxel"):
        _run(program, tmp_path)


def test_a_process_that_fails_is_quoted_and_one_that_is_killed_is_named_so(tmp_path: Path) -> None:
    places = Places(tmp_path / "nn")
    places.work.mkdir(parents=True)
    (places.work / LOG).write_text("Epoch 0\nRuntimeError: no kernel image\n")
    with pytest.raises(WorkerError, match=r"ended with exit code 1\. It said last: Epoch 0 \| RuntimeError: no kernel image"):
        launch._run([sys.executable, "-c", "import sys; sys.exit(1)"], dict(os.environ), places, None)
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(WorkerError, match="was killed by signal 9, perhaps for want of memory"):
        launch._run([sys.executable, "-c", suicide], dict(os.environ), places, None)


_WITH_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print('{"phase": "' + str(child.pid) + '"}', flush=True)
"""


def test_what_the_process_has_started_ends_with_it(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    _run(_WITH_CHILD, tmp_path, seen.append)
    _wait_until_gone(int(seen[0].phase))


def test_an_interruption_while_it_trains_ends_the_process(tmp_path: Path) -> None:
    seen: list[int] = []

    def interrupt(now: TrainProgress) -> None:
        seen.append(int(now.phase))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(_WITH_CHILD + "import time; time.sleep(600)", tmp_path, interrupt)
    _wait_until_gone(seen[0])


_ORPHAN = """
import os, subprocess, sys, time
watched = "import sys, time; from students.process import end_with; end_with(int(sys.argv[1])); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", watched, str(os.getpid())], start_new_session=True, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_the_process_ends_once_its_parent_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, signal.SIGKILL)
    _wait_until_gone(child)


def _wait_until_gone(pid: int) -> None:
    for _ in range(600):  # the time limit of the suite is what fails; a zombie that nobody waits for is gone too
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still there")


def test_a_case_of_weight_zero_teaches_nothing_and_equal_weights_are_the_mean() -> None:
    import torch

    from students.nnunet.weighting import CaseWeightedLoss

    def squared(output: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([((one - other) ** 2).mean() for one, other in zip(output, target, strict=True)]).sum()

    loss = CaseWeightedLoss(squared)  # type: ignore[arg-type]
    output = [torch.rand(2, 1, 4, 3, 5, requires_grad=True), torch.rand(2, 1, 2, 2, 2, requires_grad=True)]
    target = [torch.rand(2, 1, 4, 3, 5), torch.rand(2, 1, 2, 2, 2)]
    plain = loss(output, target)
    loss.weights = [1.0, 1.0]
    assert torch.allclose(loss(output, target), plain)
    loss.weights = [2.0, 0.0]
    loss(output, target).backward()
    for level in output:
        assert level.grad is not None
        assert level.grad[0].abs().sum() > 0
        assert level.grad[1].abs().sum() == 0


def test_a_preset_for_volumes_refuses_pictures_and_says_which_to_take(archive: Archive) -> None:
    pictures, volumes = ["2d"], ["2d", "3d_fullres"]
    reduced = job_of(archive, patients("a"))
    deep = reduced.model_copy(update={"spec": SPEC.model_copy(update={"nnunet": NnunetSpec(preset="3d_fullres")})})
    assert configuration_name(reduced, pictures) == "2d"
    assert configuration_name(reduced, volumes) == configuration_name(deep, volumes) == "3d_fullres"
    with pytest.raises(TrainingError, match=r"preset 3d_fullres is for volumes.* Say preset: 2d"):
        configuration_name(deep, pictures)


def test_cases_of_one_patient_are_all_trained_on_and_a_fold_that_is_not_there_is_one_that_is(archive: Archive) -> None:
    job = job_of(archive, patients("a"))
    fourth = job.model_copy(update={"spec": SPEC.model_copy(update={"nnunet": NnunetSpec(fold=4)})})
    assert chosen_fold(job, []) == "all"
    assert chosen_fold(job, [{}, {}]) == 0
    assert chosen_fold(fourth, [{}, {}, {}]) == 1
