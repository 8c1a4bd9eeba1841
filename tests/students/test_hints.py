"""A student that sees the teacher's masks beside the image, and labels that such students of the gold correct."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from storage import IGNORE, Archive, ClassInfo, LabelHistory
from students import compact, load_student
from students.augment import Augmentation, augment
from students.batches import Batch
from students.correction import on_calibration, write_corrected
from students.data import PatchSource
from students.errors import ExportError, TrainingError, VolumeError
from students.evaluate import EvaluationPlan, evaluate
from students.export.write import export_student
from students.hints import read_hints
from students.learning import GoldSpec
from students.nets import plan_network
from students.preparation import measure_intensities
from students.spec import Normalisation, StudentSpec

MakeArchive = Callable[..., Archive]
CLASSES = (ClassInfo(id=3, name="kernel"),)
TINY = StudentSpec(
    name="shown",
    budget_seconds=None,
    steps=2,
    width=4,
    batch=2,
    threads=1,
    validations=1,
    device="cpu",
    mixed_precision=False,
    hints="teacher/r1",
)
ALONE = TINY.model_copy(update={"name": "alone", "hints": None})


def taught(archive: Archive, workdir: Path, spec: StudentSpec, gold: tuple[str, ...] = ("train0", "train1")) -> Path:
    return compact.train(archive, label_set="pseudo/r1", classes=CLASSES, spec=spec, workdir=workdir, cases=(), gold=gold).path


@pytest.fixture(scope="module")
def shown(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(archive, tmp_path_factory.mktemp("shown"), TINY)


@pytest.fixture(scope="module")
def alone(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(archive, tmp_path_factory.mktemp("alone"), ALONE)


def test_hints_say_what_is_believed_and_nothing_where_nobody_knows(archive: Archive) -> None:
    case = archive["train0"]
    ids, hints = case.labels("pseudo/r1").read(), read_hints(case, "pseudo/r1", CLASSES)
    assert np.array_equal(hints[0], np.select([ids == IGNORE, ids == 3], [0, 1], -1))
    probability = np.linspace(0, 255, ids.size).reshape(1, *ids.shape).astype(np.uint8)
    history = LabelHistory(label_set="sure/x", classes=CLASSES, made_by="test", fingerprint="sure")
    case.write_labels(history, ids, probability_kzyx=probability)
    assert np.allclose(read_hints(case, "sure/x", CLASSES), 2 * (probability / 255.0) - 1, atol=1e-6)
    stranger = ClassInfo(id=9, name="unheard of")
    assert not read_hints(case, "pseudo/r1", (stranger,)).any()


@pytest.mark.parametrize("dimensions", ["3d", "2d", "2.5d"])
def test_a_patch_that_is_read_by_itself_shows_the_same_hints_as_one_of_a_case_that_is_kept(archive: Archive, dimensions: str) -> None:
    record = archive["train0"].record
    plan = plan_network(
        TINY.model_copy(update={"dimensions": dimensions}),
        shapes_zyx=[record.shape_czyx[1:]],
        spacings_zyx_mm=[record.geometry.spacing_zyx_mm],
        channels=1,
        classes=1,
        hints=1,
    )
    assert plan.image_channels == 1

    def drawn(room: int) -> Batch:
        source = PatchSource(archive, cases=["train0"], label_set="gold", classes=CLASSES, plan=plan, cache_bytes=room, hints="teacher/r1")
        return source.batch(4, 0)

    kept, read = drawn(1 << 24), drawn(0)
    assert kept.image.shape[1] == plan.in_channels
    own = slice(-(1 + 2 * plan.neighbours), None)
    assert torch.equal(kept.image[:, own], read.image[:, own])
    assert set(kept.image[:, own].unique().tolist()) <= {-1.0, 1.0}


def test_hints_are_neither_normalised_nor_retouched() -> None:
    image = np.stack([np.random.default_rng(0).normal(900, 50, (4, 6, 6)), np.full((4, 6, 6), 0.25)]).astype(np.float32)
    looked = measure_intensities(image, Normalisation(), hints=1).apply(image)
    assert np.allclose(looked[1], 0.25)
    assert abs(float(looked[0].mean())) < 0.2
    batch = Batch(
        image=torch.from_numpy(looked)[None].repeat(3, 1, 1, 1, 1), ids=torch.zeros(3, 4, 6, 6, dtype=torch.uint8), weight=torch.ones(3)
    )
    changed = augment(batch, (1.0, 1.0, 1.0), torch.Generator().manual_seed(1), Augmentation(intensity_chance=1.0), 1)
    assert torch.allclose(changed.image[:, 1], batch.image[:, 1])
    assert not torch.allclose(changed.image[:, 0], batch.image[:, 0], atol=0.05)


def test_a_student_with_hints_answers_for_cases_that_carry_them_and_says_what_it_lacks_elsewhere(
    make_archive: MakeArchive, tmp_path: Path, shown: Path
) -> None:
    archive, student = make_archive(tmp_path), load_student(shown)
    case = archive["test0"]
    assert student.predict_case(case).labels.shape == case.record.shape_czyx[1:]
    with pytest.raises(VolumeError, match="sees the label set 'teacher/r1' beside the image, and needs 1 channels of hints"):
        student.predict(case.read(), case.spacing_zyx_mm)
    assert evaluate(archive, student, EvaluationPlan()).mean("student - gold") is not None
    case.delete_labels("teacher/r1")
    found = evaluate(archive, student, EvaluationPlan()).comparison("student - gold")
    assert found.missing == 0, "what was answered before stands"
    case.delete_labels("student/shown")
    assert evaluate(archive, student, EvaluationPlan()).comparison("student - gold").missing == 1
    with pytest.raises(ExportError, match="sees the teacher's masks"):
        export_student(shown, shown.parent / "out", "onnx")


def test_what_the_teacher_believes_changes_the_answer(archive: Archive, shown: Path) -> None:
    student, case = load_student(shown), archive["test0"]
    hints = student.hints_of(case)
    assert hints is not None
    answers = [student.predict(case.read(), case.spacing_zyx_mm, hints=each).probability for each in (hints, -hints)]
    assert not np.allclose(answers[0], answers[1], atol=1e-4)


def test_other_hints_make_another_student_and_none_the_one_it_always_was(archive: Archive, tmp_path: Path, alone: Path) -> None:
    assert "hints" not in ALONE.model_dump()
    assert "hints" not in load_student(alone).card.plan.model_dump()
    with pytest.raises(TrainingError, match=r"case train0: no label set 'teacher/r7', which the student is to see"):
        taught(archive, tmp_path, TINY.model_copy(update={"hints": "teacher/r7"}))


def test_corrected_labels_are_the_mean_of_what_students_of_the_gold_say(archive: Archive, shown: Path, alone: Path) -> None:
    students, cases, told = [load_student(alone), load_student(shown)], ["train2", "train3"], []
    done = write_corrected(archive, students, cases, label_set="pseudo/r1", into="corrected/x", progress=lambda *now: told.append(now))
    assert done.cases == ("train2", "train3")
    assert told == [(1, 2), (2, 2)]
    labels = archive["train2"].labels("corrected/x")
    mean = np.mean([student.predict_case(archive["train2"]).probability for student in students], axis=0)
    assert np.array_equal(labels.read(), np.where(mean[0] > 0.5, 3, 0))
    assert labels.history.parents == ("pseudo/r1", "teacher/r1", "gold")
    assert labels.scores["changed"] == pytest.approx(done.changed["train2"])


def test_corrected_labels_are_not_made_again_until_a_student_or_a_label_is_another(
    archive: Archive, alone: Path, shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, both = [load_student(alone)], [load_student(alone), load_student(shown)]
    write_corrected(archive, first, ["train4"], label_set="pseudo/r1", into="corrected/y")
    monkeypatch.setattr("students.predict.Student.predict_case", lambda *_: pytest.fail("nobody is asked again"))
    assert write_corrected(archive, first, ["train4"], label_set="pseudo/r1", into="corrected/y").cases == ("train4",)
    with pytest.raises(BaseException, match="nobody is asked again"):
        write_corrected(archive, both, ["train4"], label_set="pseudo/r1", into="corrected/y")


def test_labels_of_a_patient_whom_a_student_has_learnt_from_are_copied_and_not_corrected(archive: Archive, alone: Path) -> None:
    done = write_corrected(archive, [load_student(alone)], ["train1", "train2"], label_set="pseudo/r1", into="corrected/z")
    before, after = (archive["train1"].labels(name).read() for name in ("pseudo/r1", "corrected/z"))
    assert np.array_equal(before, after)
    assert done.changed["train1"] == 0
    assert done.changed["train2"] > 0


@pytest.mark.parametrize(("answer", "after"), [("gold", 1.0), ("nothing", 0.0)])
def test_gold_of_calibration_cases_says_what_correction_does_to_labels(
    make_archive: MakeArchive, tmp_path: Path, alone: Path, answer: str, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path)
    case, student = archive["calib0"], load_student(alone)
    assert on_calibration(archive, [student], "pseudo/none")[2] == 0
    gold = case.labels("gold").read()
    drawn = np.where(np.arange(gold.shape[2]) % 2, gold, 0).astype(np.uint8)
    case.write_labels(LabelHistory(label_set="pseudo/r1", classes=CLASSES, made_by="test", fingerprint="half"), drawn)
    said = np.asarray((gold == 3)[None], np.float32) * (answer == "gold")
    monkeypatch.setattr("students.predict.Student.predict_case", lambda *_: SimpleNamespace(probability=said))
    before = 2 * (drawn == 3).sum() / ((drawn == 3).sum() + (gold == 3).sum())
    assert on_calibration(archive, [student], "pseudo/r1") == pytest.approx((before, after, 1))


def test_nobody_corrects_nothing(archive: Archive) -> None:
    with pytest.raises(TrainingError, match="these were given: none"):
        write_corrected(archive, [], ["train2"], label_set="pseudo/r1", into="corrected/z")


def test_correcting_leaves_the_fingerprint_of_gold_that_does_not_alone() -> None:
    assert "correct" not in GoldSpec(share=0.25).model_dump()
    assert GoldSpec(correct=True).model_dump()["correct"] is True
