"""Blank pictures and prompts of the size that a model takes, to measure what one of them costs."""

import numpy as np
import torch
from segment_anything.modeling import Sam

from distill.teachers.base import Embeddings, PromptBatch, TeacherProfile


def blank_squares(count: int, profile: TeacherProfile, device: torch.device) -> torch.Tensor:
    """Return ``(count, 3, S, S)`` float32 for the encoder."""
    return torch.zeros(count, 3, profile.image_size, profile.image_size, dtype=torch.float32, device=device)


def blank_question(count: int, sam: Sam, profile: TeacherProfile, device: torch.device) -> tuple[Embeddings, PromptBatch]:
    """Return an encoded picture and ``count`` prompts about it, hinted at as the wavefront does: by box and, where that is taken, mask."""
    side, encoder = profile.image_size, sam.prompt_encoder
    features = torch.zeros(1, encoder.embed_dim, *encoder.image_embedding_size, dtype=torch.float32, device=device)
    picture = Embeddings(features=features, sizes_px=((side, side),), input_sizes_px=((side, side),))
    index = np.zeros(count, np.int64)
    if not profile.prompts:
        return picture, PromptBatch(image_index=index, prompt_free=True)
    masks = np.zeros((count, *encoder.mask_input_size), np.float32) if "mask" in profile.prompts else None
    boxes = np.tile(np.array([0, 0, side, side], np.float32), (count, 1))
    return picture, PromptBatch(image_index=index, boxes_xyxy_px=boxes, mask_logits=masks)
