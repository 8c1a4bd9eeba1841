"""Students and half-trained students on disk; a file is either the old one or the new one, whenever the process dies."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from students.errors import StudentFileError
from students.nets import build_network
from students.nnunet.job import WORK
from students.spec import FORMAT_VERSION, StudentCard

CARD = "student.json"
WEIGHTS = "model.safetensors"
CHECKPOINT = "checkpoint.pt"


def replace_durably(partial: Path, final: Path) -> None:
    """Make a finished file visible under its name, durably."""
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(final)


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training beside the student it will become."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CHECKPOINT}.partial"
    torch.save(dict(state), partial)
    replace_durably(partial, folder / CHECKPOINT)


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the state of an interrupted training of the same inputs, or None; anything else found there is left behind.

    A checkpoint that cannot be read (a full disk, say) costs the work in it, not the run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises anything from EOFError to UnpicklingError
        return None
    return state if isinstance(state, dict) and state.get("fingerprint") == fingerprint else None


def save_student(folder: Path, card: StudentCard, weights: Mapping[str, Tensor]) -> None:
    """Write weights, then the card that makes the folder a student, then remove the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS}.partial"
    # Not save_file: it makes files that only their owner can read, whatever the umask says, and students lie in shared folders.
    partial.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
    replace_durably(partial, folder / WEIGHTS)
    partial = folder / f"{CARD}.partial"
    partial.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    replace_durably(partial, folder / CARD)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def read_card(folder: str | Path) -> StudentCard:
    """Return the card of a student.

    Raises:
        StudentFileError: if there is none, it is from a newer version, or it is damaged.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        there = "an unfinished training, which the same train command continues" if _is_begun(Path(folder)) else "no student"
        message = f"{folder}: {CARD} is missing; this is {there}. Give the folder that training wrote."
        raise StudentFileError(message)
    try:
        text = path.read_text(encoding="utf-8")
        version = int(json.loads(text).get("format_version", 0))
        card = StudentCard.model_validate_json(text) if version <= FORMAT_VERSION else None
    except (ValueError, AttributeError, TypeError) as error:  # those of pydantic, JSON and UTF-8 among them
        message = f"{path}: not a student card ({error}). Train again, or restore the file."
        raise StudentFileError(message) from error
    if card is None:
        message = f"{path}: format {version} is newer than this program, which reads up to {FORMAT_VERSION}. Update samdistill."
        raise StudentFileError(message)
    return card


def _is_begun(folder: Path) -> bool:
    """Tell whether a training that has not ended left something here."""
    return (folder / CHECKPOINT).exists() or (folder / WORK).exists()


def weights_digest(folder: str | Path) -> str:
    """Return a hash of a student's weights: a training stopped by the clock gives others each time, from the same inputs.

    Raises:
        StudentFileError: if there are none.
    """
    path = _network_file(Path(folder))
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        message = f"{path}: the weights cannot be read ({error.strerror}). Train again, or restore the file."
        raise StudentFileError(message) from error


def _network_file(folder: Path) -> Path:
    """Return the file that holds a student's weights: training's own, or that of an export, as its card names it."""
    own = folder / WEIGHTS
    if own.exists() or not (folder / CARD).is_file():
        return own
    card = read_card(folder)
    record = card.exported or card.promptable
    return own if record is None else folder / record.file


def load_network(folder: str | Path, card: StudentCard) -> nn.Module:
    """Return a compact student's network with its weights, in evaluation mode; that of an export runs in the format it was exported to.

    Raises:
        StudentFileError: if the weights are missing or belong to another network.
    """
    if card.exported is not None:
        from students.runtime import load_exported

        return load_exported(Path(folder), card.exported)
    return with_weights(build_network(card.plan), folder)


def with_weights(network: nn.Module, folder: str | Path) -> nn.Module:
    """Return a network with the weights of a student's folder, in evaluation mode.

    Raises:
        StudentFileError: if the weights are missing or belong to another network.
    """
    path = Path(folder) / WEIGHTS
    try:
        weights = load_file(path)
        if weights.keys() != dict(network.named_parameters()).keys():
            message = "its tensors have other names"
            raise StudentFileError(message)  # noqa: TRY301 - the sentence below gives the file
        network.load_state_dict(weights, strict=False)  # U-Nets list shared weights twice; the check above was strict
    except Exception as error:
        message = f"{path}: the weights cannot be used with {CARD} beside them ({error}). Both must come from one training."
        raise StudentFileError(message) from error
    return network.eval()
