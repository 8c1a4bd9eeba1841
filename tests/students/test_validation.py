"""Looking at held-out cases costs a tenth of the budget at most, and patience waits until there is something to lose."""

import itertools
from pathlib import Path

import pytest

from storage import Archive, ClassInfo
from students import compact
from students.spec import NetworkPlan, StudentCard, StudentSpec
from students.train import Training
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
    monkeypatch.setattr(Training, "_agreement", lambda _: next(coming))
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


def test_where_one_look_is_too_much_there_still_is_one_at_two_cases() -> None:
    assert looks_in_time(Looks(times=12, cases=12), 60.0, 100.0) == Looks(times=1, cases=2)


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


def test_training_stops_early_when_agreement_no_longer_rises(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = train_with([0.8], archive, tmp_path, monkeypatch)
    assert card.stopped == "early"
    assert card.steps == 20


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
