"""Pictures and prompts into the network's square, and masks back, by the rules of a ``TeacherProfile``.

Each rule repeats what one family's own code does to the last detail that changes a pixel: library, order of operations, rounding.
Frames: picture pixels in, network pixels out; boxes and points count the same way in both.
"""

import cv2
import numpy as np
import torch
from scipy import ndimage
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional
from torchvision.transforms.functional import resize as resize_picture
from torchvision.transforms.functional import to_pil_image

from distill.errors import PromptError
from distill.teachers.base import TeacherProfile
from distill.teachers.conv_encoder import PIXEL_MEAN, PIXEL_STD
from distill.teachers.cubic import resize_cubic
from distill.teachers.upsample import resize_bilinear, through_input

MASK_PROMPT_LOGIT = 6.0
"""Confidence given to a mask used as a prompt; the bundled teacher was trained with this value."""
SMALLEST_RANGE = 1e-8
"""A picture of one grey value is divided by this (MedSAM, LiteMedSAM)."""
PROBABILITY_EPS = 1e-7
"""Keeps the logit of a probability finite."""


def to_square(image: np.ndarray, profile: TeacherProfile, *, index: int, device: torch.device) -> tuple[torch.Tensor, tuple[int, int]]:
    """Prepare one picture for the encoder.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; teachers without mean and deviation that need no prompt also take ``(H, W)`` and floats in [0, 1].
        profile: the protocol.
        index: which picture of a batch this is, for the error.
        device: where the square is wanted.

    Returns:
        ``(3, S, S)`` float32, and (height, width) of the picture inside the square.

    Raises:
        PromptError: if the picture has another shape, type or range.
    """
    image = _checked(image, profile, index)
    if profile.resize == "longest-side":
        _require_side(image, profile.image_size, index)
    resized = _resize(image, profile)
    height, width = resized.shape[:2]
    pixels = _normalise(resized, profile, device)
    square = functional.pad(pixels, (0, profile.image_size - width, 0, profile.image_size - height))
    return square, (height, width)


def _checked(image: np.ndarray, profile: TeacherProfile, index: int) -> np.ndarray:
    """Refuse what the family does not define; return ``(H, W, 3)``, scaled to [0, 1] floats for ``unit``."""
    if profile.resize == "square-spline":
        return _checked_unit(image, index)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        message = f"picture {index}: expected (H, W, 3) uint8 RGB, but got {image.shape} {image.dtype}. Window and convert it first (distill.intensity)."
        raise PromptError(message)
    return image


def _checked_unit(image: np.ndarray, index: int) -> np.ndarray:
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not shaped or not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
        message = f"picture {index}: expected (H, W) or (H, W, 3), uint8 or float in [0, 1], but got {image.shape} {image.dtype}."
        raise PromptError(message)
    unit = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image.astype(np.float32)
    # A spline overshoots [0, 1] a little, so a resized picture may; 0-255 may not.
    if not (np.isfinite(unit).all() and unit.min() > -0.5 and unit.max() < 1.5):
        message = f"picture {index}: floats must lie in [0, 1], but range from {unit.min():.3g} to {unit.max():.3g}. Window it first (distill.intensity)."
        raise PromptError(message)
    return np.repeat(unit[..., None], 3, axis=2) if unit.ndim == 2 else unit


def _require_side(image: np.ndarray, size: int, index: int) -> None:
    """Refuse what PIL would have to shrink to nothing."""
    if min(image.shape[:2]) < 1 or min(ResizeLongestSide.get_preprocess_shape(*image.shape[:2], size)) < 1:
        message = f"picture {index}: {image.shape[:2]} pixels is too thin: with its longest side at {size}, the other has less than half a pixel. Crop it."
        raise PromptError(message)


def _resize(image: np.ndarray, profile: TeacherProfile) -> np.ndarray:
    size = profile.image_size
    match profile.resize:
        case "longest-side":  # SAM, MobileSAM: PIL, bilinear with antialiasing, sides rounded half up
            return np.ascontiguousarray(ResizeLongestSide(size).apply_image(image))
        case "longest-side-area":  # LiteMedSAM: OpenCV, sides rounded half up
            scale = size / max(image.shape[:2])
            height, width = (int(side * scale + 0.5) for side in image.shape[:2])
            return cv2.resize(image, (max(1, width), max(1, height)), interpolation=cv2.INTER_AREA)
        case "square-cubic":  # MedSAM
            return resize_cubic(image, size)
        case "square-nearest":  # SAM-Med2D
            return cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST)
        case "square-spline":  # SAMed
            return _resize_spline(image, size)
        case "square-linear":  # Medical-SAM-Adapter: torchvision on PIL
            return np.asarray(resize_picture(to_pil_image(image), [size, size]))


def _resize_spline(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    grey = bool((image == image[..., :1]).all())
    channels = [ndimage.zoom(image[..., n], (size / height, size / width), order=3) for n in range(1 if grey else 3)]
    return np.stack(channels * 3 if grey else channels, axis=2)


def _normalise(resized: np.ndarray, profile: TeacherProfile, device: torch.device) -> torch.Tensor:
    """Return ``(3, h, w)`` float32."""
    if profile.normalise == "mean-std":
        pixels = torch.as_tensor(np.ascontiguousarray(resized), device=device).permute(2, 0, 1)
        mean, std = (torch.tensor(each, dtype=torch.float32, device=device).view(-1, 1, 1) for each in (PIXEL_MEAN, PIXEL_STD))
        return (pixels - mean) / std
    if profile.normalise == "min-max":
        low, high = int(resized.min()), int(resized.max())
        resized = (resized - np.float64(low)) / max(high - low, SMALLEST_RANGE)
    elif resized.dtype == np.uint8:
        resized = resized.astype(np.float32) / np.float32(255)
    return torch.as_tensor(resized, dtype=torch.float32).permute(2, 0, 1).contiguous().to(device)


def prompt_scale(profile: TeacherProfile, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> tuple[float, float]:
    """Return what x and y of a prompt are multiplied by to come into the network's frame."""
    if profile.restore == "cropped":  # LiteMedSAM scales by the unrounded ratio
        ratio = profile.image_size / max(size_px)
        return ratio, ratio
    return input_size_px[1] / size_px[1], input_size_px[0] / size_px[0]


def place_boxes(profile: TeacherProfile, boxes_xyxy: np.ndarray, scale_xy: np.ndarray) -> np.ndarray:
    """Bring boxes ``(P, 4)`` into the network's frame; ``scale_xy``: ``(P, 2)``."""
    placed: np.ndarray = boxes_xyxy * np.tile(scale_xy, 2)
    return np.trunc(placed) if profile.boxes == "truncated" else placed


def restore(logits: torch.Tensor, profile: TeacherProfile, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
    """Bring logits ``(P, M, m, m)`` of the network to ``(P, M, H, W)`` of the picture; above zero means object.

    MedSAM interpolates probabilities; its answer is returned as their logit, so that sign and sigmoid are the family's.
    """
    match profile.restore:
        case "through-input":
            return through_input(logits, profile.image_size, input_size_px, size_px)
        case "cropped":
            return _bilinear(logits[..., : input_size_px[0], : input_size_px[1]], size_px)
        case "probabilities":
            return torch.logit(_bilinear(torch.sigmoid(logits), size_px), eps=PROBABILITY_EPS)
        case "direct":
            return _bilinear(logits, size_px)
        case "nearest":
            full = _bilinear(logits, (profile.image_size, profile.image_size))
            rows, columns = (torch.as_tensor(nearest_places(profile.image_size, side), device=logits.device) for side in size_px)
            return full[..., rows[:, None], columns]


def nearest_places(source: int, target: int) -> np.ndarray:
    """Return which of ``source`` pixels each of ``target`` pixels takes under ``scipy.ndimage.zoom(order=0)``, as SAMed's test does.

    At some sizes rounding pushes zoom's last place outside, which it fills with zero; here the last pixel is taken.
    """
    places: np.ndarray = ndimage.zoom(np.arange(source), target / source, order=0, mode="nearest")
    return places


def _bilinear(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resize_bilinear(x, size)


def mask_as_logits(mask: np.ndarray, profile: TeacherProfile, input_size_px: tuple[int, int], side_px: int) -> np.ndarray:
    """Turn ``(H, W)`` in [0, 1] into logits ``(m, m)``: shrink the mask first, then scale, as shrinking logits washes out small objects.

    Args:
        mask: of a picture, or probabilities.
        profile: says how large the network's input is.
        input_size_px: (height, width) of the picture inside it.
        side_px: ``m``.
    """
    ratio = side_px / profile.image_size
    height, width = (max(1, round(side * ratio)) for side in input_size_px)
    square = np.zeros((side_px, side_px), np.float32)
    square[:height, :width] = cv2.resize(np.asarray(mask, np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return (2 * square - 1) * np.float32(MASK_PROMPT_LOGIT)
