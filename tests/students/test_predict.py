"""Using a student: geometry survives, bad files do not stop good ones, and the archive remembers who answered."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from storage import Archive, ClassInfo
from students import compact, load_student
from students.checkpoint import load_checkpoint
from students.errors import NoSuchDeviceError, StudentFileError, VolumeError
from students.predict import Student, answer_fingerprint, predict_cases
from students.spec import StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)


@pytest.fixture(scope="module")
def student(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Student:
    spec = StudentSpec(
        name="quick", budget_seconds=None, steps=40, width=8, lr=5e-3, batch=2, threads=1, device="cpu", validation_fraction=0
    )
    done = compact.train(archive, label_set="gold", classes=CLASSES, spec=spec, workdir=tmp_path_factory.mktemp("student"))
    return load_student(done.path, device="cpu")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_labels_are_class_ids_on_the_grid_of_the_volume(archive: Archive, student: Student) -> None:
    case = archive["test0"]
    found = student.predict(case.read(), case.spacing_zyx_mm)
    gold = case.labels("gold").read() > 0
    assert found.labels.dtype == np.uint8
    assert found.labels.shape == gold.shape
    assert set(np.unique(found.labels)) == {0, 3}
    assert found.probability.shape == (1, *gold.shape)
    np.testing.assert_array_equal(found.labels > 0, found.probability[0] > 0.5)
    assert overlap(found.labels > 0, gold) > 0.7


def test_a_volume_without_a_channel_axis_is_answered_the_same(archive: Archive, student: Student) -> None:
    case = archive["test0"]
    with_axis, without = student.predict(case.read(), case.spacing_zyx_mm), student.predict(case.read()[0], case.spacing_zyx_mm)
    np.testing.assert_array_equal(with_axis.labels, without.labels)


def test_a_finer_scan_of_the_same_object_gets_the_same_answer_on_its_own_grid(archive: Archive, student: Student) -> None:
    case = archive["test1"]
    fine = case.read()[0].repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    spacing = [s / 2 for s in case.spacing_zyx_mm]
    coarse, found = student.predict(case.read(), case.spacing_zyx_mm).labels, student.predict(fine, spacing).labels
    assert found.shape == fine.shape
    assert overlap(found > 0, coarse.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2) > 0) > 0.9


def test_a_volume_larger_than_the_patch_is_covered(archive: Archive, student: Student) -> None:
    case = archive["test0"]
    tiled = np.tile(case.read()[0], (1, 3, 1))
    found = student.predict(tiled, case.spacing_zyx_mm).labels
    rows = found.any(axis=(0, 2)).reshape(3, -1)
    assert rows.any(axis=1).all()


@pytest.mark.parametrize(
    ("shape", "spacing", "match"),
    [
        ((4, 5), (1, 1, 1), r"shape \(4, 5\)"),
        ((2, 4, 5, 6), (1, 1, 1), "1 channel"),
        ((4, 5, 6), (0, 1, 1), "three positive lengths"),
    ],
    ids=["a flat array", "too many channels", "no slice thickness"],
)
def test_a_volume_that_cannot_be_answered_is_refused_with_what_was_found(
    student: Student, shape: tuple[int, ...], spacing: tuple[float, ...], match: str
) -> None:
    with pytest.raises(VolumeError, match=match):
        student.predict(np.ones(shape, np.float32), spacing)


def test_a_volume_of_nothing_but_nan_is_refused(student: Student) -> None:
    with pytest.raises(VolumeError, match="finite"):
        student.predict(np.full((4, 5, 6), np.nan, np.float32), (1, 1, 1))


def test_only_the_largest_piece_is_kept_where_asked(archive: Archive, student: Student) -> None:
    import cc3d

    case = archive["test0"]
    tiled = np.tile(case.read()[0], (1, 3, 1))
    single = student.predict(tiled, case.spacing_zyx_mm, largest_component=True).labels
    many = student.predict(tiled, case.spacing_zyx_mm).labels
    assert cc3d.connected_components(single > 0).max() == 1
    assert cc3d.connected_components(many > 0).max() > 1


def test_the_archive_remembers_which_student_answered_and_asks_no_second_time(archive: Archive, student: Student) -> None:
    cases = ["test0", "test2"]
    assert predict_cases(student, archive, cases) == 2
    assert predict_cases(student, archive, cases) == 0
    labels = archive["test0"].labels("student/quick")
    assert labels.history.made_by == "students.predict"
    assert labels.history.parents == ("gold",)
    assert labels.history.fingerprint == answer_fingerprint(student)
    assert labels.probability is not None
    np.testing.assert_array_equal(labels.probability[:][0] > 127, labels.read() > 0)


def test_a_student_with_other_weights_answers_again_although_its_card_is_the_same(
    archive: Archive, student: Student, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(student.path, folder)
    label_set = "student/again"
    assert predict_cases(load_student(folder, device="cpu"), archive, ["test1"], label_set=label_set) == 1
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, folder / "model.safetensors")
    assert predict_cases(load_student(folder, device="cpu"), archive, ["test1"], label_set=label_set) == 1
    assert predict_cases(load_student(folder, device="cpu"), archive, ["test1"], label_set=label_set) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("gpu", "there is no device 'gpu'. Write auto, cpu, cuda", id="no device"),
        pytest.param("cuda:99", "device cuda:99 is not here: this process sees", id="a GPU too many"),
    ],
)
def test_a_device_that_cannot_be_used_is_named_with_what_can(name: str, said: str, student: Student) -> None:
    with pytest.raises(NoSuchDeviceError, match=said):
        load_student(student.path, device=name)


@pytest.mark.parametrize("content", [b"\x93NUMPY\xff\xfe", b'{"format_version": "new"}', b"[]"], ids=["no text", "no number", "no card"])
def test_a_damaged_card_is_an_error_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "student.json").write_bytes(content)
    with pytest.raises(StudentFileError, match=r"student\.json: not a student card"):
        load_student(tmp_path)


def test_a_checkpoint_that_holds_something_else_costs_only_the_work_in_it(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path, "print") is None
