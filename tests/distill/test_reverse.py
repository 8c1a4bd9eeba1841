"""A right mask teaches to find the object in another patient; a wrong one does not."""

import numpy as np
import pytest

from distill.reverse import Sample, reverse_accuracy, sample_of

SHAPE = (6, 20, 24)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright organ, another one of middling brightness elsewhere, and a noisy body."""
    draw = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    a, b = draw.integers(-1, 2, 2)
    organ = (z - 3) ** 2 + (y - 7 - a) ** 2 + (x - 7 - b) ** 2 <= 14
    other = (z - 3) ** 2 + (y - 12 - b) ** 2 + (x - 17 - a) ** 2 <= 12
    return organ, other, 0.3 + 0.5 * organ + 0.25 * other + draw.normal(0, 0.03, SHAPE)


def reference(seed: int) -> Sample:
    organ, _, grey = scene(seed)
    sample = sample_of(organ, grey)
    assert sample is not None
    return sample


def test_a_right_mask_is_told_from_one_of_another_object() -> None:
    organ, other, grey = scene(0)
    references = [reference(seed) for seed in (1, 2)]
    right, wrong = sample_of(organ, grey), sample_of(other, grey)
    assert right is not None
    assert wrong is not None
    assert reverse_accuracy(right, references) > 0.8
    assert reverse_accuracy(wrong, references) < 0.3


def test_the_best_reference_counts() -> None:
    organ, _, grey = scene(0)
    sample = sample_of(organ, grey)
    assert sample is not None
    misleading = sample_of(scene(3)[1], scene(3)[2])
    assert misleading is not None
    assert reverse_accuracy(sample, [misleading, reference(1)]) == reverse_accuracy(sample, [reference(1)])


def test_voxels_stand_for_all_there_are() -> None:
    organ, _, grey = scene(0)
    sample = sample_of(organ, grey)
    assert sample is not None
    assert sample.weight.sum() == pytest.approx(organ.size)
    assert sample.weight[sample.inside].sum() == pytest.approx(organ.sum())


def test_an_empty_mask_teaches_nothing_and_without_references_nothing_is_said() -> None:
    organ, _, grey = scene(0)
    assert sample_of(organ & False, grey) is None
    sample = sample_of(organ, grey)
    assert sample is not None
    assert np.isnan(reverse_accuracy(sample, []))
