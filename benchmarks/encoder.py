"""Image encoder: ours against segment-anything's own, and against one in the style of segment-anything-fast.

    python benchmarks/encoder.py [--model vit_b] [--px 1024] [--threads 2] [--rounds 3] [--device cpu] [--batch 1] [--compile] [--quick] [--json]

Random weights; relative positions among them, which start at zero. ``original`` is ``ImageEncoderViT`` in float32, a picture at a time.
``fast-style`` is written for this benchmark after segment-anything-fast (pytorch-labs 2023): the same modules in bfloat16 with fused
attention and the relative positions as a written-out mask, window padding and all. Times are wall seconds per picture; see
``paired.py`` for ``default`` and ``kept``. Masks are those that a random decoder draws from each embedding for 16 boxes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from paired import Call, Found, add_scale, add_switches, mask_iou, measure_arms, relative, run_program, show_table, usual_arms
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import nn
from torch.nn import functional

from distill.teachers.decode import decode_prompts
from distill.teachers.vit import ImageEncoder, VitSizes

MODELS = {"vit_b": (768, 12, 12, (2, 5, 8, 11)), "vit_l": (1024, 24, 16, (5, 11, 17, 23)), "vit_h": (1280, 32, 16, (7, 15, 23, 31))}
"""Width, depth, heads, global blocks: ``build_sam.py`` of segment-anything."""
WINDOW, PATCH, OUT = 14, 16, 256
BOXES = 16


def sizes_of(model: str, px: int) -> VitSizes:
    """Return a released encoder's sizes at a picture size."""
    width, depth, heads, global_blocks = MODELS[model]
    return VitSizes(
        width=width,
        depth=depth,
        heads=heads,
        image_size=px,
        patch=PATCH,
        window=WINDOW,
        global_blocks=global_blocks,
        out_channels=OUT,
        mlp_ratio=4.0,
        decoder_mlp=2048,
    )


def original(model: str, px: int) -> ImageEncoderViT:
    """Build segment-anything's encoder; equal arguments give equal weights."""
    torch.manual_seed(0)
    sizes = sizes_of(model, px)
    encoder = ImageEncoderViT(
        img_size=px,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=WINDOW,
        global_attn_indexes=sizes.global_blocks,
    )
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                weight.normal_(std=0.05)
    return encoder.eval().requires_grad_(requires_grad=False)


def pictures(px: int, batch: int, device: str) -> torch.Tensor:
    """Return noise, the same for all arms."""
    return torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(1)).to(device)


def build_original(*, device: str, model: str, px: int, batch: int) -> Call:
    """A picture at a time."""
    encoder, x = original(model, px).to(device), pictures(px, batch, device)
    return lambda: (torch.cat([encoder(each[None]) for each in x]),)


def fast_attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Fused attention with a written-out mask, in place of segment-anything's ``Attention.forward``."""
    batch, height, width, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    grid = q.unflatten(2, (height, width))
    rows = torch.einsum("bayxd,ykd->bayxk", grid, get_rel_pos(height, height, self.rel_pos_h))
    columns = torch.einsum("bayxd,xkd->bayxk", grid, get_rel_pos(width, width, self.rel_pos_w))
    mask = (rows[..., :, None] + columns[..., None, :]).reshape(*q.shape[:3], -1)
    keys = mask.shape[-1]
    mask = functional.pad(mask, (0, -keys % 8))[..., :keys]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    projected: torch.Tensor = self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))
    return projected


def build_fast_style(*, device: str, model: str, px: int, batch: int, compiled: bool) -> Call:
    """All pictures in one call, bfloat16."""
    encoder, x = original(model, px).to(device, torch.bfloat16), pictures(px, batch, device).bfloat16()
    for block in encoder.blocks:
        block.attn.forward = partial(fast_attention, block.attn)
    run = torch.compile(encoder) if compiled else encoder
    return lambda: (run(x),)


def build_ours(*, device: str, model: str, px: int, batch: int, bf16: bool, compiled: bool) -> Call:
    """All pictures in one call."""
    encoder = ImageEncoder(sizes_of(model, px)).eval().requires_grad_(requires_grad=False)
    encoder.load_state_dict(original(model, px).state_dict())
    encoder.to(device, torch.bfloat16 if bf16 else torch.float32)
    if device == "cuda":
        encoder.prepare(batch, compiled=compiled)
    x = pictures(px, batch, device)
    return lambda: (encoder(x),)


def encoder_flops(model: str, px: int) -> float:
    """Count what one picture needs (two per multiply-add), padding of windows left out where it is not needed."""
    sizes, grid = sizes_of(model, px), px // PATCH
    tokens, width = grid**2, sizes.width
    local = sizes.depth - len(sizes.global_blocks)
    products = tokens * width * width * (4 + 2 * sizes.mlp_ratio) * sizes.depth
    attention = 2 * tokens * width * (tokens * len(sizes.global_blocks) + WINDOW**2 * local)
    positions = tokens * width * 2 * (grid * len(sizes.global_blocks) + WINDOW * local)
    ends = tokens * (3 * PATCH**2 * width + width * OUT + 9 * OUT * OUT)
    return 2.0 * (products + attention + positions + ends)


def masks_of(embedding: np.ndarray, px: int) -> np.ndarray:
    """Let a random decoder draw masks for boxes: ``(P, M, 4h, 4w)`` logits of the first picture."""
    torch.manual_seed(2)
    grid = px // PATCH
    sam = Sam(
        nn.Identity(),
        PromptEncoder(embed_dim=OUT, image_embedding_size=(grid, grid), input_image_size=(px, px), mask_in_chans=16),
        MaskDecoder(transformer_dim=OUT, transformer=TwoWayTransformer(depth=2, embedding_dim=OUT, mlp_dim=2048, num_heads=8)),
    ).eval()
    corner = torch.rand(BOXES, 2) * px / 2
    boxes = torch.cat([corner, corner + 0.1 * px + torch.rand(BOXES, 2) * px / 3], dim=1)
    with torch.inference_mode():
        logits, _ = decode_prompts(sam, torch.from_numpy(embedding[:1]), torch.zeros(BOXES, dtype=torch.long), boxes=boxes)
    return logits.numpy()


def judge(px: int, reference: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """Compare embeddings, and the masks that one decoder draws from them."""
    masks = masks_of(reference, px)
    return lambda found: {"relative_l2": relative(found, reference), "mask_iou": mask_iou(masks_of(found, px), masks)}


def measure(args: argparse.Namespace) -> Found:
    """Run all arms and gather the figures."""
    options = {"model": args.model, "px": args.px, "batch": args.batch}
    ours = partial(build_ours, compiled=args.compile)
    arms = usual_arms(args, options, original=build_original, fast=build_fast_style, ours=ours)
    return measure_arms(args, arms, flops=encoder_flops(args.model, args.px), judge=partial(judge, args.px), pieces=args.batch)


def show(found: Found) -> None:
    """Print the table."""
    work = f"{found['model']} at {found['px']} px, batch {found['batch']}"
    show_table(found, work=work, counted="per picture", what="encoder", piece="picture")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit_b")
    parser.add_argument("--px", type=int, default=1024)
    add_scale(parser)
    parser.add_argument("--batch", type=int, default=1)
    add_switches(parser, compiled="ours and the fast style", quick="256 px, one round")
    run_program(parser, {"px": 256, "rounds": 1}, measure, show)


if __name__ == "__main__":
    main()
