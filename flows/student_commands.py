"""``samdistill students``: the commands around trained students. Each is a few lines that call one function."""

from pathlib import Path
from typing import Annotated, Literal

import typer

students_app = typer.Typer(no_args_is_help=True, help="The students of an archive: which there are, and which one to use.")

ArchiveUrl = Annotated[str, typer.Argument(metavar="ARCHIVE", help="Folder ending in .zarr, or a URL such as s3://bucket/archive.zarr.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The student's name, as 'students list' has it.")]
CatalogUrl = Annotated[str | None, typer.Option("--catalog", help="SQLAlchemy URL of the catalog; by default SQLite beside the archive.")]
StudentFolder = Annotated[Path, typer.Argument(metavar="STUDENT", help="A student's folder, or an archive: its promoted student.")]
Report = Annotated[
    Path | None, typer.Option(help="report.json of an evaluation of this student, or its folder: its scores go onto the page about it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for another program instead of a table.")]


@students_app.command("list")
def list_students(archive: ArchiveUrl, as_json: AsJson = False, catalog: CatalogUrl = None) -> None:
    """Say which students an archive has, what each learnt from, and how good it is known to be.

    Example: samdistill students list archive.zarr
    """
    from flows.roster import all_students
    from flows.student_words import show_students

    show_students(all_students(archive, catalog), archive, as_json=as_json)


@students_app.command()
def show(archive: ArchiveUrl, name: Name, as_json: AsJson = False, catalog: CatalogUrl = None) -> None:
    """Say everything that is known of one student: recipe, program, scores, and its earlier trainings.

    Example: samdistill students show archive.zarr compact
    """
    from flows.roster import trainings
    from flows.student_words import show_student

    show_student(trainings(archive, name, catalog), as_json=as_json)


@students_app.command()
def promote(archive: ArchiveUrl, name: Name, catalog: CatalogUrl = None) -> None:
    """Choose the student to use: 'samdistill predict ARCHIVE SCANS' then asks it. One student of an archive at a time.

    Example: samdistill students promote archive.zarr compact
    """
    from flows.roster import promote as choose
    from flows.student_words import show_promoted

    show_promoted(*choose(archive, name, catalog), archive)


@students_app.command()
def export(
    student: StudentFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make, or the zip of nnunet; an earlier export there is replaced.")],
    to: Annotated[
        Literal["onnx", "int8", "torchscript", "bundle", "nnunet"],
        typer.Option(
            help="The format; int8 is ONNX with 8-bit products, bundle MONAI's, and nnunet the zip that nnU-Net's own tools install."
        ),
    ] = "onnx",
    archive: Annotated[str | None, typer.Option(help="For int8: the archive that the student was trained from.")] = None,
    report: Report = None,
    catalog: CatalogUrl = None,
) -> None:
    """Write a student in the format of other programs, compared with the original. 'predict' takes the folder as it takes a student.

    Example: samdistill students export results/students/compact --to onnx -o compact-onnx
    """
    from flows.exporting import export_to, export_zip, show_export

    if to == "nnunet":
        export_zip(student, out, catalog)
        return
    show_export(export_to(student, out, to, report=report, archive=archive, catalog=catalog), out)


@students_app.command()
def card(
    student: StudentFolder,
    report: Report = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file to write; by default it is printed.")] = None,
    catalog: CatalogUrl = None,
) -> None:
    """Write a model card: what a student is, what it learnt from, how good it is, and what nobody knows.

    Example: samdistill students card results/students/compact --report results/reports/compact -o MODEL_CARD.md
    """
    from flows.exporting import write_card

    write_card(student, report, out, catalog=catalog)
