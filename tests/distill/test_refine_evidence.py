"""Refinement hears what semantic tests and people say of a mask, and does its work again when they say something else."""

from pathlib import Path

import numpy as np
import pytest

from distill.refine import ClassRule, RefinePlan, Verdict, compose, judge, refine_archive
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, ReviewRecord

ORGAN = ClassInfo(id=1, name="organ")
SHAPE = (4, 8, 10)
UNIT = (1.0, 1.0, 1.0)
PLAN = RefinePlan(classes=(ORGAN,))


def an_object() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 2:5, 2:6] = True
    return mask


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive.create(str(tmp_path / "a.zarr"))
    eye = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    geometry = Geometry(spacing_zyx_mm=UNIT, affine=eye)
    for name in ("one", "two"):
        case = made.add_case(
            CaseRecord(id=name, patient=name, shape_czyx=(1, *SHAPE), dtype="uint8", geometry=geometry), np.zeros((1, *SHAPE), np.uint8)
        )
        history = LabelHistory(label_set="teacher/r1", classes=(ORGAN,), made_by="test", fingerprint=name)
        stored = np.where(an_object(), 240, 0).astype(np.uint8)[None]
        case.write_labels(history, an_object().astype(np.uint8), probability_kzyx=stored, scores={"pairwise_dice/1": 0.95})
    return made


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        pytest.param({}, Verdict(keep="accept", reason="good-agreement"), id="nothing was measured"),
        pytest.param({"prior": 0.3, "oof_dice": 0.8}, Verdict(keep="accept", reason="good-agreement"), id="nothing against it"),
        pytest.param({"prior": 0.0005}, Verdict(keep="reject", reason="location-outside-prior"), id="somewhere else"),
        pytest.param({"prior": 0.005}, Verdict(keep="accept", reason="good-agreement"), id="somewhat unusual"),
        pytest.param(
            {"oof_dice": 0.2, "prior": 0.005}, Verdict(keep="reject", reason="student-disagrees"), id="students see another object"
        ),
        pytest.param({"rca_dice": 0.1}, Verdict(keep="reject", reason="reverse-disagrees"), id="does not teach to find gold"),
    ],
)
def test_a_mask_of_something_else_is_rejected_however_well_members_agree(evidence: dict[str, float], expected: Verdict) -> None:
    assert judge(an_object(), 0.99, ClassRule(), UNIT, evidence=evidence) == expected


@pytest.mark.parametrize(
    ("person", "expected"),
    [
        ("accept", Verdict(keep="accept", reason="accepted-by-a-person")),
        ("ignore", Verdict(keep="reject", reason="doubted-by-a-person")),
        ("reject", Verdict(keep="reject", reason="rejected-by-a-person")),
    ],
)
def test_a_person_overrules_every_score(person: str, expected: Verdict) -> None:
    evidence = {"prior": 0.0} if person == "accept" else {"prior": 0.9}
    assert judge(an_object(), 0.1 if person == "accept" else 0.99, ClassRule(), UNIT, evidence=evidence, person=person) == expected


@pytest.mark.parametrize("reason", ["location-outside-prior", "student-disagrees", "reverse-disagrees", "rejected-by-a-person"])
def test_where_the_object_is_elsewhere_nothing_in_the_case_is_background(reason: str) -> None:
    probability = np.where(an_object(), 0.9, 0.0).astype(np.float32)
    ids = compose({1: (probability, an_object())}, {1: Verdict(keep="reject", reason=reason)}, PLAN, SHAPE)
    assert (ids == IGNORE).all()


def test_a_bad_border_spoils_its_surroundings_only() -> None:
    probability = np.where(an_object(), 0.9, 0.0).astype(np.float32)
    ids = compose({1: (probability, an_object())}, {1: Verdict(keep="reject", reason="pairwise-dice-below-review")}, PLAN, SHAPE)
    assert (ids[an_object()] == IGNORE).all()
    assert ids[3, 7, 9] == 0


def test_what_members_dispute_is_ignored_where_a_rule_says_so(archive: Archive) -> None:
    vote = np.where(an_object(), 255, 0).astype(np.uint8)
    vote[1, 2, 2:6] = 153  # three of five members say yes
    stored = np.where(an_object(), 240, 0).astype(np.uint8)[None]
    history = LabelHistory(label_set="teacher/r1", classes=(ORGAN,), made_by="test", fingerprint="votes")
    archive["one"].write_labels(
        history, an_object().astype(np.uint8), probability_kzyx=stored, scores={"pairwise_dice/1": 0.95}, maps={"vote": vote}
    )
    for least, ignored in ((None, 0), (0.3, 4), (0.45, 0)):
        refine_archive(archive, RefinePlan(classes=(ORGAN,), rules={1: ClassRule(disputed_from=least)}), cases=["one"])
        assert (archive["one"].labels("pseudo/r1").read() == IGNORE).sum() == ignored


def test_scores_that_came_later_are_heard_and_kept_with_the_pseudo_label(archive: Archive) -> None:
    assert refine_archive(archive, PLAN).verdicts == {"accept": 2}
    archive.catalog.add_scores("one", "teacher/r1", {"prior/1": 0.0001, "quality/1": 0.4})
    again = refine_archive(archive, PLAN)
    assert (again.done, again.skipped, again.verdicts) == (1, 1, {"accept": 1, "reject": 1})
    assert archive["one"].labels("pseudo/r1").history.parameters["reason/1"] == "location-outside-prior"
    assert archive.catalog.scores("pseudo/r1")["one"]["quality/1"] == 0.4
    assert refine_archive(archive, PLAN).done == 0


def test_scores_that_decide_nothing_cost_no_new_refinement(archive: Archive) -> None:
    refine_archive(archive, PLAN)
    archive.catalog.add_scores("one", "teacher/r1", {"entropy/1": 0.2})
    assert refine_archive(archive, PLAN).done == 0


def test_what_a_person_says_of_the_teachers_mask_counts_in_the_next_refinement(archive: Archive) -> None:
    archive.catalog.add_scores("one", "teacher/r1", {"oof_dice/1": 0.1})
    assert refine_archive(archive, PLAN).verdicts == {"accept": 1, "reject": 1}
    archive.catalog.record_review(ReviewRecord(case="one", label_set="teacher/r1", class_id=1, verdict="accept", fingerprint="one"))
    again = refine_archive(archive, PLAN)
    assert (again.done, again.verdicts) == (1, {"accept": 2})
    assert archive["one"].labels("pseudo/r1").history.parameters["reason/1"] == "accepted-by-a-person"


def test_slices_that_a_carried_mask_did_not_lead_back_from_are_ignore_and_all_others_stay(archive: Archive) -> None:
    labels = archive["one"].labels("teacher/r1")
    unknown = np.zeros(SHAPE, np.uint8)
    unknown[2:] = 255
    assert labels.probability is not None
    stored = np.asarray(labels.probability[:])
    archive["one"].write_labels(labels.history, labels.read(), probability_kzyx=stored, scores=labels.scores, maps={"unknown": unknown})
    refine_archive(archive, PLAN)
    ids = archive["one"].labels("pseudo/r1").read()
    assert (ids[2:] == IGNORE).all()
    assert (ids[1] == ORGAN.id).any()
    assert (ids[0] == 0).all()
