"""What stages hand back: small values that a table, an exit code and Prefect can use. Arrays never travel in them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from students.relabel import Relabel

Stage = Literal["ingest", "label", "refine", "train", "evaluate"]
STAGES: tuple[Stage, ...] = ("ingest", "label", "refine", "train", "evaluate")
"""In the order of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Names of what one round makes; the first is teacher, pseudo-labels and student as a run without further rounds has them."""

    number: int = 1
    relabel: Relabel = "teacher"
    """Of later rounds: who says what is to be refined."""

    @property
    def teacher_set(self) -> str:
        """What refinement judges: the teacher's masks, the students' own where nobody else is asked, or the mean of both."""
        return {"student": self.answers_set, "mean": f"mean/r{self.number}"}.get(self.relabel, f"teacher/r{self.number}")

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher draws in this round."""
        return self.relabel in {"teacher", "both"}

    @property
    def answers_set(self) -> str:
        """What students that never saw a case say of it; of later rounds."""
        return f"folds/r{self.number}"

    @property
    def refined_set(self) -> str:
        """What refinement writes."""
        return f"pseudo/r{self.number}"

    @property
    def pseudo_set(self) -> str:
        """What is learnt from: what refinement writes, or as much of it as the students' answers say too."""
        return f"both/r{self.number}" if self.relabel == "both" else self.refined_set

    @property
    def prompt_source(self) -> str:
        """Under which name the prompts of a later round are kept."""
        return f"round-{self.number}"

    @property
    def folds(self) -> str:
        """The ledger's name of the training of students that never saw a case; of later rounds."""
        return f"folds:r{self.number}"

    @property
    def doubt(self) -> str:
        """The ledger's name of the beginning of refine."""
        return f"doubt:{self.teacher_set}"

    def teacher_sets(self, count: int) -> tuple[str, ...]:
        """Return the label sets of so many teachers: one draws ``teacher/r1`` itself, several draw ``teacher/r1-1`` and so on, which are fused into it."""
        return (self.teacher_set,) if count == 1 else tuple(f"{self.teacher_set}-{n + 1}" for n in range(count))


FIRST = Round()
TEACHER_SET = FIRST.teacher_set
PSEUDO_SET = FIRST.pseudo_set

LEDGER_STAGES: dict[Stage, str] = {
    "ingest": "ingest",
    "label": f"label:{TEACHER_SET}",
    "refine": f"refine:{PSEUDO_SET}",
    "train": "train",
    "evaluate": "evaluate",
}
"""The name under which each stage keeps its units in the ledger."""

MOST_TEACHERS = 8
"""More would take longer than they could tell, and are refused."""


def teacher_sets(count: int) -> tuple[str, ...]:
    """Return the label sets of so many teachers in the first round."""
    return FIRST.teacher_sets(count)


CALIBRATE = "calibrate"
"""The ledger's name of the first half of refine: one unit, called after the student, that sets the thresholds."""

DOUBT = FIRST.doubt
"""The ledger's name of the beginning of refine: a unit for each test of the teacher's labels, called after student and test."""


def doubt_unit(student: str, test: str) -> str:
    """Return the name of the unit of one test."""
    return f"{student}/{test}"


FILTER = "filter"
"""The ledger's name of the end of refine: one unit, called after the student, that writes the filter's own report."""

CURVE = "curve"
"""The ledger's name of the trainings of ``evaluate.gold_curve``: units called after their students."""
ROUNDS = "rounds"
"""The ledger's name of the end of further rounds: one unit, called after the student, that puts the chosen one in its place."""

GUARD = "guard"
"""The ledger's name of the comparison of students: one unit for each round, called after its student."""

UNIT_NAMES: dict[str, tuple[str, str]] = {
    "ingest": ("file or row", "files or rows"),
    "prompts": ("row", "rows"),
    "label": ("case", "cases"),
    "refine": ("case", "cases"),
    "train": ("student", "students"),
    "evaluate": ("report", "reports"),
}
"""What a stage does one of at a time, as people call it: one, and several."""


OTHER_CASES = "unknown-case"
"""Why a row or a file was not used that is about a case which the archive does not hold: of a part of the scans, it is no failure."""


def counted(count: int, one: str, several: str) -> str:
    """Write a number with its noun: ``1 case``, ``3 cases``."""
    return f"{count:,} {one if count == 1 else several}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one stage did."""

    stage: str
    done: int = 0
    """Units finished now."""
    skipped: int = 0
    """Units that were finished before, from the same inputs."""
    failed: int = 0
    """Units that will be tried again by the next run."""
    quarantined: int = 0
    """Units given up after three attempts, or files that cannot be used; ``samdistill inspect`` names them."""
    seconds: float = 0.0
    output: str = ""
    """Where the result lies: a label set, a folder, a file."""
    note: str = ""
    """One sentence for the table."""
    tally: Mapping[str, int] = field(default_factory=dict)
    """What was counted, such as ``{"accept": 249, "review": 11}``; shards add theirs up."""

    @property
    def remark(self) -> str:
        """The tally in words, and the note."""
        return "; ".join(part for part in (", ".join(f"{count:,} {what}" for what, count in self.tally.items()), self.note) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did, stage by stage."""

    stages: tuple[StageResult, ...]
    up_to_date: bool = False
    """True when a look at the ledger showed that there was nothing to do."""
    report: str = ""
    """The HTML report, once there is one."""
    outdated: str = ""
    """What is there of labels that have changed since, the report perhaps among it, and the command that makes it anew; a whole sentence."""
    archive: str = ""
    """The archive that was worked on."""
    student: str = ""
    """The student's folder, once there is one."""
    brought_in: str | None = None
    """Hash of the cases and prompts that the stages after ingest worked on."""

    @property
    def left(self) -> int:
        """Units that have no result."""
        return sum(result.failed + result.quarantined for result in self.stages)

    @property
    def left_in_words(self) -> str:
        """The same by kind: ``2 files or rows and 1 case have no result``."""
        counts = [(result.failed + result.quarantined, UNIT_NAMES.get(result.stage, ("unit", "units"))) for result in self.stages]
        named = [counted(count, *names) for count, names in counts if count]
        return f"{' and '.join(named)} {'has' if self.left == 1 else 'have'} no result"

    @property
    def work(self) -> int:
        """Units finished now."""
        return sum(result.done for result in self.stages)


def merged(stage: str, results: Iterable[StageResult]) -> StageResult:
    """Add up the results of the shards of one stage; the output is that of the last, notes that differ stand beside each other."""
    total, notes = StageResult(stage=stage), dict[str, None]()
    for result in results:
        notes |= {result.note: None} if result.note else {}
        total = replace(
            result,
            stage=stage,
            done=total.done + result.done,
            skipped=total.skipped + result.skipped,
            failed=total.failed + result.failed,
            quarantined=total.quarantined + result.quarantined,
            seconds=total.seconds + result.seconds,
            note="; ".join(notes),
            tally=dict(Counter(total.tally) + Counter(result.tally)),
        )
    return total


def joined(before: StageResult, result: StageResult) -> StageResult:
    """Report a first half of a stage with the stage itself: what it counted, took and could not do; its units are other ones."""
    return replace(
        result,
        failed=before.failed + result.failed,
        quarantined=before.quarantined + result.quarantined,
        seconds=before.seconds + result.seconds,
        note="; ".join(note for note in (before.note, result.note) if note),
        tally={**before.tally, **result.tally},
    )


def with_report(result: StageResult, report: StageResult) -> StageResult:
    """Report a stage together with the page that it ends with."""
    where = f"filter report: {report.output}" if report.output else ""
    return replace(
        result,
        failed=result.failed + report.failed,
        quarantined=result.quarantined + report.quarantined,
        seconds=result.seconds + report.seconds,
        note="; ".join(note for note in (result.note, where, report.note) if note),
    )
