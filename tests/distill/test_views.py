"""What a view does to pictures, boxes, points and masks, its way back undoes; and the engine asks every view."""

import runpy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.casework import CaseWork
from distill.intensity import Window
from distill.prompts.hints import SliceHint, box_of
from distill.prompts.resample import resampling_of
from distill.prompts.schedule import schedule_slices
from distill.questions import AskSettings
from distill.teachers.base import Decoded, Embeddings, PromptBatch
from distill.teachers.sam import SamTeacher
from distill.views import MIRRORED, PLAIN, View, shifted, views_of
from distill.wavefront import run_wavefront
from storage import fingerprint

ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]  # tests are no package
SIZE = (47, 61)
MOVING = [View(degrees=8), View(degrees=-10), View(scale=0.9), View(scale=1.1), View(degrees=5, scale=1.1, flip=True), MIRRORED]


def blob(centre_xy: tuple[float, float] = (34.0, 20.0), radii: tuple[float, float] = (9.0, 6.0)) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return ((x - centre_xy[0]) / radii[0]) ** 2 + ((y - centre_xy[1]) / radii[1]) ** 2 <= 1


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("view", MOVING, ids=str)
def test_a_mask_that_goes_into_a_view_comes_back_where_it_was(view: View) -> None:
    there = view.mask(blob().astype(np.float32))
    back, seen = view.back(torch.from_numpy(np.ascontiguousarray(there))[None] - 0.5)
    assert overlap(back[0].numpy() > 0, blob()) > 0.97
    assert (seen is None) == (view == MIRRORED)


@pytest.mark.parametrize("view", MOVING, ids=str)
def test_a_box_goes_where_its_object_goes(view: View) -> None:
    box = box_of(blob())
    seen = box_of(view.mask(blob().astype(np.float32)) > 0.5)
    assert box is not None
    assert seen is not None
    assert np.abs(view.boxes(box[None], SIZE)[0] - seen).max() < 1.2


@pytest.mark.parametrize("view", MOVING, ids=str)
def test_a_point_goes_where_its_pixel_goes(view: View) -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[18:21, 40:43] = 255
    shown = view.shown(picture)[..., 0].astype(float)
    centre = [(np.arange(side) * shown.sum(axis=axis)).sum() / shown.sum() for side, axis in ((SIZE[1], 0), (SIZE[0], 1))]
    assert np.abs(view.points(np.array([[41.0, 19.0]], np.float32), SIZE)[0] - centre).max() < 0.1


@given(st.floats(0, 60), st.floats(0, 46), st.booleans())
def test_a_point_is_a_box_without_size(x: float, y: float, flip: bool) -> None:
    view = View(degrees=7, scale=1.05, flip=flip)
    point = view.points(np.array([[x, y]]), SIZE)[0] + 0.5
    assert np.allclose(view.boxes(np.array([[x + 0.5, y + 0.5, x + 0.5, y + 0.5]]), SIZE)[0], np.tile(point, 2))


def test_what_a_view_does_not_show_is_known() -> None:
    _, seen = View(scale=1.1).back(torch.zeros(1, *SIZE))
    assert seen is not None
    assert not seen[0].any()
    assert not seen[:, -1].any()
    assert seen[3:-3, 4:-4].all()
    _, all_seen = View(scale=0.9).back(torch.zeros(1, *SIZE))
    assert all_seen is not None
    assert all_seen.all()


def test_gamma_and_shifted_windows_change_grey_levels_and_leave_places_alone() -> None:
    work, _ = ball_case("ball", 10)
    picture = work.picture(10)
    assert (View(gamma=0.8).picture(work, 10)[picture == 200] > 200).all()
    assert (View(window_shift=0.1).picture(work, 10)[picture == 200] < 200).all()
    assert np.array_equal(View(gamma=1.25).boxes(np.ones((1, 4)), SIZE), np.ones((1, 4)))
    window = Window(low=0, high=100, rule="x", others=((10, 20), (0, 1)))
    moved = shifted(window, -0.1)
    assert (moved.low, moved.high, moved.others) == (-10, 90, ((9, 19), (-0.1, 0.9)))


def test_the_plain_view_comes_first_and_each_other_changes_one_thing() -> None:
    views = views_of(flips=True, rotations=(5,), scales=(0.9, 1.1), gammas=(0.8,), window_shifts=(0.1,))
    assert views[:2] == (PLAIN, MIRRORED)
    for view in views[1:]:
        assert sum(getattr(view, each.name) != getattr(PLAIN, each.name) for each in fields(View)) == 1
    assert len(set(views)) == 7


ALL = AskSettings(boxes=2, rotations=(-8, 8), scales=(0.9, 1.1), gammas=(0.8, 1.25), window_shifts=(-0.1, 0.1), points=3, multimask=True)


class WatchedTeacher:
    """Passes everything on and notes how it was asked."""

    def __init__(self, teacher: SamTeacher) -> None:
        self.teacher = teacher
        self.encoded = 0
        self.prompts: list[PromptBatch] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.teacher, name)

    def encode(self, images: list[np.ndarray]) -> Embeddings:
        self.encoded += 1
        return self.teacher.encode(images)

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        self.prompts.append(prompts)
        return self.teacher.decode(embeddings, prompts, multimask=multimask)


def test_each_view_is_encoded_once_however_many_members_it_has(teacher: SamTeacher) -> None:
    watched = WatchedTeacher(teacher)
    work, _ = ball_case("ball", *range(6, 14))
    run_wavefront(watched, [work], ALL.__class__(**{**ALL.inputs(), "boxes": 8, "points": 0}))  # type: ignore[arg-type]
    prompted = sum(plan.distance == 0 for plan in work.classes[1].plans)
    fronts = len({plan.distance for plan in work.classes[1].plans})
    assert prompted == 8
    assert watched.encoded <= len(ALL.views) * fronts


def test_the_same_case_gets_the_same_bytes_alone_and_among_others_in_every_view(teacher: SamTeacher) -> None:
    alone, _ = ball_case("middle", 6, 10, 14)
    run_wavefront(teacher, [alone], ALL)
    among = [ball_case("aaa", 7, 11)[0], ball_case("middle", 6, 10, 14)[0], ball_case("zzz", 5, 9, 12, radius=7)[0]]
    run_wavefront(teacher, among, ALL)
    for name in ("probability", "vote", "mutual_information"):
        assert np.array_equal(getattr(alone.classes[1], name), getattr(among[1].classes[1], name))
    summary = alone.classes[1].summaries[10]
    assert summary.multimask_dice is not None
    assert 0 <= summary.multimask_dice <= 1


def answered(settings: AskSettings, teacher: SamTeacher) -> CaseWork:
    work, _ = ball_case("ball", 6, 10, 14)
    run_wavefront(teacher, [work], settings)
    return work


@pytest.mark.parametrize(
    "more", [{"rotations": (8,)}, {"scales": (0.9,)}, {"gammas": (0.8,)}, {"window_shifts": (0.1,)}, {"points": 2}], ids=str
)
def test_every_kind_of_view_has_a_say(more: dict[str, object], teacher: SamTeacher) -> None:
    usual = answered(AskSettings(boxes=2), teacher)
    asked = answered(AskSettings(boxes=2, **more), teacher)  # type: ignore[arg-type]
    assert not np.array_equal(usual.classes[1].probability, asked.classes[1].probability)


def test_candidates_are_a_score_and_change_no_label(teacher: SamTeacher) -> None:
    usual, asked = answered(AskSettings(boxes=2), teacher), answered(AskSettings(boxes=2, multimask=True), teacher)
    assert np.array_equal(usual.classes[1].probability, asked.classes[1].probability)


def test_a_fingerprint_does_not_know_what_was_not_asked_for() -> None:
    first = {"boxes": 5, "jitter": 0.05, "flips": True, "planes": "three", "box_margin": 0.1, "end_area_share": 0.3, "end_agreement": 0.6}
    assert fingerprint(ask=AskSettings().inputs()) == fingerprint(ask=first | {"seed": 0})
    assert fingerprint(ask=AskSettings(gammas=(0.8,)).inputs()) != fingerprint(ask=AskSettings().inputs())


def test_members_draw_points_from_those_given_and_keep_the_negative_ones() -> None:
    hint = SliceHint(points=np.array([[1, 2], [5, 6], [9, 9]], np.float32), point_labels=np.array([1, 1, 0], np.float32))
    resampling = resampling_of(hint, blob().astype(np.float32), 4)
    assert resampling is not None
    drawn = resampling.draw(6, np.random.default_rng(0))
    assert drawn.shape == (6, 5, 2)
    assert resampling.labels.tolist() == [1, 1, 1, 1, 0]
    assert (drawn[:, 4] == (9, 9)).all()
    assert {tuple(each) for each in drawn[:, :4].reshape(-1, 2).tolist()} == {(1, 2), (5, 6)}


def test_without_given_points_members_draw_from_well_inside_the_rough_mask() -> None:
    resampling = resampling_of(None, blob().astype(np.float32), 3)
    assert resampling is not None
    drawn = resampling.draw(8, np.random.default_rng(0)).astype(int)
    assert all(blob()[y, x] for x, y in drawn.reshape(-1, 2))
    assert all(len({tuple(point) for point in member}) == 3 for member in drawn.tolist())
    assert resampling_of(SliceHint(box=np.ones(4)), None, 3) is None
    assert resampling_of(None, np.zeros(SIZE, np.float32), 3) is None


def test_points_alone_are_drawn_anew_for_each_member(teacher: SamTeacher) -> None:
    work, _ = ball_case("ball", 10)
    hint = SliceHint(points=np.array([[15, 12], [13, 12], [17, 12]], np.float32), point_labels=np.array([1, 1, 0], np.float32))
    work.classes[1].plans = schedule_slices({10: hint}, 20, reach=0)
    watched = WatchedTeacher(teacher)
    run_wavefront(watched, [work], AskSettings(boxes=4, points=1, flips=False))
    asked = watched.prompts[-1].points_xy_px
    assert asked is not None
    assert asked[:4, 0].tolist() != [asked[0, 0].tolist()] * 4
    assert (asked[:4, 1] == (17, 12)).all()
