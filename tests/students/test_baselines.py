"""Ellipses in boxes: what needs no model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from storage import Archive, ClassInfo, Prompt
from students import baselines

CLASSES = (ClassInfo(id=3, name="kernel"),)


def box(z: int, xyxy: tuple[float, float, float, float], class_id: int = 3) -> Prompt:
    return Prompt(case="a", class_id=class_id, kind="box", slice=z, box_xyxy_px=xyxy)


def test_an_ellipse_touches_the_four_sides_of_its_box_and_no_pixel_beyond() -> None:
    mask = baselines.ellipse_in_box((3, 2, 15, 9), (12, 20))
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (3, 15, 2, 9)
    assert mask.sum() == pytest.approx(np.pi / 4 * 12 * 7, rel=0.05)


def test_a_box_of_no_area_holds_no_ellipse() -> None:
    assert not baselines.ellipse_in_box((3, 2, 3, 9), (12, 20)).any()


def test_sides_move_evenly_between_prompted_slices_and_stop_at_the_last() -> None:
    boxes = baselines.boxes_between([6, 2], np.asarray([[8.0, 4, 16, 12], [4.0, 4, 8, 8]]))
    assert sorted(boxes) == [2, 3, 4, 5, 6]
    np.testing.assert_allclose(boxes[4], [6, 4, 12, 10])


def test_columns_are_x_and_rows_are_y() -> None:
    labels = baselines.ellipse_labels([box(1, (10, 2, 18, 6))], (3, 9, 20), CLASSES)
    assert labels.shape == (3, 9, 20)
    assert labels[1, 4, 14] == 3
    assert not labels[0].any()
    assert not labels[:, :, :10].any()


def test_prompts_of_other_classes_and_kinds_are_not_drawn() -> None:
    point = Prompt(case="a", class_id=3, kind="point", slice=1, points_xy_px=((3.0, 3.0),))
    assert not baselines.ellipse_labels([point, box(1, (1, 1, 5, 5), class_id=2)], (3, 9, 20), CLASSES).any()


def test_ellipses_of_an_archive_resemble_gold_and_say_where_they_came_from(archive: Archive) -> None:
    cases = [f"test{n}" for n in range(3)]
    assert baselines.write_ellipse_labels(archive, cases, CLASSES) == 3
    labels = archive["test0"].labels(baselines.LABEL_SET)
    gold, found = archive["test0"].labels("gold").read() > 0, labels.read() > 0
    assert 2 * (gold & found).sum() / (gold.sum() + found.sum()) > 0.75
    assert labels.history.made_by == "students.baselines"
    assert labels.history.prompt_source == "weak"


def test_ellipses_are_drawn_again_only_from_other_prompts(
    make_archive: Callable[..., Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path, train=0, test=1)
    drawn: list[int] = []
    draw = baselines.ellipse_labels

    def counted(prompts: Sequence[Prompt], shape_zyx: tuple[int, int, int], classes: Sequence[ClassInfo]) -> np.ndarray:
        drawn.append(len(prompts))
        return draw(prompts, shape_zyx, classes)

    monkeypatch.setattr(baselines, "ellipse_labels", counted)
    assert [baselines.write_ellipse_labels(archive, ["test0"], CLASSES) for _ in range(2)] == [1, 1]
    assert len(drawn) == 1
    archive.catalog.delete_prompts(source="weak")
    archive.catalog.add_prompts([Prompt(case="test0", class_id=3, kind="box", slice=0, box_xyxy_px=(0.0, 0.0, 1.0, 1.0))])
    baselines.write_ellipse_labels(archive, ["test0"], CLASSES)
    assert drawn[1:] == [1]
    assert archive["test0"].labels(baselines.LABEL_SET).read()[0, 0, 0] == 3
