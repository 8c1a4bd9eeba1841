"""What is printed stays readable where there is no terminal, and what is to be typed next agrees with itself."""

from pathlib import Path

import pytest

from flows import console, demo, launch, showcase
from flows.results import RunSummary, StageResult

SUMMARY = RunSummary(stages=(StageResult(stage="ingest", done=3, quarantined=2, output="/a/rather/long/folder" * 4, note="a note " * 9),))


def test_a_table_without_a_terminal_is_wide_enough_for_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(console, "OUT", console.wide_console())
    console.show_summary(SUMMARY)
    said = capsys.readouterr().out
    assert "quarantined" in said
    assert "\u2026" not in said
    assert console.OUT.width == console.LEAST_WIDTH


def test_headings_and_counts_stay_whole_on_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "OUT", console.Console(width=80))
    console.show_summary(SUMMARY)
    said = capsys.readouterr().out
    assert all(name in said for name in ("stage", "done", "skipped", "failed", "quarantined", "time"))
    assert "\u2026" not in said


@pytest.mark.parametrize("inside", [True, False], ids=["in the working folder", "elsewhere"])
def test_the_next_commands_of_the_demonstration_name_paths_in_one_form(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path if inside else tmp_path / "other"
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(demo, "PARTS", ("test",))
    monkeypatch.setattr(launch, "launch", lambda _: RunSummary(stages=()))
    assert showcase.show_demo(tmp_path / "d") == 0
    start = "d" if inside else str(tmp_path / "d")
    said = capsys.readouterr().out
    assert f"samdistill inspect {start}/archive.zarr" in said
    assert f"samdistill predict {start}/results/students/demo {start}/images -o {start}/predictions" in said
