"""What a file is and how large its network is comes from its tensors; what does not fit is named with the likely cause."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch import nn

from distill import load_teacher
from distill.errors import CheckpointError
from distill.teachers.adapters import BottleneckAdapter
from distill.teachers.checkpoints import inspect_checkpoint

Tensors = dict[str, torch.Tensor]


small_sam = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_sam.py"))))  # tests are no package


def saved(folder: Path, tensors: object, name: str = "teacher.pth") -> Path:
    torch.save(tensors, folder / name)
    return folder / name


SIZES = {
    "as small as that": {},
    "another input size": {"image_size": 160},
    "wider with more heads": {"width": 48, "heads": 3},
    "deeper": {"depth": 5},
    "another window": {"window": 3},
    "five mask tokens": {"tokens": 5},
    "another decoder": {"dim": 64, "layers": 1},
    "windows as large as the grid": {"window": 6},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_a_sam_of_any_size_answers_as_segment_anything_does(tmp_path: Path, sizes: dict[str, int]) -> None:
    reference = small_sam.build(**sizes)
    teacher = load_teacher(saved(tmp_path, reference.state_dict()), profile="sam", device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    predictor = SamPredictor(reference)
    predictor.set_image(picture)
    expected, iou, _ = predictor.predict(box=np.array([5, 6, 40, 44]), multimask_output=True, return_logits=True)
    answer = teacher.predict(picture, boxes=np.array([[5, 6, 40, 44]]), multimask=True)
    assert np.abs(answer.logits[0] - expected).max() < 1e-4
    assert np.abs(answer.iou[0] - iou).max() < 1e-4


def test_every_size_is_reported(tmp_path: Path) -> None:
    info = inspect_checkpoint(saved(tmp_path, {"model": small_sam.weights(image_size=160, depth=4, tokens=5), "optimizer": {"lr": 1}}))
    assert (info.family, info.profile, info.profiles) == ("sam-vit", None, ("sam", "medsam", "sam-med2d"))
    assert info.image_size == 160
    wanted = {
        "width": 32,
        "depth": 4,
        "heads": 2,
        "window": 4,
        "global blocks": (1, 3),
        "decoder width": 32,
        "mask tokens": 5,
    }
    assert wanted.items() <= info.details.items()
    assert info.details["adapters"] == "none"
    assert info.details["left out"] == "optimizer (saved beside the weights, not needed to predict)"


def med2d(tensors: Tensors, width: int = 32) -> Tensors:
    for n in range(3):
        block = f"image_encoder.blocks.{n}.Adapter."
        tensors |= {f"{block}norm.weight": torch.ones(width), f"{block}norm.bias": torch.zeros(width)}
        tensors |= {f"{block}channel.0.weight": torch.randn(8, width), f"{block}channel.2.weight": torch.randn(width, 8)}
        tensors |= {
            f"{block}spatial.0.weight": torch.randn(width, width, 3, 3),
            f"{block}spatial.2.weight": torch.randn(width, width, 4, 4),
        }
    return tensors


def test_sam_med2d_is_told_by_its_adapters_and_needs_no_profile(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": med2d(small_sam.weights()), "optimizer": None})
    info = inspect_checkpoint(path)
    assert (info.family, info.profile, info.details["adapters"]) == ("sam-med2d", "sam-med2d", "Adapter")
    assert info.details["trained prompts"] == "box, point, mask"
    assert load_teacher(path, device="cpu").profile.name == "sam-med2d"


def test_adapters_are_never_dropped_because_another_profile_was_named(tmp_path: Path) -> None:
    path = saved(tmp_path, med2d(small_sam.weights()))
    with pytest.raises(CheckpointError, match=r"family sam-med2d .* cannot be used with profile 'sam'\. Known for it: sam-med2d\."):
        load_teacher(path, profile="sam")


def test_adapters_in_only_some_blocks_are_an_error_that_names_them(tmp_path: Path) -> None:
    tensors = {key: value for key, value in med2d(small_sam.weights()).items() if "blocks.1.Adapter" not in key}
    with pytest.raises(
        CheckpointError, match=r"6 tensors missing: image_encoder\.blocks\.1\.Adapter.*adapters are not those of the family"
    ):
        load_teacher(saved(tmp_path, tensors))


def test_unknown_adapters_are_an_error_that_names_them(tmp_path: Path) -> None:
    tensors = small_sam.weights() | {"image_encoder.blocks.0.my_adapter.weight": torch.ones(3)}
    with pytest.raises(
        CheckpointError, match=r"1 tensor unexpected: image_encoder\.blocks\.0\.my_adapter\.weight.*Its adapters are not those"
    ):
        load_teacher(saved(tmp_path, tensors), profile="sam")


def test_sam_med2d_without_adapters_is_as_ambiguous_as_any_sam_but_its_size_is_a_hint(tmp_path: Path) -> None:
    path = saved(tmp_path, small_sam.weights(image_size=256, window=14))
    with pytest.raises(CheckpointError, match=r"say profile: sam; if it is MedSAM.*256 px is SAM-Med2D's"):
        load_teacher(path)
    assert load_teacher(path, profile="sam-med2d", device="cpu").profile.answer == "best"


def with_bottlenecks(tensors: Tensors, width: int = 32, depth: int = 3) -> Tensors:
    torch.manual_seed(1)
    for n in range(depth):
        for name in ("MLP_Adapter", "Space_Adapter", "Depth_Adapter"):
            for key, value in nn.ModuleDict({name: BottleneckAdapter(width, width // 4, skip=True)}).state_dict().items():
                tensors[f"image_encoder.blocks.{n}.{key}"] = value
    return tensors


def test_medical_sam_adapter_computes_what_its_code_does(tmp_path: Path) -> None:
    # 128 px in windows of 4: no padding, so that the family's order of adapter and window makes no difference to check by hand.
    tensors = with_bottlenecks(small_sam.weights(image_size=128))
    teacher = load_teacher(saved(tmp_path, {"state_dict": tensors, "epoch": 1, "path_helper": {"prefix": "logs"}}), device="cpu")
    encoder = small_sam.build(image_size=128).image_encoder
    x = torch.randn(1, 3, 128, 128)

    def bottleneck(name: str, at: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.gelu(at @ tensors[f"{name}.D_fc1.weight"].T + tensors[f"{name}.D_fc1.bias"])
        return inner @ tensors[f"{name}.D_fc2.weight"].T + tensors[f"{name}.D_fc2.bias"]

    from segment_anything.modeling.image_encoder import window_partition, window_unpartition

    y = encoder.patch_embed(x) + encoder.pos_embed
    for n, block in enumerate(encoder.blocks):
        at = block.norm1(y)
        if block.window_size:
            parts, padded = window_partition(at, block.window_size)
            at = window_unpartition(block.attn(parts), block.window_size, padded, (8, 8))
        else:
            at = block.attn(at)
        y = y + at + bottleneck(f"image_encoder.blocks.{n}.Space_Adapter", at)
        normed = block.norm2(y)
        y = y + block.mlp(normed) + 0.5 * bottleneck(f"image_encoder.blocks.{n}.MLP_Adapter", normed)
    expected = encoder.neck(y.permute(0, 3, 1, 2))
    assert torch.allclose(teacher.sam.image_encoder(x), expected, atol=1e-4)


def test_the_depth_adapter_of_a_2d_model_is_counted_as_not_used(tmp_path: Path) -> None:
    info = inspect_checkpoint(saved(tmp_path, with_bottlenecks(small_sam.weights())))
    assert (info.family, info.profile) == ("medical-sam-adapter", "medical-sam-adapter")
    assert info.details["adapters"] == "Depth_Adapter, MLP_Adapter, Space_Adapter"
    assert info.details["tensors not used"] == "12, as in the family's own code"


REFUSED: dict[str, tuple[Tensors, str]] = {
    "SAM 2": ({"image_encoder.trunk.pos_embed": torch.zeros(1)}, r"is SAM 2 or MedSAM2 .*Use a SAM ViT-B"),
    "SAM 3": (
        {"detector.backbone.vision_backbone.trunk.pos_embed": torch.zeros(1), "tracker.maskmem_tpos_enc": torch.zeros(1)},
        r"is SAM 3.*Use a SAM ViT-B",
    ),
    "HQ-SAM": ({"mask_decoder.hf_token.weight": torch.zeros(1)}, r"is HQ-SAM.*Use the SAM file of the same size"),
    "EfficientSAM": ({"prompt_encoder.invalid_points.weight": torch.zeros(1)}, r"is EfficientSAM.*Use MobileSAM"),
    "SAM-Med3D": ({"image_encoder.patch_embed.proj.weight": torch.zeros(1, 1, 1, 1, 1)}, r"is SAM-Med3D.*Use SAM-Med2D"),
    "RepViT-SAM": ({"image_encoder.features.0.0.c.weight": torch.zeros(1)}, r"without EdgeSAM's fusion.*Use EdgeSAM's"),
    "transformers": (
        {"vision_encoder.pos_embed": torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(1)},
        r"Hugging Face.*Use Meta's",
    ),
}


@pytest.mark.parametrize(("tensors", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_families_that_are_not_loaded_are_recognised_and_another_is_named(tmp_path: Path, tensors: Tensors, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        inspect_checkpoint(saved(tmp_path, {"model": tensors}))


def test_an_encoder_alone_is_no_teacher(tmp_path: Path) -> None:
    tensors = {key: value for key, value in small_sam.weights().items() if key.startswith("image_encoder.")}
    with pytest.raises(CheckpointError, match=r"no promptable teacher.*Expected image_encoder\.\*, prompt_encoder\.\*, mask_decoder"):
        load_teacher(saved(tmp_path, tensors))


def test_an_unknown_encoder_under_a_sam_decoder_is_refused(tmp_path: Path) -> None:
    tensors = {key.replace("image_encoder.", "image_encoder.net."): value for key, value in small_sam.weights().items()}
    with pytest.raises(CheckpointError, match=r"an image encoder that is not known here \(image_encoder\.net\."):
        load_teacher(saved(tmp_path, tensors))


def _without(key: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(key)


DAMAGE: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a missing tensor": (
        _without("mask_decoder.iou_prediction_head.layers.2.bias"),
        r"1 tensor missing: mask_decoder.*Part of mask_decoder was not saved",
    ),
    "a tensor too many": (
        lambda t: t.update({"mask_decoder.extra": torch.ones(1)}),
        r"1 tensor unexpected: mask_decoder\.extra.*extra modules",
    ),
    "a mis-shaped tensor": (
        lambda t: t.update({"image_encoder.neck.1.weight": torch.ones(5)}),
        r"1 tensor mis-shaped: image_encoder\.neck\.1\.weight \(5,\) instead of \(32,\)",
    ),
    "a tensor that tells a size": (
        _without("prompt_encoder.mask_downscaling.3.weight"),
        r"its sizes cannot be told: KeyError.*Is the file whole\?",
    ),
    "a missing block": (
        lambda t: [t.pop(key) for key in list(t) if "blocks.1." in key],
        r"looks like SAM ViT, but its sizes cannot be told: KeyError at 'image_encoder\.blocks\.1\.",
    ),
    "not a number": (
        lambda t: t["image_encoder.neck.0.weight"].fill_(float("nan")),
        r"NaN or infinity in 1 tensor: image_encoder\.neck\.0\.weight\.",
    ),
    "infinity": (lambda t: t["mask_decoder.iou_token.weight"].fill_(float("inf")), r"NaN or infinity in .*take an earlier checkpoint"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_model_is_refused_in_one_line_that_names_the_tensors(
    tmp_path: Path, damage: Callable[[Tensors], object], said: str
) -> None:
    tensors = small_sam.weights()
    damage(tensors)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_teacher(saved(tmp_path, tensors), profile="sam", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_base_for_a_whole_model_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, small_sam.weights())
    with pytest.raises(CheckpointError, match="a whole model; base is for LoRA deltas"):
        load_teacher(path, base=path, profile="sam")


@pytest.mark.parametrize(("name", "family", "size"), [("mobilesam", "mobile-sam", 1024), ("litemedsam", "lite-medsam", 256)])
def test_tiny_vits_are_told_apart_by_their_patch_embedding(real_data: Path, name: str, family: str, size: int) -> None:
    info = inspect_checkpoint(real_data / "upstream_outputs" / f"{name}.pth")
    assert (info.family, info.profile, info.image_size) == (family, family, size)
    assert info.details["windows"] == (7, 14, 7)
    assert info.details["heads"] == (4, 5, 10)
    assert info.details.get("tensors not used") == ("4, as in the family's own code" if name == "mobilesam" else None)


def test_a_tiny_vit_without_its_first_stage_is_refused(real_data: Path, tmp_path: Path) -> None:
    tensors = torch.load(real_data / "upstream_outputs" / "mobilesam.pth", weights_only=True)
    cut = {key: value for key, value in tensors.items() if "layers.0.blocks" not in key}
    with pytest.raises(CheckpointError, match="its sizes cannot be told"):
        load_teacher(saved(tmp_path, cut))
