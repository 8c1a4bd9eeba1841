"""Probabilities as targets of nnU-Net: prepared beside its own volumes, moved with them by its own augmentation, and judged by the losses of compact students.

nnU-Net hands on an image and a segmentation. So probabilities travel as further channels of the image until patches are cut, as batchgeneratorsv2's
``regression_target`` through the changes, which move it linearly and touch nothing else of it, and as further channels of the segmentation to the loss.
"""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch.nn import functional

from storage import IGNORE
from students.learning import Learning
from students.losses import segmentation_loss, targets_from_probability

SUFFIX = "_soft.npy"
"""Of the file with a case's probabilities, beside its preprocessed volume."""

_TOP = 255
"""uint8 code of certainty."""


def prepared(
    soft: UInt8[np.ndarray, "k z y x"], axes: Sequence[int], box: Sequence[Sequence[int]], shape: Sequence[int]
) -> UInt8[np.ndarray, "k z y x"]:
    """Return probabilities as nnU-Net's preprocessing leaves a volume: axes in its order, cut to its box, on its grid."""
    turned = soft.transpose([0, *[axis + 1 for axis in axes]])
    cut = turned[(slice(None), *[slice(int(low), int(high)) for low, high in box])]
    if cut.shape[1:] != tuple(shape):
        grown = functional.interpolate(
            torch.from_numpy(cut.astype(np.float32))[None], size=tuple(shape), mode="trilinear", align_corners=False
        )
        cut = grown[0].round().numpy()
    return np.ascontiguousarray(cut, dtype=np.uint8)


def write_soft(stem: Path, soft: UInt8[np.ndarray, "k z y x"], axes: Sequence[int]) -> None:
    """Write the probabilities of a case that nnU-Net has just preprocessed.

    Args:
        stem: Of its files: the folder and the case's name.
        soft: 255 = certain, as the archive has them.
        axes: The plans' ``transpose_forward``.
    """
    with stem.with_name(f"{stem.name}.pkl").open("rb") as stream:
        box = pickle.load(stream)["bbox_used_for_cropping"]  # noqa: S301 - nnU-Net's own file, written a moment ago
    shape = nnUNetDatasetBlosc2(str(stem.parent), [stem.name]).load_case(stem.name)[0].shape[1:]
    np.save(stem.with_name(f"{stem.name}{SUFFIX}"), prepared(soft, axes, box, shape))


class Together:
    """An image with probabilities as further channels, of which only what is asked for is read."""

    def __init__(self, image: Any, soft: np.ndarray) -> None:
        self._parts = (image, soft)
        self.shape = (image.shape[0] + soft.shape[0], *image.shape[1:])
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, where: Any) -> Shaped[np.ndarray, "..."]:
        """Return a window of all channels; the first index takes all of them."""
        return np.concatenate([np.asarray(part[where], np.float32) for part in self._parts])


class SoftDataset(nnUNetDatasetBlosc2):
    """nnU-Net's cases, each with its probabilities as further channels of the image."""

    def load_case(self, identifier: str) -> tuple[Any, ...]:
        """Return what nnU-Net expects of a case."""
        image, *others = super().load_case(identifier)
        soft = np.load(Path(self.source_folder) / f"{identifier}{SUFFIX}", mmap_mode="r")
        return (Together(image, soft), *others)


class SoftTransforms:
    """nnU-Net's changes of a patch, which move probabilities as they move the image."""

    def __init__(self, changes: Callable[..., dict[str, Any]], classes: int, *, keep: bool) -> None:
        """Wrap changes; ``keep`` hands probabilities on to the loss, otherwise they end here."""
        self._changes, self._classes, self._keep = changes, classes, keep

    def __call__(self, image: Tensor, segmentation: Tensor) -> dict[str, Any]:
        """Return image and segmentation; the latter has the probabilities as further channels, at each resolution."""
        count = len(image) - self._classes
        asked = {"image": image[:count], "segmentation": segmentation}
        if not self._keep:
            return self._changes(**asked)
        changed = self._changes(**asked, regression_target=image[count:])
        soft, ids = changed["regression_target"], changed["segmentation"]
        levels = [_beside(level, soft) for level in ids] if isinstance(ids, list) else _beside(ids, soft)
        return {"image": changed["image"], "segmentation": levels}


def _beside(ids: Tensor, soft: Tensor) -> Tensor:
    """Return class ids with probabilities on the same grid behind them."""
    size = tuple(ids.shape[1:])
    here = soft if tuple(soft.shape[1:]) == size else functional.interpolate(soft[None], size=size, mode="area")[0]
    return torch.cat([ids.to(torch.float32), here.to(torch.float32)])


class SoftLoss(nn.Module):
    """The loss of compact students where probabilities come with the segmentation, else nnU-Net's own."""

    def __init__(self, hard: nn.Module, how: Learning, ignore: int | None) -> None:
        """``hard`` is nnU-Net's loss of one resolution, ``ignore`` its number for voxels that nobody should learn from."""
        super().__init__()
        self.hard, self._how, self._ignore = hard, how, ignore

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one resolution.

        Args:
            output: Logits ``b c *space``.
            target: Class ids ``b 1 *space``, or these and the probability of each class, 0 to 255, behind them.
        """
        if target.shape[1] == 1:
            plain: Tensor = self.hard(output, target)
            return plain
        ids = target[:, 0].round()
        known = ids if self._ignore is None else torch.where(ids == self._ignore, float(IGNORE), ids)
        soft = target[:, 1:].round().clamp(0, _TOP).to(torch.uint8)
        q, w = targets_from_probability(known.to(torch.uint8), soft, self._how)
        return segmentation_loss(output, q, w, self._how.loss)


def with_soft_targets(loss: nn.Module, how: Learning, ignore: int | None) -> nn.Module:
    """Return nnU-Net's loss with probabilities heard, at each resolution by nnU-Net's own weight."""
    if isinstance(loss, DeepSupervisionWrapper):
        # Each resolution's; nnU-Net's class has no types.
        loss.loss = SoftLoss(loss.loss, how, ignore)
        every: nn.Module = loss
        return every
    return SoftLoss(loss, how, ignore)
