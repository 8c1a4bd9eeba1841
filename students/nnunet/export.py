"""A student of the kind ``nnunet`` for nnU-Net's own tools: the folder that it calls a trained model, and the zip that it installs.

Nothing of ours is needed to use them: the checkpoint names nnU-Net's plain trainer, as ours builds the same network.
"""

import shutil
import zipfile
from pathlib import Path

import torch

from students.checkpoint import read_card
from students.errors import StudentFileError
from students.nnunet.answers import load_answers
from students.nnunet.job import MODEL, PRESETS
from students.origins import NnunetRecord
from students.spec import NnunetSpec, StudentCard

_TRAINER = "nnUNetTrainer"


def write_model_folder(student: str | Path, out: Path) -> Path:
    """Write a student as a trained model of nnU-Net.

    Args:
        student: The student's folder.
        out: What nnU-Net calls ``nnUNet_results``; the model becomes a folder two levels below it.

    Returns:
        The model's folder, as ``nnUNetv2_predict_from_modelfolder -m`` takes it.

    Raises:
        StudentFileError: if it is no student of the kind ``nnunet``, or a damaged one.
    """
    folder, card = Path(student), read_card(student)
    if card.nnunet is None:
        cure = "It loads as a teacher as it is" if card.promptable else "Export it to onnx, torchscript, bundle or int8"
        message = f"{folder}: a student of the kind {card.spec.kind} is no model of nnU-Net. {cure}."
        raise StudentFileError(message)
    model = out / f"Dataset001_{card.name}" / f"{_TRAINER}__{_plans(card)}__{card.nnunet.configuration}"
    fold = model / f"fold_{card.nnunet.fold}"
    fold.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", "plans.json", "dataset_fingerprint.json"):
        shutil.copyfile(folder / MODEL / name, model / name)
    torch.save(_checkpoint(folder, card, card.nnunet), fold / "checkpoint_final.pth")
    return model


def write_model_zip(student: str | Path, out: Path) -> Path:
    """Write the zip that ``nnUNetv2_install_pretrained_model_from_zip`` installs, and return its path.

    Args:
        student: The student's folder.
        out: The zip; what is there is replaced.

    Raises:
        StudentFileError: as of `write_model_folder`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write_model_folder(student, aside)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(each for each in aside.rglob("*") if each.is_file()):
                packed.write(path, path.relative_to(aside).as_posix())
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _plans(card: StudentCard) -> str:
    return PRESETS[(card.spec.nnunet or NnunetSpec()).preset].plans


def _checkpoint(folder: Path, card: StudentCard, record: NnunetRecord) -> dict[str, object]:
    """Return what nnU-Net's predictor reads of a checkpoint."""
    network = load_answers(folder, card, torch.device("cpu")).network
    return {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": record.configuration, "fold": record.fold},
        "trainer_name": _TRAINER,
        "inference_allowed_mirroring_axes": record.mirrored_axes or None,
        "current_epoch": record.epochs,
    }
