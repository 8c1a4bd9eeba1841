"""What the process that trains is told, and where its files lie. Free of torch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage import Channel, ClassInfo
from students.frozen import Frozen
from students.spec import NnunetPreset, StudentSpec

MODEL = "nnunet"
"""Below the student's folder, with what nnU-Net itself needs to use the student."""

JOB = "job.json"
LOG = "worker.log"
WORK = "nnunet-work"
"""Below the student's folder while it is in training: pointers to cases, preprocessed volumes, checkpoints. Gone once it is trained."""

DATASET = "Dataset001_archive"
CATALOG = "SAMDISTILL_CATALOG"
"""Environment variable with the catalog's URL: it may hold a password, so no file has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a name in the recipe means to nnU-Net."""

    planner: str
    """Class that plans; ``ReducedPlanner`` is ours."""
    plans: str
    """Name of the file with the plans."""
    configuration: Literal["2d", "3d_fullres"] | None
    """None: 2D where every case is one slice, else 3D."""
    epochs: int
    iterations: int
    looks: int
    """Batches of the held-out cases that are looked at after each epoch."""
    adamw_lr: float | None = None
    """First rate of AdamW; None takes nnU-Net's own SGD, whose momentum of 0.99 needs thousands of steps."""


PRESETS: dict[NnunetPreset, Preset] = {
    # 2,500 steps of 1 s make 40 minutes on one core: a budget ends it earlier, and the rate falls with the budget.
    "reduced": Preset(
        planner="ReducedPlanner", plans="ReducedPlans", configuration=None, epochs=100, iterations=25, looks=3, adamw_lr=2e-3
    ),
    # From here on as nnU-Net 2 has it: 1,000 epochs of 250 steps, 50 looks (Isensee et al., Nature Methods 2021).
    "2d": Preset(planner="ExperimentPlanner", plans="nnUNetPlans", configuration="2d", epochs=1000, iterations=250, looks=50),
    "3d_fullres": Preset(
        planner="ExperimentPlanner", plans="nnUNetPlans", configuration="3d_fullres", epochs=1000, iterations=250, looks=50
    ),
    "resenc_m": Preset(
        planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans", configuration=None, epochs=1000, iterations=250, looks=50
    ),
    "resenc_l": Preset(
        planner="nnUNetPlannerResEncL", plans="nnUNetResEncUNetLPlans", configuration=None, epochs=1000, iterations=250, looks=50
    ),
}


class JobCase(Frozen):
    """One case to learn from."""

    id: str
    patient: str
    weight: float = 1.0


class Job(Frozen):
    """Everything that the training depends on; ``job.json`` in the work folder."""

    fingerprint: str
    archive: str
    label_set: str
    classes: tuple[ClassInfo, ...]
    cases: tuple[JobCase, ...]
    channels: tuple[str, ...]
    """What nnU-Net is told of each image channel: its name or modality. CT it normalises otherwise than the rest."""
    named_channels: tuple[Channel, ...] = ()
    """The channels as the archive has them; empty where nobody named them."""
    flat: bool
    """Every case is a single slice: their distance means nothing, and nnU-Net is told so."""
    spacing_known: bool | Literal["mixed"] = True
    """Of all cases, of none, or of some."""
    spec: StudentSpec


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of one training lie."""

    folder: Path
    """Of the student."""

    @property
    def work(self) -> Path:
        """What is there only during the training."""
        return self.folder / WORK

    @property
    def raw(self) -> Path:
        """The folder that nnU-Net takes for its data set: pointers and ``dataset.json``."""
        return self.work / "raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """Fingerprint, plans, splits and volumes that are ready for training."""
        return self.work / "preprocessed" / DATASET

    def environment(self, spec: StudentSpec, catalog: str) -> dict[str, str]:
        """Return the environment of the worker: nnU-Net is told everything by it, and reads some of it when it is imported."""
        workers = spec.nnunet.workers if spec.nnunet else 1
        here = Path(__file__).parents[2]
        known = {
            "nnUNet_raw": str(self.work / "raw"),
            "nnUNet_preprocessed": str(self.work / "preprocessed"),
            "nnUNet_results": str(self.work / "results"),
            "nnUNet_extTrainer": str(Path(__file__).parent / "trainer"),
            "nnUNet_def_n_proc": str(workers),
            # One process reads and augments in the one that trains; with more, these do it beside it.
            "nnUNet_n_proc_DA": str(workers if workers > 1 else 0),
            "nnUNet_compile": os.environ.get("nnUNet_compile", "f"),  # noqa: SIM112 - nnU-Net's own spelling
            "PYTHONPATH": os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])]),
            CATALOG: catalog,
        }
        if spec.device.startswith("cuda:"):  # nnU-Net takes the first GPU that it sees
            known["CUDA_VISIBLE_DEVICES"] = _nth_visible(int(spec.device.removeprefix("cuda:")))
        if spec.threads is not None:
            known["OMP_NUM_THREADS"] = str(spec.threads)
        return {**os.environ, **known}


def _nth_visible(index: int) -> str:
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[index] if index < len(seen) else str(index)


def write_json(path: Path, content: object) -> None:
    """Write a file that is there whole, or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
