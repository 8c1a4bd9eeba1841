"""Scores of doubt about one class, from its volumes."""

import numpy as np
import pytest

from distill.answers import Answer
from distill.casework import ClassWork
from distill.label_store import doubt_scores, slice_scores
from distill.uncertainty import LN2, binary_entropy, summarise


def target_of(probability: np.ndarray) -> ClassWork:
    return ClassWork(plans=[], probability=probability.astype(np.float32))


def test_an_empty_mask_is_as_doubtful_as_can_be() -> None:
    target = target_of(np.zeros((3, 5, 7)))
    assert doubt_scores(target, target.probability > 0.5) == {"mean_probability": 0.0, "entropy": LN2, "mutual_information": LN2}
    assert set(slice_scores(target).values()) == {0.0}


def test_doubt_is_averaged_over_the_mask_and_its_rim_on_the_slice() -> None:
    probability = np.zeros((3, 5, 7))
    probability[1, 2, 3] = 0.9
    probability[1, 2, 2] = 0.3
    target = target_of(probability)
    target.mutual_information[1, 2, 3] = 255
    target.mutual_information[0] = target.mutual_information[2] = 200
    found = doubt_scores(target, probability > 0.5)
    assert found["mean_probability"] == pytest.approx(0.9)
    assert found["entropy"] == pytest.approx(binary_entropy(np.array([0.9, 0.3, 0, 0, 0])).mean(), abs=1e-5)
    assert found["mutual_information"] == pytest.approx(LN2 / 5)


def test_a_mask_at_the_border_has_less_of_a_rim() -> None:
    probability = np.zeros((1, 4, 6))
    probability[0, 0, 0] = 0.8
    found = doubt_scores(target_of(probability), probability > 0.5)
    assert found["entropy"] == pytest.approx(binary_entropy(np.array([0.8, 0, 0])).mean(), abs=1e-5)


def test_candidates_count_only_where_every_slice_has_them() -> None:
    target = target_of(np.zeros((2, 3, 4)))
    summary = summarise(np.full((2, 3, 4), 5.0))
    for z in range(2):
        target.tracks[0].answers[z] = Answer(summary=summary, region=(slice(0, 3), slice(0, 4)), size_px=(3, 4), iou=0.5)
        target.keep(z)
    assert "multimask_dice" not in slice_scores(target)
    assert slice_scores(target)["pairwise_dice"] == 1.0
    assert np.shares_memory(target.summaries[1].probability, target.probability)
