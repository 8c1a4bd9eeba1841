"""Labels of prompts that nobody gives any more are taken back, with what was derived from them, and nothing else is."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from distill import label_pass, refine
from distill.engine import LabelSummary, label_archive
from distill.fuse import FusePlan, fuse_archive
from distill.label_plan import LabelPlan
from distill.refine import RefinePlan, refine_archive
from distill.wavefront import AskSettings
from distill.withdrawal import withdraw_labels
from storage import Archive, LabelHistory, Prompt, ReviewRecord

SMALL = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))
archive_of, plan_for, A = SMALL["archive_of"], SMALL["plan_for"], SMALL["A"]
TEACHER, PSEUDO = "teacher/r1", "pseudo/r1"
DRAWN = f"label:{TEACHER}"
REFINED = f"refine:{PSEUDO}"


@pytest.fixture
def archive(tmp_path: Path, checkpoint: str) -> Archive:
    """Return three cases with gold, drawn from weak boxes and refined, the first of them with a proposed box too."""
    made: Archive = archive_of(tmp_path, 3)
    gold = LabelHistory(label_set="gold", classes=(A,), made_by="storage.ingest")
    for record in made.cases():
        made[record.id].write_labels(gold, np.zeros(record.shape_czyx[1:], np.uint8))
    made.catalog.add_prompts([Prompt(case="case00", class_id=1, kind="box", slice=4, box_xyxy_px=(5, 4, 18, 15), source="proposed/middle")])
    label_archive(made, plan_for(checkpoint))
    refine_archive(made, RefinePlan(classes=(A,)))
    return made


def with_another_source(archive: Archive, checkpoint: str) -> LabelSummary:
    return label_archive(archive, plan_for(checkpoint, sources=("middle",)))


def test_labels_of_a_source_that_is_no_longer_named_go_with_what_was_refined_from_them(archive: Archive, checkpoint: str) -> None:
    summary = with_another_source(archive, checkpoint)
    assert (summary.done, summary.without_prompts, summary.withdrawn.cases) == (1, ("case01", "case02"), ("case01", "case02"))
    assert archive["case00"].label_sets() == ["gold", PSEUDO, TEACHER]
    assert archive["case01"].label_sets() == archive["case02"].label_sets() == ["gold"]
    assert archive["case01"].read().any()
    assert set(archive.catalog.scores(TEACHER)) == {"case00"}
    assert refine_archive(archive, RefinePlan(classes=(A,))).done == 1


def test_what_is_taken_back_is_no_longer_done_for_the_ledger_and_a_second_run_takes_nothing_back(archive: Archive, checkpoint: str) -> None:
    with_another_source(archive, checkpoint)
    assert (archive.ledger.counts(DRAWN)["done"], archive.ledger.state(DRAWN, "case01"), archive.ledger.state(REFINED, "case01")) == (
        1,
        None,
        None,
    )
    again = with_another_source(archive, checkpoint)
    assert (again.done, again.skipped, again.withdrawn.cases, again.unfinished) == (0, 1, (), 0)


def test_a_case_whose_last_prompt_is_removed_has_no_labels_any_more_and_gets_them_back_with_it(archive: Archive, checkpoint: str) -> None:
    prompts = archive.catalog.prompts("case01")
    archive.catalog.forget_boxes("case01", 1, source="weak")
    assert label_archive(archive, plan_for(checkpoint)).withdrawn.cases == ("case01",)
    archive.catalog.add_prompts(prompts)
    assert label_archive(archive, plan_for(checkpoint)).done == 1
    assert TEACHER in archive["case01"].label_sets()


def test_verdicts_of_people_are_counted_stay_and_hold_again_for_the_same_mask(archive: Archive, checkpoint: str) -> None:
    mark = archive.catalog.fingerprints(TEACHER)["case01"]
    said = ReviewRecord(case="case01", label_set=TEACHER, class_id=1, verdict="accept", by="r", fingerprint=mark)
    archive.catalog.record_review(said)
    assert with_another_source(archive, checkpoint).withdrawn.verdicts == 1
    assert archive.catalog.reviews(TEACHER) == []
    assert len(archive.catalog.review_history(TEACHER)) == 1
    label_archive(archive, plan_for(checkpoint))
    assert [review.case for review in archive.catalog.reviews(TEACHER)] == ["case01"]


def test_labels_that_somebody_imported_under_the_teachers_name_stay(archive: Archive, checkpoint: str) -> None:
    theirs = LabelHistory(label_set=TEACHER, classes=(A,), made_by="storage.ingest", fingerprint="theirs")
    archive["case01"].write_labels(theirs, np.zeros(archive["case01"].record.shape_czyx[1:], np.uint8))
    assert with_another_source(archive, checkpoint).withdrawn.cases == ("case02",)
    assert TEACHER in archive["case01"].label_sets()


def test_gold_is_never_taken_back_whoever_made_it(archive: Archive) -> None:
    made = LabelHistory(label_set="gold", classes=(A,), made_by="distill.engine/4", parents=(TEACHER,))
    archive["case01"].write_labels(made, np.zeros(archive["case01"].record.shape_czyx[1:], np.uint8))
    assert withdraw_labels(archive, "gold", ["case01"]).cases == ()
    withdraw_labels(archive, TEACHER, ["case01"])
    assert archive["case01"].label_sets() == ["gold"]


def test_a_case_that_is_being_refined_elsewhere_keeps_its_labels_and_is_left(
    archive: Archive, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = archive.ledger.claim
    monkeypatch.setattr(archive.ledger, "claim", lambda stage, unit: (stage, unit) != (REFINED, "case01") and claim(stage, unit))
    summary = with_another_source(archive, checkpoint)
    assert (summary.withdrawn.held, summary.withdrawn.cases, summary.unfinished) == (("case01",), ("case02",), 1)
    assert archive["case01"].label_sets() == ["gold", PSEUDO, TEACHER]


def test_what_a_kill_left_half_taken_back_is_completed_by_the_next_run(
    archive: Archive, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(stage: str, unit: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archive.ledger, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            with_another_source(archive, checkpoint)
    assert archive["case01"].label_sets() == ["gold", TEACHER]  # derived ones go first
    assert with_another_source(archive, checkpoint).withdrawn.cases == ("case01", "case02")
    assert archive["case01"].label_sets() == ["gold"]


def test_labels_that_cannot_be_drawn_anew_do_not_stay_as_they_were(
    archive: Archive, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = label_pass.prepare_case

    def broken(archive_: Archive, record: object, *rest: object, **more: object) -> object:
        if record.id == "case01":  # type: ignore[attr-defined]
            message = "cannot be read"
            raise ValueError(message)
        return prepare(archive_, record, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(label_pass, "prepare_case", broken)
    other = plan_for(checkpoint, ask=AskSettings(boxes=3))
    assert label_archive(archive, other).quarantined == ("case01",)
    assert archive["case01"].label_sets() == ["gold"]
    again = label_archive(archive, other)
    assert (again.done, again.quarantined) == (0, ("case01",))


def test_what_was_given_up_over_prompts_that_are_gone_is_no_longer_counted(
    archive: Archive, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_labels_that_cannot_be_drawn_anew_do_not_stay_as_they_were(archive, checkpoint, monkeypatch)
    with_another_source(archive, checkpoint)
    assert archive.ledger.counts(DRAWN)["quarantined"] == 0


def test_a_mask_that_cannot_be_refined_anew_leaves_no_older_pseudo_label(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        message = "no"
        raise ValueError(message)

    monkeypatch.setattr(refine, "refine_case", broken)
    plan = RefinePlan(classes=(A,), rules={1: refine.ClassRule(threshold=0.4)})
    assert len(refine_archive(archive, plan, cases=["case01"]).quarantined) == 1
    assert PSEUDO not in archive["case01"].label_sets()
    assert TEACHER in archive["case01"].label_sets()


def test_one_teachers_labels_do_not_stay_where_not_all_of_several_have_drawn(archive: Archive, checkpoint: str) -> None:
    members = (f"{TEACHER}-1", f"{TEACHER}-2")
    for member, cases in zip(members, (None, ["case00", "case01"]), strict=True):
        label_archive(archive, plan_for(checkpoint, label_set=member), cases=cases)
    summary = fuse_archive(archive, FusePlan(members=members, classes=(A,)))
    assert (summary.done, summary.waiting) == (2, ("case02",))
    assert archive["case02"].label_sets() == ["gold", members[0]]


def test_taking_back_a_members_labels_takes_back_what_was_fused_from_them(archive: Archive, checkpoint: str) -> None:
    members = (f"{TEACHER}-1", f"{TEACHER}-2")

    def plan(member: str, *sources: str) -> LabelPlan:
        return plan_for(checkpoint, label_set=member, sources=sources)  # type: ignore[no-any-return]

    for member in members:
        label_archive(archive, plan(member, "weak"))
    fuse_archive(archive, FusePlan(members=members, classes=(A,)))
    refine_archive(archive, RefinePlan(classes=(A,)))
    for member in members:
        label_archive(archive, plan(member, "middle"))
    assert archive["case01"].label_sets() == ["gold"]
    assert archive["case00"].label_sets() == ["gold", PSEUDO, TEACHER, *members]
