"""What each stage does, without Prefect: open the archive, make the plan, call the room that knows how, count.

Every stage may be called again at any time; the ledger in the archive knows what is done. Heavy rooms are imported inside the
functions, so that a stage with nothing to do costs nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from flows.console import Follow
from flows.errors import StageError
from flows.learnt import Material, chosen_gold, filtered, material
from flows.made_of import outdated_cases, remember_sources
from flows.once import left_to_another_run, perform_once, why_given_up
from flows.program_version import code_version
from flows.recipe import Recipe
from flows.results import LEDGER_STAGES, PSEUDO_SET, TEACHER_SET, StageResult
from storage import Archive, ArchiveNotFoundError, CaseRecord, Prompt, StudentRecord, fingerprint
from students.results import Evaluation
from students.spec import StudentCard, StudentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Cases that one task works on."""

    name: str
    """Which of how many, such as ``1/4``."""
    cases: tuple[str, ...]
    offset: int
    """How many cases the shards before it have."""
    total: int
    """How many cases all shards have."""


def ingest(recipe: Recipe) -> StageResult:
    """Read scans, expert labels, prompts and split into the archive.

    Raises:
        StageError: if the recipe names no sources and there is no archive yet, or if nothing of what it names can be used.
        IngestError: if there is no image; no archive is made then.
    """
    from flows import sources

    if recipe.ingest is None:
        cases = len(open_archive(recipe))
        return StageResult(stage="ingest", skipped=cases, output=recipe.archive, note="the recipe names no sources")
    note = sources.check_source(recipe.ingest.images, recipe.archive, exclude=recipe.ingest.exclude, catalog=recipe.catalog)
    archive = Archive.open_or_create(recipe.archive, catalog=recipe.catalog)
    result = sources.bring_in(archive, recipe.ingest, recipe.classes, Follow("ingest"))
    return replace(result, note="; ".join(each for each in (note, result.note) if each))


def shards_to_label(recipe: Recipe, size: int) -> list[Shard]:
    """Every case: archive cases for the student, calibration cases for thresholds, test cases for the teacher's own score."""
    archive = open_archive(recipe)
    chosen_gold(archive, recipe)  # gold that must not be learnt from is refused now, not after hours of labelling
    return _shards([record.id for record in _some(archive.cases(), recipe)], size)


def propose(recipe: Recipe, shard: Shard) -> StageResult:
    """Ask the recipe's sources for prompts about the cases of one shard; nothing where it takes only those that people left."""
    from distill.prompts.choice import WEAK, drawing_sources
    from distill.propose import propose_prompts
    from flows.plans import prompt_plan

    if set(drawing_sources(recipe.prompts.source)) == {WEAK}:
        return StageResult(stage="prompts")
    summary = propose_prompts(open_archive(recipe), prompt_plan(recipe), cases=shard.cases, progress=_follow("prompts", shard))
    return StageResult(
        stage="prompts",
        done=summary.done,
        skipped=summary.skipped,
        failed=summary.unfinished,
        quarantined=len(summary.quarantined),
        seconds=summary.seconds,
        tally={"prompts proposed": summary.prompts, "classes said to be absent": summary.absent} if summary.done else {},
        note="; ".join(f"WARNING: {each}" for each in summary.warnings),
    )


def announce_changes(recipe: Recipe) -> StageResult:
    """Say before anything is drawn whose labels this recipe is about to replace."""
    from flows.replacing import announce

    return announce(open_archive(recipe), recipe)


def label(recipe: Recipe, shard: Shard) -> StageResult:
    """Let the teacher draw the cases of one shard; of several, each, and then make one label set of theirs."""
    from flows.drawing import draw

    return draw(open_archive(recipe), recipe, shard.cases, _follow("label", shard))


def shards_to_refine(recipe: Recipe, size: int) -> list[Shard]:
    """Every case that the teacher has drawn."""
    archive = open_archive(recipe)
    records = archive.cases(with_labels=TEACHER_SET)
    if not records:
        raise StageError(_nothing_drawn(archive, recipe))
    return _shards([record.id for record in records], size)


def _nothing_drawn(archive: Archive, recipe: Recipe) -> str:
    """Say why there is no case that the teacher has drawn."""
    cases = [record.id for record in archive.cases()]
    prompted = {prompt.class_id for found in _asked_with(archive, recipe, cases).values() for prompt in found}
    if not prompted:
        if any(archive.catalog.prompts_by_case(cases).values()):
            sources = ", ".join(recipe.prompts.source)
            return f"no case of the archive {recipe.archive} has a prompt of {sources}, so the teacher has drawn nothing. Other sources have left some: name them in prompts.source."
        cure = f"Name a file of them: ingest: {{prompts: FILE}}, or 'samdistill prompts import FILE {recipe.archive}'."
        return f"no case of the archive {recipe.archive} has a prompt, so the teacher has drawn nothing. {cure}"
    if not prompted & set(recipe.classes):
        found, asked = (", ".join(map(str, sorted(ids))) for ids in (prompted, recipe.classes))
        return f"the prompts of the archive {recipe.archive} are about class {found}, but the recipe is about {asked}, so the teacher has drawn nothing."
    return f"the archive {recipe.archive} holds no label set {TEACHER_SET!r} to refine. Run 'samdistill label RECIPE' first."


def doubt(recipe: Recipe) -> StageResult:
    """Ask second opinions of what the teacher has drawn: is each mask of the right object?"""
    from flows.doubts import doubt_labels

    return doubt_labels(open_archive(recipe), recipe)


def calibrate(recipe: Recipe) -> StageResult:
    """Set the thresholds of refinement on the calibration cases, where there is gold for them."""
    from flows.rules import calibrate_rules

    archive = open_archive(recipe)
    drawn = archive.cases(part="calibration", with_labels=TEACHER_SET)
    known = archive.cases(part="calibration", with_labels="gold")
    return calibrate_rules(archive, recipe, label_fingerprints(archive, drawn, TEACHER_SET), label_fingerprints(archive, known, "gold"))


def refine(recipe: Recipe, shard: Shard) -> StageResult:
    """Decide what to believe in the cases of one shard."""
    from distill.refine import refine_archive
    from flows.rules import add_predicted_dice, is_calibrated, refine_plan

    archive = open_archive(recipe)
    plan = refine_plan(recipe, calibrated=is_calibrated(archive, recipe))
    summary = refine_archive(archive, plan, cases=shard.cases, progress=_follow("refine", shard))
    add_predicted_dice(archive, recipe, shard.cases)
    remember_sources(archive, shard.cases)
    unsized = {"without known spacing, where volume_mm3 cannot be judged": summary.unsized} if summary.unsized else {}
    return StageResult(
        stage="refine",
        done=summary.done,
        skipped=summary.skipped,
        failed=len(archive.ledger.unfinished(LEDGER_STAGES["refine"], shard.cases)),
        quarantined=len(summary.quarantined),
        seconds=summary.seconds,
        output=summary.label_set,
        tally=ordered_verdicts(summary.verdicts) | unsized,
    )


def report_filter(recipe: Recipe) -> StageResult:
    """Write the filter's own report: what it kept and removed, of whom, and how good that is."""
    from flows.filtering import write_filter_report

    return write_filter_report(open_archive(recipe), recipe)


def ordered_verdicts(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of verdicts, the best first."""
    return {keep: counts[keep] for keep in ("accept", "review", "reject") if counts.get(keep)}


def train(recipe: Recipe) -> StageResult:
    """Train the student on the believed labels of the archive cases, once per state of these labels."""
    from flows.plans import student_spec

    archive = open_archive(recipe)
    records = _accepted(archive, recipe)
    found = material(archive, recipe, records)
    return perform_once(
        archive.ledger,
        stage="train",
        unit=recipe.student.name,
        fingerprint=train_fingerprint(archive, student_spec(recipe), records, gold=found.gold),
        output=recipe.student_folder / "student.json",
        work=lambda: _train(archive, recipe, found),
    )


def train_fingerprint(
    archive: Archive,
    spec: StudentSpec,
    records: Iterable[CaseRecord],
    *,
    trainer: str | None = None,
    gold: Sequence[str] = (),
) -> str:
    """Everything a student depends on: how it is trained, by which version of the trainer (this one), the labels it learns from, and gold."""
    from students.training import trainer_version

    known = archive.catalog.fingerprints("gold") if gold else {}
    beside: dict[str, JsonValue] = {"gold": {case: known.get(case, "") for case in gold}} if gold else {}
    if spec.learning.consistency:
        beside["unlabeled"] = [record.id for record in archive.cases(part="archive")]
    asked = spec.model_dump(exclude={"nnunet": {"workers"}} if spec.nnunet else None)  # how many workers there are decides nothing
    return fingerprint(
        trainer=trainer or trainer_version(spec), spec=asked, labels=label_fingerprints(archive, records, PSEUDO_SET), **beside
    )


def believed_cases(archive: Archive) -> list[CaseRecord]:
    """The archive cases whose pseudo-labels were accepted; those for review wait for a person, rejected ones teach nothing."""
    from distill.refine import accepted_cases

    believed = frozenset(accepted_cases(archive, PSEUDO_SET)) & archive.catalog.fingerprints(TEACHER_SET).keys()
    return [record for record in archive.cases(part="archive", with_labels=PSEUDO_SET) if record.id in believed]


def _accepted(archive: Archive, recipe: Recipe) -> list[CaseRecord]:
    """The cases to learn from.

    Raises:
        StageError: if there is none, or if what was accepted is of masks that are not there any more.
    """
    records = archive.cases(part="archive", with_labels=PSEUDO_SET)
    if not records:
        message = f"the archive {recipe.archive} holds no label set {PSEUDO_SET!r} to learn from. Run 'samdistill refine RECIPE' first."
        raise StageError(message)
    accepted = believed_cases(archive)
    if not accepted:
        message = (
            f"none of {len(records)} pseudo-labels was accepted, so there is nothing to learn from. Look at some of them "
            f"('samdistill export {recipe.archive} --labels {PSEUDO_SET} -o look'), check the prompts, or raise 'refine.risk' in the recipe."
        )
        raise StageError(message)
    _check_refined(archive, accepted)
    return accepted


def _check_refined(archive: Archive, records: Sequence[CaseRecord]) -> None:
    """Refuse pseudo-labels of masks that are not there any more: somebody has labelled since, and not refined."""
    if outdated := outdated_cases(archive, records):
        message = (
            f"{len(outdated)} of {len(records)} accepted pseudo-labels are of masks that the teacher has drawn anew since, such as "
            f"{', '.join(outdated[:3])}. Run 'samdistill refine RECIPE' first."
        )
        raise StageError(message)


def _train(archive: Archive, recipe: Recipe, found: Material) -> str:
    from flows.plans import class_infos, student_spec
    from students.outcome import stop_words, training_doubts
    from students.training import train as train_student

    follow = Follow("train", percent=True)
    found = filtered(archive, recipe, found, follow)
    student = train_student(
        archive,
        label_set=found.label_set,
        classes=class_infos(recipe),
        spec=student_spec(recipe),
        workdir=recipe.student_folder.parent,
        cases=found.labeled,
        gold=found.gold,
        unlabeled=found.unlabeled,
        progress=lambda now: follow(round(100 * now.fraction), 100, now.phase or f"loss {now.loss:.3f}"),
    )
    archive.catalog.record_student(_record(student.card, student.path, recipe))
    doubts = "".join(f" WARNING: {doubt}" for doubt in training_doubts(student.card))
    return (
        f"{student.card.parameters / 1e6:.1f} M parameters, {student.card.steps} steps; {stop_words(student.card)}.{found.remark}{doubts}"
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
        parameters=card.parameters,
        fingerprint=card.fingerprint,
        metrics={"steps": card.steps, "seconds": card.seconds, **known},
        weights=weights_digest(path),
        recipe=recipe.model_dump(mode="json", exclude={"archive", "catalog", "results", "ingest", "schedule"}, exclude_defaults=True),
        code=code_version(),
        trained_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def evaluate(recipe: Recipe) -> StageResult:
    """Score student and teacher against experts and write the report, once per student and state of the labels.

    While another live run trains the student, or where its training was given up before there was one, this stage has nothing to score:
    it is reported as left, with the one who trains, or with what was met.

    Raises:
        StageError: if there is no student, and nobody has tried to train it.
    """
    archive = open_archive(recipe)
    if archive.ledger.holder("train", recipe.student.name) is not None:
        return left_to_another_run(archive.ledger, stage="train", unit=recipe.student.name, reported_as="evaluate")
    if not (recipe.student_folder / "student.json").is_file():
        if given_up := why_given_up(archive.ledger, "train", recipe.student.name):
            return StageResult(stage="evaluate", failed=1, note=f"waits for train: {given_up}")
        message = f"there is no student in {recipe.student_folder} to evaluate. Run 'samdistill train RECIPE' first."
        raise StageError(message)
    if not archive.cases(part="test", with_labels="gold"):
        note = "no expert labels on test cases: nothing to score. Give ingest.gold and ingest.split to get a report."
        return StageResult(stage="evaluate", skipped=1, note=note)
    return perform_once(
        archive.ledger,
        stage="evaluate",
        unit=recipe.student.name,
        fingerprint=evaluation_fingerprint(archive, recipe),
        output=recipe.report_folder / "report.html",
        work=lambda: _evaluate(archive, recipe),
    )


def evaluation_fingerprint(archive: Archive, recipe: Recipe) -> str:
    """Everything the report depends on: student, teacher's labels, every expert label (arms and hindsight use them), and prompts."""
    prompted = [record.id for part in ("test", "archive") for record in archive.cases(part=part)]
    return fingerprint(
        student=(recipe.student_folder / "student.json").read_text(encoding="utf-8"),
        block=recipe.evaluate.model_dump(mode="json"),
        gold=label_fingerprints(archive, archive.cases(with_labels="gold"), "gold"),
        teacher=label_fingerprints(archive, archive.cases(part="test", with_labels=TEACHER_SET), TEACHER_SET),
        prompts=_asked_with(archive, recipe, prompted),
    )


def _asked_with(archive: Archive, recipe: Recipe, cases: list[str]) -> dict[str, list[Prompt]]:
    """Return the prompts of each case that the teacher is asked with: those of the recipe's sources."""
    from distill.prompts.choice import chosen_prompts

    stored = archive.catalog.prompts_by_case(cases)
    return {case: chosen_prompts(prompts, recipe.prompts.source) for case, prompts in stored.items()}


def _evaluate(archive: Archive, recipe: Recipe) -> str:
    from flows.arms import evaluation_plan
    from students import load_student
    from students.evaluate import evaluate as compare
    from students.outcome import evaluation_note
    from students.report import write_report

    follow = Follow("evaluate")
    steps = 3 + len(recipe.evaluate.arms)
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        follow(min(len(said), steps), steps, sentence)

    say("preparing the baselines")
    found = compare(archive, load_student(recipe.student_folder), evaluation_plan(archive, recipe, say), say)
    write_report(found, archive, recipe.report_folder / "report.html")
    _write_model_card(found, recipe.student_folder)
    follow(steps, steps, "report written")
    dice = {name: value for name in ("student - gold", "teacher - gold") if (value := _dice(found, name)) is not None}
    known = {"dice": dice.get("student - gold"), "teacher_dice": dice.get("teacher - gold"), "test_cases": len(found.cases)}
    archive.catalog.add_student_metrics(recipe.student.name, {name: value for name, value in known.items() if value is not None})
    scores = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    return scores + evaluation_note(found)


def _write_model_card(found: Evaluation, folder: Path) -> None:
    """Leave a page about the student beside it."""
    from students.checkpoint import read_card
    from students.export.model_card import FILE, model_card

    (folder / FILE).write_text(model_card(read_card(folder), found), encoding="utf-8")


def _dice(found: Evaluation, name: str) -> float | None:
    known = {comparison.name for comparison in found.comparisons}
    return found.mean(name) if name in known else None


def report_of(recipe: Recipe) -> str:
    """Path of the HTML report, or nothing while there is none."""
    report = recipe.report_folder / "report.html"
    return str(report) if report.is_file() else ""


def student_of(recipe: Recipe) -> str:
    """The student's folder, or nothing while there is none."""
    return str(recipe.student_folder) if (recipe.student_folder / "student.json").is_file() else ""


def open_archive(recipe: Recipe) -> Archive:
    """Open the recipe's archive.

    Raises:
        StageError: if there is none yet.
    """
    try:
        return Archive.open(recipe.archive, catalog=recipe.catalog)
    except ArchiveNotFoundError:
        message = f"there is no archive at {recipe.archive}. Run 'samdistill run RECIPE' or 'samdistill ingest SRC {recipe.archive}' first."
        raise StageError(message) from None


def label_fingerprints(archive: Archive, records: Iterable[CaseRecord], label_set: str) -> dict[str, str]:
    """Case id -> fingerprint of its labels: what a student or a score depends on. Cases whose labels are gone by now are left out."""
    known = archive.catalog.fingerprints(label_set)
    return {record.id: known[record.id] for record in records if record.id in known}


def _some(records: list[CaseRecord], recipe: Recipe) -> list[CaseRecord]:
    if not records:
        message = f"the archive {recipe.archive} holds no case. Check 'ingest.images' in the recipe; 'samdistill inspect {recipe.archive}' lists what was refused."
        raise StageError(message)
    return records


def _shards(cases: list[str], size: int) -> list[Shard]:
    starts = range(0, len(cases), size)
    return [
        Shard(name=f"{n + 1}/{len(starts)}", cases=tuple(cases[start : start + size]), offset=start, total=len(cases))
        for n, start in enumerate(starts)
    ]


def _follow(stage: str, shard: Shard) -> Callable[[int, int], None]:
    """Show the progress of a shard as part of its stage; the engine counts only what is due, the bar all cases."""
    follow = Follow(stage, offset=shard.offset, total=shard.total)
    return lambda done, total: follow(len(shard.cases) - total + done, shard.total)
