"""One loss for hard, soft and missing labels: its laws."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.case import IGNORE
from students import losses

SHAPE = (3, 4, 5)


def example(seed: int, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, soft targets and weights with holes."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, outputs, *SHAPE, generator=g, dtype=torch.float64)
    q = torch.softmax(torch.randn(2, outputs, *SHAPE, generator=g, dtype=torch.float64) * 2, 1)
    w = (torch.rand(2, 1, *SHAPE, generator=g, dtype=torch.float64) > 0.4).double()
    return logits, q, w


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_ignored_voxels_contribute_exactly_no_gradient_and_no_value(seed: int) -> None:
    logits, _, _ = example(seed)
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (2, *SHAPE), generator=g).to(torch.uint8)
    hole = torch.rand(2, *SHAPE, generator=g) < 0.5
    ids[hole] = IGNORE
    q, w = losses.targets_from_ids(ids, 3)
    logits = logits.float().requires_grad_()
    loss = losses.segmentation_loss(logits, q, w)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[hole[:, None].expand_as(logits)], torch.zeros(int(hole.sum()) * 3))
    assert logits.grad.abs().sum() > 0
    changed = logits.detach().clone()
    changed[hole[:, None].expand_as(logits)] = 99.0
    assert torch.equal(losses.segmentation_loss(changed, q, w), loss.detach())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_soft_dice_is_zero_at_the_target_and_larger_anywhere_else(seed: int) -> None:
    logits, q, w = example(seed)
    at_target = losses.masked_dice(torch.log(q), q, w)
    torch.testing.assert_close(at_target, torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)
    assert losses.masked_dice(torch.log(q) + 0.1 * logits, q, w) > at_target


def test_the_product_form_of_dice_would_not_be_best_at_a_soft_target() -> None:
    q = torch.full((1, 1, 8), 0.7)
    q = torch.cat([1 - q, q], 1)
    w = torch.ones(1, 1, 8)
    sharper = torch.cat([torch.full((1, 1, 8), 0.01), torch.full((1, 1, 8), 0.99)], 1)
    product = 2 * (sharper * q)[:, 1].sum() / (sharper + q)[:, 1].sum()
    assert product > 2 * (q * q)[:, 1].sum() / (2 * q)[:, 1].sum()
    assert losses.masked_dice(torch.log(sharper), q, w) > losses.masked_dice(torch.log(q), q, w)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_loss_does_not_care_about_the_order_of_voxels_or_of_the_batch(seed: int) -> None:
    logits, q, w = example(seed)
    flat = [t.flatten(2) for t in (logits, q, w)]
    order = torch.randperm(flat[0].shape[2], generator=torch.Generator().manual_seed(seed))
    shuffled = [t[:, :, order].flip(0) for t in flat]
    torch.testing.assert_close(losses.segmentation_loss(*shuffled), losses.segmentation_loss(*flat))


def test_hard_targets_give_the_familiar_cross_entropy_and_dice() -> None:
    logits, _, _ = example(0)
    ids = logits.argmax(1).roll(1, -1)
    q, w = losses.targets_from_ids(ids.to(torch.uint8), 3)
    q, w = q.double(), w.double()
    torch.testing.assert_close(losses.weighted_mean(losses.cross_entropy(logits, q), w), torch.nn.functional.cross_entropy(logits, ids))
    p = torch.softmax(logits, 1)
    overlap = 2 * (p * q).sum((0, 2, 3, 4)) / (p.sum((0, 2, 3, 4)) + q.sum((0, 2, 3, 4)))
    torch.testing.assert_close(losses.masked_dice(logits, q, w), 1 - overlap[1:].mean())


def test_a_batch_with_nothing_to_learn_from_gives_zero_and_not_nan() -> None:
    logits = torch.randn(1, 2, *SHAPE, requires_grad=True)
    q, w = losses.targets_from_ids(torch.full((1, *SHAPE), IGNORE, dtype=torch.uint8), 2)
    loss = losses.segmentation_loss(logits, q, w)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_case_of_twice_the_weight_counts_twice() -> None:
    logits, q, _ = example(1)
    heavy = torch.ones(2, 1, *SHAPE, dtype=torch.float64)
    heavy[0] = 2
    thrice = [torch.cat([t[:1], t]) for t in (logits, q, torch.ones_like(heavy))]
    torch.testing.assert_close(losses.segmentation_loss(logits, q, heavy), losses.segmentation_loss(*thrice))
