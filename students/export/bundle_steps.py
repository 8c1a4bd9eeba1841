"""A scan on its way into a student's network and back, as transforms of MONAI.

This file travels in bundles as ``scripts/steps.py``, with the functions that it takes from this package written out in it, so that a bundle needs
MONAI alone and prepares scans by the very code that ``samdistill predict`` does.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from students.preparation import measure_intensities, resample, shape_at_spacing
from students.spec import Normalisation


class Prepared(MapTransform):
    """Channels first, axes z, y, x, normalised by its own intensities, at the student's spacing. Takes what ``LoadImaged`` gives."""

    def __init__(
        self, keys: str, *, spacing_zyx_mm: Sequence[float], keep_slices: bool, low_percentile: float, high_percentile: float
    ) -> None:
        super().__init__(keys)
        self.spacing_zyx_mm, self.keep_slices = tuple(spacing_zyx_mm), keep_slices
        self.rule = Normalisation(low_percentile=low_percentile, high_percentile=high_percentile)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Prepare the image under each key."""
        prepared = dict(data)
        for key in self.key_iterator(prepared):
            prepared[key] = self.prepare(prepared[key])
        return prepared

    def prepare(self, image: MetaTensor) -> MetaTensor:
        """Return one image prepared; what its file said stays with it."""
        voxels = np.asarray(image.array)
        if str(image.meta.get("original_channel_dim")) == "0":  # several files, which LoadImaged stacks along a new first axis
            planes = voxels.reshape(*voxels.shape, *[1] * (4 - voxels.ndim))  # of files without a third axis
            voxels = np.moveaxis(planes, 0, -1)
        first_three = (*voxels.shape, 1, 1)[:3]
        scan = np.ascontiguousarray(voxels.reshape((*first_three, -1), order="F").T)
        # The header's own voxel size, as samdistill reads it; an affine may say otherwise.
        spacing = [float(mm) if 0 < mm < 1e4 else 1.0 for mm in np.asarray(image.meta["pixdim"])[3:0:-1]]
        wanted = shape_at_spacing(scan.shape[1:], spacing, self.spacing_zyx_mm, keep_z=self.keep_slices)
        normalised = measure_intensities(scan, self.rule).apply(scan)
        return MetaTensor(resample(torch.from_numpy(normalised), wanted), meta=image.meta)


class Restored(MapTransform):
    """Class ids on the grid of the scan, from a student's logits; axes x, y, z again, ready for ``SaveImaged``."""

    def __init__(self, keys: str, *, image_key: str, class_ids: Sequence[int]) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.ids = torch.tensor([0, *class_ids], dtype=torch.uint8)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the logits under each key."""
        restored = dict(data)
        # Scans of several files have their channels first; labels have none, and a single slice of them could not be saved with that said.
        meta = {**restored[self.image_key].meta, "original_channel_dim": float("nan")}
        x, y, z = (int(size) for size in (*np.asarray(meta["spatial_shape"]).tolist(), 1, 1)[:3])
        for key in self.key_iterator(restored):
            logits = resample(torch.as_tensor(restored[key]).float().cpu(), (z, y, x))
            labels = self.ids[logits.argmax(0)]
            restored[key] = MetaTensor(labels.permute(2, 1, 0)[None], meta=meta)
        return restored


def list_scans(folder: str, suffixes: Sequence[str]) -> list[str | list[str]]:
    """Return the NIfTI files of a folder by scan: those of its channels in the order of ``suffixes``, or the one that holds all of them.

    A scan that lacks a channel, or has two of one, is left out, and so are files that are named after a scan and are none of its channels.
    """
    parts: dict[str, list[tuple[str, str]]] = {}
    others: dict[str, str] = {}
    longest_first = sorted(suffixes, key=len, reverse=True)
    for path in sorted(str(each) for pattern in ("*.nii", "*.nii.gz") for each in Path(folder).glob(pattern)):
        stem = path.removesuffix(".gz").removesuffix(".nii")
        suffix = next((each for each in longest_first if Path(stem).name.endswith(each) and Path(stem).name != each), None)
        if suffix is None:
            others[stem] = path
        else:
            parts.setdefault(stem.removesuffix(suffix), []).append((suffix, path))
    whole = [path for stem, path in others.items() if not any(stem[:n] in parts and not stem[n].isalnum() for n in range(1, len(stem)))]
    complete = [dict(found) for found in parts.values() if sorted(suffix for suffix, _ in found) == sorted(suffixes)]
    return [*whole, *([found[suffix] for suffix in suffixes] for found in complete)]
