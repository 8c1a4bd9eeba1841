"""What a person sees while and after a run: bars, tables, one-line errors. Knows nothing of what is computed."""

import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from flows.durations import as_text
from flows.places import program, shortest, typed
from flows.results import RunSummary

LEAST_WIDTH = 120
"""Columns where nobody's terminal sets a limit (a pipe, a log file): enough for a table without broken words."""
LOG_EVERY_S = 10.0
"""A log that is silent for longer looks like one of a process that hangs."""
_UNDER = "\n" + " " * 9
"""A new line, below the words after the name of a stage."""
_LEAST_PIECE = 40
"""Columns of a sentence, however narrow the terminal is."""
_KEPT = "\0"
"""Stands for a space within a path or a command, where no line is broken."""
_QUOTED = re.compile(r"(?<!\w)'[^']+'(?!\w)")
"""What is to be typed, within a sentence; no apostrophe."""
_BEFORE_WARNING = re.compile(r"(?:;| \||,)? WARNING:")
STEPS = {"ingest": "files", "scans": "scans", "predict": "scans", "evaluate": "steps"}
"""What stages count, as far as it is no cases."""


def wide_console(*, stderr: bool = False) -> Console:
    """A console as wide as its terminal, or wide enough where there is none."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, LEAST_WIDTH)
    return console


OUT = wide_console()
ERR = wide_console(stderr=True)


class Bars:
    """One bar per stage on a terminal; elsewhere (a log file, a scheduler) a line per quarter of a stage, and every ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is drawn until ``shown`` is entered."""
        self._clock = clock
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, tuple[int, float]] = {}
        """Stage -> the quarter of its last line, and when that was written."""
        self._reached: dict[str, str] = {}
        """Stage -> how far it came; kept after the bars are gone, for who stopped them."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw while the block runs."""
        columns = (
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as progress:
            self._progress, self._reached = progress, {}
            try:
                yield
            finally:
                self._progress, self._tasks, self._logged = None, {}, {}

    def close(self) -> None:
        """Leave the terminal as it was, where the process ends before its block does."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @property
    def reached(self) -> str:
        """How far each stage came, such as ``ingest 260 of 260 files, label 40 of 260 cases``; empty where none began."""
        return ", ".join(f"{stage} {how_far}" for stage, how_far in self._reached.items())

    def advance(self, stage: str, done: int, total: int, note: str = "", *, percent: bool = False) -> None:
        """Move the bar of a stage; ``percent`` says that its steps are no things that a person would count."""
        if self._progress is None:
            return
        count = f"{100 * done // max(total, 1)} %" if percent else f"{done:,} of {total:,}"
        self._reached[stage] = count if percent else f"{count} {STEPS.get(stage, 'cases')}"
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note=note, count=count)
            self._logged[stage] = 0, self._clock()
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note, count=count)
        if not ERR.is_terminal:
            self._log(stage, f"{stage}: {count} {note}".rstrip(), 4 * done // max(total, 1))

    def _log(self, stage: str, line: str, quarter: int) -> None:
        before, when = self._logged[stage]
        now = self._clock()
        if quarter > before or now - when >= LOG_EVERY_S:
            self._logged[stage] = max(quarter, before), now
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


BARS = Bars()
"""The bars of this process. Stages run in the process of the command, so one set is enough."""


class Follow:
    """A progress callback for one stage; accepts what the rooms below send."""

    def __init__(self, stage: str, *, offset: int = 0, total: int | None = None, percent: bool = False) -> None:
        """Shift a shard's counts: ``offset`` units were done by shards before it, ``total`` is the number over all."""
        self._stage, self._offset, self._total, self._percent = stage, offset, total, percent

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report ``done`` of ``total`` units."""
        BARS.advance(self._stage, self._offset + done, self._total or total, note, percent=self._percent)


def show_summary(summary: RunSummary) -> None:
    """Print the counts of a run, below them where its results lie and what is to be known of them."""
    if summary.up_to_date:
        OUT.print("Nothing to do: everything in this recipe is done, and no input has changed.")
    elif summary.stages:
        _show_stages(summary)
    if summary.report and shortest(summary.report) not in summary.outdated:
        OUT.print(f"Report: {shortest(summary.report)}", soft_wrap=True, markup=False, highlight=False)
    if summary.outdated:
        OUT.print(summary.outdated, soft_wrap=True, markup=False, highlight=False)
    if summary.left:
        where = f"'{program()} inspect {typed(shortest(summary.archive))}'" if summary.archive else "'samdistill inspect ARCHIVE'"
        went_on = " The rest of the run went on." if len(summary.stages) > 1 else ""
        given_up = any(result.quarantined for result in summary.stages if result.stage not in {"ingest", "prompts"})
        went_on += " What was given up is tried once more with --retry." if given_up else ""
        OUT.print(f"{summary.left_in_words}: {where} says which and why.{went_on}", soft_wrap=True, markup=False, highlight=False)


def _show_stages(summary: RunSummary) -> None:
    # Only counts stand in columns: paths and sentences have a line of their own, so that no width breaks them.
    figures = [Column(name, no_wrap=True, min_width=len(name)) for name in ("stage", "done", "skipped", "failed", "quarantined", "time")]
    table = Table(*figures)
    for result in summary.stages:
        counts = [str(result.done), str(result.skipped), _alarm(result.failed), _alarm(result.quarantined)]
        table.add_row(result.stage, *counts, as_text(result.seconds))
    OUT.print(table)
    for result in summary.stages:
        parts = [part for part in (shortest(result.output).replace(" ", _KEPT), result.remark) if part]
        if parts:
            # A warning that stands between other notes is not read.
            said = _BEFORE_WARNING.sub("\nWARNING:", " | ".join(parts))
            broken = "\n".join(_broken(line) for line in said.split("\n")).split("\n")
            said = _UNDER.join(piece for line in broken for piece in _wrapped(line)).replace(_KEPT, " ")
            OUT.print(f"[bold]{result.stage:<9}[/]{escape(said)}", soft_wrap=True, highlight=False)


def _broken(line: str) -> str:
    """Return a long line of notes with each on a line of its own; the result before them, a path, and what is to be done are never broken."""
    if len(line) <= LEAST_WIDTH or line.startswith("To do:"):
        return line
    result, bar, notes = line.rpartition(" | ")
    return result + bar + notes.replace("; ", "\n")


def _wrapped(line: str) -> list[str]:
    """Return a line in pieces that fit the terminal under the stage's name; where nobody looks at one, and what is to be typed, stays whole."""
    if not OUT.is_terminal or line.startswith("To do:"):
        return [line]
    line = _QUOTED.sub(lambda found: found[0].replace(" ", _KEPT), line)
    return textwrap.wrap(line, max(OUT.width - len(_UNDER), _LEAST_PIECE), break_long_words=False, break_on_hyphens=False) or [line]


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; what is in it is text, never markup. Columns without any heading have no heading row.

    The title has a line of its own that is not broken: it may hold a path, which is to be found and copied whole.
    """
    table = Table(*(Column(name, overflow="fold") for name in header), show_header=any(header))
    OUT.print(f"[italic]{escape(title)}[/]", soft_wrap=True, highlight=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    OUT.print(table)


def show_fitting(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, dropped_first: Sequence[str]) -> tuple[str, ...]:
    """Print one table whose words are never broken: where there is no room for all columns, some are left out.

    Args:
        title: On a line of its own.
        header: Of every column.
        rows: Their cells, text without markup.
        dropped_first: Headings of the columns that may be left out, the first one first.

    Returns:
        The headings that were left out.
    """
    widths = {head: max(len(head), *(len(row[n]) for row in rows)) for n, head in enumerate(header)}
    shown = set(header) - set(dropped_first)
    for head in reversed(dropped_first):  # a narrow column may still fit where a wide one that is worth more does not
        if sum(widths[each] + 3 for each in (*shown, head)) + 1 <= OUT.width:
            shown.add(head)
    table = Table(*(Column(head, no_wrap=True, overflow="fold") for head in header if head in shown))
    OUT.print(f"[italic]{escape(title)}[/]", soft_wrap=True, highlight=False)
    for row in rows:
        table.add_row(*(escape(cell) for head, cell in zip(header, row, strict=True) if head in shown))
    OUT.print(table)
    return tuple(head for head in header if head not in shown)


def show_next(commands: Sequence[str]) -> None:
    """Print what a person may type next, as the program was called."""
    OUT.print("\nNext:")
    for command in commands:
        OUT.print(f"  {program()} {command}", soft_wrap=True, highlight=False, markup=False)


def warn(message: str) -> None:
    """Print one sentence on stderr while or before bars are drawn, above them; a terminal breaks it between words."""
    ERR.print(message, soft_wrap=not ERR.is_terminal, markup=False, highlight=False)


def show_error(message: str) -> None:
    """Print one error on stderr, without markup or wrapping, so that it can be searched for."""
    sys.stderr.write(f"error: {message}\n")


def _alarm(count: int) -> str:
    return f"[bold red]{count}[/]" if count else "0"
