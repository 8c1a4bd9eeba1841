"""Arrays go to a device and come back on streams of their own, and nobody looks at them too early."""

import runpy
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.teachers.base import PromptBatch
from distill.teachers.sam import SamTeacher
from distill.teachers.transfer import Transfer

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_streams.py"))))  # tests are no package
CPU = torch.device("cpu")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Streams that copy as late as they may."""
    found: SimpleNamespace = late.Streams(monkeypatch)
    return found


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_what_is_sent_is_there_for_whoever_computes_with_it(streams: SimpleNamespace) -> None:
    sent = Transfer(CPU, overlaps=True).send(numbers(3, 5))
    assert torch.equal(sent, torch.from_numpy(numbers(3, 5)))
    assert streams.copied == [("up", True)]
    assert streams.recorded == [(sent.data_ptr(), "computing")]


def test_without_a_wait_the_stand_ins_would_show_it(streams: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(streams.computing), "wait_stream", lambda *_: None)
    sent = Transfer(CPU, overlaps=True).send(numbers(3, 5))
    assert bool((sent == late.POISON).all())


def test_answers_are_waited_for_once_and_land_in_ordinary_memory(streams: SimpleNamespace) -> None:
    asked = [torch.from_numpy(numbers(4, 3)), torch.tensor(7.0)]
    arriving = Transfer(CPU, overlaps=True).fetch(asked)
    hosts = arriving._tensors
    assert all(bool((host == late.POISON).all()) for host in hosts)
    found = arriving.wait()
    assert np.array_equal(found[0], numbers(4, 3))
    assert float(found[1]) == 7.0
    assert streams.copied == [("down", True)] * 2
    assert streams.recorded == [(tensor.data_ptr(), "down") for tensor in asked]
    assert not any(np.shares_memory(array, host.numpy()) for array, host in zip(found, hosts, strict=True))


def test_answers_leave_only_when_they_are_computed(streams: SimpleNamespace) -> None:
    unfinished = torch.zeros(3)
    streams.computing.copies.append(lambda: unfinished.fill_(5))
    (found,) = Transfer(CPU, overlaps=True).fetch([unfinished]).wait()
    assert found.tolist() == [5, 5, 5]


def test_a_turned_answer_arrives_in_its_own_order(streams: SimpleNamespace) -> None:
    (found,) = Transfer(CPU, overlaps=True).fetch([torch.from_numpy(numbers(2, 3)).T]).wait()
    assert np.array_equal(found, numbers(2, 3).T)


def test_pictures_are_prepared_by_several_threads_and_stay_in_order(streams: SimpleNamespace) -> None:
    side_by_side = threading.Barrier(2, timeout=20)

    def make(n: int) -> tuple[torch.Tensor, str]:
        side_by_side.wait()
        return torch.full((2,), float(n)), f"picture {n}"

    way = Transfer(CPU, overlaps=True)
    if way._crew is None or way._crew._max_workers < 2:
        pytest.skip("this process may use one core only")
    made = way.prepare(make, range(6))
    assert [tensor.tolist() for tensor, _ in made] == [[n, n] for n in range(6)]
    assert [name for _, name in made] == [f"picture {n}" for n in range(6)]


def test_a_picture_that_cannot_be_prepared_is_an_error_of_the_call(streams: SimpleNamespace) -> None:
    def make(n: int) -> tuple[torch.Tensor, None]:
        message = f"picture {n} is none"
        raise ValueError(message)

    with pytest.raises(ValueError, match="picture 0 is none"):
        Transfer(CPU, overlaps=True).prepare(make, range(3))


def test_on_a_cpu_nothing_is_copied() -> None:
    array = numbers(4, 4)
    way = Transfer(CPU)
    sent = way.send(array)
    assert np.shares_memory(sent.numpy(), array)
    (found,) = way.fetch([sent]).wait()
    assert np.shares_memory(found, array)
    ((made, rest),) = way.prepare(lambda n: (sent, n), [3])
    assert (made.data_ptr(), rest) == (sent.data_ptr(), 3)


def test_a_teacher_answers_the_same_over_streams_to_the_last_bit(teacher: SamTeacher, streams: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30 + n, 40, 3), dtype=np.uint8) for n in range(3)]
    boxes = np.tile(np.array([3, 4, 25, 26], np.float32), (6, 1))
    masks = rng.normal(size=(6, teacher.mask_size_px, teacher.mask_size_px)).astype(np.float32)
    prompts = PromptBatch(image_index=np.arange(6) % 3, boxes_xyxy_px=boxes, mask_logits=masks, has_mask=np.arange(6) % 2 == 0)
    plain = teacher.encode(images)
    expected = teacher.decode(plain, prompts)
    teacher._way = Transfer(CPU, overlaps=True)
    features = teacher.encode(images)
    found = teacher.decode(features, prompts)
    assert {name for name, locked in streams.copied if locked} == {"up"}
    assert torch.equal(features.features, plain.features)
    assert torch.equal(found.low_res_logits, expected.low_res_logits)
    assert torch.equal(found.iou, expected.iou)
