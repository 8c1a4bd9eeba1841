"""Each profile treats pictures and prompts as its family's own code does, to the last grey level and rounding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from segment_anything.modeling import Sam
from skimage.transform import resize as skimage_resize

from distill import load_teacher
from distill.errors import CheckpointError, PromptError
from distill.teachers import checkpoints
from distill.teachers.answers import choose_tokens
from distill.teachers.base import PromptBatch
from distill.teachers.checkpoints import inspect_checkpoint
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.cubic import resize_cubic
from distill.teachers.files import md5_file
from distill.teachers.pictures import nearest_places, place_boxes, prompt_scale, restore, to_square
from distill.teachers.profiles import PROFILES, profile_for
from distill.teachers.sam import SamTeacher, resolve_precision

CPU = torch.device("cpu")


def picture(shape: tuple[int, ...], kind: str = "noise") -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    if kind == "flat areas":
        image[: shape[0] // 3 + 1] = 37
        image[-(shape[0] // 4) :] = 255
    elif kind == "grey":
        image[:] = image[..., :1]
        image[: shape[0] // 2] = 0
    elif kind == "one value":
        image[:] = 99
    return image


@pytest.mark.parametrize("kind", ["noise", "flat areas", "grey", "one value"])
@pytest.mark.parametrize("shape", [(20, 31), (203, 251), (300, 90), (128, 128), (1, 50)], ids=str)
def test_the_fast_cubic_resize_is_skimages_in_every_grey_level(shape: tuple[int, int], kind: str) -> None:
    image = picture(shape, kind)
    expected = skimage_resize(image, (128, 128), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    assert np.array_equal(resize_cubic(image, 128), expected)


@pytest.mark.parametrize("name", ["medsam", "lite-medsam"])
def test_min_max_is_taken_over_the_resized_picture_and_padding_stays_zero(name: str) -> None:
    square, (height, width) = to_square(picture((60, 100)), profile_for(name, 64), index=0, device=CPU)
    inside = square[:, :height, :width]
    assert (inside.min().item(), inside.max().item()) == (0.0, 1.0)
    assert (height, width) == ((64, 64) if name == "medsam" else (38, 64))
    assert not square[:, height:].any()


@pytest.mark.parametrize("name", ["medsam", "lite-medsam"])
def test_a_picture_of_one_value_becomes_zero_and_not_nan(name: str) -> None:
    square, _ = to_square(picture((60, 100), "one value"), profile_for(name, 64), index=0, device=CPU)
    assert not square.any()


def test_sam_med2d_stretches_to_the_nearest_pixel_and_normalises() -> None:
    image = picture((40, 80))
    square, size = to_square(image, profile_for("sam-med2d", 64), index=0, device=CPU)
    columns = (np.arange(64) * 80 / 64).astype(int)
    rows = (np.arange(64) * 40 / 64).astype(int)
    own = (image[rows][:, columns].astype(np.float32) - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    assert size == (64, 64)
    assert np.abs(square.permute(1, 2, 0).numpy() - own).max() < 1e-6


def test_samed_takes_grey_and_colour_bytes_and_unit_floats_alike() -> None:
    image = picture((50, 70), "grey")[..., 0]
    profile = profile_for("samed", 64)
    given = (image, np.repeat(image[..., None], 3, axis=2), image / np.float32(255))
    squares = [to_square(each, profile, index=0, device=CPU)[0] for each in given]
    expected = zoom(image.astype(np.float32) / np.float32(255), (64 / 50, 64 / 70), order=3)
    assert all(torch.equal(square, squares[0]) for square in squares)
    assert np.array_equal(squares[0][0].numpy(), expected)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full((5, 6), 200.0, np.float32), r"picture 2: floats must lie in \[0, 1\], but range from 200 to 200"),
        (np.zeros((5, 6), np.int16), r"picture 2: expected \(H, W\) or \(H, W, 3\), uint8 or float"),
        (np.zeros((5, 6, 4), np.uint8), r"picture 2: expected"),
        (np.full((5, 6), np.nan, np.float32), r"picture 2: floats must lie"),
    ],
    ids=["0-255 floats", "16 bit", "four channels", "not a number"],
)
def test_samed_refuses_other_pictures_and_says_which(image: np.ndarray, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        to_square(image, profile_for("samed", 64), index=2, device=CPU)


@pytest.mark.parametrize("side", [1, 2, 40, 512, 700])
def test_samed_masks_come_back_to_the_pixels_that_zoom_takes(side: int) -> None:
    classes = np.random.default_rng(0).integers(0, 5, 512)
    places = nearest_places(512, side)
    inside = slice(-1) if side == 700 else slice(None)  # there zoom's last place lies outside by rounding, and it answers 0
    assert np.array_equal(classes[places][inside], zoom(classes, side / 512, order=0)[inside])
    assert places[-1] == (511 if side > 1 else 0)


def test_lite_medsam_cuts_boxes_to_whole_pixels_and_scales_by_the_unrounded_ratio() -> None:
    profile = profile_for("lite-medsam", 256)
    scale = prompt_scale(profile, (203, 251), (207, 256))
    placed = place_boxes(profile, np.array([[60, 45, 170, 150]], np.float32), np.array([scale]))
    assert scale == (256 / 251, 256 / 251)
    assert placed.tolist() == [[61, 45, 173, 152]]


def test_medsam_interpolates_probabilities_and_the_result_reads_as_logits() -> None:
    logits = 4 * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    own = torch.nn.functional.interpolate(logits.sigmoid(), (37, 53), mode="bilinear", align_corners=False)
    full = restore(logits, profile_for("medsam", 64), (37, 53), (64, 64))
    assert torch.allclose(full.sigmoid(), own, atol=1e-6)
    assert torch.equal(full > 0, own > 0.5)
    assert torch.isfinite(restore(1000 * logits, profile_for("medsam", 64), (37, 53), (64, 64))).all()


SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)


def small_sam() -> Sam:
    torch.manual_seed(0)
    return build_conv_sam(SMALL)


def test_the_best_candidate_is_chosen_for_each_prompt_on_its_own() -> None:
    profile = profile_for("sam-med2d", 64)
    logits = torch.arange(3 * 4).reshape(3, 4, 1, 1).float().expand(3, 4, 2, 2)
    iou = torch.tensor([[9, 0.1, 0.3, 0.2], [9, 0.5, 0.3, 0.2], [9, 0.1, 0.3, 0.7]])
    chosen = choose_tokens(logits, iou, profile, multimask=None)
    assert chosen.low_res_logits[:, 0, 0, 0].tolist() == [2, 5, 11]
    assert chosen.iou[:, 0].tolist() == pytest.approx([0.3, 0.5, 0.7])
    assert choose_tokens(logits, iou, profile, multimask=False).iou.tolist() == [[9], [9], [9]]
    assert choose_tokens(logits, iou, profile, multimask=True).iou.shape == (3, 3)


@pytest.mark.parametrize(
    ("name", "tokens"), [("sam", 1), ("medsam", 1), ("mobile-sam", 1), ("lite-medsam", 1), ("sam-med2d", 1), ("samed", 4)]
)
def test_without_a_wish_each_family_answers_as_its_own_predictor(name: str, tokens: int) -> None:
    logits, iou = torch.zeros(2, 4, 8, 8), torch.rand(2, 4)
    assert choose_tokens(logits, iou, profile_for(name, 64), multimask=None).low_res_logits.shape[1] == tokens


def test_a_prompt_free_teacher_refuses_prompts_and_a_prompted_one_refuses_none() -> None:
    image = picture((30, 40))
    with pytest.raises(PromptError, match=r"samed segments without prompts, but was given some\. Ask it with none"):
        SamTeacher(small_sam(), profile_for("samed", 64), "x").predict(image, boxes=np.array([[1, 1, 9, 9]]))
    prompted = SamTeacher(small_sam(), profile_for("sam", 64), "x")
    with pytest.raises(PromptError, match="sam needs boxes, points or masks"):
        prompted.decode(prompted.encode([image]), PromptBatch(image_index=np.zeros(1, int), prompt_free=True))


def test_a_misspelt_profile_is_answered_with_the_right_one(tmp_path: Path, real_data: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no profile 'medsm'\. Did you mean 'medsam'\? Known: sam, medsam"):
        load_teacher(real_data / "upstream_outputs" / "medsam.pth", profile="medsm")


def test_a_profile_of_another_family_is_refused(real_data: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be used with profile 'sam'\. Known for it: lite-medsam"):
        load_teacher(real_data / "upstream_outputs" / "litemedsam.pth", profile="sam")


def test_a_known_hash_chooses_the_profile_and_refuses_another(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_data / "upstream_outputs" / "sam_vit.pth"
    monkeypatch.setattr(checkpoints, "KNOWN_MD5", {md5_file(path): "sam"})
    assert inspect_checkpoint(path).profile == "sam"
    assert load_teacher(path, device="cpu").profile.name == "sam"
    with pytest.raises(CheckpointError, match="known by its hash to be 'sam' and cannot be used with profile 'medsam'"):
        load_teacher(path, profile="medsam")


def test_every_profile_says_which_prompts_it_was_trained_with() -> None:
    assert {name: profile.prompts for name, profile in PROFILES.items() if profile.prompts != ("box", "point", "mask")} == {
        "medsam": ("box",),
        "edge-sam": ("box", "point"),
        "lite-medsam": ("box",),
        "samed": (),
        "medical-sam-adapter": ("point", "box"),
    }


def test_auto_precision_leaves_the_bundled_teacher_and_the_cpu_in_single() -> None:
    conv, sam = profile_for("samdistill-conv", 64), profile_for("sam", 64)
    assert resolve_precision("auto", CPU, sam) == "fp32"
    assert resolve_precision("auto", torch.device("cuda"), conv) == "fp32"
    assert resolve_precision("bf16", CPU, sam) == "bf16"


def test_bfloat16_answers_nearly_alike_and_returns_single() -> None:
    exact = SamTeacher(small_sam(), profile_for("sam", 64), "x", precision="fp32")
    fast = SamTeacher(small_sam(), profile_for("sam", 64), "x", precision="bf16")
    box = np.array([[4, 4, 30, 30]])
    first, second = (each.predict(picture((40, 50)), boxes=box).logits for each in (exact, fast))
    assert second.dtype == np.float32
    assert 0 < np.abs(first - second).max() < 0.1 * np.abs(first).max()


@pytest.mark.parametrize("shape", [(3000, 1, 3), (1, 3000, 3)], ids=["tall", "wide"])
@pytest.mark.parametrize("name", [name for name in PROFILES if name != "samed"])
def test_a_picture_of_one_pixel_s_width_is_prepared_or_refused_by_its_number(name: str, shape: tuple[int, int, int]) -> None:
    image, profile = np.zeros(shape, np.uint8), profile_for(name, 64)
    if profile.resize == "longest-side":
        with pytest.raises(PromptError, match=r"picture 7: .* is too thin"):
            to_square(image, profile, index=7, device=CPU)
    else:
        assert to_square(image, profile, index=7, device=CPU)[0].shape == (3, 64, 64)
