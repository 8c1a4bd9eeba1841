"""What was made from labels that are not there any more: it is no longer shown as if it stood, and said to be made anew by which command.

Labelling with other prompts draws masks anew. What was refined, taught and scored from the old ones stays on the disk until the later stages
have run again, so that nothing is lost over a mistake in a recipe; but it says nothing of the labels that are there now.
"""

from dataclasses import dataclass

from flows.places import program, shortest, typed
from flows.recipe import Recipe
from flows.results import LEDGER_STAGES, PSEUDO_SET, counted
from flows.stages import believed_cases, evaluation_fingerprint, outdated_cases, report_of, train_fingerprint
from storage import Archive, StudentRecord
from students.errors import StudentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """What is there, and of other labels than are there now."""

    refined: tuple[str, ...] = ()
    """Cases whose pseudo-labels are of masks that were drawn anew or taken back."""
    students: tuple[str, ...] = ()
    """Those that learnt from labels which are gone or changed."""
    reports: tuple[str, ...] = ()
    """Of these students, or of test cases that were drawn anew."""

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
    students = [record.name for record in archive.catalog.students() if _is_of_other_labels(archive, record, waiting)]
    scored = [
        record.name for record in archive.catalog.students() if archive.ledger.state(LEDGER_STAGES["evaluate"], record.name) == "done"
    ]
    tested = any(record.id in waiting for record in archive.cases(part="test")) if waiting else False
    return Outdated(refined=tuple(refined), students=tuple(students), reports=tuple(name for name in scored if tested or name in students))


def _is_of_other_labels(archive: Archive, student: StudentRecord, waiting: set[str]) -> bool:
    """Tell whether the labels that a student learnt from are not those that it would be taught with now."""
    unit = archive.ledger.record(LEDGER_STAGES["train"], student.name)
    if unit is None or unit.state != "done" or student.label_set != PSEUDO_SET:
        return False
    believed = believed_cases(archive)
    if not believed or any(record.id in waiting for record in believed):
        return True
    from students.checkpoint import read_card

    try:
        spec = read_card(student.path).spec
    except StudentError:
        return False  # moved away: how it was trained is not known
    return unit.fingerprint != train_fingerprint(archive, spec, believed)


def outdated_words(archive: Archive, recipe: Recipe, recipe_file: str) -> str:
    """Say what of a recipe's results is of other labels than are there now, and which command makes it anew; empty where all stands."""
    found, own, report = find_outdated(archive), recipe.student.name, report_of(recipe)
    mine = Outdated(
        refined=found.refined,
        students=tuple(name for name in found.students if name == own),
        reports=(own,) if report and (own in found.reports or _is_of_other_answers(archive, recipe)) else (),
    )
    if not mine.words:
        return ""
    where = f" ({shortest(report)})" if mine.reports else ""
    return f"Outdated, as labels have changed since: {mine.words}{where}. '{program()} run {typed(shortest(recipe_file))}' makes this anew."


def _is_of_other_answers(archive: Archive, recipe: Recipe) -> bool:
    """Tell whether the recipe's report would be written anew now: its student, labels, gold, prompts or settings have changed since."""
    unit = archive.ledger.record(LEDGER_STAGES["evaluate"], recipe.student.name)
    if unit is None or unit.state != "done" or not (recipe.student_folder / "student.json").is_file():
        return False
    return unit.fingerprint != evaluation_fingerprint(archive, recipe)
