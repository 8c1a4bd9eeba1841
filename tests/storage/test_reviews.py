"""Verdicts of people: nothing is lost, nobody overrules unknowingly, and a verdict holds for what was judged."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage import (
    CaseNotFoundError,
    CaseRecord,
    Catalog,
    Geometry,
    LabelHistory,
    ListingRecord,
    Prompt,
    ReviewConflictError,
    ReviewRecord,
)
from storage.database import upgrade

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
ANNA = ReviewRecord(case="a", label_set="teacher/r1", class_id=1, verdict="accept", by="anna", at="2026-11-21T16:00:00Z", fingerprint="old")
BEN = replace(ANNA, by="ben", verdict="reject", at="2026-11-21T16:05:00Z")
BOX = Prompt(case="a", class_id=1, kind="box", slice=3, box_xyxy_px=(1.0, 2.0, 3.5, 4.0), source="review")


def draw(catalog: Catalog, case: str, print_: str) -> None:
    catalog.retract_label_set(case, "teacher/r1")
    catalog.add_label_set(case, LabelHistory(label_set="teacher/r1", classes=(), made_by="test", fingerprint=print_), {})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.fixture
def catalog(url: str) -> Catalog:
    catalog = Catalog(url)
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=EYE)
    for case in "ab":
        catalog.add_case(CaseRecord(id=case, patient="p", shape_czyx=(1, 9, 8, 7), dtype="int16", geometry=geometry))
        draw(catalog, case, "old")
    return catalog


def test_a_verdict_comes_back_as_it_was_with_its_revision(catalog: Catalog) -> None:
    full = replace(ANNA, source="random", filter_said="review", note="sharp border")
    assert catalog.record_review(full, seen=0) == replace(full, revision=1)
    assert catalog.reviews("teacher/r1") == [replace(full, revision=1)]
    assert catalog.reviews("pseudo/r1") == []


def test_classes_are_judged_apart(catalog: Catalog) -> None:
    catalog.record_review(ANNA)
    catalog.record_review(replace(BEN, class_id=2), seen=0)
    assert [(each.class_id, each.verdict) for each in catalog.reviews("teacher/r1")] == [(1, "accept"), (2, "reject")]


def test_a_verdict_does_not_overrule_one_that_its_author_has_not_seen(catalog: Catalog) -> None:
    catalog.record_review(ANNA, seen=0)
    with pytest.raises(ReviewConflictError, match=r"case a, class 1: anna said 'accept' at 2026-11-21T16:00:00Z.*--force"):
        catalog.record_review(BEN, seen=0)
    assert [each.by for each in catalog.reviews("teacher/r1")] == ["anna"]
    catalog.record_review(BEN, seen=1)
    assert [each.verdict for each in catalog.reviews("teacher/r1")] == ["reject"]
    assert [each.by for each in catalog.review_history("teacher/r1")] == ["anna", "ben"]


def test_one_may_change_ones_own_mind_and_force_overrules(catalog: Catalog) -> None:
    catalog.record_review(ANNA, seen=0)
    catalog.record_review(replace(ANNA, verdict="ignore"), seen=0)
    catalog.record_review(BEN, seen=None)
    assert [(each.by, each.verdict, each.revision) for each in catalog.review_history("teacher/r1", "a")] == [
        ("anna", "accept", 1),
        ("anna", "ignore", 2),
        ("ben", "reject", 3),
    ]


def test_of_many_reviewers_at_once_exactly_one_is_first(catalog: Catalog) -> None:
    def judge(n: int) -> bool:
        try:
            catalog.record_review(replace(ANNA, by=f"r{n}"), seen=0)
        except ReviewConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(judge, range(8))) == 1
    assert len(catalog.review_history("teacher/r1")) == 1


def test_a_verdict_on_labels_that_were_drawn_anew_is_refused(catalog: Catalog) -> None:
    draw(catalog, "a", "new")
    with pytest.raises(ReviewConflictError, match="was drawn anew since it was looked at"):
        catalog.record_review(ANNA)
    catalog.retract_label_set("a", "teacher/r1")
    with pytest.raises(ReviewConflictError, match="has no label set 'teacher/r1' to judge"):
        catalog.record_review(ANNA)
    with pytest.raises(CaseNotFoundError, match="nobody"):
        catalog.record_review(replace(ANNA, case="nobody"))


def test_a_verdict_survives_the_pseudo_label_and_counts_again_when_the_same_labels_come_back(catalog: Catalog) -> None:
    catalog.record_review(ANNA)
    catalog.retract_label_set("a", "pseudo/r1")
    assert len(catalog.reviews("teacher/r1")) == 1
    draw(catalog, "a", "new")
    assert catalog.reviews("teacher/r1") == []
    draw(catalog, "a", "old")
    assert len(catalog.reviews("teacher/r1")) == 1


def test_an_undone_verdict_counts_no_more_and_stays_in_the_history(catalog: Catalog) -> None:
    catalog.record_review(ANNA)
    catalog.record_review(replace(ANNA, action="undo"))
    assert catalog.reviews("teacher/r1") == []
    assert [each.action for each in catalog.review_history("teacher/r1")] == ["judge", "undo"]


def test_a_new_box_replaces_the_reviewers_older_one_on_its_slice_and_no_other(catalog: Catalog) -> None:
    weak = replace(BOX, source="weak")
    elsewhere = replace(BOX, slice=5)
    catalog.add_prompts([weak, BOX, elsewhere])
    better = replace(BOX, box_xyxy_px=(2.0, 2.0, 5.0, 5.0))
    catalog.record_review(replace(ANNA, verdict="reject", action="rebox"), boxes=[better])
    assert set(catalog.prompts("a")) == {weak, better, elsewhere}
    assert catalog.forget_boxes("a", 1, source="review") == 2
    assert catalog.prompts("a") == [weak]


def test_a_refused_verdict_leaves_no_box_behind(catalog: Catalog) -> None:
    catalog.record_review(ANNA, seen=0)
    with pytest.raises(ReviewConflictError):
        catalog.record_review(replace(BEN, action="rebox"), seen=0, boxes=[BOX])
    assert catalog.prompts("a") == []


def test_of_several_decisions_all_are_stored_or_none(catalog: Catalog) -> None:
    catalog.record_review(replace(ANNA, class_id=2))
    both = [replace(BEN, class_id=1), replace(BEN, class_id=2)]
    with pytest.raises(ReviewConflictError, match="class 2: anna said 'accept'"):
        catalog.record_reviews(both, seen=[0, 0])
    assert [(each.class_id, each.by) for each in catalog.review_history("teacher/r1")] == [(2, "anna")]
    assert [each.revision for each in catalog.record_reviews(both, seen=[0, 1])] == [1, 2]


def test_a_refused_undo_leaves_boxes_where_they_are(catalog: Catalog) -> None:
    stored = catalog.record_review(replace(ANNA, action="rebox"), boxes=[BOX])
    undo = {"case_id": "a", "class_ids": [1], "source": "review"}
    with pytest.raises(ReviewConflictError):
        catalog.take_back_reviews([replace(BEN, action="undo")], seen=[0], **undo)  # type: ignore[arg-type]
    assert catalog.prompts_from("review") == [BOX]
    assert catalog.take_back_reviews([replace(stored, action="undo")], seen=[1], **undo) == 1  # type: ignore[arg-type]
    assert (catalog.prompts_from("review"), catalog.reviews("teacher/r1")) == ([], [])


def test_a_verdict_survives_new_pixels_counts_for_nothing_else_and_comes_back_with_the_same_labels(catalog: Catalog) -> None:
    stored = catalog.record_review(ANNA)
    record = catalog.find_case("a")
    assert record is not None
    catalog.retract_case("a")
    catalog.add_case(record)
    assert catalog.reviews("teacher/r1") == []
    draw(catalog, "a", "of the new pixels")
    assert catalog.reviews("teacher/r1") == []
    assert catalog.review_history("teacher/r1") == [stored]
    draw(catalog, "a", "old")
    assert catalog.reviews("teacher/r1") == [stored]


def test_what_each_reviewer_was_shown_is_theirs_and_the_last_listing_counts(catalog: Catalog) -> None:
    shown = ListingRecord(case="a", label_set="teacher/r1", class_id=1, by="anna", source="random", fingerprint="old", revision=0)
    catalog.record_listing([shown])
    catalog.record_listing([replace(shown, revision=2, fingerprint="new")])
    assert catalog.listed("a", "teacher/r1", "anna") == {1: replace(shown, revision=2, fingerprint="new")}
    assert catalog.listed("a", "teacher/r1", "ben") == {}


def test_reviews_of_an_older_catalog_stay_in_the_history_and_count_for_nothing(tmp_path: Path, url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        upgrade(connection, "0003")
    engine.dispose()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as old:
        geometry = '{"spacing_zyx_mm": [1, 1, 1], "affine": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}'
        old.execute("INSERT INTO cases VALUES ('a', 'p', 'test', 'CT', 'int16', 1, 2, 3, 4, ?, '{}', 'print', 1)", (geometry,))
        old.execute("INSERT INTO reviews VALUES ('a', 'gold', 'reject', 'shifted')")
    old.close()
    catalog = Catalog(url)
    assert catalog.reviews("gold") == []
    assert [(each.case, each.verdict, each.note, each.class_id) for each in catalog.review_history("gold")] == [
        ("a", "reject", "shifted", 0)
    ]
