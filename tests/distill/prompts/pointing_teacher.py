"""A stand-in for a teacher that answers a point with the patch of equal colour around it; read with ``runpy``, as tests are no package."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from distill.teachers.base import Decoded, Embeddings, PromptBatch, TeacherProfile

SURE = 8.0


class PointingTeacher:
    """Sees colours and nothing else. Background (black) is no object: it is answered with nothing, and a predicted IoU of 0."""

    profile = TeacherProfile(name="pointing", image_size=64)
    fingerprint = "pointing"
    mask_size_px = 64

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        sizes = tuple((image.shape[0], image.shape[1]) for image in images)
        return Embeddings(features=torch.from_numpy(np.stack(images)), sizes_px=sizes, input_sizes_px=sizes)

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        assert prompts.points_xy_px is not None
        answers = [
            self._patch(embeddings.features[n].numpy(), xy[0]) for n, xy in zip(prompts.image_index, prompts.points_xy_px, strict=True)
        ]
        logits = torch.from_numpy(np.where(np.stack(answers), SURE, -SURE).astype(np.float32))[:, None]
        return Decoded(low_res_logits=logits, iou=torch.tensor([[0.9 * bool(answer.any())] for answer in answers]))

    def _patch(self, picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
        x, y = int(xy[0]), int(xy[1])
        same = (picture == picture[y, x]).all(axis=-1) & (picture[y, x] > 0).any()
        _, parts = cv2.connectedComponents(same.astype(np.uint8), connectivity=4)
        found: np.ndarray = same & (parts == parts[y, x])
        return found

    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        return logits

    def mask_prompt(self, mask: np.ndarray, input_size_px: tuple[int, int]) -> np.ndarray:
        return mask

    def predict(self, *arguments: object, **named: object) -> object:
        raise NotImplementedError
