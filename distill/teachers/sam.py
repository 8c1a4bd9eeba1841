"""The teacher on segment-anything's own modules: many pictures per encoder call, many prompts of many pictures per decoder call."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from segment_anything.modeling import Sam

from distill.errors import PromptError, TeacherError
from distill.teachers.base import CallSizes, Decoded, Embeddings, Prediction, Promising, PromptBatch, TeacherProfile
from distill.teachers.batching import BatchSize, fit, in_batches
from distill.teachers.cores import fit_threads
from distill.teachers.decode import decode_promising, decode_prompts
from distill.teachers.memory import keep_freed_memory
from distill.teachers.pictures import place_boxes, prompt_scale, restore, to_square
from distill.teachers.probes import blank_question, blank_squares
from distill.teachers.transfer import transfer_to
from distill.teachers.vit import ImageEncoder, set_int8

Precision = Literal["auto", "fp32", "bf16", "int8"]

MOST_PICTURES, MOST_PROMPTS = 32, 512
"""Of one call on a GPU: an estimate of where larger ones gain nothing, not measured yet."""
MASK_PROMPT_LOGIT = 6.0
"""Confidence given to a mask used as a prompt; the bundled teacher was trained with this value."""


class SamTeacher:
    """A ``segment_anything`` model with its protocol (implements ``Teacher``).

    Args:
        sam: the model, weights loaded.
        profile: how pictures go in and masks come out.
        fingerprint: hash of the weights.
        device: where to compute.
        precision: ``"bf16"`` runs matrix products in bfloat16; ``"auto"`` does so on CUDA, except for this package's own small teacher.
            ``"int8"`` is ``"bf16"`` with the linear layers of a ViT encoder in 8-bit integers, on a CPU.
        encode_chunk: pictures per encoder call; None is ``CallSizes``'s number, or on CUDA what fits into the free memory.
        decode_chunk: prompts per decoder call, likewise; bounds memory, not what a caller may ask for.
        compiled: compile a ViT encoder's blocks on CUDA (``ImageEncoder.prepare``); other encoders and a CPU stay as they are.
    """

    def __init__(
        self,
        sam: Sam,
        profile: TeacherProfile,
        fingerprint: str,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        encode_chunk: int | None = None,
        decode_chunk: int | None = None,
        compiled: bool = False,
    ) -> None:
        """Freeze the model and move it to its device.

        Raises:
            TeacherError: if the encoder cannot compute in the precision that was named.
        """
        self.sam = sam.eval().requires_grad_(requires_grad=False).to(device)
        self.profile = profile
        self.fingerprint = fingerprint
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, self.device, profile)
        set_int8(self.sam.image_encoder, self.device, on=self.precision == "int8")
        self.mask_size_px = int(sam.prompt_encoder.mask_input_size[0])
        self._way = transfer_to(self.device)
        self.encode_batch, self.decode_batch = self._batches(encode_chunk, decode_chunk)
        if self.device.type == "cpu":
            keep_freed_memory()
            fit_threads()
        elif isinstance(sam.image_encoder, ImageEncoder):
            dtype = torch.bfloat16 if self.precision == "bf16" else None
            sam.image_encoder.prepare(self.encode_batch.size, dtype=dtype, compiled=compiled)

    @torch.inference_mode()
    def _batches(self, pictures: int | None, prompts: int | None) -> tuple[BatchSize, BatchSize]:
        """Return the sizes that were named, or else fit."""

        def encode(count: int) -> None:
            self._features(blank_squares(count, self.profile, self.device))

        def decode(count: int) -> None:
            self._decode_chunk(*blank_question(count, self.sam, self.profile, self.device), slice(0, count))

        usual, where = CallSizes(), self.device
        return (
            BatchSize(pictures, "pictures") if pictures else fit(encode, where, usual=usual.pictures, most=MOST_PICTURES, what="pictures"),
            BatchSize(prompts, "prompts") if prompts else fit(decode, where, usual=usual.prompts, most=MOST_PROMPTS, what="prompts"),
        )

    @property
    def call_sizes(self) -> CallSizes:
        """How much to ask at once: on a CPU always the same, so that no answer depends on it; on a GPU what memory has proved to hold."""
        if self.device.type == "cpu":
            return CallSizes()
        return CallSizes(pictures=self.encode_batch.size, prompts=self.decode_batch.size, constant=False)

    def ask_less(self) -> bool:
        """Halve ``call_sizes``, for a caller who ran out of memory around a call; False where that cannot be."""
        return self.device.type != "cpu" and any([self.encode_batch.halve(), self.decode_batch.halve()])

    def _features(self, squares: torch.Tensor) -> torch.Tensor:
        with self._arithmetic():
            features: torch.Tensor = self.sam.image_encoder(squares)
        return features.float()

    def _arithmetic(self) -> AbstractContextManager[object]:
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, torch.bfloat16)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        """Encode pictures of any sizes: ``(H, W, 3)`` uint8 RGB; for SAMed also ``(H, W)`` and floats in [0, 1].

        Raises:
            PromptError: if there is no picture, or one has another shape or type.
        """
        if not len(images):
            message = "encode was given no pictures; give at least one."
            raise PromptError(message)

        def encode_some(some: slice) -> tuple[torch.Tensor, list[tuple[int, int]]]:
            here = range(some.start, some.stop)  # squares of this batch only: a volume's would fill the memory
            squares = self._way.prepare(lambda n: to_square(images[n], self.profile, index=n, device=torch.device("cpu")), here)
            return self._features(torch.stack([square for square, _ in squares])), [size for _, size in squares]

        chunks = in_batches(encode_some, len(images), self.encode_batch)
        return Embeddings(
            features=torch.cat([features for features, _ in chunks]),
            sizes_px=tuple((i.shape[0], i.shape[1]) for i in images),
            input_sizes_px=tuple(size for _, sizes in chunks for size in sizes),
        )

    @torch.inference_mode()
    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        """Answer all prompts in as few decoder calls as ``decode_chunk`` allows.

        Args:
            embeddings: of the pictures.
            prompts: about them.
            multimask: None answers as the family's own predictor does: one mask, or every mask token for SAMed. False takes the
                single-mask token (``M = 1``), True the candidates (three; every token for SAMed).

        Raises:
            PromptError: if a teacher that segments without prompts is given some, or another is given none.
        """
        self._check_kind(prompts)
        if not len(prompts):
            return self._select(*self._no_answers(), multimask=multimask)
        parts = in_batches(partial(self._decode_chunk, embeddings, prompts), len(prompts), self.decode_batch)
        return self._select(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), multimask=multimask)

    @torch.inference_mode()
    def decode_promising(self, embeddings: Embeddings, prompts: PromptBatch, least_iou: float) -> Promising:
        """Answer prompts by points with their candidates, and draw only those whose predicted IoU exceeds ``least_iou``.

        The rest of the decoder is cheaper than the drawing, so a grid of points over a picture, most of which lead nowhere, costs less.

        Raises:
            PromptError: if the prompts are other than points.
        """
        if (
            prompts.points_xy_px is None
            or prompts.point_labels is None
            or prompts.boxes_xyxy_px is not None
            or prompts.mask_logits is not None
        ):
            message = "only prompts by points, without boxes and masks, can be drawn selectively. Use decode."
            raise PromptError(message)
        self._check_kind(prompts)
        if not len(prompts):
            logits, _ = self._no_answers()
            nowhere = torch.zeros(0, dtype=torch.long, device=self.device)
            return Promising(prompt=nowhere, token=nowhere, low_res_logits=logits[:, :1], iou=logits[:, 0, 0, 0])
        parts = in_batches(partial(self._decode_promising, embeddings, prompts, least_iou), len(prompts), self.decode_batch)
        return Promising(
            prompt=torch.cat([part.prompt for part in parts]),
            token=torch.cat([part.token for part in parts]),
            low_res_logits=torch.cat([part.low_res_logits for part in parts]),
            iou=torch.cat([part.iou for part in parts]),
        )

    def _decode_promising(self, embeddings: Embeddings, prompts: PromptBatch, least_iou: float, part: slice) -> Promising:
        index = prompts.image_index[part]
        scale = np.array([prompt_scale(self.profile, embeddings.sizes_px[i], embeddings.input_sizes_px[i]) for i in index])
        points = self._tensor(np.asarray(prompts.points_xy_px)[part] * scale[:, None])
        labels = self._tensor(np.asarray(prompts.point_labels)[part])
        where = self._places(index)
        with self._arithmetic():
            drawn, logits, iou = decode_promising(self.sam, embeddings.features, where, points, labels, least_iou)
        row, token = (iou[drawn, 1:] > least_iou).nonzero(as_tuple=True)
        shifted = logits[row, token + 1].float() + self.profile.logit_shift
        return Promising(
            prompt=drawn[row] + part.start, token=token, low_res_logits=shifted[:, None], iou=iou[drawn[row], token + 1].float()
        )

    def _no_answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits ``(0, M, m, m)`` and predicted IoU ``(0, M)`` of no prompts."""
        logits = torch.zeros(0, self.sam.mask_decoder.num_mask_tokens, self.mask_size_px, self.mask_size_px, device=self.device)
        return logits, logits[:, :, 0, 0]

    def _check_kind(self, prompts: PromptBatch) -> None:
        if not self.profile.prompts and not prompts.prompt_free:
            message = f"{self.profile.name} segments without prompts, but was given some. Ask it with none: predict(image)."
            raise PromptError(message)
        if self.profile.prompts and prompts.prompt_free:
            message = f"{self.profile.name} needs boxes, points or masks, but was asked without any."
            raise PromptError(message)

    def _select(self, logits: torch.Tensor, iou: torch.Tensor, *, multimask: bool | None) -> Decoded:
        """Choose among all mask tokens; the first is the single-mask answer, except for SAMed, where each is a class."""
        if multimask is None and self.profile.answer == "best" and logits.shape[1] > 1:
            best = iou[:, 1:].argmax(dim=1) + 1
            rows = torch.arange(len(best), device=best.device)
            return Decoded(low_res_logits=logits[rows, best][:, None], iou=iou[rows, best][:, None])
        if self.profile.answer == "all":
            chosen = slice(0, 1) if multimask is False else slice(None)
        else:
            chosen = slice(1, None) if multimask and logits.shape[1] > 1 else slice(0, 1)
        return Decoded(low_res_logits=logits[:, chosen], iou=iou[:, chosen])

    def _decode_chunk(self, embeddings: Embeddings, prompts: PromptBatch, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        with self._arithmetic():
            logits, iou = self._ask(embeddings, prompts, part)
        logits, iou = logits.float(), iou.float()
        return logits + self.profile.logit_shift if self.profile.logit_shift else logits, iou

    def _ask(self, embeddings: Embeddings, prompts: PromptBatch, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        index = prompts.image_index[part]
        scale = np.array([prompt_scale(self.profile, embeddings.sizes_px[i], embeddings.input_sizes_px[i]) for i in index])
        boxes = None if prompts.boxes_xyxy_px is None else self._tensor(place_boxes(self.profile, prompts.boxes_xyxy_px[part], scale))
        points = None if prompts.points_xy_px is None else self._tensor(prompts.points_xy_px[part] * scale[:, None])
        return decode_prompts(
            self.sam,
            embeddings.features,
            self._places(index),
            boxes=boxes,
            points=points,
            point_labels=None if prompts.point_labels is None else self._tensor(prompts.point_labels[part]),
            mask_inputs=None if prompts.mask_logits is None else self._tensor(prompts.mask_logits[part])[:, None],
            has_mask=None if prompts.has_mask is None else self._way.send(prompts.has_mask[part]),
        )

    def _places(self, index: np.ndarray) -> torch.Tensor:
        """Return int64: torch takes uint8 for a mask, not for places."""
        return self._way.send(np.asarray(index)).long()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return self._way.send(np.asarray(array, np.float32))

    @torch.inference_mode()
    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        """Bring logits ``(P, M, m, m)`` to ``(P, M, H, W)`` exactly as the family's own code does; above zero means object."""
        return restore(logits, self.profile, size_px, input_size_px)

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
        multimask: bool | None = None,
    ) -> Prediction:
        """Segment one picture.

        Args:
            image: ``(H, W, 3)`` uint8 RGB; for SAMed also ``(H, W)`` and floats in [0, 1].
            boxes: ``(N, 4)`` xyxy in picture pixels, upper bound exclusive.
            points: ``(N, K, 2)`` xy, or ``(K, 2)`` for one prompt.
            point_labels: ``(N, K)`` or ``(K,)``; 1 inside, 0 outside. Default all 1.
            mask_input: ``(N, m, m)`` logits in the network's frame.
            multimask: see ``decode``.

        Raises:
            PromptError: if there is no prompt, or boxes and points disagree in number.
        """
        batch = _one_picture_batch(boxes, points, point_labels, mask_input, prompt_free=not self.profile.prompts)
        embeddings = self.encode([image])
        decoded = self.decode(embeddings, batch, multimask=multimask)
        logits = self.upsample(decoded.low_res_logits, embeddings.sizes_px[0], embeddings.input_sizes_px[0])
        return Prediction(logits=logits.float().cpu().numpy(), iou=decoded.iou.float().cpu().numpy())


def resolve_precision(precision: Precision, device: torch.device, profile: TeacherProfile) -> Literal["fp32", "bf16", "int8"]:
    """Return what ``"auto"`` means: bfloat16 on CUDA devices that have it, but never for the bundled teacher, whose labels stay as they are."""
    if precision not in get_args(Precision):
        message = f"precision {precision!r} is not known; use one of {', '.join(get_args(Precision))}."
        raise TeacherError(message)
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and profile.name != "samdistill-conv" and _has_bf16(device)
    return "bf16" if fast else "fp32"


def _has_bf16(device: torch.device) -> bool:
    """Tell whether a GPU computes in bfloat16 itself; where it is emulated, it is slower than float32."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _check_shapes(boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None, mask: np.ndarray | None) -> None:
    rules = (
        (boxes, (2, 4), "boxes must be (N, 4)"),
        (points, (3, 2), "points must be (N, K, 2), or (K, 2) for one prompt"),
        (mask, None, "mask_input must be (N, m, m)"),
    )
    for given, form, wanted in rules:
        if given is None:
            continue
        shape = np.shape(given)
        if (len(shape) != 3) if form is None else (len(shape), shape[-1]) != form:
            message = f"{wanted}, but is {shape}."
            raise PromptError(message)
    if points is not None and labels is not None and labels.shape != points.shape[:2]:
        message = f"point_labels must be one number per point, {points.shape[:2]}, but are {labels.shape}."
        raise PromptError(message)


def _one_picture_batch(
    boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None, mask: np.ndarray | None, *, prompt_free: bool
) -> PromptBatch:
    boxes = None if boxes is None else np.atleast_2d(np.asarray(boxes, np.float32))
    points = None if points is None else np.asarray(points, np.float32)
    if points is not None and points.ndim == 2:
        points = points[None]
    if points is not None:
        labels = np.ones(points.shape[:2], np.float32) if labels is None else np.atleast_2d(np.asarray(labels, np.float32))
    _check_shapes(boxes, points, labels, mask)
    counts = {len(given) for given in (boxes, points, labels, mask) if given is not None}
    if len(counts) > 1:
        message = f"boxes, points, labels and masks must be equally many prompts, but are {sorted(counts)}."
        raise PromptError(message)
    if prompt_free and not counts:
        return PromptBatch(image_index=np.zeros(1, np.int64), prompt_free=True)
    return PromptBatch(
        image_index=np.zeros(counts.pop() if counts else 0, np.int64),
        boxes_xyxy_px=boxes,
        points_xy_px=points,
        point_labels=labels,
        mask_logits=mask,
    )
