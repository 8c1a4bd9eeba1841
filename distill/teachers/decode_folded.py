"""segment-anything's mask decoder with its products in another order: the image side is never projected, the tokens are.

The decoder attends from a prompt's few tokens (five of its own, two for a box) to the image's thousands, and back. Its modules
project the image's tokens for that, ten times per prompt: ``n`` tokens from ``C`` to ``C / 2`` channels or back. But a product of
a projected token with a projected image token, ``(W_q t) . (W_k x)``, is ``(W_k' W_q t) . x``: carrying the tokens through the image
side's weights costs next to nothing, and leaves ``A T`` products per image token where there were ``C / 2`` (56 against 128 for
a box). The same holds for values and for the output's projection. Softmax makes two more terms vanish: a key's bias adds the same to all
of a query's logits, and weights that sum to one carry the output's bias. In the first layer a picture is the same for all prompts about it:
there its projections are made once, and each prompt's own products are by head (``distill.teachers.folded_attention``).

The transposed convolutions of the upscaling have kernel and stride 2, so they are products as well, and the pixels are put in
order only at the end, when a pixel is four mask logits instead of 32 channels.

Letters: ``P`` prompts, ``n`` image tokens, ``C`` channels, ``A`` heads, ``D`` channels per head, ``T`` tokens per prompt, ``M`` masks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import MaskDecoder, Sam

from distill.teachers import folded_cpu
from distill.teachers.cpu_crew import share_out
from distill.teachers.cpu_products import fast_float32
from distill.teachers.folded_attention import Seen
from distill.teachers.folded_plan import Plan, plan_for, rows_of
from distill.teachers.passes import whole_passes
from distill.teachers.regions import Cells

WORTH = 1.25
"""Folding pays up to about this many logits per image token, as a share of the channels that it saves."""


def folds(decoder: MaskDecoder, sparse: int) -> bool:
    """Say whether folding is cheaper than projecting for prompts of ``sparse`` tokens."""
    attention = decoder.transformer.final_attn_token_to_image
    tokens = 1 + decoder.num_mask_tokens + sparse
    return bool(attention.num_heads * tokens <= WORTH * attention.internal_dim)


@torch.no_grad()
def decode_folded(
    sam: Sam,
    images: torch.Tensor,
    image_index: torch.Tensor,
    sparse: torch.Tensor,
    dense: torch.Tensor,
    dense_index: torch.Tensor | None,
    *,
    chunk: int,
    drawing: "Drawing",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode at least one prompt, each about one of the images.

    Args:
        sam: the model.
        images: ``(B, C, h, w)`` embeddings.
        image_index: ``(P,)``: which image each prompt is about.
        sparse: ``(P, T, C)`` point and box tokens.
        dense: ``(Q, C, h, w)`` mask embeddings, or ``(1, C, 1, 1)`` where all prompts have the same, as those without a mask do.
        dense_index: ``(P,)``: which of these each prompt has; None where all have the same.
        chunk: prompts per pass.
        drawing: what of the answers is drawn.

    Returns:
        Logits ``(P, T, 4h, 4w)`` of the mask tokens drawn, and predicted IoU ``(P, M)`` of all of them, float32.
    """
    kind = images.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    plan = plan_for(sam, dtype, images.device)
    size = (images.shape[2], images.shape[3])
    parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def decode(starts: Iterator[int]) -> None:
        for n in starts:
            some = slice(n, n + chunk)
            wanted = drawing.tokens or sam.mask_decoder.num_mask_tokens
            if seen is not None and kind == "cpu":
                parts[n] = _on_cpu(plan, seen.some(slice(n, min(n + chunk, count))), sparse[some].float(), wanted, size, drawing.some(some))
                continue
            about = seen.some(some) if seen else rows[row_index[some]]
            if told is not None and dense_index is not None and isinstance(about, torch.Tensor):
                about = about.add_(told[dense_index[some]]).to(dtype)
            tokens, image = plan.think(about, sparse[some].float(), wanted)
            parts[n] = plan.draw(tokens, image, size), plan.judge(tokens)

    count = len(sparse)
    if kind == "cpu":
        sparse = sparse[whole_passes(count, chunk)]
    with torch.autocast(kind, enabled=False), fast_float32() if kind == "cpu" else nullcontext():
        rows, row_index, told = _told_rows(images.float(), image_index, dense.float(), dense_index)
        seen = plan.see(rows, row_index) if told is None else None
        _in_passes(decode, count, chunk, kind)
    ordered = [parts[n] for n in sorted(parts)]
    return torch.cat([logits for logits, _ in ordered]), torch.cat([iou for _, iou in ordered])


def _on_cpu(
    plan: Plan, about: Seen, sparse: torch.Tensor, wanted: int, size: tuple[int, int], cells: Sequence[Cells] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a pass ``sparse (S, T, C)``, of which the prompts that ``about`` knows are asked."""
    tokens, image = folded_cpu.think(plan, about, sparse, wanted)
    return folded_cpu.draw(plan, plan.hyper(tokens)[: len(image)], image, size, cells), plan.judge(tokens)[: len(image)]


@torch.no_grad()
def decode_confident(
    sam: Sam, images: torch.Tensor, image_index: torch.Tensor, sparse: torch.Tensor, *, chunk: int, least_iou: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode prompts without a mask, and draw only those whose predicted IoU promises something: the tokens alone tell it.

    Args:
        sam: the model.
        images: ``(B, C, h, w)`` embeddings.
        image_index: ``(P,)``: which image each prompt is about.
        sparse: ``(P, T, C)`` point and box tokens.
        chunk: prompts per pass.
        least_iou: prompts none of whose candidates exceeds this are not drawn.

    Returns:
        The ``K`` prompts drawn ``(K,)``, their logits ``(K, M, 4h, 4w)``, and predicted IoU ``(P, M)`` of all prompts.
    """
    kind = images.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    plan = plan_for(sam, dtype, images.device)
    size = (images.shape[2], images.shape[3])
    parts: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def decode(starts: Iterator[int]) -> None:
        for n in starts:
            some, asked = slice(n, n + chunk), slice(n, min(n + chunk, count))
            think = partial(folded_cpu.think, plan) if kind == "cpu" else plan.think
            tokens, image = think(seen.some(asked), sparse[some].float(), sam.mask_decoder.num_mask_tokens)
            scores = plan.judge(tokens)[: len(image)]
            good = (scores[:, 1:] > least_iou).any(dim=1).nonzero()[:, 0]
            parts[n] = good + n, draw(plan, tokens, image, good) if len(good) else nothing, scores

    def draw(plan: Plan, tokens: torch.Tensor, image: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
        if kind == "cpu":
            return folded_cpu.draw(plan, plan.hyper(tokens)[good], image[good], size, None)
        return plan.draw(tokens[good], image[good], size)

    count = len(sparse)
    if kind == "cpu" and count:
        sparse = sparse[whole_passes(count, chunk)]

    nothing = images.new_zeros(0, sam.mask_decoder.num_mask_tokens, 4 * size[0], 4 * size[1], dtype=torch.float32)
    with torch.autocast(kind, enabled=False), fast_float32() if kind == "cpu" else nullcontext():
        rows, row_index, _ = _told_rows(
            images.float(), image_index, sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).float(), None
        )
        seen = plan.see(rows, row_index)
        _in_passes(decode, count, chunk, kind)
    ordered = [parts[n] for n in sorted(parts)]
    drawn, logits, judged = (torch.cat([part[k] for part in ordered]) for k in range(3))
    return drawn, logits, judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What of the answers is drawn."""

    tokens: int | None = None
    """The first so many mask tokens; None is all."""
    cells: Sequence[Cells] | None = None
    """Of each prompt's grid; None is all of it."""

    def some(self, prompts: slice) -> Sequence[Cells] | None:
        """Return the cells of some of the prompts."""
        return None if self.cells is None else self.cells[prompts]


def _in_passes(decode: Callable[[Iterator[int]], None], prompts: int, chunk: int, kind: str) -> None:
    """Have every ``chunk`` of at least one prompt decoded; on a CPU each core decodes passes of its own."""
    starts = range(0, prompts, chunk)
    if kind == "cpu":
        share_out(decode, starts)
    else:
        decode(iter(starts))


def _told_rows(
    images: torch.Tensor, image_index: torch.Tensor, dense: torch.Tensor, dense_index: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Add mask embeddings to images, each pair once, and on a CPU only those that somebody asks about.

    Returns:
        The sums as rows ``(R, n, C)``; which of them each prompt is about ``(P,)``; and None, or, where finding the pairs would mean to wait for a GPU, the
        mask embeddings' rows, which are then still to be added.
    """
    on_cpu = images.device.type == "cpu"
    if dense_index is None:
        asked, which = torch.unique(image_index, return_inverse=True) if on_cpu else (slice(None), image_index)
        return rows_of(images[asked] + dense), which, None
    if not on_cpu:
        return rows_of(images), image_index, rows_of(dense)
    pairs, which = torch.unique(image_index * len(dense) + dense_index, return_inverse=True)
    return rows_of(images[pairs // len(dense)] + dense[pairs % len(dense)]), which, None
