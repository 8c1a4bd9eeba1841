"""Expert labels go in where they fit, and no patient is in two parts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from storage import IGNORE, Archive, Case, ClassInfo
from storage.database import Database
from storage.errors import IngestError
from storage.ingest import gold, import_labels, import_parts, ingest
from storage.tables import UnitRow

WriteNifti = Callable[..., Path]
ORGAN = (ClassInfo(id=1, name="organ"),)


@pytest.fixture
def scans(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> Archive:
    for name in ("P1-a", "P1-b", "P2-a"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz")
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "images" / "P3-a.png")
    ingest(archive, tmp_path / "images", patient_from="^(P[0-9])-")
    return archive


def labels(*values: int) -> np.ndarray:
    ids = np.zeros((5, 6, 7), np.uint8)
    for n, value in enumerate(values):
        ids[n, 1:3, 2:5] = value
    return ids


def test_labels_land_on_the_voxels_they_were_drawn_on(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "gold" / "P1-a.nii.gz", labels(1, 1))
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN).added == 1
    found = scans["P1-a"].labels("gold")
    assert np.array_equal(found.read(), labels(1, 1).T)
    assert (found.history.made_by, found.history.prompt_source) == ("storage.ingest.gold", "expert")


def test_labels_stored_with_other_axes_are_turned_without_moving(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    drawn = labels(1)
    affine = np.diag([0.5, 0.6, 2.0, 1.0])
    flipped = affine.copy()
    flipped[1, 1], flipped[1, 3] = -0.6, 0.6 * 5
    write_nifti(tmp_path / "gold" / "P1-a.nii.gz", drawn[:, ::-1], affine=flipped)
    write_nifti(tmp_path / "gold" / "P1-b.nii.gz", drawn.transpose(2, 1, 0), affine=affine[:, [2, 1, 0, 3]])
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN).added == 2
    for case in ("P1-a", "P1-b"):
        assert np.array_equal(scans[case].labels("gold").read(), drawn.T)


def test_labels_of_a_converted_series_fit_the_real_dicom_series(archive: Archive, tmp_path: Path, real_data: Path) -> None:
    ingest(archive, real_data / "ct_organs" / "dicom_series")
    (record,) = archive.cases()
    labels_as = tmp_path / f"{record.id}.nii.gz"
    labels_as.symlink_to(real_data / "ct_organs" / "example_seg_dicom.nii.gz")
    classes = tuple(ClassInfo(id=n, name=f"structure {n}") for n in range(1, 120))
    assert import_labels(archive, labels_as, classes=classes, label_set="model").added == 1
    found = archive[record.id].labels("model").read()
    # Whatever the structures are, they are parts of a body, and the turned-over side of the picture is air.
    assert np.mean(archive[record.id].read()[0][found > 0] > -900) > 0.9


def test_a_mapping_merges_classes_and_marks_what_to_ignore(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "gold" / "P1-a.nii.gz", labels(1, 2, 9))
    import_labels(scans, tmp_path / "gold", classes=ORGAN, mapping={1: 1, 2: 1, 9: IGNORE})
    assert np.array_equal(scans["P1-a"].labels("gold").read(), labels(1, 1, IGNORE).T)


def test_objects_with_a_number_each_are_one_class_however_many_there_are(scans: Archive, tmp_path: Path) -> None:
    (tmp_path / "gold").mkdir()
    numbered = np.arange(20, dtype=np.uint16).reshape(4, 5) * 100 + 55
    numbered[0] = [0, 1, 255, 65535, 0]
    Image.fromarray(numbered).save(tmp_path / "gold" / "P3-a.png")
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN, mapping={"above 0": 1}).added == 1
    found = scans["P3-a"].labels("gold")
    assert np.array_equal(found.read()[0], numbered > 0)
    assert found.history.parameters == {"value_above_0": 1}


def test_values_that_are_named_go_before_all_others_above_zero(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "gold" / "P1-a.nii.gz", labels(7, 3, 255, 254))
    mapping: dict[int | str, int] = {"above 0": 1, 3: 0, 255: IGNORE}
    import_labels(scans, tmp_path / "gold", classes=ORGAN, mapping=mapping)
    assert np.array_equal(scans["P1-a"].labels("gold").read(), labels(1, 0, IGNORE, 1).T)


def test_a_mapping_of_all_above_zero_brings_files_in_anew_and_a_word_that_is_no_value_is_refused(
    scans: Archive, tmp_path: Path, write_nifti: WriteNifti
) -> None:
    write_nifti(tmp_path / "gold" / "P1-a.nii.gz", labels(1))
    import_labels(scans, tmp_path / "gold", classes=ORGAN)
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN, mapping={1: 1, "above 0": 1}).added == 1
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN, mapping={1: 1, "above 0": 1}).unchanged == 1
    with pytest.raises(IngestError, match="the mapping of label values names 'rest', which is no value"):
        import_labels(scans, tmp_path / "gold", classes=ORGAN, mapping={"rest": 1})


def test_pictures_of_labels_go_in_by_their_grey_values_or_palette(scans: Archive, tmp_path: Path) -> None:
    (tmp_path / "gold").mkdir()
    ids = np.zeros((4, 5), np.uint8)
    ids[1:3, 2] = 1
    picture = Image.fromarray(ids).convert("P")
    picture.putdata(ids.ravel().tolist())
    picture.save(tmp_path / "gold" / "P3-a_first.png")
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN, suffix="_first").added == 1
    assert np.array_equal(scans["P3-a"].labels("gold").read()[0], ids)


def test_each_label_file_that_does_not_fit_says_why(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    gold = tmp_path / "gold"
    write_nifti(gold / "P1-a.nii.gz", labels(1)[:, :, :-1])
    write_nifti(gold / "P1-b.nii.gz", labels(1), affine=np.diag([0.5, 0.6, -2.0, 1.0]))
    write_nifti(gold / "P2-a.nii.gz", labels(1, 7))
    write_nifti(gold / "P9-a.nii.gz", labels(1))
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(gold / "P3-a.png")
    summary = import_labels(scans, gold, classes=ORGAN)
    expected = {
        "P1-a.nii.gz": "label-geometry-mismatch",
        "P1-b.nii.gz": "label-geometry-mismatch",
        "P2-a.nii.gz": "unmapped-label-value",
        "P9-a.nii.gz": "unknown-case",
        "P3-a.png": "not-a-label-file",
    }
    assert {Path(p.source).name: p.reason for p in scans.catalog.problems()} == expected
    assert (summary.added, summary.problems) == (0, 5)
    again = import_labels(scans, gold, classes=ORGAN)
    assert (again.reasons, again.unchanged) == (summary.reasons, 0)


def test_importing_again_does_nothing_and_a_fixed_file_goes_in(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "gold" / "P1-a.nii.gz", labels(1))
    write_nifti(tmp_path / "gold" / "P1-b.nii.gz", labels(5))
    import_labels(scans, tmp_path / "gold", classes=ORGAN)
    write_nifti(tmp_path / "gold" / "P1-b.nii.gz", labels(1))
    again = import_labels(scans, tmp_path / "gold", classes=ORGAN)
    assert (again.added, again.unchanged, again.problems) == (1, 1, 0)
    assert scans.catalog.problems() == []


def test_two_observers_are_two_label_sets(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "first" / "P1-a.nii.gz", labels(1))
    write_nifti(tmp_path / "second" / "P1-a.nii.gz", labels(1, 1))
    import_labels(scans, tmp_path / "first", classes=ORGAN)
    import_labels(scans, tmp_path / "second", classes=ORGAN, label_set="gold-second")
    assert scans["P1-a"].label_sets() == ["gold", "gold-second"]


def parts_file(folder: Path, text: str) -> Path:
    path = folder / "parts.csv"
    path.write_text("case,part\n" + text)
    return path


def test_parts_are_set_and_names_that_are_not_there_are_returned(scans: Archive, tmp_path: Path) -> None:
    summary = import_parts(scans, parts_file(tmp_path, "P1-a,test\nP1-b,test\nP7-a,test\n"))
    assert summary.counts == {"archive": 2, "test": 2}
    assert summary.unknown == ("P7-a",)
    assert [case.id for case in scans.cases(part="test")] == ["P1-a", "P1-b"]


def test_a_patient_in_two_parts_is_refused_and_nothing_changes(scans: Archive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for example P1: case P1-b in archive, case P1-a in test"):
        import_parts(scans, parts_file(tmp_path, "P1-a,test\nP2-a,test\n"))
    assert scans.cases(part="test") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("P1-a,training\n", "line 2: case 'P1-a' has part 'training'", id="unknown part"),
        pytest.param("P1-a\n", "line 2", id="column missing"),
        pytest.param("P1-a,test\nP1-a,archive\n", "line 3: case P1-a is in part test on an earlier line", id="two answers"),
    ],
)
def test_a_parts_file_that_cannot_be_understood_names_its_line(scans: Archive, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_parts(scans, parts_file(tmp_path, text))


def test_real_gold_merges_into_one_class_and_parts_follow_the_split(archive: Archive, tmp_path: Path, real_data: Path) -> None:
    source = real_data / "hippocampus"
    names = [path.name for path in sorted((source / "images").iterdir())[:6]]
    for name in names:
        ingest(archive, source / "images" / name, modality="MR")
        import_labels(archive, source / "gold" / name, classes=(ClassInfo(id=1, name="hippocampus"),), mapping={1: 1, 2: 1})
    import_parts(archive, source / "split.csv")
    assert len(archive.cases(with_labels="gold")) == 6
    assert {case.part for case in archive.cases()} == {"archive", "test"}
    assert set(np.unique(archive[names[0].removesuffix(".nii.gz")].labels("gold").read())) == {0, 1}


def test_labels_that_another_run_has_taken_meanwhile_are_left_to_it_and_the_others_go_in(
    scans: Archive, tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("P1-a", "P1-b"):
        write_nifti(tmp_path / "gold" / f"{name}.nii.gz", labels(1))
    write = gold._write

    def taken(case: Case, *rest: object) -> None:
        if case.id == "P1-a":
            with Database(scans.catalog.url).writing() as connection:
                connection.execute(sa.update(UnitRow).where(UnitRow.stage == "gold", UnitRow.unit == "P1-a").values(host="elsewhere"))
        write(case, *rest)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(gold, "_write", taken)
    assert import_labels(scans, tmp_path / "gold", classes=ORGAN).added == 1
    assert scans.ledger.counts("gold")["claimed"] == 1


def test_a_split_with_a_quote_that_is_never_closed_is_refused_in_words(scans: Archive, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text('case,part\n"P1-a,test\n' + "P1-b,test\n" * 20_000)
    with pytest.raises(IngestError, match=r"split\.csv: the file cannot be read"):
        import_parts(scans, path)
