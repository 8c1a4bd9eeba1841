"""Attention between a prompt's tokens and an image, for one picture with many prompts and one prompt with many pictures.

Letters: ``R`` pictures, ``P`` prompts, ``n`` image tokens, ``C`` channels, ``A`` heads, ``D`` channels per head, ``T`` tokens per prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch

from distill.teachers.cpu_rows import Rows


class CrossAttention:
    """The weights of one attention between tokens and image, cut by head.

    Args:
        attention: segment-anything's.
        image_asks: True where the image's tokens are the queries.
        rows: how softmax over tokens is computed.
    """

    def __init__(self, attention: Any, *, image_asks: bool, rows: Rows) -> None:
        self.attention = attention
        self.over_tokens = rows.over_tokens
        heads = attention.num_heads
        image_side, token_side = (attention.q_proj, attention.k_proj) if image_asks else (attention.k_proj, attention.q_proj)
        self.token_side = token_side
        self.into_image = image_side.weight.detach().float().unflatten(0, (heads, -1))
        """``(A, D, C)``."""
        self.bias = image_side.bias.detach().float().view(heads, 1, -1)
        """``(A, 1, D)``. Where tokens ask, it adds the same to all logits that compete."""
        self.from_image = attention.v_proj.weight.detach().float().unflatten(0, (heads, -1)).transpose(1, 2).contiguous()
        """``(A, C, D)``."""
        self.out = attention.out_proj.weight.detach().float().T.unflatten(0, (heads, -1)).contiguous()
        """``(A, D, C)``."""
        self.scale = self.into_image.shape[1] ** -0.5

    def cut(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens ``(P, T, C)``, whichever side asks, scale them, and return them by head, ``(P, A, T, D)``."""
        by_head: torch.Tensor = (self.scale * self.token_side(tokens)).unflatten(2, (len(self.into_image), -1)).transpose(1, 2)
        return by_head

    def carried(self, cut: torch.Tensor) -> torch.Tensor:
        """Carry tokens by head ``(P, A, T, D)`` through the image side's weights, ``(P, A T, C)``: their products with image tokens are the logits."""
        onto: torch.Tensor = (cut @ self.into_image).flatten(1, 2)
        return onto

    def always(self, cut: torch.Tensor) -> torch.Tensor:
        """Return what the queries' bias adds to each token's logits ``(P, A, T)``, wherever in the image it is asked from."""
        added: torch.Tensor = (cut * self.bias).sum(dim=3)
        return added

    def told(self, values: torch.Tensor) -> torch.Tensor:
        """Return what each of a prompt's tokens ``(P, T, C)`` tells each head, ``(P, A T, C)``."""
        heads = len(self.into_image)
        by_head = self.attention.v_proj(values).unflatten(2, (heads, -1)).transpose(1, 2) @ self.out
        each: torch.Tensor = (by_head + self.attention.out_proj.bias / heads).flatten(1, 2)
        return each

    def answer(self, seen: torch.Tensor) -> torch.Tensor:
        """Return what tokens make ``(P, T, C)`` of the image tokens that each head has weighed, ``(P, A T, C)``."""
        return self.answer_by_head(seen.float().unflatten(1, (len(self.into_image), -1)) @ self.from_image)

    def answer_by_head(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the same of projected image tokens, ``(P, A, T, D)``."""
        answer: torch.Tensor = self.attention.out_proj(seen.transpose(1, 2).flatten(2) + self.attention.v_proj.bias)
        return answer

    def tokens_ask(self, queries: torch.Tensor, placed: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Attend from tokens ``(P, T, C)`` to the image ``(P, n, C)``, placed and as it is; return ``(P, T, C)``."""
        logits = torch.bmm(self.carried(self.cut(queries)).to(placed.dtype), placed.transpose(1, 2))
        return self.answer(torch.bmm(torch.softmax(logits, 2, out=logits), image))

    def image_asks(self, keys: torch.Tensor, values: torch.Tensor, placed: torch.Tensor, image: torch.Tensor) -> None:
        """Attend from the image ``(P, n, C)`` to tokens ``(P, T, C)`` and add the answer to the image in place."""
        cut = self.cut(keys)
        logits = torch.bmm(self.carried(cut).to(placed.dtype), placed.transpose(1, 2)).unflatten(1, cut.shape[1:3])
        weights = self.over_tokens(logits, self.always(cut).to(placed.dtype))
        image.baddbmm_(weights.flatten(1, 2).transpose(1, 2), self.told(values).to(image.dtype))

    def first_asked(self, queries: torch.Tensor, seen: "Seen") -> torch.Tensor:
        """Do what ``tokens_ask`` does for pictures that no prompt has changed yet; ``queries (P, T, C)``."""
        logits = self.cut(queries).to(seen.keys.dtype) @ seen.keys[seen.of]
        return self.answer_by_head((torch.softmax(logits, 3, out=logits) @ seen.values[seen.of]).float())

    def first_asks(self, keys: torch.Tensor, values: torch.Tensor, seen: "Seen") -> torch.Tensor:
        """Return, for pictures that no prompt has changed yet, what ``image_asks`` makes of each prompt's copy ``(P, n, C)``."""
        cut = self.cut(keys)
        logits = cut.to(seen.queries.dtype) @ seen.queries[seen.of]
        weights = self.over_tokens(logits, self.always(cut).to(logits.dtype)).flatten(1, 2).transpose(1, 2)
        return torch.baddbmm(seen.image[seen.of], weights, self.told(values).to(seen.image.dtype))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the first layer sees of pictures, projected once for all prompts about them."""

    image: torch.Tensor
    """``(R, n, C)``."""
    keys: torch.Tensor
    """For tokens that ask, ``(R, A, D, n)``, without the bias, which adds the same to all that compete."""
    values: torch.Tensor
    """What they are told, ``(R, A, n, D)``, without the bias; in memory ``D`` comes before ``n``, which is twice as fast here."""
    queries: torch.Tensor
    """For the image that asks, ``(R, A, D, n)``, without the bias, which is added to the products."""
    of: torch.Tensor
    """``(P,)``: which picture each prompt is about."""

    def some(self, prompts: slice) -> "Seen":
        """Return the same for some of the prompts."""
        return Seen(self.image, self.keys, self.values, self.queries, self.of[prompts])


def see(image: torch.Tensor, positions: torch.Tensor, of: torch.Tensor, to_image: CrossAttention, to_tokens: CrossAttention) -> Seen:
    """Project pictures for the first layer.

    Args:
        image: ``(R, n, C)``, in the type that is computed in.
        positions: ``(n, C)``.
        of: ``(P,)``: which picture each prompt is about.
        to_image: the layer's attention of tokens to the image.
        to_tokens: and back.
    """
    placed = image + positions
    asked = torch.cat([to_image.attention.k_proj.weight, to_tokens.attention.q_proj.weight]).to(placed.dtype)
    value = to_image.attention.v_proj.weight.to(placed.dtype)
    heads = len(to_image.into_image)
    both = _onto(asked, placed).unflatten(1, (2, heads, -1))
    return Seen(image, both[:, 0], _onto(value, image).unflatten(1, (heads, -1)).transpose(2, 3), both[:, 1], of)


def _onto(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Project ``(R, n, C)`` with ``(K, C)`` to ``(R, K, n)``; on a CPU one by one: in larger products the last bits would be others."""
    if image.device.type != "cpu":
        return weight @ image.transpose(1, 2)
    projected = image.new_empty(len(image), len(weight), image.shape[1])
    for n, each in enumerate(image):
        torch.mm(weight, each.T, out=projected[n])
    return projected
