"""What ``students list`` prints, on terminals of several widths."""

from dataclasses import replace

import pytest

from flows import console, student_words
from storage import StudentRecord

RECORD = StudentRecord(
    name="hippocampus-from-two-teachers-r2",
    kind="compact",
    path="/results/students/x",
    label_set="corrected/hippocampus-from-two-teachers-r2",
    round=2,
    parameters=925_778,
    fingerprint="f",
    metrics={"agreement": 0.91, "dice": 0.8765, "teacher_dice": 0.8123},
    weights="w",
    code="0.1.0+abcdef123456",
    trained_at="2026-11-22T08:00:00Z",
    revision=3,
)


def listed(width: int, records: list[StudentRecord], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    wide = console.Console(width=width)
    monkeypatch.setattr(console, "OUT", wide)
    monkeypatch.setattr(student_words, "OUT", wide)
    student_words.show_students(records, "a.zarr", as_json=False)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("width", "there", "gone"),
    [
        pytest.param(80, ("Dice", "teacher's", "agreement"), ("program", "parameters"), id="80 columns"),
        pytest.param(100, ("Dice", "teacher's", "agreement", "learnt from"), ("program",), id="100 columns"),
        pytest.param(120, ("Dice", "learnt from", "round", "trained"), ("program",), id="120 columns"),
        pytest.param(200, ("Dice", "learnt from", "parameters", "program", "training"), (), id="200 columns"),
    ],
)
def test_a_line_is_a_student_at_any_width_and_no_name_is_broken(
    width: int, there: tuple[str, ...], gone: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [RECORD, replace(RECORD, name="small", label_set="pseudo/r1", metrics={})]
    lines = listed(width, records, monkeypatch, capsys)
    (head,) = (line for line in lines if "student" in line and "Dice" in line and "experts" not in line)
    assert all(word in head for word in there), head
    assert not any(word in head for word in gone), head
    (row,) = (line for line in lines if "hippocampus-from-two-teachers-r2" in line and "0.876" in line)
    table = [line for line in lines if line.startswith(("\u2502", "\u2503", "|"))]
    assert len(table) == 3, "the heading and a line for each student"
    assert len(row) <= width
    assert any("students show a.zarr NAME" in line for line in lines), "where to find what was left out"


@pytest.mark.parametrize(
    ("promoted", "said"),
    [
        (3, "* promoted: small, which an archive's name stands for"),
        (2, "(*) promoted: small, as training 2, but it was trained again since"),
    ],
)
def test_the_promoted_one_is_marked_and_named_below(
    promoted: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = listed(80, [replace(RECORD, name="small", promoted=promoted), replace(RECORD, name="other")], monkeypatch, capsys)
    assert any(line.startswith(said) for line in lines)
    assert any("small *" in line or "small (*)" in line for line in lines)


def test_the_longest_name_there_may_be_still_has_its_dice_beside_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = listed(80, [replace(RECORD, name="n" * 64)], monkeypatch, capsys)
    assert any("n" * 64 in line and "0.876" in line for line in lines)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        pytest.param({"agreement": 0.9}, "not been scored on test cases", id="never evaluated"),
        pytest.param(
            {"dice": 0.371, "teacher_dice": 0.781},
            "is 0.371, and that of its teacher, which was given prompts, 0.781",
            id="below its teacher",
        ),
        pytest.param({"dice": 0.8, "teacher_dice": 0.7, "warnings": 2}, "its report has 2 warnings", id="warned of"),
        pytest.param({"dice": 0.8, "teacher_dice": 0.7, "warnings": 0}, "", id="nothing to say"),
    ],
)
def test_who_promotes_a_student_is_told_what_its_report_says(
    metrics: dict[str, float], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(student_words, "OUT", console.Console(width=200))
    student_words.show_promoted(replace(RECORD, metrics=dict(metrics)), None, "a.zarr")
    told = capsys.readouterr().out
    assert said in told
    assert ("WARNING" in told) == bool(said)
