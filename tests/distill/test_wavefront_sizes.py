"""A teacher that takes more at once is asked more at once, and less when memory runs out; no answer is lost, doubled or different."""

import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import members, wavefront
from distill.casework import CaseWork
from distill.embedding_cache import CachedTeacher
from distill.embedding_store import EmbeddingCache, EmbeddingCachePlan
from distill.teachers.base import CallSizes, Decoded, Embeddings, PromptBatch, TeacherProfile
from distill.teachers.batching import OutOfMemoryError
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.sam import SamTeacher
from distill.teachers.transfer import Transfer
from distill.wavefront import AskSettings, run_wavefront

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_streams.py"))))  # tests are no package
ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]
SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)
SETTINGS = AskSettings(boxes=2)
TOLERANCE = 1e-4
"""Of probabilities: batches of other sizes round differently."""


class LikeAGpu(SamTeacher):
    """Says what a teacher on a GPU says of its sizes, and counts its calls."""

    def __init__(self, pictures: int, prompts: int) -> None:
        torch.manual_seed(0)
        profile = TeacherProfile(name="samdistill-conv", image_size=64)
        super().__init__(build_conv_sam(SMALL), profile, "x", encode_chunk=pictures, decode_chunk=prompts)
        self.pictures_per_pass = None
        self.encoded: list[int] = []
        self.decoded: list[int] = []

    @property
    def call_sizes(self) -> CallSizes:
        return CallSizes(pictures=self.encode_batch.size, prompts=self.decode_batch.size, padding="power")

    def ask_less(self) -> bool:
        return any([self.encode_batch.halve(), self.decode_batch.halve()])

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        self.encoded.append(len(images))
        return super().encode(images)

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        self.decoded.append(len(prompts))
        return super().decode(embeddings, prompts, multimask=multimask)


def balls() -> list[CaseWork]:
    """Three cases of which 18 slices are prompted and the others wait for them."""
    return [ball_case(name, *range(5, 16, 2), radius=radius)[0] for name, radius in (("a", 6.0), ("b", 7.0), ("c", 6.5))]


def answered(teacher: object, **options: object) -> list[CaseWork]:
    works = balls()
    run_wavefront(teacher, works, SETTINGS, **options)  # type: ignore[arg-type]
    return works


def assert_alike(found: list[CaseWork], expected: list[CaseWork]) -> None:
    for one, other in zip(found, expected, strict=True):
        mine, theirs = one.classes[1], other.classes[1]
        assert mine.summaries.keys() == theirs.summaries.keys()
        assert mine.absent == theirs.absent
        assert np.abs(mine.probability - theirs.probability).max() < TOLERANCE
        for z, summary in theirs.summaries.items():
            assert mine.summaries[z].pairwise_dice == pytest.approx(summary.pairwise_dice, abs=0.02)
            assert mine.iou[z] == pytest.approx(theirs.iou[z], abs=TOLERANCE)


@pytest.fixture
def expected(teacher: SamTeacher) -> list[CaseWork]:
    """What a CPU answers; the teacher has the weights of ``LikeAGpu``."""
    return answered(teacher)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int, int]]:
    """How often each answer was recorded: (case, slice, class) -> times."""
    times: Counter[tuple[str, int, int]] = Counter()
    own = wavefront._record

    def record(ask: wavefront.Ask, *rest: object) -> bool:
        times[ask.work.record.id, ask.plan.z, ask.class_id] += 1
        return own(ask, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(wavefront, "_record", record)
    return times


def test_a_teacher_that_takes_more_is_asked_more_and_answers_the_same(expected: list[CaseWork]) -> None:
    teacher = LikeAGpu(pictures=16, prompts=24)
    assert_alike(answered(teacher), expected)
    assert max(teacher.encoded) == 16
    assert max(teacher.decoded) == 24  # 12 questions of 2 boxes
    assert all(count & (count - 1) == 0 for count in teacher.encoded)


def test_behind_a_cache_a_teacher_is_asked_as_much(expected: list[CaseWork], tmp_path: Path) -> None:
    teacher = LikeAGpu(pictures=16, prompts=24)
    cached = CachedTeacher(teacher, EmbeddingCache(EmbeddingCachePlan(folder=str(tmp_path), budget_bytes=10**8)))
    assert_alike(answered(cached), expected)
    assert (max(teacher.encoded), max(teacher.decoded)) == (16, 24)
    assert cached.ask_less()
    assert wavefront.sizes_of(cached) == CallSizes(pictures=8, prompts=12, padding="power")


def test_calls_that_are_not_full_are_padded_to_a_power_of_two() -> None:
    sizes = CallSizes(pictures=32, prompts=100, padding="power")
    assert [sizes.padded(count, 32) for count in (1, 2, 3, 8, 9, 31, 32)] == [1, 2, 4, 8, 16, 32, 32]
    assert (sizes.questions(5), sizes.padded(17, 20), sizes.questions(200)) == (20, 20, 1)


def test_calls_of_a_teacher_that_answers_each_prompt_as_if_it_were_alone_are_not_padded() -> None:
    sizes = CallSizes(padding="none")
    assert [sizes.padded(count, 8) for count in (1, 5, 8)] == [1, 5, 8]
    assert [sizes.questions(boxes) for boxes in (1, 5, 10, 64, 200)] == [64, 12, 6, 1, 1]


def test_calls_of_any_other_teacher_are_always_full() -> None:
    sizes = CallSizes()
    assert [sizes.padded(count, 8) for count in (1, 5, 8)] == [8, 8, 8]
    assert [sizes.questions(boxes) for boxes in (1, 5, 10, 64, 200)] == [8, 8, 6, 1, 1]


def test_answers_that_are_on_their_way_while_more_is_asked_are_the_same(
    expected: list[CaseWork], recorded: Counter[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = late.Streams(monkeypatch)
    way = Transfer(torch.device("cpu"), overlaps=True)
    monkeypatch.setattr(members, "is_far", lambda _: True)
    monkeypatch.setattr(members, "transfer_to", lambda _: way)
    teacher = LikeAGpu(pictures=8, prompts=64)
    teacher._way = way
    recorded.clear()
    events: list[str] = []
    own_encode, own_record = teacher.encode, wavefront._record_all
    monkeypatch.setattr(teacher, "encode", lambda images: events.append("encode") or own_encode(images))  # type: ignore[func-returns-value]
    monkeypatch.setattr(
        wavefront, "_record_all", lambda asked, settings: events.append("read" * bool(asked)) or own_record(asked, settings)
    )  # type: ignore[func-returns-value]
    assert_alike(answered(teacher), expected)
    assert set(recorded.values()) == {1}
    assert {name for name, _ in streams.copied} == {"up", "down"}
    assert [event for event in events if event][:5] == ["encode", "encode", "encode", "encode", "read"]  # two views of two chunks first


def refusing_more_than(teacher: SamTeacher, pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = teacher.sam.image_encoder.forward

    def narrow(x: torch.Tensor) -> torch.Tensor:
        if len(x) > pictures:
            raise torch.OutOfMemoryError
        answer: torch.Tensor = forward(x)
        return answer

    monkeypatch.setattr(teacher.sam.image_encoder, "forward", narrow)


def test_when_memory_runs_out_inside_a_call_no_answer_is_lost_or_doubled(
    expected: list[CaseWork], recorded: Counter[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = LikeAGpu(pictures=16, prompts=64)
    refusing_more_than(teacher, 4, monkeypatch)
    recorded.clear()
    assert_alike(answered(teacher), expected)
    assert set(recorded.values()) == {1}
    assert teacher.encode_batch.size == 4
    assert max(teacher.encoded[2:]) == 4  # after the first chunk, whose calls were cut, chunks are smaller


def upsample_that_fails(teacher: SamTeacher, when: Callable[[], bool]) -> Callable[..., torch.Tensor]:
    own = teacher.upsample

    def upsample(*arguments: object) -> torch.Tensor:
        if when():
            raise torch.OutOfMemoryError
        return own(*arguments)  # type: ignore[arg-type]

    return upsample


def test_when_memory_runs_out_around_a_call_its_chunk_is_asked_again_in_smaller_ones(
    expected: list[CaseWork], recorded: Counter[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = LikeAGpu(pictures=16, prompts=64)
    drawn = iter(range(10**6))
    fails = upsample_that_fails(teacher, lambda: teacher.encode_batch.size > 4 and next(drawn) % 5 == 4)  # after some of a chunk's answers
    monkeypatch.setattr(teacher, "upsample", fails)
    recorded.clear()
    assert_alike(answered(teacher), expected)
    assert set(recorded.values()) == {1}
    assert (teacher.encode_batch.size, teacher.decode_batch.size) == (4, 16)


def test_memory_that_holds_not_one_picture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = LikeAGpu(pictures=4, prompts=8)
    refusing_more_than(teacher, 0, monkeypatch)
    with pytest.raises(OutOfMemoryError, match="one of the pictures at a time"):
        answered(teacher)
    teacher = LikeAGpu(pictures=4, prompts=8)
    monkeypatch.setattr(teacher, "upsample", upsample_that_fails(teacher, lambda: True))
    with pytest.raises(torch.OutOfMemoryError):
        answered(teacher)
    assert (teacher.encode_batch.size, teacher.decode_batch.size) == (1, 1)


def test_a_cpu_s_calls_stay_as_they_are_when_memory_ran_out(teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing_more_than(teacher, 4, monkeypatch)
    teacher.pictures_per_pass = None
    answered(teacher)
    assert teacher.encode_batch.size == 4
    assert teacher.call_sizes == CallSizes(padding="none")
    assert not teacher.ask_less()


def test_the_work_ends_before_the_next_group_when_it_is_told_to() -> None:
    teacher = LikeAGpu(pictures=8, prompts=64)
    left = iter([None, None])

    def check() -> None:
        if next(left, "stop") == "stop":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(teacher, check=check)
    assert len(teacher.encoded) == 4  # two groups, each as it is and mirrored
