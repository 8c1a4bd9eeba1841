"""Models that put pictures and words into one space, as the source ``text`` asks them; weights are the user's, and nothing is downloaded."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from distill.errors import PlanError

BATCH = 32
CONFIG = "open_clip_config.json"
"""What open_clip calls a model's description in a folder of its own."""


@runtime_checkable
class Clip(Protocol):
    """A model that puts pictures and words into one space."""

    fingerprint: str
    """Hash of the weights."""
    scale: float
    """What cosines are multiplied by before the softmax; learnt with the weights."""

    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return unit vectors ``(N, D)`` of pictures ``(H, W, 3)`` uint8 RGB."""
        ...

    def words(self, sentences: Sequence[str]) -> np.ndarray:
        """Return unit vectors ``(N, D)`` of sentences."""
        ...


class OpenClip:
    """A model of open_clip with weights from a file."""

    def __init__(self, model: str | None, checkpoint: Path) -> None:
        """Load it.

        Args:
            model: an architecture by its name; None where the checkpoint is a folder that says what it is.
            checkpoint: a file of weights, or a folder with ``open_clip_config.json``, weights, and what else its tokenizer needs.

        Raises:
            PlanError: if open_clip is not installed or knows no such model, if the weights are missing or do not fit, or if something would be downloaded.
        """
        open_clip = _open_clip()
        name, weights = _what_to_load(open_clip, model, checkpoint)
        try:
            self._net, _, self._see = open_clip.create_model_and_transforms(name, pretrained=weights, device="cpu", require_pretrained=True)
            self._tokens = open_clip.get_tokenizer(name)
        except (RuntimeError, KeyError, OSError, ValueError, ImportError, TypeError) as error:
            message = f"prompts.text.checkpoint: {checkpoint} does not fit {model or CONFIG}: {str(error)[:300]}. Name the architecture that it was trained as."
            raise PlanError(message) from error
        self._net.eval()
        self.scale = float(self._net.logit_scale.exp())
        self.fingerprint = f"{model or 'folder'}/{hash_of(checkpoint)}"

    @torch.inference_mode()
    def pictures(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return unit vectors ``(N, D)`` of pictures ``(H, W, 3)`` uint8 RGB."""
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self._see(Image.fromarray(each)) for each in images[start : start + BATCH]])
            parts.append(self._net.encode_image(batch, normalize=True).float().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def words(self, sentences: Sequence[str]) -> np.ndarray:
        """Return unit vectors ``(N, D)`` of sentences."""
        vectors: np.ndarray = self._net.encode_text(self._tokens(list(sentences)), normalize=True).float().numpy()
        return vectors


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        message = "the source text needs open_clip, which is not installed. Get it with: pip install 'samdistill[text]'."
        raise PlanError(message) from error
    return open_clip


def _what_to_load(open_clip: Any, model: str | None, checkpoint: Path) -> tuple[str, str | None]:
    """Return what open_clip calls the model, and its weights where these are a file.

    Raises:
        PlanError: if it knows no such model, if files are missing, or if parts of the model would be downloaded.
    """
    if model is None:
        _check_folder(checkpoint)
        return f"local-dir:{checkpoint}", None
    if model not in open_clip.list_models():
        message = (
            f"prompts.text.model {model!r} is none that open_clip knows. Known are, among others: {', '.join(open_clip.list_models()[:8])}."
        )
        raise PlanError(message)
    if not checkpoint.is_file():
        message = f"prompts.text.checkpoint: there is no file at {checkpoint}. Name the weights of {model}, or leave prompts.text.model out if this is a folder with {CONFIG}; nothing is downloaded."
        raise PlanError(message)
    if fetched := open_clip.get_model_config(model).get("text_cfg", {}).get("hf_tokenizer_name"):
        message = f"prompts.text.model {model} reads with the tokenizer {fetched}, which open_clip would download. Fetch the model's whole folder, with {CONFIG} and the tokenizer's files, name it as prompts.text.checkpoint and leave prompts.text.model out."
        raise PlanError(message)
    return model, str(checkpoint.resolve())


def _check_folder(folder: Path) -> None:
    """Refuse a folder that does not say what its model is, or whose model is somewhere else."""
    if not (folder / CONFIG).is_file():
        message = f"prompts.text.checkpoint: {folder} is no folder with {CONFIG}. Without prompts.text.model (such as ViT-B-32) it must be one, as open_clip saves and hubs offer."
        raise PlanError(message)
    try:
        words = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"].get("hf_model_name")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        message = f"prompts.text.checkpoint: {folder / CONFIG} describes no model with model_cfg and text_cfg: {error!r}. Take the file that came with the weights."
        raise PlanError(message) from error
    if words and not Path(words).is_dir():
        message = f"prompts.text.checkpoint: {folder / CONFIG} names the text model {words}, which open_clip would download. Put its files in a folder and name that as hf_model_name."
        raise PlanError(message)


def hash_of(checkpoint: Path) -> str:
    """Return a hash of a file, or of all that a folder holds, with the folder of the text model that it names."""
    digest = blake2b(digest_size=16)
    for name, file in _files(checkpoint) if checkpoint.is_dir() else [("", checkpoint)]:
        digest.update(name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files of a folder, and of the one that its text model lies in, under their names in them; hidden ones are not the model's."""
    words = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"].get("hf_model_name")
    named = {
        f"{at}/{each.relative_to(root)}": each
        for at, root in enumerate([folder, *([Path(words)] if words else [])])
        for each in root.rglob("*")
    }
    return sorted(
        (name, each) for name, each in named.items() if each.is_file() and not any(part.startswith(".") for part in name.split("/"))
    )
