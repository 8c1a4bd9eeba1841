"""What members say is the same wherever it is put together."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import members
from distill.answers import united
from distill.members import Members, reduced, weights_of
from distill.teachers.transfer import Transfer
from distill.uncertainty import Weights, summarise

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_streams.py"))))  # tests are no package


def noise(count: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return 6 * torch.randn(count, 13, 17, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(noise(10), id="members that disagree"),
        pytest.param(noise(1).expand(10, -1, -1), id="members that agree"),
        pytest.param(noise(1), id="one member"),
        pytest.param(noise(4) - 200, id="nothing anywhere"),
        pytest.param(noise(4) + 200, id="everything everywhere"),
        pytest.param(torch.cat([noise(3) - 200, noise(2)]), id="some see nothing"),
    ],
)
def test_what_a_gpu_puts_together_is_what_a_cpu_does(logits: torch.Tensor) -> None:
    expected = summarise(logits.numpy())
    probability, maps, figures = reduced(logits)
    assert probability.dtype == torch.float32
    assert np.abs(probability.numpy() - expected.probability).max() < 1e-6
    assert maps.dtype == torch.uint8
    for found, wanted in zip(maps.numpy(), (expected.vote, expected.mutual_information), strict=True):
        assert np.abs(found.astype(int) - wanted).max() <= 1  # halves may round either way
    pairwise_dice, stability, area_px = figures.tolist()
    assert pairwise_dice == pytest.approx(expected.pairwise_dice, abs=1e-6)
    assert stability == pytest.approx(expected.stability, abs=1e-9)
    assert area_px == expected.area_px


@pytest.mark.parametrize("kind", ["predicted_iou", "agreement"])
def test_a_member_that_deserves_less_counts_less_and_where_it_is_computed_does_not_matter(kind: Weights) -> None:
    right = torch.full((13, 17), -5.0)
    right[3:9, 3:9] = 5.0
    stray = torch.full((13, 17), -5.0)
    stray[9:12, 10:16] = 5.0
    logits, iou = torch.stack([right, right, right, stray]), torch.tensor([0.9, 0.9, 0.9, 0.1])
    weights = weights_of(logits, iou, kind)
    assert weights is not None
    assert weights.sum() == pytest.approx(1)
    assert weights[3] < 0.05 < weights[0]
    plain, weighted = summarise(logits.numpy()), summarise(logits.numpy(), weights.numpy())
    assert weighted.probability[10, 12] < 0.05
    assert plain.probability[10, 12] > 0.2
    assert weighted.probability[5, 5] > plain.probability[5, 5]
    assert (weighted.pairwise_dice, weighted.stability) == (plain.pairwise_dice, plain.stability)
    assert np.array_equal(weighted.vote, plain.vote)
    probability, maps, _ = reduced(logits, None, weights)
    assert np.abs(probability.numpy() - weighted.probability).max() < 1e-6
    assert np.abs(maps[1].numpy().astype(int) - weighted.mutual_information).max() <= 1


@pytest.mark.parametrize("kind", ["predicted_iou", "agreement"])
def test_where_nothing_speaks_for_any_member_all_count_alike(kind: Weights) -> None:
    apart = torch.full((2, 4, 6), -5.0)
    apart[0, :2], apart[1, 2:] = 5.0, 5.0
    assert torch.equal(weights_of(apart, torch.zeros(2), kind), torch.full((2,), 0.5))
    assert weights_of(apart[:1], torch.tensor([0.7]), kind) == 1
    assert weights_of(apart, torch.zeros(2), "equal") is None


def collected(*, far: bool, monkeypatch: pytest.MonkeyPatch) -> Members:
    monkeypatch.setattr(members, "is_far", lambda _: far)
    found = Members()
    for n in range(3):
        inside = slice(0, 13), slice(3 + n, 17)
        candidates = noise(3, seed=9)[:, *inside] if n < 2 else None
        found.add(noise(4, seed=n)[:, *inside], torch.full((4,), 0.1 * n), inside, (13, 17), candidates)
    found.depart()
    return found


def test_many_questions_come_back_in_one_go_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = late.Streams(monkeypatch)
    way = Transfer(torch.device("cpu"), overlaps=True)
    monkeypatch.setattr(members, "transfer_to", lambda _: way)
    near, far = (collected(far=each, monkeypatch=monkeypatch) for each in (False, True))
    assert sum(name == "down" for name, _ in streams.copied) == 12
    for one, other in zip(near.wait(), far.wait(), strict=True):
        expected, found = one.summary, other.summary
        assert one.region == other.region
        assert np.abs(found.probability - expected.probability).max() < 1e-6
        assert (found.area_px, found.stability) == (expected.area_px, pytest.approx(expected.stability))
        assert found.pairwise_dice == pytest.approx(expected.pairwise_dice)
        assert found.multimask_dice == (None if expected.multimask_dice is None else pytest.approx(expected.multimask_dice))
        assert np.abs(found.vote.astype(int) - expected.vote).max() <= 1
        assert one.iou == other.iou


def test_nothing_is_believed_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for far in (False, True):
        for n, answer in enumerate(collected(far=far, monkeypatch=monkeypatch).wait()):
            summary, _ = united([answer])
            assert summary.probability[:, : 3 + n].max() < 1e-8
            assert summary.probability[:, 3 + n :].max() > 0.5
            assert summary.vote[:, : 3 + n].max() == summary.mutual_information[:, : 3 + n].max() == 0
            assert summary.vote[:, 3 + n :].max() == 255


def test_the_disagreement_of_candidates_is_kept_where_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for far in (False, True):
        asked, again, never = [answer.summary.multimask_dice for answer in collected(far=far, monkeypatch=monkeypatch).wait()]
        assert asked is not None
        assert again is not None
        assert 0 < asked < 1
        assert never is None


def test_no_question_has_no_answer() -> None:
    nothing = Members()
    nothing.depart()
    assert nothing.wait() == []
