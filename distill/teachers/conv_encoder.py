"""The bundled teacher's network, and the encoder of students that take prompts: a small convolutional image encoder for SAM's decoder.

The encoder is a residual network with a feature-pyramid neck, chosen over a small ViT because it learns boundaries from few
images and runs in tens of milliseconds on one CPU core. Group normalisation keeps an image's answer independent of its batch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from torch.nn import functional

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSamConfig:
    """Sizes of the network; written into the checkpoint's header so that a file explains itself."""

    image_size: int = 256
    """Pixels along the padded square that the encoder sees."""
    stride: int = 8
    """Pixels per embedding cell."""
    widths: tuple[int, ...] = (32, 48, 96, 160, 192)
    """Channels at strides 2, 4, 8, 16, 32."""
    depths: tuple[int, ...] = (0, 1, 2, 3, 2)
    """Residual blocks at each of these strides."""
    embed_dim: int = 128
    neck: int = 0
    """Channels in which the pyramid is put together, before they are widened to ``embed_dim``; 0 is ``embed_dim`` itself."""
    decoder_heads: int = 8
    decoder_mlp: int = 512
    mask_channels: int = 16

    def to_json(self) -> dict[str, int | list[int]]:
        """Return the sizes as JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, sizes: Mapping[str, Any]) -> Self:
        """Build from what ``to_json`` returned."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}
        return cls(**values)


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions around an identity (He et al. 2016, pre-activation)."""

    def __init__(self, channels: int) -> None:
        """Build for ``channels`` in and out."""
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        y = self.conv1(functional.silu(self.norm1(x)))
        out: torch.Tensor = x + self.conv2(functional.silu(self.norm2(y)))
        return out


class ConvEncoder(nn.Module):
    """Image encoder: ``(B, 3, S, S)`` normalised pixels to ``(B, embed_dim, S / stride, S / stride)``."""

    def __init__(self, config: ConvSamConfig) -> None:
        """Build the stages that ``config`` lists."""
        super().__init__()
        self.img_size = config.image_size
        inputs = (3, *config.widths[:-1])
        self.downs = nn.ModuleList(
            nn.Conv2d(i, o, 5 if n == 0 else 3, stride=2, padding=2 if n == 0 else 1)
            for n, (i, o) in enumerate(zip(inputs, config.widths, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth))) for width, depth in zip(config.widths, config.depths, strict=True)
        )
        self.first_level = config.stride.bit_length() - 2
        neck = config.neck or config.embed_dim
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck, 1) for width in config.widths[self.first_level :])
        self.fine = nn.Conv2d(config.widths[self.first_level - 1], neck, 3, stride=2, padding=1)
        self.smooth = ResidualBlock(neck)
        self.widen = nn.Conv2d(neck, config.embed_dim, 1) if config.neck else nn.Identity()
        self.norm = nn.GroupNorm(1, config.embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode a batch of images."""
        levels = []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
            levels.append(x)
        top = self.laterals[-1](levels[-1])
        for lateral, level in zip(reversed(self.laterals[:-1]), reversed(levels[self.first_level : -1]), strict=True):
            top = functional.interpolate(top, scale_factor=2.0, mode="bilinear", align_corners=False) + lateral(level)
        top = top + self.fine(levels[self.first_level - 1])
        out: torch.Tensor = self.norm(self.widen(self.smooth(top)))
        return out


def build_conv_sam(config: ConvSamConfig) -> Sam:
    """Assemble a segment-anything ``Sam`` around the convolutional encoder, with random weights.

    ``SamPredictor`` works with the result as with any other ``Sam``.
    """
    grid = config.image_size // config.stride
    return Sam(
        image_encoder=ConvEncoder(config),
        prompt_encoder=PromptEncoder(
            embed_dim=config.embed_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=config.embed_dim, mlp_dim=config.decoder_mlp, num_heads=config.decoder_heads
            ),
            transformer_dim=config.embed_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=config.embed_dim,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
