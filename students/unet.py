"""MONAI's DynUNet with float32 where the bf16 gradients of CPUs are wrong."""

from typing import Any

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

_THIN = 2
"""Slices at which oneDNN's bf16 weight gradient of a 3x3x3 convolution is wrong, by anything from its own size to infinity, whatever height,
width and channels (seen with torch 2.15 on a Zen 4: tests/students/test_unet.py). Other depths, kernels and steps agree with float32."""


class FullPrecision(nn.Module):
    """A block that computes in float32 whatever surrounds it.

    On CPUs, oneDNN's bf16 weight gradient of a 3D convolution reads beyond rows of odd length: in a U-Net with patches of 24 or 40,
    the lowest level alone has such rows (3 or 5 voxels). Its gradient then differs from run to run by a few per cent, and now and
    then is not finite (seen with torch 2.15; with float32 the runs are bit-equal). That level is cheap.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's answer in float32."""
        with torch.autocast(features.device.type, enabled=False):
            answer: Tensor = self.block(features.float())
        return answer


class ThinConv3d(nn.Conv3d):
    """A 3D convolution that computes in float32 where its input is two slices thin, as the middle levels of thick-slice volumes are."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return the convolution, in float32 where bf16 could not be learnt from."""
        if input.shape[2] != _THIN or input.device.type != "cpu":
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


class CompactUNet(DynUNet):
    """See the module's own sentence."""

    def __init__(self, **plan: Any) -> None:
        super().__init__(**plan)
        for module in self.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = ThinConv3d  # the same parameters under the same names: states load as before

    def get_bottleneck(self) -> nn.Module:
        """Return the lowest level, in float32."""
        return FullPrecision(super().get_bottleneck())
