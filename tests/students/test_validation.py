"""Looking at held-out cases costs a tenth of the budget at most, and patience waits until there is something to lose."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from storage import Archive, ClassInfo
from students import compact
from students.course import Course
from students.data import PatchSource
from students.spec import NetworkPlan, StudentCard, StudentSpec
from students.train import Training, TrainingState
from students.validation import Looks, looks_in_time, looks_wanted, spread

CLASSES = (ClassInfo(id=3, name="kernel"),)
SPEC = StudentSpec(name="looks", budget_seconds=None, steps=40, width=4, batch=1, threads=1, device="cpu", validations=20, patience=2)


def plan(dimensions: str) -> NetworkPlan:
    return NetworkPlan.model_validate(
        {
            "dimensions": dimensions,
            "in_channels": 1,
            "outputs": 2,
            "filters": (4,),
            "strides": ((1, 1),),
            "kernels": ((3, 3),),
            "patch_zyx": (1, 8, 8),
            "spacing_zyx_mm": (1.0, 1.0, 1.0),
            "batch": 4,
        }
    )


def train_with(agreements: list[float], archive: Archive, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: object) -> StudentCard:
    """Train with agreements as given, the last one for ever."""
    coming = itertools.chain(agreements, itertools.repeat(agreements[-1]))
    monkeypatch.setattr(Training, "_agreement", lambda *_: next(coming))
    spec = SPEC.model_copy(update=more)
    return compact.train(archive, label_set="pseudo/r1", classes=CLASSES, spec=spec, workdir=folder).card


@pytest.mark.parametrize("seconds", [0.01, 0.2, 1.0, 3.0], ids=["quick", "middling", "slow", "very slow"])
def test_all_looks_together_cost_a_tenth_of_the_time_at_most(seconds: float) -> None:
    found = looks_in_time(Looks(times=12, cases=12), seconds, 150.0)
    assert found.times * found.cases * seconds <= 15.0
    assert found.cases >= 2


def test_where_time_is_short_fewer_cases_and_fewer_looks_share_the_loss() -> None:
    assert looks_in_time(Looks(times=12, cases=12), 0.4, 144.0) == Looks(times=6, cases=6)
    assert looks_in_time(Looks(times=12, cases=12), 0.0, 10.0) == Looks(times=12, cases=12)


def test_where_one_look_is_too_much_there_still_is_one_at_one_case() -> None:
    assert looks_in_time(Looks(times=12, cases=12), 4.0, 100.0) == Looks(times=1, cases=2)
    assert looks_in_time(Looks(times=12, cases=12), 60.0, 100.0) == Looks(times=1, cases=1)


def test_the_looks_of_a_training_of_so_many_steps_follow_from_its_steps() -> None:
    wanted = looks_wanted(SPEC.model_copy(update={"steps": 100}), plan("2d"), 30, 1)
    assert wanted.times * wanted.cases <= 0.1 * 3 * 4 * 100
    assert looks_wanted(SPEC.model_copy(update={"steps": 100_000}), plan("2d"), 30, 1) == Looks(times=20, cases=12)
    assert looks_wanted(SPEC, plan("3d"), 30, 40) == Looks(times=20, cases=12)


def test_the_cases_looked_at_are_spread_over_the_patients() -> None:
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(["a", "b"], 12) == ["a", "b"]


def test_a_training_on_time_never_looks_longer_than_its_share(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow clock: every look at a case takes a twentieth of the budget, every step a hundredth."""
    from students import train as training

    now, looked = [0.0], [0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])

    def learn(self: Training, _: object) -> float:
        now[0] += 1.0
        self.state.step += 1
        return 0.5

    def look(*_: object) -> list[float]:
        now[0] += 5.0
        looked[0] += 1
        return [0.5]

    monkeypatch.setattr(Training, "_learn", learn)
    monkeypatch.setattr(Training, "_dice", look)
    spec = SPEC.model_copy(update={"steps": None, "budget_seconds": 100.0, "validations": 12, "patience": 99, "validation_fraction": 0.5})
    card = compact.train(archive, label_set="pseudo/r1", classes=CLASSES, spec=spec, workdir=tmp_path).card
    assert looked[0] <= 6
    assert card.steps >= 70


class Counted(Training):
    """Learns a second a step on a clock of its own, and counts the cases it looks at; no network, no data."""

    def __init__(self, clock: list[float], *, seconds_per_case: float, cases: int) -> None:
        self.spec = SPEC.model_copy(update={"steps": None, "budget_seconds": 1200.0, "validations": 12})
        self.plan, self.state = plan("3d"), TrainingState()
        self._held_out = cast("PatchSource", SimpleNamespace(cases=[str(n) for n in range(cases)]))
        self._wanted = Looks(times=12, cases=cases)
        self._course = Course(
            self.spec,
            self.state,
            network=torch.nn.Identity(),
            average=torch.nn.Identity(),
            optimiser=cast("torch.optim.AdamW", SimpleNamespace(param_groups=[{"lr": 1.0}])),
            clip_norm=1.0,
            remedy="",
            folder=Path("nowhere"),
            fingerprint="",
        )
        self.clock, self.seconds_per_case = clock, seconds_per_case
        self.looked: list[tuple[int, str]] = []

    def _averaged(self) -> dict[str, torch.Tensor]:
        return {}

    def _dice(self, _: PatchSource, case: str) -> list[float]:
        self.clock[0] += self.seconds_per_case
        self.looked.append((self.state.step, case))
        return [0.5]

    def finish(self) -> None:
        while self.fraction < 1:
            self.clock[0] += 1.0
            self.state.step += 1
            self.state.seconds = self.clock[0]
            self._validate_when_due()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    from students import train as training

    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds", [20.0, 60.0, 150.0])
def test_dear_looks_do_not_eat_the_time_of_the_training(seconds: float, clock: list[float]) -> None:
    """One case is tried, which shows that none more can be; then only what the share pays for, one case once at least."""
    training = Counted(clock, seconds_per_case=seconds, cases=12)
    training.finish()
    paid = max(1, int(120 / seconds))
    assert len(training.looked) <= 2 + paid
    assert len([step for step, _ in training.looked if step <= 100]) <= (2 if seconds == 20.0 else 1)
    assert training.state.history


def test_where_only_two_are_held_out_a_dear_case_is_tried_once(clock: list[float]) -> None:
    training = Counted(clock, seconds_per_case=150.0, cases=2)
    training.finish()
    assert len(training.looked) == 2


def test_no_case_is_answered_twice_by_the_same_weights(clock: list[float]) -> None:
    training = Counted(clock, seconds_per_case=0.5, cases=12)
    training.finish()
    assert len(training.state.history) == 12
    assert len(training.looked) == len(set(training.looked)) == 144


def test_a_look_that_is_no_longer_due_once_looks_are_settled_is_left_out(clock: list[float]) -> None:
    training = Counted(clock, seconds_per_case=60.0, cases=12)
    training.finish()
    assert training.state.looks == (1, 2)
    assert len(training.state.history) == 1
    assert training.state.history[0].seconds >= 1200


def test_training_stops_early_when_agreement_no_longer_rises(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = train_with([0.8], archive, tmp_path, monkeypatch)
    assert card.stopped == "early"
    assert card.steps == 22


def test_looks_of_the_first_half_do_not_use_up_patience(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course = [0.75] + [0.7] * 10 + [0.8]
    card = train_with(course, archive, tmp_path, monkeypatch, dimensions="3d", patience=3)
    assert card.agreement == 0.8


def test_a_slow_decline_in_2d_is_no_rise_and_ends_the_training(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from students import train as training

    monkeypatch.setattr(training, "looks_wanted", lambda *_: Looks(times=20, cases=2))
    course = [0.9 - 0.001 * n for n in range(20)]
    card = train_with(course, archive, tmp_path, monkeypatch, dimensions="2d", patience=3)
    assert card.stopped == "early"
    assert len(card.history) == 12
    assert card.agreement == pytest.approx(0.9 - 0.001 * 11)


def test_training_does_not_stop_in_the_first_half(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = [0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.75, 0.9, 0.91, 0.92, 0.85]
    card = train_with(rising, archive, tmp_path, monkeypatch)
    assert card.stopped == "early"
    assert card.agreement == 0.92
    assert len(card.history) == 14


def test_a_network_that_has_not_found_the_organ_is_never_given_up(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = train_with([0.08, 0.05], archive, tmp_path, monkeypatch)
    assert card.stopped == "steps"
    assert card.steps == 40


def test_late_weights_of_2d_nets_are_kept_while_agreement_is_near_the_highest(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from students import train as training

    monkeypatch.setattr(training, "looks_wanted", lambda *_: Looks(times=10, cases=2))
    course = [0.5] * 5 + [0.86] + [0.84] * 3 + [0.7]
    flat = train_with(course, archive, tmp_path / "2d", monkeypatch, dimensions="2d", steps=10, validations=10, patience=99)
    deep = train_with(course, archive, tmp_path / "3d", monkeypatch, dimensions="3d", steps=10, validations=10, patience=99)
    assert flat.agreement == 0.84
    assert deep.agreement == 0.86
