"""Native intensities to the 8-bit RGB pictures that SAM-family teachers expect, once per volume so that slices stay comparable.

A recipe may say, per modality, which window or percentiles to take, and what the three channels hold: one window three times, three
windows, the slice with its two neighbours, or one channel of several (docs/intensity.md). Without a word from it, CT is shown in the
soft-tissue window, 8-bit colour as it is, and everything else between two percentiles.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from distill.errors import PlanError
from storage.case import CaseRecord

CT_SOFT_TISSUE_HU = (-160.0, 240.0)
"""Width 400, level 40: the window MedSAM's preprocessing uses for soft tissue (Ma et al. 2024)."""
CT_WINDOWS_HU = {"soft-tissue": CT_SOFT_TISSUE_HU, "lung": (-1350.0, 150.0), "bone": (-500.0, 1300.0)}
"""Windows by name. Lung is width 1500, level -600, bone width 1800, level 400, as in reporting rooms (Radiopaedia, "Windowing (CT)")."""
PERCENTILES = (0.5, 99.5)
SAMPLE_VOXELS = 2_000_000
"""Percentiles are taken over at most this many voxels, so that a huge volume costs no more memory than a small one."""
ADJACENT = "adjacent"

Bounds = tuple[float, float]
"""What becomes black, and what white."""


def _named_windows(value: object) -> object:
    """Put numbers in the place of names such as ``lung``."""
    if not isinstance(value, (list, tuple)):
        return value
    strangers = [each for each in value if isinstance(each, str) and each not in CT_WINDOWS_HU]
    if strangers:
        message = f"names the window {strangers[0]!r}. Known: {', '.join(CT_WINDOWS_HU)}; others as two numbers, such as [-160, 240]."
        raise ValueError(message)
    return [CT_WINDOWS_HU[each] if isinstance(each, str) else each for each in value]


class ModalityIntensity(BaseModel):
    """How one modality becomes grey values: fixed windows, or percentiles of each volume; neither means the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    windows: Annotated[tuple[Bounds, ...], BeforeValidator(_named_windows)] = ()
    """One window for all three channels, or three for red, green and blue; two numbers each, or ``soft-tissue``, ``lung``, ``bone``."""
    percentiles: Bounds | None = None
    """Of the voxels that are not zero, over the whole volume."""

    @field_validator("windows")
    @classmethod
    def _one_or_three(cls, value: tuple[Bounds, ...]) -> tuple[Bounds, ...]:
        if len(value) not in {0, 1, 3}:
            message = f"must be one window, or three (red, green, blue), but there are {len(value)}."
            raise ValueError(message)
        for low, high in value:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                message = f"must be two rising numbers each, such as [-160, 240], but one is [{low:g}, {high:g}]."
                raise ValueError(message)
        return value

    @field_validator("percentiles")
    @classmethod
    def _within_100(cls, value: Bounds | None) -> Bounds | None:
        if value is not None and not 0 <= value[0] < value[1] <= 100:
            message = f"must be two rising numbers between 0 and 100, such as [0.5, 99.5], but is [{value[0]:g}, {value[1]:g}]."
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.windows and self.percentiles is not None:
            message = "names windows and percentiles. Keep one of them: windows for absolute scales (CT), percentiles for the others."
            raise ValueError(message)
        return self


AUTOMATIC = ModalityIntensity()


class IntensitySpec(BaseModel):
    """How native intensities become pictures; keys are DICOM's modalities in small letters, ``other`` is all the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ct: ModalityIntensity = AUTOMATIC
    mr: ModalityIntensity = AUTOMATIC
    pt: ModalityIntensity = AUTOMATIC
    us: ModalityIntensity = AUTOMATIC
    other: ModalityIntensity = AUTOMATIC
    channels: Annotated[str, Field(pattern=r"^(windows|adjacent|channel:[A-Za-z0-9][A-Za-z0-9._-]*)$")] = "windows"
    """``windows``: as the windows say. ``adjacent``: the slice below, the slice, the slice above. ``channel:N``: only channel ``N``, a name or a
    number from 0."""

    @model_validator(mode="after")
    def _adjacent_takes_all_three(self) -> Self:
        for name in ("ct", "mr", "pt", "us", "other"):
            count = len(getattr(self, name).windows)
            if self.channels == ADJACENT and count == 3:
                message = f"has channels: adjacent and three windows for {name}, but a picture has three channels. Keep one of the two."
                raise ValueError(message)
        return self

    def rule_for(self, record: CaseRecord) -> "WindowRule":
        """Return what this means for one case; nothing is checked against its voxels yet."""
        shown = _shown_channel(record, self.channels)
        channels = self.channels if shown is None else f"channel:{shown}"
        if shown == 0 and record.shape_czyx[0] == 1:
            channels = "windows"  # the first of one channel is all of them
        modality = modality_of(record, shown)
        key = modality.lower()
        chosen = cast("ModalityIntensity", getattr(self, key if key in {"ct", "mr", "pt", "us"} else "other"))
        if chosen.windows:
            name = "ct-soft-tissue" if key == "ct" and chosen.windows == (CT_SOFT_TISSUE_HU,) else "fixed-windows"
            return WindowRule(name=name, windows=chosen.windows, channels=channels)
        if chosen.percentiles is not None:
            return WindowRule(name="percentiles-of-non-zero", percentiles=chosen.percentiles, channels=channels)
        if modality == "CT":
            return WindowRule(name="ct-soft-tissue", windows=(CT_SOFT_TISSUE_HU,), channels=channels)
        if record.dtype == "uint8" and record.shape_czyx[0] == 3 and not record.channels:
            return WindowRule(name="as-is", windows=((0.0, 255.0),), channels=channels)
        return WindowRule(name="percentiles-of-non-zero", percentiles=PERCENTILES, channels=channels)


def _shown_channel(record: CaseRecord, channels: str) -> int | None:
    """Return the one channel that is shown; None for a picture of all of them, and for one that the case does not have.

    Channels that somebody named are no colours, and neither are two, or more than three: of these the first is shown where nobody says another.
    """
    names = [channel.name for channel in record.channels]
    if channels.startswith("channel:"):
        word = channels.removeprefix("channel:")
        if word in names:
            return names.index(word)
        return int(word) if word.isdecimal() and int(word) < record.shape_czyx[0] else None
    return 0 if channels == "windows" and (len(names) > 1 or record.shape_czyx[0] not in {1, 3}) else None


def modality_of(record: CaseRecord, shown: int | None) -> str:
    """Return the modality of the channel that is shown, or of the case where it has none of its own."""
    own = record.channels[shown].modality if shown is not None and record.channels else "unknown"
    return record.modality if own == "unknown" else own


def seen_channel(record: CaseRecord, spec: IntensitySpec) -> int | None:
    """Return which channel a teacher is shown; None where it is the only one, or several at once."""
    named = re.fullmatch(r"channel:([0-9]+)", spec.rule_for(record).channels)
    return int(named.group(1)) if named else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """What an ``IntensitySpec`` means for one case, before its voxels are looked at."""

    name: str
    windows: tuple[Bounds, ...] = ()
    percentiles: Bounds | None = None
    channels: str = "windows"


DEFAULT = IntensitySpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which intensities become black and white, and why; goes into the label set's history."""

    low: float
    high: float
    rule: str
    others: tuple[Bounds, ...] = ()
    """The windows of green and blue, where they differ from red's."""
    source: Literal["all", "adjacent"] | int = "all"
    """All channels of the slice, or the slice between its neighbours, or one channel."""

    def history(self) -> dict[str, str | float | int | bool | list[float]]:
        """Return the parameters that a label set's history keeps; more than one window and other channels are named where there are any."""
        told: dict[str, str | float | int | bool | list[float]] = {
            "window_low": self.low,
            "window_high": self.high,
            "window_rule": self.rule,
        }
        if self.others:
            told["windows_rgb"] = [value for bounds in ((self.low, self.high), *self.others) for value in bounds]
        if self.source != "all":
            told["window_channels"] = self.source if isinstance(self.source, str) else f"channel:{self.source}"
        return told


def intensity_inputs(spec: IntensitySpec, record: CaseRecord) -> dict[str, WindowRule]:
    """Return what a label's fingerprint takes in of ``spec``: nothing for a case to which it does what the default does."""
    rule = spec.rule_for(record)
    if rule.channels.startswith("channel:"):
        return {"intensity": rule}  # what is shown of several channels by default was another thing before channels had names
    return {} if rule == DEFAULT.rule_for(record) else {"intensity": rule}


def choose_window(record: CaseRecord, volume_czyx: np.ndarray, spec: IntensitySpec = DEFAULT) -> Window:
    """Pick the window of one case.

    By default CT: soft tissue in Hounsfield units. 8-bit colour: as it is. Anything else: the 0.5th to 99.5th percentile of the voxels
    that are not zero, since MR, ultrasound and PET have no absolute scale and zero padding would drag a percentile down.

    Args:
        record: the case, for its modality, type and number of channels.
        volume_czyx: its voxels ``(c, z, y, x)``, any numeric type.
        spec: what the recipe says.

    Raises:
        PlanError: if the case has no such channel, or too many for what is asked.
    """
    rule = spec.rule_for(record)
    source = _source(record, rule)
    volume = volume_czyx[source : source + 1] if isinstance(source, int) else volume_czyx
    if rule.percentiles is None:
        (low, high), *others = rule.windows
        return Window(low=low, high=high, rule=rule.name, others=tuple(others), source=source)
    stride = max(1, volume.size // SAMPLE_VOXELS)
    sample = np.asarray(volume).reshape(-1)[::stride]
    sample = sample[np.isfinite(sample) & (sample != 0)]
    if not len(sample):
        return Window(low=0.0, high=1.0, rule="empty", source=source)
    low, high = (float(v) for v in np.percentile(sample.astype(np.float64), rule.percentiles))
    name = rule.name if rule.percentiles == PERCENTILES else f"{rule.name} {rule.percentiles[0]:g} {rule.percentiles[1]:g}"
    return Window(low=low, high=high if high > low else low + 1.0, rule=name, source=source)


def _source(record: CaseRecord, rule: WindowRule) -> Literal["all", "adjacent"] | int:
    """Return which channels or slices fill a picture.

    Raises:
        PlanError: if the case does not have them.
    """
    count = record.shape_czyx[0]
    if rule.channels.startswith("channel:"):
        word = rule.channels.removeprefix("channel:")
        if not word.isdecimal() or int(word) >= count:
            names = f": {', '.join(channel.name for channel in record.channels)}" if record.channels else ", counted from 0"
            message = (
                f"case {record.id}: intensity.channels is {rule.channels!r}, but the case has {count} channel(s){names}. Name one of them."
            )
            raise PlanError(message)
        return int(word)
    if count > 1 and (rule.channels == ADJACENT or len(rule.windows) == 3):
        asked = "adjacent slices" if rule.channels == ADJACENT else "three windows"
        message = f"case {record.id}: {asked} fill the three channels of a picture, but the case has {count} channels of its own. Say channels: channel:0, or windows."
        raise PlanError(message)
    return "adjacent" if rule.channels == ADJACENT else "all"


def picture_of(volume_czyx: np.ndarray, z: int, window: Window) -> np.ndarray:
    """Return slice ``z`` as a teacher sees it, ``(H, W, 3)`` uint8.

    Beyond the first and the last slice, adjacent ones repeat it.

    Args:
        volume_czyx: the case ``(c, z, y, x)``, along whichever axis it is looked at.
        z: which slice, from 0.
        window: what ``choose_window`` chose for this case.
    """
    if window.source == "adjacent":
        last = volume_czyx.shape[1] - 1
        return to_rgb(np.stack([volume_czyx[0, min(max(near, 0), last)] for near in (z - 1, z, z + 1)]), window)
    if isinstance(window.source, int):
        return to_rgb(volume_czyx[window.source : window.source + 1, z], window)
    return to_rgb(volume_czyx[:, z], window)


def to_rgb(slice_cyx: np.ndarray, window: Window) -> np.ndarray:
    """Return ``(H, W, 3)`` uint8 of one slice ``(c, y, x)``.

    Three channels are taken as RGB, otherwise the first is repeated, under each of three windows where there are so many. What is no
    number becomes black.
    """
    if window.others:
        bounds = ((window.low, window.high), *window.others)
        return np.stack([_grey(slice_cyx[0], low, high) for low, high in bounds], axis=2)
    grey = _grey(slice_cyx, window.low, window.high)
    if grey.shape[0] == 3:
        return np.ascontiguousarray(grey.transpose(1, 2, 0))
    return np.repeat(grey[0][..., None], 3, axis=2)


def _grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    unit = np.clip((values.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    grey: np.ndarray = np.nan_to_num(255.0 * unit).astype(np.uint8)
    return grey
