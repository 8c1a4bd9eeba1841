"""Changes that a scanner or a patient could have made, drawn for a whole batch at once on whatever device it is on.

No mirroring: left and right are different organs. Every draw comes from the generator it is given.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from storage import IGNORE
from students.data import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far each change may go; chances are per batch item."""

    rotation_degrees: float = 15.0
    scale: float = 0.15
    """Relative, per axis."""
    shift: float = 0.0
    """Share of the extent, in each direction of a slice."""
    spatial_chance: float = 0.6
    contrast: float = 0.25
    brightness: float = 0.2
    """In standard deviations."""
    gamma: float = 0.4
    """Exponents are ``exp(u)``, ``|u| <= gamma``."""
    noise: float = 0.15
    intensity_chance: float = 0.5
    soften_chance: float = 0.15
    """Of a low-resolution copy, which is also the blur."""


SLICES = Augmentation(
    rotation_degrees=45.0,
    scale=0.35,
    shift=0.2,
    spatial_chance=0.9,
    contrast=0.4,
    brightness=0.3,
    gamma=0.7,
    noise=0.2,
    intensity_chance=0.7,
    soften_chance=0.25,
)
"""For 2D nets. Their patches are whole pictures, so that nothing else keeps a net from learning by heart where the organ is, and
pictures come from few patients."""


def augment(
    batch: Batch, spacing_zyx_mm: tuple[float, float, float], generator: torch.Generator, how: Augmentation, hints: int = 0
) -> Batch:
    """Return a changed copy; the image moves linearly, labels by nearest voxel, and what comes from outside the patch is ``IGNORE``.

    The last ``hints`` channels of the image only move: they are no scan.
    """
    grid = _grid(batch.image, spacing_zyx_mm, generator, how)
    image, ids = _move(batch.image, batch.ids, grid)
    scan, shown = image[:, : image.shape[1] - hints], image[:, image.shape[1] - hints :]
    scan = _retouch(_soften(scan, generator, how), generator, how)
    return Batch(
        image=torch.cat([scan, shown], 1) if hints else scan,
        ids=ids,
        weight=batch.weight,
        soft=None if batch.soft is None else _moved_softly(batch.soft, grid),
        plain=image,
    )


def _uniform(count: int, width: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw numbers within ``width`` of zero, shaped to multiply a batch."""
    drawn = (torch.rand(count, generator=generator) * 2 - 1) * width
    return drawn.to(like.device).view(-1, 1, 1, 1, 1)


def _chosen(count: int, chance: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < chance).to(like.device).view(-1, 1, 1, 1, 1)


def _matrices(count: int, extent_xyz_mm: Tensor, flat: bool, generator: torch.Generator, how: Augmentation) -> Tensor:  # noqa: FBT001 - private, called once
    """Return ``count`` affine maps in torch's normalised x, y, z frame; a rotation in millimetres stays one in thick slices."""
    turn = (torch.rand(count, 3, generator=generator) * 2 - 1) * math.radians(how.rotation_degrees)
    grow = 1 + (torch.rand(count, 3, generator=generator) * 2 - 1) * how.scale
    use = (torch.rand(count, generator=generator) < how.spatial_chance).float()
    turn = turn * use[:, None]
    if flat:
        turn[:, :2] = 0
        grow[:, 2] = 1
    skew = torch.zeros(count, 3, 3)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    rotation = torch.linalg.matrix_exp(skew - skew.transpose(1, 2))
    grow = 1 + (grow - 1) * use[:, None]
    moved: Tensor = rotation * grow[:, None, :]
    return moved * extent_xyz_mm[None, None, :] / extent_xyz_mm[None, :, None]


def _grid(image: Tensor, spacing_zyx_mm: tuple[float, float, float], generator: torch.Generator, how: Augmentation) -> Tensor:
    """Draw where each voxel of each item comes from, in torch's frame."""
    size_zyx = image.shape[2:]
    extent = torch.tensor([n * mm for n, mm in zip(reversed(size_zyx), reversed(spacing_zyx_mm), strict=True)])
    theta = torch.zeros(len(image), 3, 4)
    theta[:, :, :3] = _matrices(len(image), extent, size_zyx[0] == 1, generator, how)
    if how.shift:
        # In torch's frame an extent is 2 wide.
        theta[:, :2, 3] = (torch.rand(len(image), 2, generator=generator) * 2 - 1) * 2 * how.shift
    return functional.affine_grid(theta.to(image.device), [len(image), 1, *size_zyx], align_corners=False)


def _move(image: Tensor, ids: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    # Ids are shifted so that the zeros of the padding read as IGNORE after shifting back.
    labels = functional.grid_sample(ids[:, None].float() - IGNORE, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    moved = functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved, (labels[:, 0] + IGNORE).round().to(torch.uint8)


def _moved_softly(soft: Tensor, grid: Tensor) -> Tensor:
    """Move probabilities linearly, as the image."""
    return functional.grid_sample(soft.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).round().to(torch.uint8)


def _soften(image: Tensor, generator: torch.Generator, how: Augmentation) -> Tensor:
    """Lower the resolution of some items to 60-90 % and bring them back."""
    use = _chosen(len(image), how.soften_chance, image, generator)
    share = 0.6 + 0.3 * float(torch.rand(1, generator=generator))
    if not bool(use.any()):
        return image
    size = list(image.shape[2:])
    small = functional.interpolate(image, size=[max(1, round(n * share)) for n in size], mode="trilinear", align_corners=False)
    return torch.where(use, functional.interpolate(small, size=size, mode="trilinear", align_corners=False), image)


def _retouch(image: Tensor, generator: torch.Generator, how: Augmentation) -> Tensor:
    """Change contrast, brightness and gamma, and add noise, each for some items."""
    count = len(image)
    gain = 1 + _uniform(count, how.contrast, image, generator) * _chosen(count, how.intensity_chance, image, generator)
    shift = _uniform(count, how.brightness, image, generator) * _chosen(count, how.intensity_chance, image, generator)
    power = torch.exp(_uniform(count, how.gamma, image, generator) * _chosen(count, how.intensity_chance, image, generator))
    sigma = _uniform(count, how.noise, image, generator).abs() * _chosen(count, how.intensity_chance, image, generator)
    low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
    span = (high - low).clamp(min=1e-6)
    curved = ((image - low) / span).clamp(0, 1) ** power * span + low
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    return curved * gain + shift + noise * sigma
