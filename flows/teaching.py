"""The stage train: who is learnt from, whether that has been done, and what the catalog keeps of it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from flows.console import Follow, warn
from flows.errors import StageError
from flows.learnt import Material, filtered, material
from flows.made_of import outdated_cases
from flows.once import perform_once
from flows.opened import channel_names, label_fingerprints, open_archive
from flows.program_version import code_version
from flows.recipe import Recipe
from flows.results import FIRST, Round, StageResult
from flows.round_students import copy_student, folder_in_round, patients_held_out, restore_first
from storage import Archive, CaseRecord, StudentRecord, fingerprint
from students.several import SharedJob
from students.spec import NO_LABEL, StudentCard, StudentSpec


def train(recipe: Recipe) -> StageResult:
    """Train the student on the believed labels of the archive cases, once per state of these labels."""
    archive = open_archive(recipe)
    if recipe.student.kind == "promptable":
        return _distil_once(archive, recipe)
    records = _accepted(archive, recipe)
    restore_first(archive, recipe)
    found = material(archive, recipe, records)
    return perform_once(
        archive.ledger,
        stage="train",
        unit=recipe.student.name,
        fingerprint=train_fingerprint(archive, asked_spec(archive, recipe), records, gold=found.gold, of=recipe.round),
        output=recipe.student_folder / "student.json",
        work=lambda: _train(archive, recipe, found),
    )


def asked_spec(archive: Archive, recipe: Recipe) -> StudentSpec:
    """What is asked of the student; those of later rounds hold out the patients that the first one's did, so that they can be compared on them."""
    from flows.plans import student_spec

    spec = student_spec(recipe)
    if recipe.round.number == 1 or spec.kind != "compact":
        return spec
    return spec.model_copy(update={"held_out": patients_held_out(archive, folder_in_round(recipe, 1))})


def _distil_once(archive: Archive, recipe: Recipe) -> StageResult:
    """Distil the recipe's teacher from the images of the archive part, once per state of these; nobody has to have labelled them."""
    from distill.teachers.checkpoints import inspect_checkpoint
    from flows.plans import label_plan, student_spec
    from students.promptable.training import looked_at, student_mark

    plan, records = label_plan(recipe), looked_at(archive)
    known = inspect_checkpoint(plan.teacher, base=plan.base)
    found = Material(label_set=NO_LABEL, labeled=tuple(record.id for record in records))
    return perform_once(
        archive.ledger,
        stage="train",
        unit=recipe.student.name,
        fingerprint=student_mark(student_spec(recipe), records, plan, known.fingerprint),
        output=recipe.student_folder / "student.json",
        work=lambda: _train(archive, recipe, found),
    )


def train_fingerprint(
    archive: Archive,
    spec: StudentSpec,
    records: Sequence[CaseRecord],
    *,
    trainer: str | None = None,
    gold: Sequence[str] = (),
    of: Round = FIRST,
) -> str:
    """Everything a student depends on: how it is trained, by which version of the trainer (this one), the labels it learns from (of a round), gold, and what channels are called."""
    from students.training import trainer_version

    known = archive.catalog.fingerprints("gold") if gold else {}
    beside: dict[str, JsonValue] = {"gold": {case: known.get(case, "") for case in gold}} if gold else {}
    if gold and (spec.hints or spec.learning.gold.correct):
        drawn = archive.catalog.fingerprints(of.teacher_set if spec.learning.gold.correct else spec.hints or "")
        beside["shown"] = {case: drawn.get(case, "") for case in gold}
    unlabeled = archive.cases(part="archive") if spec.learning.consistency else []
    if spec.learning.consistency:
        beside["unlabeled"] = [record.id for record in unlabeled]
    expert = [archive[case].record for case in gold if case in archive]
    asked = spec.model_dump(exclude={"nnunet": {"workers"}} if spec.nnunet else None)  # how many workers there are decides nothing
    return fingerprint(
        trainer=trainer or trainer_version(spec),
        spec=asked,
        labels=label_fingerprints(archive, records, of.pseudo_set),
        **beside,
        **channel_names([*records, *expert, *unlabeled]),
    )


def believed_cases(archive: Archive, of: Round = FIRST) -> list[CaseRecord]:
    """The archive cases whose pseudo-labels were accepted; those for review wait for a person, rejected ones teach nothing."""
    from distill.refine import accepted_cases

    believed = frozenset(accepted_cases(archive, of.pseudo_set)) & archive.catalog.fingerprints(of.teacher_set).keys()
    return [record for record in archive.cases(part="archive", with_labels=of.pseudo_set) if record.id in believed]


def _accepted(archive: Archive, recipe: Recipe) -> list[CaseRecord]:
    """The cases to learn from.

    Raises:
        StageError: if there is none, or if what was accepted is of masks that are not there any more.
    """
    pseudo = recipe.round.pseudo_set
    records = archive.cases(part="archive", with_labels=pseudo)
    if not records:
        message = f"the archive {recipe.archive} holds no label set {pseudo!r} to learn from. Run 'samdistill refine RECIPE' first."
        raise StageError(message)
    accepted = believed_cases(archive, recipe.round)
    if not accepted:
        message = (
            f"none of {len(records)} pseudo-labels was accepted, so there is nothing to learn from. Look at some of them "
            f"('samdistill export {recipe.archive} --labels {pseudo} -o look'), check the prompts, or raise 'refine.risk' in the recipe."
        )
        raise StageError(message)
    _check_refined(archive, accepted, recipe.round)
    dropped = frozenset(dropped_cases(archive, recipe, accepted))
    return [record for record in accepted if record.id not in dropped]


def dropped_cases(archive: Archive, recipe: Recipe, believed: Sequence[CaseRecord]) -> tuple[str, ...]:
    """The believed cases that a later round does not learn from, since their labels changed most; none in the first round."""
    from distill.instability import INSTABILITY, most_changed

    if recipe.round.number == 1:
        return ()
    known = archive.catalog.scores(recipe.round.pseudo_set, [record.id for record in believed])
    return most_changed({case: told[INSTABILITY] for case, told in known.items() if INSTABILITY in told}, recipe.rounds.drop)


def _check_refined(archive: Archive, records: Sequence[CaseRecord], of: Round) -> None:
    """Refuse pseudo-labels of masks that are not there any more: somebody has labelled since, and not refined."""
    if outdated := outdated_cases(archive, records, of):
        message = (
            f"{len(outdated)} of {len(records)} accepted pseudo-labels are of masks that the teacher has drawn anew since, such as "
            f"{', '.join(outdated[:3])}. Run 'samdistill refine RECIPE' first."
        )
        raise StageError(message)


def _train(archive: Archive, recipe: Recipe, found: Material) -> str:
    from flows.plans import class_infos, label_plan
    from students.outcome import stop_words, training_doubts
    from students.training import train as train_student

    follow = Follow("train", percent=True)
    found = filtered(archive, recipe, found, follow)
    job = SharedJob(
        archive=archive.url,
        label_set=found.label_set,
        classes=class_infos(recipe),
        spec=asked_spec(archive, recipe),
        cases=found.labeled,
        case_weights={},
        gold=found.gold,
        unlabeled=found.unlabeled,
    )
    _bring_back(archive, recipe, job)
    student = train_student(
        archive,
        label_set=job.label_set,
        classes=job.classes,
        spec=job.spec,
        workdir=recipe.student_folder.parent,
        cases=job.cases,
        gold=job.gold,
        unlabeled=job.unlabeled,
        asking=label_plan(recipe),
        progress=lambda now: follow(round(100 * now.fraction), 100, now.phase or f"loss {now.loss:.3f}"),
    )
    archive.catalog.record_student(_record(student.card, student.path, recipe))
    doubts = "".join(f" WARNING: {doubt}" for doubt in training_doubts(student.card))
    return (
        f"{student.card.parameters / 1e6:.1f} M parameters, {student.card.steps} steps; {stop_words(student.card)}.{found.remark}{doubts}"
    )


def _bring_back(archive: Archive, recipe: Recipe, job: SharedJob) -> None:
    """Take the student that was kept of the first round, if it is the very one that is asked for; else say that the students of later rounds go with it."""
    from students.compact import finished_card, mark_of

    kept = folder_in_round(recipe, 1)
    if recipe.round.number > 1 or not (kept / "student.json").is_file():
        return
    if job.spec.kind == "compact" and finished_card(kept, mark_of(archive, recipe.student_folder, job)) is not None:
        copy_student(kept, recipe.student_folder, None)
    elif recipe.rounds.most > 1:
        own = recipe.student.name
        warn(
            f"WARNING: {own} is taught anew, as its labels or settings have changed, and so are {own}-r2 and further students of its rounds, which are replaced. "
            "To keep both, give the student of this recipe another name (student.name)"
        )


def _record(card: StudentCard, path: Path, recipe: Recipe) -> StudentRecord:
    """What the catalog keeps of a student; the recipe without places, which may be secret."""
    from students.checkpoint import weights_digest

    known = {} if card.agreement is None else {"agreement": card.agreement}
    known |= {"gold_cases": float(len(card.gold_cases))} if card.gold_cases else {}
    return StudentRecord(
        name=card.name,
        kind=card.spec.kind,
        path=str(path),
        label_set=card.label_set,
        round=recipe.round.number,
        parameters=card.parameters,
        fingerprint=card.fingerprint,
        metrics={"steps": card.steps, "seconds": card.seconds, **known},
        weights=weights_digest(path),
        recipe=recipe.model_dump(mode="json", exclude={"archive", "catalog", "results", "ingest", "schedule"}, exclude_defaults=True),
        code=code_version(),
        trained_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
