"""Intensities alone find lungs, bones and bright objects; what they cannot tell, they do not say."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.errors import PlanError
from distill.intensity import IntensitySpec, choose_window
from distill.prompts.body import body_frame, body_mask, otsu_cuts
from distill.prompts.pieces import Piece, innermost, pieces_of, rim_contrast
from distill.prompts.presets import PRESETS, ThresholdOptions, ThresholdRule
from distill.prompts.sources import Subject
from distill.prompts.threshold import ThresholdSource, find_pieces, make_threshold
from distill.quality import dice
from storage import CaseRecord, Channel, ClassInfo, Geometry
from storage.rle import decode

SourceContract = runpy.run_path(str(Path(__file__).parent / "source_contract.py"))["SourceContract"]
LUNGS, BONES, BODY = ClassInfo(id=1, name="lungs"), ClassInfo(id=2, name="bones"), ClassInfo(id=3, name="body")
RAS = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def subject_of(volume: np.ndarray, *, modality: str = "CT", classes: tuple[ClassInfo, ...] = (LUNGS, BONES), known: bool = True) -> Subject:
    """Return a subject of native intensities ``(z, y, x)`` with voxels of 3 mm."""
    geometry = Geometry(spacing_zyx_mm=(3.0, 3.0, 3.0), affine=RAS, spacing_known=known)
    record = CaseRecord(
        id="c", patient="p", shape_czyx=(1, *volume.shape), dtype=str(volume.dtype), modality=modality, geometry=geometry, fingerprint="f"
    )
    return Subject(record=record, volume_czyx=volume[None], window=choose_window(record, volume[None]), classes=classes)


def chest() -> np.ndarray:
    """A trunk with two lungs, a bubble of gas, a spine, and a table below: ``(12, 60, 80)`` HU."""
    z, y, x = np.mgrid[0:12, 0:60, 0:80]
    volume = np.full((12, 60, 80), -1000, np.int16)
    volume[((y - 28) / 24) ** 2 + ((x - 40) / 34) ** 2 < 1] = 30
    for middle in (24, 56):
        volume[((y - 26) / 14) ** 2 + ((x - middle) / 10) ** 2 < 1] = -800
    volume[((y - 28) ** 2 + (x - 40) ** 2 < 20) & (z < 4)] = -1000
    volume[((y - 45) ** 2 + (x - 40) ** 2 < 20)] = 300
    volume[:, 56:58] = 100
    return volume + np.random.default_rng(0).normal(0, 5, volume.shape).astype(np.int16)


def source_for(*classes: ClassInfo, **rules: ThresholdRule) -> ThresholdSource:
    return make_threshold(SimpleNamespace(classes=classes), ThresholdOptions(classes=rules))  # type: ignore[arg-type]


class TestThreshold(SourceContract):  # type: ignore[misc,valid-type]
    @pytest.fixture
    def source(self) -> ThresholdSource:
        return source_for(LUNGS, BONES)

    @pytest.fixture
    def subject(self) -> Subject:
        return subject_of(chest())


def test_both_lungs_are_found_on_every_slice_and_a_bubble_of_gas_is_no_lung() -> None:
    prompts = source_for(LUNGS).propose(subject_of(chest(), classes=(LUNGS,)))
    boxes = [prompt.box_xyxy_px for prompt in prompts if prompt.kind == "box" and prompt.slice == 2]
    assert len(boxes) == 2
    assert sorted(round((box[0] + box[2]) / 2) for box in boxes if box) == [24, 56]
    assert {prompt.slice for prompt in prompts} == set(range(12))


def test_points_lie_in_the_rough_mask_and_boxes_around_it() -> None:
    prompts = source_for(BONES).propose(subject_of(chest(), classes=(BONES,)))
    box, point, mask = (next(prompt for prompt in prompts if prompt.kind == kind) for kind in ("box", "point", "mask"))
    drawn = decode(mask.mask_rle, mask.mask_size_yx)  # type: ignore[arg-type]
    (x, y), (x0, y0, x1, y1) = point.points_xy_px[0], box.box_xyxy_px  # type: ignore[misc]
    assert drawn[int(y), int(x)]
    outside = drawn.copy()
    outside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = False
    assert not outside.any()


def test_the_table_and_the_air_in_the_lungs_are_told_from_the_body() -> None:
    mask = body_mask(chest().astype(np.float32), "CT")
    assert mask[:, 26, 24].all()
    assert not mask[:, 56:58].any()


def test_a_case_without_the_class_is_told_to_be_without_where_the_preset_can_judge() -> None:
    water = np.where(chest() > -500, 30, -1000).astype(np.int16)
    assert [prompt.kind for prompt in source_for(LUNGS).propose(subject_of(np.full_like(water, 30), classes=(LUNGS,)))] == ["absent"]
    bright = ThresholdRule(window=(2000, None))
    assert source_for(LUNGS, lungs=bright).propose(subject_of(water, classes=(LUNGS,))) == []


def test_hounsfield_presets_say_nothing_about_other_modalities() -> None:
    assert source_for(LUNGS, BONES).propose(subject_of(chest(), modality="MR")) == []


def test_rules_ask_the_modality_of_the_channel_that_is_looked_at() -> None:
    volume = np.stack([np.zeros_like(chest()), chest()])
    channels = (Channel(name="pet", modality="PT"), Channel(name="ct", modality="CT"))
    record = replace(subject_of(chest()).record, shape_czyx=volume.shape, modality="PT", channels=channels)
    for shown, found in (("ct", True), ("pet", False)):
        window = choose_window(record, volume, IntensitySpec(channels=f"channel:{shown}"))
        subject = Subject(record=record, volume_czyx=volume, window=window, classes=(LUNGS,))
        assert bool(source_for(LUNGS).propose(subject)) == found


def test_a_recipe_replaces_single_keys_of_a_preset() -> None:
    rule = ThresholdRule(preset="lungs", keep=1).resolved()
    assert (rule.keep, rule.window, rule.absent) == (1, PRESETS["lungs"].window, True)


def test_another_kind_of_range_replaces_that_of_the_preset() -> None:
    rule = ThresholdRule(preset="lungs", otsu="dark").resolved()
    assert (rule.window, rule.otsu) == (None, "dark")


def test_rules_go_by_name_or_id_and_a_preset_called_like_the_class_needs_none() -> None:
    options = ThresholdOptions.model_validate({"classes": {2: {"window": [300, None]}}})
    source = make_threshold(SimpleNamespace(classes=(LUNGS, BONES)), options)  # type: ignore[arg-type]
    assert source.rules == {1: PRESETS["lungs"], 2: ThresholdRule(window=(300, None))}


def test_a_rule_about_no_class_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(PlanError, match=r"a rule for 'lung', but there is no such class\. Known: 1, lungs"):
        source_for(LUNGS, lung=ThresholdRule(preset="lungs"))


def test_without_any_rule_the_presets_are_named() -> None:
    with pytest.raises(PlanError, match=r"no rule for any class\. .* Presets: body, lungs"):
        source_for(ClassInfo(id=1, name="pancreas"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"window": [0, 9], "otsu": "dark"}, "gives window and otsu", id="two ranges"),
        pytest.param({"keep": 2}, "says nothing about intensities", id="no range"),
        pytest.param({"window": [9, 3]}, r"window must be two rising numbers, but is \[9, 3\]", id="falling window"),
        pytest.param({"preset": "lung"}, "there is no preset 'lung'. Known: body, lungs", id="unknown preset"),
    ],
)
def test_a_rule_that_cannot_be_meant_says_why(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThresholdRule.model_validate(given)


def test_other_rules_are_another_source() -> None:
    assert source_for(LUNGS).fingerprint != source_for(LUNGS, lungs=ThresholdRule(preset="lungs", keep=1)).fingerprint


def test_sizes_count_voxels_where_the_spacing_is_not_known() -> None:
    dots = np.zeros((1, 40, 50), np.uint8)
    dots[0, 5:10, 5:10] = dots[0, 20:30, 20:30] = 200
    rule = ThresholdRule(window=(100, None), within="picture", size=(50, None))
    for known, pieces in ((True, 2), (False, 1)):
        subject = subject_of(dots, known=known)
        assert find_pieces(subject.record, dots.astype(np.float32), np.ones(dots.shape, bool), rule).max() == pieces


def test_two_objects_that_touch_are_cut_at_the_waist() -> None:
    _, y, x = np.mgrid[0:1, 0:40, 0:60]
    pair = ((y - 20) ** 2 + (x - 20) ** 2 < 100) | ((y - 20) ** 2 + (x - 36) ** 2 < 100)
    record = subject_of(pair.astype(np.uint8)).record
    whole, cut = (
        find_pieces(record, pair.astype(np.float32), np.ones(pair.shape, bool), ThresholdRule(window=(1, None), erode=0, split_px=px))
        for px in (0, 5)
    )
    assert (whole.max(), cut.max()) == (1, 2)
    assert ((cut > 0) == (whole > 0)).all()


def test_pieces_at_the_side_of_a_slice_can_be_dropped() -> None:
    squares = np.zeros((1, 30, 40), np.float32)
    squares[0, :8, 10:20] = squares[0, 15:25, 10:20] = 1
    record = subject_of(squares).record
    rule = ThresholdRule(window=(1, None), erode=0, border="drop")
    found = find_pieces(record, squares, np.ones(squares.shape, bool), rule)
    assert not found[0, :8].any()
    assert found[0, 15:25, 10:20].all()


def test_confidence_falls_with_the_contrast_at_the_rim() -> None:
    mask = np.zeros((30, 40), bool)
    mask[8:20, 10:30] = True
    noise = np.random.default_rng(0).normal(0, 10, mask.shape)
    piece = next(pieces_of(mask[None].astype(np.int32)))
    clear, faint, none = (rim_contrast(piece, noise + step * mask) for step in (50, 10, 0))
    assert clear > 0.95
    assert clear > faint > none


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_innermost_pixel_of_a_piece_belongs_to_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for piece in pieces_of((rng.random((2, 13, 17)) < 0.6).astype(np.int32)):
        x, y = innermost(piece)
        assert piece.on((13, 17))[int(y), int(x)]


def test_every_label_is_cut_into_its_connected_pieces() -> None:
    labels = np.zeros((2, 12, 15), np.int32)
    labels[0, 1:5, 1:5] = labels[0, 7:11, 1:5] = 1
    labels[0, 1:5, 5:9] = 2
    labels[1, 3:9, 4:8] = 2
    found = [(piece.z, piece.box_xyxy_px) for piece in pieces_of(labels)]
    assert sorted(found) == [(0, (1, 1, 5, 5)), (0, (1, 7, 5, 11)), (0, (5, 1, 9, 5)), (1, (4, 3, 8, 9))]


def test_places_in_the_body_are_told_in_the_patients_directions() -> None:
    body = np.zeros((10, 20, 40), bool)
    body[:, 5:15, 10:30] = True
    record = subject_of(body.astype(np.int16)).record
    z, y, x = body_frame(record, body).place((0.0, 5.0, 10.0))
    assert (z, y, x) == pytest.approx((0.05, 0.95, 0.975))  # x runs to the right, y to the front: both are told the other way
    lps = replace(record.geometry, affine=((-1.0, 0, 0, 0), (0, -1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0)))
    assert body_frame(replace(record, geometry=lps), body).place((0.0, 5.0, 10.0)) == pytest.approx((0.05, 0.05, 0.025))


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_cuts_lie_between_the_groups(levels: int) -> None:
    groups = 100.0 * np.repeat(np.arange(levels), 500) + np.random.default_rng(0).normal(0, 5, 500 * levels)
    assert np.bincount(np.digitize(groups, otsu_cuts(groups, levels))) == pytest.approx(np.full(levels, 500), abs=15)


def test_a_volume_of_one_value_has_nothing_bright_in_it() -> None:
    flat = subject_of(np.full((4, 20, 30), 7, np.int16), modality="MR", classes=(LUNGS,))
    assert source_for(LUNGS, lungs=ThresholdRule(preset="bright-lesions")).propose(flat) == []


def test_lungs_and_bones_of_a_real_scan_are_found(real_data: Path) -> None:
    folder = real_data / "ct_organs"
    volume, labels = (
        np.asarray(nib.nifti1.Nifti1Image.from_filename(folder / name).dataobj).T for name in ("example_ct_sm.nii.gz", "example_seg.nii.gz")
    )
    record, grey = subject_of(volume.astype(np.int16)).record, volume.astype(np.float32)
    body = body_mask(grey, "CT")
    lungs = np.isin(labels, range(10, 15))
    bones = np.isin(labels, [*range(25, 51), *range(69, 79), *range(92, 117)])
    assert dice(find_pieces(record, grey, body, PRESETS["lungs"]) > 0, lungs) > 0.8
    assert dice(find_pieces(record, grey, body, PRESETS["bones"]) > 0, bones) > 0.75


def test_a_piece_fills_its_box() -> None:
    piece = Piece(z=0, mask=np.ones((3, 4), bool), box_xyxy_px=(2, 1, 6, 4))
    assert piece.on((8, 9)).sum() == 12


@pytest.mark.parametrize("preset", [name for name, rule in PRESETS.items() if not rule.modalities])
def test_a_picture_without_any_object_has_no_pieces(preset: str) -> None:
    subject = subject_of(np.zeros((1, 40, 50), np.uint8), modality="OT")
    grey = subject.volume_czyx[0].astype(np.float32)
    assert find_pieces(subject.record, grey, np.ones(grey.shape, bool), PRESETS[preset]).max() <= 1
    assert find_pieces(subject.record, grey, np.ones(grey.shape, bool), ThresholdRule(window=(1, None), split_px=5)).max() == 0


def abdomen() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A trunk under a coat of fat, with a spine, specks of chalk and a bubble of gas, ``(12, 60, 80)`` HU, and where each of them is."""
    z, y, x = np.mgrid[0:12, 0:60, 0:80]
    trunk, flesh = (((y - 30) / 26) ** 2 + ((x - 40) / 36) ** 2 < 1), (((y - 30) / 20) ** 2 + ((x - 40) / 30) ** 2 < 1)
    where = {
        "fat": trunk & ~flesh,
        "bones": (y - 42) ** 2 + (x - 40) ** 2 < 20,
        "calcifications": ((y - 24) ** 2 + (x - 22) ** 2 < 3) & (z > 4) & (z < 7),
        "bowel-gas": ((y - 22) ** 2 + (x - 52) ** 2 < 30) & (z > 2) & (z < 9),
    }
    volume = np.where(trunk, 40, -1000)
    for name, value in {"fat": -90, "bones": 400, "calcifications": 600, "bowel-gas": -980}.items():
        volume[where[name]] = value
    return (volume + np.random.default_rng(0).normal(0, 3, volume.shape)).astype(np.int16), where


@pytest.mark.parametrize("preset", ["fat", "bones", "calcifications", "bowel-gas"])
def test_a_preset_for_ct_finds_its_tissue_and_nothing_else(preset: str) -> None:
    volume, where = abdomen()
    subject = subject_of(volume)
    found = find_pieces(subject.record, volume.astype(np.float32), body_mask(volume.astype(np.float32), "CT"), PRESETS[preset])
    assert dice(found > 0, where[preset]) > 0.85
    assert not any((found[region] > 0).any() for name, region in where.items() if name != preset)


@pytest.mark.parametrize(("preset", "value"), [("bright-lesions", 250), ("dark-lesions", 10)])
def test_a_lesion_is_found_in_the_body_where_it_is_the_brightest_or_the_darkest_thing(preset: str, value: int) -> None:
    volume = np.full((8, 60, 80), 2, np.int16)
    y, x = np.mgrid[0:60, 0:80]
    volume[:, ((y - 30) / 26) ** 2 + ((x - 40) / 36) ** 2 < 1] = 100
    volume[:, ((y - 30) / 26) ** 2 + ((x - 40) / 36) ** 2 < 0.5] = 140
    lesion = np.zeros(volume.shape, bool)
    lesion[2:6, (y - 26) ** 2 + (x - 50) ** 2 < 26] = True
    volume[lesion] = value
    noisy = (volume + np.random.default_rng(0).normal(0, 2, volume.shape)).astype(np.float32)
    record = subject_of(volume, modality="MR").record
    assert dice(find_pieces(record, noisy, body_mask(noisy, "MR"), PRESETS[preset]) > 0, lesion) > 0.9


def test_the_body_in_mr_is_its_outline_with_what_is_dark_inside_and_without_the_air_around() -> None:
    y, x = np.mgrid[0:60, 0:80]
    trunk = ((y - 30) / 22) ** 2 + ((x - 40) / 32) ** 2 < 1
    picture = np.where(trunk, 120.0, 3.0)
    picture[((y - 30) / 10) ** 2 + ((x - 28) / 8) ** 2 < 1] = 4.0
    noisy = np.abs(picture + np.random.default_rng(0).normal(0, 3, (4, 60, 80))).astype(np.float32)
    found = body_mask(noisy, "MR")
    assert dice(found, np.broadcast_to(trunk, noisy.shape)) > 0.9
    assert found[:, 22:38, 22:34].all()
