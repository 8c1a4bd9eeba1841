"""Several files of one scan become the channels of one case: MR sequences, or PET beside CT.

nnU-Net writes ``case_0000.nii.gz`` and ``case_0001.nii.gz``, BraTS ``ID-t1n.nii.gz`` and ``ID-t2w.nii.gz``; the Medical Segmentation Decathlon has all
volumes in one file, along its fourth dimension. What belongs together lies in one folder under one name, but for what each channel's ends in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from itertools import product

import numpy as np
from jaxtyping import Shaped

from storage.case import CaseRecord, Channel
from storage.channels import expected
from storage.errors import IngestError
from storage.ingest.discover import FoundFile
from storage.ingest.images import read_image
from storage.ingest.nifti import read_nifti
from storage.ingest.source import ENDINGS, Naming, SourceCase, finish_case

PLACE_TOLERANCE = 0.1
"""Voxels, of the smallest side: no corner of one channel may lie farther from that of the first. Converters that round differently stay below 0.01,
and a tenth of a voxel blurs nothing that a network sees."""
_SPACING_TOLERANCE = 0.01
"""Relative, as where a header contradicts its own affine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFiles:
    """What one scan is in: a file for each channel, or one file for all."""

    name: str
    """Below the source folder, without what tells channels apart, and without an ending."""
    parts: Mapping[str, tuple[FoundFile, ...]]
    """Name of the channel -> its files, of which there should be one; empty where one file holds all."""
    whole: FoundFile | None = None

    @property
    def files(self) -> tuple[FoundFile, ...]:
        """All files."""
        return (self.whole,) if self.whole is not None else tuple(file for found in self.parts.values() for file in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedFiles:
    """The scans among some files."""

    scans: tuple[ScanFiles, ...]
    beside: tuple[FoundFile, ...]
    """Files that are named after one of the scans, and are none of its channels: ``ID-seg.nii.gz`` beside ``ID-t1n.nii.gz``."""


def stem_of(name: str) -> str:
    """Return a file's name without its ending."""
    ending = next((each for each in ENDINGS if name.lower().endswith(each)), "")
    return name[: len(name) - len(ending)]


def group_files(files: Sequence[FoundFile], channels: Sequence[Channel]) -> GroupedFiles:
    """Sort files into scans, in the order of their names.

    Args:
        files: NIfTI and pictures.
        channels: What to look for; of two suffixes that fit a name, the longer one counts.
    """
    parts: dict[str, dict[str, list[FoundFile]]] = {}
    others: list[FoundFile] = []
    longest_first = sorted(channels, key=lambda channel: -len(channel.suffix))
    for file in files:
        stem = stem_of(file.name)
        found = next((each for each in longest_first if stem.endswith(each.suffix) and _ends_a_name(stem, each.suffix)), None)
        if found is None:
            others.append(file)
        else:
            parts.setdefault(stem.removesuffix(found.suffix), {}).setdefault(found.name, []).append(file)
    beside = tuple(file for file in others if _is_beside(stem_of(file.name), parts))
    groups = [
        ScanFiles(name=name, parts={each.name: tuple(found[each.name]) for each in channels if each.name in found})
        for name, found in parts.items()
    ]
    wholes = [whole_scan(file) for file in others if file not in beside]
    return GroupedFiles(scans=tuple(sorted([*groups, *wholes], key=lambda scan: scan.name)), beside=beside)


def whole_scan(file: FoundFile) -> ScanFiles:
    """Return a file that holds all channels of a scan."""
    return ScanFiles(name=stem_of(file.name), parts={}, whole=file)


def _ends_a_name(stem: str, suffix: str) -> bool:
    """Tell whether anything of the file's own name is left before the suffix."""
    return bool(stem.removesuffix(suffix).rpartition("/")[2])


def _is_beside(stem: str, scans: Mapping[str, object]) -> bool:
    """Tell whether a name goes on after that of a scan, with something that is neither letter nor number."""
    return any(name in scans and not stem[len(name)].isalnum() for name in (stem[:n] for n in range(1, len(stem))))


def read_scan(scan: ScanFiles, channels: Sequence[Channel], naming: Naming) -> SourceCase:
    """Read the channels of one scan as one case, which lies where the first of them lies.

    Raises:
        IngestError: ``missing-channel`` naming those that are there and those that are not, ``duplicate-channel``, ``channel-count-mismatch``,
            ``channel-geometry-mismatch`` if one lies elsewhere than the first, or what reading a file finds.
    """
    if scan.whole is not None:
        return _of_one_file(scan.whole, channels, naming)
    if [*scan.parts] == [channels[0].name] and len(scan.parts[channels[0].name]) == 1 and len(channels) > 1:
        (only,) = scan.parts[channels[0].name]
        if only.kind == "image":
            found = read_image(only.path, naming)
            if len(found.image_czyx) == len(channels):  # nnU-Net keeps a colour picture in one file of three channels
                return _with_channels(found, (), naming)
    _check_complete(scan, channels, naming.case)
    files = [scan.parts[channel.name][0] for channel in channels]
    return _stacked(files, channels, naming)


def _check_complete(scan: ScanFiles, channels: Sequence[Channel], case: str) -> None:
    """Refuse a scan that lacks a channel, or has two of one.

    Raises:
        IngestError: see ``read_scan``.
    """
    for name, files in scan.parts.items():
        if len(files) > 1:
            message = (
                f"case {case}: channel {name} is there {len(files)} times: {', '.join(file.path.name for file in files)}. Keep one of them."
            )
            raise IngestError("duplicate-channel", message)
    lacking = [channel for channel in channels if channel.name not in scan.parts]
    if lacking:
        there = ", ".join(f"{name} in {found[0].path.name}" for name, found in scan.parts.items())
        message = f"case {case}: no channel {expected(lacking)}. Expected: {expected(channels)}; found: {there}. Add the missing file, or leave the others out."
        raise IngestError("missing-channel", message)


def _of_one_file(file: FoundFile, channels: Sequence[Channel], naming: Naming) -> SourceCase:
    """Read a file that holds all channels.

    Raises:
        IngestError: ``channel-count-mismatch`` if it holds another number.
    """
    found = read_nifti(file.path, naming, len(channels)) if file.kind == "nifti" else read_image(file.path, naming)
    count = len(found.image_czyx)
    if count != len(channels):
        message = (
            f"{file.path.name}: expected are the channels {expected(channels)}, each in a file whose name ends like this, or all {len(channels)} in one "
            f"file; this one holds {count}, and its name has none of these ends."
        )
        raise IngestError("channel-count-mismatch", message)
    colour = file.kind == "image" and not file.path.name.lower().endswith((".tif", ".tiff")) and count == 3
    return _with_channels(found, () if colour else channels, naming)


def _stacked(files: Sequence[FoundFile], channels: Sequence[Channel], naming: Naming) -> SourceCase:
    """Read one file after the other into one array, so that memory is that of the case and one channel."""
    first = _one_channel(files[0], channels[0], naming)
    volume = np.empty((len(files), *first.image_czyx.shape[1:]), first.image_czyx.dtype)
    volume[0], notes = first.image_czyx[0], list(first.notes)
    for number, (file, channel) in enumerate(zip(files[1:], channels[1:], strict=True), start=1):
        found = _one_channel(file, channel, naming)
        _check_same_place(first.record, channels[0], found.record, channel)
        volume = _fitting(volume, found.image_czyx)
        volume[number] = found.image_czyx[0]
        notes += found.notes
    merged = finish_case(volume, first.record.geometry, naming, notes=tuple(notes))
    return _with_channels(merged, channels, naming)


def _fitting(volume: Shaped[np.ndarray, "c z y x"], other: Shaped[np.ndarray, "1 z y x"]) -> Shaped[np.ndarray, "c z y x"]:
    """Return the array in a type that holds the other one's values too."""
    return volume if np.can_cast(other.dtype, volume.dtype) else volume.astype(np.promote_types(volume.dtype, other.dtype))


def _one_channel(file: FoundFile, channel: Channel, naming: Naming) -> SourceCase:
    """Read the file of one channel; an error that speaks of the case alone says which channel is meant."""
    try:
        found = read_nifti(file.path, naming) if file.kind == "nifti" else read_image(file.path, naming)
    except IngestError as error:
        start = f"case {naming.case}: "
        said = str(error)
        told = (
            f"case {naming.case}, channel {channel.name} in {file.path.name}: {said.removeprefix(start)}"
            if said.startswith(start)
            else said
        )
        raise IngestError(error.reason, told) from error
    if len(found.image_czyx) != 1:
        message = f"case {naming.case}: channel {channel.name} in {file.path.name} has {len(found.image_czyx)} values per voxel, but must have one. Is it a colour picture?"
        raise IngestError("channel-count-mismatch", message)
    return found


def _check_same_place(one: CaseRecord, first: Channel, other: CaseRecord, channel: Channel) -> None:
    """Refuse a channel that lies elsewhere than the first.

    Raises:
        IngestError: ``channel-geometry-mismatch``, naming what differs.
    """
    said = _difference(one, other)
    if said:
        message = f"case {one.id}: channel {channel.name} lies elsewhere than {first.name}: {said}. Resample it onto {first.name}; channels are voxels of one grid."
        raise IngestError("channel-geometry-mismatch", message)


def _difference(one: CaseRecord, other: CaseRecord) -> str:
    """Say in what two channels differ that should lie on one grid; nothing where they do."""
    if one.shape_czyx[1:] != other.shape_czyx[1:]:
        return f"its shape (z, y, x) is {other.shape_czyx[1:]}, but should be {one.shape_czyx[1:]}"
    mine, theirs = one.geometry, other.geometry
    if not np.allclose(mine.spacing_zyx_mm, theirs.spacing_zyx_mm, rtol=_SPACING_TOLERANCE):
        return f"its spacing (z, y, x) is {_short(theirs.spacing_zyx_mm)} mm, but should be {_short(mine.spacing_zyx_mm)} mm"
    here, there = np.array(mine.affine), np.array(theirs.affine)
    corners = np.array(
        [
            *product(*((0, size - 1) for size in one.shape_czyx[:0:-1])),
        ]
    )
    apart = np.linalg.norm((corners @ (there - here)[:3, :3].T) + (there - here)[:3, 3], axis=1).max()
    if apart <= PLACE_TOLERANCE * min(mine.spacing_zyx_mm):
        return ""
    what = "its direction" if not np.allclose(_directions(here), _directions(there), atol=1e-3) else "its origin"
    return f"{what} differs, so that a corner is {apart:.3g} mm away; up to {PLACE_TOLERANCE:g} of a voxel is allowed"


def _directions(affine: np.ndarray) -> np.ndarray:
    axes = affine[:3, :3]
    return np.asarray(axes / np.linalg.norm(axes, axis=0))


def _short(lengths: Sequence[float]) -> str:
    return "(" + ", ".join(f"{each:.4g}" for each in lengths) + ")"


def _with_channels(found: SourceCase, channels: Sequence[Channel], naming: Naming) -> SourceCase:
    """Name the channels of a case, each with its own modality, else the case's."""
    known = naming.modality != "unknown"
    told = tuple(with_changes(each, modality=naming.modality) if known and each.modality == "unknown" else each for each in channels)
    modality = naming.modality if known or not told else told[0].modality
    return with_changes(found, record=with_changes(found.record, channels=told, modality=modality))
