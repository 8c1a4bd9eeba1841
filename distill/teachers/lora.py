"""Low-rank deltas (LoRA, Hu et al. 2022) merged into the weights of the file they were trained on.

Read are three ways of naming:

- SAMed: ``w_a_000 ...``, ``w_b_000 ...`` (q and v of block 0, of block 1, ...) with a prompt encoder and mask decoder of its own;
- peft: ``MODULE.lora_A.weight``, ``MODULE.lora_B.weight`` on any linear layer, on ``attn.qkv`` as a whole or on ``attn.q``,
  ``attn.k``, ``attn.v`` (also ``..._proj``); the factor ``lora_alpha / r`` comes from ``adapter_config.json`` beside the file or
  from the safetensors header, as no tensor tells it;
- a saved model with SAMed's layers inside: ``attn.qkv.linear_a_q.weight``, ``linear_b_q``, ``linear_a_v``, ``linear_b_v``.

All other tensors of the file replace those of the base.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch.nn import functional

from distill.errors import CheckpointError

Tensors = Mapping[str, torch.Tensor]

SAMED = re.compile(r"^w_(?P<side>[ab])_(?P<index>\d+)$")
PEFT = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?!weight$)(?P<adapter>[^.]+))?\.weight$")
INLINE = re.compile(r"^(?P<block>.+\.attn)\.qkv\.linear_(?P<side>[ab])_(?P<third>[qv])\.weight$")
THIRD = re.compile(r"^(?P<block>.+\.attn)\.(?P<third>[qkv])(?:_proj)?$")
UNMERGEABLE = re.compile(r"\.(lora_E|lora_magnitude_vector|lora_embedding_[AB]|lora_[AB])(\.|$)")
PLAIN = re.compile(r"\.(base_layer|modules_to_save(\.default)?)\.")
"""Name parts that peft puts into the names of untouched and of fully trained tensors."""
SAMED_IMAGE_SIZE = 512
META_IMAGE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class LowRank:
    """One update ``scale * b @ a`` of (a third of) one weight."""

    weight: str
    """Name of the tensor that is updated."""
    a: torch.Tensor
    """``(r, inputs)``."""
    b: torch.Tensor
    """``(outputs, r)``."""
    third: str = ""
    """``q``, ``k`` or ``v`` where only these rows of a joint projection are meant."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Strength:
    """What a configuration says of the factors under peft's names."""

    rank: float
    scale: float
    """``lora_alpha / r``, or over its root for rank-stabilised LoRA."""


def is_samed_delta(tensors: Tensors) -> bool:
    """Whether this is what SAMed saves: pairs of matrices and decoders, no image encoder."""
    return "w_a_000" in tensors and "w_b_000" in tensors


def has_lora(tensors: Tensors) -> bool:
    """Whether some tensors are low-rank factors under peft's, or SAMed's in-model, names."""
    return any(PEFT.match(key) or INLINE.match(key) or UNMERGEABLE.search(key) for key in tensors)


def needs_strength(tensors: Tensors) -> bool:
    """Whether a configuration must say how strong the factors are; SAMed's, under names of their own, are never scaled."""
    return any(PEFT.match(key) for key in tensors)


def needs_base(tensors: Tensors) -> bool:
    """Whether the file lacks the image encoder that its factors update."""
    return "image_encoder.pos_embed" not in tensors


def size_it_fits(tensors: Tensors) -> tuple[int, int]:
    """Return (width, blocks) of the ViT that a delta was trained on."""
    if is_samed_delta(tensors):
        return _inputs(tensors["w_a_000"]), sum(key.startswith("w_a_") for key in tensors) // 2
    factors = [key for key in tensors if (PEFT.match(key) or INLINE.match(key)) and ".attn." in key]
    inputs = [_inputs(tensors[key]) for key in factors if "lora_A" in key or "linear_a" in key]
    blocks = [int(found.group(1)) for key in factors if (found := re.search(r"blocks\.(\d+)\.", key))]
    return max(inputs, default=0), 1 + max(blocks, default=-1)


def _inputs(factor: torch.Tensor) -> int:
    return factor.shape[1] if factor.ndim == 2 else 0


def merge_samed(tensors: Tensors, base: Tensors, names: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Put a SAMed delta on its base.

    Raises:
        CheckpointError: if the two do not fit; ``names`` are the files', for the message.
    """
    factors = {key: value for key, value in tensors.items() if SAMED.match(key)}
    merged = dict(resize_base(base)) | {key: value for key, value in tensors.items() if key not in factors}
    width, blocks = size_it_fits(tensors)
    _require_fit(tensors, base, names)
    updates = []
    for index in range(2 * blocks):
        a, b = factors.pop(f"w_a_{index:03d}", None), factors.pop(f"w_b_{index:03d}", None)
        if a is None or b is None or a.ndim != 2 or a.shape[1] != width or b.shape != (width, a.shape[0]):
            message = (
                f"{names[0]}: its factors w_a_{index:03d} and w_b_{index:03d} are missing or do not belong together; is the file whole?"
            )
            raise CheckpointError(message)
        updates.append(LowRank(f"image_encoder.blocks.{index // 2}.attn.qkv.weight", a, b, "qv"[index % 2]))
    if factors:
        message = f"{names[0]} holds factors without a partner: {sorted(factors)[:3]}; is the file whole?"
        raise CheckpointError(message)
    return _apply(updates, merged, names[0])


def _require_fit(tensors: Tensors, base: Tensors, names: tuple[str, str]) -> None:
    width, blocks = size_it_fits(tensors)
    has = base["image_encoder.pos_embed"].shape[-1]
    depth = 1 + max(int(key.split(".")[2]) for key in base if key.startswith("image_encoder.blocks."))
    if (width, blocks) != (has, depth):
        message = f"{names[0]} fits a ViT of width {width} with {blocks} blocks, but base {names[1]} has width {has} and {depth} blocks. Name the file it was trained on."
        raise CheckpointError(message)


def resize_base(base: Tensors) -> Tensors:
    """Bring Meta's 1024 px file to SAMed's 512 px as SAMed does: bilinear positions, absolute and (in global blocks) relative.

    Bases of any other size are taken as trained. Source: ``load_from`` in SAMed's ``segment_anything/build_sam.py`` (2023).
    """
    patch = base["image_encoder.patch_embed.proj.weight"].shape[-1]
    grid = base["image_encoder.pos_embed"].shape[1]
    if grid * patch != META_IMAGE_SIZE:
        return base
    target = SAMED_IMAGE_SIZE // patch
    resized = dict(base)
    absolute = base["image_encoder.pos_embed"].float().permute(0, 3, 1, 2)
    resized["image_encoder.pos_embed"] = functional.interpolate(absolute, (target, target), mode="bilinear", align_corners=False).permute(
        0, 2, 3, 1
    )
    for key, value in base.items():
        if key.endswith((".rel_pos_h", ".rel_pos_w")) and value.shape[0] == 2 * grid - 1:
            resized[key] = functional.interpolate(
                value.float()[None, None], (2 * target - 1, value.shape[1]), mode="bilinear", align_corners=False
            )[0, 0]
    return resized


def merge_lora(tensors: Tensors, base: Tensors | None, names: tuple[str, str], strength: Strength | None) -> dict[str, torch.Tensor]:
    """Merge peft-style or in-model factors; ``base`` is None where the file has all other tensors itself.

    Args:
        tensors: the file's.
        base: the file's it was trained on.
        names: of both files, for messages.
        strength: of factors under peft's names; None if nothing tells it. SAMed's in-model factors are added as they are.

    Raises:
        CheckpointError: if factors do not fit, are of a kind that cannot be merged, are those of several adapters, or their scale is unknown.
    """
    if base is not None and size_it_fits(tensors)[0]:
        _require_width(tensors, base, names)
    rest, factors = dict(base or {}), dict[tuple[str, str], dict[str, torch.Tensor]]()
    unscaled = set[tuple[str, str]]()
    for key, value in tensors.items():
        peft, inline = PEFT.match(key), INLINE.match(key)
        if peft:
            third = THIRD.match(peft["module"])
            where = (f"{third['block']}.qkv.weight", third["third"]) if third else (f"{peft['module']}.weight", "")
            _add_factor(factors.setdefault(where, {}), peft["side"].lower(), value, (names[0], key))
        elif inline:
            where = (f"{inline['block']}.qkv.weight", inline["third"])
            _add_factor(factors.setdefault(where, {}), inline["side"], value, (names[0], key))
            unscaled.add(where)
        elif UNMERGEABLE.search(key):
            message = f"{names[0]}: {key} is a kind of LoRA that is not merged here (AdaLoRA, DoRA, or loralib, whose files do not say whether they are merged). Merge it where it was trained and save the whole model."
            raise CheckpointError(message)
        else:
            rest[PLAIN.sub(".", key.replace(".attn.qkv.qkv.", ".attn.qkv."))] = value
    if strength is None and needs_strength(tensors):
        message = f'{names[0]} does not say how strong its LoRA is. Put the adapter_config.json that peft wrote beside it, or one with {{"r": ..., "lora_alpha": ...}}.'
        raise CheckpointError(message)
    updates = [_pair(where, each, None if where in unscaled else strength, names[0]) for where, each in factors.items()]
    return _apply(updates, rest, names[0])


def _add_factor(sides: dict[str, torch.Tensor], side: str, value: torch.Tensor, where: tuple[str, str]) -> None:
    if side in sides:
        message = f"{where[0]} holds more than one adapter for the same weight ({where[1]} is one). Save the one that is meant on its own."
        raise CheckpointError(message)
    if value.ndim != 2:
        message = f"{where[0]}: {where[1]} has the shape {tuple(value.shape)}, but only factors of linear layers are merged here. Merge it with peft and save the whole model."
        raise CheckpointError(message)
    sides[side] = value


def _require_width(tensors: Tensors, base: Tensors, names: tuple[str, str]) -> None:
    width, blocks = size_it_fits(tensors)
    has = base["image_encoder.pos_embed"].shape[-1]
    depth = 1 + max(int(key.split(".")[2]) for key in base if key.startswith("image_encoder.blocks."))
    if width != has or blocks > depth:
        message = f"{names[0]} fits a ViT of width {width} with at least {blocks} blocks, but base {names[1]} has width {has} and {depth} blocks. Name the file it was trained on."
        raise CheckpointError(message)


def _pair(where: tuple[str, str], sides: dict[str, torch.Tensor], strength: Strength | None, name: str) -> LowRank:
    if sides.keys() != {"a", "b"} or sides["a"].shape[0] != sides["b"].shape[1]:
        message = f"{name}: the factors of {where[0]} are missing or do not belong together; is the file whole?"
        raise CheckpointError(message)
    if strength is not None and sides["a"].shape[0] != strength.rank:
        message = f"{name}: the factors of {where[0]} have rank {sides['a'].shape[0]}, but the configuration says r = {strength.rank:g}. It belongs to another file."
        raise CheckpointError(message)
    return LowRank(where[0], sides["a"], sides["b"], where[1], 1.0 if strength is None else strength.scale)


def _apply(updates: list[LowRank], tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    for update in updates:
        weight = tensors.get(update.weight)
        rows = update.b.shape[0] * (3 if update.third else 1)
        if weight is None or weight.ndim != 2 or tuple(weight.shape) != (rows, update.a.shape[1]):
            found = "not there" if weight is None else tuple(weight.shape)
            message = f"{name}: its update of {update.weight} needs a weight of {(rows, update.a.shape[1])}, but that of the base is {found}. Name the file it was trained on."
            raise CheckpointError(message)
        changed = weight.float().clone()
        part = rows // 3 * "qkv".index(update.third) if update.third else 0
        changed[part : part + update.b.shape[0]] += update.scale * (update.b.float() @ update.a.float())
        tensors[update.weight] = changed
    return tensors


def read_strength(path: Path, header: Mapping[str, str]) -> Strength | None:
    """Return rank and scale as the file's header or ``adapter_config.json`` has it.

    Raises:
        CheckpointError: if the configuration asks for what is not merged here.
    """
    beside = path.with_name("adapter_config.json")
    if not {"r", "lora_alpha"} <= header.keys() and not beside.is_file():
        return None
    try:
        config = dict(header) if {"r", "lora_alpha"} <= header.keys() else json.loads(beside.read_text())
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"{beside} is no configuration of a LoRA: expected r and lora_alpha, but reading them failed with {error!r}."
        raise CheckpointError(message) from error
    odd = [
        key
        for key in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
        if config.get(key) not in (None, False, "false", {}, "")
    ]
    if odd or not rank > 0:
        message = (
            f"{beside} asks for {', '.join(odd) or f'rank {rank}'}, which is not merged here. Merge it with peft and save the whole model."
        )
        raise CheckpointError(message)
    return Strength(rank, alpha / (sqrt(rank) if config.get("use_rslora") in (True, "true") else rank))
