"""What a person sees while and after a run: bars, tables, one-line errors. Knows nothing of what is computed."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from flows.durations import as_text
from flows.results import RunSummary

LEAST_WIDTH = 120
"""Columns where nobody's terminal sets a limit (a pipe, a log file): enough for the table of a run without broken words."""


def wide_console(*, stderr: bool = False) -> Console:
    """A console as wide as its terminal, or wide enough where there is none."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, LEAST_WIDTH)
    return console


OUT = wide_console()
ERR = wide_console(stderr=True)


class Bars:
    """One bar per stage on a terminal; a line per quarter of a stage elsewhere (a log file, a scheduler)."""

    def __init__(self) -> None:
        """Nothing is drawn until ``shown`` is entered."""
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._quarters: dict[str, int] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw while the block runs."""
        columns = (
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as progress:
            self._progress = progress
            try:
                yield
            finally:
                self._progress, self._tasks, self._quarters = None, {}, {}

    def advance(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of a stage."""
        if self._progress is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note)
        if not ERR.is_terminal:
            self._log(stage, done, total, note)

    def _log(self, stage: str, done: int, total: int, note: str) -> None:
        quarter = 4 * done // max(total, 1)
        if quarter > self._quarters.get(stage, 0):
            self._quarters[stage] = quarter
            sys.stderr.write(f"{stage}: {done} of {total} {note}".rstrip() + "\n")
            sys.stderr.flush()


BARS = Bars()
"""The bars of this process. Stages run in the process of the command, so one set is enough."""


class Follow:
    """A progress callback for one stage; accepts what the rooms below send."""

    def __init__(self, stage: str, *, offset: int = 0, total: int | None = None) -> None:
        """Shift a shard's counts: ``offset`` units were done by shards before it, ``total`` is the number over all."""
        self._stage, self._offset, self._total = stage, offset, total

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        BARS.advance(self._stage, self._offset + done, self._total or total, note)


def show_summary(summary: RunSummary) -> None:
    """Print the table of a run, and what a person does next."""
    if summary.up_to_date:
        OUT.print("Nothing to do: every unit of this recipe is done and no input has changed.")
    # Counts and their headings stay whole on a narrow terminal; what is long anyway is folded.
    figures = [Column(name, no_wrap=True, min_width=len(name)) for name in ("stage", "done", "skipped", "failed", "quarantined", "time")]
    table = Table(*figures, Column("output", overflow="fold"), Column("note", overflow="fold"))
    for result in summary.stages:
        counts = [str(result.done), str(result.skipped), _alarm(result.failed), _alarm(result.quarantined)]
        table.add_row(result.stage, *counts, as_text(result.seconds), result.output, result.note)
    if summary.stages:
        OUT.print(table)
    if summary.report:
        OUT.print(f"Report: {summary.report}", soft_wrap=True)
    if summary.left:
        OUT.print(f"{summary.left} units have no result; the rest of the run went on. 'samdistill inspect ARCHIVE' names them and why.")


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    OUT.print(table)


def show_error(message: str) -> None:
    """Print one error on stderr, without markup or wrapping, so that it can be searched for."""
    sys.stderr.write(f"error: {message}\n")


def _alarm(count: int) -> str:
    return f"[bold red]{count}[/]" if count else "0"
