"""The export command says what it wrote and how faithful it is."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cli

_shared = runpy.run_path(str(Path(__file__).parents[1] / "students" / "conftest.py"))
make_student = _shared["make_student"]
"""The fixture of the room that students live in."""

MakeStudent = Callable[..., Path]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert not ended.value.code
    return capsys.readouterr().out


def test_an_export_is_said_to_be_as_faithful_as_it_is(
    make_student: MakeStudent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shown = said(capsys, "students", "export", str(make_student("2d")), "--to", "onnx", "-o", str(out))
    assert "onnx, opset 18" in shown
    assert "differs from torch by at most" in shown
    assert "exported to" in said(capsys, "inspect", str(out))


def test_a_model_card_is_printed_or_written(make_student: MakeStudent, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_student("2d")
    assert "# untaught" in said(capsys, "students", "card", str(folder))
    said(capsys, "students", "card", str(folder), "-o", str(tmp_path / "pages" / "CARD.md"))
    assert "Nobody has scored it" in (tmp_path / "pages" / "CARD.md").read_text()


def test_a_student_that_is_no_nnunet_has_no_zip_for_it(
    make_student: MakeStudent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["students", "export", str(make_student("2d")), "--to", "nnunet", "-o", str(tmp_path / "student.zip")])
    assert ended.value.code
    assert "is no model of nnU-Net. Export it to onnx, torchscript, bundle or int8." in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        cli.main(["students", "export", str(make_student("2d")), "--to", "nnunet", "-o", str(tmp_path)])
    assert "is a folder, and nnU-Net installs one file" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "student.zip").exists()
