"""The encoder gives segment-anything's embeddings, whatever its sizes, and whatever else is in the batch."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from distill.teachers import attention, cpu_products, vit
from distill.teachers.attention import attend_augmented, attend_bias, attend_plain, choose_variant
from distill.teachers.cpu_attention import part_windows
from distill.teachers.vit import BlockExtras, ImageEncoder, VitSizes, vit_sizes

EXACT = 1e-5
ROUNDED = 2e-2
"""Relative L2 error of bfloat16 against float32; segment-anything's own encoder has 0.7e-2 with these weights."""

GRIDS = [
    pytest.param(224, 14, id="one window fills the grid exactly"),
    pytest.param(256, 14, id="grid 16: two thirds of the windows are padding"),
    pytest.param(464, 14, id="grid 29: the last window holds one row"),
    pytest.param(96, 14, id="grid 6: smaller than a window"),
    pytest.param(320, 7, id="windows of 7"),
    pytest.param(528, 14, id="grid 33: more queries than one block"),
]


def sizes_of(px: int, window: int = 14, heads: int = 3, depth: int = 3) -> VitSizes:
    return VitSizes(
        width=16 * heads,
        depth=depth,
        heads=heads,
        image_size=px,
        patch=16,
        window=window,
        global_blocks=(1,),
        out_channels=24,
        mlp_ratio=4.0,
        decoder_mlp=64,
    )


def original(sizes: VitSizes, seed: int = 0) -> ImageEncoderViT:
    """segment-anything's encoder with random weights, relative positions among them (they start at zero)."""
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        img_size=sizes.image_size,
        patch_size=sizes.patch,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.mlp_ratio,
        out_chans=sizes.out_channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        window_size=sizes.window,
        global_attn_indexes=sizes.global_blocks,
    )
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name or "bias" in name:
                weight.normal_(std=0.3)
    return encoder.eval().requires_grad_(requires_grad=False)


def ours(theirs: ImageEncoderViT, sizes: VitSizes) -> ImageEncoder:
    encoder = ImageEncoder(sizes)
    encoder.load_state_dict(theirs.state_dict(), strict=True)
    return encoder.eval().requires_grad_(requires_grad=False)


def pictures(px: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(px))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("px", "window"), GRIDS)
def test_embeddings_are_those_of_segment_anything(px: int, window: int) -> None:
    sizes = sizes_of(px, window)
    theirs = original(sizes)
    x = pictures(px)
    assert error(ours(theirs, sizes)(x), theirs(x)) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    sizes = sizes_of(464)
    encoder = ours(original(sizes), sizes).to(dtype)
    x = pictures(464, 1)
    before = torch.get_num_threads()
    try:
        answers = []
        for count in (1, 3):
            torch.set_num_threads(count)
            answers.append(encoder(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*answers)


@pytest.mark.parametrize(("px", "window"), GRIDS[:4])
def test_the_path_for_training_and_gpus_gives_them_too(px: int, window: int) -> None:
    sizes = sizes_of(px, window)
    theirs = original(sizes)
    x = pictures(px)
    encoder = ours(theirs, sizes).requires_grad_()
    found = encoder(x)
    assert found.requires_grad
    assert error(found.detach(), theirs(x)) < EXACT


def test_gradients_are_those_of_segment_anything() -> None:
    sizes = sizes_of(256)
    theirs = original(sizes).requires_grad_()
    mine = ours(theirs, sizes).requires_grad_()
    x = pictures(256, 1)
    for encoder in (theirs, mine):
        encoder(x).square().sum().backward()
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in mine.named_parameters():
        assert weight.grad is not None
        assert expected[name] is not None
        assert error(weight.grad, expected[name]) < 1e-4, name


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_takes_and_gives_float32_and_stays_near(how: str) -> None:
    sizes = sizes_of(256)
    theirs = original(sizes)
    x = pictures(256)
    encoder = ours(theirs, sizes)
    if how == "weights":
        encoder.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = encoder(x)
    assert found.dtype == torch.float32
    assert 1e-4 < error(found, theirs(x)) < ROUNDED  # above the lower bound, or it was not bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_embedding_does_not_change_by_one_bit_with_its_batch(precision: str) -> None:
    encoder = ours(original(sizes_of(256)), sizes_of(256))
    x = pictures(256, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        together = encoder(x)
        turned = encoder(x.flip(0)).flip(0)
        alone = torch.cat([encoder(each[None]) for each in x])
    assert torch.equal(together, alone)
    assert torch.equal(together, turned)


def test_weights_written_after_the_first_picture_are_used() -> None:
    sizes = sizes_of(96)
    encoder = ours(original(sizes), sizes)
    x = pictures(96)
    encoder(x)
    other = original(sizes, seed=1)
    encoder.load_state_dict(other.state_dict())
    assert error(encoder(x), other(x)) < EXACT
    with torch.no_grad():
        encoder.blocks[0].attn.rel_pos_h.mul_(0.5)
        other.blocks[0].attn.rel_pos_h.mul_(0.5)
    assert error(encoder(x), other(x)) < EXACT


def test_an_encoder_that_has_run_can_be_copied() -> None:
    encoder = ours(original(sizes_of(96)), sizes_of(96))
    x = pictures(96)
    before = encoder(x)
    assert torch.equal(copy.deepcopy(encoder)(x), before)


class Doubling(nn.Module):
    """An extra with a weight, so that its place in the state dict shows."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([factor]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.ndim == 4
        assert x.shape[1] == x.shape[2]
        return x * self.weight + x.mean(dim=(1, 2), keepdim=True)


def test_extras_stand_where_the_contract_says() -> None:
    sizes = sizes_of(256, depth=2)
    theirs = original(sizes)
    extras = BlockExtras(after_attention={"Space": lambda: Doubling(2.0)}, beside_mlp={"Adapter": lambda: Doubling(-0.5)})
    encoder = ImageEncoder(sizes, extras).eval()
    missing = encoder.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert sorted(missing) == [f"blocks.{n}.{name}.weight" for n in range(2) for name in ("Adapter", "Space")]
    encoder.requires_grad_(requires_grad=False)
    x = pictures(256)
    tokens = theirs.patch_embed(x) + theirs.pos_embed
    for block, mine in zip(theirs.blocks, encoder.blocks, strict=True):
        y = mine.attn(block.norm1(tokens))
        tokens = tokens + Doubling(2.0)(y)
        y = block.norm2(tokens)
        tokens = tokens + block.mlp(y) + Doubling(-0.5)(y)
    expected = theirs.neck(tokens.permute(0, 3, 1, 2)).detach()
    assert error(encoder(x), expected) < EXACT
    assert error(encoder.requires_grad_()(x).detach(), expected) < EXACT


def test_sizes_are_read_off_the_tensors() -> None:
    sizes = sizes_of(464)
    tensors = {f"image_encoder.{key}": value for key, value in original(sizes).state_dict().items()}
    tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"] = torch.zeros(sizes.decoder_mlp, 24)
    assert vit_sizes(tensors) == sizes


def test_a_picture_of_another_size_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"takes \(B, 3, 96, 96\), but got \(1, 3, 64, 96\). Resize and pad"):
        ImageEncoder(sizes_of(96))(torch.zeros(1, 3, 64, 96))


def test_windows_cover_every_token_once_and_come_back_in_order() -> None:
    windows = part_windows(16, 14)
    assert [(each.start, each.rows, each.columns) for each in windows.each] == [(0, 14, 14), (196, 14, 2), (224, 2, 14), (252, 2, 2)]
    assert torch.equal(windows.order[windows.back], torch.arange(256))


@pytest.mark.parametrize("attend", [attend_bias, attend_augmented], ids=["mask", "augmented"])
def test_each_fused_variant_equals_the_plain_formula(attend: attention.Attend) -> None:
    noise = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 35, 8, generator=noise) for _ in range(3))
    table_h, table_w = torch.randn(9, 8, generator=noise), torch.randn(13, 8, generator=noise)
    assert error(attend(q, k, v, table_h, table_w), attend_plain(q, k, v, table_h, table_w)) < 1e-6


def clock_of(*spans: float) -> Callable[[], float]:
    """A clock by which each variant's calls take the given seconds."""
    times = [t for span in spans for _ in range(attention.REPEATS + 1) for t in (0.0, span)]
    return iter(times).__next__


@pytest.mark.parametrize(("spans", "expected"), [((1.0, 2.0), "bias"), ((2.0, 1.0), "augmented")])
def test_the_faster_variant_is_chosen(spans: tuple[float, float], expected: str) -> None:
    assert choose_variant((2, 3, 5, 7, 8), torch.float32, torch.device("cpu"), clock=clock_of(*spans)) == expected


def test_a_variant_that_answers_differently_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*tensors: torch.Tensor) -> torch.Tensor:
        return attend_bias(*tensors) * 1.001

    monkeypatch.setitem(attention.VARIANTS, "bias", wrong)
    chosen = choose_variant((2, 3, 5, 7, 8), torch.float32, torch.device("cpu"), clock=clock_of(2.0))
    assert chosen == "augmented"
    monkeypatch.setitem(attention.VARIANTS, "augmented", wrong)
    assert choose_variant((2, 3, 5, 7, 8), torch.float32, torch.device("cpu")) == "plain"


def test_preparing_an_encoder_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of(256)
    theirs = original(sizes)
    x = pictures(256)
    asked = []
    monkeypatch.setattr(vit, "choose_variant", lambda shape, *_: asked.append(shape) or "augmented")
    encoder = ours(theirs, sizes).prepare(2)
    assert asked == [(8, 3, 14, 14, 16), (2, 3, 16, 16, 16)]  # windows and grid, each measured once
    used = []
    monkeypatch.setitem(vit.VARIANTS, "augmented", lambda *tensors: used.append(1) or attend_augmented(*tensors))
    assert error(encoder.requires_grad_()(x).detach(), theirs(x)) < EXACT
    assert len(used) == sizes.depth


def test_without_packed_products_the_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of(96)
    theirs = original(sizes)
    x = pictures(96)
    monkeypatch.setattr(cpu_products, "packs", lambda _: False)
    monkeypatch.setattr(cpu_products, "onednn_is_exact", lambda: False)
    assert error(ours(theirs, sizes)(x), theirs(x)) < EXACT


def test_a_product_that_is_not_float32_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ torch.randn(64, 160, generator=torch.Generator().manual_seed(64)).T).bfloat16().float()

    cpu_products.packs.cache_clear()
    monkeypatch.setattr(cpu_products, "_packed", rounded)
    assert not cpu_products.packs(torch.float32)
    cpu_products.packs.cache_clear()


def test_the_precision_switch_is_put_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with cpu_products.fast_float32():
        pass
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_blocks_that_overlap_in_two_threads_leave_products_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "onednn_is_exact", lambda: True)
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    first, second = cpu_products.fast_float32(), cpu_products.fast_float32()
    try:
        first.__enter__()
        second.__enter__()
        inside = setting.fp32_precision
        first.__exit__(None, None, None)
        assert setting.fp32_precision == inside != before
        second.__exit__(None, None, None)
        assert setting.fp32_precision == before
    finally:
        setting.fp32_precision = before


@pytest.mark.parametrize(
    ("short", "expected"),
    [
        pytest.param({"bias"}, "augmented", id="for the bias"),
        pytest.param({"augmented"}, "bias", id="for what is augmented"),
        pytest.param({"bias", "augmented"}, "augmented", id="for both"),
    ],
)
def test_a_variant_for_which_memory_is_too_short_is_not_chosen(short: set[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    for name in short:
        monkeypatch.setitem(attention.VARIANTS, name, refuse)
    assert choose_variant((2, 3, 5, 7, 8), torch.float32, torch.device("cpu")) == expected


def test_what_was_measured_holds_for_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ImageEncoder(sizes_of(96))
    monkeypatch.setattr(vit, "choose_variant", lambda *_: "augmented")
    encoder.prepare(8)
    asked: list[str] = []
    for name, own in dict(attention.VARIANTS).items():
        monkeypatch.setitem(attention.VARIANTS, name, lambda *args, name=name, own=own: asked.append(name) or own(*args))
    encoder._plain(torch.zeros(3, 3, encoder.img_size, encoder.img_size))
    assert set(asked) == {"augmented"}


def test_a_pickled_encoder_leaves_out_what_module_leaves_out() -> None:
    encoder = ImageEncoder(sizes_of(96))
    encoder._compiled_call_impl = lambda: None
    assert encoder.__getstate__().get("_compiled_call_impl") is None
