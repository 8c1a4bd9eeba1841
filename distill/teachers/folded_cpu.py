"""How a CPU computes the decoder of ``distill.teachers.decode_folded``: the tokens of a pass together, its images prompt by prompt.

A prompt's image (half a megabyte for the bundled teacher, four for SAM's) is read and written some ten times. Prompt by prompt it stays in the processor's
cache from one step to the next. Its tokens are a thousandth of that and are computed together, in passes of one size, so that their last bits do not depend
on how many prompts there are; prompts that only fill a pass have no image and are not drawn.

Letters: ``S`` prompts of a pass, of which the first ``P`` are asked, ``R`` pictures, ``n`` image tokens, ``C`` channels, ``A`` heads, ``D`` channels per head,
``T`` tokens per prompt, ``M`` masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from distill.teachers.folded_attention import CrossAttention, Seen
from distill.teachers.folded_plan import Plan, in_order, normed, self_attend
from distill.teachers.regions import UNDRAWN, Cells

ROWS = 512
"""Image tokens that are upscaled in one product, whichever prompts they belong to: a fixed number, for the sake of the last bits."""


@dataclass(frozen=True, slots=True)
class _Telling:
    """What a layer's tokens tell their image."""

    keys: torch.Tensor
    """``(S, A T, C)``, or by head ``(S, A, T, D)`` for images that nobody has changed yet."""
    always: torch.Tensor
    """``(S, A, T)``."""
    told: torch.Tensor
    """``(S, A T, C)``."""
    norm: Any


def think(plan: Plan, about: Seen, sparse: torch.Tensor, masks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Let prompts and images attend to each other.

    Args:
        plan: the decoder's.
        about: pictures, and which of them each of the ``P`` prompts asked is about.
        sparse: ``(S, T, C)`` of a whole pass.
        masks: the first so many mask tokens are wanted.

    Returns:
        The tokens of predicted IoU and of these masks ``(S, 1 + masks, C)``, and the images of the prompts asked, ``(P, n, C)``.
    """
    first = plan.first_tokens(sparse)
    image = about.image.new_empty(len(about.of), *about.image.shape[1:])
    (layer, to_image, to_tokens), *others = zip(plan.decoder.transformer.layers, plan.to_image, plan.to_tokens, strict=True)
    tokens = self_attend(layer, first, first)
    tokens = _learn(layer, tokens, _look(to_image, about, to_image.cut(tokens + first)))
    telling = _telling(to_tokens, tokens, first, layer.norm4, image.dtype, by_head=True)
    for layer, to_image, to_tokens in others:
        tokens = self_attend(layer, tokens, first)
        seen = _visit(plan, about, image, telling, to_image.carried(to_image.cut(tokens + first)))
        tokens = _learn(layer, tokens, to_image.answer(seen))
        telling = _telling(to_tokens, tokens, first, layer.norm4, image.dtype, by_head=False)
    tokens, first = tokens[:, : 1 + masks], first[:, : 1 + masks]  # nobody asks the others any more
    seen = _visit(plan, about, image, telling, plan.last.carried(plan.last.cut(tokens + first)))
    return plan.decoder.transformer.norm_final_attn(tokens + plan.last.answer(seen)), image


def _learn(layer: Any, tokens: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Take the image's answer into the tokens ``(S, T, C)`` and think about it."""
    tokens = layer.norm2(tokens + answer)
    learnt: torch.Tensor = layer.norm3(tokens + layer.mlp(tokens))
    return learnt


def _telling(
    to_tokens: CrossAttention, tokens: torch.Tensor, first: torch.Tensor, norm: Any, dtype: torch.dtype, *, by_head: bool
) -> _Telling:
    cut = to_tokens.cut(tokens + first)
    keys = cut if by_head else to_tokens.carried(cut)
    return _Telling(keys.to(dtype), to_tokens.always(cut).to(dtype), to_tokens.told(tokens).to(dtype), norm)


def _look(to_image: CrossAttention, about: Seen, asked: torch.Tensor) -> torch.Tensor:
    """Answer tokens by head ``(S, A, T, D)`` about pictures that nobody has changed yet."""
    asked = asked.to(about.keys.dtype)
    seen = torch.zeros_like(asked)
    logits = asked.new_empty(*asked.shape[1:3], about.keys.shape[3])
    for p, picture in enumerate(about.of.tolist()):
        torch.bmm(asked[p], about.keys[picture], out=logits)
        torch.bmm(torch.softmax(logits, 2, out=logits), about.values[picture], out=seen[p])
    return to_image.answer_by_head(seen.float())


def _visit(plan: Plan, about: Seen, image: torch.Tensor, telling: _Telling, asked: torch.Tensor) -> torch.Tensor:
    """Tell each image what its tokens have to say, and weigh what it is then for other tokens.

    Args:
        plan: the decoder's.
        about: the pictures.
        image: ``(P, n, C)`` of the prompts, changed in place; not looked at where nobody has changed the pictures yet.
        telling: what is told.
        asked: ``(S, A T, C)``, the tokens that ask, carried to the image.

    Returns:
        What they see, ``(S, A T, C)``.
    """
    asked = asked.to(image.dtype)
    seen = torch.zeros_like(asked)
    weights = image.new_empty(*telling.always.shape[1:], image.shape[1])
    logits = image.new_empty(asked.shape[1], image.shape[1])
    for p, (picture, own) in enumerate(zip(about.of.tolist(), image, strict=True)):
        fresh = telling.keys.ndim > asked.ndim
        if fresh:
            torch.bmm(telling.keys[p], about.queries[picture], out=weights)
        else:
            torch.mm(telling.keys[p], (own + plan.positions).T, out=weights.flatten(0, 1))
        shares = plan.rows.over_tokens(weights[None], telling.always[p : p + 1])[0].flatten(0, 1).T
        torch.addmm(about.image[picture] if fresh else own, shares, telling.told[p], out=own)
        after, placed = plan.rows.norm_and_place(own[None], telling.norm, plan.positions)
        if after.data_ptr() != own.data_ptr():
            own.copy_(after[0])
        torch.mm(asked[p], placed[0].T, out=logits)
        torch.mm(torch.softmax(logits, 1, out=logits), own, out=seen[p])
    return seen


def draw(plan: Plan, hyper: torch.Tensor, image: torch.Tensor, size: tuple[int, int], cells: Sequence[Cells] | None) -> torch.Tensor:
    """Return mask logits ``(P, M, 4h, 4w)``, float32.

    Args:
        plan: the decoder's.
        hyper: ``(P, M, channels)`` of the masks (``Plan.hyper``).
        image: ``(P, n, C)`` that ``think`` returned, at least one.
        size: rows and columns ``(h, w)`` of the grid.
        cells: what has to be drawn of each; None is everything.
    """
    rows, columns = size
    wanted = [(0, rows, 0, columns)] * len(image) if cells is None else cells
    grid = image.view(len(image), rows, columns, -1)
    four = _upscaled(plan, [grid[p, top:bottom, left:right].flatten(0, 1) for p, (top, bottom, left, right) in enumerate(wanted)])
    masks = image.new_full((len(image), hyper.shape[1], 4 * rows, 4 * columns), UNDRAWN, dtype=torch.float32)
    start = 0
    for p, (top, bottom, left, right) in enumerate(wanted):
        after = start + 16 * (bottom - top) * (right - left)
        drawn = (hyper[p].to(four.dtype) @ four[start:after].T).float()
        masks[p, :, 4 * top : 4 * bottom, 4 * left : 4 * right] = in_order(drawn[None], (bottom - top, right - left))[0]
        start = after
    return masks


def _upscaled(plan: Plan, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Upscale image tokens ``(n, C)`` of several prompts four times: ``(16 n, channels)`` of all in their order, and then of what fills the last product."""
    fill = -sum(map(len, parts)) % ROWS
    tokens = torch.cat([*parts, parts[0].new_zeros(fill, parts[0].shape[1])])
    found = []
    for some in tokens.split(ROWS):
        twice = plan.up1(some).view(-1, plan.up_norm.weight.shape[0])  # a row per pixel: n, then 2 x 2
        found.append(plan.up2(functional.gelu(normed(twice, plan.up_norm)), gelu=True).flatten())  # then 2 x 2 again
    return torch.cat(found).view(16 * len(tokens), -1)
