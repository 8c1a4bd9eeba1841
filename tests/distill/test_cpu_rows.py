"""The decoder's compiled steps say what PyTorch's say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.teachers import cpu_rows
from distill.teachers.cpu_rows import BLOCK, PLAIN, rows_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def compiled() -> cpu_rows.Rows:
    rows = rows_for(torch.float32, CPU)
    assert rows is not PLAIN, "the loops did not compile, or are not exact, on this machine"
    return rows


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(
    prompts=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 9),
    image=st.integers(1, 2 * BLOCK + 3),
    scale=st.sampled_from([0.1, 5.0, 200.0]),
)
def test_softmax_over_tokens_is_softmax(prompts: int, heads: int, tokens: int, image: int, scale: float) -> None:
    logits = scale * noise(prompts, heads, tokens, image)
    always = noise(prompts, heads, tokens, seed=1)
    exact = torch.softmax(logits.double() + always.double()[..., None], 2)
    found = rows_for(torch.float32, CPU).over_tokens(logits, always)
    assert found.data_ptr() == logits.data_ptr()
    rounding = 2e-5 + 2e-6 * scale  # a logit of some hundreds is kept to some 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 5, 24), (3, 7, 128), (2, 3, 100)])
def test_rows_are_normalised_and_placed(shape: tuple[int, int, int]) -> None:
    image, positions, norm = 3 * noise(*shape) + 2, noise(*shape[1:], seed=1), torch.nn.LayerNorm(shape[2])
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        wanted, wanted_placed = PLAIN.norm_and_place(image.clone(), norm, positions)
        found, placed = rows_for(torch.float32, CPU).norm_and_place(image, norm, positions)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(placed, wanted_placed, rtol=1e-5, atol=2e-6)


def test_what_is_not_a_number_stays_so_and_spoils_nothing_else() -> None:
    rows = rows_for(torch.float32, CPU)
    logits = noise(1, 1, 4, 10)
    clean = torch.softmax(logits.clone(), 2)
    logits[0, 0, 2, 3] = torch.nan
    found = rows.over_tokens(logits, torch.zeros(1, 1, 4))
    assert found[0, 0, 2, 3].isnan()
    kept = [n for n in range(10) if n != 3]
    torch.testing.assert_close(found[..., kept], clean[..., kept])
    image = noise(1, 3, 8)
    image[0, 1, 0] = torch.nan
    normed, _ = rows.norm_and_place(image, torch.nn.LayerNorm(8), noise(3, 8))
    assert normed[0, 1].isnan().all()
    assert normed[0, [0, 2]].isfinite().all()


def test_other_types_take_pytorchs_steps() -> None:
    assert rows_for(torch.bfloat16, CPU) is PLAIN
    assert rows_for(torch.float32, torch.device("meta")) is PLAIN


def test_where_nothing_compiles_pytorchs_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler() -> cpu_rows.Rows:
        raise RuntimeError

    monkeypatch.setattr(cpu_rows, "_compiled", no_compiler)
    assert cpu_rows._compiled_or_plain.__wrapped__() is PLAIN
