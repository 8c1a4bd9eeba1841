"""Where a network computes, and whether in half precision."""

import torch

from students.errors import NoSuchDeviceError


def best_device(name: str = "auto") -> torch.device:
    """Return the named device; ``auto`` is CUDA where there is one.

    Raises:
        NoSuchDeviceError: if there is none of this name, or it is a GPU that is not here.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if here else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        message = f"there is no device {name!r}. Write auto, cpu, cuda or cuda:1."
        raise NoSuchDeviceError(message) from None
    if device.type == "cuda" and (device.index or 0) >= here:
        message = f"device {name} is not here: this process sees {here} GPUs. Write auto or cpu; 'samdistill doctor' says more."
        raise NoSuchDeviceError(message)
    return device


def half_precision_pays(device: torch.device) -> bool:
    """Return whether bf16 makes this device faster: CUDA, and CPUs with bf16 instructions (1.7-1.9 times on one core)."""
    if device.type == "cuda":
        return True
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and bool(check and check())
