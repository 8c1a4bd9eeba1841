"""Write a student's folder in another format: the network, and the card that says all the rest, so that it can be used as the original is."""

import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from torch import nn

from storage import Archive
from students.checkpoint import CARD, load_network, read_card, weights_digest
from students.errors import ExportError
from students.export import bundle, int8, model_card, onnx_file, script
from students.export.compare import check_faithful, multiple_of, random_patch, shapes_to_check, worst_difference
from students.origins import Exported, ExportFormat
from students.results import Evaluation
from students.runtime import OnnxNetwork, read_script
from students.spec import StudentCard
from students.units import units_of

_USE = "`samdistill predict FOLDER SCANS -o LABELS`, where `FOLDER` is the one that this page lies in."

Fill = Callable[[Path, StudentCard, nn.Module], Exported]
"""Writes the files of one format into an empty folder, and says how far they can be trusted."""


def export_student(
    folder: str | Path, out: str | Path, to: ExportFormat, report: Evaluation | None = None, *, archive: Archive | None = None
) -> StudentCard:
    """Export a student, and compare its answers with the original's.

    Args:
        folder: As training wrote it.
        out: The folder to make; an export that lies there is replaced, in one step.
        to: The format.
        report: Of an evaluation of this student, for the page about it.
        archive: That it was trained from; ``int8`` takes ranges from its cases, and measures on it what 8-bit products cost.

    Returns:
        The card of the export, which lies in ``out`` as ``student.json``.

    Raises:
        ExportError: if the student is an export itself, ``out`` holds something else, or the answers differ; ``out`` is as it was then.
        StudentFileError: if ``folder`` is no usable student.
    """
    fillers: dict[ExportFormat, Fill] = {"onnx": _fill_onnx, "torchscript": _fill_script, "bundle": _fill_bundle}
    if to == "int8":
        if archive is None:
            message = "8-bit products take their ranges from cases: name the archive that the student was trained from."
            raise ExportError(message)
        fillers["int8"] = partial(_fill_int8, archive)
    return write_export(Path(folder), Path(out), fillers[to], report)


def write_export(folder: Path, out: Path, fill: Fill, report: Evaluation | None = None) -> StudentCard:
    """Fill a folder beside ``out``, add the student's card and the page about it, and put it in its place when it is finished."""
    card = read_card(folder)
    if card.exported is not None:
        message = f"{folder} is an export to {card.exported.format} itself. Give the folder that training wrote."
        raise ExportError(message)
    if card.nnunet is not None:
        message = f"{folder} is an nnU-Net, which has a format of its own: Write the zip that its tools install with --to nnunet."
        raise ExportError(message)
    if card.spec.hints is not None:
        message = f"student {card.name} sees the teacher's masks ({card.spec.hints}) beside the image, which nobody has who uses an export. Train one without hints."
        raise ExportError(message)
    if card.promptable is not None:
        message = (
            f"{folder} is a promptable student, whose answer depends on prompts; the formats here take images alone. "
            f"{folder / card.promptable.file} is the whole model, and loads as a teacher."
        )
        raise ExportError(message)
    _check_replaceable(folder, out)
    network = load_network(folder, card).cpu()
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f".{out.name}.{uuid4().hex[:8]}"
    unfinished.mkdir()
    try:
        exported = fill(unfinished, card, network)
        # 8-bit answers are others, and so is the label set that they go into.
        name = f"{card.name}-int8" if exported.format == "int8" else card.name
        exported = exported.model_copy(update={"source_weights": weights_digest(folder)})
        card = card.model_copy(update={"exported": exported, "name": name})
        _describe(unfinished, card, report)
        _put_in_place(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return card


def _describe(folder: Path, card: StudentCard, report: Evaluation | None) -> None:
    """Write what programs and people read about an export; a bundle's page lies where MONAI's tools look for it."""
    page = folder / ("docs/README.md" if card.exported and card.exported.format == "bundle" else model_card.FILE)
    page.parent.mkdir(exist_ok=True)
    use = bundle.USE if page.name == "README.md" else _USE
    page.write_text(model_card.model_card(card, report, use=use), encoding="utf-8")
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _check_replaceable(folder: Path, out: Path) -> None:
    """Refuse to write over anything but an earlier export.

    Raises:
        ExportError: naming what would be lost.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() and (out / CARD).is_file() and out.resolve() != folder.resolve() and read_card(out).exported is not None:
        return
    message = f"{out} is there already, and no export: it would be lost. Name another folder."
    raise ExportError(message)


def _put_in_place(finished: Path, out: Path) -> None:
    """Move a folder to its name; what lies there goes."""
    old = finished.with_name(f"{finished.name}.old")
    if out.exists():
        out.rename(old)
    try:
        finished.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def made_with(*libraries: str) -> dict[str, str]:
    """Return the versions of libraries, and of this program."""
    return {name: version(name) for name in ("samdistill", "torch", *libraries)}


def _fill_onnx(folder: Path, card: StudentCard, network: nn.Module) -> Exported:
    return _write_checked_onnx(folder / onnx_file.FILE, card, network)


def _write_checked_onnx(path: Path, card: StudentCard, network: nn.Module) -> Exported:
    onnx_file.write_onnx(network, random_patch(shapes_to_check(card.plan)[0], 0), path, facts(card))
    return compared(card, network, OnnxNetwork(path), "onnx", onnx_file.FILE, "onnx", "onnxruntime").model_copy(
        update={"opset": onnx_file.OPSET}
    )


def _fill_int8(archive: Archive, folder: Path, card: StudentCard, network: nn.Module) -> Exported:
    if card.plan.neighbours:
        message = f"student {card.name} sees slices with their neighbours (2.5d), of which no patches for 8-bit ranges are cut yet. Export it to onnx."
        raise ExportError(message)
    yardstick = int8.find_yardstick(archive, card)  # before the work: there may be none
    whole, path = folder / "whole.onnx", folder / onnx_file.FILE
    exact = _write_checked_onnx(whole, card, network)
    cases = int8.quantise(whole, path, card, archive)
    whole.unlink()
    quantised = OnnxNetwork(path)
    before, after = (int8.as_student(card, each, folder) for each in (network, quantised))
    cost = int8.measure_cost(before, after, archive, yardstick, cases)
    worst = worst_difference(network, quantised, card.plan)
    return exact.model_copy(update={"format": "int8", "worst_difference": worst, "int8": cost})


def _fill_script(folder: Path, card: StudentCard, network: nn.Module) -> Exported:
    path = folder / script.FILE
    script.write_script(network, random_patch(shapes_to_check(card.plan)[0], 0), path)
    return compared(card, network, read_script(path), "torchscript", script.FILE)


def _fill_bundle(folder: Path, card: StudentCard, network: nn.Module) -> Exported:
    if card.plan.neighbours:
        message = f"student {card.name} sees slices with their neighbours (2.5d), which MONAI's sliding windows do not. Export it to onnx or torchscript."
        raise ExportError(message)
    path = folder / bundle.NETWORK
    path.parent.mkdir()
    script.write_script(network, random_patch(shapes_to_check(card.plan)[0], 0), path)
    bundle.write_bundle(folder, card)
    return compared(card, network, read_script(path), "bundle", bundle.NETWORK, "monai")


def facts(card: StudentCard) -> dict[str, str]:
    """Return what a network's own file says of it."""
    classes = ", ".join(f"{channel} {info.name}" for channel, info in enumerate(card.classes, start=1))
    spacing = " x ".join(f"{each:.4g}" for each in card.plan.spacing_zyx_mm)
    return {
        "student": card.name,
        "fingerprint": card.fingerprint,
        "outputs": f"logits of 0 background, {classes}",
        "input": f"{card.channel_words}, normalised per channel as student.json says, axes {card.plan.dimensions} z y x, spacing {spacing} {units_of(card.spacing_known).length}",
    }


def compared(card: StudentCard, network: nn.Module, other: nn.Module, to: ExportFormat, file: str, *libraries: str) -> Exported:
    """Return the record of an export whose answers are the student's.

    Raises:
        ExportError: if they are not.
    """
    worst = worst_difference(network, other, card.plan)
    check_faithful(worst, to)
    return Exported(
        format=to,
        file=file,
        worst_difference=worst,
        checked_shapes=shapes_to_check(card.plan),
        multiple_of=multiple_of(card.plan),
        source_weights="",
        made_with=made_with(*libraries),
    )
