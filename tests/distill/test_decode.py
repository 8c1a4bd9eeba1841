"""The reordered decoder answers as segment-anything's modules do, and each prompt as if its neighbours were not there."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from distill.teachers import decode, decode_folded, folded_plan
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.decode import decode_prompts
from distill.teachers.decode_folded import Drawing, folds
from distill.teachers.regions import UNDRAWN, cells_of
from distill.teachers.upsample import through_input

EXACT = 2e-6
CONFIG = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=64, decoder_heads=2, decoder_mlp=32, mask_channels=8
)
"""Two heads of 16 channels, so that a box's seven tokens are folded."""
GRID, MASK = 8, 32
PROMPTS = 11
"""One full pass and a remainder."""


@dataclass
class Asked:
    """The same prompts, as keywords of ``decode_prompts``."""

    images: torch.Tensor
    index: torch.Tensor
    hints: dict[str, torch.Tensor]

    def rows(self, some: list[int]) -> "Asked":
        return Asked(self.images, self.index[some], {key: value[some] for key, value in self.hints.items()})


@pytest.fixture
def sam() -> Sam:
    torch.manual_seed(0)
    model = build_conv_sam(CONFIG)
    with torch.no_grad():
        for name, weight in model.mask_decoder.named_parameters():
            if "bias" in name:
                weight.normal_(std=0.3)  # they start at zero or near it, where a forgotten one would not show
    return model.eval().requires_grad_(requires_grad=False)


def ask(kind: str, points: int = 1) -> Asked:
    noise = torch.Generator().manual_seed(1)
    images = torch.randn(3, CONFIG.embed_dim, GRID, GRID, generator=noise)
    index = torch.randint(0, 3, (PROMPTS,), generator=noise)
    corner = 30 * torch.rand(PROMPTS, 2, generator=noise)
    hints: dict[str, torch.Tensor] = {}
    if "box" in kind:
        hints["boxes"] = torch.cat([corner, corner + 1 + 30 * torch.rand(PROMPTS, 2, generator=noise)], dim=1)
    if "point" in kind:
        hints["points"] = 64 * torch.rand(PROMPTS, points, 2, generator=noise)
        hints["point_labels"] = torch.randint(0, 2, (PROMPTS, points), generator=noise).float()
    if "mask" in kind:
        hints["mask_inputs"] = torch.randn(PROMPTS, 1, MASK, MASK, generator=noise)
        hints["has_mask"] = torch.rand(PROMPTS, generator=noise) < 0.5
    return Asked(images, index, hints)


def one_by_one(sam: Sam, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """segment-anything's own decoder, a prompt at a time."""
    answers = []
    for n, image in enumerate(asked.index):
        hint = {key: value[n : n + 1] for key, value in asked.hints.items()}
        pairs = (hint["points"], hint["point_labels"]) if "points" in hint else None
        masks = hint["mask_inputs"] if "mask_inputs" in hint and bool(hint["has_mask"]) else None
        sparse, dense = sam.prompt_encoder(points=pairs, boxes=hint.get("boxes"), masks=masks)
        answers.append(sam.mask_decoder.predict_masks(asked.images[image][None], sam.prompt_encoder.get_dense_pe(), sparse, dense))
    return torch.cat([logits for logits, _ in answers]), torch.cat([iou for _, iou in answers])


def answer(sam: Sam, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return decode_prompts(sam, asked.images, asked.index, **asked.hints)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["box", "point", "box and point", "box and mask", "mask", "nothing"])
def test_answers_are_those_of_segment_anything_prompt_by_prompt(sam: Sam, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "decode_tokens", None)  # so that the reordered decoder must have answered
    asked = ask(kind)
    for found, expected in zip(answer(sam, asked), one_by_one(sam, asked), strict=True):
        assert found.shape == expected.shape
        assert error(found, expected) < EXACT


def test_prompts_with_many_tokens_are_projected_as_segment_anything_does(sam: Sam) -> None:
    asked = ask("box and point", points=20)
    assert not folds(sam.mask_decoder, 22)
    for found, expected in zip(answer(sam, asked), one_by_one(sam, asked), strict=True):
        assert error(found, expected) < EXACT


@pytest.mark.parametrize("kind", ["box", "box and mask", "nothing"])
def test_training_sees_the_same_answers_and_has_gradients(sam: Sam, kind: str) -> None:
    asked = ask(kind)
    sam.requires_grad_()
    logits, iou = decode_prompts(sam, asked.images, asked.index, **asked.hints)
    assert logits.requires_grad
    assert iou.requires_grad
    assert error(logits.detach(), answer(sam, asked)[0]) < EXACT


@pytest.mark.parametrize("kind", ["box", "box and mask"])
def test_an_answer_does_not_change_by_one_bit_with_what_else_is_asked(sam: Sam, kind: str) -> None:
    asked = ask(kind)
    first = answer(sam, asked)
    others = ask(kind)
    others.images[1:] += 1
    for hint in others.hints.values():
        hint[1:] = hint[torch.arange(1, PROMPTS).flip(0)]
    others.index[1:] = 2
    others.index[0] = asked.index[0] = 0
    others.images[0] = asked.images[0]
    first, second = answer(sam, asked), answer(sam, others)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one[0], two[0])
        assert not torch.equal(one[1:], two[1:])


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_passes_of_any_size_agree(sam: Sam, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask("box and mask")
    usual, _ = answer(sam, asked)
    monkeypatch.setattr(decode, "CPU_CHUNK", chunk)
    assert error(answer(sam, asked)[0], usual) < EXACT


def test_a_request_without_rows_has_an_answer_without_rows(sam: Sam) -> None:
    logits, iou = answer(sam, ask("box").rows([]))
    assert logits.shape == (0, 4, MASK, MASK)
    assert iou.shape == (0, 4)


def test_bfloat16_stays_near_and_comes_back_as_float32(sam: Sam) -> None:
    asked = ask("box")
    exact, _ = answer(sam, asked)
    with torch.autocast("cpu", torch.bfloat16):
        logits, iou = answer(sam, asked)
    assert logits.dtype == iou.dtype == torch.float32
    assert 1e-4 < error(logits, exact) < 3e-2  # above the lower bound, or it was not bfloat16


def test_weights_written_after_the_first_answer_are_used(sam: Sam) -> None:
    asked = ask("box")
    before, _ = answer(sam, asked)
    sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image.v_proj.weight.data.mul_(2)
    with torch.no_grad():
        sam.mask_decoder.transformer.layers[1].cross_attn_image_to_token.k_proj.bias.mul_(2)
    after, _ = answer(sam, asked)
    assert not torch.allclose(before, after, atol=1e-3)
    assert error(after, one_by_one(sam, asked)[0]) < EXACT


@pytest.mark.parametrize("points", [1, 20], ids=["reordered", "own modules"])
def test_prompts_and_positions_are_encoded_in_float32_inside_autocast(sam: Sam, points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask("box and point", points=points)
    made = []
    for name in ("_embed_points", "_embed_boxes"):
        own = getattr(sam.prompt_encoder, name)
        monkeypatch.setattr(sam.prompt_encoder, name, lambda *args, own=own, **kw: made.append(own(*args, **kw)) or made[-1])
    places = sam.prompt_encoder.get_dense_pe
    monkeypatch.setattr(sam.prompt_encoder, "get_dense_pe", lambda: made.append(places()) or made[-1])
    answer(sam, asked)
    exact = list(made)
    made.clear()
    folded_plan._PLANS.clear()
    with torch.autocast("cpu", torch.bfloat16):
        answer(sam, asked)
    assert len(made) == len(exact) >= 3
    assert all(torch.equal(found, expected) and found.dtype == torch.float32 for found, expected in zip(made, exact, strict=True))


def test_points_are_encoded_in_float32_where_only_what_promises_something_is_drawn(sam: Sam) -> None:
    asked = ask("point")
    with torch.inference_mode():
        _, _, exact = decode.decode_promising(sam, asked.images, asked.index, *asked.hints.values(), 9.0)
        folded_plan._PLANS.clear()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = sam.prompt_encoder(points=tuple(asked.hints.values()), boxes=None, masks=None)[0]
            _, _, found = decode.decode_promising(sam, asked.images, asked.index, *asked.hints.values(), 9.0)
            rough = decode_folded.decode_confident(sam, asked.images, asked.index, rounded, chunk=8, least_iou=9.0)[2]
    assert error(found, exact) < error(rough, exact)


@pytest.mark.parametrize("kind", ["box", "point", "box mask"])
def test_each_core_decodes_passes_of_its_own_and_the_answers_stay_in_order(sam: Sam, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask(kind)
    alone = decode_prompts(sam, asked.images, asked.index, **asked.hints)
    monkeypatch.setattr(decode, "CPU_CHUNK", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = decode_prompts(sam, asked.images, asked.index, **asked.hints)
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(shared, alone, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(shared[1].flip(0), alone[1], atol=1e-3)  # or their order could not be told


def test_only_what_is_looked_at_is_drawn_and_it_is_what_would_have_been_drawn(sam: Sam) -> None:
    asked = ask("box and mask")
    whole, iou = answer(sam, asked)
    rows, columns = asked.images.shape[2:]
    cells = [(n % 2, rows - n % 3, 1, max(2, columns - n)) for n in range(PROMPTS)]
    with torch.inference_mode():
        found, same_iou = decode_prompts(sam, asked.images, asked.index, **asked.hints, drawing=Drawing(tokens=1, cells=cells))
    assert found.shape == (PROMPTS, 1, *whole.shape[2:])
    assert torch.allclose(same_iou, iou, atol=1e-5)
    for n, (top, bottom, left, right) in enumerate(cells):
        inside = slice(4 * top, 4 * bottom), slice(4 * left, 4 * right)
        assert torch.allclose(found[n, 0][inside], whole[n, 0][inside], atol=1e-4)
        elsewhere = found[n, 0].clone()
        elsewhere[inside] = UNDRAWN
        assert (elsewhere == UNDRAWN).all()


def test_prompts_that_share_a_mask_give_it_once(sam: Sam) -> None:
    asked = ask("box and mask")
    which = torch.arange(PROMPTS) % 2
    repeated = asked.hints | {"mask_inputs": asked.hints["mask_inputs"][which]}
    shared = asked.hints | {"mask_inputs": asked.hints["mask_inputs"][:2], "mask_index": which}
    with torch.inference_mode():
        expected = decode_prompts(sam, asked.images, asked.index, **repeated)
        found = decode_prompts(sam, asked.images, asked.index, **shared)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("size_px", "inner_px"), [((35, 51), (44, 64)), ((90, 64), (64, 46)), ((13, 40), (21, 64))])
def test_cells_of_a_region_hold_all_that_its_pixels_are_made_of(size_px: tuple[int, int], inner_px: tuple[int, int]) -> None:
    noise = np.random.default_rng(0)
    logits = torch.from_numpy(noise.normal(size=(1, 1, 32, 32)).astype(np.float32))
    whole = through_input(logits, 64, inner_px, size_px)
    for _ in range(20):
        low = noise.integers(0, np.array(size_px) - 4)
        high = low + noise.integers(1, 5, 2)
        box = np.array([[low[1], low[0], high[1], high[0]]]) * np.tile([inner_px[1] / size_px[1], inner_px[0] / size_px[0]], 2)
        top, bottom, left, right = cells_of(box, (8, 8), 64)[0]
        cut = torch.full_like(logits, 1e6)
        cut[..., 4 * top : 4 * bottom, 4 * left : 4 * right] = logits[..., 4 * top : 4 * bottom, 4 * left : 4 * right]
        region = slice(low[0], high[0]), slice(low[1], high[1])
        assert torch.equal(through_input(cut, 64, inner_px, size_px)[..., *region], whole[..., *region])


@pytest.mark.parametrize("told", [False, True], ids=["a picture for many prompts", "each its own"])
def test_a_gpu_that_computes_all_prompts_at_once_answers_the_same(sam: Sam, told: bool) -> None:
    asked = ask("box")
    expected, scores = answer(sam, asked)
    with torch.inference_mode():
        plan = folded_plan.plan_for(sam, torch.float32, torch.device("cpu"))
        pictures = folded_plan.rows_of(asked.images + sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1))
        about = pictures[asked.index] if told else plan.see(pictures, asked.index)
        tokens, image = plan.think(about, sam.prompt_encoder(points=None, boxes=asked.hints["boxes"], masks=None)[0], 4)
        assert error(plan.draw(tokens, image, (GRID, GRID)), expected) < EXACT
        assert error(plan.judge(tokens), scores) < EXACT
