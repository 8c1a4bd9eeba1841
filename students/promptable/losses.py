"""How far a student is from its teacher: in embeddings, and in masks drawn from them.

Formulae: MobileSAM (Zhang et al. 2023) for the first, EdgeSAM (Zhou et al. 2023) for the second.
"""

import torch
from torch.nn import functional

OTHER_TOKENS = 1 / 3
"""Weight of each of the candidate masks beside the single answer, which is what labelling asks for."""
LEAST_CELLS = 16.0
"""Cross-entropy is divided by the area of the teacher's mask, but by no less: an empty mask would count without bounds."""
MOST_ENTROPY = 8.0
"""Of one mask, so that one which the student cannot see does not rule the batch."""


def inside(sizes_px: list[tuple[int, int]], shape: tuple[int, int], image_size: int, device: torch.device) -> torch.Tensor:
    """Return ``(B, 1, h, w)``: 1 for cells that show something of their picture, 0 in the padding.

    Args:
        sizes_px: (height, width) of each picture inside the square.
        shape: of the grid.
        image_size: side of the square in pixels.
        device: where the answer is wanted.
    """
    starts = [torch.arange(n, device=device) * (image_size / n) for n in shape]
    rows = torch.tensor([each[0] for each in sizes_px], device=device)
    columns = torch.tensor([each[1] for each in sizes_px], device=device)
    return ((starts[0] < rows[:, None])[:, :, None] & (starts[1] < columns[:, None])[:, None, :])[:, None].float()


def embedding_loss(student: torch.Tensor, teacher: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of embeddings ``(B, C, h, w)`` inside the pictures, as a share of the teacher's own variance."""
    cells = where.sum() * teacher.shape[1]
    mean = (teacher * where).sum((0, 2, 3), keepdim=True) / where.sum()
    variance = ((teacher - mean).square() * where).sum() / cells
    error = ((student - teacher).square() * where).sum() / cells
    return error / variance.clamp(min=1e-8)


def mask_loss(student: torch.Tensor, teacher: torch.Tensor, iou: torch.Tensor, wanted_iou: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus twice Dice of masks, and the difference of predicted IoU.

    Args:
        student: ``(P, M, m, m)`` logits, the single answer first; zero is where masks are cut.
        teacher: likewise; its probabilities are the target.
        iou: ``(P, M)`` as the student predicts it.
        wanted_iou: as the teacher does.
    """
    target = teacher.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(student, target, reduction="none")
    least = functional.binary_cross_entropy(target, target, reduction="none")  # what even the teacher itself would have
    entropy = ((entropy - least).sum((-2, -1)) / target.sum((-2, -1)).clamp(min=LEAST_CELLS)).clamp(max=MOST_ENTROPY)
    probability = student.sigmoid()
    total = probability.sum((-2, -1)) + target.sum((-2, -1)) + 1
    dice = (probability - target).abs().sum((-2, -1)) / total
    weights = student.new_full((student.shape[1],), OTHER_TOKENS)
    weights[0] = 1.0
    each = (entropy + 2 * dice) * weights
    return each.sum(1).mean() / weights.sum() + functional.mse_loss(iou, wanted_iou)
