"""Train the bundled teacher from nothing: ``python -m distill.teachers.pretrain --data FOLDER --out FILE.safetensors``.

*Method.* Batches of generated scenes and a smaller share of real labelled pictures (``synthesis``, ``sources``). For each image,
four objects are drawn and prompted with a box (exact or jittered), points, or both, a third of them also with a spoilt version
of the true mask as the mask prompt, as slice-to-slice propagation will give it. The decoder's single-mask answer and the best of its
three multimask answers are pulled to the object by binary cross-entropy (normalised by the box, so that small objects count)
plus soft Dice; the IoU head regresses the IoU that each mask really has. AdamW, warm-up, cosine to zero over a budget of time,
exponential moving average of the weights; then a second, shorter cycle in which most boxes are exact. The run can be killed and
continues from its last checkpoint.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.decode import decode_prompts
from distill.teachers.prompted import PROMPTS_PER_IMAGE, Batch, Prompted, collate

LOG = logging.getLogger("samdistill.pretrain")
PROMPT_KINDS = (("box", "box", "box", "point", "both"), ("box", "box", "box", "box", "box", "point", "both"))
"""What a batch may be prompted with, in the first and in the second cycle."""
LOG_EVERY = 100
SAVE_EVERY_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainPlan:
    """What to train, on what, for how long."""

    data: Path
    out: Path
    minutes: float = 75.0
    finish_minutes: float = 15.0
    """A second, shorter cycle in which boxes are mostly exact and mostly the only prompt: after the first, masks stayed inside their boxes."""
    start_from: Path | None = None
    """A teacher to continue from; its first cycle is taken as done."""
    batch: int = 8
    exact_boxes: tuple[float, float] = (0.35, 0.65)
    """Share of boxes that are not jittered, in the first and in the second cycle."""
    learning_rate: float = 5e-4
    """1e-3 collapsed to empty masks in a trial; 5e-4 did not."""
    warmup_steps: int = 300
    weight_decay: float = 0.02
    ema: float = 0.999
    seed: int = 7
    threads: int = 2
    loader_workers: int = 1
    bf16: bool = True
    shift_images: int = 640
    """Fresh images on which the place to cut the masks is chosen."""


def prompt_loss(
    sam: Sam, batch: Batch, rng: np.random.Generator, *, kinds: tuple[str, ...], bf16: bool
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of one step and the figures to log (mean IoU of the single-mask answer, loss of the IoU head)."""
    index = torch.arange(len(batch.images)).repeat_interleave(PROMPTS_PER_IMAGE)
    pixels = (batch.images.float() - sam.pixel_mean) / sam.pixel_std
    kind = rng.choice(kinds)
    grid = sam.prompt_encoder.mask_input_size
    target = functional.adaptive_avg_pool2d(batch.targets[:, None].float(), grid)
    hinted = torch.from_numpy(rng.random(len(index)) < (0.6 if rng.random() < 0.5 else 0.0))
    hints = 12.0 * functional.adaptive_avg_pool2d(batch.hints[:, None].float(), grid) - 6.0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embeddings = sam.image_encoder(pixels.contiguous(memory_format=torch.channels_last))
        logits, iou = decode_prompts(
            sam,
            embeddings,
            index,
            boxes=batch.boxes if kind != "point" else None,
            points=batch.points if kind != "box" else None,
            point_labels=batch.point_labels if kind != "box" else None,
            mask_inputs=hints if hinted.any() else None,
            has_mask=hinted,
        )
    return mask_loss(logits.float(), iou.float(), target, batch.boxes, sam.image_encoder.img_size)


def mask_loss(
    logits: torch.Tensor, iou: torch.Tensor, target: torch.Tensor, boxes: torch.Tensor, size: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """Combine the losses of ``(P, M, h, w)`` logits against ``(P, 1, h, w)`` soft targets.

    Cross-entropy is summed and divided by the box's area in cells; Dice is per mask; the IoU target is taken from the
    thresholded mask and carries no gradient.
    """
    cells = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * (logits.shape[-1] / size) ** 2
    entropy = functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none").sum((-2, -1))
    entropy = (entropy / cells.clamp(min=16)[:, None]).clamp(max=8.0)
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.square().sum((-2, -1)) + target.square().sum((-2, -1)) + 1)
    each = entropy + 2 * dice
    best = each[:, 1:].min(dim=1).values
    with torch.no_grad():
        mask, truth = logits > 0, target > 0.5
        true_iou = (mask & truth).sum((-2, -1)) / (mask | truth).sum((-2, -1)).clamp(min=1)
    iou_loss = functional.mse_loss(iou, true_iou)
    loss = each[:, 0].mean() + 0.5 * best.mean() + iou_loss
    return loss, {"loss": float(loss.detach()), "iou": float(true_iou[:, 0].mean()), "iou_head": float(iou_loss.detach())}


class Trainee:
    """A network on its way through one cycle: weights, their moving average, the optimizer, and how far it has come."""

    def __init__(self, plan: PretrainPlan, cycle: int, start_from: Path | None) -> None:
        """Start from random weights or a teacher's, or from the state that an interrupted run of the same cycle left."""
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.cycle = cycle
        self.minutes = (plan.minutes, plan.finish_minutes)[cycle]
        self.sam = build_conv_sam(ConvSamConfig()).to(memory_format=torch.channels_last)
        if start_from is not None:
            self.sam.load_state_dict({name: tensor.float() for name, tensor in load_file(start_from).items()})
        self.average = torch.optim.swa_utils.AveragedModel(self.sam, avg_fn=partial(_average, plan.ema))
        self.optimizer = torch.optim.AdamW(self.sam.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.state_path = plan.out.with_suffix(f".cycle{cycle}.pt")
        self.step, spent = self._resume()
        self.began = time.monotonic() - spent

    @property
    def progress(self) -> float:
        """Share of the cycle's time that is spent."""
        return (time.monotonic() - self.began) / (60 * self.minutes)

    def learn(self, batch: Batch, rng: np.random.Generator) -> dict[str, float]:
        """Take one optimizer step and return its figures."""
        rate = (
            (1.0, 0.6)[self.cycle]
            * self.plan.learning_rate
            * min(1.0, (self.step + 1) / self.plan.warmup_steps)
            * 0.5
            * (1 + math.cos(math.pi * self.progress))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, figures = prompt_loss(self.sam, batch, rng, kinds=PROMPT_KINDS[self.cycle], bf16=self.plan.bf16)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.sam)
        self.step += 1
        return figures

    def _resume(self) -> tuple[int, float]:
        """Load an interrupted run; return its step and the seconds it had spent."""
        if not self.state_path.exists():
            return 0, 0.0
        saved = torch.load(self.state_path, weights_only=True)
        for name in ("sam", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        LOG.info("continuing at step %d", saved["step"])
        return int(saved["step"]), float(saved["seconds"])

    def save(self) -> None:
        """Write the state beside and move it into place, so that a kill leaves the old one."""
        state = {name: getattr(self, name).state_dict() for name in ("sam", "average", "optimizer")}
        partial_path = self.state_path.with_suffix(".partial")
        torch.save(state | {"step": self.step, "seconds": time.monotonic() - self.began}, partial_path)
        partial_path.replace(self.state_path)


def run(plan: PretrainPlan) -> Path:
    """Train both cycles and write the teacher; continue an interrupted run of the same output file.

    Returns:
        The path of the safetensors file: half-precision tensors, sizes and recipe in its header.
    """
    torch.set_num_threads(plan.threads)
    first = plan.out.with_suffix(".first.safetensors")
    if plan.start_from is not None:
        first = plan.start_from
    elif not first.exists():
        run_cycle(Trainee(plan, 0, None), first)
    if plan.finish_minutes > 0:
        run_cycle(Trainee(plan, 1, first), plan.out)
    else:
        plan.out.write_bytes(first.read_bytes())
    if plan.start_from is None:
        first.unlink()
    return plan.out


def run_cycle(trainee: Trainee, out: Path) -> None:
    """Train until the cycle's time is spent and write the averaged weights to ``out``."""
    plan = trainee.plan
    rng = np.random.default_rng((plan.seed, trainee.cycle, trainee.step))
    stream = Prompted(plan.data, plan.seed + 1000 * trainee.cycle + trainee.step, plan.exact_boxes[trainee.cycle])
    context = "spawn" if plan.loader_workers else None
    loader = DataLoader(stream, batch_size=plan.batch, num_workers=plan.loader_workers, collate_fn=collate, multiprocessing_context=context)
    figures, saved = [], time.monotonic()
    for batch in loader:
        if trainee.progress >= 1:
            break
        figures.append(trainee.learn(batch, rng))
        if trainee.step % LOG_EVERY == 0:
            means = {key: round(float(np.mean([each[key] for each in figures])), 4) for key in figures[0]}
            LOG.info("cycle %d, step %d, %.0f%%: %s", trainee.cycle + 1, trainee.step, 100 * trainee.progress, means)
            figures = []
        if time.monotonic() - saved > SAVE_EVERY_S:
            trainee.save()
            saved = time.monotonic()
    shift = best_logit_shift(cast("Sam", trainee.average.module), plan)
    LOG.info("masks are best cut after adding %.2f to the logits", shift)
    write_teacher(out, trainee.average.module, ConvSamConfig(), plan, trainee.step, logit_shift=shift)
    trainee.state_path.unlink(missing_ok=True)


def _average(decay: float, old: torch.Tensor, new: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Move ``old`` towards ``new``, faster at first: with a fixed decay of 0.999 the random start still spoilt masks after 1,300 steps."""
    return old.lerp(new, max(1 - decay, 9 / (10 + float(count))))


@torch.inference_mode()
def best_logit_shift(sam: Sam, plan: PretrainPlan) -> float:
    """Return what to add to the logits so that cutting at zero gives the highest mean Dice for exact boxes.

    Measured on fresh draws of the training sources: soft Dice and cross-entropy leave masks a little small, and no other data
    may be looked at.
    """
    sam.eval()
    stream = iter(Prompted(plan.data, plan.seed + 999_983, 1.0))
    shifts = np.round(np.arange(-0.5, 1.51, 0.05), 2)
    scores = []
    for _ in range(plan.shift_images // plan.batch):
        batch = collate([next(stream) for _ in range(plan.batch)])
        pixels = (batch.images.float() - sam.pixel_mean) / sam.pixel_std
        index = torch.arange(plan.batch).repeat_interleave(PROMPTS_PER_IMAGE)
        logits, _ = decode_prompts(sam, sam.image_encoder(pixels), index, boxes=batch.boxes)
        full = functional.interpolate(logits[:, :1], batch.targets.shape[-2:], mode="bilinear")[:, 0]
        sizes = batch.targets.sum((1, 2))
        masks = (full + shift > 0 for shift in shifts)
        scores.append(torch.stack([2 * (mask & batch.targets).sum((1, 2)) / (mask.sum((1, 2)) + sizes) for mask in masks], dim=1))
    return float(shifts[int(torch.cat(scores).mean(dim=0).argmax())])


def write_teacher(path: Path, sam: nn.Module, config: ConvSamConfig, plan: PretrainPlan, step: int, *, logit_shift: float = 0.0) -> None:
    """Write half-precision weights with sizes, profile and recipe in the header."""
    recipe = {key: value for key, value in asdict(plan).items() if key not in ("data", "out", "start_from")} | {"steps": step}
    header = {
        "family": "samdistill-conv",
        "profile": "samdistill-conv",
        "config": json.dumps(config.to_json()),
        "recipe": json.dumps(recipe),
    }
    header["logit_shift"] = str(logit_shift)
    tensors = {name: tensor.detach().half().contiguous().clone() for name, tensor in sam.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=header)
    partial.replace(path)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with nuclei/, organ_slices/ and ct_organs/")
    parser.add_argument("--out", type=Path, required=True, help="file to write, ending in .safetensors")
    parser.add_argument("--minutes", type=float, default=75.0, help="first cycle (default 75)")
    parser.add_argument("--finish-minutes", type=float, default=15.0, help="second cycle, mostly exact boxes (default 15)")
    parser.add_argument("--start-from", type=Path, help="continue from this teacher, skipping the first cycle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    LOG.info("wrote %s", run(PretrainPlan(**vars(arguments))))


if __name__ == "__main__":
    main()
