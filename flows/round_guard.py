"""The guard of further rounds: the student of a new round is compared with the one so far, on patients that neither has learnt from."""

from pathlib import Path

from flows.console import Follow
from flows.once import perform_once
from flows.recipe import Recipe
from flows.results import FIRST, GUARD, StageResult
from flows.round_students import folder_in_round
from flows.teaching import believed_cases
from storage import Archive, fingerprint
from students.drift import LEAST_PATIENTS, Drift, Measure, compare_students

_VERSION = "1"
"""Raised whenever the same students are judged otherwise."""


def guard(archive: Archive, recipe: Recipe, so_far: int, number: int) -> Drift | StageResult:
    """Compare the students of two rounds, once per state of both and of what they are judged by; what was left or given up comes back as it is.

    Args:
        archive: where the cases are.
        recipe: as people wrote it.
        so_far: round of the best student so far.
        number: of the new one.
    """
    from students import load_student
    from students.checkpoint import read_card, weights_digest

    measure, cases = judged_by(archive, recipe)
    label_set = "gold" if measure == "gold" else FIRST.pseudo_set
    known = archive.catalog.fingerprints(label_set)
    folders = [folder_in_round(recipe, each) for each in (so_far, number)]
    file = recipe.report_folder / f"round-{number}.json"

    def work() -> str:
        before, after = (load_student(folder) for folder in folders)
        found = compare_students(
            archive,
            before,
            after,
            cases,
            label_set=label_set,
            may_fall=recipe.rounds.may_fall,
            progress=Follow(f"round {number}: guard"),
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return found.words

    result = perform_once(
        archive.ledger,
        stage=GUARD,
        unit=f"{recipe.student.name}-r{number}",
        fingerprint=fingerprint(
            version=_VERSION,
            students=[[read_card(folder).fingerprint, weights_digest(folder)] for folder in folders],
            labels={case: known.get(case, "") for case in cases},
            measure=measure,
            may_fall=recipe.rounds.may_fall,
        ),
        output=file,
        work=work,
    )
    return result if result.failed or result.quarantined else read_drift(file)


def read_drift(file: Path) -> Drift:
    """Read what a comparison found."""
    return Drift.model_validate_json(file.read_text(encoding="utf-8"))


def judged_by(archive: Archive, recipe: Recipe) -> tuple[Measure, list[str]]:
    """Return what students are judged by, and on which cases; never on test cases, whose gold only scores."""
    gold = archive.cases(part="calibration", with_labels="gold")
    patients = {record.patient for record in gold}
    asked = recipe.rounds.guard
    if asked == "gold" or (asked == "auto" and len(patients) >= LEAST_PATIENTS):
        return "gold", [record.id for record in gold]
    return "agreement", _held_out(archive, recipe)


def _held_out(archive: Archive, recipe: Recipe) -> list[str]:
    """Return the cases with believed labels of the first round that no student has learnt from: those held out, and calibration cases."""
    from distill.refine import accepted_cases
    from students.checkpoint import read_card

    held = {*read_card(folder_in_round(recipe, 1)).validation_cases} & {record.id for record in believed_cases(archive)}
    accepted = frozenset(accepted_cases(archive, FIRST.pseudo_set))
    beside = {record.id for record in archive.cases(part="calibration", with_labels=FIRST.pseudo_set) if record.id in accepted}
    return sorted(held | beside)
