"""Ensembles: agreement, doubt and jitter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from distill.uncertainty import LN2, binary_entropy, clip_box, jitter_boxes, pairwise_dice, seed_for, summarise


def test_members_that_contradict_each_other_with_certainty_are_one_bit_uncertain() -> None:
    summary = summarise(np.stack([np.full((3, 5), 30.0), np.full((3, 5), -30.0)]))
    assert np.allclose(binary_entropy(summary.probability), LN2)
    assert summary.pairwise_dice == 0.0
    assert (summary.mutual_information == 255).all()
    assert (summary.vote == 128).all()


def test_members_that_share_one_doubt_do_not_contradict_each_other() -> None:
    summary = summarise(np.full((4, 3, 5), 0.4))
    assert binary_entropy(summary.probability).min() > 0.9 * LN2
    assert (summary.mutual_information == 0).all()
    assert (summary.vote == 255).all()


@given(npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(2), st.just(3)), elements=st.floats(-60, 60, width=32)))
def test_mutual_information_is_the_entropy_of_the_mean_less_the_mean_of_the_entropies(logits: np.ndarray) -> None:
    summary = summarise(logits)
    each = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = binary_entropy(each.mean(axis=0)) - binary_entropy(each).mean(axis=0)
    assert np.abs(summary.mutual_information / 255 - expected / LN2).max() < 3e-3
    assert (summary.vote == np.rint(255 * (logits > 0).mean(axis=0))).all()


def test_a_summary_of_a_region_says_nothing_elsewhere() -> None:
    region = slice(1, 3), slice(2, 6)
    whole = summarise(np.full((3, 2, 4), 9.0)).placed(region, (5, 7))
    assert whole.probability.shape == whole.vote.shape == whole.mutual_information.shape == (5, 7)
    assert (whole.probability > 0.5).sum() == (whole.vote > 0).sum() == whole.area_px == 8


def test_masks_that_are_all_empty_agree_and_are_perfectly_stable_in_no_nan_way() -> None:
    summary = summarise(np.full((4, 3, 5), -20.0))
    assert summary.pairwise_dice == 1.0
    assert summary.stability == 0.0
    assert summary.area_px == 0


@given(npst.arrays(bool, st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 7))), st.randoms())
def test_pairwise_dice_is_the_mean_over_pairs_and_ignores_the_order_of_members(masks: np.ndarray, random: object) -> None:
    order = np.random.default_rng(abs(hash(repr(random))) % 1000).permutation(len(masks))
    naive = [
        1.0 if a.sum() + b.sum() == 0 else 2 * (a & b).sum() / (a.sum() + b.sum()) for n, a in enumerate(masks) for b in masks[n + 1 :]
    ]
    assert pairwise_dice(masks) == pytest.approx(np.mean(naive), abs=1e-6)
    assert pairwise_dice(masks[order]) == pytest.approx(pairwise_dice(masks), abs=1e-6)


def test_the_first_jittered_box_is_the_given_one_and_all_stay_inside() -> None:
    box = np.array([3.0, 4.0, 30.0, 24.0])
    boxes = jitter_boxes(box, 40, 0.5, (25, 31), np.random.default_rng(0))
    assert boxes[0].tolist() == box.tolist()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 31).all()
    assert (boxes[:, 3] <= 25).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_box_that_lies_outside_or_is_inverted_still_encloses_something() -> None:
    for box in ([50, 50, 60, 60], [9, 9, 2, 3], [5, 5, 5, 5]):
        clipped = clip_box(np.array(box, float), (20, 30))
        assert (clipped[2:] > clipped[:2]).all()


def test_jitter_depends_on_what_is_asked_and_not_on_when() -> None:
    first = seed_for("case", 1, 5, 0).normal(size=3)
    assert (first == seed_for("case", 1, 5, 0).normal(size=3)).all()
    assert (first != seed_for("case", 1, 6, 0).normal(size=3)).all()
