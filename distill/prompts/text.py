"""Source ``text``: masks that nobody asked for, compared by a CLIP model with what the classes are called.

Each mask's picture, its surroundings dimmed, and each class's sentences become features of one space; the softmax of their cosines over all classes
and a background says what the mask shows. Such models have learnt from photographs and captions: on CT and MR they hardly know one
organ from another (docs/sources.md says what was measured), so this is for pictures that look like what people photograph.
"""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from distill.automatic import Candidate
from distill.errors import PlanError
from distill.prompts.nameless import masks_by_slice, piece_of
from distill.prompts.ontology import shared
from distill.prompts.pieces import prompts_of
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.text_clip import Clip, OpenClip
from distill.prompts.text_options import TextOptions
from distill.teachers.base import Teacher
from storage import ClassInfo, Prompt, fingerprint

VERSION = "2"
"""Raised whenever the same masks are called something else."""
UNTOLD = 0.75
"""Words that no picture could be called with this probability, were there only the background besides, mean the same as background to the model: those that
a small one has never met came to 0.53 and 0.70, those that it was taught to 0.9999."""
DIMMED = 0.3
"""How bright the surroundings of a mask are shown: context without being the subject."""


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

    def attainable(self) -> dict[int, float]:
        """Return by class the probability of a picture that is as much like its words, and as little like the background's, as can be."""
        reach = {key: self.clip.scale * float(np.linalg.norm(vector - self._background)) for key, vector in self._classes.items()}
        return {key: 1 / (1 + math.exp(-logit)) for key, logit in reach.items()}

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
    """Return what of a picture ``(H, W, 3)`` shows a mask: a square around it, the rest of it dimmed, black beyond the picture's sides."""
    x0, y0, x1, y1 = candidate.box_xyxy_px
    half = max(x1 - x0, y1 - y0, 2) * (0.5 + context)
    left, top = (int(np.floor((low + high) / 2 - half)) for low, high in ((x0, x1), (y0, y1)))
    side = int(np.ceil(2 * half))
    height, width = picture.shape[:2]
    rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    mask = candidate.mask[rows, columns].astype(np.float32)
    weight = np.maximum(cv2.GaussianBlur(mask, (0, 0), 1.0), mask)[..., None]
    square = np.zeros((side, side, 3), np.uint8)  # open_clip cuts the middle out of what is no square
    part = picture[rows, columns].astype(np.float32) * (DIMMED + (1 - DIMMED) * weight)
    square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part.round()
    return square


def make_text(context: SourceContext, options: TextOptions | None) -> TextSource:
    """Make the source from the recipe's words and the user's checkpoint.

    Raises:
        PlanError: if no checkpoint is named or it cannot be loaded, if words are about no class of the run, or mean nothing to the model.
    """
    options = options or TextOptions()
    if options.checkpoint is None:
        message = (
            "the source text has no checkpoint.\n"
            "Add prompts: {text: {model: ViT-B-32, checkpoint: WEIGHTS}}, or name as checkpoint a folder with open_clip_config.json."
        )
        raise PlanError(message)
    words = words_of(options.words, context.classes)
    source = TextSource(context.teacher, OpenClip(options.model, options.checkpoint), options, words)
    for key, most in source.attainable().items():
        if most < UNTOLD:
            message = f"prompts.text: to this model {', '.join(map(repr, words[key]))} means the same as {', '.join(map(repr, options.background))}: no picture could be called it with a probability above {most:.2f}. Use words that it has learnt (prompts.text.words), or another model."
            raise PlanError(message)
    return source


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
