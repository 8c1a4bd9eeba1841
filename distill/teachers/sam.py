"""The teacher on segment-anything's own modules: many pictures per encoder call, many prompts of many pictures per decoder call."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from segment_anything.modeling import Sam

from distill.errors import PromptError
from distill.teachers.answers import choose_tokens, join_promising, no_tokens, nothing_promising
from distill.teachers.asked import check_kinds, check_points_only, check_predict, one_picture_batch
from distill.teachers.base import CallSizes, Decoded, Embeddings, Prediction, Promising, PromptBatch, TeacherProfile
from distill.teachers.batching import BatchSize, fit, in_batches
from distill.teachers.cores import fit_threads
from distill.teachers.decode import decode_promising, decode_prompts
from distill.teachers.decode_folded import Drawing
from distill.teachers.memory import keep_freed_memory
from distill.teachers.passes import whole_passes
from distill.teachers.pictures import mask_as_logits, place_boxes, prompt_scale, restore, to_square
from distill.teachers.precision import Precision, resolve_precision
from distill.teachers.probes import blank_question, blank_squares
from distill.teachers.regions import Cells, cells_of
from distill.teachers.transfer import transfer_to
from distill.teachers.vit import ImageEncoder, set_int8

__all__ = ["MOST_PICTURES", "MOST_PROMPTS", "Precision", "SamTeacher", "resolve_precision"]

MOST_PICTURES, MOST_PROMPTS = 32, 512
SMALL_PX, SMALL_PASS = 512, 4
"""On a CPU squares up to this side are encoded so many at a time, larger ones one by one. The bundled net: 32.0, 32.5, 34.8 and 37.2 cpu-ms per picture by 8, 4, 2 and 1
(Zen 4)."""
"""Of one call on a GPU: an estimate of where larger ones gain nothing, not measured yet."""


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
        self.pictures_per_pass: int | None = None
        """How many pictures the encoder is always given at once; None for any number: on a GPU, and where it goes one by one itself."""
        if self.device.type == "cpu" and not isinstance(sam.image_encoder, ImageEncoder):
            self.pictures_per_pass = SMALL_PASS if profile.image_size <= SMALL_PX else 1
        self._way = transfer_to(self.device)
        self.encode_batch, self.decode_batch = self._batches(encode_chunk, decode_chunk)
        if self.device.type == "cpu":
            keep_freed_memory()
            fit_threads()
        elif isinstance(sam.image_encoder, ImageEncoder):
            low = torch.bfloat16 if self.precision == "bf16" else None
            sam.image_encoder.prepare(self.encode_batch.size, dtype=low, compiled=compiled)

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
        """How much to ask at once: on a CPU always the same; on a GPU what memory has proved to hold."""
        if self.device.type == "cpu":
            return CallSizes(padding="none")
        return CallSizes(pictures=self.encode_batch.size, prompts=self.decode_batch.size, padding="power")

    def ask_less(self) -> bool:
        """Halve ``call_sizes``, for a caller who ran out of memory around a call; False where that cannot be."""
        return self.device.type != "cpu" and any([self.encode_batch.halve(), self.decode_batch.halve()])

    def _features(self, squares: torch.Tensor) -> torch.Tensor:
        """Encode squares ``(B, 3, S, S)``."""
        encode, size = self.sam.image_encoder, self.pictures_per_pass
        with self._arithmetic():
            if size is None:
                features: torch.Tensor = encode(squares)
            else:
                features = torch.cat([encode(squares[some]) for some in whole_passes(len(squares), size).split(size)])[: len(squares)]
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
            PromptError: if a teacher that segments without prompts is given some, another none, or one a kind it was not trained with.
        """
        check_kinds(prompts, self.profile)
        if not len(prompts):
            return choose_tokens(*no_tokens(self.sam.mask_decoder, self.mask_size_px, self.device), self.profile, multimask=multimask)
        single = multimask is False or (multimask is None and self.profile.answer == "single")
        parts = in_batches(partial(self._decode_chunk, embeddings, prompts, single=single), len(prompts), self.decode_batch)
        logits, iou = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return choose_tokens(logits, iou, self.profile, multimask=multimask)

    @torch.inference_mode()
    def decode_promising(self, embeddings: Embeddings, prompts: PromptBatch, least_iou: float) -> Promising:
        """Answer prompts by points with their candidates, and draw only those whose predicted IoU exceeds ``least_iou``.

        The rest of the decoder is cheaper than the drawing, so a grid of points over a picture, most of which lead nowhere, costs less.

        Raises:
            PromptError: if the prompts are other than points.
        """
        check_points_only(prompts)
        check_kinds(prompts, self.profile)
        if not len(prompts):
            return nothing_promising(self.mask_size_px, self.device)
        return join_promising(in_batches(partial(self._decode_promising, embeddings, prompts, least_iou), len(prompts), self.decode_batch))

    def _decode_promising(self, embeddings: Embeddings, prompts: PromptBatch, least_iou: float, part: slice) -> Promising:
        where, scale = self._whereabouts(embeddings, prompts, part)
        points = self._tensor(np.asarray(prompts.points_xy_px)[part] * scale[:, None])
        labels = self._tensor(np.asarray(prompts.point_labels)[part])
        with self._arithmetic():
            drawn, logits, iou = decode_promising(self.sam, embeddings.features, where, points, labels, least_iou)
        row, token = (iou[drawn, 1:] > least_iou).nonzero(as_tuple=True)
        shifted = logits[row, token + 1].float() + self.profile.logit_shift
        return Promising(
            prompt=drawn[row] + part.start, token=token, low_res_logits=shifted[:, None], iou=iou[drawn[row], token + 1].float()
        )

    def _decode_chunk(
        self, embeddings: Embeddings, prompts: PromptBatch, part: slice, *, single: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self._arithmetic():
            logits, iou = self._ask(embeddings, prompts, part, single=single)
        shift = self.profile.logit_shift
        return logits.float() + shift if shift else logits.float(), iou.float()

    def _ask(self, embeddings: Embeddings, prompts: PromptBatch, part: slice, *, single: bool) -> tuple[torch.Tensor, torch.Tensor]:
        where, scale = self._whereabouts(embeddings, prompts, part)
        boxes = None if prompts.boxes_xyxy_px is None else self._tensor(place_boxes(self.profile, prompts.boxes_xyxy_px[part], scale))
        points = None if prompts.points_xy_px is None else self._tensor(prompts.points_xy_px[part] * scale[:, None])
        masks, mask_index = prompts.masks_of(part)
        return decode_prompts(
            self.sam,
            embeddings.features,
            where,
            boxes=boxes,
            points=points,
            point_labels=None if prompts.point_labels is None else self._tensor(prompts.point_labels[part]),
            mask_inputs=None if masks is None else self._tensor(masks)[:, None],
            mask_index=None if mask_index is None else self._way.send(mask_index),
            has_mask=None if prompts.has_mask is None else self._way.send(prompts.has_mask[part]),
            drawing=Drawing(tokens=1 if single else None, cells=self._cells(embeddings, prompts, part, scale)),
        )

    def _cells(self, embeddings: Embeddings, prompts: PromptBatch, part: slice, scale: np.ndarray) -> Sequence[Cells] | None:
        """Return what has to be drawn, or None for everything: to a GPU many small drawings are more work than one of all."""
        if prompts.regions_xyxy_px is None or self.device.type != "cpu":
            return None
        rows, columns = embeddings.features.shape[2:]
        return cells_of(prompts.regions_xyxy_px[part] * np.tile(scale, 2), (rows, columns), self.profile.image_size)

    def _whereabouts(self, embeddings: Embeddings, prompts: PromptBatch, part: slice) -> tuple[torch.Tensor, np.ndarray]:
        """Return each prompt's picture ``(P,)`` and the factors ``(P, 2)`` from its pixels to the network's."""
        index = prompts.image_index[part]
        scale = np.array([prompt_scale(self.profile, embeddings.sizes_px[i], embeddings.input_sizes_px[i]) for i in index])
        return self._way.send(np.asarray(index)).long(), scale  # int64: torch takes uint8 for a mask, not for places

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return self._way.send(np.asarray(array, np.float32))

    @torch.inference_mode()
    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        """Bring logits ``(P, M, m, m)`` to ``(P, M, H, W)`` exactly as the family's own code does; above zero means object."""
        return restore(logits, self.profile, size_px, input_size_px)

    def mask_prompt(self, mask: np.ndarray, input_size_px: tuple[int, int]) -> np.ndarray:
        """Turn ``(H, W)`` in [0, 1] into logits ``(m, m)`` for ``PromptBatch.mask_logits``."""
        return mask_as_logits(mask, self.profile, input_size_px, self.mask_size_px)

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
            point_labels: ``(N, K)`` or ``(K,)``; 1 inside, 0 outside, -1 padding. Default all 1.
            mask_input: ``(N, m, m)`` logits in the network's frame.
            multimask: see ``decode``.

        Raises:
            PromptError: if ``distill.teachers.asked`` refuses the prompts; a box may stick out of the picture, but not lie beside it.
        """
        batch = one_picture_batch(boxes, points, point_labels, mask_input, prompt_free=not self.profile.prompts)
        check_predict(batch, self.profile, self.mask_size_px, np.shape(image))
        embeddings = self.encode([image])
        decoded = self.decode(embeddings, batch, multimask=multimask)
        logits = self.upsample(decoded.low_res_logits, embeddings.sizes_px[0], embeddings.input_sizes_px[0])
        return Prediction(logits=logits.float().cpu().numpy(), iou=decoded.iou.float().cpu().numpy())
