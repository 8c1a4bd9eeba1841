"""Probabilities as nnU-Net's targets: moved with the image, silent where nobody knows, and the loss of class ids where they are certain."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from flows.errors import RecipeError
from flows.plans import student_spec
from flows.recipe_file import load_recipe
from students.learning import Learning
from students.losses import segmentation_loss, targets_from_ids
from students.nnunet.soft import SoftLoss, SoftTransforms, Together, prepared, with_soft_targets
from students.nnunet.training import FINAL, LATEST, _restored
from students.process import Advance

SOFT = Learning(targets="soft")
IGNORED = 3
"""nnU-Net's number of ignore for two classes."""
SHAPE = (2, 6, 8, 10)


def known(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, class ids with ignored ones, and certain probabilities of the same classes."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *SHAPE[1:], generator=g)
    ids = torch.randint(0, 4, (2, 1, *SHAPE[1:]), generator=g)
    return logits, ids, torch.cat([ids == 1, ids == 2], 1).float() * 255


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_certain_probabilities_are_the_loss_of_class_ids_and_ignored_voxels_pull_at_nothing(seed: int) -> None:
    logits, ids, soft = known(seed)
    here = logits.clone().requires_grad_()
    loss = SoftLoss(torch.nn.Identity(), SOFT, IGNORED)(here, torch.cat([ids.float(), soft], 1))
    q, w = targets_from_ids(torch.where(ids[:, 0] == IGNORED, 255, ids[:, 0]).to(torch.uint8), 3)
    torch.testing.assert_close(loss, segmentation_loss(logits, q, w))
    loss.backward()
    assert here.grad is not None
    hole = (ids == IGNORED).expand_as(here.grad)
    assert torch.equal(here.grad[hole], torch.zeros(int(hole.sum())))
    assert bool(here.grad[~hole].abs().sum() > 0)


def test_unsure_voxels_count_less_where_confidence_is_asked_for() -> None:
    logits, ids, soft = known(3)
    half = torch.where(ids == 1, soft / 2, soft)
    unsure = SoftLoss(torch.nn.Identity(), Learning(confidence=4.0), IGNORED)
    here = logits.clone().requires_grad_()
    unsure(here, torch.cat([ids.float(), half], 1)).backward()
    assert here.grad is not None
    doubted, sure = (ids == 1).expand_as(logits), (ids == 2).expand_as(logits)
    assert here.grad[doubted].abs().mean() < 0.2 * here.grad[sure].abs().mean()


def test_held_out_cases_are_judged_by_nnunets_own_loss() -> None:
    logits, ids, _ = known(4)
    own = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss
    )
    built = DeepSupervisionWrapper(own, [0.75, 0.25])
    wanted = built([logits, logits], [ids.clone(), ids.clone()])
    torch.testing.assert_close(with_soft_targets(built, SOFT, 3)([logits, logits], [ids.clone(), ids.clone()]), wanted)


@pytest.mark.parametrize("keep", [True, False], ids=["training", "held out"])
def test_probabilities_are_mirrored_with_the_image_and_reach_the_loss_at_each_resolution(keep: bool) -> None:
    image = torch.arange(2 * 4 * 8 * 8, dtype=torch.float32).reshape(2, 4, 8, 8)
    soft = image[:1] / 2
    changes = ComposeTransforms([MirrorTransform((0, 1, 2)), DownsampleSegForDSTransform(((1, 1, 1), (1, 0.5, 0.5)))])
    torch.manual_seed(1)
    found = SoftTransforms(changes, 1, keep=keep)(image=torch.cat([image, soft]), segmentation=(image[:1] > 99).to(torch.int16))
    assert len(found["image"]) == 2
    full, coarse = found["segmentation"]
    assert len(full) == len(coarse) == (2 if keep else 1)
    if keep:
        assert not torch.equal(found["image"], image), "the seed mirrors it"
        assert torch.equal(full[1], found["image"][0] / 2)
        assert torch.equal(full[0], (found["image"][0] > 99).float())
        assert coarse.shape == (2, 4, 4, 4)
        torch.testing.assert_close(coarse[1].mean(), full[1].mean())


def test_probabilities_are_prepared_as_nnunet_prepares_a_volume() -> None:
    soft = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 10)).astype(np.uint8)
    same = prepared(soft, (1, 0, 2), ((1, 5), (0, 4), (2, 9)), (4, 4, 7))
    assert np.array_equal(same, soft.transpose(0, 2, 1, 3)[:, 1:5, :, 2:9])
    flat = np.full((1, 4, 6, 10), 200, np.uint8)
    assert np.array_equal(prepared(flat, (0, 1, 2), ((0, 4), (0, 6), (0, 10)), (3, 12, 7)), np.full((1, 3, 12, 7), 200))


def test_only_the_window_that_is_asked_for_is_read() -> None:
    class Counted:
        shape = (1, 4, 6, 8)
        asked: Any = None

        def __getitem__(self, where: Any) -> np.ndarray:
            self.asked = where
            return np.zeros((1, 2, 6, 8), np.int16)

    image = Counted()
    together = Together(image, np.ones((2, 4, 6, 8), np.uint8))
    window = together[slice(None), slice(1, 3), slice(None), slice(None)]
    assert image.asked[1] == slice(1, 3)
    assert (together.shape, window.shape, window.dtype) == ((3, 4, 6, 8), (3, 2, 6, 8), np.float32)


def test_a_recipe_may_ask_an_nnunet_for_soft_targets_and_not_for_other_losses(tmp_path: Path) -> None:
    def asked(block: str) -> Learning:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"archive: ./archive.zarr\nclasses: {{1: {{name: organ}}}}\nstudent: {block}\n")
        return student_spec(load_recipe(path)).learning

    assert asked("{kind: nnunet}") == Learning()
    assert asked("{kind: nnunet, targets: soft, confidence: 1}") == Learning(targets="soft", confidence=1.0)
    with pytest.raises(RecipeError, match="has loss, which is of kind: compact"):
        asked("{kind: nnunet, loss: gce}")


class _Trainer:
    """As much of a trainer as the loading of checkpoints asks."""

    def __init__(self, folder: Path, readable: str) -> None:
        self.output_folder, self.readable, self.log, self.current_epoch = str(folder), readable, "", 0

    def initialize(self) -> None: ...

    def load_checkpoint(self, path: str) -> None:
        self.current_epoch = 40  # as nnU-Net's does, before it reads on
        if not path.endswith(self.readable):
            message = "Ran out of input"
            raise EOFError(message)

    def print_to_log_file(self, line: str) -> None:
        self.log += line


@pytest.mark.parametrize(
    ("files", "readable", "resumed", "instead"),
    [
        pytest.param((FINAL, LATEST), LATEST, True, f"goes on from {LATEST}", id="the last one is damaged"),
        pytest.param((LATEST,), "none", False, "begins anew, at epoch 0", id="the only one is damaged"),
        pytest.param((LATEST,), LATEST, True, "", id="nothing is damaged"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_told_of_with_what_is_done_instead(
    files: tuple[str, ...], readable: str, resumed: bool, instead: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()
    said: list[Advance] = []
    trainer: Any
    trainer, goes_on = _restored(lambda: cast("Any", _Trainer(tmp_path, readable)), said.append)
    assert goes_on == resumed
    assert trainer.current_epoch == (40 if resumed else 0), "nothing of what could not be read is kept"
    assert [each.phase for each in said] == ([f"{files[0]} cannot be read: training {instead}"] if instead else [])
    assert instead in trainer.log
    assert not instead or f"{tmp_path / files[0]} cannot be read (EOFError: Ran out of input)" in trainer.log
    assert (tmp_path / files[0]).exists() == (not instead), "a damaged one is removed"
