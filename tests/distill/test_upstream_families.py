"""Six families, each loaded by this package, answer what their own code answered: alone, among other pictures, in any order."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import load_teacher
from distill.teachers.base import PromptBatch
from distill.teachers.sam import SamTeacher

PROFILES = {
    "sam_vit": "sam",
    "medsam": "medsam",
    "sammed2d": "sam-med2d",
    "mobilesam": "mobile-sam",
    "litemedsam": "lite-medsam",
    "samed": "samed",
}
PROMPTED = [name for name in PROFILES if name != "samed"]
LOGITS = {"sam_vit": 1e-4}
"""Largest difference allowed where it is not 1e-3."""
HALF = 2**-11
"""Relative rounding of what was stored in 16 bits."""


@cache
def teacher_of(folder: Path, name: str) -> SamTeacher:
    if name == "samed":
        return load_teacher(folder / "samed_lora.pth", base=folder / "samed_base.pth", device="cpu")
    return load_teacher(folder / f"{name}.pth", profile=PROFILES[name], device="cpu")


@cache
def reference(folder: Path, name: str) -> Mapping[str, np.ndarray]:
    return dict(np.load(folder / f"{name}.npz"))


@pytest.fixture
def asked(real_data: Path) -> Callable[[str], tuple[SamTeacher, Mapping[str, np.ndarray]]]:
    folder = real_data / "upstream_outputs"
    return lambda name: (teacher_of(folder, name), reference(folder, name))


def assert_equals_box_answer(name: str, logits: np.ndarray, iou: np.ndarray, expected: Mapping[str, np.ndarray]) -> None:
    """Logits (probabilities for MedSAM), predicted IoU and mask are those of the family's own code."""
    limit = LOGITS.get(name, 1e-3)
    if name == "medsam":
        own, found = expected["box_prob"] - 0.5, 1 / (1 + np.exp(-logits[0].astype(np.float64))) - 0.5
    else:
        own, found = expected["box_logits"][0], logits[0]
    assert found.shape == own.shape
    assert np.abs(found - own).max() <= limit
    assert np.abs(iou - expected["box_iou"]).max() <= limit
    mask, wanted = logits[0] > 0, own > 0
    assert 0 < wanted.sum() < wanted.size
    assert (mask & wanted).sum() >= 0.999 * (mask | wanted).sum()


@pytest.mark.parametrize("name", PROMPTED)
def test_a_box_is_answered_as_by_the_familys_own_code(asked: Callable, name: str) -> None:
    teacher, expected = asked(name)
    answer = teacher.predict(expected["image"], boxes=expected["box"][None])
    assert_equals_box_answer(name, answer.logits[0], answer.iou[0], expected)


@pytest.mark.parametrize("name", PROMPTED)
def test_the_embedding_is_the_familys(asked: Callable, name: str) -> None:
    teacher, expected = asked(name)
    own = expected.get("embedding", expected.get("embedding_f16")).astype(np.float32)
    rounding = 0 if "embedding" in expected else HALF * np.abs(own).max()
    assert np.abs(teacher.encode([expected["image"]]).features.numpy() - own).max() <= 1e-4 + rounding


@pytest.mark.parametrize("name", PROMPTED)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["first", "second"])
def test_the_answer_does_not_change_among_other_pictures_and_prompts(asked: Callable, name: str, order: tuple[int, ...]) -> None:
    teacher, expected = asked(name)
    rng = np.random.default_rng(3)
    given = [expected["image"], rng.integers(0, 256, (40, 30, 3), np.uint8), rng.integers(0, 256, (90, 1300, 3), np.uint8)]
    asks = [(0, expected["box"]), (1, (3, 4, 25, 33)), (2, (100, 5, 900, 80)), (0, (10, 10, 90, 60)), (1, (0, 0, 30, 40))]
    asks = [asks[n] for n in (3, 4, 0, 2, 1)]
    embeddings = teacher.encode([given[n] for n in order])
    place = {picture: n for n, picture in enumerate(order)}
    batch = PromptBatch(
        image_index=np.array([place[picture] for picture, _ in asks]), boxes_xyxy_px=np.array([box for _, box in asks], np.float32)
    )
    decoded = teacher.decode(embeddings, batch)
    mine = place[0]
    full = teacher.upsample(decoded.low_res_logits[2:3], embeddings.sizes_px[mine], embeddings.input_sizes_px[mine])
    assert_equals_box_answer(name, full[0].numpy(), decoded.iou[2].numpy(), expected)


@pytest.mark.parametrize("name", PROMPTED)
@pytest.mark.parametrize("shape", [(1400, 700), (31, 200)], ids=["larger than the input", "small and very wide"])
def test_pictures_of_any_shape_are_answered_alike_alone_and_in_a_batch(asked: Callable, name: str, shape: tuple[int, int]) -> None:
    teacher, expected = asked(name)
    picture = np.random.default_rng(4).integers(0, 256, (*shape, 3), np.uint8)
    box = np.array([[0.2, 0.1, 0.7, 0.8]] * np.array([shape[1], shape[0]] * 2), np.float32)
    alone = teacher.predict(picture, boxes=box)
    assert alone.logits.shape[-2:] == shape
    assert np.isfinite(alone.logits).all()
    embeddings = teacher.encode([expected["image"], picture])
    decoded = teacher.decode(embeddings, PromptBatch(image_index=np.ones(1, int), boxes_xyxy_px=box))
    full = teacher.upsample(decoded.low_res_logits, shape, embeddings.input_sizes_px[1])
    assert np.abs(full.numpy() - alone.logits).max() <= 1e-4


@pytest.mark.parametrize("name", ["sam_vit", "mobilesam", "sammed2d"])
def test_points_are_answered_as_by_the_familys_own_code(asked: Callable, name: str) -> None:
    teacher, expected = asked(name)
    answer = teacher.predict(
        expected["image"], points=expected["points"], point_labels=expected["labels"], multimask=None if name == "sammed2d" else True
    )
    assert np.abs(answer.logits[0] - expected["point_logits"]).max() <= LOGITS.get(name, 1e-3)
    assert np.abs(answer.iou[0] - expected["point_iou"]).max() <= 1e-4


def test_sams_mask_prompt_is_answered_as_by_its_own_code(asked: Callable) -> None:
    teacher, expected = asked("sam_vit")
    answer = teacher.predict(expected["image"], boxes=expected["box"][None], mask_input=expected["mask_input"])
    assert np.abs(answer.logits[0] - expected["mask_logits"]).max() <= 1e-4
    assert np.abs(answer.iou[0] - expected["mask_iou"]).max() <= 1e-4


def test_sam_med2d_answers_its_single_mask_when_asked_for_it(asked: Callable) -> None:
    teacher, expected = asked("sammed2d")
    answer = teacher.predict(expected["image"], boxes=expected["box"][None], multimask=False)
    assert np.abs(answer.logits[0] - expected["box_single_logits"]).max() <= 1e-3
    assert np.abs(answer.iou[0] - expected["box_single_iou"]).max() <= 1e-3
    assert np.abs(expected["box_single_logits"] - expected["box_logits"]).max() > 1e-2, "the reference must tell the two apart"


@pytest.mark.parametrize("name", ["medsam", "litemedsam"])
def test_low_resolution_logits_are_the_familys(asked: Callable, name: str) -> None:
    teacher, expected = asked(name)
    embeddings = teacher.encode([expected["image"]])
    decoded = teacher.decode(embeddings, PromptBatch(image_index=np.zeros(1, int), boxes_xyxy_px=expected["box"][None].astype(np.float32)))
    assert np.abs(decoded.low_res_logits[0].numpy() - expected["box_lowres"]).max() <= 1e-4


def test_samed_answers_every_class_without_a_prompt(asked: Callable) -> None:
    teacher, expected = asked("samed")
    answer = teacher.predict(expected["input_512"])
    assert answer.logits.shape == (1, *expected["masks"].shape)
    assert np.abs(answer.logits[0] - expected["masks"]).max() <= 1e-3
    assert np.abs(answer.iou[0] - expected["iou"]).max() <= 1e-4
    classes, own = answer.logits[0].argmax(axis=0), expected["low_res_logits"]
    full = (
        torch.nn.functional.interpolate(torch.tensor(own)[None], (512, 512), mode="bilinear", align_corners=False)[0].argmax(dim=0).numpy()
    )
    assert (classes == full).mean() >= 0.999


def test_samed_answers_a_picture_alike_alone_and_among_others_of_other_sizes(asked: Callable) -> None:
    teacher, expected = asked("samed")
    other = np.random.default_rng(5).integers(0, 256, (100, 333), np.uint8)
    embeddings = teacher.encode([other, expected["input_512"]])
    decoded = teacher.decode(embeddings, PromptBatch(image_index=np.array([1, 0, 1]), prompt_free=True))
    assert np.abs(decoded.low_res_logits[0].numpy() - expected["low_res_logits"]).max() <= 1e-4
    assert torch.equal(decoded.low_res_logits[0], decoded.low_res_logits[2])
    assert teacher.upsample(decoded.low_res_logits[1:2], (100, 333), embeddings.input_sizes_px[0]).shape == (1, 4, 100, 333)
