"""Whom does the filter remove? Rejection rates of subgroups against the rest.

A filter that is fair on average may still take one population out of what the student learns from. Each value of each attribute of
the cases is compared with all the rest: by Fisher's exact test where each patient has one mask, else over the patients' own rates, as
masks of one patient are no independent witnesses. A patient is counted once: with one rate where all their masks are on one side
(Mann-Whitney), with the difference of two where they have masks on both (Wilcoxon's signed ranks); the test that more patients speak in is
made, and the others are left out of it. All p values of a report are adjusted together (Holm 1979).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, fisher_exact, mannwhitneyu, rankdata, wilcoxon

from distill.audit_records import Share

SIGNIFICANT = 0.05
FEW_MASKS = 20
"""Below this many masks an interval is wider than most differences worth knowing."""
LEAST_PATIENTS = 3
"""In each of two groups of patients; with fewer their rates cannot be compared."""
FEW_PATIENTS = 20
"""In one of two groups; with fewer, a normal approximation finds differences that are none (3 against 3 patients that all differ: p = 0.05 for 0.10)."""
LEAST_PAIRS = 6
"""Patients with masks on both sides; with 5 even signs that all agree have p = 0.06."""
MOST_VALUES = 12
"""An attribute with more values than that is cut into thirds if it is a number, and left out if it is text."""
AGE_BANDS = ((18, "under 18"), (40, "18 to 39"), (60, "40 to 59"), (75, "60 to 74"), (float("inf"), "75 and over"))
UNKNOWN = "not known"
_AGES = ("age_years", "age")
_DRAWS, _PERMUTATIONS = 2000, 9999
_ROUNDING = 1e-9

Attributes = Mapping[str, str | float | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One mask: whose it is, and whether the filter removed it."""

    patient: str
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A group's rate against the rest."""

    p: float | None
    test: str
    note: str


class Banding:
    """How the attributes of an archive become few values each; learnt from all cases, and small."""

    def __init__(self, cases: Sequence[Attributes], *, ages_in_thirds: bool = False) -> None:
        """Look at all values once.

        Args:
            cases: Attributes of each.
            ages_in_thirds: Cut ages into thirds like other numbers, so that few cases fill each band; else into fixed bands, which are the same for every archive.
        """
        self._ages = () if ages_in_thirds else _AGES
        names = sorted({name for attributes in cases for name in attributes})
        self._cuts: dict[str, tuple[float, float]] = {}
        self.names: tuple[str, ...] = tuple(name for name in names if self._usable(name, [each[name] for each in cases if name in each]))

    def _usable(self, name: str, values: Sequence[str | float | int]) -> bool:
        numbers = not any(isinstance(value, str) for value in values)
        if name in self._ages or (len(set(values)) <= MOST_VALUES and not (numbers and name in _AGES)):
            return True
        if not numbers:
            return False
        low, high = np.quantile(np.asarray(values, dtype=float), [1 / 3, 2 / 3])
        self._cuts[name] = (float(low), float(high))
        return True

    def value(self, name: str, attributes: Attributes) -> str:
        """Return the band of one case."""
        found = attributes.get(name)
        if found is None or found == "":
            return UNKNOWN
        if name in self._ages and not isinstance(found, str):
            return next(band for limit, band in AGE_BANDS if found < limit)
        if name in self._cuts and not isinstance(found, str):
            return third(float(found), self._cuts[name])
        return str(found)


def third(value: float, cuts: tuple[float, float]) -> str:
    """Name the third that a value lies in."""
    low, high = cuts
    if value <= low:
        return f"lower third (to {_short(low)})"
    return f"middle third (to {_short(high)})" if value <= high else f"upper third (above {_short(high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share_removed(masks: Sequence[Removal]) -> Share:
    """Return the share of removed masks with its 95 % interval."""
    count, total = sum(mask.removed for mask in masks), len(masks)
    if not total:
        return Share(count=0, of=0, share=None, low=None, high=None)
    patients = Counter(mask.patient for mask in masks)
    drawn = None
    if max(patients.values()) == 1:
        low, high = _wilson(count, total)
    elif count in {0, total}:  # every bootstrap sample would say the same; as many patients as there are say this much
        low, high = _wilson(len(patients) if count else 0, len(patients))
    else:
        low, high = _clustered(masks, sorted(patients))
        drawn = len(patients)
    return Share(count=count, of=total, share=count / total, low=low, high=high, patients=drawn)


def _wilson(count: int, total: int) -> tuple[float, float]:
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _clustered(masks: Sequence[Removal], patients: Sequence[str]) -> tuple[float, float]:
    """Return a bootstrap interval that draws patients with all their masks."""
    place = {patient: n for n, patient in enumerate(patients)}
    which = np.array([place[mask.patient] for mask in masks])
    hit = np.bincount(which, weights=[float(mask.removed) for mask in masks], minlength=len(patients))
    size = np.bincount(which, minlength=len(patients))
    drawn = np.random.default_rng(0).integers(0, len(patients), size=(_DRAWS, len(patients)))
    low, high = np.quantile(hit[drawn].sum(axis=1) / size[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def compare(group: Sequence[Removal], rest: Sequence[Removal]) -> Comparison:
    """Test whether a group is removed as often as the rest."""
    few = f"only {len(group)} masks: a difference can hardly be seen" if len(group) < FEW_MASKS else ""
    removed = sum(mask.removed for mask in (*group, *rest))
    if not group or not rest or removed in {0, len(group) + len(rest)}:
        return Comparison(p=None, test="none", note=few)
    clustered = len({mask.patient for mask in (*group, *rest)}) < len(group) + len(rest)
    if not clustered:
        table = [[sum(m.removed for m in masks), sum(not m.removed for m in masks)] for masks in (group, rest)]
        return Comparison(p=float(fisher_exact(table).pvalue), test="Fisher exact", note=few)
    return _compare_patients(_rates(group), _rates(rest), few)


def _compare_patients(group: Mapping[str, float], rest: Mapping[str, float], few: str) -> Comparison:
    """Compare the rates of patients, each of whom counts once."""
    both = sorted(group.keys() & rest.keys())
    sides = [[rate for patient, rate in each.items() if patient not in both] for each in (group, rest)]
    if len(both) > sum(map(len, sides)):
        if len(both) < LEAST_PAIRS:
            return Comparison(p=None, test="none", note=f"fewer than {LEAST_PAIRS} patients with masks on both sides: not tested")
        differences = np.array([group[patient] - rest[patient] for patient in both])
        # Without those that differ in nothing, which the test drops as well, few differences are tested exactly.
        p = float(wilcoxon(differences[differences != 0]).pvalue) if differences.any() else 1.0
        return Comparison(p=p, test="Wilcoxon over patients with both", note=few)
    if min(map(len, sides)) < LEAST_PATIENTS:
        return Comparison(p=None, test="none", note=f"fewer than {LEAST_PATIENTS} patients on one side: not tested")
    p = _by_permutations(*sides) if min(map(len, sides)) < FEW_PATIENTS else float(mannwhitneyu(*sides).pvalue)
    return Comparison(p=p, test="Mann-Whitney over patients", note=few)


def _by_permutations(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the Mann-Whitney test's p value from random permutations, which ties do not disturb; what a group holds of each rank is drawn."""
    ranks = rankdata([*one, *other])
    values, counts = np.unique(ranks, return_counts=True)
    drawn = np.random.default_rng(0).multivariate_hypergeometric(counts, len(one), size=_PERMUTATIONS, method="marginals")
    expected = len(one) * float(ranks.mean())
    as_far = np.abs(drawn @ values - expected) >= abs(float(ranks[: len(one)].sum()) - expected) - _ROUNDING
    return float((1 + as_far.sum()) / (1 + _PERMUTATIONS))


def _rates(masks: Sequence[Removal]) -> dict[str, float]:
    """Return each patient's share of removed masks."""
    found: dict[str, list[bool]] = {}
    for mask in masks:
        found.setdefault(mask.patient, []).append(mask.removed)
    return {patient: float(np.mean(each)) for patient, each in found.items()}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values of several tests so that the chance of any false alarm stays at the level; None stays None."""
    known = sorted((p, n) for n, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, n) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[n] = highest
    return adjusted
