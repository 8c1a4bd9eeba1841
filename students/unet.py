"""MONAI's DynUNet with its lowest level always in float32."""

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn


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


class CompactUNet(DynUNet):
    """See the module's own sentence."""

    def get_bottleneck(self) -> nn.Module:
        """Return the lowest level, in float32."""
        return FullPrecision(super().get_bottleneck())
