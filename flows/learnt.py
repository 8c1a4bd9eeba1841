"""What a student learns from: believed pseudo-labels, gold that the recipe gives, and cases without labels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from flows.recipe import Recipe
from flows.results import PSEUDO_SET, counted
from storage import Archive, CaseRecord
from students.gold import gold_cases, split_off_gold

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
    rest = (record.id for record in archive.cases(part="archive") if record.id not in taught) if recipe.student.consistency else ()
    return Material(label_set=PSEUDO_SET, labeled=labeled, gold=gold, unlabeled=tuple(rest))


def filtered(archive: Archive, recipe: Recipe, found: Material, follow: Follow) -> Material:
    """Return the material with pseudo-labels cut to what a student of the gold says too, where the recipe asks for that."""
    block = recipe.student.gold
    if block is None or block.agreement is None or not found.labeled:
        return found
    from flows.plans import class_infos, student_spec
    from students.agreement import write_agreed
    from students.compact import train
    from students.predict import Student

    witness = train(
        archive,
        label_set=PSEUDO_SET,
        classes=class_infos(recipe),
        spec=student_spec(recipe).model_copy(
            update={"name": f"{recipe.student.name}-gold-witness", "budget_seconds": block.witness_budget}
        ),
        workdir=recipe.results / "witnesses" / recipe.student.name,
        cases=(),
        gold=found.gold,
        progress=lambda now: follow(round(100 * now.fraction), 100, "a student of the gold learns, to judge pseudo-labels"),
    )
    own = agreed_set(recipe.student.name)
    agreed = write_agreed(
        archive,
        Student.load(witness.path),
        found.labeled,
        label_set=PSEUDO_SET,
        into=own,
        least=block.agreement,
        progress=lambda done, total: follow(done, total, "pseudo-labels are compared with a student of the gold"),
    )
    out = len(agreed.left_out)
    note = f"{counted(out, 'pseudo-label', 'pseudo-labels')} left out, where a student of the gold sees something else" if out else ""
    rest = (*found.unlabeled, *agreed.left_out) if recipe.student.consistency else ()
    return replace(found, label_set=own, labeled=agreed.kept, unlabeled=rest, note=note)
