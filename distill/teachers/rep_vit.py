"""RepViT with a fusion of its last two stages as the image encoder of a SAM: EdgeSAM, 1024 px.

Names and shapes of tensors are those of EdgeSAM's files, so that these load strictly; every width, depth, kernel and squeeze comes
from them. A block first mixes places (depthwise), then channels. The first block of a stage halves the resolution and changes the
width; the others add a 3 x 3 and a 1 x 1 convolution and their input, a form that training keeps and that files are saved in.

Sources: Zhou et al. 2023, EdgeSAM; Wang et al. 2023, RepViT; ``edge_sam/modeling/rep_vit.py`` and ``common.py`` for what the
checkpoints expect and their tensors do not tell: exact GELU everywhere, ReLU and sigmoid inside the squeeze, and *bicubic* doubling of
the last stage, which only EdgeSAM's exports to CoreML and ONNX replace by bilinear.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.nn import functional

from distill.teachers.tiny_vit import ConvNorm

IMAGE_SIZE = 1024
"""Side of the input in pixels; the family fixes a grid of 64 x 64."""
HALVINGS = 3
"""Blocks that halve the resolution: after the stem's quarter, two lead to a sixteenth, the grid, and one beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSizes:
    """Sizes of one block."""

    inputs: int
    outputs: int
    hidden: int
    """Channels inside the mixer of channels."""
    kernel: int
    """Of the depthwise convolution."""
    squeeze: int
    """Channels inside the squeeze and excitation; 0 where the block has none."""
    halves: bool
    """Opens a stage: halves the resolution and may change the width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepVitSizes:
    """Sizes of the encoder, read off its tensors."""

    stem: int
    """Channels between the two convolutions of the stem."""
    blocks: tuple[BlockSizes, ...]
    fused: int
    """Channels in which the last two stages are added."""
    out_channels: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return (self.blocks[0].inputs, *(block.outputs for block in self.blocks if block.halves))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        starts = [0, *(n for n, block in enumerate(self.blocks) if block.halves), len(self.blocks)]
        return tuple(end - start for start, end in pairwise(starts))


def rep_vit_sizes(tensors: Mapping[str, torch.Tensor]) -> RepVitSizes:
    """Derive all sizes from the shapes of ``image_encoder.*``.

    Raises:
        KeyError: if a tensor that tells a size is missing.
        ValueError: if blocks do not follow from each other, or do not lead to the grid.
    """
    start = "image_encoder.features."
    last = max(int(key.split(".")[2]) for key in tensors if key.startswith(start))
    blocks = tuple(_block_sizes(tensors, f"{start}{n}.") for n in range(1, last + 1))
    given = tensors[f"{start}0.2.c.weight"].shape[0]
    for n, block in enumerate(blocks, start=1):
        if block.inputs != given:
            message = f"{start}{n}, which takes {block.inputs} channels and is given {given}"
            raise ValueError(message)
        given = block.outputs
    halvings = sum(block.halves for block in blocks)
    if halvings != HALVINGS:
        message = f"{start}*, where {halvings} blocks halve the resolution instead of {HALVINGS}"
        raise ValueError(message)
    return RepVitSizes(
        stem=tensors[f"{start}0.0.c.weight"].shape[0],
        blocks=blocks,
        fused=tensors["image_encoder.fuse_stage2.weight"].shape[0],
        out_channels=tensors["image_encoder.neck.0.weight"].shape[0],
    )


def _block_sizes(tensors: Mapping[str, torch.Tensor], at: str) -> BlockSizes:
    halves = f"{at}token_mixer.2.c.weight" in tensors
    places = tensors[f"{at}token_mixer.0.c.weight" if halves else f"{at}token_mixer.0.conv.c.weight"]
    channels = tensors[f"{at}channel_mixer.m.0.c.weight"]
    squeeze = tensors.get(f"{at}token_mixer.1.fc1.weight")
    return BlockSizes(
        inputs=places.shape[0],
        outputs=channels.shape[1],
        hidden=channels.shape[0],
        kernel=places.shape[-1],
        squeeze=0 if squeeze is None else squeeze.shape[0],
        halves=halves,
    )


class DepthwiseSum(nn.Module):
    """A depthwise convolution, one of 1 x 1, and the input itself, added."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, width, kernel, groups=width)
        self.conv1 = ConvNorm(width, width, groups=width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        out: torch.Tensor = self.conv(x) + self.conv1(x) + x
        return out


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels are on average over the picture."""

    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        weights = self.fc2(functional.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        # Picture by picture: on a CPU the last few numbers of a tensor are rounded otherwise, so one's would depend on how many others there are.
        out: torch.Tensor = x * torch.cat([torch.sigmoid(each) for each in weights.split(1)])
        return out


class ChannelMixer(nn.Module):
    """Two 1 x 1 convolutions with a GELU between them, added to the input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.m = nn.Sequential(ConvNorm(width, hidden), nn.GELU(), ConvNorm(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        out: torch.Tensor = x + self.m(x)
        return out


class Block(nn.Module):
    """Mix places, then channels."""

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        width = sizes.inputs
        squeeze = SqueezeExcite(width, sizes.squeeze) if sizes.squeeze else nn.Identity()
        if sizes.halves:
            places = ConvNorm(width, width, sizes.kernel, stride=2, groups=width)
            self.token_mixer = nn.Sequential(places, squeeze, ConvNorm(width, sizes.outputs))
        else:
            self.token_mixer = nn.Sequential(DepthwiseSum(width, sizes.kernel), squeeze)
        self.channel_mixer = ChannelMixer(sizes.outputs, sizes.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)``."""
        out: torch.Tensor = self.channel_mixer(self.token_mixer(x))
        return out


class Doubled(nn.Module):
    """A 1 x 1 convolution, then twice the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.op_list = nn.ModuleList([nn.Conv2d(inputs, outputs, 1, bias=False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', 2 H, 2 W)``."""
        return functional.interpolate(self.op_list[0](x), scale_factor=2, mode="bicubic", align_corners=False)


class RepVit(nn.Module):
    """Image encoder: ``(B, 3, 1024, 1024)`` prepared pixels to ``(B, out_channels, 64, 64)``."""

    def __init__(self, sizes: RepVitSizes) -> None:
        """Build with random weights."""
        super().__init__()
        self.img_size = IMAGE_SIZE
        stem = (ConvNorm(3, sizes.stem, 3, stride=2), nn.GELU(), ConvNorm(sizes.stem, sizes.widths[0], 3, stride=2))
        self.features = nn.ModuleList([nn.Sequential(*stem), *(Block(each) for each in sizes.blocks)])
        self.before_last_stage = len(sizes.blocks) - sizes.depths[-1]
        """Which of ``features`` ends the last stage but one."""
        fused, out = sizes.fused, sizes.out_channels
        self.fuse_stage2 = nn.Conv2d(sizes.widths[-2], fused, 1, bias=False)
        self.fuse_stage3 = Doubled(sizes.widths[-1], fused)
        self.neck = nn.Sequential(
            nn.Conv2d(fused, out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode a batch of images, in float32 also inside ``torch.autocast``.

        Blocks add to a sum that nothing normalises before the neck, and what bfloat16 rounds off grows on the way: with random weights of
        EdgeSAM's sizes the embedding was off by 0.27 of its deviation on average, where MobileSAM's was by 0.006.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._encode(x.contiguous(memory_format=torch.channels_last))

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        split = self.before_last_stage + 1
        for feature in self.features[:split]:
            x = feature(x)
        fine = self.fuse_stage2(x)
        for feature in self.features[split:]:
            x = feature(x)
        out: torch.Tensor = self.neck(fine + self.fuse_stage3(x)).contiguous()
        return out
