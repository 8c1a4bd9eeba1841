"""Taking labels back that nobody would draw any more, with all that was derived from them.

A case whose last prompt was removed, or whose prompts come from a source that the recipe no longer names, has no answer: what was drawn
from the old prompts must not be believed and learnt from. Nor must labels stay that could not be made anew from what is there now. Only label sets that labelling, fusing or refining has made are taken back:
never gold, and nothing that was imported. What people said of a mask stays, and counts again if the same mask is drawn again.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from storage import Archive, LabelHistory

_STAGE_OF_MAKER = {"distill.engine": "label", "distill.fuse": "label", "distill.refine": "refine"}
"""Who writes label sets that can be taken back, and the ledger's stage in which that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """What was taken back."""

    cases: tuple[str, ...] = ()
    """Those that had labels, and have none now."""
    verdicts: int = 0
    """What people had decided about masks of these cases; they stay, and hold for the same masks."""
    held: tuple[str, ...] = ()
    """Cases that another live run is at: theirs are still there."""


def withdraw_labels(archive: Archive, label_set: str, cases: Iterable[str]) -> Withdrawn:
    """Take the label set of these cases back, and what was derived from it; those that carry none of ours stay as they are.

    Killed at any moment, it is completed by the next call: what was derived goes first, the label set itself last.
    """
    there = archive.catalog.fingerprints(label_set)
    judged = [review.case for review in archive.catalog.reviews(label_set)]
    ours = [case for case in cases if case in there and stage_that_made(archive[case].labels(label_set).history)]
    held = tuple(case for case in ours if not _withdraw(archive, case, label_set))
    gone = tuple(case for case in ours if case not in held)
    return Withdrawn(cases=gone, verdicts=sum(case in gone for case in judged), held=held)


def forget_given_up(archive: Archive, stage: str, cases: Iterable[str]) -> None:
    """Take cases out of a stage of the ledger that were given up over prompts which nobody would ask with any more."""
    wanted = set(cases)
    for unit in archive.ledger.quarantined(stage):
        if unit.unit in wanted and _claimed(archive, stage, unit.unit):
            archive.ledger.forget(stage, unit.unit)


@contextmanager
def made_anew(archive: Archive, stage: str, case: str, label_set: str) -> Iterator[None]:
    """Have a block make a label set of a case that this process has claimed; if it fails, the outdated one goes (``drop_outdated``)."""
    try:
        yield
    except Exception:
        drop_outdated(archive, stage, case, label_set)
        raise


def drop_outdated(archive: Archive, stage: str, case: str, label_set: str) -> None:
    """Take back what a case carries of a label set that could not be made anew, and what was derived from that: it is of other inputs.

    Nothing is done where another run has taken the case meanwhile.
    """
    if label_set in archive.catalog.label_sets(case) and archive.ledger.holds(stage, case):
        for name in _derived_from(archive, case, label_set):
            _withdraw(archive, case, name)
        archive[case].delete_labels(label_set)


def _withdraw(archive: Archive, case: str, label_set: str) -> bool:
    """Take one label set of one case back, derived ones before it; return False where another live run is at one of them."""
    if not all(_withdraw(archive, case, name) for name in _derived_from(archive, case, label_set)):
        return False
    stage = f"{stage_that_made(archive[case].labels(label_set).history)}:{label_set}"
    if not _claimed(archive, stage, case):
        return False
    try:
        archive[case].delete_labels(label_set)
    except BaseException:
        archive.ledger.release(stage, case)
        raise
    archive.ledger.forget(stage, case)
    return True


def _claimed(archive: Archive, stage: str, case: str) -> bool:
    """Hold a unit under a fingerprint that nothing is made from, so that no other run writes meanwhile what is taken away."""
    archive.ledger.plan(stage, {case: "withdrawn"})
    return archive.ledger.claim(stage, case)


def _derived_from(archive: Archive, case: str, label_set: str) -> Sequence[str]:
    """Return the label sets of a case that were made from another one by us."""
    histories = {name: archive[case].labels(name).history for name in archive[case].label_sets()}
    return [name for name, history in histories.items() if label_set in history.parents and stage_that_made(history)]


def stage_that_made(history: LabelHistory) -> str:
    """Return the ledger's stage in which we have made a label set; empty for what others have made, and for gold."""
    return "" if history.label_set == "gold" else _STAGE_OF_MAKER.get(history.made_by.partition("/")[0], "")
