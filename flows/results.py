"""What stages hand back: small values that a table, an exit code and Prefect can use. Arrays never travel in them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["ingest", "label", "refine", "train", "evaluate"]
STAGES: tuple[Stage, ...] = ("ingest", "label", "refine", "train", "evaluate")
"""In the order of a run."""

TEACHER_SET = "teacher/r1"
PSEUDO_SET = "pseudo/r1"

LEDGER_STAGES: dict[Stage, str] = {
    "ingest": "ingest",
    "label": f"label:{TEACHER_SET}",
    "refine": f"refine:{PSEUDO_SET}",
    "train": "train",
    "evaluate": "evaluate",
}
"""The name under which each stage keeps its units in the ledger."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did, stage by stage."""

    stages: tuple[StageResult, ...]
    up_to_date: bool = False
    """True when a look at the ledger showed that there was nothing to do."""
    report: str = ""
    """The HTML report, once there is one."""

    @property
    def left(self) -> int:
        """Units that have no result."""
        return sum(result.failed + result.quarantined for result in self.stages)

    @property
    def work(self) -> int:
        """Units finished now."""
        return sum(result.done for result in self.stages)


def merged(stage: str, results: Iterable[StageResult]) -> StageResult:
    """Add up the results of the shards of one stage; output and note are those of the last."""
    total = StageResult(stage=stage)
    for result in results:
        total = replace(
            result,
            stage=stage,
            done=total.done + result.done,
            skipped=total.skipped + result.skipped,
            failed=total.failed + result.failed,
            quarantined=total.quarantined + result.quarantined,
            seconds=total.seconds + result.seconds,
        )
    return total
