"""Masks that are there already become boxes, points and masks that say where they came from and how sure they are."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from distill.engine import label_archive
from distill.errors import PlanError, PromptError
from distill.prompts.from_labels import LabelSource, around, large_parts, make, without_strays
from distill.prompts.hints import hints_by_slice
from distill.prompts.pieces import innermost, parts_of
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.student_options import StudentPrompts
from distill.propose import PromptPlan, propose_prompts
from storage import Archive, ClassInfo, LabelHistory, Prompt
from storage.rle import decode

SMALL = runpy.run_path(str(Path(__file__).parents[1] / "small_archive.py"))
CONTRACT = runpy.run_path(str(Path(__file__).with_name("source_contract.py")))["SourceContract"]
archive_of, plan_for, write_checkpoint = SMALL["archive_of"], SMALL["plan_for"], SMALL["write_checkpoint"]
A, B = ClassInfo(id=1, name="a"), ClassInfo(id=2, name="b")
NAME = "student/first"
CASE = "case00"


def drawn(shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """Class 1 in slices 2 to 4 as a rectangle with a stray voxel far off, class 2 beside it, and ignore in a corner."""
    ids = np.zeros(shape_zyx, np.uint8)
    ids[2:5, 5:12, 6:16] = 1
    ids[3, 18, 24] = 1
    ids[3, 5:12, 17:21] = 2
    ids[:, :2, :2] = 255
    return ids


def give(archive: Archive, case: str, classes: tuple[ClassInfo, ...] = (A, B), *, probability: int | None = 204, mark: str = "one") -> None:
    """Write the label set of a student beside a case."""
    shape = archive[case].record.shape_czyx[1:]
    history = LabelHistory(label_set=NAME, classes=classes, made_by="test", fingerprint=mark)
    stored = None if probability is None else np.full((len(classes), *shape), probability, np.uint8)
    archive[case].write_labels(history, drawn(shape), probability_kzyx=stored, scores={"pairwise_dice/1": 0.7})


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = archive_of(tmp_path, 3)
    give(archive, CASE)
    return archive


@pytest.fixture
def context(archive: Archive, tmp_path: Path) -> SourceContext:
    return SourceContext(archive=archive, plan=plan_for(write_checkpoint(tmp_path), classes=(A, B), sources=("student",)))


def source_of(context: SourceContext, **told: Any) -> LabelSource:
    return make(context, StudentPrompts(labels=NAME, **told))


def subject_of(context: SourceContext, case: str = CASE, classes: tuple[ClassInfo, ...] = (A, B)) -> Subject:
    return context.subject(context.archive[case].record, classes)


class TestContract(CONTRACT):  # type: ignore[misc, valid-type]
    @pytest.fixture
    def source(self, context: SourceContext) -> LabelSource:
        return source_of(context)

    @pytest.fixture
    def subject(self, context: SourceContext) -> Subject:
        return subject_of(context)


def about(prompts: list[Prompt], class_id: int, kind: str, z: int, *, positive: bool = True) -> list[Prompt]:
    return [each for each in prompts if (each.class_id, each.kind, each.slice, each.positive) == (class_id, kind, z, positive)]


@pytest.mark.parametrize(
    ("profile", "margin", "box"),
    [
        pytest.param(None, None, (6.0, 5.0, 16.0, 12.0), id="tight for a teacher that was trained around the tight box"),
        pytest.param("medsam", None, (4.0, 3.0, 18.0, 14.0), id="two pixels wider for MedSAM"),
        pytest.param("medsam", 0.0, (6.0, 5.0, 16.0, 12.0), id="tight where the recipe says so"),
        pytest.param(None, 0.5, (1.0, 1.5, 21.0, 15.5), id="half a side wider where the recipe says so"),
    ],
)
def test_a_box_is_as_loose_as_the_teacher_s_or_as_the_recipe_says(
    context: SourceContext, profile: str | None, margin: float | None, box: tuple[float, ...]
) -> None:
    context.plan = replace(context.plan, profile=profile)
    boxes = about(source_of(context, margin=margin).propose(subject_of(context)), 1, "box", 3)
    assert [each.box_xyxy_px for each in boxes] == [box]


def test_the_margin_of_a_large_piece_is_a_share_of_its_sides() -> None:
    mask = np.zeros((200, 300), bool)
    mask[50:150, 60:260] = True
    (piece,) = parts_of(mask)
    assert around(piece, 0.05, mask.shape) == (50.0, 45.0, 270.0, 155.0)


def test_slices_without_the_class_are_not_prompted(context: SourceContext) -> None:
    prompts = source_of(context).propose(subject_of(context))
    assert sorted({prompt.slice for prompt in prompts if prompt.class_id == 1}) == [2, 3, 4]
    assert {prompt.slice for prompt in prompts if prompt.class_id == 2} == {3}


def test_the_point_is_the_innermost_pixel_and_no_corner(context: SourceContext) -> None:
    (point,) = about(source_of(context).propose(subject_of(context)), 1, "point", 3)
    ((x, y),) = point.points_xy_px
    assert y == 8.5
    assert 9 <= x <= 13


def test_another_class_that_comes_near_is_a_negative_point(context: SourceContext) -> None:
    prompts = source_of(context).propose(subject_of(context))
    (against,) = about(prompts, 1, "point", 3, positive=False)
    ((x, y),) = against.points_xy_px
    assert drawn((5, 20, 26))[3, int(y), int(x)] == 2
    assert about(prompts, 1, "point", 2, positive=False) == []


def test_the_mask_comes_along_without_the_stray(context: SourceContext) -> None:
    (rough,) = about(source_of(context).propose(subject_of(context)), 1, "mask", 3)
    assert rough.mask_size_yx == (20, 26)
    mask = decode(rough.mask_rle, (20, 26))
    assert mask.sum() == 70
    assert not mask[18, 24]


def test_what_is_ignored_in_the_labels_prompts_nothing(context: SourceContext) -> None:
    assert {prompt.class_id for prompt in source_of(context).propose(subject_of(context))} == {1, 2}


def test_confidence_is_the_mean_probability_inside(context: SourceContext) -> None:
    assert {prompt.confidence for prompt in source_of(context).propose(subject_of(context))} == {0.8}


def test_without_probabilities_confidence_is_how_much_the_makers_agreed(context: SourceContext) -> None:
    give(context.archive, CASE, probability=None)
    sure = {prompt.class_id: prompt.confidence for prompt in source_of(context).propose(subject_of(context))}
    assert sure == {1: 0.7, 2: 1.0}


def test_a_class_that_is_nowhere_is_absent_only_where_the_recipe_says_so(context: SourceContext) -> None:
    give(context.archive, CASE, (A, B, ClassInfo(id=3, name="c")), probability=51)
    subject = subject_of(context, classes=(ClassInfo(id=3, name="c"),))
    assert source_of(context).propose(subject) == []
    (said,) = source_of(context, absent=True).propose(subject)
    assert (said.kind, said.class_id, said.confidence) == ("absent", 3, 0.8)


def test_a_class_that_the_label_set_does_not_know_is_left_to_the_next_source(context: SourceContext) -> None:
    subject = subject_of(context, classes=(ClassInfo(id=9, name="other"),))
    assert source_of(context, absent=True).propose(subject) == []


def test_a_class_of_the_same_number_and_another_name_is_refused(context: SourceContext) -> None:
    with pytest.raises(PromptError, match="class 1 is 'liver' here, but 'a' in the label set 'student/first'"):
        source_of(context).propose(subject_of(context, classes=(ClassInfo(id=1, name="liver"),)))


def test_a_label_set_that_no_case_has_is_answered_with_the_command_that_writes_it(context: SourceContext) -> None:
    with pytest.raises(PlanError, match=r"'samdistill predict results/students/second ARCHIVE' .* There are: student/first"):
        make(context, StudentPrompts(labels="student/second"))


def test_a_case_without_the_label_set_is_set_aside_with_the_command_and_the_others_go_on(context: SourceContext) -> None:
    plan = PromptPlan(sources=("student",), options={"student": StudentPrompts(labels=NAME)}, label=context.plan)
    summary = propose_prompts(context.archive, plan)
    assert (summary.done, summary.quarantined) == (1, ("case01", "case02"))
    assert "samdistill predict results/students/first" in context.archive.ledger.quarantined("prompts:student")[0].error


def test_labels_that_were_written_anew_are_asked_for_again(context: SourceContext) -> None:
    before = source_of(context).fingerprint
    give(context.archive, CASE, mark="two")
    assert source_of(context).fingerprint != before


@pytest.mark.parametrize("name", ["gold", "gold/second-reader", "", "a/b/c"])
def test_gold_and_what_is_no_name_cannot_become_prompts(name: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        StudentPrompts(labels=name)


def test_a_source_without_a_label_set_says_how_to_name_one(context: SourceContext) -> None:
    with pytest.raises(PlanError, match=r"student: \{labels: student/NAME\}"):
        make(context, {})


def test_the_teacher_is_asked_with_what_the_student_drew(context: SourceContext) -> None:
    archive = context.archive
    for case in ("case01", "case02"):
        give(archive, case)
    plan = PromptPlan(sources=("student",), options={"student": StudentPrompts(labels=NAME)}, label=context.plan)
    propose_prompts(archive, plan)
    (hint,) = hints_by_slice(archive[CASE].record, [p for p in archive.catalog.prompts(CASE) if p.source == "proposed/student"])[1][3]
    assert hint.box is not None
    assert hint.box.tolist() == [6, 5, 16, 12]
    assert hint.point_labels is not None
    assert sorted(hint.point_labels) == [0, 1]
    assert label_archive(archive, context.plan).done == 3


def test_pieces_come_largest_first_and_small_ones_are_strays() -> None:
    mask = np.zeros((30, 41), bool)
    mask[2:5, 2:5] = mask[10:20, 10:20] = mask[25:29, 30:40] = True
    mask[0, 40] = True
    assert [int(piece.mask.sum()) for piece in large_parts(mask, 9, 0.05)] == [100, 40, 9]
    assert [int(piece.mask.sum()) for piece in large_parts(mask, 1, 0.05)] == [100]
    assert large_parts(np.zeros((4, 5), bool), 3, 0.1) == []


masks = arrays.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 11)))


@given(masks)
def test_the_innermost_pixel_lies_in_the_mask_and_the_box_around_it(volume: np.ndarray) -> None:
    for mask in volume:
        for piece in parts_of(mask):
            x, y = innermost(piece)
            x0, y0, x1, y1 = around(piece, 0.05, mask.shape)
            assert piece.on(mask.shape)[int(y), int(x)]
            assert 0 <= x0 <= x <= x1 <= mask.shape[1]
            assert 0 <= y0 <= y <= y1 <= mask.shape[0]


@given(masks, st.floats(0, 1))
def test_taking_strays_away_keeps_the_largest_piece_and_adds_nothing(volume: np.ndarray, share: float) -> None:
    kept = without_strays(volume, share)
    assert not (kept & ~volume).any()
    assert kept.any() == volume.any()
    assert (without_strays(kept, share) == kept).all()


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 1, 9), (9, 9, 1), (1, 1, 3)])
def test_strays_in_every_second_row_and_column_are_counted_each(shape: tuple[int, int, int]) -> None:
    lone = (np.indices(shape) % 2 == 0).all(axis=0)
    assert np.array_equal(without_strays(lone, 1.0), lone)


def test_a_prompt_source_context_of_another_case_does_not_leak(context: SourceContext) -> None:
    give(context.archive, "case01")
    subject = subject_of(context, "case01")
    assert {prompt.case for prompt in source_of(context).propose(replace(subject))} == {"case01"}
