"""The names under which further rounds keep their units in the ledger; for those who count or retry them, and make none."""

from typing import get_args

from flows.recipe import Recipe
from flows.recipe_rounds import MOST_ROUNDS
from flows.results import CALIBRATE, FILTER, GUARD, MOST_TEACHERS, ROUNDS, Round, doubt_unit
from students.relabel import Relabel

Unit = tuple[str, str | None]
"""Stage, and unit where only one of it is meant."""


def student_units(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the units of a recipe that are about its students, beside that of the first round's training."""
    later = [recipe.in_round(number) for number in range(2, recipe.rounds.most + 1)]
    ends = [(ROUNDS, recipe.student.name)] if later else []
    return [*((stage, now.student.name) for now in later for stage in (now.round.folds, "train", GUARD)), *ends]


def round_units(recipe: Recipe) -> list[Unit]:
    """Return everything that the rounds of a recipe keep in the ledger; nothing for a recipe of one round."""
    found: list[Unit] = list(student_units(recipe))
    for number in range(2, recipe.rounds.most + 1):
        now = recipe.in_round(number)
        found += [(CALIBRATE, now.student.name), (FILTER, now.student.name)]
        found += [(now.round.doubt, doubt_unit(now.student.name, test)) for test in now.refine.semantic]
        found += [(stage, None) for stage in case_stages(now.round, 1 + len(now.teacher.also))]
    return found


def case_stages(of: Round, teachers: int) -> list[str]:
    """Return the stages of a round whose units are cases."""
    drawn = [f"label:{name}" for name in {of.teacher_set, *of.teacher_sets(teachers)}] if of.asks_teacher else []
    prompted = [f"prompts:{of.prompt_source}"] if drawn else []
    agreed = [f"agree:{of.pseudo_set}"] if of.relabel == "both" else []
    mean = [f"mean:{of.teacher_set}"] if of.relabel == "mean" else []
    return [f"answer:{of.answers_set}", *prompted, *drawn, *mean, f"refine:{of.refined_set}", *agreed, f"instability:{of.pseudo_set}"]


def every_stage() -> list[tuple[str, str]]:
    """Return the stages of all rounds that any recipe may have made, that of the students that answer among them, with what a person calls them."""
    rounds = [Round(number=number, relabel=who) for number in range(2, MOST_ROUNDS + 1) for who in get_args(Relabel)]
    return sorted({(f"round {each.number},", stage) for each in rounds for stage in (each.folds, *case_stages(each, MOST_TEACHERS))})
