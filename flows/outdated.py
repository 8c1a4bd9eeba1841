"""What was made from labels that are not there any more: it is no longer shown as if it stood, and said to be made anew by which command.

Labelling with other prompts draws masks anew. What was refined, taught and scored from the old ones stays on the disk until the later stages
have run again, so that nothing is lost over a mistake in a recipe; but it says nothing of the labels that are there now.
"""

import re
from dataclasses import dataclass
from typing import Literal

from flows.judging import as_it_stands, evaluation_fingerprint, report_of
from flows.learnt import taught_sets
from flows.made_of import outdated_cases
from flows.places import program, shortest, typed
from flows.recipe import Recipe
from flows.results import FIRST, LEDGER_STAGES, PSEUDO_SET, ROUNDS, Round, counted
from flows.teaching import believed_cases, train_fingerprint
from storage import Archive, StudentRecord
from students.errors import StudentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """What is there, and of other labels than are there now, or by an older program."""

    refined: tuple[str, ...] = ()
    """Cases whose pseudo-labels are of masks that were drawn anew or taken back."""
    students: tuple[str, ...] = ()
    """Those that learnt from labels which are gone or changed."""
    reports: tuple[str, ...] = ()
    """Of these students, or of test cases that were drawn anew."""
    by_program: frozenset[str] = frozenset()
    """Students whose labels are there as they were, but which this version of the program would train otherwise."""

    @property
    def reason(self) -> str:
        """Say what has changed, as the beginning of a sentence that ends in ``since``."""
        if not self.by_program:
            return "labels have changed"
        alone = not self.refined and self.by_program.issuperset((*self.students, *self.reports))
        return "the program has changed" if alone else "labels and the program have changed"

    @property
    def words(self) -> str:
        """Say what it is, without a full stop; empty where there is nothing."""
        parts = [
            f"the refined labels of {counted(len(self.refined), 'case', 'cases')}" if self.refined else "",
            f"the {'student' if len(self.students) == 1 else 'students'} {', '.join(self.students)}" if self.students else "",
            f"the {'report' if len(self.reports) == 1 else 'reports'} on {', '.join(self.reports)}" if self.reports else "",
        ]
        return ", ".join(part for part in parts if part)


def find_outdated(archive: Archive) -> Outdated:
    """Look at all that was refined and taught.

    Without a recipe, a report counts as outdated with its student, or as long as a test case waits to be refined.
    """
    refined = outdated_cases(archive, archive.cases(with_labels=PSEUDO_SET))
    waiting = set(refined)
    changed = {record.name: _change(archive, record, waiting) for record in archive.catalog.students()}
    changed |= {name: changed[first] for name in changed if (first := _without_round(name)) in changed and _is_of_rounds(archive, first)}
    students = [name for name, change in changed.items() if change]
    scored = [
        record.name for record in archive.catalog.students() if archive.ledger.state(LEDGER_STAGES["evaluate"], record.name) == "done"
    ]
    tested = any(record.id in waiting for record in archive.cases(part="test")) if waiting else False
    return Outdated(
        refined=tuple(refined),
        students=tuple(students),
        reports=tuple(name for name in scored if tested or name in students),
        by_program=frozenset(name for name, change in changed.items() if change == "program"),
    )


def _without_round(student: str) -> str:
    """Return the name of the recipe's student that one of a round goes by: ``net`` for ``net-r2``; empty for other names."""
    found = re.fullmatch(r"(.+)-r[1-9]\d*", student)
    return found.group(1) if found else ""


def _is_of_rounds(archive: Archive, student: str) -> bool:
    """Tell whether a student has later rounds, though they have not ended yet: the students of all of them follow from the labels of the first."""
    return archive.ledger.state(ROUNDS, student) is not None or archive.ledger.state(Round(number=2).folds, f"{student}-r2") is not None


def _change(archive: Archive, student: StudentRecord, waiting: set[str]) -> Literal["labels", "program"] | None:
    """Tell why a student would be taught anew: by labels that it would be taught with now, or by the trainer alone; None where it stands."""
    unit = archive.ledger.record(LEDGER_STAGES["train"], student.name)
    if unit is None or unit.state != "done" or not _is_of_pseudo_labels(student):
        return None
    believed = believed_cases(archive)
    if not believed or any(record.id in waiting for record in believed):
        return "labels"
    from students.checkpoint import read_card
    from students.compact import TRAINER

    try:
        card = read_card(student.path)
    except StudentError:
        return None  # moved away: how it was trained is not known

    def now(trainer: str | None = None) -> str:
        asked = card.spec.model_copy(update={"held_out": ()})  # which students of later rounds are given, and the first one is not
        return train_fingerprint(archive, asked, believed, trainer=trainer, gold=card.gold_cases)

    if unit.fingerprint == now():
        return None
    if card.spec.kind != "compact":
        return "labels"
    return "program" if any(unit.fingerprint == now(str(version)) for version in range(1, int(TRAINER))) else "labels"


def _is_of_pseudo_labels(student: StudentRecord) -> bool:
    """Tell whether a student learnt from labels that this program refined: of the first round, or of a later one that follow from these."""
    number, own = student.round, student.name
    whose = (own, f"{own}-r{number}")  # a chosen student learnt under the name of its round
    rounds = (FIRST,) if number == 1 else (Round(number=number), Round(number=number, relabel="both"))
    return any(student.label_set in taught_sets(name, of) for of in rounds for name in whose)


def outdated_words(archive: Archive, recipe: Recipe, recipe_file: str) -> str:
    """Say what of a recipe's results is of other labels than are there now, or of an older program, and which command makes it anew; empty where all stands."""
    found, own, report = find_outdated(archive), recipe.student.name, report_of(recipe)
    mine = Outdated(
        refined=found.refined,
        students=tuple(name for name in found.students if name == own),
        reports=(own,) if report and (own in found.reports or _is_of_other_answers(archive, recipe)) else (),
        by_program=found.by_program & {own},
    )
    if not mine.words:
        return ""
    where = f" ({shortest(report)})" if mine.reports else ""
    alone = not (mine.refined or mine.students or own in found.reports)
    reason = "the student, labels, prompts or settings have changed" if alone else mine.reason
    return f"Outdated, as {reason} since: {mine.words}{where}. '{program()} run {typed(shortest(recipe_file))}' makes this anew."


def _is_of_other_answers(archive: Archive, recipe: Recipe) -> bool:
    """Tell whether the recipe's report would be written anew now: its student, labels, gold, prompts or settings have changed since."""
    unit = archive.ledger.record(LEDGER_STAGES["evaluate"], recipe.student.name)
    if unit is None or unit.state != "done" or not (recipe.student_folder / "student.json").is_file():
        return False
    return unit.fingerprint != evaluation_fingerprint(archive, as_it_stands(archive, recipe))
