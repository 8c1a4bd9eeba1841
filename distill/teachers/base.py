"""What every teacher offers, and the small values that cross its border."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch

from distill.errors import PromptError

PromptKind = Literal["box", "point", "mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherProfile:
    """The protocol that belongs to a checkpoint: how pictures and prompts go in, and how masks come out. Defaults: Segment Anything's."""

    name: str
    """``sam``, ``medsam``, ``samdistill-conv``, ..."""
    image_size: int
    """Side of the square that the encoder sees, in pixels."""
    resize: Literal["longest-side", "longest-side-area", "square-cubic", "square-nearest", "square-spline", "square-linear"] = (
        "longest-side"
    )
    """To the square: with the aspect kept and padding below and to the right, or stretched. Interpolations: ``distill.teachers.pictures``."""
    normalise: Literal["mean-std", "min-max", "unit"] = "mean-std"
    """ImageNet mean and deviation on 0-255; each picture's own range to [0, 1]; or 0-255 to [0, 1]."""
    padding: Literal["after-normalisation", "none"] = "after-normalisation"
    """Zeros are added to normalised pixels, as every family here that pads does."""
    boxes: Literal["exact", "truncated"] = "exact"
    """Whether boxes are cut to whole pixels in the network's frame."""
    answer: Literal["single", "best", "all"] = "single"
    """What the family's own predictor answers: the single-mask token, the best candidate by predicted IoU, or every mask token."""
    restore: Literal["through-input", "cropped", "probabilities", "nearest", "direct"] = "through-input"
    """How logits come back to the picture: over the input's resolution; cropped, then resized; after the sigmoid; nearest; at once."""
    prompts: tuple[PromptKind, ...] = ("box", "point", "mask")
    """What it was trained with; empty for a teacher that segments without any."""
    logit_shift: float = 0.0
    """Added to every mask logit, so that zero is the best place to cut; part of a checkpoint whose training says where that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Encoded pictures, with what is needed to map prompts and masks between their frame and the network's."""

    features: torch.Tensor
    """``(B, C, h, w)``."""
    sizes_px: tuple[tuple[int, int], ...]
    """(height, width) of each picture as given."""
    input_sizes_px: tuple[tuple[int, int], ...]
    """(height, width) of each picture inside the padded square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """``P`` prompts about the pictures of one ``Embeddings``, all with the same kinds of hint. Coordinates: picture pixels."""

    image_index: np.ndarray
    """``(P,)`` int: which picture each prompt is about, in any order."""
    boxes_xyxy_px: np.ndarray | None = None
    """``(P, 4)`` float32, upper bound exclusive."""
    points_xy_px: np.ndarray | None = None
    """``(P, K, 2)`` float32."""
    point_labels: np.ndarray | None = None
    """``(P, K)``; 1 inside the object, 0 outside, -1 where a prompt has fewer points than ``K``."""
    mask_logits: np.ndarray | None = None
    """``(P, m, m)`` float32 in the network's own low-resolution frame (see ``Teacher.mask_prompt``)."""
    mask_index: np.ndarray | None = None
    """``(P,)`` int: which of ``mask_logits``, then perhaps fewer than ``P``, each prompt has; None where each has its own."""
    regions_xyxy_px: np.ndarray | None = None
    """``(P, 4)`` float32: what nobody looks at outside of it, so that a teacher may leave it undrawn; a saving, never a hint."""
    has_mask: np.ndarray | None = None
    """``(P,)`` bool; False where ``mask_logits`` is to be ignored."""
    prompt_free: bool = False
    """Ask without any hint, for teachers that need none (SAMed)."""

    def __post_init__(self) -> None:
        """Refuse a batch without hints that is not meant to be, numbers that are none, labels without meaning and boxes that enclose nothing."""
        if not self.prompt_free and self.boxes_xyxy_px is None and self.points_xy_px is None and self.mask_logits is None:
            message = "a prompt batch needs boxes, points or masks, but has none of them."
            raise PromptError(message)
        self._check_numbers()
        if self.boxes_xyxy_px is not None:
            extent = self.boxes_xyxy_px[:, 2:] - self.boxes_xyxy_px[:, :2]
            bad = np.flatnonzero(~(extent > 0).all(axis=1))
            if len(bad):
                message = f"prompt {bad[0]}: box {self.boxes_xyxy_px[bad[0]].tolist()} encloses nothing; give x0, y0, x1, y1 with x1 > x0 and y1 > y0."
                raise PromptError(message)

    def _check_numbers(self) -> None:
        for name, given in (("box", self.boxes_xyxy_px), ("points", self.points_xy_px)):
            if given is not None and not np.isfinite(given).all():
                row = np.argwhere(~np.isfinite(given))[0][0]
                message = f"prompt {row}: {name} {given[row].tolist()} with NaN or infinity; give finite pixel coordinates."
                raise PromptError(message)
        if self.point_labels is not None and not np.isin(self.point_labels, (-1, 0, 1)).all():
            row, nth = np.argwhere(~np.isin(self.point_labels, (-1, 0, 1)))[0]
            label = self.point_labels[row, nth]
            message = (
                f"prompt {row}: point label {label:g} means nothing; say 1 (inside the object), 0 (outside) or -1 (padding, no point)."
            )
            raise PromptError(message)

    def masks_of(self, part: slice) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the rough masks of some of the prompts, and which of them each has; None where each has its own, or none has one."""
        if self.mask_logits is None or self.mask_index is None:
            return None if self.mask_logits is None else self.mask_logits[part], None
        needed, which = np.unique(self.mask_index[part], return_inverse=True)
        return self.mask_logits[needed], which

    def __len__(self) -> int:
        """Return ``P``."""
        return len(self.image_index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Answers to a ``PromptBatch``."""

    low_res_logits: torch.Tensor
    """``(P, M, m, m)`` in the network's frame, padding included; above zero means object."""
    iou: torch.Tensor
    """``(P, M)`` predicted IoU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promising:
    """The ``K`` candidates of a ``PromptBatch`` whose predicted IoU was high enough to draw them."""

    prompt: torch.Tensor
    """``(K,)`` rows of the batch."""
    token: torch.Tensor
    """``(K,)`` which candidate, 0 to 2."""
    low_res_logits: torch.Tensor
    """``(K, 1, m, m)`` in the network's frame."""
    iou: torch.Tensor
    """``(K,)`` predicted IoU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSizes:
    """How much a teacher is asked at once by those who have much to ask (a teacher says so in ``call_sizes``). Defaults: a CPU's.

    Larger calls gain nothing on a CPU.
    """

    pictures: int = 8
    """Of one encoder call."""
    prompts: int = 64
    """The most of one decoder call. No more than the teacher decodes in one piece: it would cut the call itself, and an answer would
    depend on which piece its question came to lie in."""
    padding: Literal["full", "power", "none"] = "full"
    """How calls that are not full are filled with repeats. ``full``: to the sizes above, so that answers do not depend, to the last bit, on what else is
    asked. ``power``: to the next power of two; a GPU's large calls are rarely full. ``none``: not, by a teacher that makes its answers independent of
    their company itself."""

    def questions(self, boxes: int) -> int:
        """Return the most questions of one decoder call, of so many boxes each; where calls are padded in full, no more than pictures."""
        most = max(1, self.prompts // boxes)
        return min(self.pictures, most) if self.padding == "full" else most

    def padded(self, count: int, most: int) -> int:
        """Return how many items a call with ``count`` of at most ``most`` holds, padding included."""
        return {"full": most, "power": min(most, 1 << (count - 1).bit_length()), "none": count}[self.padding]


@runtime_checkable
class DrawsSelectively(Protocol):
    """A teacher that can leave unpromising candidates undrawn."""

    def decode_promising(self, embeddings: Embeddings, prompts: PromptBatch, least_iou: float) -> Promising:
        """Answer prompts by points; draw only candidates with a predicted IoU above ``least_iou``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What ``Teacher.predict`` returns for one picture."""

    logits: np.ndarray
    """``(N, M, H, W)`` float32 at picture resolution."""
    iou: np.ndarray
    """``(N, M)`` float32."""


@runtime_checkable
class Teacher(Protocol):
    """A promptable segmentation model. Contract: ``tests/distill/teacher_contract.py``."""

    profile: TeacherProfile
    fingerprint: str
    """Hash of the weights; label sets carry it, so that one bad teacher's labels can be found again."""
    mask_size_px: int
    """Side ``m`` of the low-resolution frame."""

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        """Encode pictures ``(H, W, 3)`` uint8 RGB, of any sizes, in one batch."""
        ...

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        """Answer all prompts, about any of the pictures, in one decoder call.

        ``multimask``: None answers as the family's own predictor does; False takes the single-mask token; True all candidates.
        """
        ...

    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        """Bring low-resolution logits ``(P, M, m, m)`` of equally sized pictures to picture resolution ``(P, M, H, W)``."""
        ...

    def mask_prompt(self, mask: np.ndarray, input_size_px: tuple[int, int]) -> np.ndarray:
        """Turn a mask or probability map ``(H, W)`` in [0, 1] into logits ``(m, m)`` for ``PromptBatch.mask_logits``."""
        ...

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
        """Segment one picture; see ``Prediction`` for shapes."""
        ...


def sizes_of(teacher: Teacher) -> CallSizes:
    """Return how much a teacher wants to be asked at once, as it is now; the sizes of a CPU where it does not say."""
    sizes: CallSizes = getattr(teacher, "call_sizes", CallSizes())
    return sizes
