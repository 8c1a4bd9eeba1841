"""The losses a recipe may choose, soft targets and weights by confidence: the laws that all of them keep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import IGNORE, Archive, ClassInfo, LabelHistory
from students import losses, soft
from students.learning import Learning, LossName, LossSpec

SHAPE = (3, 4, 5)
NAMES: tuple[LossName, ...] = ("ce", "gce", "sce", "kl")
every_loss = pytest.mark.parametrize("name", NAMES)
seeds = st.integers(0, 10_000)
CLASSES = (ClassInfo(id=3, name="kernel"),)


def example(seed: int, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, soft targets, and weights between 0 and 1 with holes."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, outputs, *SHAPE, generator=g)
    q = torch.softmax(torch.randn(2, outputs, *SHAPE, generator=g) * 2, 1)
    w = torch.rand(2, 1, *SHAPE, generator=g)
    return logits, q, w * (w > 0.3)


@every_loss
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_voxel_of_no_weight_contributes_no_gradient_and_no_value(name: LossName, seed: int) -> None:
    logits, q, w = example(seed)
    logits.requires_grad_()
    loss = losses.segmentation_loss(logits, q, w, LossSpec(name=name))
    loss.backward()
    assert logits.grad is not None
    hole = (w == 0).expand_as(logits)
    assert torch.equal(logits.grad[hole], torch.zeros(int(hole.sum())))
    assert logits.grad.abs().sum() > 0
    changed = torch.where(hole, torch.full_like(logits, 30.0), logits.detach())
    assert torch.equal(losses.segmentation_loss(changed, q, w, LossSpec(name=name)), loss.detach())


@every_loss
@settings(max_examples=15, deadline=None)
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_only_the_ratios_of_weights_matter(name: LossName, seed: int, factor: float) -> None:
    logits, q, w = example(seed)
    how = LossSpec(name=name)
    torch.testing.assert_close(losses.segmentation_loss(logits, q, w * factor, how), losses.segmentation_loss(logits, q, w, how))


@every_loss
def test_a_sure_mistake_gives_a_finite_gradient(name: LossName) -> None:
    logits = torch.tensor([[[200.0], [-200.0]]], requires_grad=True)
    q = torch.tensor([[[0.0], [1.0]]])
    losses.segmentation_loss(logits, q, torch.ones(1, 1, 1), LossSpec(name=name)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, temperature=st.floats(0.5, 20))
def test_the_divergence_is_zero_where_both_are_equal_and_positive_elsewhere(seed: int, temperature: float) -> None:
    logits, q, _ = example(seed)
    equal = losses.divergence(torch.log(q.double()) + 3, q.double(), temperature)
    torch.testing.assert_close(equal, torch.zeros_like(equal), atol=1e-9, rtol=0)
    assert (losses.divergence(logits.double(), q.double(), temperature) > 0).all()


def test_the_divergence_of_hard_labels_is_their_cross_entropy_at_temperature_one() -> None:
    logits, _, _ = example(3)
    q, _ = losses.targets_from_ids(logits.argmax(1).roll(1, -1), 3)
    torch.testing.assert_close(losses.divergence(logits, q, 1.0), losses.cross_entropy(logits, q))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, power=st.floats(0.05, 0.99))
def test_generalised_cross_entropy_lies_between_absolute_error_and_cross_entropy(seed: int, power: float) -> None:
    logits, _, _ = example(seed)
    logits = logits.double()
    q, _ = losses.targets_from_ids(logits.argmax(1).roll(1, -1), 3)
    q = q.double()
    between = losses.generalised_cross_entropy(logits, q, power)
    absolute = (torch.softmax(logits, 1) - q).abs().sum(1, keepdim=True) / 2
    assert (between >= absolute - 1e-9).all()
    assert (between <= losses.cross_entropy(logits, q) + 1e-9).all()
    torch.testing.assert_close(losses.generalised_cross_entropy(logits, q, 1.0), absolute)


def test_reverse_cross_entropy_of_a_hard_label_is_four_times_the_probability_of_the_others() -> None:
    logits, _, _ = example(4)
    ids = logits.argmax(1).roll(1, -1)
    q, _ = losses.targets_from_ids(ids, 3)
    others = 1 - torch.softmax(logits, 1).gather(1, ids[:, None])
    torch.testing.assert_close(losses.reverse_cross_entropy(logits, q), 4 * others)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, exponent=st.floats(0.2, 4))
def test_confidence_of_two_classes_is_the_distance_from_a_coin_toss(seed: int, exponent: float) -> None:
    p = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(losses.confidence(losses.with_background(p), exponent), (2 * p - 1).abs() ** exponent, atol=1e-5, rtol=1e-4)


def test_classes_that_claim_more_than_all_share_it() -> None:
    q = losses.with_background(torch.tensor([0.9, 0.6]).view(1, 2, 1))
    torch.testing.assert_close(q.flatten(), torch.tensor([0.0, 0.6, 0.4]))


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_a_network_agrees_with_itself_and_only_the_first_of_two_is_taught(seed: int) -> None:
    logits, q, w = example(seed)
    assert float(losses.consistency_loss(logits, logits, w)) == 0
    other = torch.log(q).requires_grad_()
    logits.requires_grad_()
    losses.consistency_loss(logits, other, w).backward()
    assert other.grad is None
    assert logits.grad is not None
    assert not logits.grad[(w == 0).expand_as(logits)].any()


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_ignored_voxels_count_nothing_whatever_their_probability(targets: str) -> None:
    ids = torch.tensor([[[[0, 1, IGNORE]]]], dtype=torch.uint8)
    probability = torch.tensor([[[[[0, 204, 255]]]]], dtype=torch.uint8)
    how = Learning.model_validate({"targets": targets, "confidence": 1})
    q, w = losses.targets_from_probability(ids, probability, how)
    torch.testing.assert_close(w.flatten(), torch.tensor([1.0, 0.6, 0.0]))
    torch.testing.assert_close(q[0, 1].flatten()[:2], torch.tensor([0.0, 0.8 if targets == "soft" else 1.0]))


def write(archive: Archive, name: str, ids: np.ndarray, probability: np.ndarray | None, threshold: float) -> None:
    history = LabelHistory(
        label_set=name, classes=CLASSES, made_by="test", fingerprint=name, parameters={"threshold/3": threshold, "reason/3": "x"}
    )
    coded = None if probability is None else np.rint(probability * 255).astype(np.uint8)
    archive["train0"].write_labels(history, ids, probability_kzyx=coded)


@settings(max_examples=10, deadline=None)
@given(threshold=st.floats(0.05, 0.95), seed=seeds)
def test_soft_targets_say_what_the_label_says(archive: Archive, threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((1, *archive["train0"].record.shape_czyx[1:]))
    ids = np.where(p[0] >= threshold, 3, 0).astype(np.uint8)
    ids[0], ids[1] = 3, 0  # a hole that was filled, and a piece that was taken away
    ids[2] = IGNORE
    write(archive, "pseudo/soft", ids, p, threshold)
    channels = np.where(ids == 3, 1, ids).astype(np.uint8)
    found = soft.soft_targets(archive["train0"].labels("pseudo/soft"), channels, CLASSES)[0] / 255
    known = channels != IGNORE
    sides = np.where(channels == 1, found >= 0.5 - 3 / 255, found <= 0.5 + 3 / 255)
    assert sides[known].all()
    far = np.abs(p[0] - threshold) > 0.02
    assert (found[0][far[0] & (p[0, 0] < threshold)] == 1).all()
    assert (found[1][far[1] & (p[0, 1] > threshold)] == 0).all()
    part = soft.soft_targets(archive["train0"].labels("pseudo/soft"), channels[3:5], CLASSES, (slice(3, 5),))[0] / 255
    np.testing.assert_array_equal(part, found[3:5])


def test_labels_without_probabilities_are_certain(archive: Archive) -> None:
    ids = archive["train0"].labels("gold").read()
    write(archive, "pseudo/hard", ids, None, 0.5)
    found = soft.soft_targets(archive["train0"].labels("pseudo/hard"), ids // 3, CLASSES)
    np.testing.assert_array_equal(found[0], (ids == 3) * np.uint8(255))
