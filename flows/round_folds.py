"""The students that answer in a later round for cases they never saw: trained once per state of what they learn from, by one run at a time."""

from typing import TYPE_CHECKING

from flows.console import Follow
from flows.learnt import chosen_gold
from flows.once import perform_once
from flows.recipe import Recipe
from flows.results import StageResult
from flows.teaching import believed_cases, dropped_cases, train_fingerprint
from storage import Archive, fingerprint
from students.folds import FoldPlan

if TYPE_CHECKING:  # torch stays out until somebody learns
    from students.predict import Student


def fold_plan(archive: Archive, recipe: Recipe) -> FoldPlan:
    """Return which students answer in a round: taught by what was learnt from in the round before."""
    from flows.plans import round_fold_plan

    before = recipe.in_round(recipe.round.number - 1)
    believed = believed_cases(archive, before.round)
    dropped = frozenset(dropped_cases(archive, before, believed))
    return round_fold_plan(recipe, tuple(each.id for each in believed if each.id not in dropped), chosen_gold(archive, recipe))


def fold_students(archive: Archive, recipe: Recipe, plan: FoldPlan) -> "list[Student] | StageResult":
    """Train students without each fold of the patients; what another run is at, or was given up, comes back as it is."""
    from students.out_of_fold import train_folds

    follow = Follow(f"round {recipe.round.number}: students", percent=True)

    def work() -> str:
        train_folds(archive, plan, lambda fold, now: follow(round(100 * (fold + now.fraction) / plan.folds), 100, "students"))
        return ""

    records = [archive[case].record for case in plan.cases or ()]
    before = recipe.in_round(recipe.round.number - 1).round
    cards = [folder / "student.json" for folder in plan.student_folders]
    result = perform_once(
        archive.ledger,
        stage=recipe.round.folds,
        unit=recipe.student.name,
        fingerprint=fingerprint(
            learnt=train_fingerprint(archive, plan.spec, records, gold=plan.gold, of=before),
            folds=plan.folds,
            classes=plan.classes,
            patients={case: archive[case].record.patient for case in (*(plan.cases or ()), *plan.gold)},
        ),
        output=next((card for card in cards if not card.is_file()), cards[-1]),
        work=work,
    )
    return result if result.failed or result.quarantined else train_folds(archive, plan)
