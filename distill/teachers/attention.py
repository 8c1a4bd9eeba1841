"""Attention with SAM's relative positions, computed exactly in several ways; which is fastest depends on the device.

SAM adds to every logit a term of the key's row and one of its column, ``q . R_h[qy, ky] + q . R_w[qx, kx]`` (Li et al. 2022,
MViTv2, as used by Kirillov et al. 2023). No fused kernel knows that form. Two ways around it for one fused call:

- ``bias``: write the sum of both terms out as an additive mask;
- ``augmented``: append both terms to the query and one-hot rows and columns to the key, so that a plain product makes them.

The third, row blocks that stay in the cache, is for CPUs (``distill.teachers.vit_cpu``).

Letters: ``B`` batch (images or windows), ``A`` heads, ``D`` channels per head, ``y x`` a token's place in a grid of ``Y X``.
"""

import gc
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from distill.teachers.batching import ran_out

ALIGN = 8
"""A mask's last dimension is stored in multiples of this: fused kernels of CUDA refuse or copy others."""
GATE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative L2 error against the plain formula in float32 that a variant may have; above it, the variant is not used."""
REPEATS = 5

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""q, k, v ``(B, A, Y * X, D)``, table_h ``(2 Y - 1, D)``, table_w ``(2 X - 1, D)`` -> ``(B, A, Y * X, D)``."""


def relative(table: torch.Tensor, size: int) -> torch.Tensor:
    """Return ``(size, size, D)``: entry ``[q, k]`` is the table's row for a key ``q - k`` before its query."""
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]


def relative_terms(q: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each query adds for each key row ``(B, A, Y * X, Y)`` and each key column ``(B, A, Y * X, X)``."""
    height, width = (table_h.shape[0] + 1) // 2, (table_w.shape[0] + 1) // 2
    grid = q.unflatten(2, (height, width))
    rows = torch.einsum("bayxd,ykd->bayxk", grid, relative(table_h, height))
    columns = torch.einsum("bayxd,xkd->bayxk", grid, relative(table_w, width))
    return rows.flatten(2, 3), columns.flatten(2, 3)


def attend_plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> torch.Tensor:
    """Write every logit out: slow, and what the others are held against."""
    rows, columns = relative_terms(q, table_h, table_w)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    logits = logits + (rows[..., :, None] + columns[..., None, :]).flatten(-2)
    out: torch.Tensor = logits.softmax(dim=-1) @ v
    return out


def attend_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> torch.Tensor:
    """Fused attention with the sum of both terms as its mask."""
    rows, columns = relative_terms(q, table_h, table_w)
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(-2)
    keys = bias.shape[-1]
    bias = functional.pad(bias, (0, -keys % ALIGN))[..., :keys] if keys % ALIGN else bias
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attend_augmented(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> torch.Tensor:
    """Fused attention without a mask; queries and keys grow from ``D`` to ``D + Y + X`` channels, values are padded to match."""
    rows, columns = relative_terms(q, table_h, table_w)
    height, width, channels = rows.shape[-1], columns.shape[-1], q.shape[-1]
    wide = channels + height + width
    wide += -wide % ALIGN
    places = torch.arange(height * width, device=q.device)
    marks = torch.cat([functional.one_hot(places // width, height), functional.one_hot(places % width, width)], dim=-1).to(k.dtype)
    marks = functional.pad(marks, (0, wide - channels - height - width)).expand(*k.shape[:2], -1, -1)
    terms = functional.pad(torch.cat([q * channels**-0.5, rows, columns], dim=-1), (0, wide - channels - height - width))
    full = functional.scaled_dot_product_attention(terms, torch.cat([k, marks], dim=-1), functional.pad(v, (0, wide - channels)), scale=1.0)
    return full[..., :channels]


VARIANTS: dict[str, Attend] = {"bias": attend_bias, "augmented": attend_augmented}


def choose_variant(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device, *, clock: Callable[[], float] = time.perf_counter
) -> str:
    """Measure the variants on random tensors of one shape and return the fastest that agrees with the plain formula.

    Args:
        shape: ``(B, A, Y, X, D)``.
        dtype: of the computation.
        device: where.
        clock: seconds; a test may bring its own.

    Returns:
        A key of ``VARIANTS``; ``"plain"`` if none agrees; ``"augmented"``, which needs the least memory, if there is not enough to measure.
    """
    seconds: dict[str, float] = {}
    refused = 0
    for name in VARIANTS:
        try:
            seconds |= _measure(name, shape, dtype, device, clock)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            refused += 1
        if refused:  # outside the handler, whose error keeps tensors alive
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if not seconds:
        return "augmented" if refused else "plain"
    return min(seconds, key=lambda name: seconds[name])


def _measure(
    name: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the seconds of one variant by its name, or nothing if it does not agree with the plain formula."""
    attend = VARIANTS[name]
    batch, heads, height, width, channels = shape
    make = partial(_noise, torch.Generator().manual_seed(0), dtype, device)
    q, k, v = (make(batch, heads, height * width, channels) for _ in range(3))
    table_h, table_w = make(2 * height - 1, channels), make(2 * width - 1, channels)
    exact = attend_plain(q[:1, :1].float(), k[:1, :1].float(), v[:1, :1].float(), table_h.float(), table_w.float())
    error = (attend(q[:1, :1], k[:1, :1], v[:1, :1], table_h, table_w).float() - exact).norm() / exact.norm()
    return {name: _time(partial(attend, q, k, v, table_h, table_w), device, clock)} if float(error) <= GATE[dtype] else {}


def _noise(generator: torch.Generator, dtype: torch.dtype, device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def _time(call: Callable[[], torch.Tensor], device: torch.device, clock: Callable[[], float]) -> float:
    """Return the least seconds of one call, after one that warms up."""
    spans = []
    for _ in range(REPEATS + 1):
        _wait(device)
        began = clock()
        call()
        _wait(device)
        spans.append(clock() - began)
    return min(spans[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
