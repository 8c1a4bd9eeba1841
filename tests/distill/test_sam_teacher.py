"""The teacher's answers are segment-anything's own, however they are batched."""

import contextlib
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from distill import load_teacher
from distill.errors import PromptError, TeacherError
from distill.teachers import sam as sam_module
from distill.teachers.base import PromptBatch, Teacher
from distill.teachers.sam import SamTeacher

TOLERANCE = 1e-4


def pictures(rng: np.random.Generator) -> list[np.ndarray]:
    """Three pictures of different, unequal-sided sizes."""
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((37, 53), (64, 41), (90, 90))]


def test_the_teacher_fulfils_the_protocol(teacher: SamTeacher) -> None:
    assert isinstance(teacher, Teacher)


def test_ragged_boxes_of_many_pictures_in_one_call_equal_sam_predictor(teacher: SamTeacher) -> None:
    rng = np.random.default_rng(1)
    images = pictures(rng)
    index = np.array([2, 0, 0, 1, 2, 2])
    boxes = np.array([[5, 6, 30 + n, 33 - n] for n in range(6)], np.float32)
    embeddings = teacher.encode(images)
    decoded = teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=boxes))
    predictor = SamPredictor(teacher.sam)
    for row, (picture, box) in enumerate(zip(index, boxes, strict=True)):
        predictor.set_image(images[picture])
        expected, iou, _ = predictor.predict(box=box, multimask_output=False, return_logits=True)
        full = teacher.upsample(decoded.low_res_logits[row : row + 1], images[picture].shape[:2], embeddings.input_sizes_px[picture])
        assert np.abs(full[0].numpy() - expected).max() < TOLERANCE
        assert np.abs(decoded.iou[row].numpy() - iou).max() < TOLERANCE


@pytest.mark.parametrize("multimask", [False, True], ids=["one mask", "three masks"])
def test_points_with_a_mask_prompt_equal_sam_predictor(teacher: SamTeacher, *, multimask: bool) -> None:
    rng = np.random.default_rng(2)
    image = pictures(rng)[0]
    points, labels = np.array([[12.0, 20.0], [30.0, 8.0]]), np.array([1, 0])
    mask = rng.normal(size=(1, teacher.mask_size_px, teacher.mask_size_px)).astype(np.float32)
    predictor = SamPredictor(teacher.sam)
    predictor.set_image(image)
    expected, iou, _ = predictor.predict(points, labels, mask_input=mask, multimask_output=multimask, return_logits=True)
    ours = teacher.predict(image, points=points, point_labels=labels, mask_input=mask, multimask=multimask)
    assert np.abs(ours.logits[0] - expected).max() < TOLERANCE
    assert np.abs(ours.iou[0] - iou).max() < TOLERANCE


def test_a_prompt_marked_as_without_mask_ignores_the_mask_it_carries(teacher: SamTeacher) -> None:
    image = pictures(np.random.default_rng(3))[1]
    embeddings = teacher.encode([image])
    box = np.array([[4, 4, 30, 40]], np.float32)
    mask = np.full((1, teacher.mask_size_px, teacher.mask_size_px), 6.0, np.float32)
    index = np.zeros(1, int)
    plain = teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=box))
    ignored = teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=box, mask_logits=mask, has_mask=np.array([False])))
    used = teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=box, mask_logits=mask, has_mask=np.array([True])))
    assert torch.allclose(plain.low_res_logits, ignored.low_res_logits, atol=1e-6)
    assert not torch.allclose(plain.low_res_logits, used.low_res_logits, atol=1e-3)


def test_the_order_of_prompts_does_not_change_any_answer(teacher: SamTeacher) -> None:
    images = pictures(np.random.default_rng(4))
    embeddings = teacher.encode(images)
    index = np.array([0, 1, 2, 0])
    boxes = np.array([[2, 2, 20, 30], [5, 5, 30, 30], [0, 0, 80, 80], [10, 10, 15, 16]], np.float32)
    first = teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=boxes)).low_res_logits
    for order in itertools.islice(itertools.permutations(range(4)), 1, 6):
        chosen = list(order)
        again = teacher.decode(embeddings, PromptBatch(image_index=index[chosen], boxes_xyxy_px=boxes[chosen])).low_res_logits
        assert torch.allclose(again, first[chosen], atol=1e-5)


def test_a_box_of_no_area_is_refused_and_named(teacher: SamTeacher) -> None:
    image = pictures(np.random.default_rng(5))[0]
    with pytest.raises(PromptError, match=r"prompt 1: box \[9.0, 3.0, 9.0, 8.0\] encloses nothing"):
        teacher.predict(image, boxes=np.array([[1, 1, 5, 5], [9, 3, 9, 8]]))


def test_a_picture_that_is_not_8_bit_rgb_is_refused_with_the_cure(teacher: SamTeacher) -> None:
    with pytest.raises(PromptError, match="Window and convert it first"):
        teacher.predict(np.zeros((20, 30), np.float32), boxes=np.array([[1, 1, 5, 5]]))


def test_no_prompt_at_all_is_refused(teacher: SamTeacher) -> None:
    with pytest.raises(PromptError, match="needs boxes, points or masks"):
        teacher.predict(pictures(np.random.default_rng(6))[0])


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_a_sam_vit_checkpoint_reproduces_the_answers_of_its_own_code(real_data: Path, kind: str) -> None:
    folder = real_data / "upstream_outputs"
    expected = np.load(folder / "sam_vit.npz")
    sam = load_teacher(folder / "sam_vit.pth", profile="sam", device="cpu")
    if kind == "point":
        answer = sam.predict(expected["image"], points=expected["points"], point_labels=expected["labels"], multimask=True)
    else:
        mask = expected["mask_input"] if kind == "mask" else None
        answer = sam.predict(expected["image"], boxes=expected["box"][None], mask_input=mask)
    assert np.abs(answer.logits[0] - expected[f"{kind}_logits"]).max() < TOLERANCE
    assert np.abs(answer.iou[0] - expected[f"{kind}_iou"]).max() < TOLERANCE


def test_running_out_of_memory_halves_the_batch_and_changes_no_answer(teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(np.random.default_rng(6))
    prompts = PromptBatch(image_index=np.arange(24) % 3, boxes_xyxy_px=np.tile(np.array([3, 4, 30, 33], np.float32), (24, 1)))
    teacher.pictures_per_pass = None
    whole = teacher.encode(images)
    expected = teacher.decode(whole, prompts)
    forward, refused = teacher.sam.image_encoder.forward, []

    def narrow(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            refused.append(len(x))
            raise torch.OutOfMemoryError
        answer: torch.Tensor = forward(x)
        return answer

    monkeypatch.setattr(teacher.sam.image_encoder, "forward", narrow)
    again = teacher.encode(images)
    assert refused == [3, 3]
    assert teacher.encode_batch.size == 2
    assert torch.allclose(again.features, whole.features, atol=1e-5)
    assert torch.allclose(teacher.decode(again, prompts).low_res_logits, expected.low_res_logits, atol=1e-4)


def test_drawing_only_what_promises_something_gives_the_same_masks(teacher: SamTeacher) -> None:
    images = pictures(np.random.default_rng(7))
    embeddings = teacher.encode(images)
    rng = np.random.default_rng(8)
    prompts = PromptBatch(
        image_index=np.arange(30) % 3, points_xy_px=rng.uniform(2, 35, (30, 1, 2)).astype(np.float32), point_labels=np.ones((30, 1))
    )
    decoded = teacher.decode(embeddings, prompts, multimask=True)
    least = float(decoded.iou.median())
    found = teacher.decode_promising(embeddings, prompts, least)
    wanted = (decoded.iou > least).nonzero()
    assert torch.equal(torch.stack([found.prompt, found.token], dim=1), wanted)
    assert torch.allclose(found.low_res_logits[:, 0], decoded.low_res_logits[wanted[:, 0], wanted[:, 1]], atol=1e-5)
    assert torch.allclose(found.iou, decoded.iou[wanted[:, 0], wanted[:, 1]], atol=1e-6)


def test_boxes_cannot_be_drawn_selectively(teacher: SamTeacher) -> None:
    embeddings = teacher.encode(pictures(np.random.default_rng(9))[:1])
    with pytest.raises(PromptError, match="only prompts by points"):
        teacher.decode_promising(embeddings, PromptBatch(image_index=np.zeros(1, int), boxes_xyxy_px=np.array([[1, 1, 9, 9]])), 0.5)


@pytest.mark.parametrize("multimask", [None, False, True])
def test_no_prompts_have_no_answers_of_the_usual_shape(teacher: SamTeacher, *, multimask: bool | None) -> None:
    embeddings = teacher.encode([np.zeros((30, 40, 3), np.uint8)])
    nothing = PromptBatch(image_index=np.zeros(0, np.int64), boxes_xyxy_px=np.zeros((0, 4), np.float32))
    decoded = teacher.decode(embeddings, nothing, multimask=multimask)
    masks, side = 3 if multimask else 1, teacher.mask_size_px
    assert (tuple(decoded.low_res_logits.shape), tuple(decoded.iou.shape)) == ((0, masks, side, side), (0, masks))
    assert teacher.upsample(decoded.low_res_logits, (30, 40), embeddings.input_sizes_px[0]).shape == (0, masks, 30, 40)


def test_no_points_promise_nothing(teacher: SamTeacher) -> None:
    embeddings = teacher.encode([np.zeros((30, 40, 3), np.uint8)])
    nothing = PromptBatch(image_index=np.zeros(0, np.int64), points_xy_px=np.zeros((0, 1, 2)), point_labels=np.zeros((0, 1)))
    found = teacher.decode_promising(embeddings, nothing, 0.5)
    assert (found.prompt.shape, found.token.shape, found.iou.shape) == ((0,), (0,), (0,))
    assert found.low_res_logits.shape == (0, 1, teacher.mask_size_px, teacher.mask_size_px)


def test_no_pictures_are_refused(teacher: SamTeacher) -> None:
    with pytest.raises(PromptError, match="no pictures"):
        teacher.encode([])


def test_a_picture_s_number_may_have_any_integer_type(teacher: SamTeacher) -> None:
    rng = np.random.default_rng(0)
    embeddings = teacher.encode([rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(2)])
    box = np.array([[3, 4, 20, 25], [5, 6, 30, 28]], np.float32)
    points = {"points_xy_px": box.reshape(2, 2, 2), "point_labels": np.ones((2, 2), np.float32)}
    answers, drawn = [], []
    for kind in (np.int64, np.uint8):
        index = np.array([1, 0], kind)
        answers.append(teacher.decode(embeddings, PromptBatch(image_index=index, boxes_xyxy_px=box)).low_res_logits)
        drawn.append(teacher.decode_promising(embeddings, PromptBatch(image_index=index, **points), -9.0).low_res_logits)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(drawn[0], drawn[1])


def test_squares_are_made_for_one_batch_at_a_time(teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    own, encoder = sam_module.to_square, teacher.sam.image_encoder
    monkeypatch.setattr(sam_module, "to_square", lambda *args, **kw: events.append("square") or own(*args, **kw))
    hook = encoder.register_forward_hook(lambda *_: events.append("encoded"))
    teacher.encode_batch.size = 2
    embeddings = teacher.encode([np.zeros((30, 40 + n, 3), np.uint8) for n in range(3)])
    hook.remove()
    assert events == ["square", "square", "encoded", "square", "encoded"]
    assert [size[1] for size in embeddings.sizes_px] == [40, 41, 42]
    assert len(embeddings.input_sizes_px) == 3


def test_bfloat16_that_a_gpu_only_emulates_is_not_taken(teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    profile = dataclasses.replace(teacher.profile, name="sam")
    assert sam_module.resolve_precision("auto", torch.device("cuda"), profile) == "fp32"


def test_a_precision_nobody_knows_is_refused_instead_of_taken_for_another(teacher: SamTeacher) -> None:
    with pytest.raises(TeacherError, match="'fp16' is not known; use one of auto, fp32, bf16, int8"):
        sam_module.resolve_precision("fp16", torch.device("cpu"), teacher.profile)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        pytest.param({"boxes": np.zeros((1, 5))}, r"boxes must be \(N, 4\), but is \(1, 5\)", id="five columns"),
        pytest.param({"points": np.array([9.0, 9.0])}, r"points must be \(N, K, 2\)", id="a bare point"),
        pytest.param(
            {"points": np.ones((1, 1, 2)), "point_labels": [1, 0]},
            r"one number per point, \(1, 1\), but are \(1, 2\)",
            id="a label too many",
        ),
        pytest.param(
            {"mask_input": np.zeros((64, 64), np.float32)}, r"mask_input must be \(N, m, m\), but is \(64, 64\)", id="a bare mask"
        ),
    ],
)
def test_prompts_of_another_shape_are_refused_in_words(teacher: SamTeacher, prompts: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        teacher.predict(np.zeros((40, 40, 3), np.uint8), **prompts)
