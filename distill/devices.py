"""Where teachers compute: which devices a plan names, which of them are here, and how one that has died is told from a bad case.

A name is ``cpu``, ``cuda`` (the first GPU) or ``cuda:N``; several are joined with commas; ``auto`` is every GPU that this process sees, and
the CPU where there is none. Nothing here imports torch before a device is looked for, as recipes are read by programs that need none.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from distill.errors import PlanError, TeacherError

AUTO = "auto"
CPU = "cpu"
_GPU = re.compile(r"cuda(?::(\d+))?")
_HOW = "Write auto, cpu, cuda:0, or several with commas, such as cuda:0,cuda:1"
FAULTS = (
    "CUDA error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""What PyTorch's errors say when a GPU, or the process's state on it, is broken; every later call there fails too. Older versions of PyTorch
raise them as plain RuntimeError, newer ones those of the runtime itself as ``torch.AcceleratorError``."""

REFUSED_CALLS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid pitch argument",
    "too many resources requested for launch",
    "operation not permitted when stream is capturing",
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
)
"""What the same errors say of one call that CUDA would not make, after which it goes on: its runtime API (cudaError_t) writes of the others,
and not of these, that the process must be ended. What is in neither list counts as a broken device: rather one device less than blaming cases."""


class DeviceError(TeacherError, RuntimeError):
    """No device is left to ask a teacher on."""


def parse_devices(named: str | Sequence[str], *, where: str = "device ") -> tuple[str, ...]:
    """Return the devices that a plan names, as torch writes them; whether they are here is another question.

    Args:
        named: such as ``"auto"``, ``"cuda:0,cuda:1"`` or ``["cuda:0", "cuda:1"]``. The CPU may be named several times.
        where: how the message begins.

    Raises:
        PlanError: if one is no device, a GPU is named twice, or ``auto`` stands beside others.
    """
    words = [word.strip() for word in (named.split(",") if isinstance(named, str) else named)]
    names = tuple(_spelt_out(word, where) for word in words)
    if not names:
        message = f"{where}names none. {_HOW}."
        raise PlanError(message)
    if AUTO in names and len(names) > 1:
        message = f"{where}names auto beside others: {', '.join(words)}. auto is every GPU already; leave it or the others out."
        raise PlanError(message)
    twice = sorted({name for name in names if name.startswith("cuda") and names.count(name) > 1})
    if twice:
        message = f"{where}names {twice[0]} twice: {', '.join(words)}. One teacher fills a GPU; name each once."
        raise PlanError(message)
    return names


def _spelt_out(word: str, where: str) -> str:
    if word in (AUTO, CPU):
        return word
    found = _GPU.fullmatch(word)
    if found is None:
        message = f"{where}names {word!r}, which is no device. {_HOW}."
        raise PlanError(message)
    return f"cuda:{int(found.group(1) or 0)}"


def resolve_devices(named: str | Sequence[str]) -> tuple[str, ...]:
    """Return the devices that are meant and are here.

    Raises:
        PlanError: if ``parse_devices`` does, or a GPU is named that this process does not see.
    """
    names = parse_devices(named)
    if set(names) == {CPU}:
        return names
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names == (AUTO,):
        return tuple(f"cuda:{n}" for n in range(here)) or (CPU,)
    for name in names:
        if name == CPU or int(name.removeprefix("cuda:")) < here:
            continue
        if here:
            seen = "one GPU, cuda:0" if here == 1 else f"{here} GPUs, cuda:0 to cuda:{here - 1}"
            message = f"device {name} is not here: this process sees {seen}. CUDA_VISIBLE_DEVICES may hide others."
        else:
            message = (
                f"device {name} is not here: PyTorch {torch.__version__} finds no GPU. Say cpu or auto; 'samdistill doctor' says more."
            )
        raise PlanError(message)
    return names


def made_current(device: str) -> AbstractContextManager[object]:
    """Return a block in which a GPU is the one that CUDA's libraries and kernels of others use unasked; nothing changes for the CPU."""
    if not device.startswith("cuda"):
        return nullcontext()
    import torch

    return torch.cuda.device(device)


def has_died(error: BaseException) -> bool:
    """Say whether an error means that a device can compute no more, rather than that one case cannot be computed or memory ran out."""
    import torch

    from distill.teachers.batching import OutOfMemoryError, ran_out

    if isinstance(error, OutOfMemoryError) or ran_out(error) or any(text in str(error).partition("\n")[0] for text in REFUSED_CALLS):
        return False
    broken: type[BaseException] | tuple[()] = getattr(torch, "AcceleratorError", ())  # since PyTorch 2.8
    return isinstance(error, broken) or (isinstance(error, RuntimeError) and any(text in str(error) for text in FAULTS))
