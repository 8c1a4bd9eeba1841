"""What a folder says of itself: ``dataset.json`` of nnU-Net and of the Medical Segmentation Decathlon names the channels of its scans."""

import json
import re
from collections import Counter
from pathlib import Path

from storage.case import Channel
from storage.channels import named_channels

FILE = "dataset.json"
_IMAGES = ("imagesTr", "imagesTs", "imagesVal")
LABELS = ("labelsTr/*", "labelsTs/*", "labelsVal/*")
"""Shell patterns of what is no scan in the folder of such a data set."""


def described_channels(source: Path) -> tuple[Channel, ...]:
    """Return the channels that ``dataset.json`` names, in the folder itself or, of ``imagesTr``, in the one above; empty where it says nothing.

    nnU-Net 2 calls them ``channel_names``, nnU-Net 1 and the Decathlon ``modality``; all of them number them.
    """
    try:
        content = json.loads(description_of(source).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    told = (content.get("channel_names") or content.get("modality")) if isinstance(content, dict) else None
    if not isinstance(told, dict) or sorted(told) != sorted(str(n) for n in range(len(told))):
        return ()
    return named_channels(_usable([str(told[str(n)]) for n in range(len(told))]))


def description_of(source: Path) -> Path:
    """Return where a folder would be described."""
    return source.parent / FILE if source.name in _IMAGES else source / FILE


def is_data_set(source: Path) -> bool:
    """Tell whether a folder has images and labels beside such a file."""
    return source.is_dir() and (source / FILE).is_file()


def _usable(names: list[str]) -> list[str]:
    """Make names of what people write: without blanks, and each once."""
    plain = [re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("._-")[:60] or f"channel-{n}" for n, name in enumerate(names)]
    often = Counter(plain)
    return [f"{name}-{n}" if often[name] > 1 else name for n, name in enumerate(plain)]
