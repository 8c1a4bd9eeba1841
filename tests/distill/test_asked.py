"""A prompt that means nothing is refused in one sentence, with the value found and the cure; one that means something is not."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import PromptError
from distill.teachers.asked import check_inside
from distill.teachers.base import PromptBatch
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.profiles import profile_for
from distill.teachers.sam import SamTeacher

PICTURE = np.zeros((30, 50, 3), np.uint8)
SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)
BOX = np.array([[5, 6, 20, 25]], np.float32)


def asked(profile: str = "sam") -> SamTeacher:
    torch.manual_seed(0)
    return SamTeacher(build_conv_sam(SMALL), profile_for(profile, 64), "x")


NONSENSE = {
    "a point beside the picture": ({"points": np.array([[50.0, 10.0]])}, "point [50.0, 10.0] lies outside the picture of 50 x 30 pixels"),
    "a point above the picture": ({"points": np.array([[4.0, -1.0]])}, "point [4.0, -1.0] lies outside the picture"),
    "row and column exchanged": ({"points": np.array([[10.0, 49.0]])}, "Coordinates are x, then y"),
    "a box beside the picture": ({"boxes": np.array([[60, 5, 80, 20]])}, "box [60.0, 5.0, 80.0, 20.0] lies outside the picture of 50 x 30"),
    "a box that ends where the picture begins": ({"boxes": np.array([[-9, 5, 0, 20]])}, "lies outside the picture"),
    "a label without meaning": ({"points": np.array([[4.0, 4.0]]), "point_labels": [2]}, "point label 2 means nothing; say 1"),
    "a label that is no number": ({"points": np.array([[4.0, 4.0]]), "point_labels": [np.nan]}, "point label nan means nothing"),
    "a point that is no number": ({"points": np.array([[np.nan, 4.0]])}, "points [[nan, 4.0]] with NaN or infinity"),
    "a box that is no number": ({"boxes": np.array([[1, 2, np.nan, 9]])}, "box [1.0, 2.0, nan, 9.0] with NaN or infinity"),
    "an endless box": ({"boxes": np.array([[1, 2, np.inf, 9]])}, "with NaN or infinity"),
    "labels of no points": ({"boxes": BOX, "point_labels": [1]}, "point_labels [1] belong to points, but there are none"),
    "a mask of another frame": ({"mask_input": np.zeros((1, 9, 9), np.float32)}, "mask_input must be (N, 32, 32) logits, but is (1, 9, 9)"),
    "a mask of no numbers": ({"mask_input": np.full((1, 32, 32), np.nan, np.float32)}, "prompt 0: its mask holds NaN"),
}


@pytest.mark.parametrize(("prompts", "said"), NONSENSE.values(), ids=NONSENSE.keys())
def test_a_prompt_that_means_nothing_is_refused_in_one_line(prompts: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(PromptError, match=re.escape(said)) as caught:
        asked().predict(PICTURE, **prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "kind"),
    [
        ({"points": np.array([[4.0, 4.0]])}, "point"),
        ({"boxes": BOX, "points": np.array([[[4.0, 4.0]]])}, "point"),
        ({"boxes": BOX, "mask_input": np.zeros((1, 32, 32), np.float32)}, "mask"),
    ],
    ids=["a point", "a point beside a box", "a mask beside a box"],
)
def test_a_teacher_of_boxes_refuses_other_prompts_instead_of_guessing(prompts: dict[str, np.ndarray], kind: str) -> None:
    with pytest.raises(PromptError, match=rf"medsam was trained with box prompts only, but was given a {kind}\. Leave it out"):
        asked("medsam").predict(PICTURE, **prompts)


def test_a_point_that_only_fills_a_row_may_lie_anywhere() -> None:
    points, labels = np.array([[[4.0, 4.0], [0.0, 0.0]], [[9.0, 8.0], [-7.0, 99.0]]]), np.array([[1, 1], [1, -1]])
    assert asked().predict(PICTURE, points=points, point_labels=labels).logits.shape == (2, 1, 30, 50)


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-30, 80, width=32),
    y=st.floats(-30, 60, width=32),
    width=st.floats(1, 60, width=32),
    height=st.floats(1, 60, width=32),
)
def test_a_box_is_refused_exactly_if_no_part_of_it_is_in_the_picture(x: float, y: float, width: float, height: float) -> None:
    box = np.array([[x, y, x + width, y + height]])
    shared = (max(box[0, 0], 0) < min(box[0, 2], 50)) and (max(box[0, 1], 0) < min(box[0, 3], 30))
    batch = PromptBatch(image_index=np.zeros(1, int), boxes_xyxy_px=box)
    if shared:
        check_inside(batch, (30, 50))
    else:
        with pytest.raises(PromptError, match="lies outside the picture"):
            check_inside(batch, (30, 50))


@pytest.mark.parametrize("point", [(0.0, 0.0), (49.0, 29.0), (-0.5, 29.5)], ids=["first pixel", "last pixel", "corner"])
def test_the_pixels_of_a_picture_are_inside_it(point: tuple[float, float]) -> None:
    points = np.array([[point]], np.float32)
    check_inside(PromptBatch(image_index=np.zeros(1, int), points_xy_px=points, point_labels=np.ones((1, 1))), (30, 50))


def test_what_is_no_picture_is_refused_as_such_before_its_prompts() -> None:
    with pytest.raises(PromptError, match="picture 0"):
        asked().predict(np.zeros(5, np.uint8), boxes=BOX)
