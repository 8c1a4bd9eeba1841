"""Changes that a scanner or a patient could have made, drawn for a whole batch at once on whatever device it is on.

No mirroring: left and right are different organs. Every draw comes from the generator it is given, and none depends on where the batch is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from storage import IGNORE
from students.batches import Batch


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


class Chance:
    """Random numbers for each item of a batch, of which the items that are here get their own: the same ones wherever they are."""

    def __init__(self, generator: torch.Generator, items: int, own: slice = slice(None)) -> None:
        """Draw for so many items of the whole batch; ``own`` says which of them are here."""
        self._generator, self._items, self._own = generator, items, own

    def every(self, *more: int) -> Tensor:
        """Return numbers between 0 and 1, of this shape for each item of the whole batch."""
        return torch.rand(self._items, *more, generator=self._generator)

    def here(self, of_all: Tensor) -> Tensor:
        """Return what is of the items that are here."""
        return of_all[self._own]

    def uniform(self, *more: int) -> Tensor:
        """Return numbers between 0 and 1, of this shape for each item that is here."""
        return self.here(self.every(*more))

    def normal(self, *more: int) -> Tensor:
        """Return numbers of mean 0 and variance 1, of this shape for each item that is here."""
        return self.here(torch.randn(self._items, *more, generator=self._generator))

    def once(self) -> float:
        """Return a number between 0 and 1 for the whole batch."""
        return float(torch.rand(1, generator=self._generator))

    def within(self, width: float, like: Tensor) -> Tensor:
        """Return a number within ``width`` of zero for each item, shaped to multiply a batch."""
        return ((self.uniform() * 2 - 1) * width).to(like.device).view(-1, 1, 1, 1, 1)

    def chosen(self, share: float, like: Tensor) -> Tensor:
        """Return which items are chosen, shaped likewise."""
        return (self.uniform() < share).to(like.device).view(-1, 1, 1, 1, 1)


def augment(
    batch: Batch,
    spacing_zyx_mm: tuple[float, float, float],
    generator: torch.Generator,
    how: Augmentation,
    hints: int = 0,
    *,
    items: int | None = None,
    own: slice = slice(None),
) -> Batch:
    """Return a changed copy; the image moves linearly, labels by nearest voxel, and what comes from outside the patch is ``IGNORE``.

    Args:
        batch: What is here of a batch.
        spacing_zyx_mm: Of its patches.
        generator: Draws the changes.
        how: How far they go.
        hints: The last so many channels of the image only move: they are no scan.
        items: Of the whole batch, where only part of it is here.
        own: Which of them those are.
    """
    chance = Chance(generator, len(batch.image) if items is None else items, own)
    grid = _grid(batch.image, spacing_zyx_mm, chance, how)
    image, ids = _move(batch.image, batch.ids, grid)
    scan, shown = image[:, : image.shape[1] - hints], image[:, image.shape[1] - hints :]
    scan = _retouch(_soften(scan, chance, how), chance, how)
    return Batch(
        image=torch.cat([scan, shown], 1) if hints else scan,
        ids=ids,
        weight=batch.weight,
        soft=None if batch.soft is None else _moved_softly(batch.soft, grid),
        plain=image,
    )


def _matrices(extent_xyz_mm: Tensor, flat: bool, chance: Chance, how: Augmentation) -> Tensor:  # noqa: FBT001 - private, called once
    """Return an affine map for each item of the whole batch, as libraries round by how many there are, and labels go to the nearest voxel.

    The frame is torch's normalised x, y, z one; a rotation in millimetres stays one in thick slices.
    """
    turn = (chance.every(3) * 2 - 1) * math.radians(how.rotation_degrees)
    grow = 1 + (chance.every(3) * 2 - 1) * how.scale
    use = (chance.every() < how.spatial_chance).float()
    turn = turn * use[:, None]
    if flat:
        turn[:, :2] = 0
        grow[:, 2] = 1
    skew = torch.zeros(len(turn), 3, 3)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    rotation = torch.linalg.matrix_exp(skew - skew.transpose(1, 2))
    grow = 1 + (grow - 1) * use[:, None]
    moved: Tensor = rotation * grow[:, None, :]
    return moved * extent_xyz_mm[None, None, :] / extent_xyz_mm[None, :, None]


def _grid(image: Tensor, spacing_zyx_mm: tuple[float, float, float], chance: Chance, how: Augmentation) -> Tensor:
    """Draw where each voxel of each item comes from, in torch's frame."""
    size_zyx = image.shape[2:]
    extent = torch.tensor([n * mm for n, mm in zip(reversed(size_zyx), reversed(spacing_zyx_mm), strict=True)])
    matrices = _matrices(extent, size_zyx[0] == 1, chance, how)
    theta = torch.zeros(len(matrices), 3, 4)
    theta[:, :, :3] = matrices
    if how.shift:
        # In torch's frame an extent is 2 wide.
        theta[:, :2, 3] = (chance.every(2) * 2 - 1) * 2 * how.shift
    return functional.affine_grid(chance.here(theta).to(image.device), [len(image), 1, *size_zyx], align_corners=False)


def _move(image: Tensor, ids: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    # Ids are shifted so that the zeros of the padding read as IGNORE after shifting back.
    labels = functional.grid_sample(ids[:, None].float() - IGNORE, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    moved = functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved, (labels[:, 0] + IGNORE).round().to(torch.uint8)


def _moved_softly(soft: Tensor, grid: Tensor) -> Tensor:
    """Move probabilities linearly, as the image."""
    return functional.grid_sample(soft.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).round().to(torch.uint8)


def _soften(image: Tensor, chance: Chance, how: Augmentation) -> Tensor:
    """Lower the resolution of some items to 60-90 % and bring them back."""
    use = chance.chosen(how.soften_chance, image)
    share = 0.6 + 0.3 * chance.once()
    if not bool(use.any()):
        return image
    size = list(image.shape[2:])
    small = functional.interpolate(image, size=[max(1, round(n * share)) for n in size], mode="trilinear", align_corners=False)
    return torch.where(use, functional.interpolate(small, size=size, mode="trilinear", align_corners=False), image)


def _retouch(image: Tensor, chance: Chance, how: Augmentation) -> Tensor:
    """Change contrast, brightness and gamma, and add noise, each for some items."""
    gain = 1 + chance.within(how.contrast, image) * chance.chosen(how.intensity_chance, image)
    shift = chance.within(how.brightness, image) * chance.chosen(how.intensity_chance, image)
    power = torch.exp(chance.within(how.gamma, image) * chance.chosen(how.intensity_chance, image))
    sigma = chance.within(how.noise, image).abs() * chance.chosen(how.intensity_chance, image)
    low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
    span = (high - low).clamp(min=1e-6)
    curved = ((image - low) / span).clamp(0, 1) ** power * span + low
    return curved * gain + shift + chance.normal(*image.shape[1:]).to(image.device) * sigma
