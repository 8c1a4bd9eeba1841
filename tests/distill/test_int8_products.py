"""8-bit products: how exact they are, what they depend on, and who may use them."""

import logging
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch.nn import functional

from distill import load_teacher
from distill.embedding_cache import CachedTeacher, EmbeddingCache, EmbeddingCachePlan
from distill.errors import TeacherError
from distill.teachers import int8_products, vit_cpu
from distill.teachers.base import PromptBatch
from distill.teachers.int8_products import AFTER_GELU, MIDDLE, ROWS, PackedInt8Linear
from distill.teachers.profiles import profile_for
from distill.teachers.sam import Precision, SamTeacher, resolve_precision
from distill.teachers.vit import ImageEncoder, VitSizes, set_int8, vit_sizes

small_sam = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_sam.py"))))  # tests are no package

ROUNDED = 0.015
"""Relative L2 error of one product of normal numbers: each side is rounded to about 127 of 3 to 4 standard deviations."""
IN, OUT = 96, 40


def numbers(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def layer(**options: int) -> PackedInt8Linear:
    return PackedInt8Linear(numbers(OUT, IN, 1), numbers(1, OUT, 2)[0], 50, **options)


@pytest.fixture(params=[True, False], ids=["as the machine does it", "without such instructions"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(int8_products, "multiplies_bytes", lambda: False)
    return bool(request.param)


@pytest.fixture
def untried() -> Iterator[None]:
    int8_products.multiplies_bytes.cache_clear()
    yield
    int8_products.multiplies_bytes.cache_clear()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("gelu", [False, True], ids=["plain", "gelu"])
@pytest.mark.parametrize("rows", [1, 50, 2 * ROWS + 3])
def test_a_product_is_that_of_the_numbers_but_for_rounding(rows: int, gelu: bool) -> None:
    x = numbers(rows, IN)
    expected = functional.linear(x, numbers(OUT, IN, 1), numbers(1, OUT, 2)[0])
    found = layer()(x, gelu=gelu)
    assert found.shape == (rows, OUT)
    assert 1e-4 < error(found, functional.gelu(expected) if gelu else expected) < ROUNDED  # above the lower bound, or nothing was rounded


def test_the_answer_is_the_same_without_such_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    x = 9 * numbers(50, IN)
    here = layer()(x)
    monkeypatch.setattr(int8_products, "multiplies_bytes", lambda: False)
    assert error(layer()(x), here) < 1e-6


@pytest.mark.usefixtures("either")
def test_the_answer_has_the_type_of_the_weight() -> None:
    x = numbers(2 * ROWS, IN)
    single = PackedInt8Linear(numbers(OUT, IN, 1).bfloat16().float(), None, 9)(x)
    half = PackedInt8Linear(numbers(OUT, IN, 1).bfloat16(), None, 9)(x)
    assert (single.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(single.bfloat16(), half)


@pytest.mark.usefixtures("either")
def test_a_row_s_answer_depends_on_that_row_alone() -> None:
    x = numbers(ROWS + 7, IN)
    together = layer()(x)
    loud = x.clone()
    loud[3] *= 1e4
    assert torch.equal(torch.cat([layer()(row[None]) for row in x[:9]]), together[:9])
    assert torch.equal(layer()(loud)[4:], together[4:])


@pytest.mark.usefixtures("either")
def test_a_large_weight_costs_its_own_channel_and_no_other() -> None:
    x, weight = numbers(20, IN), numbers(OUT, IN, 1)
    before = PackedInt8Linear(weight, None, 20)(x)
    weight[5, 0] = 1e4
    after = PackedInt8Linear(weight, None, 20)(x)
    assert not torch.equal(after[:, 5], before[:, 5])
    assert torch.equal(after[:, :5], before[:, :5])
    assert torch.equal(after[:, 6:], before[:, 6:])


@pytest.mark.usefixtures("either")
def test_a_row_of_zeros_answers_the_bias_to_the_last_bit() -> None:
    x = numbers(5, IN)
    x[2] = 0
    assert torch.equal(layer()(x)[2], numbers(1, OUT, 2)[0])


@pytest.mark.usefixtures("either")
def test_a_channel_without_weights_answers_zero() -> None:
    weight = numbers(OUT, IN, 1)
    weight[7] = 0
    assert torch.equal(PackedInt8Linear(weight, None, 5)(numbers(5, IN))[:, 7], torch.zeros(5))


@pytest.mark.usefixtures("either")
def test_what_is_no_number_stays_none() -> None:
    x = numbers(5, IN)
    x[2, 3] = torch.nan
    assert layer()(x).isnan().all(dim=1).tolist() == [False, False, True, False, False]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("sign", [1, -1], ids=["largest", "smallest"])
def test_the_ends_of_the_scale_do_not_wrap_round(sign: int) -> None:
    x = torch.full((3, IN), float(sign))
    x[:, 0] *= torch.tensor([1e-3, 1.0, 1e3])
    for zero in (MIDDLE, AFTER_GELU):
        found = PackedInt8Linear(torch.ones(2, IN), None, 3, zero=zero)(x)
        assert error(found[1:2], x.sum(1)[1:2, None].expand(1, 2)) < 1e-5
        assert torch.equal(found.sign(), torch.full((3, 2), float(sign)))


def test_after_gelu_a_lower_zero_rounds_more_finely() -> None:
    x, weight = functional.gelu(2 * numbers(200, IN)), numbers(OUT, IN, 1)
    coarse, fine = (error(PackedInt8Linear(weight, None, 200, zero=zero)(x), x @ weight.T) for zero in (MIDDLE, AFTER_GELU))
    assert fine < 0.9 * coarse


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("what", ["instructions", "operator", "sums"])
def test_where_bytes_cannot_be_multiplied_fast_and_exactly_it_is_said(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise AttributeError

    exact = int8_products._product
    monkeypatch.setattr(int8_products, "_has_vnni", lambda: what != "instructions")
    if what != "instructions":
        monkeypatch.setattr(int8_products, "_product", missing if what == "operator" else lambda *args: exact(*args).clamp(-32768, 32767))
    with caplog.at_level(logging.WARNING, "samdistill.int8"):
        assert not int8_products.multiplies_bytes()
        assert not int8_products.multiplies_bytes()
    (record,) = caplog.records
    assert "Precision int8 gives the same answers here, but slower than fp32" in record.getMessage()


SIZES = VitSizes(
    width=48,
    depth=3,
    heads=3,
    image_size=352,
    patch=16,
    window=14,
    global_blocks=(1,),
    out_channels=24,
    mlp_ratio=4.0,
    decoder_mlp=64,
)
"""484 tokens: two blocks of rows, the second one short."""


def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    built = ImageEncoder(SIZES).eval().requires_grad_(requires_grad=False)
    for name, weight in built.named_parameters():
        if "rel_pos" in name or "pos_embed" in name or "bias" in name:
            weight.normal_(std=0.3)
    return built


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 352, 352, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_encoder_in_integers_gives_nearly_the_same_embedding(dtype: torch.dtype) -> None:
    network, x = encoder(), pictures(1)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        without = network(x)
        network.int8 = True
        found = network(x)
    assert found.dtype == torch.float32
    assert max(0.003, 1.2 * error(without, exact)) < error(found, exact) < 0.03


def test_qkv_proj_and_the_mlp_of_every_block_are_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    class Counted(PackedInt8Linear):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, *, zero: int = MIDDLE) -> None:
            shapes.append((*weight.shape, zero))
            super().__init__(weight, bias, rows, zero=zero)

    monkeypatch.setattr(vit_cpu, "PackedInt8Linear", Counted)
    network = encoder()
    network.int8 = True
    network(pictures(1))
    assert shapes == SIZES.depth * [(144, 48, MIDDLE), (48, 48, MIDDLE), (192, 48, MIDDLE), (48, 192, AFTER_GELU)]


def test_an_embedding_in_integers_depends_neither_on_its_batch_nor_on_the_number_of_threads() -> None:
    network, x = encoder(), pictures(3)
    network.int8 = True
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([network(each[None]) for each in x])
        torch.set_num_threads(3)
        together = network(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


def test_an_encoder_can_be_switched_between_pictures() -> None:
    network, x = encoder(), pictures(1)
    exact = network(x)
    set_int8(network, torch.device("cpu"), on=True)
    assert not torch.equal(network(x), exact)
    set_int8(network, torch.device("cpu"), on=False)
    assert torch.equal(network(x), exact)


def test_integers_were_named_or_are_not_used() -> None:
    assert resolve_precision("int8", torch.device("cpu"), profile_for("sam", 64)) == "int8"
    assert resolve_precision("auto", torch.device("cpu"), profile_for("sam", 64)) == "fp32"


def test_a_network_on_a_gpu_is_refused_in_one_line() -> None:
    with pytest.raises(
        TeacherError, match=r"^precision int8 computes on the CPU only, but the device is cuda:0\. Use device cpu, or precision bf16\.$"
    ):
        set_int8(encoder(), torch.device("cuda:0"), on=True)


def test_the_bundled_teacher_refuses_integers_in_one_line() -> None:
    with pytest.raises(
        TeacherError, match=r"^precision int8 is for SAM's ViT encoders, but this teacher's is ConvEncoder\. Use bf16 or fp32\.$"
    ):
        load_teacher("bundled", device="cpu", precision="int8")


@pytest.mark.parametrize("name", ["mobilesam", "litemedsam"])
def test_a_tiny_vit_refuses_integers_in_one_line(name: str, real_data: Path) -> None:
    with pytest.raises(
        TeacherError, match=r"^precision int8 is for SAM's ViT encoders, but this teacher's is TinyVit\. Use bf16 or fp32\.$"
    ):
        load_teacher(real_data / "upstream_outputs" / f"{name}.pth", device="cpu", precision="int8")


FILES = [
    pytest.param("sam_vit", "sam", None, id="SAM"),
    pytest.param("medsam", "medsam", None, id="MedSAM"),
    pytest.param("sammed2d", None, None, id="SAM-Med2D with adapters"),
    pytest.param("samed_lora", None, "samed_base", id="SAMed's delta on its base"),
]


@pytest.mark.parametrize(("name", "profile", "base"), FILES)
def test_a_vit_of_any_family_answers_in_integers(name: str, profile: str | None, base: str | None, real_data: Path) -> None:
    folder = real_data / "upstream_outputs"
    below = None if base is None else folder / f"{base}.pth"
    exact, half, fast = (
        load_teacher(folder / f"{name}.pth", profile=profile, base=below, device="cpu", precision=precision)
        for precision in ("fp32", "bf16", "int8")
    )
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    reference, rounded, found = (teacher.encode([image]).features for teacher in (exact, half, fast))
    assert fast.precision == "int8"
    assert error(found, reference) < 0.03
    assert not torch.equal(found, rounded)


def test_what_follows_the_encoder_is_as_in_bfloat16() -> None:
    network, image = network_of_ours(), np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    half = SamTeacher(network, profile_for("sam", 96), "x", precision="bf16")
    embeddings = half.encode([image])
    fast = SamTeacher(network, profile_for("sam", 96), "x", precision="int8")
    prompts = PromptBatch(image_index=np.zeros(1, int), boxes_xyxy_px=np.array([[4.0, 4, 60, 50]]))
    answers = [teacher.decode(embeddings, prompts).low_res_logits for teacher in (half, fast)]
    assert torch.equal(*answers)


def network_of_ours() -> Sam:
    network: Sam = small_sam.build(image_size=96)
    own = ImageEncoder(vit_sizes(network.state_dict()))
    own.load_state_dict(network.image_encoder.state_dict())
    network.image_encoder = own
    return network


def test_another_teacher_around_the_same_network_is_exact_again() -> None:
    network, image = network_of_ours(), np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    before = SamTeacher(network, profile_for("sam", 96), "x", precision="fp32").encode([image]).features
    fast = SamTeacher(network, profile_for("sam", 96), "x", precision="int8").encode([image]).features
    after = SamTeacher(network, profile_for("sam", 96), "x", precision="fp32").encode([image]).features
    assert not torch.equal(fast, before)
    assert torch.equal(after, before)


def test_embeddings_in_integers_are_kept_apart_from_others(tmp_path: Path) -> None:
    network = network_of_ours()
    cache = EmbeddingCache(EmbeddingCachePlan(folder=str(tmp_path), budget_bytes=10**7))
    image = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    precisions: tuple[Precision, ...] = ("bf16", "int8")
    for precision in precisions:
        teacher = CachedTeacher(SamTeacher(network, profile_for("sam", 96), "x", precision=precision), cache)
        teacher.encode([image])
        assert (teacher.hits, teacher.misses) == (0, 1)
