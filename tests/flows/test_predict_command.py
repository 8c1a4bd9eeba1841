"""The predict command: exit codes, what is listed, and what it says of archives."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import students
from flows import cli, console, showcase
from flows.errors import StageError
from storage import Archive, CaseRecord, Geometry
from students import files, predict
from students.files import FilePrediction, FilePredictions
from students.predict import Prediction


class FakeStudent:
    """Answers nothing but background."""

    name = "fake"
    card = SimpleNamespace(channels=(), spacing_known=False, plan=SimpleNamespace(dimensions="2d"))

    def predict(self, volume: np.ndarray, _spacing: object, *, largest_component: bool = False) -> Prediction:
        assert not largest_component
        return Prediction(labels=np.zeros(volume.shape[1:], np.uint8), probability=np.zeros((1, *volume.shape[1:]), np.float32))


@pytest.fixture(autouse=True)
def fake_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "load_student", lambda *_, **__: FakeStudent())


def picture(path: Path) -> Path:
    Image.fromarray(np.add.outer(np.arange(20), np.arange(30)).astype(np.uint8)).save(path)
    return path


def answer(*sources: Path, out: Path) -> int:
    return showcase.predict_anywhere(Path("student"), sources, out, device="cpu")


def test_all_scans_segmented_is_0_and_strangers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "a.png")
    (folder / "readme.txt").write_text("hello")
    assert answer(folder, out=tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "passed over, as no scans: readme.txt" in said
    assert "1 of 1 scan segmented" in said


def test_some_scans_segmented_is_3_with_the_reason_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert answer(tmp_path / "a.png", tmp_path / "b.png", out=tmp_path / "out") == 3
    said = capsys.readouterr()
    assert "error: b.png: the file has no bytes" in said.err
    assert "1 of 2 scans segmented" in said.out


def test_no_scan_segmented_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    assert answer(tmp_path / "b.png", out=tmp_path / "out") == 1
    assert "0 of 1 scan segmented" in capsys.readouterr().out


def test_a_folder_without_any_scan_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert answer(tmp_path / "in", out=tmp_path / "out") == 1
    assert "0 of 0 scans" in capsys.readouterr().out


def test_what_lies_beside_dicom_is_counted_and_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = FilePrediction(source="s-1", output=tmp_path / "s-1.nii.gz", problem="", seconds=0.1)
    found = FilePredictions(scans=(done,), passed_over=(), unnamed=(("localizer", 2), ("other file", 1)), private_list=tmp_path / "l.csv")
    monkeypatch.setattr(files, "predict_files", lambda *_, **__: found)
    assert answer(tmp_path, out=tmp_path / "out") == 0
    assert "passed over beside DICOM, as no scans: localizer: 2, other file: 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "said"),
    [(2, "2 cases segmented into label set student/fake\n"), (1, "1 case segmented into label set student/fake; 1 case had it already\n")],
    ids=["none had it", "one had it"],
)
def test_an_archive_is_told_of_cases_that_had_the_labels_only_where_there_are_some(
    written: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    identity = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    for case in ("one", "two"):
        geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=identity)
        record = CaseRecord(id=case, patient=case, shape_czyx=(1, 1, 2, 3), dtype="uint8", geometry=geometry)
        archive.add_case(record, np.zeros((1, 1, 2, 3), np.uint8))
    monkeypatch.setattr(predict, "predict_cases", lambda *_, **__: written)
    assert showcase.predict_anywhere(Path("student"), [tmp_path / "a.zarr"], None, device="cpu") == 0
    assert capsys.readouterr().out == said


def test_an_archive_beside_other_scans_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    Archive.create(str(tmp_path / "a.zarr"))
    with pytest.raises(StageError, match="is an archive, and takes its labels itself"):
        answer(tmp_path / "a.zarr", picture(tmp_path / "a.png"), out=tmp_path / "out")


def test_of_many_strangers_only_some_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "a.png")
    for n in range(30):
        (folder / f"note{n:02}.txt").touch()
    assert answer(folder, out=tmp_path / "out") == 0
    assert "note19.txt and 10 more\n" in capsys.readouterr().out


def test_the_catalog_of_an_archive_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = f"sqlite:///{tmp_path}/elsewhere.sqlite"
    Archive.create(str(tmp_path / "a.zarr"), catalog=catalog)
    monkeypatch.setattr(predict, "predict_cases", lambda *_, **__: 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", "student", str(tmp_path / "a.zarr"), "--catalog", catalog])
    assert not ended.value.code


def test_a_name_that_the_terminal_has_no_letters_for_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(showcase, "OUT", console.wide_console())
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "読んで.txt").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", "student", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert not ended.value.code
    terminal.flush()
    assert rb"no scans: \u8aad\u3093\u3067.txt" in terminal.buffer.getvalue()  # type: ignore[attr-defined]  # BytesIO
