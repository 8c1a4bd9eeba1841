"""Which of a decoder's mask tokens are the answer, and answers joined from the parts of one call."""

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder

from distill.teachers.base import Decoded, Promising, TeacherProfile


def choose_tokens(logits: torch.Tensor, iou: torch.Tensor, profile: TeacherProfile, *, multimask: bool | None) -> Decoded:
    """Choose among all mask tokens; the first is the single-mask answer, except for SAMed, where each is a class.

    Args:
        logits: ``(P, M, m, m)`` of all tokens.
        iou: ``(P, M)``.
        profile: says what the family's own predictor answers.
        multimask: as in ``Teacher.decode``.
    """
    if multimask is None and profile.answer == "best" and logits.shape[1] > 1:
        best = iou[:, 1:].argmax(dim=1) + 1
        rows = torch.arange(len(best), device=best.device)
        return Decoded(low_res_logits=logits[rows, best][:, None], iou=iou[rows, best][:, None])
    if profile.answer == "all":
        chosen = slice(0, 1) if multimask is False else slice(None)
    else:
        chosen = slice(1, None) if multimask and logits.shape[1] > 1 else slice(0, 1)
    return Decoded(low_res_logits=logits[:, chosen], iou=iou[:, chosen])


def no_tokens(decoder: MaskDecoder, side_px: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits ``(0, M, m, m)`` and predicted IoU ``(0, M)`` of no prompts."""
    logits = torch.zeros(0, decoder.num_mask_tokens, side_px, side_px, dtype=torch.float32, device=device)
    return logits, logits[:, :, 0, 0]


def nothing_promising(side_px: int, device: torch.device) -> Promising:
    """Return the candidates of no prompts."""
    nowhere = torch.zeros(0, dtype=torch.long, device=device)
    logits = torch.zeros(0, 1, side_px, side_px, dtype=torch.float32, device=device)
    return Promising(prompt=nowhere, token=nowhere, low_res_logits=logits, iou=logits[:, 0, 0, 0])


def join_promising(parts: Sequence[Promising]) -> Promising:
    """Return the candidates of several parts of one call as those of the whole."""
    return Promising(
        prompt=torch.cat([part.prompt for part in parts]),
        token=torch.cat([part.token for part in parts]),
        low_res_logits=torch.cat([part.low_res_logits for part in parts]),
        iou=torch.cat([part.iou for part in parts]),
    )
