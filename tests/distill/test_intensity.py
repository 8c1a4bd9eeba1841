"""What a teacher is shown of native intensities, and what is said about a wrong wish."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from distill.engine import LabelPlan, label_archive
from distill.errors import PlanError
from distill.intensity import CT_WINDOWS_HU, IntensitySpec, Window, choose_window, intensity_inputs, picture_of, to_rgb
from distill.planes import _turn
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from distill.wavefront import AskSettings, CaseWork
from storage import Archive, CaseRecord, Channel, ClassInfo, Geometry, Prompt

GEOMETRY = Geometry(
    spacing_zyx_mm=(1.0, 1.0, 1.0), affine=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
)
DEFAULT_HISTORY = {"window_low": -160.0, "window_high": 240.0, "window_rule": "ct-soft-tissue"}


def record_of(volume: np.ndarray, modality: str = "MR", name: str = "case7") -> CaseRecord:
    channels, *zyx = volume.shape
    return CaseRecord(
        id=name,
        patient=name,
        shape_czyx=(channels, zyx[0], zyx[1], zyx[2]),
        dtype=str(volume.dtype),
        modality=modality,
        geometry=GEOMETRY,
        fingerprint="f",
    )


def spec(**keys: object) -> IntensitySpec:
    return IntensitySpec.model_validate(keys)


def shown(volume: np.ndarray, z: int, modality: str = "MR", **keys: object) -> np.ndarray:
    return picture_of(volume, z, choose_window(record_of(volume, modality), volume, spec(**keys)))


def hounsfield() -> np.ndarray:
    return np.linspace(-1024, 1500, 4 * 5 * 6).reshape(1, 4, 5, 6).astype(np.int16)


# What the product did before recipes could say anything, written out: labels of that time must come out bit for bit.
def as_it_was(volume: np.ndarray, z: int, low: float, high: float) -> np.ndarray:
    unit = np.clip((volume[:, z].astype(np.float32) - low) / (high - low), 0.0, 1.0)
    grey = np.nan_to_num(255.0 * unit).astype(np.uint8)
    return grey.transpose(1, 2, 0) if len(grey) == 3 else np.repeat(grey[0][..., None], 3, axis=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_without_a_word_from_the_recipe_pictures_are_what_they_were(dtype: type) -> None:
    volume = np.random.default_rng(0).integers(0, 250, (1, 4, 5, 6)).astype(dtype)
    low, high = np.percentile(volume[volume != 0].astype(np.float64), (0.5, 99.5))
    assert np.array_equal(shown(volume, 2), as_it_was(volume, 2, float(low), float(high)))


def test_without_a_word_from_the_recipe_ct_is_shown_in_the_soft_tissue_window_and_the_history_says_so_in_the_old_words() -> None:
    volume = hounsfield()
    assert np.array_equal(shown(volume, 1, "CT"), as_it_was(volume, 1, -160.0, 240.0))
    assert choose_window(record_of(volume, "CT"), volume).history() == DEFAULT_HISTORY


def test_colour_of_8_bits_is_shown_as_it_is() -> None:
    volume = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 6), dtype=np.uint8)
    assert np.array_equal(shown(volume, 1, "unknown"), volume[:, 1].transpose(1, 2, 0))


def test_three_windows_become_red_green_and_blue_and_the_history_names_all_bounds() -> None:
    volume = hounsfield()
    found = shown(volume, 2, "CT", ct={"windows": ["soft-tissue", "lung", "bone"]})
    for channel, (low, high) in enumerate(CT_WINDOWS_HU.values()):
        assert np.array_equal(found[..., channel], as_it_was(volume, 2, low, high)[..., 0])
    window = choose_window(record_of(volume, "CT"), volume, spec(ct={"windows": ["soft-tissue", "lung", [-500, 1300]]}))
    assert window.history()["windows_rgb"] == [-160.0, 240.0, -1350.0, 150.0, -500.0, 1300.0]
    assert window.rule == "fixed-windows"


def test_percentiles_are_of_the_voxels_of_the_whole_volume_that_are_not_zero() -> None:
    volume = np.zeros((1, 4, 5, 6), np.float32)
    volume[0, :, 1:4, 2:5] = np.linspace(10, 110, 36).reshape(4, 3, 3)
    window = choose_window(record_of(volume), volume, spec(mr={"percentiles": [10, 90]}))
    assert (window.low, window.high) == (pytest.approx(20), pytest.approx(100))
    assert window.rule == "percentiles-of-non-zero 10 90"


def test_a_rule_for_another_modality_changes_nothing() -> None:
    volume = hounsfield()
    assert choose_window(record_of(volume, "CT"), volume, spec(mr={"percentiles": [10, 90]})).history() == DEFAULT_HISTORY
    assert choose_window(record_of(volume, "XA"), volume, spec(other={"windows": [[0, 9]]})).high == 9


def test_adjacent_slices_fill_the_channels_and_the_border_slice_is_repeated() -> None:
    volume = (40 * (1 + np.arange(4, dtype=np.uint8))[None, :, None, None] * np.ones((1, 4, 5, 6), np.uint8)).astype(np.uint8)
    keys = {"channels": "adjacent", "other": {"windows": [[0, 255]]}}
    seen = [shown(volume, z, "unknown", **keys)[0, 0].tolist() for z in range(4)]
    assert seen == [[40, 40, 80], [40, 80, 120], [80, 120, 160], [120, 160, 160]]
    assert choose_window(record_of(volume), volume, spec(channels="adjacent")).history()["window_channels"] == "adjacent"


def test_a_single_slice_is_its_own_neighbour() -> None:
    volume = np.arange(30, dtype=np.uint16).reshape(1, 1, 5, 6)
    found = shown(volume, 0, channels="adjacent")
    assert np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("axis", [1, 2], ids=["coronal", "sagittal"])
def test_seen_from_another_side_the_neighbours_are_those_of_that_side(axis: int) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (1, 17, 18, 19), dtype=np.uint8)
    window = Window(low=0.0, high=255.0, rule="test", source="adjacent")
    turned = _turn(CaseWork(record=record_of(volume), volume_czyx=volume, window=window, classes={}), axis)
    expected = np.stack([np.take(volume[0], n, axis=axis) for n in (8, 9, 10)], axis=2)
    assert np.array_equal(turned.picture(9), expected)


def test_one_channel_of_several_is_shown_by_its_own_percentiles() -> None:
    volume = np.random.default_rng(0).integers(1, 900, (4, 3, 5, 6)).astype(np.uint16)
    volume[2] += 5000
    window = choose_window(record_of(volume), volume, spec(channels="channel:2"))
    assert window.low > 4000
    assert window.history()["window_channels"] == "channel:2"
    alone = volume[2:3]
    assert np.array_equal(shown(volume, 1, channels="channel:2"), shown(alone, 1))


def test_one_channel_under_three_windows_is_in_colour() -> None:
    volume = np.concatenate([np.zeros((1, 2, 5, 6), np.int16), 20 * np.arange(60, dtype=np.int16).reshape(1, 2, 5, 6)])
    found = shown(volume, 1, "CT", channels="channel:1", ct={"windows": [[0, 1200], [0, 600], [600, 1200]]})
    assert not np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 2], as_it_was(volume[1:], 1, 600.0, 1200.0)[..., 0])


@pytest.mark.parametrize(
    ("shape", "keys", "said"),
    [
        pytest.param(
            (2, 3, 5, 6), {"channels": "channel:2"}, "case case7: intensity.channels is 'channel:2', but the case has 2", id="lacks"
        ),
        pytest.param((3, 3, 5, 6), {"channels": "adjacent"}, "case case7: adjacent slices fill the three channels", id="adjacent"),
        pytest.param(
            (3, 3, 5, 6), {"mr": {"windows": [[0, 1], [0, 2], [0, 3]]}}, "case case7: three windows fill the three channels", id="windows"
        ),
    ],
)
def test_a_case_that_lacks_what_is_asked_is_named(shape: tuple[int, ...], keys: dict[str, object], said: str) -> None:
    volume = np.ones(shape, np.int16)
    with pytest.raises(PlanError, match="case case7") as caught:
        choose_window(record_of(volume), volume, spec(**keys))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        pytest.param({"ct": {"windows": [[240, -160]]}}, r"two rising numbers each.*\[240, -160\]", id="low above high"),
        pytest.param({"ct": {"windows": [[5, 5]]}}, "two rising numbers", id="low equals high"),
        pytest.param({"ct": {"windows": [[0, float("inf")]]}}, "two rising numbers", id="infinite"),
        pytest.param({"ct": {"windows": [[0, 1], [0, 2]]}}, "one window, or three.*there are 2", id="two windows"),
        pytest.param({"ct": {"windows": ["lungs"]}}, "window 'lungs'. Known: soft-tissue, lung, bone", id="unknown name"),
        pytest.param({"mr": {"percentiles": [99, 1]}}, "between 0 and 100", id="falling percentiles"),
        pytest.param({"mr": {"percentiles": [0, 101]}}, "between 0 and 100", id="above 100"),
        pytest.param({"mr": {"percentiles": [0, 99], "windows": [[0, 1]]}}, "windows and percentiles. Keep one", id="both"),
        pytest.param({"channels": "adjacent", "ct": {"windows": [[0, 1]] * 3}}, "adjacent and three windows for ct", id="six channels"),
        pytest.param({"channels": "channel:-1"}, "channels", id="negative channel"),
        pytest.param({"CT": {}}, "Extra inputs are not permitted", id="unknown key"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_before_anything_is_read(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(**keys)


def test_16_bits_use_the_whole_range_of_grey() -> None:
    volume = np.arange(1, 65521, 546, dtype=np.uint16).reshape(1, 4, 5, 6)
    found = np.stack([shown(volume, z) for z in range(4)])
    assert (found.min(), found.max()) == (0, 255)
    assert len(np.unique(found)) > 100


def test_what_is_no_number_is_black_and_does_not_move_the_percentiles() -> None:
    volume = np.linspace(-50, 50, 120, dtype=np.float32).reshape(1, 4, 5, 6)
    broken = volume.copy()
    broken[0, 0, 0, :3] = (np.nan, np.inf, -np.inf)
    window = choose_window(record_of(broken), broken)
    assert np.isfinite([window.low, window.high]).all()
    assert window.low == pytest.approx(choose_window(record_of(volume), volume).low, abs=3)
    assert picture_of(broken, 0, window)[0, :3, 0].tolist() == [0, 255, 0]


def test_negative_intensities_keep_their_order() -> None:
    volume = np.linspace(-900, -100, 120).reshape(1, 4, 5, 6).astype(np.int16)
    found = np.concatenate([shown(volume, z)[..., 0].ravel() for z in range(4)]).astype(int)
    assert (np.diff(found) >= 0).all()
    assert found[-1] == 255


@pytest.mark.parametrize("value", [0, 7, -3])
@pytest.mark.parametrize("channels", ["windows", "adjacent", "channel:0"])
def test_a_volume_of_one_value_becomes_a_picture_of_one_value(value: int, channels: str) -> None:
    volume = np.full((1, 3, 5, 6), value, np.int16)
    assert len(np.unique(shown(volume, 1, channels=channels))) == 1


def test_only_a_rule_that_differs_from_the_default_for_this_case_enters_the_fingerprint() -> None:
    ct, mr = record_of(hounsfield(), "CT"), record_of(hounsfield(), "MR")
    same = spec(ct={"windows": ["soft-tissue"]}, mr={"percentiles": [0.5, 99.5]})
    assert (intensity_inputs(same, ct), intensity_inputs(same, mr)) == ({}, {})
    lung = spec(ct={"windows": ["lung"]})
    assert intensity_inputs(lung, ct)
    assert not intensity_inputs(lung, mr)
    assert intensity_inputs(spec(channels="adjacent"), mr)


def test_to_rgb_of_a_slice_still_takes_three_channels_as_colour() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    assert np.array_equal(to_rgb(colour, Window(low=0, high=255, rule="as-is")), colour.transpose(1, 2, 0))


# Through the engine

SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive.create(str(tmp_path / "a.zarr"))
    rng = np.random.default_rng(0)
    for name, modality, channels in (("ct", "CT", 1), ("mr", "MR", 2)):
        volume = rng.integers(-200, 900, (channels, 6, 20, 26)).astype(np.int16)
        made.add_case(record_of(volume, modality, name), volume)
        made.catalog.add_prompts([Prompt(case=name, class_id=1, kind="box", slice=2, box_xyxy_px=(5, 4, 18, 15))])
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    import torch

    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    write_teacher(path, build_conv_sam(SMALL), SMALL, PretrainPlan(data=tmp_path, out=path), 0)
    return str(path)


def label(archive: Archive, checkpoint: str, **keys: object) -> tuple[int, tuple[str, ...]]:
    plan = LabelPlan(
        classes=(ClassInfo(id=1, name="a"),),
        teacher=checkpoint,
        device="cpu",
        ask=AskSettings(boxes=1, planes="axial"),
        intensity=spec(**keys),
    )
    summary = label_archive(archive, plan)
    return summary.done, summary.quarantined


def test_a_new_rule_for_ct_relabels_ct_alone_and_its_history_states_it(archive: Archive, checkpoint: str) -> None:
    assert label(archive, checkpoint) == (2, ())
    before = {case: archive[case].labels("teacher/r1").history for case in ("ct", "mr")}
    assert label(archive, checkpoint, ct={"windows": ["lung", "soft-tissue", "bone"]}) == (1, ())
    assert archive["mr"].labels("teacher/r1").history == before["mr"]
    after = archive["ct"].labels("teacher/r1").history.parameters
    assert after["windows_rgb"] == [-1350.0, 150.0, -160.0, 240.0, -500.0, 1300.0]
    assert "windows_rgb" not in before["ct"].parameters


def test_a_case_that_lacks_the_channel_is_quarantined_by_name_and_the_other_is_labelled(archive: Archive, checkpoint: str) -> None:
    assert label(archive, checkpoint, channels="channel:1") == (1, ("ct",))
    assert "case ct: intensity.channels is 'channel:1'" in archive.ledger.quarantined("label:teacher/r1")[0].traceback


def test_the_first_channel_of_a_case_with_one_is_the_default_and_relabels_nothing() -> None:
    one, two = np.zeros((1, 3, 5, 6), np.int16), np.zeros((2, 3, 5, 6), np.int16)
    assert intensity_inputs(spec(channels="channel:0"), record_of(one)) == {}
    assert intensity_inputs(spec(channels="channel:0"), record_of(two))
    assert choose_window(record_of(one), one, spec(channels="channel:0")) == choose_window(record_of(one), one)


# Channels with names, and what of several is shown.
def with_channels(volume: np.ndarray, *channels: Channel, modality: str = "MR") -> CaseRecord:
    return replace(record_of(volume, modality), channels=channels)


def test_of_several_channels_the_first_is_shown_by_its_own_percentiles_whatever_the_others_hold() -> None:
    first = np.random.default_rng(0).integers(1, 250, (1, 4, 5, 6)).astype(np.float32)
    volume = np.concatenate([first, 1e4 * first])
    window = choose_window(record_of(volume), volume)
    assert (window.high, window.history()["window_channels"]) == (choose_window(record_of(first), first).high, "channel:0")
    assert np.array_equal(shown(volume, 1), shown(first, 1))


def test_three_named_channels_are_no_colours() -> None:
    volume = np.random.default_rng(0).integers(1, 250, (3, 4, 5, 6), dtype=np.uint8)
    named = with_channels(volume, Channel(name="t1"), Channel(name="t2"), Channel(name="flair"))
    assert choose_window(named, volume).source == 0
    assert np.array_equal(picture_of(volume, 1, choose_window(named, volume)), shown(volume[:1], 1))
    assert choose_window(record_of(volume, "unknown"), volume).rule == "as-is"


def test_a_channel_is_chosen_by_its_name_and_one_that_is_not_there_is_refused_with_those_that_are() -> None:
    volume = np.random.default_rng(0).integers(1, 250, (2, 4, 5, 6)).astype(np.int16)
    named = with_channels(volume, Channel(name="t1"), Channel(name="flair"))
    assert choose_window(named, volume, spec(channels="channel:flair")) == choose_window(named, volume, spec(channels="channel:1"))
    with pytest.raises(PlanError, match=r"'channel:t2', but the case has 2 channel\(s\): t1, flair"):
        choose_window(named, volume, spec(channels="channel:t2"))


def test_each_channel_is_shown_as_its_own_modality_asks() -> None:
    volume = np.concatenate([hounsfield(), 3 * hounsfield()])
    named = with_channels(volume, Channel(name="ct", modality="CT"), Channel(name="pet", modality="PT"), modality="CT")
    assert choose_window(named, volume).rule == "ct-soft-tissue"
    assert choose_window(named, volume, spec(channels="channel:pet")).rule == "percentiles-of-non-zero"
    assert choose_window(named, volume, spec(pt={"windows": [[0, 9]]}, channels="channel:pet")).high == 9
    assert picture_of(volume, 1, choose_window(named, volume, spec(ct={"windows": ["soft-tissue", "lung", "bone"]}))).std(axis=2).max() > 0


def test_labels_of_several_channels_are_made_anew_since_another_thing_is_shown() -> None:
    assert intensity_inputs(spec(), record_of(np.ones((2, 3, 5, 6), np.float32)))
    assert intensity_inputs(spec(), record_of(np.ones((1, 3, 5, 6), np.float32))) == {}
    assert intensity_inputs(spec(), record_of(np.ones((3, 3, 5, 6), np.uint8))) == {}
