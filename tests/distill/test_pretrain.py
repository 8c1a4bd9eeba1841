"""The bundled teacher's training: prompts that fit their objects, losses that mean something, a run that can be repeated."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill import load_teacher
from distill.teachers.pretrain import PretrainPlan, mask_loss, run
from distill.teachers.prompted import PROMPTS_PER_IMAGE, draw_points, prompt_objects, spoil_box, tight_box
from distill.teachers.synthesis import draw_shape, generate_scene


def test_generated_scenes_have_pictures_and_objects_of_every_size() -> None:
    rng = np.random.default_rng(0)
    samples = [generate_scene(rng) for _ in range(12)]
    areas = np.concatenate([sample.masks.sum(axis=(1, 2)) for sample in samples])
    assert all(sample.image.shape == (256, 256, 3) and sample.image.dtype == np.uint8 for sample in samples)
    assert all(np.ptp(sample.image) > 50 for sample in samples)
    assert (areas < 1000).any()
    assert (areas > 5000).any()


def test_prompts_lie_on_the_objects_they_are_about() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        item = prompt_objects(rng, generate_scene(rng), 1.0)
        if item is None:
            continue
        _, masks, boxes, points, labels, _ = item
        assert len(masks) == PROMPTS_PER_IMAGE
        for mask, box, xy, kind in zip(masks, boxes, points, labels, strict=True):
            assert np.array_equal(box, tight_box(mask))
            assert mask[int(xy[0, 1]), int(xy[0, 0])]
            assert kind[0] == 1


def test_jittered_boxes_stay_in_the_picture_and_enclose_something() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        mask = draw_shape(rng, 64)
        if mask.sum() < 10:
            continue
        box = spoil_box(rng, tight_box(mask), mask.shape, 0.0)
        assert (box >= 0).all()
        assert (box <= 64).all()
        assert (box[2:] > box[:2]).all()
        assert draw_points(rng, mask)[1][0] == 1


def test_perfect_masks_cost_next_to_nothing_and_wrong_ones_much() -> None:
    target = torch.zeros(2, 1, 12, 16)
    target[:, :, 3:8, 4:11] = 1
    boxes = torch.tensor([[4.0, 3.0, 11.0, 8.0]] * 2)
    right = torch.where(target > 0, 12.0, -12.0).expand(2, 4, 12, 16)
    good, figures = mask_loss(right, torch.ones(2, 4), target, boxes, 16)
    bad, _ = mask_loss(-right, torch.zeros(2, 4), target, boxes, 16)
    assert float(good) < 0.1
    assert float(bad) > 3.0
    assert figures["iou"] == 1.0


@pytest.mark.timeout(180)
def test_a_training_run_of_seconds_writes_a_teacher_that_loads(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    plan = PretrainPlan(data=real_data, out=out, minutes=0.03, finish_minutes=0.03, batch=2, threads=1, loader_workers=0, shift_images=4)
    assert run(plan) == out
    teacher = load_teacher(out, device="cpu")
    answer = teacher.predict(np.zeros((30, 40, 3), np.uint8), boxes=np.array([[5, 5, 20, 20]]))
    assert answer.logits.shape == (1, 1, 30, 40)
    assert np.isfinite(answer.logits).all()
