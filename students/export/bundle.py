"""A MONAI bundle: a folder that ``python -m monai.bundle run`` runs, without this package.

Layout and keys follow the MONAI Bundle Specification (docs.monai.io/en/latest/mb_specification.html) as MONAI 1.6 checks it.
"""

import inspect
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from students import preparation, spec
from students.export import bundle_steps, script
from students.export.compare import multiple_of
from students.spec import StudentCard
from students.whole_volume import OVERLAP

NETWORK = f"models/{script.FILE}"

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_TAKEN = (
    (preparation, ("_STATISTICS_VOXELS", "_SAME_SPACING")),
    (
        preparation,
        (
            preparation.Intensities,
            preparation._per_channel,  # noqa: SLF001 - taken as it stands
            preparation.measure_intensities,
            preparation.resample,
            preparation.shape_at_spacing,
        ),
    ),
    (spec, (spec.Normalisation,)),
)
"""What the steps need of this package: constants by name, functions and classes by themselves."""

_NEEDED = ("nibabel", "pytorch-ignite", "fire")
"""Packages that MONAI needs for reading NIfTI, for its evaluators and for its command line."""


USE = """With [MONAI](https://monai.io), pytorch-ignite, nibabel and fire, in the folder of the bundle:

```sh
python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json --dataset_dir SCANS --output_dir LABELS
```

Every NIfTI file in `SCANS` (of a student of several channels: the files of one case together, found by the end of their names, or one file that holds all channels; a case that lacks a channel is left out) gets `NAME_labels.nii.gz` in its own geometry, whose values are class ids. The labels are those of `samdistill predict`, which takes this folder too."""
"""For the page about a bundle."""


def write_bundle(folder: Path, card: StudentCard) -> None:
    """Write what MONAI needs besides the network into a folder."""
    files = {
        "configs/metadata.json": _as_json(metadata(card)),
        "configs/inference.json": _as_json(inference(card)),
        "scripts/__init__.py": "",
        "scripts/steps.py": steps_source(),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4) + "\n"


def inference(card: StudentCard) -> dict[str, Any]:
    """Return the configuration of MONAI's workflow ``inference``: one scan of ``dataset_dir`` after the other."""
    plan, flat = card.plan, card.plan.dimensions == "2d"
    windows = {"sw_batch_size": 2, "overlap": OVERLAP, "mode": "gaussian", "padding_mode": "replicate"}
    slices = {"_target_": "SliceInferer", "roi_size": list(plan.patch_zyx[1:]), "spatial_dim": 0}
    volumes = {"_target_": "SlidingWindowInferer", "roi_size": list(plan.patch_zyx)}
    prepared = {
        "_target_": "scripts.steps.Prepared",
        "keys": "image",
        "spacing_zyx_mm": list(plan.spacing_zyx_mm),
        "keep_slices": flat,
        **plan.normalisation.model_dump(),
    }
    restored = {
        "_target_": "scripts.steps.Restored",
        "keys": "pred",
        "image_key": "image",
        "class_ids": [info.id for info in card.classes],
    }
    saved = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "labels",
        "output_dtype": "uint8",
        "resample": False,
        "separate_folder": False,
    }
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/labels'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": _scans(card),
        "network_def": {"_target_": "torch.jit.load", "f": f"$@bundle_root + '/{NETWORK}'", "map_location": "@device"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"}, prepared],
        },
        "dataset": {"_target_": "Dataset", "data": "$[{'image': scan} for scan in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": (slices if flat else volumes) | windows,
        "postprocessing": {"_target_": "Compose", "transforms": [restored, saved]},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(card: StudentCard) -> dict[str, Any]:
    """Return what MONAI wants to know of a bundle, with what the network takes and gives."""
    plan = card.plan
    space = plan.patch_zyx if plan.dimensions == "3d" else plan.patch_zyx[1:]
    shape = [f"{step}*n" for step in multiple_of(plan)]
    classes = ", ".join(info.name for info in card.classes)
    channels = {str(n): name for n, name in enumerate(["background", *(info.name for info in card.classes)])}
    tensor = {"type": "image", "dtype": "float32", "value_range": [], "is_patch_data": True}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by samdistill {version('samdistill')}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: _version(name) for name in _NEEDED},
        "name": card.name,
        "task": f"segmentation of {classes}",
        "description": f"A student of {card.parameters / 1e6:.1f} M parameters that learnt {classes} from the label set {card.label_set}.",
        "authors": "not named",
        "copyright": "not named",
        "intended_use": "Research. It is no medical device, and has to be validated before anybody relies on it.",
        "samdistill": {"fingerprint": card.fingerprint, "class_ids": {info.name: info.id for info in card.classes}, "patch": list(space)},
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "num_channels": plan.in_channels,
                    "spatial_shape": shape,
                    "channel_def": {str(n): f"{name}, normalised, axes z y x" for n, name in enumerate(_inputs(card))},
                }
            },
            "outputs": {
                "pred": {**tensor, "format": "segmentation", "num_channels": plan.outputs, "spatial_shape": shape, "channel_def": channels}
            },
        },
    }


def _inputs(card: StudentCard) -> list[str]:
    """Return what each channel of the network's input is called."""
    return [channel.name for channel in card.channels] or [f"image {n}" for n in range(card.plan.in_channels)]


def _scans(card: StudentCard) -> str | dict[str, Any]:
    """Return how MONAI finds scans: each NIfTI file, or of several channels the files that belong together, which it stacks in this order."""
    if len(card.channels) > 1 and all(channel.suffix for channel in card.channels):
        return {"_target_": "scripts.steps.list_scans", "folder": "@dataset_dir", "suffixes": [channel.suffix for channel in card.channels]}
    return "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii')) + glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))"


def _version(name: str) -> str:
    """Return the version of a package that need not be here."""
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name)
    except PackageNotFoundError:
        return "any"


def steps_source() -> str:
    """Return the source of the bundle's steps: the transforms, and beside them the functions that they take from here."""
    own = inspect.getsource(bundle_steps)
    lines = [line for line in own.splitlines() if not line.startswith("from students.")]
    at = next(n for n, line in enumerate(lines) if line.startswith("class "))
    taken = "\n\n".join(_source(module, each) for module, names in _TAKEN for each in names)
    first_import = next(n for n, line in enumerate(lines) if line.startswith("from "))
    # Annotations of shapes are not looked at, so that nothing that checks them need be there.
    head = [*lines[:first_import], "from __future__ import annotations", "", *lines[first_import:at]]
    extra = "from dataclasses import dataclass\n\nfrom torch.nn import functional\n"
    return "\n".join([*head, extra, taken, "\n", *lines[at:], ""])


def _source(module: ModuleType, each: Any) -> str:
    if isinstance(each, str):
        return f"{each} = {getattr(module, each)!r}"
    if each is spec.Normalisation:  # a record of pydantic here, which a bundle does without
        fields = "\n".join(f"    {name}: float" for name in each.model_fields)
        return f'@dataclass(frozen=True, kw_only=True)\nclass Normalisation:\n    """Two percentiles."""\n\n{fields}\n'
    return inspect.getsource(each)
