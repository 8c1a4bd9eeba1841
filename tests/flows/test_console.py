"""What is printed stays readable where there is no terminal, and what is to be typed next agrees with itself."""

import io
import sys
from dataclasses import replace
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


def logged(clock: list[float], steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, *, percent: bool = False) -> console.Bars:
    """Report steps at given times (seconds) where there is no terminal."""
    monkeypatch.setattr(console, "ERR", console.Console(file=io.StringIO()))
    bars = console.Bars(clock=lambda: clock[0])
    with bars.shown():
        for done, when in steps:
            clock[0] = when
            bars.advance("label", done, 1000, percent=percent)
    return bars


def test_a_log_has_a_line_every_ten_seconds_and_at_each_quarter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged([0.0], [(1, 0), (2, 5), (3, 11), (4, 15), (5, 22), (300, 23), (301, 24)], monkeypatch)
    assert capsys.readouterr().err.splitlines() == ["label: 3 of 1,000", "label: 5 of 1,000", "label: 300 of 1,000"]


def test_steps_that_nobody_counts_are_shown_in_per_cent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    logged([0.0], [(250, 1)], monkeypatch, percent=True)
    assert capsys.readouterr().err == "label: 25 %\n"


def test_how_far_each_stage_came_is_known_after_the_bars_are_gone_and_until_the_next_ones() -> None:
    bars = console.Bars()
    with bars.shown():
        bars.advance("ingest", 260, 260)
        bars.advance("label", 12, 1260)
        bars.advance("label", 300, 1260)
        bars.advance("train", 37, 100, percent=True)
        bars.close()
    assert bars.reached == "ingest 260 of 260 files, label 300 of 1,260 cases, train 37 %"
    with bars.shown():
        assert bars.reached == ""


def test_training_reports_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(console.BARS, "advance", lambda *_, percent: seen.append(percent))
    console.Follow("train", percent=True)(1, 100)
    assert seen == [True]


def test_paths_and_notes_stand_whole_on_lines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "OUT", console.Console(width=80))
    far = "/another/folder/" + "deep/" * 20 + "report.html"
    results = (
        StageResult(stage="train", done=1, output=str(tmp_path / "results" / "student.json"), note="a sentence that is longer " * 4),
        StageResult(stage="evaluate", done=1, output=far, tally={"accept": 2}),
    )
    console.show_summary(RunSummary(stages=results))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("train    results/student.json | a sentence") and line.count("longer") == 4 for line in lines)
    assert f"evaluate {far} | 2 accept" in lines


def test_a_warning_begins_a_line_of_its_own_and_what_to_do_about_it_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "OUT", console.Console(width=80))
    note = "the prior was asked; WARNING: no guarantee: 9 patients needed\nTo do: bring in gold\nthresholds stand; filter report: f.html"
    console.show_summary(RunSummary(stages=(StageResult(stage="refine", output="pseudo/r1", tally={"accept": 2}, note=note),)))
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "refine   pseudo/r1 | 2 accept; the prior was asked",
        "         WARNING: no guarantee: 9 patients needed",
        "         To do: bring in gold",
        "         thresholds stand; filter report: f.html",
    ]


TERMINAL = {"force_terminal": True, "color_system": None, "legacy_windows": False}


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_breaks_warnings_between_words_below_the_words_before(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "OUT", console.Console(width=width, **TERMINAL))
    note = "scores 0.87. WARNING: organ: the student is below its gold alone, by much. Try this, then that, or the other. WARNING: organ: and below the teacher"
    result = StageResult(
        stage="evaluate", output="/a/folder with spaces that is never broken, however long/it is, on any terminal/r.html", note=note
    )
    console.show_summary(RunSummary(stages=(result,)))
    lines = capsys.readouterr().out.splitlines()
    (first,) = (n for n, line in enumerate(lines) if line.startswith("evaluate "))
    said = lines[first + 1 :] if "0.87" in lines[first + 1] else lines[first:]
    assert all(len(line) <= width for line in said), said
    assert [line for line in said if "WARNING" in line] == [line for line in said if line.startswith("         WARNING: organ:")]
    assert " ".join(" ".join(lines[first:]).split()).endswith(note.replace(" WARNING", " WARNING"))
    assert any("/a/folder with spaces that is never broken, however long/it is, on any terminal/r.html" in line for line in lines)


def test_a_command_within_a_warning_is_never_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "OUT", console.Console(width=70, **TERMINAL))
    command = "'samdistill export archive.zarr --labels corrected/x --images -o look'"
    note = f"3 cases corrected. WARNING: the teacher's masks are far from the student's: look at some of them ({command}), and raise it"
    console.show_summary(RunSummary(stages=(StageResult(stage="train", note=note),)))
    lines = capsys.readouterr().out.splitlines()
    assert any(command in line for line in lines)
    assert any("WARNING: the teacher's masks are far from the student's:" in line and len(line) <= 70 for line in lines)


def test_where_no_terminal_is_a_warning_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = "WARNING: organ: " + "word " * 60 + "end"
    console.show_summary(RunSummary(stages=(StageResult(stage="evaluate", note=f"scores 0.87 {long}"),)))
    assert f"         {long}" in capsys.readouterr().out.splitlines()


def test_notes_that_would_make_a_long_line_stand_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    short, long = (
        "a note of some length",
        "another that is so long that nobody finds its end, or the beginning of the next one, on any line of a terminal",
    )
    for note, lines in ((f"{short}; {short}", 1), (f"{short}; {long}", 2)):
        console.show_summary(RunSummary(stages=(StageResult(stage="refine", output="pseudo/r1", note=note),)))
        said = capsys.readouterr().out.splitlines()
        assert said[-lines].startswith(f"refine   pseudo/r1 | {short}")
        assert lines == 1 or said[-1] == f"         {long}"


def test_a_run_with_nothing_to_do_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_summary(RunSummary(stages=(StageResult(stage="label"), StageResult(stage="train")), up_to_date=True))
    assert capsys.readouterr().out == "Nothing to do: everything in this recipe is done, and no input has changed.\n"


@pytest.mark.parametrize(
    ("left", "said"),
    [
        pytest.param({"label": 1}, "1 case has no result: 'samdistill inspect a.zarr' says which and why.", id="one case"),
        pytest.param({"ingest": 3}, "3 files or rows have no result: 'samdistill inspect a.zarr'", id="three files"),
        pytest.param({"ingest": 2, "label": 1}, "2 files or rows and 1 case have no result: 'samdistill inspect a.zarr'", id="both"),
    ],
)
def test_what_has_no_result_is_counted_in_words_and_the_command_names_the_archive(
    left: dict[str, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tuple(StageResult(stage=stage, quarantined=count) for stage, count in left.items())
    console.show_summary(RunSummary(stages=results, archive="a.zarr"))
    assert said in capsys.readouterr().out


def test_commands_are_printed_as_the_program_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/samdistill", "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    console.show_next(("inspect a.zarr",))
    assert "\n  .venv/bin/samdistill inspect a.zarr\n" in capsys.readouterr().out


def test_commands_are_short_where_the_program_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "samdistill"
    here.write_text("#!/bin/sh\n")
    here.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(here), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    console.show_next(("inspect a.zarr",))
    assert "\n  samdistill inspect a.zarr\n" in capsys.readouterr().out


def test_after_a_run_that_did_something_the_next_commands_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    made = RunSummary(stages=(StageResult(stage="train", done=1),), archive="a.zarr", student="results/students/compact")
    showcase.show_after_run(made)
    said = capsys.readouterr().out
    assert "samdistill predict results/students/compact NEW_SCANS/ -o labels/" in said
    assert "samdistill inspect a.zarr" in said
    showcase.show_after_run(replace(made, student=""))
    showcase.show_after_run(replace(made, up_to_date=True))
    assert capsys.readouterr().out == ""


def test_printed_commands_quote_paths_with_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["my tools/samdistill", "run"])
    monkeypatch.setenv("PATH", str(tmp_path))
    stages = (StageResult(stage="train", done=1, failed=1),)
    made = RunSummary(stages=stages, archive="my scans/a.zarr", student="my results/students/compact")
    showcase.show_after_run(made)
    console.show_summary(made)
    said = capsys.readouterr().out
    assert "  'my tools/samdistill' predict 'my results/students/compact' NEW_SCANS/ -o labels/\n" in said
    assert "  'my tools/samdistill' inspect 'my scans/a.zarr'\n" in said
    assert "inspect 'my scans/a.zarr'' says which and why" in said
