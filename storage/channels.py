"""How people name the channels of a case, checked before anything is read. This module imports nothing heavy, so that a recipe can be checked at once."""

from collections.abc import Sequence

from storage.case import Channel
from storage.errors import IngestError

_CHANNEL_MODALITY = {"ct": "CT", "mr": "MR", "mri": "MR", "pt": "PT", "pet": "PT", "suv": "PT", "us": "US"}
"""Names of channels that say their modality; others are of the modality of their case."""
_FIRST = "_0000"
"""How nnU-Net ends the name of the file of a case's only or first channel."""


def modality_of_channel(name: str) -> str:
    """Return the modality that the name of a channel says, or ``unknown``."""
    return _CHANNEL_MODALITY.get(name.lower(), "unknown")


def named_channels(names: Sequence[str]) -> tuple[Channel, ...]:
    """Return channels whose files nnU-Net's numbers tell apart: ``_0000``, ``_0001``, ..."""
    return tuple(Channel(name=name, modality=modality_of_channel(name), suffix=f"_{n:04d}") for n, name in enumerate(names))


def without_number(name: str) -> str:
    """Return what nnU-Net calls a case whose first file has this name, without an ending; other names stay."""
    return name.removesuffix(_FIRST)


def check_channels(channels: Sequence[Channel]) -> tuple[Channel, ...]:
    """Return channels that can be told apart.

    Raises:
        IngestError: ``bad-channels`` if two have one name, or files that end alike.
    """
    for what, values in (("the name", [each.name for each in channels]), ("files that end in", [each.suffix for each in channels])):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            message = (
                f"two channels have {what} {twice!r}. Each channel needs a name and an ending of its own, such as {{t1: _0000, t2: _0001}}."
            )
            raise IngestError("bad-channels", message)
    return tuple(channels)


def expected(channels: Sequence[Channel]) -> str:
    """Name channels and what their files end in: ``t1 (..._0000), t2 (..._0001)``."""
    return ", ".join(f"{each.name} (...{each.suffix})" if each.suffix else each.name for each in channels)
