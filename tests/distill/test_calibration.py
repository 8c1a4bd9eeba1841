"""Thresholds are set on calibration gold only, and say what they were set on."""

from pathlib import Path

import numpy as np
import pytest

from distill.calibration import calibrate
from distill.errors import CalibrationError
from distill.refine import ClassRule
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from storage.case import Part

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
A = ClassInfo(id=1, name="a")
GRID = np.mgrid[:10, :14, :18]
RADIUS = np.sqrt((GRID[0] - 5) ** 2 + (GRID[1] - 7) ** 2 + (GRID[2] - 9) ** 2)


def add(archive: Archive, name: str, part: Part, *, gold_radius: float, fade_at: float, agreement: float) -> None:
    """A ball whose teacher probability falls through one half at ``fade_at`` voxels from its centre."""
    record = CaseRecord(
        id=name,
        patient=name,
        shape_czyx=(1, 10, 14, 18),
        dtype="uint8",
        part=part,
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY),
    )
    case = archive.add_case(record, np.zeros((1, 10, 14, 18), np.uint8))
    probability = np.clip(0.5 + 0.25 * (fade_at - RADIUS), 0, 1)
    history = LabelHistory(label_set="teacher/r1", classes=(A,), made_by="test", fingerprint=name)
    case.write_labels(
        history,
        (probability > 0.5).astype(np.uint8),
        probability_kzyx=np.rint(255 * probability[None]).astype(np.uint8),
        scores={"pairwise_dice/1": agreement},
    )
    case.write_labels(LabelHistory(label_set="gold", classes=(A,), made_by="test"), (gold_radius >= RADIUS).astype(np.uint8))


def ball_archive(path: Path, part: Part = "calibration", count: int = 4) -> Archive:
    archive = Archive.create(str(path / "a.zarr"))
    for n in range(count):
        add(archive, f"case{n}", part, gold_radius=4.0, fade_at=3.0, agreement=0.8 + 0.04 * n)
    return archive


def test_a_teacher_that_draws_too_small_gets_a_lower_threshold_and_loses_its_bias(tmp_path: Path) -> None:
    found = calibrate(ball_archive(tmp_path), (A,))[1]
    assert found.patients == 4
    assert found.rule.threshold < 0.35
    assert found.volume_bias_before < -0.4
    assert abs(found.volume_bias_after) < 0.1
    assert found.dice_after > found.dice_before + 0.2


def test_acceptance_stops_where_the_calibration_cases_lose_too_much(tmp_path: Path) -> None:
    archive = ball_archive(tmp_path)
    for n in range(3):
        add(archive, f"wrong{n}", "calibration", gold_radius=1.2, fade_at=3.0, agreement=0.5 + 0.01 * n)
    found = calibrate(archive, (A,), risk=0.1)[1]
    assert 0.52 < found.rule.accept_from <= 0.8
    assert found.note == "4 of 7 calibration cases are within the risk"


def test_gold_of_other_parts_is_never_read(tmp_path: Path) -> None:
    found = calibrate(ball_archive(tmp_path, part="test"), (A,))[1]
    assert found.patients == 0
    assert found.rule == ClassRule()
    assert "not calibrated" in found.note


def test_too_few_patients_leave_the_defaults_and_say_so(tmp_path: Path) -> None:
    found = calibrate(ball_archive(tmp_path, count=2), (A,))[1]
    assert found.rule == ClassRule()
    assert "2 gold patients in the calibration part, 3 needed" in found.note


def test_a_risk_out_of_reach_keeps_the_default_and_says_so(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(4):
        add(archive, f"case{n}", "calibration", gold_radius=1.2 if n % 2 else 4.5, fade_at=3.0, agreement=0.9)
    found = calibrate(archive, (A,), risk=0.01)[1]
    assert found.rule.accept_from == ClassRule().accept_from
    assert found.note.startswith("no agreement threshold")


def test_a_risk_that_is_no_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        calibrate(ball_archive(tmp_path), (A,), risk=20)
