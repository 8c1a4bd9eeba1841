"""Several pieces of a class on one slice are asked one by one, and what is said of them is united."""

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from distill.answers import Answer, united
from distill.casework import CaseWork, ClassWork
from distill.engine import label_archive
from distill.errors import PromptError
from distill.intensity import Window
from distill.label_store import measure
from distill.planes import ask_other_planes
from distill.prompts.presets import ThresholdOptions
from distill.prompts.schedule import schedule_slices
from distill.prompts.slice_hint import SliceHint
from distill.propose import PromptPlan, propose_prompts
from distill.quality import dice
from distill.questions import AskSettings
from distill.round_trip import check_round_trips
from distill.teachers.base import Decoded, Embeddings, PromptBatch
from distill.teachers.sam import SamTeacher
from distill.uncertainty import EnsembleSummary, pairwise_dice, summarise
from distill.wavefront import run_wavefront
from storage import Archive, CaseRecord, ClassInfo, Geometry, Prompt
from storage.rle import decode, encode

small = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))  # tests are no package
BrightTeacher = runpy.run_path(str(Path(__file__).with_name("test_wavefront.py")))["BrightTeacher"]
IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


class OneObjectTeacher(BrightTeacher):  # type: ignore[misc, valid-type]
    """Draws the largest bright thing in a box, as teachers do that were trained with a box around one object."""

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        found = super().decode(embeddings, prompts, multimask=bool(multimask))
        for each in found.low_res_logits:
            parts, count = ndimage.label(each[0].numpy() > 0)
            if count > 1:
                each[:, torch.from_numpy(parts != 1 + np.bincount(parts.ravel())[1:].argmax())] = -9.0
        return found  # type: ignore[no-any-return]


def case_of(volume: np.ndarray, hints: dict[int, list[SliceHint]], *, name: str = "case", reach: int | None = None) -> CaseWork:
    """Return a case ``(z, y, x)`` uint8 whose class 1 is prompted with these pieces."""
    shape = (1, volume.shape[0], volume.shape[1], volume.shape[2])
    record = CaseRecord(
        id=name, patient=name, shape_czyx=shape, dtype="uint8", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
    )
    target = ClassWork(plans=schedule_slices(hints, shape[1], reach=reach), probability=np.zeros(shape[1:], np.float32))
    return CaseWork(record=record, volume_czyx=volume[None], window=Window(low=0, high=255, rule="test"), classes={1: target})


def hint_at(x: int, y: int, width: int, height: int, margin: int = 0) -> SliceHint:
    return SliceHint(box=np.array([x - margin, y - margin, x + width + margin, y + height + margin], np.float32))


def squares(*corners: tuple[int, int], side: int = 4, shape: tuple[int, int] = (60, 64)) -> np.ndarray:
    picture = np.zeros((1, *shape), np.uint8)
    for x, y in corners:
        picture[0, y : y + side, x : x + side] = 200
    return picture


GRID = [(x, y) for y in range(2, 54, 8) for x in range(2, 58, 8)]


def test_each_of_many_pieces_is_found_where_one_box_around_them_finds_one() -> None:
    picture = squares(*GRID)
    alone = case_of(picture, {0: [hint_at(x, y, 4, 4, 1) for x, y in GRID]})
    around = case_of(picture, {0: [hint_at(2, 2, 52, 52, 1)]})
    run_wavefront(OneObjectTeacher(), [alone, around], AskSettings(jitter=0.0, boxes=1))
    assert dice(alone.classes[1].probability > 0.5, picture > 0) == 1.0
    assert dice(around.classes[1].probability > 0.5, picture > 0) < 0.1
    assert alone.classes[1].most_pieces == len(GRID)


def test_answers_about_many_pieces_are_held_no_larger_than_their_boxes() -> None:
    work = case_of(squares(*GRID), {0: [hint_at(x, y, 4, 4, 1) for x, y in GRID]})
    run_wavefront(OneObjectTeacher(), [work], AskSettings(boxes=2))
    held = [track.answers[0].summary.probability for track in work.classes[1].tracks.values()]
    assert len(held) == len(GRID)
    assert sum(each.size for each in held) <= len(GRID) * 10 * 10
    assert all(each.base is None or each.base.size == each.size for each in held)


def test_an_embedding_is_shared_by_all_pieces_of_a_slice() -> None:
    class Counting(OneObjectTeacher):
        encoded = 0

        def encode(self, images: list[np.ndarray]) -> Embeddings:
            self.encoded += 1
            return super().encode(images)  # type: ignore[no-any-return]

    teacher = Counting()
    run_wavefront(teacher, [case_of(squares(*GRID), {0: [hint_at(x, y, 4, 4, 1) for x, y in GRID]})], AskSettings(boxes=2, flips=False))
    assert teacher.encoded == 1


def noisy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (1, 60, 64)).astype(np.uint8)


def answered(teacher: SamTeacher, hints: list[SliceHint], ask: AskSettings, numbers: Sequence[int]) -> ClassWork:
    """Return what is said of pieces that have these numbers."""
    work = case_of(noisy(), {0: hints})
    work.classes[1].plans = [replace(plan, track=numbers[plan.track]) for plan in work.classes[1].plans]
    run_wavefront(teacher, [work], ask)
    return work.classes[1]


def test_the_union_is_what_each_piece_would_have_been_alone(teacher: SamTeacher) -> None:
    ask = AskSettings(boxes=3, jitter=0.1)
    hints = [hint_at(2, 3, 12, 10), hint_at(22, 5, 9, 14), hint_at(10, 20, 30, 12), hint_at(20, 25, 30, 20)]
    together = answered(teacher, hints, ask, range(4))
    alone = [answered(teacher, [hint], ask, [n]) for n, hint in enumerate(hints)]
    for name in ("probability", "vote"):
        assert np.array_equal(getattr(together, name), np.max([getattr(each, name) for each in alone], axis=0))
    backwards = answered(teacher, hints[::-1], ask, range(3, -1, -1))
    for name in ("probability", "vote", "mutual_information"):
        assert np.array_equal(getattr(together, name), getattr(backwards, name))
    assert together.summaries[0].pairwise_dice == pytest.approx(backwards.summaries[0].pairwise_dice)
    agreements = [each.summaries[0].pairwise_dice for each in alone]
    assert min(agreements) <= together.summaries[0].pairwise_dice <= max(agreements)


class Listening(OneObjectTeacher):
    """Keeps the boxes that it is asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[np.ndarray] = []

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        if prompts.boxes_xyxy_px is not None:
            self.boxes.append(prompts.boxes_xyxy_px)
        return super().decode(embeddings, prompts, multimask=multimask)  # type: ignore[no-any-return]


FIRST_DRAWS = [
    [0.0, 0.0, 0.0, 0.0],
    [-0.0102498, 0.0412962, 0.0065561, 0.0356256],
    [-0.0584666, 0.0273932, 0.0278528, -0.0799884],
    [0.1134754, -0.0897929, -0.0911584, 0.0391951],
]


def moved(hints: list[SliceHint]) -> list[np.ndarray]:
    """Return by how much each piece's boxes were moved by chance, ``(boxes, 4)`` in box lengths."""
    teacher, ask = Listening(), AskSettings(boxes=4, jitter=0.05, flips=False)
    run_wavefront(teacher, [case_of(squares(), {0: hints})], ask)
    boxes = np.concatenate(teacher.boxes)
    by_piece = [boxes[4 * n : 4 * n + 4] for n in range(len(hints))]
    return [(each - each[0]) / np.tile(each[0, 2:] - each[0, :2], 2) for each in by_piece]


def test_each_piece_has_box_noise_of_its_own_and_the_first_one_that_of_a_slice_with_one_piece() -> None:
    hints = [hint_at(5, 5, 10, 10), hint_at(30, 5, 10, 10), hint_at(5, 30, 10, 10)]
    first, second, third = moved(hints)
    assert np.allclose(first, moved(hints[:1])[0])
    for one, other in ((first, second), (first, third), (second, third)):
        assert (np.abs(one[1:] - other[1:]) > 1e-4).all()
    assert all(np.array_equal(a, b) for a, b in zip(moved(hints), (first, second, third), strict=True)), "the same whenever it is asked"


def test_a_class_in_one_piece_has_the_draws_that_it_always_had() -> None:
    """Finished labels hold these: other ones would be other bytes for the same fingerprint."""
    (noise,) = moved([hint_at(5, 5, 10, 10)])
    assert np.allclose(noise, FIRST_DRAWS, atol=1e-6)


def test_a_teacher_that_takes_no_points_leaves_out_one_that_is_far_from_all_boxes() -> None:
    teacher = Listening()
    teacher.profile = replace(teacher.profile, prompts=("box",))
    far = SliceHint(points=np.array([[50, 50]], np.float32), point_labels=np.ones(1, np.float32))
    work = case_of(squares((6, 6)), {0: [hint_at(5, 5, 6, 6), far]})
    run_wavefront(teacher, [work], AskSettings(boxes=1, flips=False))
    assert work.classes[1].summaries[0].area_px == 16
    with pytest.raises(PromptError, match="there are points and no box"):
        run_wavefront(teacher, [case_of(squares((6, 6)), {0: [far]})], AskSettings(boxes=1, flips=False))


def described(work: CaseWork) -> list[object]:
    """Return all that is known about class 1 of a case, down to the last bit."""
    target = work.classes[1]
    maps = [getattr(target, name).tobytes() for name in ("probability", "vote", "mutual_information")]
    scores = [(z, each.pairwise_dice, each.stability, each.area_px, each.multimask_dice) for z, each in sorted(target.summaries.items())]
    return [*maps, scores, sorted(target.iou.items()), target.absent, target.stops, target.round_trips, target.unknown]


def test_pieces_are_answered_the_same_to_the_last_bit_whatever_they_are_asked_with(
    teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = AskSettings(boxes=2, jitter=0.1, flips=False, multimask=True, propagate=True, end_agreement=0.0, stop_iou=0.0, end_area_share=0.0)

    def cases() -> list[CaseWork]:
        rng, made = np.random.default_rng(5), []
        for n in range(3):
            hints = {
                z: [hint_at(*rng.integers(2, 9, 2), *rng.integers(5, 12, 2)), hint_at(24, 20, 9, 8)][: 2 - (n + z) % 2] for z in (1, 4)
            }
            hints[1][0] = replace(hints[1][0], points=np.array([[8, 8]], np.float32), point_labels=np.ones(1, np.float32))
            made.append(case_of(rng.integers(0, 255, (7, 40, 44)).astype(np.uint8), hints, name=f"case{n}", reach=2))
        return made

    def answers(works: list[CaseWork]) -> list[list[object]]:
        run_wavefront(teacher, works, ask)
        check_round_trips(teacher, works, ask)
        return [described(work) for work in works]

    together = answers(cases())
    assert [work.classes[1].most_pieces for work in cases()] == [2, 2, 2]
    assert answers(cases()[::-1])[::-1] == together
    monkeypatch.setattr("distill.wavefront.MOST_ASKS", 2)
    assert [answers([work])[0] for work in cases()] == together


def answer(members: np.ndarray, x: int) -> Answer:
    """Members' logits ``(E, 6, 8)`` about a piece at column ``x``."""
    return Answer(summary=summarise(members), region=(slice(2, 8), slice(x, x + 8)), size_px=(12, 40), iou=0.5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**30), min_size=1, max_size=4), st.booleans(), st.randoms())
def test_the_order_of_pieces_does_not_matter(seeds: list[int], overlap: bool, chance: object) -> None:
    step = 5 if overlap else 9
    answers = [answer(4 * np.random.default_rng(seed).normal(size=(3, 6, 8)).astype(np.float32), n * step) for n, seed in enumerate(seeds)]
    one, iou = united(answers)
    chance.shuffle(answers)  # type: ignore[attr-defined]
    other, again = united(answers)
    for name in ("probability", "vote", "mutual_information"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert one.area_px == other.area_px == int((one.probability > 0.5).sum())
    assert (one.pairwise_dice, one.stability, iou) == pytest.approx((other.pairwise_dice, other.stability, again))


def test_scores_of_pieces_apart_are_nearly_those_of_the_members_united_masks() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:6, :8]
    pieces = [
        np.stack([8 * (size + rng.normal(0, 0.15) - np.hypot(y - 2.5, x - 3.5)) for _ in range(5)]).astype(np.float32)
        for size in (1.5, 2.5, 3.5)
    ]
    summary, _ = united([answer(members, 9 * n) for n, members in enumerate(pieces)])
    whole = np.full((5, 12, 40), -20.0, np.float32)
    for n, members in enumerate(pieces):
        whole[:, 2:8, 9 * n : 9 * n + 8] = members
    expected: EnsembleSummary = summarise(whole)
    assert np.abs(summary.probability - expected.probability).max() < 1e-6
    assert np.array_equal(summary.vote, expected.vote)
    assert summary.pairwise_dice == pytest.approx(pairwise_dice(whole > 0), abs=0.02)
    assert summary.stability == pytest.approx(expected.stability, abs=0.04)


def test_pieces_that_nobody_sees_agree_about_nothing() -> None:
    empty = answer(np.full((3, 6, 8), -9.0, np.float32), 0)
    summary, iou = united([empty, replace(empty, region=(slice(0, 6), slice(20, 28)))])
    assert (summary.pairwise_dice, summary.area_px, iou) == (1.0, 0, 0.5)


def two_balls() -> np.ndarray:
    """Two bright balls of different heights, apart: ``(20, 40, 60)``."""
    z, y, x = np.mgrid[:20, :40, :60]
    return (200 * (((z - 10) ** 2 + (y - 12) ** 2 + (x - 15) ** 2 <= 49) | ((z - 9) ** 2 + (y - 26) ** 2 + (x - 44) ** 2 <= 36))).astype(
        np.uint8
    )


def hints_of(volume: np.ndarray, *slices: int) -> dict[int, list[SliceHint]]:
    hints = {}
    for at in slices:
        parts, count = ndimage.label(volume[at])
        found = []
        for rows, columns in ndimage.find_objects(parts, count):
            found.append(hint_at(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start))
        hints[at] = found
    return hints


GO = AskSettings(jitter=0.0, boxes=1, flips=False, propagate=True)


@pytest.mark.parametrize("slices", [(6, 10, 13), (10,)], ids=["between prompts", "from one slice"])
def test_two_pieces_are_followed_through_the_volume_each_on_its_own(slices: tuple[int, ...]) -> None:
    volume = two_balls()
    work = case_of(volume, hints_of(volume, *slices), reach=20)
    run_wavefront(OneObjectTeacher(), [work], replace(GO, box_growth=0.1))
    check_round_trips(OneObjectTeacher(), [work], replace(GO, box_growth=0.1))
    target = work.classes[1]
    assert dice(target.probability > 0.5, volume > 0) > 0.85
    assert target.round_trips.keys() == {"down", "up"}
    assert len(target.stops) == 4
    assert len({stop.z for stop in target.stops}) > 2
    assert measure(work)["slices_asked/1"] == len(target.summaries)


def test_a_piece_that_ends_leaves_the_other_one_to_go_on() -> None:
    volume = two_balls()
    volume[12:, :, 30:] = 0
    work = case_of(volume, hints_of(volume, 10), reach=20)
    run_wavefront(OneObjectTeacher(), [work], GO)
    target = work.classes[1]
    assert 12 in target.summaries
    assert 12 in target.tracks[1].absent
    assert 12 not in target.absent
    assert not (target.probability[12:, :, 30:] > 0.5).any()
    assert (target.probability[12] > 0.5).any()


def test_the_other_sides_of_a_volume_are_asked_piece_by_piece_too() -> None:
    volume = two_balls()
    volume[:, :, 30:] = np.roll(volume[:, :, 30:], -14, axis=1)  # side by side, so that coronal slices cut both
    work = case_of(volume, hints_of(volume, 6, 8, 10, 12, 14))
    ask = AskSettings(jitter=0.0, boxes=1, flips=False)
    run_wavefront(OneObjectTeacher(), [work], ask)
    ask_other_planes(OneObjectTeacher(), [work], ask)
    target = work.classes[1]
    assert target.plane_agreement is not None
    assert target.plane_agreement > 0.9
    assert dice(target.probability > 0.5, volume > 0) > 0.85


def test_the_archive_says_how_many_pieces_were_asked_and_one_piece_leaves_no_word(tmp_path: Path) -> None:
    checkpoint = small["write_checkpoint"](tmp_path)
    archive = small["archive_of"](tmp_path, 2)
    archive.catalog.add_prompts([Prompt(case="case01", class_id=1, kind="box", slice=5, box_xyxy_px=(20, 14, 25, 19))])
    assert label_archive(archive, small["plan_for"](checkpoint)).done == 2
    one, two = (archive[case].labels("teacher/r1").history.parameters for case in ("case00", "case01"))
    assert two.pop("pieces/1") == 2
    assert one.keys() == two.keys()


NUCLEUS = ClassInfo(id=1, name="nucleus")


def joined_prompts(prompts: list[Prompt]) -> list[Prompt]:
    """Return what a box around all pieces, all points and all masks together asks."""
    boxes = np.array([prompt.box_xyxy_px for prompt in prompts if prompt.box_xyxy_px is not None])
    points = tuple(point for prompt in prompts for point in prompt.points_xy_px)
    masks = [decode(prompt.mask_rle, prompt.mask_size_yx) for prompt in prompts if prompt.mask_size_yx is not None]
    whole = np.any(masks, axis=0)
    around = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    common = {"case": prompts[0].case, "class_id": 1, "slice": 0}
    return [
        Prompt(**common, kind="box", box_xyxy_px=around),
        *(Prompt(**common, kind="point", points_xy_px=(point,)) for point in points),
        Prompt(**common, kind="mask", mask_rle=encode(whole), mask_size_yx=(whole.shape[0], whole.shape[1])),
    ]


def test_nuclei_asked_one_by_one_are_drawn_better_than_with_one_box_around_them(real_data: Path, tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    paths = [path for path in sorted((real_data / "nuclei" / "images").glob("*.png")) if np.median(cv2.imread(str(path))) <= 127][:4]
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        record = CaseRecord(
            id=path.stem,
            patient=path.stem,
            shape_czyx=(1, 1, *picture.shape),
            dtype="uint8",
            modality="other",
            geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY, spacing_known=False),
        )
        archive.add_case(record, picture[None, None])
    rules = ThresholdOptions.model_validate({"classes": {"nucleus": {"preset": "bright-objects"}}})
    ask = AskSettings(boxes=1, flips=False, planes="axial")
    plan = small["plan_for"]("bundled", classes=(NUCLEUS,), sources=("threshold",), ask=ask, label_set="teacher/apart")
    propose_prompts(archive, PromptPlan(sources=("threshold",), options={"threshold": rules}, label=plan))
    for path in paths:
        archive.catalog.add_prompts(joined_prompts(list(archive.catalog.prompts(path.stem))))
    label_archive(archive, plan)
    label_archive(archive, replace(plan, sources=("weak",), label_set="teacher/joined"))
    scores: dict[str, list[float]] = {"teacher/apart": [], "teacher/joined": []}
    for path in paths:
        gold = cv2.imread(str(real_data / "nuclei" / "gold" / path.name), cv2.IMREAD_UNCHANGED) > 0
        for name, found in scores.items():
            found.append(dice(archive[path.stem].labels(name).read()[0] == 1, gold))
    apart, joined = (float(np.mean(each)) for each in scores.values())
    assert apart > joined + 0.05
    assert apart > 0.75
