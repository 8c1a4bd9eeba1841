"""One loss for hard labels, soft labels and labels with holes.

Shapes: ``B`` batch, ``C`` background and classes, then space. Targets ``q_BC`` are distributions over ``C``; weights ``w_B1`` are
how much each voxel counts, and a voxel of weight 0 contributes nothing at all, neither to the value nor to any gradient. All losses are
means by these weights, so that only their ratios matter. Where a batch is spread over several devices, ``total`` adds up what each has summed.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn import functional

from storage.case import IGNORE
from students.learning import Learning, LossSpec

Total = Callable[[Tensor], Tensor]
"""Takes a sum over the voxels that are here, and returns that over all of the batch."""


def _all_is_here(here: Tensor) -> Tensor:
    return here


_LEAST_WEIGHT = 1e-6
"""Keeps a batch in which nothing counts from dividing by zero; any voxel that counts at all weighs more."""

_LOG_OF_ZERO = -4.0
"""What reverse cross-entropy takes for log 0 (Wang et al. 2019, "Symmetric Cross Entropy", their A)."""

_TOP = 255.0
"""uint8 code of certainty in the archive."""


def targets_from_ids(ids_B: Integer[Tensor, "b *space"], outputs: int) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, "b 1 *space"]]:
    """Turn class indices with ``IGNORE`` into one-hot targets and 0/1 weights.

    Args:
        ids_B: 0 for background, 1 to ``outputs - 1`` for the classes, ``IGNORE`` where nobody should learn.
        outputs: Number of channels ``C``.
    """
    learn = ids_B != IGNORE
    hot = functional.one_hot(torch.where(learn, ids_B, 0).long(), outputs)
    return hot.movedim(-1, 1).to(torch.float32), learn.unsqueeze(1).to(torch.float32)


def targets_from_probability(
    ids_B: Integer[Tensor, "b *space"], soft_BK: UInt8[Tensor, "b k *space"], how: Learning
) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, "b 1 *space"]]:
    """Turn class indices and the classes' probabilities into targets and weights, as the recipe asks.

    Args:
        ids_B: as of `targets_from_ids`.
        soft_BK: of each class without the background, 255 = certain.
        how: whether targets are soft, and the exponent of the confidence.
    """
    hot_BC, w_B1 = targets_from_ids(ids_B, soft_BK.shape[1] + 1)
    soft_BC = with_background(soft_BK.to(torch.float32) / _TOP)
    weight = w_B1 if how.confidence == 0 else w_B1 * confidence(soft_BC, how.confidence)
    return (soft_BC if how.targets == "soft" else hot_BC), weight


def with_background(p_BK: Float[Tensor, "b k *space"]) -> Float[Tensor, "b c *space"]:
    """Return a distribution over background and classes; where classes add up to more than 1, they share it and nothing is left."""
    claimed_B1 = p_BK.sum(1, keepdim=True)
    return torch.cat([(1 - claimed_B1).clamp(min=0), p_BK / claimed_B1.clamp(min=1)], 1)


def confidence(q_BC: Float[Tensor, "b c *space"], exponent: float) -> Float[Tensor, "b 1 *space"]:
    """Return how sure a distribution is, 0 where all are alike and 1 where one is certain; of two classes ``|2p - 1|`` to the power."""
    outputs = q_BC.shape[1]
    sure_B1 = (outputs * q_BC.amax(1, keepdim=True) - 1) / (outputs - 1)
    return sure_B1.clamp(0, 1) ** exponent


def cross_entropy(logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"]) -> Float[Tensor, "b 1 *space"]:
    """Return ``-sum_c q_c log p_c`` of each voxel."""
    return -(q_BC * torch.log_softmax(logits_BC, 1)).sum(1, keepdim=True)


def generalised_cross_entropy(
    logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"], power: float
) -> Float[Tensor, "b 1 *space"]:
    """Return ``sum_c q_c (1 - p_c^power) / power`` of each voxel (Zhang and Sabuncu 2018); soft targets give its mean over labels."""
    p_BC = torch.softmax(logits_BC, 1)
    # The power's slope at p = 0 is infinite, and a gradient of 0 times it is none.
    return (q_BC * (1 - p_BC.clamp(min=1e-7) ** power)).sum(1, keepdim=True) / power


def reverse_cross_entropy(logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"]) -> Float[Tensor, "b 1 *space"]:
    """Return ``-sum_c p_c log q_c`` of each voxel, with a logarithm that ends at -4."""
    log_q_BC = torch.log(q_BC.clamp(min=1e-12)).clamp(min=_LOG_OF_ZERO)
    return -(torch.softmax(logits_BC, 1) * log_q_BC).sum(1, keepdim=True)


def divergence(
    logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"], temperature: float
) -> Float[Tensor, "b 1 *space"]:
    """Return ``T^2 KL(q_T | p_T)`` of each voxel, both softened by the temperature ``T`` (Hinton et al. 2015); 0 where they are equal."""
    q_BC = q_BC ** (1 / temperature)
    q_BC = q_BC / q_BC.sum(1, keepdim=True)
    log_p_BC = torch.log_softmax(logits_BC / temperature, 1)
    return temperature**2 * (torch.xlogy(q_BC, q_BC) - q_BC * log_p_BC).sum(1, keepdim=True)


def weighted_mean(
    loss_B1: Float[Tensor, "b 1 *space"], w_B1: Float[Tensor, "b 1 *space"], total: Total = _all_is_here
) -> Float[Tensor, ""]:
    """Return the mean by weight; 0 where every weight is 0."""
    return total((w_B1 * loss_B1).sum()) / total(w_B1.sum()).clamp(min=_LEAST_WEIGHT)


def masked_dice(
    logits_BC: Float[Tensor, "b c *space"],
    q_BC: Float[Tensor, "b c *space"],
    w_B1: Float[Tensor, "b 1 *space"],
    total: Total = _all_is_here,
) -> Float[Tensor, ""]:
    """Return one minus the mean foreground Dice, safe for soft targets.

    The overlap is ``(|p| + |q| - |p - q|) / 2`` instead of ``p q``: for hard targets the two agree, and for soft ones only this form
    is best exactly at ``p = q`` (Wang et al. 2023, "Dice Semimetric Losses"). Sums run over the batch as well as over space,
    because a patch without the organ says little on its own. A class that no target of the batch has is left to cross-entropy.
    """
    axes = (0, *range(2, logits_BC.ndim))
    p_BC = torch.softmax(logits_BC, 1)
    sum_p, sum_q = total((w_B1 * p_BC).sum(axes)), total((w_B1 * q_BC).sum(axes))
    apart = total((w_B1 * (p_BC - q_BC).abs()).sum(axes))
    dice_C = (sum_p + sum_q - apart) / (sum_p + sum_q).clamp(min=1e-6)
    present = (sum_q > 0)[1:].to(dice_C.dtype)
    return ((1 - dice_C[1:]) * present).sum() / present.sum().clamp(min=1)


def voxel_loss(logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"], how: LossSpec) -> Float[Tensor, "b 1 *space"]:
    """Return the chosen loss of each voxel."""
    match how.name:
        case "ce":
            return cross_entropy(logits_BC, q_BC)
        case "gce":
            return generalised_cross_entropy(logits_BC, q_BC, how.power)
        case "sce":
            return how.alpha * cross_entropy(logits_BC, q_BC) + how.beta * reverse_cross_entropy(logits_BC, q_BC)
        case "kl":
            return divergence(logits_BC, q_BC, how.temperature)


def segmentation_loss(
    logits_BC: Float[Tensor, "b c *space"],
    q_BC: Float[Tensor, "b c *space"],
    w_B1: Float[Tensor, "b 1 *space"],
    how: LossSpec = LossSpec(),  # noqa: B008 - frozen
    total: Total = _all_is_here,
) -> Float[Tensor, ""]:
    """Return the voxels' loss plus weighted Dice, both masked, in float32 whatever the network computed in."""
    logits_BC = logits_BC.float()
    loss = weighted_mean(voxel_loss(logits_BC, q_BC, how), w_B1, total)
    return loss + how.dice * masked_dice(logits_BC, q_BC, w_B1, total) if how.dice else loss


def consistency_loss(
    logits_BC: Float[Tensor, "b c *space"],
    other_BC: Float[Tensor, "b c *space"],
    w_B1: Float[Tensor, "b 1 *space"],
    total: Total = _all_is_here,
) -> Float[Tensor, ""]:
    """Return the weighted mean squared difference between two networks' probabilities; the second one is not taught by it."""
    apart_BC = (torch.softmax(logits_BC.float(), 1) - torch.softmax(other_BC.detach().float(), 1)) ** 2
    return weighted_mean(apart_BC.mean(1, keepdim=True), w_B1, total)
