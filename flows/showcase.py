"""What commands print besides the table of a run. Each function returns the exit code of its command, or nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flows.console import BARS, OUT, Follow, show_error, show_summary, show_table
from flows.doctor import Check
from flows.errors import StageError
from flows.inspection import Inspection
from flows.recipe_file import load_recipe

OK, FAILED, INCOMPLETE = 0, 1, 3


def show_demo(out: Path) -> int:
    """Make the demonstration, run its recipe, and say what to look at."""
    from flows.demo import make_demo
    from flows.launch import launch

    with BARS.shown():
        recipe_file = make_demo(out, progress=Follow("scans"))
    summary = launch(recipe_file)
    show_summary(summary)
    folder, student = _short(out.resolve()), _short(load_recipe(recipe_file).student_folder)
    OUT.print("\nNext:")
    for line in (
        f"samdistill inspect {folder / 'archive.zarr'}",
        f"samdistill predict {student} {folder / 'images'} -o {folder / 'predictions'}",
        "samdistill recipe > recipe.yaml      then fill in your own scans and prompts",
    ):
        OUT.print(f"  {line}", soft_wrap=True, highlight=False)
    return INCOMPLETE if summary.left else OK


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


def predict_anywhere(student: Path, sources: Sequence[Path], out: Path | None, *, device: str) -> int:
    """Segment files into a folder, or the cases of one archive into a label set of it.

    Raises:
        StageError: if files are given without a folder to write to.
    """
    if len(sources) == 1 and (sources[0] / "zarr.json").is_file():
        return predict_to_archive(student, sources[0], device=device)
    if out is None:
        message = "say where the labels go: add -o FOLDER (only an archive takes them itself)."
        raise StageError(message)
    return predict_to_files(student, sources, out, device=device)


def predict_to_archive(student: Path, archive: Path, *, device: str) -> int:
    """Write a student's labels beside the cases of an archive; cases that carry them already are skipped."""
    from storage import Archive
    from students import load_student
    from students.predict import predict_cases

    model = load_student(student, device=device)
    store = Archive.open(str(archive))
    cases = [record.id for record in store.cases()]
    follow, seen = Follow("predict"), iter(range(1, len(cases) + 1))
    with BARS.shown():
        written = predict_cases(model, store, cases, progress=lambda _: follow(next(seen), len(cases)))
    OUT.print(f"{written} of {len(cases)} cases segmented into label set student/{model.name}; the others had it already", soft_wrap=True)
    return OK


def predict_to_files(student: Path, files: Sequence[Path], out: Path, *, device: str) -> int:
    """Segment files with a student and list those that could not be."""
    from students import load_student
    from students.predict import FilePrediction, predict_files

    model = load_student(student, device=device)
    done: list[FilePrediction] = []

    def note(record: FilePrediction) -> None:
        done.append(record)
        follow(len(done), max(len(done), len(files)))

    follow = Follow("predict")
    with BARS.shown():
        predict_files(model, files, out, note)
    for record in done:
        if record.problem:
            show_error(record.problem)
    written = sum(record.output is not None for record in done)
    OUT.print(f"{written} of {len(done)} files segmented into {out}", soft_wrap=True)
    return OK if written == len(done) > 0 else INCOMPLETE if written else FAILED


def show_inspection(found: Inspection, *, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        OUT.print_json(found.model_dump_json())
        return
    rows = [(name, "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)) for name, value in found.facts.items()]
    show_table(f"{found.kind} {found.path}", ("", ""), rows)
    if found.refused:
        shown = [(refusal.what, refusal.reason, refusal.message) for refusal in found.refused[:50]]
        show_table(f"without a result: {len(found.refused)} (first 50; all with --json)", ("what", "reason", "message"), shown)


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


def _short(path: Path) -> Path:
    """Relative to the working folder where that is shorter to type."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
