"""Train a small CLIP on crops of the collections, so that the source ``text`` can be measured where no weights of a general CLIP are at hand.

    SAMDISTILL_TEST_DATA=... python benchmarks/small_clip.py WEIGHTS
    SAMDISTILL_TEST_DATA=... python benchmarks/sources.py --source text --clip WEIGHTS --data cardiac --quick

The first command writes the folder WEIGHTS: ``open_clip_config.json``, weights, and ``seen.json``, which names the patients that were learnt from;
the second scores none of these. Learnt are the pictures that the source shows: gold objects, and the teacher's class-free masks, those that are a gold object
by its name, the others as something else. Of ``hippocampus`` the patients of the part ``archive`` teach, of other collections every other patient.

Such a model knows the few things it has seen, in pictures like those it is asked about: what it reaches says that the source works when a CLIP knows the
classes. It says nothing of how well general or medical CLIPs know them.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from sources import COLLECTIONS, SEEN, build, restricted

from distill.automatic import Candidate
from distill.label_plan import LabelPlan
from distill.prompts.everything_options import GridOptions
from distill.prompts.nameless import masks_by_slice
from distill.prompts.pieces import pieces_of
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.text import shown
from distill.prompts.text_clip import CONFIG
from distill.prompts.text_options import TextOptions
from distill.quality import dice

MODEL = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 64,
        "layers": [1, 1, 1, 1],
        "width": 16,
    },  # open_clip's ResNet: with so few pictures it learns what a ViT does not
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SEES = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
OTHER = "other"
PHRASES = {
    "left-ventricle": ("left ventricle", "cavity of the left ventricle", "blood in the left ventricle", "left ventricle of the heart"),
    "hippocampus": ("hippocampus", "hippocampus of the brain", "hippocampal formation"),
    "nucleus": ("nucleus", "cell nucleus", "nucleus of a cell", "bright nucleus"),
    OTHER: (*TextOptions().background, "something else", "surrounding tissue", "no organ in particular"),
}
TEMPLATES = (*TextOptions().templates, "{}", "a picture of the {}", "the {} in an image", "here is the {}")
SAME, DIFFERENT = 0.7, 0.45
"""A mask with this Dice or more is the object, one below the second is something else, and what lies between teaches nothing."""
MOST = 30
"""Masks of the object, and of other things, that one slice teaches."""
BATCH, RATE, MOST_SCALE = 64, 2e-3, float(np.log(30))
"""The scale is what cosines are multiplied by; with so few captions it would grow until every answer is sure."""
CROSS = np.ones((3, 3), np.uint8)
CONTEXTS = (0.1, 0.2, 0.3)
"""The source shows 0.2 of the surroundings; others make more of few objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Pictures and what they show."""

    pictures: torch.Tensor
    """``(N, 3, 64, 64)`` half, as the model sees them."""
    names: np.ndarray
    """``(N,)``, keys of PHRASES."""


def learners(data: Path, name: str) -> set[str]:
    """Return the patients of a collection that may be learnt from."""
    split = data / name / "split.csv"
    if split.is_file():
        with split.open() as stream:
            return {row["case"] for row in csv.DictReader(stream) if row["part"] == "archive"}
    patients = sorted({scan.patient for scan in COLLECTIONS[name].scans(data, 0)})
    return set(patients[::2])


def gather(data: Path, name: str, slices: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, str]]:
    """Yield crops ``(H, W, 3)`` of about so many slices of a collection, with what they show."""
    collection = restricted(COLLECTIONS[name], learners(data, name).__contains__)
    with tempfile.TemporaryDirectory() as folder:
        archive = build(Path(folder), data, collection, 0)
        context = SourceContext(archive=archive, plan=LabelPlan(classes=collection.classes, teacher="bundled", device="cpu"))
        records = archive.cases()
        every = max(1, round(sum(record.shape_czyx[1] for record in records) / slices))
        before = 0
        for record in records:
            chosen = [z for z in range(record.shape_czyx[1]) if (before + z) % every == 0]
            before += record.shape_czyx[1]
            if chosen:
                subject = thinned(context.subject(record, collection.classes), chosen)
                gold = archive[record.id].labels("gold").read()[chosen] > 0
                for z, candidates in masks_by_slice(context.teacher, subject, GridOptions()):
                    yield from crops(subject.picture(z), gold[z], candidates, collection.classes[0].name, rng)


def thinned(subject: Subject, chosen: Sequence[int]) -> Subject:
    """Return only these slices of a case, shown as in the whole of it."""
    channels, _, height, width = subject.record.shape_czyx
    record = replace(subject.record, shape_czyx=(channels, len(chosen), height, width))
    return replace(subject, record=record, volume_czyx=subject.volume_czyx[:, list(chosen)])


def crops(
    picture: np.ndarray, gold: np.ndarray, candidates: Sequence[Candidate], name: str, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield what a slice teaches: gold objects and the teacher's masks of them, each in three ways, and masks of other things."""
    objects = [piece.on(gold.shape) for piece in pieces_of(gold.astype(np.int32)[None], least_px=20)]
    same = [
        changed for each in objects for changed in (each, *(change(each.astype(np.uint8), CROSS) > 0 for change in (cv2.dilate, cv2.erode)))
    ]
    others = []
    for candidate in candidates:
        best = max((dice(candidate.mask, each) for each in objects), default=0.0)
        if best >= SAME:
            same.append(candidate.mask)
        elif best < DIFFERENT:
            others.append(candidate.mask)
    for n in rng.permutation(len(same))[:MOST]:
        yield from views(picture, same[n], name, CONTEXTS)
    for n in rng.permutation(len(others))[:MOST]:
        yield from views(picture, others[n], OTHER, CONTEXTS[1:2])


def views(picture: np.ndarray, mask: np.ndarray, name: str, contexts: Sequence[float]) -> Iterator[tuple[np.ndarray, str]]:
    """Yield what the source would show of a mask."""
    if not mask.any():
        return
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = (x, y, x + width, y + height)
    candidate = Candidate(
        mask=mask, box_xyxy_px=box, area_px=int(mask.sum()), predicted_iou=1, stability=1, point_xy_px=(x, y), crop_xyxy_px=box
    )
    for context in contexts:
        yield shown(picture, candidate, context), name


def varied(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Turn, mirror, shift, and change brightness and contrast of pictures ``(B, 3, S, S)`` in -1..1, each in its own way."""
    out = []
    for picture in pictures:
        turned = torch.rot90(picture, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.5:
            turned = turned.flip(2)
        shifted = turned.roll((int(rng.integers(-3, 4)), int(rng.integers(-3, 4))), (1, 2))
        bright = ((shifted + 1) / 2).clamp(0, 1) ** float(np.exp(rng.normal(0, 0.25))) * float(np.exp(rng.normal(0, 0.15)))
        out.append(bright.clamp(0, 1) * 2 - 1)
    return torch.stack(out)


def train(net: torch.nn.Module, words: Callable[[list[str]], torch.Tensor], lessons: Lessons, steps: int, rng: np.random.Generator) -> None:
    """Bring pictures and captions together: all pairs of one name belong together (Yang et al. 2022, unified contrastive learning)."""
    places = {name: np.flatnonzero(lessons.names == name) for name in np.unique(lessons.names)}
    shares = {name: 0.5 if name == OTHER else 0.5 / (len(places) - 1) for name in places}
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    net.train()
    for step in range(steps):
        names = rng.choice(list(shares), size=BATCH, p=list(shares.values()))
        pictures = lessons.pictures[[int(rng.choice(places[name])) for name in names]].float()
        captions = words([str(rng.choice(TEMPLATES)).replace("{}", str(rng.choice(PHRASES[name]))) for name in names])
        seen, said, scale = net(varied(pictures, rng), captions)
        logits, same = scale * seen @ said.T, torch.from_numpy((names[:, None] == names[None]).astype(np.float32))
        loss = sum(torch.nn.functional.cross_entropy(each, same / same.sum(dim=1, keepdim=True)) for each in (logits, logits.T)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        net.logit_scale.data.clamp_(0, MOST_SCALE)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, scale {scale.item():.1f}", flush=True)
    net.eval()


def main() -> None:
    """Gather, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="folder to write")
    parser.add_argument(
        "--data", nargs="+", choices=["cardiac", "hippocampus", "nuclei"], default=["cardiac"], help="collections to learn from"
    )
    parser.add_argument("--slices", type=int, default=140, help="slices of each")
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    data = Path(os.environ["SAMDISTILL_TEST_DATA"])
    arguments.weights.mkdir(parents=True, exist_ok=True)
    (arguments.weights / CONFIG).write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": SEES}, indent=1))
    (arguments.weights / SEEN).write_text(json.dumps({name: sorted(learners(data, name)) for name in arguments.data}, indent=1))
    torch.manual_seed(0)
    net, _, see = open_clip.create_model_and_transforms(f"local-dir:{arguments.weights}", load_weights=False)
    began = time.monotonic()
    pictures, names = [], []
    for name in arguments.data:
        for crop, what in gather(data, name, arguments.slices, np.random.default_rng(0)):
            pictures.append(see(Image.fromarray(crop)).half())
            names.append(what)
        print(f"{name}: {len(names)} crops so far, {time.monotonic() - began:.0f} s", flush=True)
    lessons = Lessons(pictures=torch.stack(pictures), names=np.array(names))
    print({str(name): int((lessons.names == name).sum()) for name in np.unique(lessons.names)})
    train(net, open_clip.get_tokenizer(f"local-dir:{arguments.weights}"), lessons, arguments.steps, np.random.default_rng(0))
    save_file(net.state_dict(), arguments.weights / "open_clip_model.safetensors")
    print(f"{arguments.weights}: {sum(each.numel() for each in net.parameters()) / 1e6:.1f} M parameters, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
