"""Modules that medical fine-tunes add to SAM's transformer blocks. Tokens are ``(B, H, W, C)``."""

import torch
from torch import nn
from torch.nn import functional


class SpatialChannelAdapter(nn.Module):
    """SAM-Med2D's adapter beside the MLP: channels are gated by their mean, then a down-and-up convolution looks around.

    Source: ``Adapter_Layer`` in ``modeling/image_encoder.py`` of SAM-Med2D (Cheng et al. 2023). Names are those of its files.

    Args:
        width: channels of a token.
        hidden: channels inside the gate.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid())
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape; height and width must be even."""
        gate = self.channel(x.mean(dim=(1, 2)))
        gated = (x * gate[:, None, None]).permute(0, 3, 1, 2)
        out: torch.Tensor = self.norm(x + self.spatial(gated).permute(0, 2, 3, 1))
        return out


class BottleneckAdapter(nn.Module):
    """Medical-SAM-Adapter's adapter: down, GELU, up.

    Source: ``models/common/adapter.py`` and ``models/ImageEncoder/vit/adapter_block.py`` (Wu et al. 2023).

    Args:
        width: channels of a token.
        hidden: channels of the bottleneck.
        skip: add the input to the result.
        scale: factor on the result.
    """

    def __init__(self, width: int, hidden: int, *, skip: bool, scale: float = 1.0) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(width, hidden)
        self.D_fc2 = nn.Linear(hidden, width)
        self.skip = skip
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        y: torch.Tensor = self.D_fc2(functional.gelu(self.D_fc1(x)))
        return x + y if self.skip else self.scale * y
