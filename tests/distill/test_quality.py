"""Metrics: agreement with MONAI's definitions, conventions for empty masks, and the statistics around them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import quality
from storage import case as records

SPACING = (2.5, 0.8, 1.1)
SHAPE = (7, 11, 13)


def blobs(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping ellipsoids with ragged edges."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))

    def one() -> np.ndarray:
        centre = rng.uniform(-0.3, 0.3, len(shape)).reshape(-1, *[1] * len(shape))
        return np.asarray(((grid - centre) ** 2).sum(0) + rng.normal(0, 0.1, shape) < 0.4)

    return one(), one()


@pytest.mark.parametrize("seed", range(6))
def test_surface_metrics_equal_those_of_monai(seed: int) -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    a, b = blobs(seed)
    left, right = torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]
    distance = compute_hausdorff_distance(left, right, include_background=True, percentile=95, spacing=list(SPACING))
    share = compute_surface_dice(left, right, [1.0], include_background=True, spacing=list(SPACING))
    assert quality.hd95(a, b, SPACING) == pytest.approx(float(distance), abs=1e-6)
    assert quality.nsd(a, b, SPACING, 1.0) == pytest.approx(float(share), abs=1e-6)


def test_an_object_that_touches_the_image_border_has_its_surface_there() -> None:
    full = np.ones((3, 4, 5), bool)
    inner = np.zeros_like(full)
    inner[1, 1:3, 1:4] = True
    assert np.array_equal(quality.surface(full), ~inner)


def test_two_empty_masks_are_not_a_number_and_are_counted_as_excluded() -> None:
    empty = np.zeros(SHAPE, bool)
    scores = quality.score_mask(empty, empty, SPACING)
    assert all(math.isnan(getattr(scores, name)) for name in quality.MaskScores.__slots__)
    interval = quality.patient_interval([0.5, float("nan"), 0.7], ["a", "b", "c"])
    assert (interval.patients, interval.excluded) == (2, 1)
    assert interval.mean == pytest.approx(0.6)


@pytest.mark.parametrize("missing", ["predicted", "gold"], ids=["nothing was predicted", "nothing was there"])
def test_one_empty_mask_scores_zero_and_the_diagonal(missing: str) -> None:
    empty, full = np.zeros(SHAPE, bool), blobs(0)[0]
    pair = (empty, full) if missing == "predicted" else (full, empty)
    scores = quality.score_mask(*pair, SPACING)
    assert (scores.dice, scores.jaccard, scores.nsd) == (0, 0, 0)
    assert scores.hd95_mm == pytest.approx(math.sqrt((7 * 2.5) ** 2 + (11 * 0.8) ** 2 + (13 * 1.1) ** 2))


def test_a_mask_against_itself_is_perfect() -> None:
    mask = blobs(3)[0]
    assert quality.score_mask(mask, mask, SPACING) == quality.MaskScores(dice=1, jaccard=1, nsd=1, hd95_mm=0, volume_bias=0)


def test_volume_bias_is_positive_for_too_much() -> None:
    gold = np.zeros((2, 3, 10), bool)
    gold[..., :5] = True
    predicted = np.zeros_like(gold)
    predicted[..., :6] = True
    assert quality.volume_bias(predicted, gold) == pytest.approx(0.2)


def test_excluded_voxels_change_nothing() -> None:
    a, b = blobs(1)
    exclude = a ^ b
    assert quality.dice(a, b, exclude) == 1
    assert quality.hd95(a, b, SPACING, exclude) == 0
    assert quality.jaccard(a, b, exclude) == 1


def test_masks_on_different_grids_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        quality.dice(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


def test_dice_of_many_classes_from_one_histogram_equals_one_by_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, SHAPE).astype(np.uint8), rng.integers(0, 4, SHAPE).astype(np.uint8)
    together = quality.dice_per_class(a, b, [1, 2, 3])
    assert together == pytest.approx({k: quality.dice(a == k, b == k) for k in (1, 2, 3)})


def test_ignored_voxels_of_either_map_are_left_out_of_the_histogram_dice() -> None:
    a = np.array([[1, 1, 0, 2]], np.uint8)
    b = np.array([[1, records.IGNORE, 0, 1]], np.uint8)
    assert quality.dice_per_class(a, b, [1])[1] == pytest.approx(2 / 3)
    assert quality.dice_per_class(a, b, [1], skip_ignored=False)[1] == pytest.approx(2 / 4)
    assert math.isnan(quality.dice_per_class(a, b, [7])[7])


def test_two_scans_of_one_patient_are_one_witness() -> None:
    interval = quality.patient_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert interval.mean == 0.5
    assert interval.patients == 2


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values = rng.normal(0.8, 0.1, 30).tolist()
        interval = quality.patient_interval(values, [str(n) for n in range(30)], draws=400)
        hits += interval.low <= 0.8 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_paired_interval_sees_a_small_steady_gain_that_two_single_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0.7, 0.2, 25)
    after = before + 0.02 + rng.normal(0, 0.01, 25)
    patients = [str(n) for n in range(25)]
    gain = quality.paired_interval(after.tolist(), before.tolist(), patients)
    assert 0 < gain.low < 0.02 < gain.high
    assert quality.patient_interval(after.tolist(), patients).low < quality.patient_interval(before.tolist(), patients).high


def test_aurc_matches_the_pinned_convention() -> None:
    confidence, risk = [0.9, 0.4, 0.8, 0.1], [0.1, 0.5, 0.2, 0.9]
    assert quality.aurc(confidence, risk) == pytest.approx(0.23542, abs=1e-5)
    assert quality.normalised_aurc(confidence, risk) == pytest.approx(1)


def test_spearman_ignores_missing_pairs_and_is_undefined_for_a_constant() -> None:
    assert quality.spearman([1, 2, 3, float("nan")], [10, 20, 40, 5]) == pytest.approx(1)
    assert quality.spearman([3, 1, 2], [1, 3, 2]) == pytest.approx(-1)
    assert math.isnan(quality.spearman([1, 1, 1], [1, 2, 3]))


def test_error_transfer_tells_correction_imitation_and_new_errors_apart() -> None:
    gold = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    teacher = np.array([0, 0, 1, 0, 0, 0, 0, 1])
    student = np.array([1, 0, 1, 1, 0, 0, 0, 2])
    transfer = quality.error_transfer(teacher, student, gold)
    assert transfer.correction == pytest.approx(1 / 3)
    assert transfer.imitation == pytest.approx(1 / 3)
    assert transfer.new == pytest.approx(1 / 5)


def test_a_probability_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    probability = np.repeat([0.25, 0.75], 400)
    truth = np.tile([True, False, False, False], 100)
    truth = np.concatenate([truth, ~truth])
    assert quality.expected_calibration_error(probability, truth) == pytest.approx(0, abs=1e-12)
    assert quality.brier(probability, truth) == pytest.approx(0.1875)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_overlap_and_surface_metrics_do_not_care_which_mask_comes_first(seed: int) -> None:
    a, b = blobs(seed, (5, 6, 9))
    assert quality.dice(a, b) == pytest.approx(quality.dice(b, a), nan_ok=True)
    assert quality.nsd(a, b, SPACING) == pytest.approx(quality.nsd(b, a, SPACING), nan_ok=True)
    assert quality.hd95(a, b, SPACING) == pytest.approx(quality.hd95(b, a, SPACING), nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_metrics_do_not_care_in_which_order_the_axes_are_stored(seed: int) -> None:
    a, b = blobs(seed, (5, 6, 9))
    turned = quality.score_mask(a.transpose(2, 0, 1), b.transpose(2, 0, 1), (SPACING[2], SPACING[0], SPACING[1]))
    straight = quality.score_mask(a, b, SPACING)
    for name in quality.MaskScores.__slots__:
        assert getattr(turned, name) == pytest.approx(getattr(straight, name), nan_ok=True), name


def test_summaries_carry_every_metric_with_its_interval() -> None:
    scores = {str(n): quality.score_mask(*blobs(n), SPACING) for n in range(4)}
    summary = quality.summarise(scores, {str(n): f"patient{n}" for n in range(4)})
    assert set(summary) == set(quality.MaskScores.__slots__)
    assert summary["dice"].low <= summary["dice"].mean <= summary["dice"].high


def test_a_score_that_is_the_same_for_all_ranks_nothing() -> None:
    assert np.isnan(quality.normalised_aurc([0.8, 0.8, 0.8], [0.1, 0.5, 0.2]))
