"""The weights of segment-anything's mask decoder laid out for ``distill.teachers.decode_folded``, and how a GPU computes with them: all prompts at once.

Letters: ``P`` prompts, ``R`` pictures, ``n`` image tokens, ``C`` channels, ``T`` tokens per prompt, ``M`` masks.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from segment_anything.modeling import Sam
from torch.nn import functional

from distill.teachers.cpu_products import PackedLinear
from distill.teachers.cpu_rows import rows_for
from distill.teachers.folded_attention import CrossAttention, Seen, see


class Plan:
    """A decoder's folded weights for one type and device."""

    def __init__(self, sam: Sam, dtype: torch.dtype) -> None:
        decoder = sam.mask_decoder
        self.positions = rows_of(sam.prompt_encoder.get_dense_pe())[0].to(dtype)
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
        first = self.first_tokens(sparse)
        tokens, seen = first, about if isinstance(about, Seen) else None
        image = about.image if isinstance(about, Seen) else about
        placed = image if seen else image + self.positions
        for layer, to_image, to_tokens in zip(decoder.transformer.layers, self.to_image, self.to_tokens, strict=True):
            tokens = self_attend(layer, tokens, first)
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

    def draw(self, tokens: torch.Tensor, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return mask logits ``(P, T, 4h, 4w)`` of what ``think`` returned, for a grid of ``size``."""
        return self._masks(image, self.hyper(tokens), size)

    def hyper(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what each mask token of ``think``'s makes of the channels of a pixel, ``(P, T, channels)``."""
        heads = self.decoder.output_hypernetworks_mlps
        return torch.stack([heads[n](tokens[:, 1 + n]) for n in range(tokens.shape[1] - 1)], dim=1)

    def first_tokens(self, sparse: torch.Tensor) -> torch.Tensor:
        """Return the decoder's own tokens and then those of prompts ``(P, T, C)``."""
        decoder = self.decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).float()
        return torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)

    def _masks(self, image: torch.Tensor, hyper: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Upscale ``(P, n, C)`` four times and return the masks ``(P, M, 4h, 4w)`` float32."""
        twice = self.up1(image.flatten(0, 1)).view(-1, self.up_norm.weight.shape[0])  # a row per pixel: n, then 2 x 2
        twice = functional.gelu(normed(twice, self.up_norm))
        four = self.up2(twice, gelu=True).view(len(image), -1, hyper.shape[2])  # n, then 2 x 2, then 2 x 2
        return in_order(torch.bmm(hyper.to(four.dtype), four.transpose(1, 2)).float(), size)


def self_attend(layer: Any, tokens: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Let each prompt's tokens ``(P, T, C)`` attend to each other; ``first`` is what they were at the beginning."""
    if layer.skip_first_layer_pe:
        tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
    else:
        asked = tokens + first
        tokens = tokens + layer.self_attn(q=asked, k=asked, v=tokens)
    after: torch.Tensor = layer.norm1(tokens)
    return after


def in_order(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Put the pixels of upscaled cells, ``(P, M, h w 16)`` with those of a cell together, into rows and columns ``(P, M, 4h, 4w)``."""
    height, width = size
    by_cell = pixels.view(*pixels.shape[:2], height, width, 2, 2, 2, 2)
    return by_cell.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*pixels.shape[:2], 4 * height, 4 * width)


def rows_of(images: torch.Tensor) -> torch.Tensor:
    """Turn ``(B, C, h, w)`` into ``(B, n, C)``, a row per token."""
    return images.flatten(2).transpose(1, 2).contiguous()


def _as_linear(convolution: Any, dtype: torch.dtype) -> PackedLinear:
    """Turn a transposed convolution of kernel and stride 2 into a product with four outputs per channel, pixel by pixel."""
    weight = convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)  # (in, out, 2, 2) -> (2 * 2 * out, in)
    return PackedLinear(weight.to(dtype), convolution.bias.detach().repeat(4), 4096)


def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """Normalise the last dimension, whichever of the two norms it is, in the type of ``x``."""
    return functional.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


_PLANS: "WeakKeyDictionary[Sam, dict[tuple[torch.dtype, torch.device], Plan]]" = WeakKeyDictionary()


def plan_for(sam: Sam, dtype: torch.dtype, device: torch.device) -> Plan:
    """Return the model's plan, made again when its weights have changed."""
    plans = _PLANS.setdefault(sam, {})
    plan = plans.get((dtype, device))
    if plan is None or plan.signature != _signature(sam):
        with torch.autocast(device.type, enabled=False):  # positions in bfloat16 would be off by up to a pixel
            plan = plans[dtype, device] = Plan(sam, dtype)
    return plan


def _signature(sam: Sam) -> tuple[tuple[int, int], ...]:
    """Return what changes when a weight of the decoder is replaced or written to."""
    tensors = (*sam.mask_decoder.parameters(), *sam.prompt_encoder.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)  # noqa: SLF001 - torch offers no other
