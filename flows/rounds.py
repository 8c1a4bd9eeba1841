"""Further rounds: students say what they learnt, the teacher or they themselves label anew, and a new student learns from that, from scratch.

*Method.* After a round, students that never saw a case answer for it (patient-wise folds). Their answers prompt the teacher on every slice where
nobody had prompted it, whose masks are believed where they agree with the answers; or the answers themselves are the labels, or their mean with what the teacher drew. They are refined as in
the first round, the cases whose labels changed most are left out, and a student is trained from scratch. It takes the place of the one so far only
if it is better on patients that no student has learnt from; if it is worse, the rounds end.

Every step is a unit of the ledger, under names of its round, so that a run may be killed anywhere and called again.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flows import drawing, stages, teaching
from flows.console import Follow
from flows.opened import open_archive
from flows.recipe import Recipe
from flows.results import FIRST, StageResult, counted, merged
from flows.round_folds import fold_plan, fold_students
from flows.round_guard import guard
from flows.round_record import RoundEntry, RoundsRecord, conclude
from flows.round_students import keep_first
from storage import Archive
from storage.working import Worked
from students.folds import FoldPlan


class _LeftError(Exception):
    """A step has no result for now, or was given up; what it says is for the table."""

    def __init__(self, result: StageResult) -> None:
        self.result = result


def further_rounds(recipe: Recipe) -> StageResult:
    """Go through the rounds after the first, and leave the best student in the recipe's place.

    Returns:
        What was done, as a part of the stage train; its note says which student was chosen, and why the rounds ended.

    Raises:
        StageError: if the first round's student is gone.
    """
    if recipe.rounds.most == 1 or not (recipe.student_folder / "student.json").is_file():
        return StageResult(stage="train")
    archive = open_archive(recipe)
    keep_first(archive, recipe)
    record, results = RoundsRecord(asked=recipe.rounds.most), list[StageResult]()
    try:
        while record.goes_on:
            record = _next_round(archive, recipe, record, results)
    except _LeftError as left:
        results.append(replace(left.result, stage="train"))
        return merged("train", results)
    results.append(conclude(archive, recipe, record))
    return merged("train", [*results[:-1], replace(results[-1], done=0, skipped=0)])


def _next_round(archive: Archive, recipe: Recipe, record: RoundsRecord, results: list[StageResult]) -> RoundsRecord:
    """Make one round, and say what came of it."""
    number = len(record.rounds) + 2
    from students.out_of_fold import LEAST_PATIENTS

    now = recipe.in_round(number)
    plan = fold_plan(archive, now)
    patients = {archive[case].record.patient for case in (*(plan.cases or ()), *plan.gold)}
    if len(patients) < LEAST_PATIENTS:
        few = f"round {number} needs believed labels of at least {LEAST_PATIENTS} patients of the archive part, so that students can be strangers to some, but there are {len(patients)}"
        return record.model_copy(update={"ended": f"{few}; the student of round {record.chosen} stays"})
    labels = labelled(archive, now, plan)
    entry = RoundEntry(
        number=number, student=now.student.name, label_set=now.round.pseudo_set, relabel=now.rounds.relabel, labels=dict(labels.tally)
    )
    believed = teaching.believed_cases(archive, now.round)
    if not believed:
        return record.with_round(entry, ended=f"round {number}: none of its labels was accepted")
    dropped = teaching.dropped_cases(archive, now, believed)
    trained = _checked(teaching.train(now))
    results.append(replace(trained, note=""))
    drift = guard(archive, recipe, record.chosen, number)
    if isinstance(drift, StageResult):
        raise _LeftError(drift)
    entry = entry.model_copy(update={"cases": len(believed) - len(dropped), "dropped": dropped, "drift": drift})
    return record.with_round(entry, ended="")


def labelled(archive: Archive, recipe: Recipe, plan: FoldPlan) -> StageResult:
    """Have the cases of a round labelled, refined and compared with the round before.

    Args:
        archive: where the labels of the round before are.
        recipe: of the round.
        plan: which students answer for patients that they never saw.
    """
    cases = _to_label(archive)
    _answered(archive, recipe, plan, cases)
    if recipe.round.asks_teacher:
        _drawn(archive, recipe, cases)
    if recipe.round.relabel == "mean":
        _averaged(archive, recipe, cases)
    refined = _refined(recipe)
    if recipe.round.relabel == "both":
        _agreed(archive, recipe, cases)
    from distill.instability import add_instability

    # As they were refined, of "both" too: what teacher and students dispute is open in what is learnt from, and would not be counted there.
    sets = [recipe.in_round(n).round.refined_set for n in range(1, recipe.round.number + 1)]
    compared = add_instability(archive, sets, cases, into=recipe.round.pseudo_set, progress=_follow(recipe, "what changed"))
    _finished(compared, "compare labels with the round before")
    return refined


def _to_label(archive: Archive) -> list[str]:
    """Return the cases that a later round labels: those to learn from, and those that set thresholds. Test cases it never looks at."""
    calibration = archive.cases(part="calibration", with_labels="gold")
    return [record.id for record in (*archive.cases(part="archive"), *calibration)]


def _answered(archive: Archive, recipe: Recipe, plan: FoldPlan, cases: list[str]) -> None:
    """Train students without each fold of the patients, and have them answer for their strangers."""
    from students.fold_answers import answer_out_of_fold

    students = fold_students(archive, recipe, plan)
    if isinstance(students, StageResult):
        raise _LeftError(replace(students, note=f"students of round {recipe.round.number}: {students.note}"))
    _finished(
        answer_out_of_fold(
            archive,
            plan,
            students,
            cases,
            into=recipe.round.answers_set,
            number=recipe.round.number,
            progress=_follow(recipe, "answers"),
        ),
        "ask students",
    )


def _drawn(archive: Archive, recipe: Recipe, cases: list[str]) -> None:
    """Prompt the teacher with what students say where nobody else has said anything, and have it draw."""
    from distill.round_prompts import prompt_again
    from flows.plans import label_plan

    options = recipe.prompts.student.model_copy(update={"labels": recipe.round.answers_set})
    _finished(
        prompt_again(
            archive,
            label_plan(recipe),
            options,
            given=recipe.whole.prompts.source,
            source=recipe.round.prompt_source,
            cases=cases,
            progress=_follow(recipe, "prompts"),
        ),
        "turn answers into prompts",
    )
    _checked(drawing.draw(archive, recipe, cases, _follow(recipe, "label")))


def _averaged(archive: Archive, recipe: Recipe, cases: list[str]) -> None:
    """Take the mean of what students say and what the teacher drew in the first round."""
    from distill.mean_labels import mean_labels

    names, follow = recipe.round, _follow(recipe, "mean of both")
    found = mean_labels(archive, cases, of=names.answers_set, with_=FIRST.teacher_set, into=names.teacher_set, progress=follow)
    _finished(found, "take the mean of students' answers and the teacher's masks")


def _refined(recipe: Recipe) -> StageResult:
    """Hear second opinions, set thresholds and keep what can be believed, as the first round does."""
    _checked(stages.doubt(recipe))
    _checked(stages.calibrate(recipe))
    stages.announce_refined(recipe)
    refined = merged("refine", [_checked(stages.refine(recipe, shard)) for shard in stages.shards_to_refine(recipe, stages.SHARD_CASES)])
    stages.report_filter(recipe)
    return refined


def _agreed(archive: Archive, recipe: Recipe, cases: list[str]) -> None:
    from distill.concord import agreed_labels

    names = recipe.round
    found = agreed_labels(
        archive,
        cases,
        of=names.refined_set,
        with_=names.answers_set,
        into=names.pseudo_set,
        progress=_follow(recipe, "where both agree"),
    )
    _finished(found, "compare the teacher's labels with students' answers")


def _checked(result: StageResult) -> StageResult:
    """Go on where a step has what it can have; units of single cases that were given up are no reason to stop.

    Raises:
        _LeftError: if another run is at some of it, or the step itself was given up.
    """
    alone = result.quarantined and result.stage in {"train", "calibrate", "doubt"}
    if result.failed or alone:
        raise _LeftError(result)
    return result


def _finished(worked: Worked[Any], what: str) -> None:
    if worked.unfinished:
        note = f"rounds: another run is at it ({what}: {counted(worked.unfinished, 'case', 'cases')}). Run again when that one has ended."
        raise _LeftError(StageResult(stage="train", failed=1, note=note))


def _follow(recipe: Recipe, what: str) -> Callable[[int, int], None]:
    return Follow(f"round {recipe.round.number}: {what}")
