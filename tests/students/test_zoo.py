"""Networks by size and by what they look at, planned from the cases; and old students stay who they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage import Archive, ClassInfo
from students import compact, data, load_student, whole_volume
from students.nets import build_network, plan_network
from students.spec import NetworkPlan, StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)
TINY = StudentSpec(
    name="tiny", budget_seconds=None, steps=8, width=4, batch=1, threads=1, validations=2, device="cpu", mixed_precision=False
)
MILLIONS = {"small": 0.3, "medium": 2.0, "large": 8.0}
CASES = {
    "a small organ in 3D": ((36, 50, 36), (1.0, 1.0, 1.0)),
    "thick slices": ((12, 256, 256), (10.0, 1.4, 1.4)),
    "pictures": ((1, 256, 256), (1.0, 1.4, 1.4)),
    "middling pictures": ((1, 140, 150), (1.0, 1.4, 1.4)),
    "small pictures": ((1, 64, 80), (1.0, 1.0, 1.0)),
}


def planned(kind: str, **asked: Any) -> NetworkPlan:
    shape, spacing = CASES[kind]
    return plan_network(StudentSpec(**asked), shapes_zyx=[shape], spacings_zyx_mm=[spacing], channels=1, classes=2)


def parameters(plan: NetworkPlan) -> float:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_network(plan).parameters()) / 1e6


@pytest.mark.parametrize("size", list(MILLIONS))
@pytest.mark.parametrize("kind", list(CASES))
def test_a_size_has_about_as_many_parameters_whatever_the_cases_are(kind: str, size: str) -> None:
    assert parameters(planned(kind, size=size)) == pytest.approx(MILLIONS[size], rel=0.25)


def test_each_size_looks_at_slices_their_neighbours_or_volumes_as_asked() -> None:
    volume, flat, between = (planned("a small organ in 3D", size="small", dimensions=each) for each in ("3d", "2d", "2.5d"))
    assert [plan.dimensions for plan in (volume, flat, between)] == ["3d", "2d", "2d"]
    assert [plan.in_channels for plan in (volume, flat, between)] == [1, 1, 3]
    assert [plan.image_channels for plan in (volume, flat, between)] == [1, 1, 1]
    assert parameters(between) == pytest.approx(parameters(flat), rel=0.01)


def test_a_width_of_ones_own_is_heard_without_a_size() -> None:
    assert planned("pictures", width=24).filters[0] == 24
    assert planned("pictures", width=24, size="small").filters[0] != 24


@pytest.mark.parametrize("cache_bytes", [0, 1 << 24], ids=["read patch by patch", "kept in memory"])
def test_a_network_between_2d_and_3d_learns_from_the_slices_it_will_be_shown(archive: Archive, cache_bytes: int) -> None:
    record = archive["train0"].record
    plan = plan_network(
        TINY.model_copy(update={"dimensions": "2.5d"}),
        shapes_zyx=[record.shape_czyx[1:]],
        spacings_zyx_mm=[record.geometry.spacing_zyx_mm],
        channels=1,
        classes=1,
    ).model_copy(update={"patch_zyx": (1, *record.shape_czyx[2:])})
    source = data.PatchSource(archive, cases=["train0"], label_set="gold", classes=CLASSES, plan=plan, cache_bytes=cache_bytes)
    image, gold = archive["train0"].read(), archive["train0"].labels("gold").read()
    held = source._prepare("train0")
    ready, depth = held.intensities.apply(image)[0], image.shape[1]
    for z in (0, 5, depth - 1):
        if held.image is None:
            patch = source._read_patch(archive["train0"], held, [z, 0, 0])
        else:
            assert held.ids is not None
            patch = source._window(held.image, held.ids, None, [z, 0, 0])
        around = [max(z - 1, 0), z, min(z + 1, depth - 1)]
        np.testing.assert_allclose(patch.image[:, 0], ready[around], atol=1e-4)
        np.testing.assert_array_equal(patch.ids[0], gold[z] // 3)


def test_it_answers_each_slice_with_its_neighbours_as_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("small pictures", dimensions="2.5d").model_copy(update={"in_channels": 6, "neighbours": 1})
    monkeypatch.setattr(whole_volume, "_windows", lambda _network, _size, batch: batch)
    volume = torch.arange(2 * 11).view(2, 11, 1, 1).float()
    shown = whole_volume._slices(torch.nn.Identity(), plan, volume)[:, :, 0, 0]
    assert shown[:, 0].tolist() == [0, 0, 1, 11, 11, 12]
    assert shown[:, 5].tolist() == [4, 5, 6, 15, 16, 17]
    assert shown[:, 10].tolist() == [9, 10, 10, 20, 21, 21]


@pytest.mark.parametrize("dimensions", ["2.5d", "3d"])
def test_a_student_of_a_size_is_trained_and_answers_on_the_grid_of_the_image(archive: Archive, tmp_path: Path, dimensions: str) -> None:
    spec = TINY.model_copy(update={"dimensions": dimensions, "size": "small", "steps": 1})
    done = compact.train(archive, label_set="pseudo/r1", classes=CLASSES, spec=spec, workdir=tmp_path)
    case = archive["test0"]
    assert load_student(done.path).predict(case.read(), case.spacing_zyx_mm).labels.shape == case.record.shape_czyx[1:]


@pytest.mark.parametrize(
    ("asked", "mark"),
    [
        pytest.param({}, "42a2c1bd6a04e63baa54f49c7d0e139f", id="3D"),
        pytest.param({"dimensions": "2d", "batch": 2}, "902c319b5aff8fc9c2e677cfa9e467d5", id="2D"),
        pytest.param({"augment": False}, "a38f7a8f9b99d0a406371a157a6b613e", id="without augmentation"),
    ],
)
def test_what_was_asked_for_before_there_were_more_options_is_the_same_student(
    make_archive: Callable[..., Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], mark: str
) -> None:
    assert compact.TRAINER == "2", "a new trainer gives other fingerprints: take them over into this test"
    seen: list[str] = []
    monkeypatch.setattr(compact, "_train", lambda *given: seen.append(given[-1].mark))
    compact.train(
        make_archive(tmp_path),
        label_set="pseudo/r1",
        classes=CLASSES,
        spec=TINY.model_copy(update=asked),
        workdir=tmp_path,
        case_weights={"train1": 0.5},
    )
    assert seen == [mark]
