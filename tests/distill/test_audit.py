"""What the filter's report says: with gold, without, with everything removed, and of a group that is removed more than the rest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.audit import audit
from distill.audit_masks import AuditPlan
from distill.calibration import ClassCalibration
from distill.cleaning import ClassRule
from distill.quality import aurc, normalised_aurc
from distill.rings import Ring, ring
from distill.unknown import UNASKED
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=1, name="organ"), ClassInfo(id=3, name="other"))
PLAN = AuditPlan(classes=CLASSES)
SHAPE = (3, 12, 14)


def square(shift: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[:, 3:9, 2 + shift : 8 + shift] = True
    return mask


def add(
    archive: Archive,
    name: str,
    *,
    agreement: float = 0.9,
    shift: int = 0,
    verdict: str = "accept",
    part: str = "archive",
    gold: bool = True,
    patient: str | None = None,
    attributes: dict[str, str | float | int] | None = None,
    more: dict[str, float] | None = None,
    unasked: Sequence[int] = (),
    ignored: float = 0.1,
) -> None:
    """One case whose mask lies ``shift`` pixels beside gold; class 3 was not prompted."""
    record = CaseRecord(
        id=name,
        patient=patient or name,
        shape_czyx=(1, *SHAPE),
        dtype="uint8",
        geometry=Geometry(spacing_zyx_mm=(1, 1, 1), affine=IDENTITY),
        modality="MR",
        part=part,  # type: ignore[arg-type]
        attributes=attributes or {},
    )
    archive.add_case(record, square(0)[None].astype(np.uint8))
    probability = np.stack([square(shift), np.zeros(SHAPE, bool)]).astype(np.uint8) * 255
    unknown = np.zeros((2, *SHAPE), np.uint8)
    unknown[0, list(unasked)] = UNASKED
    scores = {"pairwise_dice/1": agreement, "volume_mm3/1": 108.0} | (more or {})
    told = {"verdict/1": verdict, "reason/1": f"because-{verdict}", "threshold/1": 0.5, "verdict/3": "reject", "reason/3": "not-prompted"}
    for label_set, parameters in (("teacher/r1", {}), ("pseudo/r1", told)):
        history = LabelHistory(label_set=label_set, classes=CLASSES, made_by="test", parameters=parameters, fingerprint=name)
        archive[name].write_labels(
            history,
            square(shift).astype(np.uint8),
            probability_kzyx=probability,
            scores=scores | {"ignored_share": ignored},
            maps={"unknown": unknown} if unasked and label_set == PLAN.source else {},
        )
    if gold:
        archive[name].write_labels(
            LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint=name), square(0).astype(np.uint8)
        )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(str(tmp_path / "a.zarr"))


def test_with_gold_the_curve_is_of_dice_and_says_which_cases_set_the_thresholds(archive: Archive) -> None:
    for n in range(6):
        add(archive, f"t{n}", part="test", agreement=0.9 - 0.1 * n, shift=n // 2, verdict="accept" if n < 4 else "review")
    add(archive, "c", part="calibration", shift=1)
    add(archive, "u", gold=False)
    report = audit(archive, PLAN)
    organ = report.classes[0]
    test, calibration = organ.curves
    risk = [1 - (1 - (n // 2) / 6) for n in range(6)]
    assert (test.group, test.kind, test.masks, test.risk) == ("test", "Dice with gold", 6, "1 - Dice with gold")
    assert test.aurc == pytest.approx(aurc([0.9 - 0.1 * n for n in range(6)], risk))
    assert test.normalised_aurc == pytest.approx(normalised_aurc([0.9 - 0.1 * n for n in range(6)], risk)) == 1.0
    assert calibration.about == "calibration cases: they set the thresholds, so their figures flatter"
    assert (report.gold_cases, report.parts) == ({"test": 6, "calibration": 1, "archive": 0}, {"archive": 1, "calibration": 1, "test": 6})
    assert organ.calibration is not None
    assert organ.calibration.before.masks == 6, "calibration cases are left out where others have gold"
    assert (organ.groups[0].removed.of, organ.verdicts) == (1, {"accept": 1}), "rates are of the archive part"
    whole, kept = organ.groups[0].whole_quality, organ.groups[0].kept_quality
    assert whole is not None
    assert kept is not None
    assert (whole.masks, kept.masks) == (6, 4)
    assert kept.mean == pytest.approx(np.mean([1 - r for r in risk[:4]]))


def test_a_dice_of_a_small_part_of_the_object_says_so(archive: Archive) -> None:
    for n in range(6):
        add(archive, f"t{n}", part="test", unasked=(1, 2), ignored=0.7)
        add(archive, f"a{n}", gold=False, ignored=0.6 if n else 0.9)
    report = audit(archive, PLAN)
    test, kept = report.classes[0].parts
    assert test.kept_quality is not None
    assert (test.kept_quality.mean, test.judged, test.ignored) == (1.0, pytest.approx(1 / 3), pytest.approx(0.7))
    assert (kept.judged, kept.ignored) == (None, pytest.approx(0.65))
    assert report.warnings[0].startswith("organ: in test cases the Dice of kept masks is about 33% of what experts drew;")
    assert report.warnings[1] == (
        "organ: on average 65% of the voxels of an archive case with a kept mask are ignored: a student learns from the others alone."
    )


def test_masks_that_lie_on_no_slice_that_was_asked_count_in_what_was_judged(archive: Archive) -> None:
    for n in range(4):
        add(archive, f"t{n}", part="test", unasked=(0, 1, 2) if n else ())
    report = audit(archive, PLAN)
    [test] = report.classes[0].parts
    assert test.kept_quality is not None
    assert (test.kept_quality.masks, test.judged) == (1, 0.25)
    assert {(shown.dice is None, shown.gold) for shown in report.gallery} == {
        (False, "known"),
        (True, "the teacher was not asked there, or is not believed"),
    }


def test_where_no_dice_is_known_none_is_said_to_be_of_a_part(archive: Archive) -> None:
    for n in range(4):
        add(archive, f"t{n}", part="test", unasked=(0, 1, 2))
    report = audit(archive, PLAN)
    assert (report.classes[0].kind, report.classes[0].parts[0].judged) == ("agreement", None)
    assert not any("what experts drew" in warning for warning in report.warnings)


def test_a_dice_of_the_whole_object_warns_of_nothing(archive: Archive) -> None:
    for n in range(6):
        add(archive, f"t{n}", part="test", verdict="accept" if n else "reject", unasked=() if n else (0, 1), ignored=0.7)
        add(archive, f"a{n}", gold=False, ignored=0.4)
    report = audit(archive, PLAN)
    assert (report.classes[0].parts[0].judged, report.warnings) == (1.0, ())


@pytest.mark.parametrize(("masks", "rank"), [pytest.param(4, None, id="too few"), pytest.param(5, 1.0, id="enough")])
def test_so_few_masks_have_no_rank(archive: Archive, masks: int, rank: float | None) -> None:
    for n in range(masks):
        add(archive, f"t{n}", part="test", agreement=0.9 - 0.1 * n, shift=n)
    found = {each.score: (each.masks, each.spearman, each.normalised_aurc) for each in audit(archive, PLAN).classes[0].scores}
    assert found["pairwise_dice"] == (masks, rank and pytest.approx(rank), rank and pytest.approx(rank))


def test_a_class_that_nobody_prompted_is_counted_and_not_judged(archive: Archive) -> None:
    add(archive, "a")
    other = audit(archive, PLAN).classes[1]
    assert (other.reasons, other.verdicts, other.curves, other.groups[0].removed.share) == ({"not-prompted": 1}, {}, (), None)


def test_without_gold_everything_is_called_agreement(archive: Archive) -> None:
    for n in range(5):
        add(archive, f"a{n}", gold=False, agreement=0.9 - 0.1 * n, more={"oof_dice/1": 0.8 - 0.1 * n})
    report = audit(archive, PLAN)
    organ = report.classes[0]
    assert (organ.kind, organ.curves[0].kind, organ.curves[0].risk) == ("agreement", "agreement", "1 - oof_dice (agreement)")
    assert "No case has gold, so nothing here is accuracy" in report.warnings[0]
    assert (organ.scores, organ.calibration, organ.dots) == ((), None, ())
    assert report.gallery[0].dice is None


def test_an_agreement_that_is_ordered_by_itself_claims_nothing(archive: Archive) -> None:
    for n in range(4):
        add(archive, f"a{n}", gold=False, agreement=0.9 - 0.1 * n)
    curve = audit(archive, PLAN).classes[0].curves[0]
    assert (curve.risk, curve.normalised_aurc, curve.gain_at_80) == ("1 - pairwise_dice (agreement)", None, None)


def test_an_agreement_that_is_the_same_for_all_stands_in_for_nothing(archive: Archive) -> None:
    """Neighbouring slices agree perfectly in pictures, which have none."""
    for n in range(4):
        add(archive, f"a{n}", gold=False, agreement=0.9 - 0.1 * n, more={"slice_consistency/1": 1.0})
    assert audit(archive, PLAN).classes[0].curves[0].risk == "1 - pairwise_dice (agreement)"


def test_everything_rejected_is_said_and_shown(archive: Archive) -> None:
    for n in range(9):
        add(archive, f"a{n}", verdict="reject", shift=n % 3)
    report = audit(archive, PLAN)
    organ = report.classes[0]
    assert any("Nothing was kept" in warning for warning in report.warnings)
    assert (organ.groups[0].removed.share, organ.groups[0].kept_quality) == (1.0, None)
    assert [shown.heading for shown in report.gallery] == ["rejected"] * 6
    assert [shown.pick for shown in report.gallery[:3]] == ["best", "median", "worst"]


def test_an_empty_archive_has_a_report_too(archive: Archive) -> None:
    report = audit(archive, PLAN)
    assert (report.cases, report.gallery, report.classes[0].curves) == (0, (), ())
    assert "The teacher has drawn nothing that could be filtered." in report.warnings


def test_a_population_that_is_removed_more_than_the_rest_is_flagged(archive: Archive) -> None:
    for n in range(24):
        female = n % 2 == 0
        add(
            archive,
            f"a{n:02}",
            verdict="reject" if female else "accept",
            gold=False,
            attributes={"sex": "F" if female else "M", "vendor": "one"},
        )
    report = audit(archive, PLAN)
    row = next(row for row in report.classes[0].groups if row.value == "F")
    assert row.flagged
    assert row.p_adjusted is not None
    assert row.p is not None
    assert row.p_adjusted == pytest.approx(row.p), "two groups against each other are one test"
    [flag] = report.flags
    assert flag.startswith("organ: sex F is removed more often than the rest, 12 of 12 masks (100%; of all 50%; p = ")
    assert not any(row.attribute == "vendor" for row in report.classes[0].groups), "one value is nothing to compare"


def test_the_gallery_is_small_and_the_same_every_time(archive: Archive) -> None:
    for n in range(20):
        verdict = ("accept", "review", "reject")[n % 3]
        add(archive, f"a{n:02}", verdict=verdict, shift=n % 4)
    first, again = audit(archive, PLAN).gallery, audit(archive, PLAN).gallery
    assert first == again
    assert len(first) == 6 + 3 + 6 + 6
    assert {shown.heading for shown in first} == {"kept", "ignored", "review", "rejected"}


def test_the_report_survives_its_json(archive: Archive) -> None:
    for n in range(3):
        add(archive, f"a{n}", shift=n)
    report = audit(archive, PLAN)
    assert type(report).model_validate_json(report.model_dump_json()) == report


def test_a_class_that_somebody_said_is_absent_is_not_counted_as_not_prompted(archive: Archive) -> None:
    add(archive, "a")
    add(archive, "b")
    labels = archive["b"].labels("pseudo/r1")
    told = {**labels.history.parameters, "verdict/3": "accept", "reason/3": "said-absent"}
    archive["b"].write_labels(replace(labels.history, parameters=told), labels.read(), scores=labels.scores)
    assert audit(archive, PLAN).classes[1].reasons == {"not-prompted": 1, "said-absent": 1}


def test_figures_of_one_part_are_never_mixed_with_those_of_another_and_what_is_not_known_is_said(archive: Archive) -> None:
    add(archive, "t", part="test", shift=1)
    add(archive, "c", part="calibration")
    add(archive, "u", gold=False)
    organ = audit(archive, PLAN).classes[0]
    quality = {row.part: None if row.whole_quality is None else round(row.whole_quality.mean, 3) for row in organ.parts}
    assert quality == {"test": 0.833, "archive": None, "calibration": 1.0}
    assert [row.removed.of for row in organ.parts] == [1, 1, 1]
    assert organ.measured == {"test": 1}
    [shown] = [each for each in audit(archive, PLAN).gallery if each.heading == "kept"]
    assert (shown.case, shown.part, shown.dice, shown.gold) == ("u", "archive", None, "case not drawn by an expert")


def test_gold_of_other_classes_is_not_taken_for_gold_of_this_one(archive: Archive) -> None:
    add(archive, "a", gold=False)
    archive["a"].write_labels(LabelHistory(label_set="gold", classes=CLASSES[1:], made_by="test"), np.zeros(SHAPE, np.uint8))
    assert audit(archive, PLAN).gallery[0].gold == "class not looked for by the expert"


def test_probabilities_are_shown_as_they_are_cut_which_is_what_a_temperature_was_fitted_to(archive: Archive) -> None:
    add(archive, "a")
    history, smooth = archive["a"].labels("pseudo/r1").history, np.full((2, *SHAPE), 102, np.uint8)
    archive["a"].write_labels(history, square(0).astype(np.uint8), probability_kzyx=smooth, scores={"pairwise_dice/1": 0.9})
    organ = audit(archive, PLAN).classes[0]
    assert organ.calibration is not None
    assert [round(each.said, 3) for each in organ.calibration.before.bins] == [0.4], "and not the 0 and 1 that the teacher stored"


def test_the_ring_of_calibration_is_in_the_report_with_its_level_patients_and_both_distances(archive: Archive) -> None:
    add(archive, "a", part="test")
    radii, patients = [0.5 + 0.1 * n for n in range(20)], [f"p{n:02}" for n in range(20)]
    known = ring(radii, radii[::-1], patients, level=0.1, unit="px", subject="mask (cut at 0.50)")
    row = audit(archive, calibrated(known)).classes[0].thresholds.ring
    assert row is not None
    assert (row.level, row.patients, row.needed, row.unit, row.coverage) == (0.1, 20, 19, "px", 0.9)
    assert (row.outer, row.inner) == (known.outer.threshold, known.inner.threshold) == pytest.approx((2.4, 2.4))
    few = ring(radii[:4], radii[:4], patients[:4], level=0.1)
    row = audit(archive, calibrated(few)).classes[0].thresholds.ring
    assert row is not None
    assert (row.outer, row.inner, row.statement) == (None, None, few.statement)
    assert audit(archive, calibrated(None)).classes[0].thresholds.ring is None


def calibrated(known: Ring | None) -> AuditPlan:
    found = ClassCalibration(
        class_id=1,
        rule=ClassRule(),
        patients=20,
        dice_before=0.8,
        dice_after=0.8,
        volume_bias_before=0.0,
        volume_bias_after=0.0,
        note="",
        ring=known,
    )
    return replace(PLAN, calibrations={1: found})
