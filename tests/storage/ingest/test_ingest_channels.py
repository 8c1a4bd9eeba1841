"""Files of one case, one for each channel, become one case; what does not fit together is refused by name, and harms no other case."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage import Archive, Channel, ClassInfo, IngestError, LabelHistory, rebuild_catalog
from storage.channels import check_channels, named_channels
from storage.errors import InvalidCaseError
from storage.export.nifti import export_image
from storage.ingest import import_labels, import_parts, import_prompts, ingest
from storage.ingest.channels import group_files
from storage.ingest.discover import FoundFile

WriteNifti = Callable[..., Path]
BOTH = named_channels(["t1", "t2"])
BRATS = (Channel(name="t1n", suffix="-t1n"), Channel(name="t1c", suffix="-t1c"))


def values(seed: int, shape: tuple[int, ...] = (5, 6, 7), dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)


@pytest.fixture
def raw(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """Two cases of two channels as nnU-Net names them, the second channel in floating point."""
    for case in (1, 2):
        write_nifti(tmp_path / "raw" / f"case_{case}_0000.nii.gz", values(case))
        write_nifti(tmp_path / "raw" / f"case_{case}_0001.nii.gz", values(10 + case, dtype="float32") / 3)
    return tmp_path / "raw"


def problems(archive: Archive) -> dict[str, str]:
    return {problem.reason: problem.message for problem in archive.catalog.problems()}


def test_files_of_one_case_become_its_channels_in_the_order_that_was_named(archive: Archive, raw: Path) -> None:
    assert ingest(archive, raw, modality="MR", channels=tuple(reversed(BOTH))).added == 2
    record = archive["case_1"].record
    assert [(each.name, each.modality, each.suffix) for each in record.channels] == [("t2", "MR", "_0001"), ("t1", "MR", "_0000")]
    assert (record.shape_czyx, record.dtype) == ((2, 7, 6, 5), "float32")
    np.testing.assert_array_equal(archive["case_1"].read()[1], values(1).T)
    np.testing.assert_allclose(archive["case_1"].read()[0], values(11).T / np.float32(3))


def test_names_of_channels_outlive_the_catalog(archive: Archive, raw: Path) -> None:
    ingest(archive, raw, channels=BOTH)
    again = rebuild_catalog(archive.url, catalog=f"sqlite:///{raw.parent / 'new.db'}")
    assert again["case_1"].record.channels == BOTH


def test_new_names_of_the_same_channels_outlive_the_catalog_too_and_labels_stay(archive: Archive, raw: Path) -> None:
    ingest(archive, raw, channels=BOTH)
    record = archive["case_1"].record
    history = LabelHistory(label_set="gold", classes=(ClassInfo(id=1, name="organ"),), made_by="test", fingerprint="g")
    archive["case_1"].write_labels(history, np.ones(record.shape_czyx[1:], np.uint8))
    turned = tuple(Channel(name=name, modality=each.modality, suffix=each.suffix) for name, each in zip(("t2", "t1"), BOTH, strict=True))
    assert ingest(archive, raw, channels=turned).unchanged == 2
    again = rebuild_catalog(archive.url, catalog=f"sqlite:///{raw.parent / 'new.db'}")
    assert again["case_1"].record.channels == archive["case_1"].record.channels == turned
    assert again["case_1"].label_sets() == ["gold"]
    with pytest.raises(InvalidCaseError, match="other pixels under this id"):
        archive.describe_case(replace(record, fingerprint="another"))


def test_a_second_run_does_nothing_and_a_changed_channel_brings_its_case_in_anew(
    archive: Archive, raw: Path, write_nifti: WriteNifti
) -> None:
    ingest(archive, raw, channels=BOTH)
    assert ingest(archive, raw, channels=BOTH).unchanged == 2
    write_nifti(raw / "case_2_0001.nii.gz", values(99))
    summary = ingest(archive, raw, channels=BOTH)
    assert (summary.replaced, summary.unchanged) == (1, 1)


def test_a_case_without_a_channel_is_refused_by_name_the_others_go_in_and_the_missing_file_mends_it(archive: Archive, raw: Path) -> None:
    shutil.move(raw / "case_2_0001.nii.gz", raw.parent / "late.nii.gz")
    summary = ingest(archive, raw, channels=BOTH)
    assert (summary.added, summary.reasons) == (1, {"missing-channel": 1})
    assert (
        "case case_2: no channel t2 (..._0001). Expected: t1 (..._0000), t2 (..._0001); found: t1 in case_2_0000.nii.gz"
        in problems(archive)["missing-channel"]
    )
    shutil.move(raw.parent / "late.nii.gz", raw / "case_2_0001.nii.gz")
    assert ingest(archive, raw, channels=BOTH).added == 1
    assert problems(archive) == {}


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        pytest.param((5, 6, 8), np.diag([0.5, 0.6, 2.0, 1.0]), "its shape (z, y, x) is (8, 6, 5)", id="another size"),
        pytest.param((5, 6, 7), np.diag([0.5, 0.6, 2.2, 1.0]), "its spacing (z, y, x) is (2.2, 0.6, 0.5) mm", id="another spacing"),
        pytest.param(
            (5, 6, 7),
            np.array([[0.5, 0, 0, 0.06], [0, 0.6, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]),
            "its origin differs, so that a corner is 0.06 mm away",
            id="moved by more than a tenth of a voxel",
        ),
        pytest.param(np.shape(values(0)), np.diag([-0.5, 0.6, 2.0, 1.0]), "its direction differs", id="mirrored"),
    ],
)
def test_a_channel_that_lies_elsewhere_is_refused_with_what_differs(
    archive: Archive, raw: Path, write_nifti: WriteNifti, shape: tuple[int, ...], affine: np.ndarray, said: str
) -> None:
    write_nifti(raw / "case_2_0001.nii.gz", values(3, shape), affine)
    assert ingest(archive, raw, channels=BOTH).added == 1
    assert said in problems(archive)["channel-geometry-mismatch"]
    assert "channel t2 lies elsewhere than t1" in problems(archive)["channel-geometry-mismatch"]


def test_channels_whose_headers_round_differently_are_one_case(archive: Archive, raw: Path, write_nifti: WriteNifti) -> None:
    near = np.diag([0.5, 0.6, 2.0, 1.0]) + np.array([[0, 0, 0, 0.04], [0] * 4, [0] * 4, [0] * 4])
    write_nifti(raw / "case_2_0001.nii.gz", values(3), near)
    assert ingest(archive, raw, channels=BOTH).added == 2
    assert archive["case_2"].record.geometry.affine[0][3] == 0.0


def test_a_broken_channel_and_one_that_is_there_twice_are_named(archive: Archive, raw: Path, write_nifti: WriteNifti) -> None:
    write_nifti(raw / "case_1_0001.nii.gz", np.zeros((5, 6, 7), np.int16))
    write_nifti(raw / "case_2_0001.nii", values(4))
    ingest(archive, raw, channels=BOTH)
    assert "case case_1, channel t2 in case_1_0001.nii.gz: every voxel has the value 0" in problems(archive)["empty-volume"]
    assert "channel t2 is there 2 times: case_2_0001.nii, case_2_0001.nii.gz" in problems(archive)["duplicate-channel"]


def test_files_beside_the_channels_are_passed_over_and_counted(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    folder = tmp_path / "raw" / "BraTS-1"
    for n, end in enumerate(("-t1n", "-t1c", "-seg")):
        write_nifti(folder / f"BraTS-1{end}.nii.gz", values(n))
    summary = ingest(archive, tmp_path / "raw", channels=BRATS)
    assert (summary.added, summary.problems) == (1, 0)
    assert [record.id for record in archive.cases()] == ["BraTS-1"]
    assert any("1 file beside the channels passed over, such as BraTS-1-seg.nii.gz" in each for each in summary.remarks)


def test_volumes_along_the_fourth_dimension_are_channels_where_as_many_are_named(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti
) -> None:
    write_nifti(tmp_path / "raw" / "prostate_00.nii.gz", values(1, (5, 6, 7, 2)))
    write_nifti(tmp_path / "raw" / "prostate_01.nii.gz", values(2, (5, 6, 7)))
    write_nifti(tmp_path / "raw" / "prostate_02.nii.gz", values(3, (5, 6, 7, 3)))
    ingest(archive, tmp_path / "raw", channels=BOTH)
    np.testing.assert_array_equal(archive["prostate_00"].read(), values(1, (5, 6, 7, 2)).T)
    assert archive["prostate_00"].record.channels == BOTH
    assert "this one holds 1" in problems(archive)["channel-count-mismatch"]
    assert "3 volumes" in problems(archive)["time-series"]
    assert "but 2 channels are named" in problems(archive)["time-series"]


def test_an_exported_case_of_several_channels_comes_back_from_its_one_file(archive: Archive, raw: Path, tmp_path: Path) -> None:
    ingest(archive, raw, channels=BOTH)
    export_image(archive["case_1"], tmp_path / "out" / "case_1.nii.gz")
    again = Archive.create(str(tmp_path / "again.zarr"))
    ingest(again, tmp_path / "out", channels=BOTH)
    np.testing.assert_array_equal(again["case_1"].read(), archive["case_1"].read())
    assert again["case_1"].record.channels == BOTH


def test_prompts_may_name_the_file_of_a_channel(archive: Archive, raw: Path, tmp_path: Path) -> None:
    ingest(archive, raw, channels=BOTH)
    box = {"class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [1, 1, 4, 5]}
    rows = [{"image": "case_1_0001.nii.gz", **box}, {"case": "case_2", **box}, {"image": "case_3_0001.nii.gz", **box}]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    summary = import_prompts(archive, tmp_path / "boxes.json")
    assert (summary.added, summary.reasons) == (2, {"unknown-case": 1})
    assert sorted(archive.catalog.prompts_by_case(["case_1", "case_2"])) == ["case_1", "case_2"]


def test_prompts_split_and_gold_may_name_the_file_of_the_only_channel(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    for n in (1, 2, 3):
        write_nifti(tmp_path / "imagesTr" / f"case_{n}_0000.nii.gz", values(n))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}}))
    ingest(archive, tmp_path / "imagesTr")
    box = {"class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [1, 1, 4, 5]}
    rows = [{"case": "case_1_0000", **box}, {"image": "case_2_0000.nii.gz", **box}, {"case": "case_3_0001", **box}]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    summary = import_prompts(archive, tmp_path / "boxes.json")
    assert (summary.added, summary.reasons) == (2, {"unknown-case": 1})
    (tmp_path / "split.csv").write_text("case,part\ncase_1_0000,test\ncase_2,archive\ncase_9_0000,test\n")
    found = import_parts(archive, tmp_path / "split.csv")
    assert (found.counts, found.unknown) == ({"archive": 2, "test": 1}, ("case_9_0000",))
    write_nifti(tmp_path / "gold" / "case_1_0000.nii.gz", np.ones((5, 6, 7), np.uint8))
    assert import_labels(archive, tmp_path / "gold", classes=(ClassInfo(id=1, name="organ"),)).added == 1
    assert archive["case_1"].labels("gold").read().all()


def test_a_time_series_that_nobody_has_named_is_told_how(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    ingest(archive, write_nifti(tmp_path / "prostate_00.nii.gz", values(1, (5, 6, 7, 2))))
    assert "ingest: {channels: [t1, t2]}" in problems(archive)["time-series"]


def test_each_channel_has_the_modality_that_its_name_says_or_the_case_has(archive: Archive, raw: Path) -> None:
    ingest(archive, raw, channels=named_channels(["CT", "pet"]))
    assert [each.modality for each in archive["case_1"].record.channels] == ["CT", "PT"]
    assert archive["case_1"].record.modality == "CT"


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_a_folder_of_nnunet_is_taken_together_by_what_it_says_of_itself(
    archive: Archive, raw: Path, write_nifti: WriteNifti, key: str
) -> None:
    data_set = raw.parent / "Dataset001"
    shutil.move(raw, data_set / "imagesTr")
    write_nifti(data_set / "labelsTr" / "case_1.nii.gz", values(5))
    (data_set / "dataset.json").write_text(json.dumps({key: {"1": "T2 w", "0": "ADC"}}))
    summary = ingest(archive, data_set)
    assert (summary.added, summary.problems) == (2, 0)
    assert [each.name for each in archive["case_1"].record.channels] == ["ADC", "T2-w"]
    assert any("channels by dataset.json: ADC (..._0000), T2-w (..._0001)" in each for each in summary.remarks)
    ingest(archive, data_set / "imagesTr")
    assert len(archive) == 2


def test_one_channel_of_nnunet_is_called_without_its_number(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "imagesTr" / "case_1_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}}))
    ingest(archive, tmp_path / "imagesTr")
    assert [(record.id, record.channels) for record in archive.cases()] == [("case_1", ())]


@pytest.mark.parametrize("names", [["MRI"], ["T2", "ADC"]])
def test_cases_that_are_counted_in_four_digits_are_no_channels(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti, names: list[str]
) -> None:
    for n in range(4):
        write_nifti(tmp_path / "imagesTr" / f"amos_{n:04d}.nii.gz", values(n, (5, 6, 7, len(names))))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {str(n): name for n, name in enumerate(names)}}))
    assert ingest(archive, tmp_path / "imagesTr").added == 4
    assert archive["amos_0002"].record.shape_czyx[0] == len(names)


@pytest.mark.parametrize("late", [False, True])
def test_a_stray_file_is_refused_alone_and_the_cases_of_the_folder_go_in(
    archive: Archive, raw: Path, write_nifti: WriteNifti, *, late: bool
) -> None:
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "t1", "1": "t2"}}))
    assert not late or ingest(archive, raw).added == 2
    write_nifti(raw / "case_9_0002.nii.gz", values(7))
    write_nifti(raw / "case_1_0001.nii.gz", values(8))
    summary = ingest(archive, raw)
    assert (summary.added, summary.replaced, summary.reasons) == (0 if late else 2, int(late), {"channel-count-mismatch": 1})
    assert "case_9_0002.nii.gz" in problems(archive)["channel-count-mismatch"]


def test_a_stray_file_beside_scans_of_one_channel_renames_none_of_them(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    for n in range(3):
        write_nifti(tmp_path / "imagesTr" / f"case_{n}_0000.nii.gz", values(n))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}}))
    ingest(archive, tmp_path / "imagesTr")
    write_nifti(tmp_path / "imagesTr" / "case_9_0001.nii.gz", values(9))
    summary = ingest(archive, tmp_path / "imagesTr")
    assert (summary.added, summary.unchanged) == (1, 3)
    assert [record.id for record in archive.cases()] == ["case_0", "case_1", "case_2", "case_9_0001"]


def test_counted_files_that_hold_all_channels_are_cases_though_there_are_just_as_many(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti
) -> None:
    for n in range(4):
        write_nifti(tmp_path / "imagesTr" / f"BRATS_{n:04d}.nii.gz", values(n, (5, 6, 7, 4)))
    (tmp_path / "imagesTr" / "BRATS_0000.nii.gz").write_bytes(b"no scan")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {str(n): f"m{n}" for n in range(4)}}))
    summary = ingest(archive, tmp_path)
    assert (summary.added, summary.reasons) == (3, {"not-nifti": 1})
    assert archive["BRATS_0002"].record.shape_czyx[0] == 4


def test_who_may_write_a_case_is_one_whether_its_channel_is_named_by_the_recipe_or_the_folder(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti
) -> None:
    write_nifti(tmp_path / "imagesTr" / "case_1_0000.nii.gz", values(1))
    ingest(archive, tmp_path / "imagesTr", channels=named_channels(["MRI"]))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}}))
    assert ingest(archive, tmp_path / "imagesTr").unchanged == 1
    write_nifti(tmp_path / "imagesTr" / "case_1_0000.nii.gz", values(5))
    summary = ingest(archive, tmp_path / "imagesTr")
    assert (summary.replaced, summary.reasons) == (1, {})


def test_what_dataset_json_does_not_speak_of_is_refused_by_name_and_never_passed_over(
    archive: Archive, raw: Path, write_nifti: WriteNifti
) -> None:
    write_nifti(raw / "case_1_late.nii.gz", values(7))
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "t1", "1": "t2"}}))
    assert ingest(archive, raw).added == 2
    assert "case_1_late.nii.gz: expected are the channels t1 (..._0000), t2 (..._0001)" in problems(archive)["channel-count-mismatch"]


def test_an_archive_that_holds_the_files_apart_goes_on_so_unless_channels_are_named(archive: Archive, raw: Path) -> None:
    ingest(archive, raw)
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "t1", "1": "t2"}}))
    summary = ingest(archive, raw)
    assert (summary.unchanged, len(archive)) == (4, 4)
    assert "a new archive takes them together" in summary.remarks[0]
    assert any(each.startswith("WARNING: 4 files of channels") for each in ingest(archive, raw, channels=BOTH).remarks)


def test_an_empty_list_takes_each_file_by_itself(archive: Archive, raw: Path) -> None:
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "t1", "1": "t2"}}))
    assert ingest(archive, raw, channels=()).added == 4


def test_a_colour_picture_in_the_file_of_its_first_channel_keeps_its_colours(archive: Archive, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "road_0000.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "R", "1": "G", "2": "B"}}))
    ingest(archive, tmp_path)
    record = archive["road"].record
    assert (record.shape_czyx, record.channels) == ((3, 1, 20, 30), ())


@pytest.mark.parametrize(
    "channels",
    [
        pytest.param((Channel(name="t1", suffix="_a"), Channel(name="t1", suffix="_b")), id="one name twice"),
        pytest.param((Channel(name="t1", suffix="_a"), Channel(name="t2", suffix="_a")), id="one ending twice"),
    ],
)
def test_channels_that_cannot_be_told_apart_are_refused_before_anything_is_read(channels: tuple[Channel, ...]) -> None:
    with pytest.raises(IngestError, match="Each channel needs a name and an ending of its own"):
        check_channels(channels)


def test_a_channel_needs_a_name_that_a_recipe_can_write() -> None:
    with pytest.raises(InvalidCaseError, match="'T1 Gd'"):
        Channel(name="T1 Gd")


@settings(max_examples=25)
@given(
    cases=st.lists(st.from_regex(r"[a-z][a-z0-9]{0,4}", fullmatch=True), unique=True, min_size=1, max_size=5),
    shuffled=st.randoms(use_true_random=False),
)
def test_every_file_is_in_one_scan_or_beside_one_in_whatever_order_they_are_found(cases: list[str], shuffled: object) -> None:
    names = [f"{case}{end}.nii.gz" for case in cases for end in ("-t1n", "-t1c", "-seg")]
    shuffled.shuffle(names)  # type: ignore[attr-defined]
    files = [FoundFile(path=Path(name), name=name, kind="nifti", size=1, mtime_ns=1) for name in names]
    grouped = group_files(files, BRATS)
    assert sorted(file.name for scan in grouped.scans for file in scan.files) == sorted(name for name in names if "seg" not in name)
    assert [scan.name for scan in grouped.scans] == sorted(cases)
    assert all(len(scan.files) == 2 for scan in grouped.scans)
    assert len(grouped.beside) == len(cases)
