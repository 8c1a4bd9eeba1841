"""Bring low-resolution logits to picture resolution, computing only what is kept; on a CPU through OpenCV.

PyTorch's bilinear interpolation of one channel at a time is slow on CPUs. OpenCV's uses the same sample places (half-pixel centres,
edges repeated, no smoothing) and agrees with it to about 1e-5 of the largest logit.

Frames: ``m`` the network's low resolution, ``S`` the network's input, then the picture.
"""

import cv2
import numpy as np
import torch
from torch.nn import functional


def resize_bilinear(x: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
    """Interpolate ``(..., h, w)`` to ``(..., H, W)`` float32, as ``interpolate(mode="bilinear", align_corners=False)`` does.

    Args:
        x: logits or probabilities.
        size_px: (H, W).
    """
    if _suits_opencv(x):
        planes = _planes(x)
        out = np.empty((len(planes), *size_px), np.float32)
        for plane, target in zip(planes, out, strict=True):
            cv2.resize(plane, (size_px[1], size_px[0]), dst=target, interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(out).view(*x.shape[:-2], *size_px)
    if not x.numel():
        return x.new_zeros(*x.shape[:-2], *size_px, dtype=torch.float32)
    flat = x.float().reshape(1, -1, *x.shape[-2:])
    return functional.interpolate(flat, size_px, mode="bilinear", align_corners=False).view(*x.shape[:-2], *size_px)


def through_input(logits: torch.Tensor, image_size: int, input_size_px: tuple[int, int], size_px: tuple[int, int]) -> torch.Tensor:
    """Bring logits ``(..., m, m)`` to ``(..., H, W)`` as ``Sam.postprocess_masks`` does: to the input's square, cropped, to the picture.

    Args:
        logits: of the network.
        image_size: ``S``.
        input_size_px: (height, width) of the picture inside the square.
        size_px: (H, W) of the picture.
    """
    if not _suits_opencv(logits):
        square = resize_bilinear(logits, (image_size, image_size))
        return resize_bilinear(square[..., : input_size_px[0], : input_size_px[1]], size_px)
    out = np.empty((logits.shape[:-2].numel(), *size_px), np.float32)
    for plane, target in zip(_planes(logits), out, strict=True):
        _restore(plane, image_size, input_size_px, target)
    return torch.from_numpy(out).view(*logits.shape[:-2], *size_px)


def _suits_opencv(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 0 and not (torch.is_grad_enabled() and x.requires_grad)


def _planes(x: torch.Tensor) -> np.ndarray:
    planes: np.ndarray = x.detach().float().reshape(-1, *x.shape[-2:]).contiguous().numpy()
    return planes


def _restore(plane: np.ndarray, image_size: int, input_size_px: tuple[int, int], target: np.ndarray) -> None:
    """Bring one plane ``(m, m)`` through the input's square to ``target (H, W)``, leaving out rows and columns that only padding needs."""
    height, width = input_size_px
    if image_size % plane.shape[0] == 0 and plane.shape[0] == plane.shape[1]:
        factor = image_size // plane.shape[0]
        # One more cell than is covered, since a pixel near a cell's far edge looks at the next one.
        rows, columns = (min(plane.shape[0], -(-side // factor) + 1) for side in input_size_px)
        square = cv2.resize(np.ascontiguousarray(plane[:rows, :columns]), (columns * factor, rows * factor), interpolation=cv2.INTER_LINEAR)
    else:
        square = cv2.resize(plane, (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    cv2.resize(square[:height, :width], (target.shape[1], target.shape[0]), dst=target, interpolation=cv2.INTER_LINEAR)
