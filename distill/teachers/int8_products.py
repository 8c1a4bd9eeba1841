"""Matrix products of 8-bit integers on a CPU, in place of ``PackedLinear``'s where a little accuracy may go for speed.

Weights are rounded once, symmetrically, with one scale per output channel. Activations are rounded in every call with a scale for each row
(token), so that a token with large numbers leaves the others theirs, and a row's answer depends on that row alone. Sums are exact in 32 bits.

The product is oneDNN's, under the operator that ``torch.compile`` uses. That takes one scale for the whole input, so the rows' scales, the bias
and GELU follow in float32, for a few rows at a time that stay in the cache. As with ``cpu_products``, the operator is no part of
PyTorch's promised interface: it is tried first, and where it is missing, inexact, or where the processor multiplies bytes no faster than
floats, float32 products of the same rounded numbers take its place. That is slow and gives the same answers.
"""

import logging
from collections.abc import Iterator
from functools import cache

import torch
from torch.nn import functional

from distill.teachers.cpu_crew import share_out

LOG = logging.getLogger("samdistill.int8")

ROWS = 256
"""Rows of one product. Measured on one Zen 4 core, two MLP layers of ViT-B: 64 / 256 / 1024 rows take 119 / 109 / 114 ms for 4096 tokens."""
MIDDLE = 128
"""The unsigned level that stands for zero, for inputs of both signs."""
AFTER_GELU = 32
"""The same for what comes out of GELU, which is never below -0.17: most levels are left to what is above zero."""
TINY = 1e-30
"""Smallest scale: rows and channels of zeros have one too."""


class PackedInt8Linear:
    """``x @ weight.T + bias`` in 8-bit integers, with the interface of ``PackedLinear``.

    Args:
        weight: ``(out, in)`` in the type to answer in.
        bias: ``(out,)`` or None.
        rows: how many rows a product will have, roughly.
        zero: the level, 1 to 254, that stands for zero in the input.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, *, zero: int = MIDDLE) -> None:
        exact = weight.detach().float()
        self.dtype = weight.dtype
        self.zero = zero
        self.bias = torch.zeros(len(exact), dtype=torch.float32) if bias is None else bias.detach().float()
        self.steps = (exact.abs().amax(1) / 127).clamp(min=TINY)
        levels = (exact / self.steps[:, None]).round().to(torch.int8)
        self.packs = weight.device.type == "cpu" and multiplies_bytes()
        self.weight = _pack(levels, min(rows, ROWS)) if self.packs else levels.float()

    def __call__(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Map ``(rows, in)`` to ``(rows, out)``, with exact (erf) GELU on request."""
        if len(x) <= ROWS:
            return self._multiply(x, gelu=gelu).to(self.dtype)
        answer = x.new_empty(len(x), len(self.steps), dtype=self.dtype)

        def multiply(starts: Iterator[int]) -> None:
            for n in starts:
                answer[n : n + ROWS] = self._multiply(x[n : n + ROWS], gelu=gelu)

        share_out(multiply, range(0, len(x), ROWS))
        return answer

    def _multiply(self, x: torch.Tensor, *, gelu: bool) -> torch.Tensor:
        """Map a few rows ``(n, in)`` to ``(n, out)`` float32."""
        levels, steps = _round(x.float(), self.zero)
        if self.packs:
            y = _product(levels, self.zero, self.weight, self.steps)
        else:
            y = functional.linear(levels.float() - self.zero, self.weight) * self.steps
        torch.addcmul(self.bias, y, steps, out=y)
        return functional.gelu(y) if gelu else y


def _round(x: torch.Tensor, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the levels ``(n, in)`` uint8 of float32 ``x``, and what one level is worth in each row ``(n, 1)``."""
    steps = torch.maximum(x.amax(1, keepdim=True) / (255 - zero), x.amin(1, keepdim=True) / -zero).clamp_(min=TINY)
    # Nothing is below zero here, so cutting off rounds down. The way to uint8 leads through int16: PyTorch's direct one is five times slower.
    return torch.mul(x, 1 / steps).add_(zero + 0.5).to(torch.int16).to(torch.uint8), steps


def _pack(levels: torch.Tensor, rows: int) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(levels, [rows, levels.shape[1]])
    return packed


def _product(x: torch.Tensor, zero: int, weight: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Multiply levels ``(n, in)`` with a packed weight, whose channels have ``steps`` ``(out,)``; float32."""
    none = torch.zeros(len(steps), dtype=torch.long)
    y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(x, 1.0, zero, weight, steps, none, None, 1.0, 0, torch.float32, "none", [], "none")
    return y


@cache
def multiplies_bytes() -> bool:
    """Say whether oneDNN's product of bytes is there, exact for the largest sums, and fast; tried once per process."""
    reason = "the processor has no such instructions (VNNI)" if not _has_vnni() else "" if _is_exact() else "this PyTorch has none"
    if reason:
        LOG.warning("No fast products of 8-bit integers: %s. Precision int8 gives the same answers here, but slower than fp32.", reason)
    return not reason


def _has_vnni() -> bool:
    """Say whether the processor multiplies bytes in 32-bit sums: without that, oneDNN's sums overflow, or its plain loop takes minutes."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than PyTorch 2.7, where the other stands in
    vnni = known.get("avx512_vnni") or known.get("avx_vnni") or getattr(torch.cpu, "_is_vnni_supported", bool)()
    return bool(vnni)


def _is_exact() -> bool:
    """Compare a product of the largest levels, and of others, with its exact value."""
    levels = torch.arange(48 * 160).remainder(255).sub(127).view(48, 160).to(torch.int8)
    levels[0] = 127
    x = torch.arange(40 * 160).remainder(256).view(40, 160).to(torch.uint8)
    x[0] = 255
    try:
        with torch.inference_mode():
            y = _product(x, AFTER_GELU, _pack(levels, len(x)), torch.ones(len(levels), dtype=torch.float32))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(y.double(), (x.double() - AFTER_GELU) @ levels.double().T)
