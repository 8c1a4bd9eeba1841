"""The student's probabilities against gold, and its confidence against its failures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from distill.levels import LevelCounts
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from students.own_confidence import Told, calibration_of, failure_detection_of, read_own, soft_dice

ORGAN = ClassInfo(id=3, name="kernel")
LEVELS = arrays(np.uint8, (3, 5, 4))


@given(LEVELS, arrays(bool, (3, 5, 4)))
def test_soft_dice_is_a_share_and_certain_masks_have_1(levels: np.ndarray, mask: np.ndarray) -> None:
    assert 0 <= soft_dice(levels, mask) <= 1
    assert soft_dice((mask * 255).astype(np.uint8), mask) == 1


@given(LEVELS.filter(lambda levels: bool(levels.any())))
def test_what_was_thought_possible_and_not_drawn_is_no_certainty(levels: np.ndarray) -> None:
    assert soft_dice(levels, np.zeros(levels.shape, bool)) == 0


def test_soft_dice_is_the_dice_that_right_probabilities_promise() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((40, 50, 45)) ** 3
    truth, mask = rng.random(probability.shape) < probability, probability > 0.5
    reached = 2 * (truth & mask).sum() / (truth.sum() + mask.sum())
    assert soft_dice(np.rint(255 * probability).astype(np.uint8), mask) == pytest.approx(reached, abs=0.01)


def told(case: str, confidence: float, counts: np.ndarray | None = None) -> Told:
    if counts is None:
        counts = np.zeros((2, 256), np.int64)
    return Told(case=case, patient=case, class_id=3, levels=LevelCounts(counts=counts), confidence=confidence)


def test_probabilities_that_are_frequencies_have_no_calibration_error_and_boasts_have_one() -> None:
    honest, boasting = np.zeros((2, 256), np.int64), np.zeros((2, 256), np.int64)
    honest[:, 51] = 800, 200
    boasting[:, 204] = 800, 200
    good, bad = (calibration_of([told("a", 1, counts)], ORGAN) for counts in (honest, boasting))
    assert good is not None
    assert bad is not None
    assert (good.ece.mean, good.ace.mean) == (pytest.approx(0), pytest.approx(0))
    assert (bad.ece.mean, bad.ace.mean) == (pytest.approx(0.6), pytest.approx(0.6))
    assert (good.brier.mean, bad.brier.mean) == (pytest.approx(0.16), pytest.approx(0.52))
    assert [(each.said, each.was) for each in bad.plot.bins] == [(pytest.approx(0.8), pytest.approx(0.2))]


def test_each_patient_counts_once_in_calibration_however_many_voxels_they_have() -> None:
    honest, boasting = np.zeros((2, 256), np.int64), np.zeros((2, 256), np.int64)
    honest[:, 51] = 800_000, 200_000
    boasting[:, 204] = 8, 2
    found = calibration_of([told("a", 1, honest), told("b", 1, boasting)], ORGAN)
    assert found is not None
    assert found.ece.mean == pytest.approx(0.3)


def test_a_confidence_that_orders_cases_by_dice_is_perfect_and_its_opposite_worse_than_chance() -> None:
    dices = {("a", 3): 0.9, ("b", 3): 0.5, ("c", 3): 0.8, ("d", 3): 0.1}
    cases = [told(case, value) for (case, _), value in dices.items()]
    found = failure_detection_of(cases, dict(dices), ORGAN)
    assert found is not None
    assert found.curve.aurc == pytest.approx(0.235417, abs=1e-6)
    assert found.normalised.mean == pytest.approx(1)
    assert (found.spearman, found.auroc, found.failures) == (pytest.approx(1), 1, 2)
    assert found.curve.at_80 == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert found.at_90 == pytest.approx(found.curve.whole)
    worst = failure_detection_of([replace(each, confidence=-each.confidence) for each in cases], dict(dices), ORGAN)
    assert worst is not None
    assert worst.normalised.mean is not None
    assert worst.normalised.mean < 0
    assert worst.auroc == 0


def test_too_few_cases_with_a_dice_cannot_be_ordered() -> None:
    dices = {("a", 3): 0.9, ("b", 3): None, ("c", 3): 0.8}
    assert failure_detection_of([told(case, 0.5) for case, _ in dices], dict(dices), ORGAN) is None


def test_a_confidence_that_is_the_same_for_all_has_no_normalised_figure() -> None:
    dices = {(case, 3): value for case, value in (("a", 0.9), ("b", 0.5), ("c", 0.75))}
    found = failure_detection_of([told(case, 0.5) for case, _ in dices], dict(dices), ORGAN)
    assert found is not None
    assert found.normalised.mean is None
    assert found.auroc == 0.5


def test_only_voxels_that_the_expert_judged_count_and_label_sets_without_probabilities_are_left_out(
    tmp_path: pytest.TempPathFactory,
) -> None:
    archive = Archive.create(f"{tmp_path}/a.zarr")
    identity = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=identity)
    for name in ("with", "without"):
        case = archive.add_case(
            CaseRecord(id=name, patient=name, shape_czyx=(1, 2, 4, 5), dtype="uint8", geometry=geometry), np.zeros((1, 2, 4, 5), np.uint8)
        )
        ids = np.zeros((2, 4, 5), np.uint8)
        ids[0, 1:3, 1:3] = 3
        history = LabelHistory(label_set="student/s", classes=(ORGAN,), made_by="test")
        case.write_labels(history, ids, probability_kzyx=(ids[None] * 80) if name == "with" else None)
    gold = np.full((2, 4, 5), IGNORE, np.uint8)
    gold[0] = 0
    gold[0, 1:3, 1:3] = 3
    found = read_own(archive, "student/s", ["with", "without"], [ORGAN], lambda _: gold)
    assert [each.case for each in found] == ["with"]
    assert found[0].levels.counts[1, 240] == 4
    assert found[0].levels.voxels <= 20, "the other slice was not judged"
