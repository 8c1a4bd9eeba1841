"""Export a student, and say how faithful the export is."""

from pathlib import Path

from flows.console import OUT, show_next
from flows.places import check_writable, shortest, typed
from students.spec import Exported, ExportFormat, StudentCard


def export_to(student: Path, out: Path, to: ExportFormat, *, catalog: str | None = None) -> StudentCard:
    """Export a student's folder, or the promoted student of an archive.

    Raises:
        StageError: if the folder cannot be written to, or the archive has no promoted student.
        ExportError: if the export is not faithful, or something else would be lost.
    """
    from students.export.write import export_student

    if (student / "zarr.json").is_file():
        from flows.roster import promoted_student

        student = promoted_student(str(student), catalog)
    check_writable(out.parent, "the export")
    return export_student(student, out, to)


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
    return [
        f"{path}: {exported.format}{opset}, {path.stat().st_size / 1e6:.1f} MB; any batch, any size that is a multiple of {steps}",
        f"differs from torch by at most {exported.worst_difference:.1e} in a class probability ({len(exported.checked_shapes)} random patches)",
    ]
