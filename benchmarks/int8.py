"""8-bit integers on a CPU: how fast the products and the encoder are beside bfloat16, and what they cost in Dice.

    SAMDISTILL_TEST_DATA=... python benchmarks/int8.py [--teacher FILE --profile sam] [--px 1024] [--threads 1] [--repeats 5] [--quick] [--json]

CPU seconds, the least of all repeats, taken in turns: other programs on the machine can only add to them. *Products* are those of ViT-B
with 4096 tokens, with everything around them: rounding the input, scales, bias, GELU. *Encoder* has ViT-B's sizes and random weights, which
say nothing about Dice. *Dice* needs a ViT checkpoint that was trained: gold boxes on every slice (an oracle), each slice once per precision.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder import masks_of, original, pictures, sizes_of
from paired import device_name, mask_iou, relative
from teacher_quality import Pair, cardiac, hippocampus

from distill import load_teacher
from distill.prompts.hints import box_of
from distill.quality import dice
from distill.teachers.base import PromptBatch
from distill.teachers.cpu_products import PackedLinear
from distill.teachers.int8_products import AFTER_GELU, PackedInt8Linear, multiplies_bytes
from distill.teachers.memory import keep_freed_memory
from distill.teachers.sam import Precision, SamTeacher
from distill.teachers.vit import ImageEncoder
from distill.teachers.vit_cpu import MLP_ROWS

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
TOKENS, WIDTH = 4096, 768
LAYERS = {"qkv": (WIDTH, 3 * WIDTH), "proj": (WIDTH, WIDTH), "lin1 + GELU": (WIDTH, 4 * WIDTH), "lin2": (4 * WIDTH, WIDTH)}
"""Inputs and outputs."""

Row = dict[str, Any]


def cpu_seconds(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Call each in turn, once to warm up, and return the least CPU time of each."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            spent = time.process_time() - began
            best[name] = min(best[name], spent) if turn else best[name]
    return best


def measure_products(repeats: int) -> list[Row]:
    """Time the four products of a layer in both types, and compare both with float32."""
    rows = []
    for name, (inputs, outputs) in LAYERS.items():
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (torch.randn(*size, generator=generator) for size in ((TOKENS, inputs), (outputs, inputs), (outputs,)))
        x, gelu = torch.nn.functional.gelu(x) if name == "lin2" else x, "GELU" in name
        half = PackedLinear(weight.bfloat16(), bias, MLP_ROWS)
        whole = PackedInt8Linear(weight, bias, TOKENS, **({"zero": AFTER_GELU} if name == "lin2" else {}))
        exact = PackedLinear(weight, bias, TOKENS)(x, gelu=gelu).numpy()
        calls: dict[str, Callable[[], torch.Tensor]] = {
            "bf16": partial(half, x.bfloat16(), gelu=gelu),
            "int8": partial(whole, x.bfloat16(), gelu=gelu),
        }
        spent = cpu_seconds(calls, repeats)
        operations = 2e-9 * TOKENS * inputs * outputs
        for kind, call in calls.items():
            found = relative(call().float().numpy(), exact)
            rows.append({"product": name, "type": kind, "ms": 1e3 * spent[kind], "giga": operations / spent[kind], "relative_l2": found})
    return rows


def measure_encoder(model: str, px: int, repeats: int) -> list[Row]:
    """Time the whole encoder in each precision, with random weights."""
    weights, x = original(model, px).state_dict(), pictures(px, 1, "cpu")
    networks = {precision: ImageEncoder(sizes_of(model, px)).eval() for precision in PRECISIONS}
    for precision, network in networks.items():
        network.load_state_dict(weights, assign=True)
        network.int8 = precision == "int8"

    def encode(precision: Precision) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
            embedding: torch.Tensor = networks[precision](x)
        return embedding

    spent = cpu_seconds({precision: partial(encode, precision) for precision in PRECISIONS}, repeats)
    answers = {precision: encode(precision).numpy() for precision in PRECISIONS}
    masks = masks_of(answers["fp32"], px)
    return [
        {
            "precision": precision,
            "cpu_seconds": spent[precision],
            "relative_l2": relative(answers[precision], answers["fp32"]),
            "mask_iou": mask_iou(masks_of(answers[precision], px), masks),
        }
        for precision in PRECISIONS
    ]


def answer(teacher: SamTeacher, picture: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the embedding and the mask ``(H, W)`` of one picture with one box."""
    embeddings = teacher.encode([np.repeat(picture[..., None], 3, axis=2)])
    decoded = teacher.decode(embeddings, PromptBatch(image_index=np.zeros(1, int), boxes_xyxy_px=box[None]))
    logits = teacher.upsample(decoded.low_res_logits, picture.shape, embeddings.input_sizes_px[0])
    return embeddings.features.numpy(), logits[0, 0].numpy() > 0


def measure_dice(teachers: Mapping[Precision, SamTeacher], pairs: Iterator[Pair]) -> list[Row]:
    """Ask each teacher about each slice with its gold box."""
    scores: dict[Precision, list[tuple[float, float, float]]] = {precision: [] for precision in teachers}
    for _, picture, gold in pairs:
        box = box_of(gold)
        if box is None:
            continue
        exact, mask = answer(teachers["fp32"], picture, box)
        for precision, teacher in teachers.items():
            features, found = answer(teacher, picture, box)
            union = (found | mask).sum()
            same = float((found & mask).sum() / union) if union else 1.0
            scores[precision].append((dice(found, gold), same, relative(features, exact)))
    rows = []
    reference = np.array([one for one, _, _ in scores["fp32"]])
    for precision, found_scores in scores.items():
        each, same_masks, errors = np.array(found_scores).T
        gap = each - reference
        rows.append(
            {
                "precision": precision,
                "slices": len(each),
                "dice": float(each.mean()),
                "gap": float(gap.mean()),
                "standard_error": float(gap.std(ddof=1) / len(gap) ** 0.5),
                "worst_gap": float(gap.min()),
                "mask_iou": float(same_masks.mean()),
                "relative_l2": float(errors.mean()),
            }
        )
    return rows


def collections(data: Path, part: str, limit: int | None) -> dict[str, Iterator[Pair]]:
    """Return the slices with gold."""
    return {f"hippocampus ({part})": islice(hippocampus(data, part), limit), "cardiac": islice(cardiac(data), limit)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Gather all figures."""
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"device": device_name("cpu"), "torch": torch.__version__, "fast": multiplies_bytes(), **vars(args)}
    with torch.inference_mode():
        found["products"] = measure_products(args.repeats)
        found["encoder"] = measure_encoder(args.model, args.px, args.repeats)
    if args.teacher:
        data = Path(os.environ["SAMDISTILL_TEST_DATA"])
        teachers = {each: load_teacher(args.teacher, profile=args.profile, device="cpu", precision=each) for each in PRECISIONS}
        found["fingerprint"] = teachers["fp32"].fingerprint
        found["dice"] = {name: measure_dice(teachers, pairs) for name, pairs in collections(data, args.part, args.limit).items()}
    return found


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    note = "" if found["fast"] else "; NO FAST PRODUCTS OF BYTES HERE"
    print(f"{found['device']}; {found['threads']} threads; torch {found['torch']}{note}\n")
    print("| product, 4096 tokens | type | cpu-ms | giga-operations/s | rel. L2 |\n| --- | --- | --- | --- | --- |")
    for row in found["products"]:
        print(f"| {row['product']} | {row['type']} | {row['ms']:.1f} | {row['giga']:.0f} | {row['relative_l2']:.1e} |")
    print(f"\n| {found['model']}, {found['px']} px, random weights | cpu-s | rel. L2 | mask IoU |\n| --- | --- | --- | --- |")
    for row in found["encoder"]:
        print(f"| {row['precision']} | {row['cpu_seconds']:.2f} | {row['relative_l2']:.1e} | {row['mask_iou']:.4f} |")
    if "dice" not in found:
        print("\nNo trained checkpoint was named (--teacher), so the cost in Dice is not measured.")
        return
    print(f"\nteacher {found['fingerprint']}; gold boxes on every slice")
    print("| collection | precision | slices | Dice | against fp32 | worst slice | mask IoU with fp32 | rel. L2 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in found["dice"].items():
        for row in rows:
            print(
                f"| {name} | {row['precision']} | {row['slices']} | {row['dice']:.4f} | {row['gap']:+.4f} \u00b1 {row['standard_error']:.4f} "
                f"| {row['worst_gap']:+.3f} | {row['mask_iou']:.4f} | {row['relative_l2']:.1e} |"
            )


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="a SAM ViT checkpoint that was trained; without one, Dice is left out")
    parser.add_argument("--profile", help="of the checkpoint, where it cannot be told from the file")
    parser.add_argument("--part", default="test", help="which part of the hippocampus split (default test)")
    parser.add_argument("--limit", type=int, help="slices of each collection (default all)")
    parser.add_argument("--model", choices=["vit_b", "vit_l", "vit_h"], default="vit_b")
    parser.add_argument("--px", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="256 px, one repeat, 20 slices: does it run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.px, args.repeats, args.limit = 256, 1, 20
    found = measure(args)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
