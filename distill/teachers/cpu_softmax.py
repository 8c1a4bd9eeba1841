"""Softmax of attention logits with SAM's relative positions, in one pass over the cache per row, compiled for the processor at hand.

PyTorch needs three passes for it (add the positions, find the maximum, exponentiate and divide), at 0.9 ns per logit on a Zen 4 core; ViT-B
has 0.9 billion of them per picture. Here a row of logits is read once, biased and exponentiated while it lies in the
first-level cache, and written back; the division is left to the caller, who has fewer numbers to divide after the product with the values.
0.3 ns per logit. Numba compiles it when the first picture comes, in about a second for each size of window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from distill.teachers.cpu_products import GATE, probe, relative_error
from distill.teachers.cpu_rows import FASTMATH, LOG2_E, exp2


@dataclass(frozen=True, slots=True)
class Softmax:
    """The two halves of a softmax, between which the product with the values has its place.

    With ``A`` heads and ``n`` queries that fill whole rows of ``columns`` tokens, beginning with row ``first`` of the attended square:
    """

    weigh: Callable[[torch.Tensor, torch.Tensor, tuple[int, int], float, torch.Tensor], None]
    """``(logits, terms, (first, columns), scale, inverse)``:

    - logits ``(A, n, span * span)``, contiguous: queries times keys; overwritten with ``exp(scale * logit + positions - largest)``;
    - terms ``(A, n, T)``, ``T = 2 (2 span - 1)``, contiguous: queries times the tables of relative rows and columns, both turned round;
    - inverse ``(A, n)`` float32: overwritten with one over each row's sum.
    """
    divide: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]], None]
    """``(sums, inverse, answer, (row, head))``: sums ``(A, n, D)`` times inverse ``(A, n)`` into ``answer[row:, head:]`` ``(n, A, D)``."""


@cache
def softmax_for(span: int, dtype: torch.dtype) -> Softmax:
    """Return the softmax for attention over ``span x span`` keys in ``dtype``; compiled and checked against PyTorch's once per process.

    Where the compiled form is missing or inexact, one of PyTorch's operations takes its place.
    """
    plain = Softmax(weigh=plain_weigh, divide=plain_divide)
    if dtype not in GATE:
        return plain
    try:
        fast = _compiled(span, dtype)
        return fast if _error_of(fast, plain, span, dtype) <= GATE[dtype] else plain
    except (numba.core.errors.NumbaError, RuntimeError):  # no compiler for this processor
        return plain


def plain_weigh(logits: torch.Tensor, terms: torch.Tensor, place: tuple[int, int], scale: float, inverse: torch.Tensor) -> None:
    """Weigh with PyTorch's operations; its softmax divides at once, so there is nothing left to divide by."""
    (heads, queries, keys), (first, columns) = logits.shape, place
    span = int(keys**0.5)
    rows, total = queries // columns, terms.shape[2]
    apart, begin = terms.stride(0), terms.storage_offset()
    by_row = terms.as_strided((heads, rows, columns, span, 1), (apart, columns * total - 1, total, 1, 1), begin + span - 1 - first)
    by_column = terms.as_strided((heads, rows, columns, 1, span), (apart, columns * total, total - 1, 1, 1), begin + 3 * span - 2)
    logits.mul_(scale)
    logits.view(heads, rows, columns, span, span).add_(by_row).add_(by_column)
    torch.softmax(logits, -1, out=logits)
    inverse.fill_(1.0)


def plain_divide(sums: torch.Tensor, inverse: torch.Tensor, answer: torch.Tensor, start: tuple[int, int]) -> None:
    """Divide with PyTorch's operations."""
    (heads, queries, _), (row, head) = sums.shape, start
    torch.mul(sums, inverse[..., None].to(sums.dtype), out=answer[row : row + queries, head : head + heads].transpose(0, 1))


def _error_of(softmax: Softmax, plain: Softmax, span: int, dtype: torch.dtype) -> float:
    """Return the relative L2 error, against float64, of weights for two heads and up to two rows of queries."""
    place, scale = (span // 2, min(3, span)), 0.3
    queries = min(2, span - place[0]) * place[1]
    logits = 6 * probe(2 * queries, span**2).view(2, queries, -1).to(dtype)
    terms = probe(2 * queries, 4 * span - 2).view(2, queries, -1).to(dtype)
    inverse = torch.empty(2, queries, dtype=torch.float32)
    exact = logits.double()
    plain.weigh(exact, terms.double(), place, scale, inverse)
    softmax.weigh(logits, terms, place, scale, inverse)
    answer = torch.empty(queries, 2, span**2, dtype=dtype)
    softmax.divide(logits, inverse, answer, (0, 0))
    return relative_error(answer.transpose(0, 1), exact)


def _compiled(span: int, dtype: torch.dtype) -> Softmax:
    weigh_kernel, divide_kernel = _weigh_kernel(span, dtype), _divide_kernel(dtype)

    def weigh(logits: torch.Tensor, terms: torch.Tensor, place: tuple[int, int], scale: float, inverse: torch.Tensor) -> None:
        weigh_kernel(_array(logits), _array(terms), *place, np.float32(scale * LOG2_E), inverse.numpy())

    def divide(sums: torch.Tensor, inverse: torch.Tensor, answer: torch.Tensor, start: tuple[int, int]) -> None:
        divide_kernel(_array(sums), inverse.numpy(), _array(answer), *start)

    return Softmax(weigh=weigh, divide=divide)


def _array(x: torch.Tensor) -> np.ndarray:
    """Return a tensor's memory as NumPy sees it: bfloat16 as the upper half of a float32."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _jit(function: Any) -> Any:
    return numba.njit(nogil=True, fastmath=FASTMATH)(function)


@cache
def _pieces(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Return compiled functions of one number: stored to float32, float32 to stored, and ``2 ** x``."""

    def widen(bits: Any) -> Any:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)

    def narrow(x: Any) -> Any:
        return np.uint16(np.uint32(np.float32(x).view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16))

    def same(x: Any) -> Any:
        return x

    half = dtype == torch.bfloat16
    return _jit(widen if half else same), _jit(narrow if half else same), exp2


def _weigh_kernel(span: int, dtype: torch.dtype) -> Any:
    """Return the compiled loop over rows of logits. ``span`` is a constant of it, so that the compiler can unroll.

    Scratch arrays are made in the loop's own function: only then does the compiler know that they do not overlap, which doubles the speed.
    """
    exponentiate = _exponential_kernel(dtype)
    widen, _, _ = _pieces(dtype)
    turned = 3 * span - 2
    """Where in a query's terms the column terms of the first token begin."""
    odd = span % 2

    def weigh(logits: Any, terms: Any, first: Any, columns: Any, scale: Any, inverse: Any) -> None:
        heads, queries, keys = logits.shape
        row = np.empty(keys, np.float32)
        down, across, top = np.empty(span, np.float32), np.empty(span, np.float32), np.empty(span, np.float32)
        for n in range(heads * queries):
            a, i = n // queries, n % queries
            stored, term = logits[a, i], terms[a, i]
            above, before = span - 1 - first - i // columns, turned - i % columns
            for x in range(span):
                down[x] = widen(term[above + x]) * LOG2_E
                across[x] = widen(term[before + x]) * LOG2_E
            for x in range(span):
                top[x] = widen(stored[x]) * scale + (down[0] + across[x])
            for x in range(span * odd):
                row[x] = top[x]
            for y in range(odd, span, 2):  # two rows of keys at a time: each step over `top` waits for the one before it
                here = y * span
                for x in range(span):
                    one = widen(stored[here + x]) * scale + (down[y] + across[x])
                    two = widen(stored[here + span + x]) * scale + (down[y + 1] + across[x])
                    row[here + x] = one
                    row[here + span + x] = two
                    larger = one if one > two else two
                    top[x] = larger if larger > top[x] else top[x]
            largest = top[0]
            for x in range(1, span):
                largest = top[x] if top[x] > largest else largest
            inverse[a, i] = np.float32(1) / exponentiate(row, largest, stored)

    return _jit(weigh)


@cache
def _exponential_kernel(dtype: torch.dtype) -> Any:
    """Return the compiled loop that exponentiates one query's logits and returns their sum."""
    _, narrow, exp2 = _pieces(dtype)

    def exponentiate(row: Any, largest: Any, stored: Any) -> Any:
        total = np.float32(0)
        for j in range(len(row)):
            weight = exp2(row[j] - largest)
            total += weight
            stored[j] = narrow(weight)
        return total

    return _jit(exponentiate)


@cache
def _divide_kernel(dtype: torch.dtype) -> Any:
    """Return the compiled loop that divides and lays the heads beside each other."""
    widen, narrow, _ = _pieces(dtype)

    def divide(sums: Any, inverse: Any, answer: Any, row: Any, head: Any) -> None:
        heads, queries, depth = sums.shape
        for a in range(heads):
            for i in range(queries):
                one, share, here = sums[a, i], inverse[a, i], answer[row + i, head + a]
                for d in range(depth):
                    here[d] = narrow(widen(one[d]) * share)

    return _jit(divide)
