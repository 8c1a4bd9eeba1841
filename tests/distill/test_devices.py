"""Devices are told by name, looked for before anything is loaded, and a broken one is told from a bad case."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from distill.devices import has_died, made_current, parse_devices, resolve_devices
from distill.errors import PlanError
from distill.teachers.batching import OutOfMemoryError


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("auto", ("auto",)),
        ("cpu", ("cpu",)),
        ("cuda", ("cuda:0",)),
        ("cuda:0, cuda:2", ("cuda:0", "cuda:2")),
        (["cuda:1", "cpu"], ("cuda:1", "cpu")),
        (("cpu", "cpu"), ("cpu", "cpu")),
    ],
    ids=str,
)
def test_devices_are_written_in_one_way(named: str | list[str] | tuple[str, ...], meant: tuple[str, ...]) -> None:
    assert parse_devices(named) == meant


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("gpu", r"device names 'gpu', which is no device\. Write auto, cpu, cuda:0"),
        ("cuda:one", "'cuda:one', which is no device"),
        ("cpu:1", "'cpu:1', which is no device"),
        ("", "'', which is no device"),
        ("cuda:0,", "'', which is no device"),
        ([], "names none"),
        ("auto,cpu", "auto beside others: auto, cpu"),
        ("cuda,cuda:0", "names cuda:0 twice: cuda, cuda:0"),
    ],
    ids=str,
)
def test_what_is_no_device_is_refused_with_what_to_write(named: str | list[str], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse_devices(named)


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "meant"), [(0, ("cpu",)), (1, ("cuda:0",)), (3, ("cuda:0", "cuda:1", "cuda:2"))])
def test_auto_is_every_gpu_or_else_the_cpu(count: int, meant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(count, monkeypatch)
    assert resolve_devices("auto") == meant


def test_named_gpus_that_are_here_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(3, monkeypatch)
    assert resolve_devices("cuda:2,cuda:0,cpu") == ("cuda:2", "cuda:0", "cpu")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, r"device cuda:2 is not here: PyTorch \S+ finds no GPU\. Say cpu or auto"),
        (1, "device cuda:2 is not here: this process sees one GPU, cuda:0. CUDA_VISIBLE_DEVICES"),
        (2, "this process sees 2 GPUs, cuda:0 to cuda:1"),
    ],
)
def test_a_gpu_that_is_not_here_is_named_with_those_that_are(count: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(count, monkeypatch)
    with pytest.raises(PlanError, match=said):
        resolve_devices("cpu,cuda:2")


def test_names_are_checked_without_torch() -> None:
    program = "import sys; from distill.devices import parse_devices, resolve_devices; parse_devices('cuda:0,cuda:1'); resolve_devices('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(
            RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), id="illegal access"
        ),
        pytest.param(RuntimeError("CUDA error: unknown error"), id="not known"),
        pytest.param(RuntimeError("CUDA error: device-side assert triggered\nsays: invalid argument"), id="a quote in later lines"),
        pytest.param(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), id="cuDNN"),
        pytest.param(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), id="cuBLAS"),
        pytest.param(getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure"), id="PyTorch's own type"),
    ],
)
def test_a_broken_device_is_told_by_its_error(error: BaseException) -> None:
    assert has_died(error)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), id="a bad case"),
        pytest.param(ValueError("CUDA error: quoted in a message of ours"), id="another type"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory."), id="out of memory"),
        pytest.param(
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), id="out of memory, cuBLAS"
        ),
        pytest.param(RuntimeError("CUDA error: out of memory"), id="out of page-locked memory"),
        pytest.param(
            RuntimeError("CUDA error: invalid argument\nCUDA kernel errors might be asynchronously reported"), id="a refused call"
        ),
        pytest.param(getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: invalid configuration argument"), id="a refused launch"),
        pytest.param(RuntimeError("CUDA error: too many resources requested for launch"), id="a launch too large"),
        pytest.param(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), id="a product cuBLAS has not"),
        pytest.param(OutOfMemoryError("out of memory with one of the pictures at a time: CUDA error"), id="one picture does not fit"),
    ],
)
def test_a_bad_case_a_refused_call_and_too_little_memory_leave_the_device_alive(error: BaseException) -> None:
    assert not has_died(error)


def test_a_gpu_is_the_current_one_inside_a_block_and_a_cpu_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    with made_current("cuda:1"), made_current("cpu"):
        assert entered == ["cuda:1"]
