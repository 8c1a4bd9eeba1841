"""Look into a checkpoint file, say what it is, and build the teacher from it; never run what it pickles.

The steps, one module each: read the tensors (``files``), tell the family and build its network (``families``, ``vit``,
``tiny_vit``, ``adapters``), put a delta on its base (``lora``), choose the protocol (``profiles``).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from math import isfinite
from pathlib import Path

import torch
from segment_anything.modeling import Sam

from distill.devices import AUTO, CPU, resolve_devices
from distill.errors import CheckpointError, TeacherError
from distill.teachers import lora
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.families import FAMILIES, SAM_VIT, Family, build_network, describe, recognise
from distill.teachers.fetch import profile_of_hash, resolve_checkpoint
from distill.teachers.files import Contents, md5_file, read_tensors, sha256_file
from distill.teachers.profiles import KNOWN_MD5, PROFILES, profile_for
from distill.teachers.sam import Precision, SamTeacher
from distill.teachers.strict import load_strictly

BUNDLED = "bundled"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What ``inspect_checkpoint`` found."""

    family: str
    """``samdistill-conv``, ``sam-vit``, ... (``distill.teachers.families``)."""
    title: str
    """The family, for people."""
    profile: str | None
    """The protocol, or None where the user has to name it."""
    profiles: tuple[str, ...]
    """Those that the family can be used with."""
    image_size: int
    """Side of the network's input in pixels; 0 for a delta without its base."""
    parameters: int
    fingerprint: str
    """First 16 hexadecimal digits of the file's SHA-256; for a delta, of it and its base."""
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Opened:
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


def inspect_checkpoint(path: Path | str, *, base: Path | str | None = None) -> CheckpointInfo:
    """Say what a file is without building the model.

    Args:
        path: ``"bundled"``, an official name, or a file.
        base: of a LoRA delta, the file it was trained on; without it, what the delta needs is said.

    Raises:
        CheckpointError: if it is no checkpoint, or one of a family that is recognised but not supported.
    """
    return _describe(_open(path, base))


def load_teacher(
    checkpoint: Path | str,
    *,
    profile: str | None = None,
    base: Path | str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    compiled: bool = False,
) -> SamTeacher:
    """Build a teacher from ``"bundled"`` or a checkpoint file.

    Args:
        checkpoint: ``"bundled"``, an official name such as ``"vit_b"``, or a ``.safetensors``, ``.pt`` or ``.pth`` file.
        profile: the file's protocol, where it cannot be told from the file: ``"sam"``, ``"medsam"``, ... (``distill.teachers.profiles``).
        base: of a LoRA delta, the file it was trained on.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; ``"auto"`` takes the first GPU where there is one.
        precision: ``"bf16"`` computes in bfloat16 where that is safe; ``"auto"`` does so on CUDA, except for this package's own teacher.
            ``"int8"`` is for ViT encoders on a CPU: faster than ``"bf16"``, and less exact (docs/performance.md).
        compiled: compile the blocks of a ViT encoder on CUDA; a CPU and other encoders stay as they are.

    Raises:
        CheckpointError: if the file is missing, damaged, of an unsupported family, or ambiguous.
        TeacherError: if it cannot compute in the precision that was named, or several devices are.
        PlanError: if the device is none, or is not here.
    """
    opened = _open(checkpoint, base)
    info = _describe(opened)
    chosen = choose_profile(info, opened.path.name, profile)
    sam = _build(opened)
    load_strictly(sam, opened.tensors, opened.build_as or opened.family, opened.path.name)
    where, *more = resolve_devices(device)
    if more and device != AUTO:
        message = f"one teacher computes on one device, but {len(more) + 1} are named: {device}. Name one; labelling takes several."
        raise TeacherError(message)
    shift = _own_header(opened)[1] if opened.family.name == "samdistill-conv" else 0.0
    own = profile_for(chosen, info.image_size, logit_shift=shift)
    return SamTeacher(sam, own, info.fingerprint, device=where, precision=precision, compiled=compiled)


def check_loads(checkpoint: Path | str) -> None:
    """Build the teacher of a file as ``load_teacher`` does and throw it away; of a delta without its base, do nothing.

    Raises:
        CheckpointError: if tensors are missing, unexpected, mis-shaped, or hold NaN or infinity.
    """
    opened = _open(checkpoint, None)
    if not opened.family.delta or opened.build_as is not None:
        load_strictly(_build(opened), opened.tensors, opened.build_as or opened.family, opened.path.name)


def _open(checkpoint: Path | str, base: Path | str | None) -> _Opened:
    path = bundled_path() if str(checkpoint) == BUNDLED else resolve_checkpoint(checkpoint)
    contents = read_tensors(path)
    family = recognise(contents.tensors, contents.header, path.name)
    digest = sha256_file(path)
    if not family.delta:
        if base is not None:
            message = f"{path.name} is {family.title}, a whole model; base is for LoRA deltas. Leave it out."
            raise CheckpointError(message)
        return _Opened(path, contents, family, contents.tensors, family, digest)
    if base is None:
        if family.name != "lora" or lora.needs_base(contents.tensors):
            return _Opened(path, contents, family, contents.tensors, None, digest)
        strength = _strength(path, contents)
        tensors = lora.merge_lora(contents.tensors, None, (path.name, path.name), strength)
        digest = hashlib.sha256(f"{digest} times {strength.scale}".encode()).hexdigest() if strength else digest
        return _Opened(path, contents, family, tensors, SAM_VIT, digest)
    return _with_base(path, contents, family, resolve_checkpoint(base))


def _strength(path: Path, contents: Contents) -> lora.Strength | None:
    """Return how strong the factors are, where the file has some that do not say it; a stranger's configuration beside others is not read."""
    return lora.read_strength(path, contents.header) if lora.needs_strength(contents.tensors) else None


def _with_base(path: Path, contents: Contents, family: Family, base: Path) -> _Opened:
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
    return _Opened(path, contents, family, merged, SAM_VIT, hashlib.sha256(both.encode()).hexdigest())


def _describe(opened: _Opened) -> CheckpointInfo:
    family, contents = opened.family, opened.contents
    if family.name == "samdistill-conv":
        image_size, details = _own_header(opened)[0].image_size, dict(contents.header)
    else:
        image_size, details = _sizes(opened)
    notes = {"left out": ", ".join(contents.left_out), "pickled classes not read": ", ".join(contents.foreign)}
    unused = sum(any(part in key for part in family.unused) for key in opened.tensors)
    notes["tensors not used"] = f"{unused}, as in the family's own code" if unused else ""
    profile = _known_profile(opened)
    return CheckpointInfo(
        family=family.name,
        title=family.title,
        profile=profile,
        profiles=family.profiles,
        image_size=image_size,
        parameters=sum(tensor.numel() for tensor in contents.tensors.values()),
        fingerprint=opened.sha256[:16],
        details=details | {key: value for key, value in notes.items() if value} | _prompts(profile),
    )


def _own_header(opened: _Opened) -> tuple[ConvSamConfig, float]:
    """Return the network's sizes and the logit shift that the header of this package's own files carries.

    Raises:
        CheckpointError: if it lacks them or they are none.
    """
    header = opened.contents.header
    try:
        config = ConvSamConfig.from_json(json.loads(header["config"]))
        sizes = (config.image_size, config.stride, config.embed_dim, *config.widths)
        shift = float(header.get("logit_shift", 0.0))
        if not (all(isinstance(each, int) and each > 0 for each in sizes) and isfinite(shift)):
            raise ValueError(sizes, shift)  # noqa: TRY301 - one place says what a broken header is
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        message = f"{opened.path.name} says it is {opened.family.title}, but its header is broken: {type(error).__name__} at {error}. Fetch or export it again."
        raise CheckpointError(message) from error
    return config, shift


def _sizes(opened: _Opened) -> tuple[int, dict[str, str]]:
    try:
        return describe(opened.build_as or opened.family, opened.tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        message = f"{opened.path.name} looks like {opened.family.title}, but its sizes cannot be told: {type(error).__name__} at {error}. Is the file whole?"
        raise CheckpointError(message) from error


def _prompts(profile: str | None) -> dict[str, str]:
    return {} if profile is None else {"trained prompts": ", ".join(PROFILES[profile].prompts) or "none: it segments without"}


def _known_profile(opened: _Opened) -> str | None:
    """Return the protocol that the family or the file's hash tells."""
    if len(opened.family.profiles) == 1:
        return opened.family.profiles[0]
    if opened.family.name != SAM_VIT.name:
        return None
    return profile_of_hash(opened.sha256) or KNOWN_MD5.get(md5_file(opened.path))


def choose_profile(info: CheckpointInfo, name: str, wanted: str | None) -> str:
    """Return the profile that a file is used with. What ``inspect_checkpoint`` found is enough, so a run can ask before it begins.

    Args:
        info: what the file is.
        name: what messages call it.
        wanted: the profile that was named, if any.

    Raises:
        CheckpointError: if the file needs a base, if no profile is named where several are possible, or if one does not go with the file.
    """
    if "needs" in info.details:
        message = f"{name} is a {info.title} and holds no image encoder; it needs {info.details['needs']}. Name it as base."
        raise CheckpointError(message)
    chosen = wanted or info.profile
    if chosen is None:
        likely = " Its input of 256 px is SAM-Med2D's." if info.image_size == 256 else ""
        message = (
            f"{name} has the tensors of SAM, which MedSAM and other fine-tunes share, and its hash is not known; each prepares images "
            f"differently. If it is Meta's SAM or was trained with its preprocessing, say profile: sam; if it is MedSAM, profile: medsam; "
            f"others: {', '.join(each for each in info.profiles if each not in ('sam', 'medsam'))}.{likely}"
        )
        raise CheckpointError(message)
    profile_for(chosen, info.image_size)
    if chosen not in info.profiles:
        message = f"{name} is of family {info.family} ({info.title}) and cannot be used with profile {chosen!r}. Known for it: {', '.join(info.profiles)}."
        raise CheckpointError(message)
    if info.profile is not None and chosen != info.profile:
        message = f"{name} is known by its hash to be {info.profile!r} and cannot be used with profile {chosen!r}."
        raise CheckpointError(message)
    return chosen


def check_precision(info: CheckpointInfo, name: str, precision: Precision, devices: Sequence[str]) -> None:
    """Refuse a precision in which a file's encoder cannot compute on these devices, before anything is built.

    Raises:
        TeacherError: if it cannot.
    """
    encoder = FAMILIES[info.family].encoder
    if precision == "int8" and encoder != "ViT":
        message = f"precision int8 is for SAM's ViT encoders, but the encoder of {name} ({info.title}) is {encoder}. Use bf16 or fp32."
        raise TeacherError(message)
    elsewhere = [device for device in devices if device != CPU]
    if precision == "int8" and elsewhere:
        message = f"precision int8 computes on the CPU only, but the device is {elsewhere[0]}. Use device cpu, or precision bf16."
        raise TeacherError(message)


def _build(opened: _Opened) -> Sam:
    if opened.family.name == "samdistill-conv":
        return build_conv_sam(_own_header(opened)[0])
    return build_network(opened.build_as or opened.family, opened.tensors, opened.path.name)
