"""The command line. Each command is a few lines that call one function; nothing heavy is imported before a command runs."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.complaints import complain, sentence
from flows.results import STAGES, Stage
from flows.review_commands import review_app
from flows.student_commands import students_app

OK, FAILED, USAGE, INCOMPLETE, STOPPED = 0, 1, 2, 3, 130
"""Exit codes: all done; an error; wrong usage (typer's own); done, but some units have no result; stopped by Ctrl-C (143: by SIGTERM)."""

app = typer.Typer(
    name="samdistill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Turn an archive of unlabeled medical images into a small segmentation model, taught by a Segment Anything teacher.\n\n"
        "New here? [bold]samdistill demo[/bold] shows the whole pipeline on generated scans in a few minutes, "
        "and [bold]samdistill doctor[/bold] says what this machine can do."
    ),
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 done but some units have no result.",
)
prompts_app = typer.Typer(no_args_is_help=True, help="Weak prompts: the boxes, points and scribbles that somebody left.")
app.add_typer(prompts_app, name="prompts")
app.add_typer(review_app, name="review")
app.add_typer(students_app, name="students")

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file. 'samdistill recipe' prints one to start from.")
]
ArchiveUrl = Annotated[str, typer.Argument(metavar="ARCHIVE", help="Folder ending in .zarr, or a URL such as s3://bucket/archive.zarr.")]
CatalogUrl = Annotated[str | None, typer.Option(help="SQLAlchemy URL of the catalog; by default SQLite beside the archive.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try once more what was given up after three attempts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for another program instead of a table.")]


def _say_version(asked: bool) -> None:  # noqa: FBT001 - typer's shape
    if asked:
        from importlib.metadata import version

        typer.echo(f"samdistill {version('samdistill')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")] = False,  # noqa: ARG001
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's log; may stand anywhere on the line.")] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder to fill; about 60 MB.")] = Path("samdistill-demo")) -> None:
    """Run the whole pipeline on 40 generated scans (about five minutes on two cores).

    Example: samdistill demo --out my-demo
    """
    from flows.showcase import show_demo

    raise typer.Exit(show_demo(out))


@app.command()
def recipe() -> None:
    """Print a recipe to start from.

    Example: samdistill recipe > recipe.yaml
    """
    from flows.recipe_file import TEMPLATE

    typer.echo(TEMPLATE, nl=False)


@app.command()
def ingest(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder (or file) of NIfTI, DICOM, PNG, JPEG or TIFF images.")],
    archive: ArchiveUrl,
    modality: Annotated[str | None, typer.Option(help="DICOM's code for all of them: CT, MR, US, ..., or other.")] = None,
    patient_from: Annotated[str | None, typer.Option(help="Regular expression; its first group is the patient in a file's name.")] = None,
    split: Annotated[Path | None, typer.Option(help="CSV with columns case,part: archive, calibration or test.", exists=True)] = None,
    channels: Annotated[
        str | None,
        typer.Option(help="Files of one case, one for each channel: t1=_0000,t2=_0001. By default as nnU-Net's dataset.json says."),
    ] = None,
    catalog: CatalogUrl = None,
) -> None:
    """Copy scans into an archive; made if it is not there. Safe to run again.

    Example: samdistill ingest scans/ archive.zarr --modality CT --patient-from '^(P[0-9]+)'
    """
    from flows.imports import ingest_folder

    raise typer.Exit(
        _shown(
            ingest_folder(source, archive, modality=modality, patient_from=patient_from, split=split, catalog=catalog, channels=channels),
            archive,
        )
    )


@prompts_app.command("import")
def prompts_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON, CSV or COCO file of prompts, or sparse label NIfTIs.", exists=True)],
    archive: ArchiveUrl,
    source: Annotated[str, typer.Option(help="Name of where they come from.")] = "weak",
    catalog: CatalogUrl = None,
) -> None:
    """Read boxes, points, scribbles or masks into an archive; importing a file twice changes nothing.

    Example: samdistill prompts import weak_prompts.json archive.zarr
    """
    from flows.imports import import_prompt_file

    raise typer.Exit(_shown(import_prompt_file(file, archive, source=source, catalog=catalog), archive))


@app.command()
def run(recipe: RecipeFile, retry: Retry = False) -> None:
    """Ingest, label, refine, train, evaluate. Safe to stop and to run again: only what is missing is done.

    Example: samdistill run recipe.yaml
    """
    raise typer.Exit(_launch(recipe, STAGES, retry=retry))


@app.command()
def label(recipe: RecipeFile, retry: Retry = False) -> None:
    """Only the teacher: draw masks from the prompts of the archive."""
    raise typer.Exit(_launch(recipe, ("label",), retry=retry))


@app.command()
def refine(recipe: RecipeFile, retry: Retry = False) -> None:
    """Only the judgement: keep what can be believed of the teacher's masks."""
    raise typer.Exit(_launch(recipe, ("refine",), retry=retry))


@app.command()
def train(recipe: RecipeFile, retry: Retry = False) -> None:
    """Only the training: teach the student what was believed."""
    raise typer.Exit(_launch(recipe, ("train",), retry=retry))


@app.command()
def evaluate(
    recipe: RecipeFile,
    arms: Annotated[
        str,
        typer.Option(
            help="What to compare with, instead of evaluate.arms: 'all' that the archive has something for, or names such as all-gold,teacher-gold-boxes.",
            show_default=False,
        ),
    ] = "",
    as_json: AsJson = False,
    retry: Retry = False,
) -> None:
    """Only the scores: student and teacher against experts, with a report.

    Example: samdistill evaluate recipe.yaml --arms all
    """
    from flows.showcase import print_report

    named = tuple(name for name in arms.replace(",", " ").split() if name)
    code = _launch(recipe, ("evaluate",), quiet=as_json, retry=retry, arms=named)
    if as_json and code == OK:  # else the report that lies there is an older one
        print_report(recipe)
    raise typer.Exit(code)


@app.command()
def predict(
    student: Annotated[
        Path,
        typer.Argument(
            metavar="STUDENT", help="A student's folder, such as results/students/compact, or an archive: its promoted student."
        ),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILES...]", help="NIfTI, DICOM, PNG, JPEG or TIFF files, folders of them, or one archive.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the label files, one per scan, in its geometry.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    nifti: Annotated[bool, typer.Option("--nifti", help="Write NIfTI for pictures and DICOM too.")] = False,
    channels: Annotated[
        str | None, typer.Option(help="Of several channels, what the files of each end in, if not as in training: t1=-t1n,t2=-t2w.")
    ] = None,
    catalog: CatalogUrl = None,
) -> None:
    """Use a student on new scans; it needs no prompts.

    Example: samdistill predict results/students/compact scans/ -o labels/

    Volumes become NAME.nii.gz; a picture becomes NAME.png of the same size, grey, whose values are class ids (1, 2, ...: it looks black).
    Folders are searched with all below them. DICOM series become DICOM SEG that refers to its slices, and so names the patient: for your eyes only.
    The files go by pseudonyms; a private list beside the folder says which is which.

    A student of several channels takes the files of a case together (case_0000.nii.gz, case_0001.nii.gz), and answers with case.nii.gz.

    With an archive instead of files, its cases get the label set student/NAME: samdistill predict results/students/compact archive.zarr

    With an archive instead of a student, the student that 'samdistill students promote' chose is asked: samdistill predict archive.zarr scans/ -o labels/
    """
    from flows.showcase import predict_anywhere

    raise typer.Exit(predict_anywhere(student, files or [], out, device=device, nifti=nifti, catalog=catalog, channels=channels))


@app.command()
def export(
    archive: ArchiveUrl,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    labels: Annotated[str, typer.Option(help="Label set, such as pseudo/r1, student/NAME or gold.")] = "pseudo/r1",
    to: Annotated[
        Literal["as-ingested", "nifti"], typer.Option(help="File format: PNG for what came in as a picture, else NIfTI; or NIfTI for all.")
    ] = "as-ingested",
    part: Annotated[Literal["archive", "calibration", "test"] | None, typer.Option(help="Only cases of this part.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Write the images too.")] = False,
    catalog: CatalogUrl = None,
) -> None:
    """Write the labels of an archive to files.

    Example: samdistill export archive.zarr --labels pseudo/r1 -o labels/

    Volumes become NAME.nii.gz in the geometry they came with; a picture becomes NAME.png of the same size, grey, whose values are class ids
    (1, 2, ..., 255 for ignore: it looks black).
    """
    from flows.imports import export_files

    done = export_files(archive, out, label_set=labels, part=part, images=images, catalog=catalog, nifti=to == "nifti")
    raise typer.Exit(_shown(done, archive))


@app.command()
def supervoxels(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    part: Annotated[Literal["archive", "calibration", "test"] | None, typer.Option(help="Only cases of this part.")] = None,
) -> None:
    """Cut the scans of a recipe's archive into pieces without names: every mask that its teacher finds.

    Example: samdistill supervoxels recipe.yaml -o pieces/

    Numbers count within a case and go on from slice to slice; 0 is what no mask covers. prompts.everything.grid says how densely to ask.
    """
    from flows.supervoxels import export_supervoxels

    raise typer.Exit(_shown(export_supervoxels(recipe, out, part=part), str(out)))


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An archive, a student's folder, a checkpoint file, or 'bundled'.")],
    as_json: AsJson = False,
    catalog: CatalogUrl = None,
) -> None:
    """Say what something is, what is in it, and what was refused and why.

    Example: samdistill inspect archive.zarr
    """
    from flows.inspection import inspect_path
    from flows.showcase import show_inspection

    show_inspection(inspect_path(path, catalog=catalog), as_json=as_json)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which one, such as vit_b; --list names them.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say which there are, and which are here.")] = False,
) -> None:
    """Bring an official checkpoint to this machine; after that a recipe may say checkpoint: NAME.

    Example: samdistill fetch vit_b
    """
    from flows.fetching import fetch_checkpoint, list_checkpoints

    if listing or name is None:
        list_checkpoints()
    else:
        fetch_checkpoint(name)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and the command that mends it."""
    from flows.doctor import examine
    from flows.showcase import show_checks

    raise typer.Exit(show_checks(examine(), as_json=as_json))


def _launch(recipe: Path, stages: tuple[Stage, ...], *, quiet: bool = False, retry: bool = False, arms: tuple[str, ...] = ()) -> int:
    from flows.console import show_summary
    from flows.launch import launch

    summary = launch(recipe, stages, retry=retry, arms=arms)
    if not quiet or summary.left:
        show_summary(summary)
    if stages == STAGES:
        from flows.showcase import show_after_run

        show_after_run(summary)
    return INCOMPLETE if summary.left else OK


def _shown(result: object, archive: str) -> int:
    """Show the result of a single stage as the table of a run."""
    from flows.console import show_summary
    from flows.results import RunSummary, StageResult

    summary = RunSummary(stages=(result,) if isinstance(result, StageResult) else (), archive=archive)
    show_summary(summary)
    return INCOMPLETE if summary.left else OK


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, and turn what goes wrong into one line and an exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    # A name that this terminal has no letters for must not end a run that has done its work.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in words or bool(os.environ.get("SAMDISTILL_DEBUG"))
    words = [*(["--debug"] if debug else []), *(word for word in words if word != "--debug")]
    try:
        app(words)
    except SystemExit as ended:
        if ended.code == STOPPED:  # typer's answer to Ctrl-C
            from flows.console import BARS

            complain(f"stopped.{f' Done so far: {BARS.reached}.' if BARS.reached else ''} The same command goes on.")
        raise
    except Exception as error:
        if debug:
            raise
        complain(sentence(error))
        sys.exit(FAILED)
