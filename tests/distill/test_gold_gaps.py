"""Where experts left gold open, nothing counts for or against a mask: not in thresholds, figures, guarantees, samples or the filter's report."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.audit import audit
from distill.audit_masks import AuditPlan
from distill.calibration import ClassCalibration, calibrate
from distill.doubts import add_reverse
from distill.gold_gaps import looks_undrawn
from distill.levels import count_levels
from distill.quality import error_transfer
from distill.refine import RefinePlan
from distill.reverse import sample_of
from distill.rings import inner_radius
from distill.unknown import UNASKED
from storage import IGNORE, Archive, LabelHistory

HERE = Path(__file__).parent
BALLS = runpy.run_path(str(HERE / "test_calibration.py"))  # tests are no package
SQUARES = runpy.run_path(str(HERE / "test_audit.py"))
A = BALLS["A"]
SHAPE = (6, 13, 17)
DRAWN = (3, 5, 7)


def leave_open(archive: Archive, case: str, drawn: tuple[int, ...], value: int = IGNORE) -> None:
    """Give all slices of a case's gold but some this value."""
    ids = archive[case].labels("gold").read()
    others = [z for z in range(len(ids)) if z not in drawn]
    ids[others] = value
    archive[case].write_labels(LabelHistory(label_set="gold", classes=archive[case].labels("gold").history.classes, made_by="test"), ids)


def calibrated(archive: Archive, **more: object) -> ClassCalibration:
    found: ClassCalibration = calibrate(archive, (A,), smoothing_mm=(0.0,), **more)[1]  # type: ignore[arg-type]
    return found


def balls(path: Path, count: int = 4, *, gold_radius: float = 4.0) -> Archive:
    archive = Archive.create(str(path))
    for n in range(count):
        BALLS["add"](archive, f"case{n:02}", "calibration", gold_radius=gold_radius, fade_at=3.0, agreement=0.8 + 0.01 * n)
    return archive


GAPS = (
    "; gold of 4 of 4 calibration cases is of a part, and counts there alone; no slice without the object was drawn, so what the teacher draws beyond its ends "
    "is not counted: let gold say 0 on some slices beyond them"
)


def test_three_drawn_slices_set_the_threshold_that_the_whole_organ_sets(tmp_path: Path) -> None:
    whole, part = balls(tmp_path / "whole.zarr"), balls(tmp_path / "part.zarr")
    for record in part.cases():
        leave_open(part, record.id, DRAWN)
    a, b = calibrated(whole), calibrated(part)
    assert abs(a.rule.threshold - b.rule.threshold) < 0.1
    assert b.dice_after > 0.95
    assert abs(b.volume_bias_after) < 0.1
    assert a.temperature is not None
    assert b.temperature is not None
    assert b.temperature.temperature == pytest.approx(a.temperature.temperature, rel=0.15)
    assert b.note.endswith(GAPS)
    assert a.note == b.note.partition("; gold of 4 of 4")[0].replace(f"{1 - b.dice_after:.2f}", f"{1 - a.dice_after:.2f}")
    assert b.warning == ""


def test_gold_that_leaves_everything_open_is_left_out_and_said(tmp_path: Path) -> None:
    archive = balls(tmp_path / "a.zarr", 5)
    leave_open(archive, "case00", ())
    found = calibrated(archive)
    assert found.patients == 4
    assert found.note.endswith("; gold of 1 of 5 leaves everything open (255), and they are left out")


def test_a_mask_on_slices_that_nobody_judged_is_no_witness_for_a_guarantee(tmp_path: Path) -> None:
    archive = balls(tmp_path / "a.zarr", 9, gold_radius=3.0)
    BALLS["add"](archive, "unseen", "calibration", gold_radius=3.0, fade_at=3.0, agreement=0.99)
    leave_open(archive, "unseen", (0, 9))
    found = calibrated(archive)
    assert [each.patients for each in found.guarantees] == [9, 9, 9]
    assert "; 1 of their masks lie where nothing was judged, and are left out" in found.note


def test_what_is_drawn_on_a_slice_that_an_expert_found_empty_is_still_wrong(tmp_path: Path) -> None:
    archive = balls(tmp_path / "a.zarr", 9, gold_radius=3.0)
    BALLS["add"](archive, "nothing", "calibration", gold_radius=-1.0, fade_at=3.0, agreement=0.99)
    leave_open(archive, "nothing", (5,))
    mask = calibrated(archive, risk=0.2).guarantees[0]
    assert mask.patients == 10
    assert mask.found is not None
    assert mask.found >= 0.1, "one of ten masks loses everything"


def test_slices_without_an_organ_between_slices_with_it_are_warned_of(tmp_path: Path) -> None:
    archive = balls(tmp_path / "a.zarr", 4)
    for n in range(3):
        leave_open(archive, f"case{n:02}", DRAWN, value=0)
    found = calibrated(archive)
    assert "gold of 3 of 4 calibration cases has the object on single slices above each other" in found.warning
    assert found.remedy == "mark as 255 where nobody drew in these cases"


def layers(*zs: int, shift: int = 0) -> np.ndarray:
    gold = np.zeros(SHAPE, bool)
    for n, z in enumerate(zs):
        gold[z, 3:8, 2 + n * shift : 6 + n * shift] = True
    return gold


@pytest.mark.parametrize(
    ("gold", "judged", "says"),
    [
        pytest.param(layers(0, 2, 4), np.ones(SHAPE, bool), True, id="every second slice"),
        pytest.param(layers(0, 2, 4).transpose(1, 0, 2), np.ones((13, 6, 17), bool), True, id="in another direction"),
        pytest.param(layers(1, 2, 3, 4), np.ones(SHAPE, bool), False, id="a whole organ"),
        pytest.param(layers(0, 1, 3, 5), np.ones(SHAPE, bool), False, id="an organ with a gap"),
        pytest.param(layers(0, 3), np.ones(SHAPE, bool), False, id="two lesions"),
        pytest.param(layers(0, 2, 4, shift=5), np.ones(SHAPE, bool), False, id="three lesions, each elsewhere"),
        pytest.param(layers(0, 2, 4), np.isin(np.arange(6), (0, 2, 4))[:, None, None] & np.ones(SHAPE, bool), False, id="open between"),
        pytest.param(layers(), np.ones(SHAPE, bool), False, id="nothing"),
    ],
)
def test_an_object_on_single_slices_above_each_other_looks_as_if_nobody_drew_between(
    gold: np.ndarray, judged: np.ndarray, says: bool
) -> None:
    assert looks_undrawn(gold, judged) is says


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_lies_where_nobody_judged_counts_nothing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    levels, gold, judged = draw.integers(6, 256, SHAPE).astype(np.uint8), draw.uniform(size=SHAPE) < 0.4, draw.uniform(size=SHAPE) < 0.6
    judged[0, 0, 0] = True
    changed = np.where(judged, gold, ~gold)
    counted, again = (count_levels(levels, each & judged, judged=judged) for each in (gold, changed))
    assert counted.voxels == judged.sum()
    assert (counted.counts == again.counts).all()
    mask = levels > 120
    assert inner_radius(mask, gold & judged, (3.0, 0.8, 1.1), judged=judged) == inner_radius(
        mask, changed & judged, (3.0, 0.8, 1.1), judged=judged
    )


def test_a_mask_is_as_believable_in_its_depth_by_some_of_its_slices_as_by_all() -> None:
    gold, mask = np.zeros((5, 20, 22), bool), np.zeros((5, 20, 22), bool)
    gold[:, 6:14, 6:14], mask[:, 4:16, 4:16] = True, True
    judged = np.zeros(mask.shape, bool)
    judged[[1, 3]] = True
    assert inner_radius(mask, gold, (1.0, 1.0, 1.0)) == inner_radius(mask, gold & judged, (1.0, 1.0, 1.0), judged=judged) > 0
    assert inner_radius(mask, gold & judged, (1.0, 1.0, 1.0)) > inner_radius(mask, gold, (1.0, 1.0, 1.0))


def test_reverse_classification_draws_no_voxel_that_nobody_judged() -> None:
    mask = layers(1, 2, 3)
    judged = np.zeros(SHAPE, bool)
    judged[1:3] = True
    sample = sample_of(mask & judged, np.random.default_rng(0).uniform(size=SHAPE), judged=judged)
    assert sample is not None
    assert sample.weight.sum() == pytest.approx(judged.sum())
    assert sample_of(mask, np.zeros(SHAPE), judged=mask) is None, "without anything beside the object nothing can be told"


def test_a_mask_is_not_held_against_voxels_that_nobody_judged_when_it_teaches(tmp_path: Path) -> None:
    reached = {}
    for name, drawn in (("whole", tuple(range(10))), ("part", DRAWN)):
        archive = Archive.create(str(tmp_path / f"{name}.zarr"))
        for n in range(3):
            BALLS["add"](archive, f"case{n}", "calibration", gold_radius=4.0, fade_at=4.0, agreement=0.9)
            leave_open(archive, f"case{n}", drawn)
        add_reverse(archive, RefinePlan(classes=(A,)))
        reached[name] = archive.catalog.scores("teacher/r1")["case0"]["rca_dice/1"]
    assert reached["whole"] > 0.9
    assert reached["part"] > 0.9


def taught_by_half(path: Path, *, said: bool) -> float:
    """Return what half an organ teaches where the teacher was not asked about the other half, and says so or not."""
    archive = Archive.create(str(path))
    for n in range(3):
        BALLS["add"](archive, f"case{n}", "calibration", gold_radius=4.0, fade_at=4.0, agreement=0.9)
    labels = archive["case0"].labels("teacher/r1")
    assert labels.probability is not None
    stored, unknown = np.asarray(labels.probability[...]), np.zeros(labels.ids.shape, np.uint8)
    stored[:, 5:], unknown[5:] = 0, UNASKED
    ids = (stored[0] > 127).astype(np.uint8)
    maps = {"unknown": unknown} if said else None
    archive["case0"].write_labels(labels.history, ids, probability_kzyx=stored, scores=labels.scores, maps=maps)
    add_reverse(archive, RefinePlan(classes=(A,)))
    return float(archive.catalog.scores("teacher/r1")["case0"]["rca_dice/1"])


def test_a_mask_teaches_no_background_where_the_teacher_was_not_asked(tmp_path: Path) -> None:
    left_open, background = taught_by_half(tmp_path / "a.zarr", said=True), taught_by_half(tmp_path / "b.zarr", said=False)
    assert left_open > background + 0.1


def test_the_filter_report_holds_masks_against_judged_voxels_only_and_says_what_was_left_open(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for name in ("a", "b", "open"):
        SQUARES["add"](archive, name, part="test")
    leave_open(archive, "b", (1,))
    leave_open(archive, "open", ())
    report = audit(archive, AuditPlan(classes=SQUARES["CLASSES"]))
    organ = report.classes[0]
    assert [(dot.case, dot.dice) for dot in organ.dots] == [("a", 1.0), ("b", 1.0)]
    assert organ.calibration is not None
    assert organ.calibration.before.masks == 2
    assert organ.calibration.before.ece == 0
    assert report.gold_cases == {"test": 2}
    assert report.gold_notes == (
        "In 1 of these (1 test) a part was left open (255): figures against gold are about what they judged.",
        "Gold of 1 more leaves everything open, and says nothing.",
    )


def test_no_error_is_passed_on_where_nobody_judged() -> None:
    gold = np.array([1, 0, IGNORE, IGNORE, IGNORE])
    found = error_transfer(np.array([0, 0, 1, 0, 1]), np.array([1, 0, 1, 0, 0]), gold)
    assert (found.correction, found.imitation, found.new) == (1, 0, 0)
