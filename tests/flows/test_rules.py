"""What calibration leaves behind, and what is said about volumes where nobody knows the size of a pixel."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.audit_records import FilterReport
from distill.calibration import ClassCalibration
from distill.refine import Verdict
from flows import rules, stages
from flows.inspection import inspect_path
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import PSEUDO_SET, TEACHER_SET
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Prompt

WriteRecipe = Callable[[str], Path]
IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=1, name="organ"),)


@pytest.fixture
def recipe(write_recipe: WriteRecipe) -> Recipe:
    return load_recipe(
        write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ, volume_mm3: [1000, 9000]}}\nrefine: {consistency: none}\n")
    )


@pytest.fixture
def archive(recipe: Recipe) -> Archive:
    """A scan and a picture, each with the same small object drawn with full agreement."""
    made = Archive.create(recipe.archive)
    mask = np.zeros((1, 6, 7), np.uint8)
    mask[0, 2:4, 2:5] = 1
    for name, known in (("scan", True), ("picture", False)):
        geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=IDENTITY, spacing_known=known)
        record = CaseRecord(id=name, patient=name, shape_czyx=(1, 1, 6, 7), dtype="uint8", geometry=geometry)
        made.add_case(record, mask[None] * 9)
        history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint=name)
        made[name].write_labels(history, mask, probability_kzyx=mask[None] * 255, scores={"pairwise_dice/1": 0.95})
    return made


def verdict(archive: Archive, case: str) -> Verdict:
    told = archive[case].labels(PSEUDO_SET).history.parameters
    return Verdict(keep=told["verdict/1"], reason=str(told["reason/1"]))  # type: ignore[arg-type]  # one of three words


def test_a_volume_is_judged_only_where_the_spacing_is_known_and_the_table_says_so(archive: Archive, recipe: Recipe) -> None:
    result = stages.refine(recipe, stages.Shard(name="1/1", cases=("picture", "scan"), offset=0, total=2))
    assert verdict(archive, "scan") == Verdict(keep="review", reason="volume-outside-prior")
    assert verdict(archive, "picture") == Verdict(keep="accept", reason="good-agreement")
    assert result.done == 2
    assert result.remark == "1 accept, 1 review, 1 without known spacing, where volume_mm3 cannot be judged"


def test_inspect_counts_the_verdicts(archive: Archive, recipe: Recipe) -> None:
    stages.refine(recipe, stages.Shard(name="1/1", cases=("picture", "scan"), offset=0, total=2))
    assert inspect_path(recipe.archive).facts["verdicts of pseudo/r1"] == "1 accept, 1 review"


def test_too_few_calibration_patients_are_told_now_and_by_every_later_run(archive: Archive, recipe: Recipe) -> None:
    said = "0 gold patients in the calibration part, 3 needed: the default thresholds stand and are not calibrated; figures are agreement, not accuracy"
    assert stages.calibrate(recipe).note == said
    again = stages.calibrate(recipe)
    assert (again.skipped, again.note) == (1, said)


def test_what_was_not_measured_is_null_in_the_file_and_can_be_read_back(archive: Archive, recipe: Recipe) -> None:
    stages.calibrate(recipe)
    text = rules.calibration_file(recipe).read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse)["classes"]["1"]["dice_before"] is None
    assert np.isnan(rules.CalibrationFile.model_validate_json(text).classes[1].dice_before)
    assert rules.refine_plan(recipe).rules[1].volume_mm3 == (1000, 9000)


def test_a_file_of_an_older_version_with_bare_nan_and_without_guarantees_is_still_read(archive: Archive, recipe: Recipe) -> None:
    stages.calibrate(recipe)
    path = rules.calibration_file(recipe)
    content = json.loads(path.read_text(encoding="utf-8"))
    for new in ("temperature", "quality", "guarantees", "ring"):
        del content["classes"]["1"][new]
    content["classes"]["1"] |= {"dice_before": np.nan, "dice_after": np.nan, "volume_bias_before": np.nan, "volume_bias_after": np.nan}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "NaN" in path.read_text(encoding="utf-8")
    assert rules.refine_plan(recipe).rules[1].volume_mm3 == (1000, 9000)


def with_gold(archive: Archive, patients: int) -> None:
    """Calibration cases whose object the teacher drew exactly."""
    mask = np.zeros((1, 6, 7), np.uint8)
    mask[0, 2:4, 2:5] = 1
    for name in (f"gold{n:02}" for n in range(patients)):
        geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=IDENTITY)
        record = CaseRecord(id=name, patient=name, shape_czyx=(1, 1, 6, 7), dtype="uint8", geometry=geometry, part="calibration")
        case = archive.add_case(record, mask[None])
        history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint=name)
        case.write_labels(history, mask, probability_kzyx=mask[None] * 255, scores={"pairwise_dice/1": 0.95})
        case.write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test"), mask)


def test_the_file_carries_guarantees_temperature_and_predicted_dice_and_can_be_read_back(
    archive: Archive, write_recipe: WriteRecipe
) -> None:
    with_gold(archive, 20)
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\nrefine: {guarantee: mask, consistency: none}\n"))
    assert stages.calibrate(recipe).note.startswith("guaranteed for new patients like the 20 of calibration")
    text = rules.calibration_file(recipe).read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    found = rules.CalibrationFile.model_validate_json(text).classes[1]
    assert [each.kind for each in found.guarantees] == ["mask", "voxel", "missed"]
    assert found.rule.accept_from == found.guarantees[0].threshold == 0.95
    assert found.quality is not None
    assert found.temperature is not None
    assert found.ring is not None
    assert "exchangeable" in found.ring.outer.assumptions[0]
    assert rules.CalibrationFile(classes={1: found}).model_dump_json(indent=1) == text


def test_nothing_is_guaranteed_where_the_prompts_were_learnt_from_the_calibration_patients(
    archive: Archive, write_recipe: WriteRecipe
) -> None:
    with_gold(archive, 20)
    text = "archive: ./a.zarr\nclasses: {1: {name: organ}}\nrefine: {guarantee: mask, consistency: none}\nprompts: {source: [weak, exemplar]}\n"
    recipe = load_recipe(write_recipe(text))
    said = stages.calibrate(recipe).note
    assert said.splitlines()[:2] == [
        "WARNING: no guarantee: the prompts of exemplar were learnt from gold of calibration patients",
        "To do: take prompts from other sources (prompts.source), or leave refine.guarantee out",
    ]
    assert stages.calibrate(recipe).note == said, "a later run says it again"
    found = rules.CalibrationFile.model_validate_json(rules.calibration_file(recipe).read_text(encoding="utf-8")).classes[1]
    assert (found.guarantees, found.ring) == ((), None)


def test_archive_cases_that_were_prompted_as_no_calibration_case_was_are_warned_of_until_they_are_not(
    archive: Archive, write_recipe: WriteRecipe
) -> None:
    with_gold(archive, 20)
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\nrefine: {guarantee: mask, consistency: none}\n"))
    prompted = [Prompt(case=f"gold{n:02}", class_id=1, kind="box", slice=0, box_xyxy_px=(1, 1, 5, 5)) for n in range(20)]
    archive.catalog.add_prompts([*prompted, Prompt(case="scan", class_id=1, kind="point", slice=0, points_xy_px=((3, 3),))])
    assert "1 of 1 archive cases were prompted by weak point, as no calibration case was" in stages.calibrate(recipe).note
    archive.catalog.add_prompts([Prompt(case="picture", class_id=1, kind="box", slice=0, box_xyxy_px=(1, 1, 5, 5))])
    assert "1 of 2 archive cases were prompted by weak point, as no calibration case was" in stages.calibrate(recipe).note
    archive.catalog.delete_prompts(source="weak")
    archive.catalog.add_prompts([replace(prompted[0], case=name) for name in ("scan", "picture")] + prompted)
    assert "WARNING" not in stages.calibrate(recipe).note


def test_a_risk_that_no_threshold_holds_is_warned_of_in_the_line_the_file_and_the_filter_report(
    archive: Archive, write_recipe: WriteRecipe
) -> None:
    with_gold(archive, 6)
    for n in range(6):
        case, blank = archive[f"gold{n:02}"], np.zeros((1, 6, 7), np.uint8)
        blank[0, 0, 0] = 1
        case.write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint="moved"), blank)
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\nrefine: {risk: 0.05, consistency: none}\n"))
    said = stages.calibrate(recipe).note
    assert said.startswith("WARNING: the risk of 0.05 is out of reach")
    text = json.loads(rules.calibration_file(recipe).read_text(encoding="utf-8"))["classes"]["1"]
    assert text["warning"].startswith("the risk of 0.05 is out of reach")
    stages.refine(recipe, stages.Shard(name="1/1", cases=tuple(record.id for record in archive.cases()), offset=0, total=8))
    stages.report_filter(recipe)
    report = FilterReport.model_validate_json((recipe.report_folder / "filter.json").read_text(encoding="utf-8"))
    assert report.warnings[0] == f"organ: {text['warning']}."
    assert report.classes[0].thresholds.warning == text["warning"]
    page = (recipe.report_folder / "filter.html").read_text(encoding="utf-8")
    assert page.index(text["warning"]) < page.index("<h2>"), "it stands in the box at the top"
    assert "None of the masks that are kept: the same patients chose the thresholds" in page


def test_a_score_that_was_added_and_a_guarantee_that_is_wanted_calibrate_anew(archive: Archive, write_recipe: WriteRecipe) -> None:
    with_gold(archive, 4)
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\n"))
    assert stages.calibrate(recipe).done == 1
    assert stages.calibrate(recipe).skipped == 1
    archive.catalog.add_scores("gold00", TEACHER_SET, {"prior/1": 0.9})
    assert stages.calibrate(recipe).done == 1
    wanted = recipe.model_copy(update={"refine": recipe.refine.model_copy(update={"guarantee": "mask"})})
    assert stages.calibrate(wanted).done == 1


def test_scores_of_a_test_that_is_no_longer_asked_predict_no_dice(archive: Archive, write_recipe: WriteRecipe) -> None:
    with_gold(archive, 4)
    text = "archive: ./a.zarr\nclasses: {1: {name: organ}}\nrefine: {semantic: SEMANTIC, consistency: none}\n"
    blank = np.zeros((1, 6, 7), np.uint8)
    for n in range(2):  # two that are wrong, as only students say
        blank[0, 2, 2] = 1
        archive[f"gold{n:02}"].write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint="speck"), blank)
    for n in range(4):
        archive.catalog.add_scores(f"gold{n:02}", TEACHER_SET, {"oof_dice/1": 0.1 if n < 2 else 0.9})
    found = {}
    for tests in ("[student]", "[]"):
        recipe = load_recipe(write_recipe(text.replace("SEMANTIC", tests)))
        assert stages.calibrate(recipe).done == 1
        found[tests] = (
            rules.CalibrationFile.model_validate_json(rules.calibration_file(recipe).read_text(encoding="utf-8")).classes[1].quality
        )
    assert [each.scores for each in found.values() if each is not None] == [("oof_dice",), ()]


def test_refined_masks_carry_the_dice_that_calibration_predicts_and_doing_so_calls_for_no_new_calibration(
    archive: Archive, write_recipe: WriteRecipe
) -> None:
    with_gold(archive, 10)
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\n"))
    shard = stages.Shard(name="1/1", cases=("picture", "scan"), offset=0, total=2)
    stages.refine(recipe, shard)
    assert "predicted_dice/1" not in archive.catalog.scores(TEACHER_SET)["scan"]
    stages.calibrate(recipe)
    stages.refine(recipe, shard)
    scores = archive.catalog.scores(TEACHER_SET)
    assert scores["scan"]["predicted_dice/1"] == 1.0
    assert scores["scan"]["predicted_dice_low/1"] <= 1.0 <= scores["scan"]["predicted_dice_high/1"]
    assert "predicted_dice/1" not in scores["gold00"]
    everyone = stages.Shard(name="1/1", cases=tuple(scores), offset=0, total=len(scores))
    assert stages.refine(recipe, everyone).skipped == 2
    assert stages.calibrate(recipe).skipped == 1


def test_notes_that_differ_name_their_classes(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: left}, 2: {name: right}}\n"))
    Archive.create(recipe.archive)
    stages.calibrate(recipe)
    path = rules.calibration_file(recipe)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["classes"]["2"]["note"] = "all within the risk"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert rules.calibration_note(recipe).startswith("left: 0 gold patients")
    assert rules.calibration_note(recipe).endswith("; right: all within the risk")


def test_a_calibration_of_labels_that_have_changed_since_is_not_used(archive: Archive, recipe: Recipe) -> None:
    rule = rules.starting_rules(recipe)[1]
    strict = replace(rule, accept_from=0.99, review_from=0.98, volume_mm3=None)
    found = ClassCalibration(
        class_id=1, rule=strict, patients=9, dice_before=0.5, dice_after=0.5, volume_bias_before=0.0, volume_bias_after=0.0, note=""
    )
    path = rules.calibration_file(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rules.CalibrationFile(classes={1: found}).model_dump_json(), encoding="utf-8")
    shard = stages.Shard(name="1/1", cases=("picture",), offset=0, total=1)
    archive.ledger.plan("calibrate", {recipe.student.name: "new"})
    stages.refine(recipe, shard)
    assert verdict(archive, "picture").keep == "accept"
    archive.ledger.claim("calibrate", recipe.student.name)
    archive.ledger.done("calibrate", recipe.student.name)
    stages.refine(recipe, shard)
    assert verdict(archive, "picture").keep == "reject"


def test_calibration_is_made_again_when_cases_turn_out_to_be_of_one_patient(archive: Archive, recipe: Recipe) -> None:
    archive.catalog.set_part({"scan": "calibration", "picture": "calibration"})
    assert stages.calibrate(recipe).done == 1
    assert stages.calibrate(recipe).skipped == 1
    archive.catalog.add_case(replace(archive["scan"].record, part="calibration", patient="picture"))
    assert stages.calibrate(recipe).done == 1


def test_a_dice_that_calibration_no_longer_predicts_is_not_shown_on(archive: Archive, recipe: Recipe) -> None:
    archive.catalog.add_scores("scan", TEACHER_SET, {"predicted_dice/1": 0.9, "predicted_dice_low/1": 0.8, "predicted_dice_high/1": 1.0})
    stages.calibrate(recipe)
    stages.refine(recipe, stages.Shard(name="1/1", cases=("picture", "scan"), offset=0, total=2))
    known = archive.catalog.scores(TEACHER_SET)["scan"]
    assert [np.isfinite(value) for name, value in known.items() if name.startswith("predicted_dice")] == [False] * 3
