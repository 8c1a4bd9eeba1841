"""What commands print besides the table of a run. Each function returns the exit code of its command, or nothing."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flows.console import BARS, OUT, Follow, show_error, show_next, show_summary, show_table
from flows.doctor import Check
from flows.errors import StageError
from flows.inspection import Inspection, Refusal
from flows.places import check_writable, shortest, typed
from flows.recipe_file import load_recipe
from flows.results import OTHER_CASES, PSEUDO_SET, RunSummary, counted
from students.promptable.files import TEACHER_FILE

OK, FAILED, INCOMPLETE = 0, 1, 3
_NAMES_SHOWN, _REFUSALS_SHOWN = 20, 50


def show_demo(out: Path) -> int:
    """Make the demonstration, run its recipe, and say what to look at."""
    from flows.demo import make_demo
    from flows.launch import launch

    with BARS.shown():
        recipe_file = make_demo(out, progress=Follow("scans"))
    summary = launch(recipe_file)
    show_summary(summary)
    folder, student = Path(shortest(str(out.resolve()))), shortest(str(load_recipe(recipe_file).student_folder))
    archive, images, predictions = (typed(str(folder / name)) for name in ("archive.zarr", "images", "predictions"))
    show_next(
        (
            f"inspect {archive}",
            f"predict {typed(student)} {images} -o {predictions}",
            "recipe > recipe.yaml      then fill in your own scans and prompts",
        )
    )
    return INCOMPLETE if summary.left else OK


def show_after_run(summary: RunSummary) -> None:
    """Say what a person may do with what a run made, where it did anything and there is a student."""
    if summary.up_to_date or not summary.student:
        return
    archive = typed(shortest(summary.archive))
    model = Path(summary.student) / TEACHER_FILE
    use = f"inspect {typed(shortest(str(model)))}      a teacher: teacher: {{checkpoint: ...}} in a recipe asks it"
    from students.checkpoint import read_card

    card = Path(summary.student) / "student.json"
    if not model.is_file() and card.is_file() and read_card(card.parent).spec.hints is not None:
        use = f"inspect {typed(shortest(summary.student))}      it sees the teacher's masks: it answers for cases of an archive, and for no files"
        model = card
    show_next(
        (
            use if model.is_file() else f"predict {typed(shortest(summary.student))} NEW_SCANS/ -o labels/",
            f"inspect {archive}",
            f"export {archive} --labels {PSEUDO_SET} --images -o look/      to see what was believed",
        )
    )


def print_report(recipe_file: Path) -> None:
    """Print the report of a recipe as JSON.

    Raises:
        StageError: if there is none.
    """
    report = load_recipe(recipe_file).report_folder / "report.json"
    if not report.is_file():
        message = f"there is no report at {report}. Scores need expert labels: give ingest.gold and ingest.split in the recipe."
        raise StageError(message)
    OUT.print_json(report.read_text(encoding="utf-8"))


def predict_anywhere(
    student: Path,
    sources: Sequence[Path],
    out: Path | None,
    *,
    device: str,
    nifti: bool = False,
    catalog: str | None = None,
    channels: str | None = None,
) -> int:
    """Segment scans in files into a folder, or the cases of one archive (whose catalog may be named) into a label set of it.

    Args:
        student: Its folder, or an archive, for the student of it that is promoted; without sources, it answers for the archive itself.
        sources: Scans, folders of them, or one archive.
        out: Where the answers go.
        device: Where to compute.
        nifti: Write NIfTI for all.
        catalog: Of the archive.
        channels: What the files of each channel end in, where that is not as the student knows it: ``t1=_0000,t2=_0001``.

    Raises:
        StageError: if files are given without a folder to write to, or an archive beside other things, or no student is promoted.
    """
    from flows.roster import meant_student

    if not sources and (student / "zarr.json").is_file():
        sources = [student]
    student = meant_student(student, catalog)
    if not sources:
        message = "say what to segment: scans, folders of them, or an archive (predict STUDENT FILES... -o FOLDER)."
        raise StageError(message)
    archives = [source for source in sources if (source / "zarr.json").is_file()]
    if archives and len(sources) == 1:
        return predict_to_archive(student, archives[0], device=device, catalog=catalog)
    if archives:
        message = (
            f"{archives[0]} is an archive, and takes its labels itself. Give it alone, and the other {len(sources) - 1} in another call."
        )
        raise StageError(message)
    if out is None:
        message = "say where the labels go: add -o FOLDER (only an archive takes them itself)."
        raise StageError(message)
    return predict_to_files(student, sources, out, device=device, nifti=nifti, channels=channels)


def predict_to_archive(student: Path, archive: Path, *, device: str, catalog: str | None = None) -> int:
    """Write a student's labels beside the cases of an archive; cases that carry them already are skipped."""
    from storage import Archive
    from students import load_student
    from students.predict import predict_cases

    model = load_student(student, device=device)
    store = Archive.open(str(archive), catalog=catalog)
    cases = [record.id for record in store.cases()]
    follow, seen = Follow("predict"), iter(range(1, len(cases) + 1))
    with BARS.shown():
        written = predict_cases(model, store, cases, progress=lambda _: follow(next(seen), len(cases)))
    before = len(cases) - written
    had = f"; {counted(before, 'case', 'cases')} had it already" if before else ""
    OUT.print(f"{counted(written, 'case', 'cases')} segmented into label set student/{model.name}{had}", soft_wrap=True)
    return OK


def predict_to_files(
    student: Path, files: Sequence[Path], out: Path, *, device: str, nifti: bool = False, channels: str | None = None
) -> int:
    """Segment scans with a student, list those that could not be, and files that are no scans.

    Raises:
        StageError: if the folder cannot be written to.
    """
    from flows.recipe_channels import channels_from_words
    from students import load_student
    from students.files import FilePrediction, predict_files

    wanted = channels_from_words(channels)
    check_writable(out, "the labels")
    model = load_student(student, device=device)
    follow, seen = Follow("predict"), iter(range(1, sys.maxsize))

    def note(_: FilePrediction, total: int) -> None:
        follow(next(seen), total)

    with BARS.shown():
        found = predict_files(model, files, out, note, nifti_only=nifti, channels=wanted)
    for record in found.scans:
        if record.problem:
            show_error(record.problem)
        for remark in record.notes:
            OUT.print(remark, soft_wrap=True, highlight=False, markup=False)
    written = sum(record.output is not None for record in found.scans)
    if found.passed_over:
        names, more = ", ".join(found.passed_over[:_NAMES_SHOWN]), len(found.passed_over) - _NAMES_SHOWN
        OUT.print(
            f"passed over, as no scans: {names}{f' and {more:,} more' if more > 0 else ''}", soft_wrap=True, highlight=False, markup=False
        )
    if found.unnamed:
        # No names: beside DICOM they may be those of patients.
        kinds = ", ".join(f"{what}: {number}" for what, number in found.unnamed)
        OUT.print(f"passed over beside DICOM, as no scans: {kinds}", soft_wrap=True, highlight=False, markup=False)
    OUT.print(
        f"{written} of {counted(len(found.scans), 'scan', 'scans')} segmented into {out}", soft_wrap=True, highlight=False, markup=False
    )
    if found.private_list is not None:
        OUT.print(f"which DICOM series is which: {found.private_list} (for its owner only)", soft_wrap=True, highlight=False, markup=False)
    return OK if written == len(found.scans) > 0 else INCOMPLETE if written else FAILED


def show_inspection(found: Inspection, *, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        OUT.print_json(found.model_dump_json())
        return
    show_table(f"{found.kind} {found.path}", ("what", "value"), [(name, _readable(value)) for name, value in found.facts.items()])
    if found.refused:
        others = [refusal for refusal in found.refused if refusal.reason == OTHER_CASES]
        folded = [_folded(others)] if len(others) > 1 else others
        rows = [*folded, *(refusal for refusal in found.refused if refusal.reason != OTHER_CASES)]
        shown = [(refusal.what, refusal.reason, refusal.message) for refusal in rows[:_REFUSALS_SHOWN]]
        first = f"first {_REFUSALS_SHOWN}; " if len(rows) > _REFUSALS_SHOWN else ""
        every = f" ({first}all with --json)" if first or len(others) > 1 else ""
        show_table(f"without a result: {len(found.refused):,}{every}", ("what", "reason", "message"), shown)


def _folded(others: Sequence[Refusal]) -> Refusal:
    """Make one row of those about cases that the archive does not hold: a run on part of the scans has one for each of the others."""
    message = f"about cases that the archive does not hold, which is no fault on part of the scans. The first: {others[0].message}"
    return Refusal(what=f"unknown ({len(others):,} files or rows)", reason=OTHER_CASES, message=message)


def show_checks(checks: Sequence[Check], *, as_json: bool) -> int:
    """Print the doctor's findings."""
    if as_json:
        OUT.print_json(json.dumps([asdict(check) for check in checks]))
    else:
        show_table("samdistill doctor", ("", "check", "found"), [(check.verdict, check.name, check.found) for check in checks])
        for check in checks:
            if check.remedy:
                OUT.print(f"{check.name}: {check.remedy}", soft_wrap=True, highlight=False)
    return FAILED if any(check.verdict == "problem" for check in checks) else OK


def _readable(value: object) -> str:
    """Write a fact for a table; what a checkpoint keeps as JSON becomes a list of words."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')} {_listed(entry)}" for name, entry in value.items())
    return _listed(value)


def _listed(entry: object) -> str:
    return ", ".join(str(each) for each in entry) if isinstance(entry, list) else str(entry)
