"""The teacher on segment-anything's own modules: many pictures per encoder call, many prompts of many pictures per decoder call."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from distill.errors import PromptError
from distill.teachers.base import Decoded, Embeddings, Prediction, PromptBatch, TeacherProfile
from distill.teachers.decode import decode_prompts

MASK_PROMPT_LOGIT = 6.0
"""Confidence given to a mask used as a prompt; the bundled teacher was trained with this value."""


class SamTeacher:
    """A ``segment_anything`` model with its protocol (implements ``Teacher``).

    Args:
        sam: the model, weights loaded.
        profile: how pictures go in.
        fingerprint: hash of the weights.
        device: where to compute.
        encode_chunk: pictures per encoder call.
        decode_chunk: prompts per decoder call; bounds memory, not what a caller may ask for.
    """

    def __init__(
        self,
        sam: Sam,
        profile: TeacherProfile,
        fingerprint: str,
        *,
        device: str = "cpu",
        encode_chunk: int = 8,
        decode_chunk: int = 64,
    ) -> None:
        """Freeze the model and move it to its device."""
        self.sam = sam.eval().requires_grad_(requires_grad=False).to(device)
        self.profile = profile
        self.fingerprint = fingerprint
        self.device = torch.device(device)
        self.encode_chunk = encode_chunk
        self.decode_chunk = decode_chunk
        self.mask_size_px = int(sam.prompt_encoder.mask_input_size[0])
        self._resize = ResizeLongestSide(profile.image_size)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        """Encode pictures ``(H, W, 3)`` uint8 RGB of any sizes.

        Raises:
            PromptError: if a picture has another shape or type.
        """
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                message = f"picture {index}: expected (H, W, 3) uint8 RGB, but got {image.shape} {image.dtype}. Window and convert it first (distill.intensity)."
                raise PromptError(message)
        resized = [np.ascontiguousarray(self._resize.apply_image(image)) for image in images]
        squares = [self.sam.preprocess(torch.as_tensor(r, device=self.device).permute(2, 0, 1)) for r in resized]
        chunks = [
            self.sam.image_encoder(torch.stack(squares[n : n + self.encode_chunk])) for n in range(0, len(squares), self.encode_chunk)
        ]
        return Embeddings(
            features=torch.cat(chunks),
            sizes_px=tuple((i.shape[0], i.shape[1]) for i in images),
            input_sizes_px=tuple((r.shape[0], r.shape[1]) for r in resized),
        )

    @torch.inference_mode()
    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool = False) -> Decoded:
        """Answer all prompts in as few decoder calls as ``decode_chunk`` allows.

        Returns:
            With ``multimask`` the three candidates of each prompt, else the single-mask answer (``M = 1``).
        """
        parts = [
            self._decode_chunk(embeddings, prompts, slice(n, n + self.decode_chunk)) for n in range(0, len(prompts), self.decode_chunk)
        ]
        chosen = slice(1, None) if multimask else slice(0, 1)
        return Decoded(low_res_logits=torch.cat([p[0] for p in parts])[:, chosen], iou=torch.cat([p[1] for p in parts])[:, chosen])

    def _decode_chunk(self, embeddings: Embeddings, prompts: PromptBatch, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        logits, iou = self._ask(embeddings, prompts, part)
        return logits + self.profile.logit_shift if self.profile.logit_shift else logits, iou

    def _ask(self, embeddings: Embeddings, prompts: PromptBatch, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        index = prompts.image_index[part]
        scale = np.array(
            [
                (embeddings.input_sizes_px[i][1] / embeddings.sizes_px[i][1], embeddings.input_sizes_px[i][0] / embeddings.sizes_px[i][0])
                for i in index
            ]
        )
        boxes = None if prompts.boxes_xyxy_px is None else self._tensor(prompts.boxes_xyxy_px[part] * np.tile(scale, 2))
        points = None if prompts.points_xy_px is None else self._tensor(prompts.points_xy_px[part] * scale[:, None])
        return decode_prompts(
            self.sam,
            embeddings.features,
            torch.as_tensor(index, device=self.device),
            boxes=boxes,
            points=points,
            point_labels=None if prompts.point_labels is None else self._tensor(prompts.point_labels[part]),
            mask_inputs=None if prompts.mask_logits is None else self._tensor(prompts.mask_logits[part])[:, None],
            has_mask=None if prompts.has_mask is None else torch.as_tensor(prompts.has_mask[part], device=self.device),
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array, np.float32), device=self.device)

    @torch.inference_mode()
    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        """Bring logits ``(P, M, m, m)`` to ``(P, M, H, W)`` exactly as ``Sam.postprocess_masks`` does."""
        full: torch.Tensor = self.sam.postprocess_masks(logits, input_size_px, size_px)
        return full

    def mask_prompt(self, mask: np.ndarray, input_size_px: tuple[int, int]) -> np.ndarray:
        """Turn ``(H, W)`` in [0, 1] into logits ``(m, m)``: shrink the mask first, then scale, as shrinking logits washes out small objects."""
        ratio = self.mask_size_px / self.profile.image_size
        height, width = (max(1, round(side * ratio)) for side in input_size_px)
        square = np.zeros((self.mask_size_px, self.mask_size_px), np.float32)
        square[:height, :width] = cv2.resize(np.asarray(mask, np.float32), (width, height), interpolation=cv2.INTER_AREA)
        return (2 * square - 1) * np.float32(MASK_PROMPT_LOGIT)

    def predict(
        self,
        image: np.ndarray,
        boxes: np.ndarray | None = None,
        points: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        *,
        multimask: bool = False,
    ) -> Prediction:
        """Segment one picture.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            boxes: ``(N, 4)`` xyxy in picture pixels, upper bound exclusive.
            points: ``(N, K, 2)`` xy, or ``(K, 2)`` for one prompt.
            point_labels: ``(N, K)`` or ``(K,)``; 1 inside, 0 outside. Default all 1.
            mask_input: ``(N, m, m)`` logits in the network's frame.
            multimask: return three candidates per prompt instead of one.

        Raises:
            PromptError: if there is no prompt, or boxes and points disagree in number.
        """
        batch = _one_picture_batch(boxes, points, point_labels, mask_input)
        embeddings = self.encode([image])
        decoded = self.decode(embeddings, batch, multimask=multimask)
        logits = self.upsample(decoded.low_res_logits, embeddings.sizes_px[0], embeddings.input_sizes_px[0])
        return Prediction(logits=logits.float().cpu().numpy(), iou=decoded.iou.float().cpu().numpy())


def _one_picture_batch(
    boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None, mask: np.ndarray | None
) -> PromptBatch:
    boxes = None if boxes is None else np.atleast_2d(np.asarray(boxes, np.float32))
    points = None if points is None else np.asarray(points, np.float32)
    if points is not None and points.ndim == 2:
        points = points[None]
    if points is not None:
        labels = np.ones(points.shape[:2], np.float32) if labels is None else np.atleast_2d(np.asarray(labels, np.float32))
    counts = {len(given) for given in (boxes, points, labels, mask) if given is not None}
    if len(counts) > 1:
        message = f"boxes, points, labels and masks must be equally many prompts, but are {sorted(counts)}."
        raise PromptError(message)
    return PromptBatch(
        image_index=np.zeros(counts.pop() if counts else 0, np.int64),
        boxes_xyxy_px=boxes,
        points_xy_px=points,
        point_labels=labels,
        mask_logits=mask,
    )
