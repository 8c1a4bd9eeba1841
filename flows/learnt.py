"""What a student learns from: believed pseudo-labels, gold that the recipe gives, and cases without labels."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flows.places import shortest
from flows.recipe import Recipe
from flows.results import FIRST, Round, counted
from storage import Archive, CaseRecord
from students.gold import gold_cases, split_off_gold

if TYPE_CHECKING:  # torch stays out until somebody learns
    from students.predict import Student

_MUCH_CHANGED = 0.3
"""Dice by which corrections change labels on average from where on a person should look: teachers with a Dice of 0.78 were changed by less than 0.2."""

Follow = Callable[[int, int, str], None]
"""How far of how much, and what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The cases of each kind, and which label set says what the labelled ones show."""

    label_set: str
    labeled: tuple[str, ...]
    gold: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    note: str = ""

    @property
    def remark(self) -> str:
        """The note as a sentence that follows others; empty where there is none."""
        return f" {self.note}." if self.note else ""


def agreed_set(student: str) -> str:
    """Label set of pseudo-labels as far as a student of the gold agrees."""
    return f"agreed/{student}"


def corrected_set(student: str) -> str:
    """Label set of pseudo-labels as students of the gold correct them."""
    return f"corrected/{student}"


def taught_sets(student: str, of: Round = FIRST) -> frozenset[str]:
    """The label sets that a student of a recipe may have learnt from in a round: pseudo-labels, or what students of the gold left of them."""
    return frozenset({of.pseudo_set, agreed_set(student), corrected_set(student)})


def chosen_gold(archive: Archive, recipe: Recipe) -> tuple[str, ...]:
    """Return the cases whose gold the recipe lets the student learn from.

    Raises:
        TrainingError: if it names gold that scores or sets thresholds, or asks for more patients than there are.
    """
    block = recipe.student.gold
    if block is None:
        return ()
    return gold_cases(archive, cases=block.cases or None, patients=block.patients, seed=recipe.student.seed)


def material(archive: Archive, recipe: Recipe, believed: list[CaseRecord]) -> Material:
    """Return what there is to learn from before anybody is asked about pseudo-labels."""
    gold = chosen_gold(archive, recipe)
    labeled = tuple(record.id for record in split_off_gold(believed, gold))
    taught = {*labeled, *gold}
    # A student that sees the teacher's masks learns nothing of cases without any.
    seen = FIRST.teacher_set if recipe.student.hints == "teacher" else None
    others = archive.cases(part="archive", with_labels=seen) if recipe.student.consistency else ()
    rest = (record.id for record in others if record.id not in taught)
    return Material(label_set=recipe.round.pseudo_set, labeled=labeled, gold=gold, unlabeled=tuple(rest))


def filtered(archive: Archive, recipe: Recipe, found: Material, follow: Follow) -> Material:
    """Return the material with pseudo-labels as students of the gold leave them, where the recipe asks for that: corrected, or cut to what one agrees with."""
    block = recipe.student.gold
    if block is None or not found.labeled:
        return found
    if block.correct:
        return _corrected(archive, recipe, found, follow)
    return found if block.agreement is None else _agreed(archive, recipe, found, block.agreement, follow)


def _agreed(archive: Archive, recipe: Recipe, found: Material, least: float, follow: Follow) -> Material:
    """Return the material without what a student of the gold contradicts."""
    from students.agreement import write_agreed

    own = agreed_set(recipe.student.name)
    agreed = write_agreed(
        archive,
        _witness(archive, recipe, found.gold, follow),
        found.labeled,
        label_set=found.label_set,
        into=own,
        least=least,
        progress=lambda done, total: follow(done, total, "pseudo-labels are compared with a student of the gold"),
    )
    out = len(agreed.left_out)
    note = f"{counted(out, 'pseudo-label', 'pseudo-labels')} left out, where a student of the gold sees something else" if out else ""
    rest = (*found.unlabeled, *agreed.left_out) if recipe.student.consistency else ()
    return replace(found, label_set=own, labeled=agreed.kept, unlabeled=rest, note=note)


def _corrected(archive: Archive, recipe: Recipe, found: Material, follow: Follow) -> Material:
    """Return the material with the answers of students of the gold instead of pseudo-labels; one of them sees what the teacher drew."""
    from students.correction import on_calibration, write_corrected

    drawn = archive.catalog.fingerprints(recipe.round.teacher_set)
    shown = tuple(case for case in found.gold if case in drawn)
    students = [_witness(archive, recipe, found.gold, follow)]
    students += [_witness(archive, recipe, shown, follow, hints=recipe.round.teacher_set)] if shown else []
    own = corrected_set(recipe.student.name)
    done = write_corrected(
        archive,
        students,
        found.labeled,
        label_set=found.label_set,
        into=own,
        progress=lambda done, total: follow(done, total, "pseudo-labels are corrected by students of the gold"),
    )
    changed = [value for value in done.changed.values() if not math.isnan(value)]
    mean = math.fsum(changed) / len(changed) if changed else 0.0
    by = f" by {mean:.2f} of Dice on average" if changed else ""
    if mean > _MUCH_CHANGED:
        by += (
            f". WARNING: that is much: look at some ('samdistill export {shortest(recipe.archive)} --labels {own} --images -o look'), and raise "
            f"student.gold.witness_budget (now {recipe.student.gold.witness_budget if recipe.student.gold else 0:g} s), or leave student.gold.correct out"
        )
    before, after, patients = on_calibration(archive, students, found.label_set)
    if after < before:
        by += (
            f". WARNING: calibration gold says that correction makes labels worse: Dice {before:.3f} before it and {after:.3f} after, "
            f"{counted(patients, 'patient', 'patients')}. Raise student.gold.witness_budget, or leave student.gold.correct out"
        )
    note = f"{counted(len(done.cases), 'pseudo-label', 'pseudo-labels')} corrected by students of the gold, which changed them{by}"
    return replace(found, label_set=own, labeled=done.cases, note=note)


def _witness(archive: Archive, recipe: Recipe, gold: tuple[str, ...], follow: Follow, hints: str | None = None) -> "Student":
    """Train a student of the gold alone; it may see the teacher's masks too."""
    from flows.plans import class_infos, student_spec
    from students.compact import train
    from students.predict import Student

    block = recipe.student.gold
    asked = {
        "name": f"{recipe.student.name}-gold-{'witness' if hints is None else 'corrector'}",
        "budget_seconds": None if block is None else block.witness_budget,
        "hints": hints,
    }
    seen = "" if hints is None else " and of the teacher's masks"
    done = train(
        archive,
        label_set=recipe.round.pseudo_set,
        classes=class_infos(recipe),
        spec=student_spec(recipe).model_copy(update=asked),
        workdir=recipe.results / "witnesses" / recipe.student.name,
        cases=(),
        gold=gold,
        progress=lambda now: follow(round(100 * now.fraction), 100, f"a student of the gold{seen} learns, to judge pseudo-labels"),
    )
    return Student.load(done.path)
