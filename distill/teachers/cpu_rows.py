"""The decoder's steps between its products, compiled for the processor at hand: softmax over a prompt's tokens, and normalised rows.

A prompt's decoding is half products, which run at the processor's peak, and half such steps over each prompt's own image tokens. PyTorch goes over
memory two or three times for each of them. Here each goes over it once, on a part that stays in the first-level cache. For float32 on CPUs;
everything else, and processors without a compiler, take PyTorch's operations. Checked against float64 once per process.

The exponential is ``2 ** x`` by rounding ``x`` to a whole number and a polynomial for the rest, fitted here by least squares on Chebyshev points. It stands in
this file because loops that are kept compiled on disk notice changes of their own file only.

Letters: ``P`` prompts, ``A`` heads, ``T`` tokens per prompt, ``n`` image tokens, ``C`` channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import e, log2
from typing import Any

import numba
import numpy as np
import torch
from torch.nn import functional

from distill.teachers.cpu_products import GATE, probe, relative_error

FASTMATH = {"contract", "reassoc", "nsz"}
"""What the compiler may do with float arithmetic: fuse and regroup. Not allowed: to take for granted that nothing is NaN or infinite."""
DEGREE = 5
"""Of the polynomial: relative error 8e-8, a third of what rounding the logits to float32 costs."""
LEAST = np.float32(-126.0)
"""Below this power of two a float32 loses bits; such a logit weighs nothing beside the row's largest, which weighs one."""
LOG2_E = np.float32(log2(e))
BLOCK = 256
"""Image tokens looked at together, in a softmax over tokens: a block of all tokens' logits fits the first-level cache."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The two steps; each is given float32 or bfloat16 and returns the same type."""

    over_tokens: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Softmax of logits ``(P, A, T, n)`` plus ``(P, A, T)`` over ``T``, in place of the logits."""
    norm_and_place: Callable[[torch.Tensor, torch.nn.LayerNorm, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """``(image (P, n, C), norm, positions (n, C))`` -> the image normalised, in place, and the same plus positions."""


def rows_for(dtype: torch.dtype, device: torch.device) -> Rows:
    """Return the steps for tensors of a type on a device."""
    return _compiled_or_plain() if dtype == torch.float32 and device.type == "cpu" else PLAIN


def _plain_norm_and_place(image: torch.Tensor, norm: torch.nn.LayerNorm, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    normed = functional.layer_norm(image, image.shape[-1:], norm.weight.to(image.dtype), norm.bias.to(image.dtype), norm.eps)
    return normed, normed + positions


PLAIN = Rows(
    over_tokens=lambda logits, always: torch.softmax(logits.add_(always[..., None]), 2, out=logits),
    norm_and_place=_plain_norm_and_place,
)


@cache
def _compiled_or_plain() -> Rows:
    try:
        fast = _compiled()
        return fast if _error_of(fast) <= GATE[torch.float32] else PLAIN
    except (numba.core.errors.NumbaError, RuntimeError):  # no compiler for this processor
        return PLAIN


def _error_of(rows: Rows) -> float:
    """Return the largest relative L2 error, against float64, of the two steps on small inputs of odd sizes."""
    logits, norm, positions = 6 * probe(6, 7 * 300).view(2, 3, 7, 300), torch.nn.LayerNorm(24), probe(35, 24)
    image = 3 * probe(70, 24).view(2, 35, 24) + 1
    with torch.inference_mode():
        always = 3 * probe(6, 7).view(2, 3, 7)
        softmax = relative_error(rows.over_tokens(logits.clone(), always), PLAIN.over_tokens(logits.double(), always.double()))
        exact = PLAIN.norm_and_place(image.double(), norm.double(), positions.double())
        found = rows.norm_and_place(image.clone(), norm.float(), positions)
    return max(softmax, *(relative_error(one, other) for one, other in zip(found, exact, strict=True)))


def _compiled() -> Rows:
    def over_tokens(logits: torch.Tensor, always: torch.Tensor) -> torch.Tensor:
        _over_tokens(logits.flatten(0, 1).numpy(), always.flatten(0, 1).numpy())
        return logits

    def norm_and_place(image: torch.Tensor, norm: torch.nn.LayerNorm, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        placed = torch.empty_like(image)
        weight, bias = (each.detach().float().numpy() for each in (norm.weight, norm.bias))
        _norm_and_place(image.numpy(), weight, bias, np.float32(norm.eps), positions.numpy(), placed.numpy())
        return image, placed

    return Rows(over_tokens=over_tokens, norm_and_place=norm_and_place)


ZERO, ONE = np.float32(0), np.float32(1)


def _polynomial(degree: int) -> list[np.float32]:
    """Return coefficients, lowest first, of a polynomial for ``2 ** x`` on [-0.5, 0.5] that keeps the relative error small."""
    places = 0.5 * np.cos(np.pi * (np.arange(1000) + 0.5) / 1000)
    powers = np.vander(places, degree + 1, increasing=True) / np.exp2(places)[:, None]
    return [np.float32(c) for c in np.linalg.lstsq(powers, np.ones_like(places), rcond=None)[0]]


_C0, _C1, _C2, _C3, _C4, _C5 = _polynomial(DEGREE)


def _jit(function: Any) -> Any:
    """Have a function compiled when it is first called, and the result kept on disk where that is allowed: the next process starts a second earlier."""
    try:
        return numba.njit(nogil=True, fastmath=FASTMATH, cache=True)(function)
    except RuntimeError:  # neither this package's folder nor the user's can be written to
        return numba.njit(nogil=True, fastmath=FASTMATH)(function)


@_jit
def exp2(x: Any) -> Any:
    """Return ``2 ** x`` of one float32, for loops that are compiled themselves."""
    x = max(x, LEAST)  # NaN stays NaN
    whole = np.rint(x)
    f = x - whole
    p = ((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
    return np.int32(np.float32(p).view(np.int32) + np.int32(np.int32(whole) << np.int32(23))).view(np.float32)


@_jit
def _over_tokens(logits: Any, always: Any) -> None:  # noqa: C901 - loops in functions of their own are three times as slow
    """Take the softmax over the tokens ``T`` of each group ``(groups, T, n)`` plus ``(groups, T)``, in place.

    Scratch arrays are made in the loop's own function: only then does the compiler know that they do not overlap.
    """
    groups, tokens, count = logits.shape
    largest, total, kept = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for g in range(groups):
        for start in range(0, count, BLOCK):
            width = min(BLOCK, count - start)
            first = logits[g, 0, start : start + width]
            for j in range(width):
                largest[j], total[j] = first[j] + always[g, 0], ZERO
            for t in range(1, tokens):
                row, more = logits[g, t, start : start + width], always[g, t]
                for j in range(width):
                    largest[j] = max(largest[j], row[j] + more)
            for t in range(tokens):
                row, more = logits[g, t, start : start + width], always[g, t]
                for j in range(width):
                    kept[j] = exp2((row[j] + more - largest[j]) * LOG2_E)
                    total[j] += kept[j]
                for j in range(width):
                    row[j] = kept[j]
            for j in range(width):
                total[j] = ONE / total[j]
            for t in range(tokens):
                row = logits[g, t, start : start + width]
                for j in range(width):
                    row[j] *= total[j]


@_jit
def _norm_and_place(image: Any, weight: Any, bias: Any, eps: Any, positions: Any, placed: Any) -> None:
    """Take the layer norm of each row, in place, and add positions in another place."""
    prompts, count, channels = image.shape
    for p in range(prompts):
        for i in range(count):
            row, where, out = image[p, i], positions[i], placed[p, i]
            mean = ZERO
            for c in range(channels):
                mean += row[c]
            mean /= np.float32(channels)
            spread = ZERO
            for c in range(channels):
                spread += (row[c] - mean) * (row[c] - mean)
            scale = ONE / np.sqrt(spread / np.float32(channels) + eps)
            for c in range(channels):
                value = (row[c] - mean) * scale * weight[c] + bias[c]
                row[c] = value
                out[c] = value + where[c]
