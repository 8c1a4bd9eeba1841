"""Which masks a person is shown, in which order, and what the random ones say about all."""

from pathlib import Path

import numpy as np
import pytest

from distill.review_queue import QueuePlan, estimate, lot, review_queue
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, ReviewRecord

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=1, name="a"), ClassInfo(id=4, name="b"))
PLAN = QueuePlan(classes=(1, 4), accept_from={1: 0.8})


def add(archive: Archive, name: str, scores: dict[str, float], *, part: str = "archive", print_: str = "p") -> None:
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=IDENTITY)
    record = CaseRecord(id=name, patient=name, shape_czyx=(1, 1, 2, 3), dtype="uint8", geometry=geometry, part=part)  # type: ignore[arg-type]
    archive.add_case(record, np.zeros((1, 1, 2, 3), np.uint8))
    history = LabelHistory(label_set="teacher/r1", classes=CLASSES, made_by="test", fingerprint=print_)
    archive[name].write_labels(history, np.zeros((1, 2, 3), np.uint8), scores=scores)


@pytest.fixture
def empty(tmp_path: Path) -> Archive:
    return Archive.create(str(tmp_path / "a.zarr"))


@pytest.fixture
def archive(empty: Archive) -> Archive:
    """Twenty masks of class 1: agreement rises with the number, students contradict the last ones most."""
    for n in range(20):
        add(empty, f"case{n:02}", {"pairwise_dice/1": 0.70 + 0.01 * n, "oof_dice/1": 0.9 - 0.02 * n})
    add(empty, "scored", {"pairwise_dice/1": 0.8}, part="test")
    return empty


def judge(archive: Archive, case: str, verdict: str, source: str, *, filter_said: str = "accept", class_id: int = 1) -> None:
    archive.catalog.record_review(
        ReviewRecord(
            case=case,
            label_set="teacher/r1",
            class_id=class_id,
            verdict=verdict,
            source=source,
            fingerprint="p",
            filter_said=filter_said,  # type: ignore[arg-type]
        )
    )


def test_two_of_five_are_contradicted_two_uncertain_and_one_random(archive: Archive) -> None:
    queue = review_queue(archive, PLAN, 10)
    kinds = [each.why.partition(":")[0] for each in queue]
    assert kinds == ["contradicted", "uncertain", "contradicted", "uncertain", "drawn at random"] * 2
    assert queue[0].case == "case19"
    assert queue[0].why == "contradicted: oof_dice 0.520"
    assert (queue[1].case, queue[1].why) == ("case10", "uncertain: pairwise_dice 0.800, accepted from 0.800")
    assert [each.source for each in queue[:5]] == ["ranked"] * 4 + ["random"]


def test_the_queue_is_the_same_when_asked_again_and_only_grows_when_asked_for_more(archive: Archive) -> None:
    assert review_queue(archive, PLAN, 5) == review_queue(archive, PLAN, 5) == review_queue(archive, PLAN, 12)[:5]
    assert len({each.case for each in review_queue(archive, PLAN, 99)}) == 20, "each mask once, and none of the test part"


def test_without_contradicting_scores_uncertain_masks_take_their_places_and_one_in_five_stays_random(empty: Archive) -> None:
    for n in range(20):
        add(empty, f"case{n:02}", {"pairwise_dice/1": 0.70 + 0.01 * n})
    queue = review_queue(empty, PLAN, 10)
    assert [each.source for each in queue] == (["ranked"] * 4 + ["random"]) * 2


def test_the_random_order_does_not_move_when_cases_come_in_or_scores_change(archive: Archive) -> None:
    before = [each.case for each in review_queue(archive, PLAN, 99) if each.source == "random"]
    order = sorted((f"case{n:02}" for n in range(20)), key=lambda case: lot(case, 1))
    assert before == sorted(before, key=lambda case: lot(case, 1))
    assert before[0] in order[:5], "the first of the order that did not rank high before"


def test_a_judged_mask_waits_no_more_until_it_is_drawn_anew(archive: Archive) -> None:
    judge(archive, "case19", "reject", "ranked")
    assert "case19" not in [each.case for each in review_queue(archive, PLAN, 99)]
    archive["case19"].write_labels(
        LabelHistory(label_set="teacher/r1", classes=CLASSES, made_by="test", fingerprint="anew"),
        np.zeros((1, 2, 3), np.uint8),
        scores={"pairwise_dice/1": 0.9},
    )
    assert "case19" in [each.case for each in review_queue(archive, PLAN, 99)]


def test_several_classes_of_a_case_are_several_masks(empty: Archive) -> None:
    add(empty, "both", {"pairwise_dice/1": 0.9, "pairwise_dice/4": 0.8, "volume_mm3/4": 3.0})
    add(empty, "one", {"pairwise_dice/4": 0.7})
    assert {(each.case, each.class_id) for each in review_queue(empty, PLAN, 9)} == {("both", 1), ("both", 4), ("one", 4)}


def test_an_empty_archive_has_nothing_to_review_and_nothing_to_estimate(empty: Archive) -> None:
    found = estimate(empty, PLAN)
    assert review_queue(empty, PLAN, 9) == []
    assert (found.masks, found.drawn, found.judged, found.share, found.low) == (0, 0, 0, None, None)


def test_the_estimate_counts_the_random_part_and_nothing_else(archive: Archive) -> None:
    order = sorted((f"case{n:02}" for n in range(20)), key=lambda case: lot(case, 1))
    for case in order[:4]:
        judge(archive, case, "accept", "random")
    for case in order[10:]:
        judge(archive, case, "reject", "ranked")
    found = estimate(archive, PLAN)
    assert (found.masks, found.drawn, found.judged, found.accepted, found.share) == (20, 4, 4, 4, 1.0)
    assert found.low == pytest.approx(0.5101, abs=1e-4), "Wilson's interval of 4 of 4"
    assert found.high == pytest.approx(1.0)


def test_a_random_mask_that_ranked_high_as_well_counts_and_one_that_was_passed_over_is_missed(archive: Archive) -> None:
    order = sorted((f"case{n:02}" for n in range(20)), key=lambda case: lot(case, 1))
    judge(archive, order[0], "reject", "ranked", filter_said="review")
    judge(archive, order[3], "accept", "random")
    found = estimate(archive, PLAN)
    assert (found.drawn, found.judged, found.missing, found.accepted) == (4, 2, 2, 1)
    assert (found.filter_judged, found.filter_accepted, found.filter_share) == (1, 1, 1.0)
