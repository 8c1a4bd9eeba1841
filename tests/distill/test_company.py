"""On a CPU an answer does not change, to the last bit, with what else is asked."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from distill.teachers.base import PromptBatch
from distill.teachers.checkpoints import load_teacher
from distill.teachers.folded_plan import Plan
from distill.teachers.passes import whole_passes
from distill.teachers.sam import SamTeacher

PICTURES = 6
PROMPTS = 39
"""Two full passes and a remainder."""
SUBSETS = [[0], [38], [3, 4], [37, 2, 9], list(range(15)), list(range(16)), list(range(2, 31)), list(range(3, 39))]


@pytest.fixture(scope="module")
def teacher() -> SamTeacher:
    found = load_teacher("bundled")
    assert isinstance(found, SamTeacher)
    return found


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pictures() -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (60, 80 + n, 3), dtype=np.uint8) for n in range(PICTURES)]


def questions(kind: str) -> PromptBatch:
    noise = np.random.default_rng(1)
    corner = 30 * noise.random((PROMPTS, 2), np.float32)
    with_points, with_masks = "point" in kind, "mask" in kind
    return PromptBatch(
        image_index=noise.integers(0, PICTURES, PROMPTS),
        boxes_xyxy_px=np.concatenate([corner, corner + 4 + 25 * noise.random((PROMPTS, 2), np.float32)], axis=1) if "box" in kind else None,
        points_xy_px=60 * noise.random((PROMPTS, int(kind[-1]), 2), np.float32) if with_points else None,
        point_labels=noise.integers(0, 2, (PROMPTS, int(kind[-1]))).astype(np.float32) if with_points else None,
        mask_logits=noise.normal(0, 4, (PROMPTS, 128, 128)).astype(np.float32) if with_masks else None,
        has_mask=noise.random(PROMPTS) < 0.5 if with_masks else None,
        regions_xyxy_px=np.tile(np.array([10, 12, 50, 40], np.float32), (PROMPTS, 1)) if with_masks else None,
    )


def some_of(batch: PromptBatch, rows: list[int]) -> PromptBatch:
    kept = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return PromptBatch(**{name: value[rows] if isinstance(value, np.ndarray) else value for name, value in kept.items()})


def test_passes_are_whole_and_hold_every_item_in_its_place() -> None:
    assert whole_passes(3, 4).tolist() == [0, 1, 2, 2]
    assert whole_passes(4, 4).tolist() == [0, 1, 2, 3]
    assert whole_passes(5, 2).tolist() == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "kind", ["box", "point 1", "box, point 3", "box and mask", "box and point 20"]
)  # the last takes segment-anything's own modules
def test_a_prompt_is_answered_as_if_it_were_alone(teacher: SamTeacher, threads: int, kind: str) -> None:
    seen, asked = teacher.encode(pictures()), questions(kind)
    together = teacher.decode(seen, asked, multimask=False)
    for rows in SUBSETS:
        found = teacher.decode(seen, some_of(asked, rows), multimask=False)
        assert torch.equal(found.low_res_logits, together.low_res_logits[rows]), (threads, rows)
        assert torch.equal(found.iou, together.iou[rows]), (threads, rows)


def test_a_picture_is_encoded_as_if_it_were_alone(teacher: SamTeacher, threads: int) -> None:
    shown = pictures()
    together = teacher.encode(shown).features
    for rows in ([0], [5], [1, 2], [4, 0, 3], [5, 4, 3, 2, 1]):
        assert torch.equal(teacher.encode([shown[n] for n in rows]).features, together[rows]), (threads, rows)


def test_of_many_pictures_only_those_that_are_asked_about_are_projected(teacher: SamTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, asked = teacher.encode(pictures()), questions("box")
    whole, points = teacher.decode(seen, asked, multimask=False), questions("point 1")
    drawn = teacher.decode_promising(seen, points, least_iou=-9.0)
    projected: list[int] = []
    own = Plan.see
    monkeypatch.setattr(Plan, "see", lambda plan, rows, of: projected.append(len(rows)) or own(plan, rows, of))  # type: ignore[func-returns-value]
    rows = [n for n in range(PROMPTS) if asked.image_index[n] in (1, 4)]
    some = teacher.decode(seen, some_of(asked, rows), multimask=False)
    assert torch.equal(some.low_res_logits, whole.low_res_logits[rows])
    again = teacher.decode_promising(seen, some_of(points, list(range(PROMPTS))), least_iou=-9.0)
    assert torch.equal(again.low_res_logits, drawn.low_res_logits)
    assert projected == [2, PICTURES]


def test_a_promising_point_is_answered_as_if_it_were_alone(teacher: SamTeacher, threads: int) -> None:
    seen, asked = teacher.encode(pictures()), questions("point 1")
    together = teacher.decode_promising(seen, asked, 0.3)
    for rows in SUBSETS:
        found = teacher.decode_promising(seen, some_of(asked, rows), 0.3)
        places = [n for n, prompt in enumerate(together.prompt.tolist()) if prompt in rows]
        places.sort(key=lambda n: (rows.index(int(together.prompt[n])), int(together.token[n])))
        assert len(found.prompt) == len(places)
        assert torch.equal(found.low_res_logits, together.low_res_logits[places]), (threads, rows)
        assert torch.equal(found.iou, together.iou[places]), (threads, rows)
    assert len(together.prompt) > PROMPTS / 4
