"""Each view of a slice is encoded once, however many classes, fronts and ways back ask about it; what is kept is bounded, and changes no answer."""

import runpy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import embedding_memory
from distill.casework import CaseWork
from distill.embedding_memory import EmbeddingMemory, Shown
from distill.engine import label_archive
from distill.label_store import measure
from distill.planes import ask_other_planes
from distill.questions import AskSettings
from distill.round_trip import check_round_trips
from distill.teachers.base import CallSizes, Embeddings, Teacher
from distill.teachers.sam import SamTeacher
from distill.views import View
from distill.wavefront import run_wavefront
from storage import ClassInfo, Prompt

small = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))  # tests are no package
ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]
EVERYTHING = AskSettings(
    boxes=2,
    planes="three",
    propagate=True,
    end_area_share=0.0,
    end_agreement=0.0,
    stop_area=(0.0, np.inf),
    stop_jump=np.inf,
    stop_iou=0.0,
    stop_outgrown=np.inf,
)
"""Tracks go on, since what noise looks like to a random teacher has no end."""

Encoded = Counter[tuple[str, int, int, View]]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """How often each picture was made for the encoder: (case, axis, slice, view) -> times."""
    times: Encoded = Counter()
    own = View.picture

    def picture(view: View, work: CaseWork, z: int) -> np.ndarray:
        times[work.record.id, work.axis, z, view] += 1
        return own(view, work, z)

    monkeypatch.setattr(View, "picture", picture)
    return times


def two_classes() -> list[CaseWork]:
    """Two cases, of which class 1 is prompted on other slices than class 2."""
    works = []
    for name, radius in (("a", 6.0), ("b", 7.0)):
        work, _ = ball_case(name, 6, 12, radius=radius)
        other, _ = ball_case(name, 8, 13, radius=radius)
        works.append(
            CaseWork(
                record=work.record, volume_czyx=work.volume_czyx, window=work.window, classes={1: work.classes[1], 2: other.classes[1]}
            )
        )
    return works


def asked(teacher: Teacher, settings: AskSettings, memory: EmbeddingMemory | None) -> list[CaseWork]:
    works = two_classes()
    run_wavefront(teacher, works, settings, memory=memory)
    check_round_trips(teacher, works, settings, memory=memory)
    ask_other_planes(teacher, works, settings, memory=memory)
    return works


def test_a_slice_is_encoded_once_for_two_classes_that_were_prompted_on_different_slices(teacher: SamTeacher, encoded: Encoded) -> None:
    works = two_classes()
    run_wavefront(teacher, works, AskSettings(boxes=2))
    assert {z for _, _, z, _ in encoded} >= {6, 8, 12, 13}
    assert len({view for *_, view in encoded}) == 2
    assert set(encoded.values()) == {1}


def test_labelling_encodes_each_view_of_each_slice_once_the_way_back_and_other_planes_included(
    tmp_path: Path, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = small["archive_of"](tmp_path, 3, depth=17)
    archive.catalog.add_prompts([Prompt(case="case01", class_id=2, kind="box", slice=z, box_xyxy_px=(8, 6, 20, 15)) for z in (3, 8, 12)])
    pictures: list[int] = []
    own = SamTeacher.encode
    monkeypatch.setattr(SamTeacher, "encode", lambda teacher, images: pictures.append(len(images)) or own(teacher, images))  # type: ignore[func-returns-value]
    classes = (small["A"], ClassInfo(id=2, name="b"))
    label_archive(archive, small["plan_for"](small["write_checkpoint"](tmp_path), classes=classes, ask=EVERYTHING))
    assert any("round_trips/1" in archive[record.id].labels("teacher/r1").history.parameters for record in archive.cases())
    assert {axis for _, axis, _, _ in encoded} == {0, 1, 2}
    assert set(encoded.values()) == {1}
    assert sum(pictures) == len(encoded)


@pytest.mark.parametrize("room", [0, 9], ids=["no room", "room for nine"])
def test_what_is_forgotten_for_lack_of_room_is_encoded_again_and_every_answer_is_the_same_to_the_last_bit(
    room: int, teacher: SamTeacher, encoded: Encoded
) -> None:
    budget = room * 4 * teacher.encode([np.zeros((24, 32, 3), np.uint8)]).features.numel()
    settings = AskSettings(boxes=2, propagate=True)
    kept = asked(teacher, settings, EmbeddingMemory())
    most = sum(encoded.values())
    encoded.clear()
    memory = EmbeddingMemory(budget)
    for mine, theirs in zip(asked(teacher, settings, memory), kept, strict=True):
        assert measure(mine) == measure(theirs)
        for class_id, target in mine.classes.items():
            assert np.array_equal(target.probability, theirs.classes[class_id].probability)
            assert target.round_trips == theirs.classes[class_id].round_trips
    assert sum(encoded.values()) > most
    assert memory.size_bytes <= budget


class Numbers:
    """Encodes a picture as its own grey level, and notes which it was shown."""

    def __init__(self, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        self.shown: list[list[int]] = []
        self.memory_format = memory_format

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        levels = [int(image[0, 0, 0]) for image in images]
        self.shown.append(levels)
        features = torch.tensor(levels, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 3, 4)
        sizes = tuple((level, level) for level in levels)
        return Embeddings(features=features.contiguous(memory_format=self.memory_format), sizes_px=sizes, input_sizes_px=sizes)


def seen(memory: EmbeddingMemory, teacher: Numbers, levels: Sequence[int], sizes: CallSizes | None = None) -> Embeddings:
    shown = [Shown(key=level, picture=lambda level=level: np.full((2, 2, 3), level, np.uint8), again=True) for level in levels]  # type: ignore[misc]
    return memory.encode(teacher, shown, sizes or CallSizes(padding="none"))  # type: ignore[arg-type]


def test_pictures_come_in_the_order_asked_for_whichever_of_them_were_kept() -> None:
    teacher, memory = Numbers(), EmbeddingMemory()
    seen(memory, teacher, [3, 1])
    found = seen(memory, teacher, [1, 2, 3, 4])
    assert found.features[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert found.sizes_px == found.input_sizes_px == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert teacher.shown == [[3, 1], [2, 4]]


def test_what_was_not_used_for_longest_goes_first() -> None:
    teacher, memory = Numbers(), EmbeddingMemory(budget_bytes=3 * 2 * 3 * 4 * 4)
    seen(memory, teacher, [1, 2, 3])
    seen(memory, teacher, [1])
    seen(memory, teacher, [4])
    assert memory.size_bytes == memory.budget_bytes
    seen(memory, teacher, [1, 3, 4])
    seen(memory, teacher, [2])
    assert teacher.shown == [[1, 2, 3], [4], [2]]


def test_what_nobody_asks_about_again_is_not_kept() -> None:
    teacher, memory = Numbers(), EmbeddingMemory()
    memory.encode(teacher, [Shown(key=0, picture=lambda: np.zeros((2, 2, 3), np.uint8), again=False)], CallSizes())  # type: ignore[arg-type]
    assert memory.size_bytes == 0


def test_a_teacher_that_wants_calls_of_one_size_gets_them_from_memory_too() -> None:
    teacher, memory = Numbers(), EmbeddingMemory()
    sizes = CallSizes(pictures=4)
    found = [seen(memory, teacher, levels, sizes) for levels in ([1, 2, 3], [2, 3], [3, 5])]
    assert [each.features[:, 0, 0, 0].tolist() for each in found] == [[1, 2, 3, 3], [2, 3, 3, 3], [3, 5, 5, 5]]
    assert teacher.shown == [[1, 2, 3, 3], [5, 5, 5, 5]]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_numbers_lie_in_memory_as_the_encoder_left_them(memory_format: torch.memory_format) -> None:
    teacher, memory = Numbers(memory_format), EmbeddingMemory()
    first = seen(memory, teacher, [1, 2])
    again = seen(memory, teacher, [2, 1, 3])
    assert again.features.stride() == first.features.stride()


def test_the_budget_that_the_page_states_is_the_one_in_use() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ensembles.md").read_text()
    assert f"{embedding_memory.BUDGET_BYTES // 2**30} GiB" in page
