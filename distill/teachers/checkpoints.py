"""Look into a checkpoint file, say what it is, and build the teacher from it; never run what it pickles.

The steps, one module each: read the tensors (``files``), tell the family and build its network (``families``, ``vit``,
``tiny_vit``, ``adapters``), put a delta on its base (``lora``), all of it for one file (``opening``), choose the protocol (``profiles``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import cast

import torch

from distill.devices import AUTO, CPU, resolve_devices
from distill.errors import CheckpointError, TeacherError
from distill.teachers.base import Teacher
from distill.teachers.families import FAMILIES, OWN_STUDENT, OWN_TEACHER, SAM_VIT, Fact, describe
from distill.teachers.fetch import profile_of_hash
from distill.teachers.files import Contents, md5_file
from distill.teachers.foreign import FOREIGN, check_foreign, foreign_facts, is_foreign, load_foreign
from distill.teachers.opening import Opened, build, open_checkpoint, own_header
from distill.teachers.profiles import KNOWN_MD5, PROFILES, profile_for
from distill.teachers.sam import Precision, SamTeacher
from distill.teachers.strict import check_tensors, load_strictly


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
    details: dict[str, Fact]
    fault: str = ""
    """Why it cannot be loaded all the same; only looked for where ``inspect_checkpoint`` was asked to."""


def inspect_checkpoint(path: Path | str, *, base: Path | str | None = None, tensors: bool = False) -> CheckpointInfo:
    """Say what a file is without building the model.

    Args:
        path: ``"bundled"``, an official name, or a file.
        base: of a LoRA delta, the file it was trained on; without it, what the delta needs is said.
        tensors: hold every tensor against the network too, and say in ``fault`` what is wrong; a delta without its base is not judged.

    Raises:
        CheckpointError: if it is no checkpoint, or one of a family that is recognised but not supported.
    """
    if is_foreign(path):
        return _describe_foreign(str(path), base)
    opened = open_checkpoint(path, base)
    info = _describe(opened)
    return replace(info, fault=_fault(opened)) if tensors else info


def load_teacher(
    checkpoint: Path | str,
    *,
    profile: str | None = None,
    base: Path | str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    compiled: bool = False,
) -> Teacher:
    """Build a teacher from ``"bundled"`` or a checkpoint file, or let another package load its own.

    Args:
        checkpoint: ``"bundled"``, an official name such as ``"vit_b"``, a ``.safetensors``, ``.pt`` or ``.pth`` file, or the name of a teacher that another
            package brings (docs/extending.md).
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
    if is_foreign(checkpoint):
        check_foreign(str(checkpoint), profile=profile, base=base)
        return cast("Teacher", load_foreign(str(checkpoint), _single(device), precision))
    opened = open_checkpoint(checkpoint, base)
    info = _describe(opened)
    chosen = choose_profile(info, opened.path.name, profile)
    sam = build(opened)
    load_strictly(sam, opened.tensors, opened.build_as or opened.family, opened.path.name)
    shift = own_header(opened)[1] if opened.family.name in {OWN_TEACHER, OWN_STUDENT} else 0.0
    own = profile_for(chosen, info.image_size, logit_shift=shift)
    return SamTeacher(sam, own, info.fingerprint, device=_single(device), precision=precision, compiled=compiled)


def _single(device: str) -> str:
    """Return the device of one teacher; ``auto`` is the first of several."""
    where, *more = resolve_devices(device)
    if more and device != AUTO:
        message = f"one teacher computes on one device, but {len(more) + 1} are named: {device}. Name one; labelling takes several."
        raise TeacherError(message)
    return where


def _fault(opened: Opened) -> str:
    """Return what ``load_teacher`` would refuse in the tensors; the network that they are held against has shapes and no memory."""
    if opened.build_as is None:
        return ""
    try:
        with torch.device("meta"):
            own = build(opened).state_dict()
        check_tensors(own, opened.tensors, opened.build_as, opened.path.name)
    except CheckpointError as error:
        return str(error)
    return ""


def _describe(opened: Opened) -> CheckpointInfo:
    family, contents = opened.family, opened.contents
    if family.name in {OWN_TEACHER, OWN_STUDENT}:
        image_size, details = own_header(opened)[0].image_size, {key: _as_fact(value) for key, value in contents.header.items()}
    else:
        image_size, details = _sizes(opened)
    notes = {"left out": _beside(contents), "pickled classes not read": _foreign(contents)}
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


def _describe_foreign(name: str, base: Path | str | None) -> CheckpointInfo:
    """Say which package brings a teacher; what is inside, only its loader knows."""
    check_foreign(name, profile=None, base=base)
    package, declared, mark = foreign_facts(name)
    return CheckpointInfo(
        family=FOREIGN,
        title=f"a teacher of {package}",
        profile=None,
        profiles=(),
        image_size=0,
        parameters=0,
        fingerprint=mark,
        details={"loaded by": declared},
    )


def _beside(contents: Contents) -> str:
    """Name what a trainer saved beside the weights, and say what leaving it out means."""
    return f"{', '.join(contents.left_out)} (saved beside the weights, not needed to predict)" if contents.left_out else ""


def _foreign(contents: Contents) -> str:
    """Name what only code of the file could rebuild, and say what leaving it out means."""
    return (
        f"{', '.join(contents.foreign)} (would need code of the file to run, which never happens; the weights are whole without)"
        if contents.foreign
        else ""
    )


def _as_fact(text: str) -> Fact:
    """Return the number that a header's text stands for; other texts stay."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not isfinite(number):
        return text
    return int(number) if text.isascii() and text.isdigit() else number


def _sizes(opened: Opened) -> tuple[int, dict[str, Fact]]:
    try:
        return describe(opened.build_as or opened.family, opened.tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        message = f"{opened.path.name} looks like {opened.family.title}, but its sizes cannot be told: {type(error).__name__} at {error}. Is the file whole?"
        raise CheckpointError(message) from error


def _prompts(profile: str | None) -> dict[str, str]:
    return {} if profile is None else {"trained prompts": ", ".join(PROFILES[profile].prompts) or "none: it segments without"}


def _known_profile(opened: Opened) -> str | None:
    """Return the protocol that the family or the file's hash tells."""
    if len(opened.family.profiles) == 1:
        return opened.family.profiles[0]
    if opened.family.name == OWN_STUDENT:
        said = opened.contents.header.get("profile")
        return said if said in opened.family.profiles else None
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
