"""Method: scans and weak prompts in, a small student and its scores out.

A run reads scans and weak prompts into an archive, has sources propose prompts where nobody left any, lets a promptable teacher draw
every prompted case several times, keeps of its drawings what agrees with itself and with anatomy at a risk set on calibration
cases, trains a small student on what was kept, and scores student and teacher against experts on cases that no step has seen.

Each flow is one of these sentences. Its tasks take the recipe file and case ids, read, compute and write, and return counts; the
work itself is in ``flows.stages``, ``flows.teaching`` and ``flows.judging`` and the rooms below, where it is tested without Prefect. Every unit of work is in the archive's
ledger, so that any of these may be killed and called again.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import State, Task, flow, task
from prefect.client.schemas.objects import TaskRun
from sqlalchemy.exc import DBAPIError, OperationalError

from flows import judging, opened, stages, teaching
from flows.freshness import material
from flows.outdated import outdated_words
from flows.recipe_file import load_recipe
from flows.results import STAGES, RunSummary, Stage, StageResult, joined, merged, with_report
from flows.stopping import guarded, stoppable

P = ParamSpec("P")
R = TypeVar("R")

_LASTING_SQLITE = ("SQLITE_ERROR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")
"""SQLite's operational errors that a minute does not mend, by the beginning of their names (sqlite.org/rescode.html): a statement or
table that does not exist, a file that may not be written or opened. Busy, locked, full and I/O error pass."""


def is_passing_fault(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what may be better in a minute (disk, network, database), never bad input."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, DBAPIError):
        return _is_passing_database_fault(error)
    return isinstance(error, (OSError, TimeoutError)) and not isinstance(error, (FileNotFoundError, FileExistsError, PermissionError))


def _is_passing_database_fault(error: DBAPIError) -> bool:
    """Tell a lock or a lost connection from a statement that can never succeed."""
    if error.connection_invalidated:
        return True
    name: str = getattr(error.orig, "sqlite_errorname", "")
    return isinstance(error, OperationalError) and not name.startswith(_LASTING_SQLITE)


def timed(stage: Callable[P, StageResult]) -> Callable[P, StageResult]:
    """Give a stage the time that it took as a whole: rounds, thresholds, second opinions and reports among it."""

    @wraps(stage)
    def with_time(*args: P.args, **kwargs: P.kwargs) -> StageResult:
        started = time.monotonic()
        result = stage(*args, **kwargs)
        return replace(result, seconds=time.monotonic() - started)

    return with_time


def patient_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that is tried again after a passing fault, 5 and then 30 seconds later, and ends the run when it is interrupted."""
    patient = task(task_run_name=name, retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing_fault)
    return lambda stage: patient(stoppable(stage))


@patient_task("ingest")
def ingest_sources(recipe_file: str) -> StageResult:
    """Scans, expert labels, prompts and the split, as far as they are not in the archive."""
    return stages.ingest(load_recipe(recipe_file))


@patient_task("prompts {shard.name}")
def propose_prompts(recipe_file: str, shard: stages.Shard) -> StageResult:
    """The recipe's sources look at the cases of one shard, and say where the teacher is to be asked."""
    return stages.propose(load_recipe(recipe_file), shard)


@patient_task("label {shard.name}")
def label_cases(recipe_file: str, shard: stages.Shard) -> StageResult:
    """The teacher draws the cases of one shard."""
    return stages.label(load_recipe(recipe_file), shard)


@patient_task("doubt")
def doubt_labels(recipe_file: str) -> StageResult:
    """Ask whether the teacher's masks are of the right objects."""
    return stages.doubt(load_recipe(recipe_file))


@patient_task("calibrate")
def calibrate_rules(recipe_file: str) -> StageResult:
    """Set thresholds on the calibration cases."""
    return stages.calibrate(load_recipe(recipe_file))


@patient_task("refine {shard.name}")
def refine_cases(recipe_file: str, shard: stages.Shard) -> StageResult:
    """Decide what to believe in the cases of one shard."""
    return stages.refine(load_recipe(recipe_file), shard)


@patient_task("filter report")
def report_filter(recipe_file: str) -> StageResult:
    """Say what was kept and removed, of whom, and how good that is."""
    return stages.report_filter(load_recipe(recipe_file))


@patient_task("train")
def train_student(recipe_file: str) -> StageResult:
    """Train the student on what was believed."""
    return teaching.train(load_recipe(recipe_file))


@patient_task("rounds")
def make_rounds(recipe_file: str) -> StageResult:
    """Label and train again with what the student has learnt, as often as the recipe says and it helps."""
    from flows.rounds import further_rounds

    return further_rounds(load_recipe(recipe_file))


@patient_task("evaluate")
def evaluate_student(recipe_file: str, arms: tuple[str, ...] = ()) -> StageResult:
    """Score on cases that no step has seen, with these arms or the recipe's own."""
    return judging.evaluate(judging.with_arms(load_recipe(recipe_file), arms))


@flow(name="ingest", flow_run_name="ingest {recipe_file}")
@guarded
@timed
def ingest(recipe_file: str) -> StageResult:
    """Fill the archive."""
    return ingest_sources(recipe_file)


@flow(name="label", flow_run_name="label {recipe_file}")
@guarded
@timed
def label(recipe_file: str) -> StageResult:
    """Have prompts proposed, where the recipe says by whom, say whose labels are replaced, and let the teacher draw every prompted case."""
    shards = stages.shards_to_label(load_recipe(recipe_file), stages.SHARD_CASES)
    proposed = merged("prompts", [propose_prompts(recipe_file, shard) for shard in shards])
    proposed = joined(proposed, stages.announce_changes(load_recipe(recipe_file)))
    return joined(proposed, merged("label", [label_cases(recipe_file, shard) for shard in shards]))


@flow(name="refine", flow_run_name="refine {recipe_file}")
@guarded
@timed
def refine(recipe_file: str) -> StageResult:
    """Hear second opinions, set thresholds, then keep what can be believed; without what another run is at, nothing is.

    Thresholds that were given up leave the recipe's own to judge by, and opinions that were given up none; each is a unit without a result.
    """
    shards = stages.shards_to_refine(load_recipe(recipe_file), stages.SHARD_CASES)
    if not shards:
        return StageResult(stage="refine", note="the teacher has drawn nothing, so there is nothing to refine")
    doubted = doubt_labels(recipe_file)
    if doubted.failed:
        return replace(doubted, stage="refine", note=f"second opinions: {doubted.note}")
    calibrated = calibrate_rules(recipe_file)
    if calibrated.failed:
        return replace(calibrated, stage="refine", note=f"thresholds: {calibrated.note}")
    announced = stages.announce_refined(load_recipe(recipe_file))
    refined = merged("refine", [refine_cases(recipe_file, shard) for shard in shards])
    notes = (announced.note, f"thresholds: {calibrated.note}" if calibrated.quarantined else calibrated.note, refined.note)
    refined = replace(refined, quarantined=refined.quarantined + calibrated.quarantined, note="; ".join(note for note in notes if note))
    return with_report(joined(doubted, refined), report_filter(recipe_file))


@flow(name="train", flow_run_name="train {recipe_file}")
@guarded
@timed
def train(recipe_file: str) -> StageResult:
    """Teach the student; where the recipe asks for several rounds, one after the other, and the best one is kept."""
    trained = train_student(recipe_file)
    if load_recipe(recipe_file).rounds.most == 1 or trained.failed or trained.quarantined:
        return trained
    return merged("train", [trained, make_rounds(recipe_file)])


@flow(name="evaluate", flow_run_name="evaluate {recipe_file}")
@guarded
@timed
def evaluate(recipe_file: str, arms: tuple[str, ...] = ()) -> StageResult:
    """Score it, and write the report; with these arms, where some are named instead of the recipe's."""
    return evaluate_student(recipe_file, arms)


FLOWS: dict[Stage, Callable[..., StageResult]] = {"ingest": ingest, "label": label, "refine": refine, "train": train, "evaluate": evaluate}


@flow(name="run", flow_run_name="run {recipe_file}")
@guarded
def run_recipe(recipe_file: str, chosen: tuple[Stage, ...] = STAGES, arms: tuple[str, ...] = ()) -> RunSummary:
    """Ingest, label, refine, train, evaluate: the chosen ones, in this order; evaluate with these arms, where some are named."""
    recipe = load_recipe(recipe_file)
    first = tuple(FLOWS[stage](recipe_file) for stage in STAGES[:1] if stage in chosen)
    brought_in = material(opened.open_archive(recipe)) if set(chosen) == set(STAGES) else None
    more = {"evaluate": (arms,)} if arms else {}
    later = tuple(FLOWS[stage](recipe_file, *more.get(stage, ())) for stage in STAGES[1:] if stage in chosen)
    ended = set(chosen) == set(STAGES) and not any(result.failed or result.quarantined for result in later)
    outdated = "" if ended else outdated_words(opened.open_archive(recipe), recipe, recipe_file)
    return RunSummary(
        stages=(*first, *later),
        report=judging.report_of(recipe),
        outdated=outdated,
        archive=recipe.archive,
        student=judging.student_of(recipe),
        brought_in=brought_in,
    )
