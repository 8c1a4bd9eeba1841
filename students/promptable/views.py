"""Pictures with the teacher's embeddings of them, each computed once and kept as long as there is room."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill.teachers.pictures import to_square
from distill.teachers.sam import SamTeacher
from students.promptable.pictures import Pictures
from students.promptable.prompts import Objects, find_objects


@dataclass(slots=True, kw_only=True)
class View:
    """One picture, as both networks know it."""

    picture: np.ndarray
    """``(H, W, 3)`` uint8."""
    features: torch.Tensor
    """``(C, h, w)`` float16, in this process's memory: what the teacher's encoder says."""
    size_px: tuple[int, int]
    """(height, width) of the picture inside the square."""
    objects: Objects | None = None
    """What may be asked about it, once it was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step learns from."""

    squares: torch.Tensor
    """``(B, 3, S, S)``."""
    features: torch.Tensor
    """``(B, C, h, w)`` float32, the teacher's."""
    sizes_px: list[tuple[int, int]]
    objects: list[Objects]
    """Empty where nobody is asked about anything."""


class Views:
    """The row of pictures with their embeddings; batches are a function of seed and step.

    Each batch has a few pictures that are new, and others that the teacher has embedded before: its encoder is the dearest part of a step.

    Args:
        pictures: where pictures come from.
        teacher: whose embeddings are learnt.
        batch: pictures of a step.
        fresh: of these, how many are new.
        seed: of the row.
        room_bytes: for pictures and embeddings.
    """

    def __init__(self, pictures: Pictures, teacher: SamTeacher, *, batch: int, fresh: int, seed: int, room_bytes: int) -> None:
        self.pictures, self.teacher, self._batch, self._fresh, self._seed = pictures, teacher, batch, fresh, seed
        self._room = room_bytes
        self._held: OrderedDict[int, View] = OrderedDict()

    def batch(self, step: int, *, asked: bool) -> Batch:
        """Return the batch of a step, the same each time.

        Args:
            step: from 0.
            asked: look for what may be asked about its pictures.
        """
        views = self.views(self.numbers(step))
        if asked:
            for number, view in views:
                view.objects = view.objects or self._objects(number, view)
        return self.joined([view for _, view in views])

    def plain(self, number: int) -> Batch:
        """Return one picture as it is, and what may be asked about it."""
        ((_, view),) = self.views([number], changed=False)
        view.objects = view.objects or self._objects(number, view)
        return self.joined([view])

    def numbers(self, step: int) -> list[int]:
        """Return which pictures a step looks at: the new ones, and some of those before that there is room for."""
        known = self._batch + step * self._fresh
        new = list(range(known - self._fresh, known)) if step else list(range(self._batch))
        first = max(0, known - len(new) - self._room_for())
        others = np.random.default_rng((self._seed, step, 2)).integers(first, max(first + 1, known - len(new)), self._batch - len(new))
        return [*new, *(int(each) for each in others)]

    def views(self, numbers: Sequence[int], *, changed: bool = True) -> list[tuple[int, View]]:
        """Return pictures by number; those that are not held are embedded now, in one call."""
        missing = sorted({number for number in numbers if number not in self._held})
        if missing:
            pictures = [self.pictures.picture(self._seed, number, changed=changed) for number in missing]
            found = self.teacher.encode(pictures)
            features = found.features.half().cpu()  # a copy that may be learnt from
            for n, number in enumerate(missing):
                self._held[number] = View(picture=pictures[n], features=features[n].clone(), size_px=found.input_sizes_px[n])
        for number in numbers:
            self._held.move_to_end(number)
        chosen = [(number, self._held[number]) for number in numbers]
        while len(self._held) > self._room_for() + self._batch:
            self._held.popitem(last=False)
        return chosen

    def joined(self, views: Sequence[View]) -> Batch:
        """Return views as tensors on the teacher's device."""
        device, profile = self.teacher.device, self.teacher.profile
        squares = [to_square(view.picture, profile, index=0, device=device)[0] for view in views]
        return Batch(
            squares=torch.stack(squares),
            features=torch.stack([view.features for view in views]).to(device).float(),
            sizes_px=[view.size_px for view in views],
            objects=[view.objects for view in views if view.objects is not None],
        )

    def _room_for(self) -> int:
        """Return how many views are held, by what one takes at most: known before the first, since batches depend on it."""
        rows, columns = self.teacher.sam.prompt_encoder.image_embedding_size
        embedding_bytes = 2 * int(self.teacher.sam.prompt_encoder.embed_dim) * int(rows) * int(columns)
        return max(self._batch, self._room // (self.pictures.most_bytes + embedding_bytes))

    def _objects(self, number: int, view: View) -> Objects:
        features = view.features[None].to(self.teacher.device).float()
        return find_objects(self.teacher.sam, self.teacher.profile, features, view.size_px, np.random.default_rng((self._seed, number, 3)))
