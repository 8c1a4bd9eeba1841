"""Ellipses in boxes: what needs no model."""

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
