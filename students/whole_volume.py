"""What a network says about a whole volume: prepared as in training, window by window or slice by slice, on the volume's own grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import nn

from students.preparation import measure_intensities, resample, shape_at_spacing
from students.spec import NetworkPlan

OVERLAP = 0.5
"""Of neighbouring windows; with Gaussian weights a window's border hardly counts."""

_SLICES_AT_ONCE = 8
"""For 2D nets: bounds memory on long volumes."""


def class_probability(
    network: nn.Module, plan: NetworkPlan, image_czyx: np.ndarray, spacing_zyx_mm: Sequence[float], *, device: torch.device
) -> Float32[np.ndarray, "c z y x"]:
    """Return the probability of background and each class, on the grid of the image.

    Args:
        network: Built from ``plan``, in evaluation mode, on ``device``.
        plan: How the network was trained.
        image_czyx: Native intensities, and behind them the hints of a plan that has some.
        spacing_zyx_mm: Of the image.
        device: Where to compute; the whole volume's logits are kept there.
    """
    flat = plan.dimensions == "2d"
    shape = (int(image_czyx.shape[1]), int(image_czyx.shape[2]), int(image_czyx.shape[3]))
    volume = prepared_volume(plan, image_czyx, spacing_zyx_mm, device=device)
    with torch.inference_mode():
        logits = _slices(network, plan, volume) if flat else _windows(network, plan.patch_zyx, volume[None])[0]
        answer: np.ndarray = torch.softmax(resample(logits.float(), shape), 0).cpu().numpy()
    return answer


def prepared_volume(
    plan: NetworkPlan, image_czyx: np.ndarray, spacing_zyx_mm: Sequence[float], *, device: torch.device | None = None
) -> Float[torch.Tensor, "c z y x"]:
    """Return a scan as networks see it: normalised by its own intensities, at the plan's spacing."""
    shape = (int(image_czyx.shape[1]), int(image_czyx.shape[2]), int(image_czyx.shape[3]))
    wanted = shape_at_spacing(shape, spacing_zyx_mm, plan.spacing_zyx_mm, keep_z=plan.dimensions == "2d")
    normalised = measure_intensities(image_czyx, plan.normalisation, plan.hints).apply(image_czyx)
    return resample(torch.from_numpy(normalised).to(device), wanted)


def _windows(network: nn.Module, size: tuple[int, ...], batch: torch.Tensor) -> torch.Tensor:
    """Slide a window over a batch of images."""
    from monai.inferers.utils import sliding_window_inference

    answer: Any = sliding_window_inference(batch, size, 2, network, overlap=OVERLAP, mode="gaussian", padding_mode="replicate")
    result: torch.Tensor = answer
    return result


def _slices(network: nn.Module, plan: NetworkPlan, volume: torch.Tensor) -> torch.Tensor:
    """Answer for each z-slice, with as many neighbours as the network sees."""
    depth, beside = volume.shape[1], torch.arange(-plan.neighbours, plan.neighbours + 1)
    parts = []
    for slices in torch.arange(depth).split(_SLICES_AT_ONCE):
        seen = volume[:, (slices[:, None] + beside).clamp(0, depth - 1)]
        parts.append(_windows(network, plan.patch_zyx[1:], seen.transpose(0, 1).flatten(1, 2)))
    return torch.cat(parts).transpose(0, 1)


class CompactNetwork:
    """Answers of a compact student."""

    def __init__(self, network: nn.Module, plan: NetworkPlan, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self._plan, self._device = plan, device

    def probability(self, image_czyx: np.ndarray, spacing_zyx_mm: Sequence[float]) -> Float32[np.ndarray, "c z y x"]:
        """See `class_probability`."""
        return class_probability(self.network, self._plan, image_czyx, spacing_zyx_mm, device=self._device)
