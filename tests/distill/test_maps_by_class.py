"""Vote, mutual information and what is unknown are kept class by class, and no class hears what was said of another."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from distill.engine import label_archive
from distill.fuse import FusePlan, fuse_case
from distill.label_store import store_labels
from distill.prompts.hints import box_of
from distill.questions import AskSettings
from distill.refine import ClassRule, RefinePlan, refine_archive
from distill.refined_case import refine_case
from distill.unknown import DISBELIEVED, UNASKED, unknown_map
from storage import IGNORE, Archive, ClassInfo, LabelHistory, Prompt

small = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))  # tests are no package
ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]
A, B = small["A"], ClassInfo(id=2, name="b")
BOTH = RefinePlan(classes=(A, B), rules={1: ClassRule(disputed_from=0.3), 2: ClassRule()})


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made: Archive = small["archive_of"](tmp_path, 1)
    return made


def drawn(archive: Archive, probability: np.ndarray, maps: dict[str, np.ndarray], name: str = "teacher/r1") -> None:
    """Write what a teacher would have drawn of both classes, ``(2, z, y, x)`` probabilities in bytes."""
    ids = np.where(probability.max(axis=0) > 127, probability.argmax(axis=0) + 1, 0).astype(np.uint8)
    history = LabelHistory(label_set=name, classes=(A, B), made_by="test", teacher="x", fingerprint=name)
    scores = {"pairwise_dice/1": 0.95, "pairwise_dice/2": 0.95}
    archive["case00"].write_labels(history, ids, probability_kzyx=probability, scores=scores, maps=maps)


def two_boxes(shape: tuple[int, ...]) -> np.ndarray:
    """Return ``(2, z, y, x)``: class 1 on the left, class 2 on the right, which overlap in three columns where 2 is less probable."""
    stored = np.zeros((2, *shape), np.uint8)
    stored[0, 2:6, 5:14, 4:14] = 240
    stored[1, 2:6, 5:14, 11:20] = 220
    return stored


def test_labelling_keeps_maps_of_each_class(archive: Archive, tmp_path: Path) -> None:
    archive.catalog.add_prompts([Prompt(case="case00", class_id=2, kind="box", slice=z, box_xyxy_px=(10, 6, 20, 15)) for z in (3, 6)])
    plan = small["plan_for"](small["write_checkpoint"](tmp_path), classes=(A, B), ask=AskSettings(boxes=4, jitter=0.3, planes="axial"))
    label_archive(archive, plan)
    labels = archive["case00"].labels("teacher/r1")
    assert labels.probability is not None
    for name in ("vote", "mutual_information"):
        one, other = labels.class_map(name, 1), labels.class_map(name, 2)
        assert one is not None
        assert other is not None
        assert one.shape == other.shape == archive["case00"].record.shape_czyx[1:]
        assert not one[6:].any()
        assert labels.class_map(name, 3) is None
    vote = labels.class_map("vote", 2)
    assert vote is not None
    assert vote[6].any()
    assert not vote[np.asarray(labels.probability[1]) == 0].any()


def test_maps_of_one_class_are_volumes_as_ever(archive: Archive, tmp_path: Path) -> None:
    label_archive(archive, small["plan_for"](small["write_checkpoint"](tmp_path)))
    labels = archive["case00"].labels("teacher/r1")
    vote = labels.map("vote")
    assert vote is not None
    assert vote.shape == archive["case00"].record.shape_czyx[1:]
    assert np.array_equal(np.asarray(vote[...]), np.asarray(labels.class_map("vote", 1)))


def test_a_slice_that_is_unknown_for_one_class_is_known_for_the_other(archive: Archive) -> None:
    work, ball = ball_case("case00", 8, 12)
    other, _ = ball_case("case00", 8, 12)
    archive.add_case(work.record, work.volume_czyx, replace=True)
    work.classes[2] = other.classes[1]
    work.classes[1].unknown |= {10}
    plan = small["plan_for"]("x", classes=(A, B))
    store_labels(archive, plan, work, teacher="x", inputs="y")
    labels = archive["case00"].labels("teacher/r1")
    assert box_of(ball[10]) is not None
    assert (unknown_map(labels, 1)[10] == DISBELIEVED).all()
    assert not (unknown_map(labels, 2) == DISBELIEVED).any()


def test_what_members_dispute_of_one_class_takes_nothing_from_another(archive: Archive) -> None:
    stored = two_boxes(archive["case00"].record.shape_czyx[1:])
    vote = np.where(stored > 0, np.uint8(255), np.uint8(0))
    vote[1, :, :, 11:] = 130  # half of the members do not draw class 2 at all, also where class 1 is certain
    for maps, disputed in (({"vote": vote}, 0), ({"vote": vote[::-1].copy()}, 3 * 9 * 4)):
        drawn(archive, stored, maps)
        refined = refine_case(archive["case00"], BOTH)
        assert int(((refined.ids == IGNORE) & (stored[0] > 0)).sum()) == disputed


def test_what_is_unknown_of_one_class_leaves_the_other_what_was_drawn_of_it_and_no_background(archive: Archive) -> None:
    shape = archive["case00"].record.shape_czyx[1:]
    stored, unknown = two_boxes(shape), np.zeros((2, *shape), np.uint8)
    unknown[0, 4] = DISBELIEVED
    unknown[0, 6:] = UNASKED
    drawn(archive, stored, {"unknown": unknown})
    plain = RefinePlan(classes=(A, B))
    refine_archive(archive, plain, cases=["case00"])
    ids = archive["case00"].labels("pseudo/r1").read()
    right = stored[1, 4] > 0
    assert (ids[4][right] == 2).all()  # also where class 1 is more probable: that is not believed here
    assert (ids[4][~right] == IGNORE).all()
    assert (ids[3][stored[0, 3] > 0] == 1).all()
    assert not ids[:2].any()
    assert (ids[6:] == IGNORE).all()


def test_what_is_drawn_on_a_slice_that_is_not_believed_changes_no_other_slice(archive: Archive) -> None:
    shape = archive["case00"].record.shape_czyx[1:]
    found = {}
    for level in (0, 255):
        stored, unknown = two_boxes(shape), np.zeros(shape, np.uint8)
        stored[0, 3], stored[0, 4], unknown[4] = np.minimum(stored[0, 3], 110), level, DISBELIEVED  # slice 3 is just below its threshold
        drawn(archive, stored, {"unknown": unknown})
        found[level] = refine_case(archive["case00"], RefinePlan(classes=(A,), rules={1: ClassRule(smooth_mm=1.0)})).ids
    assert np.array_equal(np.delete(found[0], 4, axis=0), np.delete(found[255], 4, axis=0))


def test_one_map_of_all_classes_from_before_is_heard_by_each(archive: Archive) -> None:
    shape = archive["case00"].record.shape_czyx[1:]
    unknown = np.zeros(shape, np.uint8)
    unknown[4] = DISBELIEVED
    drawn(archive, two_boxes(shape), {"unknown": unknown})
    ids = refine_case(archive["case00"], RefinePlan(classes=(A, B))).ids
    assert (ids[4] == IGNORE).all()
    assert {1, 2} <= set(np.unique(ids[3]))


def test_fusing_keeps_classes_apart(archive: Archive) -> None:
    shape = archive["case00"].record.shape_czyx[1:]
    stored, unknown = two_boxes(shape), np.zeros((2, *shape), np.uint8)
    unknown[1, 5] = UNASKED
    vote = np.where(stored > 0, np.uint8(200), np.uint8(0))
    members = ("teacher/a", "teacher/b")
    drawn(archive, stored, {"vote": vote, "mutual_information": 0 * vote, "unknown": unknown}, members[0])
    shifted = np.stack([np.roll(stored[0], 2, axis=1), stored[1]])
    drawn(archive, shifted, {"vote": vote, "mutual_information": 0 * vote}, members[1])
    labels = [archive["case00"].labels(name) for name in members]
    fused = fuse_case(archive["case00"], labels, FusePlan(members=members, classes=(A, B)))
    assert np.array_equal(fused.maps["vote"], vote)
    assert np.array_equal(fused.maps["unknown"], unknown)
    assert fused.maps["mutual_information"][0].any()
    assert not fused.maps["mutual_information"][1].any()
