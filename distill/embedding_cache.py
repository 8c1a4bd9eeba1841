"""A teacher that looks for a picture's embedding in a folder (``distill.embedding_store``) before it encodes. Off unless a recipe asks for it."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from distill.embedding_store import FORMAT, STORED_AS, EmbeddingCache, EmbeddingCachePlan, Entry, Storage
from distill.teachers.base import Decoded, Embeddings, Prediction, PromptBatch, Teacher, sizes_of
from distill.teachers.transfer import transfer_to

__all__ = ["CachedTeacher", "EmbeddingCache", "EmbeddingCachePlan", "Entry", "Storage", "cache_inputs", "with_cache"]

LOG = logging.getLogger("samdistill.embeddings")

ENCODING = 1
"""Raised whenever preparing or encoding a picture changes what comes out (``distill.teachers``): older entries are then not found."""
_PER_PICTURE = tuple(field.name for field in fields(Embeddings) if field.name != "features")


class CachedTeacher:
    """A teacher that looks into a cache before it encodes (implements ``Teacher``); everything else it leaves to the one inside.

    A cache is a convenience: once it cannot be read or written (a full disk, a damaged index), that is logged, and the teacher goes
    on without it. What it answers is the same.
    """

    def __init__(self, teacher: Teacher, cache: EmbeddingCache) -> None:
        """Stand before ``teacher``; the same cache may stand before several."""
        self.teacher = teacher
        self.cache = cache
        self.profile = teacher.profile
        self.fingerprint = teacher.fingerprint
        """The weights inside; how embeddings are kept is a parameter of the labels, not of the weights."""
        self.mask_size_px = teacher.mask_size_px
        self.hits = 0
        self.misses = 0
        self.usable = True
        """False once the cache has failed."""
        self._whose = json.dumps(
            [
                FORMAT,
                ENCODING,
                teacher.fingerprint,
                repr(teacher.profile),
                str(getattr(teacher, "precision", "")),
                self._device.type,
                cache.plan.storage,
            ]
        )

    @property
    def _device(self) -> torch.device:
        return torch.device(getattr(self.teacher, "device", "cpu"))

    def __getattr__(self, name: str) -> Any:
        """Answer for the teacher inside where it has more than the protocol asks."""
        if name == "teacher":
            raise AttributeError(name)
        return getattr(self.teacher, name)

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        """Encode pictures ``(H, W, 3)``, those that are not cached.

        The missing ones are padded with repeats to as many as were given, unless the teacher says that it needs none: an encoder's last bits may depend
        on the size of its batch, and must not depend on what was cached.
        """
        keys = [self._key(image) for image in images]
        found = self._kept(list(dict.fromkeys(keys)))
        missing = [n for n, key in enumerate(keys) if key not in found and keys.index(key) == n]
        self.hits, self.misses = self.hits + len(found), self.misses + len(missing)
        if missing:
            padded = missing if sizes_of(self.teacher).padding == "none" else missing + [missing[-1]] * (len(images) - len(missing))
            encoded = self.teacher.encode([images[n] for n in padded])
            here = encoded.features[: len(missing)].detach().to("cpu", STORED_AS[self.cache.plan.storage])
            fresh = {keys[n]: Entry(here[at].contiguous(), _facts(encoded, at)) for at, n in enumerate(missing)}
            self._keep(fresh)
            found |= fresh
        return self._together([found[key] for key in keys])

    def _kept(self, keys: Sequence[str]) -> dict[str, Entry]:
        if not self.usable:
            return {}
        try:
            return self.cache.get(keys)
        except (OSError, sqlite3.Error) as error:
            self._go_on_without(error)
            return {}

    def _keep(self, fresh: dict[str, Entry]) -> None:
        if not self.usable:
            return
        try:
            self.cache.put(fresh)
        except (OSError, sqlite3.Error) as error:
            self._go_on_without(error)

    def _go_on_without(self, error: Exception) -> None:
        self.usable = False
        LOG.warning(
            "the embedding cache in %s cannot be used (%s: %s), so pictures are encoded without it from here on; labels stay the same. "
            "Make room there, or name another folder.",
            self.cache.folder,
            type(error).__name__,
            error,
        )

    def _key(self, image: np.ndarray) -> str:
        digest = hashlib.blake2b(self._whose.encode(), digest_size=16)
        digest.update(repr((image.shape, image.dtype.str)).encode())
        digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    def _together(self, entries: list[Entry]) -> Embeddings:
        features = torch.stack([entry.features for entry in entries])
        features = transfer_to(self._device).send(features).to(getattr(torch, str(entries[0].facts["dtype"])))
        if entries[0].facts["channels_last"]:  # convolutions may differ in the last bit between memory formats
            features = features.contiguous(memory_format=torch.channels_last)
        rest: dict[str, Any] = {name: tuple(entry.facts[name] for entry in entries) for name in _PER_PICTURE}
        return Embeddings(features=features, **rest)

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        """Ask the teacher inside."""
        return self.teacher.decode(embeddings, prompts, multimask=multimask)

    def upsample(self, logits: torch.Tensor, size_px: tuple[int, int], input_size_px: tuple[int, int]) -> torch.Tensor:
        """Ask the teacher inside."""
        return self.teacher.upsample(logits, size_px, input_size_px)

    def mask_prompt(self, mask: np.ndarray, input_size_px: tuple[int, int]) -> np.ndarray:
        """Ask the teacher inside."""
        return self.teacher.mask_prompt(mask, input_size_px)

    def predict(
        self,
        image: np.ndarray,
        boxes: np.ndarray | None = None,
        points: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        *,
        multimask: bool | None = None,
    ) -> Prediction:
        """Ask the teacher inside; a single picture is not looked up."""
        return self.teacher.predict(image, boxes, points, point_labels, mask_input, multimask=multimask)


def _facts(encoded: Embeddings, at: int) -> dict[str, Any]:
    """Return what is kept of one picture beside its features."""
    features = encoded.features
    facts: dict[str, Any] = {name: getattr(encoded, name)[at] for name in _PER_PICTURE}
    facts["dtype"] = str(features.dtype).removeprefix("torch.")
    facts["channels_last"] = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    return facts


def with_cache(teacher: Teacher, plan: EmbeddingCachePlan | None) -> Teacher:
    """Return the teacher, behind a cache if a plan asks for one."""
    return teacher if plan is None else CachedTeacher(teacher, EmbeddingCache(plan))


def cache_inputs(plan: EmbeddingCachePlan | None) -> dict[str, str]:
    """Return what a label's fingerprint and history take in of the cache: its storage, where that rounds."""
    return {"embedding_storage": plan.storage} if plan is not None and plan.lossy else {}
