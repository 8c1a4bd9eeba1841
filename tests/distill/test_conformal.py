"""Guarantees: how many patients they take, what they say, and that they hold where patients are exchangeable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.conformal import ASSUMPTIONS, Guarantee, conformal_quantile, control_risk, means_by_patient, monotonised, needed_patients
from distill.errors import CalibrationError
from distill.levels import LevelCounts
from distill.risk_control import mask_guarantee, missed_guarantee, voxel_guarantee

SHARES = st.floats(0, 1, width=32)
TABLES = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=SHARES)


def names(count: int) -> list[str]:
    return [f"p{n:03}" for n in range(count)]


def counts(wrong: int, *, at: int, right: int = 100, missed: int = 0) -> LevelCounts:
    """``right`` voxels of a certain object and of certain background, and ``wrong`` background voxels that were drawn at level ``at``."""
    table = np.zeros((2, 256), np.int64)
    table[1, 250], table[0, 8], table[0, at] = right, right, wrong
    return LevelCounts(counts=table, missed=missed)


@pytest.mark.parametrize(("level", "needed"), [(0.1, 9), (0.05, 19), (0.2, 4), (0.025, 39), (0.3, 3), (0.99, 1)])
def test_a_level_takes_one_patient_less_than_it_divides_one(level: float, needed: int) -> None:
    assert needed_patients(level) == needed
    conformal_quantile(range(needed), level)
    if needed > 1:
        with pytest.raises(CalibrationError, match=f"{needed} patients needed for a level of {level:.2f}, {needed - 1} found"):
            conformal_quantile(range(needed - 1), level)


def test_larger_losses_take_more_patients() -> None:
    assert needed_patients(0.1, bound=2.0) == 19


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 10])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        needed_patients(level)


def test_the_quantile_is_the_one_of_the_definition() -> None:
    assert conformal_quantile(range(1, 20), 0.05) == 19
    assert conformal_quantile(range(1, 20), 0.1) == 18
    assert conformal_quantile(range(1, 101), 0.1) == 91


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        conformal_quantile([0.1] * 9 + [float("nan")], 0.1)


@given(st.lists(st.floats(0, 100), min_size=9, max_size=40), st.randoms())
def test_the_order_of_patients_does_not_matter_to_a_quantile(scores: list[float], random: object) -> None:
    shuffled = list(scores)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' own random
    assert conformal_quantile(scores, 0.1) == conformal_quantile(shuffled, 0.1)


@given(st.lists(st.floats(0, 100), min_size=19, max_size=40))
def test_a_stricter_level_never_gives_a_smaller_quantile(scores: list[float]) -> None:
    assert conformal_quantile(scores, 0.05) >= conformal_quantile(scores, 0.1) >= conformal_quantile(scores, 0.3)


@pytest.mark.parametrize(("level", "patients"), [(0.1, 9), (0.1, 30), (0.2, 14), (0.05, 19)])
def test_new_scores_exceed_the_quantile_no_more_often_than_the_level(level: float, patients: int) -> None:
    rng, draws = np.random.default_rng(0), 4000
    scores = rng.lognormal(size=(draws, patients + 1))
    above = np.array([row[-1] > conformal_quantile(row[:-1].tolist(), level) for row in scores])
    error = np.sqrt(level * (1 - level) / draws)
    assert above.mean() <= level + 3 * error
    # ... and the bound is no more cautious than it has to be: at least level - 1 / (n + 1).
    assert above.mean() >= level - 1 / (patients + 1) - 3 * error


def test_the_first_threshold_that_holds_the_level_is_taken() -> None:
    losses = np.tile([1.0, 0.5, 0.1, 0.0], (9, 1))
    assert control_risk(losses, (10, 20, 30, 40), 0.2) == 30  # (9 * 0.1 + 1) / 10 = 0.19
    assert control_risk(losses, (10, 20, 30, 40), 0.1) == 40


def test_where_no_threshold_holds_the_level_there_is_none_and_not_the_first() -> None:
    assert control_risk(np.full((50, 3), 0.4), (1, 2, 3), 0.1) is None
    assert control_risk(np.zeros((8, 3)), (1, 2, 3), 0.1) is None
    assert control_risk(np.zeros((0, 3)), (1, 2, 3), 0.1) is None
    assert control_risk(np.zeros((9, 3)), (1, 2, 3), 0.1) == 1


def test_losses_that_rise_or_leave_their_range_are_refused() -> None:
    with pytest.raises(CalibrationError, match="monotone"):
        control_risk(np.array([[0.1, 0.2]]), (1, 2), 0.1)
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        control_risk(np.array([[2.0, 0.2]]), (1, 2), 0.1)
    with pytest.raises(CalibrationError, match="3 thresholds"):
        control_risk(np.array([[0.2, 0.2]]), (1, 2, 3), 0.1)


@given(TABLES)
def test_a_monotonised_loss_falls_and_is_never_below_the_loss(losses: np.ndarray) -> None:
    made = monotonised(losses)
    assert (made >= losses).all()
    assert (np.diff(made, axis=1) <= 0).all()
    assert np.array_equal(monotonised(made), made)


@given(TABLES, st.sampled_from([0.1, 0.2, 0.3]), st.randoms())
def test_a_stricter_level_never_lowers_the_threshold_and_order_never_matters(losses: np.ndarray, level: float, random: object) -> None:
    table, thresholds = monotonised(losses), list(range(losses.shape[1]))
    strict, loose = control_risk(table, thresholds, level), control_risk(table, thresholds, 2 * level)
    assert strict is None or (loose is not None and loose <= strict)
    rows = list(table)
    random.shuffle(rows)  # type: ignore[attr-defined]  # hypothesis' own random
    assert control_risk(np.array(rows), thresholds, level) == pytest.approx(strict)


def test_a_patient_with_many_masks_counts_once() -> None:
    rows = np.array([[1.0], [1.0], [1.0], [0.0]])
    assert means_by_patient(rows, ["b", "b", "b", "a"]).tolist() == [[0.0], [1.0]]
    with pytest.raises(CalibrationError, match="4 rows and 1 patients"):
        means_by_patient(rows, ["a"])


def test_the_simulation_of_the_definition_holds_its_level() -> None:
    rng, draws, risks = np.random.default_rng(0), 400, []
    for _ in range(draws):
        scores, noise = rng.uniform(size=(2, 40))
        dices = np.clip(scores + 0.3 * (noise - 0.5), 0, 1)
        made = mask_guarantee(scores[:19].tolist(), dices[:19].tolist(), names(19), level=0.2)
        assert made.threshold is not None
        risks.append(np.mean((scores[19:] >= made.threshold) * (1 - dices[19:])))
    assert np.mean(risks) <= 0.2 + 2 * np.std(risks) / np.sqrt(draws)
    assert np.mean(risks) > 0.1


def test_masks_of_one_patient_resemble_each_other_and_the_level_still_holds() -> None:
    """Counted as if each mask were a witness of its own, nine patients with twenty masks would look like 180."""
    rng, draws, risks = np.random.default_rng(1), 300, []
    patients = [name for name in names(12) for _ in range(20)]
    for _ in range(draws):
        bad = np.repeat(rng.uniform(size=13) < 0.3, 20)
        scores, dices = rng.uniform(0.5, 1, 260), np.where(bad, 0.2, 0.95)
        made = mask_guarantee(scores[:240].tolist(), dices[:240].tolist(), patients, level=0.15)
        taken = scores[240:] >= (np.inf if made.threshold is None else made.threshold)
        risks.append(np.mean(taken * (1 - dices[240:])))
    assert np.mean(risks) <= 0.15 + 2 * np.std(risks) / np.sqrt(draws)


def test_a_guarantee_on_masks_says_what_is_bounded_over_what_and_at_which_level() -> None:
    scores, dices = [0.5 + 0.02 * n for n in range(20)], [0.5] * 10 + [0.98] * 10
    made = mask_guarantee(scores, dices, names(20), level=0.1, subject="masks cut at 0.50")
    assert made.feasible
    assert (made.patients, made.needed) == (20, 9)
    assert made.threshold is not None
    assert made.threshold in scores
    assert made.found == pytest.approx(sum(1 - dice for score, dice in zip(scores, dices, strict=True) if score >= made.threshold) / 20)
    assert made.kept == pytest.approx(sum(score >= made.threshold for score in scores) / 20)
    assert "Over new patients and draws of 20 calibration patients, the expected Dice lost by masks cut at 0.50 accepted" in made.statement
    assert "is at most 0.10" in made.statement
    assert "Estimate, not guaranteed" in made.statement
    assert any("exchangeable" in each for each in ASSUMPTIONS)
    assert made.assumptions == ASSUMPTIONS


def test_too_few_patients_are_refused_with_both_numbers_and_without_a_threshold() -> None:
    made = mask_guarantee([0.9] * 40, [1.0] * 40, names(4) * 10, level=0.1)
    assert not made.feasible
    assert made.threshold is None
    assert made.statement == "No guarantee: 9 patients needed for a level of 0.10, 4 found."


def test_a_teacher_that_is_always_wrong_gets_no_threshold_however_many_patients_there_are() -> None:
    made = mask_guarantee([0.9] * 50, [0.1] * 50, names(50), level=0.1)
    assert not made.feasible
    assert made.statement == "No guarantee: with 50 patients, no threshold on pairwise_dice bounds the Dice lost in accepted masks by 0.10."


@pytest.mark.parametrize("lost", [0.02, 0.05, 0.09])
def test_where_more_patients_would_do_the_refusal_says_how_many(lost: float) -> None:
    def asked(count: int) -> Guarantee:
        return mask_guarantee([0.9] * count, [1 - lost] * count, names(count), level=0.1)

    enough = asked(9).would_do
    assert enough is not None
    assert not asked(enough - 1).feasible
    assert asked(enough).feasible
    for dice in (0.8, 0.9):
        refused = mask_guarantee([0.9] * 9, [dice] * 9, names(9), level=0.1)
        assert refused.would_do is None, "no number of such patients would"
        assert refused.would_hold_at is not None
        assert mask_guarantee([0.9] * 9, [dice] * 9, names(9), level=refused.would_hold_at).feasible
        assert not mask_guarantee([0.9] * 9, [dice] * 9, names(9), level=refused.would_hold_at - 0.001).feasible


def test_nobody_at_all_is_too_few() -> None:
    for made in (mask_guarantee([], [], [], level=0.1), voxel_guarantee([], [], level=0.1), missed_guarantee([], [], level=0.1)):
        assert not made.feasible
        assert "9 patients needed for a level of 0.10, 0 found" in made.statement


def test_a_mask_without_gold_and_without_anything_drawn_loses_nothing() -> None:
    made = mask_guarantee([0.9] * 9, [float("nan")] * 9, names(9), level=0.1)
    assert (made.feasible, made.found) == (True, 0.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SHARES, SHARES, st.sampled_from("abcdefghijkl")), min_size=1, max_size=40), st.randoms())
def test_the_order_of_masks_does_not_matter_and_the_bound_is_kept_on_calibration(masks: list[tuple], random: object) -> None:
    made = mask_guarantee(*(list(each) for each in zip(*masks, strict=True)), level=0.2)
    again = list(masks)
    random.shuffle(again)  # type: ignore[attr-defined]  # hypothesis' own random
    assert mask_guarantee(*(list(each) for each in zip(*again, strict=True)), level=0.2).threshold == made.threshold
    if made.feasible:
        assert made.found is not None
        assert (made.patients * made.found + 1) / (made.patients + 1) <= 0.2 + 1e-6


def test_the_band_is_as_wide_as_the_errors_are_sure() -> None:
    """Background drawn at a probability of 0.7 in every patient: to leave it out, a band has to be a little wider than 0.2."""
    cases = [counts(50, at=round(0.7 * 255)) for _ in range(20)]
    made = voxel_guarantee(cases, names(20), level=0.1)
    assert made.threshold == pytest.approx(0.204, abs=0.005)
    assert made.found == 0
    assert made.kept == pytest.approx(200 / 250)
    assert "wrong voxels" in made.statement
    assert voxel_guarantee(cases, names(20), level=0.3).threshold == 0


def test_a_share_that_rises_as_fewer_are_accepted_is_bounded_by_its_largest_value() -> None:
    """The errors are the surest voxels of all, so every narrower band has a smaller share of them, and none is safe."""
    cases = [LevelCounts(counts=np.eye(256, dtype=np.int64)[[255, 200]] * 50) for _ in range(20)]
    assert not voxel_guarantee(cases, names(20), level=0.1).feasible
    assert "no half width of the band bounds the share of wrong voxels by 0.10" in voxel_guarantee(cases, names(20), level=0.1).statement


def test_background_that_nothing_was_drawn_on_makes_no_share_of_wrong_voxels_small() -> None:
    cases = [counts(50, at=round(0.7 * 255)) for _ in range(20)]
    for case in cases:
        case.counts[0, 0] = 1_000_000
    assert voxel_guarantee(cases, names(20), level=0.1).threshold == pytest.approx(0.204, abs=0.005)


def test_the_threshold_that_finds_the_object_is_as_low_as_it_has_to_be() -> None:
    table = np.zeros((2, 256), np.int64)
    table[1, 200], table[1, 100] = 60, 40
    cases = [LevelCounts(counts=table) for _ in range(20)]
    assert missed_guarantee(cases, names(20), level=0.5).threshold == pytest.approx(200 / 255)
    assert missed_guarantee(cases, names(20), level=0.1).threshold == pytest.approx(100 / 255)


def test_an_object_outside_the_box_is_missed_at_every_threshold() -> None:
    cases = [counts(0, at=10, missed=100) for _ in range(20)]
    made = missed_guarantee(cases, names(20), level=0.1)
    assert not made.feasible
    assert made.statement == "No guarantee: with 20 patients, even the widest mask cannot be said to miss at most 0.10 of the object."


def test_cases_without_an_object_have_none_to_miss() -> None:
    cases = [LevelCounts(counts=np.zeros((2, 256), np.int64)) for _ in range(20)]
    assert missed_guarantee(cases, names(20), level=0.1).threshold == 1.0
