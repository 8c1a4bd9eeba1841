"""Which cases' expert labels a student may learn from: never those that score, nor those that set thresholds. Free of torch."""

import hashlib
from collections.abc import Iterable, Sequence

from storage import Archive, CaseRecord
from students.errors import TrainingError

_SHOWN = 5
"""Cases that a message names at most."""


def gold_cases(archive: Archive, *, cases: Sequence[str] | None = None, patients: int | None = None, seed: int = 0) -> tuple[str, ...]:
    """Return the cases of the archive part whose gold may be learnt from, in order of their ids.

    Args:
        archive: whose cases carry the label set ``gold``.
        cases: those that a person named.
        patients: or all cases of so many patients, drawn by ``seed``; of the same seed, more patients include the fewer.
        seed: of the draw.

    Raises:
        TrainingError: naming cases that may not be learnt from, or saying how many patients there are.
    """
    if cases is not None:
        check_gold(archive, cases)
        return tuple(sorted(set(cases)))
    elsewhere = _kept_apart(archive)
    records = [record for record in archive.cases(part="archive", with_labels="gold") if record.patient not in elsewhere]
    known = sorted({record.patient for record in records}, key=lambda patient: _drawn(patient, seed))
    if patients is None or len(known) < patients:
        message = (
            f"student.gold asks for {patients} patients, but the archive part has gold of {len(known)}. Ask for fewer, or ingest more."
        )
        raise TrainingError(message)
    chosen = set(known[:patients])
    return tuple(sorted(record.id for record in records if record.patient in chosen))


def check_gold(archive: Archive, cases: Iterable[str]) -> None:
    """Refuse gold that must not be learnt from.

    Raises:
        TrainingError: naming the cases, and why: of another part, of a patient who has cases in another part, or without gold.
    """
    records = [archive[case].record for case in sorted(set(cases))]
    for part, use in (("test", "only scores"), ("calibration", "sets thresholds")):
        if found := [record.id for record in records if record.part == part]:
            message = f"{_named(found)} to the {part} part, whose gold {use}. Leave {_it(found)} out of student.gold, or change the split."
            raise TrainingError(message)
    elsewhere = _kept_apart(archive)
    if found := [record.id for record in records if record.patient in elsewhere]:
        message = (
            f"{_named(found)} to patients with other cases in the calibration or test part ({elsewhere[archive[found[0]].record.patient]}, "
            f"for example). A patient is learnt from or kept apart, never both: leave {_it(found)} out of student.gold, or change the split."
        )
        raise TrainingError(message)
    if found := [record.id for record in records if "gold" not in archive[record.id].label_sets()]:
        message = f"{'case' if len(found) == 1 else 'cases'} {_listed(found)}: no gold labels to learn from. Ingest them, or leave {_it(found)} out."
        raise TrainingError(message)


def _kept_apart(archive: Archive) -> dict[str, str]:
    """Return the patients of the parts that are kept apart, each with one of its cases."""
    return {record.patient: record.id for part in ("calibration", "test") for record in archive.cases(part=part)}


def _drawn(patient: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).digest()


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
    return ", ".join(cases[:_SHOWN]) + more


def _named(cases: Sequence[str]) -> str:
    return f"case {cases[0]} belongs" if len(cases) == 1 else f"cases {_listed(cases)} belong"


def _it(cases: Sequence[str]) -> str:
    return "it" if len(cases) == 1 else "them"


def split_off_gold(records: Sequence[CaseRecord], gold: Iterable[str]) -> list[CaseRecord]:
    """Return the records without those whose gold is learnt from: a case teaches one thing."""
    taught = set(gold)
    return [record for record in records if record.id not in taught]
