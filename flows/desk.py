"""Where a reviewer sits: an archive, the classes to be judged in it, and a name."""

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distill.cleaning import ClassRule
from distill.review_queue import QueuePlan
from flows.errors import ReviewError
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import TEACHER_SET
from storage import Archive, Case

_RECIPES = (".yaml", ".yml")
_REVIEWER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """An archive under review, and by whose rules."""

    archive: Archive
    classes: Mapping[int, str]
    """Class id -> name."""
    plan: QueuePlan
    by: str
    rules: Mapping[int, ClassRule] = field(default_factory=dict)
    """By which masks are cut, where they were looked up."""

    def class_ids(self, case: Case, class_id: int | None) -> list[int]:
        """Return the classes of a case that can be judged: the one that is named, or all that the teacher drew.

        Raises:
            ReviewError: if there is no such class, or nothing of it was drawn.
        """
        known = ", ".join(f"{key} {name}" for key, name in sorted(self.classes.items()))
        if class_id is not None and class_id not in self.classes:
            message = f"there is no class {class_id}. Classes: {known}."
            raise ReviewError(message)
        if TEACHER_SET not in case.label_sets():
            message = f"case {case.id}: the teacher has drawn nothing in it, so there is nothing to judge. Run 'samdistill label' first."
            raise ReviewError(message)
        scores = case.labels(TEACHER_SET).scores
        drawn = [key for key in sorted(self.classes) if f"pairwise_dice/{key}" in scores]
        if class_id is not None and class_id not in drawn:
            message = f"case {case.id}: class {class_id} was not drawn, so there is nothing to judge. 'review rebox' says where it is."
            raise ReviewError(message)
        return drawn if class_id is None else [class_id]


def open_desk(place: str, *, catalog: str | None = None, by: str | None = None, ranking: bool = False) -> Desk:
    """Open what a person named on the command line: a recipe, or an archive.

    Args:
        place: a recipe's file, or an archive's folder or URL.
        catalog: of an archive; a recipe says its own.
        by: the reviewer; by default who is logged in.
        ranking: whether masks are to be ranked or shown, for which a recipe's rules are looked up; that takes some seconds.

    Raises:
        ReviewError: if the reviewer's name is not usable.
        StageError: if the recipe's archive is not there yet.
    """
    reviewer = _reviewer(by)
    if Path(place).suffix in _RECIPES:
        return _desk_of_recipe(Path(place), reviewer, ranking=ranking)
    archive = Archive.open(place, catalog=catalog)
    classes = _classes_of(archive)
    return Desk(archive=archive, classes=classes, plan=QueuePlan(classes=tuple(classes), source=TEACHER_SET), by=reviewer)


def _desk_of_recipe(path: Path, reviewer: str, *, ranking: bool) -> Desk:
    from flows.opened import open_archive

    recipe = load_recipe(path)
    archive = open_archive(recipe)
    rules = _rules(archive, recipe) if ranking else {}
    thresholds = {key: rule.accept_from for key, rule in rules.items()}
    plan = QueuePlan(classes=tuple(sorted(recipe.classes)), source=TEACHER_SET, accept_from=thresholds)
    names = {key: block.name for key, block in recipe.classes.items()}
    return Desk(archive=archive, classes=names, plan=plan, by=reviewer, rules=rules)


def _rules(archive: Archive, recipe: Recipe) -> dict[int, ClassRule]:
    """Return how masks of each class are cut and accepted, as calibration left it."""
    from flows.rules import is_calibrated, refine_plan

    return refine_plan(recipe, calibrated=is_calibrated(archive, recipe)).rules


def _classes_of(archive: Archive) -> dict[int, str]:
    """Return the classes that the first drawn case names; all of one label set have the same."""
    records = archive.cases(with_labels=TEACHER_SET, limit=1)
    infos = archive[records[0].id].labels(TEACHER_SET).history.classes if records else ()
    return {info.id: info.name for info in infos}


def _reviewer(by: str | None) -> str:
    if by is None:
        try:
            by = re.sub(r"[^A-Za-z0-9._-]+", "-", getpass.getuser()).strip("._-")[:64]
        except (OSError, KeyError, ImportError):  # a container's user may have no name
            by = ""
    if not _REVIEWER.fullmatch(by):
        message = f"a reviewer's name is 1 to 64 letters, digits, '.', '_' or '-', but is {by!r}. Give one with --by NAME."
        raise ReviewError(message)
    return by
