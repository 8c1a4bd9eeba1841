"""A batch in parts, as several devices share it: the parts together are the batch, and their losses its loss."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import Archive, ClassInfo
from students import losses
from students.augment import SLICES, Augmentation, augment
from students.batches import Batch
from students.data import PatchSource
from students.learning import GoldSpec, LossSpec
from students.mixing import MixedSource
from students.nets import plan_network
from students.preparation import Intensities
from students.spec import NetworkPlan, StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)
PARTS = (slice(0, 1), slice(1, 3), slice(3, 5))


@pytest.fixture(scope="module")
def plan(archive: Archive) -> NetworkPlan:
    record = archive["train0"].record
    spec = StudentSpec(width=4, batch=5)
    return plan_network(spec, shapes_zyx=[record.shape_czyx[1:]], spacings_zyx_mm=[record.geometry.spacing_zyx_mm], channels=1, classes=1)


def source(archive: Archive, plan: NetworkPlan, cases: list[str], label_set: str | None) -> PatchSource:
    return PatchSource(archive, cases=cases, label_set=label_set, classes=CLASSES, plan=plan, cache_bytes=1 << 24, weights={"train1": 0.5})


def joined(parts: list[Batch]) -> Batch:
    return Batch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in ("image", "ids", "weight")})


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("image", "ids", "weight"))


def test_the_parts_of_a_batch_are_the_batch(archive: Archive, plan: NetworkPlan) -> None:
    patches = source(archive, plan, ["train0", "train1", "train2"], "pseudo/r1")
    assert same(joined([patches.batch(7, 3, own=part) for part in PARTS]), patches.batch(7, 3))


def test_a_part_may_lack_a_kind_of_cases_that_the_batch_has(archive: Archive, plan: NetworkPlan) -> None:
    patches = MixedSource(
        batch=5,
        labeled=source(archive, plan, ["train0", "train1"], "pseudo/r1"),
        gold=source(archive, plan, ["train2"], "gold"),
        unlabeled=source(archive, plan, ["train3"], None),
        how=GoldSpec(share=0.4),
        unlabeled_share=0.2,
    )
    assert same(joined([patches.batch(7, 4, own=part) for part in PARTS]), patches.batch(7, 4))


@pytest.mark.parametrize("how", [Augmentation(), SLICES], ids=["volumes", "slices"])
def test_a_patch_is_changed_alike_wherever_it_is(how: Augmentation) -> None:
    draw = torch.Generator().manual_seed(0)
    whole = Batch(
        image=torch.randn(5, 2, 4, 12, 10, generator=draw),
        ids=torch.randint(0, 3, (5, 4, 12, 10), generator=draw).to(torch.uint8),
        weight=torch.ones(5),
    )

    def changed(part: slice) -> Batch:
        here = Batch(image=whole.image[part], ids=whole.ids[part], weight=whole.weight[part])
        return augment(here, (2.0, 1.0, 1.0), torch.Generator().manual_seed(5), how, items=5, own=part)

    at_once, parts = changed(slice(None)), joined([changed(part) for part in PARTS])
    torch.testing.assert_close(parts.image, at_once.image, atol=1e-6, rtol=0)
    assert torch.equal(parts.ids, at_once.ids)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), name=st.sampled_from(["ce", "gce", "sce", "kl"]))
def test_the_gradients_of_the_parts_add_up_to_that_of_the_batch(seed: int, name: str) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, 4, 5, generator=draw, dtype=torch.float64)
    q = torch.softmax(torch.randn(5, 3, 4, 5, generator=draw, dtype=torch.float64), 1)
    # Unequal parts, of which one may hold no voxel that counts.
    w = (torch.rand(5, 1, 4, 5, generator=draw, dtype=torch.float64) > 0.5).double() * torch.tensor([0.0, 1, 1, 1, 0.5])[
        :, None, None, None
    ]
    how = LossSpec(name=name)  # type: ignore[arg-type]
    whole = logits.clone().requires_grad_()
    losses.segmentation_loss(whole, q, w, how).backward()
    found = []
    for part in PARTS:
        here = logits[part].clone().requires_grad_()
        losses.segmentation_loss(here, q[part], w[part], how, total=_of_all(logits, q, w, how, part)).backward()
        found.append(here.grad)
    torch.testing.assert_close(torch.cat([each for each in found if each is not None]), whole.grad)


def _of_all(logits: torch.Tensor, q: torch.Tensor, w: torch.Tensor, how: LossSpec, own: slice) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what several devices would tell this one: the sums of the other parts, in the order in which the loss asks for them."""
    others = []
    for part in PARTS:
        if part != own:
            sums: list[torch.Tensor] = []
            losses.segmentation_loss(logits[part], q[part], w[part], how, total=lambda here, sums=sums: sums.append(here) or here)  # type: ignore[misc]
            others.append(sums)
    asked = iter(range(len(others[0])))

    def total(here: torch.Tensor) -> torch.Tensor:
        number = next(asked)
        return here + sum(sums[number] for sums in others)

    return total


def test_normalising_leaves_the_scan_as_it_was() -> None:
    scan = np.array([[[[1.0, np.nan, 5.0, np.inf]]]], np.float32)
    kept = scan.copy()
    how = Intensities(low=np.float32([0]), high=np.float32([4]), mean=np.float32([1]), deviation=np.float32([2]))
    assert how.apply(scan).tolist() == [[[[0.0, -0.5, 1.5, 1.5]]]]
    assert np.array_equal(scan, kept, equal_nan=True)
