"""A student of two channels: it learns what only both together show, knows them by name, and finds them in files."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from storage import Archive, CaseRecord, Channel, ClassInfo, Geometry, LabelHistory
from students import compact, load_student
from students.checkpoint import read_card
from students.errors import TrainingError, VolumeError
from students.export import bundle_steps
from students.export.bundle import inference, metadata
from students.export.int8 import Yardstick, _patches, measure_cost
from students.export.write import export_student, facts
from students.files import FilePredictions, predict_files
from students.fold_answers import answer_out_of_fold
from students.folds import FoldPlan
from students.learnt_cases import check_channels
from students.nnunet import launch
from students.nnunet.dataset import Survey, lay_out
from students.nnunet.job import Places
from students.out_of_fold import mean_probability
from students.pictures import shown_image
from students.predict import Student, answer_fingerprint, predict_cases
from students.scans import find_scans
from students.spec import NnunetSpec, StudentSpec

CLASSES = (ClassInfo(id=3, name="both"),)
FIRST = Channel(name="t1", modality="MR", suffix="_0000")
SECOND = Channel(name="pet", modality="PT", suffix="_0001")
AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles that are bright in each channel, on scales of their own; the class is where both are."""
    rng = np.random.default_rng(seed)
    bright = np.zeros((2, 1, 48, 40), bool)
    for channel in bright:
        for _ in range(3):
            y, x = rng.integers(0, 34), rng.integers(0, 26)
            channel[0, y : y + 14, x : x + 14] = True
    image = np.where(bright, 3.0, 1.0) + rng.normal(0, 0.2, bright.shape)
    return (image * np.array([100, 0.01])[:, None, None, None]).astype(np.float32), 3 * bright.all(0).astype(np.uint8)


def add(archive: Archive, name: str, seed: int, *, part: str = "archive", channels: tuple[Channel, ...] = (FIRST, SECOND)) -> CaseRecord:
    image, ids = scene(seed)
    record = CaseRecord(
        id=name,
        patient=name,
        shape_czyx=(2, 1, 48, 40),
        dtype="float32",
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=AFFINE),
        modality="MR",
        part=part,  # type: ignore[arg-type]
        channels=channels,
    )
    stored = archive.add_case(record, image if not channels or channels[0] == FIRST else image[::-1].copy())
    stored.write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint="g"), ids)
    return stored.record


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    made = Archive.create(str(tmp_path_factory.mktemp("channels") / "archive.zarr"))
    for n in range(12):
        add(made, f"train{n}", n)
    add(made, "test0", 100, part="test")
    add(made, "turned", 100, part="test", channels=(SECOND, FIRST))
    add(made, "stranger", 100, part="test", channels=(FIRST, Channel(name="adc", suffix="_0001")))
    return made


SPEC = StudentSpec(name="two", budget_seconds=None, steps=60, width=8, batch=4, threads=1, device="cpu", validation_fraction=0, lr=5e-3)


@pytest.fixture(scope="module")
def student(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Student:
    done = compact.train(archive, label_set="gold", classes=CLASSES, spec=SPEC, workdir=tmp_path_factory.mktemp("student"))
    return load_student(done.path, device="cpu")


def dice(labels: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * ((labels == 3) & (truth == 3)).sum() / ((labels == 3).sum() + (truth == 3).sum()))


def write(folder: Path, name: str, *channels: np.ndarray, affine: tuple[tuple[float, ...], ...] = AFFINE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, voxels in enumerate(channels):
        nib.save(nib.Nifti1Image(voxels.T, np.array(affine)), folder / f"{name}_{n:04d}.nii.gz")


def yardstick_on(case: str) -> Yardstick:
    return Yardstick(cases=(case,), label_set="gold", measure="Dice")


def problems(found: FilePredictions) -> dict[str, str]:
    return {record.source: record.problem for record in found.scans if record.problem}


def test_it_draws_what_only_both_channels_together_show(student: Student) -> None:
    scores, alone = [], []
    for seed in range(100, 104):
        image, truth = scene(seed)
        scores.append(dice(student.predict(image, (1.0, 1.0, 1.0)).labels, truth))
        alone.append(dice(student.predict(image[[0, 0]], (1.0, 1.0, 1.0)).labels, truth))
    assert np.mean(scores) > 0.85
    assert np.mean(alone) < np.mean(scores) - 0.2


def test_its_card_names_the_channels_and_what_their_files_end_in(student: Student) -> None:
    assert student.card.channels == (FIRST, SECOND)
    assert student.card.channel_words == "2 channels (t1, pet)"
    with pytest.raises(VolumeError, match=r"2 channels \(t1, pet\), but the volume has shape \(1, 48, 40\)"):
        student.predict(scene(0)[0][0], (1.0, 1.0, 1.0))


def test_channels_of_an_archive_are_found_by_name_in_whatever_order(student: Student, archive: Archive) -> None:
    assert predict_cases(student, archive, ["test0", "turned"]) == 2
    ours = [archive[case].labels("student/two").read() for case in ("test0", "turned")]
    np.testing.assert_array_equal(*ours)
    with pytest.raises(VolumeError, match="case stranger has the channels t1, adc, but student two sees t1, pet: pet is missing"):
        predict_cases(student, archive, ["stranger"])


def test_out_of_fold_answers_and_8_bit_costs_take_channels_by_name(student: Student, archive: Archive) -> None:
    answers = [mean_probability([student], archive[case]) for case in ("test0", "turned")]
    np.testing.assert_array_equal(*answers)
    costs = [measure_cost(student, student, archive, yardstick_on(case), ()).before for case in ("test0", "turned")]
    assert costs[0] == costs[1] > 0.8
    for ours, theirs in zip(*(_patches(archive, [case], student.card) for case in ("test0", "turned")), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_answer_is_drawn_anew_where_channels_are_called_otherwise_since(student: Student, tmp_path: Path) -> None:
    made = Archive.create(str(tmp_path / "archive.zarr"))
    record = add(made, "test0", 100, part="test")
    predict_cases(student, made, ["test0"])
    assert made["test0"].labels("student/two").history.fingerprint == answer_fingerprint(student)
    made.describe_case(replace(record, channels=(replace(SECOND, suffix="_0000"), replace(FIRST, suffix="_0001"))))
    assert predict_cases(student, made, ["test0"]) == 1
    assert predict_cases(student, made, ["test0"]) == 0


def test_strangers_answer_by_name_and_anew_where_channels_are_called_otherwise_since(student: Student, tmp_path: Path) -> None:
    made = Archive.create(str(tmp_path / "archive.zarr"))
    record = add(made, "cal", 100, part="calibration")
    add(made, "turned", 100, part="calibration", channels=(SECOND, FIRST))
    plan = FoldPlan(classes=CLASSES, spec=SPEC, workdir=tmp_path, label_set="gold")

    def answer() -> set[str]:
        return set(answer_out_of_fold(made, plan, [student], ["cal", "turned"], into="folds/r2", number=2).done)

    assert answer() == {"cal", "turned"}
    np.testing.assert_array_equal(*(made[case].labels("folds/r2").read() for case in ("cal", "turned")))
    made.describe_case(replace(record, channels=(replace(SECOND, suffix="_0000"), replace(FIRST, suffix="_0001"))))
    assert answer() == {"cal"}


def test_cases_whose_channels_are_called_otherwise_are_not_learnt_from_together(archive: Archive) -> None:
    with pytest.raises(TrainingError, match="case test0 has the channels t1, pet, but case stranger t1, adc"):
        check_channels([archive[case].record for case in ("test0", "stranger")])


def test_files_of_a_case_are_taken_together_and_give_one_answer(student: Student, tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path / "in" / "deep", f"new{n}", *scene(200 + n)[0])
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    assert [(record.source, record.problem) for record in found.scans] == [("deep/new0", ""), ("deep/new1", "")]
    drawn = np.asarray(nib.load(tmp_path / "out" / "deep" / "new1.nii.gz").dataobj).T
    np.testing.assert_array_equal(drawn, student.predict(scene(201)[0], (1.0, 1.0, 1.0)).labels)


def test_files_that_are_given_one_by_one_are_taken_together_too(student: Student, tmp_path: Path) -> None:
    write(tmp_path / "in", "new", *scene(200)[0])
    found = predict_files(student, sorted((tmp_path / "in").iterdir(), reverse=True), tmp_path / "out")
    assert [record.output for record in found.scans] == [tmp_path / "out" / "new.nii.gz"]


@pytest.mark.parametrize("folder_first", [True, False])
def test_files_of_one_scan_may_be_given_by_name_and_by_folder_in_any_order(tmp_path: Path, *, folder_first: bool) -> None:
    write(tmp_path / "in" / "sub", "new", *scene(200)[0])
    given = [tmp_path / "in", tmp_path / "in" / "sub" / "new_0000.nii.gz"]
    found = find_scans(given if folder_first else given[::-1], tmp_path / "out", (FIRST, SECOND))
    assert [(scan.name, scan.target, len(scan.others)) for scan in found.scans] == [("sub/new", tmp_path / "out" / "sub" / "new", 1)]


def test_one_file_of_two_is_refused_with_what_is_expected_and_what_is_there(student: Student, tmp_path: Path) -> None:
    write(tmp_path / "in", "new", *scene(200)[0])
    write(tmp_path / "in", "whole", *scene(201)[0])
    (tmp_path / "in" / "new_0001.nii.gz").rename(tmp_path / "in" / "other.nii.gz")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    said = problems(found)
    assert said["new"] == (
        "new: no channel pet (..._0001). Expected: t1 (..._0000), pet (..._0001); found: t1 in new_0000.nii.gz. "
        "Add the missing file, or leave the others out."
    )
    assert "other.nii.gz: expected are the channels t1 (..._0000), pet (..._0001)" in said["other.nii.gz"]
    assert "this one holds 1" in said["other.nii.gz"]
    assert (tmp_path / "out" / "whole.nii.gz").is_file()


def test_channels_on_two_grids_are_refused_and_a_file_of_both_is_taken(student: Student, tmp_path: Path) -> None:
    write(tmp_path / "in", "shifted", *scene(200)[0])
    moved = ((1.0, 0.0, 0.0, 5.0), *AFFINE[1:])
    nib.save(nib.Nifti1Image(scene(200)[0][1].T, np.array(moved)), tmp_path / "in" / "shifted_0001.nii.gz")
    nib.save(nib.Nifti1Image(scene(200)[0].T, np.array(AFFINE)), tmp_path / "in" / "together.nii.gz")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    assert "channel pet lies elsewhere than t1: its origin differs" in problems(found)["shifted"]
    drawn = np.asarray(nib.load(tmp_path / "out" / "together.nii.gz").dataobj).T
    np.testing.assert_array_equal(drawn, student.predict(scene(200)[0], (1.0, 1.0, 1.0)).labels)


def test_other_endings_may_be_named_but_no_other_channels(student: Student, tmp_path: Path) -> None:
    write(tmp_path / "in", "new", *scene(200)[0])
    (tmp_path / "in" / "new_0000.nii.gz").rename(tmp_path / "in" / "new-a.nii.gz")
    (tmp_path / "in" / "new_0001.nii.gz").rename(tmp_path / "in" / "new-b.nii.gz")
    (tmp_path / "in" / "new-seg.nii.gz").write_bytes(b"")
    named = (Channel(name="pet", suffix="-b"), Channel(name="t1", suffix="-a"))
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out", channels=named)
    drawn = np.asarray(nib.load(tmp_path / "out" / "new.nii.gz").dataobj).T
    np.testing.assert_array_equal(drawn, student.predict(scene(200)[0], (1.0, 1.0, 1.0)).labels)
    assert found.passed_over == ("new-seg.nii.gz",)
    with pytest.raises(VolumeError, match=r"sees 2 channels \(t1, pet\), but t1 are named"):
        predict_files(student, [tmp_path / "in"], tmp_path / "out", channels=(FIRST,))


def test_exports_carry_number_and_names_and_take_the_same_files(student: Student, tmp_path: Path) -> None:
    export_student(student.path, tmp_path / "onnx", "onnx")
    write(tmp_path / "in", "new", *scene(200)[0])
    predict_files(load_student(tmp_path / "onnx", device="cpu"), [tmp_path / "in"], tmp_path / "out")
    drawn = np.asarray(nib.load(tmp_path / "out" / "new.nii.gz").dataobj).T
    assert (drawn == student.predict(scene(200)[0], (1.0, 1.0, 1.0)).labels).mean() > 0.999
    assert "2 channels (t1, pet)" in facts(student.card)["input"]
    assert "2 channels (t1, pet)" in (tmp_path / "onnx" / "MODEL_CARD.md").read_text()
    assert read_card(tmp_path / "onnx").channels == (FIRST, SECOND)


def test_a_bundle_names_the_channels_and_has_monai_stack_their_files(student: Student) -> None:
    inputs = metadata(student.card)["network_data_format"]["inputs"]["image"]
    assert inputs["num_channels"] == 2
    assert inputs["channel_def"] == {"0": "t1, normalised, axes z y x", "1": "pet, normalised, axes z y x"}
    found = inference(student.card)
    assert found["datalist"] == {"_target_": "scripts.steps.list_scans", "folder": "@dataset_dir", "suffixes": ["_0000", "_0001"]}


def test_a_bundle_finds_files_of_channels_together_and_files_that_hold_all(tmp_path: Path) -> None:
    names = (
        "a_0000.nii.gz",
        "a_0001.nii",
        "a_seg.nii.gz",
        "ab.nii",
        "alone_0000.nii.gz",
        "BRATS_001.nii.gz",
        "BRATS_002.nii",
        "twice_0000.nii",
    )
    for name in (*names, "twice_0000.nii.gz", "twice_0001.nii"):
        (tmp_path / name).touch()
    found = bundle_steps.list_scans(str(tmp_path), ["_0001", "_0000"])
    assert found == [
        str(tmp_path / "BRATS_001.nii.gz"),
        str(tmp_path / "BRATS_002.nii"),
        str(tmp_path / "ab.nii"),
        [str(tmp_path / "a_0001.nii"), str(tmp_path / "a_0000.nii.gz")],
    ]


def test_flat_files_that_monai_stacks_keep_their_channels_rows_and_columns(tmp_path: Path) -> None:
    flat = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    for n in range(2):
        nib.save(nib.Nifti1Image(flat[n], np.eye(4)), tmp_path / f"x_{n:04d}.nii.gz")
    stacked = LoadImaged(keys="image", reader="NibabelReader")({"image": [str(tmp_path / f"x_{n:04d}.nii.gz") for n in range(2)]})
    prepare = bundle_steps.Prepared("image", spacing_zyx_mm=(1.0, 1.0, 1.0), keep_slices=True, low_percentile=0.0, high_percentile=100.0)
    image = prepare(stacked)["image"]
    assert image.shape == (2, 1, 6, 5)
    assert [int(image[c, 0].argmax()) for c in range(2)] == [int(flat[c].T.argmax()) for c in range(2)]


def test_nnunet_is_told_the_names_of_channels_and_which_is_ct(archive: Archive) -> None:
    with_ct = (Channel(name="venous", modality="CT", suffix="_0000"), SECOND)
    record = archive["test0"].record
    assert launch._told_channels([record]) == ("t1", "pet")
    named = CaseRecord(id="a", patient="a", shape_czyx=record.shape_czyx, dtype="float32", geometry=record.geometry, channels=with_ct)
    assert launch._told_channels([named]) == ("CT", "pet")


def test_nnunet_reads_all_channels_and_its_data_set_names_them(archive: Archive, tmp_path: Path) -> None:
    reader = pytest.importorskip("students.nnunet.reader")
    spec = StudentSpec(name="nn", kind="nnunet", device="cpu", nnunet=NnunetSpec())
    records = [archive[f"train{n}"].record for n in range(2)]
    job = launch._job(archive, records, "gold", CLASSES, spec, {})
    places = Places(tmp_path / "nn")
    lay_out(job, Survey(kept=job.cases, dropped=(), ignored=False), places, {})
    told = json.loads((places.raw / "dataset.json").read_text())
    assert told["channel_names"] == {"0": "t1", "1": "pet"}
    image, _ = reader.ArchiveIO().read_images([str(places.raw / told["dataset"]["train1"]["images"][0])])
    np.testing.assert_array_equal(image, scene(1)[0])
    assert job.named_channels == (FIRST, SECOND)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fire", "ignite")),
    reason="MONAI's command line needs fire and pytorch-ignite, which the extra dev brings.",
)
@pytest.mark.parametrize("slices", [1, 2])
def test_monais_command_line_draws_what_predict_draws_from_two_files_and_from_one(student: Student, slices: int, tmp_path: Path) -> None:
    volume = np.concatenate([scene(200 + n)[0] for n in range(slices)], axis=1)
    write(tmp_path / "in", "new", *volume)
    nib.save(nib.Nifti1Image(volume.T, np.array(AFFINE)), tmp_path / "in" / "whole.nii")
    export_student(student.path, tmp_path / "bundle", "bundle")
    words = ["--meta_file", "configs/metadata.json", "--dataset_dir", "../in", "--output_dir", "../theirs"]
    asked = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *words]
    done = subprocess.run(asked, cwd=tmp_path / "bundle", capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = student.predict(volume, (1.0, 1.0, 1.0)).labels
    for name in ("new_0000_labels.nii.gz", "whole_labels.nii.gz"):
        drawn = np.asarray(nib.load(tmp_path / "theirs" / name).dataobj).reshape(volume.shape[:0:-1]).T
        assert (drawn == ours).mean() > 0.999


@pytest.mark.parametrize(("told", "channel"), [("channel:1", 1), ("channel:7", 0), ("adjacent", 0), (None, 0)])
def test_masks_are_judged_on_the_channel_that_their_teacher_was_shown(archive: Archive, told: str | None, channel: int) -> None:
    case = archive[add(archive, "one", 1).id]
    image, ids = scene(1)
    parameters = {} if told is None else {"window_channels": told}
    case.write_labels(LabelHistory(label_set="teacher/r1", classes=CLASSES, made_by="test", fingerprint="t", parameters=parameters), ids)
    assert np.array_equal(shown_image(archive[case.id], "teacher/r1"), image[channel])
    assert np.array_equal(shown_image(archive[case.id], "teacher/r9"), image[0])
