"""How 2D students are trained: as coarse as their objects allow, and not by heart."""

import numpy as np
import pytest
import torch

from students.augment import SLICES, Augmentation, augment
from students.batches import Batch
from students.data import thickness_px
from students.nets import plan_network
from students.spec import NetworkPlan, StudentSpec


def plan(object_px: float | None, depth: int = 1) -> NetworkPlan:
    return plan_network(
        StudentSpec(), shapes_zyx=[(depth, 256, 200)], spacings_zyx_mm=[(1.0, 1.0, 1.0)], channels=1, classes=1, object_px=object_px
    )


@pytest.mark.parametrize(
    ("object_px", "spacing"), [(None, 1.0), (5.0, 1.0), (24.0, 1.5), (90.0, 2.0)], ids=["unknown", "thin", "middling", "large"]
)
def test_slices_of_large_objects_are_trained_on_at_a_coarser_spacing(object_px: float | None, spacing: float) -> None:
    assert plan(object_px).spacing_zyx_mm == (1.0, spacing, spacing)


def test_a_coarser_spacing_makes_smaller_patches() -> None:
    assert plan(90.0).patch_zyx == (1, 128, 104)
    assert plan(None).patch_zyx == (1, 256, 208)


def test_volumes_keep_their_spacing() -> None:
    assert plan(90.0, depth=64) == plan(None, depth=64)


def test_the_thickness_of_a_class_is_its_largest_disc_in_its_fullest_slice() -> None:
    ids = np.zeros((2, 40, 60), np.uint8)
    ids[0, 5:7, 5:7] = 1
    ids[1, 10:18, 2:50] = 1
    ids[1, 30:33, 2:50] = 4
    found = thickness_px(ids, [1, 2, 4])
    assert found.keys() == {1, 4}
    assert found[1] == pytest.approx(8, abs=1)
    assert found[4] == pytest.approx(4, abs=1)


def moved(how: Augmentation) -> float:
    """Return how far the middle of a square went, in pixels, at most."""
    image = torch.zeros(16, 1, 1, 64, 48)
    image[..., 28:36, 20:28] = 1
    batch = Batch(image=image, ids=image[:, 0].to(torch.uint8), weight=torch.ones(16))
    ids = augment(batch, (1.0, 1.0, 1.0), torch.Generator().manual_seed(3), how).ids
    middles = torch.stack([torch.nonzero(one == 1).float().mean(0)[1:] for one in ids])
    return float((middles - torch.tensor([31.5, 23.5])).abs().max())


def test_slices_are_shifted_so_that_no_place_can_be_learnt_by_heart() -> None:
    assert moved(Augmentation()) < 1
    assert moved(SLICES) > 4
