"""Attention on a CPU in blocks that stay in the cache, with packed weights and without window padding.

Attention over a grid of ``S x S`` tokens is computed for a few rows of queries at a time. A block's logits begin as the sum of the
two relative-position terms, the product of queries and keys is added to them in place, then softmax and the product with the
values follow while they are still in the cache. The terms need no gather: with the tables turned round, the entries for one query
are neighbours in its row of one product, and shifting views pick them out.

Letters: ``N`` tokens, ``C`` channels, ``A`` heads, ``D`` channels per head, ``S`` tokens along the attended square, ``T = 2 (2 S - 1)``.
"""

from dataclasses import dataclass
from typing import Any

import torch

from distill.teachers.cpu_products import PackedLinear

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

    def __init__(self, attention: Any, grid: int, dtype: torch.dtype) -> None:
        self.heads: int = attention.heads
        self.span: int = attention.span
        self.grid = grid
        self.qkv = PackedLinear(attention.qkv.weight.to(dtype), attention.qkv.bias, grid * grid)
        self.proj = PackedLinear(attention.proj.weight.to(dtype), attention.proj.bias, grid * grid)
        self.bias_kv = attention.qkv.bias.detach().to(dtype).view(3, self.heads, 1, -1)[1:]
        turned = torch.cat([attention.rel_pos_h.detach().flip(0), attention.rel_pos_w.detach().flip(0)])
        self.tables = turned.T.to(dtype).expand(self.heads, -1, -1).contiguous()
        """``(A, D, T)``."""
        self.windows = part_windows(grid, self.span) if attention.window else None

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
        out = torch.empty_like(q)
        rows = max(1, QUERIES_PER_BLOCK // span)
        together = _together(self.heads)
        logits = qkv.new_empty(together, rows * span, len(qkv))
        for head in range(0, self.heads, together):
            some = slice(head, head + together)
            keys = k[some].transpose(1, 2)
            for y in range(0, span, rows):
                count = min(rows, span - y)
                part = slice(y * span, (y + count) * span)
                terms = torch.bmm(q[some, part], self.tables[some])
                self._attend((q[some, part], keys, v[some]), terms, (y, count, span), logits, out[some, part])
        return out.transpose(0, 1).reshape(len(qkv), -1)

    def _windowed(self, qkv: torch.Tensor, windows: Windows) -> torch.Tensor:
        """Attend within windows: ``(N, 3 C)`` in window order to ``(N, C)`` in window order."""
        span = self.span
        q, k, v = self._heads(qkv)
        out = torch.empty_like(q)
        logits = qkv.new_empty(self.heads, span * span, span * span)
        terms = torch.bmm(q, self.tables)
        pasted: dict[tuple[int, int], torch.Tensor] = {}
        for window in windows.each:
            size = window.rows * window.columns
            part = slice(window.start, window.start + size)
            keys, values = (k[:, part], v[:, part]) if size == span * span else self._paste(k[:, part], v[:, part], window, pasted)
            place = (0, window.rows, window.columns)
            self._attend((q[:, part], keys.transpose(1, 2), values), terms[:, part], place, logits, out[:, part])
        return out.transpose(0, 1).reshape(len(qkv), -1)

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay ``(N, 3 C)`` out as q, k, v ``(A, N, D)``: products of strided pieces would copy them again and again."""
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).permute(1, 2, 0, 3).contiguous().unbind(0)
        return q, k, v

    def _paste(
        self, k: torch.Tensor, v: torch.Tensor, window: Window, pasted: dict[tuple[int, int], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values ``(A, S * S, D)`` of a window at the grid's edge: where there is no token, the bias is."""
        span, shape = self.span, (window.rows, window.columns)
        if shape not in pasted:
            pasted[shape] = self.bias_kv.expand(-1, -1, span * span, -1).contiguous()
        for full, real in zip(pasted[shape], (k, v), strict=True):
            full.view(self.heads, span, span, -1)[:, : window.rows, : window.columns] = real.view(self.heads, *shape, -1)
        keys, values = pasted[shape].unbind(0)
        return keys, values

    def _attend(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        terms: torch.Tensor,
        place: tuple[int, int, int],
        logits: torch.Tensor,
        answer: torch.Tensor,
    ) -> None:
        """Answer one block of queries into ``answer``.

        Args:
            qkv: ``(A, n, D)``, the queries of ``count`` rows of ``columns`` tokens from row ``first`` on; keys ``(A, D, S * S)``; values
                ``(A, S * S, D)``.
            terms: ``(A, n, T)``, the queries times the turned tables.
            place: (first, count, columns).
            logits: scratch ``(A, >= n, S * S)``.
            answer: ``(A, n, D)``, overwritten.
        """
        (q, keys, values), (first, count, columns) = qkv, place
        span, heads, total = self.span, len(q), terms.shape[2]
        apart = terms.stride(0)
        begin = terms.storage_offset()
        by_row = terms.as_strided((heads, count, columns, span, 1), (apart, columns * total - 1, total, 1, 1), begin + span - 1 - first)
        by_column = terms.as_strided((heads, count, columns, 1, span), (apart, columns * total, total - 1, 1, 1), begin + 3 * span - 2)
        block = logits[:, : count * columns]
        torch.add(by_row, by_column, out=block.view(heads, count, columns, span, span))
        torch.baddbmm(block, q, keys, alpha=q.shape[-1] ** -0.5, out=block)
        torch.softmax(block, -1, out=block)
        torch.bmm(block, values, out=answer)


def _together(heads: int) -> int:
    """Return how many heads to attend at once: one per thread, where that divides them."""
    return max(n for n in range(1, max(1, min(heads, torch.get_num_threads())) + 1) if heads % n == 0)
