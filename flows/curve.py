"""What gold is worth: students of gold of more and more patients, each a unit of the ledger, so that no training is repeated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from flows.errors import StageError
from flows.learnt import Material, chosen_gold, filtered, material
from flows.once import perform_once, why_given_up
from flows.recipe import Recipe
from flows.recipe_learning import TrainingGoldBlock
from flows.results import CURVE, PSEUDO_SET
from storage import Archive
from students.errors import TrainingError
from students.findings import Taught
from students.gold_curve import CurveStudent

_TAUGHT: tuple[Taught, ...] = ("gold", "mixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One training that the curve asks for."""

    taught: Taught
    patients: int
    seed: int
    recipe: Recipe
    """The run's, but for the student's name, seed and gold."""

    @property
    def name(self) -> str:
        """Of the student, and of the unit."""
        return self.recipe.student.name


def points(recipe: Recipe) -> Iterator[Point]:
    """Yield every training that a recipe's curve asks for."""
    own = recipe.student
    for seed, count, taught in product(recipe.evaluate.gold_curve_seeds or (own.seed,), recipe.evaluate.gold_curve, _TAUGHT):
        name = f"{own.name}-{taught}-{count}" + (f"-seed-{seed}" if seed != own.seed else "")
        gold = (own.gold or TrainingGoldBlock(patients=count)).model_copy(update={"cases": (), "patients": count})
        student = own.model_copy(update={"name": name, "seed": seed, "gold": gold})
        yield Point(taught=taught, patients=count, seed=seed, recipe=recipe.model_copy(update={"student": student}))


def curve_students(archive: Archive, recipe: Recipe, say: Callable[[str], None]) -> tuple[tuple[CurveStudent, ...], tuple[str, ...]]:
    """Train what the curve asks for and is not there yet; return the students, and why some are missing.

    Where no pseudo-label is believed there are only those of gold alone.

    Raises:
        StageError: if another run is training one of them.
    """
    from flows.teaching import believed_cases

    if not recipe.evaluate.gold_curve:
        return (), ()
    believed = believed_cases(archive)
    found, missing = [], []
    for point in points(recipe):
        if point.taught == "mixed" and not believed:
            continue
        say(f"training {point.name} on gold of {point.patients} {'patient' if point.patients == 1 else 'patients'}")
        if why := _perform(archive, point):
            missing.append(f"{point.name}: {why}")
        else:
            found.append(CurveStudent(taught=point.taught, patients=point.patients, seed=point.seed, path=point.recipe.student_folder))
    return tuple(found), tuple(missing)


def _perform(archive: Archive, point: Point) -> str:
    """Train one student, once; return why there is none, or nothing.

    Raises:
        StageError: if another run is at it.
    """
    from flows.plans import student_spec
    from flows.teaching import believed_cases, train_fingerprint

    believed = believed_cases(archive) if point.taught == "mixed" else []
    try:
        gold = chosen_gold(archive, point.recipe)
    except TrainingError as error:
        return str(error)
    found = material(archive, point.recipe, believed) if believed else Material(label_set=PSEUDO_SET, labeled=(), gold=gold)
    result = perform_once(
        archive.ledger,
        stage=CURVE,
        unit=point.name,
        fingerprint=train_fingerprint(archive, student_spec(point.recipe), believed, gold=gold),
        output=point.recipe.student_folder / "student.json",
        work=lambda: _train(archive, point.recipe, found),
    )
    if result.failed:
        message = f"the student {point.name} of the curve is not there: {result.note}"
        raise StageError(message)
    return why_given_up(archive.ledger, CURVE, point.name) if result.quarantined else ""


def _train(archive: Archive, recipe: Recipe, found: Material) -> str:
    from flows.plans import class_infos, student_spec
    from students.outcome import stop_words
    from students.training import train

    found = filtered(archive, recipe, found, lambda _done, _total, _what: None)
    student = train(
        archive,
        label_set=found.label_set,
        classes=class_infos(recipe),
        spec=student_spec(recipe),
        workdir=recipe.student_folder.parent,
        cases=found.labeled,
        gold=found.gold,
        unlabeled=found.unlabeled,
    )
    return f"{stop_words(student.card)}.{found.remark}"
