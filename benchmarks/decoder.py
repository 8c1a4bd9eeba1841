"""Mask decoder: ours against segment-anything's own, and against one in the style of segment-anything-fast.

    python benchmarks/decoder.py [--prompts 64] [--images 1] [--grid 64] [--threads 2] [--rounds 3] [--device cpu] [--compile] [--quick] [--json]

Random weights of the released size (256 channels, 8 heads), ``--prompts`` boxes about each of ``--images`` embeddings. ``original``
is ``MaskDecoder.predict_masks`` in float32, an image at a time with all its prompts. ``fast-style`` is written for this benchmark
after segment-anything-fast (pytorch-labs 2023): prompts of all images in one call, bfloat16, fused attention. Times are wall
seconds per call; see ``paired.py`` for ``default`` and ``kept``.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from paired import Call, Found, add_scale, add_switches, mask_iou, measure_arms, relative, run_program, show_table, usual_arms
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from torch.nn import functional

from distill.teachers.decode import decode_prompts, decode_tokens

CHANNELS, TOKENS = 256, 7
"""Of the released decoders; the tokens of a box prompt: predicted IoU, four masks, two corners."""


def decoder_of(grid: int, device: str) -> Sam:
    """Build prompt encoder and decoder; equal arguments give equal weights."""
    torch.manual_seed(0)
    sam = Sam(
        nn.Identity(),
        PromptEncoder(embed_dim=CHANNELS, image_embedding_size=(grid, grid), input_image_size=(16 * grid, 16 * grid), mask_in_chans=16),
        MaskDecoder(transformer_dim=CHANNELS, transformer=TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8)),
    )
    return sam.eval().requires_grad_(requires_grad=False).to(device)


def request(grid: int, images: int, prompts: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return embeddings ``(B, C, h, w)``, which image each prompt is about ``(P,)`` and boxes ``(P, 4)``."""
    noise = torch.Generator().manual_seed(1)
    embeddings = 0.5 * torch.randn(images, CHANNELS, grid, grid, generator=noise)
    corner = torch.rand(images * prompts, 2, generator=noise) * 8 * grid
    boxes = torch.cat([corner, corner + grid + torch.rand(images * prompts, 2, generator=noise) * 6 * grid], dim=1)
    index = torch.arange(images).repeat_interleave(prompts)
    return embeddings.to(device), index.to(device), boxes.to(device)


def build_original(*, device: str, grid: int, images: int, prompts: int) -> Call:
    """An image at a time."""
    sam = decoder_of(grid, device)
    embeddings, index, boxes = request(grid, images, prompts, device)

    def call() -> tuple[torch.Tensor, ...]:
        answers = []
        for n in range(images):
            sparse, dense = sam.prompt_encoder(points=None, boxes=boxes[index == n], masks=None)
            place = sam.prompt_encoder.get_dense_pe()
            answers.append(sam.mask_decoder.predict_masks(embeddings[n : n + 1], place, sparse, dense))
        return torch.cat([logits for logits, _ in answers]), torch.cat([iou for _, iou in answers])

    return call


def fast_attention(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Fused attention in place of segment-anything's ``Attention.forward``."""
    heads = (self._separate_heads(f(x), self.num_heads) for f, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
    out: torch.Tensor = self.out_proj(self._recombine_heads(functional.scaled_dot_product_attention(*heads)))
    return out


def build_fast_style(*, device: str, grid: int, images: int, prompts: int, compiled: bool) -> Call:
    """All images in one call, bfloat16."""
    sam = decoder_of(grid, device)
    embeddings, index, boxes = request(grid, images, prompts, device)
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    place = sam.prompt_encoder.get_dense_pe().bfloat16()
    decoder = sam.mask_decoder.bfloat16()
    for module in decoder.modules():
        if hasattr(module, "q_proj"):
            module.forward = partial(fast_attention, module)
    embeddings, sparse, dense = embeddings.bfloat16(), sparse.bfloat16(), dense.bfloat16()
    run = torch.compile(decode_tokens) if compiled else decode_tokens
    return lambda: run(decoder, embeddings[index] + dense, place, sparse)


def build_ours(*, device: str, grid: int, images: int, prompts: int, bf16: bool) -> Call:
    """All images in one call."""
    sam = decoder_of(grid, device)
    embeddings, index, boxes = request(grid, images, prompts, device)

    def call() -> tuple[torch.Tensor, ...]:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return decode_prompts(sam, embeddings, index, boxes=boxes)

    return call


def decoder_flops(grid: int) -> float:
    """Count what one box prompt costs in segment-anything's own order of products (two per multiply-add), the image's side only."""
    tokens, half = grid**2, CHANNELS // 2
    projections = 10 * tokens * CHANNELS * half
    attention = 5 * 2 * tokens * TOKENS * half
    upscaling = tokens * CHANNELS * CHANNELS + 4 * tokens * (CHANNELS // 4) * (CHANNELS // 2) + 16 * tokens * (CHANNELS // 8) * 4
    return 2.0 * (projections + attention + upscaling)


def judge(reference: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """Compare logits, and the masks that they are."""
    return lambda found: {"relative_l2": relative(found, reference), "mask_iou": mask_iou(found, reference)}


def measure(args: argparse.Namespace) -> Found:
    """Run all arms and gather the figures."""
    options = {"grid": args.grid, "images": args.images, "prompts": args.prompts}
    arms = usual_arms(args, options, original=build_original, fast=build_fast_style, ours=build_ours)
    prompts = args.images * args.prompts
    flops = decoder_flops(args.grid) * prompts
    return measure_arms(args, arms, flops=flops, judge=judge, rates=lambda seconds: {"prompts_per_s": prompts / seconds})


def show(found: Found) -> None:
    """Print the table."""
    work = f"{found['prompts']} boxes about each of {found['images']} images, grid {found['grid']}"
    order = "in the original's order of products"
    show_table(found, work=work, counted=order, what="decoder", piece="call", rates=[("prompts/s", "prompts_per_s")])
    print("\nOf peak: the original's FLOPs over our seconds; ours needs fewer (distill/teachers/decode_folded.py), so it may pass 100 %.")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--grid", type=int, default=64)
    add_scale(parser)
    add_switches(parser, compiled="the fast style", quick="grid 16, 8 prompts, one round")
    run_program(parser, {"grid": 16, "prompts": 8, "rounds": 1}, measure, show)


if __name__ == "__main__":
    main()
