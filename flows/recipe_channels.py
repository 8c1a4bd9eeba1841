"""How people name the channels of a case that lie in files of their own: in a recipe, and on the command line."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ValidationError

from flows.errors import FlowError
from flows.recipe_parts import Block, Name
from storage import Channel
from storage.channels import check_channels, named_channels
from storage.wording import check_modality


class ChannelBlock(Block):
    """One channel."""

    suffix: str | None = None
    """What its files' names end in, such as ``-t1n``; without it nnU-Net's numbers: ``_0000`` for the first, ``_0001`` for the second."""
    modality: Annotated[str | None, AfterValidator(check_modality)] = None
    """Of this channel alone; without it what its name says (``ct``, ``mr``, ``pet``), and else that of the case."""


def _spelt_out(value: object) -> object:
    """Let a list stand for names alone, and a word for a suffix."""
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        if len(set(value)) < len(value):
            message = f"names a channel twice: {', '.join(map(str, value))}."
            raise ValueError(message)
        return {each: {} for each in value}
    if isinstance(value, dict):
        return {name: {"suffix": each} if isinstance(each, str) else ({} if each is None else each) for name, each in value.items()}
    return value


def _told_apart(value: dict[str, ChannelBlock] | None) -> dict[str, ChannelBlock] | None:
    channels_of(value)
    return value


def channels_of(blocks: dict[str, ChannelBlock] | None) -> tuple[Channel, ...] | None:
    """Return what an ingest takes.

    Raises:
        IngestError: if two channels' files end alike.
    """
    if blocks is None:
        return None
    named = named_channels(list(blocks))
    return check_channels(
        [
            Channel(
                name=each.name,
                modality=each.modality if block.modality is None else block.modality,
                suffix=each.suffix if block.suffix is None else block.suffix,
            )
            for each, block in zip(named, blocks.values(), strict=True)
        ]
    )


ChannelsKey = Annotated[dict[Name, ChannelBlock] | None, BeforeValidator(_spelt_out), AfterValidator(_told_apart)]


def channels_from_words(words: str | None) -> tuple[Channel, ...] | None:
    """Return what somebody wrote on a command line: ``t1=_0000,t2=_0001``, or names alone.

    Raises:
        FlowError: if it cannot be understood.
    """
    if words is None:
        return None
    pairs = [each.strip().partition("=") for each in words.split(",") if each.strip()]
    try:
        blocks = {name.strip(): ChannelBlock(suffix=suffix.strip() if equals else None) for name, equals, suffix in pairs}
        if len(blocks) < len(pairs):
            message = "a channel is named twice"
            raise ValueError(message)  # noqa: TRY301 - told as all else that is wrong with the words
        return channels_of(blocks)
    except (ValidationError, ValueError) as error:
        message = f"--channels {words}: {error}. Write names and what their files end in: t1=_0000,t2=_0001."
        raise FlowError(message) from None
