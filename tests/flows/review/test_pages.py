"""What a verdict changes in the next run, and the report that shows it."""

import runpy
from pathlib import Path

import pytest

from flows.desk import open_desk
from flows.filtering import filter_page, write_filter_report
from flows.freshness import material
from flows.recipe import Recipe
from flows.results import PSEUDO_SET, StageResult, with_report
from flows.review import decide
from storage import (
    Archive,
)

desk = runpy.run_path(str(Path(__file__).with_name("reviewed.py")))  # tests are no package
refine = desk["refine"]


def test_a_run_with_a_new_verdict_is_not_up_to_date(archive: Archive, recipe: Recipe) -> None:
    before = material(archive)
    decide(open_desk(recipe.archive, by="anna"), "one", "ignore")
    assert material(archive) != before


def test_the_filter_report_is_written_once_per_state_of_what_it_shows(archive: Archive, recipe: Recipe) -> None:
    refine(recipe)
    first, again = write_filter_report(archive, recipe), write_filter_report(archive, recipe)
    assert (first.done, again.done, again.skipped) == (1, 0, 1)
    page = filter_page(recipe).read_text(encoding="utf-8")
    assert "No case has gold, so nothing here is accuracy" in page
    assert "agreement" in page
    for outside in ("http://", "https://", "<script", "@import", 'src="/'):
        assert outside not in page, "one file, and no network"
    assert filter_page(recipe).with_suffix(".json").is_file()
    decide(open_desk(recipe.archive, by="anna"), "one", "reject")
    assert write_filter_report(archive, recipe).done == 1
    filter_page(recipe).unlink()
    assert write_filter_report(archive, recipe).done == 1


def test_a_report_that_fails_costs_nobody_their_labels(archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import filtering

    refine(recipe)

    def fail(*_: object, **__: object) -> None:
        message = "no room"
        raise OSError(message)

    monkeypatch.setattr(filtering, "write_filter_page", fail)
    result = write_filter_report(archive, recipe)
    assert (result.failed, result.note) == (1, "the filter report could not be written (OSError: no room)")
    assert archive["one"].labels(PSEUDO_SET).read().any()


def test_the_table_of_a_run_names_the_report_and_counts_one_that_failed() -> None:
    refined = StageResult(stage="refine", done=2, note="defaults stand")
    written = with_report(refined, StageResult(stage="filter", done=1, output="reports/filter.html", note="WARNING"))
    assert (written.done, written.note) == (2, "defaults stand; filter report: reports/filter.html; WARNING")
    assert with_report(refined, StageResult(stage="filter", failed=1, note="no room")).failed == 1


def test_a_page_where_everything_was_rejected_says_so(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    for case in ("one", "two", "three"):
        decide(desk, case, "reject")
    refine(recipe)
    write_filter_report(archive, recipe)
    page = filter_page(recipe).read_text(encoding="utf-8")
    assert "Nothing was kept, so there is nothing to learn from" in page
    assert "3 masks have" in page
