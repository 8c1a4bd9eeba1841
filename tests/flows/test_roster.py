"""The students of an archive: what is listed, and which one answers where nobody names one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import students
from flows import cli
from flows.errors import StageError
from flows.roster import promoted_student
from storage import Archive, StudentRecord
from students import predict
from students.checkpoint import WEIGHTS, weights_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "students" / "compact"
    made.mkdir(parents=True)
    (made / WEIGHTS).write_bytes(b"weights")
    return made


@pytest.fixture
def record(folder: Path) -> StudentRecord:
    return StudentRecord(
        name="compact",
        kind="compact",
        path=str(folder),
        label_set="pseudo/r1",
        parameters=1234,
        fingerprint="f",
        metrics={"agreement": 0.8125, "dice": 0.7654},
        weights=weights_digest(folder),
        recipe={"student": {"width": 8}},
        code="0.1.0+abc",
        trained_at="2026-11-21T16:30:00Z",
    )


@pytest.fixture
def archive(tmp_path: Path, record: StudentRecord) -> Archive:
    made = Archive.create(str(tmp_path / "a.zarr"))
    made.catalog.record_student(record)
    return made


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["students", *words])
    assert not ended.value.code
    return capsys.readouterr().out


def test_a_student_is_listed_with_what_it_learnt_from_and_how_good_it_is(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads(said(capsys, "list", archive.url, "--json"))
    assert row["name"] == "compact"
    assert row["label_set"] == "pseudo/r1"
    assert row["metrics"] == {"agreement": 0.8125, "dice": 0.7654}
    assert not row["is_promoted"]
    assert "students promote" in said(capsys, "list", archive.url)


def test_an_archive_without_students_says_what_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = Archive.create(str(tmp_path / "empty.zarr"))
    assert "has no student yet: 'samdistill run RECIPE'" in said(capsys, "list", empty.url)


def test_a_student_is_shown_with_its_recipe_its_program_and_its_earlier_trainings(
    archive: Archive, record: StudentRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.catalog.record_student(replace(record, weights="others", code="0.1.0+def"))
    first, second = json.loads(said(capsys, "show", archive.url, "compact", "--json"))
    assert (first["revision"], first["code"]) == (1, "0.1.0+abc")
    assert (second["revision"], second["code"]) == (2, "0.1.0+def")
    shown = said(capsys, "show", archive.url, "compact")
    assert '"width": 8' in shown
    assert "earlier trainings" in shown


def test_a_misspelt_student_is_answered_with_the_one_that_was_meant(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "promote"):
        with pytest.raises(SystemExit):
            cli.main(["students", command, archive.url, "compakt"])
        assert "has no student 'compakt'. Did you mean 'compact'? It has: compact." in capsys.readouterr().err


def test_the_promoted_student_answers_where_an_archive_stands_in_its_place(
    archive: Archive, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []

    class Named:
        name = "compact"

    monkeypatch.setattr(students, "load_student", lambda path, **_: asked.append(path) or Named())
    monkeypatch.setattr(predict, "predict_cases", lambda *_, **__: 0)
    with pytest.raises(SystemExit):
        cli.main(["predict", archive.url])
    assert "no student of" in capsys.readouterr().err
    said(capsys, "promote", archive.url, "compact")
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", archive.url])
    assert not ended.value.code
    assert asked == [folder]


def test_a_student_trained_again_since_it_was_promoted_is_not_asked(
    archive: Archive, record: StudentRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "promote", archive.url, "compact")
    archive.catalog.record_student(replace(record, weights="others"))
    with pytest.raises(StageError, match="promoted as training 1, and has been trained again since"):
        promoted_student(archive.url, None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda path: path.write_bytes(b"others"), "of another training than the catalog knows", id="other weights"),
        pytest.param(lambda path: path.unlink(), "cannot be read", id="no weights"),
    ],
)
def test_what_cannot_be_used_is_not_promoted(
    change: Callable[[Path], object], why: str, archive: Archive, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder / WEIGHTS)
    with pytest.raises(SystemExit):
        cli.main(["students", "promote", archive.url, "compact"])
    assert why in capsys.readouterr().err
    assert not any(each.promoted for each in archive.catalog.students())


def test_a_worse_student_is_promoted_with_a_warning(
    archive: Archive, record: StudentRecord, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.catalog.record_student(replace(record, name="worse", metrics={"dice": 0.5}))
    said(capsys, "promote", archive.url, "compact")
    shown = said(capsys, "promote", archive.url, "worse")
    assert "in place of compact, training 1" in shown
    assert "WARNING: its Dice with experts is 0.500, and that of compact 0.765." in shown


def test_a_student_alone_is_asked_what_it_is_to_segment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["predict", str(folder)])
    assert "say what to segment" in capsys.readouterr().err
