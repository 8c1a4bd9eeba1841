"""Attention on a CPU in blocks that stay in the cache, with packed weights and without window padding.

Attention over a grid of ``S x S`` tokens is computed for a few rows of queries at a time: the product of queries and keys, then one pass that
adds the relative positions and exponentiates (``cpu_softmax``), then the product with the values, while the block is still in the cache. The
relative positions need no gather: with the tables turned round, the entries for one query are neighbours in its row of one product.
Blocks and windows are shared out to the cores whole (``cpu_crew``).

Letters: ``N`` tokens, ``C`` channels, ``A`` heads, ``D`` channels per head, ``S`` tokens along the attended square, ``T = 2 (2 S - 1)``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from distill.teachers.cpu_crew import share_out
from distill.teachers.cpu_products import PackedLinear, Packing
from distill.teachers.cpu_softmax import softmax_for

QUERIES_PER_BLOCK = 256
"""Of global attention: 256 x 4096 logits are 4 MiB. Measured on one Zen 4 core: 64 / 128 / 256 take 866 / 766 / 756 ms per layer of ViT-B."""


@dataclass(frozen=True, slots=True)
class Window:
    """The real tokens of one window: ``rows x columns`` of them, at ``start`` in window order."""

    start: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Windows:
    """How a grid falls into windows."""

    order: torch.Tensor
    """``(N,)``: the grid's token at each place of window order."""
    back: torch.Tensor
    """``(N,)``: the place in window order of each of the grid's tokens."""
    each: tuple[Window, ...]


def part_windows(grid: int, span: int) -> Windows:
    """Cut a square grid into windows, padding left out."""
    tokens = torch.arange(grid * grid).view(grid, grid)
    pieces = [tokens[y : y + span, x : x + span] for y in range(0, grid, span) for x in range(0, grid, span)]
    order = torch.cat([piece.reshape(-1) for piece in pieces])
    starts = [0, *torch.tensor([piece.numel() for piece in pieces]).cumsum(0).tolist()]
    each = tuple(Window(start, *piece.shape) for start, piece in zip(starts, pieces, strict=False))
    return Windows(order, torch.argsort(order), each)


class AttentionPlan:
    """One attention layer with packed weights."""

    def __init__(self, attention: Any, grid: int, dtype: torch.dtype, linear: Packing = PackedLinear) -> None:
        self.heads: int = attention.heads
        self.span: int = attention.span
        self.grid = grid
        self.qkv = linear(attention.qkv.weight.to(dtype), attention.qkv.bias, grid * grid)
        self.proj = linear(attention.proj.weight.to(dtype), attention.proj.bias, grid * grid)
        self.bias_kv = attention.qkv.bias.detach().to(dtype).view(3, self.heads, 1, -1)[1:]
        turned = torch.cat([attention.rel_pos_h.detach().flip(0), attention.rel_pos_w.detach().flip(0)])
        self.tables = turned.T.to(dtype).expand(self.heads, -1, -1).contiguous()
        """``(A, D, T)``."""
        self.windows = part_windows(grid, self.span) if attention.window else None
        self.softmax = softmax_for(self.span, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C)`` to the same shape."""
        if self.windows is None:
            return self.proj(self._whole(self.qkv(x)))
        qkv = self.qkv(x.index_select(0, self.windows.order))
        return self.proj(self._windowed(qkv, self.windows)).index_select(0, self.windows.back)

    def _whole(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend over the whole grid: ``(N, 3 C)`` to ``(N, C)``."""
        span = self.span
        q, k, v = self._heads(qkv)
        answer = q.new_empty(len(qkv), *q.shape[::2])
        rows = max(1, QUERIES_PER_BLOCK // span)

        def attend(blocks: Iterator[tuple[int, int]]) -> None:
            scratch = qkv.new_empty(rows * span * len(qkv))
            for head, y in blocks:
                count = min(rows, span - y)
                part, one = slice(y * span, (y + count) * span), slice(head, head + 1)
                self._attend((q[one, part], k[one], v[one]), (y, span), scratch, answer, (part.start, head))

        share_out(attend, product(range(self.heads), range(0, span, rows)))
        return answer.flatten(1)

    def _windowed(self, qkv: torch.Tensor, windows: Windows) -> torch.Tensor:
        """Attend within windows: ``(N, 3 C)`` in window order to ``(N, C)`` in window order."""
        span = self.span
        answer = qkv.new_empty(len(qkv), self.heads, qkv.shape[1] // (3 * self.heads))

        def attend(some: Iterator[Window]) -> None:
            scratch = qkv.new_empty(self.heads * span**4)
            for window in some:
                size = window.rows * window.columns
                q, k, v = self._heads(qkv[window.start : window.start + size])
                keys, values = (k, v) if size == span * span else self._paste(k, v, window)
                self._attend((q, keys, values), (0, window.columns), scratch, answer, (window.start, 0))

        share_out(attend, windows.each)
        return answer.flatten(1)

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay ``(n, 3 C)`` out as q, k, v ``(A, n, D)``: products of strided pieces would copy them again and again."""
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).permute(1, 2, 0, 3).contiguous().unbind(0)
        return q, k, v

    def _paste(self, k: torch.Tensor, v: torch.Tensor, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values ``(A, S * S, D)`` of a window at the grid's edge: where there is no token, the bias is."""
        full = self.bias_kv.expand(-1, -1, self.span**2, -1).contiguous()
        square = full.view(2, self.heads, self.span, self.span, -1)
        for n, real in enumerate((k, v)):
            square[n, :, : window.rows, : window.columns] = real.view(self.heads, window.rows, window.columns, -1)
        keys, values = full.unbind(0)
        return keys, values

    def _attend(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        place: tuple[int, int],
        scratch: torch.Tensor,
        answer: torch.Tensor,
        start: tuple[int, int],
    ) -> None:
        """Answer one block of queries.

        Args:
            qkv: queries ``(A, n, D)`` of whole rows of tokens; keys and values ``(A, S * S, D)``. ``A`` may be some of the heads.
            place: (the first row, tokens in a row).
            scratch: at least ``A * n * S * S`` numbers.
            answer: ``(N, all heads, D)``, overwritten from ``start`` on.
            start: (the first query's row in ``answer``, the first head).
        """
        (q, keys, values), (heads, queries, depth) = qkv, qkv[0].shape
        terms = torch.bmm(q, self.tables[:heads])
        logits = scratch[: heads * queries * self.span**2].view(heads, queries, -1)
        torch.bmm(q, keys.transpose(1, 2), out=logits)
        inverse = torch.empty(heads, queries, dtype=torch.float32)
        self.softmax.weigh(logits, terms, place, depth**-0.5, inverse)
        self.softmax.divide(torch.bmm(logits, values), inverse, answer, start)
