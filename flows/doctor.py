"""What this machine can do, what is missing, and the command that mends it."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

from flows.errors import StageError
from flows.places import check_writable

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor's table."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Run every check; none of them leaves anything behind."""
    return [check() for check in CHECKS]


def python() -> Check:
    """The interpreter."""
    found = platform.python_version()
    if (3, 11, 1) <= sys.version_info[:3] < (3, 13):
        return Check(name="python", verdict="ok", found=found)
    return Check(name="python", verdict="problem", found=found, remedy="make the environment with Python 3.11 or 3.12")


def shadowed_standard_library() -> Check:
    """PyPI's argparse replaces Python's own and lacks what Prefect's server imports."""
    bad = [name for name in ("argparse", "unittest2") if _version(name)]
    if not bad:
        return Check(name="standard library", verdict="ok", found="not shadowed")
    found = f"shadowed by {', '.join(bad)} from a package index (an old dependency of nnunetv2); Prefect will not start"
    return Check(name="standard library", verdict="problem", found=found, remedy=f"{sys.executable} -m pip uninstall -y {' '.join(bad)}")


def prefect_companions() -> Check:
    """Versions that Prefect accepts on installation and fails with when it runs."""
    limits = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
    wrong = {name: found for name, limit in limits.items() if (found := _version(name)) and _pair(found) >= limit}
    if not wrong:
        return Check(name="prefect", verdict="ok", found=f"prefect {_version('prefect') or 'missing'} with companions it works with")
    found = ", ".join(f"{name} {version}" for name, version in wrong.items()) + ": too new for prefect 3.8"
    remedy = f'{sys.executable} -m pip install "fastapi<0.151" "sqlalchemy<2.1"'
    return Check(name="prefect", verdict="problem", found=found, remedy=remedy)


def libraries() -> Check:
    """The libraries that each stage needs."""
    needed = ("torch", "torchvision", "segment-anything", "monai", "zarr", "nibabel", "pydicom", "prefect", "onnxruntime")
    missing = [name for name in needed if not _version(name)]
    if missing:
        remedy = f"{sys.executable} -m pip install {' '.join(missing)}"
        return Check(name="libraries", verdict="problem", found=f"missing: {', '.join(missing)}", remedy=remedy)
    return Check(name="libraries", verdict="ok", found=f"torch {_version('torch')}, zarr {_version('zarr')}, monai {_version('monai')}")


def accelerator() -> Check:
    """A CUDA device, if there is one."""
    try:
        import torch
    except ImportError:
        return Check(name="accelerator", verdict="problem", found="torch cannot be imported", remedy="see 'libraries'")
    if torch.cuda.is_available():
        return Check(name="accelerator", verdict="ok", found=f"{torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} device(s)")
    driver = shutil.which("nvidia-smi")
    found = "a driver, but torch cannot use it" if driver else "no GPU; everything runs on the CPU, slower"
    return Check(
        name="accelerator", verdict="note", found=found, remedy="compare 'nvidia-smi' with the CUDA version of torch" if driver else ""
    )


def processors() -> Check:
    """Cores and memory that this process may use."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free_gib = psutil.virtual_memory().available / 2**30
    found = f"{cores} cores, {free_gib:.1f} GiB of memory free"
    if free_gib < 3:
        return Check(name="processors", verdict="note", found=found, remedy="a run needs about 3 GiB; close other programs")
    return Check(name="processors", verdict="ok", found=found)


def disk() -> Check:
    """Room in the folder where the command is called, and whether it may be written to."""
    try:
        check_writable(Path.cwd(), "archives and results")
    except StageError as error:
        return Check(name="disk", verdict="problem", found=str(error), remedy="cd to a folder of your own, and run samdistill there")
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    found = f"{free_gib:.0f} GiB free in {Path.cwd()}"
    if free_gib < 2:
        return Check(name="disk", verdict="note", found=found, remedy="an archive takes about a third of the raw volume of its scans")
    return Check(name="disk", verdict="ok", found=found)


def prefect_home() -> Check:
    """The folder where run records are kept."""
    home = Path(os.environ.get("PREFECT_HOME", ""))
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if os.access(nearest, os.W_OK):
        return Check(name="run records", verdict="ok", found=str(home))
    return Check(
        name="run records", verdict="problem", found=f"{nearest} is not writable", remedy="export PREFECT_HOME=/some/folder/of/yours"
    )


def bundled_teacher() -> Check:
    """The teacher that ships with the package."""
    file = resources.files("distill") / "teachers" / "bundled" / "teacher.safetensors"
    if file.is_file():
        return Check(name="bundled teacher", verdict="ok", found=f"{len(file.read_bytes()) / 1e6:.1f} MB")
    remedy = "reinstall samdistill, or name a checkpoint of your own in the recipe"
    return Check(name="bundled teacher", verdict="problem", found="not in this installation", remedy=remedy)


CHECKS: tuple[Callable[[], Check], ...] = (
    python,
    shadowed_standard_library,
    prefect_companions,
    libraries,
    accelerator,
    processors,
    disk,
    prefect_home,
    bundled_teacher,
)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _pair(version: str) -> tuple[int, int]:
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)
