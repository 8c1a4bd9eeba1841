"""SAM's ViT image encoder: the tensors and the mathematics of segment-anything's, without what it computes in vain.

- Tokens that only pad a window are zero after the first norm, so their queries, keys and values are the projection's bias: it is
  pasted, and projections run on real tokens only (at 16 x 16 tokens in windows of 14, padding is two thirds of all).
- Attention never writes all logits out (``distill.teachers.attention``).
- On a CPU, outside training, a plan of packed weights and cache-sized blocks runs instead (``distill.teachers.vit_cpu``).

Source of names, sizes and formulas: ``modeling/image_encoder.py`` of segment-anything 1.0 (Kirillov et al. 2023).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import torch
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from torch import nn

from distill.errors import TeacherError
from distill.teachers.attention import VARIANTS, attend_plain, choose_variant
from distill.teachers.vit_cpu import CpuPlan, runs_on_plan

NORM_EPS = 1e-6
"""Of every norm in the released encoders (``build_sam.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VitSizes:
    """Sizes of a SAM ViT, read off its tensors."""

    width: int
    depth: int
    heads: int
    image_size: int
    patch: int
    window: int
    """Tokens along a window; 0 where no block has windows."""
    global_blocks: tuple[int, ...]
    out_channels: int
    mlp_ratio: float
    decoder_mlp: int


def vit_sizes(tensors: Mapping[str, torch.Tensor]) -> VitSizes:
    """Derive every size of the encoder and decoder from tensor shapes; nothing is assumed from a model name.

    Args:
        tensors: a whole SAM's, named ``image_encoder.*`` and ``mask_decoder.*``.

    Raises:
        KeyError: if one of them is missing.
    """
    patch = tensors["image_encoder.patch_embed.proj.weight"].shape[-1]
    width = tensors["image_encoder.patch_embed.proj.weight"].shape[0]
    grid = tensors["image_encoder.pos_embed"].shape[1]
    depth = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("image_encoder.blocks."))
    spans = [tensors[f"image_encoder.blocks.{n}.attn.rel_pos_h"].shape for n in range(depth)]
    windows = {(span[0] + 1) // 2 for span in spans} - {grid}
    return VitSizes(
        width=width,
        depth=depth,
        heads=width // spans[0][1],
        image_size=grid * patch,
        patch=patch,
        window=min(windows, default=0),
        global_blocks=tuple(n for n, span in enumerate(spans) if (span[0] + 1) // 2 == grid),
        out_channels=tensors["image_encoder.neck.0.weight"].shape[0],
        mlp_ratio=tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        decoder_mlp=tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
    )


@dataclass(frozen=True, slots=True)
class BlockExtras:
    """Modules that a family adds to every block, by the attribute names its checkpoints use. Tokens are ``(B, H, W, C)``."""

    after_attention: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    """Applied to the attention's result, one after the other."""
    beside_mlp: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    """Applied to what the MLP gets, and added to what it gives."""


class PatchEmbed(nn.Module):
    """One token per patch of the image."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, 3, S, S)`` to ``(B, S / patch, S / patch, width)``."""
        tokens: torch.Tensor = self.proj(x).permute(0, 2, 3, 1)
        return tokens


class Attention(nn.Module):
    """Attention within windows, or over the whole grid where ``window`` is 0.

    Args:
        width: channels of a token.
        heads: attention heads.
        grid: tokens along the image.
        window: tokens along a window, or 0.
    """

    def __init__(self, width: int, heads: int, grid: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.span = window or grid
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * self.span - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * self.span - 1, width // heads))
        self.variants: dict[tuple[object, ...], str] = {}
        """What ``tune`` found fastest, by shape, type and device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        batch, height, width, channels = x.shape
        down, across = -(-height // self.span), -(-width // self.span)
        padded = self._paste_padding(self.qkv(x), down * self.span, across * self.span)
        parts = padded.view(batch, down, self.span, across, self.span, 3, self.heads, channels // self.heads)
        q, k, v = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch * down * across, self.heads, self.span**2, -1).unbind(0)
        attend = VARIANTS.get(self.variants.get(self._key(q), "bias"), attend_plain)
        out = attend(q, k, v, self.rel_pos_h.to(q.dtype), self.rel_pos_w.to(q.dtype))
        out = out.view(batch, down, across, self.heads, self.span, self.span, -1).permute(0, 1, 4, 2, 5, 3, 6)
        out = out.reshape(batch, down * self.span, across * self.span, channels)[:, :height, :width]
        projected: torch.Tensor = self.proj(out)
        return projected

    def _paste_padding(self, qkv: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Fill a grid up to whole windows: a zero token's projection is the bias."""
        if qkv.shape[1:3] == (height, width):
            return qkv
        full = self.qkv.bias.to(qkv.dtype).expand(qkv.shape[0], height, width, -1).clone()
        full[:, : qkv.shape[1], : qkv.shape[2]] = qkv
        return full

    def _key(self, q: torch.Tensor) -> tuple[object, ...]:
        return (tuple(q.shape[1:]), q.dtype, q.device.type)  # whatever the batch: the last one is smaller, and memory may have shrunk it

    def tune(self, batch: int, grid: int, dtype: torch.dtype, device: torch.device, known: dict[tuple[object, ...], str]) -> None:
        """Choose the fastest exact variant for ``batch`` images, unless ``known`` holds it already."""
        windows = batch * (-(-grid // self.span)) ** 2
        shape = (windows, self.heads, self.span, self.span, self.rel_pos_h.shape[1])
        if (shape, dtype) not in known:
            known[shape, dtype] = choose_variant(shape, dtype, device)
        self.variants[(self.heads, self.span**2, shape[-1]), dtype, device.type] = known[shape, dtype]


class Block(nn.Module):
    """Norm, attention, norm, MLP, with residual connections, and what a fine-tune added."""

    def __init__(self, sizes: VitSizes, window: int, extras: BlockExtras) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=NORM_EPS)
        self.attn = Attention(sizes.width, sizes.heads, sizes.image_size // sizes.patch, window)
        self.norm2 = nn.LayerNorm(sizes.width, eps=NORM_EPS)
        self.mlp = MLPBlock(sizes.width, int(sizes.width * sizes.mlp_ratio))
        self.after_attention, self.beside_mlp = tuple(extras.after_attention), tuple(extras.beside_mlp)
        for name, make in chain(extras.after_attention.items(), extras.beside_mlp.items()):
            self.add_module(name, make())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        y = self.attn(self.norm1(x))
        for name in self.after_attention:
            y = self.get_submodule(name)(y)
        x = x + y
        y = self.norm2(x)
        x = x + self.mlp(y)
        for name in self.beside_mlp:
            x = x + self.get_submodule(name)(y)
        return x


class ImageEncoder(nn.Module):
    """SAM's image encoder. State-dict keys and shapes are those of segment-anything's ``ImageEncoderViT``, plus the extras.

    In bfloat16 (``module.to(torch.bfloat16)``, or inside ``torch.autocast``) images still come in, and embeddings go out, as float32.

    Args:
        sizes: of the network.
        extras: modules of a fine-tune.
    """

    def __init__(self, sizes: VitSizes, extras: BlockExtras | None = None) -> None:
        super().__init__()
        self.sizes = sizes
        self.img_size = sizes.image_size
        self.grid = sizes.image_size // sizes.patch
        self.patch_embed = PatchEmbed(sizes.patch, sizes.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid, self.grid, sizes.width))
        self.blocks = nn.ModuleList(
            Block(sizes, 0 if n in sizes.global_blocks else sizes.window, extras or BlockExtras()) for n in range(sizes.depth)
        )
        out = sizes.out_channels
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.width, out, 1, bias=False), LayerNorm2d(out), nn.Conv2d(out, out, 3, padding=1, bias=False), LayerNorm2d(out)
        )
        self.int8 = False
        """On a CPU, outside training: the linear layers of the blocks in 8-bit integers (``int8_products``)."""
        self._plan: CpuPlan | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode ``(B, 3, S, S)`` normalised images to ``(B, out_channels, S / patch, S / patch)`` float32.

        Raises:
            ValueError: if the images are not of the network's size.
        """
        if x.shape[1:] != (3, self.img_size, self.img_size):
            message = f"the encoder takes (B, 3, {self.img_size}, {self.img_size}), but got {tuple(x.shape)}. Resize and pad the image to the network's square."
            raise ValueError(message)
        if runs_on_plan(self, x):
            return self._planned().run(x)
        return self._plain(x)

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        """Run module by module: training, export, GPUs."""
        x = self.patch_embed(x.to(self.patch_embed.proj.weight.dtype)) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        encoded: torch.Tensor = self.neck(x.permute(0, 3, 1, 2))
        return encoded.float()

    def _planned(self) -> CpuPlan:
        """Return the plan for the weights as they are now."""
        plan = self._plan
        if plan is None or not plan.fits(self):
            self._plan = plan = CpuPlan(self)
        return plan

    def prepare(self, batch: int, *, dtype: torch.dtype | None = None, compiled: bool = False) -> Self:
        """Get ready for batches of one size: measure which attention is fastest here, lay convolutions out, compile.

        Answers do not change beyond rounding; without this the encoder works too, with the mask variant of attention.

        Args:
            batch: images per call.
            dtype: of the products; default the weights' own. Name it where the encoder will run inside ``torch.autocast``.
            compiled: also compile each block (``torch.compile``), which costs a minute. Meant for GPUs, and not measured on one yet; on a CPU
                the plan runs instead of the blocks.
        """
        weight = self.pos_embed
        known: dict[tuple[object, ...], str] = {}
        for block in self._blocks():
            block.attn.tune(batch, self.grid, dtype or weight.dtype, weight.device, known)
        if weight.device.type == "cuda":
            self.neck.to(memory_format=torch.channels_last)
        if compiled:
            for block in self._blocks():
                block.compile()
        return self

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the plan out: packed weights can neither be copied nor pickled."""
        return {**super().__getstate__(), "_plan": None}


def set_int8(encoder: nn.Module, device: torch.device, *, on: bool) -> None:
    """Have an encoder use 8-bit integers from its next picture on, or not.

    Raises:
        TeacherError: if it cannot: it is no ViT, or computes elsewhere than on a CPU.
    """
    if on and not isinstance(encoder, ImageEncoder):
        message = f"precision int8 is for SAM's ViT encoders, but this teacher's is {type(encoder).__name__}. Use bf16 or fp32."
        raise TeacherError(message)
    if on and device.type != "cpu":
        message = f"precision int8 computes on the CPU only, but the device is {device}. Use device cpu, or precision bf16."
        raise TeacherError(message)
    if isinstance(encoder, ImageEncoder):
        encoder.int8 = on
