"""Metrics of tubes and of lesions: what they see that Dice does not, and what they say of nothing."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label
from scipy.optimize import linear_sum_assignment

from distill.lesions import decade_words, score_lesions
from distill.quality import dice
from distill.tubes import centre_line, cl_dice

MASKS = arrays(bool, (4, 7, 6), elements=st.booleans())
NOTHING = np.zeros((4, 7, 6), bool)


def tube() -> np.ndarray:
    mask = np.zeros((9, 11, 40), bool)
    mask[2:7, 3:8, 2:38] = True
    return mask


@given(MASKS, MASKS)
def test_cl_dice_is_a_symmetric_share(a: np.ndarray, b: np.ndarray) -> None:
    value = cl_dice(a, b)
    assert value == cl_dice(b, a) or (math.isnan(value) and not (a.any() or b.any()))
    assert math.isnan(value) or 0 <= value <= 1


@given(MASKS)
def test_a_mask_is_its_own_tube_and_its_own_lesions(mask: np.ndarray) -> None:
    found = score_lesions(mask, mask)
    assert found.false_lesions == 0
    if mask.any():
        assert cl_dice(mask, mask) == 1
        assert (found.lesion_f1, found.lesion_sensitivity) == (1, 1)


@given(MASKS, MASKS)
def test_lesion_f1_is_a_symmetric_share_and_misses_and_false_alarms_change_places(a: np.ndarray, b: np.ndarray) -> None:
    there, back = score_lesions(a, b), score_lesions(b, a)
    assert there.lesion_f1 == back.lesion_f1 or not (a.any() or b.any())
    assert math.isnan(there.lesion_f1) or 0 <= there.lesion_f1 <= 1
    if b.any():
        lesions = score_lesions(NOTHING, b)
        assert lesions.lesion_sensitivity == 0
        assert round((1 - there.lesion_sensitivity) * _count(b)) == back.false_lesions


def _count(mask: np.ndarray) -> int:
    return int(score_lesions(mask, np.zeros_like(mask)).false_lesions)


@pytest.mark.parametrize(("drawn", "gold"), [(False, True), (True, False)], ids=["nothing was drawn", "there is nothing to draw"])
def test_one_empty_mask_is_a_failure_and_two_are_no_figure(drawn: bool, gold: bool) -> None:
    full = tube()
    pair = tuple(full if each else np.zeros_like(full) for each in (drawn, gold))
    assert cl_dice(*pair) == 0
    assert score_lesions(*pair).lesion_f1 == 0
    assert math.isnan(score_lesions(*pair).lesion_sensitivity) == (not gold)
    nothing = np.zeros_like(full)
    assert math.isnan(cl_dice(nothing, nothing))
    assert math.isnan(score_lesions(nothing, nothing).lesion_f1)


def test_a_thinner_tube_keeps_its_cl_dice_and_a_gap_in_it_costs_some_of_it() -> None:
    full = tube()
    thin = np.zeros_like(full)
    thin[3:6, 4:7, 2:38] = True
    gap = full.copy()
    gap[:, :, 15:25] = False
    assert dice(thin, full) < 0.6
    assert cl_dice(thin, full) > 0.95
    assert cl_dice(gap, full) < 0.9


def test_a_centre_line_is_thin_and_a_flat_volume_has_one_too() -> None:
    assert centre_line(tube()).sum() < 60
    flat = tube()[4:5]
    assert centre_line(flat).shape == flat.shape
    assert cl_dice(flat, flat) == 1


def test_excluded_voxels_are_in_neither_mask() -> None:
    full, half = tube(), tube()
    half[:, :, 20:] = False
    exclude = np.zeros_like(full)
    exclude[:, :, 20:] = True
    assert cl_dice(half, full, exclude) == 1
    assert score_lesions(half, full, exclude).lesion_f1 == 1


def test_one_blob_over_two_lesions_finds_one_and_a_piece_elsewhere_is_a_false_alarm() -> None:
    gold = np.zeros((1, 12, 30), bool)
    gold[0, 3:7, 3:9] = gold[0, 3:7, 11:15] = True
    blob = np.zeros_like(gold)
    blob[0, 3:7, 3:15] = True
    blob[0, 0:2, 25:28] = True
    found = score_lesions(blob, gold)
    assert (found.lesion_sensitivity, found.false_lesions) == (0.5, 1)
    assert found.lesion_f1 == pytest.approx(0.5)


def test_a_touch_is_no_find_and_diagonal_neighbours_are_one_lesion() -> None:
    gold = np.zeros((5, 20, 20), bool)
    gold[1:4, 2:12, 2:12] = True
    touch = np.zeros_like(gold)
    touch[2, 11:18, 11:18] = True
    assert score_lesions(touch, gold).lesion_f1 == 0
    assert score_lesions(touch, gold, least_iou=1e-6).lesion_f1 == 1
    diagonal = np.zeros((3, 4, 5), bool)
    diagonal[0, 1, 1] = diagonal[1, 2, 2] = True
    assert _count(diagonal) == 1


def _by_dense_assignment(predicted: np.ndarray, gold: np.ndarray, least_iou: float) -> int:
    """Count hits by the dense table of all pieces and all lesions."""
    pieces, lesions = (label(mask, np.ones((3, 3, 3)))[0] for mask in (predicted, gold))
    worth = np.zeros((pieces.max(), lesions.max()))
    for piece in range(pieces.max()):
        for lesion in range(lesions.max()):
            one, other = pieces == piece + 1, lesions == lesion + 1
            iou = (one & other).sum() / (one | other).sum()
            worth[piece, lesion] = 1 + iou / 1000 if iou >= least_iou else 0
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return int((worth[rows, columns] > 0).sum())


@given(MASKS, MASKS, st.sampled_from([0.01, 0.1, 0.5]))
def test_pairs_that_meet_are_matched_as_in_the_table_of_all_pairs(a: np.ndarray, b: np.ndarray, least_iou: float) -> None:
    if a.any() and b.any():
        found = score_lesions(a, b, least_iou=least_iou)
        assert _count(a) - found.false_lesions == _by_dense_assignment(a, b, least_iou)


def test_a_noisy_mask_of_ten_thousand_specks_takes_no_table_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    sparse = (slice(None, None, 2),) * 3
    predicted, gold = (np.zeros((48, 64, 80), bool) for _ in range(2))
    for mask in (predicted, gold):
        mask[sparse] = rng.random(mask[sparse].shape) < 0.4
    tracemalloc.start()
    found = score_lesions(predicted, gold)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(predicted.sum(), gold.sum()) > 10_000
    assert found.lesion_sensitivity == pytest.approx((predicted & gold).sum() / gold.sum())
    assert peak < 64 * 2**20, "a table of 12,000 by 12,000 numbers would take more than a gigabyte"


def test_lesions_are_counted_by_the_decade_of_their_volume() -> None:
    gold = np.zeros((4, 20, 40), bool)
    gold[0, 0, 0] = True  # 0.5 mm3
    gold[1:3, 4:9, 4:6] = True  # 20 voxels: 10 mm3, the beginning of a decade
    gold[1:3, 4:14, 20:30] = True  # 200 voxels: 100 mm3
    drawn = np.zeros_like(gold)
    drawn[1:3, 4:14, 20:30] = True
    found = score_lesions(drawn, gold, voxel_mm3=0.5)
    assert found.by_decade == {-1: (1, 0), 1: (1, 0), 2: (1, 1)}
    assert [decade_words(each, "mm3") for each in found.by_decade] == ["0.1 to 1 mm3", "10 to 100 mm3", "100 to 1,000 mm3"]
    assert score_lesions(drawn, np.zeros_like(gold)).by_decade == {}
