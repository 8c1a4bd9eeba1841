"""How the ViT encoder runs on a CPU: one image at a time, packed weights, and attention in blocks that stay in the cache (``cpu_attention``).

One image at a time costs nothing here (batches gain nothing on CPUs) and makes an answer independent of its batch to the last bit.
Scratch memory belongs to one call, so several threads may run one plan.

Letters: ``N`` tokens, ``C`` channels.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from distill.teachers.cpu_attention import AttentionPlan
from distill.teachers.cpu_crew import share_out
from distill.teachers.cpu_products import PackedLinear, fast_float32
from distill.teachers.int8_products import AFTER_GELU, ROWS, PackedInt8Linear

MLP_ROWS = 1024
"""Rows of the MLP's hidden layer alive at a time; ``ROWS`` of each core in 8-bit integers."""


def runs_on_plan(encoder: nn.Module, x: torch.Tensor) -> bool:
    """Say whether this call may use a plan: on a CPU, nothing to differentiate, nobody tracing."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if not torch.is_grad_enabled():
        return True
    return not (x.requires_grad or any(p.requires_grad for p in encoder.parameters()))


class BlockPlan:
    """One transformer block with packed weights. Tokens stay float32 between its two halves.

    Args:
        block: of ``distill.teachers.vit``.
        grid: tokens along the image.
        dtype: of the products.
        int8: 8-bit integers for those with the weights of ``qkv``, ``proj``, ``lin1`` and ``lin2`` instead.
    """

    def __init__(self, block: Any, grid: int, dtype: torch.dtype, *, int8: bool = False) -> None:
        self.block = block
        self.grid = grid
        self.dtype = dtype
        self.int8 = int8
        self.attention = AttentionPlan(block.attn, grid, dtype, PackedInt8Linear if int8 else PackedLinear)
        self.lin1: PackedLinear | PackedInt8Linear
        self.lin2: PackedLinear | PackedInt8Linear
        self.lin1, self.lin2 = _int8_mlp(block.mlp) if int8 else _mlp(block.mlp, dtype)

    def __call__(self, x: torch.Tensor) -> None:
        """Advance ``(N, C)`` float32 in place."""
        y = self.attention(_normed(x, self.block.norm1, self.dtype))
        for name in self.block.after_attention:
            y = self._extra(name, y)
        x.add_(y)
        y = _normed(x, self.block.norm2, self.dtype)
        for name in self.block.beside_mlp:
            x.add_(self._extra(name, y))
        if self.int8:
            share_out(lambda starts: self._advance(x, y, starts, ROWS), range(0, len(x), ROWS))
        else:
            self._advance(x, y, range(0, len(x), MLP_ROWS), MLP_ROWS)

    def _advance(self, x: torch.Tensor, y: torch.Tensor, starts: Iterable[int], rows: int) -> None:
        """Add the MLP of ``y`` to ``x`` for the blocks of ``rows`` tokens that begin at ``starts``."""
        for n in starts:
            x[n : n + rows].add_(self.lin2(self.lin1(y[n : n + rows], gelu=True)))

    def _extra(self, name: str, y: torch.Tensor) -> torch.Tensor:
        module = self.block.get_submodule(name)
        weight = next(module.parameters(), None)
        tokens = y.view(1, self.grid, self.grid, -1)
        changed: torch.Tensor = module(tokens if weight is None else tokens.to(weight.dtype))
        return changed.reshape(len(y), -1)


def _mlp(mlp: Any, dtype: torch.dtype) -> tuple[PackedLinear, PackedLinear]:
    first, second = (PackedLinear(each.weight.to(dtype), each.bias, MLP_ROWS) for each in (mlp.lin1, mlp.lin2))
    return first, second


def _int8_mlp(mlp: Any) -> tuple[PackedInt8Linear, PackedInt8Linear]:
    """Pack both layers to answer in float32: what lies between them is rounded once."""
    first = PackedInt8Linear(mlp.lin1.weight.float(), mlp.lin1.bias, ROWS)
    return first, PackedInt8Linear(mlp.lin2.weight.float(), mlp.lin2.bias, ROWS, zero=AFTER_GELU)


def _normed(x: torch.Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> torch.Tensor:
    y = functional.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    return y.to(dtype)


class CpuPlan:
    """An ``ImageEncoder`` laid out for one CPU call after another.

    Holds a second, packed copy of the weights, made when the first image comes.

    Args:
        encoder: of ``distill.teachers.vit``.
    """

    def __init__(self, encoder: Any) -> None:
        self.dtype = plan_dtype(encoder)
        self.int8: bool = encoder.int8
        self.signature = _signature(encoder)
        self.grid: int = encoder.grid
        self.patch: int = encoder.sizes.patch
        tokens = self.grid**2
        embed = encoder.patch_embed.proj
        self.embed = PackedLinear(embed.weight.flatten(1).to(self.dtype), embed.bias, tokens)
        self.positions = encoder.pos_embed.detach().float().view(tokens, -1)
        self.blocks = [BlockPlan(block, self.grid, self.dtype, int8=self.int8) for block in encoder.blocks]
        self.neck = encoder.neck
        self.narrow = PackedLinear(encoder.neck[0].weight.flatten(1).to(self.dtype), None, tokens)
        self.smooth = encoder.neck[2].weight.detach().to(self.dtype)

    def fits(self, encoder: Any) -> bool:
        """Say whether the encoder's weights and precision are still those of this plan."""
        return (plan_dtype(encoder), encoder.int8) == (self.dtype, self.int8) and _signature(encoder) == self.signature

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Encode ``(B, 3, S, S)`` to ``(B, C, h, w)`` float32, one image after the other."""
        switch = fast_float32() if self.dtype == torch.float32 else nullcontext()
        with torch.no_grad(), torch.autocast("cpu", enabled=False), switch:
            return torch.stack([self._encode(image) for image in x])

    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode ``(3, S, S)`` to ``(C, h, w)``."""
        grid, patch = self.grid, self.patch
        patches = image.to(self.dtype).view(3, grid, patch, grid, patch).permute(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        tokens = self.embed(patches).float() + self.positions
        for block in self.blocks:
            block(tokens)
        narrow = self._normed(self.narrow(tokens.to(self.dtype)), self.neck[1]).to(self.dtype)
        # (N, C) is an image with its channels last in memory; oneDNN convolves it as it is.
        smooth = functional.conv2d(narrow.view(1, grid, grid, -1).permute(0, 3, 1, 2), self.smooth, padding=1)
        out = self._normed(smooth.permute(0, 2, 3, 1).reshape(grid * grid, -1), self.neck[3])
        return out.T.reshape(-1, grid, grid)

    @staticmethod
    def _normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
        """Normalise the channels of ``(N, C)`` in float32, as ``LayerNorm2d`` does those of an image."""
        return functional.layer_norm(x.float(), x.shape[1:], norm.weight.float(), norm.bias.float(), norm.eps)


def plan_dtype(encoder: Any) -> torch.dtype:
    """Return the type of the products: autocast's inside it, else the weights' own."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    dtype: torch.dtype = encoder.pos_embed.dtype
    return dtype


def _signature(encoder: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what changes when a weight is replaced or written to."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in encoder.parameters())  # noqa: SLF001 - torch offers no other
