"""One loss for hard labels, soft labels and labels with holes.

Shapes: ``B`` batch, ``C`` background and classes, then space. Targets ``q_BC`` are distributions over ``C``; weights ``w_B1`` are
how much each voxel counts, and a voxel of weight 0 contributes nothing at all, neither to the value nor to any gradient.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

from storage.case import IGNORE


def targets_from_ids(ids_B: Integer[Tensor, "b *space"], outputs: int) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, "b 1 *space"]]:
    """Turn class indices with ``IGNORE`` into one-hot targets and 0/1 weights.

    Args:
        ids_B: 0 for background, 1 to ``outputs - 1`` for the classes, ``IGNORE`` where nobody should learn.
        outputs: Number of channels ``C``.
    """
    learn = ids_B != IGNORE
    hot = functional.one_hot(torch.where(learn, ids_B, 0).long(), outputs)
    return hot.movedim(-1, 1).to(torch.float32), learn.unsqueeze(1).to(torch.float32)


def masked_cross_entropy(
    logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"], w_B1: Float[Tensor, "b 1 *space"]
) -> Float[Tensor, ""]:
    """Return the weighted mean of ``-sum_c q_c log p_c``; 0 where every weight is 0."""
    loss_B1 = -(q_BC * torch.log_softmax(logits_BC, 1)).sum(1, keepdim=True)
    return (w_B1 * loss_B1).sum() / w_B1.sum().clamp(min=1)


def masked_dice(
    logits_BC: Float[Tensor, "b c *space"], q_BC: Float[Tensor, "b c *space"], w_B1: Float[Tensor, "b 1 *space"]
) -> Float[Tensor, ""]:
    """Return one minus the mean foreground Dice, safe for soft targets.

    The overlap is ``(|p| + |q| - |p - q|) / 2`` instead of ``p q``: for hard targets the two agree, and for soft ones only this form
    is best exactly at ``p = q`` (Wang et al. 2023, "Dice Semimetric Losses"). Sums run over the batch as well as over space,
    because a patch without the organ says little on its own. A class that no target of the batch has is left to cross-entropy.
    """
    axes = (0, *range(2, logits_BC.ndim))
    p_BC = torch.softmax(logits_BC, 1)
    sum_p, sum_q = (w_B1 * p_BC).sum(axes), (w_B1 * q_BC).sum(axes)
    apart = (w_B1 * (p_BC - q_BC).abs()).sum(axes)
    dice_C = (sum_p + sum_q - apart) / (sum_p + sum_q).clamp(min=1e-6)
    present = (sum_q > 0)[1:].to(dice_C.dtype)
    return ((1 - dice_C[1:]) * present).sum() / present.sum().clamp(min=1)


def segmentation_loss(
    logits_BC: Float[Tensor, "b c *space"],
    q_BC: Float[Tensor, "b c *space"],
    w_B1: Float[Tensor, "b 1 *space"],
    *,
    dice_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Return cross-entropy plus weighted Dice, both masked, in float32 whatever the network computed in."""
    logits_BC = logits_BC.float()
    return masked_cross_entropy(logits_BC, q_BC, w_B1) + dice_weight * masked_dice(logits_BC, q_BC, w_B1)
