"""What the encoder said about pictures that will be asked about again, while a window of cases is labelled.

A slice is asked about several times: for one class where it was prompted and for another on the way from its neighbours, and again where a
track is followed back. Its pictures are encoded for the first of these, and kept, on the device that encoded them, until the last one or
until there is no room: then what was not used for longest goes first. Answers do not change by it: a teacher encodes each picture as if it
were alone (on a GPU within rounding, as everything there).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from distill.teachers.base import CallSizes, Embeddings, Teacher

BUDGET_BYTES = 2**30
"""Of the embeddings kept for one device: 256 pictures of a ViT in float32, 2048 of the bundled teacher."""
_PER_PICTURE = tuple(field.name for field in fields(Embeddings) if field.name != "features")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture that a teacher is about to be asked about."""

    key: Hashable
    """Two pictures with the same key are the same."""
    picture: Callable[[], np.ndarray]
    """Makes it, ``(H, W, 3)`` uint8."""
    again: bool
    """Whether it will be asked about once more, later."""


class EmbeddingMemory:
    """Embeddings of single pictures, in memory; for one teacher, and one thread."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        """Begin with none.

        Args:
            budget_bytes: the most that is kept between calls.
        """
        self.budget_bytes = budget_bytes
        self._rows: OrderedDict[Hashable, Embeddings] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """How many bytes of features are kept."""
        return sum(_bytes_of(row) for row in self._rows.values())

    def forget(self) -> None:
        """Drop everything, for a caller who ran out of memory."""
        self._rows.clear()

    def encode(self, teacher: Teacher, shown: Sequence[Shown], sizes: CallSizes) -> Embeddings:
        """Return what a teacher sees in some pictures of different keys, in their order; padding, if the teacher wants any, follows.

        Args:
            teacher: the same one in each call.
            shown: at least one picture, and no more than ``sizes.pictures``.
            sizes: the teacher's.
        """
        rows = {each.key: self._rows.pop(each.key) for each in shown if each.key in self._rows}
        missing = [each for each in shown if each.key not in rows]
        if missing:
            pictures = [each.picture() for each in missing]
            padding = sizes.padded(len(missing), sizes.pictures) - len(missing)
            encoded = teacher.encode(pictures + [pictures[-1]] * padding)
            if not rows:
                self._keep({each.key: _row(encoded, n) for n, each in enumerate(shown) if each.again})
                return encoded
            rows |= {each.key: _row(encoded, n) for n, each in enumerate(missing)}
        self._keep({each.key: rows[each.key] for each in shown if each.again})
        padding = sizes.padded(len(shown), sizes.pictures) - len(shown)
        return _together([rows[each.key] for each in shown] + [rows[shown[-1].key]] * padding)

    def _keep(self, rows: dict[Hashable, Embeddings]) -> None:
        """Keep these as the last used, and as much of the others as there is room for."""
        self._rows |= rows
        over = self.size_bytes - self.budget_bytes
        while over > 0:
            _, gone = self._rows.popitem(last=False)
            over -= _bytes_of(gone)


def _bytes_of(row: Embeddings) -> int:
    return row.features.numel() * row.features.element_size()


def _row(encoded: Embeddings, n: int) -> Embeddings:
    """Return one picture of several, as a copy that does not hold on to the others."""
    return replace(encoded, features=encoded.features[n : n + 1].clone(), **{name: (getattr(encoded, name)[n],) for name in _PER_PICTURE})


def _together(rows: Sequence[Embeddings]) -> Embeddings:
    """Return single pictures as one batch; the order of their numbers in memory stays as the encoder left it."""
    rest = {name: tuple(getattr(row, name)[0] for row in rows) for name in _PER_PICTURE}
    return replace(rows[0], features=torch.cat([row.features for row in rows]), **rest)
