"""How often a training looks at held-out cases, and at how many, so that looking costs about a tenth of the budget at most."""

from collections.abc import Sequence
from dataclasses import dataclass

from students.spec import NetworkPlan, StudentSpec

MOST_CASES = 12
"""At most so many held-out cases are looked at; more would eat the budget without changing the choice."""

TRIALS = 2
"""Cases that are timed at most before a training on time settles its looks; the first one warms up."""

_SHARE = 0.1
"""Of the budget, for all looks together."""

_LEARNING = 3
"""A forward and a backward pass cost about as much as so many forward passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """How often, and at how many cases each time."""

    times: int
    cases: int

    def within(self, cases_in_all: float, *, least: int = TRIALS) -> "Looks":
        """Return as many looks as that many cases allow: both numbers shrink alike, and ``least`` cases are looked at once at least."""
        if self.times * self.cases <= cases_in_all:
            return self
        share = (max(cases_in_all, 0.0) / (self.times * self.cases)) ** 0.5
        cases = max(min(least, self.cases), int(self.cases * share))
        return Looks(times=max(1, min(self.times, int(cases_in_all / cases))), cases=cases)


def looks_wanted(spec: StudentSpec, plan: NetworkPlan, held_out: int, depth: int) -> Looks:
    """Return the looks before anything was timed.

    A training of so many steps has them settled by this: in 2D, where patches are whole slices, by the number of patches it learns
    from; in 3D, where a step costs as much as many answers, nothing needs to shrink.

    Args:
        spec: How many validations are asked for, and how many steps.
        plan: For the patches of a step.
        held_out: Cases there are to look at.
        depth: Slices of a typical one.
    """
    wanted = Looks(times=spec.validations, cases=min(MOST_CASES, held_out))
    if spec.steps is None or plan.dimensions == "3d" or not held_out:
        return wanted
    return wanted.within(_SHARE * _LEARNING * plan.batch * spec.steps / depth)


def looks_in_time(wanted: Looks, seconds_per_case: float, budget_seconds: float) -> Looks:
    """Return the looks that a budget in time pays for; where it does not pay for two cases, one of them is looked at."""
    paid = _SHARE * budget_seconds / max(seconds_per_case, 1e-9)
    return wanted.within(paid, least=TRIALS if paid >= TRIALS else 1)


def spread(cases: Sequence[str], count: int) -> list[str]:
    """Return ``count`` cases evenly spread over the list: neighbours are often slices of one patient."""
    return [cases[n * len(cases) // count] for n in range(count)] if count < len(cases) else list(cases)
