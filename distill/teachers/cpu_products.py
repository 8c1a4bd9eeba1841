"""Matrix products on a CPU at the speed that the processor has: weights packed once for oneDNN, float32 kept float32.

PyTorch's float32 ``linear`` goes through MKL, which runs at half speed on some AMD processors, and its bfloat16 ``linear`` packs
the weight again in every call. oneDNN's own operator with a packed weight avoids both and joins bias and GELU to the product. It is
PyTorch's (``torch.compile`` uses it), but not part of its promised interface: it is tried on a small product first, and plain
``linear`` takes its place where it is missing or less exact than it should be.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

import torch
from torch.nn import functional

GATE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative L2 error against float64 that a product may have: that of honest float32, and of rounding to bfloat16."""

Packing = Callable[[torch.Tensor, torch.Tensor | None, int], Callable[[torch.Tensor], torch.Tensor]]
"""What makes a layer of a weight, a bias and the number of rows, such as ``PackedLinear``."""


class PackedLinear:
    """``x @ weight.T + bias`` with a weight packed for products of about ``rows`` rows.

    Args:
        weight: ``(out, in)`` in the type to compute in.
        bias: ``(out,)`` or None.
        rows: how many rows a product will have, roughly.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> None:
        self.bias = None if bias is None else bias.detach().to(weight.dtype).contiguous()
        plain = weight.detach().contiguous()
        self.packs = weight.device.type == "cpu" and packs(weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(plain, rows) if self.packs else plain  # noqa: SLF001 - see above

    def __call__(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Map ``(rows, in)`` to ``(rows, out)``, with exact (erf) GELU on request."""
        if self.packs:
            return _packed(x, self.weight, self.bias, gelu=gelu)
        y = functional.linear(x, self.weight, self.bias)
        return functional.gelu(y) if gelu else y


def _packed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")  # noqa: SLF001
    return y


@cache
def packs(dtype: torch.dtype) -> bool:
    """Say whether oneDNN's packed product is there and exact enough for ``dtype``; measured once per process."""
    if dtype not in GATE or not torch.backends.mkldnn.is_available():
        return False
    x, weight = probe(96, 160).to(dtype), probe(64, 160).to(dtype)
    try:
        with torch.inference_mode():
            y = _packed(x, torch.ops.mkldnn._reorder_linear_weight(weight, len(x)), None, gelu=True)  # noqa: SLF001
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return relative_error(y, functional.gelu(x.double() @ weight.double().T)) <= GATE[dtype]


@cache
def onednn_is_exact() -> bool:
    """Say whether oneDNN's float32 products, with the switch that lets it take over from MKL, really are float32 here.

    The switch means "bfloat16 is allowed": processors without AMX ignore the permission, those with it use it.
    """
    x, y = probe(96, 160), probe(160, 64)
    with torch.inference_mode(), _switched():
        return relative_error(x @ y, x.double() @ y.double()) <= GATE[torch.float32]


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let oneDNN do float32 products inside the block where that changes nothing but the speed."""
    if not torch.backends.mkldnn.is_available() or not onednn_is_exact():
        yield
        return
    with _switched():
        yield


_LOCK = Lock()
_INSIDE: list[None] = []
"""One entry per block that is open, in any thread: the switch is the process's, and the last one out turns it back."""
_BEFORE: list[str] = []
"""What the switch was before the first block."""


@contextmanager
def _switched() -> Iterator[None]:
    setting = getattr(torch.backends.mkldnn, "matmul", None)  # PyTorch 2.9; the older switch would also change CUDA's precision
    if setting is None:
        yield
        return
    with _LOCK:
        if not _INSIDE:
            _BEFORE.append(setting.fp32_precision)
            setting.fp32_precision = "bf16"
        _INSIDE.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.pop()
            if not _INSIDE:
                setting.fp32_precision = _BEFORE.pop()


def probe(rows: int, columns: int) -> torch.Tensor:
    """Numbers with all their bits in use, without touching the global generator."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float32)


def relative_error(y: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative L2 error of ``y``, in float64."""
    return float((y.double() - exact).norm() / exact.norm())
