"""Image encoder: ours against segment-anything's own, and against one in the style of segment-anything-fast.

    python benchmarks/encoder.py [--model vit_b] [--px 1024] [--threads 2] [--rounds 3] [--device cpu] [--batch 1] [--compile] [--quick] [--json]

Random weights; relative positions among them, which start at zero. ``original`` is ``ImageEncoderViT`` in float32, a picture at a time.
``fast-style`` is written for this benchmark after segment-anything-fast (pytorch-labs 2023): the same modules in bfloat16 with fused
attention and the relative positions as a written-out mask, window padding and all. Times are wall seconds per picture; see
``paired.py`` for ``default`` and ``kept``. Masks are those that a random decoder draws from each embedding for 16 boxes.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from paired import Arm, device_name, mask_iou, peak_flops, ratio, relative, run_paired
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

Call = Callable[[], tuple[torch.Tensor, ...]]


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


def arms_for(args: argparse.Namespace) -> list[Arm]:
    """Say what is compared. On a GPU the CPU's allocator hardly matters: one state."""
    options = {"model": args.model, "px": args.px, "batch": args.batch}
    arms = []
    for state in ("default", "kept") if args.device == "cpu" else ("kept",):
        arms.append(Arm("original", state, build_original, options))
        arms.append(Arm("fast-style", state, build_fast_style, options | {"compiled": args.compile}))
    arms.append(Arm("ours fp32", "kept", build_ours, options | {"bf16": False, "compiled": args.compile}))
    arms.append(Arm("ours bf16", "kept", build_ours, options | {"bf16": True, "compiled": args.compile}))
    return arms


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all arms and gather the figures."""
    torch.set_num_threads(args.threads)
    costs, answers = run_paired(arms_for(args), rounds=args.rounds, threads=args.threads, device=args.device)
    reference = answers["original", "kept"][0]
    masks = masks_of(reference, args.px)
    flops = encoder_flops(args.model, args.px)
    peaks = {name: peak_flops(dtype, args.device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    rows = []
    for (name, state), spent in costs.items():
        seconds = median(cost.wall_s for cost in spent) / args.batch
        (embedding,) = answers[name, state]
        peak = peaks["bf16" if name in ("fast-style", "ours bf16") else "fp32"]
        rows.append(
            {
                "arm": name,
                "allocator": state,
                "seconds": seconds,
                "cpu_seconds": median(cost.cpu_s for cost in spent) / args.batch,
                "faults": median(cost.faults for cost in spent) / args.batch,
                "as_run": ratio(costs, ("original", "default" if args.device == "cpu" else "kept"), (name, state)),
                "equal": ratio(costs, ("original", state), (name, state)),
                "share_of_peak": flops / seconds / peak,
                "relative_l2": relative(embedding, reference),
                "mask_iou": mask_iou(masks_of(embedding, args.px), masks),
                "rounds": [asdict(cost) for cost in spent],
            }
        )
    return {"device": device_name(args.device), "torch": torch.__version__, "flops": flops, "peak_flops": peaks, **vars(args), "rows": rows}


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(
        f"{found['model']} at {found['px']} px, batch {found['batch']}, {found['threads']} threads; {found['device']}; torch {found['torch']}"
    )
    peaks = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in found["peak_flops"].items())
    print(f"{found['flops'] / 1e9:.0f} GFLOP per picture; measured peak of a product: {peaks}\n")
    print("| encoder | allocator | s/picture | cpu-s | page faults | x as run | x equal allocator | of peak | rel. L2 | mask IoU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in found["rows"]:
        print(
            f"| {row['arm']} | {row['allocator']} | {row['seconds']:.3f} | {row['cpu_seconds']:.2f} | {row['faults']:,.0f} "
            f"| {row['as_run']:.2f} | {row['equal']:.2f} | {row['share_of_peak']:.0%} | {row['relative_l2']:.1e} | {row['mask_iou']:.4f} |"
        )


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit_b")
    parser.add_argument("--px", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours and the fast style")
    parser.add_argument("--quick", action="store_true", help="256 px, one round: does it run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.px, args.rounds = 256, 1
    found = measure(args)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
