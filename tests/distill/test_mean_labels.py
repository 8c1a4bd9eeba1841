"""The labels of a round may be the mean of what students say and what the teacher drew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.mean_labels import mean_labels, promised_dice
from distill.refine import ClassRule, RefinePlan, refine_archive
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory

CLASSES = (ClassInfo(id=3, name="organ"),)
STUDENT = [0.0, 0.6, 0.9, 1.0, 0.2]
TEACHER = [0.0, 0.2, 0.9, 0.0, 1.0]
PROMPTED = {"pairwise_dice/3": 0.9}


def archive_of(folder: Path, teacher: dict[str, float] | None, *, probable: bool = True, unknown: list[int] | None = None) -> Archive:
    """Return an archive with a case of five voxels that students, and a teacher with these scores, have answered for."""
    archive = Archive.create(str(folder / "a.zarr"))
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    record = CaseRecord(id="a", patient="p", shape_czyx=(1, 1, 1, 5), dtype="int16", geometry=geometry)
    case = archive.add_case(record, np.zeros((1, 1, 1, 5), np.int16))
    for name, chance, scores in (("folds/r2", STUDENT, PROMPTED), ("teacher/r1", TEACHER, teacher)):
        if scores is None:
            continue
        given = np.rint(255 * np.array(chance)).astype(np.uint8).reshape(1, 1, 1, 5)
        history = LabelHistory(label_set=name, classes=CLASSES, made_by="test", fingerprint=name, round=int(name[-1]))
        maps = {"unknown": np.array(unknown, np.uint8).reshape(1, 1, 5)} if unknown and name == "teacher/r1" else None
        stored = given if probable or name != "teacher/r1" else None
        case.write_labels(history, np.where(given[0] > 127, np.uint8(3), np.uint8(0)), probability_kzyx=stored, maps=maps, scores=scores)
    return archive


def mean_of(archive: Archive) -> list[float]:
    mean_labels(archive, ["a"], of="folds/r2", with_="teacher/r1", into="mean/r2")
    stored = archive["a"].labels("mean/r2").probability
    assert stored is not None
    return [float(value) for value in np.round(np.asarray(stored[...]).ravel() / 255, 2)]


def test_each_voxel_has_the_mean_of_both_probabilities_and_the_class_that_it_says(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, PROMPTED)
    assert mean_of(archive) == [0.0, 0.4, 0.9, 0.5, 0.6]
    labels = archive["a"].labels("mean/r2")
    assert labels.read().ravel().tolist() == [0, 0, 3, 0, 3]
    assert (labels.history.parents, labels.history.round) == (("folds/r2", "teacher/r1"), 2)
    assert labels.scores["pairwise_dice/3"] == pytest.approx(2 * 1.5 / (2 + 2.4), abs=0.01)
    assert not mean_labels(archive, ["a"], of="folds/r2", with_="teacher/r1", into="mean/r2").done


def test_a_teacher_without_probabilities_is_taken_by_its_mask(tmp_path: Path) -> None:
    assert mean_of(archive_of(tmp_path, PROMPTED, probable=False)) == [0.0, 0.3, 0.95, 0.5, 0.6]


def test_students_speak_alone_where_the_teacher_says_nothing(tmp_path: Path) -> None:
    assert mean_of(archive_of(tmp_path, PROMPTED, unknown=[0, 128, 0, 255, 0])) == [0.0, 0.6, 0.9, 1.0, 0.6]


@pytest.mark.parametrize("scores", [pytest.param(None, id="no label set"), pytest.param({}, id="the class was not prompted")])
def test_students_speak_alone_in_a_case_that_the_teacher_was_not_asked_about(tmp_path: Path, scores: dict[str, float] | None) -> None:
    assert mean_of(archive_of(tmp_path, scores)) == STUDENT


def test_what_a_prompt_said_is_absent_stays_absent(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, {"absent/3": 1.0})
    mean_of(archive)
    refine_archive(archive, RefinePlan(classes=CLASSES, source="mean/r2", target="pseudo/r2"))
    assert archive["a"].labels("pseudo/r2").read().ravel().tolist() == [0] * 5


def test_an_absent_class_of_several_is_drawn_nowhere_and_promises_nothing(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, None)
    classes, ids = (ClassInfo(id=1, name="absent"), ClassInfo(id=2, name="there")), np.full((1, 1, 5), 2, np.uint8)
    drawn: dict[str, tuple[float, float, dict[str, float]]] = {
        "folds/r3": (0.98, 0.01, {"pairwise_dice/1": 0.9, "pairwise_dice/2": 0.5}),
        "teacher/r2": (0.0, 0.9, {"absent/1": 1.0, "pairwise_dice/2": 0.9}),
    }
    for name, (first, second, scores) in drawn.items():
        given = np.rint(255 * np.broadcast_to(np.array([first, second])[:, None, None, None], (2, 1, 1, 5))).astype(np.uint8)
        history = LabelHistory(label_set=name, classes=classes, made_by="test", fingerprint=name)
        archive["a"].write_labels(history, ids, probability_kzyx=given, scores=scores)
    assert mean_labels(archive, ["a"], of="folds/r3", with_="teacher/r2", into="mean/r3").done
    labels = archive["a"].labels("mean/r3")
    assert 1 not in labels.read()
    assert labels.probability is not None
    assert not np.asarray(labels.probability[:1]).any()
    assert {name for name in labels.scores if name.endswith("/1")} == {"absent/1"}


def test_mean_labels_that_were_lost_are_written_anew(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, PROMPTED)
    mean_of(archive)
    archive["a"].delete_labels("mean/r2")
    assert mean_labels(archive, ["a"], of="folds/r2", with_="teacher/r1", into="mean/r2").done
    record, kept = archive["a"].record, {name: archive["a"].labels(name) for name in ("folds/r2", "teacher/r1")}
    drawn = [
        (labels.history, labels.read(), np.asarray(labels.probability), labels.scores) for labels in kept.values() if labels.probability
    ]
    for pixel in (1, 0):
        archive.add_case(replace(record, fingerprint=""), np.full((1, 1, 1, 5), pixel, np.int16), replace=True)
    for history, ids, probability, scores in drawn:
        archive["a"].write_labels(history, ids, probability_kzyx=probability, scores=scores)
    assert mean_labels(archive, ["a"], of="folds/r2", with_="teacher/r1", into="mean/r2").done


def test_where_the_mean_is_undecided_refinement_has_nobody_learn(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, PROMPTED)
    mean_of(archive)
    rule = ClassRule(accept_from=0.5, review_from=0.4)
    refine_archive(archive, RefinePlan(classes=CLASSES, rules={3: rule}, source="mean/r2", target="pseudo/r2"))
    assert archive["a"].labels("pseudo/r2").read().ravel().tolist()[2:] == [3, IGNORE, 3]


def test_a_mean_of_two_objects_promises_little() -> None:
    half = np.array([[[0.5, 0.5, 0.0]]], np.float32)
    assert promised_dice(half, half > 0.4) < 0.7
