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
from typing import Any
from weakref import WeakKeyDictionary

import torch
from segment_anything.modeling import MaskDecoder, Sam
from torch.nn import functional

from distill.teachers.cpu_crew import share_out
from distill.teachers.cpu_products import PackedLinear, fast_float32
from distill.teachers.cpu_rows import rows_for
from distill.teachers.folded_attention import CrossAttention, Seen, see
from distill.teachers.passes import whole_passes
from distill.teachers.regions import UNDRAWN, Cells

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
    plan = _plan_for(sam, dtype, images.device)
    size = (images.shape[2], images.shape[3])
    parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def decode(starts: Iterator[int]) -> None:
        for n in starts:
            some = slice(n, n + chunk)
            about = seen.some(some) if seen else rows[row_index[some]]
            if told is not None and dense_index is not None and isinstance(about, torch.Tensor):
                about = about.add_(told[dense_index[some]]).to(dtype)
            tokens, image = plan.think(about, sparse[some].float(), drawing.tokens or sam.mask_decoder.num_mask_tokens)
            parts[n] = drawing.draw(plan, tokens, image, size, some), plan.judge(tokens)

    count = len(sparse)
    if kind == "cpu":
        whole = whole_passes(count, chunk)
        image_index, sparse, dense_index = image_index[whole], sparse[whole], None if dense_index is None else dense_index[whole]
    with torch.autocast(kind, enabled=False), fast_float32() if kind == "cpu" else nullcontext():
        rows, row_index, told = _told_rows(images.float(), image_index, dense.float(), dense_index)
        seen = plan.see(rows, row_index) if told is None else None
        _in_passes(decode, len(sparse), chunk, kind)
    ordered = [parts[n] for n in sorted(parts)]
    return torch.cat([logits for logits, _ in ordered])[:count], torch.cat([iou for _, iou in ordered])[:count]


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
    plan = _plan_for(sam, dtype, images.device)
    size = (images.shape[2], images.shape[3])
    parts: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def decode(starts: Iterator[int]) -> None:
        for n in starts:
            some = slice(n, n + chunk)
            tokens, image = plan.think(seen.some(some), sparse[some].float(), sam.mask_decoder.num_mask_tokens)
            scores = plan.judge(tokens)
            good = (scores[:, 1:] > least_iou).any(dim=1).nonzero()[:, 0]
            parts[n] = good + n, plan.draw(tokens[good], image[good], size) if len(good) else nothing, scores

    nothing = images.new_zeros(0, sam.mask_decoder.num_mask_tokens, 4 * size[0], 4 * size[1], dtype=torch.float32)
    with torch.autocast(kind, enabled=False), fast_float32() if kind == "cpu" else nullcontext():
        seen = plan.see(_rows(images.float() + sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)), image_index)
        _in_passes(decode, len(sparse), chunk, kind)
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

    def draw(self, plan: "_Plan", tokens: torch.Tensor, image: torch.Tensor, size: tuple[int, int], some: slice) -> torch.Tensor:
        """Draw some of the prompts."""
        return plan.draw(tokens, image, size, None if self.cells is None else self.cells[some])


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
    """Add mask embeddings to images, each pair once.

    Returns:
        The sums as rows ``(R, n, C)``; which of them each prompt is about ``(P,)``; and None, or, where finding the pairs would mean to wait for a GPU, the
        mask embeddings' rows, which are then still to be added.
    """
    if dense_index is None:
        return _rows(images + dense), image_index, None
    if images.device.type != "cpu":
        return _rows(images), image_index, _rows(dense)
    pairs, which = torch.unique(image_index * len(dense) + dense_index, return_inverse=True)
    return _rows(images[pairs // len(dense)] + dense[pairs % len(dense)]), which, None


def _rows(images: torch.Tensor) -> torch.Tensor:
    """Turn ``(B, C, h, w)`` into ``(B, n, C)``, a row per token."""
    return images.flatten(2).transpose(1, 2).contiguous()


class _Plan:
    """A decoder's folded weights for one type and device."""

    def __init__(self, sam: Sam, dtype: torch.dtype) -> None:
        decoder = sam.mask_decoder
        self.positions = _rows(sam.prompt_encoder.get_dense_pe())[0].to(dtype)
        self.decoder = decoder
        self.dtype = dtype
        self.signature = _signature(sam)
        self.rows = rows = rows_for(dtype, self.positions.device)
        layers = decoder.transformer.layers
        self.to_image = [CrossAttention(each.cross_attn_token_to_image, image_asks=False, rows=rows) for each in layers]
        self.to_tokens = [CrossAttention(each.cross_attn_image_to_token, image_asks=True, rows=rows) for each in layers]
        self.last = CrossAttention(decoder.transformer.final_attn_token_to_image, image_asks=False, rows=rows)
        up = decoder.output_upscaling
        self.up1, self.up2 = (_as_linear(up[n], dtype) for n in (0, 3))
        self.up_norm = up[1]

    def see(self, rows: torch.Tensor, of: torch.Tensor) -> Seen:
        """Project pictures ``(R, n, C)`` once for all prompts about them; ``of (P,)`` says which each is about."""
        return see(rows.to(self.dtype), self.positions, of, self.to_image[0], self.to_tokens[0])

    def think(self, about: Seen | torch.Tensor, sparse: torch.Tensor, masks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Let prompts ``sparse (P, T, C)`` and images attend to each other.

        Args:
            about: what ``see`` returned, or images ``(P, n, C)`` of the prompts' own, which are overwritten.
            sparse: the prompts.
            masks: the first so many mask tokens are wanted.

        Returns:
            The tokens of predicted IoU and of these masks ``(P, 1 + masks, C)``, and each prompt's image ``(P, n, C)``.
        """
        decoder = self.decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).float()
        first = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        tokens, seen = first, about if isinstance(about, Seen) else None
        image = about.image if isinstance(about, Seen) else about
        placed = image if seen else image + self.positions
        for layer, to_image, to_tokens in zip(decoder.transformer.layers, self.to_image, self.to_tokens, strict=True):
            tokens = self._self_attend(layer, tokens, first)
            asked = tokens + first
            tokens = layer.norm2(tokens + (to_image.first_asked(asked, seen) if seen else to_image.tokens_ask(asked, placed, image)))
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            if seen:
                image, seen = to_tokens.first_asks(tokens + first, tokens, seen), None
            else:
                to_tokens.image_asks(tokens + first, tokens, placed, image)
            image, placed = self.rows.norm_and_place(image, layer.norm4, self.positions)
        tokens, first = tokens[:, : 1 + masks], first[:, : 1 + masks]  # nobody asks the others any more
        return decoder.transformer.norm_final_attn(tokens + self.last.tokens_ask(tokens + first, placed, image)), image

    def judge(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return predicted IoU ``(P, M)`` of what ``think`` returned."""
        scores: torch.Tensor = self.decoder.iou_prediction_head(tokens[:, 0])
        return scores

    def draw(self, tokens: torch.Tensor, image: torch.Tensor, size: tuple[int, int], cells: Sequence[Cells] | None = None) -> torch.Tensor:
        """Return mask logits ``(P, T, 4h, 4w)`` of what ``think`` returned, for a grid of ``size``, or for some cells of it.

        Where there are fewer cells than prompts, the first prompts are drawn.
        """
        heads = self.decoder.output_hypernetworks_mlps
        hyper = torch.stack([heads[n](tokens[:, 1 + n]) for n in range(tokens.shape[1] - 1)], dim=1)
        if cells is None:
            return self._masks(image, hyper, size)
        masks = image.new_full((len(cells), hyper.shape[1], 4 * size[0], 4 * size[1]), UNDRAWN, dtype=torch.float32)
        grid = image.view(len(image), *size, -1)
        for n, (top, bottom, left, right) in enumerate(cells):  # one by one: in products of other sizes the last bits would be others
            some = grid[n, top:bottom, left:right].reshape(1, -1, grid.shape[-1])
            drawn = self._masks(some, hyper[n : n + 1], (bottom - top, right - left))
            masks[n, :, 4 * top : 4 * bottom, 4 * left : 4 * right] = drawn[0]
        return masks

    @staticmethod
    def _self_attend(layer: Any, tokens: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            asked = tokens + first
            tokens = tokens + layer.self_attn(q=asked, k=asked, v=tokens)
        normed: torch.Tensor = layer.norm1(tokens)
        return normed

    def _masks(self, image: torch.Tensor, hyper: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Upscale ``(P, n, C)`` four times and return the masks ``(P, M, 4h, 4w)`` float32."""
        prompts, (height, width) = len(image), size
        twice = self.up1(image.flatten(0, 1)).view(-1, self.up_norm.weight.shape[0])  # a row per pixel: n, then 2 x 2
        twice = functional.gelu(_normed(twice, self.up_norm))
        four = self.up2(twice, gelu=True).view(prompts, -1, hyper.shape[2])  # n, then 2 x 2, then 2 x 2
        masks = torch.bmm(hyper.to(four.dtype), four.transpose(1, 2)).float()
        masks = masks.view(prompts, -1, height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return masks.reshape(prompts, -1, 4 * height, 4 * width)


def _as_linear(convolution: Any, dtype: torch.dtype) -> PackedLinear:
    """Turn a transposed convolution of kernel and stride 2 into a product with four outputs per channel, pixel by pixel."""
    weight = convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)  # (in, out, 2, 2) -> (2 * 2 * out, in)
    return PackedLinear(weight.to(dtype), convolution.bias.detach().repeat(4), 4096)


def _normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """Normalise the last dimension, whichever of the two norms it is, in the type of ``x``."""
    return functional.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


_PLANS: "WeakKeyDictionary[Sam, dict[tuple[torch.dtype, torch.device], _Plan]]" = WeakKeyDictionary()


def _plan_for(sam: Sam, dtype: torch.dtype, device: torch.device) -> _Plan:
    """Return the model's plan, made again when its weights have changed."""
    plans = _PLANS.setdefault(sam, {})
    plan = plans.get((dtype, device))
    if plan is None or plan.signature != _signature(sam):
        with torch.autocast(device.type, enabled=False):  # positions in bfloat16 would be off by up to a pixel
            plan = plans[dtype, device] = _Plan(sam, dtype)
    return plan


def _signature(sam: Sam) -> tuple[tuple[int, int], ...]:
    """Return what changes when a weight of the decoder is replaced or written to."""
    tensors = (*sam.mask_decoder.parameters(), *sam.prompt_encoder.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)  # noqa: SLF001 - torch offers no other
