"""Masks of everything are segment-anything's own, whatever the grid, the crops and the filters."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_anything import SamAutomaticMaskGenerator

from distill import load_teacher
from distill.automatic import (
    Candidate,
    GridSettings,
    crop_boxes,
    find_objects,
    find_objects_in,
    point_grid,
    stability_scores,
    without_small_regions,
)
from distill.errors import PromptError
from distill.prompts.everything_options import GridOptions
from distill.prompts.nameless import masks_by_slice
from distill.prompts.sources import Subject
from distill.teachers.base import Embeddings, Promising, PromptBatch
from distill.teachers.sam import SamTeacher

ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]  # tests are no package
LENIENT = GridSettings(points_per_side=6, least_predicted_iou=0.3, least_stability=0.5)


@pytest.fixture(scope="module")
def bundled() -> SamTeacher:
    """The teacher that ships; its masks are cut where its card says, which the reference is told."""
    teacher = load_teacher("bundled", device="cpu")
    teacher.sam.mask_threshold = -teacher.profile.logit_shift
    return teacher


def blobs(height: int = 70, width: int = 96) -> np.ndarray:
    """Return bright discs on a noisy ground, ``(H, W, 3)`` uint8."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    picture = rng.normal(60, 6, (height, width))
    for y, x, radius in ((20, 22, 11), (46, 70, 14), (52, 20, 7), (15, 75, 6)):
        picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] += 110
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def matched(theirs: list[dict[str, Any]], ours: list[Candidate]) -> float:
    """Share of their masks that one of ours equals to an IoU of 0.99."""
    return float(np.mean([max(iou(each["segmentation"], mine.mask) for mine in ours) >= 0.99 for each in theirs]))


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        pytest.param(LENIENT, {}, id="one grid"),
        pytest.param(
            replace(LENIENT, crop_layers=1, crop_points_divisor=2), {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}, id="crops"
        ),
        pytest.param(replace(LENIENT, least_region_px=60), {"min_mask_region_area": 60}, id="without specks"),
        pytest.param(replace(LENIENT, points_per_call=7), {"points_per_batch": 7}, id="odd batches"),
    ],
)
def test_masks_of_everything_equal_segment_anythings_generator(
    bundled: SamTeacher, settings: GridSettings, reference: dict[str, Any]
) -> None:
    generator = SamAutomaticMaskGenerator(
        bundled.sam,
        points_per_side=settings.points_per_side,
        pred_iou_thresh=settings.least_predicted_iou,
        stability_score_thresh=settings.least_stability,
        **reference,
    )
    theirs, ours = generator.generate(blobs()), find_objects(bundled, blobs(), settings)
    assert len(theirs) >= 4
    assert len(ours) == len(theirs)
    assert matched(theirs, ours) >= 0.99
    first, same = theirs[0], ours[0]
    assert same.predicted_iou == pytest.approx(first["predicted_iou"], abs=1e-4)
    assert same.stability == pytest.approx(first["stability_score"], abs=1e-4)
    assert same.area_px == first["area"]
    assert list(same.point_xy_px) == pytest.approx(first["point_coords"][0])


def test_a_candidate_says_where_it_is(bundled: SamTeacher) -> None:
    for found in find_objects(bundled, blobs(), LENIENT):
        x0, y0, x1, y1 = found.box_xyxy_px
        assert found.area_px == found.mask[y0:y1, x0:x1].sum() == found.mask.sum()


def test_a_picture_on_which_nothing_passes_gives_no_candidates(bundled: SamTeacher) -> None:
    assert find_objects(bundled, blobs(), replace(LENIENT, least_predicted_iou=2.0)) == []
    assert find_objects(bundled, blobs(), replace(LENIENT, least_predicted_iou=2.0, crop_layers=1, least_region_px=9)) == []


def test_a_teacher_that_never_learnt_points_is_refused(bundled: SamTeacher) -> None:
    class BoxesOnly:
        profile = replace(bundled.profile, name="medsam", prompts=("box",))

    with pytest.raises(PromptError, match="'medsam' was not trained with points"):
        find_objects(BoxesOnly(), blobs(), LENIENT)  # type: ignore[arg-type]


def test_a_grid_without_points_is_refused() -> None:
    with pytest.raises(PromptError, match="at least 1"):
        GridSettings(points_per_side=0)


def test_grid_points_are_symmetric_and_inside() -> None:
    grid = point_grid(4)
    assert grid.shape == (16, 2)
    assert np.allclose(grid + grid[::-1], 1.0)
    assert grid[1, 0] > grid[0, 0]
    assert grid[1, 1] == grid[0, 1]


def test_crops_cover_the_picture() -> None:
    covered = np.zeros((61, 83), int)
    crops = crop_boxes(covered.shape, 2, 512 / 1500)
    for (x0, y0, x1, y1), layer in crops:
        if layer == 2:
            covered[y0:y1, x0:x1] += 1
    assert [layer for _, layer in crops].count(2) == 16
    assert covered.min() >= 1


def test_the_stability_of_an_empty_mask_is_zero_and_of_a_certain_one_is_one() -> None:
    empty, certain = np.full((5, 7), -9.0), np.where(np.arange(7) > 3, 9.0, -9.0) * np.ones((5, 1))
    assert stability_scores(np.stack([empty, certain]), 1.0).tolist() == [0.0, 1.0]


def test_small_islands_and_holes_go_but_the_last_island_stays() -> None:
    mask = np.zeros((12, 15), bool)
    mask[2:10, 2:10] = True
    mask[5, 5] = False
    mask[0, 14] = True
    cleaned = without_small_regions(mask, 4)
    assert cleaned[5, 5]
    assert not cleaned[0, 14]
    lone = np.zeros((12, 15), bool)
    lone[3, 3] = True
    assert without_small_regions(lone, 4).sum() == 1


def test_a_grid_that_the_divisor_would_empty_keeps_one_point(teacher: SamTeacher) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    settings = GridSettings(points_per_side=2, crop_layers=2, crop_points_divisor=2, least_predicted_iou=5)
    assert find_objects(teacher, image, settings) == []


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (1, 9), (3, 2)])
def test_crops_of_a_picture_of_a_few_pixels_are_never_empty(size: tuple[int, int]) -> None:
    boxes = crop_boxes(size, 3, 512 / 1500)
    assert all(0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0] for (x0, y0, x1, y1), _ in boxes)


class Watched:
    """Passes everything on and notes how much it was asked at once."""

    def __init__(self, teacher: SamTeacher) -> None:
        self.teacher = teacher
        self.pictures: list[int] = []
        self.points: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def encode(self, images: list[np.ndarray]) -> Embeddings:
        self.pictures.append(len(images))
        return self.teacher.encode(images)

    def decode_promising(self, embeddings: Embeddings, prompts: PromptBatch, least_iou: float) -> Promising:
        self.points.append((len(prompts), len(np.unique(prompts.image_index))))
        return self.teacher.decode_promising(embeddings, prompts, least_iou)


def same(one: list[Candidate], other: list[Candidate]) -> bool:
    """Whether two pictures' masks and all that is known of them are the same to the last bit."""
    told = [[(each.predicted_iou, each.stability, each.point_xy_px, each.crop_xyxy_px) for each in found] for found in (one, other)]
    return told[0] == told[1] and all(np.array_equal(a.mask, b.mask) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("crops", [0, 1])
def test_a_picture_has_the_same_masks_alone_and_among_others_of_other_sizes(bundled: SamTeacher, crops: int) -> None:
    settings = replace(LENIENT, crop_layers=crops)
    images = [blobs(), blobs(60, 60), blobs(96, 70)][: 3 - crops]
    together = find_objects_in(bundled, images, settings)
    assert min(map(len, together)) >= 4
    for image, found in zip(images, together, strict=True):
        assert same(found, find_objects(bundled, image, settings))


def test_crops_and_pictures_share_calls_as_large_as_the_teacher_takes(bundled: SamTeacher) -> None:
    teacher = Watched(bundled)
    find_objects_in(teacher, [blobs()] * 3, replace(LENIENT, crop_layers=1))  # type: ignore[arg-type]
    assert teacher.pictures == [8, 7]
    assert [points for points, _ in teacher.points] == [64] * 9  # 8 and 7 grids of 36 points
    assert max(pictures for _, pictures in teacher.points) >= 3


def test_slices_of_a_case_share_calls_and_blank_ones_are_not_asked(bundled: SamTeacher) -> None:
    teacher = Watched(bundled)
    work, _ = ball_case("ball", 10, radius=5.0)
    subject = Subject(record=work.record, volume_czyx=work.volume_czyx, window=work.window, classes=())
    found = dict(masks_by_slice(teacher, subject, GridOptions(points_per_side=4)))  # type: ignore[arg-type]
    assert sorted(found) == list(range(20))
    shown = [z for z in range(20) if subject.picture(z).any()]
    assert teacher.pictures == [sum(z < 8 for z in shown), sum(8 <= z < 16 for z in shown)]
    assert len(teacher.points) == 3  # 16 points of each slice, 64 to a call
    assert not any(found[z] for z in found if z not in shown)
