"""A checkpoint's file read once, with its base merged in, and the network of its sizes; never runs what it pickles."""

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from math import isfinite
from pathlib import Path

import torch
from segment_anything.modeling import Sam

from distill.errors import CheckpointError
from distill.teachers import lora
from distill.teachers.conv_encoder import ConvEncoder, ConvSamConfig, build_conv_sam
from distill.teachers.families import OWN_STUDENT, OWN_TEACHER, SAM_VIT, Family, build_around, build_network, recognise
from distill.teachers.fetch import resolve_checkpoint
from distill.teachers.files import Contents, read_tensors, sha256_file
from distill.teachers.meant import BUNDLED


@dataclass(frozen=True, slots=True)
class Opened:
    """A file with its base merged in, read once."""

    path: Path
    contents: Contents
    family: Family
    tensors: dict[str, torch.Tensor]
    """With the base's, where one was named."""
    build_as: Family | None
    """How to build it; None for a delta whose base was not named."""
    sha256: str
    """Of the file; for a delta on a base, of both files' and its scale; for a whole model with scaled factors inside, of it and the scale."""


def bundled_path() -> Path:
    """Return the file of the teacher that ships with the package.

    Raises:
        CheckpointError: if this installation lacks it.
    """
    with as_file(files("distill.teachers") / "bundled" / "teacher.safetensors") as path:
        if not path.exists():
            message = "this installation has no bundled teacher (distill/teachers/bundled/teacher.safetensors). Reinstall the package, or train one: python -m distill.teachers.pretrain --help"
            raise CheckpointError(message)
        return path


def open_checkpoint(checkpoint: Path | str, base: Path | str | None) -> Opened:
    """Read a file, tell its family, and merge a delta into its base.

    Args:
        checkpoint: ``"bundled"``, an official name, or a file.
        base: of a LoRA delta, the file it was trained on.

    Raises:
        CheckpointError: if either cannot be read or used, or the two do not belong together.
    """
    path = bundled_path() if str(checkpoint) == BUNDLED else resolve_checkpoint(checkpoint)
    contents = read_tensors(path)
    family = recognise(contents.tensors, contents.header, path.name)
    digest = sha256_file(path)
    if not family.delta:
        if base is not None:
            message = f"{path.name} is {family.title}, a whole model; base is for LoRA deltas. Leave it out."
            raise CheckpointError(message)
        return Opened(path, contents, family, contents.tensors, family, digest)
    if base is None:
        if family.name != "lora" or lora.needs_base(contents.tensors):
            return Opened(path, contents, family, contents.tensors, None, digest)
        strength = _strength(path, contents)
        tensors = lora.merge_lora(contents.tensors, None, (path.name, path.name), strength)
        digest = hashlib.sha256(f"{digest} times {strength.scale}".encode()).hexdigest() if strength else digest
        return Opened(path, contents, family, tensors, SAM_VIT, digest)
    return _with_base(path, contents, family, resolve_checkpoint(base))


def _strength(path: Path, contents: Contents) -> lora.Strength | None:
    """Return how strong the factors are, where the file has some that do not say it; a stranger's configuration beside others is not read."""
    return lora.read_strength(path, contents.header) if lora.needs_strength(contents.tensors) else None


def _with_base(path: Path, contents: Contents, family: Family, base: Path) -> Opened:
    """Merge a delta into the file it was trained on."""
    below = read_tensors(base)
    kind = recognise(below.tensors, below.header, base.name)
    if kind.name != SAM_VIT.name:
        message = (
            f"base {base.name} is {kind.title}; deltas are put on a SAM ViT, such as sam_vit_b_01ec64.pth. Name the file it was trained on."
        )
        raise CheckpointError(message)
    names = (path.name, base.name)
    strength = None
    if family.name == "samed":
        merged = lora.merge_samed(contents.tensors, below.tensors, names)
    else:
        strength = _strength(path, contents)
        merged = lora.merge_lora(contents.tensors, below.tensors, names, strength)
    both = f"{sha256_file(path)} on {sha256_file(base)} times {strength.scale if strength else None}"
    return Opened(path, contents, family, merged, SAM_VIT, hashlib.sha256(both.encode()).hexdigest())


def own_header(opened: Opened) -> tuple[ConvSamConfig, float]:
    """Return the network's sizes and the logit shift that the header of this package's own files carries.

    Raises:
        CheckpointError: if it lacks them or they are none.
    """
    header = opened.contents.header
    try:
        config = ConvSamConfig.from_json(json.loads(header["config"]))
        sizes = (config.image_size, config.stride, config.embed_dim, *config.widths)
        shift = float(header.get("logit_shift", 0.0))
        if opened.family.name == OWN_STUDENT and header["profile"] not in opened.family.profiles:
            raise ValueError(header["profile"])  # noqa: TRY301 - as below
        if not (all(isinstance(each, int) and each > 0 for each in sizes) and isinstance(config.neck, int) and isfinite(shift)):
            raise ValueError(sizes, shift)  # noqa: TRY301 - one place says what a broken header is
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        message = f"{opened.path.name} says it is {opened.family.title}, but its header is broken: {type(error).__name__} at {error}. Fetch or export it again."
        raise CheckpointError(message) from error
    return config, shift


def build(opened: Opened) -> Sam:
    """Return the network of the sizes that the tensors have, with other weights.

    Raises:
        CheckpointError: if a size cannot be told.
    """
    if opened.family.name == OWN_TEACHER:
        return build_conv_sam(own_header(opened)[0])
    if opened.family.name == OWN_STUDENT:
        config = own_header(opened)[0]
        around = (config.image_size, config.image_size // config.stride)
        return build_around(lambda: (ConvEncoder(config), *around), opened.family, opened.tensors, opened.path.name)
    return build_network(opened.build_as or opened.family, opened.tensors, opened.path.name)
