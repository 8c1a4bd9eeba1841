"""Slices are asked in constant shapes, so that an answer does not depend on its neighbours in the batch; then from two more sides."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import PromptError
from distill.planes import ask_other_planes, near_isotropic, plane_agreement
from distill.prompts.hints import SliceHint
from distill.prompts.schedule import schedule_slices
from distill.teachers import folded_cpu, sam
from distill.teachers.base import CallSizes, Decoded, Embeddings, Prediction, PromptBatch, TeacherProfile
from distill.teachers.sam import SamTeacher
from distill.wavefront import AskSettings, CaseWork, run_wavefront

ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]  # tests are no package


class BrightTeacher:
    """Says yes where the picture is bright and inside the box. Its frame is the picture itself, at most 64 x 64."""

    profile = TeacherProfile(name="bright", image_size=64)
    fingerprint = "bright"
    mask_size_px = 64

    def encode(self, images: list[np.ndarray]) -> Embeddings:
        squares = torch.zeros(len(images), 1, 64, 64)
        for n, image in enumerate(images):
            squares[n, 0, : image.shape[0], : image.shape[1]] = torch.as_tensor(image[..., 0].astype(np.float32))
        sizes = tuple((i.shape[0], i.shape[1]) for i in images)
        return Embeddings(features=squares, sizes_px=sizes, input_sizes_px=sizes)

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool = False) -> Decoded:
        logits = torch.full((len(prompts), 3 if multimask else 1, 64, 64), -9.0)
        boxes = prompts.boxes_xyxy_px if prompts.boxes_xyxy_px is not None else np.tile([0, 0, 64, 64], (len(prompts), 1))
        for n, (index, box) in enumerate(zip(prompts.image_index, boxes, strict=True)):
            x0, y0, x1, y1 = (round(float(v)) for v in box)
            logits[n, :, y0:y1, x0:x1] = torch.where(embeddings.features[index, 0, y0:y1, x0:x1] > 128, 9.0, -9.0)
        return Decoded(low_res_logits=logits, iou=torch.ones(len(prompts), 1))

    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        assert size_px == input_size_px
        return logits[..., : size_px[0], : size_px[1]]

    def mask_prompt(self, mask: np.ndarray, input_size_px: tuple[int, int]) -> np.ndarray:
        assert mask.shape == input_size_px
        return np.zeros((64, 64), np.float32)

    def predict(self, image: np.ndarray, boxes: np.ndarray | None = None, **_: object) -> Prediction:
        raise AssertionError


def test_a_ball_prompted_on_every_fourth_slice_is_found_between_and_not_beyond() -> None:
    work, ball = ball_case("ball", 5, 9, 13)
    run_wavefront(BrightTeacher(), [work], AskSettings(jitter=0.0))
    found = work.classes[1].probability > 0.5
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.95
    assert work.classes[1].absent
    assert not found[sorted(work.classes[1].absent)].any()


def test_every_member_agrees_about_a_clear_ball_without_jitter() -> None:
    work, _ = ball_case("ball", 6, 10, 14)
    run_wavefront(BrightTeacher(), [work], AskSettings(jitter=0.0))
    assert work.classes[1].summaries[10].pairwise_dice == 1.0


def test_jitter_shows_as_doubt_at_the_edge() -> None:
    work, _ = ball_case("ball", 6, 10, 14)
    run_wavefront(BrightTeacher(), [work], AskSettings(jitter=0.1))
    assert work.classes[1].summaries[10].pairwise_dice < 1.0
    assert ((work.classes[1].probability > 0.05) & (work.classes[1].probability < 0.95)).any()


def test_a_prompt_by_points_alone_is_turned_into_a_box_first() -> None:
    work, ball = ball_case("ball", 10)
    hint = SliceHint(points=np.array([[15.0, 12.0]], np.float32), point_labels=np.ones(1, np.float32))
    work.classes[1].plans = schedule_slices({10: hint}, 20, reach=0)
    run_wavefront(BrightTeacher(), [work], AskSettings(jitter=0.0))
    found = work.classes[1].probability[10] > 0.5
    assert (found == ball[10]).mean() > 0.98


class BoxesOnly(BrightTeacher):
    """Trained with boxes alone, as MedSAM is."""

    profile = TeacherProfile(name="boxes-only", image_size=64, prompts=("box",))

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        assert prompts.points_xy_px is None
        assert prompts.mask_logits is None
        return super().decode(embeddings, prompts, multimask=bool(multimask))


def test_a_teacher_trained_with_boxes_alone_is_asked_with_boxes_alone() -> None:
    work, ball = ball_case("ball", 5, 9, 13)
    plans = work.classes[1].plans
    pointed = SliceHint(box=plans[0].hint.box, points=np.array([[15.0, 12.0]], np.float32), point_labels=np.ones(1, np.float32))
    work.classes[1].plans = [replace(plans[0], hint=pointed), *plans[1:]]
    run_wavefront(BoxesOnly(), [work], AskSettings(jitter=0.0))
    found = work.classes[1].probability > 0.5
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.95


def test_points_alone_are_refused_for_a_teacher_trained_with_boxes_alone() -> None:
    work, _ = ball_case("ball", 10)
    hint = SliceHint(points=np.array([[15.0, 12.0]], np.float32), point_labels=np.ones(1, np.float32))
    work.classes[1].plans = schedule_slices({10: hint}, 20, reach=0)
    with pytest.raises(PromptError, match="case ball, slice 10: there are points and no box, but boxes-only"):
        run_wavefront(BoxesOnly(), [work], AskSettings(jitter=0.0))


def test_the_same_case_gets_the_same_bytes_alone_and_among_others(teacher: SamTeacher) -> None:
    alone, _ = ball_case("middle", 6, 10, 14)
    run_wavefront(teacher, [alone], AskSettings())
    among = [ball_case("aaa", 7, 11)[0], ball_case("middle", 6, 10, 14)[0], ball_case("zzz", 5, 9, 12, radius=7)[0]]
    run_wavefront(teacher, among, AskSettings())
    assert np.array_equal(alone.classes[1].probability, among[1].classes[1].probability)


def two_classes(name: str, *prompted: int) -> CaseWork:
    """The ball as class 1, and a smaller one at its place as class 2."""
    outer, _ = ball_case(name, *prompted)
    inner, _ = ball_case(name, *prompted, radius=5.0)
    return replace(outer, classes={1: outer.classes[1], 2: inner.classes[1]})


class Stranger(SamTeacher):
    """A teacher that does not say that its answers are independent of their company."""

    @property
    def call_sizes(self) -> CallSizes:
        return CallSizes()


@pytest.mark.parametrize("kind", [SamTeacher, Stranger], ids=["ours", "a stranger"])
def test_a_case_with_two_classes_gets_the_same_bytes_alone_and_among_others(
    kind: type[SamTeacher], teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = (folded_cpu, "think") if kind is SamTeacher else (sam, "decode_prompts")
    own = getattr(where, name)

    def by_shape(first: object, second: object, third: torch.Tensor, *others: object, **hints: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether the bits follow the shape depends on the processor; here they always do."""
        one, other = own(first, second, third, *others, **hints)
        return one + 1e-3 * len(third), other

    monkeypatch.setattr(where, name, by_shape)
    monkeypatch.setattr(teacher, "__class__", kind)
    alone = two_classes("middle", 7, 10, 13)
    run_wavefront(teacher, [alone], AskSettings())
    among = [two_classes("aaa", 7, 11), two_classes("middle", 7, 10, 13), two_classes("zzz", 6, 9, 12)]
    run_wavefront(teacher, among, AskSettings())
    for key, target in alone.classes.items():
        assert np.array_equal(target.probability, among[1].classes[key].probability)


def calls_of(kind: type[SamTeacher], teacher: SamTeacher, boxes: int, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return how many prompts the decoder's calls had, whatever was asked."""
    calls: list[int] = []
    decode = sam.decode_prompts

    def counted(model: object, embeddings: object, index: torch.Tensor, **hints: object) -> object:
        calls.append(len(index))
        return decode(model, embeddings, index, **hints)  # type: ignore[arg-type]

    monkeypatch.setattr(sam, "decode_prompts", counted)
    monkeypatch.setattr(teacher, "__class__", kind)
    for works in ([ball_case("one", 10)[0]], [two_classes("two", 7, 10, 13)], [two_classes(name, 6, 10, 14) for name in "abc"]):
        run_wavefront(teacher, works, AskSettings(boxes=boxes))
    return set(calls)


@pytest.mark.parametrize(("boxes", "prompts"), [(1, 8), (5, 40), (8, 64), (10, 60), (64, 64)])
def test_every_decoder_call_of_a_stranger_has_as_many_prompts_whatever_is_asked(
    boxes: int, prompts: int, teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls_of(Stranger, teacher, boxes, monkeypatch) == {prompts}


@pytest.mark.parametrize(("boxes", "prompts"), [(1, {1, 2, 4, 6, 12, 16}), (16, {16, 32, 64})])
def test_our_own_teacher_is_asked_nothing_in_vain(
    boxes: int, prompts: set[int], teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls_of(SamTeacher, teacher, boxes, monkeypatch) == prompts


def test_a_plane_that_disagrees_with_both_others_has_the_lowest_agreement() -> None:
    right = np.zeros((4, 6, 8), np.float32)
    right[1:3, 1:5, 2:6] = 0.9
    wrong = np.roll(right, 4, axis=2)
    agreement = plane_agreement([right, right, wrong])
    assert agreement[0] == agreement[1] == pytest.approx(0.5)
    assert agreement[2] == 0.0


def test_planes_that_are_all_empty_agree() -> None:
    assert plane_agreement([np.zeros((2, 3, 4))] * 3).tolist() == [1, 1, 1]


def test_a_ball_looks_the_same_from_three_sides() -> None:
    work, ball = ball_case("ball", 5, 9, 13)
    run_wavefront(BrightTeacher(), [work], AskSettings(jitter=0.0))
    ask_other_planes(BrightTeacher(), [work], AskSettings(jitter=0.0))
    found = work.classes[1].probability > 0.5
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.95
    assert work.classes[1].plane_agreement == pytest.approx(1.0, abs=0.06)


def test_thick_slices_are_not_looked_at_from_the_side() -> None:
    work, _ = ball_case("thick", 5, 9, spacing_mm=(5.0, 1.0, 1.0))
    assert not near_isotropic(work)
    run_wavefront(BrightTeacher(), [work], AskSettings(jitter=0.0))
    before = work.classes[1].probability.copy()
    ask_other_planes(BrightTeacher(), [work], AskSettings(jitter=0.0))
    assert np.array_equal(work.classes[1].probability, before)
    assert work.classes[1].plane_agreement is None
