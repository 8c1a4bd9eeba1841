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
        image_side = attention.q_proj if image_asks else attention.k_proj
        self.into_image = image_side.weight.detach().float().unflatten(0, (heads, -1))
        """``(A, D, C)``."""
        self.bias = image_side.bias.detach().float().view(heads, 1, -1)
        """``(A, 1, D)``. Where tokens ask, it adds the same to all logits that compete."""
        self.from_image = attention.v_proj.weight.detach().float().unflatten(0, (heads, -1)).transpose(1, 2).contiguous()
        """``(A, C, D)``."""
        self.out = attention.out_proj.weight.detach().float().T.unflatten(0, (heads, -1)).contiguous()
        """``(A, D, C)``."""
        self.scale = self.into_image.shape[1] ** -0.5

    def tokens_ask(self, queries: torch.Tensor, placed: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Attend from tokens ``(P, T, C)`` to the image ``(P, n, C)``, placed and as it is; return ``(P, T, C)``."""
        weights = over_image(self._logits(self._cut(self.attention.q_proj(queries)), placed))
        seen = torch.bmm(weights.flatten(1, 2), image).float().unflatten(1, weights.shape[1:3]) @ self.from_image
        answer: torch.Tensor = self.attention.out_proj(seen.transpose(1, 2).flatten(2) + self.attention.v_proj.bias)
        return answer

    def image_asks(self, keys: torch.Tensor, values: torch.Tensor, placed: torch.Tensor, image: torch.Tensor) -> None:
        """Attend from the image ``(P, n, C)`` to tokens ``(P, T, C)`` and add the answer to the image in place."""
        cut = self._cut(self.attention.k_proj(keys))
        weights = self.over_tokens(self._logits(cut, placed), self._always(cut, placed.dtype))
        image.baddbmm_(weights.flatten(1, 2).transpose(1, 2), self._told(values, image.dtype))

    def first_asked(self, queries: torch.Tensor, seen: "Seen") -> torch.Tensor:
        """Do what ``tokens_ask`` does for pictures that no prompt has changed yet; ``queries (P, T, C)``."""
        logits = _each(self._cut(self.attention.q_proj(queries)).to(seen.keys.dtype), seen.keys, seen.of)
        told = _each(over_image(logits), seen.values, seen.of).float()
        answer: torch.Tensor = self.attention.out_proj(told.transpose(1, 2).flatten(2) + self.attention.v_proj.bias)
        return answer

    def first_asks(self, keys: torch.Tensor, values: torch.Tensor, seen: "Seen") -> torch.Tensor:
        """Return, for pictures that no prompt has changed yet, what ``image_asks`` makes of each prompt's copy ``(P, n, C)``."""
        cut = self._cut(self.attention.k_proj(keys)).to(seen.queries.dtype)
        logits = _each(cut, seen.queries, seen.of)
        weights = self.over_tokens(logits, self._always(cut.float(), logits.dtype)).flatten(1, 2).transpose(1, 2)
        told = self._told(values, seen.image.dtype)
        if seen.image.device.type != "cpu":
            return torch.baddbmm(seen.image[seen.of], weights, told)
        image = told.new_empty(len(told), *seen.image.shape[1:])
        for n, picture in enumerate(seen.of.tolist()):
            torch.addmm(seen.image[picture], weights[n], told[n], out=image[n])
        return image

    def _cut(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scale projected tokens ``(P, T, C / 2)`` and return them by head, ``(P, A, T, D)``."""
        cut: torch.Tensor = (self.scale * tokens).unflatten(2, (len(self.into_image), -1)).transpose(1, 2)
        return cut

    def _logits(self, cut: torch.Tensor, placed: torch.Tensor) -> torch.Tensor:
        """Return products ``(P, A, T, n)`` of tokens by head ``(P, A, T, D)`` and the placed image ``(P, n, C)``."""
        carried = (cut @ self.into_image).flatten(1, 2).to(placed.dtype)
        logits: torch.Tensor = torch.bmm(carried, placed.transpose(1, 2)).unflatten(1, cut.shape[1:3])
        return logits

    def _always(self, cut: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return what the queries' bias adds to each token's logits ``(P, A, T)``, wherever in the image it is asked from."""
        always: torch.Tensor = (cut * self.bias).sum(dim=3)
        return always.to(dtype)

    def _told(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return what each of a prompt's tokens ``(P, T, C)`` tells each head, ``(P, A T, C)``."""
        heads = len(self.into_image)
        told: torch.Tensor = self.attention.v_proj(values).unflatten(2, (heads, -1)).transpose(1, 2) @ self.out
        each: torch.Tensor = told + self.attention.out_proj.bias / heads
        return each.flatten(1, 2).to(dtype)


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
    keys_queries = placed.new_empty(len(image), len(asked), len(positions))
    values = placed.new_empty(len(image), len(value), len(positions))
    for n, (where, what) in enumerate(zip(placed, image, strict=True)):  # one by one: in larger products the last bits would be others
        torch.mm(asked, where.T, out=keys_queries[n])
        torch.mm(value, what.T, out=values[n])
    both = keys_queries.unflatten(1, (2, heads, -1))
    return Seen(image, both[:, 0], values.unflatten(1, (heads, -1)).transpose(2, 3), both[:, 1], of)


def over_image(logits: torch.Tensor) -> torch.Tensor:
    """Return the softmax of ``(P, A, T, n)`` over ``n``, in place."""
    return torch.softmax(logits, 3, out=logits)


def _each(left: torch.Tensor, right: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Multiply ``(P, A, x, y)`` with the picture's ``(R, A, y, z)`` of each prompt; on a CPU without copying that, one by one."""
    if left.device.type != "cpu":
        return torch.matmul(left, right[of])
    product = right.new_empty(*left.shape[:3], right.shape[3])
    for n, picture in enumerate(of.tolist()):
        torch.bmm(left[n], right[picture], out=product[n])
    return product
