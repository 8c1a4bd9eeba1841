"""What refinement keeps, what it ignores, and what it never calls background."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from distill import refine
from distill.errors import PlanError
from distill.refine import (
    ClassRule,
    Hearsay,
    RefinePlan,
    Verdict,
    accepted_cases,
    clean_mask,
    compose,
    judge,
    refine_archive,
    smooth_probability,
    worst,
)
from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, Geometry, LabelHistory, fingerprint, heartbeat
from storage.database import Database
from storage.tables import UnitRow

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
A, B = ClassInfo(id=1, name="a"), ClassInfo(id=2, name="b")
UNIT = (1.0, 1.0, 1.0)
SHAPE = (6, 8, 10)


def block(*bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(low, high) for low, high in bounds)] = True
    return mask


OBJECT = block((1, 5), (2, 6), (2, 7))


def archive_with(path: Path, probabilities: dict[str, np.ndarray], agreement: float = 0.95, unsized: tuple[str, ...] = ()) -> Archive:
    archive = Archive.create(str(path / "a.zarr"))
    for name, probability in probabilities.items():
        geometry = Geometry(spacing_zyx_mm=UNIT, affine=IDENTITY, spacing_known=name not in unsized)
        record = CaseRecord(id=name, patient=name, shape_czyx=(1, *SHAPE), dtype="uint8", geometry=geometry)
        case = archive.add_case(record, np.zeros((1, *SHAPE), np.uint8))
        stored = np.rint(255 * probability).astype(np.uint8)
        history = LabelHistory(label_set="teacher/r1", classes=(A,), made_by="test", fingerprint=name)
        case.write_labels(
            history, (probability > 0.5).astype(np.uint8), probability_kzyx=stored[None], scores={"pairwise_dice/1": agreement}
        )
    return archive


def test_only_the_largest_component_stays_and_its_holes_are_filled() -> None:
    mask = OBJECT.copy()
    mask[3, 4, 4] = False
    mask[0, 0, 0] = True
    assert np.array_equal(clean_mask(mask, ClassRule()), OBJECT)
    assert clean_mask(mask, ClassRule(largest_component=False))[0, 0, 0]


TWO_PIECES = np.where(block((0, 6), (0, 8), (0, 4)), 0.97, np.where(block((1, 5), (2, 6), (5, 9)), 0.97, 0.02)).astype(np.float32)
"""One of 192 voxels, and beside it one of 64."""


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        pytest.param(ClassRule(), "accept", id="near enough to be a part of it"),
        pytest.param(ClassRule(piece_gap_mm=0), "review", id="taken away"),
        pytest.param(ClassRule(piece_gap_mm=0, piece_share=0.4), "accept", id="small, and so background by decision"),
    ],
)
def test_a_large_piece_that_goes_is_ignore_and_the_mask_is_for_a_person_to_judge(tmp_path: Path, rule: ClassRule, verdict: str) -> None:
    archive = archive_with(tmp_path, {"one": TWO_PIECES})
    refine_archive(archive, RefinePlan(classes=(A,), rules={1: rule}))
    labels = archive["one"].labels("pseudo/r1")
    second = block((1, 5), (2, 6), (5, 9))
    assert labels.history.parameters["verdict/1"] == verdict
    if rule.piece_gap_mm:
        assert (labels.read()[second] == 1).all()
        assert (labels.read()[block((2, 4), (3, 5), (4, 5))] == IGNORE).all(), "nor the gap where it broke"
    elif rule.piece_share < 0.3:
        assert labels.history.parameters["reason/1"] == "large-piece-dropped"
        assert labels.scores["dropped_share/1"] == pytest.approx(64 / 192)
        assert (labels.read()[second] == IGNORE).all(), "half of an organ must not be taught as background"
        assert (labels.read()[block((0, 6), (0, 8), (0, 4))] == 1).all()
    else:
        assert (labels.read()[second] == 0).all()
        assert "dropped_share/1" not in labels.scores


def test_a_person_who_accepts_a_mask_beside_a_dropped_piece_is_believed_and_the_piece_stays_ignore(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, {"one": TWO_PIECES})
    plan = RefinePlan(classes=(A,), rules={1: ClassRule(piece_gap_mm=0)})
    refined = refine.refine_case(archive["one"], plan, Hearsay(people={1: "accept"}))
    assert refined.verdicts[1].keep == "accept"
    assert (refined.ids[block((1, 5), (2, 6), (5, 9))] == IGNORE).all()


def test_an_empty_mask_stays_empty() -> None:
    assert not clean_mask(np.zeros(SHAPE, bool), ClassRule()).any()


def test_smoothing_is_a_length_in_the_patient_and_spares_single_slices() -> None:
    spike = np.zeros((9, 9, 9), np.float32)
    spike[4, 4, 4] = 1
    smooth = smooth_probability(spike, ClassRule(smooth_mm=1.0), (2.0, 1.0, 1.0))
    assert smooth[5, 4, 4] < smooth[4, 5, 4]
    single = spike[4:5]
    assert smooth_probability(single, ClassRule(smooth_mm=1.0), UNIT) is single


@pytest.mark.parametrize(
    ("mask", "agreement", "rule", "expected"),
    [
        pytest.param(OBJECT & False, 1.0, ClassRule(), Verdict(keep="reject", reason="empty-mask"), id="empty"),
        pytest.param(OBJECT, 0.5, ClassRule(), Verdict(keep="reject", reason="pairwise-dice-below-review"), id="disagreement"),
        pytest.param(OBJECT, 0.8, ClassRule(), Verdict(keep="review", reason="pairwise-dice-below-accept"), id="some disagreement"),
        pytest.param(OBJECT, 0.9, ClassRule(), Verdict(keep="accept", reason="good-agreement"), id="agreement"),
        pytest.param(OBJECT, 0.9, ClassRule(volume_mm3=(500, 900)), Verdict(keep="review", reason="volume-outside-prior"), id="too small"),
    ],
)
def test_a_verdict_carries_its_reason(mask: np.ndarray, agreement: float, rule: ClassRule, expected: Verdict) -> None:
    assert judge(mask, agreement, rule, UNIT) == expected


def test_the_most_cautious_verdict_decides_about_the_case() -> None:
    assert worst(["accept", "review", "accept"]) == "review"
    assert worst(["reject", "review"]) == "reject"
    assert worst([]) == "accept"


def test_voxels_near_the_threshold_are_ignored_and_far_ones_are_not() -> None:
    probability = np.where(OBJECT, 0.95, 0.0).astype(np.float32)
    probability[1] *= 0.55  # one slice of the object is doubtful
    plan = RefinePlan(classes=(A,))
    ids = compose({1: (probability, probability >= 0.5)}, {1: Verdict(keep="accept", reason="good-agreement")}, plan, SHAPE)
    assert (ids[1][OBJECT[1]] == IGNORE).all()
    assert (ids[3][OBJECT[3]] == 1).all()
    assert ids[5, 7, 9] == 0


def test_a_rejected_object_and_its_surroundings_are_ignore_and_never_background() -> None:
    probability = np.where(OBJECT, 0.9, 0.0).astype(np.float32)
    plan = RefinePlan(classes=(A,))
    ids = compose({1: (probability, OBJECT)}, {1: Verdict(keep="reject", reason="pairwise-dice-below-review")}, plan, SHAPE)
    assert (ids[OBJECT] == IGNORE).all()
    assert not (ids == 1).any()
    assert ids[0, 0, 0] == IGNORE or ids[5, 7, 9] == 0


def test_a_class_nobody_prompted_makes_everything_but_the_known_classes_ignore() -> None:
    probability = np.where(OBJECT, 0.9, 0.0).astype(np.float32)
    verdicts = {1: Verdict(keep="accept", reason="good-agreement"), 2: Verdict(keep="reject", reason="not-prompted")}
    ids = compose({1: (probability, OBJECT)}, verdicts, RefinePlan(classes=(A, B)), SHAPE)
    assert (ids[OBJECT] == 1).all()
    assert (ids[~OBJECT] == IGNORE).all()


def test_where_two_classes_overlap_the_more_probable_one_wins() -> None:
    left, right = np.where(OBJECT, 0.7, 0).astype(np.float32), np.where(OBJECT, 0.9, 0).astype(np.float32)
    accepted = Verdict(keep="accept", reason="good-agreement")
    ids = compose({1: (left, OBJECT), 2: (right, OBJECT)}, {1: accepted, 2: accepted}, RefinePlan(classes=(A, B)), SHAPE)
    assert (ids[OBJECT] == 2).all()


def test_refining_twice_does_nothing_the_second_time_and_a_new_rule_does_it_again(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, {"one": np.where(OBJECT, 0.95, 0.0), "two": np.zeros(SHAPE)})
    first = refine_archive(archive, RefinePlan(classes=(A,)))
    assert (first.done, first.skipped) == (2, 0)
    assert first.verdicts == {"accept": 1, "reject": 1}
    assert first.reasons == {"good-agreement": 1, "empty-mask": 1}
    assert accepted_cases(archive, "pseudo/r1") == ["one"]
    again = refine_archive(archive, RefinePlan(classes=(A,)))
    assert (again.done, again.skipped) == (0, 2)
    changed = refine_archive(archive, RefinePlan(classes=(A,), rules={1: ClassRule(threshold=0.4)}))
    assert changed.done == 2


def test_the_history_of_a_pseudo_label_names_its_parent_rule_and_verdict(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, {"one": np.where(OBJECT, 0.95, 0.0)})
    refine_archive(archive, RefinePlan(classes=(A,), rules={1: ClassRule(threshold=0.45)}))
    history = archive["one"].labels("pseudo/r1").history
    assert history.parents == ("teacher/r1",)
    assert history.parameters["threshold/1"] == 0.45
    assert history.parameters["verdict/1"] == "accept"


def test_labels_without_probabilities_are_quarantined_with_the_reason(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, {"one": np.where(OBJECT, 0.95, 0.0)})
    history = LabelHistory(label_set="teacher/r1", classes=(A,), made_by="import", fingerprint="x")
    archive["one"].write_labels(history, OBJECT.astype(np.uint8))
    summary = refine_archive(archive, RefinePlan(classes=(A,)))
    assert summary.quarantined == ("one",)
    assert "has no probabilities" in archive.ledger.quarantined("refine:pseudo/r1")[0].error


def test_nothing_to_refine_is_an_error_that_names_the_stage_before(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Run the label stage first"):
        refine_archive(Archive.create(str(tmp_path / "a.zarr")), RefinePlan(classes=(A,)))


def test_a_case_that_another_process_holds_is_left_to_it_and_the_stage_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_with(tmp_path, {"one": np.where(OBJECT, 0.95, 0.0)})
    monkeypatch.setattr(archive.ledger, "claim", lambda *_: False)
    assert refine_archive(archive, RefinePlan(classes=(A,))).done == 0


def test_a_class_that_nobody_prompted_does_not_bar_the_case_from_training(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, {"one": np.where(OBJECT, 0.95, 0.0)})
    summary = refine_archive(archive, RefinePlan(classes=(A, B)))
    assert summary.verdicts == {"accept": 1}
    assert summary.reasons == {"good-agreement": 1, "not-prompted": 1}
    assert accepted_cases(archive, "pseudo/r1") == ["one"]
    ids = archive["one"].labels("pseudo/r1").read()
    assert not (ids == 0).any(), "where class b may be, nothing may be called background"


def broken_case(*_: object) -> None:
    raise RuntimeError


def test_a_case_that_was_given_up_does_not_count_as_refined_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_with(tmp_path, {"a": OBJECT * 0.9, "b": OBJECT * 0.9})
    with monkeypatch.context() as patch:
        patch.setattr(refine, "refine_case", broken_case)
        refine_archive(archive, RefinePlan(classes=(A,)), cases=["a"])
    refine_archive(archive, RefinePlan(classes=(A,)), cases=["b"])
    summary = refine_archive(archive, RefinePlan(classes=(A,)))
    assert (summary.done, summary.skipped, summary.quarantined) == (0, 1, ("a",))


def test_claims_are_renewed_while_a_case_is_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_with(tmp_path, {"a": OBJECT * 0.9})
    renewed, refine_case = threading.Event(), refine.refine_case
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(archive.ledger, "heartbeat", renewed.set)

    def slow(*args: object) -> refine.Refined:
        assert renewed.wait(30)
        return refine_case(*args)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(refine, "refine_case", slow)
    assert refine_archive(archive, RefinePlan(classes=(A,))).done == 1


@pytest.mark.parametrize("fails", [False, True], ids=["refined", "failed"])
def test_a_case_that_another_run_has_taken_meanwhile_is_left_to_it_and_the_others_are_refined(
    fails: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = archive_with(tmp_path, {"a": OBJECT * 0.9, "b": OBJECT * 0.9})
    refine_case = refine.refine_case

    def taken(case: Case, plan: RefinePlan, heard: Hearsay) -> refine.Refined:
        if case.id == "a":
            with Database(archive.catalog.url).writing() as connection:
                connection.execute(sa.update(UnitRow).where(UnitRow.unit == "a").values(host="elsewhere"))
            if fails:
                raise RuntimeError
        return refine_case(case, plan, heard)

    monkeypatch.setattr(refine, "refine_case", taken)
    summary = refine_archive(archive, RefinePlan(classes=(A,)))
    assert (summary.done, summary.quarantined) == (1, ())
    assert archive.ledger.state("refine:pseudo/r1", "a") == "claimed"


def test_volumes_are_judged_case_by_case_where_the_spacing_is_known_under_the_fingerprints_of_such_a_plan(tmp_path: Path) -> None:
    rule = ClassRule(volume_mm3=(500, 900), threshold=0.45)
    archive = archive_with(tmp_path, {"picture": OBJECT * 0.9, "scan": OBJECT * 0.9}, unsized=("picture",))
    summary = refine_archive(archive, RefinePlan(classes=(A,), rules={1: rule}))
    assert (summary.verdicts, summary.unsized) == ({"accept": 1, "review": 1}, 1)
    assert archive["scan"].labels("pseudo/r1").history.parameters["reason/1"] == "volume-outside-prior"
    assert archive["picture"].labels("pseudo/r1").history.parameters["reason/1"] == "good-agreement"
    with Database(archive.catalog.url).reading() as connection:
        prints = dict(connection.execute(sa.select(UnitRow.unit, UnitRow.fingerprint)).tuples().all())
    rules = {"scan": {1: rule}, "picture": {1: replace(rule, volume_mm3=None)}}
    told = {"scores": {}, "people": {}, "intensity": None}
    assert prints == {name: fingerprint(refine=refine.REFINE, source=name, rules=rules[name], classes=(A,), **told) for name in rules}
    assert refine_archive(archive, RefinePlan(classes=(A,), rules={1: rule}), cases=["picture"]).skipped == 1


def test_without_a_rule_about_volumes_no_case_counts_as_unsized(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, {"picture": OBJECT * 0.9}, unsized=("picture",))
    assert refine_archive(archive, RefinePlan(classes=(A,), rules={1: ClassRule()})).unsized == 0
