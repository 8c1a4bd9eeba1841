"""Export a student, and say how faithful the export is."""

from pathlib import Path

from flows.console import OUT, show_next
from flows.errors import StageError
from flows.places import check_writable, shortest, typed
from flows.results import counted
from flows.roster import meant_student
from storage import Archive
from students.origins import Exported, ExportFormat, Int8Cost
from students.spec import StudentCard

_MUCH_LOST = 0.01
"""Dice: as much as a better training often gains."""


def export_to(
    student: Path, out: Path, to: ExportFormat, *, report: Path | None = None, archive: str | None = None, catalog: str | None = None
) -> StudentCard:
    """Export a student's folder, or the promoted student of an archive.

    Raises:
        StageError: if the folder cannot be written to, or the archive has no promoted student.
        ExportError: if the export is not faithful, or something else would be lost.
    """
    from students.export.model_card import read_report
    from students.export.write import export_student

    check_writable(out.parent, "the export")
    place = archive or (str(student) if (student / "zarr.json").is_file() else None)
    store = Archive.open(place, catalog=catalog, mode="r") if place and to == "int8" else None
    scores = read_report(report) if report else None
    return export_student(meant_student(student, catalog), out, to, scores, archive=store)


def export_zip(student: Path, out: Path, catalog: str | None = None) -> None:
    """Write the zip that nnU-Net's own tools install, and say how to use it.

    Raises:
        StageError: as of `export_to`, or if ``out`` is a folder.
        StudentFileError: if the student is of another kind.
    """
    from students.nnunet.export import write_model_zip

    if out.is_dir():
        message = f"{out} is a folder, and nnU-Net installs one file. Name that, such as {out / 'student.zip'}."
        raise StageError(message)
    check_writable(out.parent, "the export")
    write_model_zip(meant_student(student, catalog), out)
    OUT.print(f"{out}: a trained model of nnU-Net, {out.stat().st_size / 1e6:.1f} MB", soft_wrap=True, highlight=False, markup=False)
    OUT.print(
        f"next:  nnUNetv2_install_pretrained_model_from_zip {typed(shortest(str(out)))}", soft_wrap=True, highlight=False, markup=False
    )


def write_card(student: Path, report: Path | None, out: Path | None, *, catalog: str | None = None) -> None:
    """Write the model card of a student, or print it; without a report, with the one that its run left."""
    from students.checkpoint import read_card
    from students.export.model_card import model_card, read_report

    folder = meant_student(student, catalog)
    # A run leaves its report where its students are.
    left = folder.parent.parent / "reports" / folder.name / "report.json"
    found = report or (left if left.is_file() else None)
    page = model_card(read_card(folder), read_report(found) if found else None)
    if out is None:
        OUT.print(page, soft_wrap=True, highlight=False, markup=False)
        return
    check_writable(out.parent, "the model card")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    OUT.print(f"written to {out}", soft_wrap=True, highlight=False, markup=False)


def show_export(card: StudentCard, out: Path) -> None:
    """Say what was written, and how far its answers are the student's."""
    exported = card.exported
    if exported is None:
        return
    for line in export_words(exported, out):
        OUT.print(line, soft_wrap=True, highlight=False, markup=False)
    show_next((f"predict {typed(shortest(str(out)))} NEW_SCANS/ -o labels/",))


def export_words(exported: Exported, out: Path) -> list[str]:
    """Return the facts of an export, one in each line."""
    path = out / exported.file
    opset = f", opset {exported.opset}" if exported.opset else ""
    steps = " x ".join(map(str, exported.multiple_of))
    cost = [] if exported.int8 is None else _cost_words(exported.int8)
    return [
        f"{path}: {exported.format}{opset}, {path.stat().st_size / 1e6:.1f} MB; any batch, any size that is a multiple of {steps}",
        f"differs from torch by at most {exported.worst_difference:.1e} in a class probability ({len(exported.checked_shapes)} random patches)",
        *cost,
    ]


def _cost_words(cost: Int8Cost) -> list[str]:
    on = f"on {counted(len(cost.cases), 'case', 'cases')}, against {cost.against}"
    said = f"8-bit products: {cost.measure} {cost.after:.4f} instead of {cost.before:.4f} ({cost.after - cost.before:+.4f}) {on}"
    return [said] if cost.before - cost.after <= _MUCH_LOST else [said, "WARNING: that is much. Use --to onnx, which costs nothing."]
