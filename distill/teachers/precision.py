"""In which numbers a teacher computes."""

from typing import Literal, get_args

import torch

from distill.errors import TeacherError
from distill.teachers.base import TeacherProfile

Precision = Literal["auto", "fp32", "bf16", "int8"]


def resolve_precision(precision: Precision, device: torch.device, profile: TeacherProfile) -> Literal["fp32", "bf16", "int8"]:
    """Return what ``"auto"`` means: bfloat16 on CUDA devices that have it, but never for the bundled teacher, whose labels stay as they are."""
    if precision not in get_args(Precision):
        message = f"precision {precision!r} is not known; use one of {', '.join(get_args(Precision))}."
        raise TeacherError(message)
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and profile.name != "samdistill-conv" and _has_bf16(device)
    return "bf16" if fast else "fp32"


def _has_bf16(device: torch.device) -> bool:
    """Tell whether a GPU computes in bfloat16 itself; where it is emulated, it is slower than float32."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
