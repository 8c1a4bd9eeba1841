"""TinyViT as the image encoder of a SAM: MobileSAM and TinySAM at 1024 px, LiteMedSAM at 256 px.

Names and shapes of tensors are those of the families' files, so that these load strictly; the classification head that some carry
is not built. Tokens stay ``(B, H, W, C)``, which a channels-last convolution reads without a copy.

Sources: Wu et al. 2022, TinyViT; Zhang et al. 2023, MobileSAM; ``mobile_sam/modeling/tiny_vit_sam.py`` and LiteMedSAM's
``tiny_vit_sam.py`` for what the checkpoints expect: the last merging keeps the grid, and windows are padded with zeros *before*
their normalisation, so that padding takes part in the attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.nn import functional

IMAGE_SIZES = {3: 1024, 1: 256}
"""Kernel of the patch embedding -> side of the input in pixels; both families fix a grid of 64 x 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyVitSizes:
    """Sizes of the encoder, read off its tensors."""

    image_size: int
    stem: int
    """Channels between the two convolutions of the patch embedding."""
    patch_kernel: int
    """3: two convolutions of stride 2; 1: two of stride 1."""
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    """Per stage; 0 for the first, which is convolutional."""
    windows: tuple[int, ...]
    hidden: tuple[int, ...]
    """Channels inside the inverted bottlenecks of the first stage, and inside the MLPs of the others."""
    local_kernel: int
    out_channels: int


def tiny_vit_sizes(tensors: Mapping[str, torch.Tensor]) -> TinyVitSizes:
    """Derive all sizes from the shapes of ``image_encoder.*``."""
    start = "image_encoder."
    stages = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith(f"{start}layers."))
    first = tensors[f"{start}patch_embed.seq.0.c.weight"]
    biases = [tensors[f"{start}layers.{n}.blocks.0.attn.attention_biases"] for n in range(1, stages)]
    names = [f"{start}layers.0.blocks.0.conv1.c.weight", *(f"{start}layers.{n}.blocks.0.mlp.fc1.weight" for n in range(1, stages))]
    merges = [tensors[f"{start}layers.{n}.downsample.conv1.c.weight"].shape[0] for n in range(stages - 1)]
    return TinyVitSizes(
        image_size=IMAGE_SIZES[first.shape[-1]],
        stem=first.shape[0],
        patch_kernel=first.shape[-1],
        widths=(tensors[f"{start}patch_embed.seq.2.c.weight"].shape[0], *merges),
        depths=tuple(
            1 + max(int(key.split(".")[4]) for key in tensors if key.startswith(f"{start}layers.{n}.blocks.")) for n in range(stages)
        ),
        heads=(0, *(bias.shape[0] for bias in biases)),
        windows=(0, *(isqrt(bias.shape[1]) for bias in biases)),
        hidden=tuple(tensors[name].shape[0] for name in names),
        local_kernel=tensors[f"{start}layers.1.blocks.0.local_conv.c.weight"].shape[-1],
        out_channels=tensors[f"{start}neck.0.weight"].shape[0],
    )


class ConvNorm(nn.Module):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)``."""
        out: torch.Tensor = self.bn(self.c(x))
        return out


class PatchEmbed(nn.Module):
    """Two convolutions: a quarter of the resolution for 3 x 3 kernels, the full one for 1 x 1."""

    def __init__(self, sizes: TinyVitSizes) -> None:
        super().__init__()
        kernel, stride = sizes.patch_kernel, 2 if sizes.patch_kernel == 3 else 1
        self.seq = nn.Sequential(
            ConvNorm(3, sizes.stem, kernel, stride=stride), nn.GELU(), ConvNorm(sizes.stem, sizes.widths[0], kernel, stride=stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pixels to ``(B, C, H, W)``."""
        out: torch.Tensor = self.seq(x)
        return out


class Bottleneck(nn.Module):
    """Inverted bottleneck of the first stage (MBConv)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        y = functional.gelu(self.conv1(x))
        return functional.gelu(x + self.conv3(functional.gelu(self.conv2(y))))


class Merging(nn.Module):
    """Change of width, and of resolution unless ``stride`` is 1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H / stride, W / stride)``."""
        out: torch.Tensor = self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x)))))
        return out


class Attention(nn.Module):
    """Attention within a window, with a learnt bias per head and absolute offset."""

    attention_bias_idxs: torch.Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()])
        apart = (place[:, :, None] - place[:, None]).abs()
        # Offsets are numbered by rows, then columns; the files do not carry this table.
        self.register_buffer("attention_bias_idxs", apart[0] * window + apart[1], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens ``(N, L, C)`` of ``N`` windows."""
        count, length, width = x.shape
        # The families' files interleave q, k and v per head.
        q, k, v = self.qkv(self.norm(x)).view(count, length, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.attention_bias_idxs].to(q.dtype)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        out: torch.Tensor = self.proj(y.transpose(1, 2).reshape(count, length, width))
        return out


class Mlp(nn.Module):
    """Normalisation and two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., C)``."""
        out: torch.Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return out


class Block(nn.Module):
    """Window attention, a depthwise convolution, an MLP."""

    def __init__(self, width: int, hidden: int, heads: int, window: int, local_kernel: int) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(width, heads, window)
        self.local_conv = ConvNorm(width, width, local_kernel, groups=width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)``, channels last in memory, to the same."""
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + self._attend(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: torch.Tensor = (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)
        return out

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        side = self.window
        below, right = -height % side, -width % side
        padded = functional.pad(x, (0, 0, 0, right, 0, below))
        rows, columns = (height + below) // side, (width + right) // side
        windows = padded.reshape(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        y = self.attn(windows).view(batch, rows, columns, side, side, channels).transpose(2, 3)
        out: torch.Tensor = y.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]
        return out


class Stage(nn.Module):
    """Blocks of one width, and the merging into the next."""

    def __init__(self, sizes: TinyVitSizes, index: int) -> None:
        super().__init__()
        width, hidden = sizes.widths[index], sizes.hidden[index]
        last = index == len(sizes.widths) - 1
        self.blocks = nn.ModuleList(
            Bottleneck(width, hidden) if index == 0 else Block(width, hidden, sizes.heads[index], sizes.windows[index], sizes.local_kernel)
            for _ in range(sizes.depths[index])
        )
        self.downsample = None if last else Merging(width, sizes.widths[index + 1], stride=1 if index == len(sizes.widths) - 2 else 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)``."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyVit(nn.Module):
    """Image encoder: ``(B, 3, S, S)`` prepared pixels to ``(B, out_channels, 64, 64)``."""

    def __init__(self, sizes: TinyVitSizes) -> None:
        """Build with random weights."""
        super().__init__()
        self.img_size = sizes.image_size
        self.patch_embed = PatchEmbed(sizes)
        self.layers = nn.ModuleList(Stage(sizes, n) for n in range(len(sizes.widths)))
        out = sizes.out_channels
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.widths[-1], out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode a batch of images."""
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.neck(x).contiguous()
        return out
