"""Which cases are learnt from, and which are held out to say when to stop."""

from collections.abc import Sequence

import numpy as np

from storage import CaseRecord


def split_by_patient(records: Sequence[CaseRecord], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Return training and held-out case ids; all cases of a patient are on one side.

    Args:
        records: The cases that may be trained on.
        fraction: Share of the patients to hold out; with a positive share and at least two patients, at least one is.
        seed: Same seed, same split, whatever the order of the records.
    """
    patients = sorted({record.patient for record in records})
    order = np.random.default_rng(seed).permutation(len(patients))
    count = min(max(round(len(patients) * fraction), 1 if fraction > 0 else 0), len(patients) - 1)
    held = {patients[n] for n in order[:count]}
    ids = sorted((record.id, record.patient) for record in records)
    return [i for i, patient in ids if patient not in held], [i for i, patient in ids if patient in held]


def split_by_name(records: Sequence[CaseRecord], patients: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return training and held-out case ids where patients are held out by name; nobody is where that would leave no training case."""
    held = [record.id for record in records if record.patient in frozenset(patients)]
    rest = [record.id for record in records if record.id not in frozenset(held)]
    return (rest, held) if rest else (held, [])
