"""The compiled softmax gives PyTorch's answers, and steps aside where it cannot."""

import pytest
import torch

from distill.teachers import cpu_softmax
from distill.teachers.cpu_softmax import Softmax, plain_divide, plain_weigh, softmax_for

PLAIN = Softmax(weigh=plain_weigh, divide=plain_divide)
EXACT = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
SCALE = 0.25


def draw(*shape: int, dtype: torch.dtype, spread: float = 1.0) -> torch.Tensor:
    return (spread * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))).to(dtype)


def weights(softmax: Softmax, logits: torch.Tensor, terms: torch.Tensor, place: tuple[int, int]) -> torch.Tensor:
    logits = logits.clone()
    inverse = torch.empty(logits.shape[:2])
    softmax.weigh(logits, terms, place, SCALE, inverse)
    return logits.double() * inverse.double()[..., None]


def by_definition(logits: torch.Tensor, terms: torch.Tensor, place: tuple[int, int], span: int) -> torch.Tensor:
    """Every logit's positions looked up one by one."""
    (first, columns), queries = place, logits.shape[1]
    biased = logits.double() * SCALE
    for i in range(queries):
        y, x = first + i // columns, i % columns
        for key in range(span * span):
            biased[:, i, key] += terms[:, i, span - 1 - y + key // span].double() + terms[:, i, 3 * span - 2 - x + key % span].double()
    return biased.softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("span", "first", "rows", "columns"), [(14, 0, 14, 14), (14, 0, 2, 9), (7, 0, 7, 7), (6, 4, 2, 6), (1, 0, 1, 1)])
def test_the_weights_are_those_of_the_definition(dtype: torch.dtype, span: int, first: int, rows: int, columns: int) -> None:
    logits = draw(2, rows * columns, span * span, dtype=dtype, spread=20)
    terms = draw(2, rows * columns, 4 * span - 2, dtype=dtype)
    exact = by_definition(logits, terms, (first, columns), span)
    for softmax in (softmax_for(span, dtype), PLAIN):
        found = weights(softmax, logits, terms, (first, columns))
        assert float((found - exact).norm() / exact.norm()) < (EXACT[dtype] if softmax is not PLAIN else 3 * EXACT[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_each_rows_numbers_stay_its_own_however_large_or_broken_they_are(dtype: torch.dtype) -> None:
    span = 6
    logits = draw(1, 6, 36, dtype=dtype)
    logits[0, 0] = 3e4
    logits[0, 1, 5] = 1e30
    logits[0, 2, :] = -1e30
    logits[0, 3, 7] = float("nan")
    logits[0, 4, 7] = float("inf")
    terms = torch.zeros(1, 6, 22, dtype=dtype)
    found = weights(softmax_for(span, dtype), logits, terms, (0, 6))[0]
    assert torch.allclose(found[0], torch.full((36,), 1 / 36, dtype=torch.double), rtol=1e-2)
    assert found[1, 5] == pytest.approx(1.0)
    assert torch.allclose(found[2], torch.full((36,), 1 / 36, dtype=torch.double), rtol=1e-2)
    assert found[3].isnan().all()
    assert found[4].isnan().any()
    assert found[5].sum() == pytest.approx(1.0, rel=1e-2)
    assert found[5].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_divided_sums_lie_head_beside_head_and_nowhere_else(dtype: torch.dtype) -> None:
    sums, inverse = draw(2, 5, 8, dtype=dtype), torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    answers = [torch.full((9, 4, 8), 7.0, dtype=dtype) for _ in range(2)]
    for softmax, answer in zip((softmax_for(6, dtype), PLAIN), answers, strict=True):
        softmax.divide(sums, inverse, answer, (3, 1))
    expected = (sums.double() * inverse.double()[..., None]).transpose(0, 1)
    for answer in answers:
        assert torch.allclose(answer[3:8, 1:3].double(), expected, rtol=1e-2)
        answer[3:8, 1:3] = 7.0
        assert (answer == 7.0).all()


def test_pytorch_takes_over_where_nothing_can_be_compiled_or_the_result_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(span: int, dtype: torch.dtype) -> Softmax:
        message = "no compiler for this processor"
        raise RuntimeError(message)

    def wrong(logits: torch.Tensor, terms: torch.Tensor, place: tuple[int, int], scale: float, inverse: torch.Tensor) -> None:
        plain_weigh(logits, terms, place, 1.1 * scale, inverse)

    assert softmax_for(5, torch.float32).weigh is not plain_weigh
    for stand_in in (no_compiler, lambda span, dtype: Softmax(weigh=wrong, divide=plain_divide)):
        softmax_for.cache_clear()
        monkeypatch.setattr(cpu_softmax, "_compiled", stand_in)
        assert softmax_for(5, torch.float32).weigh is plain_weigh
    softmax_for.cache_clear()


def test_types_it_does_not_know_are_left_to_pytorch() -> None:
    assert softmax_for(4, torch.float16).weigh is plain_weigh


@pytest.mark.parametrize("span", [1, 2])
def test_the_smallest_squares_are_checked_within_their_rows(span: int) -> None:
    assert softmax_for(span, torch.float32).weigh is not plain_weigh
