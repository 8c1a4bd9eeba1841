"""Of all masks that a teacher finds, each class gets those that look like it, and the rest stays nameless."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill import load_teacher
from distill.errors import PlanError
from distill.intensity import IntensitySpec, choose_window
from distill.prompts.everything import EverythingSource, Exemplar, make_everything, read_exemplars
from distill.prompts.everything_options import TRAITS, EverythingOptions, Look
from distill.prompts.ontology import Expectation, assign, expect, shared
from distill.prompts.pieces import pieces_of
from distill.prompts.sources import Subject
from distill.prompts.traits import Surroundings, eccentricity, solidity
from distill.quality import dice
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from storage.rle import decode

HERE = Path(__file__).parent
SourceContract = runpy.run_path(str(HERE / "source_contract.py"))["SourceContract"]
PointingTeacher = runpy.run_path(str(HERE / "pointing_teacher.py"))["PointingTeacher"]
DISC, BAR = ClassInfo(id=1, name="disc"), ClassInfo(id=2, name="bar")
RAS = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
LOOKS = {
    "disc": Look(intensity=(80, 120), eccentricity=(-0.3, 0.3), absent=True),
    "bar": Look(intensity=(80, 120), eccentricity=(0.9, 1.0)),
}


def subject_of(picture: np.ndarray, *, patient: str = "p", classes: tuple[ClassInfo, ...] = (DISC, BAR), known: bool = False) -> Subject:
    """Return a picture or volume of microscopy as a subject, without a known spacing unless told."""
    volume = (picture[None] if picture.ndim == 2 else picture)[None]
    geometry = Geometry(spacing_zyx_mm=(1.0, 2.0, 2.0), affine=RAS, spacing_known=known)
    record = CaseRecord(id="c", patient=patient, shape_czyx=volume.shape, dtype=str(volume.dtype), modality="other", geometry=geometry)
    return Subject(record=record, volume_czyx=volume, window=choose_window(record, volume), classes=classes)


def scene() -> np.ndarray:
    """A disc and a bar of intensity 100, and a brighter disc that is neither, on a dark ground."""
    y, x = np.mgrid[0:60, 0:80]
    picture = np.full((60, 80), 10, np.uint8)
    picture[(y - 18) ** 2 + (x - 20) ** 2 < 100] = 100
    picture[40:46, 10:50] = 100
    picture[(y - 25) ** 2 + (x - 62) ** 2 < 100] = 200
    return picture


def source_for(options: EverythingOptions | None = None, archive: Archive | None = None, **looks: Look) -> EverythingSource:
    options = options or EverythingOptions(classes=looks or LOOKS)
    return make_everything(
        SimpleNamespace(classes=(DISC, BAR), teacher=PointingTeacher(), archive=archive, plan=SimpleNamespace(intensity=IntensitySpec())),
        options,
    )  # type: ignore[arg-type]


class TestEverything(SourceContract):  # type: ignore[misc,valid-type]
    @pytest.fixture
    def source(self) -> EverythingSource:
        return source_for()

    @pytest.fixture
    def subject(self) -> Subject:
        return subject_of(scene())


def masks_of(source: EverythingSource, subject: Subject) -> dict[int, list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = {}
    for prompt in source.propose(subject):
        if prompt.kind == "mask":
            found.setdefault(prompt.class_id, []).append(decode(prompt.mask_rle, prompt.mask_size_yx))  # type: ignore[arg-type]
    return found


def test_each_class_gets_the_mask_that_looks_like_it_and_the_stranger_stays_nameless() -> None:
    found = masks_of(source_for(), subject_of(scene()))
    assert {key: [int(mask[18, 20]), int(mask[42, 30]), int(mask[25, 62])] for key, [mask] in found.items()} == {1: [1, 0, 0], 2: [0, 1, 0]}


def test_slices_of_a_volume_are_judged_one_by_one() -> None:
    volume = np.stack([np.zeros_like(scene()), scene(), scene()])
    assert {prompt.slice for prompt in source_for().propose(subject_of(volume))} == {1, 2}


def test_a_class_that_no_mask_looks_like_is_said_to_be_absent_only_where_the_recipe_allows_it() -> None:
    told = source_for().propose(subject_of(np.zeros((60, 80), np.uint8)))
    assert [(prompt.class_id, prompt.kind) for prompt in told] == [(1, "absent")]


def test_a_side_forbids_all_masks_on_the_other() -> None:
    for side, count in (("left", 0), ("right", 1)):  # of the picture: right is where x is small
        found = masks_of(source_for(disc=Look(intensity=(80, 120), eccentricity=(-0.3, 0.3), side=side)), subject_of(scene()))
        assert len(found.get(1, [])) == count


def test_a_class_gets_at_most_so_many_masks() -> None:
    bright = {"intensity": (50, 250)}
    for most in (1, 2, 9):
        found = masks_of(source_for(disc=Look.model_validate(bright | {"most": most})), subject_of(scene()))
        assert len(found[1]) == min(most, 3)


def test_exemplars_teach_what_the_recipe_leaves_open(tmp_path: Path) -> None:
    archive = archive_with_gold(tmp_path)
    source = source_for(EverythingOptions(exemplars=3), archive)
    found = masks_of(source, subject_of(scene(), patient="new"))
    assert found[1][0][18, 20]
    assert found[2][0][42, 30]


def test_a_case_of_an_exemplars_patient_is_judged_without_that_patient() -> None:
    rows = np.ones((3, len(TRAITS)))
    source = EverythingSource(
        PointingTeacher(), EverythingOptions(), {}, [Exemplar(patient=name, traits={1: rows * n}) for n, name in enumerate("abc")]
    )
    assert source.expectations(subject_of(scene(), patient="c"))[1].mean == pytest.approx(0.5)
    assert source.expectations(subject_of(scene(), patient="new"))[1].mean == pytest.approx(1.0)


def test_gold_outside_the_calibration_part_is_never_read(tmp_path: Path) -> None:
    archive = archive_with_gold(tmp_path, part="test")
    with pytest.raises(PlanError, match="exemplars is 3, but 0 calibration cases have gold"):
        source_for(EverythingOptions(exemplars=3), archive)


def test_other_gold_is_another_source(tmp_path: Path) -> None:
    archive = archive_with_gold(tmp_path)
    before = source_for(EverythingOptions(exemplars=3), archive).fingerprint
    gold = np.zeros((1, 60, 80), np.uint8)
    gold[0, 3:9, 3:9] = 1
    archive["e1"].write_labels(LabelHistory(label_set="gold", classes=(DISC, BAR), made_by="test"), gold)
    assert source_for(EverythingOptions(exemplars=3), archive).fingerprint != before


def test_a_piece_that_goes_on_where_gold_leaves_open_what_is_there_does_not_say_how_large_its_class_is(tmp_path: Path) -> None:
    archive = archive_with_gold(tmp_path)
    before = read_exemplars(archive, (DISC, BAR), 3)[1].traits[1]
    gold = archive["e1"].labels("gold").read()
    whole = (gold == 1).sum()
    rows = np.flatnonzero((gold == 1).any(axis=(0, 2)))
    gold[0, : rows.mean().round().astype(int)] = IGNORE
    gold[0, 50:54, 3:9] = 1
    archive["e1"].write_labels(LabelHistory(label_set="gold", classes=(DISC, BAR), made_by="test"), gold)
    after = read_exemplars(archive, (DISC, BAR), 3)[1].traits[1]
    assert before.shape == after.shape == (1, len(TRAITS))
    assert np.exp(after[0, TRAITS.index("area")] - before[0, TRAITS.index("area")]) == pytest.approx(24 / whole)


def archive_with_gold(folder: Path, part: Any = "calibration") -> Archive:
    archive = Archive.create(str(folder / "a.zarr"))
    for n in range(3):
        picture = np.roll(scene(), n, axis=1)
        record = replace(subject_of(picture, patient=f"p{n}").record, id=f"e{n}", part=part)
        gold = (picture == 100).astype(np.uint8)
        gold[36:] *= 2
        case = archive.add_case(record, picture[None, None])
        case.write_labels(LabelHistory(label_set="gold", classes=(DISC, BAR), made_by="test"), gold[None])
    return archive


def test_without_rules_or_exemplars_it_says_what_to_write() -> None:
    with pytest.raises(PlanError, match="knows of no class what it looks like"):
        source_for(EverythingOptions())


def test_a_rule_about_no_class_is_refused() -> None:
    with pytest.raises(PlanError, match="rule for 'disk', but there is no such class"):
        source_for(disk=Look(area=(1, 9)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"x": [0.4, 0.2]}, r"x must be two rising numbers.*\[0.4, 0.2\]", id="falling range"),
        pytest.param({"area": [0, 9]}, "area must be above 0", id="no area"),
    ],
)
def test_a_look_that_cannot_be_meant_says_why(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Look.model_validate(given)


def expected(mean: float, most: int = 1) -> Expectation:
    return Expectation(mean=np.array([mean]), sd=np.array([1.0]), most=most)


def test_a_mask_goes_to_its_second_best_class_where_another_fits_the_best_one_better() -> None:
    found = assign(np.array([[0.4], [0.1]]), np.eye(2), {1: expected(0.0), 2: expected(1.0)}, reject=9.0)
    assert {choice.mask: choice.class_id for choice in found} == {0: 2, 1: 1}


def test_of_two_masks_of_one_object_the_better_one_is_taken_and_the_slot_is_free_again() -> None:
    overlap = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = assign(np.array([[0.0], [0.1], [0.5]]), overlap, {1: expected(0.0, most=2)}, reject=9.0)
    assert sorted(choice.mask for choice in found) == [0, 2]


def test_a_mask_between_two_classes_is_less_sure_than_one_that_fits_only_one() -> None:
    classes = {1: expected(0.0), 2: expected(4.0)}
    between, clear = (assign(np.array([[at]]), np.eye(1), classes, reject=9.0)[0].confidence for at in (1.9, 0.0))
    assert between == pytest.approx(0.6, abs=0.1)
    assert clear > 0.95


def test_of_two_that_look_alike_the_one_that_the_teacher_is_surer_of_is_taken() -> None:
    for unsure, taken in (([0.0, 1.0], 0), ([1.0, 0.0], 1)):
        found = assign(np.array([[0.2], [0.1]]), np.ones((2, 2)), {1: expected(0.0)}, reject=9.0, unsure=np.array(unsure))
        assert [choice.mask for choice in found] == [taken]


def test_a_rival_that_fits_as_well_halves_the_confidence() -> None:
    alone = assign(np.array([[0.0]]), np.eye(1), {1: expected(0.0)}, reject=9.0)[0]
    with_rival = assign(np.array([[0.0], [0.0]]), np.eye(2), {1: expected(0.0)}, reject=9.0)[0]
    assert alone.confidence > 0.9
    assert with_rival.confidence == pytest.approx(0.5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_no_class_gets_more_than_its_share_no_mask_two_classes_and_none_is_beyond_rejection(seed: int, masks: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    traits = rng.normal(0, 3, (masks, 1))
    classes = {1: expected(-1.0, most), 2: expected(1.0, most)}
    found = assign(traits, np.eye(masks), classes, reject=4.0)
    assert len({choice.mask for choice in found}) == len(found)
    assert all(sum(choice.class_id == key for choice in found) <= most for key in classes)
    assert all(classes[choice.class_id].costs(traits)[choice.mask] <= 4.0 for choice in found)


def test_what_the_recipe_says_of_a_trait_goes_before_what_was_seen() -> None:
    seen = np.full((4, len(TRAITS)), 0.5)
    found = expect(Look(x=(0.0, 0.4)), seen)
    assert found is not None
    assert (found.mean[TRAITS.index("x")], found.sd[TRAITS.index("x")]) == pytest.approx((0.2, 0.1))
    assert found.mean[TRAITS.index("y")] == pytest.approx(0.5)


def test_a_class_of_which_nothing_is_known_is_not_looked_for() -> None:
    assert expect(None, np.zeros((0, len(TRAITS)))) is None


def test_areas_are_square_millimetres_where_the_spacing_is_known() -> None:
    piece = next(pieces_of((scene() == 200)[None].astype(np.int32)))
    areas = []
    for known in (False, True):
        subject = subject_of(scene(), known=known)
        areas.append(np.exp(Surroundings(subject.record, subject.volume_czyx).traits(piece)[TRAITS.index("area")]))
    assert areas[1] == pytest.approx(4 * areas[0])


def test_a_disc_is_round_and_full_and_a_bar_with_a_notch_is_neither() -> None:
    y, x = np.mgrid[0:41, 0:41]
    disc = (y - 20) ** 2 + (x - 20) ** 2 <= 18**2
    assert eccentricity(*np.nonzero(disc)) < 0.1
    assert solidity(disc) > 0.95
    bar = np.ones((6, 40), bool)
    assert eccentricity(*np.nonzero(bar)) > 0.95
    bar[1:, 5:35] = False
    assert solidity(bar) < 0.6


def test_what_masks_share_counts_over_the_smaller_one() -> None:
    masks = np.zeros((2, 5, 6), bool)
    masks[0, :, :4] = True
    masks[1, 1:3, 3:5] = True
    assert shared(masks) == pytest.approx(np.array([[1.0, 0.5], [0.5, 1.0]]))


def test_the_left_ventricle_of_a_real_picture_is_found_by_what_three_others_look_like(real_data: Path) -> None:
    folder = real_data / "cardiac"

    def case(name: str) -> tuple[Subject, np.ndarray]:
        picture, gold = (cv2.imread(str(folder / kind / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for kind in ("images", "gold"))
        subject = subject_of(picture, patient=name, classes=(DISC,))
        record = replace(subject.record, modality="MR")
        return replace(subject, record=record), gold > 0

    names = sorted(path.stem for path in (folder / "images").glob("*.png"))
    exemplars = []
    for name in names[60:90:10]:
        subject, gold = case(name)
        around = Surroundings(subject.record, subject.volume_czyx)
        exemplars.append(
            Exemplar(patient=name, traits={1: np.stack([around.traits(piece) for piece in pieces_of(gold[None].astype(np.int32))])})
        )
    source = EverythingSource(load_teacher("bundled", device="cpu"), EverythingOptions(exemplars=3), {}, exemplars)
    subject, gold = case(names[20])
    [mask] = masks_of(source, subject)[1]
    assert dice(mask, gold) > 0.6


def two_discs(**second: int) -> np.ndarray:
    """A volume ``(3, 60, 80)`` of two equal discs on a ground of 40: the first on the upper left of the first slice, the second as told."""
    y, x = np.mgrid[0:60, 0:80]
    volume = np.full((3, 60, 80), 40, np.uint8)
    volume[0, (y - 15) ** 2 + (x - 18) ** 2 < 80] = 100
    told = {"z": 0, "y": 15, "x": 60, "value": 100, "ground": 40} | second
    place = volume[told["z"]]
    place[(y - told["y"]) ** 2 + (x - told["x"]) ** 2 < 150] = told["ground"]
    place[(y - told["y"]) ** 2 + (x - told["x"]) ** 2 < 80] = told["value"]
    return volume


@pytest.mark.parametrize(
    ("look", "second"),
    [
        pytest.param(Look(y=(0.6, 0.9)), {"y": 45}, id="further down"),
        pytest.param(Look(z=(0.8, 1.2)), {"z": 2}, id="on another slice"),
        pytest.param(Look(x=(0.6, 0.9)), {"y": 15}, id="on the other side"),
        pytest.param(Look(percentile=(99.0, 100.0)), {"value": 180}, id="among the brightest"),
        pytest.param(Look(intensity=(170, 190)), {"value": 180}, id="brighter"),
    ],
)
def test_each_trait_alone_tells_two_discs_apart(look: Look, second: dict[str, int]) -> None:
    look = look.model_copy(update={"area": (200.0, 320.0)})
    volume = two_discs(**second)
    found = masks_of(source_for(disc=look), subject_of(volume, classes=(DISC,)))
    expected = volume == {"value": 100, **second}["value"]
    assert len(found[1]) == 1
    if "value" in second:
        assert dice(found[1][0], expected[0]) > 0.95
    else:
        z, y = second.get("z", 0), second.get("y", 15)
        assert dice(found[1][0], volume[z] == 100) > 0.4
        assert found[1][0][y, 60]


def test_contrast_is_that_of_the_rim_inside_with_the_rim_outside() -> None:
    noise = np.random.default_rng(0).normal(0, 4, (1, 60, 80))
    volume = (two_discs()[:1] + noise).astype(np.float32)
    surroundings = Surroundings(subject_of(volume).record, volume[None])
    y, x = np.mgrid[0:60, 0:80]
    disc, nothing = ((y - 15) ** 2 + (x - 18) ** 2 < 80), ((y - 45) ** 2 + (x - 40) ** 2 < 80)
    clear, unclear = (
        surroundings.traits(next(iter(pieces_of(np.asarray(each[None], np.int32)))))[TRAITS.index("contrast")] for each in (disc, nothing)
    )
    assert clear > 0.9
    assert unclear < 0.3
