"""EdgeSAM: a file with its names and shapes loads strictly, and answers what EdgeSAM's own code answers.

Expected numbers and the digest of names and shapes were computed once with EdgeSAM's own modules (``edge_sam/modeling`` and
``edge_sam/predictor.py``, chongzhou96/EdgeSAM, 2023), filled with ``weights(M1)``; no trained file was at hand.
"""

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from distill import load_teacher
from distill.errors import CheckpointError
from distill.teachers.base import PromptBatch
from distill.teachers.checkpoints import inspect_checkpoint
from distill.teachers.rep_vit import RepVit, SqueezeExcite, rep_vit_sizes
from distill.teachers.sam import SamTeacher

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]
Stages = tuple[tuple[int, str], ...]

M1: Stages = ((48, "s--"), (96, "-s--"), (192, "-s-s-s-s-s-s-s--"), (384, "-s-"))
"""Width and blocks of each stage of RepViT-M1; ``s`` squeezes and excites."""
SMALL: Stages = ((8, "s-"), (16, "s"), (24, "-s"), (40, "s-"))

DIGEST = "5bce82a5f31bb2d977c8ee3cf0e1aed61a66ae7c9a514be6c4c54c54ea380d95"
"""SHA-256 of the sorted lines ``name shape`` of EdgeSAM's own network."""
EMBEDDING = [1.0216, 0.6917, 0.6923, -0.7229, 0.2877, 0.8507]
BOX_LOGITS, BOX_IOU = [-1.0314, -0.4283, -1.1093, -0.5975], [-0.3242]
POINT_LOGITS = [-0.2524, -0.7667, -0.5363, -0.3154, -0.4356, 0.2227, -0.3071, -0.9121, -0.3601, -0.1169, -0.3153, -1.1232]
POINT_IOU = [-0.1739, 0.2216, 0.5784]
TOLERANCE = 1e-3
"""EdgeSAM's own network in single and in double precision differ by a tenth of this."""


def conv_norm(at: str, outputs: int, inputs: int, kernel: int = 1) -> Shapes:
    bn = {f"{at}.bn.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {f"{at}.c.weight": (outputs, inputs, kernel, kernel), f"{at}.bn.num_batches_tracked": ()} | bn


def squeeze(at: str, width: int) -> Shapes:
    inner = max(8, (width // 4 + 4) // 8 * 8)
    return {
        f"{at}.fc1.weight": (inner, width, 1, 1),
        f"{at}.fc1.bias": (inner,),
        f"{at}.fc2.weight": (width, inner, 1, 1),
        f"{at}.fc2.bias": (width,),
    }


def block(at: str, inputs: int, width: int, *, opens: bool, squeezes: bool) -> Shapes:
    if opens:
        places = conv_norm(f"{at}.token_mixer.0", inputs, 1, 3) | conv_norm(f"{at}.token_mixer.2", width, inputs)
    else:
        places = conv_norm(f"{at}.token_mixer.0.conv", width, 1, 3) | conv_norm(f"{at}.token_mixer.0.conv1", width, 1)
    channels = conv_norm(f"{at}.channel_mixer.m.0", 2 * width, width) | conv_norm(f"{at}.channel_mixer.m.2", width, 2 * width)
    return places | channels | (squeeze(f"{at}.token_mixer.1", inputs) if squeezes else {})


def encoder_shapes(stages: Stages, out: int) -> Shapes:
    first = stages[0][0]
    shapes = conv_norm("features.0.0", first // 2, 3, 3) | conv_norm("features.0.2", first, first // 2, 3)
    blocks = [(width, letter, stage and not n) for stage, (width, letters) in enumerate(stages) for n, letter in enumerate(letters)]
    inputs = [first, *(width for width, _, _ in blocks)]
    for n, (width, letter, opens) in enumerate(blocks):
        shapes |= block(f"features.{n + 1}", inputs[n], width, opens=bool(opens), squeezes=letter == "s")
    shapes |= {"fuse_stage2.weight": (out, stages[-2][0], 1, 1), "fuse_stage3.op_list.0.weight": (out, stages[-1][0], 1, 1)}
    shapes |= {"neck.0.weight": (out, out, 1, 1), "neck.2.weight": (out, out, 3, 3)}
    shapes |= {f"neck.{n}.{name}": (out,) for n in (1, 3) for name in ("weight", "bias")}
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def decoder_shapes(dim: int) -> Shapes:
    parts = {
        "prompt_encoder": PromptEncoder(
            embed_dim=dim, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=dim // 16
        ),
        "mask_decoder": MaskDecoder(
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=8 * dim, num_heads=8),
            transformer_dim=dim,
            iou_head_hidden_dim=dim,
        ),
    }
    return {f"{part}.{name}": tuple(value.shape) for part, module in parts.items() for name, value in module.state_dict().items()}


def weights(stages: Stages = SMALL, dim: int = 64) -> Tensors:
    """Return numbers that depend on nothing but each tensor's name and shape."""
    return {name: filled(name, shape) for name, shape in (encoder_shapes(stages, dim) | decoder_shapes(dim)).items()}


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(100)
    even = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    if len(shape) > 1:
        value = (2 * even - 1) * np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 0.6 + 0.8 * even
    else:
        value = 0.7 + 0.6 * even if name.endswith("weight") else 0.2 * even - 0.1
    return torch.tensor(value, dtype=torch.float32)


def saved(folder: Path, tensors: object) -> Path:
    torch.save(tensors, folder / "edge_sam.pth")
    return folder / "edge_sam.pth"


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(7 * rows + 5 * columns) % 256, (rows * columns // 8) % 256, (3 * columns) % 256], axis=2).astype(np.uint8)


BOX = np.array([[10, 8, 61, 47]], np.float32)
POINTS, LABELS = np.array([[[30, 20], [70, 50]]], np.float32), np.array([[1, 0]])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SamTeacher:
    return load_teacher(saved(tmp_path_factory.mktemp("small"), weights()), device="cpu")


def test_names_and_shapes_are_those_of_edgesam_s_own_network_and_all_of_them_load() -> None:
    shapes = encoder_shapes(M1, 256) | decoder_shapes(256)
    lines = sorted(f"{name} {shape}" for name, shape in shapes.items())
    assert len(lines) == 821
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST
    encoder = {name.removeprefix("image_encoder."): shape for name, shape in encoder_shapes(M1, 256).items()}
    empty = {f"image_encoder.{name}": torch.empty(shape) for name, shape in encoder.items()}
    assert {name: tuple(value.shape) for name, value in RepVit(rep_vit_sizes(empty)).state_dict().items()} == encoder


def test_embedding_masks_and_predicted_iou_are_what_edgesam_s_own_code_computed(tmp_path: Path) -> None:
    """The numbers come from EdgeSAM's own ``SamPredictor`` with these weights, this picture, and 1 and 3 masks asked for."""
    teacher = load_teacher(saved(tmp_path, weights(M1, 256)), device="cpu")
    embeddings = teacher.encode([picture()])
    features = embeddings.features[0]
    assert features.shape == (256, 64, 64)
    at = [features[c, y, x].item() for c, y, x in ((0, 0, 0), (17, 3, 40), (100, 20, 21), (101, 42, 63), (200, 43, 5), (255, 63, 63))]
    assert at == pytest.approx(EMBEDDING, abs=TOLERANCE)
    index = np.zeros(1, int)
    one = teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=BOX))
    assert probe(one.low_res_logits) == pytest.approx(BOX_LOGITS, abs=TOLERANCE)
    assert one.iou[0].tolist() == pytest.approx(BOX_IOU, abs=TOLERANCE)
    three = teacher.decode(embeddings, PromptBatch(image_index=index, points_xy_px=POINTS, point_labels=LABELS), multimask=True)
    assert probe(three.low_res_logits) == pytest.approx(POINT_LOGITS, abs=TOLERANCE)
    assert three.iou[0].tolist() == pytest.approx(POINT_IOU, abs=TOLERANCE)


def probe(low_res_logits: torch.Tensor) -> list[float]:
    return [mask[y, x].item() for mask in low_res_logits[0] for y, x in ((0, 0), (40, 90), (100, 200), (255, 128))]


def test_every_size_is_read_off_the_tensors_and_reported(tmp_path: Path) -> None:
    info = inspect_checkpoint(saved(tmp_path, {"model": weights(), "optimizer": {"lr": 1}}))
    assert (info.family, info.profile, info.image_size) == ("edge-sam", "edge-sam", 1024)
    wanted = {"widths": (8, 16, 24, 40), "depths": (2, 1, 2, 2), "decoder width": 64, "mask tokens": 4}
    assert wanted.items() <= info.details.items()
    assert info.details["trained prompts"] == "box, point"
    blocks = rep_vit_sizes(weights()).blocks
    assert [each.squeeze for each in blocks] == [8, 0, 8, 0, 8, 8, 0]
    assert [n for n, each in enumerate(blocks) if each.halves] == [2, 3, 5]


def test_what_was_saved_is_what_was_loaded_and_its_answers_are_sam_s_predictor_s(small: SamTeacher) -> None:
    assert small.profile.name == "edge-sam"
    loaded = small.sam.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights().items())
    predictor = SamPredictor(small.sam)
    predictor.set_image(picture())
    for multimask, count in ((None, 1), (False, 1), (True, 3)):
        answer = small.predict(picture(), boxes=BOX, multimask=multimask)
        expected, iou, _ = predictor.predict(box=BOX[0], multimask_output=bool(multimask), return_logits=True)
        assert answer.logits.shape == (1, count, 60, 90)
        assert np.abs(answer.logits[0] - expected).max() <= 1e-4
        assert np.abs(answer.iou[0] - iou).max() <= 1e-4


def test_a_picture_is_encoded_alike_alone_and_among_others(small: SamTeacher) -> None:
    mine, others = picture(), [picture(31, 200), picture(90, 44)]
    alone = small.encode([mine]).features[0]
    together = small.encode([others[0], mine, others[1], mine]).features
    assert alone.std() > 0.1
    assert (together[1] - alone).abs().max() <= 1e-5
    assert (together[3] - alone).abs().max() <= 1e-5
    assert (together[0] - alone).abs().max() > 0.1


def test_the_weights_of_channels_are_the_same_to_the_last_bit_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    mixer, pictures = SqueezeExcite(24, 8), 20 * torch.randn(8, 24, 1, 1).expand(8, 24, 4, 4)
    together = mixer(pictures)
    assert all(torch.equal(together[n], mixer(pictures[n : n + 1])[0]) for n in range(8))


def test_the_encoder_computes_in_single_precision_also_where_bfloat16_is_asked_for(small: SamTeacher, tmp_path: Path) -> None:
    fast = load_teacher(saved(tmp_path, weights()), device="cpu", precision="bf16")
    assert torch.equal(fast.encode([picture()]).features, small.encode([picture()]).features)


def _drop(*parts: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if any(part in name for part in parts)]


def _reshape(name: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


MIXER = "image_encoder.features.1.token_mixer"
DAMAGE: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a running variance is missing": (
        _drop("features.2.channel_mixer.m.2.bn.running_var"),
        r"1 tensor missing: image_encoder\.features\.2\.channel_mixer\.m\.2\.bn\.running_var\. .*Part of image_encoder was not saved",
    ),
    "half of a squeeze is missing": (
        _drop(f"{MIXER}.1.fc2"),
        r"2 tensors missing: image_encoder\.features\.1\.token_mixer\.1\.fc2\.bias, ",
    ),
    "the second way of the fusion is missing": (
        _drop("fuse_stage3"),
        r"1 tensor missing: image_encoder\.fuse_stage3\.op_list\.0\.weight\. ",
    ),
    "the first way of the fusion is missing": (_drop("fuse_stage2"), r"cannot be told: KeyError at 'image_encoder\.fuse_stage2\.weight'"),
    "a tensor too many": (
        lambda tensors: tensors.update({"image_encoder.features.3.alpha": torch.ones(1)}),
        r"1 tensor unexpected: image_encoder\.features\.3\.alpha.*extra modules",
    ),
    "a mis-shaped squeeze": (_reshape(f"{MIXER}.1.fc2.weight", 8, 4, 1, 1), r"fc2\.weight \(8, 4, 1, 1\) instead of \(8, 8, 1, 1\)\. "),
    "a mis-shaped 1 x 1 branch": (_reshape(f"{MIXER}.0.conv1.c.weight", 8, 1, 3, 3), r"\(8, 1, 3, 3\) instead of \(8, 1, 1, 1\)"),
    "a block is missing": (_drop("features.4."), r"cannot be told: KeyError at 'image_encoder\.features\.4\..*Is the file whole\?"),
    "a block of another width": (
        _reshape("image_encoder.features.7.token_mixer.0.conv.c.weight", 48, 1, 3, 3),
        r"ValueError at image_encoder\.features\.7, which takes 48 channels and is given 40",
    ),
    "the last stage is missing": (_drop("features.6.", "features.7."), r"where 2 blocks halve the resolution instead of 3"),
    "not a number": (
        lambda tensors: tensors["image_encoder.fuse_stage2.weight"].fill_(float("nan")),
        r"NaN or infinity in 1 tensor: image_encoder\.fuse_stage2",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_file_that_does_not_fit_is_refused_in_one_line_that_names_the_tensors(
    tmp_path: Path, damage: Callable[[Tensors], object], said: str
) -> None:
    tensors = weights()
    damage(tensors)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_teacher(saved(tmp_path, tensors), device="cpu")
    assert "\n" not in str(caught.value)


def test_its_tensors_leave_no_choice_of_protocol(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"family edge-sam \(EdgeSAM \(RepViT\)\) and cannot be used with profile 'sam'"):
        load_teacher(saved(tmp_path, weights()), profile="sam")
