"""Pictures show all that was painted; plots say their units."""

import base64
import io
import re

import numpy as np
from PIL import Image

from students.pictures import Outline, overlay_png
from students.plots import bland_altman, strip_plot
from students.results import CaseScore, Comparison

GOLD, STUDENT = (255, 196, 0), (0, 190, 255)


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))))


def mask(rows: slice, columns: slice, shape: tuple[int, int, int] = (1, 120, 160)) -> np.ndarray:
    ids = np.zeros(shape, np.uint8)
    ids[:, rows, columns] = 1
    return ids


def outlined(picture: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    return bool((picture == np.asarray(rgb, np.uint8)).all(axis=-1).any())


def test_what_the_student_paints_far_from_gold_is_in_the_picture() -> None:
    gold = Outline(name="gold", rgb=GOLD, ids=mask(slice(10, 20), slice(10, 20)))
    student = Outline(name="student", rgb=STUDENT, ids=mask(slice(100, 110), slice(140, 150)))
    picture = decoded(overlay_png(np.zeros((1, 120, 160), np.float32), [gold, student], (1, 1, 1)))
    assert outlined(picture, GOLD)
    assert outlined(picture, STUDENT)


def test_contrast_is_that_of_the_part_that_is_shown() -> None:
    image = np.zeros((1, 120, 160), np.float32)
    image[0, 60:, :] = 10_000
    image[0, 5:15, 5:15] = 1
    picture = decoded(overlay_png(image, [Outline(name="gold", rgb=GOLD, ids=mask(slice(8, 12), slice(8, 12)))], (1, 1, 1)))
    grey = picture[(picture == picture[..., :1]).all(axis=-1)]
    assert grey.max() > 200


def test_pictures_of_any_crop_line_up() -> None:
    wide = Outline(name="gold", rgb=GOLD, ids=mask(slice(50, 55), slice(10, 150)))
    tall = Outline(name="gold", rgb=GOLD, ids=mask(slice(5, 115), slice(70, 75)))
    shapes = {decoded(overlay_png(np.zeros((1, 120, 160), np.float32), [o], (1, 1, 1))).shape for o in (wide, tall)}
    assert shapes == {(300, 300, 3)}
    deep = Outline(name="gold", rgb=GOLD, ids=mask(slice(5, 15), slice(7, 17), (9, 30, 40)))
    assert decoded(overlay_png(np.zeros((9, 30, 40), np.float32), [deep], (3, 1, 1))).shape == (908, 300, 3)


def volumes(pairs: list[tuple[float, float]]) -> Comparison:
    blank = dict.fromkeys(("dice", "jaccard", "nsd", "hd95_mm", "volume_bias"))
    scores = [
        CaseScore.model_validate({"case": f"c{n}", "patient": "p", "class_id": 1, **blank, "first_ml": a, "second_ml": b})
        for n, (a, b) in enumerate(pairs)
    ]
    return Comparison.model_validate(
        {"name": "s", "role": "student", "first": "s", "second": "gold", "cases": 2, "missing": 0, "classes": (), "scores": tuple(scores)}
    )


def test_both_axes_of_the_volume_plot_have_values_and_a_unit_and_no_dot_lies_outside() -> None:
    plot = bland_altman(volumes([(1.0, 1.5), (2.0, 2.2), (3.0, 2.9)]), 1)
    assert "student minus gold (ml)" in plot
    assert "mean of student and gold (ml)" in plot
    assert len(re.findall(r'text-anchor="end">-?[\d.]+<', plot)) >= 4
    low, high = min(ys := [float(y) for y in re.findall(r'class="grid" x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)"', plot)]), max(ys)
    assert all(low <= float(y) <= high for y in re.findall(r'cy="([\d.]+)"', plot))


def test_volumes_of_pixels_are_counted_in_pixels() -> None:
    plot = bland_altman(volumes([(1.0, 1.5), (2.0, 2.2)]), 1, "px", 1000.0)
    assert "<title>c0: 1000 px against 1500 px</title>" in plot
    assert "ml" not in plot


def test_a_long_name_does_not_reach_into_its_plot() -> None:
    long = "same net, trained on gold of the calibration part (47 cases) - gold"
    metric = {"mean": None, "low": None, "high": None, "patients": 0, "excluded": 0}
    names = ("dice", "jaccard", "nsd", "hd95_mm", "volume_bias")
    line = volumes([(1.0, 1.0)]).model_dump()
    line["name"] = long
    line["classes"] = ({"class_id": 1, "class_name": "c", "metrics": dict.fromkeys(names, metric)},)
    line["scores"][0]["dice"] = 0.0
    plot = strip_plot([Comparison.model_validate(line)], 1)
    assert float(re.findall(r'cx="([\d.]+)"', plot)[0]) > 6 * len(long)
