"""Source ``text``: masks that nobody asked for, compared by a CLIP model with what the classes are called.

Each mask's picture, its surroundings dimmed, and each class's sentences become features of one space; the softmax of their cosines over all classes
and a background says what the mask shows. Such models have learnt from photographs and captions: on CT and MR they hardly know one
organ from another (docs/sources.md says what was measured), so this is for pictures that look like what people photograph.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from PIL import Image

from distill.automatic import Candidate
from distill.errors import PlanError
from distill.prompts.nameless import masks_by_slice, piece_of
from distill.prompts.ontology import shared
from distill.prompts.pieces import prompts_of
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.text_options import TextOptions
from distill.teachers.base import Teacher
from storage import ClassInfo, Prompt, fingerprint

VERSION = "1"
"""Raised whenever the same masks are called something else."""
DIMMED = 0.3
"""How bright the surroundings of a mask are shown: context without being the subject."""
BATCH = 32


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

    def __init__(self, model: str, checkpoint: Path) -> None:
        """Load it.

        Raises:
            PlanError: if open_clip is not installed, knows no such model, or the file does not fit it.
        """
        open_clip = _open_clip()
        if model not in open_clip.list_models():
            message = f"prompts.text.model {model!r} is none that open_clip knows. Known are, among others: {', '.join(open_clip.list_models()[:8])}."
            raise PlanError(message)
        if not checkpoint.is_file():
            message = f"prompts.text.checkpoint: there is no file at {checkpoint}. Name the weights of {model}; nothing is downloaded."
            raise PlanError(message)
        try:
            self._net, _, self._see = open_clip.create_model_and_transforms(model, pretrained=str(checkpoint), device="cpu")
        except (RuntimeError, KeyError, OSError, ValueError) as error:
            message = f"prompts.text.checkpoint: {checkpoint} does not fit {model}: {str(error)[:300]}. Name the architecture that it was trained as."
            raise PlanError(message) from error
        self._net.eval()
        self._tokens = open_clip.get_tokenizer(model)
        self.scale = float(self._net.logit_scale.exp())
        self.fingerprint = f"{model}/{_hash(checkpoint)}"

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


def _hash(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


class TextSource:
    """Calls masks by names."""

    name = "text"

    def __init__(self, teacher: Teacher, clip: Clip, options: TextOptions, words: Mapping[int, Sequence[str]]) -> None:
        """Take the phrases by class id."""
        self.teacher, self.clip, self.options, self.phrases = teacher, clip, options, dict(words)
        self._background = self._vector(options.background)
        self._classes = {key: self._vector(phrases) for key, phrases in self.phrases.items()}
        self.fingerprint = fingerprint(
            version=VERSION,
            options=options.model_dump_json(exclude={"checkpoint"}),
            words={str(key): list(phrases) for key, phrases in sorted(self.phrases.items())},
            clip=clip.fingerprint,
            teacher=[teacher.fingerprint, teacher.profile],
        )

    def propose(self, subject: Subject) -> list[Prompt]:
        """Return the prompts of the masks that a class's words describe best."""
        ids = [info.id for info in subject.classes if info.id in self._classes]
        if not ids:
            return []
        found: list[Prompt] = []
        for z, candidates in masks_by_slice(self.teacher, subject, self.options.grid):
            if candidates:
                picture = subject.picture(z)
                shares = self._shares([shown(picture, each, self.options.context) for each in candidates])
                for key in ids:
                    found += self._prompts(subject, z, candidates, key, shares[:, list(self._classes).index(key)])
        return found

    def _shares(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return ``(N, K)``: the probability of each class of the run, the background being one more."""
        vectors = np.stack([*self._classes.values(), self._background])
        logits = self.clip.scale * self.clip.pictures(images) @ vectors.T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: np.ndarray = (odds / odds.sum(axis=1, keepdims=True))[:, :-1]
        return shares

    def _prompts(self, subject: Subject, z: int, candidates: Sequence[Candidate], key: int, shares: np.ndarray) -> list[Prompt]:
        """Return the prompts of one class on one slice: the surest masks first, each object once."""
        overlap = shared(np.stack([each.mask for each in candidates]))
        kept: list[int] = []
        for n in np.argsort(-shares, kind="stable"):
            if shares[n] < self.options.least or len(kept) == self.options.most:
                break
            if not any(overlap[n, other] > 0.5 for other in kept):
                kept.append(int(n))
        options = self.options
        return [
            prompt
            for n in kept
            for prompt in prompts_of(
                subject.record, key, piece_of(candidates[n], z), give=options.give, margin=options.margin, confidence=float(shares[n])
            )
        ]

    def _vector(self, phrases: Sequence[str]) -> np.ndarray:
        """Return the unit vector in the middle of all sentences about some phrases."""
        sentences = [template.replace("{}", phrase) for phrase in phrases for template in self.options.templates]
        middle = self.clip.words(sentences).mean(axis=0)
        return np.asarray(middle / max(float(np.linalg.norm(middle)), 1e-12))


def shown(picture: np.ndarray, candidate: Candidate, context: float) -> np.ndarray:
    """Return what of a picture ``(H, W, 3)`` shows a mask: a square around it, the rest of it dimmed, cut at the picture's sides."""
    x0, y0, x1, y1 = candidate.box_xyxy_px
    half = max(x1 - x0, y1 - y0, 2) * (0.5 + context)
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    height, width = picture.shape[:2]
    left, right = max(0, int(middle_x - half)), min(width, int(np.ceil(middle_x + half)))
    top, bottom = max(0, int(middle_y - half)), min(height, int(np.ceil(middle_y + half)))
    mask = candidate.mask[top:bottom, left:right].astype(np.float32)
    weight = np.maximum(cv2.GaussianBlur(mask, (0, 0), 1.0), mask)[..., None]
    part = picture[top:bottom, left:right].astype(np.float32)
    return np.asarray(part * (DIMMED + (1 - DIMMED) * weight)).round().astype(np.uint8)


def make_text(context: SourceContext, options: TextOptions | None) -> TextSource:
    """Make the source from the recipe's words and the user's checkpoint.

    Raises:
        PlanError: if model or checkpoint are not named or cannot be loaded, or words are about no class of the run.
    """
    options = options or TextOptions()
    if options.model is None or options.checkpoint is None:
        message = "the source text needs prompts.text.model (an architecture of open_clip, such as ViT-B-32) and prompts.text.checkpoint (its weights)."
        raise PlanError(message)
    words = words_of(options.words, context.classes)
    return TextSource(context.teacher, OpenClip(options.model, options.checkpoint), options, words)


def words_of(given: Mapping[str, Sequence[str]], classes: Sequence[ClassInfo]) -> dict[int, tuple[str, ...]]:
    """Return the phrases of every class, its name where none are given.

    Raises:
        PlanError: if some are about no class of the run.
    """
    known = {name for info in classes for name in (str(info.id), info.name)}
    if strangers := sorted(set(given) - known):
        message = f"prompts.text.words describes {strangers[0]!r}, but there is no such class. Known: {', '.join(sorted(known))}."
        raise PlanError(message)
    named = {info.id: info.name.replace("-", " ").replace("_", " ") for info in classes}
    return {info.id: tuple(given.get(str(info.id)) or given.get(info.name) or (named[info.id],)) for info in classes}
