"""Thresholds are set on calibration gold only, and say what they were set on."""

from pathlib import Path

import numpy as np
import pytest

from distill.calibration import calibrate
from distill.errors import CalibrationError
from distill.evidence import count_cut, cut_mask, gold_cases
from distill.refine import ClassRule, RefinePlan, drawn_mask
from distill.reliability import fit_temperature
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from storage.case import Part

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
A = ClassInfo(id=1, name="a")
GRID = np.mgrid[:10, :14, :18]
RADIUS = np.sqrt((GRID[0] - 5) ** 2 + (GRID[1] - 7) ** 2 + (GRID[2] - 9) ** 2)


def add(
    archive: Archive, name: str, part: Part, *, gold_radius: float, fade_at: float, agreement: float, grey: np.ndarray | None = None
) -> None:
    """A ball whose teacher probability falls through one half at ``fade_at`` voxels from its centre."""
    record = CaseRecord(
        id=name,
        patient=name,
        shape_czyx=(1, 10, 14, 18),
        dtype="uint8",
        part=part,
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY),
    )
    case = archive.add_case(record, np.zeros((1, 10, 14, 18), np.uint8) if grey is None else grey[None].astype(np.uint8))
    probability = np.clip(0.5 + 0.25 * (fade_at - RADIUS), 0, 1)
    history = LabelHistory(label_set="teacher/r1", classes=(A,), made_by="test", fingerprint=name)
    case.write_labels(
        history,
        (probability > 0.5).astype(np.uint8),
        probability_kzyx=np.rint(255 * probability[None]).astype(np.uint8),
        scores={"pairwise_dice/1": agreement},
    )
    case.write_labels(LabelHistory(label_set="gold", classes=(A,), made_by="test"), (gold_radius >= RADIUS).astype(np.uint8))


def ball_archive(path: Path, part: Part = "calibration", count: int = 4, fade_at: float = 3.0) -> Archive:
    archive = Archive.create(str(path / "a.zarr"))
    for n in range(count):
        add(archive, f"case{n}", part, gold_radius=4.0, fade_at=fade_at, agreement=0.8 + 0.04 * n)
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
    assert found.note.startswith("the 4 of 7 calibration masks with the best agreement lose 0.")
    assert found.note.endswith(" of Dice on average, within refine.risk of 0.10: accepted down to the lowest of theirs")
    assert found.warning == "", "no guarantee was asked for"


def test_gold_of_other_parts_is_never_read(tmp_path: Path) -> None:
    found = calibrate(ball_archive(tmp_path, part="test"), (A,))[1]
    assert found.patients == 0
    assert found.rule == ClassRule()
    assert "not calibrated" in found.note
    assert "agreement, not accuracy" in found.note
    assert (found.temperature, found.quality, found.ring, found.guarantees) == (None, None, None, ())


def test_too_few_patients_leave_the_defaults_and_say_so(tmp_path: Path) -> None:
    found = calibrate(ball_archive(tmp_path, count=2), (A,))[1]
    assert found.rule == ClassRule()
    assert "2 gold patients in the calibration part, 3 needed" in found.note


def test_a_risk_out_of_reach_keeps_the_default_and_warns_with_what_accepted_masks_lose(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(4):
        add(archive, f"case{n}", "calibration", gold_radius=1.2 if n % 2 else 4.5, fade_at=3.0, agreement=0.9)
    found = calibrate(archive, (A,), risk=0.01)[1]
    assert found.rule.accept_from == ClassRule().accept_from
    assert found.note.startswith("the default agreement 0.85 stands")
    assert found.warning.startswith("the risk of 0.01 is out of reach: no agreement keeps accepted calibration masks within it (best 0.")
    assert found.warning.endswith(f"and masks accepted from the default 0.85 on lose {1 - found.dice_after:.2f}"), "all four are"
    assert not found.guaranteed


def test_a_risk_that_is_no_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        calibrate(ball_archive(tmp_path), (A,), risk=20)


def mixed_archive(path: Path, good: int = 12, bad: int = 3) -> Archive:
    """Balls drawn almost as they are, with high agreement, and some of which only a speck is there, with low agreement."""
    archive = Archive.create(str(path / "a.zarr"))
    for n in range(good):
        add(archive, f"good{n:02}", "calibration", gold_radius=3.0, fade_at=3.0, agreement=0.9 + 0.005 * n)
    for n in range(bad):
        add(archive, f"bad{n:02}", "calibration", gold_radius=1.2, fade_at=3.0, agreement=0.5 + 0.01 * n)
    return archive


def test_a_wanted_guarantee_sets_the_agreement_and_leaves_the_cut_as_it_was(tmp_path: Path) -> None:
    found = calibrate(mixed_archive(tmp_path), (A,), smoothing_mm=(0.0,), risk=0.2, guarantee="mask")[1]
    promised = found.guarantees[0]
    assert promised.feasible
    assert found.rule.accept_from == promised.threshold
    assert (found.rule.threshold, found.rule.smooth_mm) == (ClassRule().threshold, ClassRule().smooth_mm)
    assert found.note.startswith("guaranteed for new patients like the 15 of calibration: masks accepted from an agreement of 0.")
    assert "lose at most 0.20 of Dice per patient on average" in found.note
    assert "masks (cut at 0.50, not smoothed, largest component)" in promised.statement
    assert (found.guaranteed, found.unguaranteed, found.warning) == (True, "", "")


def test_a_guarantee_that_nobody_asked_for_changes_nothing_is_claimed_of_no_mask_and_is_not_talked_about(tmp_path: Path) -> None:
    archive = mixed_archive(tmp_path)
    found = calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.2)[1]
    assert found.guarantees[0].feasible
    assert found.rule.accept_from != found.guarantees[0].threshold
    assert "guarantee" not in found.note + found.warning
    assert not found.guaranteed
    assert found.unguaranteed == "the same patients chose the thresholds (refine: {guarantee: mask} asks for a guarantee)"


@pytest.mark.parametrize(
    ("fade_at", "remedy"),
    [
        pytest.param(4.0, "bring in gold of 5 more calibration patients, or say refine.risk: 0.2", id="good masks"),
        pytest.param(
            3.0,
            "say refine.risk: 0.35 or try better prompts, another teacher or more members (with masks like these no number of patients keeps half of them)",
            id="masks that more patients would not help",
        ),
    ],
)
def test_a_guarantee_that_takes_more_patients_is_refused_with_a_warning_and_the_old_way_decides(
    fade_at: float, remedy: str, tmp_path: Path
) -> None:
    archive = ball_archive(tmp_path, fade_at=fade_at)
    plain, wanted = (calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.1, guarantee=each)[1] for each in ("none", "mask"))
    assert wanted.rule == plain.rule
    assert wanted.warning == "no guarantee: 9 patients needed for a level of 0.10, 4 found"
    assert wanted.remedy == remedy
    assert (plain.warning, wanted.guaranteed) == ("", False)
    assert all(each.threshold is None for each in wanted.guarantees)


def test_a_level_that_no_threshold_holds_is_said_to_be_out_of_reach(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(12):
        add(archive, f"case{n:02}", "calibration", gold_radius=1.2, fade_at=3.0, agreement=0.9)
    found = calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.1, guarantee="mask")[1]
    refused, out_of_reach = found.warning.split("; ")
    assert refused == "no guarantee: with 12 patients, no threshold on pairwise_dice bounds the Dice lost in accepted masks by 0.10"
    assert out_of_reach.startswith("the risk of 0.10 is out of reach")
    assert found.rule.accept_from == ClassRule().accept_from


def test_a_mask_where_the_expert_found_nothing_counts_as_lost(tmp_path: Path) -> None:
    archive = mixed_archive(tmp_path, bad=0)
    assert calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.2)[1].guarantees[0].kept == 1
    for n in range(12):
        add(archive, f"none{n:02}", "calibration", gold_radius=-1.0, fade_at=3.0, agreement=0.97 + 0.001 * n)
    found = calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.2)[1]
    assert found.patients == 12
    assert found.guarantees[0].patients == 24
    assert found.guarantees[0].kept is not None
    assert found.guarantees[0].kept < 0.25


def test_temperature_predicted_dice_and_ring_come_with_the_rule(tmp_path: Path) -> None:
    found = calibrate(mixed_archive(tmp_path, good=16, bad=4), (A,), smoothing_mm=(0.0,), risk=0.2)[1]
    assert found.temperature is not None
    assert found.temperature.patients == 20
    assert found.quality is not None
    assert found.quality.scores == ("pairwise_dice",)
    assert found.quality.error < 0.5 * found.quality.error_of_mean
    assert found.ring is not None
    assert found.ring.feasible
    assert "mm covers at least 90% of the object" in found.ring.statement


def test_nothing_is_guaranteed_of_patients_whose_gold_the_prompts_were_learnt_from(tmp_path: Path) -> None:
    found = calibrate(mixed_archive(tmp_path), (A,), smoothing_mm=(0.0,), risk=0.2, guarantee="mask", taught=("exemplar",))[1]
    assert (found.guarantees, found.ring, found.guaranteed) == ((), None, False)
    assert found.warning == "no guarantee: the prompts of exemplar were learnt from gold of calibration patients"


def test_the_temperature_is_of_the_probabilities_that_the_set_rule_cuts(tmp_path: Path) -> None:
    archive = mixed_archive(tmp_path, good=6, bad=3)
    found = calibrate(archive, (A,), smoothing_mm=(2.0,), risk=0.2)[1]
    cases = gold_cases(archive, 1, source="teacher/r1")
    patients = [case.patient for case in cases]
    as_cut = fit_temperature([count_cut(case, found.rule) for case in cases], patients)
    as_drawn = fit_temperature([count_cut(case, ClassRule()) for case in cases], patients)
    assert found.rule.smooth_mm == 2.0
    assert found.temperature == as_cut
    assert as_cut.temperature != pytest.approx(as_drawn.temperature, rel=0.01)


def test_scores_added_after_labelling_may_predict_the_dice(tmp_path: Path) -> None:
    archive = mixed_archive(tmp_path)
    for record in archive.cases():
        archive.catalog.add_scores(record.id, "teacher/r1", {"oof_dice/1": 0.9 if record.id.startswith("good") else 0.1, "oof_dice/2": 0.5})
    scores = next(case.scores for case in gold_cases(archive, 1, source="teacher/r1") if case.case == "bad00")
    assert scores == {"pairwise_dice": 0.5, "oof_dice": 0.1}


@pytest.mark.parametrize(
    "rule",
    [ClassRule(), ClassRule(threshold=0.4, smooth_mm=1.2), ClassRule(largest_component=False, least_mm3=30.0, rectify_edges=True)],
    ids=["defaults", "smoothed", "other cleaning"],
)
def test_what_is_calibrated_is_the_mask_that_refinement_cuts(tmp_path: Path, rule: ClassRule) -> None:
    archive = ball_archive(tmp_path, count=1)
    plan = RefinePlan(classes=(A,), rules={1: rule})
    refined = drawn_mask(archive["case0"], plan, 1)
    judged = gold_cases(archive, 1, source="teacher/r1", intensity=plan.intensity)[0]
    assert refined is not None
    assert refined[1].any()
    assert np.array_equal(cut_mask(judged, rule), refined[1])


def test_cases_of_one_agreement_are_accepted_together_or_not_at_all(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(7):
        add(archive, f"case{n}", "calibration", gold_radius=3.0 if n < 4 else 1.2, fade_at=3.0, agreement=0.9)
    found = calibrate(archive, (A,), risk=0.1)[1]
    assert found.warning.startswith("the risk of 0.10 is out of reach")
    assert found.rule.accept_from == ClassRule().accept_from


def test_masks_of_what_the_expert_did_not_find_are_among_those_that_the_risk_is_about(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(8):
        add(archive, f"good{n:02}", "calibration", gold_radius=3.0, fade_at=3.0, agreement=0.95 + 0.005 * n)
    for n in range(8):
        add(archive, f"none{n:02}", "calibration", gold_radius=-1.0, fade_at=3.0, agreement=0.91 + 0.003 * n)
    found = calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.2)[1]
    accepted = [
        case.gold.any() for case in gold_cases(archive, 1, source="teacher/r1") if case.scores["pairwise_dice"] >= found.rule.accept_from
    ]
    assert 1 - np.mean(accepted) <= 0.2, "each mask of nothing loses everything"
    assert " of 16 calibration masks with the best agreement lose 0." in found.note


def test_a_guarantee_does_not_say_that_the_accepted_masks_alone_lose_little(tmp_path: Path) -> None:
    """One of thirty masks is accepted, and wrong: 1 / 31 + 1 / 31 is within the level, as rejected masks count as losing nothing."""
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(30):
        add(archive, f"case{n:02}", "calibration", gold_radius=1.2, fade_at=3.0, agreement=0.9 if n else 0.95)
    found = calibrate(archive, (A,), smoothing_mm=(0.0,), risk=0.1, guarantee="mask")[1]
    assert found.guaranteed
    assert found.warning.startswith("accepted calibration masks alone lose 0.89, above the risk of 0.10")
    assert found.note.endswith(
        "counting those not accepted as losing nothing (3% of the calibration masks are accepted; not guaranteed: those lose 0.89 on average)"
    )


def boxes_of_balls(path: Path, *, seen: bool) -> Archive:
    """Cubes that the teacher draws as balls; whether their corners can be seen in the picture, or all of it is noise."""
    archive, rng = Archive.create(str(path / "a.zarr")), np.random.default_rng(5)
    cube = (np.abs(GRID[0] - 5) <= 3) & (np.abs(GRID[1] - 7) <= 3) & (np.abs(GRID[2] - 9) <= 3)
    for n in range(4):
        add(
            archive,
            f"case{n}",
            "calibration",
            gold_radius=1.0,
            fade_at=3.6,
            agreement=0.9,
            grey=90 + 60 * cube * seen + rng.normal(0, 9, cube.shape),
        )
        archive[f"case{n}"].write_labels(LabelHistory(label_set="gold", classes=(A,), made_by="cube"), cube.astype(np.uint8))
    return archive


def test_gold_has_intensity_heard_about_edges_where_it_brings_them_nearer(tmp_path: Path) -> None:
    archive = boxes_of_balls(tmp_path, seen=True)
    plain, weighed = (calibrate(archive, (A,), weigh_edges=asked)[1] for asked in ((), (1,)))
    assert plain.rule.rectify_edges is False
    assert weighed.rule.rectify_edges in (0.5, 1.0, 1.5)
    assert weighed.dice_after > plain.dice_after + 0.02
    assert "edges by intensity, with a weight of" in weighed.note
    rules = RefinePlan(classes=(A,), rules={1: weighed.rule})
    mask = drawn_mask(archive["case0"], rules, 1)
    judged = gold_cases(archive, 1, source="teacher/r1", intensity=rules.intensity)[0]
    assert mask is not None
    assert np.array_equal(mask[1], cut_mask(judged, weighed.rule)), "refinement cuts what calibration judged"


def test_gold_leaves_edges_to_the_teacher_where_intensity_says_nothing(tmp_path: Path) -> None:
    found = calibrate(boxes_of_balls(tmp_path, seen=False), (A,), weigh_edges=(1,))[1]
    assert found.rule.rectify_edges is False
    assert "edges are as the teacher draws them" in found.note
