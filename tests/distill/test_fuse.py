"""Several teachers draw label sets of their own, and these become one, case by case, each case once."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import fuse
from distill.engine import label_archive
from distill.errors import PlanError
from distill.fuse import FusePlan, disagreement, fuse_archive, fuse_case
from distill.teachers.conv_encoder import build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from storage import Archive, LabelHistory

SMALL = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))
archive_of, plan_for, A = SMALL["archive_of"], SMALL["plan_for"], SMALL["A"]
MEMBERS = ("teacher/r1-1", "teacher/r1-2")
PLAN = FusePlan(members=MEMBERS, classes=(A,))
STAGE = "label:teacher/r1"


def write_checkpoint(folder: Path, seed: int) -> str:
    """Write a small teacher of random weights, others for each seed."""
    torch.manual_seed(seed)
    path = folder / f"small-{seed}.safetensors"
    write_teacher(path, build_conv_sam(SMALL["SMALL"]), SMALL["SMALL"], PretrainPlan(data=folder, out=path), 0)
    return str(path)


def draw(archive: Archive, case: str, member: str, mask: np.ndarray, *, sure: int = 255, mark: str = "one", agreement: float = 0.9) -> None:
    """Write what a teacher would have, and that it is finished."""
    history = LabelHistory(label_set=member, classes=(A,), made_by="test", teacher=f"hash-of-{member[-1]}", fingerprint=mark)
    scores = {"pairwise_dice/1": agreement, "volume_mm3/1": float(mask.sum())}
    probability = (mask * np.uint8(sure))[None]
    maps = {"vote": probability[0], "mutual_information": np.zeros_like(probability[0])}
    archive[case].write_labels(history, mask.astype(np.uint8), probability_kzyx=probability, scores=scores, maps=maps)
    finish(archive, case, member, mark)


def finish(archive: Archive, case: str, member: str, mark: str) -> None:
    """Note in the ledger that a teacher has drawn a case."""
    archive.ledger.plan(f"label:{member}", {case: mark})
    assert archive.ledger.claim(f"label:{member}", case)
    archive.ledger.done(f"label:{member}", case)


def ball(archive: Archive, case: str, shift: int = 0) -> np.ndarray:
    mask = np.zeros(archive[case].record.shape_czyx[1:], bool)
    mask[2:6, 5:15, 6 + shift : 16 + shift] = True
    return mask


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made: Archive = archive_of(tmp_path, 3)
    for n in range(3):
        for shift, member in enumerate(MEMBERS):
            draw(made, f"case{n:02}", member, ball(made, f"case{n:02}", shift))
    return made


def test_two_teachers_draw_and_one_label_set_comes_of_it(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, 2)
    for seed, member in enumerate(MEMBERS):
        assert label_archive(archive, plan_for(write_checkpoint(tmp_path, seed), label_set=member)).done == 2
    assert fuse_archive(archive, PLAN).done == 2
    labels = archive["case00"].labels("teacher/r1")
    teachers = [archive["case00"].labels(member).history.teacher for member in MEMBERS]
    assert labels.history.teacher == "+".join(teachers)
    assert len(set(teachers)) == 2
    assert labels.history.parents == MEMBERS
    assert {"pairwise_dice/1", "stability/1", "slices_asked/1", "teacher_agreement/1", "volume_mm3/1"} <= set(labels.scores)
    assert labels.probability is not None
    assert labels.uncertainty is not None


def test_the_history_says_how_far_each_teacher_was_believed(archive: Archive) -> None:
    fuse_archive(archive, PLAN)
    believed = dict(archive["case00"].labels("teacher/r1").history.parameters)
    assert believed.pop("rule") == "staple"
    assert set(believed) == {f"{what}/1/{n}" for what in ("sensitivity", "specificity") for n in (1, 2)}
    assert all(0 < float(value) <= 1 for value in believed.values())  # type: ignore[arg-type]


def test_agreement_between_teachers_is_the_dice_of_their_masks(archive: Archive) -> None:
    fuse_archive(archive, PLAN)
    scores = archive["case00"].labels("teacher/r1").scores
    assert scores["teacher_agreement/1"] == pytest.approx(0.9)  # nine of ten columns are shared
    assert scores["pairwise_dice/1"] == pytest.approx(0.9)


def test_scores_that_every_teacher_has_are_averaged_and_the_volume_is_the_fused_mask_s(archive: Archive) -> None:
    draw(archive, "case00", MEMBERS[0], ball(archive, "case00"), mark="two", agreement=0.5)
    fuse_archive(archive, PLAN)
    labels = archive["case00"].labels("teacher/r1")
    assert labels.scores["pairwise_dice/1"] == pytest.approx(0.7)
    assert labels.scores["volume_mm3/1"] == (labels.read() == 1).sum()


def test_a_second_run_does_nothing_and_a_case_that_was_drawn_anew_is_fused_anew(archive: Archive) -> None:
    assert fuse_archive(archive, PLAN).done == 3
    assert fuse_archive(archive, PLAN).skipped == 3
    draw(archive, "case01", MEMBERS[1], ball(archive, "case01", 2), mark="two")
    again = fuse_archive(archive, PLAN)
    assert (again.done, again.skipped) == (1, 2)


def test_a_case_that_one_teacher_has_not_drawn_waits(archive: Archive) -> None:
    archive["case02"].delete_labels(MEMBERS[1])
    summary = fuse_archive(archive, PLAN)
    assert (summary.done, summary.waiting) == (2, ("case02",))
    assert "teacher/r1" not in archive["case02"].label_sets()


def test_labels_of_an_earlier_state_that_are_due_again_are_not_fused(archive: Archive) -> None:
    archive.ledger.plan(f"label:{MEMBERS[0]}", {"case00": "another prompt"})
    assert fuse_archive(archive, PLAN).waiting == ("case00",)


def test_a_run_that_is_stopped_leaves_the_case_to_the_next_one(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_at_the_second(case: object, *others: object) -> object:
        if getattr(case, "id", "") == "case01":
            raise KeyboardInterrupt
        return fuse_case(case, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(fuse, "fuse_case", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        fuse_archive(archive, PLAN)
    monkeypatch.undo()
    assert archive.ledger.counts(STAGE)["claimed"] == 0
    assert fuse_archive(archive, PLAN).done == 2


def test_a_case_that_cannot_be_fused_is_set_aside_and_the_others_go_on(archive: Archive) -> None:
    history = LabelHistory(label_set=MEMBERS[1], classes=(A,), made_by="imported", fingerprint="one")
    archive["case01"].write_labels(history, ball(archive, "case01").astype(np.uint8), scores={"pairwise_dice/1": 1.0})
    finish(archive, "case01", MEMBERS[1], "one")
    summary = fuse_archive(archive, PLAN)
    assert (summary.done, summary.quarantined) == (2, ("case01",))
    assert "label set 'teacher/r1-2' has no probability of class 1" in archive.ledger.quarantined(STAGE)[0].error


def test_where_all_teachers_found_nothing_the_fused_mask_is_empty_and_they_agree(archive: Archive) -> None:
    nothing = np.zeros_like(ball(archive, "case00"))
    for member in MEMBERS:
        draw(archive, "case00", member, nothing, mark="two")
    fuse_archive(archive, PLAN)
    labels = archive["case00"].labels("teacher/r1")
    assert not labels.read().any()
    assert labels.scores["teacher_agreement/1"] == 1.0


def test_where_one_of_two_found_nothing_they_do_not_agree_at_all(archive: Archive) -> None:
    draw(archive, "case00", MEMBERS[1], np.zeros_like(ball(archive, "case00")), mark="two")
    fuse_archive(archive, PLAN)
    assert archive["case00"].labels("teacher/r1").scores["teacher_agreement/1"] == 0.0


def test_the_mean_of_probabilities_can_be_asked_for_instead(archive: Archive) -> None:
    fuse_archive(archive, PLAN)
    assert fuse_archive(archive, FusePlan(members=MEMBERS, classes=(A,), rule="mean")).done == 3
    probability = archive["case00"].labels("teacher/r1").probability
    assert probability is not None
    assert set(np.unique(probability[...])) == {0, 128, 255}


def test_a_class_that_nobody_was_asked_about_has_no_scores(archive: Archive) -> None:
    other = type(A)(id=2, name="b")
    fuse_archive(archive, FusePlan(members=MEMBERS, classes=(A, other)))
    assert not [name for name in archive["case00"].labels("teacher/r1").scores if name.endswith("/2")]


def test_maps_show_where_teachers_contradict_each_other(archive: Archive) -> None:
    fuse_archive(archive, PLAN)
    labels = archive["case00"].labels("teacher/r1")
    doubt, vote = labels.map("mutual_information"), labels.map("vote")
    assert doubt is not None
    assert vote is not None
    contested = ball(archive, "case00") ^ ball(archive, "case00", 1)
    assert (np.asarray(doubt[...])[contested] > 250).all()
    assert not np.asarray(doubt[...])[~contested].any()
    assert set(np.unique(np.asarray(vote[...])[contested])) == {128}


def test_slices_that_one_teacher_lost_track_of_stay_unknown(archive: Archive) -> None:
    labels = [archive["case00"].labels(member) for member in MEMBERS]
    unknown = np.zeros(labels[0].ids.shape, np.uint8)
    unknown[4:] = 255
    history = labels[0].history
    scores = {"pairwise_dice/1": 0.9}
    probability = np.asarray(labels[0].probability[...]) if labels[0].probability is not None else None
    archive["case00"].write_labels(history, labels[0].read(), probability_kzyx=probability, scores=scores, maps={"unknown": unknown})
    fused = fuse_case(archive["case00"], [archive["case00"].labels(member) for member in MEMBERS], PLAN)
    assert np.array_equal(fused.maps["unknown"], unknown)


def test_disagreement_is_nothing_among_equals_and_one_bit_between_opposites() -> None:
    equal = np.full((3, 2, 4), 0.3, np.float32)
    assert disagreement(equal) == pytest.approx(np.zeros((2, 4)), abs=1e-6)
    assert disagreement(np.array([[0.0], [1.0]], np.float32)) == pytest.approx(np.log(2), abs=1e-3)


@pytest.mark.parametrize(
    "members",
    [
        pytest.param((), id="none"),
        pytest.param(("a/1",), id="one"),
        pytest.param(("a/1", "a/1"), id="twice"),
        pytest.param(("a/1", "teacher/r1"), id="itself"),
    ],
)
def test_what_is_no_fusion_is_refused(members: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match="two or more different label sets into another one"):
        FusePlan(members=members, classes=(A,))
