"""Labelling an archive: done once, in any order, with the same bytes."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill.engine import LabelPlan, label_archive
from distill.errors import PlanError
from distill.intensity import choose_window, to_rgb
from storage import Archive, CaseRecord, ClassInfo, Geometry, Prompt

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_archive.py"))))  # tests are no package
archive_of, plan_for = small.archive_of, small.plan_for


def test_every_prompted_case_is_labelled_once_and_a_second_run_does_nothing(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 5)
    seen: list[tuple[int, int]] = []
    first = label_archive(archive, plan_for(checkpoint, window=2), progress=lambda done, total: seen.append((done, total)))
    assert (first.done, first.skipped, first.quarantined) == (5, 0, ())
    assert seen[-1] == (5, 5)
    labels = archive["case03"].labels("teacher/r1")
    assert labels.probability is not None
    assert labels.probability.shape == (1, *archive["case03"].record.shape_czyx[1:])
    assert labels.history.teacher
    again = label_archive(archive, plan_for(checkpoint))
    assert (again.done, again.skipped) == (0, 5)


def test_a_new_case_or_a_changed_prompt_is_all_that_a_later_run_does(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 3)
    label_archive(archive, plan_for(checkpoint))
    archive.catalog.add_prompts([Prompt(case="case01", class_id=1, kind="box", slice=3, box_xyxy_px=(5, 4, 18, 15))])
    assert label_archive(archive, plan_for(checkpoint)).done == 1


def test_cases_that_nobody_prompted_are_reported_and_not_labelled_empty(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 2)
    record = CaseRecord(
        id="bare",
        patient="b",
        shape_czyx=(1, 4, 9, 9),
        dtype="int16",
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=small.IDENTITY),
    )
    archive.add_case(record, np.zeros((1, 4, 9, 9), np.int16))
    summary = label_archive(archive, plan_for(checkpoint))
    assert summary.without_prompts == ("bare",)
    assert archive["bare"].label_sets() == []


def not_here(case: str, z: int, class_id: int = 1) -> Prompt:
    return Prompt(case=case, class_id=class_id, kind="point", slice=z, points_xy_px=((9.0, 9.0),), positive=False)


def test_a_case_with_negative_points_alone_counts_as_one_that_nobody_prompted(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 2)
    archive.catalog.delete_prompts(source="weak")
    box = Prompt(case="case00", class_id=1, kind="box", slice=1, box_xyxy_px=(5, 4, 18, 15))
    archive.catalog.add_prompts([box, not_here("case01", 3)])
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.without_prompts) == (1, ("case01",))
    assert archive["case01"].label_sets() == []


def test_a_class_with_negative_points_alone_is_not_asked_about(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 1)
    archive.catalog.add_prompts([not_here("case00", 3, class_id=2)])
    label_archive(archive, plan_for(checkpoint, classes=(small.A, ClassInfo(id=2, name="b"))))
    scores = archive.catalog.scores("teacher/r1")["case00"]
    assert "slices_asked/1" in scores
    assert "slices_asked/2" not in scores


def test_a_prompt_that_cannot_be_asked_makes_no_work(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 1)
    label_archive(archive, plan_for(checkpoint))
    archive.catalog.add_prompts([not_here("case00", 3)])
    assert label_archive(archive, plan_for(checkpoint)).done == 0
    archive.catalog.add_prompts([not_here("case00", 5)])  # slice 5 has a box
    assert label_archive(archive, plan_for(checkpoint)).done == 1


def test_labels_do_not_depend_on_how_many_cases_are_asked_together(tmp_path: Path, checkpoint: str) -> None:
    answers = []
    for window in (1, 3):
        folder = tmp_path / str(window)
        folder.mkdir()
        archive = archive_of(folder, 4)
        label_archive(archive, plan_for(checkpoint, window=window))
        answers.append([np.asarray(archive[f"case{n:02}"].labels("teacher/r1").probability) for n in range(4)])
    assert all(np.array_equal(a, b) for a, b in zip(*answers, strict=True))


def test_a_plan_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="names no class"):
        label_archive(Archive.create(str(tmp_path / "a.zarr")), LabelPlan(classes=()))


def test_an_empty_archive_is_labelled_in_no_time_without_error(tmp_path: Path, checkpoint: str) -> None:
    summary = label_archive(Archive.create(str(tmp_path / "a.zarr")), plan_for(checkpoint))
    assert (summary.done, summary.skipped) == (0, 0)


@pytest.mark.parametrize(("modality", "rule"), [("CT", "ct-soft-tissue"), ("MR", "percentiles-of-non-zero")], ids=["CT", "MR"])
def test_the_window_follows_the_modality(modality: str, rule: str) -> None:
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=small.IDENTITY)
    record = CaseRecord(id="c", patient="c", shape_czyx=(1, 4, 5, 6), dtype="float32", modality=modality, geometry=geometry)
    volume = np.linspace(-1000, 1_700_000, 120, dtype=np.float32).reshape(1, 4, 5, 6)
    window = choose_window(record, volume)
    assert window.rule == rule
    picture = to_rgb(volume[:, 3], window)
    assert picture.shape == (5, 6, 3)
    assert picture.dtype == np.uint8


def test_a_constant_volume_becomes_a_black_or_white_picture_and_no_error() -> None:
    record = CaseRecord(
        id="c",
        patient="c",
        shape_czyx=(1, 1, 5, 6),
        dtype="uint8",
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=small.IDENTITY),
    )
    for value in (0, 7):
        volume = np.full((1, 1, 5, 6), value, np.uint8)
        assert len(np.unique(to_rgb(volume[:, 0], choose_window(record, volume)))) == 1
