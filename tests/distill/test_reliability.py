"""A temperature and a predicted Dice, each tried on patients that it has not seen."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from distill.errors import CalibrationError
from distill.levels import LevelCounts, logits_of_levels
from distill.reliability import PAIRS_FROM, QualityFit, fit_quality, fit_temperature, predict_quality


def names(count: int) -> list[str]:
    return [f"p{n:03}" for n in range(count)]


def too_sure(rng: np.random.Generator, temperature: float) -> LevelCounts:
    """Voxels that are the object as often as their logit over ``temperature`` says."""
    chance = 1 / (1 + np.exp(-logits_of_levels() / temperature))
    inside = rng.binomial(400, chance)
    return LevelCounts(counts=np.stack([400 - inside, inside]))


def masks(rng: np.random.Generator, count: int, noise: float = 0.05) -> tuple[list[dict[str, float]], list[float]]:
    """Masks whose Dice follows ``plane_agreement``, while ``pairwise_dice`` is blind."""
    good = rng.uniform(0.5, 0.95, count)
    dices = np.clip(good + noise * rng.normal(size=count), 0, 1)
    return [{"plane_agreement": float(each), "pairwise_dice": float(rng.uniform())} for each in good], dices.tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5], ids=["not sure enough", "right", "too sure"])
def test_the_temperature_that_made_the_probabilities_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    found = fit_temperature([too_sure(rng, temperature) for _ in range(8)], names(8))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.patients == 8
    assert found.after.ece <= found.before.ece + 0.005
    if temperature != 1:
        assert found.after.ece < 0.5 * found.before.ece
        assert found.after.nll < found.before.nll
        assert found.after.brier < found.before.brier


def test_what_is_said_of_a_temperature_was_measured_on_patients_left_out() -> None:
    """One patient is the opposite of the others: with the temperature of all, the likelihood would look better than it is."""
    rng = np.random.default_rng(0)
    cases = [too_sure(rng, 0.3), too_sure(rng, 0.3), too_sure(rng, 6.0)]
    told = fit_temperature(cases, names(3))
    seen = fit_temperature(cases * 2, names(6))  # each patient has a twin among the others
    assert told.after.nll > seen.after.nll + 0.05


def test_a_patient_with_many_cases_does_not_outvote_the_others() -> None:
    rng = np.random.default_rng(0)
    sure, unsure = too_sure(rng, 2.0), too_sure(rng, 1.0)
    once = fit_temperature([sure, unsure], ["a", "b"]).temperature
    assert fit_temperature([sure] * 9 + [unsure], ["a"] * 9 + ["b"]).temperature == pytest.approx(once, rel=1e-3)


def test_one_patient_cannot_be_left_out() -> None:
    with pytest.raises(CalibrationError, match="at least 2 patients"):
        fit_temperature([too_sure(np.random.default_rng(0), 1.0)], ["a"])
    with pytest.raises(CalibrationError, match="at least 2 patients"):
        fit_quality([{"pairwise_dice": 0.5}] * 2, [0.5, 0.6], ["a", "a"])


def test_a_dice_that_is_no_number_is_refused() -> None:
    with pytest.raises(CalibrationError, match="a Dice is NaN"):
        fit_quality([{"pairwise_dice": 0.5}] * 2, [0.5, float("nan")], ["a", "b"])


def test_the_score_that_predicts_patients_left_out_is_chosen() -> None:
    rows, dices = masks(np.random.default_rng(0), 15)
    found = fit_quality(rows, dices, names(15))
    assert found.scores == ("plane_agreement",)
    assert found.error < 0.6 * found.error_of_mean
    assert list(found.dice) == sorted(found.dice)


def test_where_no_score_predicts_anything_the_mean_is_predicted_and_said_so() -> None:
    rng = np.random.default_rng(3)
    rows = [{"pairwise_dice": 0.9} for _ in range(15)]
    found = fit_quality(rows, rng.uniform(0.7, 0.9, 15).tolist(), names(15))
    assert found.scores == ()
    assert found.error == found.error_of_mean
    told = predict_quality(found, {}, 1)
    assert told is not None
    assert 0.7 < told.dice < 0.9


def test_less_entropy_is_better() -> None:
    rng = np.random.default_rng(0)
    doubt = rng.uniform(0.05, 0.4, 15)
    found = fit_quality([{"entropy": float(each)} for each in doubt], (1 - doubt).tolist(), names(15))
    assert found.scores == ("entropy",)
    good, bad = predict_quality(found, {"entropy/2": 0.1}, 2), predict_quality(found, {"entropy/2": 0.35}, 2)
    assert good is not None
    assert bad is not None
    assert good.dice > bad.dice + 0.15


def test_two_scores_that_each_see_half_are_mixed_where_there_are_patients_enough() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0.2, 0.9, (2, 40))
    rows = [{"pairwise_dice": float(a), "oof_dice": float(b)} for a, b in zip(one, other, strict=True)]
    dices = ((one + other) / 2).tolist()
    assert fit_quality(rows, dices, names(40)).scores == ("pairwise_dice", "oof_dice")
    few = PAIRS_FROM - 1
    assert len(fit_quality(rows[:few], dices[:few], names(few)).scores) == 1


def test_a_score_that_some_masks_lack_is_not_used_and_without_it_nothing_is_predicted() -> None:
    rows, dices = masks(np.random.default_rng(0), 15)
    del rows[3]["plane_agreement"]
    assert fit_quality(rows, dices, names(15)).scores != ("plane_agreement",)
    rows[3]["plane_agreement"] = 0.7
    found = fit_quality(rows, dices, names(15))
    assert predict_quality(found, {"plane_agreement/2": 0.9}, 1) is None
    assert predict_quality(found, {"plane_agreement/1": float("nan")}, 1) is None


def test_too_few_patients_have_error_bars_from_zero_to_one_and_are_told_why() -> None:
    rows, dices = masks(np.random.default_rng(0), 8)
    found = fit_quality(rows, dices, names(8))
    assert (set(found.low), set(found.high)) == ({0.0}, {1.0})
    assert found.note == "error bars from 0 to 1: 9 patients needed for a level of 0.10, 8 found"
    rows, dices = masks(np.random.default_rng(0), 9)
    assert fit_quality(rows, dices, names(9)).note == ""


@pytest.mark.parametrize("per_patient", [1, 6], ids=["one mask each", "six that resemble each other"])
def test_error_bars_hold_for_the_share_of_new_patients_that_they_are_for(per_patient: int) -> None:
    rng, draws, outside = np.random.default_rng(0), 150, []
    for _ in range(draws):
        rows, dices = masks(rng, 15 * per_patient)
        shift = np.repeat(0.1 * rng.normal(size=15), per_patient)
        dices = np.clip(dices + shift, 0, 1).tolist()
        known = 14 * per_patient
        found = fit_quality(rows[:known], dices[:known], [f"p{n // per_patient}" for n in range(known)])
        told = [predict_quality(found, {f"{name}/1": value for name, value in row.items()}, 1) for row in rows[known:]]
        outside.append(np.mean([not each.low <= dice <= each.high for each, dice in zip(told, dices[known:], strict=True) if each]))
    assert np.mean(outside) <= 0.1 + 2 * np.std(outside) / np.sqrt(draws)


def test_a_prediction_lies_between_its_bars_also_beyond_what_was_seen() -> None:
    rows, dices = masks(np.random.default_rng(0), 20)
    found = fit_quality(rows, dices, names(20))
    told = [predict_quality(found, {"plane_agreement/1": value}, 1) for value in np.linspace(-0.5, 1.5, 60)]
    assert all(each is not None and 0 <= each.low <= each.dice <= each.high <= 1 for each in told)
    rising = [each.dice for each in told if each is not None]
    assert rising == sorted(rising)


def test_the_order_of_masks_does_not_matter() -> None:
    rows, dices = masks(np.random.default_rng(0), 15)
    order = np.random.default_rng(1).permutation(15)
    again = fit_quality([rows[n] for n in order], [dices[n] for n in order], [names(15)[n] for n in order])
    found = fit_quality(rows, dices, names(15))
    assert again.scores == found.scores
    assert np.allclose([again.dice, again.low, again.high], [found.dice, found.low, found.high])


def test_a_fit_survives_json() -> None:
    rows, dices = masks(np.random.default_rng(0), 300)
    found = fit_quality(rows, dices, [f"p{n % 30}" for n in range(300)])
    assert len(found.knots) <= 128
    adapter = TypeAdapter(QualityFit)
    text = adapter.dump_json(found)
    json.loads(text, parse_constant=pytest.fail)
    assert adapter.validate_json(text) == found
