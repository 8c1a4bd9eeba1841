"""STAPLE finds the hidden mask and how good each rater was, and says nothing where nobody drew anything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distill.quality import dice
from distill.staple import staple, widened_box

SHAPE = (9, 24, 31)


def truth() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[2:7, 6:18, 8:24] = True
    return mask


def raters(quality: list[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Return masks of independent raters of these sensitivities and specificities, who differ near the object only."""
    rng = np.random.default_rng(seed)
    hidden, near = truth(), np.zeros(SHAPE, bool)
    near[1:8, 4:20, 6:26] = True
    return np.stack([np.where(hidden, rng.random(SHAPE) < yes, near & (rng.random(SHAPE) > no)) for yes, no in quality])


def test_three_independent_raters_together_are_better_than_the_best_of_them() -> None:
    votes = raters([(0.95, 0.9), (0.9, 0.95), (0.85, 0.9)])
    fused = staple(votes).posterior > 0.5
    assert dice(fused, truth()) > max(dice(vote, truth()) for vote in votes) + 0.02


def test_a_rater_who_sees_less_is_believed_less() -> None:
    found = staple(raters([(0.95, 0.97), (0.93, 0.97), (0.60, 0.97)]))
    assert found.sensitivity == pytest.approx((0.95, 0.93, 0.60), abs=0.04)


def test_a_rater_who_draws_too_much_is_known_by_specificity() -> None:
    found = staple(raters([(0.97, 0.97), (0.97, 0.97), (0.97, 0.6)]))
    assert min(found.specificity[:2]) > found.specificity[2] + 0.1


def test_one_careful_rater_outvotes_two_careless_ones_where_only_voting_would_not() -> None:
    votes = raters([(0.98, 0.98), (0.6, 0.75), (0.6, 0.75)])
    assert dice(staple(votes).posterior > 0.5, truth()) > dice(votes.sum(axis=0) >= 2, truth()) + 0.02


def test_where_nobody_draws_anything_nothing_is_there_and_nobody_is_blamed() -> None:
    found = staple(np.zeros((3, *SHAPE), bool))
    assert not found.posterior.any()
    assert found.sensitivity == found.specificity == (1.0, 1.0, 1.0)


def test_raters_who_agree_are_taken_at_their_word() -> None:
    found = staple(np.stack([truth()] * 3))
    assert ((found.posterior > 0.5) == truth()).all()
    assert min(found.sensitivity + found.specificity) > 0.999


def test_what_one_of_three_draws_alone_is_not_believed() -> None:
    votes = np.stack([truth(), truth(), truth()])
    votes[2, 8, 1:4, 1:4] = True
    assert not (staple(votes).posterior > 0.5)[8].any()


def test_where_two_contradict_each_other_what_was_likelier_before_is_believed_more() -> None:
    votes = np.stack([truth(), truth()])
    mine, yours = (slice(2, 7), slice(6, 18), slice(24, 25)), (slice(2, 7), slice(6, 18), slice(7, 8))
    votes[0][mine] = votes[1][yours] = True
    prior = np.where(truth(), 250, 5).astype(np.uint8)
    prior[mine], prior[yours] = 200, 60
    posterior = staple(votes, prior).posterior
    assert posterior[mine].min() > posterior[yours].max() + 0.1


def test_nothing_outside_the_widened_box_is_believed() -> None:
    found = staple(np.stack([truth(), truth()]))
    outside = np.ones(SHAPE, bool)
    outside[widened_box(truth())] = False
    assert outside.any()
    assert not found.posterior[outside].any()


def test_a_box_is_widened_by_a_tenth_and_two_voxels_at_least_and_stays_inside() -> None:
    mask = np.zeros((6, 100, 50), bool)
    mask[1:5, 10:70, 3:23] = True
    assert widened_box(mask) == (slice(0, 6), slice(4, 76), slice(1, 25))


votes_of_anyone = arrays.arrays(bool, st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)))


@settings(max_examples=60)
@given(votes_of_anyone, st.randoms(use_true_random=False))
def test_the_order_of_raters_does_not_matter(votes: np.ndarray, random: object) -> None:
    order = list(range(len(votes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    there, back = staple(votes), staple(votes[order])
    np.testing.assert_allclose(there.posterior, back.posterior, atol=1e-6)
    np.testing.assert_allclose([there.sensitivity[n] for n in order], back.sensitivity, atol=1e-6)


@settings(max_examples=60)
@given(votes_of_anyone)
def test_every_posterior_is_a_probability_and_nobody_is_perfect_or_hopeless_beyond_reason(votes: np.ndarray) -> None:
    found = staple(votes)
    assert np.isfinite(found.posterior).all()
    assert ((found.posterior >= 0) & (found.posterior <= 1)).all()
    assert all(0 <= each <= 1 for each in found.sensitivity + found.specificity)
