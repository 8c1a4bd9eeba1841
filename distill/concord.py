"""What a refined label set and another one both say: the labels of a round that believes teacher and students only where they agree."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from storage import IGNORE, Archive, Labels, fingerprint
from storage.working import Worked, work_through

_VERSION = "1"
"""Raised whenever the same labels give another label set."""


def agreed_labels(
    archive: Archive,
    cases: Sequence[str],
    *,
    of: str,
    with_: str,
    into: str,
    progress: Callable[[int, int], None] | None = None,
) -> Worked[None]:
    """Write a label set that holds what two others both say of each voxel, and ``ignore`` where they differ; once per state of both.

    Verdicts, scores and probabilities are those of the refined one. A case that the other has nothing to say about is copied.

    Args:
        archive: read from and written to.
        cases: those to look at, as far as they are refined.
        of: the refined label set.
        with_: the other one.
        into: the new one.
        progress: called with (cases done, cases to do).
    """
    refined, others = archive.catalog.fingerprints(of), archive.catalog.fingerprints(with_)
    prints = {case: fingerprint(version=_VERSION, refined=refined[case], other=others.get(case, "")) for case in cases if case in refined}

    def write(case: str) -> None:
        stored = archive[case]
        labels, other = stored.labels(of), stored.labels(with_) if case in others else None
        history = replace(
            labels.history,
            label_set=into,
            made_by="distill.concord",
            parents=(of,) if other is None else (of, with_),
            fingerprint=prints[case],
        )
        probability = None if labels.probability is None else np.asarray(labels.probability[...])
        stored.write_labels(history, _both(labels, other), probability_kzyx=probability, scores=labels.scores)

    return work_through(archive.ledger, f"agree:{into}", prints, write, progress=progress)


def _both(labels: Labels, other: Labels | None) -> np.ndarray:
    ids = labels.read()
    return ids if other is None else np.where(ids == other.read(), ids, ids.dtype.type(IGNORE))
