"""How a teacher finds out what it can do at once, and in which precision it computes."""

import contextlib
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distill.teachers import sam as sam_module
from distill.teachers.base import CallSizes
from distill.teachers.batching import BatchSize
from distill.teachers.profiles import profile_for
from distill.teachers.sam import MOST_PICTURES, MOST_PROMPTS, SamTeacher, resolve_precision

small_sam = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_sam.py"))))  # tests are no package


@pytest.mark.parametrize(
    ("profile", "hints"),
    [
        pytest.param("sam", {"boxes": True, "mask_inputs": True}, id="a teacher of boxes, points and masks"),
        pytest.param("medsam", {"boxes": True, "mask_inputs": False}, id="a teacher of boxes alone"),
        pytest.param("samed", {"boxes": False, "mask_inputs": False}, id="a teacher without prompts"),
    ],
)
def test_what_a_picture_and_a_prompt_cost_is_measured_on_what_is_asked_later(
    profile: str, hints: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: dict[str, int] = {}
    encoded: list[int] = []
    decoded: list[tuple[int, dict[str, bool]]] = []

    def fit(call: Callable[[int], object], device: torch.device, *, usual: int, most: int, what: str) -> BatchSize:
        call(3)
        measured[what] = most
        return BatchSize(usual * 2, what)

    own = sam_module.decode_prompts

    def decode(model: object, features: object, index: torch.Tensor, **given: object) -> object:
        decoded.append((len(index), {name: given[name] is not None for name in hints}))
        return own(model, features, index, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(sam_module, "fit", fit)
    monkeypatch.setattr(sam_module, "decode_prompts", decode)
    model = small_sam.build(image_size=64)
    model.image_encoder.register_forward_hook(lambda _, given, __: encoded.append(len(given[0])))
    teacher = SamTeacher(model, profile_for(profile, 64), "x")
    assert measured == {"pictures": MOST_PICTURES, "prompts": MOST_PROMPTS}
    assert (encoded, decoded) == ([4], [(3, hints)])  # on a CPU a pass of four, one of them a repeat
    assert (teacher.encode_batch.size, teacher.decode_batch.size) == (16, 128)


def test_sizes_that_are_named_are_taken_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_module, "fit", lambda *_, **__: pytest.fail("measured"))
    teacher = SamTeacher(small_sam.build(image_size=64), profile_for("sam", 64), "x", encode_chunk=3, decode_chunk=5)
    assert (teacher.encode_batch.size, teacher.decode_batch.size) == (3, 5)


def test_a_teacher_on_another_device_is_asked_what_it_can_do_at_once_and_less_after_it_ran_out() -> None:
    teacher = SamTeacher(small_sam.build(image_size=64), profile_for("sam", 64), "x", device="meta", encode_chunk=4, decode_chunk=2)
    assert teacher.call_sizes == CallSizes(pictures=4, prompts=2, padding="power")
    assert teacher.ask_less()
    assert teacher.call_sizes == CallSizes(pictures=2, prompts=1, padding="power")
    assert teacher.ask_less()
    assert not teacher.ask_less()


@pytest.mark.parametrize(
    ("device", "supported", "profile", "chosen"),
    [
        pytest.param("cuda", True, "sam", "bf16", id="a GPU with bfloat16"),
        pytest.param("cuda", False, "sam", "fp32", id="a GPU without it"),
        pytest.param("cuda", True, "samdistill-conv", "fp32", id="the bundled teacher on a GPU"),
        pytest.param("cpu", True, "sam", "fp32", id="a CPU"),
    ],
)
def test_precision_auto_is_bfloat16_where_the_device_has_it(
    device: str, supported: bool, profile: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert resolve_precision("auto", torch.device(device), profile_for(profile, 64)) == chosen
