"""Slices that nobody asked about are not background, unless something says that the object has ended; classes are asked along the axis of their prompts."""

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.audit_masks import AuditPlan, walk
from distill.casework import by_axis, prepare_case
from distill.cleaning import ClassRule, smooth_probability
from distill.engine import label_archive
from distill.evidence import cut_mask, evidence_of, gold_cases
from distill.intensity import IntensitySpec
from distill.label_inputs import label_fingerprint
from distill.label_plan import LabelPlan
from distill.label_store import store_labels
from distill.planes import ask_other_planes, near_isotropic, plane_inputs
from distill.prompts.axes import asked_axes, set_aside, turned_record
from distill.questions import AskSettings
from distill.refine import RefinePlan, plan_for, refine_archive
from distill.unasked import shown, unasked_inputs
from distill.wavefront import run_wavefront
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Prompt

small = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))  # tests are no package
BrightTeacher = runpy.run_path(str(Path(__file__).with_name("test_wavefront.py")))["BrightTeacher"]
GenerousTeacher = runpy.run_path(str(Path(__file__).with_name("test_propagation.py")))["GenerousTeacher"]
IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
A = ClassInfo(id=1, name="a")
SHAPE = (20, 24, 28)
MIDDLE = (10, 12, 14)
ASK = AskSettings(boxes=2, flips=False, jitter=0.0, planes="axial")
AXES = ("z", "y", "x")


def ball(radius: float = 7.0) -> np.ndarray:
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return np.asarray((z - MIDDLE[0]) ** 2 + (y - MIDDLE[1]) ** 2 + (x - MIDDLE[2]) ** 2 <= radius**2)


def archive_of_a_ball(folder: Path, spacing_mm: float = 1.0, *, known: bool = True) -> tuple[Archive, CaseRecord]:
    archive = Archive.create(str(folder / "a.zarr"))
    geometry = Geometry(spacing_zyx_mm=(spacing_mm,) * 3, affine=IDENTITY, spacing_known=known)
    record = CaseRecord(id="ball", patient="p", shape_czyx=(1, *SHAPE), dtype="uint8", modality="MR", geometry=geometry, fingerprint="f")
    archive.add_case(record, np.where(ball(), 200 + np.arange(SHAPE[2]), 10 + np.arange(SHAPE[2]))[None].astype(np.uint8))
    return archive, record


def boxes(*slices: int, axis: str = "z", class_id: int = 1, source: str = "weak") -> list[Prompt]:
    planes = np.moveaxis(ball(), AXES.index(axis), 0)
    found = []
    for at in slices:
        rows, columns = np.nonzero(planes[at])
        corners = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        found.append(
            Prompt(case="ball", class_id=class_id, kind="box", axis=axis, slice=at, box_xyxy_px=corners, source=source)  # type: ignore[arg-type]
        )
    return found


def refined(
    folder: Path, prompts: list[Prompt], plan: LabelPlan, *, spacing_mm: float = 1.0, known: bool = True, dark: Sequence[int] = ()
) -> np.ndarray:
    """Label the ball with a teacher that sees what is bright, refine it, and return the pseudo-label; it sees nothing on ``dark`` slices."""
    archive, record = archive_of_a_ball(folder, spacing_mm, known=known)
    work = prepare_case(
        archive, record, prompts, classes=[info.id for info in plan.classes], intensity=IntensitySpec(), propagate=plan.ask.propagate
    )
    work.volume_czyx[0, list(dark)] = 0
    for works in by_axis([work]):
        run_wavefront(GenerousTeacher(), works, plan.ask)
    store_labels(archive, plan, work, teacher="t", inputs="i")
    refine_archive(archive, RefinePlan(classes=plan.classes, rules={1: ClassRule(smooth_mm=1.0)}))
    return archive["ball"].labels("pseudo/r1").read()


PLAN = LabelPlan(classes=(A,), ask=ASK)


@pytest.mark.parametrize("source", ["weak", "review"])
def test_two_neighbouring_slices_leave_the_rest_of_an_organ_unknown_and_not_background(tmp_path: Path, source: str) -> None:
    ids = refined(tmp_path, boxes(10, 11, source=source), PLAN)
    assert (ids[ball()] == 0).mean() < 0.01
    assert (ids[[10, 11]] == 1).any(axis=(1, 2)).all()
    assert (ids[[10, 11], 0] == 0).all(), "what was asked is known, background and all"
    assert (ids[np.r_[0:10, 12:20]] == IGNORE).all()


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param(boxes(3, 7, 11, 15, 17), id="every fourth slice of the whole organ"),
        pytest.param([Prompt(case="ball", class_id=1, kind="box3d", box_zyxzyx_px=(3, 5, 7, 18, 20, 22))], id="a 3D box"),
        pytest.param([replace(each, source="proposed/student") for each in boxes(10, 11)], id="a source that looks at the whole volume"),
    ],
)
def test_prompts_that_say_where_the_organ_ends_leave_the_rest_background(tmp_path: Path, prompts: list[Prompt]) -> None:
    ids = refined(tmp_path, prompts, PLAN)
    assert (ids[[0, 1, 19]] == 0).all()
    _, record = archive_of_a_ball(tmp_path / "other")
    assert unasked_inputs(record, prompts, [1], limit_mm=200, propagate=False) == {}, "finished labels stay as they are"


def test_an_organ_that_the_teacher_sees_end_is_followed_by_background(tmp_path: Path) -> None:
    ids = refined(tmp_path, boxes(6, 14), PLAN)
    assert (ids[[0, 1, 18, 19]] == 0).all()


def test_slices_further_than_organs_reach_are_background(tmp_path: Path) -> None:
    ids = refined(tmp_path, boxes(10, 11), replace(PLAN, unasked_mm=8.0), spacing_mm=2.0)
    assert (ids[6:10] == IGNORE).any(axis=(1, 2)).all()
    assert (ids[:6] == 0).all()


def test_without_a_spacing_all_of_the_rest_is_unknown(tmp_path: Path) -> None:
    ids = refined(tmp_path, boxes(10, 11), replace(PLAN, unasked_mm=3.0), known=False)
    assert (ids[np.r_[0:10, 12:20]] == IGNORE).all()


def test_beyond_a_slice_where_a_track_was_lost_nothing_is_known(tmp_path: Path) -> None:
    ask = replace(ASK, propagate=True, stop_area=(0.97, 1.03), end_area_share=0.0, end_agreement=0.0)
    ids = refined(tmp_path, boxes(10), replace(PLAN, ask=ask))
    assert (ids[[0, 19]] == IGNORE).all()
    assert (ids[ball()] == 0).mean() < 0.01


@pytest.mark.parametrize(
    ("slices", "dark", "propagate"),
    [
        pytest.param((9, 10, 11), range(11, 20), False, id="nothing is asked beyond"),
        pytest.param((7, 9, 11), range(11, 20), False, id="a slice is asked beyond"),
        pytest.param((9, 10, 11), range(11, 20), True, id="carried through the volume"),
    ],
)
def test_a_prompted_slice_on_which_the_teacher_draws_nothing_is_no_end(
    tmp_path: Path, slices: tuple[int, ...], dark: range, *, propagate: bool
) -> None:
    plan = replace(PLAN, ask=replace(ASK, propagate=propagate))
    ids = refined(tmp_path, boxes(*slices), plan, dark=dark)
    assert (ids[list(slices[:-1])] == 1).any(axis=(1, 2)).all()
    assert (ids[11:] == IGNORE).all(), "a person has seen the object on slice 11"
    stored = Archive.open(str(tmp_path / "a.zarr"))["ball"].labels("teacher/r1")
    assert stored.history.parameters["unasked/1"].endswith("11-19")


def test_a_small_last_prompt_is_the_end_also_where_the_teacher_draws_nothing_on_it(tmp_path: Path) -> None:
    ids = refined(tmp_path, boxes(3, 7, 11, 15, 17), PLAN, dark=range(17, 20))
    assert (ids[[17, 18, 19], 0] == 0).all()
    assert "unasked/1" not in Archive.open(str(tmp_path / "a.zarr"))["ball"].labels("teacher/r1").history.parameters


def test_what_nobody_asked_about_says_nothing_of_how_planes_agree(tmp_path: Path) -> None:
    archive, record = archive_of_a_ball(tmp_path)
    found = {}
    for limit_mm in (0.0, 200.0):
        work = prepare_case(archive, record, boxes(9, 10), classes=[1], intensity=IntensitySpec())
        run_wavefront(GenerousTeacher(), [work], ASK)
        ask_other_planes(GenerousTeacher(), [work], ASK, unasked_mm=limit_mm)
        found[limit_mm] = work.classes[1].plane_agreement or 0.0
    assert found[200.0] > found[0.0] + 0.1


def test_an_unasked_slice_says_nothing_against_its_neighbour() -> None:
    probability, asked = np.zeros((5, 6, 7), np.float32), np.zeros((5, 6, 7), bool)
    probability[2], asked[2] = 0.9, True
    rule = ClassRule(smooth_mm=1.0)
    assert smooth_probability(probability, rule, (1.0, 1.0, 1.0)).max() < 0.5
    assert np.allclose(smooth_probability(probability, rule, (1.0, 1.0, 1.0), asked)[2], 0.9)


@pytest.mark.parametrize(("slices", "text"), [pytest.param({0, 1, 2, 7}, "0-2, 7", id="several"), pytest.param(set(), "", id="none")])
def test_slices_are_told_as_people_write_them(slices: set[int], text: str) -> None:
    assert shown(slices) == text


@pytest.mark.parametrize("axis", ["y", "x"])
def test_a_class_that_was_prompted_on_other_slices_is_asked_about_these(tmp_path: Path, axis: str) -> None:
    middle = MIDDLE[AXES.index(axis)]
    ids = refined(tmp_path, boxes(*range(middle - 7, middle + 8, 2), axis=axis), PLAN)
    found = ids == 1
    assert 2 * (found & ball()).sum() / (found.sum() + ball().sum()) > 0.85
    assert (np.moveaxis(ids, AXES.index(axis), 0)[0] == 0).all()


def test_slices_across_another_axis_that_were_not_asked_are_unknown_too(tmp_path: Path) -> None:
    ids = np.moveaxis(refined(tmp_path, boxes(12, 13, axis="y"), PLAN), 1, 0)
    assert (ids[[12, 13]] == 1).any(axis=(1, 2)).all()
    assert (ids[np.r_[0:12, 14:24]] == IGNORE).all()


def test_classes_of_one_case_may_be_prompted_across_different_axes(tmp_path: Path) -> None:
    archive, _ = archive_of_a_ball(tmp_path)
    archive.catalog.add_prompts([*boxes(8, 12), *boxes(8, 12, 16, axis="y", class_id=2)])
    plan = small["plan_for"](small["write_checkpoint"](tmp_path), classes=(A, ClassInfo(id=2, name="b")), ask=replace(ASK, planes="three"))
    assert label_archive(archive, plan).done == 1
    labels = archive["ball"].labels("teacher/r1")
    assert labels.history.parameters["axis/2"] == "y"
    assert "axis/1" not in labels.history.parameters
    assert labels.scores.keys() >= {"pairwise_dice/1", "pairwise_dice/2", "plane_agreement/2"}
    assert label_archive(archive, plan).skipped == 1


def test_a_reviewers_box_does_not_set_the_prompts_of_another_axis_aside() -> None:
    weak, box = boxes(9, 10, 11, axis="y"), boxes(8, source="review")
    assert asked_axes([*weak, *box]) == {1: "y"}
    assert set_aside([*weak, *box]) == box
    assert asked_axes([*boxes(9, 10, axis="y", source="review"), *box]) == {1: "z"}, "nobody else has said anything"
    assert asked_axes([*weak, *boxes(7), *box]) == {1: "z"}


def test_prompts_across_an_axis_that_is_not_asked_are_named() -> None:
    mixed = [*boxes(8), *boxes(9, 10, 11, axis="y"), *boxes(9, 10, axis="x", class_id=2), *boxes(7, axis="y", class_id=2)]
    assert asked_axes(mixed) == {1: "z", 2: "x"}
    assert set_aside(mixed) == [*boxes(9, 10, 11, axis="y"), *boxes(7, axis="y", class_id=2)]


def test_a_turned_record_has_its_sides_in_the_order_of_the_turned_volume(tmp_path: Path) -> None:
    _, record = archive_of_a_ball(tmp_path)
    assert [turned_record(record, axis).shape_czyx[1:] for axis in ("z", "y", "x")] == [(20, 24, 28), (24, 20, 28), (28, 20, 24)]


def test_pages_of_unknown_distance_are_neither_looked_at_across_nor_smoothed_across(tmp_path: Path) -> None:
    found = {}
    for known in (True, False):
        (tmp_path / str(known)).mkdir()
        archive, record = archive_of_a_ball(tmp_path / str(known), known=known)
        prompts = boxes(3, 7, 11, 15, 17)
        work = prepare_case(archive, record, prompts, classes=[1], intensity=IntensitySpec())
        found[known] = (
            near_isotropic(work),
            plan_for(RefinePlan(classes=(A,), rules={1: ClassRule(smooth_mm=1.0)}), record).rules[1].smooth_mm,
        )
        marks = {
            planes: label_fingerprint(replace(PLAN, ask=replace(ASK, planes=planes)), record, prompts, "t") for planes in ("three", "axial")
        }
        assert bool(plane_inputs(record, AskSettings())) is not known, "labels of the wrong planes are made anew"
        assert len(set(marks.values())) == 2
    assert found == {True: (True, 1.0), False: (False, 0.0)}


def test_gold_on_slices_that_nobody_asked_about_does_not_count_against_a_mask(tmp_path: Path) -> None:
    refined(tmp_path, boxes(9, 10), PLAN)
    archive = Archive.open(str(tmp_path / "a.zarr"))
    history = LabelHistory(label_set="gold", classes=(A,), made_by="test", fingerprint="g")
    archive["ball"].write_labels(history, ball().astype(np.uint8))
    (found,) = gold_cases(archive, 1, source="teacher/r1", part=None)
    assert found.judged[9:11].all()
    assert not found.judged[:9].any()
    assert not (found.gold & ~found.judged).any()
    rule = ClassRule(smooth_mm=1.0)
    assert np.array_equal(cut_mask(found, rule)[9:11], archive["ball"].labels("pseudo/r1").read()[9:11] > 0)  # with the doubtful rim
    seen = evidence_of(found, rule)
    assert seen.dice > 0.9
    assert (seen.outer_mm, seen.inner_mm) == (0.0, 0.0)
    (mask,) = walk(archive, AuditPlan(classes=(A,))).masks
    assert mask.dice > 0.9
